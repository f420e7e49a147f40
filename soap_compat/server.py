"""Parlay X over HTTP: an ASGI application to be mounted at /parlayx.

`POST /TerminalStatus` and `POST /TerminalStatusNotificationManager` take SOAP 1.1; `GET …?wsdl` and the files it
imports describe them, and the interface that applications implement, `GET /TerminalStatusNotification?wsdl`.

Invariants: a body is bounded in size and in the time it takes to arrive; what cannot be a SOAP request is refused
before it is read; each refusal of a POST is a SOAP fault, so that SOAP clients can show it. The address in the
WSDL is the configured one, or the one the client used, never an unchecked Host header. A caller that shows HTTP no
credentials where some are needed, or bad ones, is challenged (401, RFC 9110 section 15.5.2), since there are clients
that wait for that; one that shows a bad UsernameToken is not, for another Authorization is not what it lacks.

After a 413 a bounded amount of what still comes is read and dropped: a client that sends all before it reads would
else find its connection reset, and not the answer. A call that the server cancels, as when it stops, is a fault.

Deliberately absent: `SOAPAction` (the contract's is empty, so any is accepted), attachments, compression, threads.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from typing import Final
from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.authenticator import Authenticator, asgi_credentials
from app.auth.proxies import server_url
from app.core.queries import QueryService
from app.core.subscriptions import SubscriptionService
from app.core.usage import UsageLog
from soap_compat.documents import SERVICES, Documents
from soap_compat.envelope import BodyError
from soap_compat.faults import SoapFault, client_fault, declared_fault
from soap_compat.interface import Answer, Interface
from soap_compat.schema import INTERFACES, UseCases
from soap_compat.security import Gatekeeper

_XML: Final = b"text/xml; charset=utf-8"
_TEXT: Final = b"text/plain; charset=utf-8"
_MEDIA_TYPES: Final = {"text/xml", "application/xml"}
_SOAP_1_2: Final = "application/soap+xml"

LINGER_BYTES: Final = 20_000_000
LINGER_S: Final = 2.0
"""What is read and dropped after a 413: as much as this, for as long as this."""

_Headers = Iterable[tuple[bytes, bytes]]


class _LeftError(BodyError):
    """The client left before its request's end."""


class _RefusedError(BodyError):
    """A request that is not read to its end, or not at all."""

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
    public_url: str | None = None,
    max_body_bytes: int = 1_000_000,
    body_timeout_s: float = 10,
) -> ASGIApp:
    """Returns the Parlay X face of the use cases.

    `max_age_s` is how old a status may be that answers getStatus and getStatusForGroup; with 0 the presence server is
    asked each time, with more a live watch answers. `public_url` is the URL of the HTTP server as clients see it
    (`https://example.com`), to which the mount path is added; without it, the WSDL names the server by the Host header
    of its reader. `usage` is told of requests that the face itself refuses. `clock` gives the time in UTC.
    """
    # Spyne logs the traceback of each fault a client causes. The fault is on the wire, and ours are logged by us.
    logging.getLogger("spyne").setLevel(logging.CRITICAL)
    use_cases = UseCases(queries=queries, subscriptions=subscriptions, usage=usage, max_age_s=max_age_s)
    return _Server(use_cases, Gatekeeper(authenticator, clock=clock), public_url, max_body_bytes, body_timeout_s)


class _Server:
    def __init__(
        self,
        use_cases: UseCases,
        gatekeeper: Gatekeeper,
        public_url: str | None,
        max_body_bytes: int,
        body_timeout_s: float,
    ) -> None:
        self._interfaces = {
            name: Interface(operations, served, use_cases, gatekeeper)
            for name, (operations, served) in INTERFACES.items()
        }
        self._documents = Documents()
        self._public_url = public_url.rstrip("/") if public_url else None
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        # ASGI has root_path at the head of path, but servers in front of older applications leave it out.
        name = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/")
        interface = self._interfaces.get(name)
        if interface is not None and scope["method"] == "POST":
            await self._post(interface, scope, receive, send)
        elif name not in SERVICES and name not in self._documents:
            await _send(send, 404, _TEXT, b"There is no such service or file.\n")
        elif name in SERVICES and not _asks_for_wsdl(scope):
            if interface is None:
                help_text = f"{name} is what the application implements: GET ?wsdl for its description.\n"
                await _send(send, 404, _TEXT, help_text.encode())
            else:
                help_text = f"{name} is a SOAP 1.1 service: POST an envelope here, or GET ?wsdl for its description.\n"
                await _send(send, 405, _TEXT, help_text.encode(), [(b"allow", b"POST")])
        elif scope["method"] not in ("GET", "HEAD"):
            allowed = b"GET, HEAD" if interface is None else b"GET, HEAD, POST"
            await _send(send, 405, _TEXT, b"This method is not allowed here.\n", [(b"allow", allowed)])
        else:
            await self._get(SERVICES.get(name, name), scope, send)

    async def _get(self, name: str, scope: Scope, send: Send) -> None:
        server = self._public_url or server_url(scope)
        if server is None:
            await _send(send, 400, _TEXT, b"The Host header is not a host.\n")
            return
        base_url = server + quote(scope.get("root_path", ""))
        await _send(send, 200, _XML, self._documents.get(name, base_url))

    async def _post(self, interface: Interface, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            charset = _check_headers(headers)
            body = self._body(headers, receive)
            authenticated = scope.get("on_authenticated", lambda: None)
            caller, turn = asgi_credentials(scope), scope.get("wait_for_turn")
            answer = await interface.answer(body, charset, caller, authenticated, turn)
        except _LeftError:
            return
        except _RefusedError as refused:
            answer = interface.refuse(refused.fault)
            rest = receive if refused.more_comes else None
            await _send(send, refused.status, _XML, answer.envelope, refused.headers, rest)
            return
        except asyncio.CancelledError:  # the server does so when it stops and has waited long enough
            answer = interface.refuse(declared_fault("SVC0001", "GATEWAY_STOPPING"))
        status = 401 if answer.challenge else 500 if answer.fault else 200
        await _send(send, status, _XML, answer.envelope, _headers_of(answer))

    def _body(
        self, headers: dict[bytes, bytes], receive: Receive
    ) -> Callable[[], Coroutine[None, None, tuple[bytes, bool]]]:
        """What gives the body as it comes, and whether more does. That raises BodyError. Raises _RefusedError."""
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
                fault = client_fault(f"The request did not arrive within {self._body_timeout_s:g} s.")
                raise _RefusedError(408, fault, (b"connection", b"close")) from None
            if message["type"] == "http.disconnect":
                raise _LeftError
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size > self._max_body_bytes:
                raise self._too_large(more_comes=more)
            return chunk, more

        return more_of

    def _too_large(self, *, more_comes: bool) -> _RefusedError:
        # Without closing, the server would read the rest to keep the connection.
        fault = client_fault(f"The request is larger than {self._max_body_bytes} bytes.")
        return _RefusedError(413, fault, (b"connection", b"close"), more_comes=more_comes)


def _check_headers(headers: dict[bytes, bytes]) -> str | None:
    """Returns the charset parameter of the Content-Type (RFC 7303), or None. Raises _RefusedError."""
    media_type, _, parameters = headers.get(b"content-type", b"").decode("latin-1").lower().partition(";")
    media_type = media_type.strip()
    if media_type == _SOAP_1_2:
        raise _RefusedError(500, SoapFault("VersionMismatch", "This is a SOAP 1.1 endpoint; send text/xml."))
    if media_type not in _MEDIA_TYPES:
        multipart = "Attachments (MTOM, SwA) are not supported. " if media_type.startswith("multipart/") else ""
        raise _RefusedError(415, client_fault(f"{multipart}Send the envelope as text/xml."), (b"accept", b"text/xml"))
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding != b"identity":
        fault = client_fault("Content-Encoding is not supported; send the envelope uncompressed.")
        raise _RefusedError(415, fault, (b"accept-encoding", b"identity"))
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip() == "charset":
            return value.strip().strip("\"'")  # there are clients that use the other quotes
    return None


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
    """Sends the answer; with `linger`, reads on before the server may close the connection."""
    start = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    if linger is not None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await _discard(linger)
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _discard(receive: Receive) -> None:
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while size < LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
