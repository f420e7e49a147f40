"""The composition root: makes the gateway out of its parts, starts it, and ends it.

Data flows one way: a face (gRPC, REST, SOAP) calls the use cases, which ask the watcher, the store and the senders;
nothing calls back up.
Invariants: this module knows everything and only the command line knows it; what starts is stopped, in the reverse
order, but both servers together: told to stop, health says so at once, streams end with their reason, and calls in
flight have DRAIN_S in all.

Deliberately absent: any rule about terminals.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from app import VERSION, rest, rpc
from app.auth import tls
from app.auth.authenticator import OpenToAll
from app.auth.failures import REASONS
from app.auth.oidc import AccessTokens
from app.auth.proxies import TrustedProxies
from app.core.fetcher import FetchService
from app.core.use_cases import UseCases
from app.domain.errors import StoreUnavailable
from app.domain.sinks import PROFILE_CAMARA, SIGNED_PROFILES, SinkKind
from app.egress.allowed import Rules
from app.egress.client import Egress
from app.egress.jwks import fetch_keys
from app.egress.webhook import WebhookSender, v1_event
from app.ports import Sender
from app.rest import metrics as rest_metrics
from app.rest.camara import model
from app.rest.unauthenticated import Strangers
from app.servers import DRAIN_S, CannotStart, bound, serve_grpc, serve_http
from app.settings.loading import Settings
from app.sip.protocol import Build
from app.sip.settings import sip_configuration, watcher_limits
from app.sip.watcher import SipWatcher, WatcherCannotStart
from app.store import PATIENCE_S, DatabaseUnavailable, only_gateway, open_store, shown_url
from app.telemetry import Metrics
from app.wiring import run_use_cases
from soap_compat.callbacks import CallbackSender
from soap_compat.server import create_app as create_soap_app

__all__ = ["CannotStart", "Gateway", "run_gateway"]

SOAP_PATH = "/parlayx"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway that serves: where, and with what."""

    grpc_address: str
    http_address: str
    metrics_address: str
    """"" where metrics and probes have no address of their own."""
    sip_ports: dict[str, int]
    build: Build
    watcher: SipWatcher
    service: FetchService
    use_cases: UseCases
    read_tls_files: Callable[[], None]
    """Reads the files of TLS again, and logs what came of it."""


@asynccontextmanager
async def run_gateway(settings: Settings, *, open_is_admin: bool = False) -> AsyncIterator[Gateway]:
    """Serves while the context is open. `open_is_admin` is the demo's: whoever calls from this machine is an operator
    while no client is configured. Raises CannotStart."""
    async with AsyncExitStack() as stack:
        metrics, stopping = Metrics(), asyncio.Event()
        http_socket = stack.enter_context(bound(settings.http_listen))
        metrics_socket = None
        if settings.metrics_listen:
            metrics_socket = stack.enter_context(bound(settings.metrics_listen, "TS_METRICS_LISTEN"))
        try:
            secured = tls.load(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
            alone = stack.enter_context(only_gateway(settings.database_url))
            store = await stack.enter_async_context(
                await open_store(settings.database_url, secret_key_file=settings.secret_key_file, wait_s=PATIENCE_S)
            )
        except tls.TlsUnusable as error:
            raise CannotStart(str(error)) from None
        except DatabaseUnavailable as error:
            raise CannotStart(f"TS_DATABASE_URL: {shown_url(settings.database_url)} does not open: {error}.") from None
        watcher = await stack.enter_async_context(_watcher(settings, metrics))
        service = FetchService(
            watcher,
            metrics,
            busy_activities=settings.busy_activities,
            fetch_timeout_s=settings.fetch_timeout_ms / 1000,
            max_fetches=settings.max_fetches,
        )
        tokens = _tokens(settings)
        trust = _trust(settings)
        egress = _egress(settings, trust)
        stack.push_async_callback(egress.aclose)
        senders: dict[SinkKind, Sender] = {
            SinkKind.WEBHOOK: WebhookSender(
                egress,
                clock=_now,
                envelopes={**dict.fromkeys(SIGNED_PROFILES, v1_event), PROFILE_CAMARA: model.event},
                source=settings.http_public_url or "",
            ),
            SinkKind.SOAP: CallbackSender(egress),
        }
        try:
            with store.patient():
                if alone:  # nobody else is delivering, whatever a gateway before this one had leased
                    await store.end_leases(_now())
                use_cases = await stack.enter_async_context(
                    run_use_cases(
                        settings,
                        store,
                        watcher,
                        service,
                        senders,
                        clock=_now,
                        monotonic=time.monotonic,
                        tokens=tokens,
                        attempted=metrics.attempted,
                        open_is_admin=open_is_admin,
                    )
                )
                listens = {"TS_GRPC_LISTEN": settings.grpc_listen, "TS_HTTP_LISTEN": settings.http_listen}
                await use_cases.auth.start(listens, closed_is_meant=settings.anonymous_access == "never")
        except StoreUnavailable as error:
            url, reason = shown_url(settings.database_url), error.details.get("reason", "away")
            raise CannotStart(f"TS_DATABASE_URL: {url} cannot be used: {reason} for too long.") from None
        except OpenToAll as error:
            raise CannotStart(str(error)) from None
        _measure(metrics, watcher, use_cases)
        app = _http_app(service, use_cases, metrics, settings, stopping, tokens)
        if metrics_socket:  # before the faces, so that probes are answered until these have drained
            await stack.enter_async_context(serve_http(rest_metrics.on_own_address(app), metrics_socket, None))
        calls: set[asyncio.Task[Any]] = set()
        proxies = TrustedProxies.of(settings.trusted_proxies)
        gate = rpc.Gate(
            max_streams=settings.max_streams,
            unauthenticated=settings.grpc_max_unauthenticated_calls,
            unauthenticated_connections=settings.grpc_max_unauthenticated_connections,
        )
        rpc_server = rpc.create_server(
            service,
            use_cases,
            stopping=stopping,
            calls=calls,
            max_connection_age_s=settings.grpc_max_connection_age_s,
            gate=gate,
            proxies=proxies,
        )
        grpc_server = await stack.enter_async_context(
            serve_grpc(rpc_server, settings.grpc_listen, secured, calls, gate, proxies)
        )
        strangers = Strangers(proxies, time.monotonic, most_per_address=settings.http_max_unauthenticated)
        http_server = await stack.enter_async_context(serve_http(app, http_socket, secured, strangers))
        assert watcher.build is not None  # noqa: S101  # it started
        gateway = Gateway(
            grpc_address=f"{settings.grpc_listen.rpartition(':')[0]}:{grpc_server.port}",
            http_address=_address(settings.http_listen, http_socket),
            metrics_address=_address(settings.metrics_listen, metrics_socket),
            sip_ports=watcher.ports,
            build=watcher.build,
            watcher=watcher,
            service=service,
            use_cases=use_cases,
            read_tls_files=partial(_read_tls_files, secured, settings, trust),
        )
        _log.info(
            "gateway_started",
            grpc=gateway.grpc_address,
            http=gateway.http_address,
            metrics=gateway.metrics_address,
            sip=gateway.sip_ports,
            presence_server=settings.presence_server,
            limits=watcher_limits(watcher.build, settings.max_document_bytes),
        )
        try:
            yield gateway
            service.leaving = True
            if settings.drain_delay_s:
                _log.info("gateway_leaving", serves_on_s=settings.drain_delay_s)
                await asyncio.sleep(settings.drain_delay_s)
        finally:
            _log.info("gateway_stopping", drain_s=DRAIN_S)
            stopping.set()
            use_cases.watching.end_streams()
            await asyncio.gather(grpc_server.stop(), http_server.stop())
    _log.info("gateway_stopped")


@asynccontextmanager
async def _watcher(settings: Settings, metrics: Metrics) -> AsyncIterator[SipWatcher]:
    watcher = SipWatcher(
        sip_configuration(settings, VERSION),
        workers=settings.sip_workers,
        restarted=metrics.worker_restarted,
        lag=metrics.lag,
    )
    try:
        await watcher.start()
        yield watcher
    except WatcherCannotStart as error:
        raise CannotStart(f"The SIP worker cannot start: {error}. See TS_SIP_LISTEN.") from None
    finally:
        await watcher.aclose()


def _egress(settings: Settings, trust: ssl.SSLContext | None) -> Egress:
    rules = Rules.of(settings.sink_allowed_networks, allow_http=settings.sink_allow_http)
    return Egress(rules, total_s=settings.sink_timeout_ms / 1000, tls=trust)


def _trust(settings: Settings) -> ssl.SSLContext | None:
    """What webhook endpoints are checked against, where it is not the system's."""
    try:
        return ssl.create_default_context(cafile=settings.sink_ca_file) if settings.sink_ca_file else None
    except (OSError, ssl.SSLError) as error:
        raise CannotStart(f"TS_SINK_CA_FILE: {settings.sink_ca_file} cannot be used: {error}.") from None


def _read_tls_files(secured: tls.Tls | None, settings: Settings, trust: ssl.SSLContext | None) -> None:
    if secured is not None:
        secured.read_again()
    if trust is not None:
        try:
            trust.load_verify_locations(settings.sink_ca_file)
            _log.info("sink_ca_file_read", file=settings.sink_ca_file)
        except (OSError, ssl.SSLError) as error:
            _log.warning("sink_ca_file_unusable", file=settings.sink_ca_file, why=str(error))
    if secured is None and trust is None:
        _log.info("no_tls_files", hint="SIGHUP reads the files of TS_TLS_… and TS_SINK_CA_FILE, of which none is set")


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


def _measure(metrics: Metrics, watcher: SipWatcher, use_cases: UseCases) -> None:
    counts = watcher.counts
    metrics.reads("terminal_status_sip_subscriptions", "SIP subscriptions by state.", "state", lambda: counts().states)
    metrics.reads(
        "terminal_status_sip_failures_total",
        "SUBSCRIBEs of standing subscriptions that failed, by SIP status; PJSIP's own with local- before.",
        "code",
        lambda: counts().failures,
    )
    metrics.reads(
        "terminal_status_sip_messages_total",
        "SIP messages of standing subscriptions, and documents that were cut.",
        "kind",
        lambda: {
            "subscribe": counts().subscribes_sent,
            "notify": counts().notifies_received,
            "cut": counts().cut_messages,
        },
    )
    metrics.reads(
        "terminal_status_sip_refused_total",
        "SIP messages that did not count: from elsewhere, for another dialog, or NOTIFYs that could not be used.",
        "reason",
        lambda: counts().refused,
    )
    metrics.reads(
        "terminal_status_route_up",
        "1 while the presence server answers, by its place in TS_PRESENCE_SERVER.",
        "route",
        lambda: {str(number): float(up) for number, up in enumerate(counts().routes_up, start=1)},
    )
    metrics.reads(
        "terminal_status_route_turns_total",
        "How often a presence server went down or came back, by its place in TS_PRESENCE_SERVER.",
        "route",
        lambda: {str(number): float(turns) for number, turns in enumerate(watcher.turns, start=1)},
    )
    metrics.reads(
        "terminal_status_sip_refreshes_without_notify_total",
        "Refreshes that the presence server accepted and that no NOTIFY followed, by its place in TS_PRESENCE_SERVER.",
        "route",
        lambda: {str(number): float(count) for number, count in enumerate(counts().omitted, start=1)},
    )
    metrics.reads(
        "terminal_status_unreadable_notifications_total",
        "Presence documents of standing subscriptions that could not be read, by reason.",
        "reason",
        lambda: use_cases.watching.unreadable,
    )
    metrics.reads(
        "terminal_status_watches_contradicted_total",
        "Live watches that were refreshed at once, because a newer fetch said otherwise.",
        "by",
        lambda: {"fetch": use_cases.watching.contradictions},
    )
    metrics.reads(
        "terminal_status_usage_records_dropped_total",
        "Usage records lost to a database that was away for too long.",
        "kind",
        lambda: {"any": use_cases.usage.dropped},
    )
    metrics.reads(
        "terminal_status_authentication_failures_total",
        "Calls without good credentials: " + "; ".join([f"{name}, {why}" for name, why in REASONS.items()]) + ".",
        "reason",
        lambda: use_cases.auth.failures.counts,
    )
    metrics.reads(
        "terminal_status_core", "What grows: terminals, subscriptions, streams.", "what", use_cases.watching.figures
    )


def _http_app(
    service: FetchService,
    use_cases: UseCases,
    metrics: Metrics,
    settings: Settings,
    stopping: asyncio.Event,
    tokens: AccessTokens | None,
) -> ASGIApp:
    app = rest.create_app(
        service,
        use_cases,
        stopping=stopping,
        number_pattern=settings.camara_number_pattern,
        grant=tokens.grant if tokens else None,
        clock=_now,
        max_stream_age_s=settings.grpc_max_connection_age_s or None,
        ready_needs_presence=settings.ready_needs_presence,
        public_url=settings.http_public_url,
    )
    soap = create_soap_app(
        use_cases.queries,
        use_cases.subscriptions,
        use_cases.auth,
        usage=use_cases.usage,
        clock=_now,
        max_age_s=settings.soap_max_age_s,
        public_url=settings.http_public_url,
    )

    def text() -> bytes:
        return metrics.text(ready=service.ready and not stopping.is_set())

    rest_metrics.add_metrics(app, use_cases.auth, text, own_address=settings.metrics_listen is not None)

    async def face(scope: Scope, receive: Receive, send: Send) -> None:
        # SOAP stands beside FastAPI and not under it: its middlewares would cost each call 50 µs and do nothing.
        if scope["type"] == "http" and scope["path"].startswith(f"{SOAP_PATH}/"):
            await soap({**scope, "root_path": scope["root_path"] + SOAP_PATH}, receive, send)
        else:
            await app(scope, receive, send)

    return face


def _address(listen: str | None, bound_to: socket.socket | None) -> str:
    return f"{listen.rpartition(':')[0]}:{bound_to.getsockname()[1]}" if listen and bound_to else ""


def _now() -> datetime:
    return datetime.now(UTC)
