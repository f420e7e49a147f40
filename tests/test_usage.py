"""Tests of `app/usage.py`: records are written in groups, soon, and survive a database that is away for a while."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from app.core import usage
from app.core.usage import GET_STATUS, Caller, UsageLog
from app.records import MAX_USAGE_TARGETS
from tests.core import ADMIN, APP, BEGAN, OTHER, Core, new_database, run_core, until


@pytest_asyncio.fixture
async def url(tmp_path: Path) -> str:
    return await new_database(tmp_path)


@pytest_asyncio.fixture
async def core(url: str) -> AsyncIterator[Core]:
    async with run_core(url) as running:
        yield running


def record(core: Core, number: int = 0, caller: Caller | None = None) -> None:
    core.usage.record(core.usage.make(GET_STATUS, caller or Caller(client=APP, face="grpc"), correlator=str(number)))


async def test_records_are_written_in_groups_in_their_order(core: Core) -> None:
    """Many records of a moment are few transactions, and are read as they were made."""
    for number in range(5000):
        record(core, number)
    await until(lambda: not core.usage.buffered)
    written = [one.correlator async for one in core.usage.export(APP, BEGAN)]
    assert written == [str(number) for number in range(5000)]


async def test_records_left_at_the_end_are_written(url: str) -> None:
    """A gateway that stops writes what it still has."""
    async with run_core(url) as core:
        record(core)
    async with run_core(url) as core:
        assert len(await core.usage_records()) == 1


async def test_client_reads_its_own(core: Core) -> None:
    """A client exports its own records from a time on, an operator's client everybody's."""
    record(core, 1)
    core.clocks.advance(60)
    record(core, 2)
    record(core, 3, Caller(client=OTHER, face="rest"))
    await until(lambda: not core.usage.buffered)
    assert [one.correlator async for one in core.usage.export(APP, BEGAN)] == ["1", "2"]
    assert [one.correlator async for one in core.usage.export(APP, BEGAN + timedelta(seconds=1))] == ["2"]
    assert [one.correlator async for one in core.usage.export(ADMIN, BEGAN, page_size=2)] == ["1", "2", "3"]


async def test_what_callers_wrote_is_bounded(core: Core) -> None:
    """Targets, requester and correlator of any length make a record of bounded length, with the true count."""
    made = core.usage.make(
        GET_STATUS,
        Caller(client=APP, face="soap", requester="r" * 10_000),
        targets=["x" * 10_000] * 1000,
        correlator="c" * 10_000,
        root_cause="w" * 10_000,
    )
    assert (len(made.targets), made.target_count) == (MAX_USAGE_TARGETS, 1000)
    assert max(map(len, (*made.targets, made.requester, made.correlator, made.root_cause))) <= 255


async def test_database_that_is_away_loses_no_record(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records wait for the database; above the bound the oldest are dropped and counted."""
    monkeypatch.setattr(usage, "RETRY_S", 0.01)
    monkeypatch.setattr(usage, "MAX_BUFFERED", 100)
    core.store.away = True
    for number in range(110):
        record(core, number)
    assert core.usage.dropped == 10
    core.store.away = False
    await until(lambda: not core.usage.buffered)
    assert [one.correlator async for one in core.usage.export(APP, BEGAN)] == [str(n) for n in range(10, 110)]


async def test_log_that_was_never_started_closes(core: Core) -> None:
    """Closing without a start does nothing."""
    await UsageLog(core.store, lambda: BEGAN).aclose()
