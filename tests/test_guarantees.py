"""What streams guarantee, judged over a recorded history with crashes, lost hints and slow readers, as etcd does it.

Two nodes share a database. One watches the terminals, is killed and comes back; the other learns by hints, of which
half are lost, and by reading again. Readers of both come and go with their resume tokens.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from app.core.policy import Policy
from app.core.streams import Bookmark, Change, End, Snapshot, SnapshotComplete, WatchEvent, told_by
from app.core.watching import Tuning
from app.domain import Liveness, Status, TerminalAddress, TerminalStatus
from app.ports import Changes
from tests.core import APP, Clocks, Core, new_database, run_core, until

TERMINALS = tuple(TerminalAddress(f"sip:t{number}@example.com") for number in range(8))
STEPS = 120
REREAD_S = 30.0

State = dict[TerminalAddress, TerminalStatus]


@dataclass
class Session:
    """One stream of a reader, from open to close."""

    resumed_with: str
    stored_before: State
    """What was stored when it was opened."""
    events: list[WatchEvent] = field(default_factory=list)

    def tokens(self) -> Iterator[tuple[int, str]]:
        """Where a resume token was given, and which."""
        for place, event in enumerate(self.events):
            if isinstance(event, Bookmark | SnapshotComplete | End):
                yield place, event.resume_token

    def statuses(self, most: int | None = None) -> Iterator[TerminalStatus]:
        """Each status that was told, in order, of the first `most` events."""
        for event in self.events[:most]:
            if isinstance(event, Change):
                yield event.status
            elif isinstance(event, Snapshot) and event.terminal.status is not None:
                yield event.terminal.status


@dataclass
class Recorded:
    """All that happened."""

    readers: list[list[Session]]
    written: dict[tuple[TerminalAddress, int], set[Status]]
    """Every status that was ever written, by terminal and revision; of those that a kill cut off perhaps several."""
    stored: State
    """What is stored at the end."""

    @property
    def sessions(self) -> list[Session]:
        return [session for reader in self.readers for session in reader]


class Reader:
    """Reads streams one after the other, resuming each time with the last token it has."""

    def __init__(self, *, slow: bool) -> None:
        self.sessions: list[Session] = []
        self._slow = slow
        self._task: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()

    async def connect(self, core: Core, writer: Core) -> None:
        await self.close()
        await writer.settled()
        token = ""
        for session in self.sessions:
            for _, given in session.tokens():
                token = given
        session = Session(token, await core.store.statuses(TERMINALS))
        self.sessions.append(session)
        stream = core.watching.stream(APP, TERMINALS, resume_token=token)
        self._stack.push_async_callback(stream.aclose)

        async def read() -> None:
            async for event in stream:
                session.events.append(event)
                for _ in range(50 if self._slow else 0):
                    await asyncio.sleep(0)

        self._task = asyncio.create_task(read())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._stack.aclose()


async def record(directory: Path, seed: int) -> Recorded:
    """Lets a random history happen."""
    chance = random.Random(seed)
    url = await new_database(directory)
    clocks = Clocks()
    written: dict[tuple[TerminalAddress, int], set[Status]] = {}
    readers = [Reader(slow=False), Reader(slow=True), Reader(slow=False)]
    there = readers[2]
    now: dict[TerminalAddress, Status] = {}

    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(
            run_core(url, clocks=clocks, tuning=Tuning(reread_s=REREAD_S), policy=Policy())
        )

        async def begin() -> tuple[AsyncExitStack, Core]:
            life = AsyncExitStack()
            core = await life.enter_async_context(run_core(url, clocks=clocks, crash=True))
            write = core.store._store.write  # noqa: SLF001

            async def remembered(changes: Changes) -> Sequence[TerminalStatus]:
                for status in changes.statuses:
                    written.setdefault((status.address, status.revision), set()).add(status.status)
                if conflicts := await write(changes):
                    for status in changes.statuses:
                        written[status.address, status.revision].discard(status.status)
                return conflicts

            core.store._store.write = remembered  # type: ignore[method-assign]  # noqa: SLF001
            return life, core

        life, core = await begin()
        try:
            await readers[0].connect(core, core)
            await readers[1].connect(core, core)
            await there.connect(other, core)
            for _ in range(STEPS):
                match chance.choice(["play"] * 12 + ["settle", "bookmark", "kill", "reconnect", "hint", "hint"]):
                    case "play":
                        for _ in range(chance.randrange(1, 6)):
                            address = chance.choice(TERMINALS)
                            now[address] = chance.choice(list(Status))
                            core.watcher.play(address, now[address])
                            await asyncio.sleep(0)
                    case "settle":
                        await core.settled()
                    case "bookmark":
                        for _ in range(5):
                            await core.advance(2.5)
                    case "reconnect":
                        reader = chance.choice(readers)
                        await reader.connect(other if reader is there else core, core)
                    case "hint":
                        if chance.random() < 0.5:
                            other.watching.hint([chance.choice(TERMINALS)])
                    case "kill":
                        await readers[0].close()
                        await readers[1].close()
                        await life.aclose()
                        life, core = await begin()
                        await readers[0].connect(core, core)
                        await readers[1].connect(core, core)
                        await until(lambda core=core: len(core.watcher.wanted) == len(TERMINALS))  # type: ignore[misc]
                        for address, status in now.items():  # the presence server says how it is
                            core.watcher.play(address, status)
            await core.settled()
            await core.advance(1)
            for _ in range(3):
                await other.advance(REREAD_S + 1)
            stored: State = await core.store.statuses(TERMINALS)
            for reader in readers:
                session = reader.sessions[-1]
                await until(
                    lambda session=session: (
                        {s.address: s.revision for s in session_state(session).values()}  # type: ignore[misc]
                        == {s.address: s.revision for s in stored.values()}
                    )
                )
        finally:
            for reader in readers:
                await reader.close()
            await life.aclose()
    return Recorded([reader.sessions for reader in readers], written, stored)


def session_state(session: Session) -> State:
    """What a reader knows by the end of its session: what the token stood for, and what was told since."""
    known = told_by(session.resumed_with, TERMINALS)
    state = {a: s for a, s in session.stored_before.items() if known.get(a) == s.revision}
    state.update({status.address: status for status in session.statuses()})
    return state


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=range(4))
async def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    seed: int = request.param
    return await record(tmp_path_factory.mktemp("history"), seed)


def test_history_is_worth_judging(recorded: Recorded) -> None:
    """The history has crashes, resumed streams, bookmarks, and enough changes."""
    assert len(recorded.written) > 50
    assert sum(bool(session.resumed_with) for session in recorded.sessions) >= 3
    assert any(isinstance(event, Bookmark) for session in recorded.sessions for event in session.events)


def test_ordered(recorded: Recorded) -> None:
    """On each stream a terminal's revisions only grow, and each is the status that was stored under it."""
    for session in recorded.sessions:
        newest: dict[TerminalAddress, int] = {}
        for status in session.statuses():
            assert status.revision > newest.get(status.address, 0)
            newest[status.address] = status.revision
            assert status.status in recorded.written[status.address, status.revision]


def test_unique(recorded: Recorded) -> None:
    """No change is told twice, neither on one stream nor on the one that resumes it."""
    for session in recorded.sessions:
        known = told_by(session.resumed_with, TERMINALS)
        changes = [event.status for event in session.events if isinstance(event, Change)]
        assert len({(status.address, status.revision) for status in changes}) == len(changes)
        assert all(status.revision > known.get(status.address, 0) for status in changes)
        for event in session.events:
            if isinstance(event, Snapshot) and event.terminal.liveness is Liveness.LIVE:
                assert event.terminal.status is not None
                assert event.terminal.status.revision != known.get(event.terminal.address)


def test_resumable(recorded: Recorded) -> None:
    """What was stored when a stream was resumed is known to the reader when the snapshot is complete."""
    for session in recorded.sessions:
        complete = [place for place, event in enumerate(session.events) if isinstance(event, SnapshotComplete)]
        assert len(complete) <= 1
        if not complete:
            continue
        known = told_by(session.resumed_with, TERMINALS)
        for status in session.statuses(complete[0]):
            known[status.address] = status.revision
        for address, status in session.stored_before.items():
            assert known[address] >= status.revision


def test_bookmarkable(recorded: Recorded) -> None:
    """Each token stands for exactly what the reader was told until it got it, and never goes back."""
    for session in recorded.sessions:
        before: dict[TerminalAddress, int] = {}
        for place, token in session.tokens():
            expected = told_by(session.resumed_with, TERMINALS)
            expected.update({status.address: status.revision for status in session.statuses(place)})
            stands_for = told_by(token, TERMINALS)
            assert stands_for == {address: expected.get(address, 0) for address in TERMINALS}
            assert all(stands_for[address] >= revision for address, revision in before.items())
            before = stands_for


def test_converges(recorded: Recorded) -> None:
    """When changes end each reader, the slow one and the one that lost hints too, knows the last state of each."""
    for sessions in recorded.readers:
        state = session_state(sessions[-1])
        assert {a: (s.status, s.revision) for a, s in state.items()} == {
            a: (s.status, s.revision) for a, s in recorded.stored.items()
        }
