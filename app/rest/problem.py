"""How an error looks on REST API v1: problem details (RFC 9457) for every answer that is not a success.

Invariants: every error of every path under the app is `application/problem+json` of one form. `STATUSES` is total over
the domain errors. `type` and `title` follow from `code`, which is the domain error's, so clients may switch on any of
the three. Mounted apps (SOAP) answer their own faults; exceptions that they do not catch are answered here.

Deliberately absent: uncaught exceptions (`middleware.py`), and web pages for the `type` URNs (the OpenAPI document has
an example of each).
"""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from app.auth.credentials import AUTHORIZATION, KEY_PREFIX, asgi_authorization
from app.domain import errors
from app.rest.responses import NO_STORE

MEDIA_TYPE = "application/problem+json"
SCHEMA = "Problem"
"""The name of the problem's schema in the OpenAPI document."""

STATUSES: Mapping[type[errors.TerminalStatusError], int] = {
    errors.InvalidAddress: 400,
    errors.TerminalUnknown: 404,
    errors.AddressIsList: 422,
    errors.WatcherRefused: 424,
    errors.WatcherUnauthenticated: 502,
    errors.FetchTimedOut: 504,
    errors.PresenceUnavailable: 503,
    errors.WatcherRestarting: 503,
    errors.GatewayOverloaded: 503,
    errors.PresenceMisconfigured: 502,
    errors.DocumentUnreadable: 502,
    errors.InvalidRequest: 400,
    errors.NoValidAddresses: 400,
    errors.TooManyAddresses: 422,
    errors.GroupUnknown: 404,
    errors.GroupExists: 409,
    errors.GroupTooLarge: 422,
    errors.GroupNotAllowed: 422,
    errors.NestedGroupNotAllowed: 422,
    errors.GroupChanged: 412,
    errors.UnlimitedCountNotAllowed: 422,
    errors.CountTooLarge: 422,
    errors.IntervalTooShort: 422,
    errors.DurationTooLong: 422,
    errors.BusyNotSupported: 422,
    errors.TooManySubscriptions: 429,
    errors.TooManyStreams: 429,
    errors.TooManyWatchedTerminals: 429,
    errors.TooManyGroups: 429,
    errors.TooManyClients: 429,
    errors.RateLimited: 429,
    errors.DuplicateCorrelator: 409,
    errors.RequestIdReused: 422,
    errors.SubscriptionUnknown: 404,
    errors.SubscriptionChanged: 412,
    errors.ChangeNotAllowed: 409,
    errors.NotificationUnknown: 404,
    errors.SinkRefused: 400,
    errors.SinkUnreachable: 422,
    errors.ClientUnknown: 404,
    errors.ClientExists: 409,
    errors.Unauthenticated: 401,
    errors.NotPermitted: 403,
    errors.WatchUnknown: 404,
    errors.StoreUnavailable: 503,
}

MAX_FAULTS = 20
"""The largest number of a request's faults that a problem lists."""

MAX_SHOWN = 200
_HTTP_CODES = {400: errors.InvalidRequest.code, 413: "BODY_TOO_LARGE"}
_FIELDS = {
    "min_interval": "min_interval_ms",
    "duration": "duration_ms",
    "overlap": "overlap_ms",
    "max_age": "max_age_s",
    "request_id": "Idempotency-Key",
    "update_mask": "body",
    "etag": "If-Match",
}
"""REST's names of fields that have another name in gRPC."""
IS_HEAD = "is_head"
"""The scope's key for a HEAD request, which `middleware.py` passes on as GET."""


CHALLENGE = "WWW-Authenticate"
CHALLENGED = frozenset({400, 401, 403})
"""The statuses of errors that may have a CHALLENGE (RFC 6750 section 3.1)."""
CHALLENGE_DOCUMENTED = {
    "description": "For errors of the credentials: the scheme, the `error` of RFC 6750 where one applies, and the "
    "`scope` that an access token needs. Every 401 has this header, a 403 where an access token lacks a scope, and a "
    "400 for several Authorization headers.",
    "schema": {"type": "string"},
}
"""The header as OpenAPI documents have it."""


class Problem(BaseModel):
    """Why a request failed (RFC 9457)."""

    type: str = Field(
        description="`urn:problem-type:terminalstatus:` followed by the code in lower case with hyphens. Stable."
    )
    title: str = Field(description="The code in words; the same for each occurrence.")
    status: int = Field(description="The HTTP status code, repeated.")
    detail: str = Field(description="What happened in this case, for people. The wording may change: do not parse it.")
    code: str = Field(description="What happened, for machines. Stable, and the same as `ErrorInfo.reason` over gRPC.")
    retryable: bool = Field(
        description="Whether the same request may succeed later. If known, the header `Retry-After` says when."
    )
    details: dict[str, str] = Field(
        description="Short strings for machines, such as the field, the address or the SIP code."
    )


def problem(
    status: int, code: str, detail: str, *, retryable: bool = False, details: Mapping[str, str] | None = None
) -> Problem:
    """Returns a problem; `type` and `title` follow from `code`."""
    return Problem(
        type="urn:problem-type:terminalstatus:" + code.lower().replace("_", "-"),
        title=code.replace("_", " ").capitalize(),
        status=status,
        detail=detail,
        code=code,
        retryable=retryable,
        details=dict(details or {}),
    )


def internal_error(reference: str) -> Problem:
    """Returns the problem for an unexpected exception, which the log has under `reference`."""
    detail = f"The gateway failed; its log has the reason under reference {reference}."
    return problem(500, "INTERNAL_ERROR", detail, details={"reference": reference})


def problem_of(error: errors.TerminalStatusError) -> Problem:
    """Returns the problem for a domain error."""
    details = dict(error.details)
    if (field := details.get("field")) in _FIELDS:
        details["field"] = _FIELDS[field]
    return problem(STATUSES[type(error)], error.code, str(error), retryable=error.retryable, details=details)


def answer(what: Problem, *, retry_after_s: float | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """Returns the response that carries a problem. Retry-After is in whole seconds, rounded up."""
    known_wait = {} if retry_after_s is None else {"retry-after": str(math.ceil(retry_after_s))}
    return Response(what.model_dump_json(), what.status, {**NO_STORE, **known_wait, **(headers or {})}, MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Makes `app` answer exceptions with problems."""
    app.exception_handler(errors.TerminalStatusError)(_on_domain_error)
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(HTTPException)(_on_http_error)


async def _on_domain_error(request: Request, error: errors.TerminalStatusError) -> Response:
    return answer_error(request.scope, error, request.app.state.token_scope)


def answer_error(scope: Scope, error: errors.TerminalStatusError, token_scope: str) -> Response:
    """Returns the response for a domain error of the request `scope`. `token_scope` as `challenge_of` has it."""
    headers = challenge_of(scope, error, token_scope=token_scope)
    return answer(problem_of(error), retry_after_s=error.retry_after_s, headers=headers)


def challenge(error: str = "", scope: str = "") -> Mapping[str, str]:
    """Returns the header that names the credentials to send (RFC 9110 section 11.6.1, RFC 6750 section 3)."""
    given = {"error": error, "scope": scope}
    return {
        "www-authenticate": ", ".join(
            ['Bearer realm="terminal-status"', *(f'{name}="{value}"' for name, value in given.items() if value)]
        )
    }


def challenge_of(scope: Scope, error: errors.TerminalStatusError, *, token_scope: str = "") -> Mapping[str, str]:
    """Returns the challenge for an error of the credentials; nothing for other errors. `token_scope`: the scope that an
    access token needs, if known. RFC 6750 section 3.1 has the values of `error`; without credentials there is none."""
    if isinstance(error, errors.InvalidRequest):
        return challenge("invalid_request") if error.details.get("field") == AUTHORIZATION else {}
    if not isinstance(error, errors.Unauthenticated | errors.NotPermitted):
        return {}
    scheme, _, token = asgi_authorization(scope).partition(" ")
    is_bearer = scheme.lower() == "bearer"
    if isinstance(error, errors.Unauthenticated):
        is_wrong = is_bearer and error.retry_after_s is None  # else it could not be checked
        return challenge("invalid_token" if is_wrong else "", token_scope)
    if is_bearer and not token.strip().startswith(KEY_PREFIX):  # an API key has no scopes
        return challenge("insufficient_scope", token_scope)
    return {}


async def _on_invalid_request(_request: Request, error: RequestValidationError) -> Response:
    detail = "The request does not fit this operation; `details` lists each fault by its place."
    details = {"field": _field(error.errors()[0]["loc"]), **faults(error)}
    return answer(problem(400, errors.InvalidRequest.code, detail, details=details))


def _field(place: Sequence[str | int]) -> str:
    """The path of a field, such as `sink.secrets[0]`, as other errors name it: without the part of the request that
    has it, and without the kind of a union, which pydantic adds in capitals."""
    path = ""
    for part in place[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.isupper():
            path += f".{part}" if path else part
    return printable(path)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    """Answers errors that the framework raises: unknown path, wrong method, body that is too large or not JSON."""
    detail = f"{method_of(request)} {request.url.path}: {error.detail}."
    code = _HTTP_CODES.get(error.status_code) or HTTPStatus(error.status_code).name
    return answer(problem(error.status_code, code, detail), headers=headers_of(request, error))


def method_of(request: Request) -> str:
    """Returns the method that the client sent."""
    return "HEAD" if request.scope.get(IS_HEAD) else request.method


def headers_of(request: Request, error: HTTPException) -> Mapping[str, str]:
    """Returns the headers for an error that the framework raised. `Allow` lists the methods of all routes of the path
    (RFC 9110 section 10.2.1); the framework's own has one route's."""
    if error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
        return error.headers or {}
    methods: set[str] = set()
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or ())
    if "GET" in methods:
        methods.add("HEAD")
    return {"allow": ", ".join(sorted(methods))}


def faults(error: RequestValidationError) -> dict[str, str]:
    """Returns at most MAX_FAULTS of a request's faults by their places, in printable text."""
    return {
        printable(".".join(str(part) for part in fault["loc"])): printable(str(fault["msg"]))
        for fault in error.errors()[:MAX_FAULTS]
        if fault["type"] != "default_factory_not_called"  # a consequence of another fault
    }


def printable(text: str) -> str:
    """Returns a caller's text, cut to MAX_SHOWN characters, with escapes for what UTF-8 cannot encode."""
    return text[:MAX_SHOWN].encode("utf-8", "backslashreplace").decode()
