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

from app.domain import errors
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb

ERROR_DOMAIN = "terminalstatus.v1"
"""`ErrorInfo.domain` of every error."""

CODES: Mapping[type[errors.TerminalStatusError], grpc.StatusCode] = {
    errors.InvalidAddress: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TerminalUnknown: grpc.StatusCode.NOT_FOUND,
    errors.WatcherRefused: grpc.StatusCode.PERMISSION_DENIED,
    errors.WatcherUnauthenticated: grpc.StatusCode.PERMISSION_DENIED,
    errors.FetchTimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.PresenceUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.WatcherRestarting: grpc.StatusCode.UNAVAILABLE,
    errors.GatewayOverloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PresenceMisconfigured: grpc.StatusCode.INTERNAL,
    errors.DocumentUnreadable: grpc.StatusCode.INTERNAL,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NoValidAddresses: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooManyAddresses: grpc.StatusCode.INVALID_ARGUMENT,
    errors.GroupUnknown: grpc.StatusCode.NOT_FOUND,
    errors.GroupExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.GroupTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    errors.GroupNotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NestedGroupNotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.GroupChanged: grpc.StatusCode.ABORTED,
    errors.UnlimitedCountNotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CountTooLarge: grpc.StatusCode.FAILED_PRECONDITION,
    errors.IntervalTooShort: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DurationTooLong: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BusyNotSupported: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TooManySubscriptions: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyStreams: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyWatchedTerminals: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyGroups: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DuplicateCorrelator: grpc.StatusCode.ALREADY_EXISTS,
    errors.RequestIdReused: grpc.StatusCode.ALREADY_EXISTS,
    errors.SubscriptionUnknown: grpc.StatusCode.NOT_FOUND,
    errors.NotificationUnknown: grpc.StatusCode.NOT_FOUND,
    errors.SinkRefused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SinkUnreachable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ClientUnknown: grpc.StatusCode.NOT_FOUND,
    errors.ClientExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    errors.WatchUnknown: grpc.StatusCode.NOT_FOUND,
    errors.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
}
_FIELD_AT_FAULT: Mapping[type[errors.TerminalStatusError], str] = {errors.InvalidAddress: "address"}
"""The field at fault of an error without `details["field"]`."""

_log = structlog.get_logger(__name__)


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", method: str, error: Exception) -> NoReturn:
    """Ends the call with the status for `error`; `method` is for the log."""
    status = (
        _domain_status(error) if isinstance(error, errors.TerminalStatusError) else _unexpected_status(method, error)
    )
    await context.abort_with_status(rpc_status.to_status(status))


async def abort_stopping(context: "grpc.aio.ServicerContext[Any, Any]") -> NoReturn:
    info = ErrorInfo(reason="GATEWAY_STOPPING", domain=ERROR_DOMAIN)
    message = "The gateway is shutting down; retry, at another gateway if there is one."
    await context.abort_with_status(rpc_status.to_status(_rpc_status(grpc.StatusCode.UNAVAILABLE, message, [info])))


def failure(error: errors.TerminalStatusError) -> pb.Failure:
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


def _domain_status(error: errors.TerminalStatusError) -> RpcStatus:
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
