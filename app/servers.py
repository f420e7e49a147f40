"""The two servers of a gateway, gRPC and HTTP: bound, started, and stopped together.

Invariants: a port that is taken is a `CannotStart` that names the setting. Told to stop, both take no more calls; those
in flight have DRAIN_S in all, and what is left then is told that the gateway stops.

Deliberately absent: what is served (`rpc`, `rest`, `soap_compat`).
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, cast

import grpc.aio
import uvicorn
from starlette.types import ASGIApp

from app.auth.proxies import TrustedProxies
from app.auth.tls import Tls
from app.rest.connection import BoundedConnection
from app.rest.unauthenticated import Strangers
from app.rpc import Gate, guard_connections

DRAIN_S = 5.0
"""How long questions in flight may take to end when the gateway is told to stop."""

CUT_OFF_S = 1.0
"""How long after that the rest may take to leave, once they are told that they had their time."""

MAX_HTTP_CONNECTIONS = 10_000
"""One more is answered 503 and closed, except for probes."""

BACKLOG = 4096
"""Connections that wait to be accepted; above it the kernel drops one, and its client tries again in a second."""

ACCEPTED_AT_ONCE = 16
"""Connections that one pass of the event loop accepts. libuv accepts one for each listening descriptor: with a single
one, a client waited for as many passes as connections of others had come before it."""


class CannotStart(Exception):
    """The gateway cannot start; the message says which setting to look at."""


class GrpcServer:
    """A gRPC server with what its end needs. `calls` are those in flight. Raises CannotStart."""

    def __init__(self, server: grpc.aio.Server, listen: str, tls: Tls | None, calls: set[asyncio.Task[Any]]) -> None:
        self._calls = calls
        self._server = server
        try:
            if tls is None:
                self.port = server.add_insecure_port(listen)
            else:
                self.port = server.add_secure_port(listen, tls.grpc_credentials())
        except RuntimeError:
            why = "the address is taken or not this machine's"
            raise CannotStart(_taken("TS_GRPC_LISTEN", listen, why)) from None

    async def stop(self) -> None:
        """Takes no more calls, and waits for those in flight, of which what is left at the end is UNAVAILABLE."""
        stop = asyncio.ensure_future(self._server.stop(DRAIN_S + CUT_OFF_S))
        await asyncio.wait({stop}, timeout=DRAIN_S)
        for call in list(self._calls):
            call.cancel()
        await stop


class HttpServer(uvicorn.Server):
    """uvicorn as a part of the gateway, which is stopped with the others."""

    serving: asyncio.Task[None]

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the command line, which ends all faces together."""
        yield

    async def stop(self) -> None:
        """Takes no more requests, and waits for those in flight, of which what is left at the end is a 503."""
        self.should_exit = True
        await self.serving
        if requests := self.server_state.tasks:
            await asyncio.wait(requests, timeout=CUT_OFF_S)


@contextmanager
def bound(listen: str, setting: str = "TS_HTTP_LISTEN") -> Iterator[socket.socket]:
    """The socket of an HTTP address, which that setting names. Raises CannotStart."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    # The protocol is named, for asyncio switches Nagle's algorithm off only where it is.
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
    server: grpc.aio.Server,
    listen: str,
    tls: Tls | None,
    calls: set[asyncio.Task[Any]],
    gate: Gate,
    proxies: TrustedProxies,
) -> AsyncIterator[GrpcServer]:
    """Serves while the context is open. Raises CannotStart."""
    bound_server = GrpcServer(server, listen, tls, calls)
    await server.start()
    guarding = asyncio.create_task(guard_connections(gate, bound_server.port, proxies), name="grpc connections")
    try:
        yield bound_server
    finally:
        guarding.cancel()
        await bound_server.stop()


@asynccontextmanager
async def serve_http(
    app: ASGIApp,
    sock: socket.socket,
    tls: Tls | None,
    strangers: Strangers | None = None,
) -> AsyncIterator[HttpServer]:
    """Serves while the context is open; `strangers` by default trusts no proxy. Raises CannotStart."""
    strangers = strangers or Strangers(TrustedProxies(), time.monotonic)
    server = HttpServer(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            http=cast("type[asyncio.Protocol]", partial(BoundedConnection, strangers=strangers)),
            ws="none",
            limit_concurrency=MAX_HTTP_CONNECTIONS,
            backlog=BACKLOG,
            lifespan="off",
            timeout_graceful_shutdown=int(DRAIN_S),
            timeout_keep_alive=30,
            **(tls.uvicorn_options() if tls else {}),
        )
    )
    listening = [sock, *[sock.dup() for _ in range(ACCEPTED_AT_ONCE - 1)]]  # which uvicorn closes
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
    return f"{setting}: cannot listen on {listen}: {why}. Stop what uses that port, or set {setting} to another one."
