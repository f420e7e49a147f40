"""Tests of `app/live/resume_tokens.py`: a resume token identifies observations, and no text in its place is an
error."""

import base64
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.addresses import TerminalAddress
from app.domain.policy import Policy
from app.domain.statuses import Liveness, Source, Status, TerminalStatus
from app.live.events import Bookmark, Change, End, LivenessChange, Snapshot, SnapshotComplete, StreamEvent
from app.live.resume_tokens import MAX_NAMED, MAX_TOKEN, NOTHING_SEEN, Seen, known_by, mark_of, token_of
from tests.support.core import (
    ALICE,
    BEGAN,
    BOB,
    BUSY,
    REACHABLE,
    UNREACHABLE,
    Clocks,
    Core,
    new_database,
    reading,
    run_core,
)

MICROSECONDS = timedelta(microseconds=123_457)


async def play(core: Core, *statuses: Status, address: TerminalAddress = ALICE) -> None:
    """The presence server reports these statuses one after the other, each some time after the previous one."""
    for status in statuses:
        core.clocks.advance(7 + MICROSECONDS.total_seconds())
        await core.play(address, status)


async def token_after(core: Core, *statuses: Status, addresses: Sequence[str] = (ALICE,)) -> str:
    """The token of a stream that has sent the last of these statuses as LIVE."""
    async with reading(core, *addresses) as stream:
        await stream.some(SnapshotComplete)
        await play(core, *statuses)
        async with reading(core, *addresses) as settled:
            (complete,) = await settled.some(SnapshotComplete)
    return str(complete.resume_token)


async def resume(core: Core, token: str, *addresses: str) -> tuple[list[str], bool]:
    """The terminals in the first snapshot of a stream with this token, and whether the stream is a reset."""
    async with reading(core, *addresses, resume_token=token) as stream:
        (complete,) = await stream.some(SnapshotComplete)
        shown = [event for event in stream.events if isinstance(event, Snapshot)]
    return [f"{one.terminal.address} {one.terminal.status and one.terminal.status.status.name}" for one in shown], (
        complete.reset
    )


async def resumed_live(core: Core, token: str, status: Status) -> tuple[list[str], bool]:
    """Like `resume`, for ALICE, who is watched and has this status."""
    async with reading(core, ALICE) as keeping:
        await keeping.some(SnapshotComplete)
        await play(core, status)
        return await resume(core, token, ALICE)


async def test_restored_backup(url: str) -> None:
    """After a restored backup, the same revision with another status is sent, and the stream is a reset."""
    path = Path(url.removeprefix("sqlite:///"))
    async with run_core(url) as core:
        await token_after(core, REACHABLE)
    backup = shutil.copy(path, path.with_suffix(".backup"))
    async with run_core(url, clocks=core.clocks) as core:
        token = await token_after(core, BUSY)
    shutil.copy(backup, path)
    async with run_core(url, clocks=core.clocks) as core:
        assert await resumed_live(core, token, UNREACHABLE) == ([f"{ALICE} UNREACHABLE"], True)
        assert (await core.store.statuses([ALICE]))[ALICE].revision == 2  # as in the token


async def test_backup_that_is_older_than_the_token(url: str) -> None:
    """A token with greater revisions than the database's is a reset, so that the client accepts smaller revisions
    again."""
    async with run_core(url) as core:
        token = await token_after(core, REACHABLE, BUSY, UNREACHABLE)
    async with run_core(await new_database(Path(url.removeprefix("sqlite:///")).parent)) as core:
        assert await resumed_live(core, token, BUSY) == ([f"{ALICE} BUSY"], True)


@pytest.mark.parametrize("status", [UNREACHABLE, BUSY])
async def test_another_gateway(url: str, tmp_path: Path, status: Status) -> None:
    """At a gateway with another database the same revision is another observation, even with the same status."""
    async with run_core(url) as core:
        token = await token_after(core, REACHABLE, BUSY)
    (tmp_path / "other").mkdir()
    clocks = Clocks()
    clocks.advance(3600)
    async with run_core(await new_database(tmp_path / "other"), clocks=clocks) as other, reading(other, ALICE) as one:
        await one.some(SnapshotComplete)
        await play(other, REACHABLE)
        assert await resumed_live(other, token, status) == ([f"{ALICE} {status.name}"], True)


async def test_token_is_good_after_a_restart(database_url: str) -> None:
    """In both databases a status keeps its identity over a restart, to the microsecond, however often it was confirmed
    before and since."""
    async with run_core(database_url) as core:
        token = await token_after(core, REACHABLE, BUSY, BUSY, BUSY)
    async with run_core(database_url, clocks=core.clocks) as core:
        assert await resumed_live(core, token, BUSY) == ([], False)
        assert await resumed_live(core, token, REACHABLE) == ([f"{ALICE} REACHABLE"], False)


async def test_liveness_that_was_reported_last_counts(core: Core) -> None:
    """A reader that was sent STALE before its token is sent the status again when it is LIVE."""
    async with reading(core, ALICE) as keeping, reading(core, ALICE) as stream:
        await keeping.some(SnapshotComplete)
        await stream.some(SnapshotComplete)
        await play(core, BUSY)
        core.watcher.lose(ALICE)
        assert (await stream.some(LivenessChange, 2))[-1].terminal.liveness is Liveness.STALE
        for _ in range(5):
            await core.advance(2.5)
        token = (await stream.some(Bookmark))[-1].resume_token
        await stream.aclose()
        await play(core, BUSY)
        assert await resume(core, token, ALICE) == ([f"{ALICE} BUSY"], False)


async def test_what_was_shown_counts(url: str) -> None:
    """A reader that was sent REACHABLE in place of BUSY is sent BUSY once the policy allows it."""
    async with run_core(url, policy=Policy(busy_available=False)) as core:
        token = await token_after(core, BUSY)
        assert await resumed_live(core, token, BUSY) == ([], False)
    async with run_core(url, clocks=core.clocks) as core:
        assert await resumed_live(core, token, BUSY) == ([f"{ALICE} BUSY"], True)


async def test_other_terminals_are_a_reset(core: Core) -> None:
    """A token for more, fewer or other terminals is a reset: every terminal is sent, and the client forgets the
    others."""
    async with reading(core, ALICE, BOB) as keeping:
        await keeping.some(SnapshotComplete)
        token = await token_after(core, BUSY)
        await play(core, REACHABLE, address=BOB)
        assert await resume(core, token, ALICE, BOB) == ([f"{ALICE} BUSY", f"{BOB} REACHABLE"], True)
        assert await resume(core, token, BOB) == ([f"{BOB} REACHABLE"], True)
        assert await resume(core, token, ALICE) == ([], False)


REVISIONS_ONLY = base64.urlsafe_b64encode(b"\x01" + bytes(8) + b"\x02").decode()
"""As gateways gave before tokens had marks."""


@pytest.mark.parametrize(
    "token",
    ["x", "é", "\n\nevent: end", "AgAA", "AQAA", REVISIONS_ONLY, "A" * 70_000, "A" * 1_000_000, "\ud800", "=", "\0"],
    ids=range(11),
)
async def test_any_text_is_a_reset(core: Core, token: str) -> None:
    """A text that is not a current token is not an error: the stream is a reset. A gateway that stops does not send the
    text back."""
    async with reading(core, ALICE) as keeping:
        await keeping.some(SnapshotComplete)
        await play(core, BUSY)
        assert await resume(core, token, ALICE) == ([f"{ALICE} BUSY"], True)
        good = await token_after(core)
        core.streams.end_all()
        for given_one, returned in ((token, ""), (good, good)):
            async with reading(core, ALICE, resume_token=given_one) as late:
                (end,) = await late.some(End)
            assert end.resume_token == returned


async def test_busy_stream_gets_tokens(core: Core) -> None:
    """A stream with changes all the time still gets a token in each bookmark interval."""
    async with reading(core, ALICE) as stream:
        await stream.some(SnapshotComplete)
        for number in range(1, 13):
            await core.play(ALICE, BUSY if number % 2 else REACHABLE)
            await stream.until(lambda events, number=number: revisions(events)[-1:] == [number])  # type: ignore[misc]
            await core.advance(2.5)
        bookmarks = await stream.some(Bookmark, 2)
        assert len(bookmarks) <= 4  # events within thirty seconds
        between = [type(event) for event in stream.events if isinstance(event, Bookmark | Change)]
        assert Change in between[between.index(Bookmark) :]
        await stream.aclose()
        async with reading(core, ALICE) as keeping:
            await keeping.some(SnapshotComplete)
            await core.play(ALICE, REACHABLE)
            assert await resume(core, bookmarks[0].resume_token, ALICE) == ([f"{ALICE} REACHABLE"], False)


def revisions(events: Sequence[StreamEvent]) -> list[int]:
    """The revisions of these changes."""
    return [event.status.revision for event in events if isinstance(event, Change)]


MANY = [TerminalAddress(f"sip:t{number}@example.com") for number in range(MAX_NAMED + 4)]


async def test_stream_of_many_terminals(url: str) -> None:
    """Above 4,096 terminals a token names 256 buckets of terminals: a change sends the terminals of its bucket again,
    and no others."""
    async with (
        run_core(url, policy=Policy(max_notification_addresses=5000)) as core,
        reading(core, *MANY) as keeping,
    ):
        await keeping.some(SnapshotComplete)
        for address in MANY:
            core.watcher.play(address, BUSY)
        await core.settled()
        async with reading(core, *MANY) as stream:
            token = (await stream.some(SnapshotComplete))[0].resume_token
        assert len(token) < 3000
        assert await resume(core, token, *MANY) == ([], False)
        await play(core, REACHABLE, address=MANY[7])
        shown, reset = await resume(core, token, *MANY)
        assert f"{MANY[7]} REACHABLE" in shown
        assert (len(shown) < len(MANY) / 64, reset) == (True, False)
        assert await resume(core, token, *MANY[1:]) == ([f"{one} {status}" for one, status in now(MANY[1:])], True)


def now(addresses: Sequence[TerminalAddress]) -> list[tuple[TerminalAddress, str]]:
    """The statuses at the end of the test above."""
    return [(one, "REACHABLE" if one == MANY[7] else "BUSY") for one in addresses]


def reported(number: int, revision: int, status: Status = BUSY, *, live: bool = True) -> Seen:
    """A status of terminal `number`, as a stream reported it."""
    stated = TerminalStatus(
        address=MANY[number],
        status=status,
        observed_at=BEGAN + number * MICROSECONDS,
        source=Source.WATCH,
        revision=revision,
    )
    return Seen(revision, mark_of(stated), live)


_one = st.tuples(st.integers(0, 1 << 62), st.sampled_from(list(Status)), st.booleans())


@given(st.lists(_one, max_size=20), st.lists(_one, max_size=20))
def test_token_says_what_was_reported(
    before: list[tuple[int, Status, bool]], after: list[tuple[int, Status, bool]]
) -> None:
    """A terminal is known exactly if it has not changed since it was reported LIVE. A smaller revision, or one with
    another status, is a reset."""
    was, now_ = (
        {
            MANY[n]: reported(n, revision, status, live=live) if revision else NOTHING_SEEN
            for n, (revision, status, live) in of
        }
        for of in (list(enumerate(before)), list(enumerate(after)))
    )
    known = known_by(token_of(was), now_)
    backwards = was.keys() != now_.keys() or any(
        was[one].revision > now_[one].revision
        or (was[one].revision == now_[one].revision and was[one].mark != now_[one].mark)
        for one in was
    )
    assert known.usable is not backwards
    assert known.addresses == (
        set() if backwards else {one for one in was if was[one].live and was[one][:2] == now_[one][:2]}
    )


@given(st.binary(max_size=400), st.integers(0, 40))
def test_no_bytes_fail(body: bytes, terminals: int) -> None:
    """Reading a token of any bytes, with or without the right head, raises nothing."""
    addresses = {MANY[number]: reported(number, 1) for number in range(terminals)}
    head = base64.urlsafe_b64decode(token_of(addresses)[:12])
    for each in (body, head + body):
        known = known_by(base64.urlsafe_b64encode(each).decode().rstrip("="), addresses)
        assert known.addresses <= addresses.keys()


def test_tokens_are_bounded() -> None:
    """The longest token is that of 4,096 terminals with the greatest revisions; a usual token has eight characters for
    each terminal."""
    longest = token_of({MANY[number]: reported(number, (1 << 63) - 1) for number in range(MAX_NAMED)})
    assert len(longest) <= MAX_TOKEN
    usual = token_of({MANY[number]: reported(number, number) for number in range(1000)})
    assert len(usual) < 8200
    assert len(token_of({one: reported(number, 1 << 62) for number, one in enumerate(MANY)})) < 3000
