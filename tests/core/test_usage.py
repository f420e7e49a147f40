"""Tests of `app/core/usage.py`: records are written soon, in groups, and wait while the database is away."""

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest
import structlog

from app.core import usage
from app.core.usage import Caller, UsageLog
from app.domain.errors import RateLimited
from app.domain.filters import UsageFilter
from app.domain.operations import Face, UsageOperation
from app.domain.policy import Policy
from app.domain.records import MAX_USAGE_TARGETS, Client
from app.ports.store import Page
from tests.support.core import ADMIN, APP, BEGAN, OTHER, Core, run_core
from tests.support.waiting import until


def record(core: Core, number: int = 0, caller: Caller | None = None) -> None:
    core.usage.record(
        core.usage.make(UsageOperation.GET_STATUS, caller or Caller(client=APP, face=Face.GRPC), correlator=str(number))
    )


async def exported(core: Core, client: Client, only: UsageFilter, **options: Any) -> list[str]:
    return [one.correlator async for page in core.usage.export(client, only, **options) for one in page]


async def test_records_are_written_in_groups_in_their_order(core: Core) -> None:
    """Many simultaneous records are few transactions, and are read in the order in which they were made."""
    for number in range(5000):
        record(core, number)
    await until(lambda: not core.usage.buffered)
    written = await exported(core, APP, UsageFilter(start=BEGAN))
    assert written == [str(number) for number in range(5000)]


async def test_records_left_at_the_end_are_written(url: str) -> None:
    """A gateway that stops writes its remaining records."""
    async with run_core(url) as core:
        record(core)
    async with run_core(url) as core:
        assert len(await core.usage_records()) == 1


async def test_client_reads_its_own(core: Core) -> None:
    """A client exports its own records from a given time; an operator's client exports all."""
    record(core, 1)
    core.clocks.advance(60)
    record(core, 2)
    record(core, 3, Caller(client=OTHER, face=Face.REST))
    await until(lambda: not core.usage.buffered)
    assert await exported(core, APP, UsageFilter(start=BEGAN)) == ["1", "2"]
    assert await exported(core, APP, UsageFilter(start=BEGAN + timedelta(seconds=1))) == ["2"]
    assert await exported(core, ADMIN, UsageFilter(start=BEGAN), page_size=2) == ["1", "2", "3"]


async def test_reading_counts_against_the_rate(url: str) -> None:
    """A page counts as one call, and so does an export of many pages."""
    async with run_core(url, policy=Policy(rate_per_s=2)) as core:
        for number in range(5):
            record(core, number)
        await until(lambda: not core.usage.buffered)
        assert len([page async for page in core.usage.export(APP, UsageFilter(start=BEGAN), page_size=1)]) == 5
        await core.usage.page(APP, Page(), UsageFilter(start=BEGAN))
        with pytest.raises(RateLimited):
            await core.usage.page(APP, Page(), UsageFilter(start=BEGAN))
        with pytest.raises(RateLimited):
            await anext(core.usage.export(APP, UsageFilter(start=BEGAN)))


async def test_a_defect_does_not_end_the_log(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records also wait where the database fails with an unexpected exception; the log line has the traceback."""
    monkeypatch.setattr(usage, "RETRY_S", 0.01)
    kept, broken = core.store._store, asyncio.Event()  # noqa: SLF001

    class Broken:
        async def write_usage(self, records: object) -> None:
            broken.set()
            raise ZeroDivisionError

    core.store._store = cast("Any", Broken())  # noqa: SLF001
    with structlog.testing.capture_logs() as logs:
        record(core)
        await broken.wait()
        core.store._store = kept  # noqa: SLF001
        await until(lambda: not core.usage.buffered)
    assert {(line["event"], line["log_level"]) for line in logs} == {("usage_records_wait", "error")}


async def test_what_callers_wrote_is_bounded(core: Core) -> None:
    """A record is bounded, however long its targets, requester and correlator are; it has the true number of
    targets."""
    made = core.usage.make(
        UsageOperation.GET_STATUS,
        Caller(client=APP, face=Face.SOAP, requester="r" * 10_000),
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
    assert await exported(core, APP, UsageFilter(start=BEGAN)) == [str(n) for n in range(10, 110)]


async def test_log_that_was_never_started_closes(core: Core) -> None:
    """Closing without a start does nothing."""
    await UsageLog(core.store, lambda: BEGAN, core.policies).aclose()
