"""After a start, encrypts sink parameters that are stored unencrypted or encrypted with an older key.

Invariants: rows are encrypted in portions, so that other transactions wait only briefly. A portion is tried again if
the store is unavailable.

Deliberately absent: keys and ciphers (`store/encryption.py`).
"""

import asyncio

import structlog

from app.domain.errors import StoreUnavailable
from app.ports.store import SubscriptionStore

PAUSE_S = 0.05
RETRY_S = 5.0

_log = structlog.get_logger(__name__)


async def encrypt_sinks(store: SubscriptionStore) -> None:
    """Runs once through all subscriptions, and logs how many were encrypted."""
    after: int | None = 0
    encrypted = 0
    while after is not None:
        try:
            after, count = await store.encrypt_sinks(after)
            encrypted += count
        except StoreUnavailable:
            await asyncio.sleep(RETRY_S)
        except Exception:
            _log.exception("sinks_not_encrypted", encrypted=encrypted)
            return
        else:
            await asyncio.sleep(PAUSE_S)
    if encrypted:
        _log.info("sinks_encrypted", count=encrypted)
