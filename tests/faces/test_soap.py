"""The Parlay X face: exact answers, every fault, hostile requests, and a client stub made from the WSDL."""

import asyncio
import gc
import logging
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from starlette.types import Message

from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    AddressIsList,
    DocumentUnreadable,
    FetchTimedOut,
    GatewayOverloaded,
    InvalidAddress,
    PresenceMisconfigured,
    PresenceUnavailable,
    TerminalStatusError,
    TerminalUnknown,
    WatcherRefused,
    WatcherRestarting,
    WatcherUnauthenticated,
)
from app.domain.statuses import Source, Status, TerminalStatus
from soap_compat.content_type import read_content_type
from soap_compat.contract_types import STATUS_WORDS
from soap_compat.faults import FAULTS, TEXTS, SoapFault
from soap_compat.request_envelope import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_TAG_BYTES,
    SLICE_BYTES,
    SLICES_PER_STEP,
    RequestEnvelope,
)
from tests.support.fakes import ON_THE_PHONE, OPEN, FakeWatcher
from tests.support.soap import (
    ALICE,
    COMMON,
    LOCAL,
    MANAGER,
    SOAP,
    TYPES,
    app_for,
    call,
    envelope,
    face,
    make_app,
    payload,
    served,
    valid,
    wrapped,
)
from tests.support.soap_requests import common_in

__all__ = ["served"]  # a fixture

GET_STATUS = envelope(payload()).encode()


# --- the wire


@pytest.mark.parametrize(
    ("document", "word"), [(OPEN, "Reachable"), (b"", "Unreachable"), (ON_THE_PHONE, "Busy")], ids=STATUS_WORDS.values()
)
async def test_result(document: bytes, word: str) -> None:
    """A status is answered in a wrapper and a `result`, both namespace-qualified, and valid by the published schema."""
    valid(etree.fromstring(payload()))
    reply = await call(app_for(document), GET_STATUS)
    valid(reply.content)
    (result,) = reply.content
    assert (reply.content.tag, result.tag, result.text) == (
        f"{{{LOCAL}}}getStatusResponse",
        f"{{{LOCAL}}}result",
        word,
    )
    assert (reply.status, reply.headers["content-type"]) == (200, "text/xml; charset=utf-8")
    assert reply.headers["content-length"] == str(len(reply.body))


@pytest.mark.parametrize("version", ["v2_0", "v2_2", "v2_3", "v2_10", "v3_0", "v3_1"])
async def test_dialect(version: str) -> None:
    """Any 2.x or 3.x request is answered in its own version, results and faults alike."""
    local, common = LOCAL.replace("v2_2", version), common_in(version)
    body = envelope(payload(local=local)).encode()
    reply = await call(app_for(), body)
    assert {element.tag for element in reply.content.iter()} == {f"{{{local}}}getStatusResponse", f"{{{local}}}result"}
    assert LOCAL.encode() not in reply.body or local == LOCAL
    refused = await call(app_for(WatcherRefused("No.")), body)
    assert refused.declared == (f"{{{common}}}PolicyException", "POL0002", ALICE)


@pytest.mark.parametrize(
    "address",
    [
        f"<address>{ALICE}</address>",
        f'<t:address xmlns:t="{TYPES}">{ALICE}</t:address>',
        f"<l:requester>sip:app@example.com</l:requester><l:address>{ALICE}</l:address>",
        f"<l:address>\n  {ALICE}\t</l:address>",
        "<l:address>sip:<!-- who? -->alice<?pi?>@<![CDATA[example]]>&#46;com</l:address>",
        f'<l:address xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="xsd:anyURI">{ALICE}</l:address>',
        f'<l:address xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:nil="false">{ALICE}</l:address>',
        f'<l:address address="sip:mallory@example.com" id="a">{ALICE}</l:address>',
    ],
)
async def test_lenient(address: str) -> None:
    """Requests with other qualification of parts, or with elements unknown to the contract, are accepted."""
    watcher = FakeWatcher()
    reply = await call(make_app(watcher), envelope(payload(address)).encode())
    assert (reply.result, watcher.asked) == ("getStatusResponse:Reachable", [ALICE])


@pytest.mark.parametrize("action", ["", '""', '"getStatus"', "http://www.csapi.org/anything"])
async def test_soap_action(action: str) -> None:
    """The SOAPAction header is ignored."""
    assert (await call(app_for(), GET_STATUS, soapaction=action)).status == 200


@pytest.mark.parametrize(
    ("text", "encoding", "content_type"),
    [
        ("", "utf-8", "text/xml"),
        ("", "utf-8", 'application/xml; action=x; CHARSET="UTF-8"'),
        ("", "utf-8-sig", "text/xml; charset=utf-8"),
        ("", "utf-16", "text/xml"),
        ('<?xml version="1.0" encoding="UTF-16"?>', "utf-16", "text/xml; charset=utf-16"),
        ('<?xml version="1.0" encoding="UTF-16"?>', "utf-16", "text/xml; charset=utf-8"),
        ("", "utf-16-le", "text/xml; charset=utf-16le"),
        ('<?xml version="1.0" encoding="UTF-8"?>', "iso-8859-1", "text/xml; charset=ISO-8859-1"),
        ('<?xml version="1.0" encoding="ISO-8859-1"?>', "iso-8859-1", "text/xml"),
        ("", "utf-8", "text/xml; charset=UTF8"),
        ("", "utf-8", "text/xml; charset='utf-8'"),
        ("", "utf-16", "text/xml; charset=utf16"),
        ("", "iso-8859-1", "text/xml; charset=latin1"),
        ("", "iso-8859-1", "text/xml;charset=ISO8859-1"),
        ("", "windows-1252", "text/xml; charset=Windows-1252"),
        ('<?xml version="1.0" encoding="windows-1252"?>', "windows-1252", "text/xml"),
        ('<?xml version="1.0" encoding="cp1252"?>', "windows-1252", "text/xml"),
        ('<?xml version="1.0" encoding="latin1"?>', "iso-8859-1", "text/xml"),
        ('<?xml version="1.0" encoding="utf8"?>', "utf-8", "text/xml"),
        ('<?xml version="1.0" encoding="UTF8" standalone="yes"?>', "utf-8-sig", "text/xml"),
        ("", "utf-8", "text/xml; charset="),
        ("", "utf-8", 'text/xml; charset=""'),
        ("", "utf-8", "text/xml;charset= ;"),
        ('<?xml version="1.0" encoding="ISO-8859-1"?>', "iso-8859-1", "text/xml; charset="),
        ("", "utf-8", "text/xml; charset=utf-8, text/xml; charset=utf-8"),
        ("", "iso-8859-1", "text/xml, text/xml; charset=ISO-8859-1"),
        ("", "iso-8859-1", "text/xml; charset=iso-8859-1,text/xml"),
        ("", "iso-8859-1", "text/xml; charset=iso-8859-1; charset=ISO-8859-1"),
        ("", "iso-8859-1", 'text/xml; charset="iso-8859-1", application/xml; charset='),
        ("", "iso-8859-1", "text/xml; charset=iso-8859-1, iso-8859-1"),
        ("", "utf-8", 'application/xml; action="x;charset=utf-16,text/plain"; charset=utf-8'),
    ],
)
async def test_encoding(text: str, encoding: str, content_type: str) -> None:
    """A byte order mark takes precedence over the charset parameter, which takes precedence over the XML declaration
    (RFC 7303)."""
    asked = []

    async def get_status(address: str, client_id: str = "") -> TerminalStatus:
        asked.append(address)
        raise InvalidAddress("No.")

    body = (text + envelope(payload("<l:address>sip:jörg@example.com</l:address>"))).encode(encoding)
    await call(face(get_status), body, content_type=content_type)
    assert asked == ["sip:jörg@example.com"]


@pytest.mark.parametrize(
    ("content_type", "status", "code", "words"),
    [
        ("text/xml; charset=utf-8, text/xml; charset=iso-8859-1", 415, "Client", "different charsets"),
        ("text/xml; charset=utf-8; charset=utf-16", 415, "Client", "different charsets"),
        ("text/xml, application/json", 415, "Client", "text/xml"),
        ("multipart/related; type=text/xml, text/xml", 415, "Client", "Attachments"),
        ("application/soap+xml; charset=", 500, "VersionMismatch", "SOAP 1.1"),
        (";charset=utf-8", 415, "Client", "text/xml"),
        ("", 415, "Client", "text/xml"),
    ],
)
async def test_content_types_that_contradict_each_other(content_type: str, status: int, code: str, words: str) -> None:
    """A Content-Type that has no one meaning is refused, and named (RFC 9110 section 8.3)."""
    reply = await call(app_for(), GET_STATUS, content_type=content_type)
    assert (reply.status, reply.faultcode) == (status, code)
    assert words in reply.reason


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_content_type(header: str) -> None:
    """Whatever the header, its values are read in lower case, each once."""
    media_types, charsets = read_content_type(header)
    assert all(value == value.lower() for value in (*media_types, *charsets))
    assert len({*media_types}) == len(media_types)
    assert "" not in charsets


def test_no_soap_of_spyne() -> None:
    """The face does not load Spyne's Soap11 (docs/decisions.md has the reasons)."""
    program = "import sys, soap_compat.server; print(*[each for each in sys.modules if each.startswith('spyne.')])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = ran.stdout.split()
    assert "spyne.protocol" in loaded
    assert not [each for each in loaded if each.startswith("spyne.protocol.soap")]


async def test_calls_overlap() -> None:
    """A call that waits for the presence server does not delay other calls."""
    barrier = asyncio.Barrier(3)

    async def get_status(address: str, client_id: str = "") -> TerminalStatus:
        await barrier.wait()
        return TerminalStatus(
            address=TerminalAddress(address),
            status=Status.BUSY,
            observed_at=datetime.now(UTC),
            source=Source.FETCH,
        )

    app = face(get_status)
    async with asyncio.timeout(10):
        replies = await asyncio.gather(*(call(app, GET_STATUS) for _ in range(3)))
    assert [reply.result for reply in replies] == ["getStatusResponse:Busy"] * 3


# --- faults


def domain_errors(error: type[TerminalStatusError] = TerminalStatusError) -> Iterator[type[TerminalStatusError]]:
    for subclass in error.__subclasses__():
        if subclass.__module__.startswith("app."):
            yield subclass
        yield from domain_errors(subclass)


def test_tables_are_total() -> None:
    """Every domain error has a fault with a known text, and every status has a word."""
    assert set(FAULTS) == set(domain_errors())
    assert {message_id for message_id, _ in FAULTS.values()} <= set(TEXTS)
    assert set(STATUS_WORDS) == set(Status)


GET_STATUS_ERRORS = (
    InvalidAddress,
    TerminalUnknown,
    AddressIsList,
    WatcherRefused,
    WatcherUnauthenticated,
    FetchTimedOut,
    PresenceUnavailable,
    WatcherRestarting,
    GatewayOverloaded,
    PresenceMisconfigured,
    DocumentUnreadable,
)


@pytest.mark.parametrize("error", GET_STATUS_ERRORS, ids=lambda error: error.code)
async def test_domain_error(error: type[TerminalStatusError]) -> None:
    """A domain error is a declared fault: the text keeps its placeholder, and the variable is a separate element."""
    expected = {
        "INVALID_ADDRESS": ("ServiceException", "SVC0002", "address"),
        "TERMINAL_UNKNOWN": ("ServiceException", "SVC0004", "address"),
        "ADDRESS_IS_LIST": ("ServiceException", "SVC0002", "address"),
        "WATCHER_REFUSED": ("PolicyException", "POL0002", ALICE),
        "WATCHER_UNAUTHENTICATED": ("PolicyException", "POL0002", ALICE),
    }.get(error.code, ("ServiceException", "SVC0001", error.code))
    reply = await call(app_for(error("Said \x00 plainly.")), GET_STATUS)
    assert reply.declared == (f"{{{COMMON}}}{expected[0]}", *expected[1:])
    assert reply.reason.startswith(f"{expected[1]}: ")
    assert "%1" not in reply.reason
    assert (
        reply.reason.endswith(f"{expected[2]}. Said \ufffd plainly.")
        or error is WatcherRefused
        or "POL" in (expected[1])
    )
    assert "retry-after" not in reply.headers


@pytest.mark.parametrize(("retry_after_s", "header"), [(0, "0"), (0.2, "1"), (5, "5"), (59.5, "60")])
async def test_retry_after(retry_after_s: float, header: str) -> None:
    """A known time to wait is reported in whole seconds, rounded up."""
    reply = await call(app_for(PresenceUnavailable("Later.", retry_after_s=retry_after_s)), GET_STATUS)
    assert reply.declared[1:] == ("SVC0001", "PRESENCE_UNAVAILABLE")
    assert reply.headers["retry-after"] == header


async def test_unexpected_error() -> None:
    """An unexpected exception is SVC0001 with a reference that is also in the log, and no other detail."""

    async def get_status(address: str, client_id: str = "") -> TerminalStatus:
        raise RuntimeError("a secret")

    with structlog.testing.capture_logs() as logs:
        reply = await call(face(get_status), GET_STATUS)
    (entry,) = logs
    assert reply.declared == (f"{{{COMMON}}}ServiceException", "SVC0001", entry["reference"])
    assert (entry["event"], entry["operation"], entry["exc_info"]) == ("soap_call_failed", "getStatus", True)
    assert b"secret" not in reply.body
    assert b"Error" not in reply.body.replace(b"Error code", b"")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "<l:address/>",
        "<l:address> \n </l:address>",
        f"<l:address>{ALICE}</l:address><l:address>{ALICE}</l:address>",
        f"<l:address>{ALICE}</l:address><address>{ALICE}</address>",
        f"<l:address><l:address>{ALICE}</l:address></l:address>",
        f"<l:address>{ALICE}<b/></l:address>",
        f"<l:addresses>{ALICE}</l:addresses>",
        '<l:address xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:nil="true"/>',
        "<l:address>alice</l:address>",
        "<l:address>sip:al ice@example.com</l:address>",
        f"<l:address>{'a' * 500_000}</l:address>",
    ],
    ids=lambda address: address[:60],
)
async def test_invalid_address(address: str) -> None:
    """An address that is missing, repeated, nested, empty or invalid is SVC0002 with the name of the part."""
    watcher = FakeWatcher()
    reply = await call(make_app(watcher), envelope(payload(address)).encode())
    assert reply.declared == (f"{{{COMMON}}}ServiceException", "SVC0002", "address")
    assert watcher.asked == []
    assert len(reply.body) < 2000


# --- malformed requests


def numbered(name: str, count: int) -> str:
    """Attributes with these names."""
    return "".join(f'{name}{number}="u"' for number in range(count))


BOMB = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
NOT_UNDERSTOOD = {
    "nothing": b"",
    "text": b"Is alice there?",
    "json": b'{"address": "sip:alice@example.com"}',
    "binary": bytes(range(256)),
    "cut": GET_STATUS[:-10],
    "twice": GET_STATUS * 2,
    "unbound prefix": envelope("<x:getStatus/>").encode(),
    "html": b"<html><body>getStatus</body></html>",
    "invalid utf-8": GET_STATUS.replace(b"alice", b"\xff\xfe"),
    "doctype": b"<!DOCTYPE e>" + GET_STATUS,
    "external dtd": b'<!DOCTYPE e SYSTEM "http://127.0.0.1:1/e.dtd">' + GET_STATUS,
    "external entity": b'<!DOCTYPE e [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + GET_STATUS.replace(b"sip:", b"&a;"),
    "entity bomb": f'<!DOCTYPE e [<!ENTITY a "lol">{BOMB}]>{envelope(payload("<l:address>&i;</l:address>"))}'.encode(),
    "undeclared entity": GET_STATUS.replace(b"sip:", b"&a;"),
    "deep": envelope("<a>" * 100_000 + "</a>" * 100_000).encode(),
    "many": envelope(payload("<a/>" * MAX_ELEMENTS)).encode(),
    "many headers": envelope(payload(), f"<e:Header>{'<a/>' * MAX_ELEMENTS}</e:Header>").encode(),
    "many attributes": envelope(payload(f"<a{numbered(' b', 900)}/>" * 100)).encode(),
    "long name": envelope(payload(f"<{'a' * 1000}/>")).encode(),
    "long attribute": envelope(payload(f'<a {"a" * 1000}=""/>')).encode(),
    "long prefix": envelope(payload(f'<a xmlns:{"a" * 1000}="u"/>')).encode(),
    "long namespace": envelope(payload('<a xmlns="' + "a" * 1000 + '"/>')).encode(),
    "long tag": envelope(payload(f'<a b="{"a" * 40_000}"/>')).encode(),
    "no Body": f'<e:Envelope xmlns:e="{SOAP}"/>'.encode(),
    "empty Body": envelope("").encode(),
    "two in Body": envelope(payload() * 2).encode(),
    "unknown operation": envelope(f'<l:getLocation xmlns:l="{LOCAL}"/>').encode(),
    "part as operation": envelope(f'<l:address xmlns:l="{LOCAL}"/>').encode(),
    "another interface": envelope(wrapped("getStatus", "", MANAGER)).encode(),
    "another interface's operation": envelope(wrapped("startNotification", "", LOCAL)).encode(),
    "version 4": envelope(payload(local=LOCAL.replace("v2_2", "v4_0"))).encode(),
    "version at length": envelope(payload(local=LOCAL.replace("v2_2", "v2_" + "2" * 10_000))).encode(),
    "another service": envelope(payload(local=LOCAL.replace("terminal_status", "terminal_location"))).encode(),
    "a fault": envelope(f'<e:Fault xmlns:e="{SOAP}"><faultcode>e:Client</faultcode></e:Fault>').encode(),
}


@pytest.mark.parametrize("body", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD.keys())
async def test_not_understood(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A malformed request gets a short soap:Client fault without detail and without a log line; the next request is
    answered."""
    watcher = FakeWatcher()
    app = make_app(watcher)
    with structlog.testing.capture_logs() as logs, caplog.at_level(logging.INFO):
        reply = await call(app, body)
    assert (reply.status, reply.faultcode, reply.content.find("detail")) == (500, "Client", None)
    assert len(reply.body) < 2000
    assert (watcher.asked, logs, caplog.records) == ([], [], [])
    assert (await call(app, GET_STATUS)).result == "getStatusResponse:Reachable"


async def read_of(body: bytes) -> tuple[int, str]:
    """How many bytes of an envelope are read, in pieces of 4,096 bytes, and the fault that ends the reading ("" without
    a fault)."""
    pieces = 0

    async def more_of() -> tuple[bytes, bool]:
        nonlocal pieces
        at = pieces * SLICE_BYTES
        pieces += 1
        return body[at : at + SLICE_BYTES], at + SLICE_BYTES < len(body)

    try:
        await RequestEnvelope().read(more_of)
    except SoapFault as fault:
        return pieces, fault.faultstring
    return pieces, ""


LONG = "n" * 400_000
EXPENSIVE = {
    "long namespace": envelope(f"<a xmlns:n='{LONG}'>{'<n:b/>' * 19_000}</a>"),
    "long namespace of attributes": envelope(f"<a xmlns:n='{LONG}'><a{numbered(' n:b', 100)}/></a>"),
    "one tag": envelope(f"<a{numbered(' b', 50_000)}/>"),
    "one tag of namespaces": envelope(f"<a{numbered(' xmlns:b', 50_000)}/>"),
    "one name": envelope(f"<{LONG}/>"),
    "one comment": envelope(f"<!--{LONG}-->"),
    "one value": envelope(f"<a b='{LONG}'/>"),
}


@pytest.mark.parametrize("body", EXPENSIVE.values(), ids=EXPENSIVE.keys())
async def test_expensive_envelopes(body: str) -> None:
    """Expat's work for one tag, and its output for each name, are bounded: an envelope that exceeds a bound is refused
    before the next tag is read."""
    pieces, fault = await read_of(body.encode())
    assert "longer than" in fault
    assert pieces <= MAX_TAG_BYTES // SLICE_BYTES + 2


async def test_text_has_no_bound_but_the_body() -> None:
    """The bound of tags does not apply to text, CDATA or many small tags."""
    for content in (LONG, f"<![CDATA[{LONG}]]>", "<a>&lt;</a>" * 10_000, "<!-- -->" * 10_000):
        for encoding in ("utf-8", "utf-16"):
            assert (await read_of(envelope(f"<a>{content}</a>").encode(encoding)))[1] == ""


async def test_others_run_while_an_envelope_is_read() -> None:
    """While an envelope is read, other tasks run every few thousand bytes."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    body = envelope(f"<a>{'<b/>' * 19_000}{LONG}</a>").encode()
    await RequestEnvelope().read(_at_once(body))
    running.cancel()
    assert turns >= len(body) // (SLICE_BYTES * SLICES_PER_STEP)


def _at_once(body: bytes) -> Callable[[], Awaitable[tuple[bytes, bool]]]:
    async def more_of() -> tuple[bytes, bool]:
        return body, False

    return more_of


@pytest.mark.parametrize(
    ("encoding", "content_type"),
    [("idna", "text/xml"), ("undefined", "text/xml"), ("utf-8", "text/xml; charset=utf-7"), ("", "text/xml; charset=")],
)
async def test_unknown_encoding(encoding: str, content_type: str) -> None:
    """Only the encodings of a short list are read, so that a caller cannot choose among all of Python's codecs."""
    body = f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + GET_STATUS
    reply = await call(app_for(), body, content_type=content_type)
    assert (reply.status, reply.faultcode) == (500, "Client")


@pytest.mark.parametrize(("body", "shown"), [(b'<y xmlns="u"/>', " {u}y."), (b"<html/>", " html.")])
async def test_root_is_named(body: bytes, shown: str) -> None:
    """A request without an envelope is answered with the full name of its root element."""
    assert (await call(app_for(), body)).reason.endswith(shown)


@pytest.mark.parametrize("name", ["unknown operation", "part as operation", "another service", "empty Body"])
async def test_operations_are_named(name: str) -> None:
    """A request for an unknown operation is answered with the names of the existing operations."""
    assert "getStatus, getStatusForGroup." in (await call(app_for(), NOT_UNDERSTOOD[name])).reason


@pytest.mark.parametrize("content_type", ["text/xml; charset=utf-8", "application/soap+xml; charset=utf-8"])
async def test_soap_1_2(content_type: str) -> None:
    """SOAP 1.2 gets a VersionMismatch in an envelope of SOAP 1.1 (SOAP 1.2 appendix A)."""
    body = GET_STATUS.replace(SOAP.encode(), b"http://www.w3.org/2003/05/soap-envelope")
    reply = await call(app_for(), body, content_type=content_type)
    assert (reply.status, reply.faultcode) == (500, "VersionMismatch")


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ("", None),
        ('e:mustUnderstand="0"', None),
        ('mustUnderstand="1"', None),
        ('e:mustUnderstand="1" e:actor="http://example.com/another-node"', None),
        ('e:mustUnderstand="1"', "MustUnderstand"),
        ('e:mustUnderstand="true"', "MustUnderstand"),
        ('e:mustUnderstand="1" e:actor="http://schemas.xmlsoap.org/soap/actor/next"', "MustUnderstand"),
    ],
)
async def test_must_understand(attributes: str, code: str | None) -> None:
    """A header is ignored unless it addresses this node and has mustUnderstand (SOAP 1.1 section 4.2.3)."""
    header = f'<e:Header><x:Session xmlns:x="urn:x" {attributes}><x:id e:mustUnderstand="1"/></x:Session></e:Header>'
    reply = await call(app_for(), envelope(payload(), header).encode())
    if code is None:
        assert reply.result == "getStatusResponse:Reachable"
    else:
        assert (reply.status, reply.faultcode) == (500, code)
        assert " {urn:x}Session " in reply.reason


async def test_strangers_names_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name from a request reaches libxml2, which would keep it until the process ends."""
    app = app_for()
    body = envelope(payload(f"<mine a='1'/><l:address>{ALICE}</l:address><other b='2'/>")).encode()
    with monkeypatch.context() as patched:
        for name in ("Element", "SubElement", "fromstring", "XML", "parse", "XMLParser"):
            patched.setattr(f"lxml.etree.{name}", None)
        answers: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        async def send(message: Message) -> None:
            answers.append(message)

        headers = [(b"content-type", b"text/xml")]
        scope = {"type": "http", "method": "POST", "path": "/TerminalStatus", "query_string": b"", "headers": headers}
        await app(scope, receive, send)
    assert b"Reachable" in answers[1]["body"]


async def test_depth_is_bounded_not_below_need() -> None:
    """The bounds leave room for elements that are ignored."""
    filler = "<a>" * (MAX_DEPTH - 3) + "</a>" * (MAX_DEPTH - 3)
    body = envelope(payload(f"{filler}<address>{ALICE}</address>" + "<b/>" * (MAX_ELEMENTS - 50))).encode()
    assert (await call(app_for(), body)).result == "getStatusResponse:Reachable"


@given(
    body=st.binary(max_size=200) | st.binary(max_size=40).map(lambda noise: GET_STATUS[:150] + noise + GET_STATUS[150:])
)
def test_any_bytes(body: bytes) -> None:
    """Any bytes get a result or a fault, and never an unexpected exception."""
    with structlog.testing.capture_logs() as logs:
        reply = asyncio.run(call(app_for(), body))
    assert reply.status in (200, 500)
    assert logs == []
    assert reply.content is not None


@given(address=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=80))
def test_any_text(address: str) -> None:
    """Any text as address is either asked about or SVC0002."""
    element = etree.Element("address")
    element.text = address
    body = envelope(payload(etree.tostring(element, encoding="unicode"))).encode()
    reply = asyncio.run(call(app_for(), body))
    assert reply.status == 200 or reply.declared[1:] == ("SVC0002", "address")


async def test_calls_leave_no_garbage() -> None:
    """Calls, faults included, are freed when they end, without waiting for the cycle collector."""
    app, bodies = app_for(), [GET_STATUS, envelope(payload("")).encode(), b"<a/>"]
    for body in bodies:
        await call(app, body)
    gc.collect()
    gc.disable()
    try:
        for body in bodies * 20:
            await call(app, body)
        assert gc.collect() < 20
    finally:
        gc.enable()


# --- HTTP


@pytest.mark.parametrize(
    ("headers", "status", "word"),
    [
        ({"content_type": ""}, 415, "text/xml"),
        ({"content_type": "application/x-www-form-urlencoded"}, 415, "text/xml"),
        ({"content_type": "application/json"}, 415, "text/xml"),
        ({"content_type": 'multipart/related; type="application/xop+xml"; boundary=x'}, 415, "MTOM"),
        ({"content_encoding": "gzip"}, 415, "uncompressed"),
        ({"content_length": "20000001"}, 413, "1000"),
    ],
)
async def test_refused_unread(headers: dict[str, str], status: int, word: str) -> None:
    """A request whose headers rule it out is refused with a soap:Client fault, without reading its body."""

    async def receive() -> Message:
        raise AssertionError("the body was read")

    reply = await call(app_for(max_body_bytes=1000), receive=receive, query=b"", **headers)
    assert (reply.status, reply.faultcode) == (status, "Client")
    assert word in reply.reason


async def test_large_body_is_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a body without a length, bytes up to a bound are kept, bytes up to another bound are dropped; then the
    connection is closed."""
    monkeypatch.setattr("soap_compat.server.LINGER_BYTES", 600)
    read = []

    async def receive() -> Message:
        read.append(1)
        return {"type": "http.request", "body": b" " * 300, "more_body": True}

    reply = await call(app_for(max_body_bytes=1000), receive=receive)
    assert (reply.status, reply.faultcode, reply.headers["connection"], len(read)) == (413, "Client", "close", 4 + 2)


async def test_rest_of_a_large_body_is_not_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that announces too large a body and then sends nothing does not keep its connection for long."""
    monkeypatch.setattr("soap_compat.server.LINGER_S", 0.01)

    async def receive() -> Message:
        return await asyncio.Future()

    assert (await call(app_for(max_body_bytes=1000), receive=receive, content_length="1001")).status == 413


async def test_call_that_the_server_gives_up() -> None:
    """A call that the stopping server cancels is a fault that says so, not a bare 500."""

    async def cancelled(_: str) -> TerminalStatus:
        raise asyncio.CancelledError

    reply = await call(face(cancelled), GET_STATUS)
    assert reply.declared[1:] == ("SVC0001", "GATEWAY_STOPPING")


async def test_body_in_pieces() -> None:
    """A body may come in pieces, up to exactly the bound."""
    pieces = [GET_STATUS[n : n + 1] for n in range(len(GET_STATUS))]
    app = app_for(max_body_bytes=len(GET_STATUS))
    assert (await call(app, *pieces)).result == "getStatusResponse:Reachable"
    assert (await call(app, *pieces, b" ")).status == 413


async def test_slow_body() -> None:
    """A body that does not arrive in time is refused, and the connection is closed."""

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # it never has one

    reply = await call(app_for(body_timeout_s=0.01), receive=receive)
    assert (reply.status, reply.faultcode, reply.headers["connection"]) == (408, "Client", "close")


async def test_client_leaves() -> None:
    """A client that leaves while it sends gets no answer, and the presence server is not asked."""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    assert (await call(app_for(), receive=receive)).status == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/TerminalStatus", 405, "POST"),
        ("PUT", "/TerminalStatus", 405, "POST"),
        ("HEAD", "/TerminalStatus", 405, "POST"),
        ("DELETE", "/TerminalStatus?wsdl", 405, "GET, HEAD, POST"),
        ("HEAD", "/TerminalStatus?WSDL", 200, None),
        ("PUT", "/TerminalStatusNotification", 404, None),
        ("POST", "/TerminalStatusNotification?wsdl", 405, "GET, HEAD"),
        ("POST", "/parlayx_common_types_2_1.xsd", 405, "GET, HEAD"),
        ("GET", "/parlayx_common_types_2_1.xsd", 200, None),
        ("HEAD", "/parlayx_common_types_2_1.xsd", 200, None),
        ("GET", "/parlayx_common_types_9_9.xsd", 404, None),
        ("GET", "/../server.py", 404, None),
        ("GET", "/wsdl/../../server.py", 404, None),
        ("GET", "//etc/passwd", 404, None),
        ("GET", "/", 404, None),
        ("POST", "/Nothing", 404, None),
        ("POST", "/TerminalStatus/", 404, None),
    ],
)
async def test_other_requests(method: str, path: str, status: int, allow: str | None) -> None:
    """Only the service and its own files exist, each with its methods."""
    path, _, query = path.partition("?")
    reply = await call(app_for(), method=method, path=path, query=query.encode())
    assert (reply.status, reply.headers.get("allow")) == (status, allow)


def test_large_body_over_tcp(served: str) -> None:
    """A client that announces more than the bound is refused before it sends, and the connection is closed."""
    host, _, port = served.split("/")[2].partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /parlayx/TerminalStatus HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\n"
            b"Content-Length: 9999999999\r\n\r\n"
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"soap11env:Client" in answer


def test_large_body_of_a_client_that_sends_first(served: str) -> None:
    """A client that sends 10 MB before it reads gets the refusal, not a reset connection."""
    host, _, port = served.split("/")[2].partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /parlayx/TerminalStatus HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\n"
            b"Content-Length: 10000000\r\n\r\n" + b"a" * 10_000_000
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"soap11env:Client") == 1
    assert answer.endswith(b"Envelope>")
