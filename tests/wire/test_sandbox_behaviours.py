"""Each row of the sandbox's table of behaviours, with the essential bytes."""

import gzip
import hashlib
import re
import time
from collections.abc import Callable

import pytest
from lxml import etree

from app.sandbox import Sandbox
from app.sandbox.behaviours import BEHAVIOURS, behaviour_of
from app.sandbox.terminals import initial_statuses
from tests.support.sandbox import ALICE, OPEN, Watch, client, fetch, sandbox, udp
from tests.support.sip_terminal import EVENT, SipClient, SipMessage, unique
from tests.support.waiting import until

__all__ = ["client", "sandbox", "udp"]  # fixtures


def test_every_row_of_the_table_is_tried_here() -> None:
    """Each pattern matches a user part that a test below uses, and no honest terminal's."""
    tried = {user for user, *_ in DOCUMENTS} | {*STATES, *FINAL} | OTHERWISE_TRIED
    missing = [pattern for pattern in BEHAVIOURS if not any(_row(user) == pattern for user in tried)]
    assert missing == []
    assert all(line and "\n" not in line for _, line in BEHAVIOURS.values())
    assert [user for user in initial_statuses(1) if behaviour_of(user)] == []


def _row(user: str) -> str | None:
    found = behaviour_of(user)
    if found is None:
        return None
    return next(
        pattern for pattern, (behaviour, _) in BEHAVIOURS.items() if behaviour is found[0] and _matches(pattern, user)
    )


def _matches(pattern: str, user: str) -> bool:
    return re.fullmatch(pattern, user) is not None


OTHERWISE_TRIED = {
    "silent",
    "fetch-481",
    "list-empty",
    "notify-wrong",
    "notify-first",
    "notify-twice",
    "notify-never",
    "notify-late-50",
    "length-lies",
}


OTHERWISE_TRIED |= {
    "granted-5",
    "refresh-200-5",
    "expires-zero-notify",
    "forked",
    "dead-dialog",
    "cseq-back",
    "no-state",
    "digest-md5",
}


FINAL = {
    "answer-401": ("www-authenticate", "Digest "),
    "answer-407": ("proxy-authenticate", "Digest "),
    "answer-403": ("to", "<sip:answer-403"),
    "answer-404": ("to", "<sip:answer-404"),
    "answer-423": ("min-expires", "60"),
    "answer-480": ("retry-after", "7"),
    "answer-489": ("to", ""),
    "answer-500": ("to", ""),
    "answer-503": ("retry-after", "7"),
    "answer-603": ("to", ""),
    "answer-699": ("to", ""),
}


@pytest.mark.parametrize("user", FINAL)
async def test_answer_with_a_status(client: SipClient, sandbox: Sandbox, user: str) -> None:
    """`answer-NNN` answers each SUBSCRIBE with this status and its header, without a NOTIFY."""
    name, start = FINAL[user]
    for _ in range(2):
        response, _notify = await client.fetch(f"sip:{user}@example.com")
        assert response.code == int(user[-3:])
        assert response[name].startswith(start)
        assert response.to_tag
    assert sandbox.counters.notifies == {}
    assert sandbox.counters.subscribes == {f"sip:{user}@example.com": 2}


async def test_423_is_honest_from_its_minimum_on(client: SipClient, sandbox: Sandbox) -> None:
    """`answer-423` accepts a SUBSCRIBE of 60 seconds, and its unsubscribe."""
    watch = Watch(client, "sip:answer-423@example.com")
    assert (await watch.subscribe(59)).code == 423
    assert (await watch.subscribe(60)).code == 200
    notify = await watch.notify()
    assert (notify["subscription-state"], OPEN in notify.body) == ("active;expires=60", True)
    assert (await watch.subscribe(0)).code == 200
    assert (await watch.notify())["subscription-state"] == "terminated;reason=timeout"
    assert sandbox.subscriptions == {}


async def test_481_to_a_fetch(client: SipClient, sandbox: Sandbox) -> None:
    """`fetch-481` refuses a fetch, accepts a subscription, and ends it by Expires 0 in its dialog."""
    response, _ = await client.fetch("sip:fetch-481@example.com")
    assert response.code == 481
    watch = Watch(client, "sip:fetch-481@example.com")
    assert (await watch.subscribe(60)).code == 200
    assert OPEN in (await watch.notify()).body
    assert (await watch.subscribe(0)).code == 200
    assert (await watch.notify())["subscription-state"] == "terminated;reason=timeout"
    assert sandbox.subscriptions == {}


@pytest.mark.parametrize(("user", "has_body"), [("list-empty", False), ("list-rlmi", True)])
async def test_list(client: SipClient, user: str, has_body: bool) -> None:
    """`list-…` sends NOTIFYs that require eventlist, or answers 421."""
    notify = await fetch(client, user)
    assert (notify["require"], bool(notify.body)) == ("eventlist", has_body)
    response, _ = await client.fetch("sip:list-421@example.com")
    assert (response.code, response["require"]) == (421, "eventlist")


@pytest.mark.parametrize("user", ["accept-202", "answer-202"])
async def test_accept_with_202(client: SipClient, user: str) -> None:
    """`accept-202` behaves normally except for its code."""
    response, notify = await client.fetch(f"sip:{user}@example.com")
    assert notify is not None
    assert (response.code, OPEN in notify.body) == (202, True)


async def test_provisional_answer_only(udp: SipClient) -> None:
    """`answer-1NN` sends the provisional response and nothing after it."""
    udp.send(udp.request("SUBSCRIBE", "sip:answer-100@example.com", *EVENT, "Expires: 0"))
    assert (await udp.receive()).start == "SIP/2.0 100 Trying"


async def test_silent(client: SipClient, sandbox: Sandbox) -> None:
    """`silent` answers nothing, while a later request about another terminal is answered."""
    client.send(client.request("SUBSCRIBE", "sip:silent@example.com", *EVENT, "Expires: 0", call_id="silent"))
    await fetch(client, "alice")
    assert client.waiting == 0
    assert sandbox.counters.subscribes["sip:silent@example.com"] == 1


async def test_notify_first(client: SipClient) -> None:
    """`notify-first` sends the NOTIFY before the 200, in the same dialog."""
    client.send(client.request("SUBSCRIBE", "sip:notify-first@example.com", *EVENT, "Expires: 0"))
    first, second = await client.receive(), await client.receive(lambda message: message.code > 0)
    assert (first.method, second.code) == ("NOTIFY", 200)
    assert first["from"].endswith(f";tag={second.to_tag}")


async def test_notify_twice(client: SipClient) -> None:
    """`notify-twice` sends two NOTIFYs that differ in CSeq and branch only."""
    call_id = unique()
    await client.ask("SUBSCRIBE", "sip:notify-twice@example.com", *EVENT, "Expires: 0", call_id=call_id)
    one, two = await client.notify_for(call_id), await client.notify_for(call_id)
    assert (one["cseq"], two["cseq"], one.body) == ("1 NOTIFY", "2 NOTIFY", two.body)


async def test_notify_never(client: SipClient, sandbox: Sandbox) -> None:
    """`notify-never` answers 200 and sends no NOTIFY."""
    response = await client.ask("SUBSCRIBE", "sip:notify-never@example.com", *EVENT, "Expires: 0")
    await fetch(client, "alice")
    assert (response.code, client.waiting) == (200, 0)
    assert sandbox.counters.notifies == {ALICE: 1}


async def test_notify_late(client: SipClient) -> None:
    """`notify-late-MS` answers 200 at once and sends the NOTIFY after this time."""
    started = time.monotonic()
    notify = await fetch(client, "notify-late-50")
    assert time.monotonic() - started > 0.045  # timers are rounded to milliseconds
    assert OPEN in notify.body


STATES = {
    "pending": "pending",
    "terminated-rejected": "terminated;reason=rejected",
    "terminated-noresource": "terminated;reason=noresource",
    "terminated-deactivated": "terminated;reason=deactivated",
    "terminated-probation": "terminated;reason=probation",
    "terminated-giveup": "terminated;reason=giveup",
    "terminated-invariant": "terminated;reason=invariant",
    "terminated-probation-20": "terminated;reason=probation;retry-after=20",
    "accept-202": "terminated;reason=timeout",
}


@pytest.mark.parametrize("user", [user for user in STATES if user != "accept-202"])
async def test_notify_with_a_state_and_no_body(client: SipClient, user: str) -> None:
    """`pending` and `terminated-REASON` send this state without a body."""
    notify = await fetch(client, user)
    assert notify["subscription-state"] == STATES[user]
    assert (notify.body, notify["content-type"], notify["content-length"]) == (b"", "", "0")


@pytest.mark.parametrize(
    ("user", "expires", "states"),
    [
        ("granted-5", "5", ["active;expires=5"]),
        ("refresh-200-5", "5", ["active;expires=5"]),
        ("expires-zero-answer", "0", ["active"]),
        ("expires-zero-notify", "60", ["active;expires=0"]),
        ("cseq-back", "60", ["active;expires=60", "active;expires=60"]),
        ("no-state", "60", [""]),
        ("notify-wrong", "60", ["active;expires=60"] * 2),
        ("forked", "60", ["active;expires=60", "active;expires=600"]),
    ],
)
async def test_notifiers_that_bend_the_rules(client: SipClient, user: str, expires: str, states: list[str]) -> None:
    """Each behaviour grants and sends what its row says."""
    call_id = unique()
    answer = await client.ask("SUBSCRIBE", f"sip:{user}@example.com", *EVENT, "Expires: 60", call_id=call_id)
    notifies = [await client.notify_for(call_id) for _ in states]
    assert (answer.code, answer["expires"]) == (200, expires)
    assert [notify["subscription-state"] for notify in notifies] == states
    numbers = [int(notify["cseq"].split()[0]) for notify in notifies]
    assert (numbers != sorted(numbers)) is (user == "cseq-back")
    assert len({notify["from"] for notify in notifies}) == (2 if user == "forked" else 1)


async def test_notify_of_a_dead_dialog(client: SipClient) -> None:
    """`dead-dialog` sends a second NOTIFY with an unknown Call-ID."""
    call_id = unique()
    await client.ask("SUBSCRIBE", "sip:dead-dialog@example.com", *EVENT, "Expires: 60", call_id=call_id)
    await client.notify_for(call_id)
    assert (await client.receive(lambda message: message.method == "NOTIFY"))["call-id"].startswith("dead-")


@pytest.mark.parametrize(
    ("user", "algorithms", "hashed"),
    [
        ("digest-md5", ["MD5"], hashlib.md5),
        ("digest-sha256", ["SHA-256"], hashlib.sha256),
        ("digest-both", ["SHA-256", "MD5"], hashlib.sha256),
    ],
)
async def test_digest_is_checked(
    client: SipClient, user: str, algorithms: list[str], hashed: Callable[[bytes], "hashlib._Hash"]
) -> None:
    """`digest-…` accepts the right password for its nonce, once."""
    uri, call_id = f"sip:{user}@example.com", unique()

    async def ask(cseq: int, nonce: str, password: str) -> SipMessage:
        def digest(text: str) -> str:
            return hashed(text.encode()).hexdigest()

        answer = digest(f"{digest(f'watcher:sandbox:{password}')}:{nonce}:00000001:c:auth:{digest(f'SUBSCRIBE:{uri}')}")
        credentials = (
            f'Authorization: Digest username="watcher", realm="sandbox", nonce="{nonce}", uri="{uri}", '
            f'response="{answer}", algorithm={algorithms[0]}, qop=auth, nc=00000001, cnonce="c"'
        )
        return await client.ask("SUBSCRIBE", uri, *EVENT, "Expires: 0", credentials, call_id=call_id, cseq=cseq)

    nonce = ""
    for cseq, password, code in ((1, "secret", 401), (2, "wrong", 401), (3, "secret", 200), (4, "secret", 401)):
        answer = await ask(cseq, nonce, password)
        assert answer.code == code
        if code == 401:
            challenges = answer.all("www-authenticate")
            assert [challenge.partition("algorithm=")[2].partition(",")[0] for challenge in challenges] == algorithms
            nonce = challenges[0].partition('nonce="')[2].partition('"')[0]


async def test_terminated_leaves_no_subscription(client: SipClient, sandbox: Sandbox) -> None:
    """A SUBSCRIBE to `terminated-REASON` is accepted and its subscription is over at once; at `pending` it stays."""
    watch = Watch(client, "sip:terminated-deactivated@example.com")
    assert (await watch.subscribe(60)).code == 200
    await watch.notify()
    assert sandbox.subscriptions == {}
    pending = Watch(client, "sip:pending@example.com")
    await pending.subscribe(60)
    assert (await pending.notify())["subscription-state"] == "pending;expires=60"
    assert sandbox.subscriptions == {"sip:pending@example.com": 1}
    await pending.subscribe(0)
    assert (await pending.notify())["subscription-state"] == "terminated;reason=timeout"


DOCUMENTS: list[tuple[str, Callable[[SipMessage], bool]]] = [
    ("document-no-id", lambda notify: b"<tuple><status><basic>open" in notify.body and _parses(notify.body)),
    ("document-comment", lambda notify: b"<basic><!-- two -->open<?three?></basic>" in notify.body),
    ("document-prefix", lambda notify: b"<p:basic>open<" in notify.body and b"<_:on-the-phone/>" in notify.body),
    ("document-ten-tuples", lambda notify: (notify.body.count(b"<tuple"), notify.body.count(OPEN)) == (10, 1)),
    ("document-latin1", lambda notify: b'encoding="UTF-8"' in notify.body and b"d\xe9j\xe0" in notify.body),
    ("document-cut", lambda notify: not _parses(notify.body)),
    ("document-gzip", lambda notify: OPEN in gzip.decompress(notify.body) and notify["content-encoding"] == "gzip"),
    (
        "document-rlmi",
        lambda notify: notify["content-type"].startswith("multipart/related;") and notify.body.count(b"--cut") == 3,
    ),
    ("document-bomb", lambda notify: b'<!ENTITY e9 "&e8;' in notify.body and b"<note>&e9;</note>" in notify.body),
    ("document-dtd", lambda notify: b"<!DOCTYPE presence>" in notify.body and _parses(notify.body)),
    ("document-empty", lambda notify: (notify.body, notify["content-type"]) == (b"", "")),
    ("document-text", lambda notify: notify["content-type"] == "text/plain"),
    ("document-big-3000", lambda notify: len(notify.body) == 3000 and _parses(notify.body)),
]


def _parses(body: bytes) -> bool:
    try:
        etree.fromstring(body)
    except etree.XMLSyntaxError:
        return False
    return True


@pytest.mark.parametrize(("user", "holds"), DOCUMENTS, ids=[user for user, _ in DOCUMENTS])
async def test_bad_document(client: SipClient, user: str, holds: Callable[[SipMessage], bool]) -> None:
    """Each `document-…` sends the document of its row, with a true Content-Length."""
    notify = await fetch(client, user)
    assert holds(notify)
    assert notify["content-length"] == str(len(notify.body))
    assert _parses(notify.body) or user not in ("document-comment", "document-prefix", "document-ten-tuples")


async def test_big_document_over_tcp(sandbox: Sandbox) -> None:
    """Over TCP a document may be larger than a datagram."""
    async with SipClient(sandbox.host, sandbox.port, tcp=True) as client:
        assert len((await fetch(client, "document-big-400000")).body) == 400_000
    async with SipClient(sandbox.host, sandbox.port) as client:
        client.send(client.request("SUBSCRIBE", "sip:document-big-400000@example.com", *EVENT, "Expires: 0"))
        await until(lambda: sandbox.counters.other["dropped"] > 0)


async def test_length_lies(sandbox: Sandbox, udp: SipClient) -> None:
    """`length-lies` claims 100 bytes more than it sends over UDP, and none over TCP."""
    notify = await fetch(udp, "length-lies")
    assert int(notify["content-length"]) == len(notify.body) + 100
    async with SipClient(sandbox.host, sandbox.port, tcp=True) as client:
        assert OPEN in (await fetch(client, "length-lies")).body
