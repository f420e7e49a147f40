"""How an error looks on the gRPC face: a `google.rpc.Status` with ErrorInfo, RetryInfo and BadRequest.

Invariants: `CODES` covers every domain error, and is the only place that chooses gRPC codes. The text of an unexpected
exception never reaches a caller: it is logged under a reference, and the caller receives the reference.

Deliberately absent: the errors that gRPC itself answers (see `terminal_status.proto`).
"""

import math
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import grpc.aio
import structlog
from google.protobuf.any import pack
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo  # type: ignore[import-untyped, unused-ignore]
from google.rpc.status_pb2 import Status as RpcStatus  # type: ignore[import-untyped, unused-ignore]
from grpc_status import rpc_status

from app.domain.errors import (
    BusyNotSupported,
    ClientExists,
    ClientUnknown,
    CountTooLarge,
    DocumentUnreadable,
    DuplicateCorrelator,
    DurationTooLong,
    FetchTimedOut,
    GatewayOverloaded,
    GroupChanged,
    GroupExists,
    GroupNotAllowed,
    GroupTooLarge,
    GroupUnknown,
    IntervalTooShort,
    InvalidAddress,
    InvalidRequest,
    NestedGroupNotAllowed,
    NotificationUnknown,
    NotPermitted,
    NoValidAddresses,
    PresenceMisconfigured,
    PresenceUnavailable,
    RateLimited,
    RequestIdReused,
    SinkRefused,
    SinkUnreachable,
    StoreUnavailable,
    SubscriptionUnknown,
    TerminalStatusError,
    TerminalUnknown,
    TooManyAddresses,
    TooManyGroups,
    TooManyStreams,
    TooManySubscriptions,
    TooManyWatchedTerminals,
    Unauthenticated,
    UnlimitedCountNotAllowed,
    WatcherRefused,
    WatcherRestarting,
    WatcherUnauthenticated,
    WatchUnknown,
)
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb

ERROR_DOMAIN = "terminalstatus.v1"
"""`ErrorInfo.domain` of every error."""

CODES: Mapping[type[TerminalStatusError], grpc.StatusCode] = {
    InvalidAddress: grpc.StatusCode.INVALID_ARGUMENT,
    TerminalUnknown: grpc.StatusCode.NOT_FOUND,
    WatcherRefused: grpc.StatusCode.PERMISSION_DENIED,
    WatcherUnauthenticated: grpc.StatusCode.PERMISSION_DENIED,
    FetchTimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    PresenceUnavailable: grpc.StatusCode.UNAVAILABLE,
    WatcherRestarting: grpc.StatusCode.UNAVAILABLE,
    GatewayOverloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    PresenceMisconfigured: grpc.StatusCode.INTERNAL,
    DocumentUnreadable: grpc.StatusCode.INTERNAL,
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NoValidAddresses: grpc.StatusCode.INVALID_ARGUMENT,
    TooManyAddresses: grpc.StatusCode.INVALID_ARGUMENT,
    GroupUnknown: grpc.StatusCode.NOT_FOUND,
    GroupExists: grpc.StatusCode.ALREADY_EXISTS,
    GroupTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    GroupNotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    NestedGroupNotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    GroupChanged: grpc.StatusCode.ABORTED,
    UnlimitedCountNotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    CountTooLarge: grpc.StatusCode.FAILED_PRECONDITION,
    IntervalTooShort: grpc.StatusCode.FAILED_PRECONDITION,
    DurationTooLong: grpc.StatusCode.FAILED_PRECONDITION,
    BusyNotSupported: grpc.StatusCode.FAILED_PRECONDITION,
    TooManySubscriptions: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyStreams: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyWatchedTerminals: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyGroups: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DuplicateCorrelator: grpc.StatusCode.ALREADY_EXISTS,
    RequestIdReused: grpc.StatusCode.ALREADY_EXISTS,
    SubscriptionUnknown: grpc.StatusCode.NOT_FOUND,
    NotificationUnknown: grpc.StatusCode.NOT_FOUND,
    SinkRefused: grpc.StatusCode.INVALID_ARGUMENT,
    SinkUnreachable: grpc.StatusCode.FAILED_PRECONDITION,
    ClientUnknown: grpc.StatusCode.NOT_FOUND,
    ClientExists: grpc.StatusCode.ALREADY_EXISTS,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    WatchUnknown: grpc.StatusCode.NOT_FOUND,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
}
_FIELD_AT_FAULT: Mapping[type[TerminalStatusError], str] = {InvalidAddress: "address"}
"""The field at fault of an error without `details["field"]`."""

_log = structlog.get_logger(__name__)


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", method: str, error: Exception) -> NoReturn:
    """Ends the call with the status for `error`; `method` is for the log."""
    status = _domain_status(error) if isinstance(error, TerminalStatusError) else _unexpected_status(method, error)
    await context.abort_with_status(rpc_status.to_status(status))


async def abort_stopping(context: "grpc.aio.ServicerContext[Any, Any]") -> NoReturn:
    info = ErrorInfo(reason="GATEWAY_STOPPING", domain=ERROR_DOMAIN)
    message = "The gateway is shutting down; retry, at another gateway if there is one."
    await context.abort_with_status(rpc_status.to_status(_rpc_status(grpc.StatusCode.UNAVAILABLE, message, [info])))


def failure(error: TerminalStatusError) -> pb.Failure:
    """The error as a part of a response message."""
    return pb.Failure(
        reason=error.code,
        message=str(error),
        metadata=error.details,
        retry_delay=None if error.retry_after_s is None else _delay(error.retry_after_s),
    )


def _delay(seconds: float) -> Duration:
    delay = Duration()
    delay.FromMilliseconds(math.ceil(seconds * 1000))
    return delay


def _domain_status(error: TerminalStatusError) -> RpcStatus:
    details: list[Message] = [ErrorInfo(reason=error.code, domain=ERROR_DOMAIN, metadata=error.details)]
    if error.retry_after_s is not None:
        details.append(RetryInfo(retry_delay=_delay(error.retry_after_s)))
    if field := error.details.get("field") or _FIELD_AT_FAULT.get(type(error)):
        violation = BadRequest.FieldViolation(field=field, description=str(error), reason=error.code)
        details.append(BadRequest(field_violations=[violation]))
    return _rpc_status(CODES[type(error)], str(error), details)


def _unexpected_status(method: str, error: Exception) -> RpcStatus:
    reference = uuid.uuid4().hex
    _log.error("unexpected_error", method=method, reference=reference, exc_info=error)
    message = f"The gateway failed; the operator finds the cause in its log under reference {reference}."
    info = ErrorInfo(reason="INTERNAL_ERROR", domain=ERROR_DOMAIN, metadata={"reference": reference})
    return _rpc_status(grpc.StatusCode.INTERNAL, message, [info])


def _rpc_status(code: grpc.StatusCode, message: str, details: Iterable[Message]) -> RpcStatus:
    return RpcStatus(code=code.value[0], message=message, details=map(pack, details))
