"""The gRPC face: the services of `proto/`, `grpc.health.v1` and reflection on one `grpc.aio` server.

A module for each service; around them `call_limits.py` (who may have how many calls open), `handlers.py` (how a call
comes in), `calls.py` (who calls, and how a call ends), `errors.py` (what failures mean) and `wire.py` (messages).
Invariants: a handler is check, call, map error, return. Every failure of a handler leaves as a `google.rpc.Status`
whose `ErrorInfo.reason` is the domain error's code. What gRPC itself refuses before a handler sees it has a code alone:
UNIMPLEMENTED (no such method) and RESOURCE_EXHAUSTED (too large). When the caller cancels, or its deadline passes, the
handler is cancelled and with it its share of the fetch. Requests, concurrent calls and metadata are bounded (requests
and metadata by gRPC itself, metadata to 8 KiB).

Deliberately absent: interceptors (each costs every call), business rules, and the port with its TLS.
"""

import asyncio
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

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
from app.rpc.admin import AdminServicer
from app.rpc.call_limits import Gate
from app.rpc.calls import Calls
from app.rpc.connection_limits import guard_connections
from app.rpc.deliveries import DeliveryServicer
from app.rpc.errors import CODES, ERROR_DOMAIN
from app.rpc.groups import GroupServicer
from app.rpc.handlers import Handlers
from app.rpc.health import HealthServicer
from app.rpc.subscriptions import SubscriptionServicer
from app.rpc.terminal_status import SERVICE_NAME, TerminalStatusServicer
from app.rpc.usage import UsageServicer

__all__ = (
    "CODES",
    "ERROR_DOMAIN",
    "MAX_REQUEST_BYTES",
    "SERVICE_NAME",
    "SERVICE_NAMES",
    "Gate",
    "UseCases",
    "create_server",
    "guard_connections",
)

SERVICE_NAMES: tuple[str, ...] = tuple(
    service.full_name
    for module in (terminal_status_pb2, subscription_pb2, group_pb2, delivery_pb2, usage_pb2, admin_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
"""Every service of the contract."""

MAX_REQUEST_BYTES = 1024 * 1024
"""Some 5,000 addresses of the longest kind, 40,000 of the usual; policies allow fewer."""

MAX_PENDING_CALLS = 10_000
"""Calls that gRPC has read and the event loop has not begun. Above it gRPC cancels calls without a reason, at random
and so those of bystanders too; its own default of 1,000 loses a tenth of 2,000 calls at once. They are begun in their
order, so many more would let a flood of bad calls delay good ones for long."""

MAX_CONNECTIONS = 10_000
"""One more is closed at once. Descriptors are the process's, so all faces and the database would miss them."""

AGE_SLACK_S = 120
"""How much longer than its greatest age a connection may be kept for the streams on it, each of which ends by itself at
that age, with its reason."""

_OPTIONS = (
    # Off, so that a port already taken is an error at start and not half of the calls going astray.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # Clients may ping idle connections as often as each 10 s: NATs forget connections, and we need not mind.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # A client that vanished without a word is noticed, and its connection given up.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS * 3 // 2),
    # A connection must begin TLS and HTTP/2 soon (gRPC's own limit is two minutes), and one without calls ends; its
    # client connects again by itself when it has one.
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
    gate: Gate | None = None,
    proxies: TrustedProxies = TrustedProxies(),  # noqa: B008  # frozen
) -> grpc.aio.Server:
    """Returns a server with every service added; the caller binds, starts and stops it, all in the running loop.

    `server.add_insecure_port("host:port")` returns the bound port, and raises RuntimeError when it cannot be bound.
    Before `server.stop(grace)` set `stopping` and call `Watching.end_streams`: health turns NOT_SERVING, and open
    streams end with their reason, for which the stop would else wait the whole grace. `calls` holds the calls in
    flight: one that is cancelled while `stopping` is set is answered UNAVAILABLE, which `server.stop` would not do at
    the end of its grace. Health watches look at `service.ready` each `health_poll_s` seconds. A connection older than
    `max_connection_age_s` (0: none) takes no further calls, and a stream as old is ended; clients come anew by
    themselves.
    """
    stopping = stopping or asyncio.Event()
    gate = gate or Gate(max_streams=10_000)
    # More than a client may have, so that its excess is refused with a reason; a lower limit makes it hang without one.
    options: tuple[tuple[str, int], ...] = (*_OPTIONS, ("grpc.max_concurrent_streams", gate.clients.most))
    if max_connection_age_s:
        options += (
            ("grpc.max_connection_age_ms", max_connection_age_s * 1000),
            ("grpc.max_connection_age_grace_ms", (max_connection_age_s + AGE_SLACK_S) * 1000),
        )
    server = grpc.aio.server(options=options)
    around = Calls(use_cases.auth, stopping, set() if calls is None else calls, proxies)
    handlers = Handlers(server, around, gate)
    # First, since gRPC asks the handlers in the order in which they were added.
    terminals = TerminalStatusServicer(
        around, use_cases.queries, use_cases.watching, max_stream_age_s=max_connection_age_s or None
    )
    added_to = handlers.of_clients()
    added_to.add_registered_method_handlers(SERVICE_NAME, terminals.raw_handlers())
    terminal_status_pb2_grpc.add_TerminalStatusServiceServicer_to_server(terminals, added_to)
    subscription_pb2_grpc.add_SubscriptionServiceServicer_to_server(
        SubscriptionServicer(around, use_cases.subscriptions), added_to
    )
    group_pb2_grpc.add_GroupServiceServicer_to_server(GroupServicer(around, use_cases.groups), added_to)
    delivery_pb2_grpc.add_DeliveryServiceServicer_to_server(DeliveryServicer(around, use_cases.deliveries), added_to)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(UsageServicer(around, use_cases.usage), added_to)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(around, use_cases.administration), added_to)
    health_pb2_grpc.add_HealthServicer_to_server(
        HealthServicer(service, SERVICE_NAMES, stopping, health_poll_s), handlers.of_anybody(gate.health)
    )
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
        reflection.aio.ReflectionServicer((*SERVICE_NAMES, HEALTH_NAME, reflection.SERVICE_NAME)),
        handlers.of_anybody(gate.reflection),
    )
    return server
