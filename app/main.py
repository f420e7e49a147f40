"""The composition root: makes the gateway out of its parts, starts it, and ends it.

Data flows one way: a face (gRPC, REST, SOAP) calls `StatusService`, which asks the watcher; nothing calls back up.
Invariants: this module knows everything and only `cli` knows it; what starts is stopped, in the reverse order;
a port that is taken is a `CannotStart` that names the setting.

Deliberately absent: any rule about terminals.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import structlog
import uvicorn
from starlette.requests import Request
from starlette.responses import Response

from app import rest, rpc
from app.config import Settings
from app.rest.connection import BoundedConnection
from app.service import StatusService
from app.sip.client import SipWatcher, WatcherCannotStart
from app.sip.frames import Build, Configure
from app.telemetry import Metrics
from soap_compat.server import create_app as create_soap_app

VERSION = "0.1.0"
DRAIN_S = 5.0
"""How long questions in flight may take to end when the gateway is told to stop."""

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
        watcher = SipWatcher(sip_configuration(settings), restarted=metrics.worker_restarted)
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
        grpc_port = await stack.enter_async_context(_serve_grpc(service, settings.grpc_listen))
        await stack.enter_async_context(_serve_http(service, metrics, settings, http_socket))
        assert watcher.build is not None  # noqa: S101  # it started
        gateway = Gateway(
            grpc_address=f"{settings.grpc_listen.rpartition(':')[0]}:{grpc_port}",
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
            limits=watcher_limits(watcher.build),
        )
        yield gateway
        _log.info("gateway_stopping", drain_s=DRAIN_S)
    _log.info("gateway_stopped")


def sip_configuration(settings: Settings) -> Configure:
    """What the SIP worker is told."""
    host, _, port = settings.sip_listen.rpartition(":")
    server = settings.presence_server.removesuffix(";lr")
    transport = "tcp" if server.endswith(";transport=tcp") else "udp"
    headers = [("User-Agent", f"terminal-status-gateway/{VERSION}")]
    if settings.asserted_identity:
        headers.append(("P-Asserted-Identity", f"<{settings.asserted_identity}>"))
    return Configure(
        listen_host=host,
        listen_port=int(port),
        public_host=settings.sip_public_host or "",
        transport=transport,
        route=f"<{server};lr>",
        watcher_identity=settings.watcher_identity,
        headers=headers,
        sip_log_level=settings.sip_log_level,
    )


def watcher_limits(build: Build) -> list[str]:
    """What this PJSIP cannot do, a sentence each."""
    limits = []
    if not build.ipv6:
        limits.append("no IPv6: the presence server must be reached by IPv4")
    limits.append(f"messages up to {build.max_message_bytes} bytes: a larger NOTIFY is cut over UDP and lost over TCP")
    if build.tls != "1.3":
        limits.append(f"TLS {build.tls} at most: put a SIP edge beside the gateway for TLS 1.3")
    return limits


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


@asynccontextmanager
async def _serve_grpc(service: StatusService, listen: str) -> AsyncIterator[int]:
    stopping = asyncio.Event()
    server = rpc.create_server(service, stopping=stopping)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        raise CannotStart(_taken("TS_GRPC_LISTEN", listen, "the address is taken or not this machine's")) from None
    await server.start()
    try:
        yield port
    finally:
        stopping.set()
        await server.stop(DRAIN_S)


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the command line, which ends all faces together."""
        yield


@asynccontextmanager
async def _serve_http(
    service: StatusService, metrics: Metrics, settings: Settings, sock: socket.socket
) -> AsyncIterator[None]:
    app = rest.create_app(service)
    app.mount("/parlayx", create_soap_app(service, public_url=settings.http_public_url))

    async def scrape(_request: Request) -> Response:
        return Response(metrics.text(ready=service.ready), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_route("/metrics", scrape, include_in_schema=False)
    server = _Uvicorn(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            http=BoundedConnection,
            limit_concurrency=MAX_HTTP_CONNECTIONS,
            lifespan="off",
            timeout_graceful_shutdown=int(DRAIN_S),
            timeout_keep_alive=30,
        )
    )
    task = asyncio.create_task(server.serve([sock]), name="http")
    while not server.started:
        if task.done():
            raise CannotStart(f"The HTTP server ended at once: {task.exception()}")
        await asyncio.sleep(0.001)
    try:
        yield
    finally:
        server.should_exit = True
        await task
