"""Tests of `app/live/engine.py` and its parts: observations become stored statuses, and streams report them."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import update

from app.core.administration import Administration
from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes
from app.domain.errors import (
    BusyNotSupported,
    GatewayOverloaded,
    StoreUnavailable,
    TerminalUnknown,
    TooManyAddresses,
    TooManyStreams,
    TooManyWatchedTerminals,
)
from app.domain.operations import Face
from app.domain.policy import Policy
from app.domain.statuses import Liveness, Source
from app.domain.watches import WatchState
from app.live.engine import Tuning
from app.live.events import Bookmark, Change, End, LivenessChange, Removed, Snapshot, SnapshotComplete, StreamEnd
from app.live.mailbox import Stream
from app.live.registry import WantedBy
from app.ports.sip import WatchView
from app.ports.store import Page
from app.store import tables as t
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
    Clocks,
    Core,
    new_database,
    reading,
    run_core,
)
from tests.support.fakes import ON_THE_PHONE
from tests.support.waiting import until


async def test_stream_sends_snapshot_then_changes(core: Core) -> None:
    """A stream begins with the status of each terminal, marks the snapshot as complete, and sends each change."""
    async with reading(core, ALICE) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, REACHABLE)
        await core.play(ALICE, BUSY)
        changes = await stream.some(Change, 2)
    first = stream.events[0]
    assert isinstance(first, Snapshot)
    assert (first.terminal.address, first.terminal.status, first.terminal.liveness) == (ALICE, None, Liveness.UNKNOWN)
    assert [(one.status.status, one.status.revision) for one in changes] == [(REACHABLE, 1), (BUSY, 2)]
    assert {one.status.source for one in changes} == {Source.WATCH}
    stored = await core.store.statuses([ALICE])
    assert stored[ALICE].revision == 2


async def test_same_observation_again_writes_nothing(core: Core) -> None:
    """A repeated observation renews the time of observation in memory only, without a transaction."""
    async with reading(core, ALICE) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, REACHABLE)
        writes = len(core.store.writes)
        core.clocks.advance(60)
        await core.play(ALICE, REACHABLE)
        status = core.live.registry.live(ALICE)
        assert status is not None
        assert (status.status, status.revision, status.observed_at) == (REACHABLE, 1, core.clocks.now)
        assert len(core.store.writes) == writes
        await core.play(ALICE, BUSY)
        assert [one.status.status for one in await stream.some(Change, 2)] == [REACHABLE, BUSY]


async def test_changes_that_come_together_share_a_transaction(core: Core) -> None:
    """Simultaneous observations of many terminals are written in groups; each terminal's observations keep their
    order."""
    addresses = [f"sip:t{i}@example.com" for i in range(50)]
    async with reading(core, *addresses) as stream:
        await stream.some(SnapshotComplete)
        for status in (REACHABLE, BUSY, UNREACHABLE):
            for address in list(core.watcher.wanted):
                core.watcher.play(address, status)
        changes = await stream.some(Change, 50)
        await core.settled()
        await stream.until(lambda events: sum(isinstance(e, Change) and e.status.revision == 3 for e in events) == 50)
    assert len(core.store.writes) <= 4
    written = [s for w in core.store.writes for s in w.statuses if s.address == addresses[0]]
    assert [(s.status, s.revision) for s in written] == [(REACHABLE, 1), (BUSY, 2), (UNREACHABLE, 3)]
    assert changes


async def test_document_that_must_be_understood(core: Core) -> None:
    """RFC 3863 section 4.2: a document with an element that must be understood, and is not, changes no status: the last
    one stays and is STALE, with a reason of its own."""
    must = (
        b'<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:p="urn:ietf:params:xml:ns:pidf"><tuple id="t">'
        b'<status><basic>closed</basic></status><x xmlns="urn:x" p:mustUnderstand="1"/></tuple></presence>'
    )
    async with reading(core, ALICE) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, REACHABLE)
        await stream.some(LivenessChange)
        core.watcher.send(ALICE, must)
        _, stale = await stream.some(LivenessChange, 2)
    assert (stale.terminal.liveness, stale.terminal.reason) == (Liveness.STALE, "document unreadable: must-understand")
    assert stale.terminal.status.status == REACHABLE
    assert core.live.registry.unreadable_counts == {"must-understand": 1}


async def test_busy_when_closed(url: str) -> None:
    """With TS_BUSY_WHEN_CLOSED a watch reports BUSY for a busy activity without an open tuple; else UNREACHABLE."""
    for busy_when_closed, expected in ((True, BUSY), (False, UNREACHABLE)):
        async with run_core(url, busy_when_closed=busy_when_closed) as core, reading(core, ALICE) as stream:
            await stream.some(SnapshotComplete)
            core.watcher.send(ALICE, ON_THE_PHONE.replace(b">open<", b">closed<"))
            changes = await stream.some(Change)
            assert changes[-1].status.status == expected


async def test_unreadable_document_makes_the_status_stale(core: Core) -> None:
    """After an unreadable document the last status is STALE, and does not answer queries until a readable document is
    written."""
    async with reading(core, ALICE) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, BUSY)
        await stream.some(LivenessChange)
        core.watcher.send(ALICE, b"<presence")
        core.watcher.say(ALICE, Liveness.LIVE, None)  # like the real SIP side, which does not parse documents
        _, stale = await stream.some(LivenessChange, 2)
        assert (stale.terminal.liveness, stale.terminal.reason) == (Liveness.STALE, "document unreadable: malformed")
        assert (stale.error.code, stale.terminal.status.status) == ("DOCUMENT_UNREADABLE", BUSY)
        assert core.live.registry.live(ALICE) is None
        assert core.live.last_statuses.newest(ALICE, core.clocks.now, 1e9) is None
        core.watcher.send(ALICE, b"<presence")
        await core.play(ALICE, BUSY)
        live = (await stream.some(LivenessChange, 3))[2]
        assert (live.terminal.liveness, live.terminal.reason, live.error) == (Liveness.LIVE, "", None)
        core.watcher.send(ALICE, b'<!DOCTYPE x><presence xmlns="urn:ietf:params:xml:ns:pidf"/>')
        await core.play(ALICE, REACHABLE)
        last = (await stream.some(LivenessChange, 4))[-1]
        assert (last.terminal.liveness, last.terminal.status.status) == (Liveness.LIVE, REACHABLE)
        core.watcher.play(ALICE, BUSY)
        core.watcher.send(ALICE, b"<presence")  # before the other observation is written
        await core.settled()
        assert core.live.registry.live(ALICE) is None
        changes = await stream.some(Change, 3)
    assert [one.status.status for one in changes] == [BUSY, REACHABLE, BUSY]
    assert core.live.registry.unreadable_counts == {"malformed": 3, "dtd": 1}


async def test_terminal_that_was_only_ever_unreadable_is_unknown(core: Core) -> None:
    """Where no status was ever observed, the reason is the unreadable document; the list of watches shows that reason
    to operators."""

    async def watches() -> list[WatchView]:
        view = WatchView(
            address=ALICE,
            state=WatchState.ACTIVE,
            liveness=Liveness.LIVE,
            since=core.clocks.now,
            expires_at=None,
            code=200,
            reason="",
            next_action="refresh",
            next_at=None,
            route="",
        )
        return [view, replace(view, address=BOB)]

    core.watcher.watches = watches  # type: ignore[method-assign]
    administration = Administration(
        core.store,
        core.watcher,
        None,  # type: ignore[arg-type]  # nobody asks for clients
        core.live.registry,
        lambda: core.clocks.now,
    )
    async with reading(core, ALICE) as stream:
        await stream.some(SnapshotComplete)
        core.watcher.send(ALICE, b"<presence")
        core.watcher.say(ALICE, Liveness.LIVE, None)
        (reported,) = await stream.some(LivenessChange)
        reason = "document unreadable: malformed"
        assert (reported.terminal.liveness, reported.terminal.reason) == (Liveness.UNKNOWN, reason)
        shown, _, _ = await administration.watches(ADMIN, Page())
    assert [(one.watch.liveness, one.watch.reason) for one in shown] == [
        (Liveness.UNKNOWN, reason),
        (Liveness.LIVE, ""),
    ]


async def test_terminal_is_watched_once_and_lingers(core: Core) -> None:
    """There is one watch of a terminal for all its listeners. The watch ends a while after the last listener left,
    unless another comes."""
    async with reading(core, ALICE) as first, reading(core, ALICE, client=OTHER) as second:
        await first.some(SnapshotComplete)
        await second.some(SnapshotComplete)
        assert core.live.registry.wanted_by(ALICE) == WantedBy(subscription_ids=[], stream_client_ids=["app", "other"])
    await core.advance(20)
    async with reading(core, ALICE) as third:
        await third.some(SnapshotComplete)
        await core.advance(20)
        assert core.watcher.asked == [f"watch {ALICE}"]
    await core.advance(29)
    assert core.watcher.asked == [f"watch {ALICE}"]
    await core.advance(1.1)
    assert core.watcher.asked == [f"watch {ALICE}", f"unwatch {ALICE}"]
    assert core.live.engine.figures()["terminals"] == 0
    assert core.live.last_statuses.newest(ALICE, core.clocks.now, 1e9) is None


async def test_watch_that_ends_with_its_last_listener(tmp_path: Path) -> None:
    """With TS_LINGER_S=0 the end of the last subscription ends the watch at once (RFC 6665 section 4.1.2.3: SUBSCRIBE
    with Expires 0), as 3GPP TS 29.199-8 has it for endNotification."""
    async with run_core(await new_database(tmp_path), tuning=Tuning(linger_s=0)) as core:
        first, second = [await core.subscribe(ALICE) for _ in range(2)]
        await core.subscriptions.cancel(APP, first.id, face=Face.SOAP)
        await core.settled()
        assert core.watcher.asked == [f"watch {ALICE}"]
        await core.subscriptions.cancel(APP, second.id, face=Face.SOAP)
        await core.settled()
        assert core.watcher.asked == [f"watch {ALICE}", f"unwatch {ALICE}"]


async def test_streams_that_come_and_go_leave_nothing(core: Core) -> None:
    """However often a terminal is wanted and left, one entry waits for its release, and in the end the terminal is
    released."""
    for _ in range(50):
        async with reading(core, ALICE) as stream:
            await stream.some(SnapshotComplete)
        await core.advance(1)
    assert len(core.live.registry._idle) == 1  # noqa: SLF001
    await core.advance(31)
    await core.advance(31)
    assert core.watcher.asked == [f"watch {ALICE}", f"unwatch {ALICE}"]


async def test_lost_contact_is_stale_and_never_unreachable(core: Core) -> None:
    """When contact to the presence server is lost, the last status stays, is STALE, and has the reason."""
    async with reading(core, ALICE) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, REACHABLE)
        await stream.some(LivenessChange)
        core.watcher.lose(ALICE, "no answer")
        live, stale = await stream.some(LivenessChange, 2)
        assert core.live.registry.live(ALICE) is None
    assert (live.terminal.liveness, stale.terminal.liveness, stale.terminal.reason) == (
        Liveness.LIVE,
        Liveness.STALE,
        "no answer",
    )
    assert stale.terminal.status.status is REACHABLE
    assert [one.status.status for one in await stream.some(Change)] == [REACHABLE]


async def test_status_from_before_the_start_is_stale_until_confirmed(url: str) -> None:
    """After a restart the stored status is STALE; the first observation makes it live, or is reported as a change."""
    async with run_core(url) as core, reading(core, ALICE, BOB) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, REACHABLE)
        await core.play(BOB, BUSY)
    async with run_core(url) as core, reading(core, ALICE, BOB) as stream:
        await stream.some(SnapshotComplete)
        shown = [event.terminal for event in stream.events if isinstance(event, Snapshot)]
        assert [(one.status and one.status.status, one.liveness) for one in shown] == [
            (REACHABLE, Liveness.STALE),
            (BUSY, Liveness.STALE),
        ]
        await core.play(ALICE, REACHABLE)
        await core.play(BOB, REACHABLE)
        lives = await stream.some(LivenessChange, 2)
        assert {one.terminal.liveness for one in lives} == {Liveness.LIVE}
        (change,) = await stream.some(Change)
        assert (change.status.address, change.status.status, change.status.revision) == (BOB, REACHABLE, 2)


async def test_store_that_is_away_loses_nothing(core: Core) -> None:
    """While the database is away the newest observation of each terminal waits; streams are sent stored statuses
    only."""
    async with reading(core, ALICE, BOB) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, REACHABLE)
        core.store.away = True
        for status in (BUSY, UNREACHABLE, BUSY):
            core.watcher.play(ALICE, status)
        core.watcher.play(BOB, REACHABLE)
        rounds = core.live.engine.rounds
        await until(lambda: core.live.engine.rounds > rounds + 1)
        assert [one.status.status for one in stream.events if isinstance(one, Change)] == [REACHABLE]
        newest = core.live.registry.live(ALICE)
        assert newest is not None
        assert (newest.status, newest.revision) == (BUSY, 0)
        core.store.away = False
        await core.settled()
        changes = await stream.some(Change, 3)
    assert [(one.status.address, one.status.status, one.status.revision) for one in changes] == [
        (ALICE, REACHABLE, 1),
        (ALICE, BUSY, 2),
        (BOB, REACHABLE, 1),
    ]


async def test_status_written_by_another_is_taken_for_true(core: Core) -> None:
    """On a conflict of revisions the stored status is adopted, and the observation is decided again against it."""
    async with reading(core, ALICE, BOB) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, REACHABLE)
        await core.play(BOB, REACHABLE)
        other = [
            change.status.__class__(
                address=change.status.address,
                status=status,
                observed_at=core.clocks.now,
                source=Source.WATCH,
                revision=2,
            )
            for change, status in zip(await stream.some(Change, 2), (BUSY, UNREACHABLE), strict=True)
        ]
        await core.store.write(Changes(statuses=other))
        core.watcher.play(ALICE, BUSY)  # the other node has observed this status too
        core.watcher.play(BOB, BUSY)
        await core.settled()
        await stream.some(Change, 4)
        stored = await core.store.statuses([ALICE, BOB])
    assert [(stored[one].status, stored[one].revision) for one in (ALICE, BOB)] == [(BUSY, 2), (BUSY, 3)]
    revisions = [(c.status.address, c.status.revision) for c in stream.events if isinstance(c, Change)]
    assert sorted(revisions)[:2] == [(ALICE, 1), (ALICE, 2)]
    assert (BOB, 3) in revisions


async def test_lost_hint_is_made_up_for_by_reading_again(url: str) -> None:
    """Streams learn of another node's writes by a hint, or else when all statuses are read again."""
    clocks = Clocks()
    async with (
        run_core(url, clocks=clocks, reread_s=5) as core,
        run_core(url, clocks=clocks) as other,
        reading(core, ALICE) as stream,
        reading(other, ALICE) as there,
    ):
        await stream.some(SnapshotComplete)
        await there.some(SnapshotComplete)
        await other.play(ALICE, REACHABLE)
        assert core.live.other_nodes is not None
        core.live.other_nodes.on_hint([ALICE])
        await stream.some(Change)
        await other.play(ALICE, BUSY)
        await core.advance(5.1)
        changes = await stream.some(Change, 2)
    assert [one.status.status for one in changes] == [REACHABLE, BUSY]


async def test_terminal_that_cannot_be_watched_ends_the_stream_with_the_last(core: Core) -> None:
    """A failed terminal is sent as an error; when all terminals have failed, the stream ends with the reason."""
    async with reading(core, ALICE, BOB) as stream:
        await stream.some(SnapshotComplete)
        core.watcher.fail(ALICE, TerminalUnknown("The presence server answered 404."))
        (reported,) = await stream.some(LivenessChange)
        assert (reported.terminal.address, reported.error.code) == (ALICE, "TERMINAL_UNKNOWN")
        core.watcher.fail(BOB, TerminalUnknown("The presence server answered 404."))
        (end,) = await stream.some(End)
        assert end.reason is StreamEnd.NOTHING_TO_WATCH
    async with reading(core, ALICE) as again:
        await again.some(SnapshotComplete)
        assert core.watcher.asked.count(f"watch {ALICE}") == 2
        await core.play(ALICE, BUSY)
        assert [one.status.status for one in await again.some(Change)] == [BUSY]


async def test_quiet_stream_gets_bookmarks(core: Core) -> None:
    """Without changes a bookmark is sent at each interval, always with the same token."""
    async with reading(core, ALICE) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, BUSY)
        await stream.some(Change)
        await stream.some(LivenessChange)
        for _ in range(5):
            await core.advance(2.5)
        (first,) = await stream.some(Bookmark)
        for _ in range(4):
            await core.advance(2.5)
        second = (await stream.some(Bookmark, 2))[1]
        assert first.resume_token == second.resume_token != ""


async def test_streams_make_their_tokens_in_turn(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many streams only a few make a token before other tasks run."""
    monkeypatch.setattr("app.live.open_streams.BOOKMARKS_AT_ONCE", 2)
    monkeypatch.setattr("app.live.open_streams.BOOKMARKS_EVERY_S", 0)
    turns, made_in = 0, Counter[int]()
    make = Stream.bookmark

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def bookmark(stream: Stream) -> None:
        made_in[turns] += 1
        make(stream)

    monkeypatch.setattr(Stream, "bookmark", bookmark)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(reading(core, ALICE)) for _ in range(48)]
        for stream in streams:
            await stream.some(SnapshotComplete)
        serving = asyncio.create_task(others())
        for _ in range(4):
            await core.advance(2.5)
        for stream in streams:
            await stream.some(Bookmark)
        serving.cancel()
    assert made_in.total() >= len(streams)
    assert max(made_in.values()) <= 2 * 4  # of 12 in each of 4 ticks, which may overlap


async def test_resume_token_brings_only_what_differs(core: Core) -> None:
    """A resumed stream begins with the terminals that changed since the token."""
    async with reading(core, ALICE, BOB) as keeping, reading(core, ALICE, BOB) as stream:
        await keeping.some(SnapshotComplete)
        await stream.some(SnapshotComplete)
        await core.play(ALICE, REACHABLE)
        await core.play(BOB, REACHABLE)
        await stream.some(Change, 2)
        core.streams.end_streams_of("nobody")
        await stream.some(LivenessChange, 2)
        for _ in range(5):
            await core.advance(2.5)
        token = (await stream.some(Bookmark))[0].resume_token
        await stream.aclose()
        await core.play(BOB, BUSY)
        async with reading(core, BOB, ALICE, resume_token=token) as resumed:
            await resumed.some(SnapshotComplete)
            (item, complete) = resumed.events
            assert isinstance(item, Snapshot)
            assert item.terminal.status is not None
            assert (item.terminal.address, item.terminal.status.status) == (BOB, BUSY)
            assert isinstance(complete, SnapshotComplete)
        async with reading(core, ALICE, resume_token=token) as narrower:
            await narrower.some(SnapshotComplete)
            assert isinstance(narrower.events[0], Snapshot)


async def test_database_that_lost_its_last_transactions(core: Core) -> None:
    """Where the store has an older revision than memory (a restored backup, a replica that took over), the next change
    is still written and sent, and so are changes of other terminals."""
    async with reading(core, ALICE, BOB) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, REACHABLE)
        (before,) = (await core.store.statuses([ALICE])).values()
        for status in (BUSY, UNREACHABLE):
            await core.play(ALICE, status)
        lost = update(t.terminal_statuses).values(revision=before.revision, status=before.status.value)
        await core.store._write(lambda c: c.execute(lost))  # noqa: SLF001
        await core.play(ALICE, BUSY)
        await core.play(BOB, BUSY)
        changes = [(one.status.address, one.status.status, one.status.revision) for one in await stream.some(Change, 5)]
        assert changes[-2:] == [(ALICE, BUSY, 4), (BOB, BUSY, 1)]
        assert {one.status for one in (await core.store.statuses([ALICE, BOB])).values()} == {BUSY}


async def test_criteria_choose_the_changes(core: Core) -> None:
    """Only changes to one of the criteria are sent; the snapshot still has every terminal."""
    async with reading(core, ALICE, criteria=frozenset({BUSY})) as stream:
        await stream.some(SnapshotComplete)
        for status in (REACHABLE, BUSY, REACHABLE, UNREACHABLE, BUSY):
            await core.play(ALICE, status)
        changes = await stream.some(Change, 2)
    assert [(one.status.status, one.status.revision) for one in changes] == [(BUSY, 2), (BUSY, 5)]


async def test_least_interval_holds_changes_and_sends_the_newest(core: Core) -> None:
    """Two changes of one terminal are never sent closer together than the interval; changes of other terminals do not
    wait."""
    async with reading(core, ALICE, BOB, min_interval_ms=5000) as stream:
        await stream.some(SnapshotComplete)
        await core.play(ALICE, REACHABLE)
        await stream.some(Change)
        await core.play(ALICE, BUSY)
        await core.play(ALICE, UNREACHABLE)
        await core.play(BOB, BUSY)
        assert [one.status.address for one in await stream.some(Change, 2)] == [ALICE, BOB]
        await core.advance(5.1)
        changes = await stream.some(Change, 3)
    assert (changes[2].status.address, changes[2].status.status, changes[2].status.revision) == (ALICE, UNREACHABLE, 3)


async def test_reader_that_does_not_read_costs_bounded_memory(core: Core) -> None:
    """A slow reader misses intermediate statuses and is sent the newest one."""
    stream = core.streams.stream(APP, [ALICE, BOB])
    try:
        while not isinstance(await anext(stream), SnapshotComplete):
            pass
        for _ in range(100):
            await core.play(ALICE, REACHABLE)
            await core.play(ALICE, BUSY)
        await core.play(BOB, UNREACHABLE)
        events = [await anext(stream) for _ in range(4)]
    finally:
        await stream.aclose()
    changes = {e.status.address: (e.status.status, e.status.revision) for e in events if isinstance(e, Change)}
    assert changes == {ALICE: (BUSY, 200), BOB: (UNREACHABLE, 1)}
    assert sum(isinstance(event, LivenessChange) for event in events) == 2


async def test_streams_end_with_a_reason(core: Core) -> None:
    """A stream says why it ends: the gateway's stop (with a resume token), or the end of the client's credentials."""
    async with reading(core, ALICE) as ours, reading(core, ALICE, client=OTHER) as others:
        await ours.some(SnapshotComplete)
        await others.some(SnapshotComplete)
        core.streams.end_streams_of(OTHER.id)
        (gone,) = await others.some(End)
        assert (gone.reason, gone.resume_token) == (StreamEnd.CREDENTIALS_EXPIRED, "")
        core.streams.end_all()
        (end,) = await ours.some(End)
        assert end.reason is StreamEnd.GATEWAY_STOPPING
        assert end.resume_token
    async with reading(core, ALICE) as late:
        (end,) = await late.some(End)
        assert end.reason is StreamEnd.GATEWAY_STOPPING


async def test_group_members_come_and_go_in_a_running_stream(core: Core) -> None:
    """A terminal that joins a watched group is sent; a terminal that leaves is sent as removed."""
    await core.groups.create(APP, TEAM, [ALICE])
    async with reading(core, TEAM) as stream:
        await stream.some(SnapshotComplete)
        await core.groups.set_members(APP, TEAM, [BOB])
        await stream.until(lambda events: any(isinstance(e, Removed) for e in events) and len(events) >= 4)
        assert [e.address for e in stream.events if isinstance(e, Removed)] == [ALICE]
        assert [e.terminal.address for e in stream.events if isinstance(e, Snapshot)] == [ALICE, BOB]
        await core.play(BOB, BUSY)
        (change,) = await stream.some(Change)
        assert change.status.address == BOB
        await core.groups.delete(APP, TEAM)
        await stream.some(Removed, 2)
    await until(lambda: not core.live.registry.wanted_by(BOB))
    await core.advance(31)
    assert core.live.engine.figures()["terminals"] == 0


async def test_group_of_another_client_changes_no_stream(core: Core) -> None:
    """A stream of a terminal, or of a group with that terminal, does not change when another client makes groups with
    the same addresses."""
    await core.groups.create(OTHER, TEAM, [ALICE])
    async with reading(core, TEAM, client=OTHER) as group, reading(core, ALICE, client=OTHER) as one:
        await group.some(SnapshotComplete)
        await one.some(SnapshotComplete)
        await core.groups.create(APP, ALICE, [BOB])
        await core.groups.create(APP, TEAM, [CAROL])
        await core.groups.set_members(OTHER, TEAM, [ALICE])
        await core.advance(1)
        assert set(core.watcher.wanted) == {ALICE}
        await core.play(ALICE, BUSY)
        for stream in (group, one):
            assert [event.status.address for event in await stream.some(Change)] == [ALICE]
            assert not [event for event in stream.events if isinstance(event, Removed)]
    async with reading(core, ALICE) as owners:
        await owners.some(SnapshotComplete)
        assert [e.terminal.address for e in owners.events if isinstance(e, Snapshot)] == [BOB]


async def test_member_that_cannot_be_watched_is_reported_once_to_a_stream(core: Core) -> None:
    """An unknown member of a group is asked about once and reported once, however the group changes."""
    await core.groups.create(APP, TEAM, [ALICE, BOB])
    async with reading(core, TEAM) as stream:
        await stream.some(SnapshotComplete)
        core.watcher.fail(ALICE, TerminalUnknown("The presence server answered 404."))
        await stream.some(LivenessChange)
        for member in (CAROL, "sip:dave@example.com"):
            await core.groups.add_members(APP, TEAM, [member])
            await core.advance(1)
        await stream.some(Snapshot, 4)
        await core.play(BOB, BUSY)
        await stream.some(Change)
        assert not [event for event in stream.events if isinstance(event, End)]
        assert core.watcher.asked.count(f"watch {ALICE}") == 1


async def test_limits_of_streams(url: str) -> None:
    """At each limit (terminals of a stream, streams, watches) one more is refused and leaves nothing behind."""
    policy = Policy(max_notification_addresses=2, max_streams=1, busy_available=False)
    async with run_core(url, policy=policy, tuning=Tuning(max_terminals=2)) as core:
        cases: list[tuple[type, tuple[str, ...], dict[str, Any]]] = [
            (TooManyAddresses, (ALICE, BOB, CAROL), {}),
            (BusyNotSupported, (ALICE,), {"criteria": frozenset({BUSY})}),
        ]
        for refused, addresses, options in cases:
            async with reading(core, *addresses, **options) as stream:
                await until(lambda: stream.error)  # used at once
                assert isinstance(stream.error, refused)
        async with reading(core, ALICE) as open_one, reading(core, ALICE) as refused_one:
            await open_one.some(SnapshotComplete)
            await until(lambda: refused_one.error)
            assert isinstance(refused_one.error, TooManyStreams)
            async with reading(core, BOB, CAROL, client=OTHER) as too_many:
                await until(lambda: too_many.error)
                assert isinstance(too_many.error, GatewayOverloaded)
        core.store.away = True
        async with reading(core, BOB) as unlucky:
            await until(lambda: unlucky.error)
            assert isinstance(unlucky.error, StoreUnavailable)
        core.store.away = False
        assert core.live.engine.figures()["streams"] == 0


async def test_limit_holds_for_streams_opened_at_once(url: str) -> None:
    """Streams that are opened at the same time keep to the limit."""
    async with run_core(url, policy=Policy(max_streams=2)) as core, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(reading(core, ALICE)) for _ in range(8)]
        await until(lambda: all(stream.error or stream.events for stream in streams))
        assert sum(isinstance(stream.error, TooManyStreams) for stream in streams) == 6


async def test_limit_of_watched_terminals(url: str) -> None:
    """Each terminal of a client counts once, however many streams and subscriptions want it. One more is refused, while
    another client has its own limit. A terminal that the client no longer wants makes room."""
    dan = TerminalAddress("sip:dan@example.com")
    async with run_core(url, policy=Policy(max_watched_terminals=3)) as core:
        async with reading(core, ALICE, BOB) as one, reading(core, BOB, ALICE) as two:
            for stream in (one, two):
                await stream.some(SnapshotComplete)
            subscription = await core.subscribe(BOB, CAROL)
            with pytest.raises(TooManyWatchedTerminals, match="3 watched terminals"):
                await core.subscribe(ALICE, dan)
            async with reading(core, dan) as refused:
                await until(lambda: refused.error)
                assert isinstance(refused.error, TooManyWatchedTerminals)
            async with reading(core, ALICE, BOB, dan, client=OTHER) as others:
                await others.some(SnapshotComplete)
            await one.aclose()
            with pytest.raises(TooManyWatchedTerminals):
                await core.subscribe(dan)
            await core.subscriptions.cancel(APP, subscription.id, face=Face.GRPC)
            await core.subscribe(dan)
            with pytest.raises(TooManyWatchedTerminals):
                await core.subscribe(CAROL)
        await core.subscribe(ALICE, BOB)
        assert f"watch {dan}" in core.watcher.asked
    async with run_core(url, policy=Policy(max_watched_terminals=1)) as core:
        assert core.live.engine.figures()["terminals"] == 3, "what stood before a restart stands, beyond the limit too"
        with pytest.raises(TooManyWatchedTerminals):
            await core.subscribe(CAROL)
        await core.subscribe(ALICE)
        for active in (await core.subscriptions.list(APP, Page()))[0]:
            await core.subscriptions.cancel(APP, active.id, face=Face.GRPC)
        assert not core.live.registry._wanted_of  # noqa: SLF001  # nothing of a client stays when it wants nothing
        await core.subscribe(CAROL)


async def test_group_that_grows_beyond_the_watched_terminals_is_not_followed(url: str) -> None:
    """The stream goes on with its present members."""
    async with run_core(url, policy=Policy(max_watched_terminals=2)) as core:
        await core.groups.create(APP, TEAM, [ALICE, BOB])
        async with reading(core, TEAM) as stream:
            await stream.some(SnapshotComplete)
            subscription = await core.subscribe(TEAM)
            with structlog.testing.capture_logs() as logs:
                await core.groups.add_members(APP, TEAM, [CAROL])
                await until(lambda: len([line for line in logs if line["event"] == "group_not_followed"]) == 2)
            assert CAROL not in core.watcher.wanted
            await core.play(ALICE, BUSY)
            assert (await stream.some(Change))[0].status.address == ALICE
            assert await core.owed_in_short(subscription) == []


def test_defaults_leave_room_for_others() -> None:
    """Every default limit of a client is at most half of the gateway's own."""
    policy, tuning = Policy(), Tuning()
    assert 2 * policy.max_streams <= tuning.max_streams
    assert 2 * policy.max_watched_terminals <= tuning.max_terminals


async def test_busy_is_hidden_where_the_policy_says_so(url: str) -> None:
    """A client that may not see BUSY sees REACHABLE, and no change between the two."""
    async with run_core(url, policy=Policy(busy_available=False)) as core, reading(core, ALICE) as stream:
        await stream.some(SnapshotComplete)
        for status in (BUSY, REACHABLE, UNREACHABLE, REACHABLE, BUSY):
            await core.play(ALICE, status)
            await asyncio.sleep(0)
        await core.play(ALICE, UNREACHABLE)
        changes = await stream.until(
            lambda events: any(isinstance(e, Change) and e.status.revision == 6 for e in events)
        )
    statuses = [e.status.status for e in changes if isinstance(e, Change)]
    assert BUSY not in statuses
    assert all(one is not other for one, other in pairwise(statuses))


async def test_observations_left_at_the_end_are_written(url: str) -> None:
    """A gateway that stops writes all its observations."""
    async with run_core(url) as core, reading(core, ALICE) as stream:
        await stream.some(SnapshotComplete)
        core.watcher.play(ALICE, BUSY)
        await stream.aclose()
    async with run_core(url) as core:
        assert (await core.store.statuses([ALICE]))[ALICE].status is BUSY


async def test_defect_in_one_write_does_not_stop_the_others(core: Core) -> None:
    """An observation that can never be written is dropped alone, and logged."""

    async def poisoned(changes: Changes) -> None:
        if any(status.address == ALICE for status in changes.statuses):
            raise RuntimeError("a defect")

    async with reading(core, ALICE, BOB, CAROL) as stream:
        await stream.some(SnapshotComplete)
        core.store.before_write = poisoned
        for address in (ALICE, BOB, CAROL):
            core.watcher.play(address, BUSY)
        changes = await stream.some(Change, 2)
        await core.settled()
    assert {one.status.address for one in changes} == {BOB, CAROL}
