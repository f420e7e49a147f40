"""What goes wrong over HTTP: RFC 9457 problem details for every answer that is not a success.

Invariants: every failure of every path under the app is `application/problem+json` of one shape. `STATUSES` is total
over the domain errors. `type` and `title` follow from `code`, which is the domain error's; a client may switch on any.
An unexpected exception is logged under a reference, the client gets the reference, and never a traceback. Mounted apps
(SOAP) speak their own faults; only what they let through ends here. A request still waiting when the server has
waited long enough for it to stop is cancelled by the server, and answered 503. A client that left is no failure.

Deliberately absent: business rules, and pages behind the `type` URNs (the OpenAPI document shows an example of each).
"""

import asyncio
import math
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import domain
from app.domain import TerminalStatusError

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

_log = structlog.get_logger(__name__)


class Problem(BaseModel):
    """Why a request failed (RFC 9457)."""

    type: str = Field(description="`urn:problem-type:terminalstatus:` and the code in lower case, hyphenated. Stable.")
    title: str = Field(description="The code in words: the same at each occurrence.")
    status: int = Field(description="The HTTP status code, again.")
    detail: str = Field(description="What happened this time, for people. Wording may change: do not parse it.")
    code: str = Field(description="What happened, for machines. Stable, and the same as `ErrorInfo.reason` over gRPC.")
    retryable: bool = Field(
        description="Whether the same request may succeed later. The header `Retry-After` says when, where known."
    )
    details: dict[str, str] = Field(description="Short strings for machines, such as the address or the SIP code.")


def problem(
    status: int, code: str, detail: str, *, retryable: bool = False, details: Mapping[str, str] | None = None
) -> Problem:
    """A problem; its type and title follow from `code`."""
    return Problem(
        type="urn:problem-type:terminalstatus:" + code.lower().replace("_", "-"),
        title=code.replace("_", " ").capitalize(),
        status=status,
        detail=detail,
        code=code,
        retryable=retryable,
        details=dict(details or {}),
    )


def problem_of(error: TerminalStatusError) -> Problem:
    """The problem that a domain error is."""
    return problem(STATUSES[type(error)], error.code, str(error), retryable=error.retryable, details=error.details)


def internal_error(reference: str) -> Problem:
    """The problem that an unexpected exception is; the log has the exception under `reference`."""
    detail = f"The gateway failed; its log has the reason under reference {reference}."
    return problem(500, "INTERNAL_ERROR", detail, details={"reference": reference})


STOPPING = problem(503, "GATEWAY_STOPPING", "The gateway is stopping; ask again, or another one.", retryable=True)


def answer(what: Problem, *, retry_after_s: float | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The response that carries a problem. Retry-After is in whole seconds, rounded up."""
    known_wait = {} if retry_after_s is None else {"retry-after": str(math.ceil(retry_after_s))}
    return Response(what.model_dump_json(), what.status, {**NO_STORE, **known_wait, **(headers or {})}, MEDIA_TYPE)


def documented(*problems: Problem) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for an operation that fails in these ways, each an example under its status."""
    known: dict[int | str, dict[str, Any]] = {}
    for status in sorted({each.status for each in problems}):
        known[status] = _documented([each for each in problems if each.status == status])
    any_other = _documented([problem(405, "METHOD_NOT_ALLOWED", "POST /readyz: Method Not Allowed.")])
    return {**known, "default": {**any_other, "description": "Any other failure, such as a wrong method."}}


def _documented(problems: list[Problem]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{SCHEMA}"}
    examples = {each.code: {"summary": each.title, "value": each.model_dump()} for each in problems}
    documentation = {
        "description": ", ".join(f"`{code}`" for code in examples),
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
    }
    if any(each.retryable for each in problems):
        description = "Seconds after which it is worth asking again; absent where nobody knows."
        documentation["headers"] = {"Retry-After": {"description": description, "schema": {"type": "integer"}}}
    return documentation


def answer_with_problems(app: FastAPI) -> None:
    """Makes every failure under `app` a problem."""
    app.add_middleware(_UnexpectedErrors)
    app.exception_handler(TerminalStatusError)(_on_domain_error)
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(HTTPException)(_on_http_error)


async def _on_domain_error(_request: Request, error: TerminalStatusError) -> Response:
    return answer(problem_of(error), retry_after_s=error.retry_after_s)


async def _on_invalid_request(_request: Request, error: RequestValidationError) -> Response:
    faults = {".".join(str(part) for part in fault["loc"]): str(fault["msg"]) for fault in error.errors()}
    detail = "The request is not what this operation takes; `details` names each fault."
    return answer(problem(400, "INVALID_REQUEST", detail, details=faults))


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    """What the framework refuses: an unknown path, a wrong method."""
    detail = f"{request.method} {request.url.path}: {error.detail}."
    return answer(problem(error.status_code, HTTPStatus(error.status_code).name, detail), headers=error.headers)


class _UnexpectedErrors:
    """Answers what nobody caught.

    A handler of `Exception` would answer too, but Starlette then lets the exception go on to the server, which logs
    it a second time and without the reference.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:  # the server does so at the end of its patience, and never else
            if started or scope["type"] != "http":
                raise
            await answer(STOPPING, headers={"connection": "close"})(scope, receive, send)
        except Exception as error:
            if started or scope["type"] != "http":
                raise  # too late to answer: the server ends the connection
            reference = uuid.uuid4().hex
            request = {"method": scope["method"], "path": scope["path"]}
            _log.error("unexpected_error", reference=reference, **request, exc_info=error)
            await answer(internal_error(reference))(scope, receive, send)
