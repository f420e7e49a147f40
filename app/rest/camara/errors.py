"""How an error looks on CAMARA's APIs: `{status, code, message}` with CAMARA's codes (Commonalities 0.6).

Invariants: `CODES` is total over the domain errors. Every error of every CAMARA path has this form, also an uncaught
exception.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app.domain import errors
from app.rest.error_examples import INTERNAL_ERROR
from app.rest.problem import (
    CHALLENGE,
    CHALLENGE_DOCUMENTED,
    CHALLENGED,
    Problem,
    challenge,
    challenge_of,
    faults,
    headers_of,
    method_of,
)
from app.rest.responses import NO_STORE

Code = tuple[int, str]

INVALID_ARGUMENT: Code = (400, "INVALID_ARGUMENT")
OUT_OF_RANGE: Code = (400, "OUT_OF_RANGE")
INVALID_PROTOCOL: Code = (400, "INVALID_PROTOCOL")
INVALID_CREDENTIAL: Code = (400, "INVALID_CREDENTIAL")
INVALID_TOKEN: Code = (400, "INVALID_TOKEN")
INVALID_SINK: Code = (400, "INVALID_SINK")
UNAUTHENTICATED: Code = (401, "UNAUTHENTICATED")
PERMISSION_DENIED: Code = (403, "PERMISSION_DENIED")
NOT_FOUND: Code = (404, "NOT_FOUND")
IDENTIFIER_NOT_FOUND: Code = (404, "IDENTIFIER_NOT_FOUND")
SUBSCRIPTION_MISMATCH: Code = (403, "SUBSCRIPTION_MISMATCH")
METHOD_NOT_ALLOWED: Code = (405, "METHOD_NOT_ALLOWED")
ALREADY_EXISTS: Code = (409, "ALREADY_EXISTS")
ABORTED: Code = (409, "ABORTED")
PAYLOAD_TOO_LARGE: Code = (413, "PAYLOAD_TOO_LARGE")
"""Our own code: the Commonalities have none for this status."""
UNSUPPORTED_MEDIA_TYPE: Code = (415, "UNSUPPORTED_MEDIA_TYPE")
SERVICE_NOT_APPLICABLE: Code = (422, "SERVICE_NOT_APPLICABLE")
MISSING_IDENTIFIER: Code = (422, "MISSING_IDENTIFIER")
UNSUPPORTED_IDENTIFIER: Code = (422, "UNSUPPORTED_IDENTIFIER")
UNNECESSARY_IDENTIFIER: Code = (422, "UNNECESSARY_IDENTIFIER")
MULTIEVENT: Code = (422, "MULTIEVENT_SUBSCRIPTION_NOT_SUPPORTED")
QUOTA_EXCEEDED: Code = (429, "QUOTA_EXCEEDED")
TOO_MANY_REQUESTS: Code = (429, "TOO_MANY_REQUESTS")
INTERNAL: Code = (500, "INTERNAL")
BAD_GATEWAY: Code = (502, "BAD_GATEWAY")
UNAVAILABLE: Code = (503, "UNAVAILABLE")

CODES: Mapping[type[errors.TerminalStatusError], Code] = {
    errors.InvalidAddress: INVALID_ARGUMENT,
    errors.TerminalUnknown: IDENTIFIER_NOT_FOUND,
    errors.AddressIsList: SERVICE_NOT_APPLICABLE,
    errors.WatcherRefused: SERVICE_NOT_APPLICABLE,
    errors.WatcherUnauthenticated: BAD_GATEWAY,
    errors.FetchTimedOut: UNAVAILABLE,
    errors.PresenceUnavailable: UNAVAILABLE,
    errors.WatcherRestarting: UNAVAILABLE,
    errors.GatewayOverloaded: UNAVAILABLE,
    errors.PresenceMisconfigured: BAD_GATEWAY,
    errors.DocumentUnreadable: BAD_GATEWAY,
    errors.InvalidRequest: INVALID_ARGUMENT,
    errors.NoValidAddresses: INVALID_ARGUMENT,
    errors.TooManyAddresses: INVALID_ARGUMENT,
    errors.GroupUnknown: IDENTIFIER_NOT_FOUND,
    errors.GroupExists: ALREADY_EXISTS,
    errors.GroupTooLarge: INVALID_ARGUMENT,
    errors.GroupNotAllowed: SERVICE_NOT_APPLICABLE,
    errors.NestedGroupNotAllowed: SERVICE_NOT_APPLICABLE,
    errors.GroupChanged: ABORTED,
    errors.UnlimitedCountNotAllowed: OUT_OF_RANGE,
    errors.CountTooLarge: OUT_OF_RANGE,
    errors.IntervalTooShort: OUT_OF_RANGE,
    errors.DurationTooLong: OUT_OF_RANGE,
    errors.BusyNotSupported: SERVICE_NOT_APPLICABLE,
    errors.TooManySubscriptions: QUOTA_EXCEEDED,
    errors.TooManyStreams: QUOTA_EXCEEDED,
    errors.TooManyWatchedTerminals: QUOTA_EXCEEDED,
    errors.TooManyGroups: QUOTA_EXCEEDED,
    errors.TooManyClients: QUOTA_EXCEEDED,
    errors.RateLimited: TOO_MANY_REQUESTS,
    errors.DuplicateCorrelator: ALREADY_EXISTS,
    errors.RequestIdReused: ABORTED,
    errors.SubscriptionUnknown: NOT_FOUND,
    errors.SubscriptionChanged: ABORTED,
    errors.ChangeNotAllowed: SERVICE_NOT_APPLICABLE,
    errors.NotificationUnknown: NOT_FOUND,
    errors.SinkRefused: INVALID_SINK,
    errors.SinkUnreachable: INVALID_SINK,
    errors.ClientUnknown: NOT_FOUND,
    errors.ClientExists: ALREADY_EXISTS,
    errors.Unauthenticated: UNAUTHENTICATED,
    errors.NotPermitted: PERMISSION_DENIED,
    errors.WatchUnknown: NOT_FOUND,
    errors.StoreUnavailable: UNAVAILABLE,
}

_BY_STATUS: Mapping[int, Code] = {
    code[0]: code
    for code in (INVALID_ARGUMENT, NOT_FOUND, METHOD_NOT_ALLOWED, PAYLOAD_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE)
}
_PROBLEMS: Mapping[int, Code] = {code[0]: code for code in (INVALID_ARGUMENT, INTERNAL, UNAVAILABLE)}
_WRONG_VALUES: Mapping[str, Code] = {
    "sink": INVALID_SINK,
    "protocol": INVALID_PROTOCOL,
    "sinkCredential": INVALID_CREDENTIAL,
    "accessToken": INVALID_TOKEN,
    "accessTokenType": INVALID_TOKEN,
}
"""Codes for wrong values of certain members; for other members INVALID_ARGUMENT."""


_NOT_OFFERED = {"PLAIN", "REFRESHTOKEN"}
"""Types of credentials that r1.2 has and that are always refused, whatever their members are."""
CREDENTIAL_NOT_OFFERED = "sinkCredential.credentialType must be ACCESSTOKEN; other types are not offered."

MAX_MESSAGE = 512
"""Longest text for people, in characters (Commonalities 0.7: `ErrorInfo.message`, `terminationDescription`)."""


class ErrorInfo(BaseModel):
    """Why a request failed."""

    status: int = Field(description="The HTTP status code, repeated.")
    code: str = Field(description="A code of CAMARA's. Switch on it.")
    message: str = Field(max_length=MAX_MESSAGE, description="What happened, for people. The wording may change.")


class CamaraError(Exception):
    """A request that violates one of CAMARA's own rules. `scope`: the scope that the access token lacks."""

    def __init__(self, code: Code, message: str, *, scope: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.scope = scope


def bounded(text: str) -> str:
    """Returns a text for people with at most MAX_MESSAGE characters; a longer one ends with an ellipsis."""
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def add_handlers(app: FastAPI) -> None:
    """Makes `app` answer exceptions in CAMARA's form."""
    app.exception_handler(CamaraError)(_on_camara_error)
    app.exception_handler(errors.TerminalStatusError)(_on_domain_error)
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(HTTPException)(_on_http_error)


def failures(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """Returns FastAPI's `responses` for an operation with these codes and those of every operation."""
    every = (*codes, INVALID_ARGUMENT, UNAUTHENTICATED, PERMISSION_DENIED, TOO_MANY_REQUESTS, UNAVAILABLE)
    known: dict[int | str, dict[str, Any]] = {}
    for status in sorted({status for status, _ in every}):
        known[status] = _documented({code: status for of, code in every if of == status})
    return {**known, "default": {**_documented({INTERNAL[1]: INTERNAL[0]}), "description": "Any other error."}}


RECORDED = Path(__file__).with_name("error_examples.json")
"""The documents' examples by code: answers that `tests/support/error_examples.py` recorded."""
_RECORDED: Mapping[str, Any] = json.loads(RECORDED.read_text("utf-8"))

CORRELATED = {"x-correlator": {"description": "Correlation id of the call.", "schema": {"type": "string"}}}


def _documented(codes: Mapping[str, int]) -> dict[str, Any]:
    examples = {code: {"value": {"status": of, "code": code, "message": _message(code)}} for code, of in codes.items()}
    schema = {"$ref": "#/components/schemas/ErrorInfo"}
    challenged = {CHALLENGE: CHALLENGE_DOCUMENTED} if not CHALLENGED.isdisjoint(codes.values()) else {}
    return {
        "description": ", ".join(f"`{code}`" for code in codes),
        "headers": {**CORRELATED, **challenged},
        "content": {"application/json": {"schema": schema, "examples": examples}},
    }


def _message(code: str) -> str:
    if code == INTERNAL[1]:
        return INTERNAL_ERROR.detail
    recorded = _RECORDED.get(code)
    return recorded["message"] if recorded else "There is no example yet: run `make generate`."


def _answer(code: Code, message: str, headers: Mapping[str, str] | None = None) -> Response:
    body = ErrorInfo(status=code[0], code=code[1], message=bounded(message))
    return Response(body.model_dump_json(), code[0], {**NO_STORE, **(headers or {})}, "application/json")


def answer_problem(problem: Problem, *, headers: Mapping[str, str] | None = None) -> Response:
    """Returns the response to a problem that the middleware found."""
    return _answer(_PROBLEMS[problem.status], problem.detail, headers)


async def _on_camara_error(_request: Request, error: CamaraError) -> Response:
    return _answer(error.code, str(error), challenge("insufficient_scope", error.scope) if error.scope else None)


async def _on_domain_error(request: Request, error: errors.TerminalStatusError) -> Response:
    code = CODES[type(error)]
    if isinstance(error, errors.SinkRefused) and error.details.get("reason", "").startswith("token"):
        code = INVALID_TOKEN
    headers = {} if error.retry_after_s is None else {"retry-after": str(math.ceil(error.retry_after_s))}
    return _answer(code, str(error), {**headers, **challenge_of(request.scope, error)})


async def _on_invalid_request(_request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    member = str(first["loc"][-1])
    code = INVALID_ARGUMENT
    if first["type"] == "union_tag_invalid" or not _NOT_OFFERED.isdisjoint(first["loc"]):
        return _answer(INVALID_CREDENTIAL, CREDENTIAL_NOT_OFFERED)
    if first["type"] in ("greater_than_equal", "less_than_equal") and "device" not in first["loc"]:
        code = OUT_OF_RANGE  # a code that only the subscriptions' API has
    elif first["type"] == "too_long" and member == "types":
        code = MULTIEVENT
    elif first["type"] != "missing":
        code = _WRONG_VALUES.get(member, INVALID_ARGUMENT)
    return _answer(code, "; ".join(f"{where}: {what}" for where, what in faults(error).items()))


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    """Answers errors that the framework raises: unknown path, wrong method, body that is too large or not JSON."""
    code = _BY_STATUS.get(error.status_code, INVALID_ARGUMENT)
    return _answer(code, f"{method_of(request)} {request.url.path}: {error.detail}.", headers_of(request, error))
