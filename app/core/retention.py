"""What is old leaves the store: settled notifications with their attempts, ended subscriptions, usage records, audit.

Invariants: it goes in portions, so that nobody waits for long; a store that is away is tried again at the next time.

Deliberately absent: what is still owed, which is never old.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from app.domain.errors import StoreUnavailable
from app.ports import Store

EVERY_S = 3600.0
PORTION = 1000
PAUSE_S = 0.05

_log = structlog.get_logger(__name__)


async def keep_for(store: Store, clock: Callable[[], datetime], *, deliveries_days: int, usage_days: int) -> None:
    """Purges at once and then each EVERY_S, until it is cancelled. `clock` gives the time in UTC."""
    while True:
        gone = 0
        try:
            while True:
                now = clock()
                portion = await store.purge(
                    now - timedelta(days=deliveries_days), PORTION, usage_before=now - timedelta(days=usage_days)
                )
                gone += portion
                if portion < PORTION:
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
