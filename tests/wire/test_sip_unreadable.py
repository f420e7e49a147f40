"""Messages that PJSIP cannot parse. Header fields are cut, and the rest of the message counts; LF counts as CRLF. A
scripted presence server over UDP and TCP."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.domain.errors import (
    PresenceMisconfigured,
    PresenceUnavailable,
    TerminalStatusError,
    TerminalUnknown,
    WatcherUnauthenticated,
)
from app.domain.statuses import Liveness
from app.ports.sip import ReceivedNotify
from app.sip.watcher import SipWatcher
from tests.support.sip_notifier import BUSY, OPEN, Asked, ScriptedNotifier
from tests.support.sip_scene import refresh, scene, until_refused
from tests.support.sip_watcher import terminal, watching
from tests.support.waiting import DEADLINE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = Liveness.LIVE
DIGEST = 'Digest realm="r", nonce="n", algorithm=MD5'
CREDENTIALS = {"sip_username": "u", "sip_password": "p"}


@asynccontextmanager
async def fetching(transport: str, **settings: Any) -> AsyncIterator[tuple[ScriptedNotifier, SipWatcher]]:
    """A watcher, and the server that it asks."""
    async with ScriptedNotifier(transport) as server, watching(server.uri, **settings) as (watcher, _):
        yield server, watcher


async def begin(server: ScriptedNotifier, watcher: SipWatcher) -> tuple[asyncio.Future[ReceivedNotify], Asked]:
    """A fetch, and its SUBSCRIBE as it has arrived."""
    address = terminal()
    fetch = asyncio.ensure_future(watcher.fetch(address))
    request, send = await server.receive(lambda message: message.start.startswith(f"SUBSCRIBE {address} "))
    return fetch, Asked(request, send, server.host, server.transport.upper())


async def outcome(fetch: asyncio.Future[ReceivedNotify]) -> ReceivedNotify:
    async with asyncio.timeout(DEADLINE_S):
        return await fetch


UNKNOWN_SCHEMES = {
    "Bearer": 'Bearer realm="r", scope="s"',
    "Basic": 'Basic realm="r"',
    "NTLM": "NTLM",
    "Kerberos": "Kerberos YIIFhgYG==",
    "Negotiate": "Negotiate",
    "unfinished Digest": 'Digest realm="r',
    "no value": "",
}


@pytest.mark.parametrize("credentials", [{}, CREDENTIALS], ids=["no credentials", "credentials"])
async def test_challenge_of_an_unknown_scheme(transport: str, credentials: dict[str, str]) -> None:
    """Unknown schemes are ignored (RFC 3261 section 22.1): with no other challenge, the gateway cannot authenticate."""
    async with fetching(transport, **credentials) as (server, watcher):
        for number, challenge in enumerate(UNKNOWN_SCHEMES.values(), start=1):
            fetch, asked = await begin(server, watcher)
            asked.answer("401 Unauthorized", f"WWW-Authenticate: {challenge}")
            with pytest.raises(WatcherUnauthenticated):
                await outcome(fetch)
            await until(lambda number=number: watcher.counts().cut_headers == {"www-authenticate": number})  # type: ignore[misc]  # mypy: lambda
        assert not watcher.counts().refused


BESIDE: dict[str, list[str]] = {
    "before": ['WWW-Authenticate: Bearer realm="r"', f"WWW-Authenticate: {DIGEST}"],
    "after": [f"WWW-Authenticate: {DIGEST}", "WWW-Authenticate: NTLM"],
    "several": ['WWW-Authenticate: Basic realm="r"', "WWW-Authenticate: NTLM", f"WWW-Authenticate: {DIGEST}"],
    "folded": ['WWW-Authenticate: Bearer\r\n realm="r",\r\n\tscope="a, Digest b"', f"WWW-Authenticate: {DIGEST}"],
    "in one field": [f'WWW-Authenticate: Bearer realm="a, Digest b", {DIGEST}, Basic realm="r"'],
}


async def test_digest_beside_an_unknown_scheme(transport: str) -> None:
    """A Digest challenge is answered, whatever stands beside it (RFC 3261 section 22.1)."""
    async with fetching(transport, **CREDENTIALS) as (server, watcher):
        for case, challenges in BESIDE.items():
            fetch, asked = await begin(server, watcher)
            asked.answer("401 Unauthorized", *challenges)
            again = await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))
            assert 'realm="r"' in again.request["authorization"], case
            again.answer()
            again.notify(1, BUSY, state="terminated;reason=timeout")
            assert (await outcome(fetch)).body == BUSY, case


FAILURES: dict[str, tuple[str, str, type[TerminalStatusError], float | None]] = {
    "Retry-After as a date": (
        "503 Busy", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT", PresenceUnavailable, None),
    "Retry-After of twenty digits": ("503 Busy", "Retry-After: 99999999999999999999", PresenceUnavailable, None),
    "Retry-After with rubbish": ("480 Away", "Retry-After: 7 seconds", PresenceUnavailable, None),
    "Retry-After of two": ("480 Away", "Retry-After: 7, 9", PresenceUnavailable, 7.0),
    "Retry-After of nothing": ("500 Error", "Retry-After:", PresenceUnavailable, None),
    "Content-Type": ("404 Not Found", "Content-Type: rubbish", TerminalUnknown, None),
    "Contact": ("404 Not Found", "Contact: rubbish <", TerminalUnknown, None),
    "Contact of a 302": ("302 Moved", "Contact: <sip:unclosed", PresenceMisconfigured, None),
    "Expires": ("404 Not Found", "Expires: Wed, 21 Oct 2026 07:28:00 GMT", TerminalUnknown, None),
    "Supported": ("404 Not Found", "Supported: a,,b", TerminalUnknown, None),
    "Max-Forwards": ("404 Not Found", "Max-Forwards: many", TerminalUnknown, None),
    "Session-Expires": ("404 Not Found", "Session-Expires: soon", TerminalUnknown, None),
    "Record-Route": ("404 Not Found", "Record-Route: a <", TerminalUnknown, None),
    "a line without a colon": ("404 Not Found", "rubbish", TerminalUnknown, None),
    "a name with a space": ("404 Not Found", "X Odd: 1", TerminalUnknown, None),
    "no name": ("404 Not Found", ": 1", TerminalUnknown, None),
    "NUL": ("404 Not Found", "X-Odd: a\0b", TerminalUnknown, None),
    "Event": ("404 Not Found", "Event: ;;<", TerminalUnknown, None),
}  # fmt: skip


async def test_failure_with_an_unreadable_field(transport: str) -> None:
    """A response counts without the field; Retry-After as a date is no number (RFC 3261 section 20.33)."""
    async with fetching(transport) as (server, watcher):
        for number, (case, (status, line, error, retry_after_s)) in enumerate(FAILURES.items(), start=1):
            fetch, asked = await begin(server, watcher)
            asked.answer(status, line)
            with pytest.raises(error) as raised:
                await outcome(fetch)
            assert raised.value.details["sip_code"] == status[:3], case
            assert raised.value.retry_after_s == retry_after_s, case
            await until(lambda number=number: sum(watcher.counts().cut_headers.values()) == number)  # type: ignore[misc]  # mypy: lambda


async def test_min_expires_with_a_parameter(transport: str) -> None:
    """The number before `; x` is followed (RFC 6665 section 4.1.2.1)."""
    async with fetching(transport) as (server, watcher):
        fetch, asked = await begin(server, watcher)
        asked.answer("423 Interval Too Brief", "Min-Expires: 60 ; x")
        again = await server.asked(but=asked.request["call-id"])
        assert again.request["expires"] == "60"
        again.answer()
        again.notify(1, BUSY)
        assert (await outcome(fetch)).body == BUSY


READABLE: dict[str, str] = {
    "Expires": "Expires: 99999999999999999999 x",
    "Contact": "Contact: rubbish <",
    "a second Contact": "Contact: <sip:a@{host}>, rubbish <",
    "Record-Route": "Record-Route: <sip:unclosed",
    "Content-Type": "Content-Type: ;;;",
    "Retry-After": "Retry-After: never",
    "WWW-Authenticate": "WWW-Authenticate: Bearer x",
    "Max-Forwards": "Max-Forwards: ",
    "Require": "Require: ,,",
    "Warning": "Warning: 1 \0",
    "no colon": "rubbish",
    "many": "Allow: ,\r\nExpires: x\r\nAccept: ,\r\nMin-Expires: never\r\nrubbish\r\nX-Folded: a\r\n b\0",
}


async def test_notify_with_an_unreadable_field(transport: str) -> None:
    """The status of the NOTIFY counts, the NOTIFY is answered 200, and the subscription goes on."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer("200 OK", *READABLE.values())
        expected = []
        for cseq, (case, line) in enumerate(READABLE.items(), start=1):
            expected.append(BUSY if cseq % 2 else OPEN)
            asked.notify(cseq, expected[-1], line.format(host=server.host))
            assert await server.notify_answer(cseq) == 200, case
            await until(lambda: observer.bodies(address) == expected)
        assert observer.live([address])
        await refresh(watcher, address)
        again = await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))
        again.answer("200 OK", *READABLE.values())
        again.notify(100, READABLE["many"].encode())
        await until(lambda: len(observer.bodies(address)) == len(expected) + 1)
        assert observer.liveness(address) is LIVE
        await until(lambda: watcher.counts().subscribes_sent == 2)
        assert not watcher.counts().refused


async def test_large_notify_with_an_unreadable_field() -> None:
    """A document larger than PJSIP's buffer arrives although a field of its NOTIFY is cut."""
    async with scene("tcp") as (_, watcher, observer, address, asked):
        large = BUSY.replace(b"?>", b"?><!--" + b"x" * 60_000 + b"-->", 1)
        asked.answer()
        asked.notify(1, large, "Retry-After: never")
        asked.notify(2, OPEN)
        await until(lambda: observer.bodies(address) == [large, OPEN])
        await until(lambda: watcher.counts().cut_headers == {"retry-after": 1})


async def test_response_that_stays_unreadable(transport: str) -> None:
    """A response that would mean nothing without the field is dropped and counted; the next one counts."""
    async with fetching(transport) as (server, watcher):
        for number, line in enumerate(("Via: rubbish", "Call-ID:", "CSeq: x", "From: <", "To: <"), start=1):
            fetch, asked = await begin(server, watcher)
            with capture_logs() as logs:
                asked.answer("404 Not Found", line, "Retry-After: never")
                await until_refused(watcher, "unreadable", number)
            dropped = {"event": "sip_messages_refused", "log_level": "warning", "unreadable": 1, "peer": server.host}
            assert dropped in logs, line
            asked.answer("410 Gone")
            with pytest.raises(TerminalUnknown) as raised:
                await outcome(fetch)
            assert raised.value.details["sip_code"] == "410", line
        assert not watcher.counts().cut_headers


async def test_notify_that_is_cut_and_still_not_usable(transport: str) -> None:
    """A message is read again once: what PJSIP drops then is counted."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        asked.notify(2, BUSY, "Retry-After: never", "Subscription-State: <", state="")
        await until_refused(watcher, "unreadable")
        await server.asked(but=asked.request["call-id"])
        assert observer.bodies(address) == [OPEN]


async def test_the_log_names_what_was_cut_and_the_peer(transport: str) -> None:
    """One line for many messages, with the names of the fields and the sender."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        with capture_logs() as logs:
            asked.answer("200 OK", "Retry-After: never", "X Odd: 1")
            await until(lambda: watcher.counts().cut_headers == {"retry-after": 1, "other": 1})
        line = {"event": "sip_headers_cut", "log_level": "warning", "retry_after": 1, "other": 1, "peer": server.host}
        assert line in logs
        asked.notify(1)
        await until(lambda: observer.live([address]))


async def test_answer_from_elsewhere_with_an_unreadable_field() -> None:
    """The source check holds for a response that is read again, and a response that nobody awaits is not read."""
    async with scene("udp") as (_, watcher, observer, address, asked):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))

            def send(data: bytes) -> None:
                for each in (data.replace(b"z9hG4bK", b"z9hG4bKx"), data):
                    stranger.sendto(each, ("127.0.0.1", watcher.ports["udp"]))

            asked.answer("404 Not Found", "Retry-After: never", send=send)
            await until_refused(watcher, "answer-from-elsewhere")
        assert watcher.counts().refused == {"answer-from-elsewhere": 1}
        assert watcher.counts().cut_headers == {"retry-after": 1}
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        assert observer.reported[address] == [OPEN, LIVE]


async def test_stranger_is_not_read_again(transport: str) -> None:
    """An unreadable NOTIFY to a Contact that was never issued costs one look, and is not counted."""
    async with scene(transport) as (_, watcher, observer, address, asked):
        asked.answer()
        asked.notify(1)
        asked.notify(2, BUSY, "Retry-After: never", uri=asked.request.contact_uri.replace("watcher-", "watcher-0"))
        asked.notify(3)
        await until(lambda: len(observer.bodies(address)) == 2)
        assert observer.bodies(address) == [OPEN, OPEN]
        assert not watcher.counts().cut_headers


async def test_notify_of_an_ended_dialog_with_an_unreadable_field(transport: str) -> None:
    """Its answer is 481, which ends the subscription at the server (RFC 6665 section 4.1.3)."""
    async with fetching(transport) as (server, watcher):
        fetch, asked = await begin(server, watcher)
        asked.answer()
        asked.notify(1, state="terminated;reason=timeout")
        await outcome(fetch)
        asked.notify(2, OPEN, "Retry-After: never")
        assert await server.notify_answer(2) == 481


# maddr


ADDRESSES = {
    "Contact": "Contact: <sip:a@{host};maddr=127.0.0.1>",
    "Record-Route": "Record-Route: <sip:{host};lr;maddr=127.0.0.1>",
    "User-Agent": "User-Agent: example;maddr=victim.example",
    "Subject": "Subject: maddr=victim.example",
    "Contact's user": "Contact: <sip:maddr=victim@{host}>",
    "display name": 'Contact: ";maddr=victim.example" <sip:a@{host}>',
    "header parameter": "Contact: <sip:a@{host}>;maddr=victim.example",
    "P-Asserted-Identity": "P-Asserted-Identity: <sip:a@x;maddr=victim.example>",
    "a lower Via": "Via: SIP/2.0/UDP x;branch=z9hG4bKy;maddr=victim.example",
}


async def test_maddr_that_is_harmless(transport: str) -> None:
    """`maddr` swallows no NOTIFY where it is an address or does not name where a request goes (RFC 3261, 19.1.1); for
    the NOTIFY's answer only the topmost Via counts."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer()
        for cseq, (case, line) in enumerate(ADDRESSES.items(), start=1):
            asked.notify(cseq, OPEN, line.format(host=server.host))
            assert await server.notify_answer(cseq) == 200, case
        await until(lambda: len(observer.bodies(address)) == len(ADDRESSES))
        assert observer.live([address])
        assert not watcher.counts().refused


NAMED = {
    "Contact": "Contact: <sip:a@{host};maddr=victim.example>",
    "capitals": "Contact: <sip:a@{host};MADDR=victim.example>",
    "escaped": "Contact: <sip:a@{host};%6Daddr=victim.example>",
    "folded": "Contact:\r\n <sip:a@{host};maddr=victim.example>",
    "Record-Route": "Record-Route: <sip:{host};lr>, <sip:{host};maddr=victim.example;lr>",
    "short address": "Contact: <sip:a@{host};maddr=127.1>",
}


async def test_maddr_that_is_a_name(transport: str) -> None:
    """A name would be looked up by a blocking call at the refresh: the NOTIFY is refused with the reason `maddr`."""
    async with fetching(transport) as (server, watcher):
        for number, (case, line) in enumerate(NAMED.items(), start=1):
            fetch, asked = await begin(server, watcher)
            asked.answer()
            asked.notify(1, OPEN, line.format(host=server.host), *([] if "sip:a@" in line else ["Contact: <sip:a@x>"]))
            await until_refused(watcher, "maddr", number)
            asked.notify(2, BUSY, state="terminated;reason=timeout")
            assert (await outcome(fetch)).body == BUSY, case


async def test_maddr_that_is_a_name_in_an_answer(transport: str) -> None:
    """The name in a 2xx is ignored, so that the refresh goes to the Contact's address and no look-up blocks."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer("200 OK", f"Contact: <sip:a@{server.host};maddr=victim.example>")
        asked.notify(1, OPEN, f"Contact: <sip:a@{server.host}>")
        await until(lambda: observer.live([address]))
        await refresh(watcher, address)
        again = await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))
        assert "maddr" not in again.request.start


# Bare line feeds


def replacing(send: Callable[[bytes], None], old: bytes, new: bytes) -> Callable[[bytes], None]:
    """Sends with other bytes in place of some."""
    return lambda data: send(data.replace(old, new))


def bare(send: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Sends with LF in place of CRLF."""
    return replacing(send, b"\r\n", b"\n")


async def test_notify_with_bare_line_feeds_costs_no_other_terminal_its_query(transport: str) -> None:
    """A NOTIFY whose lines end with LF alone is read, and so is the message behind it on the connection."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        asked.notify(2, BUSY, send=bare(asked.send))
        fetch, once = await begin(server, watcher)
        once.answer()
        once.notify(1, BUSY, state="terminated;reason=timeout")
        assert (await outcome(fetch)).body == BUSY
        assert await server.notify_answer(2) == 200
        await until(lambda: observer.bodies(address) == [OPEN, BUSY])
        assert not watcher.counts().refused


@pytest.mark.parametrize("field", ["X-Odd: 1", "Retry-After: never"])
async def test_large_notify_with_bare_line_feeds(field: str) -> None:
    """The same for a document larger than PJSIP's buffer, also where a field is cut."""
    async with scene("tcp") as (_, _watcher, observer, address, asked):
        large = BUSY.replace(b"?>", b"?><!--" + b"x" * 60_000 + b"-->", 1)
        asked.answer()
        asked.notify(1, large, field, send=bare(asked.send))
        asked.notify(2, OPEN)
        await until(lambda: observer.bodies(address) == [large, OPEN])


async def test_answers_with_bare_line_feeds(transport: str) -> None:
    """Answers too: each query gets its own."""
    async with fetching(transport) as (server, watcher):
        for status, error in (("404 Not Found", TerminalUnknown), ("503 Busy", PresenceUnavailable)):
            fetch, asked = await begin(server, watcher)
            asked.answer(status, send=bare(asked.send))
            with pytest.raises(error):
                await outcome(fetch)


@pytest.mark.parametrize("length", ["", "Content-Length: -1\r\n", "l: none\r\n", "Content-Length:\r\n"])
async def test_response_without_a_usable_content_length(transport: str, length: str) -> None:
    """It has no body (over UDP: RFC 3261 section 18.3); over TCP it counts too, and so does the next one."""
    async with fetching(transport) as (server, watcher):
        for _ in range(2):
            fetch, asked = await begin(server, watcher)
            asked.answer("404 Not Found", send=replacing(asked.send, b"Content-Length: 0\r\n", length.encode()))
            with pytest.raises(TerminalUnknown):
                await outcome(fetch)
        if length or transport == "tcp":
            await until(lambda: watcher.counts().cut_headers == {"content-length": 2})
