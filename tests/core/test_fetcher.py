"""Tests of `app/core/fetcher.py`: how queries share fetches, how fetches end, and how they fail."""

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import pytest

from app.core.fetcher import FetchService
from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    DocumentUnreadable,
    FetchTimedOut,
    GatewayOverloaded,
    PresenceUnavailable,
    TerminalStatusError,
    TerminalUnknown,
)
from app.domain.statuses import Source, Status, TerminalStatus
from app.ports.sip import ReceivedNotify
from tests.support.fakes import OBSERVED_AT, ON_THE_PHONE, OPEN, FakeMeter, FakeWatcher, make_service

ALICE, BOB, CAROL = (TerminalAddress(f"sip:{name}@example.com") for name in ("alice", "bob", "carol"))


@dataclass
class Asked:
    """A fetch that waits for the test to answer it."""

    address: TerminalAddress
    answer: asyncio.Future[bytes] = field(default_factory=asyncio.Future)


@dataclass
class WaitingWatcher(FakeWatcher):
    """A watcher whose fetches the test takes from `fetches` and answers one by one."""

    fetches: asyncio.Queue[Asked] = field(default_factory=asyncio.Queue)

    async def fetch(self, address: TerminalAddress, client_id: str = "") -> ReceivedNotify:
        self.asked.append(address)
        asked = Asked(address)
        self.fetches.put_nowait(asked)
        try:
            body = await asked.answer
        except asyncio.CancelledError:
            self.cancelled.append(address)
            raise
        return ReceivedNotify(body=body, content_type="", content_encoding="", observed_at=OBSERVED_AT)

    async def next_fetch(self) -> Asked:
        async with asyncio.timeout(5):
            return await self.fetches.get()


@pytest.fixture(autouse=True)
async def _no_leftover_tasks() -> AsyncIterator[None]:
    """After each test, every task that the test or the service started has ended."""
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


def ask(service: FetchService, address: TerminalAddress, client_id: str = "") -> asyncio.Task[TerminalStatus]:
    return asyncio.create_task(service.fetch(address, client_id))


async def leave(caller: asyncio.Task[TerminalStatus]) -> None:
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


@pytest.mark.parametrize(
    ("body", "status"),
    [(OPEN, Status.REACHABLE), (ON_THE_PHONE, Status.BUSY), (b"", Status.UNREACHABLE)],
    ids=["open", "on the phone", "empty"],
)
async def test_status_is_what_the_presence_server_says(body: bytes, status: Status) -> None:
    """A query is sent to the presence server; the answer has its time and source."""
    watcher, meter = FakeWatcher(lambda _: body), FakeMeter()
    answer = await make_service(watcher, meter).fetch(ALICE)
    assert answer == TerminalStatus(address=ALICE, status=status, observed_at=OBSERVED_AT, source=Source.FETCH)
    assert watcher.asked == [ALICE]
    assert meter.outcomes == [status.name]


@pytest.mark.parametrize("ready", [True, False])
async def test_ready_is_the_watchers(ready: bool) -> None:
    """The service is ready exactly when its watcher is."""
    assert make_service(FakeWatcher(ready=ready)).ready is ready


async def test_concurrent_questions_share_one_fetch() -> None:
    """Concurrent fetches of one terminal share one SUBSCRIBE, counted once."""
    watcher, meter = WaitingWatcher(), FakeMeter()
    service = make_service(watcher, meter)
    callers = [ask(service, ALICE) for _ in range(3)]
    fetch = await watcher.next_fetch()
    late = ask(service, ALICE)
    await asyncio.sleep(0)  # lets the late caller join
    fetch.answer.set_result(ON_THE_PHONE)
    answers = await asyncio.gather(*callers, late)
    assert {answer.status for answer in answers} == {Status.BUSY}
    assert watcher.asked == [ALICE]
    assert meter.outcomes == ["BUSY"]


async def test_different_terminals_do_not_share() -> None:
    """Different terminals are fetched separately, each with its own answer."""
    watcher = WaitingWatcher()
    service = make_service(watcher)
    alice, bob = ask(service, ALICE), ask(service, BOB)
    for _ in range(2):
        fetch = await watcher.next_fetch()
        fetch.answer.set_result(OPEN if fetch.address == ALICE else b"")
    assert (await bob).status is Status.UNREACHABLE
    assert (await alice).status is Status.REACHABLE
    assert sorted(watcher.asked) == [ALICE, BOB]


async def test_each_new_query_is_a_new_fetch() -> None:
    """Answers are not cached: each later query is a new SUBSCRIBE."""
    watcher, meter = FakeWatcher(), FakeMeter()
    service = make_service(watcher, meter)
    for _ in range(3):
        await service.fetch(ALICE)
    assert watcher.asked == [ALICE] * 3
    assert meter.outcomes == ["REACHABLE"] * 3


async def test_query_after_the_answer_but_before_its_delivery_is_a_new_fetch() -> None:
    """A query never gets an answer from before the query, even where the earlier fetch has just ended."""
    watcher = WaitingWatcher()
    service = make_service(watcher)
    first = ask(service, ALICE)
    (await watcher.next_fetch()).answer.set_result(OPEN)
    await asyncio.sleep(0)  # the fetch has ended; the task of its caller has not run yet
    second = ask(service, ALICE)
    (await watcher.next_fetch()).answer.set_result(ON_THE_PHONE)
    assert (await first).status is Status.REACHABLE
    assert (await second).status is Status.BUSY


async def test_caller_that_leaves_disturbs_nobody() -> None:
    """When a caller leaves, even the first one, the other callers still get their answer."""
    watcher = WaitingWatcher()
    service = make_service(watcher)
    first, second, third = (ask(service, ALICE) for _ in range(3))
    fetch = await watcher.next_fetch()
    await leave(first)
    await leave(third)
    fetch.answer.set_result(OPEN)
    assert (await second).status is Status.REACHABLE
    assert (watcher.asked, watcher.cancelled) == ([ALICE], [])


async def test_last_caller_leaving_gives_the_fetch_up() -> None:
    """When the last caller leaves, the fetch is cancelled and not counted; the next query starts a new fetch."""
    watcher, meter = WaitingWatcher(), FakeMeter()
    service = make_service(watcher, meter)
    first, second = ask(service, ALICE), ask(service, ALICE)
    await watcher.next_fetch()
    await leave(first)
    assert watcher.cancelled == []
    await leave(second)
    third = ask(service, ALICE)
    (await watcher.next_fetch()).answer.set_result(OPEN)
    assert (await third).status is Status.REACHABLE
    assert (watcher.asked, watcher.cancelled) == ([ALICE] * 2, [ALICE])
    assert meter.outcomes == ["REACHABLE"]


async def test_new_question_while_the_old_fetch_is_being_given_up() -> None:
    """A query that comes while the last caller leaves gets its own fetch; the cancelled one does not affect it."""
    watcher = WaitingWatcher()
    service = make_service(watcher)
    first = ask(service, ALICE)
    await watcher.next_fetch()
    first.cancel()
    await asyncio.sleep(0)  # the caller has left; its fetch has not noticed yet
    second, third = ask(service, ALICE), ask(service, ALICE)
    (await watcher.next_fetch()).answer.set_result(OPEN)
    assert (await second).status is (await third).status is Status.REACHABLE
    assert (watcher.asked, watcher.cancelled) == ([ALICE] * 2, [ALICE])
    assert first.cancelled()


async def test_time_limit() -> None:
    """A fetch without a timely answer ends with FetchTimedOut, and the watcher gives it up."""
    watcher, meter = FakeWatcher(lambda _: None), FakeMeter()
    service = make_service(watcher, meter, fetch_timeout_s=0)
    results = await asyncio.gather(*(service.fetch(ALICE) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [FetchTimedOut] * 3
    assert (watcher.asked, watcher.cancelled) == ([ALICE], [ALICE])
    assert meter.outcomes == ["FETCH_TIMED_OUT"]


async def test_error_reaches_everyone_who_shares() -> None:
    """An error of the watcher reaches all callers of the fetch, with the address, and is counted once."""
    error = PresenceUnavailable("Down.", retry_after_s=7, sip_code="503")
    watcher, meter = FakeWatcher(lambda _: error), FakeMeter()
    service = make_service(watcher, meter)
    results = await asyncio.gather(*(service.fetch(ALICE) for _ in range(3)), return_exceptions=True)
    assert results == [error] * 3
    assert error.details == {"sip_code": "503", "address": ALICE}
    assert watcher.asked == [ALICE]
    assert meter.outcomes == ["PRESENCE_UNAVAILABLE"]


async def test_query_after_an_error_is_a_new_fetch() -> None:
    """An error is not remembered."""
    answers: list[bytes | TerminalStatusError] = [TerminalUnknown("No such terminal."), OPEN]
    service = make_service(FakeWatcher(lambda _: answers.pop(0)))
    with pytest.raises(TerminalUnknown):
        await service.fetch(ALICE)
    assert (await service.fetch(ALICE)).status is Status.REACHABLE


async def test_error_nobody_waits_for_is_swallowed() -> None:
    """Where a fetch fails while its last caller leaves, the event loop reports no unretrieved exception."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    watcher = WaitingWatcher()
    caller = ask(make_service(watcher), ALICE)
    (await watcher.next_fetch()).answer.set_exception(TerminalUnknown("No such terminal."))
    await asyncio.sleep(0)  # the fetch has failed; the task of its caller has not run yet
    await leave(caller)
    gc.collect()  # asyncio reports an unretrieved exception when its task is collected
    assert complaints == []


async def test_unreadable_document() -> None:
    """A document that cannot be read is an error about that terminal, with the reason, and is counted once."""
    meter = FakeMeter()
    service = make_service(FakeWatcher(lambda _: b"<presence"), meter)
    with pytest.raises(DocumentUnreadable) as caught:
        await service.fetch(ALICE)
    assert caught.value.details == {"reason": "malformed", "address": ALICE}
    assert meter.outcomes == ["DOCUMENT_UNREADABLE"]


@pytest.mark.parametrize(
    ("content_type", "content_encoding", "reason"),
    [("multipart/related", "", "content-type"), ("application/pidf+xml", "gzip", "content-encoding")],
)
async def test_headers_reach_the_reader(content_type: str, content_encoding: str, reason: str) -> None:
    """The NOTIFY's media type and content coding decide how its body is read."""

    class HeaderWatcher(FakeWatcher):
        async def fetch(self, address: TerminalAddress, client_id: str = "") -> ReceivedNotify:
            return ReceivedNotify(
                body=OPEN, content_type=content_type, content_encoding=content_encoding, observed_at=OBSERVED_AT
            )

    with pytest.raises(DocumentUnreadable) as caught:
        await make_service(HeaderWatcher()).fetch(ALICE)
    assert caught.value.details["reason"] == reason


async def test_activities_are_weighed_at_the_time_of_the_notify() -> None:
    """RFC 4480 section 3.2: `until` is compared with the time at which the NOTIFY came."""

    def answer(body: bytes, _: TerminalAddress) -> bytes:
        return body

    for minutes, expected in ((-2, Status.REACHABLE), (2, Status.BUSY)):
        until = (OBSERVED_AT + timedelta(minutes=minutes)).isoformat().encode()
        body = ON_THE_PHONE.replace(b"<rpid:activities>", b'<rpid:activities until="' + until + b'">')
        assert body != ON_THE_PHONE
        watcher = FakeWatcher(partial(answer, body))
        assert (await make_service(watcher).fetch(ALICE)).status == expected


async def test_busy_when_closed() -> None:
    """With TS_BUSY_WHEN_CLOSED a busy activity counts without an open tuple."""
    watcher = FakeWatcher(lambda _: ON_THE_PHONE.replace(b">open<", b">closed<"))
    for busy_when_closed, expected in ((False, Status.UNREACHABLE), (True, Status.BUSY)):
        service = FetchService(
            watcher,
            FakeMeter(),
            busy_activities={"on-the-phone"},
            busy_when_closed=busy_when_closed,
            fetch_timeout_s=5,
            max_fetches=1,
        )
        assert (await service.fetch(ALICE)).status == expected


async def test_overload() -> None:
    """At the limit of fetches, a query for a new terminal is refused; a query that shares a fetch is not. The limit
    frees up again."""
    watcher, meter = WaitingWatcher(), FakeMeter()
    service = FetchService(
        watcher, meter, busy_activities=set(), busy_when_closed=False, fetch_timeout_s=5, max_fetches=2
    )
    callers = [ask(service, ALICE), ask(service, BOB, "other")]
    fetches = [await watcher.next_fetch() for _ in callers]
    with pytest.raises(GatewayOverloaded, match="2 fetches are in flight") as caught:
        await service.fetch(CAROL)
    assert caught.value.retry_after_s == 1
    callers.append(ask(service, ALICE))
    await asyncio.sleep(0)  # lets the third caller join
    fetches[0].answer.set_result(OPEN)
    await callers[0]
    callers.append(ask(service, CAROL))
    for fetch in (fetches[1], await watcher.next_fetch()):
        fetch.answer.set_result(OPEN)
    answers = await asyncio.gather(*callers)
    assert [answer.address for answer in answers] == [ALICE, BOB, ALICE, CAROL]
    assert meter.outcomes == ["REACHABLE"] * 3


async def test_fetch_given_up_makes_room() -> None:
    """A fetch whose caller has left no longer counts towards the limit."""
    watcher = WaitingWatcher()
    service = FetchService(
        watcher, FakeMeter(), busy_activities=set(), busy_when_closed=False, fetch_timeout_s=5, max_fetches=1
    )
    first = ask(service, ALICE)
    await watcher.next_fetch()
    await leave(first)
    second = ask(service, BOB)
    (await watcher.next_fetch()).answer.set_result(OPEN)
    assert (await second).address == BOB


async def test_no_client_begins_more_fetches_than_are_left_to_the_others() -> None:
    """One client may have half of the fetches, a second client half of the rest, and so on; each fetch that ends makes
    room."""
    watcher = WaitingWatcher()
    service = FetchService(
        watcher, FakeMeter(), busy_activities=set(), busy_when_closed=False, fetch_timeout_s=5, max_fetches=16
    )
    callers, begun = list[asyncio.Task[TerminalStatus]](), dict[str, int]()
    for client in ("a", "b", "c"):
        for number in range(16):
            caller = ask(service, TerminalAddress(f"sip:{number}@example.com"), client)
            await asyncio.sleep(0)
            if caller.done():
                with pytest.raises(GatewayOverloaded, match=f"{number} fetches of this client"):
                    await caller
                break
            callers.append(caller)
        begun[client] = number
    assert begun == {"a": 8, "b": 4, "c": 2}
    (await watcher.next_fetch()).answer.set_result(OPEN)
    await callers[0]
    callers.append(ask(service, ALICE, "d"))
    for _ in callers[1:]:
        (await watcher.next_fetch()).answer.set_result(OPEN)
    await asyncio.gather(*callers)
    assert not service._of_client  # noqa: SLF001  # it grows with clients that ask, not with clients


async def test_two_clients_do_not_share_a_fetch() -> None:
    """Clients do not share a fetch: one would wait for the other's turn and end at the other's time limit."""
    watcher = WaitingWatcher()
    service = make_service(watcher)
    callers = [ask(service, ALICE, "a"), ask(service, ALICE, "b"), ask(service, ALICE, "b")]
    for _ in range(2):
        (await watcher.next_fetch()).answer.set_result(OPEN)
    await asyncio.gather(*callers)
    assert watcher.asked == [ALICE] * 2
