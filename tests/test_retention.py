"""What is old leaves the store, and what is not old stays."""

import asyncio
from datetime import UTC, datetime, timedelta

from app.core.retention import keep_for
from app.ports import Page
from app.records import UsageRecord
from app.store import SqlStore

NOW = datetime(2026, 1, 2, tzinfo=UTC)


async def test_old_usage_goes(store: SqlStore) -> None:
    """Usage records older than they are kept for are purged at start, in portions, and others are not."""
    ages = [1, 399, 401, 1000]
    await store.write_usage(
        [
            UsageRecord(
                id=f"u{age}",
                at=NOW - timedelta(days=age),
                operation="getStatus",
                client_id="c",
                face="grpc",
                result="OK",
            )
            for age in ages
        ]
    )
    purging = asyncio.create_task(keep_for(store, lambda: NOW, deliveries_days=30, usage_days=400))
    try:
        async with asyncio.timeout(10):
            while len((await store.usage(None, NOW - timedelta(days=5000), Page()))[0]) > 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    finally:
        purging.cancel()
        await asyncio.gather(purging, return_exceptions=True)
    left, _ = await store.usage(None, NOW - timedelta(days=5000), Page())
    assert [record.id for record in left] == ["u1", "u399"]
