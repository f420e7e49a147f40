"""What surrounds every request of an HTTP API: correlation, a bound on bodies, and answers to what nobody caught.

Invariants: a valid `x-correlator` and `traceparent` stand in the answer as they stood in the request, whatever the
answer is; an `x-correlator` that breaks its pattern is refused, a `traceparent` that is none is ignored (W3C Trace
Context section 3.2). No more than MAX_BODY_BYTES of a body are read. An unexpected exception is logged under a
reference, the client gets the reference, and never a traceback. A request still waiting when the server has waited
long enough for it to stop is cancelled by the server, and answered 503. A client that left is no failure.

Deliberately absent: who calls (`calls.py`), and what an API's failures look like (`problem.py`, `camara/errors.py`).
"""

import asyncio
import re
import uuid
from collections.abc import Callable, Mapping

import structlog
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 1024 * 1024
"""As gRPC's bound on a request: some 5,000 addresses of the longest kind."""

CORRELATOR_PATTERN = r"^[a-zA-Z0-9-_:;.\/<>{}]{0,256}$"
"""CAMARA's XCorrelator, which holds for every API here."""

_CORRELATOR = re.compile(CORRELATOR_PATTERN[1:-1].encode())
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

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


def internal_error(reference: str) -> Problem:
    """The problem that an unexpected exception is; the log has the exception under `reference`."""
    detail = f"The gateway failed; its log has the reason under reference {reference}."
    return problem(500, "INTERNAL_ERROR", detail, details={"reference": reference})


STOPPING = problem(503, "GATEWAY_STOPPING", "The gateway is stopping; ask again, or another one.", retryable=True)
BAD_CORRELATOR = problem(
    400, "INVALID_REQUEST", f"x-correlator must match {CORRELATOR_PATTERN}", details={"field": "x-correlator"}
)


class Around:
    """The middleware. `answer` makes an API's own response of a problem.

    A handler of `Exception` would answer too, but Starlette then lets the exception go on to the server, which logs
    it a second time and without the reference.
    """

    def __init__(self, app: ASGIApp, *, answer: Callable[..., Response]) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        echoed, refused, has_body = _read_head(scope)
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            if echoed and not started:
                message = {**message, "headers": [*message.get("headers", ()), *echoed]}
            started = True
            await send(message)

        try:
            if refused:
                await self._answer(BAD_CORRELATOR)(scope, receive, watch)
            else:
                await self._app(scope, _Bounded(scope, receive) if has_body else receive, watch)
        except ClientDisconnect:
            return None
        except asyncio.CancelledError:  # the server does so at the end of its patience, and never else
            if started:
                raise
            await self._answer(STOPPING, headers={"connection": "close"})(scope, receive, watch)
        except Exception as error:
            if started:
                raise  # too late to answer: the server ends the connection
            reference = uuid.uuid4().hex
            request = {"method": scope["method"], "path": scope["path"]}
            _log.error("unexpected_error", reference=reference, **request, exc_info=error)
            await self._answer(internal_error(reference))(scope, receive, watch)


def _read_head(scope: Scope) -> tuple[list[tuple[bytes, bytes]], bool, bool]:
    """The headers that are sent back, whether the request is refused for them, and whether it may have a body."""
    echoed: list[tuple[bytes, bytes]] = []
    refused = has_body = False
    for header in scope["headers"]:
        name, value = header
        if name == b"x-correlator":
            if _CORRELATOR.fullmatch(value):
                echoed.append((name, value))
            else:
                refused = True
        elif name == b"traceparent":
            if _TRACEPARENT.fullmatch(value):
                echoed.append((name, value))
        elif name in (b"content-length", b"transfer-encoding"):
            has_body = True
    return echoed, refused, has_body


class _Bounded:
    """`receive` for a request with a body: refuses one that is too large, before it is read where its head says so."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._left = MAX_BODY_BYTES
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value[:20]) > MAX_BODY_BYTES:
                self._left = -1

    async def __call__(self) -> Message:
        if self._left >= 0:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        return message
