"""Helpers of the SOAP tests: envelopes, one call in process, and the schemas by which answers are validated."""

import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from lxml import etree
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message

from app.auth.authenticator import Authenticator
from app.auth.credentials import Credentials
from app.core.queries import QueryService, TerminalResult
from app.core.subscription_requests import SubscriptionRequest
from app.core.subscriptions import SubscriptionService
from app.core.usage import UsageLog
from app.domain.addresses import parse_address
from app.domain.errors import (
    TerminalStatusError,
    WatcherRefused,
)
from app.domain.operations import Face
from app.domain.records import Client, UsageRecord
from app.domain.statuses import TerminalStatus
from soap_compat.faults import TEXTS
from soap_compat.server import create_app
from soap_compat.wsdl_files import SERVICES
from tests.support.fakes import ON_THE_PHONE, OPEN, FakeWatcher, make_service

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
TYPES = "http://www.csapi.org/schema/parlayx/terminal_status/v2_2"
LOCAL = f"{TYPES}/local"
MANAGER = "http://www.csapi.org/schema/parlayx/terminal_status/notification_manager/v2_3/local"
NOTIFICATION = "http://www.csapi.org/schema/parlayx/terminal_status/notification/v2_2/local"
COMMON = "http://www.csapi.org/schema/parlayx/common/v2_1"
WSDL = Path(__file__).parent.parent.parent / "soap_compat" / "wsdl"
ALICE = "sip:alice@example.com"
OWNER = Client(id="owner", name="Owner", created_at=datetime(2026, 1, 2, tzinfo=UTC))


def payload(address: str = f"<l:address>{ALICE}</l:address>", local: str = LOCAL) -> str:
    """The body of a getStatus."""
    return f'<l:getStatus xmlns:l="{local}">{address}</l:getStatus>'


def wrapped(name: str, content: str, namespace: str) -> str:
    """A wrapper element whose parts have the prefix `l`."""
    return f'<l:{name} xmlns:l="{namespace}">{content}</l:{name}>'


def envelope(body: str, header: str = "") -> str:
    """An envelope of SOAP 1.1."""
    return f'<e:Envelope xmlns:e="{SOAP}">{header}<e:Body>{body}</e:Body></e:Envelope>'


def _schemas(name: str) -> tuple[str, etree.XMLSchema]:
    (schema,) = etree.parse(WSDL / name).iter("{*}schema")
    return str(schema.get("targetNamespace")), etree.XMLSchema(
        etree.fromstring(etree.tostring(schema), base_url=f"{WSDL}/")
    )


SCHEMAS = dict(_schemas(file.replace("_service_", "_interface_")) for file in SERVICES.values())
"""The wrappers' schemas, by namespace in the served version."""
COMMON_SCHEMA = etree.XMLSchema(etree.parse(WSDL / "parlayx_common_types_2_1.xsd"))
_SERVED_VERSION = {namespace.rsplit("/v", 1)[0]: namespace for namespace in SCHEMAS}


def valid(element: etree._Element) -> None:
    """Asserts that a wrapper is valid by the served WSDL's schema. A wrapper of another version is checked as if it had
    the namespace of the WSDL's version."""
    namespace = str(etree.QName(element).namespace)
    served = _SERVED_VERSION[namespace.rsplit("/v", 1)[0]]
    text = etree.tostring(element, encoding="unicode").replace(f'"{namespace}"', f'"{served}"')
    SCHEMAS[served].assertValid(etree.fromstring(text))


def common_of(exception: etree._Element) -> str:
    """The namespace of a fault's detail."""
    return str(etree.QName(exception).namespace)


def content_of(body: bytes) -> etree._Element:
    """The element in an envelope's Body."""
    root = etree.fromstring(body)
    assert [root.tag, *(child.tag for child in root)] == [f"{{{SOAP}}}Envelope", f"{{{SOAP}}}Body"]
    (content,) = root[0]
    return content


@dataclass
class Reply:
    """An HTTP answer, with the parts of its envelope that tests look at."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> etree._Element:
        """The element in the Body."""
        return content_of(self.body)

    @property
    def result(self) -> str:
        assert self.status == 200, self.body
        return f"{etree.QName(self.content).localname}:{self.content.findtext('{*}result')}"

    @property
    def faultcode(self) -> str:
        prefix, _, code = self.content.findtext("faultcode", "").partition(":")
        assert self.content.nsmap[prefix] == SOAP
        return code

    @property
    def reason(self) -> str:
        return self.content.findtext("faultstring", "")

    @property
    def declared(self) -> tuple[str, ...]:
        """The fault detail's element, messageId and variables, after validation by the published schema."""
        assert (self.status, self.faultcode) in ((500, "Server"), (401, "Server")), self.body
        (exception,) = self.content.iterfind("detail/*")
        served = etree.tostring(exception).replace(common_of(exception).encode(), COMMON.encode())
        COMMON_SCHEMA.assertValid(etree.fromstring(served))
        assert exception.findtext("text") == TEXTS[exception.findtext("messageId", "")]
        return (
            exception.tag,
            exception.findtext("messageId", ""),
            *(v.text or "" for v in exception.iter("variables")),
        )

    @property
    def fault(self) -> str:
        """The fault's messageId and variables, joined by blanks."""
        return " ".join(self.declared[1:])


async def call(
    app: ASGIApp,
    *chunks: bytes,
    method: str = "POST",
    path: str = "/TerminalStatus",
    query: bytes = b"",
    receive: Callable[[], Awaitable[Message]] | None = None,
    certificate: Sequence[str] = (),
    **headers: str,
) -> Reply:
    """Sends one request to the application mounted at /parlayx. Underscores in header names stand for hyphens.
    Validates every answer 200 to a POST."""
    given_headers = {"host": "gateway.example", "content_type": "text/xml; charset=utf-8", "soapaction": '""'} | headers
    messages = iter(chunks or (b"",))
    left = [len(chunks) or 1]
    sent: list[Message] = []

    async def next_chunk() -> Message:
        left[0] -= 1
        return {"type": "http.request", "body": next(messages), "more_body": left[0] > 0}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "root_path": "/parlayx",
        "path": f"/parlayx{path}",
        "query_string": query,
        "headers": [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in given_headers.items()],
        "server": ("127.0.0.1", 8080),
        "client": ("127.0.0.2", 1234),
        "extensions": {"tls": {"client_cert_names": tuple(certificate)}} if certificate else {},
    }
    await app(scope, receive or next_chunk, send)
    if not sent:
        return Reply(0, {}, b"")
    start, *body = sent
    assert [part.get("more_body", False) for part in body] == [True] * (len(body) - 1) + [False]
    headers_sent = {k.decode(): v.decode() for k, v in start["headers"]}
    reply = Reply(start["status"], headers_sent, b"".join(part["body"] for part in body))
    if method == "POST" and reply.status == 200:
        valid(reply.content)
    return reply


@dataclass
class FakeUseCases:
    """Use cases with results that the test sets: `get_status_of` answers a query of one terminal, `results` answers a
    query of several, and other calls raise `raises` where it is set. Remembers requests."""

    get_status_of: Callable[[str], Awaitable[TerminalStatus]] | None = None
    results: Sequence[TerminalResult] = ()
    raises: BaseException | None = None
    asked: list[tuple[Client, Sequence[str], float, Face, str]] = field(default_factory=list)
    created: list[tuple[Client, SubscriptionRequest, Face, str]] = field(default_factory=list)
    ended: list[tuple[Client, str, Face, str]] = field(default_factory=list)

    async def get_status(
        self, client: Client, address: str, *, max_age_s: float = 0, face: Face, requester: str = ""
    ) -> TerminalStatus:
        self.asked.append((client, [address], max_age_s, face, requester))
        if self.get_status_of is None:
            raise self.raises or AssertionError("not asked for")
        return await self.get_status_of(address)

    async def query(
        self,
        client: Client,
        addresses: Sequence[str],
        *,
        max_age_s: float = 0,
        face: Face,
        requester: str = "",
        skip_invalid: bool = False,
    ) -> AsyncIterator[TerminalResult]:
        assert skip_invalid
        self.asked.append((client, addresses, max_age_s, face, requester))
        if self.raises is not None:
            raise self.raises
        for result in self.results:
            yield result

    async def create(self, client: Client, request: SubscriptionRequest, *, face: Face, requester: str = "") -> None:
        self.created.append((client, request, face, requester))
        if self.raises is not None:
            raise self.raises

    async def cancel_by_correlator(self, client: Client, correlator: str, *, face: Face, requester: str = "") -> None:
        self.ended.append((client, correlator, face, requester))
        if self.raises is not None:
            raise self.raises


class FakeUsage(UsageLog):
    """A usage log that only remembers its records."""

    def __init__(self) -> None:
        super().__init__(cast("Any", None), lambda: datetime.now(UTC), cast("Any", None))

    @property
    def records(self) -> list[UsageRecord]:
        return [record for record in self._buffer if isinstance(record, UsageRecord)]


class Everybody:
    """An authenticator that takes every caller for OWNER."""

    def known(self, authorization: str, *, confined: bool = False) -> Client:
        return OWNER

    async def authenticate(self, credentials: Credentials) -> Client:
        return OWNER


def face(
    use_cases: FakeUseCases | Callable[[str], Awaitable[TerminalStatus]], auth: object | None = None, **options: Any
) -> ASGIApp:
    """The SOAP face over use cases that a test sets; a function serves as getStatus."""
    fakes = use_cases if isinstance(use_cases, FakeUseCases) else FakeUseCases(get_status_of=use_cases)
    defaults: dict[str, Any] = {"clock": lambda: datetime.now(UTC), "usage": FakeUsage()}
    return create_app(
        cast("QueryService", fakes),
        cast("SubscriptionService", fakes),
        cast("Authenticator", auth or Everybody()),
        **(defaults | options),
    )


def make_app(watcher: FakeWatcher, **options: Any) -> ASGIApp:
    service = make_service(watcher)

    async def get_status(address: str) -> TerminalStatus:
        return await service.fetch(parse_address(address))

    return face(get_status, **options)


def app_for(answer: bytes | TerminalStatusError | None = OPEN, **options: Any) -> ASGIApp:
    return make_app(FakeWatcher(answer=lambda _: answer), **options)


@pytest.fixture
def served() -> Iterator[str]:
    """The face on a free port, served by a thread of its own: alice is on the phone, other terminals are private."""
    watcher = FakeWatcher(
        answer=lambda terminal: ON_THE_PHONE if "alice" in terminal else WatcherRefused("It is private.")
    )
    app = Starlette(routes=[Mount("/parlayx", make_app(watcher, max_body_bytes=2000))])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/parlayx/TerminalStatus"
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
