"""Deletes what is older than its retention time: settled notifications with their delivery attempts, ended
subscriptions, usage records and audit entries; signing secrets whose overlap has ended, and tickets. Notifications
that are still owed are never deleted.

Invariants: rows are deleted in portions, so that other transactions wait only briefly. If the store is unavailable, the
next run deletes the rows.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from app.domain.errors import StoreUnavailable
from app.ports.store import RetentionStore

EVERY_S = 3600.0
PORTION = 1000
PAUSE_S = 0.05

_log = structlog.get_logger(__name__)


async def keep_for(
    store: RetentionStore, clock: Callable[[], datetime], *, deliveries_days: int, usage_days: int
) -> None:
    """Deletes old rows at once, and again every EVERY_S, until it is cancelled. `clock` gives the time in UTC."""
    while True:
        gone = 0
        try:
            while True:
                now = clock()
                portion = await store.purge(
                    now - timedelta(days=deliveries_days), PORTION, usage_before=now - timedelta(days=usage_days)
                )
                ended = await store.drop_ended_secrets(now, PORTION)
                tickets = await store.delete_ended_tickets(now, PORTION)
                gone += portion + ended + tickets
                if max(portion, ended, tickets) < PORTION:
                    break
                await asyncio.sleep(PAUSE_S)
        except StoreUnavailable:
            _log.warning("purge_put_off", gone=gone)
        except Exception:
            _log.exception("purge_put_off", gone=gone)
        else:
            if gone:
                _log.info("purged", rows=gone)
        await asyncio.sleep(EVERY_S)
