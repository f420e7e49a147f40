"""Every face gives the same answer: a real client asks gRPC, REST and SOAP about each terminal of the sandbox, honest
and hostile, and each next query is answered too."""

import asyncio

import httpx2
import pytest

from app.cli.face_clients import Answer, get_status
from app.domain.statuses import Status
from app.main import Gateway, run_gateway
from app.sandbox import Sandbox
from tests.support.receivers import receiver
from tests.support.settings import settings_for
from tests.support.soap_requests import ENDPOINT, REFERENCE, end, start
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FACES = ("grpc", "rest", "soap")
CODE_COLUMN = {"grpc": 0, "rest": 0, "soap": 1}

STATUSES = {
    "sip:alice@example.com": "REACHABLE",
    "sip:bob@example.com": "BUSY",
    "sip:carol@example.com": "UNREACHABLE",
    "sips:alice@example.com": "REACHABLE",
    "tel:+15550001": "REACHABLE",
    "tel:+1-555-0002": "BUSY",
    "sip:answer-423@example.com": "REACHABLE",
    "sip:accept-202@example.com": "REACHABLE",
    "sip:notify-first@example.com": "REACHABLE",
    "sip:notify-twice@example.com": "REACHABLE",
    "sip:document-no-id@example.com": "REACHABLE",
    "sip:document-comment@example.com": "REACHABLE",
    "sip:document-prefix@example.com": "BUSY",
    "sip:document-ten-tuples@example.com": "REACHABLE",
    "sip:document-empty@example.com": "UNREACHABLE",
    "sip:document-big-2500@example.com": "REACHABLE",
}

MISCONFIGURED = ("PRESENCE_MISCONFIGURED", "SVC0001")
UNAVAILABLE = ("PRESENCE_UNAVAILABLE", "SVC0001")
UNREADABLE = ("DOCUMENT_UNREADABLE", "SVC0001")
UNKNOWN = ("TERMINAL_UNKNOWN", "SVC0004")
REFUSED = ("WATCHER_REFUSED", "POL0002")
TIMED_OUT = ("FETCH_TIMED_OUT", "SVC0001")
INVALID = ("INVALID_ADDRESS", "SVC0002")

ERRORS = {
    "sip:dave@example.com": UNKNOWN,
    "sip:answer-400@example.com": MISCONFIGURED,
    "sip:answer-401@example.com": ("WATCHER_UNAUTHENTICATED", "POL0002"),
    "sip:answer-403@example.com": REFUSED,
    "sip:answer-404@example.com": UNKNOWN,
    "sip:answer-405@example.com": MISCONFIGURED,
    "sip:answer-406@example.com": MISCONFIGURED,
    "sip:answer-407@example.com": ("WATCHER_UNAUTHENTICATED", "POL0002"),
    "sip:answer-408@example.com": UNAVAILABLE,
    "sip:answer-415@example.com": MISCONFIGURED,
    "sip:answer-420@example.com": MISCONFIGURED,
    "sip:answer-480@example.com": UNAVAILABLE,
    "sip:answer-489@example.com": MISCONFIGURED,
    "sip:answer-500@example.com": UNAVAILABLE,
    "sip:answer-503@example.com": UNAVAILABLE,
    "sip:answer-603@example.com": REFUSED,
    "sip:answer-604@example.com": UNKNOWN,
    "sip:silent@example.com": TIMED_OUT,
    "sip:notify-never@example.com": TIMED_OUT,
    "sip:notify-late-2000@example.com": TIMED_OUT,
    "sip:pending@example.com": REFUSED,
    "sip:terminated-rejected@example.com": REFUSED,
    "sip:terminated-noresource@example.com": UNKNOWN,
    "sip:terminated-deactivated@example.com": UNAVAILABLE,
    "sip:terminated-probation@example.com": UNAVAILABLE,
    "sip:terminated-giveup@example.com": UNAVAILABLE,
    "sip:document-latin1@example.com": UNREADABLE,
    "sip:document-cut@example.com": UNREADABLE,
    "sip:document-gzip@example.com": UNREADABLE,
    "sip:document-rlmi@example.com": UNREADABLE,
    "sip:document-bomb@example.com": UNREADABLE,
    "sip:document-dtd@example.com": UNREADABLE,
    "sip:document-text@example.com": UNREADABLE,
    "alice": INVALID,
    "mailto:alice@example.com": INVALID,
    "sip:al ice@example.com": INVALID,
    "sip:alice@example.com\x01": INVALID,
    "sip:" + "a" * 300 + "@example.com": INVALID,
}


async def ask_through(gateway: Gateway, face: str, address: str) -> Answer:
    server = gateway.grpc_address if face == "grpc" else gateway.http_address
    return await asyncio.to_thread(get_status, face, server, address, 5)


@pytest.mark.parametrize(("address", "status"), STATUSES.items())
@pytest.mark.parametrize("face", FACES)
async def test_status(gateway: Gateway, face: str, address: str, status: str) -> None:
    """A terminal that the presence server knows has the same status on every face."""
    answer = await ask_through(gateway, face, address)
    assert answer.get("status") == status, answer


@pytest.mark.parametrize(("address", "codes"), ERRORS.items(), ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("face", FACES)
async def test_error(gateway: Gateway, face: str, address: str, codes: tuple[str, str]) -> None:
    """A query that cannot be answered has the code of the error table on every face, and the next query is answered."""
    if face == "soap" and not address.isprintable():
        address = address.replace("\x01", "\t\u00a0")  # XML has no way to write most control characters
    answer = await ask_through(gateway, face, address)
    assert answer.get("code") == codes[CODE_COLUMN[face]], answer
    following = await ask_through(gateway, face, "sip:alice@example.com")
    assert following.get("status") == "REACHABLE", following


async def test_large_document(gateway: Gateway) -> None:
    """A document beyond PJSIP's buffer is read, even where UDP cuts it first: it is fetched again over TCP."""
    answer = await ask_through(gateway, "rest", "sip:document-big-20000@example.com")
    assert answer["status"] == "REACHABLE"


async def test_cut_document(gateway: Gateway) -> None:
    """Over UDP, a NOTIFY with a longer Content-Length than its body is not read; the terminal is fetched again over
    TCP."""
    assert (await ask_through(gateway, "rest", "sip:length-lies@example.com"))["status"] == "REACHABLE"


async def test_end_notification_ends_the_watch_at_once(sandbox: Sandbox) -> None:
    """With TS_LINGER_S=0 endNotification sends SUBSCRIBE with `Expires: 0` in the dialog at once (3GPP TS 29.199-8; RFC
    6665 section 4.1.2.3), so the presence server has no subscription left."""
    sandbox.set_status("linger", Status.REACHABLE)
    terminal = "sip:linger@example.com"
    settings = settings_for(
        f"{sandbox.uri};transport=udp", linger_s=0, sink_allow_http=True, sink_allowed_networks="127.0.0.0/8"
    )
    async with receiver() as there, run_gateway(settings) as gateway, httpx2.AsyncClient() as client:
        url = f"http://{gateway.http_address}/parlayx/TerminalStatusNotificationManager"
        reference = REFERENCE.replace(ENDPOINT, there.url)
        body = start(reference=reference, addresses=f"<l:addresses>{terminal}</l:addresses>", criteria="")
        headers = {"Content-Type": "text/xml"}
        assert (await client.post(url, content=body, headers=headers)).status_code == 200
        await until(lambda: sandbox.subscriptions.get(terminal) == 1)
        assert (await client.post(url, content=end(), headers=headers)).status_code == 200
        await until(lambda: terminal not in sandbox.subscriptions)
        assert sandbox.counters.subscribes[terminal] == 2
