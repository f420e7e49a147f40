"""What an error means to a caller of gRPC: `google.rpc.Status` with ErrorInfo, RetryInfo and BadRequest.

Invariants: `CODES` is total over the domain errors, and the only place that knows gRPC's codes. No traceback crosses
the wire: an unexpected exception is logged under a reference, and the caller gets the reference.

Deliberately absent: what gRPC itself refuses before a handler sees it.
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

from app import domain
from app.domain import TerminalStatusError
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb

ERROR_DOMAIN = "terminalstatus.v1"
"""`ErrorInfo.domain` of every error."""

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
    domain.TooManyStreams: grpc.StatusCode.RESOURCE_EXHAUSTED,
    domain.TooManyWatchedTerminals: grpc.StatusCode.RESOURCE_EXHAUSTED,
    domain.TooManyGroups: grpc.StatusCode.RESOURCE_EXHAUSTED,
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

_log = structlog.get_logger(__name__)


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", method: str, error: Exception) -> NoReturn:
    """Ends the call with what `error` means to the caller."""
    status = _domain_status(error) if isinstance(error, TerminalStatusError) else _unexpected_status(method, error)
    await context.abort_with_status(rpc_status.to_status(status))


async def abort_stopping(context: "grpc.aio.ServicerContext[Any, Any]") -> NoReturn:
    """Ends the call because the gateway is being stopped."""
    info = ErrorInfo(reason="GATEWAY_STOPPING", domain=ERROR_DOMAIN)
    message = "The gateway is stopping; ask again, or another one."
    await context.abort_with_status(rpc_status.to_status(_rpc_status(grpc.StatusCode.UNAVAILABLE, message, [info])))


def failure(error: TerminalStatusError) -> pb.Failure:
    """The error as a part of an answer."""
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
    message = f"The gateway failed; its log has the reason under reference {reference}."
    info = ErrorInfo(reason="INTERNAL_ERROR", domain=ERROR_DOMAIN, metadata={"reference": reference})
    return _rpc_status(grpc.StatusCode.INTERNAL, message, [info])


def _rpc_status(code: grpc.StatusCode, message: str, details: Iterable[Message]) -> RpcStatus:
    return RpcStatus(code=code.value[0], message=message, details=map(pack, details))
