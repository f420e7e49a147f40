"""How an error looks on the gRPC face: a `google.rpc.Status` with the details that `terminal_status.proto` names.

Invariants: `CODES` covers every domain error, and is the only place that chooses gRPC codes. No error of the presence
server has a code that a retry library takes for the caller's own deadline, cancellation or permission. The text of an
unexpected exception never reaches a caller: it is logged under a reference, and the caller receives the reference.

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
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped, unused-ignore]
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    QuotaFailure,
    ResourceInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status as RpcStatus  # type: ignore[import-untyped, unused-ignore]
from grpc_status import rpc_status

from app.domain import errors, x_correlator

ERROR_DOMAIN = "terminalstatus.v1"
"""`ErrorInfo.domain` of every error."""

CODES: Mapping[type[errors.TerminalStatusError], grpc.StatusCode] = {
    errors.InvalidAddress: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TerminalUnknown: grpc.StatusCode.NOT_FOUND,
    errors.AddressIsList: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WatcherRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WatcherUnauthenticated: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FetchTimedOut: grpc.StatusCode.UNAVAILABLE,
    errors.PresenceUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.WatcherRestarting: grpc.StatusCode.UNAVAILABLE,
    errors.GatewayOverloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PresenceMisconfigured: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DocumentUnreadable: grpc.StatusCode.FAILED_PRECONDITION,
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
    errors.TooManyClients: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DuplicateCorrelator: grpc.StatusCode.ALREADY_EXISTS,
    errors.RequestIdReused: grpc.StatusCode.ALREADY_EXISTS,
    errors.SubscriptionUnknown: grpc.StatusCode.NOT_FOUND,
    errors.SubscriptionChanged: grpc.StatusCode.ABORTED,
    errors.ChangeNotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
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

RESOURCES: Mapping[type[errors.TerminalStatusError], tuple[str, str]] = {
    errors.TerminalUnknown: ("terminal", "address"),
    errors.GroupUnknown: ("group", "group"),
    errors.GroupExists: ("group", "group"),
    errors.SubscriptionUnknown: ("subscription", "subscription_id"),
    errors.DuplicateCorrelator: ("subscription", "correlator"),
    errors.RequestIdReused: ("subscription", "request_id"),
    errors.NotificationUnknown: ("notification", "notification_id"),
    errors.ClientUnknown: ("client", "client"),
    errors.ClientExists: ("client", "name"),
    errors.WatchUnknown: ("watch", "address"),
}
"""The type of the resource that is missing or exists already, and the name among `details` that identifies it. Covers
every error with NOT_FOUND or ALREADY_EXISTS."""

_CODE_OF_REASON = {kind.code: code for kind, code in CODES.items()}

_log = structlog.get_logger(__name__)


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", method: str, error: Exception) -> NoReturn:
    """Ends the call with the status for `error`; `method` is for the log."""
    status = status_of(error) if isinstance(error, errors.TerminalStatusError) else _unexpected_status(method, error)
    await _abort(context, status)


async def abort_stopping(context: "grpc.aio.ServicerContext[Any, Any]") -> NoReturn:
    info = ErrorInfo(reason="GATEWAY_STOPPING", domain=ERROR_DOMAIN)
    message = "The gateway is shutting down; retry, at another gateway if there is one."
    await _abort(context, _rpc_status(grpc.StatusCode.UNAVAILABLE, message, [info]))


async def _abort(context: "grpc.aio.ServicerContext[Any, Any]", status: RpcStatus) -> NoReturn:
    """Ends the call with the status, and with the call's x-correlator beside it."""
    found: Any = rpc_status.to_status(status)
    if correlator := x_correlator.current_text():
        found = found._replace(trailing_metadata=(*found.trailing_metadata, (x_correlator.HEADER, correlator)))
    await context.abort_with_status(found)


def _delay(seconds: float) -> Duration:
    delay = Duration()
    delay.FromMilliseconds(math.ceil(seconds * 1000))
    return delay


def status_of(error: errors.TerminalStatusError) -> RpcStatus:
    """The error as a `google.rpc.Status`: of a failed call, or of a part of a response."""
    code = CODES[type(error)]
    details: list[Message] = [ErrorInfo(reason=error.code, domain=ERROR_DOMAIN, metadata=error.details)]
    if error.retry_after_s is not None:
        details.append(RetryInfo(retry_delay=_delay(error.retry_after_s)))
    if (about := _about(code, error)) is not None:
        details.append(about)
    return _rpc_status(code, str(error), details)


def status_of_code(code: str, message: str) -> RpcStatus:
    """As `status_of`, for an error of which the code and the text were stored."""
    return _rpc_status(
        _CODE_OF_REASON.get(code, grpc.StatusCode.UNKNOWN), message, [ErrorInfo(reason=code, domain=ERROR_DOMAIN)]
    )


def _about(code: grpc.StatusCode, error: errors.TerminalStatusError) -> Any:
    """The message that says what the error is about, by its gRPC code (AIP-193); None if there is none."""
    text = str(error)
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            if field := error.details.get("field") or _FIELD_AT_FAULT.get(type(error)):
                violation = BadRequest.FieldViolation(field=field, description=text, reason=error.code)
                return BadRequest(field_violations=[violation])
        case grpc.StatusCode.NOT_FOUND | grpc.StatusCode.ALREADY_EXISTS:
            kind, name = RESOURCES[type(error)]
            return ResourceInfo(resource_type=kind, resource_name=error.details.get(name, ""), description=text)
        case grpc.StatusCode.FAILED_PRECONDITION:
            subject = error.details.get("address") or error.details.get("field", "")
            failed = PreconditionFailure.Violation(type=error.code, subject=subject, description=text)
            return PreconditionFailure(violations=[failed])
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            subject = "gateway" if isinstance(error, errors.GatewayOverloaded | errors.TooManyClients) else "client"
            return QuotaFailure(violations=[QuotaFailure.Violation(subject=subject, description=text)])
    return None


def _unexpected_status(method: str, error: Exception) -> RpcStatus:
    reference = uuid.uuid4().hex
    _log.error("unexpected_error", method=method, reference=reference, exc_info=error)
    message = f"The gateway failed; the operator finds the cause in its log under reference {reference}."
    info = ErrorInfo(reason="INTERNAL_ERROR", domain=ERROR_DOMAIN, metadata={"reference": reference})
    return _rpc_status(grpc.StatusCode.INTERNAL, message, [info])


def _rpc_status(code: grpc.StatusCode, message: str, details: Iterable[Message]) -> RpcStatus:
    return RpcStatus(code=code.value[0], message=message, details=map(pack, details))
