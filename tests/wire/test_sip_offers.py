"""What our SIP messages say that the gateway can do, compared with what it does."""

import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.domain.errors import DocumentUnreadable
from app.domain.presence import read_presence
from tests.support.sip_notifier import OPEN, Asked, ScriptedNotifier
from tests.support.sip_scene import refresh, scene, until_refused
from tests.support.sip_terminal import SipMessage
from tests.support.sip_watcher import terminal
from tests.support.waiting import DEADLINE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parent.parent.parent
PROMISES = {
    *("accept", "accept-encoding", "accept-language", "allow", "allow-events", "supported"),
    *("require", "proxy-require"),
}
"""Every header by which RFC 3261 (section 20) and RFC 6665 (section 8.2) let a request state abilities."""

MEDIA_TYPES = {
    *("application/pidf+xml", "application/xpidf+xml", "application/cpim-pidf+xml", "application/pidf-diff+xml"),
    *("application/dialog-info+xml", "application/simple-message-summary", "multipart/related", "message/sipfrag"),
    *("application/rlmi+xml", "text/plain"),
}
"""The types that presence servers, and PJSIP's event packages, send."""

METHODS = [
    *("BYE", "CANCEL", "INFO", "INVITE", "MESSAGE", "NOTIFY", "OPTIONS", "PRACK", "PUBLISH", "REFER", "REGISTER"),
    *("SUBSCRIBE", "UPDATE"),
]
"""The methods of RFC 3261 and its extensions that are answered; ACK is not."""


def named(message: SipMessage, header: str) -> set[str]:
    """The values of a header, which may be a list."""
    return {value.strip() for line in message.all(header) for value in line.split(",")}


def is_read(media_type: str) -> bool:
    """Whether the gateway reads a document of this type."""
    try:
        return read_presence(OPEN, media_type, at=datetime.now(UTC)).open
    except DocumentUnreadable:
        return False


async def test_subscribe_names_what_is_done(transport: str) -> None:
    """Each SUBSCRIBE (of a watch, of its refresh, of a fetch) names the media types that are read (RFC 3856 section
    6.7), its own event (RFC 6665 section 8.2.2), and no other ability: no extension of RFC 3261 section 20.37."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        await refresh(watcher, address)
        again = await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))
        again.answer()
        again.notify(2)
        fetch = asyncio.ensure_future(watcher.fetch(terminal()))
        once = await server.asked(but=asked.request["call-id"])
        once.answer()
        once.notify(1, state="terminated;reason=timeout")
        await fetch
        for each in (asked.request, again.request, once.request):
            assert {name for name, _ in each.headers} & PROMISES == {"accept", "allow-events"}
            assert named(each, "accept") == {media_type for media_type in MEDIA_TYPES if is_read(media_type)}
            assert named(each, "allow-events") == named(each, "event") == {"presence"}


def request(method: str, asked: Asked, cseq: int) -> bytes:
    """A request in the dialog that is not a NOTIFY."""
    subscribe = asked.request
    lines = [
        f"{method} {subscribe.contact_uri} SIP/2.0",
        f"Via: SIP/2.0/{asked.transport} {asked.server};rport;branch=z9hG4bK-{method}-{cseq}",
        "Max-Forwards: 70",
        f"From: {subscribe['to']};tag=a",
        f"To: {subscribe['from']}",
        f"Call-ID: {subscribe['call-id']}",
        f"CSeq: {cseq} {method}",
        f"Contact: <sip:a@{asked.server}>",
        *("Event: presence", "Expires: 60", "Refer-To: <sip:b@example.com>", "RAck: 1 1 SUBSCRIBE"),
        "Content-Length: 0\r\n\r\n",
    ]
    return "\r\n".join(lines).encode()


async def was_answered(server: ScriptedNotifier, cseq: str) -> bool:
    """Whether the answer to a request of ours has arrived."""
    try:
        await server.receive(lambda message: message.code > 0 and message["cseq"] == cseq, 0)
    except TimeoutError:
        return False
    return True


async def test_answers_name_the_methods_that_are_served(transport: str) -> None:
    """Our answer to a NOTIFY names in Allow the methods that are answered (RFC 3261 section 20.5), and no extension in
    Supported."""
    async with scene(transport) as (server, _, observer, address, asked):
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        answer, _ = await server.receive(lambda message: message["cseq"] == "1 NOTIFY")
        served = set()
        for number, method in enumerate(METHODS):
            cseq = 10 * number + 10
            if method == "NOTIFY":
                asked.notify(cseq)
            else:
                asked.send(request(method, asked, cseq))
            asked.notify(cseq + 1)  # answered after the request above, if that is answered
            await server.notify_answer(cseq + 1)
            if await was_answered(server, f"{cseq} {method}"):
                served.add(method)
        assert named(answer, "allow") == served == {"NOTIFY"}
        assert {name for name, _ in answer.headers} & PROMISES == {"allow"}


async def test_notify_of_an_event_that_is_not_named(transport: str) -> None:
    """A NOTIFY of an event that Allow-Events does not name changes nothing that was observed."""
    async with scene(transport) as (_, watcher, observer, address, asked):
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        asked.notify(2, b"<dialog-info/>", event="dialog")
        await until_refused(watcher, "refused")
        assert observer.bodies(address) == [OPEN]


@pytest.mark.parametrize(
    ("constant", "value", "said"),
    [
        ("_SUPPORTED", 5, "another layout of the header Supported"),
        ("_ALLOW", 36, "another layout of the header Allow"),
        ("MEDIA_TYPE", "text/plain", "another layout of the header Accept"),
        ("EVENT", "winfo", "another layout of the event package winfo"),
    ],
)
async def test_other_builds_are_refused(constant: str, value: object, said: str) -> None:
    """A PJSIP whose headers are not those that the gateway knows is refused with the reason."""
    command = [sys.executable, "-m", "tests.support.pjsip_capabilities", constant, json.dumps(value)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(DEADLINE_S):
        output, _ = await process.communicate()
    assert said in output.decode()
