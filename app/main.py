"""The composition root: makes the gateway out of its parts, starts it, and ends it.

Data flows one way: a face (gRPC, REST, SOAP) calls `StatusService`, which asks the watcher; nothing calls back up.
Invariants: this module knows everything and only `cli` knows it; what starts is stopped, in the reverse order, but both
servers together: told to stop, health says so at once and questions in flight have DRAIN_S in all; a port that is taken
is a `CannotStart` that names the setting.

Deliberately absent: any rule about terminals.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app import rest, rpc
from app.config import Settings
from app.rest.connection import BoundedConnection
from app.service import StatusService
from app.sip.client import SipWatcher, WatcherCannotStart
from app.sip.configuration import sip_configuration, watcher_limits
from app.sip.frames import Build
from app.telemetry import Metrics
from soap_compat.server import create_app as create_soap_app

VERSION = "0.1.0"
DRAIN_S = 5.0
"""How long questions in flight may take to end when the gateway is told to stop."""

CUT_OFF_S = 1.0
"""How long after that the rest may take to leave, once they are told that they had their time."""

SOAP_PATH = "/parlayx"
MAX_HTTP_CONNECTIONS = 10_000
"""One more is answered 503 and closed."""

_log = structlog.get_logger()


class CannotStart(Exception):
    """The gateway cannot start; the message says which setting to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway that serves: where, and with what."""

    grpc_address: str
    http_address: str
    sip_ports: dict[str, int]
    build: Build
    watcher: SipWatcher
    service: StatusService


@asynccontextmanager
async def run_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """Serves while the context is open. Raises CannotStart."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        http_socket = stack.enter_context(_bound(settings.http_listen))
        watcher = SipWatcher(
            sip_configuration(settings, VERSION), workers=settings.sip_workers, restarted=metrics.worker_restarted
        )
        stack.push_async_callback(watcher.aclose)
        try:
            await watcher.start()
        except WatcherCannotStart as error:
            raise CannotStart(f"The SIP worker cannot start: {error}. See TS_SIP_LISTEN.") from None
        service = StatusService(
            watcher,
            metrics,
            busy_activities=settings.busy_activities,
            fetch_timeout_s=settings.fetch_timeout_ms / 1000,
            max_fetches=settings.max_fetches,
        )
        stopping = asyncio.Event()
        grpc_server = await stack.enter_async_context(_serve_grpc(service, settings.grpc_listen, stopping))
        http_server = await stack.enter_async_context(_serve_http(service, metrics, settings, http_socket, stopping))
        assert watcher.build is not None  # noqa: S101  # it started
        gateway = Gateway(
            grpc_address=f"{settings.grpc_listen.rpartition(':')[0]}:{grpc_server.port}",
            http_address=f"{settings.http_listen.rpartition(':')[0]}:{http_socket.getsockname()[1]}",
            sip_ports=watcher.ports,
            build=watcher.build,
            watcher=watcher,
            service=service,
        )
        _log.info(
            "gateway_started",
            grpc=gateway.grpc_address,
            http=gateway.http_address,
            sip=gateway.sip_ports,
            presence_server=settings.presence_server,
            limits=watcher_limits(watcher.build, settings.max_document_bytes),
        )
        try:
            yield gateway
        finally:
            _log.info("gateway_stopping", drain_s=DRAIN_S)
            stopping.set()
            await asyncio.gather(grpc_server.stop(), http_server.stop())
    _log.info("gateway_stopped")


@contextmanager
def _bound(listen: str) -> Iterator[socket.socket]:
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host.strip("[]"), int(port)))
            sock.listen(1024)
        except OSError as error:
            raise CannotStart(_taken("TS_HTTP_LISTEN", listen, error.strerror or str(error))) from None
        yield sock


def _taken(setting: str, listen: str, why: str) -> str:
    return f"{setting}: cannot listen on {listen}: {why}. Stop what uses that port, or set {setting} to another one."


class _GrpcServer:
    """The gRPC server with what its end needs."""

    def __init__(self, service: StatusService, listen: str, stopping: asyncio.Event) -> None:
        self._calls: set[asyncio.Task[Any]] = set()
        self._server = rpc.create_server(service, stopping=stopping, calls=self._calls)
        try:
            self.port = self._server.add_insecure_port(listen)
        except RuntimeError:
            why = "the address is taken or not this machine's"
            raise CannotStart(_taken("TS_GRPC_LISTEN", listen, why)) from None

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        """Takes no more calls, and waits for those in flight, of which what is left at the end is UNAVAILABLE."""
        stop = asyncio.ensure_future(self._server.stop(DRAIN_S + CUT_OFF_S))
        await asyncio.wait({stop}, timeout=DRAIN_S)
        for call in list(self._calls):
            call.cancel()
        await stop


@asynccontextmanager
async def _serve_grpc(service: StatusService, listen: str, stopping: asyncio.Event) -> AsyncIterator[_GrpcServer]:
    server = _GrpcServer(service, listen, stopping)
    await server.start()
    try:
        yield server
    finally:
        stopping.set()
        await server.stop()


class _HttpServer(uvicorn.Server):
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


@asynccontextmanager
async def _serve_http(
    service: StatusService, metrics: Metrics, settings: Settings, sock: socket.socket, stopping: asyncio.Event
) -> AsyncIterator[_HttpServer]:
    app = rest.create_app(service, stopping=stopping)
    soap = create_soap_app(service, public_url=settings.http_public_url)

    async def scrape(_request: Request) -> Response:
        ready = service.ready and not stopping.is_set()
        return Response(metrics.text(ready=ready), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_route("/metrics", scrape, include_in_schema=False)

    async def face(scope: Scope, receive: Receive, send: Send) -> None:
        # SOAP stands beside FastAPI and not under it: its middlewares would cost each call 50 µs and do nothing.
        if scope["type"] == "http" and scope["path"].startswith(f"{SOAP_PATH}/"):
            await soap({**scope, "root_path": scope["root_path"] + SOAP_PATH}, receive, send)
        else:
            await app(scope, receive, send)

    server = _HttpServer(
        uvicorn.Config(
            face,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            http=BoundedConnection,
            ws="none",
            limit_concurrency=MAX_HTTP_CONNECTIONS,
            lifespan="off",
            timeout_graceful_shutdown=int(DRAIN_S),
            timeout_keep_alive=30,
        )
    )
    server.serving = asyncio.create_task(server.serve([sock]), name="http")
    while not server.started:
        if server.serving.done():
            raise CannotStart(f"The HTTP server ended at once: {server.serving.exception()}")
        await asyncio.sleep(0.001)
    try:
        yield server
    finally:
        await server.stop()
