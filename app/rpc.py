"""The gRPC face: TerminalStatusService (`proto/`), `grpc.health.v1` and reflection on one `grpc.aio` server.

Invariants: a handler is check, call, map error, return. Every failure of a handler leaves as a `google.rpc.Status`
whose `ErrorInfo.reason` is the domain error's code; `CODES` is total over the domain errors. What gRPC itself refuses
before a handler sees it has a code alone: UNIMPLEMENTED (no such method), RESOURCE_EXHAUSTED (too large, too many) and
UNKNOWN (bytes that are no protobuf, for which gRPC leaves no choice). No traceback crosses the wire:
an unexpected exception is logged under a reference, and the caller gets the reference. When the caller cancels, or its
deadline passes, the handler is cancelled and with it its share of the fetch. Requests, concurrent calls and metadata
are bounded (metadata by gRPC's own 8 KiB); a call over the bound is refused by gRPC with RESOURCE_EXHAUSTED.

Deliberately absent: interceptors (each costs every call), business rules, TLS and credentials.
"""

import asyncio
import contextlib
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from typing import Any, NoReturn, cast

import grpc.aio
import structlog
from google.protobuf.any import pack
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo  # type: ignore[import-untyped, unused-ignore]
from google.rpc.status_pb2 import Status as RpcStatus  # type: ignore[import-untyped, unused-ignore]
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from app import domain
from app.domain import TerminalStatusError
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1 import terminal_status_pb2_grpc as pb_grpc
from app.service import StatusService

ERROR_DOMAIN = "terminalstatus.v1"
"""`ErrorInfo.domain` of every error."""

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TerminalStatusService"].full_name
MAX_REQUEST_BYTES = 64 * 1024
MAX_CONCURRENT_RPCS = 10_000
"""Calls at once over all connections; above it gRPC answers RESOURCE_EXHAUSTED. `StatusService` bounds the fetches."""

CODES: Mapping[type[TerminalStatusError], grpc.StatusCode] = {
    domain.InvalidAddress: grpc.StatusCode.INVALID_ARGUMENT,
    domain.TerminalUnknown: grpc.StatusCode.NOT_FOUND,
    domain.WatcherRefused: grpc.StatusCode.PERMISSION_DENIED,
    domain.WatcherUnauthenticated: grpc.StatusCode.PERMISSION_DENIED,
    domain.FetchTimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    domain.PresenceUnavailable: grpc.StatusCode.UNAVAILABLE,
    domain.WatcherRestarting: grpc.StatusCode.UNAVAILABLE,
    domain.GatewayOverloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    domain.PresenceMisconfigured: grpc.StatusCode.INTERNAL,
    domain.DocumentUnreadable: grpc.StatusCode.INTERNAL,
    domain.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    domain.NoValidAddresses: grpc.StatusCode.INVALID_ARGUMENT,
    domain.TooManyAddresses: grpc.StatusCode.INVALID_ARGUMENT,
    domain.GroupUnknown: grpc.StatusCode.NOT_FOUND,
    domain.GroupExists: grpc.StatusCode.ALREADY_EXISTS,
    domain.GroupTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    domain.GroupNotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    domain.NestedGroupNotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    domain.GroupChanged: grpc.StatusCode.ABORTED,
    domain.UnlimitedCountNotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    domain.CountTooLarge: grpc.StatusCode.FAILED_PRECONDITION,
    domain.IntervalTooShort: grpc.StatusCode.FAILED_PRECONDITION,
    domain.DurationTooLong: grpc.StatusCode.FAILED_PRECONDITION,
    domain.BusyNotSupported: grpc.StatusCode.FAILED_PRECONDITION,
    domain.TooManySubscriptions: grpc.StatusCode.RESOURCE_EXHAUSTED,
    domain.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    domain.DuplicateCorrelator: grpc.StatusCode.ALREADY_EXISTS,
    domain.RequestIdReused: grpc.StatusCode.ALREADY_EXISTS,
    domain.SubscriptionUnknown: grpc.StatusCode.NOT_FOUND,
    domain.NotificationUnknown: grpc.StatusCode.NOT_FOUND,
    domain.SinkRefused: grpc.StatusCode.INVALID_ARGUMENT,
    domain.SinkUnreachable: grpc.StatusCode.FAILED_PRECONDITION,
    domain.ClientUnknown: grpc.StatusCode.NOT_FOUND,
    domain.ClientExists: grpc.StatusCode.ALREADY_EXISTS,
    domain.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    domain.NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    domain.WatchUnknown: grpc.StatusCode.NOT_FOUND,
    domain.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
}
_FIELD_AT_FAULT: Mapping[type[TerminalStatusError], str] = {domain.InvalidAddress: "address"}
"""Where the error itself does not name the field in `details["field"]`."""

_STATUS: Mapping[domain.Status, pb.Status.ValueType] = {
    domain.Status.REACHABLE: pb.STATUS_REACHABLE,
    domain.Status.UNREACHABLE: pb.STATUS_UNREACHABLE,
    domain.Status.BUSY: pb.STATUS_BUSY,
}
_SOURCE: Mapping[domain.Source, pb.Source.ValueType] = {
    domain.Source.FETCH: pb.SOURCE_FETCH,
    domain.Source.WATCH: pb.SOURCE_WATCH,
}

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

_log = structlog.get_logger(__name__)


def create_server(
    service: StatusService,
    *,
    stopping: asyncio.Event | None = None,
    calls: set[asyncio.Task[Any]] | None = None,
    health_poll_s: float = 1.0,
) -> grpc.aio.Server:
    """Returns a server with every service added; the caller binds, starts and stops it, all in the running loop.

    `server.add_insecure_port("host:port")` returns the bound port, and raises RuntimeError when it cannot be bound.
    Set `stopping` before `server.stop(grace)`: health turns NOT_SERVING and open health watches end, for which the
    stop would else wait the whole grace. `calls` holds the questions in flight: one that is cancelled while `stopping`
    is set is answered UNAVAILABLE, which `server.stop` would not do at the end of its grace. Health watches look at
    `service.ready` each `health_poll_s` seconds.
    """
    stopping = stopping or asyncio.Event()
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS)
    # First, since gRPC asks the handlers in the order in which they were added.
    pb_grpc.add_TerminalStatusServiceServicer_to_server(
        _TerminalStatusServicer(service, stopping, set() if calls is None else calls), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(_HealthServicer(service, stopping, health_poll_s), server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server


class _TerminalStatusServicer(pb_grpc.TerminalStatusServiceServicer):
    def __init__(self, service: StatusService, stopping: asyncio.Event, calls: set[asyncio.Task[Any]]) -> None:
        self._service = service
        self._stopping = stopping
        self._calls = calls

    async def GetStatus(  # noqa: N802 - named by the proto
        self,
        request: pb.GetStatusRequest,
        context: grpc.aio.ServicerContext[pb.GetStatusRequest, Awaitable[pb.GetStatusResponse]],
    ) -> pb.GetStatusResponse:
        call = cast("asyncio.Task[Any]", asyncio.current_task())
        self._calls.add(call)
        try:
            return pb.GetStatusResponse(status=_to_pb(await self._service.get_status(request.address)))
        except asyncio.CancelledError:
            if not self._stopping.is_set() or context.cancelled():
                raise  # the caller left
            info = ErrorInfo(reason="GATEWAY_STOPPING", domain=ERROR_DOMAIN)
            message = "The gateway is stopping; ask again, or another one."
            await context.abort_with_status(
                rpc_status.to_status(_rpc_status(grpc.StatusCode.UNAVAILABLE, message, [info]))
            )
        except Exception as error:  # the last place before the wire
            await _abort(context, "GetStatus", error)
        finally:
            self._calls.discard(call)


class _HealthServicer(health_pb2_grpc.HealthServicer):
    """Health of the whole server ("") and of TerminalStatusService, which is the same: whether we could ask.

    The stock servicer wants to be told of each change; this one looks, and so cannot be out of date.
    """

    def __init__(self, service: StatusService, stopping: asyncio.Event, poll_s: float) -> None:
        self._service = service
        self._stopping = stopping
        self._poll_s = poll_s

    async def Check(  # noqa: N802 - named by the proto
        self,
        request: HealthCheckRequest,
        context: grpc.aio.ServicerContext[HealthCheckRequest, Awaitable[HealthCheckResponse]],
    ) -> HealthCheckResponse:
        health_now = self._health(request.service)
        if health_now == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service!r} here.")
        return HealthCheckResponse(status=health_now)

    async def Watch(  # noqa: N802 - named by the proto
        self,
        request: HealthCheckRequest,
        context: grpc.aio.ServicerContext[HealthCheckRequest, AsyncIterator[HealthCheckResponse]],
    ) -> AsyncIterator[HealthCheckResponse]:
        told: int | None = None
        while True:
            stopping = self._stopping.is_set()
            if (health_now := self._health(request.service)) != told:
                yield HealthCheckResponse(status=health_now)
                told = health_now
            if stopping:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._poll_s)

    def _health(self, name: str) -> int:
        if name not in ("", SERVICE_NAME):
            return HealthCheckResponse.SERVICE_UNKNOWN
        serving = self._service.ready and not self._stopping.is_set()
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING


def _to_pb(status: domain.TerminalStatus) -> pb.TerminalStatus:
    at = status.observed_at
    return pb.TerminalStatus(
        address=status.address,
        status=_STATUS[status.status],
        observed_at=Timestamp(seconds=int(at.timestamp()), nanos=at.microsecond * 1000),
        source=_SOURCE[status.source],
        revision=status.revision,
    )


async def _abort(context: grpc.aio.ServicerContext[Any, Any], method: str, error: Exception) -> NoReturn:
    """Ends the call with what `error` means to the caller."""
    status = _domain_status(error) if isinstance(error, TerminalStatusError) else _unexpected_status(method, error)
    await context.abort_with_status(rpc_status.to_status(status))


def _domain_status(error: TerminalStatusError) -> RpcStatus:
    details: list[Message] = [ErrorInfo(reason=error.code, domain=ERROR_DOMAIN, metadata=error.details)]
    if error.retry_after_s is not None:
        retry_delay = Duration()
        retry_delay.FromMilliseconds(math.ceil(error.retry_after_s * 1000))
        details.append(RetryInfo(retry_delay=retry_delay))
    if field := error.details.get("field") or _FIELD_AT_FAULT.get(type(error)):
        violation = BadRequest.FieldViolation(field=field, description=str(error), reason=error.code)
        details.append(BadRequest(field_violations=[violation]))
    return _rpc_status(CODES[type(error)], str(error), details)


def _unexpected_status(method: str, error: Exception) -> RpcStatus:
    reference = uuid.uuid4().hex
    _log.error("unexpected_error", method=method, reference=reference, exc_info=error)
    message = f"The gateway failed; its log has the reason under reference {reference}."
    info = ErrorInfo(reason="INTERNAL_ERROR", domain=ERROR_DOMAIN, metadata={"reference": reference})
    return _rpc_status(grpc.StatusCode.INTERNAL, message, [info])


def _rpc_status(code: grpc.StatusCode, message: str, details: Iterable[Message]) -> RpcStatus:
    return RpcStatus(code=code.value[0], message=message, details=map(pack, details))
