"""The gRPC face: the services of `proto/`, `grpc.health.v1` and reflection on one `grpc.aio` server.

A module for each service; around them `calls.py` (who calls, and how a call ends), `errors.py` (what failures mean) and
`wire.py` (messages).
Invariants: a handler is check, call, map error, return. Every failure of a handler leaves as a `google.rpc.Status`
whose `ErrorInfo.reason` is the domain error's code. What gRPC itself refuses before a handler sees it has a code alone:
UNIMPLEMENTED (no such method), RESOURCE_EXHAUSTED (too large, too many) and UNKNOWN (bytes that are no protobuf, for
which gRPC leaves no choice but to GetStatus, which reads them itself). When the caller cancels, or its deadline passes,
the handler is cancelled and with it its share of the fetch. Requests, concurrent calls and metadata are bounded
(metadata by gRPC's own 8 KiB); a call over the bound is refused by gRPC with RESOURCE_EXHAUSTED.

Deliberately absent: interceptors (each costs every call), business rules, and the port with its TLS.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_reflection.v1alpha import reflection

from app.core.service import StatusService
from app.core.usecases import UseCases
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
from app.rpc.calls import Calls
from app.rpc.deliveries import DeliveryServicer
from app.rpc.errors import CODES, ERROR_DOMAIN
from app.rpc.groups import GroupServicer
from app.rpc.health import HealthServicer
from app.rpc.subscriptions import SubscriptionServicer
from app.rpc.terminal_status import SERVICE_NAME, TerminalStatusServicer
from app.rpc.usage import UsageServicer

__all__ = (
    "CODES",
    "ERROR_DOMAIN",
    "MAX_CONCURRENT_RPCS",
    "MAX_REQUEST_BYTES",
    "SERVICE_NAME",
    "SERVICE_NAMES",
    "UseCases",
    "create_server",
)

SERVICE_NAMES: tuple[str, ...] = tuple(
    service.full_name
    for module in (terminal_status_pb2, subscription_pb2, group_pb2, delivery_pb2, usage_pb2, admin_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
"""Every service of the contract."""

MAX_REQUEST_BYTES = 1024 * 1024
"""Some 5,000 addresses of the longest kind, 40,000 of the usual; policies allow fewer."""

MAX_CONCURRENT_RPCS = 20_000
"""Calls at once over all connections, streams included; above it gRPC answers RESOURCE_EXHAUSTED. `StatusService`
bounds the fetches, the policies each client's streams."""

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
)


class _Unregistered:
    """A server to which the methods of services are added as generic handlers only. For each call, grpc.aio's server
    waits for a task per registered method anew: with all of ours, that was a fifth of what an answer costs."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        pass


def create_server(
    service: StatusService,
    use_cases: UseCases,
    *,
    stopping: asyncio.Event | None = None,
    calls: set[asyncio.Task[Any]] | None = None,
    health_poll_s: float = 1.0,
    max_connection_age_s: int = 0,
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
    options: tuple[tuple[str, int], ...] = _OPTIONS
    if max_connection_age_s:
        options += (
            ("grpc.max_connection_age_ms", max_connection_age_s * 1000),
            ("grpc.max_connection_age_grace_ms", (max_connection_age_s + AGE_SLACK_S) * 1000),
        )
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS)
    around = Calls(use_cases.auth, stopping, set() if calls is None else calls)
    added_to = cast("grpc.aio.Server", _Unregistered(server))
    # First, since gRPC asks the handlers in the order in which they were added.
    terminals = TerminalStatusServicer(
        around, use_cases.queries, use_cases.watching, max_stream_age_s=max_connection_age_s or None
    )
    server.add_generic_rpc_handlers((terminals.get_status_handler(),))
    terminal_status_pb2_grpc.add_TerminalStatusServiceServicer_to_server(terminals, added_to)
    subscription_pb2_grpc.add_SubscriptionServiceServicer_to_server(
        SubscriptionServicer(around, use_cases.subscriptions), added_to
    )
    group_pb2_grpc.add_GroupServiceServicer_to_server(GroupServicer(around, use_cases.groups), added_to)
    delivery_pb2_grpc.add_DeliveryServiceServicer_to_server(DeliveryServicer(around, use_cases.deliveries), added_to)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(UsageServicer(around, use_cases.usage), added_to)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(around, use_cases.administration), added_to)
    health_pb2_grpc.add_HealthServicer_to_server(
        HealthServicer(service, SERVICE_NAMES, stopping, health_poll_s), added_to
    )
    reflection.enable_server_reflection((*SERVICE_NAMES, HEALTH_NAME, reflection.SERVICE_NAME), added_to)
    return server
