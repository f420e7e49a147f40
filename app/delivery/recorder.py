"""Records delivery attempts and releases leases: everything that the deliverer writes to the store.

Attempts that end while a transaction is written share the next transaction.
Invariants: a claimed notification is remembered until it is recorded, however long the database is unavailable. So this
process does not send it again, even if its lease runs out meanwhile.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

import structlog

from app.batch_writer import BatchWriter
from app.delivery.hosts import Job
from app.domain.changes import Attempted
from app.domain.errors import StoreUnavailable
from app.domain.records import OwedNotification, Subscription
from app.domain.sinks import EndReason
from app.ports.store import Store

MAX_BATCH = 256
"""Most attempts in one transaction."""
MAX_GIVE_BACK = 64
"""Most leases that are released in one transaction."""
MAX_DUE = 10_000
"""Due times that are remembered. Other due notifications are found by polling."""
MIN_WAIT_S = 0.02
"""Shortest interval between two claims without a hint."""
RETRY_S = 0.25
"""How long to wait before the next attempt while the database is unavailable."""

_log = structlog.get_logger(__name__)


class Recorder:
    """The notifications that one deliverer has claimed, and the results that wait to be written.

    `on_written` is called after each transaction with attempts, `on_ended` for each subscription that an attempt ended.
    """

    def __init__(
        self,
        store: Store,
        owner: str,
        *,
        on_written: Callable[[], None],
        on_ended: Callable[[Subscription, EndReason], None],
    ) -> None:
        self._store = store
        self._owner = owner
        self._on_written = on_written
        self._on_ended = on_ended
        self._held: dict[str, int] = {}  # by notification id: attempts before the claim
        self._give_back: dict[str, datetime] = {}
        self._attempts: deque[tuple[Attempted, Job]] = deque()
        self._due: list[datetime] = []  # heap: when postponed notifications are due
        self._writer = BatchWriter(
            "deliveries: record",
            self._write_batch,
            waiting=lambda: len(self._attempts) + len(self._give_back),
            on_failed=self._on_failed,
            retry_s=RETRY_S,
        )

    @property
    def held(self) -> int:
        """Number of notifications that are claimed and not recorded yet."""
        return len(self._held) + len(self._give_back)

    def holds(self, claimed: OwedNotification) -> bool:
        """Whether a notification that was just claimed is still being sent here, although its lease ran out.

        Returns False if it has more attempts than at its first claim: the first result is stored already, and is about
        to be removed here.
        """
        return self._held.get(claimed.id, -1) >= claimed.attempts

    def took(self, claimed: OwedNotification) -> None:
        """The notification is held from now on."""
        self._held[claimed.id] = claimed.attempts
        self._give_back.pop(claimed.id, None)

    def forget(self, held: OwedNotification) -> None:
        """The notification is no longer held; its lease runs out by itself."""
        del self._held[held.id]

    def put_off(self, held: OwedNotification, due: datetime) -> None:
        """Releases the lease without an attempt; the notification is claimed again from `due` on."""
        del self._held[held.id]
        self._give_back[held.id] = due
        self._writer.wake()

    def attempted(self, attempted: Attempted, job: Job) -> None:
        """Queues the result of an attempt for the next transaction."""
        self._attempts.append((attempted, job))
        self._writer.wake()

    def redirect(self, subscription_id: str, now: datetime) -> None:
        """The subscription has another endpoint: failed attempts that are not recorded yet are repeated at once."""
        for at, (attempted, job) in enumerate(self._attempts):
            if job.subscription.id == subscription_id and attempted.next_attempt_at is not None:
                self._attempts[at] = replace(attempted, next_attempt_at=now, suspended_at=None), job

    def until_due(self, now: datetime) -> float:
        """Seconds until the next known due time; infinity if there is none."""
        if self._due and self._due[0] <= now:  # due since the last claim
            while self._due and self._due[0] <= now:
                heapq.heappop(self._due)
            return MIN_WAIT_S
        return max(MIN_WAIT_S, (self._due[0] - now).total_seconds()) if self._due else math.inf

    def start(self) -> None:
        """Begins to write."""
        self._writer.start()

    async def aclose(self, limit_s: float) -> None:
        """Writes the waiting results and releases, within `limit_s` seconds."""
        await self._writer.aclose(limit_s)

    def _remember(self, due: datetime) -> None:
        if len(self._due) < MAX_DUE:
            heapq.heappush(self._due, due)

    async def _write_batch(self) -> None:
        batch = list(itertools.islice(self._attempts, MAX_BATCH))
        given_back = dict(itertools.islice(self._give_back.items(), MAX_GIVE_BACK))
        if batch:
            await self._write(batch)
        try:
            if given_back:
                await self._store.release_leases(self._owner, given_back)
        except StoreUnavailable:
            raise
        except Exception:
            _log.exception("leases_not_given_back")  # they run out by themselves
        for notification_id, due in given_back.items():
            self._remember(due)
            if self._give_back.get(notification_id) is due:
                del self._give_back[notification_id]
        if batch:
            self._on_written()  # the next notifications of these subscriptions may be claimed now

    def _on_failed(self, error: Exception) -> None:
        _log.warning("deliveries_not_recorded", attempts=min(len(self._attempts), MAX_BATCH), message=str(error))

    async def _write(self, batch: Sequence[tuple[Attempted, Job]]) -> None:
        try:
            await self._store.record_attempts([attempted for attempted, _ in batch])
        except StoreUnavailable:
            raise
        except Exception:
            _log.exception("attempts_not_recorded_together", attempts=len(batch))
            await self._write_singly(batch)
        for attempted, job in batch:
            self._attempts.popleft()
            if self._held.get(job.notification.id) == job.notification.attempts:
                del self._held[job.notification.id]
            if attempted.next_attempt_at is not None:
                self._remember(attempted.next_attempt_at)
            if attempted.update is not None and attempted.update.end_reason is not None:
                self._on_ended(job.subscription, attempted.update.end_reason)

    async def _write_singly(self, batch: Sequence[tuple[Attempted, Job]]) -> None:
        """Writes each attempt in its own transaction, so that an attempt that cannot be written does not block the
        others. The lease of its notification runs out, and the notification is sent again."""
        for attempted, job in batch:
            try:
                await self._store.record_attempts([attempted])
            except StoreUnavailable:
                raise
            except Exception:
                _log.exception("attempt_not_recorded", notification_id=job.notification.id)
