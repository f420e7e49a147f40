"""The gRPC server and the HTTP server: how they listen, start and stop.

Invariants: a port that is in use raises `CannotStart`, which names the setting. A stopping server takes no more calls;
calls in flight have DRAIN_S to end, and then fail with an error that says that the gateway is stopping.

Deliberately absent: what the servers serve (`rpc`, `rest`, `soap_compat`).
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from app.auth.proxies import TrustedProxies
from app.auth.tls import Tls
from app.rest.connection import BoundedConnection
from app.rest.keep_alive import kept_alive
from app.rest.unauthenticated_connections import UnauthenticatedConnections
from app.rpc import CallLimits, EngineServer, enforce_connection_limits

DRAIN_S = 5.0
"""How long calls in flight may take to end when the gateway stops."""

CUT_OFF_S = 1.0
"""How long calls that exceeded DRAIN_S may take to send their error."""

MAX_HTTP_CONNECTIONS = 10_000
"""Above this number a new connection is answered 503 and closed; probes are still answered."""

KEEP_ALIVE_S = 30
"""How long an HTTP connection is kept without a request."""

BACKLOG = 4096
"""Most connections that wait to be accepted. Above this number the kernel drops a SYN, and the client retries after a
second."""

ACCEPTED_AT_ONCE = 16
"""Connections that one pass of the event loop accepts. libuv accepts one connection for each listening descriptor in a
pass: with a single descriptor, a client waited one pass for each connection queued before its own."""


class CannotStart(Exception):
    """The gateway cannot start. The message names the setting to change."""


class GrpcServer:
    """A gRPC server bound to its port; `calls` holds the tasks of the calls in flight. Raises CannotStart."""

    def __init__(self, server: EngineServer, listen: str, tls: Tls | None, calls: set[asyncio.Task[Any]]) -> None:
        self._calls = calls
        self._server = server
        try:
            if tls is None:
                self.port = server.add_insecure_port(listen)
            else:
                self.port = server.add_secure_port(listen, tls.grpc_credentials())
        except RuntimeError:
            why = "the address is in use or does not belong to this machine"
            raise CannotStart(_taken("TS_GRPC_LISTEN", listen, why)) from None

    async def stop(self) -> None:
        """Takes no more calls and waits for the calls in flight; after DRAIN_S they end as UNAVAILABLE."""
        stop = asyncio.ensure_future(self._server.stop(DRAIN_S + CUT_OFF_S))
        await asyncio.wait({stop}, timeout=DRAIN_S)
        for call in list(self._calls):
            call.cancel()
        await stop


class HttpServer(uvicorn.Server):
    """A uvicorn server that the gateway stops, instead of uvicorn's own signal handlers."""

    serving: asyncio.Task[None]

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing: the command line handles signals, and stops all servers together."""
        yield

    async def stop(self) -> None:
        """Takes no more requests and waits for the requests in flight; after DRAIN_S they end with a 503."""
        self.should_exit = True
        await self.serving
        if requests := self.server_state.tasks:
            await asyncio.wait(requests, timeout=CUT_OFF_S)


@contextmanager
def bound(listen: str, setting: str = "TS_HTTP_LISTEN") -> Iterator[socket.socket]:
    """A listening socket for an HTTP address. Raises CannotStart, with the name of `setting`."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    # asyncio switches Nagle's algorithm off only on sockets that were made with IPPROTO_TCP.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host.strip("[]"), int(port)))
            sock.listen(BACKLOG)
        except OSError as error:
            raise CannotStart(_taken(setting, listen, error.strerror or str(error))) from None
        yield sock


@asynccontextmanager
async def serve_grpc(
    server: EngineServer,
    listen: str,
    tls: Tls | None,
    calls: set[asyncio.Task[Any]],
    limits: CallLimits,
    proxies: TrustedProxies,
) -> AsyncIterator[GrpcServer]:
    """Serves while the context is open. Raises CannotStart."""
    bound_server = GrpcServer(server, listen, tls, calls)
    await server.start()
    enforcing = asyncio.create_task(
        enforce_connection_limits(limits, bound_server.port, proxies), name="grpc connections"
    )
    try:
        yield bound_server
    finally:
        enforcing.cancel()
        await bound_server.stop()


@asynccontextmanager
async def serve_http(
    app: ASGIApp,
    sock: socket.socket,
    tls: Tls | None,
    unauthenticated: UnauthenticatedConnections | None = None,
) -> AsyncIterator[HttpServer]:
    """Serves while the context is open. Raises CannotStart. The default `unauthenticated` trusts no proxy."""
    unauthenticated = unauthenticated or UnauthenticatedConnections(TrustedProxies(), time.monotonic)
    server = HttpServer(
        uvicorn.Config(
            kept_alive(app, KEEP_ALIVE_S),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            http=cast("type[asyncio.Protocol]", partial(BoundedConnection, unauthenticated=unauthenticated)),
            ws="none",
            limit_concurrency=MAX_HTTP_CONNECTIONS,
            backlog=BACKLOG,
            lifespan="off",
            timeout_graceful_shutdown=int(DRAIN_S),
            timeout_keep_alive=KEEP_ALIVE_S,
            **(tls.uvicorn_options() if tls else {}),
        )
    )
    listening = [sock, *[sock.dup() for _ in range(ACCEPTED_AT_ONCE - 1)]]  # uvicorn closes them
    server.serving = asyncio.create_task(server.serve(listening), name="http")
    while not server.started:
        if server.serving.done():
            raise CannotStart(f"The HTTP server ended at once: {server.serving.exception()}")
        await asyncio.sleep(0.001)
    renewing = set()
    if tls is not None and server.config.ssl is not None:
        renewing.add(asyncio.create_task(tls.keep_up_to_date(server.config.ssl), name="tls"))
    try:
        yield server
    finally:
        for task in renewing:
            task.cancel()
        await server.stop()


def _taken(setting: str, listen: str, why: str) -> str:
    return f"{setting}: cannot listen on {listen}: {why}. Stop the process that uses the port, or change {setting}."
