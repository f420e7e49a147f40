"""What goes wrong over HTTP: RFC 9457 problem details for every answer that is not a success.

Invariants: every failure of every path under the app is `application/problem+json` of one shape. `STATUSES` is total
over the domain errors. `type` and `title` follow from `code`, which is the domain error's; a client may switch on any.
Mounted apps (SOAP) speak their own faults; only what they let through ends here.

Deliberately absent: what nobody caught (`middleware.py`), business rules, and pages behind the `type` URNs (the OpenAPI
document shows an example of each).
"""

import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

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
from app.rest.middleware import Around, Problem, problem

MEDIA_TYPE = "application/problem+json"
SCHEMA = "Problem"
"""The name of the problem's schema in the OpenAPI document."""

NO_STORE = {"cache-control": "no-store"}
"""A status is true when it is asked; no answer about one may come out of a cache."""

STATUSES: Mapping[type[TerminalStatusError], int] = {
    InvalidAddress: 400,
    TerminalUnknown: 404,
    WatcherRefused: 403,
    WatcherUnauthenticated: 403,
    FetchTimedOut: 504,
    PresenceUnavailable: 503,
    WatcherRestarting: 503,
    GatewayOverloaded: 503,
    PresenceMisconfigured: 502,
    DocumentUnreadable: 502,
    InvalidRequest: 400,
    NoValidAddresses: 400,
    TooManyAddresses: 422,
    GroupUnknown: 404,
    GroupExists: 409,
    GroupTooLarge: 422,
    GroupNotAllowed: 422,
    NestedGroupNotAllowed: 422,
    GroupChanged: 412,
    UnlimitedCountNotAllowed: 422,
    CountTooLarge: 422,
    IntervalTooShort: 422,
    DurationTooLong: 422,
    BusyNotSupported: 422,
    TooManySubscriptions: 429,
    TooManyStreams: 429,
    TooManyWatchedTerminals: 429,
    TooManyGroups: 429,
    RateLimited: 429,
    DuplicateCorrelator: 409,
    RequestIdReused: 422,
    SubscriptionUnknown: 404,
    NotificationUnknown: 404,
    SinkRefused: 400,
    SinkUnreachable: 422,
    ClientUnknown: 404,
    ClientExists: 409,
    Unauthenticated: 401,
    NotPermitted: 403,
    WatchUnknown: 404,
    StoreUnavailable: 503,
}

MAX_FAULTS = 20
"""Faults of a request that are named; further ones are left out."""

MAX_SHOWN = 200
_HTTP_CODES = {400: InvalidRequest.code, 413: "BODY_TOO_LARGE"}
_FIELDS = {
    "min_interval": "min_interval_ms",
    "duration": "duration_ms",
    "max_age": "max_age_s",
    "request_id": "Idempotency-Key",
}
"""What REST calls parts of a request that have another name in gRPC."""
CHALLENGE = {"www-authenticate": "Bearer"}
"""What every 401 says (RFC 9110 section 11.6.1)."""


def problem_of(error: TerminalStatusError) -> Problem:
    """The problem that a domain error is."""
    details = dict(error.details)
    if (field := details.get("field")) in _FIELDS:
        details["field"] = _FIELDS[field]
    return problem(STATUSES[type(error)], error.code, str(error), retryable=error.retryable, details=details)


def answer(what: Problem, *, retry_after_s: float | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The response that carries a problem. Retry-After is in whole seconds, rounded up."""
    known_wait = {} if retry_after_s is None else {"retry-after": str(math.ceil(retry_after_s))}
    return Response(what.model_dump_json(), what.status, {**NO_STORE, **known_wait, **(headers or {})}, MEDIA_TYPE)


def answer_with_problems(app: FastAPI) -> None:
    """Makes every failure under `app` a problem."""
    app.add_middleware(Around, answer=answer)
    app.exception_handler(TerminalStatusError)(_on_domain_error)
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(HTTPException)(_on_http_error)


async def _on_domain_error(_request: Request, error: TerminalStatusError) -> Response:
    headers = CHALLENGE if isinstance(error, Unauthenticated) else None
    return answer(problem_of(error), retry_after_s=error.retry_after_s, headers=headers)


async def _on_invalid_request(_request: Request, error: RequestValidationError) -> Response:
    detail = "The request is not what this operation takes; `details` names each fault."
    return answer(problem(400, InvalidRequest.code, detail, details=faults(error)))


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    """What the framework refuses: an unknown path, a wrong method, a body that is too large or no JSON."""
    detail = f"{request.method} {request.url.path}: {error.detail}."
    code = _HTTP_CODES.get(error.status_code) or HTTPStatus(error.status_code).name
    return answer(problem(error.status_code, code, detail), headers=headers_of(request, error))


def headers_of(request: Request, error: HTTPException) -> Mapping[str, str]:
    """The headers of what the framework refuses. It knows one route's methods; Allow has those of the whole resource
    (RFC 9110 section 10.2.1)."""
    if error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
        return error.headers or {}
    methods: set[str] = set()
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or ())
    return {"allow": ", ".join(sorted(methods))}


def faults(error: RequestValidationError) -> dict[str, str]:
    """What is wrong with a request, by the place where: at most MAX_FAULTS of them, fit to be sent back."""
    return {
        printable(".".join(str(part) for part in fault["loc"])): printable(str(fault["msg"]))
        for fault in error.errors()[:MAX_FAULTS]
    }


def printable(text: str) -> str:
    """A caller's text, cut to MAX_SHOWN characters, without what UTF-8 cannot carry."""
    return text[:MAX_SHOWN].encode("utf-8", "backslashreplace").decode()
