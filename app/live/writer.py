"""The one writer of statuses: what was observed, what failed and what is due becomes one transaction, then memory.

Invariants: `round` writes all that follows of a batch (statuses by compare-and-set, the progress of subscriptions, what
they are owed) in one `Store.write`, and memory and streams follow only when that is done. Where it fails, everything
waits as it was. Whoever changes subscriptions or adopts statuses holds `lock`, so that a plan stays true while written.

Deliberately absent: when to write (`engine.py`), and the rule of who is told what (`rules.py`).
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime

from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes
from app.domain.errors import StoreUnavailable, SubscriptionUnknown, TerminalStatusError
from app.domain.owed import OwedWriter
from app.domain.records import DeliveryState, OwedNotification
from app.domain.statuses import Source, TerminalStatus
from app.live.events import Change
from app.live.index import SubscriptionIndex
from app.live.registry import TerminalRegistry
from app.live.rules import Decision, News, decide
from app.live.subscription import LiveSubscription, allowed_s
from app.live.terminal import Terminal, confirmed
from app.ports import Store

MAX_BATCH = 500
"""Terminals, failures and due subscriptions, of each at most, in one transaction. The rest takes the next one."""
_MAX_TRIES = 10
_LOAD = 1000


class _Plan:
    __slots__ = ("changes", "decisions", "terminals")

    def __init__(
        self,
        terminals: list[tuple[Terminal, TerminalStatus, bool]],
        decisions: list[Decision],
        changes: Changes,
    ) -> None:
        self.terminals = terminals
        self.decisions = decisions
        self.changes = changes


class StatusWriter:
    """Gathers what is to be written, and writes it."""

    def __init__(
        self,
        store: Store,
        watches: TerminalRegistry,
        standings: SubscriptionIndex,
        *,
        clock: Callable[[], datetime],
        clock_s: Callable[[], float],
        owed: Callable[[], None],
    ) -> None:
        """`owed` is told that there is something to deliver."""
        self.lock = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._store = store
        self._watches = watches
        self._standings = standings
        self._clock = clock
        self._clock_s = clock_s
        self._owed = owed
        self._due: dict[LiveSubscription, None] = {}

    @property
    def waiting(self) -> int:
        """How many terminals' observations, failures and due subscriptions wait."""
        return len(self._watches.queue) + len(self._watches.failed) + len(self._due)

    def keep_newest(self) -> None:
        """Forgets what was observed in between."""
        for terminal in self._watches.queue:
            terminal.keep_newest()

    async def load(self, terminals: Collection[Terminal]) -> None:
        """Reads what is stored of those of which it is not known yet. Raises StoreUnavailable."""
        if all(terminal.loaded for terminal in terminals):
            return
        async with self._loading:  # one reads what many want
            unloaded = [terminal for terminal in terminals if not terminal.loaded]
            for start in range(0, len(unloaded), _LOAD):
                part = unloaded[start : start + _LOAD]
                stored = await self._store.statuses([terminal.address for terminal in part])
                now = self._clock()
                for terminal in part:
                    if not terminal.loaded:  # adopted meanwhile
                        terminal.take(stored.get(terminal.address))
                        terminal.refresh(now)

    def adopt(self, stored: Iterable[TerminalStatus]) -> None:
        """Takes what the store has for the truth, where it is newer. The caller holds the lock."""
        for status in stored:
            terminal = self._watches.by_address.get(status.address)
            if terminal is None or (terminal.status is not None and status.revision <= terminal.status.revision):
                continue
            terminal.take(status)
            liveness_changed = terminal.refresh(self._clock())
            change = Change(status=status)
            for stream in terminal.streams:
                stream.post(terminal, change)
                if liveness_changed:
                    stream.post_liveness(terminal)

    async def round(self, most: int = MAX_BATCH) -> None:
        """Writes a part of what waits. Raises StoreUnavailable, having changed nothing."""
        async with self.lock:
            self._due.update(dict.fromkeys(self._standings.pop_due(self._clock_s())))
            batch, failed, due = self._watches.queue[:most], self._watches.failed[:most], list(self._due)[:most]
            if not (batch or failed or due):
                return
            await self.load(batch)
            for _ in range(_MAX_TRIES):
                plan = self._plan(batch, failed, due)
                changes = plan.changes
                if not (changes.statuses or changes.updates or changes.owed):
                    break
                try:
                    conflicts = await self._store.write(changes)
                except SubscriptionUnknown:  # deleted, with its client, by another process
                    await self._reread(plan.decisions)
                    continue
                if not conflicts:
                    break
                self.adopt(conflicts)
                await self._reread(plan.decisions)
            else:
                raise StoreUnavailable("Others write the same statuses all the time.", retry_after_s=1)
            del self._watches.queue[: len(batch)]
            del self._watches.failed[: len(failed)]
            for standing in due:
                del self._due[standing]
            self._apply(plan)

    def hint_owed(self, owed: Sequence[OwedNotification]) -> None:
        """Says that these were written."""
        if any(one.state is DeliveryState.PENDING for one in owed):
            self.hint_due()

    def hint_due(self) -> None:
        """Says that something may be owed that was not before."""
        self._owed()

    def give_up(self) -> None:
        """Drops what `round(1)` cannot write by any means, so that the rest is written."""
        for terminal in self._watches.queue[:1]:
            del terminal.pending[0]
            terminal.queued = False
            del self._watches.queue[0]
            if terminal.pending:
                self._watches.enqueue(terminal)
        del self._watches.failed[:1]
        for standing in list(self._due)[:1]:
            del self._due[standing]

    def _plan(
        self,
        batch: Sequence[Terminal],
        failed: Sequence[tuple[TerminalAddress, tuple[LiveSubscription, ...], TerminalStatusError]],
        due: Sequence[LiveSubscription],
    ) -> _Plan:
        news: dict[LiveSubscription, list[News]] = {standing: [] for standing in due}
        failures: dict[LiveSubscription, dict[TerminalAddress, TerminalStatusError]] = {}
        terminals: list[tuple[Terminal, TerminalStatus, bool]] = []
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
            terminals.append((terminal, status, before is not observed))
            for standing in terminal.standings:
                news.setdefault(standing, []).append((status, before))
        for address, standings, error in failed:
            for standing in standings:
                news.setdefault(standing, [])
                failures.setdefault(standing, {})[address] = error
        writer = OwedWriter(self._clock())
        now_s = self._clock_s()
        decisions = []
        for standing, its_news in news.items():
            if standing.ended:
                continue
            decision = decide(standing, its_news, failures.get(standing, {}), now_s, writer)
            if decision is not None:
                decisions.append(decision)
        updates = [decision.update for decision in decisions if decision.update is not None]
        owed = [one for decision in decisions for one in decision.owed]
        return _Plan(terminals, decisions, Changes(statuses=written, updates=updates, owed=owed))

    def _apply(self, plan: _Plan) -> None:
        now = self._clock()
        for terminal, status, changed in plan.terminals:
            del terminal.pending[0]
            terminal.queued = False
            if terminal.pending:
                self._watches.enqueue(terminal)
            if changed:
                terminal.take(status)
            else:
                terminal.status = status
            terminal.attentive = False
            says_anew = terminal.was_written()
            if changed and terminal.streams:
                change = Change(status=status)
                for stream in terminal.streams:
                    stream.post(terminal, change)
            if says_anew and terminal.refresh(now):
                for stream in terminal.streams:
                    stream.post_liveness(terminal)
        for decision in plan.decisions:
            standing = decision.standing
            if decision.terminals is not standing.terminals:
                self._watches.unlink(standing, set(standing.terminals).difference(decision.terminals))
            decision.apply()
            if standing.ended:
                self._standings.remove(standing)
                self._watches.unlink(standing, standing.terminals)
            elif standing.held:
                self._standings.holds(standing)
        self.hint_owed(plan.changes.owed)

    async def _reread(self, decisions: Sequence[Decision]) -> None:
        """Learns how far subscriptions are, where another node, or a transaction whose end was not heard, was first."""
        standings = [decision.standing for decision in decisions]
        if not standings:
            return
        stored = await self._store.subscriptions_by_id([standing.id for standing in standings])
        now, now_s = self._clock(), self._clock_s()
        for standing in standings:
            subscription = stored.get(standing.id)
            if subscription is None or not subscription.active:
                self._standings.remove(standing)
                self._watches.unlink(standing, standing.terminals)
            elif subscription.notified != standing.notified:
                standing.notified, standing.held = subscription.notified, ()
                standing.allowed_s = allowed_s(subscription, now, now_s)
                standing.joined = standing.joined.intersection(subscription.joined)
                if not subscription.awaiting:
                    standing.awaiting = standing.joined
