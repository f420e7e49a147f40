"""The composition root: builds the gateway's parts, starts them, and stops them in reverse order.

Calls go one way: a face (gRPC, REST, SOAP) calls the use cases, which call the watcher, the store and the senders.
Events come back through callbacks (`on_…`), which `wiring.py` connects.

Invariants: only `app/cli` imports this module. Both servers stop together: when the gateway is asked to stop, health
turns NOT_SERVING and streams end with their reason at once, and calls in flight have DRAIN_S in all.

Deliberately absent: any rule about terminals.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from app import VERSION, rpc
from app.auth import tls
from app.auth.authenticator import OpenToAll
from app.auth.oidc import AccessTokens
from app.auth.proxies import TrustedProxies
from app.core.fetcher import FetchService
from app.core.use_cases import UseCases
from app.domain.errors import StoreUnavailable
from app.domain.sinks import PROFILE_CAMARA, SIGNED_PROFILES, SinkKind
from app.egress.allowed import Rules
from app.egress.client import Egress
from app.egress.jwks import fetch_keys
from app.egress.tls import SinkTls
from app.egress.webhook import WebhookSender, v1_event
from app.metrics import Metrics, add_readings
from app.ports.delivery import Sender
from app.rest import metrics as rest_metrics
from app.rest.application import create_app
from app.rest.camara import cloud_events
from app.rest.unauthenticated_connections import UnauthenticatedConnections
from app.servers import DRAIN_S, CannotStart, GrpcServer, HttpServer, bound, serve_grpc, serve_http
from app.settings.loading import Settings
from app.sip.protocol import Build
from app.sip.settings import sip_configuration, watcher_limits
from app.sip.watcher import SipWatcher, WatcherCannotStart
from app.store import PATIENCE_S, DatabaseUnavailable, SqlStore, only_gateway, open_store, shown_url
from app.wiring import run_use_cases
from soap_compat.callbacks import CallbackSender
from soap_compat.server import create_app as create_soap_app

__all__ = ["CannotStart", "Gateway", "run_gateway"]

SOAP_PATH = "/parlayx"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A running gateway: its addresses, and the parts that the command line and tests use."""

    grpc_address: str
    http_address: str
    metrics_address: str
    """Empty if metrics and probes share the HTTP address."""
    sip_ports: dict[str, int]
    build: Build
    watcher: SipWatcher
    use_cases: UseCases
    read_tls_files: Callable[[], None]
    """Reads the TLS files again, and logs whether they changed or are unusable."""


@asynccontextmanager
async def run_gateway(settings: Settings, *, open_is_admin: bool = False) -> AsyncIterator[Gateway]:
    """Serves while the context is open. Raises CannotStart.

    `open_is_admin` is for the demo: callers on this machine are operators while no client is configured.
    """
    async with AsyncExitStack() as stack:
        start = stack.enter_async_context
        metrics, stopping, proxies = Metrics(), asyncio.Event(), TrustedProxies.of(settings.trusted_proxies)
        http_socket = stack.enter_context(bound(settings.http_listen))
        metrics_socket = None
        if settings.metrics_listen:
            metrics_socket = stack.enter_context(bound(settings.metrics_listen, "TS_METRICS_LISTEN"))
        tls_files = _TlsFiles(settings)
        store = await _open_store(stack, settings)
        watcher = await start(_watcher(settings, metrics))
        fetcher = _fetcher(settings, watcher, metrics)
        tokens = _tokens(settings)
        egress = await start(aclosing(_egress(settings, tls_files)))
        senders = _senders(settings, egress)
        use_cases = await _start_use_cases(
            stack, settings, store, watcher, fetcher, senders, metrics, tokens, open_is_admin=open_is_admin
        )
        add_readings(metrics, watcher, use_cases)
        app = _http_app(fetcher, use_cases, metrics, settings, stopping, tokens)
        if metrics_socket:  # starts first and stops last, so that probes are answered while the faces drain
            await start(serve_http(rest_metrics.on_separate_address(app), metrics_socket, None))
        grpc_server = await start(_grpc_server(settings, fetcher, use_cases, stopping, tls_files, proxies))
        http_server = await start(_http_server(settings, app, http_socket, tls_files, proxies))
        assert watcher.build is not None  # noqa: S101  # the watcher has started
        gateway = Gateway(
            grpc_address=f"{settings.grpc_listen.rpartition(':')[0]}:{grpc_server.port}",
            http_address=_address(settings.http_listen, http_socket),
            metrics_address=_address(settings.metrics_listen, metrics_socket),
            sip_ports=watcher.ports,
            build=watcher.build,
            watcher=watcher,
            use_cases=use_cases,
            read_tls_files=tls_files.read_again,
        )
        _log_start(gateway, settings)
        try:
            yield gateway
            fetcher.leaving = True
            if settings.drain_delay_s:
                _log.info("gateway_leaving", serves_on_s=settings.drain_delay_s)
                await asyncio.sleep(settings.drain_delay_s)
        finally:
            _log.info("gateway_stopping", drain_s=DRAIN_S)
            stopping.set()
            use_cases.streams.end_all()
            await asyncio.gather(grpc_server.stop(), http_server.stop())
    _log.info("gateway_stopped")


def _log_start(gateway: Gateway, settings: Settings) -> None:
    _log.info(
        "gateway_started",
        grpc=gateway.grpc_address,
        http=gateway.http_address,
        metrics=gateway.metrics_address,
        sip=gateway.sip_ports,
        presence_server=settings.presence_server,
        limits=watcher_limits(gateway.build, settings.max_document_bytes),
    )


class _TlsFiles:
    """The TLS files in the settings, of the servers and towards sinks. `servers` is None if the settings name no file
    of theirs. Raises CannotStart."""

    def __init__(self, settings: Settings) -> None:
        try:
            self.servers = tls.load(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
            self.sinks = SinkTls(settings.sink_ca_file, settings.sink_cert_file, settings.sink_key_file)
        except tls.TlsUnusable as error:
            raise CannotStart(str(error)) from None

    def read_again(self) -> None:
        """Reads the files again. Unusable files are logged; then the files read before stay in use."""
        if self.servers is not None:
            self.servers.read_again()
        self.sinks.read_again()
        if self.servers is None and not self.sinks.named:
            _log.info("no_tls_files", hint="SIGHUP reads the files of TS_TLS_… and TS_SINK_…; none is set")


async def _open_store(stack: AsyncExitStack, settings: Settings) -> SqlStore:
    """Opens the store; `stack` closes it. An SQLite file is locked against other gateways."""
    try:
        alone = stack.enter_context(only_gateway(settings.database_url))
        store = await stack.enter_async_context(
            await open_store(settings.database_url, secret_key_file=settings.secret_key_file, wait_s=PATIENCE_S)
        )
        if alone:  # leases of an earlier gateway that did not stop in order would delay their notifications
            with store.patient():
                await store.end_leases(_now())
    except DatabaseUnavailable as error:
        raise CannotStart(f"TS_DATABASE_URL: {shown_url(settings.database_url)} cannot be opened: {error}.") from None
    except StoreUnavailable as error:
        raise _store_unavailable(settings, error) from None
    return store


@asynccontextmanager
async def _watcher(settings: Settings, metrics: Metrics) -> AsyncIterator[SipWatcher]:
    watcher = SipWatcher(
        sip_configuration(settings, VERSION),
        workers=settings.sip_workers,
        on_worker_replaced=metrics.count_worker_restart,
        on_lag=metrics.observe_lag,
    )
    try:
        await watcher.start()
        yield watcher
    except WatcherCannotStart as error:
        raise CannotStart(f"The SIP worker cannot start: {error}. See TS_SIP_LISTEN.") from None
    finally:
        await watcher.aclose()


def _fetcher(settings: Settings, watcher: SipWatcher, metrics: Metrics) -> FetchService:
    return FetchService(
        watcher,
        metrics,
        busy_activities=settings.busy_activities,
        busy_when_closed=settings.busy_when_closed,
        fetch_timeout_s=settings.fetch_timeout_ms / 1000,
        max_fetches=settings.max_fetches,
    )


def _tokens(settings: Settings) -> AccessTokens | None:
    if not settings.oidc_issuer:
        return None
    return AccessTokens(
        partial(fetch_keys, settings.oidc_jwks_url),
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience,
        scope=settings.oidc_scope,
        client_claim=settings.oidc_client_claim,
        device_claim=settings.oidc_device_claim,
        clock=_now,
        monotonic=time.monotonic,
    )


def _egress(settings: Settings, tls_files: _TlsFiles) -> Egress:
    rules = Rules.of(settings.sink_allowed_networks, allow_http=settings.sink_allow_http)
    return Egress(rules, total_s=settings.sink_timeout_ms / 1000, tls=tls_files.sinks.context)


def _senders(settings: Settings, egress: Egress) -> Mapping[SinkKind, Sender]:
    webhooks = WebhookSender(
        egress,
        clock=_now,
        envelopes={**dict.fromkeys(SIGNED_PROFILES, v1_event), PROFILE_CAMARA: cloud_events.event},
        source=settings.http_public_url or "",
    )
    return {SinkKind.WEBHOOK: webhooks, SinkKind.SOAP: CallbackSender(egress)}


async def _start_use_cases(
    stack: AsyncExitStack,
    settings: Settings,
    store: SqlStore,
    watcher: SipWatcher,
    fetcher: FetchService,
    senders: Mapping[SinkKind, Sender],
    metrics: Metrics,
    tokens: AccessTokens | None,
    *,
    open_is_admin: bool,
) -> UseCases:
    """Starts the use cases; `stack` stops them. Raises CannotStart if no client is configured and other machines can
    reach the gateway (see `Authenticator.start`)."""
    try:
        with store.patient():
            use_cases = await stack.enter_async_context(
                run_use_cases(
                    settings,
                    store,
                    watcher,
                    fetcher,
                    senders,
                    clock=_now,
                    monotonic=time.monotonic,
                    tokens=tokens,
                    on_attempted=metrics.count_attempt,
                    open_is_admin=open_is_admin,
                )
            )
            listens = {"TS_GRPC_LISTEN": settings.grpc_listen, "TS_HTTP_LISTEN": settings.http_listen}
            await use_cases.auth.start(listens, closed_is_meant=settings.anonymous_access == "never")
    except StoreUnavailable as error:
        raise _store_unavailable(settings, error) from None
    except OpenToAll as error:
        raise CannotStart(str(error)) from None
    return use_cases


def _store_unavailable(settings: Settings, error: StoreUnavailable) -> CannotStart:
    url, reason = shown_url(settings.database_url), error.details.get("reason", "away")
    return CannotStart(f"TS_DATABASE_URL: {url} cannot be used: {reason} for too long.")


@asynccontextmanager
async def _grpc_server(
    settings: Settings,
    fetcher: FetchService,
    use_cases: UseCases,
    stopping: asyncio.Event,
    tls_files: _TlsFiles,
    proxies: TrustedProxies,
) -> AsyncIterator[GrpcServer]:
    calls: set[asyncio.Task[Any]] = set()
    limits = rpc.CallLimits(
        max_streams=settings.max_streams,
        unauthenticated_calls=settings.grpc_max_unauthenticated_calls,
        unauthenticated_connections=settings.grpc_max_unauthenticated_connections,
    )
    server = rpc.create_server(
        fetcher,
        use_cases,
        stopping=stopping,
        calls=calls,
        max_connection_age_s=settings.grpc_max_connection_age_s,
        engine=settings.grpc_engine,
        limits=limits,
        proxies=proxies,
    )
    async with serve_grpc(server, settings.grpc_listen, tls_files.servers, calls, limits, proxies) as running:
        yield running


def _http_server(
    settings: Settings, app: ASGIApp, sock: socket.socket, tls_files: _TlsFiles, proxies: TrustedProxies
) -> AbstractAsyncContextManager[HttpServer]:
    unauthenticated = UnauthenticatedConnections(
        proxies, time.monotonic, most_per_address=settings.http_max_unauthenticated
    )
    return serve_http(app, sock, tls_files.servers, unauthenticated)


def _http_app(
    fetcher: FetchService,
    use_cases: UseCases,
    metrics: Metrics,
    settings: Settings,
    stopping: asyncio.Event,
    tokens: AccessTokens | None,
) -> ASGIApp:
    """REST and SOAP in one application."""
    app = create_app(
        fetcher,
        use_cases,
        stopping=stopping,
        number_pattern=settings.camara_number_pattern,
        grant=tokens.grant if tokens else None,
        clock=_now,
        max_stream_age_s=settings.grpc_max_connection_age_s or None,
        ready_needs_presence=settings.ready_needs_presence,
        token_scope=settings.oidc_scope,
        token_issuer=settings.oidc_issuer,
        cors_origins=settings.cors_origins,
        public_url=settings.http_public_url,
    )
    soap = create_soap_app(
        use_cases.queries,
        use_cases.subscriptions,
        use_cases.auth,
        usage=use_cases.usage,
        clock=_now,
        max_age_s=settings.soap_max_age_s,
        tel_context=settings.tel_default_context or "",
        public_url=settings.http_public_url,
    )

    def text() -> bytes:
        return metrics.text(ready=fetcher.ready and not stopping.is_set())

    rest_metrics.add_metrics(app, use_cases.auth, text, separate_address=settings.metrics_listen is not None)

    async def face(scope: Scope, receive: Receive, send: Send) -> None:
        # SOAP is not mounted in FastAPI, whose middlewares would cost each SOAP call 50 µs for nothing.
        if scope["type"] == "http" and scope["path"].startswith(f"{SOAP_PATH}/"):
            await soap({**scope, "root_path": scope["root_path"] + SOAP_PATH}, receive, send)
        else:
            await app(scope, receive, send)

    return face


def _address(listen: str | None, bound_to: socket.socket | None) -> str:
    return f"{listen.rpartition(':')[0]}:{bound_to.getsockname()[1]}" if listen and bound_to else ""


def _now() -> datetime:
    return datetime.now(UTC)
