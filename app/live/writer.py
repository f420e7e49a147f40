"""The only writer of statuses. Observations, failures and due subscriptions become one transaction; memory follows.

Invariants: `write_batch` writes all that follows from a batch (statuses by compare-and-set, the progress of
subscriptions, owed notifications) in one `Store.write`; memory and streams change only afterwards. If the write fails,
everything waits unchanged. Code that changes subscriptions or adopts statuses holds `lock`, so that a plan stays valid
while it is written.

Deliberately absent: when to write (`engine.py`), and what a subscriber is sent (`rules.py`).
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes
from app.domain.errors import StoreUnavailable, SubscriptionUnknown, TerminalStatusError
from app.domain.owed import OwedWriter
from app.domain.records import DeliveryState, OwedNotification, Subscription
from app.domain.statuses import Source, TerminalStatus
from app.live.events import Change
from app.live.index import SubscriptionIndex
from app.live.registry import Failure, TerminalRegistry
from app.live.rules import Decision, Failures, News, decide
from app.live.subscription import LiveSubscription, Progress, allowed_s
from app.live.terminal import Terminal, confirmed
from app.ports.store import Store

MAX_BATCH = 500
"""Most terminals, most failures and most due subscriptions in one transaction. The others are written next."""
_MAX_TRIES = 10
_LOAD = 1000
"""Most statuses that are read in one query."""


class _Written(NamedTuple):
    """A terminal with its next status. If not `changed`, only `observed_at` differs, which is not stored."""

    terminal: Terminal
    status: TerminalStatus
    changed: bool


class _Plan(NamedTuple):
    terminals: Sequence[_Written]
    decisions: Sequence[Decision]
    changes: Changes


class StatusWriter:
    """One per process, driven by the engine."""

    def __init__(
        self,
        store: Store,
        registry: TerminalRegistry,
        index: SubscriptionIndex,
        *,
        clock: Callable[[], datetime],
        clock_s: Callable[[], float],
    ) -> None:
        self.lock = asyncio.Lock()
        self.on_notifications_owed: Callable[[], None] = lambda: None
        """Called when notifications were written; may not block or raise."""
        self._loading = asyncio.Lock()
        self._store = store
        self._registry = registry
        self._index = index
        self._clock = clock
        self._clock_s = clock_s
        self._due: dict[LiveSubscription, None] = {}

    @property
    def waiting(self) -> int:
        """How many terminals, failures and due subscriptions wait to be written."""
        return len(self._registry.queue) + len(self._registry.failures) + len(self._due)

    def keep_newest(self) -> None:
        """Drops all pending observations except the newest of each terminal."""
        for terminal in self._registry.queue:
            terminal.keep_newest()

    async def load(self, terminals: Collection[Terminal]) -> None:
        """Reads the stored status of the terminals that are not loaded yet. Raises StoreUnavailable."""
        if all(terminal.loaded for terminal in terminals):
            return
        async with self._loading:  # one task reads statuses that several need
            unloaded = [terminal for terminal in terminals if not terminal.loaded]
            for start in range(0, len(unloaded), _LOAD):
                part = unloaded[start : start + _LOAD]
                stored = await self._store.statuses([terminal.address for terminal in part])
                now = self._clock()
                for terminal in part:
                    if not terminal.loaded:  # adopted meanwhile
                        terminal.take_stored(stored.get(terminal.address))
                        terminal.refresh_liveness(now)

    def adopt(self, stored: Iterable[TerminalStatus]) -> None:
        """Takes newer statuses of the store as the truth. The caller holds the lock."""
        for status in stored:
            terminal = self._registry.by_address.get(status.address)
            if terminal is None or (terminal.status is not None and status.revision <= terminal.status.revision):
                continue
            terminal.take_stored(status)
            liveness_changed = terminal.refresh_liveness(self._clock())
            self._post(terminal, status)
            if liveness_changed:
                self._registry.post_liveness(terminal)

    async def write_batch(self, most: int = MAX_BATCH) -> None:
        """Writes a part of what waits. Raises StoreUnavailable, having changed nothing."""
        async with self.lock:
            self._due.update(dict.fromkeys(self._index.pop_due(self._clock_s())))
            batch, failures = self._registry.queue[:most], self._registry.failures[:most]
            due = list(self._due)[:most]
            if not (batch or failures or due):
                return
            await self.load(batch)
            for _ in range(_MAX_TRIES):
                plan = self._plan(batch, failures, due)
                changes = plan.changes
                if not (changes.statuses or changes.updates or changes.owed):
                    break
                try:
                    conflicts = await self._store.write(changes)
                except SubscriptionUnknown:  # deleted, with its client, by another process
                    await self._read_progress_again(plan.decisions)
                    continue
                if not conflicts:
                    break
                self.adopt(conflicts)
                await self._read_progress_again(plan.decisions)
            else:
                raise StoreUnavailable(
                    "Other processes keep writing the same statuses. Try again later.", retry_after_s=1
                )
            del self._registry.queue[: len(batch)]
            del self._registry.failures[: len(failures)]
            for subscription in due:
                del self._due[subscription]
            self._apply(plan)

    def on_written(self, owed: Sequence[OwedNotification]) -> None:
        """Wakes delivery if some of these are to be sent."""
        if any(one.state is DeliveryState.PENDING for one in owed):
            self.on_notifications_owed()

    def drop_first(self) -> None:
        """Drops the items that `write_batch(1)` keeps failing to write, so that the others are written."""
        for terminal in self._registry.queue[:1]:
            del self._registry.queue[0]
            self._pop_pending(terminal)
        del self._registry.failures[:1]
        for subscription in list(self._due)[:1]:
            del self._due[subscription]

    def _plan(self, batch: Sequence[Terminal], failed: Sequence[Failure], due: Sequence[LiveSubscription]) -> _Plan:
        news: dict[LiveSubscription, list[News]] = {subscription: [] for subscription in due}
        terminals: list[_Written] = []
        written: list[TerminalStatus] = []
        for terminal in batch:
            observed, at = terminal.pending[0]
            known = terminal.status
            before = None if known is None else known.status
            if known is not None and before is observed:
                status = confirmed(known, at)
            else:
                status = TerminalStatus(
                    address=terminal.address,
                    status=observed,
                    observed_at=at,
                    source=Source.WATCH,
                    revision=1 if known is None else known.revision + 1,
                )
                written.append(status)
            terminals.append(_Written(terminal, status, before is not observed))
            for subscription in terminal.subscriptions:
                news.setdefault(subscription, []).append((status, before))
        failures = _by_subscription(failed)
        for subscription in failures:
            news.setdefault(subscription, [])
        decisions = self._decide(news, failures)
        changes = Changes(
            statuses=written,
            updates=[decision.update for decision in decisions if decision.update is not None],
            owed=[one for decision in decisions for one in decision.owed],
        )
        return _Plan(terminals, decisions, changes)

    def _decide(
        self, news: Mapping[LiveSubscription, Sequence[News]], failures: Mapping[LiveSubscription, Failures]
    ) -> list[Decision]:
        writer, now_s = OwedWriter(self._clock()), self._clock_s()
        decisions = []
        for subscription, its_news in news.items():
            if subscription.ended:
                continue
            decision = decide(subscription, its_news, failures.get(subscription, {}), now_s, writer)
            if decision is not None:
                decisions.append(decision)
        return decisions

    def _apply(self, plan: _Plan) -> None:
        now = self._clock()
        for terminal, status, changed in plan.terminals:
            self._pop_pending(terminal)
            if changed:
                terminal.take_stored(status)
            else:
                terminal.status = status
            terminal.write_next = False
            compute_liveness = terminal.on_written()
            if changed:
                self._post(terminal, status)
            if compute_liveness and terminal.refresh_liveness(now):
                self._registry.post_liveness(terminal)
        for decision in plan.decisions:
            self.make_progress(decision.subscription, decision.progress)
        self.on_written(plan.changes.owed)

    def activate(self, subscription: LiveSubscription, terminals: Iterable[Terminal]) -> None:
        """Adds a subscription that is stored, and links it to its terminals. It may be due at once: wake the engine."""
        for terminal in terminals:
            self._registry.add_subscription(subscription, terminal)
            if terminal.address in subscription.progress.awaiting:
                terminal.write_next = True
        self._index.add(subscription)

    def make_progress(self, subscription: LiveSubscription, progress: Progress) -> None:
        """Sets progress that is stored, and releases terminals that the subscription no longer watches."""
        before = subscription.progress.terminals
        self._index.make_progress(subscription, progress)
        if subscription.ended:
            self._registry.remove_subscription(subscription, before)
        elif progress.terminals is not before:
            self._registry.remove_subscription(subscription, set(before).difference(progress.terminals))

    def remove(self, subscription: LiveSubscription) -> None:
        """Removes a subscription from memory, after its end was stored."""
        self._index.remove(subscription)
        self._registry.remove_subscription(subscription, subscription.progress.terminals)

    def _pop_pending(self, terminal: Terminal) -> None:
        del terminal.pending[0]
        terminal.queued = False
        if terminal.pending:
            self._registry.enqueue(terminal)

    def _post(self, terminal: Terminal, status: TerminalStatus) -> None:
        if terminal.streams:
            change = Change(status=status)
            for stream in terminal.streams:
                stream.post(terminal, change)

    async def _read_progress_again(self, decisions: Sequence[Decision]) -> None:
        """Reads the stored progress of subscriptions: another node may have written first, or a transaction whose
        outcome was unknown may have been committed."""
        if not decisions:
            return
        subscriptions = [decision.subscription for decision in decisions]
        stored = await self._store.subscriptions_by_id([one.id for one in subscriptions])
        now, now_s = self._clock(), self._clock_s()
        for live in subscriptions:
            subscription = stored.get(live.id)
            if subscription is None or not subscription.active:
                self.remove(live)
            elif subscription.notified != live.progress.notified:
                live.progress = _progress_of(subscription, live.progress, now, now_s)


def _progress_of(subscription: Subscription, known: Progress, now: datetime, now_s: float) -> Progress:
    """The progress of a subscription whose stored row has more notifications than `known`."""
    joined = known.joined.intersection(subscription.joined)
    return msgspec.structs.replace(
        known,
        notified=subscription.notified,
        held=(),
        allowed_s=allowed_s(subscription, now, now_s),
        joined=joined,
        awaiting=known.awaiting if subscription.awaiting else joined,
    )


def _by_subscription(failed: Iterable[Failure]) -> dict[LiveSubscription, dict[TerminalAddress, TerminalStatusError]]:
    failures: dict[LiveSubscription, dict[TerminalAddress, TerminalStatusError]] = {}
    for failure in failed:
        for subscription in failure.subscriptions:
            failures.setdefault(subscription, {})[failure.address] = failure.error
    return failures
