"""The pure parts of the watcher: header fields, the meaning of SIP answers, and the frames between gateway and
worker."""

import re
import socket

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import (
    DocumentUnreadable,
    FetchTimedOut,
    InvalidAddress,
    PresenceMisconfigured,
    PresenceUnavailable,
    TerminalStatusError,
    TerminalUnknown,
    WatcherRefused,
    WatcherUnauthenticated,
)
from app.sip.answers import BAD_ADDRESS, error_of_local_failure, error_of_notify, error_of_response, retry_expires_s
from app.sip.headers import Final, Notify, plain, read_notify, read_response
from app.sip.pjsip.response_sources import ResponseSources
from app.sip.protocol import (
    CancelFetch,
    Command,
    Decoder,
    FetchFailed,
    FrameError,
    Observed,
    Ping,
    Report,
    StartFetch,
    encode,
)
from app.sip.redirects import contact_uris, redirected_route
from app.sip.watcher import SipWatcher
from tests.support.core import ALICE
from tests.support.sip_watcher import Observer, configuration

NOTIFY = (
    "NOTIFY sip:w@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP h\r\nSubscription-State: Terminated;Reason=Timeout\r\n"
    "Content-Type: application/pidf+xml\r\nContent-Length: 4\r\n\r\nbody"
)

RESPONSES = {
    400: PresenceMisconfigured,
    401: WatcherUnauthenticated,
    403: WatcherRefused,
    404: TerminalUnknown,
    405: PresenceMisconfigured,
    406: PresenceMisconfigured,
    407: WatcherUnauthenticated,
    408: PresenceUnavailable,
    415: PresenceMisconfigured,
    420: PresenceMisconfigured,
    410: TerminalUnknown,
    423: PresenceUnavailable,
    430: PresenceUnavailable,
    480: PresenceUnavailable,
    481: PresenceUnavailable,
    484: TerminalUnknown,
    486: PresenceUnavailable,
    489: PresenceMisconfigured,
    491: PresenceUnavailable,
    500: PresenceUnavailable,
    503: PresenceUnavailable,
    599: PresenceUnavailable,
    600: WatcherRefused,
    603: WatcherRefused,
    604: TerminalUnknown,
    606: WatcherRefused,
    607: WatcherRefused,
    **dict.fromkeys((300, 302, 305, 380, 399), PresenceMisconfigured),
    **dict.fromkeys((402, 412, 413, 422, 429, 433, 440, 469, 494, 499), PresenceMisconfigured),
    **dict.fromkeys((601, 608, 699), WatcherRefused),
}


def test_notify_is_read() -> None:
    """State and reason are read in lower case, the body unchanged."""
    assert read_notify(NOTIFY) == Notify("terminated", "timeout", -1, "application/pidf+xml", "", 4, b"body")


def test_notify_with_compact_and_folded_fields() -> None:
    """Compact field names and folded lines (RFC 3261 sections 7.3.1 and 7.3.3) are read."""
    text = (
        "NOTIFY sip:w SIP/2.0\r\nsubscription-state: active;\r\n expires=60;retry-after=5\r\n"
        "c: text/plain\r\ne : gzip\r\nl:0\r\n\r\n"
    )
    assert read_notify(text) == Notify("active", "", 5, "text/plain", "gzip", 0, b"", 60)


@pytest.mark.parametrize(
    ("lines", "requires"),
    [
        ("Require: eventlist", True),
        ("require:foo , EventList", True),
        ("Require: foo\r\nRequire: eventlist", True),
        ("Require: foo,\r\n eventlist", True),
        ("Require: eventlists", False),
        ("X-Require: eventlist", False),
        ("Supported: eventlist", False),
    ],
)
def test_require_of_a_list(lines: str, requires: bool) -> None:
    """Require is read in every form of RFC 3261 section 7.3.1: a list, several lines, folded, in any case."""
    assert read_notify(f"NOTIFY x SIP/2.0\r\nVia: v\r\n{lines}\r\n\r\n").requires_eventlist is requires
    assert read_response(f"SIP/2.0 421 Extension Required\r\n{lines}\r\n\r\n").of_list is requires
    assert not read_response(f"SIP/2.0 420 Bad Extension\r\n{lines}\r\n\r\n").of_list


def test_notify_body_keeps_its_bytes() -> None:
    """A body that is not UTF-8 arrives byte for byte."""
    raw = b"\xff\xfe\x00caf\xe9"
    assert read_notify("NOTIFY x SIP/2.0\r\n\r\n" + raw.decode("utf-8", "surrogateescape")).body == raw


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    """Reading any text gives a result and raises nothing."""
    assert read_notify(text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")).declared_bytes >= -1
    assert read_response(text).code >= 0


def test_response_is_read() -> None:
    """A response gives its status, phrase, Retry-After without the comment, and Min-Expires."""
    text = "SIP/2.0 503 Too busy\r\nRetry-After: 7 (in a while)\r\nMin-Expires: 60\r\n\r\n"
    assert read_response(text) == Final(503, "Too busy", 7, 60)


@pytest.mark.parametrize(("code", "error"), RESPONSES.items())
def test_response_means(code: int, error: type[TerminalStatusError]) -> None:
    """Each row of the failure table. A code without a row counts as x00 of its class (RFC 3261 section 8.1.3.2): 4xx as
    400, 5xx as 500, 6xx as 600."""
    found = error_of_response(code, "Phrase", -1)
    assert type(found) is error
    assert f"{code} Phrase" in str(found)
    assert found.details["sip_code"] == str(code)


def test_request_that_is_too_large_for_now() -> None:
    """413 with Retry-After is temporary (RFC 3261 section 21.4.11)."""
    assert type(error_of_response(413, "", 5)) is PresenceUnavailable


@pytest.mark.parametrize(
    ("lines", "uris"),
    [
        (["Contact: <sip:a@192.0.2.1:5070;transport=tcp>;q=0.5"], ("sip:a@192.0.2.1:5070;transport=tcp",)),
        (["Contact: sip:192.0.2.1:5070;q=0.5"], ("sip:192.0.2.1:5070",)),
        (["m: <sip:b>;q=0.1, <sip:a>;q=0.7,<sip:c>;q=0.1"], ("sip:a", "sip:b", "sip:c")),
        (["Contact: <sip:b>;q=0.2", "CONTACT : <sip:a>"], ("sip:a", "sip:b")),
        (['Contact: "A, <sip:x>" <sip:a,b@h>;expires=5, B <sip:c>'], ("sip:a,b@h", "sip:c")),
        (["Contact:", " <sip:folded>"], ("sip:folded",)),
        (["Contact: *", "Contact: nonsense", "X-Contact: <sip:x>"], ()),
        ([f"Contact: {', '.join(f'<sip:h{number}>' for number in range(30))}"], tuple(f"sip:h{n}" for n in range(10))),
    ],
)
def test_contacts_of_a_redirection(lines: list[str], uris: tuple[str, ...]) -> None:
    """The Contacts of a 3xx are read, the greatest q first (RFC 3261 sections 8.1.3.4 and 20.10); of another response
    they are not."""
    head = "\r\n".join(["Moved", *lines])
    assert read_response(f"SIP/2.0 302 {head}\r\n\r\n").contacts == uris
    assert not read_response(f"SIP/2.0 404 {head}\r\n\r\n").contacts


SERVERS = [
    "sip:presence.example.com;transport=tcp;lr",
    "sip:192.0.2.2:5070;transport=udp;lr",
    "sip:192.0.2.3;transport=tls;lr",
]


@pytest.mark.parametrize(
    ("contacts", "route"),
    [
        (["sip:alice@presence.example.com"], 0),
        (["SIP:Alice@Presence.Example.COM.:5060;transport=udp"], 0),
        (["sip:192.0.2.2:5070"], 1),
        (["sip:alice@192.0.2.2:05070;lr?x=y"], 1),
        (["sips:192.0.2.3:5061"], 2),
        (["sip:foreign.example.com", "sip:192.0.2.2:5070"], 1),
        (["sip:192.0.2.2"], None),
        (["sip:192.0.2.20:5070"], None),
        (["sip:x@192.0.2.2:5070;maddr=198.51.100.1"], None),
        (["sip:192.0.2.2:5070@foreign.example.com"], None),
        (["tel:+15551234", "http://192.0.2.2:5070", "sip:", ""], None),
        ([], None),
    ],
)
def test_server_that_a_redirection_names(contacts: list[str], route: int | None) -> None:
    """Only the operator's own servers are asked (RFC 3261 section 8.1.3.4): host and port decide, compared as section
    19.1.4 compares them; a foreign server, also one that maddr names, is never asked."""
    assert redirected_route(contacts, SERVERS) == route


@given(st.lists(st.text(alphabet='<>,;:@"\\sipq=.0 1\t', max_size=60), max_size=3))
def test_any_redirection_is_read(values: list[str]) -> None:
    """Whatever Contact says, reading it raises nothing, and names no server that is not in the list."""
    assert redirected_route(contact_uris(values), ["sip:192.0.2.2:5070;transport=udp;lr"]) is None


@given(st.integers(0, 999), st.text(max_size=20), st.integers(-1, 10**6))
def test_every_response_means_something(code: int, phrase: str, retry_after_s: int) -> None:
    """Every response has a meaning."""
    assert isinstance(error_of_response(code, phrase, retry_after_s), TerminalStatusError)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (0, FetchTimedOut),
        (408, PresenceUnavailable),
        (503, PresenceUnavailable),
        (BAD_ADDRESS, InvalidAddress),
    ],
)
def test_local_failure_means(code: int, error: type[TerminalStatusError]) -> None:
    """The message of PJSIP's own failure does not blame the presence server."""
    found = error_of_local_failure(code, "Connection refused")
    assert type(found) is error
    assert "answered" not in str(found)


@given(st.text())
def test_plain_text(text: str) -> None:
    """Text from a peer is made printable, ASCII and short."""
    assert re.fullmatch(r"[ -~]{0,100}", plain(text))


def test_retry_after_is_passed_on() -> None:
    """The presence server's Retry-After is passed on to the application."""
    assert error_of_response(503, "", 7).retry_after_s == 7


@pytest.mark.parametrize(
    ("state", "reason", "length", "error"),
    [
        ("active", "", 0, None),
        ("terminated", "timeout", 300, None),
        ("terminated", "timeout", 0, None),
        ("terminated", "", 0, None),
        ("terminated", "invariant", 0, None),
        ("terminated", "deactivated", 300, None),
        ("terminated", "deactivated", 0, PresenceUnavailable),
        ("terminated", "probation", 0, PresenceUnavailable),
        ("terminated", "giveup", 0, PresenceUnavailable),
        ("terminated", "rejected", 0, WatcherRefused),
        ("terminated", "noresource", 0, TerminalUnknown),
        ("pending", "", 0, WatcherRefused),
        ("pending", "", 300, WatcherRefused),
    ],
)
def test_notify_means(state: str, reason: str, length: int, error: type[TerminalStatusError] | None) -> None:
    """Each state and reason of RFC 6665 section 4.1.3 has its meaning."""
    found = error_of_notify(state, reason, -1, length, length)
    assert (found and type(found)) is error


@pytest.mark.parametrize(
    ("declared", "received", "cut"), [(10, 9, True), (9, 10, True), (10, 10, False), (-1, 5, False)]
)
def test_cut_body(declared: int, received: int, cut: bool) -> None:
    """A body that is shorter than its Content-Length was cut on the way."""
    found = error_of_notify("active", "", -1, declared, received)
    assert isinstance(found, DocumentUnreadable) is cut


@pytest.mark.parametrize(
    ("final", "asked_s", "again_s"),
    [
        (Final(423, "", min_expires_s=60), 0, 60),
        (Final(423, "", min_expires_s=60), 60, None),
        (Final(423, ""), 0, None),
        (Final(423, "", min_expires_s=10**6), 0, None),
        (Final(423, "", min_expires_s=0), 0, None),
        (Final(423, "", min_expires_s=120), 60, 120),
        (Final(423, "", min_expires_s=120), 30, None),
        (Final(423, "", min_expires_s=180), 120, None),
        (Final(503, "", min_expires_s=60), 0, None),
        (Final(481, ""), 0, 60),
        (Final(481, ""), 60, None),
        (Final(481, "", local=True), 0, None),
    ],
)
def test_interval_too_brief(final: Final, asked_s: int, again_s: int | None) -> None:
    """423 is followed once, if its Min-Expires is within the bound (RFC 6665 section 4.1.2.1); 481, as servers built on
    belle-sip send it, is followed once by 60, and that by one 423."""
    assert retry_expires_s(final, asked_s) == again_s


COMMANDS: list[Command] = [StartFetch(1, "sip:a@b"), CancelFetch(2), Ping()]


def decoder() -> Decoder[object]:
    return Decoder(StartFetch | CancelFetch | Ping)  # type: ignore[arg-type]  # a union is no class to mypy


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_frames_survive_any_cut(cuts: list[int]) -> None:
    """Messages are decoded whole and in order, however the stream is cut."""
    stream, reader = encode(COMMANDS) * 3, decoder()
    found: list[object] = []
    while stream:
        size = cuts[len(found) % len(cuts)]
        found += list(reader.feed(stream[:size]))
        stream = stream[size:]
    assert found == COMMANDS * 3


@pytest.mark.parametrize(
    "nonsense", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", encode([FetchFailed(1, 2, "", 3, local=False)])]
)
def test_nonsense_is_refused(nonsense: bytes) -> None:
    """Bytes that are not a frame raise FrameError."""
    with pytest.raises(FrameError):
        list(decoder().feed(nonsense))


def test_each_report_decodes_to_its_class() -> None:
    """Each report decodes to its own class."""
    reader: Decoder[object] = Decoder(Report)  # type: ignore[arg-type]  # a union is no class to mypy
    assert list(reader.feed(encode([FetchFailed(1, 404, "Not Found", -1, local=True)]))) == [
        FetchFailed(1, 404, "Not Found", -1, local=True)
    ]


async def test_cut_documents_are_all_reported_and_logged_seldom() -> None:
    """Each cut document makes its terminal's status doubtful; the log has at most one line a second about them."""
    watcher, observer = SipWatcher(configuration("sip:127.0.0.1:5060")), Observer()
    watcher.set_observer(observer)
    watcher.watch(ALICE)
    worker = watcher._workers[0]  # noqa: SLF001  # as if a worker had reported it
    cut = Observed(next(iter(worker.wanted)).id, 0.0, "application/pidf+xml", "", 70_000, b"<presence")
    with structlog.testing.capture_logs() as logs:
        for _ in range(50):
            watcher._on_report(worker, cut)  # noqa: SLF001
    assert observer.unread == {ALICE: ["cut"] * 50}
    assert not observer.bodies(ALICE)
    assert [line["event"] for line in logs] == ["document_cut"]


@pytest.mark.parametrize(
    ("source", "came", "sent", "counts"),
    [
        ("192.0.2.1:5060", "UDP", "UDP", True),
        ("192.0.2.1:5061", "UDP", "UDP", False),
        ("192.0.2.1:5061", "TCP", "TCP", True),
        ("192.0.2.1:5061", "TLS", "TLS", True),
        ("192.0.2.2:5060", "TCP", "TCP", False),
        ("10.1.2.3:9", "UDP", "UDP", True),
        ("10.1.3.3:9", "TCP", "TCP", False),
        ("192.0.2.1:5060", "UDP", "TCP", False),
        ("192.0.2.1:5060", "UDP", "TLS", False),
        ("192.0.2.1:5060", "TCP", "TLS", False),
        ("10.1.2.3:9", "UDP", "TLS", False),
        ("10.1.2.3:9", "TCP", "UDP", False),
    ],
)
def test_which_answers_count(source: str, came: str, sent: str, counts: bool) -> None:
    """An answer counts only over the request's transport: over UDP from the address and port that the request was sent
    to, over a stream from any port of that host, and from the networks that the operator names."""

    def address(text: str) -> bytes:
        host, _, port = text.partition(":")
        return b"\2\0" + int(port).to_bytes(2, "big") + socket.inet_aton(host)

    sources, transports = (
        ResponseSources(["10.1.2.0/24", "2001:db8::/32"]),
        {"came_over": came.encode(), "sent_over": sent.encode()},
    )
    assert sources.accepts(address(source), address("192.0.2.1:5060"), **transports) is counts
