"""Parlay X over HTTP: an ASGI application to be mounted at /parlayx.

`POST /TerminalStatus` and `POST /TerminalStatusNotificationManager` accept SOAP 1.1. `GET …?wsdl` returns their WSDL,
and that of the interface that applications implement (`/TerminalStatusNotification?wsdl`), with the imported files.

Each call has its `x-correlator` (`app/domain/x_correlator.py`), which its answer returns.

Invariants: the size of a body and the time of its arrival are limited. Every refusal of a POST is a SOAP fault, which
SOAP clients can show; a request that is not SOAP is refused before its body is read. The address in the WSDL is the
configured one, or the client's checked Host header. A caller with missing or invalid HTTP credentials receives 401 (RFC
9110 section 15.5.2), which some clients wait for; a caller with an invalid UsernameToken does not, since other HTTP
credentials would not help.

After a 413 a limited amount of the body is still read and dropped: a client that sends everything before it reads would
otherwise find its connection reset. A call that the server cancels, for example when it stops, ends with a fault.

Deliberately absent: `SOAPAction` (any value is accepted), attachments, compression, threads.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from typing import Final
from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.authenticator import Authenticator
from app.auth.credentials import Credentials, asgi_credentials
from app.auth.proxies import server_url
from app.core.queries import QueryService
from app.core.subscriptions import SubscriptionService
from app.core.usage import UsageLog
from app.domain import x_correlator
from app.domain.errors import InvalidRequest
from app.domain.x_correlator import XCorrelator
from soap_compat.authentication import SoapAuthenticator
from soap_compat.content_type import read_content_type
from soap_compat.faults import SoapFault, client_fault
from soap_compat.interface import Answer, Interface
from soap_compat.operations import INTERFACES, UseCases
from soap_compat.request_envelope import BodyError
from soap_compat.wsdl_files import SERVICES, WsdlFiles, etag_of, is_current
from soap_compat.xml_input import clip

_XML: Final = b"text/xml; charset=utf-8"
_TEXT: Final = b"text/plain; charset=utf-8"
_MEDIA_TYPES: Final = {"text/xml", "application/xml"}
_SOAP_1_2: Final = "application/soap+xml"
_CACHE: Final = b"public, max-age=3600"
"""Clients load a description at each start; its address changes only with the operator's settings."""

LINGER_BYTES: Final = 20_000_000
LINGER_S: Final = 2.0
"""How much of a body is read and dropped after a 413, and for how long."""

_Headers = Iterable[tuple[bytes, bytes]]


class _DisconnectedError(BodyError):
    """The client disconnected before the end of its request."""


class _RefusedError(BodyError):
    """A request that is refused without being read to its end."""

    def __init__(self, status: int, fault: SoapFault, *headers: tuple[bytes, bytes], more_comes: bool = False) -> None:
        self.status = status
        self.fault = fault
        self.headers = headers
        self.more_comes = more_comes


def create_app(
    queries: QueryService,
    subscriptions: SubscriptionService,
    authenticator: Authenticator,
    *,
    usage: UsageLog,
    clock: Callable[[], datetime],
    max_age_s: float = 0,
    tel_context: str = "",
    public_url: str | None = None,
    max_body_bytes: int = 1_000_000,
    body_timeout_s: float = 10,
) -> ASGIApp:
    """Returns the ASGI application.

    `max_age_s` is the greatest age of a status that getStatus and getStatusForGroup return: with 0 they always ask the
    presence server, above 0 a live watch may answer. `tel_context` is put before telephone numbers that have neither a
    plus nor a phone-context; with "" they are invalid. `public_url` is the URL of the HTTP server as clients see it
    (`https://example.com`), to which the mount path is added; without it, the WSDL has the client's Host header.
    `usage` records requests that are refused before a use case is called. `clock` returns the time in UTC.
    """
    # Spyne would log a traceback for each fault that a client causes; our own defects are logged in `interface.py`.
    logging.getLogger("spyne").setLevel(logging.CRITICAL)
    use_cases = UseCases(
        queries=queries, subscriptions=subscriptions, usage=usage, max_age_s=max_age_s, tel_context=tel_context
    )
    return _Server(use_cases, SoapAuthenticator(authenticator, clock=clock), public_url, max_body_bytes, body_timeout_s)


class _Server:
    def __init__(
        self,
        use_cases: UseCases,
        authenticator: SoapAuthenticator,
        public_url: str | None,
        max_body_bytes: int,
        body_timeout_s: float,
    ) -> None:
        self._interfaces = {
            name: Interface(operations, served, use_cases, authenticator)
            for name, (operations, served) in INTERFACES.items()
        }
        self._wsdl_files = WsdlFiles()
        self._public_url = public_url.rstrip("/") if public_url else None
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        x_correlator.begin(_x_correlator_of(scope["headers"]))
        # By ASGI, `path` begins with `root_path`, but some servers leave it out.
        name = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/")
        interface = self._interfaces.get(name)
        if interface is not None and scope["method"] == "POST":
            await self._post(interface, scope, receive, send)
        elif name not in SERVICES and name not in self._wsdl_files:
            await _send(send, 404, _TEXT, b"There is no such service or file here.\n")
        elif name in SERVICES and not _asks_for_wsdl(scope):
            if interface is None:
                help_text = f"Applications implement {name}; GET ?wsdl returns its description.\n"
                await _send(send, 404, _TEXT, help_text.encode())
            else:
                help_text = f"{name} is a SOAP 1.1 service: POST an envelope, or GET ?wsdl for its description.\n"
                await _send(send, 405, _TEXT, help_text.encode(), [(b"allow", b"POST")])
        elif scope["method"] not in ("GET", "HEAD"):
            allowed = b"GET, HEAD" if interface is None else b"GET, HEAD, POST"
            await _send(
                send,
                405,
                _TEXT,
                b"This HTTP method is not allowed here; see the Allow header.\n",
                [(b"allow", allowed)],
            )
        else:
            await self._get(SERVICES.get(name, name), scope, send)

    async def _get(self, name: str, scope: Scope, send: Send) -> None:
        server = self._public_url or server_url(scope)
        if server is None:
            await _send(send, 400, _TEXT, b"The Host header is not a valid host.\n")
            return
        base_url = server + quote(scope.get("root_path", ""))
        file = self._wsdl_files.get(name, base_url)
        validators = [(b"etag", etag_of(file)), (b"cache-control", _CACHE)]
        if is_current(_joined(scope["headers"], b"if-none-match"), etag_of(file)):
            await _start(send, 304, validators)
            await send({"type": "http.response.body", "body": b""})
        else:
            await _send(send, 200, _XML, file, validators)

    async def _post(self, interface: Interface, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            charset = _check_headers(scope["headers"])
            body = self._body(headers, receive)
            on_authenticated = scope.get("on_authenticated", lambda: None)
            caller, wait_for_turn = _credentials(scope), scope.get("wait_for_turn")
            answer = await interface.answer(body, charset, caller, on_authenticated, wait_for_turn)
        except _DisconnectedError:
            return
        except _RefusedError as refused:
            answer = interface.refuse(refused.fault)
            rest = receive if refused.more_comes else None
            await _send(send, refused.status, _XML, answer.envelope, refused.headers, rest)
            return
        status = 401 if answer.challenge else 500 if answer.fault else 200
        await _send(send, status, _XML, answer.envelope, _headers_of(answer))

    def _body(
        self, headers: dict[bytes, bytes], receive: Receive
    ) -> Callable[[], Coroutine[None, None, tuple[bytes, bool]]]:
        """Returns the function that returns the next bytes of the body, and whether more follow; it raises BodyError.

        Raises _RefusedError for an announced length above the limit.
        """
        announced = int(headers.get(b"content-length", b"0"))
        if announced > self._max_body_bytes:
            raise self._too_large(more_comes=announced <= LINGER_BYTES)
        due = asyncio.get_running_loop().time() + self._body_timeout_s
        size = 0

        async def more_of() -> tuple[bytes, bool]:
            nonlocal size
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                fault = client_fault(f"The request did not arrive within {self._body_timeout_s:g} s; send it faster.")
                raise _RefusedError(408, fault, (b"connection", b"close")) from None
            if message["type"] == "http.disconnect":
                raise _DisconnectedError
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size > self._max_body_bytes:
                raise self._too_large(more_comes=more)
            return chunk, more

        return more_of

    def _too_large(self, *, more_comes: bool) -> _RefusedError:
        # If the connection were kept, the server would read the rest.
        fault = client_fault(f"The request is larger than {self._max_body_bytes} bytes; send fewer addresses.")
        return _RefusedError(413, fault, (b"connection", b"close"), more_comes=more_comes)


def _credentials(scope: Scope) -> Credentials:
    """Returns the caller's HTTP credentials. Raises _RefusedError."""
    try:
        return asgi_credentials(scope)
    except InvalidRequest as error:
        raise _RefusedError(400, client_fault(str(error))) from None


def _check_headers(lines: _Headers) -> str | None:
    """Returns the charset parameter of the Content-Type (RFC 7303), or None. Raises _RefusedError."""
    media_types, charsets = read_content_type(_joined(lines, b"content-type"))
    if media_types == (_SOAP_1_2,):
        raise _RefusedError(500, SoapFault("VersionMismatch", "This is a SOAP 1.1 endpoint; send text/xml."))
    if not media_types or not _MEDIA_TYPES.issuperset(media_types):
        multipart = any(each.startswith("multipart/") for each in media_types)
        attachments = "Attachments (MTOM, SwA) are not supported. " if multipart else ""
        raise _RefusedError(415, client_fault(f"{attachments}Send the envelope as text/xml."), (b"accept", b"text/xml"))
    coding = _joined(lines, b"content-encoding").strip().lower()
    if coding not in ("", "identity"):
        fault = client_fault("Content-Encoding is not supported; send the envelope uncompressed.")
        raise _RefusedError(415, fault, (b"accept-encoding", b"identity"))
    if len(charsets) > 1:
        named = clip(" and ".join(charsets))
        fault = client_fault(f"The Content-Type names different charsets, {named}; send one.")
        raise _RefusedError(415, fault, (b"accept", b"text/xml"))
    return charsets[0] if charsets else None


def _x_correlator_of(lines: _Headers) -> XCorrelator:
    sent = traceparent = ""
    for name, value in lines:
        if name == b"x-correlator":
            sent = x_correlator.joined(sent, value.decode("latin-1"))
        elif name == b"traceparent":
            traceparent = x_correlator.joined(traceparent, value.decode("latin-1"))
    return x_correlator.read(sent, traceparent)


def _joined(lines: _Headers, name: bytes) -> str:
    """The values of all lines of a header, joined by commas (RFC 9110 section 5.3)."""
    return ", ".join([value.decode("latin-1") for key, value in lines if key == name])


def _asks_for_wsdl(scope: Scope) -> bool:
    query: bytes = scope["query_string"]
    return query.partition(b"&")[0].partition(b"=")[0].lower() == b"wsdl"


def _headers_of(answer: Answer) -> _Headers:
    headers = []
    if answer.challenge:
        headers.append((b"www-authenticate", b'Basic realm="Parlay X", charset="UTF-8"'))
    if answer.retry_after_s is not None:
        headers.append((b"retry-after", str(answer.retry_after_s).encode()))
    return headers


async def _send(
    send: Send, status: int, content_type: bytes, body: bytes, headers: _Headers = (), linger: Receive | None = None
) -> None:
    """Sends the answer. With `linger`, reads and drops more of the body before the server closes the connection."""
    described = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await _start(send, status, [*described, *headers])
    if linger is not None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await _discard(linger)
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, headers: _Headers) -> None:
    correlation = b"x-correlator", x_correlator.current_text().encode()
    await send({"type": "http.response.start", "status": status, "headers": [*headers, correlation]})


async def _discard(receive: Receive) -> None:
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while size < LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
