"""What goes wrong over HTTP: RFC 9457 problem details for every answer that is not a success.

Invariants: every failure of every path under the app is `application/problem+json` of one shape. `STATUSES` is total
over the domain errors. `type` and `title` follow from `code`, which is the domain error's; a client may switch on any.
Mounted apps (SOAP) speak their own faults; only what they let through ends here.

Deliberately absent: what nobody caught (`around.py`), business rules, and pages behind the `type` URNs (the OpenAPI
document shows an example of each).
"""

import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app import domain
from app.domain import TerminalStatusError
from app.rest.around import Around, Problem, problem

MEDIA_TYPE = "application/problem+json"
SCHEMA = "Problem"
"""The name of the problem's schema in the OpenAPI document."""

NO_STORE = {"cache-control": "no-store"}
"""A status is true when it is asked; no answer about one may come out of a cache."""

STATUSES: Mapping[type[TerminalStatusError], int] = {
    domain.InvalidAddress: 400,
    domain.TerminalUnknown: 404,
    domain.WatcherRefused: 403,
    domain.WatcherUnauthenticated: 403,
    domain.FetchTimedOut: 504,
    domain.PresenceUnavailable: 503,
    domain.WatcherRestarting: 503,
    domain.GatewayOverloaded: 503,
    domain.PresenceMisconfigured: 502,
    domain.DocumentUnreadable: 502,
    domain.InvalidRequest: 400,
    domain.NoValidAddresses: 400,
    domain.TooManyAddresses: 422,
    domain.GroupUnknown: 404,
    domain.GroupExists: 409,
    domain.GroupTooLarge: 422,
    domain.GroupNotAllowed: 422,
    domain.NestedGroupNotAllowed: 422,
    domain.GroupChanged: 412,
    domain.UnlimitedCountNotAllowed: 422,
    domain.CountTooLarge: 422,
    domain.IntervalTooShort: 422,
    domain.DurationTooLong: 422,
    domain.BusyNotSupported: 422,
    domain.TooManySubscriptions: 429,
    domain.TooManyStreams: 429,
    domain.TooManyWatchedTerminals: 429,
    domain.TooManyGroups: 429,
    domain.RateLimited: 429,
    domain.DuplicateCorrelator: 409,
    domain.RequestIdReused: 422,
    domain.SubscriptionUnknown: 404,
    domain.NotificationUnknown: 404,
    domain.SinkRefused: 400,
    domain.SinkUnreachable: 422,
    domain.ClientUnknown: 404,
    domain.ClientExists: 409,
    domain.Unauthenticated: 401,
    domain.NotPermitted: 403,
    domain.WatchUnknown: 404,
    domain.StoreUnavailable: 503,
}

MAX_FAULTS = 20
"""Faults of a request that are named; further ones are left out."""

MAX_SHOWN = 200
_HTTP_CODES = {400: domain.InvalidRequest.code, 413: "BODY_TOO_LARGE"}
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
    headers = CHALLENGE if isinstance(error, domain.Unauthenticated) else None
    return answer(problem_of(error), retry_after_s=error.retry_after_s, headers=headers)


async def _on_invalid_request(_request: Request, error: RequestValidationError) -> Response:
    detail = "The request is not what this operation takes; `details` names each fault."
    return answer(problem(400, domain.InvalidRequest.code, detail, details=faults(error)))


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
