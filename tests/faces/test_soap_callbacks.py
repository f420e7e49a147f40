"""Callbacks to applications: exact envelopes, every version, when a callback counts as delivered, and how endpoints are
checked."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from app.domain.addresses import TerminalAddress
from app.domain.errors import DuplicateCorrelator, GroupUnknown, SinkRefused, SinkUnreachable, TerminalStatusError
from app.domain.records import NotificationKind, OwedNotification, Subscription
from app.domain.sinks import SINK_BASIC, EndReason
from app.domain.statuses import Status
from app.egress.allowed import Rules
from app.egress.client import Egress
from soap_compat.callbacks import CallbackSender, callback
from soap_compat.fault_detection import has_fault
from soap_compat.faults import FAULTS, TEXTS
from tests.support.outbox import ALICE, BOB, change, make_owed, subscribed
from tests.support.receivers import Behaviour, answer, gigabyte, hang, in_turn, raw, receiver, reset
from tests.support.soap import NOTIFICATION, content_of, valid

LOOPBACK = Rules.of(["127.0.0.0/8"], allow_http=True)
EMPTY_RESPONSE = (
    b'<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
    b'<n:statusNotificationResponse xmlns:n="' + NOTIFICATION.encode() + b'"/></s:Body></s:Envelope>'
)
FAULT = (
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Server</faultcode>'
    "<faultstring>No.</faultstring></s:Fault></s:Body></s:Envelope>"
)

LONG_HEADER = f"<s:Header><t:Trace xmlns:t='urn:t'>{'t' * 20_000}</t:Trace></s:Header>"
QUOTED = b"<s:Fault><faultcode>s:Server</faultcode></s:Fault>"


def called(subscription: Subscription, notification: OwedNotification) -> etree._Element:
    """The callback's wrapper, after validation by the served WSDL."""
    body = callback(subscription, notification)
    assert body is not None
    content = content_of(body)
    valid(content)
    return content


def parts_of(element: etree._Element) -> list[tuple[str, str]]:
    """Names and texts of the leaf elements; qualified names in Clark notation."""
    return [(str(leaf.tag), leaf.text or "") for leaf in element.iter() if not len(leaf)]


@asynccontextmanager
async def sender(rules: Rules = LOOPBACK, *, total_s: float = 5.0) -> AsyncIterator[CallbackSender]:
    egress = Egress(rules, total_s=total_s, connect_s=total_s)
    try:
        yield CallbackSender(egress)
    finally:
        await egress.aclose()


# --- what is said


def test_status_notification() -> None:
    """Terminals that changed together are in one message, with the application's correlator."""
    subscription = subscribed()
    content = called(
        subscription,
        make_owed(subscription, changes=[change(ALICE, Status.BUSY), change(BOB, Status.UNREACHABLE)]),
    )
    assert content.tag == f"{{{NOTIFICATION}}}statusNotification"
    assert parts_of(content) == [
        (f"{{{NOTIFICATION}}}correlator", "correlator of sub-1"),
        ("address", ALICE),
        ("currentStatus", "Busy"),
        ("address", BOB),
        ("currentStatus", "Unreachable"),
    ]
    assert [part.tag for part in content][1:] == [f"{{{NOTIFICATION}}}terminalStatus"] * 2


@pytest.mark.parametrize("address", [ALICE, None])
def test_status_error(address: TerminalAddress | None) -> None:
    """An error is about one terminal or, without an address, about the whole subscription; its child elements are
    unqualified."""
    subscription = subscribed()
    owed = make_owed(subscription, kind=NotificationKind.ERROR, address=address, code="TERMINAL_UNKNOWN")
    content = called(subscription, owed)
    assert content.tag == f"{{{NOTIFICATION}}}statusError"
    assert parts_of(content) == [
        (f"{{{NOTIFICATION}}}correlator", "correlator of sub-1"),
        *([(f"{{{NOTIFICATION}}}address", address)] if address else []),
        ("messageId", "SVC0004"),
        ("text", TEXTS["SVC0004"]),
        ("variables", "addresses"),
    ]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: error.code)
def test_every_error_has_a_reason(error: type[TerminalStatusError]) -> None:
    """Each domain error's code has a message of the contract, with as many variables as the text has placeholders."""
    subscription = subscribed()
    content = called(subscription, make_owed(subscription, kind=NotificationKind.ERROR, address=ALICE, code=error.code))
    general = error in (GroupUnknown, DuplicateCorrelator)  # their variables would not be known
    assert content.findtext("*/messageId") == ("SVC0001" if general else FAULTS[error][0])
    assert (content.findtext("*/text") or "").count("%") == len(content.findall("*/variables"))


def test_refusal_names_the_terminal() -> None:
    """POL0002 has the terminal as its variable, even where the error ends the whole subscription to one terminal."""
    subscription = replace(subscribed(), addresses=(BOB,))
    owed = make_owed(subscription, kind=NotificationKind.ERROR, code="WATCHER_REFUSED")
    assert parts_of(called(subscription, owed))[1:] == [
        ("messageId", "POL0002"),
        ("text", TEXTS["POL0002"]),
        ("variables", BOB),
    ]


def test_unknown_code() -> None:
    """A code of another release is SVC0001 with that code."""
    subscription = subscribed()
    owed = make_owed(subscription, kind=NotificationKind.ERROR, code="FROM_THE_FUTURE")
    assert ("variables", "FROM_THE_FUTURE") in parts_of(called(subscription, owed))


@pytest.mark.parametrize("reason", EndReason)
def test_status_end(reason: EndReason) -> None:
    """statusEnd is sent only where the notification is complete."""
    subscription = subscribed()
    owed = make_owed(subscription, kind=NotificationKind.ENDED, code=reason.name)
    if reason in (EndReason.EXPIRED, EndReason.COUNT_REACHED):
        content = called(subscription, owed)
        assert content.tag == f"{{{NOTIFICATION}}}statusEnd"
        assert parts_of(content) == [(f"{{{NOTIFICATION}}}correlator", "correlator of sub-1")]
    else:
        assert callback(subscription, owed) is None


@pytest.mark.parametrize(
    ("profile", "version"),
    [
        ("v2_3", "v2_2"),
        ("v2_2", "v2_2"),
        ("v2_1", "v2_1"),
        ("v3_0", "v3_0"),
        ("v3_1", "v3_0"),
        ("", "v2_2"),
        ("v1", "v2_2"),
    ],
)
def test_version(profile: str, version: str) -> None:
    """A callback has the version that belongs to that of the startNotification."""
    subscription = subscribed(profile=profile)
    expected = NOTIFICATION.replace("v2_2", version)
    for kind, code in (
        (NotificationKind.STATUS, ""),
        (NotificationKind.ERROR, "X"),
        (NotificationKind.ENDED, "EXPIRED"),
    ):
        assert etree.QName(called(subscription, make_owed(subscription, kind=kind, code=code))).namespace == expected


@given(correlator=st.text(), address=st.text("aA1&'()=+$,;?/%20-_.!~*"))
def test_any_text(correlator: str, address: str) -> None:
    """For any correlator and address the envelope is valid; both arrive if XML can represent them."""
    subscription = replace(subscribed(), correlator=correlator)
    shown = TerminalAddress(f"sip:{address.replace('%', '%25')}@example.com")
    content = called(subscription, make_owed(subscription, changes=[change(shown)]))
    if correlator.isprintable() or set(correlator) <= set("\r\n\t "):
        assert content.findtext("{*}correlator") == correlator
    assert content.findtext("*/address") == shown


@given(text=st.text(st.sampled_from('aB1:%[]#/?@;&<> \\^{}|"ö\n\u20ac')) | st.text(max_size=40))
def test_any_malformed_address(text: str) -> None:
    """A statusError about an address that is no URI is valid; its text is changed only where the schema's anyURI (RFC
    2396) forces it."""
    owed = make_owed(subscribed(), kind=NotificationKind.ERROR, code="INVALID_ADDRESS", address=TerminalAddress(text))
    content = called(subscribed(), owed)
    shown = content.findtext("{*}address")
    assert shown is not None
    if text.isprintable() and not set(text) & set("%[]#:"):
        assert shown == text


# --- how it is sent


async def test_request() -> None:
    """One POST of text/xml with an empty SOAPAction; the connection is kept."""
    async with sender() as callbacks, receiver(answer(200, {"Content-Type": "text/xml"}, EMPTY_RESPONSE)) as there:
        subscription = subscribed(there.url)
        for _ in range(3):
            sent = await callbacks.send(subscription, make_owed(subscription))
            assert (sent.delivered, sent.code, sent.outcome) == (True, 200, "delivered")
        assert there.connections == 1
        request = there.requests[0]
        assert (request.method, request.target) == ("POST", "/events")
        assert request.headers["content-type"] == "text/xml; charset=utf-8"
        assert request.headers["soapaction"] == '""'
        valid(content_of(request.body))


async def test_credentials_of_the_endpoint() -> None:
    """RFC 7617: the user and password of the endpoint are in each request, and in nothing that is kept of answers."""
    repeats = answer(401, body=b"user:p\xc3\xa4ss dXNlcjpww6Rzcw== p\xc3\xa4ss")
    async with sender() as callbacks, receiver(in_turn(answer(), repeats)) as there:
        subscription = subscribed(there.url)
        parameters = {**subscription.sink.parameters, SINK_BASIC: "user:päss"}
        subscription = replace(subscription, sink=replace(subscription.sink, parameters=parameters))
        assert (await callbacks.send(subscription, make_owed(subscription))).delivered
        sent = await callbacks.send(subscription, make_owed(subscription))
        assert (sent.outcome, sent.answer) == ("http-401", b"*" * 10 + b" " + b"*" * 16 + b" " + b"*" * 5)
        assert [request.headers["authorization"] for request in there.requests] == ["Basic dXNlcjpww6Rzcw=="] * 2


@pytest.mark.parametrize(
    ("behave", "outcome", "code"),
    [
        (answer(500, body=FAULT.encode()), "http-500", 500),
        (answer(200, body=FAULT.encode()), "soap-fault", 200),
        (answer(200, body=b"\xff\xfe" + FAULT.encode("utf-16-le")), "soap-fault", 200),
        (answer(200, body=FAULT.replace("s:Fault", "Fault").encode()), "soap-fault", 200),
        (
            answer(200, body=f'<?xml version="1.0" encoding="latin1"?>{FAULT}'.encode().replace(b"No.", b"\xe9")),
            "soap-fault",
            200,
        ),
        (answer(202, body=b"<Fault/>"), "soap-fault", 202),
        (answer(200, body=FAULT.replace("<s:Body>", LONG_HEADER + "<s:Body>").encode()), "soap-fault", 200),
        (
            answer(200, body=(FAULT.replace("<s:Body>", LONG_HEADER + "<s:Body>") + "é").encode("utf-16")),
            "soap-fault",
            200,
        ),
        (answer(200, body=b"\r\n <?xml version='1.0'?>" + FAULT.encode()), "soap-fault", 200),
        (
            answer(200, body=FAULT.replace("schemas.xmlsoap.org/soap", "www.w3.org/2003/05/soap").encode()),
            "soap-fault",
            200,
        ),
        (
            answer(200, body=FAULT.replace(' xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"', "").encode()),
            "soap-fault",
            200,
        ),
        (answer(200, body=FAULT.encode() + b"Notice: undefined index"), "soap-fault", 200),
        (answer(200, body=FAULT[: FAULT.index("<faultstring")].encode()), "soap-fault", 200),
        (answer(200, body=b"<!DOCTYPE e [<!ENTITY a 'a'>]>" + FAULT.encode()), "soap-fault", 200),
        (answer(200, body=b"--mime\r\nContent-Type: text/xml\r\n\r\n" + FAULT.encode()), "soap-fault", 200),
        (answer(200, body=b'<?xml version="1.0" encoding="utf-7"?>' + FAULT.encode()), "soap-fault", 200),
        (answer(404), "http-404", 404),
        (answer(410), "http-410", 410),
        (answer(301, {"Location": "http://127.0.0.1:1/"}), "http-301", 301),
        (answer(401), "http-401", 401),
        (answer(503, {"Retry-After": "7"}), "http-503", 503),
        (reset, "reset", 0),
        (raw(b"SMTP\r\n"), "malformed", 0),
    ],
)
async def test_failed_attempt(behave: Behaviour, outcome: str, code: int) -> None:
    """A SOAP fault, an HTTP error or a missing answer is a failed attempt, and never ends the subscription."""
    async with sender() as callbacks, receiver(behave) as there:
        subscription = subscribed(there.url)
        sent = await callbacks.send(subscription, make_owed(subscription))
        assert (sent.delivered, sent.outcome, sent.code, sent.gone, sent.ends) == (False, outcome, code, False, None)
        assert sent.retry_after_s == (7 if code == 503 else None)
        assert len(sent.answer) <= 2048


@pytest.mark.parametrize(
    "body",
    [
        b"",
        EMPTY_RESPONSE,
        b"<html>Faultless</html>",
        b"<DefaultResponse/>",
        EMPTY_RESPONSE.replace(
            b"<s:Body>", b"<s:Header>" + QUOTED + b"<s:Body>" + QUOTED + b"</s:Body></s:Header><s:Body>"
        ),
        EMPTY_RESPONSE.replace(b"<s:Body>", b"<!--" + QUOTED + b"--><s:Body>"),
        EMPTY_RESPONSE.replace(b"<s:Body>", b"<s:Body><extra>" + QUOTED + b"</extra>"),
        EMPTY_RESPONSE + b"<p>" + QUOTED,
        b"<a>" * 20_000,
    ],
)
@pytest.mark.parametrize("code", [200, 202])
async def test_delivered(body: bytes, code: int) -> None:
    """Any 2xx without a fault counts as delivered, whatever its content."""
    async with sender() as callbacks, receiver(answer(code, body=body)) as there:
        subscription = subscribed(there.url)
        assert (await callbacks.send(subscription, make_owed(subscription))).delivered


async def test_slow_and_large_answers() -> None:
    """An application that never answers is given up in time; an answer of a gigabyte is not read."""
    async with sender(total_s=0.3) as callbacks, receiver(in_turn(hang, gigabyte())) as there:
        subscription = subscribed(there.url)
        assert (await callbacks.send(subscription, make_owed(subscription))).outcome == "timed-out"
        sent = await callbacks.send(subscription, make_owed(subscription))
        assert (sent.delivered, len(sent.answer)) == (True, 2048)


async def test_what_has_no_message_is_not_sent() -> None:
    """The application is not notified of its subscription's start, nor of an end that it asked for itself."""
    async with sender() as callbacks, receiver() as there:
        subscription = subscribed(there.url)
        for kind, code in ((NotificationKind.STARTED, ""), (NotificationKind.ENDED, "CANCELLED")):
            sent = await callbacks.send(subscription, make_owed(subscription, kind=kind, code=code))
            assert (sent.delivered, sent.outcome) == (True, "not-sent")
        assert there.connections == 0


async def test_endpoint_that_is_no_longer_allowed() -> None:
    """Where the operator forbids an endpoint later, its attempts fail."""
    async with sender(Rules()) as callbacks:
        subscription = subscribed("http://127.0.0.1:8080/")
        assert (await callbacks.send(subscription, make_owed(subscription))).outcome == "refused-scheme"
        subscription = subscribed("https://127.0.0.1:8080/")
        assert (await callbacks.send(subscription, make_owed(subscription))).outcome == "forbidden-address"


@given(noise=st.binary(max_size=40), encoding=st.sampled_from(["utf-16", "base64", "nonsense", "idna", "shift_jis"]))
def test_any_answer(noise: bytes, encoding: str) -> None:
    """Any answer of an application is read as a fault or not, and never raises."""
    assert has_fault(f'<?xml version="1.0" encoding="{encoding}"?>{FAULT}'.encode() + noise)
    assert not has_fault(noise)


# --- how an endpoint is checked


async def test_check() -> None:
    """An endpoint that accepts a connection passes; nothing is sent to it."""
    async with sender() as callbacks, receiver() as there:
        await callbacks.check(subscribed(there.url))
        await there.wait_for(lambda: there.connections == 1 and there.open_connections == 0)
        assert there.requests == []


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "url"),
        ("callback", "url"),
        ("ftp://127.0.0.1/", "scheme"),
        ("http://user:secret@127.0.0.1/", "credentials"),
        ("http://127.0.0.1:22/", "port"),
        ("http://0x7f.1/", "host"),
        ("http://10.0.0.1/", "forbidden-address"),
        ("http://[::1]:8080/", "forbidden-address"),
        ("http://169.254.169.254/latest/meta-data", "forbidden-address"),
        ("http://" + "a" * 3000, "length"),
    ],
)
async def test_endpoint_that_is_refused(url: str, reason: str) -> None:
    """An endpoint that is not a URL, or leads to a forbidden address, is refused without connecting."""
    async with sender() as callbacks:
        with pytest.raises(SinkRefused) as refused:
            await callbacks.check(subscribed(url))
        assert refused.value.details["reason"] == reason


async def test_version_that_is_none() -> None:
    """A version that Parlay X does not have is refused; the callbacks would have another one than the client reads."""
    there = subscribed("http://127.0.0.1:8080/")
    async with sender() as callbacks:
        with pytest.raises(SinkRefused) as refused:
            await callbacks.check(replace(there, sink=replace(there.sink, profile="v9_9")))
    assert refused.value.details["reason"] == "version"


async def test_endpoint_that_cannot_be_reached() -> None:
    """An endpoint that refuses the connection, does not resolve, or does not speak TLS, is unreachable."""

    async def no_tls(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.com\r\n")
        writer.close()

    plain = await asyncio.start_server(no_tls, "127.0.0.1", 0)
    async with sender() as callbacks, plain:
        for url, reason in (
            (f"http://127.0.0.1:{unused_port()}/", "refused"),
            ("http://no-such-host.invalid/", "dns"),
            (f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}/", "tls"),
        ):
            with pytest.raises(SinkUnreachable) as failed:
                await callbacks.check(subscribed(url))
            assert failed.value.details["reason"] == reason
            assert "127.0.0.1" in str(failed.value) or reason == "dns"
