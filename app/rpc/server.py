"""Builds the gRPC server: its services, options and limits.

Invariants: gRPC itself bounds the size of requests and metadata (8 KiB), the number of connections, and the calls that
wait for the event loop.

Deliberately absent: the port and its TLS (`app/servers.py`).
"""

import asyncio
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME

from app.auth.proxies import TrustedProxies
from app.core.fetcher import FetchService
from app.core.use_cases import UseCases
from app.pb.terminalstatus.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    delivery_pb2,
    delivery_pb2_grpc,
    group_pb2,
    group_pb2_grpc,
    subscription_pb2,
    subscription_pb2_grpc,
    terminal_status_pb2,
    terminal_status_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)
from app.rpc.call_admission import CallAdmission
from app.rpc.call_limits import CallLimits
from app.rpc.callers import Callers
from app.rpc.engines import EngineServer, GrpcEngine, engine_server
from app.rpc.open_calls import OpenCalls
from app.rpc.servicers.admin import AdminServicer
from app.rpc.servicers.deliveries import DeliveryServicer
from app.rpc.servicers.groups import GroupServicer
from app.rpc.servicers.health import HealthServicer
from app.rpc.servicers.reflection import add_reflection
from app.rpc.servicers.subscriptions import SubscriptionServicer
from app.rpc.servicers.terminal_status import SERVICE_NAME, TerminalStatusServicer
from app.rpc.servicers.usage import UsageServicer

SERVICE_NAMES: tuple[str, ...] = tuple(
    service.full_name
    for module in (terminal_status_pb2, subscription_pb2, group_pb2, delivery_pb2, usage_pb2, admin_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
"""Every service of `proto/`."""

MAX_REQUEST_BYTES = 1024 * 1024
"""About 5,000 addresses of the greatest length, 40,000 of the usual; policies allow fewer."""

MAX_PENDING_CALLS = 10_000
"""Calls that gRPC has read and the event loop has not started. Above this number gRPC cancels calls at random, without
a reason, bystanders' calls too; its own default of 1,000 loses a tenth of 2,000 calls at once. Calls start in their
order of arrival, so a much greater number would let a flood of bad calls delay good ones for long."""

MAX_CONNECTIONS = 10_000
"""gRPC closes any further connection at once: file descriptors are shared with the other faces and the database."""

AGE_SLACK_S = 120
"""How long a connection may live beyond its greatest age, for its streams: each ends by itself at that age, with a
reason."""

OPTIONS: tuple[tuple[str, int], ...] = (
    # Off, so that a port in use is an error at start; else the kernel would share its connections between both servers.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # Clients may ping idle connections every 10 s, so that NATs keep them. Their timers may fire somewhat early, and
    # the third ping that comes too early closes the connection.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
    # Finds and closes connections whose client has vanished without closing them.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS * 3 // 2),
    # A connection must start TLS and HTTP/2 soon (gRPC's own limit is two minutes). One without calls is closed; its
    # client reconnects by itself for its next call.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
)


def create_server(
    service: FetchService,
    use_cases: UseCases,
    *,
    stopping: asyncio.Event | None = None,
    calls: set[asyncio.Task[Any]] | None = None,
    health_poll_s: float = 1.0,
    max_connection_age_s: int = 0,
    limits: CallLimits | None = None,
    proxies: TrustedProxies = TrustedProxies(),  # noqa: B008  # frozen
    engine: GrpcEngine = "queue",
) -> EngineServer:
    """Returns a server with every service added; the caller binds, starts and stops it, all in the running loop.

    `server.add_insecure_port("host:port")` returns the bound port; it raises RuntimeError if the port cannot be bound.
    Before `server.stop(grace)` set `stopping` and end the open streams: health then reports NOT_SERVING, and streams
    end with their reason; otherwise `server.stop` would wait for them until its grace ends. `calls` is filled with the
    tasks of the calls in progress; a task that is cancelled while `stopping` is set answers its call with UNAVAILABLE,
    whereas `server.stop` only resets calls at the end of its grace.

    Health watches check `service.ready` each `health_poll_s` seconds. After `max_connection_age_s` (0: no limit) a
    connection takes no further calls, and streams of that age end; clients reconnect by themselves.
    """
    stopping = stopping or asyncio.Event()
    limits = limits or CallLimits(max_streams=10_000)
    # Above a client's own limit, so that its excess calls are refused with a reason; below it they would hang.
    options: tuple[tuple[str, int], ...] = (*OPTIONS, ("grpc.max_concurrent_streams", limits.clients.total))
    if max_connection_age_s:
        options += (
            ("grpc.max_connection_age_ms", max_connection_age_s * 1000),
            ("grpc.max_connection_age_grace_ms", (max_connection_age_s + AGE_SLACK_S) * 1000),
        )
    server = engine_server(engine, options)
    callers = Callers(use_cases.auth, proxies)
    open_calls = OpenCalls(stopping, set() if calls is None else calls)
    admission = CallAdmission(server, callers, open_calls, limits)
    terminals = TerminalStatusServicer(
        open_calls, callers, use_cases.queries, use_cases.streams, max_stream_age_s=max_connection_age_s or None
    )
    for_clients = admission.for_clients()
    # GetStatus takes and returns bytes. Added first, since gRPC asks handlers in the order in which they were added.
    get_status = cast("Any", grpc.unary_unary_rpc_method_handler)(terminals.GetStatus)
    for_clients.add_registered_method_handlers(SERVICE_NAME, {"GetStatus": get_status})
    terminal_status_pb2_grpc.add_TerminalStatusServiceServicer_to_server(terminals, for_clients)
    subscription_pb2_grpc.add_SubscriptionServiceServicer_to_server(
        SubscriptionServicer(open_calls, use_cases.subscriptions, use_cases.subscription_changes), for_clients
    )
    group_pb2_grpc.add_GroupServiceServicer_to_server(GroupServicer(open_calls, use_cases.groups), for_clients)
    delivery_pb2_grpc.add_DeliveryServiceServicer_to_server(
        DeliveryServicer(open_calls, use_cases.deliveries), for_clients
    )
    usage_pb2_grpc.add_UsageServiceServicer_to_server(UsageServicer(open_calls, use_cases.usage), for_clients)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(open_calls, use_cases.administration), for_clients)
    health_pb2_grpc.add_HealthServicer_to_server(
        HealthServicer(service, SERVICE_NAMES, stopping, health_poll_s), admission.for_anyone(limits.health)
    )
    add_reflection(admission.for_anyone(limits.reflection), (*SERVICE_NAMES, HEALTH_NAME))
    return server
