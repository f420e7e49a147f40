"""The middleware of every HTTP API: headers for correlation and rates, HEAD, the limit of bodies, answers to uncaught
exceptions.

Invariants: every answer returns a valid `x-correlator` and `traceparent` as received; an `x-correlator` that breaks its
pattern is refused, an invalid `traceparent` is ignored (W3C Trace Context section 3.2). At most MAX_BODY_BYTES of a
body are read. An unexpected exception is logged under a reference; the client gets the reference, never a traceback.
When the server stops and cancels a request that still runs, the client gets 503. A client that disconnected is not an
error. HEAD is answered as GET without the body; a streamed body ends before its first piece (RFC 9110 section 9.3.2).

Deliberately absent: authentication (`operation.py`) and the form of an API's errors (`problem.py`, `camara/errors.py`).
"""

import asyncio
import re
import uuid
from collections.abc import Callable

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.policies import Policies
from app.rest.operation import CLIENT
from app.rest.problem import IS_HEAD, internal_error, printable, problem
from app.rest.rate_limits import headers_of

MAX_BODY_BYTES = 1024 * 1024
"""The same limit as for a gRPC request: some 5,000 addresses of the greatest length."""

CORRELATOR_PATTERN = r"^[a-zA-Z0-9-_:;.\/<>{}]{0,256}$"
"""CAMARA's XCorrelator, used for every API here."""

_CORRELATOR = re.compile(CORRELATOR_PATTERN[1:-1].encode())
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_log = structlog.get_logger(__name__)


STOPPING = problem(
    503, "GATEWAY_STOPPING", "The gateway is stopping; send the request again, or to another gateway.", retryable=True
)
BAD_CORRELATOR = problem(
    400,
    "INVALID_REQUEST",
    f"The header x-correlator must match {CORRELATOR_PATTERN}",
    details={"field": "x-correlator"},
)


class _HeadAnsweredError(Exception):
    """The answer to a HEAD request is complete; the rest of the body is not wanted."""


class RequestMiddleware:
    """Wraps an API's app. `answer` turns a problem into a response in the API's own form.

    An exception handler for `Exception` would answer too, but Starlette would then raise the exception to the server,
    which would log it again, without the reference.
    """

    def __init__(self, app: ASGIApp, *, answer: Callable[..., Response], policies: Policies) -> None:
        self._app = app
        self._policies = policies
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        echoed, refused, has_body = _read_head(scope)
        started, is_head = False, scope["method"] == "HEAD"
        if is_head:
            scope = {**scope, "method": "GET", IS_HEAD: True}

        async def send_echoed(message: Message) -> None:
            nonlocal started
            if not started:
                client = scope.get(CLIENT)
                added = [*echoed, *headers_of(self._policies, client)] if client is not None else echoed
                if added:
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


def _read_head(scope: Scope) -> tuple[list[tuple[bytes, bytes]], bool, bool]:
    """Returns the headers to return, whether a header makes the request invalid, and whether it may have a body."""
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
