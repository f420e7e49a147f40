"""The middleware of every HTTP API: headers for correlation and rates, HEAD, the limit of bodies, answers to uncaught
exceptions.

Invariants: every answer has the `x-correlator` of its call (`domain/x_correlator.py`), and a valid `traceparent` as
received. CAMARA's APIs refuse an invalid `x-correlator`; the others replace it. At most MAX_BODY_BYTES of a
body are read. An unexpected exception is logged under a reference; the client gets the reference, never a traceback.
When the server stops and cancels a request that still runs, the client gets 503. A client that disconnected is not an
error. HEAD is answered as GET without the body; a streamed body ends before its first piece (RFC 9110 section 9.3.2).

Deliberately absent: authentication (`operation.py`) and the form of an API's errors (`problem.py`, `camara/errors.py`).
"""

import asyncio
import uuid
from collections.abc import Callable

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.policies import Policies
from app.domain import x_correlator
from app.domain.x_correlator import XCorrelator
from app.rest.operation import CLIENT
from app.rest.problem import IS_HEAD, internal_error, printable, problem
from app.rest.rate_limits import headers_of

MAX_BODY_BYTES = 1024 * 1024
"""The same limit as for a gRPC request: some 5,000 addresses of the greatest length."""

_log = structlog.get_logger(__name__)


STOPPING = problem(
    503, "GATEWAY_STOPPING", "The gateway is stopping; send the request again, or to another gateway.", retryable=True
)
BAD_CORRELATOR = problem(
    400,
    "INVALID_REQUEST",
    f"The header x-correlator must be sent once and match {x_correlator.PATTERN}",
    details={"field": "x-correlator"},
)


class _HeadAnsweredError(Exception):
    """The answer to a HEAD request is complete; the rest of the body is not wanted."""


class RequestMiddleware:
    """Wraps an API's app. `answer` turns a problem into a response in the API's own form. `strict`: whether an invalid
    `x-correlator` is refused.

    An exception handler for `Exception` would answer too, but Starlette would then raise the exception to the server,
    which would log it again, without the reference.
    """

    def __init__(
        self, app: ASGIApp, *, answer: Callable[..., Response], policies: Policies, strict: bool = False
    ) -> None:
        self._app = app
        self._policies = policies
        self._answer = answer
        self._strict = strict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        call, echoed, has_body = _read_head(scope)
        x_correlator.begin(call)
        refused = call.invalid and self._strict
        started, is_head = False, scope["method"] == "HEAD"
        if is_head:
            scope = {**scope, "method": "GET", IS_HEAD: True}

        async def send_echoed(message: Message) -> None:
            nonlocal started
            if not started:
                client = scope.get(CLIENT)
                added = [*echoed, *headers_of(self._policies, client)] if client is not None else echoed
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            started = True
            if is_head and message["type"] == "http.response.body":
                await send({"type": "http.response.body", "body": b""})
                if message.get("more_body", False):
                    raise _HeadAnsweredError
            else:
                await send(message)

        try:
            if refused:
                await self._answer(BAD_CORRELATOR)(scope, receive, send_echoed)
            else:
                await self._app(scope, _Bounded(scope, receive) if has_body else receive, send_echoed)
        except (ClientDisconnect, _HeadAnsweredError):
            return None
        except asyncio.CancelledError:  # only the server cancels, when its time to stop is over
            if started:
                raise
            await self._answer(STOPPING, headers={"connection": "close"})(scope, receive, send_echoed)
        except Exception as error:
            if started:
                raise  # too late to answer: the server ends the connection
            reference = uuid.uuid4().hex
            client = scope.get("client")
            request = {"method": scope["method"], "path": printable(scope["path"]), "peer": client[0] if client else ""}
            _log.error("unexpected_error", reference=reference, **request, exc_info=error)
            await self._answer(internal_error(reference))(scope, receive, send_echoed)


def _read_head(scope: Scope) -> tuple[XCorrelator, list[tuple[bytes, bytes]], bool]:
    """Returns the request's x-correlator, the headers that correlate the answer, and whether there may be a body."""
    sent = traceparent = ""
    has_body = False
    for name, value in scope["headers"]:
        if name == b"x-correlator":
            sent = x_correlator.joined(sent, value.decode("latin-1"))
        elif name == b"traceparent":
            traceparent = x_correlator.joined(traceparent, value.decode("latin-1"))
        elif name in (b"content-length", b"transfer-encoding"):
            has_body = True
    call = x_correlator.read(sent, traceparent)
    correlating = [(b"x-correlator", call.text.encode())]
    if traceparent and x_correlator.trace_id(traceparent):
        correlating.append((b"traceparent", traceparent.encode()))
    return call, correlating, has_body


class _Bounded:
    """`receive` for a request with a body: raises 413 once the body is too large, at once if Content-Length says so."""

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
