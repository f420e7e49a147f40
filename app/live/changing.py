"""Changes an active subscription's criteria, expiry, sink and addresses: in the store, then in memory.

Invariants: the caller holds the writer's lock. All of a change is one transaction, also the entry in the audit log.

Deliberately absent: what a client may change (`core/subscription_changes.py`), and how a subscription moves to other
terminals (`subscription_moves.py`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import msgspec

from app.domain.changes import Changes, SubscriptionEdit
from app.domain.errors import SubscriptionUnknown
from app.domain.policy import Policy
from app.domain.records import AuditEntry, Subscription
from app.live.group_directory import Expansion, GroupDirectory
from app.live.index import SubscriptionIndex
from app.live.registry import TerminalRegistry
from app.live.subscription import NO_TERMINALS, LiveSubscription
from app.live.subscription_moves import Move, apply, move_of, update_of
from app.live.terminal import Terminal
from app.live.writer import StatusWriter
from app.ports.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of one subscription."""

    subscription_id: str
    revise: Callable[[Subscription], Subscription]
    """Returns the stored subscription with its new values; may raise, which changes nothing. It may change the
    addresses (with `expansion`), the criteria, the expiry and the sink, to one of the same kind and profile."""
    audit: AuditEntry
    policy: Policy
    """The policy of the subscription's client."""
    expansion: Expansion | None = None
    """The terminals to watch from now on; None: unchanged."""
    resumes: bool = False
    """Whether delivery to a suspended sink starts again, and waiting notifications are sent at once."""
    on_sink_changed: Callable[[Subscription], None]
    """Called with the changed subscription if its sink differs or `resumes`; may not block or raise."""


class SubscriptionChanger:
    """Makes changes of subscriptions. One per process, used by `Lifecycle`."""

    def __init__(
        self,
        store: Store,
        registry: TerminalRegistry,
        index: SubscriptionIndex,
        writer: StatusWriter,
        directory: GroupDirectory,
        *,
        clock: Callable[[], datetime],
        clock_s: Callable[[], float],
    ) -> None:
        self._store = store
        self._registry = registry
        self._index = index
        self._writer = writer
        self._directory = directory
        self._clock = clock
        self._clock_s = clock_s

    async def change(self, live: LiveSubscription, change: Change) -> Subscription:
        """Makes the change, and returns the changed subscription.

        Raises what `Change.revise` raises, GatewayOverloaded, StoreUnavailable, SubscriptionUnknown (it ended
        meanwhile) and TooManyWatchedTerminals, having changed nothing.
        """
        stored = await self._store.subscription(live.id)
        if stored is None or not stored.active:  # its sink answered 410 Gone
            raise SubscriptionUnknown("There is no active subscription of this id. It may have ended.")
        revised = replace(change.revise(stored), version=stored.version + 1)
        expansion = await self._expansion_now(live, revised, change)
        with self._wanted(live, change, expansion) as terminals:
            await self._writer.load(terminals)
            move = _move(live, revised, expansion, terminals)
            resumes_at = self._clock() if change.resumes else None
            revised = replace(
                revised,
                groups=move.groups,
                awaiting=False,  # `subscription_moves.py` names all that are awaited
                joined=tuple(sorted(move.progress.joined)),
                held=move.progress.held_addresses,
                suspended_at=None if change.resumes else stored.suspended_at,
            )
            edit = SubscriptionEdit(
                subscription_id=live.id,
                version=revised.version,
                criteria=revised.criteria,
                expires_at=revised.expires_at,
                addresses=revised.addresses if revised.addresses != stored.addresses else None,
                sink=revised.sink if revised.sink != stored.sink else None,
                resumes_at=resumes_at,
            )
            update = update_of(move)
            await self._store.write(Changes(edits=[edit], updates=[update] if update else (), audit=[change.audit]))
            if edit.sink is not None or change.resumes:
                change.on_sink_changed(revised)
                self._writer.on_notifications_owed()
            if not live.ended:  # its sink may have answered 410 Gone during the write
                self._apply(live, revised, move)
        return revised

    async def _expansion_now(self, live: LiveSubscription, revised: Subscription, change: Change) -> Expansion | None:
        """`change.expansion`, with the present members of groups."""
        asked = change.expansion
        if asked is None or not asked.groups:
            return asked
        most = change.policy.max_notification_addresses
        return await self._directory.members_now(live.client_id, revised.addresses, most, asked.groups)

    @contextmanager
    def _wanted(
        self, live: LiveSubscription, change: Change, expansion: Expansion | None
    ) -> Iterator[Sequence[Terminal]]:
        """The terminals of `expansion`, watched at least inside the context. A terminal that has failed is tried
        again."""
        its = {address: self._registry.by_address[address] for address in live.progress.terminals}
        if expansion is None:
            yield list(its.values())
            return
        others = [address for address in expansion.terminals if address not in its]
        leaving = [its[address] for address in its.keys() - set(expansion.terminals)]
        most = change.policy.max_watched_terminals
        wanted = self._registry.want(others, live.client_id, most, leaving=leaving)
        its.update((terminal.address, terminal) for terminal in wanted)
        try:
            yield [its[address] for address in expansion.terminals]
        finally:
            self._registry.release_unwanted(wanted)

    def _apply(self, live: LiveSubscription, revised: Subscription, move: Move) -> None:
        apply(move, self._index, self._registry)
        live.addresses = revised.addresses if live.groups else ()
        live.set_criteria(revised.criteria)
        if revised.expires_at != live.expires_at:
            left_s = (revised.expires_at - self._clock()).total_seconds() if revised.expires_at else math.inf
            self._index.renew(live, revised.expires_at, self._clock_s() + left_s)


def _move(
    live: LiveSubscription, revised: Subscription, expansion: Expansion | None, terminals: Sequence[Terminal]
) -> Move:
    """The move to these terminals, with the held statuses that meet the new criteria."""
    move = move_of(live, live.groups if expansion is None else expansion.groups, terminals)
    progress = move.progress
    held = tuple([one for one in progress.held if not revised.criteria or one.status in revised.criteria])
    progress = msgspec.structs.replace(progress, held=held)
    if expansion is not None:
        kept = progress.reported.intersection(live.progress.terminals, progress.terminals) or NO_TERMINALS
        progress = msgspec.structs.replace(progress, failed=NO_TERMINALS, reported=kept)
    return move._replace(progress=progress)
