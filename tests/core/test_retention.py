"""Old records are deleted from the store, and others are kept."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
import structlog

from app.core import retention
from app.core.retention import keep_for
from app.domain.filters import UsageFilter
from app.domain.operations import Face, UsageOperation
from app.domain.records import UsageRecord
from app.ports.store import Page
from app.store import SqlStore

NOW = datetime(2026, 1, 2, tzinfo=UTC)


async def test_a_defect_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge that fails for any reason is logged and tried again."""
    monkeypatch.setattr(retention, "EVERY_S", 0.001)
    again = asyncio.Event()

    class Broken:
        calls = 0

        async def purge(self, *_args: object, **_options: object) -> int:
            self.calls += 1
            if self.calls > 1:
                again.set()
            raise ZeroDivisionError

    with structlog.testing.capture_logs() as logs:
        purging = asyncio.create_task(keep_for(cast("Any", Broken()), lambda: NOW, deliveries_days=30, usage_days=400))
        async with asyncio.timeout(10):
            await again.wait()
        purging.cancel()
        await asyncio.gather(purging, return_exceptions=True)
    assert (logs[0]["event"], logs[0]["log_level"]) == ("purge_put_off", "error")


async def test_old_usage_goes(store: SqlStore) -> None:
    """A start deletes, in portions, usage records older than their retention, and no others."""
    ages = [1, 399, 401, 1000]
    await store.write_usage(
        [
            UsageRecord(
                id=f"u{age}",
                at=NOW - timedelta(days=age),
                operation=UsageOperation.GET_STATUS,
                client_id="c",
                face=Face.GRPC,
                result="OK",
            )
            for age in ages
        ]
    )
    purging = asyncio.create_task(keep_for(store, lambda: NOW, deliveries_days=30, usage_days=400))
    try:
        async with asyncio.timeout(10):
            while len((await store.usage(Page(), UsageFilter(start=NOW - timedelta(days=5000))))[0]) > 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    finally:
        purging.cancel()
        await asyncio.gather(purging, return_exceptions=True)
    left, _ = await store.usage(Page(), UsageFilter(start=NOW - timedelta(days=5000)))
    assert [record.id for record in left] == ["u1", "u399"]
