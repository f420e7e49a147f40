"""Delivers from a database, to be killed by a test: `python -m tests.support.deliverer_process DATABASE_URL`."""

import asyncio
import secrets
import sys
from datetime import UTC, datetime

from app.delivery.deliverer import Deliverer
from app.delivery.retry import RetryPolicy
from app.domain.sinks import SinkKind
from app.egress.allowed import Rules
from app.egress.client import Egress
from app.egress.webhook import WebhookSender, v1_event
from app.store import open_store

LEASE_S = 1.0
"""Short, so that a test need not wait for the leases of the one that was killed."""


def _now() -> datetime:
    return datetime.now(UTC)


async def deliver(database_url: str) -> None:
    """Delivers until it is killed."""
    async with await open_store(database_url) as store:
        egress = Egress(Rules.of(["127.0.0.0/8"], allow_http=True))
        sender = WebhookSender(egress, clock=_now, envelopes={"v1": v1_event})
        deliverer = Deliverer(
            store,
            {SinkKind.WEBHOOK: sender},
            owner=secrets.token_hex(8),
            clock=_now,
            policy=RetryPolicy(first_s=0.05, most_s=0.1),
        )
        deliverer.lease_s = LEASE_S
        deliverer.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(deliver(sys.argv[1]))
