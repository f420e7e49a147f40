"""What streams guarantee, checked on a recorded history with crashes, restored backups, lost hints and slow readers, in
the way that etcd tests its watches.

Two nodes share a database. One watches the terminals, is killed and comes back. The other learns of changes by hints,
half of which are lost, and by reading the store again. Sometimes both end, and start with an older copy of the
database. Readers of both come and go with their resume tokens.
"""

import asyncio
import base64
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import pytest_asyncio

from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes
from app.domain.policy import Policy
from app.domain.statuses import Liveness, Status, TerminalStatus
from app.live.events import Bookmark, Change, End, LivenessChange, Snapshot, SnapshotComplete, StreamEvent
from app.live.resume_tokens import mark_of
from app.store import open_store
from tests.support.core import APP, Clocks, Core, new_database, run_core
from tests.support.waiting import until

TERMINALS = tuple(TerminalAddress(f"sip:t{number}@example.com") for number in range(8))
STEPS = 160
REREAD_S = 30.0

State = dict[TerminalAddress, TerminalStatus]


Written = dict[tuple[TerminalAddress, int], set[TerminalStatus]]
"""Every status that was ever written since the last restored backup, and what that held, by terminal and revision; of
those that a kill cut off perhaps several."""


@dataclass
class Session:
    """One stream of a reader, from opening to closing."""

    resumed_with: str
    stored_before: State
    """What was stored when it was opened."""
    written: Written
    """While it was open."""
    events: list[StreamEvent] = field(default_factory=list)

    @property
    def reset(self) -> bool:
        """Whether the stream said that the client must forget its state."""
        return any(isinstance(event, SnapshotComplete) and event.reset for event in self.events)

    def tokens(self) -> Iterator[tuple[int, str]]:
        """The positions of resume tokens among the events, and the tokens."""
        for place, event in enumerate(self.events):
            if isinstance(event, Bookmark | SnapshotComplete | End):
                yield place, event.resume_token

    def statuses(self, most: int | None = None) -> Iterator[TerminalStatus]:
        """Each status that was sent, in order, among the first `most` events."""
        for event in self.events[:most]:
            if isinstance(event, Change):
                yield event.status
            elif isinstance(event, Snapshot) and event.terminal.status is not None:
                yield event.terminal.status


@dataclass
class Recorded:
    """The whole recorded history."""

    readers: list[list[Session]]
    written: list[Written]
    """One after each restored backup."""
    stored: State
    """What is stored at the end."""

    @property
    def sessions(self) -> list[Session]:
        return [session for reader in self.readers for session in reader]


class Reader:
    """Reads one stream after another, resuming each time with the latest token."""

    def __init__(self, *, slow: bool) -> None:
        self.sessions: list[Session] = []
        self._slow = slow
        self._task: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()

    async def connect(self, core: Core, writer: Core, written: Written) -> None:
        await self.close()
        await writer.settled()
        token = ""
        for session in self.sessions:
            for _, given in session.tokens():
                token = given
        session = Session(token, await core.store.statuses(TERMINALS), written)
        self.sessions.append(session)
        stream = core.streams.stream(APP, TERMINALS, resume_token=token)
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


@contextlib.asynccontextmanager
async def writing(url: str, clocks: Clocks, written: Written) -> AsyncIterator[Core]:
    """The node that watches; its writes are recorded, and it is killed at the end."""
    async with run_core(url, clocks=clocks, crash=True) as core:
        write = core.store._store.write  # noqa: SLF001

        async def remembered(changes: Changes) -> Sequence[TerminalStatus]:
            for status in changes.statuses:
                written.setdefault((status.address, status.revision), set()).add(status)
            if conflicts := await write(changes):
                for status in changes.statuses:
                    written[status.address, status.revision].discard(status)
            return conflicts

        core.store._store.write = remembered  # type: ignore[method-assign]  # noqa: SLF001
        yield core


def copied(source: Path, target: Path) -> None:
    """Copies the current database over another one, as an operator restores a backup."""
    with contextlib.closing(sqlite3.connect(source)) as one, contextlib.closing(sqlite3.connect(target)) as other:
        one.backup(other)


class History:
    """Both nodes and their readers."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self.readers = [Reader(slow=False), Reader(slow=True), Reader(slow=False)]
        self.written: list[Written] = [{}]
        self.now: dict[TerminalAddress, Status] = {}
        self.core: Core
        self.other: Core
        self._url = url
        self._path = Path(url.removeprefix("sqlite:///"))
        self._backup = self._path.with_suffix(".backup")
        self._chance = chance
        self._clocks = Clocks()
        self._life, self._other_life = AsyncExitStack(), AsyncExitStack()

    async def begin(self) -> None:
        """Starts both nodes and the readers."""
        self.other = await self._other_life.enter_async_context(
            run_core(self._url, clocks=self._clocks, reread_s=REREAD_S, policy=Policy())
        )
        await self.begin_writing()
        await self.connect(self.readers[2])

    async def begin_writing(self) -> None:
        """Starts the node that watches; the presence server reports the statuses of its terminals."""
        self.core = await self._life.enter_async_context(writing(self._url, self._clocks, self.written[-1]))
        await self.connect(self.readers[0])
        await self.connect(self.readers[1])
        await until(lambda: len(self.core.watcher.wanted) == len(TERMINALS))
        for address, status in self.now.items():
            self.core.watcher.play(address, status)

    async def connect(self, reader: Reader) -> None:
        await reader.connect(self.other if reader is self.readers[2] else self.core, self.core, self.written[-1])

    async def kill(self) -> None:
        await self.readers[0].close()
        await self.readers[1].close()
        await self._life.aclose()

    async def aclose(self) -> None:
        await self.kill()
        await self.readers[2].close()
        await self._other_life.aclose()

    async def step(self) -> None:
        """Does one random thing."""
        common = ["play"] * 12 + ["reconnect"] * 3 + ["settle", "bookmark", "kill", "hint", "hint", "backup", "restore"]
        match self._chance.choice(common):
            case "play":
                for _ in range(self._chance.randrange(1, 6)):
                    address = self._chance.choice(TERMINALS)
                    self.now[address] = self._chance.choice(list(Status))
                    self.core.watcher.play(address, self.now[address])
                    await asyncio.sleep(0)
            case "settle":
                await self.core.settled()
            case "bookmark":
                for _ in range(5):
                    await self.core.advance(2.5)
            case "reconnect":
                await self.connect(self._chance.choice(self.readers))
            case "hint":
                if self._chance.random() < 0.5:
                    assert self.other.live.other_nodes is not None
                    self.other.live.other_nodes.on_hint([self._chance.choice(TERMINALS)])
            case "kill":
                await self.kill()
                await self.begin_writing()
            case "backup":
                copied(self._path, self._backup)
            case "restore" if self._backup.exists():
                await self.restore()

    async def restore(self) -> None:
        """Ends both nodes and starts them again with the backup; other changes have happened since."""
        await self.aclose()
        copied(self._backup, self._path)
        async with await open_store(self._url) as store:
            restored = await store.statuses(TERMINALS)
        self.written.append({(one.address, one.revision): {one} for one in restored.values()})
        self.now = {address: self._chance.choice(list(Status)) for address in TERMINALS}
        self._clocks.advance(self._chance.randrange(1, 100))
        await self.begin()

    async def end(self) -> State:
        """Stops the changes, waits until each reader has the last one, and returns the stored statuses."""
        await self.core.settled()
        await self.core.advance(1)
        for _ in range(3):
            await self.other.advance(REREAD_S + 1)
        stored: State = await self.core.store.statuses(TERMINALS)
        for reader in self.readers:
            await until(
                lambda reader=reader: (
                    {one.address: one.revision for one in replayed(reader.sessions)[-1][1].values()}  # type: ignore[misc]
                    == {one.address: one.revision for one in stored.values()}
                )
            )
        return stored


async def record(directory: Path, seed: int) -> Recorded:
    """Records a random history."""
    history = History(await new_database(directory), random.Random(seed))
    await history.begin()
    try:
        for _ in range(STEPS):
            await history.step()
        stored = await history.end()
    finally:
        await history.aclose()
    return Recorded([reader.sessions for reader in history.readers], history.written, stored)


def replayed(sessions: Sequence[Session]) -> list[tuple[State | None, State]]:
    """What a client of these sessions knows when each session's snapshot is complete (None: never), and at the
    session's end.

    The client keeps everything that it is sent. When it resumes with a token it goes back to what it knew at that
    token; after a reset it knows only the snapshot.
    """
    at_token: State = {}
    found = []
    for session in sessions:
        state, shown, complete = dict(at_token), set[TerminalAddress](), None
        for event in session.events:
            if isinstance(event, Snapshot):
                shown.add(event.terminal.address)
                state.pop(event.terminal.address, None)
                if event.terminal.status is not None:
                    state[event.terminal.address] = event.terminal.status
            elif isinstance(event, Change):
                state[event.status.address] = event.status
            elif isinstance(event, SnapshotComplete):
                state = {address: state[address] for address in state if address in shown or not event.reset}
                complete = dict(state)
            if isinstance(event, Bookmark | SnapshotComplete | End):
                at_token = dict(state)
        found.append((complete, state))
    return found


def is_written(status: TerminalStatus, written: Written) -> bool:
    """Whether this status was stored, either since the last restored backup or before the backup, and perhaps confirmed
    later."""
    return any(
        one.status is status.status and one.observed_at <= status.observed_at
        for one in written.get((status.address, status.revision), ())
    )


def named_by(token: str) -> dict[TerminalAddress, tuple[int, bytes]]:
    """The revision and the mark of each terminal in a token; empty for no token."""
    body = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[9:]
    found: dict[TerminalAddress, tuple[int, bytes]] = {}
    for address in sorted(TERMINALS) if token else ():
        size = next(place for place, byte in enumerate(body) if byte < 0x80) + 1
        number = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(body[:size]))
        found[address] = number >> 1, body[size : size + 4]
        body = body[size + 4 :]
    assert not body
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=range(4))
async def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    seed: int = request.param
    return await record(tmp_path_factory.mktemp("history"), seed)


def test_history_is_worth_judging(recorded: Recorded) -> None:
    """The history has crashes, restored backups, resumed streams, resets, bookmarks, and enough changes."""
    assert sum(map(len, recorded.written)) > 50
    assert sum(bool(session.resumed_with) and not session.reset for session in recorded.sessions) >= 3
    assert len(recorded.written) > 1
    assert any(session.reset for session in recorded.sessions)
    assert any(isinstance(event, Bookmark) for session in recorded.sessions for event in session.events)


def test_ordered(recorded: Recorded) -> None:
    """On each stream a terminal's revisions only grow, and each revision has the status that was stored with it."""
    for session in recorded.sessions:
        newest: dict[TerminalAddress, int] = {}
        for status in session.statuses():
            assert status.revision > newest.get(status.address, 0)
            newest[status.address] = status.revision
            assert is_written(status, session.written)


def test_unique(recorded: Recorded) -> None:
    """No change is sent twice, neither on one stream nor on the stream that resumes it; a reset starts over."""
    for session in recorded.sessions:
        known = {} if session.reset else named_by(session.resumed_with)
        changes = [event.status for event in session.events if isinstance(event, Change)]
        assert len({(status.address, status.revision) for status in changes}) == len(changes)
        assert all(status.revision > known.get(status.address, (0,))[0] for status in changes)


def test_snapshots_have_only_what_differs(recorded: Recorded) -> None:
    """A stream that resumes leaves out those terminals that were sent as LIVE and have not changed since."""
    left_out = 0
    for reader in recorded.readers:
        for session, before in zip(reader[1:], reader, strict=False):
            complete = [place for place, event in enumerate(session.events) if isinstance(event, SnapshotComplete)]
            if not complete or session.reset or not session.resumed_with:
                continue
            doubtful = doubted(before)
            known = named_by(session.resumed_with)
            for status in [
                event.terminal.status
                for event in session.events[: complete[0]]
                if isinstance(event, Snapshot) and event.terminal.liveness is Liveness.LIVE
            ]:
                assert status is not None
                assert status.revision != known[status.address][0] or status.address in doubtful
            left_out += len(TERMINALS) - complete[0]
    assert left_out


def doubted(session: Session) -> set[TerminalAddress]:
    """Terminals that the session last reported, before its last token, as not LIVE; all terminals if it had no
    token."""
    places = [place for place, _ in session.tokens()]
    doubtful = set() if places else set(TERMINALS)
    for event in session.events[: places[-1] if places else 0]:
        if isinstance(event, Snapshot | LivenessChange):
            doubtful.discard(event.terminal.address)
            if event.terminal.liveness is not Liveness.LIVE:
                doubtful.add(event.terminal.address)
    return doubtful


def test_resumable(recorded: Recorded) -> None:
    """When a snapshot is complete, its client knows what was stored when the stream was opened, or later statuses, and
    nothing of a history that a restored backup has removed."""
    for reader in recorded.readers:
        for session, (known, _) in zip(reader, replayed(reader), strict=True):
            if known is None:
                continue
            for address, status in session.stored_before.items():
                assert known[address].revision >= status.revision
            assert all(is_written(status, session.written) for status in known.values())


def test_bookmarkable(recorded: Recorded) -> None:
    """Each token stands for exactly what the client was sent before it; tokens never go back on one stream."""
    for reader in recorded.readers:
        for number, session in enumerate(reader):
            before: dict[TerminalAddress, int] = {}
            for place, token in session.tokens():
                cut = [*reader[:number], replace(session, events=session.events[: place + 1])]
                _, known = replayed(cut)[-1]
                stands_for = named_by(token)
                for address, (revision, mark) in stands_for.items():
                    assert revision == (known[address].revision if address in known else 0)
                    marks = [mark_of(one).to_bytes(8)[:4] for one in session.written.get((address, revision), ())]
                    assert mark in (marks or [bytes(4)])
                    assert revision >= before.get(address, 0)
                before = {address: revision for address, (revision, _) in stands_for.items()}


def test_converges(recorded: Recorded) -> None:
    """When changes end, each reader knows the last status of each terminal; so do the slow reader and the one whose
    hints were lost."""
    for sessions in recorded.readers:
        _, state = replayed(sessions)[-1]
        assert {a: (s.status, s.revision) for a, s in state.items()} == {
            a: (s.status, s.revision) for a, s in recorded.stored.items()
        }
