"""Tests of `app/core/queries.py`: queries of one terminal and of many."""

import asyncio
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.core.queries import MAX_AT_ONCE, RetrievalStatus, TerminalResult
from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    FetchTimedOut,
    GatewayOverloaded,
    GroupNotAllowed,
    InvalidAddress,
    InvalidRequest,
    RateLimited,
    TerminalStatusError,
    TerminalUnknown,
    TooManyAddresses,
    WatcherRefused,
)
from app.domain.operations import Face
from app.domain.policy import Policy
from app.domain.records import MAX_USAGE_TARGETS, Client
from app.domain.statuses import Source, Status
from app.live.events import SnapshotComplete
from tests.support.core import (
    ADMIN,
    ALICE,
    APP,
    BOB,
    BUSY,
    CAROL,
    OTHER,
    REACHABLE,
    TEAM,
    UNREACHABLE,
    Core,
    new_database,
    reading,
    run_core,
)
from tests.support.waiting import until


async def results(core: Core, *addresses: str, client: Client = APP, **options: Any) -> dict[str, TerminalResult]:
    """The results of a whole query, by address."""
    async with aclosing(core.queries.query(client, addresses, face=Face.GRPC, **options)) as query:
        found = [result async for result in query]
    by_address: dict[str, TerminalResult] = {result.address: result for result in found}
    assert len(by_address) == len(found)
    return by_address


async def test_question_without_age_asks_the_presence_server(core: Core) -> None:
    """An age of 0 is always answered by a fetch, even while the terminal is watched."""
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, BUSY)
        status = await core.queries.get_status(APP, ALICE, face=Face.GRPC)
    assert (status.status, status.source, status.revision) == (REACHABLE, Source.FETCH, 0)


async def test_question_with_age_is_answered_from_a_live_watch(core: Core) -> None:
    """A live watch answers without SIP and without suspending the caller, whatever the spelling of the address."""
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, BUSY)
        core.clocks.advance(3600)
        question = core.queries.get_status(APP, ALICE, max_age_s=1, face=Face.GRPC)
        with pytest.raises(StopIteration) as answered:
            question.send(None)
        status = answered.value.value
        assert (status.status, status.source, status.revision) == (BUSY, Source.WATCH, 1)
        other = await core.queries.get_status(APP, "SIP:alice@EXAMPLE.COM", max_age_s=1, face=Face.GRPC)
        assert other == status
    assert core.watcher.fetched == []


async def test_stale_watch_answers_as_long_as_it_is_young(core: Core) -> None:
    """A status that is no longer live answers as long as its age is accepted; then the presence server is asked."""
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, BUSY)
        core.watcher.lose(ALICE)
        core.clocks.advance(10)
        young = await core.queries.get_status(APP, ALICE, max_age_s=11, face=Face.GRPC)
        old = await core.queries.get_status(APP, ALICE, max_age_s=9, face=Face.GRPC)
    assert (young.status, young.source) == (BUSY, Source.WATCH)
    assert (old.status, old.source) == (REACHABLE, Source.FETCH)


async def test_recent_fetch_answers_again(core: Core) -> None:
    """A fetched status answers again as long as its age is accepted."""
    await core.queries.get_status(APP, ALICE, face=Face.GRPC)
    core.clocks.advance(5)
    again = await core.queries.get_status(APP, "sip:alice@EXAMPLE.com", max_age_s=6, face=Face.GRPC)
    assert again.source is Source.FETCH
    assert len(core.watcher.fetched) == 1
    await core.queries.get_status(APP, ALICE, max_age_s=4, face=Face.GRPC)
    assert len(core.watcher.fetched) == 2


async def test_the_newest_that_is_known_answers(core: Core) -> None:
    """A watch's observation that is newer than a fetch answers, while the watch is stale and after it has ended."""
    await core.queries.get_status(APP, ALICE, face=Face.GRPC)
    core.clocks.advance(1)
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, BUSY)
        core.watcher.lose(ALICE)
        assert (await core.queries.get_status(APP, ALICE, max_age_s=60, face=Face.GRPC)).status is BUSY
    await until(lambda: not core.live.engine.figures()["streams"])
    await core.advance(31)
    assert ALICE not in core.watcher.wanted
    assert (await core.queries.get_status(APP, ALICE, max_age_s=60, face=Face.GRPC)).status is BUSY
    found = (await results(core, ALICE, max_age_s=60))[ALICE].status
    assert found is not None
    assert found.status is BUSY
    await core.queries.get_status(APP, ALICE, face=Face.GRPC)
    assert (await core.queries.get_status(APP, ALICE, max_age_s=60, face=Face.GRPC)).status is REACHABLE
    assert len(core.watcher.fetched) == 2


async def test_what_could_not_be_read_counts_when_nobody_wants_it_any_more(core: Core) -> None:
    """After an unreadable document, earlier statuses no longer answer, even after the watch has ended."""
    await core.queries.get_status(APP, ALICE, face=Face.GRPC)
    core.clocks.advance(1)
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        core.watcher.send(ALICE, b"no document")
    await until(lambda: not core.live.engine.figures()["streams"])
    await core.advance(31)
    assert ALICE not in core.watcher.wanted
    async with reading(core, ALICE):  # the terminal is watched again, and the server is silent
        await until(lambda: ALICE in core.watcher.wanted)
        await core.queries.get_status(APP, ALICE, max_age_s=60, face=Face.GRPC)
    assert len(core.watcher.fetched) == 2


async def test_terminals_that_left_are_remembered_within_a_bound(core: Core) -> None:
    """The oldest of the terminals that are no longer watched are forgotten."""
    core.live.last_statuses._past.capacity = 1  # noqa: SLF001
    for address in (ALICE, BOB):
        async with reading(core, address):
            await until(partial(core.watcher.wanted.__contains__, address))
            await core.play(address, BUSY)
        await until(lambda: not core.live.engine.figures()["streams"])
        await core.advance(31)
    assert core.live.last_statuses.newest(ALICE, core.clocks.now, 1e9) is None
    assert core.live.last_statuses.newest(BOB, core.clocks.now, 1e9) is not None


async def test_a_status_from_the_future_has_no_age(core: Core) -> None:
    """A status whose time is in the future has no acceptable age."""
    await core.queries.get_status(APP, ALICE, face=Face.GRPC)
    core.clocks.advance(-3600)
    await core.queries.get_status(APP, ALICE, max_age_s=1, face=Face.GRPC)
    assert len(core.watcher.fetched) == 2


async def test_live_watch_that_a_fetch_contradicts_is_refreshed(core: Core) -> None:
    """A live watch is refreshed where a newer fetch has another status; once for all callers that shared the fetch."""
    refresh = f"refresh {ALICE}"
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, UNREACHABLE)
        await core.queries.get_status(APP, ALICE, face=Face.GRPC)
        assert refresh not in core.watcher.asked, "not newer"
        await core.advance(1)
        await asyncio.gather(*(core.queries.get_status(APP, ALICE, face=Face.GRPC) for _ in range(5)))
        assert core.watcher.asked.count(refresh) == core.live.registry.contradictions == 1
        await core.play(ALICE, REACHABLE)
        await core.advance(1)
        await core.queries.get_status(APP, ALICE, face=Face.GRPC)
        core.watcher.lose(ALICE)
        core.watcher.answer = lambda _: BUSY
        await core.queries.get_status(APP, ALICE, face=Face.GRPC)
        assert core.watcher.asked.count(refresh) == 1, "it agrees, or is not live"


async def test_question_that_is_refused(core: Core) -> None:
    """Groups, wrong ages and wrong addresses each have their own error."""
    await core.groups.create(APP, TEAM, [ALICE])
    for max_age_s in (0, 5):
        with pytest.raises(GroupNotAllowed):
            await core.queries.get_status(APP, TEAM, max_age_s=max_age_s, face=Face.GRPC)
        with pytest.raises(InvalidAddress):
            await core.queries.get_status(APP, "alice", max_age_s=max_age_s, face=Face.GRPC)
    for age in (-1, 86_401, float("nan"), float("inf")):
        with pytest.raises(InvalidRequest):
            await core.queries.get_status(APP, ALICE, max_age_s=age, face=Face.GRPC)


async def test_query_gives_each_terminal_its_own_result(core: Core) -> None:
    """Each terminal and each member of a group has one result: retrieved, not retrieved, or an error with its
    reason."""
    failures: dict[str, Status | TerminalStatusError | None] = {
        "sip:unknown@example.com": TerminalUnknown("404"),
        "sip:private@example.com": WatcherRefused("403"),
        "sip:silent@example.com": None,
    }
    core.watcher.answer = lambda address: failures.get(address, UNREACHABLE)
    await core.groups.create(APP, TEAM, [BOB, *failures])
    found = await results(core, ALICE, BOB, TEAM)
    reported = {
        address: (result.retrieval.name, result.error and result.error.code) for address, result in found.items()
    }
    assert reported == {
        ALICE: ("RETRIEVED", None),
        BOB: ("RETRIEVED", None),
        "sip:unknown@example.com": ("ERROR", "TERMINAL_UNKNOWN"),
        "sip:private@example.com": ("ERROR", "WATCHER_REFUSED"),
        "sip:silent@example.com": ("NOT_RETRIEVED", "FETCH_TIMED_OUT"),
    }
    assert isinstance(found["sip:silent@example.com"].error, FetchTimedOut)


async def test_query_is_bounded_and_comes_as_it_is_answered(core: Core) -> None:
    """A query has at most MAX_AT_ONCE fetches in flight; a result does not wait for slower ones; a caller that leaves
    gives up the rest."""
    addresses = [TerminalAddress(f"sip:t{i}@example.com") for i in range(1000)]
    assert len(await results(core, *addresses)) == 1000
    assert core.watcher.most_in_flight == MAX_AT_ONCE
    core.watcher.answer = lambda address: None if address == ALICE else BUSY
    async with aclosing(core.queries.query(APP, [ALICE, BOB], face=Face.GRPC)) as query:
        first = await anext(query)
        assert first.address == BOB
    await until(lambda: not core.watcher.in_flight)
    await until(lambda: core.usage.buffered == 0)
    assert [record.result for record in await core.usage_records()] == ["OK", "CANCELLED"]


async def test_query_takes_from_watches_what_is_live(core: Core) -> None:
    """With an age, only terminals without a live watch are fetched."""
    async with reading(core, ALICE):
        await until(lambda: ALICE in core.watcher.wanted)
        await core.play(ALICE, BUSY)
        found = await results(core, ALICE, BOB, max_age_s=1)
    assert core.watcher.fetched == [BOB]
    assert {a: r.status and (r.status.status, r.status.source) for a, r in found.items()} == {
        ALICE: (BUSY, Source.WATCH),
        BOB: (REACHABLE, Source.FETCH),
    }


async def test_query_above_the_limit(url: str) -> None:
    """A query above the limit is refused, or answered up to the limit with the other terminals not retrieved, as the
    policy says."""
    async with run_core(url, policy=Policy(max_targets=2)) as core:
        with pytest.raises(TooManyAddresses):
            await results(core, ALICE, BOB, CAROL)
    async with run_core(url, policy=Policy(max_targets=2, process_up_to_limit=True)) as core:
        found = await results(core, ALICE, BOB, CAROL)
        assert [found[one].retrieval for one in (ALICE, BOB, CAROL)] == [
            RetrievalStatus.RETRIEVED,
            RetrievalStatus.RETRIEVED,
            RetrievalStatus.NOT_RETRIEVED,
        ]
        assert core.watcher.fetched == [ALICE, BOB]


async def test_long_lists_hold_up_nobody(url: str) -> None:
    """A list far above the limit is refused unread; while a list within the limit is read, other tasks run."""
    async with run_core(url, policy=Policy(max_targets=2)) as core:
        with pytest.raises(TooManyAddresses):
            await results(core, *["nobody"] * 5)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with run_core(url, policy=Policy(max_targets=10_000)) as core:
        running = asyncio.create_task(other())
        with pytest.raises(InvalidAddress):
            await results(core, *[f"sip:{number}@example.com" for number in range(9_999)], "nobody")
        running.cancel()
    assert turns >= 9


async def test_overload_is_not_retrieved(core: Core) -> None:
    """Terminals that could not be asked because of overload are marked not retrieved, so that the caller may ask
    again."""
    core.watcher.answer = lambda address: GatewayOverloaded("full") if address == BOB else BUSY
    found = await results(core, ALICE, BOB)
    assert found[BOB].retrieval is RetrievalStatus.NOT_RETRIEVED


async def test_busy_is_hidden_where_the_policy_says_so(url: str) -> None:
    """A client that may not see BUSY sees REACHABLE."""
    async with run_core(url, policy=Policy(busy_available=False)) as core:
        core.watcher.answer = lambda _: BUSY
        assert (await core.queries.get_status(APP, ALICE, face=Face.GRPC)).status is REACHABLE
        shown = (await results(core, ALICE))[ALICE].status
        assert shown is not None
        assert shown.status is REACHABLE


@pytest.mark.parametrize("max_age_s", [0, 60])
async def test_group_of_another_client_is_a_terminal(core: Core, max_age_s: float) -> None:
    """To the group's own client, the address is refused as one terminal, watched or not; to other clients it is an
    ordinary terminal."""
    await core.groups.create(APP, ALICE, [BOB])
    async with reading(core, ALICE, client=OTHER) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, BUSY)
        core.watcher.answer = lambda _: BUSY
        for client in (OTHER, ADMIN):
            status = await core.queries.get_status(client, ALICE, max_age_s=max_age_s, face=Face.GRPC)
            assert (status.address, status.status) == (ALICE, BUSY)
        for address in (ALICE, "SIP:alice@EXAMPLE.com"):
            with pytest.raises(GroupNotAllowed):
                await core.queries.get_status(APP, address, max_age_s=max_age_s, face=Face.GRPC)
    assert list(await results(core, ALICE, client=OTHER)) == [ALICE]
    assert list(await results(core, ALICE)) == [BOB]


async def test_unreadable_document_makes_what_is_known_no_answer(core: Core) -> None:
    """Where the terminal's last document was unreadable the presence server is asked, whatever age is accepted."""
    await core.queries.get_status(APP, ALICE, face=Face.GRPC)
    async with reading(core, ALICE, client=OTHER) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, BUSY)
        core.clocks.advance(1)
        core.watcher.send(ALICE, b"<presence")
        core.clocks.advance(1)
        core.watcher.answer = lambda _: UNREACHABLE
        for _ in range(2):  # the second query is answered by the first one's fetch
            status = await core.queries.get_status(APP, ALICE, max_age_s=60, face=Face.GRPC)
            assert status.status is UNREACHABLE
    assert len(core.watcher.fetched) == 2


async def test_unreadable_document_counts_after_the_clock_was_set_back(core: Core) -> None:
    """A document that came later counts as later, even where its time is before that of the status."""
    async with reading(core, ALICE, client=OTHER) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, BUSY)
        core.clocks.now -= timedelta(seconds=30)
        core.watcher.send(ALICE, b"<presence")
        core.clocks.advance(40)
        core.watcher.answer = lambda _: UNREACHABLE
        status = await core.queries.get_status(APP, ALICE, max_age_s=60, face=Face.GRPC)
    assert (status.status, len(core.watcher.fetched)) == (UNREACHABLE, 1)


async def test_age_is_judged_when_each_result_is_read(core: Core) -> None:
    """A slow reader gets no status that is older than it accepts when it reads."""
    await results(core, ALICE, BOB)
    async with aclosing(core.queries.query(APP, [ALICE, BOB], max_age_s=60, face=Face.GRPC)) as query:
        assert (await anext(query)).address == ALICE
        core.clocks.advance(61)
        assert (await anext(query)).address == BOB
    assert core.watcher.fetched == [ALICE, BOB, BOB]


async def test_questions_leave_usage_records(core: Core) -> None:
    """Each query is recorded under the contract's name, with the request, the expanded terminals and the result."""
    await core.groups.create(APP, TEAM, [ALICE, BOB])
    core.watcher.answer = lambda _: TerminalUnknown("The presence server answered 404.")
    with pytest.raises(TerminalUnknown):
        await core.queries.get_status(APP, ALICE, face=Face.REST, requester="sip:boss@example.com")
    await results(core, TEAM, CAROL)
    with pytest.raises(InvalidAddress):
        await results(core, "team", client=OTHER)
    one, many, refused = await core.usage_records()
    assert (one.operation.value, one.targets, one.requester, one.face.value, one.result, one.root_cause) == (
        "getStatus",
        (ALICE,),
        "sip:boss@example.com",
        "rest",
        "TERMINAL_UNKNOWN",
        "The presence server answered 404.",
    )
    assert (many.operation.value, many.targets, many.target_count, many.expanded_count, many.result) == (
        "getStatusForGroup",
        (TEAM, CAROL),
        2,
        3,
        "OK",
    )
    assert many.expanded_targets == (CAROL, ALICE, BOB)
    assert (refused.client_id, refused.result) == (OTHER.id, "INVALID_ADDRESS")


@pytest.mark.parametrize("busy_available", [True, False])
@pytest.mark.parametrize("max_age_s", [0, 60])
async def test_result_of_a_question_in_its_usage_record(tmp_path: Path, max_age_s: float, busy_available: bool) -> None:
    """3GPP TS 29.199-8: the result of getStatus is the status, as the client was shown it; fetched or from a watch."""
    async with run_core(await new_database(tmp_path), policy=Policy(busy_available=busy_available)) as core:
        core.watcher.answer = lambda _: BUSY
        async with reading(core, ALICE, client=OTHER) as stream:
            await stream.some(SnapshotComplete)
            await core.play(ALICE, BUSY)
            shown = await core.queries.get_status(APP, ALICE, max_age_s=max_age_s, face=Face.REST)
        (record,) = [one for one in await core.usage_records() if one.client_id == APP.id]
        assert (record.result, record.root_cause, record.expanded_targets) == (shown.status.name, "", ())
        assert shown.status is (BUSY if busy_available else REACHABLE)


async def test_terminals_of_a_group_in_its_usage_record(core: Core) -> None:
    """The terminals of groups are listed up to the bound, with their number."""
    big = TerminalAddress("sip:big@example.com")
    members = [f"sip:t{number}@example.com" for number in range(MAX_USAGE_TARGETS + 5)]
    await core.groups.create(APP, big, members)
    await results(core, big)
    (record,) = await core.usage_records()
    assert (record.targets, record.expanded_count) == ((big,), MAX_USAGE_TARGETS + 5)
    assert sorted(record.expanded_targets) == sorted(set(record.expanded_targets))
    assert len(record.expanded_targets) == MAX_USAGE_TARGETS


async def test_cancelled_question_leaves_a_usage_record(core: Core) -> None:
    """A query whose caller left is recorded too."""
    core.watcher.answer = lambda _: None
    asking = asyncio.ensure_future(core.queries.get_status(APP, ALICE, face=Face.GRPC))
    await until(lambda: core.watcher.in_flight)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    (record,) = await core.usage_records()
    assert record.result == "CANCELLED"


async def test_questions_count_against_the_rate(url: str) -> None:
    """Calls above the rate are refused and not recorded."""
    async with run_core(url, policy=Policy(rate_per_s=1)) as core:
        await core.queries.get_status(APP, ALICE, face=Face.GRPC)
        with pytest.raises(RateLimited):
            await core.queries.get_status(APP, ALICE, face=Face.GRPC)
        with pytest.raises(RateLimited):
            await results(core, ALICE)
        assert len(await core.usage_records()) == 1


async def test_each_terminal_of_a_query_counts_against_the_rate(url: str) -> None:
    """Each terminal, named or from a group, counts once; one client's query does not affect another client."""
    async with run_core(url, policy=Policy(rate_per_s=1, rate_burst=4)) as core:
        assert set(await results(core, ALICE, BOB, CAROL, "SIP:alice@example.com")) == {ALICE, BOB, CAROL}
        await core.queries.get_status(APP, ALICE, face=Face.GRPC)
        with pytest.raises(RateLimited):
            await core.queries.get_status(APP, ALICE, face=Face.GRPC)
        await core.groups.create(OTHER, TEAM, [ALICE, BOB, CAROL])
        assert set(await results(core, TEAM, client=OTHER)) == {ALICE, BOB, CAROL}
        with pytest.raises(RateLimited) as refused:
            await results(core, TEAM, client=OTHER)
        assert refused.value.retry_after_s == 1


async def test_memory_of_fetched_statuses_is_bounded(core: Core) -> None:
    """At most the bound of fetched statuses is remembered; the oldest is forgotten."""
    core.live.last_statuses._past.capacity = 2  # noqa: SLF001
    for address in (ALICE, BOB, CAROL, ALICE):
        await core.queries.get_status(APP, address, face=Face.GRPC)
    assert [core.live.last_statuses.knows(address) for address in (ALICE, BOB, CAROL)] == [True, False, True]
