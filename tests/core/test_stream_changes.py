"""Tests of `app/core/stream_changes.py`: addresses are added to an open stream, and removed from it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.streams import OpenStream
from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    GroupNotAllowed,
    InvalidAddress,
    InvalidRequest,
    NoValidAddresses,
    RateLimited,
    StoreUnavailable,
    TerminalStatusError,
    TooManyAddresses,
    TooManyWatchedTerminals,
)
from app.domain.policy import Policy
from app.domain.records import Client
from app.domain.statuses import Status
from app.live.engine import Tuning
from app.live.events import Bookmark, Change, ChangeApplied, End, Removed, Snapshot, SnapshotComplete, StreamEnd
from tests.support.core import (
    ALICE,
    ALL,
    APP,
    BEGAN,
    BOB,
    BUSY,
    CAROL,
    OTHER,
    REACHABLE,
    TEAM,
    UNREACHABLE,
    Clocks,
    Core,
    Reading,
    new_database,
    reading,
    run_core,
)
from tests.support.waiting import DEADLINE_S, until

DAN = TerminalAddress("sip:dan@example.com")


class Following(Reading):
    """A stream that is read in the background, and whose addresses the test changes."""

    def __init__(self, stream: OpenStream) -> None:
        super().__init__(stream.events)
        self.open = stream

    async def change(self, *, client: Client = APP, **change: Any) -> ChangeApplied:
        """Makes the change, and waits for its answer."""
        before = sum(isinstance(event, ChangeApplied) for event in self.events)
        await self.open.change(client, **change)
        return (await self.some(ChangeApplied, before + 1))[before]  # type: ignore[no-any-return]

    def since(self, number: int) -> list[str]:
        """The events after the first `number`, in short."""
        return [shortened(event) for event in self.events[number:]]


def shortened(event: Any) -> str:
    """An event of a stream in two words, such as `Snapshot alice`."""
    match event:
        case Snapshot():
            about = event.terminal.address
        case Removed():
            about = event.address
        case ChangeApplied():
            return f"ChangeApplied {event.change_id}"
        case _:
            return type(event).__name__
    return f"{type(event).__name__} {about.partition(':')[2].partition('@')[0]}"


@asynccontextmanager
async def following(core: Core, *addresses: str, client: Client = APP, **options: Any) -> AsyncIterator[Following]:
    """Opens a stream, and reads its snapshot."""
    async with core.streams.open(client, addresses, **options) as stream:
        reader = Following(stream)
        try:
            await reader.some(SnapshotComplete)
            yield reader
        finally:
            await reader.aclose()


async def test_added_and_removed_terminals_come_before_the_answer(core: Core) -> None:
    """A change sends a snapshot of each added terminal, then what it removes, then its answer; and later the changes of
    the added terminal only."""
    async with following(core, ALICE) as stream:
        await stream.change(add=[BOB], remove=[ALICE], change_id="one")
        assert stream.since(2) == ["Snapshot bob", "Removed alice", "ChangeApplied one"]
        await core.play(ALICE, BUSY)
        await core.play(BOB, BUSY)
        changes = await stream.some(Change)
        assert [event.status.address for event in changes] == [BOB]
    await core.advance(31)
    assert core.live.engine.figures()["terminals"] == 0, "nothing is watched when the stream has ended"


async def test_what_has_no_effect_is_answered(core: Core) -> None:
    """Adding an address that the stream has, and removing one that it does not have, changes nothing."""
    async with following(core, ALICE, BOB) as stream:
        answer = await stream.change(add=["SIP:alice@EXAMPLE.com", ALICE], remove=[CAROL], change_id="none")
        assert (answer.error, bool(answer.resume_token)) == (None, True)
        assert stream.since(3) == ["ChangeApplied none"]
        assert set(core.watcher.wanted) == {ALICE, BOB}


async def test_terminal_that_another_address_covers_stays(core: Core) -> None:
    """A terminal leaves the stream with the last of its addresses and groups, not before."""
    await core.groups.create(APP, TEAM, [ALICE, BOB])
    await core.groups.create(APP, ALL, [BOB, CAROL])
    async with following(core, ALICE) as stream:
        await stream.change(add=[TEAM], change_id="team")
        await stream.change(add=[ALL], change_id="all")
        assert stream.since(2) == ["Snapshot bob", "ChangeApplied team", "Snapshot carol", "ChangeApplied all"]
        await stream.change(remove=[TEAM], change_id="no team")
        await stream.change(remove=[ALICE], change_id="no alice")
        assert stream.since(6) == ["ChangeApplied no team", "Removed alice", "ChangeApplied no alice"]
        await stream.change(add=[BOB], remove=[ALL], change_id="bob")
        assert stream.since(9) == ["Removed carol", "ChangeApplied bob"]
        await core.groups.set_members(APP, ALL, [DAN])
        await core.advance(1)
        assert stream.since(11) == [], "the removed group is not followed"


async def test_added_group_is_followed(core: Core) -> None:
    """A group that was added is followed as one of the opening is; other addresses stay what they were."""
    await core.groups.create(APP, TEAM, [])
    async with following(core, ALICE) as stream:
        await stream.change(add=[TEAM], change_id="empty")
        await core.groups.create(APP, ALICE, [DAN])
        await core.groups.set_members(APP, TEAM, [BOB])
        await stream.some(Snapshot, 2)
        assert stream.since(2) == ["ChangeApplied empty", "Snapshot bob"]
        await core.groups.delete(APP, TEAM)
        await stream.some(Removed)
        assert stream.since(4) == ["Removed bob"]
        await stream.change(remove=[TEAM], change_id="gone")
        assert stream.since(5) == ["ChangeApplied gone"]


@pytest.mark.parametrize("added", [True, False], ids=["added", "opened"])
async def test_group_that_changes_while_its_members_are_read(core: Core, added: bool) -> None:
    """The stream follows a change of a group that came between the reading of its members and the stream's move."""
    await core.groups.create(APP, TEAM, [ALICE])
    real, calls = core.store.groups_of, itertools.count(1)

    async def late(client_id: str, addresses: Sequence[TerminalAddress]) -> Any:
        found = await real(client_id, addresses)
        if next(calls) == (2 if added else 1):  # a change is checked first, then made
            core.store.groups_of = real  # type: ignore[attr-defined]
            rounds = core.live.engine.rounds
            await core.groups.set_members(APP, TEAM, [BOB])
            core.live.engine.wake()
            await until(lambda: core.live.engine.rounds > rounds + 1)  # no stream of the group was found
        return found

    core.store.groups_of = late  # type: ignore[attr-defined]
    async with following(core, CAROL if added else TEAM) as stream:
        if added:
            await stream.change(add=[TEAM])
        await stream.until(lambda events: {"Snapshot bob", "Removed alice"} <= set(map(shortened, events)))


async def test_token_belongs_to_the_new_addresses(core: Core) -> None:
    """A token of the answer, or of a later bookmark, resumes a stream with the new addresses; with the old ones it is a
    reset. A refused change has no token."""
    async with reading(core, ALICE, BOB) as keeping, following(core, ALICE) as stream:
        await keeping.some(SnapshotComplete)
        for address in (ALICE, BOB):
            await core.play(address, BUSY)
        await stream.some(Change)
        answer = await stream.change(add=[BOB])
        before = len(await stream.some(Bookmark, 0))
        for _ in range(4):
            await core.advance(2.5)
        bookmark = (await stream.some(Bookmark, before + 1))[-1]
        for token in (answer.resume_token, bookmark.resume_token):
            async with reading(core, ALICE, BOB, resume_token=token) as resumed:
                (complete,) = await resumed.some(SnapshotComplete)
                assert (complete.reset, len(resumed.events)) == (False, 1), "all was sent before"
            async with reading(core, ALICE, resume_token=token) as older:
                (complete,) = await older.some(SnapshotComplete)
                assert complete.reset
        await stream.open.refuse("no", InvalidRequest("No."))
        refused = (await stream.some(ChangeApplied, 2))[1]
        assert (refused.change_id, refused.resume_token, str(refused.error)) == ("no", "", "No.")


async def test_snapshot_names_the_bookmark_interval(url: str) -> None:
    """A reader is sent the longest time without an event."""
    async with run_core(url, tuning=Tuning(bookmark_s=7)) as core, reading(core, ALICE) as stream:
        (complete,) = await stream.some(SnapshotComplete)
        assert complete.bookmark_interval_s == 7


POLICY = Policy(max_notification_addresses=3, max_watched_terminals=4, group_support=False)
REFUSED: dict[str, tuple[type[TerminalStatusError], str, dict[str, Any]]] = {
    "nothing": (InvalidRequest, "add_addresses", {}),
    "both": (InvalidRequest, "remove_addresses", {"add": [BOB, CAROL], "remove": [CAROL]}),
    "no address": (InvalidAddress, "add_addresses[0]", {"add": ["bob"]}),
    "removes no address": (InvalidAddress, "remove_addresses[0]", {"add": [BOB], "remove": ["sip:"]}),
    "all": (NoValidAddresses, "remove_addresses", {"remove": [ALICE]}),
    "a group": (GroupNotAllowed, "add_addresses", {"add": [BOB, TEAM]}),
    "too many": (TooManyAddresses, "add_addresses", {"add": [BOB, CAROL, DAN]}),
    "far too many": (TooManyAddresses, "add_addresses", {"add": [f"sip:{one}@example.com" for one in range(7)]}),
    "too many to remove": (TooManyAddresses, "remove_addresses", {"remove": [ALICE] * 7}),
    "too many in all": (TooManyWatchedTerminals, "", {"add": [DAN, "sip:erin@example.com"]}),
}


@pytest.mark.parametrize("why", REFUSED)
async def test_refused_change_has_no_effect(url: str, why: str) -> None:
    """A change that the policy or a limit forbids raises the error of an opening, and leaves the stream as it was."""
    error, at_fault, change = REFUSED[why]
    async with run_core(url) as core:
        await core.groups.create(APP, TEAM, [BOB])
    async with (
        run_core(url, policy=POLICY) as core,
        reading(core, BOB, CAROL) as others,
        following(core, ALICE) as stream,
    ):
        await others.some(SnapshotComplete)
        wanted = dict(core.watcher.wanted)
        with pytest.raises(error) as caught:
            await stream.open.change(APP, **change)
        assert caught.value.details.get("field", "") == at_fault
        await core.play(ALICE, BUSY)
        await stream.some(Change)
        assert stream.since(2) == ["Change", "LivenessChange"] or stream.since(2) == ["Change"]
        assert core.watcher.wanted == wanted
        await stream.change(add=[BOB], change_id="good")
        assert "ChangeApplied good" in stream.since(3), "a later change is made"


async def test_exchange_at_the_limit_of_watched_terminals(url: str) -> None:
    """Terminals that a change removes make room for those that it adds, unless another stream wants them."""
    async with run_core(url, policy=Policy(max_watched_terminals=2)) as core, following(core, ALICE, BOB) as stream:
        await stream.change(add=[CAROL], remove=[BOB], change_id="exchanged")
        async with reading(core, ALICE) as other:
            await other.some(SnapshotComplete)
            with pytest.raises(TooManyWatchedTerminals):
                await stream.open.change(APP, add=[DAN], remove=[ALICE])
        await stream.change(add=[DAN], remove=[ALICE], change_id="free")
        assert stream.since(3)[-1] == "ChangeApplied free"


async def test_change_counts_as_a_call(url: str) -> None:
    """Each change counts against the client's rate, by the client's present limits."""
    slow = Client(id=APP.id, name=APP.name, created_at=BEGAN, limits={"rate_per_s": 1})
    async with run_core(url) as core, following(core, ALICE) as stream:
        await stream.change(add=[BOB], client=slow)
        with pytest.raises(RateLimited):
            await stream.open.change(slow, add=[CAROL])
        await core.advance(1)
        await stream.change(add=[CAROL], client=slow)
        assert set(core.watcher.wanted) == {ALICE, BOB, CAROL}


async def test_change_without_the_store_has_no_effect(core: Core) -> None:
    """If the added terminal cannot be read from the store, it is not watched any longer."""
    async with following(core, ALICE) as stream:
        core.store.away = True
        with pytest.raises(StoreUnavailable):
            await stream.open.change(APP, add=[BOB])
        core.store.away = False
        assert not core.live.registry.wanted_by(BOB)
        await stream.change(add=[BOB], change_id="again")
        assert stream.since(2) == ["Snapshot bob", "ChangeApplied again"]


async def test_slow_reader_holds_up_its_own_changes(core: Core) -> None:
    """At most one answer waits for a reader: the next change is made when the reader has taken it."""
    await core.groups.create(APP, TEAM, [ALICE])
    async with core.streams.open(APP, [TEAM]) as stream:
        while not isinstance(await anext(stream.events), SnapshotComplete):
            pass
        changes = asyncio.create_task(several(stream, [[BOB], [CAROL], [DAN]]))
        await until(lambda: BOB in core.watcher.wanted)
        await core.groups.set_members(APP, TEAM, [BOB])
        await core.advance(1)
        assert CAROL not in core.watcher.wanted
        seen: list[Any] = []
        while len([event for event in seen if isinstance(event, ChangeApplied)]) < 3:
            seen.append(await anext(stream.events))
        await changes
        shown = [shortened(event) for event in seen]
        assert [one for one in shown if "alice" not in one] == [
            "Snapshot bob",
            "ChangeApplied 0",
            "Snapshot carol",
            "ChangeApplied 1",
            "Snapshot dan",
            "ChangeApplied 2",
        ]


async def several(stream: OpenStream, added: Sequence[Sequence[str]]) -> None:
    """Makes changes, each as soon as the stream takes it."""
    for number, addresses in enumerate(added):
        await stream.change(APP, add=addresses, change_id=str(number))


async def test_members_that_leave_before_the_reader_sees_them(core: Core) -> None:
    """Of members that join a group together, those that leave while the reader takes the first are not sent, and
    nothing of them stays when the stream ends."""
    await core.groups.create(APP, TEAM, [ALICE])
    async with core.streams.open(APP, [TEAM]) as stream:
        while not isinstance(await anext(stream.events), SnapshotComplete):
            pass
        await core.groups.set_members(APP, TEAM, [ALICE, BOB, CAROL])
        await until(lambda: CAROL in core.watcher.wanted)
        first = await anext(stream.events)
        await core.groups.set_members(APP, TEAM, [ALICE, first.terminal.address])  # type: ignore[union-attr]
        gone = ({BOB, CAROL} - {first.terminal.address}).pop()  # type: ignore[union-attr]
        await until(lambda: not core.live.registry.wanted_by(gone))
        assert shortened(await anext(stream.events)).startswith("Removed")
    assert not core.live.registry.wanted_by(ALICE)


async def test_change_of_an_ended_stream(core: Core) -> None:
    """A stream that ends is not changed any more, and a change that waits for the reader ends with the stream."""
    async with core.streams.open(APP, [ALICE]) as stream:
        await stream.change(APP, add=[BOB])
        waiting = asyncio.create_task(stream.change(APP, add=[CAROL]))
        await asyncio.sleep(0)
        stream.end(StreamEnd.CREDENTIALS_EXPIRED)
    await waiting
    assert CAROL not in core.watcher.wanted
    core.streams.end_all()
    async with core.streams.open(APP, [ALICE]) as late:
        await late.change(APP, add=[BOB])
        await late.refuse("", InvalidRequest("No."))
        late.end(StreamEnd.CREDENTIALS_EXPIRED)
        events = [event async for event in late.events]
    assert [type(event) for event in events] == [End]


async def test_added_terminal_that_another_node_has_written(url: str) -> None:
    """A terminal that this node watches already is read again when a stream adds it: its reader may have seen a newer
    status at another node."""
    clocks = Clocks()
    async with (
        run_core(url, clocks=clocks, reread_s=3600) as core,
        run_core(url, clocks=clocks) as other,
        reading(core, BOB) as here,
        reading(other, BOB) as there,
        following(core, ALICE) as stream,
    ):
        for each in (here, there):
            await each.some(SnapshotComplete)
        await other.play(BOB, BUSY)
        await stream.change(add=[BOB])
        snapshot = (await stream.some(Snapshot, 2))[1].terminal
        assert (snapshot.address, snapshot.status and snapshot.status.status) == (BOB, BUSY)


async def test_stream_that_is_closed_during_a_change(core: Core) -> None:
    """A stream that its reader closes while a change reads the store leaves no watch behind."""
    async with core.streams.open(APP, [ALICE]) as stream:
        real, reached, go_on = core.store.statuses, asyncio.Event(), asyncio.Event()

        async def held(addresses: Sequence[TerminalAddress]) -> Any:
            reached.set()
            await go_on.wait()
            return await real(addresses)

        core.store.statuses = held  # type: ignore[attr-defined]
        change = asyncio.create_task(stream.change(APP, add=[BOB]))
        await reached.wait()
    go_on.set()
    await change
    assert not core.live.registry.wanted_by(BOB)


TERMINALS = [TerminalAddress(f"sip:{name}@example.com") for name in "abcde"]
GROUPS = [TerminalAddress(f"sip:{name}@groups.example.com") for name in "gh"]
some_terminals = st.lists(st.sampled_from(TERMINALS), max_size=3, unique=True)
some_addresses = st.lists(st.sampled_from(TERMINALS + GROUPS), max_size=3, unique=True)
steps = st.one_of(
    st.tuples(st.just("change"), some_addresses, some_addresses),
    st.tuples(st.just("play"), st.sampled_from(TERMINALS), st.sampled_from([REACHABLE, UNREACHABLE, BUSY])),
    st.tuples(st.just("members"), st.sampled_from(GROUPS), some_terminals),
    st.tuples(st.just("read"), st.integers(1, 4), st.none()),
)


@dataclass
class Model:
    """What a stream should send, by the simplest rules: sets of addresses."""

    asked: set[TerminalAddress]
    members: dict[TerminalAddress, set[TerminalAddress]]

    def covered(self, asked: set[TerminalAddress] | None = None) -> set[TerminalAddress]:
        """The terminals that these addresses mean; by default those of the stream."""
        asked = self.asked if asked is None else asked
        return {one for one in asked if one not in self.members}.union(*[self.members.get(one, set()) for one in asked])

    def change(self, add: Sequence[TerminalAddress], remove: Sequence[TerminalAddress]) -> bool:
        """Makes the change, unless it must be refused."""
        after = self.asked.union(add).difference(remove)
        if not (add or remove) or set(add) & set(remove) or (after != self.asked and not self.covered(after)):
            return False
        self.asked = after
        return True


@dataclass
class SlowReader:
    """Reads a stream only when the test says so, and keeps what a client would know."""

    stream: OpenStream
    known: dict[TerminalAddress, Status | None] = field(default_factory=dict)
    revisions: dict[TerminalAddress, int] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    token: str = ""
    _next: "asyncio.Task[Any] | None" = None

    async def read(self) -> bool:
        """Takes the next event, if there is one."""
        if self._next is None:
            self._next = asyncio.create_task(anext(self.stream.events))
        for _ in range(3):
            await asyncio.sleep(0)
        if not self._next.done():
            return False
        self._take(self._next.result())
        self._next = None
        return True

    async def aclose(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)

    def _take(self, event: Any) -> None:
        match event:
            case Snapshot(terminal=terminal):
                self.known[terminal.address] = terminal.status.status if terminal.status else None
                self.revisions[terminal.address] = terminal.status.revision if terminal.status else 0
            case Change(status=status):
                assert status.revision > self.revisions[status.address]
                self.known[status.address], self.revisions[status.address] = status.status, status.revision
            case Removed(address=address):
                self.known.pop(address, None)
            case ChangeApplied():
                self.answered.append(event.change_id)
        self.token = getattr(event, "resume_token", "") or self.token


def test_random_changes_converge(tmp_path: Path) -> None:
    """Whatever is added, removed, reported and regrouped, and however slowly the stream is read: in the end its client
    knows the terminals of its addresses, each with its status, and each change was answered in order."""
    with asyncio.Runner() as runner:
        url = runner.run(new_database(tmp_path))
        opened = run_core(url)
        core = runner.run(opened.__aenter__())
        for group in GROUPS:
            runner.run(core.groups.create(APP, group, []))
        runner.run(core.groups.create(OTHER, TERMINALS[0], TERMINALS[1:]))

        @settings(max_examples=60)
        @given(st.lists(steps, max_size=14))
        def check(history: Sequence[tuple[str, Any, Any]]) -> None:
            runner.run(follows(core, history))

        try:
            check()
        finally:
            runner.run(opened.__aexit__(None, None, None))


async def follows(core: Core, history: Sequence[tuple[str, Any, Any]]) -> None:
    """Plays the history to a stream, and compares what its reader knows with the model."""
    model = Model({TERMINALS[0]}, {group: set() for group in GROUPS})
    for group in GROUPS:
        await core.groups.set_members(APP, group, [])
    made: list[str] = []
    async with core.streams.open(APP, [TERMINALS[0]]) as stream:
        reader = SlowReader(stream)
        for number, (kind, one, two) in enumerate(history):
            if kind == "read":
                for _ in range(one):
                    await reader.read()
            elif kind == "play":
                core.watcher.play(one, two)
            elif kind == "members":
                model.members[one] = set(two)
                await core.groups.set_members(APP, one, two)
            else:
                while len(reader.answered) < len(made):
                    await reader.read()
                try:
                    await stream.change(APP, add=one, remove=two, change_id=str(number))
                except (InvalidRequest, NoValidAddresses):
                    assert not model.change(one, two)
                else:
                    assert model.change(one, two)
                    made.append(str(number))
        await core.settled()

        def right() -> bool:
            terminals = {one: core.live.registry.by_address.get(one) for one in model.covered()}
            return reader.known == {
                one: terminal.status.status if terminal and terminal.status else None
                for one, terminal in terminals.items()
            }

        def followed() -> bool:  # a group's last change may still be on its way while the reader knows its terminals
            return {one.address for one in next(iter(core.live.streams)).sent} == model.covered()

        async with asyncio.timeout(DEADLINE_S):
            while not (right() and followed() and reader.answered == made):
                if not await reader.read():
                    await asyncio.sleep(0.001)
        await reader.aclose()
    assert not [one for one in TERMINALS if core.live.registry.wanted_by(one)]
