"""Moves a subscription to other terminals: when its groups change, or its client changes its addresses.

Terminals that stay keep what was reported of them. Terminals that join are awaited as at the start of a subscription:
with `check_immediate` all of them, otherwise those that are not LIVE.
Invariants: the caller holds the writer's lock from `move_of` to `apply`, and writes `update_of` in between. `apply` is
left out if the subscription has ended meanwhile.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from app.domain.addresses import TerminalAddress
from app.domain.changes import SubscriptionUpdate
from app.domain.statuses import Liveness
from app.live.index import SubscriptionIndex
from app.live.registry import TerminalRegistry
from app.live.subscription import NO_TERMINALS, LiveSubscription, Progress
from app.live.terminal import Terminal


class Move(NamedTuple):
    """A subscription, and the terminals that it will watch."""

    subscription: LiveSubscription
    groups: tuple[TerminalAddress, ...]
    terminals: Sequence[Terminal]
    progress: Progress
    """The subscription's next progress."""
    awaited: Sequence[Terminal]
    """Terminals that join, and whose next observation counts as their first."""


def move_of(subscription: LiveSubscription, groups: tuple[TerminalAddress, ...], terminals: Sequence[Terminal]) -> Move:
    """The move of a subscription to these terminals, whose statuses are loaded."""
    before, now = subscription.progress, {terminal.address for terminal in terminals}
    awaited = []
    for terminal in terminals:
        live = terminal.liveness is Liveness.LIVE and terminal.status is not None
        if subscription not in terminal.subscriptions and (subscription.check_immediate or not live):
            awaited.append(terminal)
    # All are awaited by name from now on: the flag for the others means "since the subscription was created".
    awaiting = before.awaiting.intersection(now).union([terminal.address for terminal in awaited]) or NO_TERMINALS
    progress = msgspec.structs.replace(
        before,
        terminals=tuple([terminal.address for terminal in terminals]),
        awaiting=awaiting,
        joined=awaiting,
        held=tuple([status for status in before.held if status.address in now]),
    )
    return Move(subscription, groups, terminals, progress, awaited)


def update_of(move: Move) -> SubscriptionUpdate | None:
    """What the store must write before `apply`, if anything."""
    subscription, after = move.subscription, move.progress
    before = subscription.progress
    regrouped = move.groups != subscription.groups
    fewer_held = len(after.held) != len(before.held)
    if not (regrouped or fewer_held or after.joined != before.joined or before.awaits_unnamed):
        return None
    return SubscriptionUpdate(
        subscription_id=subscription.id,
        groups=move.groups if regrouped else None,
        awaiting=False if before.awaits_unnamed else None,
        joined=tuple(sorted(after.joined)) if after.joined != before.joined else None,
        held=after.held_addresses if fewer_held else None,
    )


def apply(move: Move, index: SubscriptionIndex, registry: TerminalRegistry) -> None:
    """Makes the move in memory."""
    subscription = move.subscription
    left = set(subscription.progress.terminals).difference(move.progress.terminals)
    subscription.progress = move.progress
    index.index_groups(subscription, move.groups)
    registry.remove_subscription(subscription, left)
    for terminal in move.terminals:
        if subscription not in terminal.subscriptions:
            registry.add_subscription(subscription, terminal)
    for terminal in move.awaited:
        terminal.write_next = True
        live = terminal.liveness is Liveness.LIVE
        if live and terminal.status is not None and not terminal.pending:
            terminal.observe(terminal.status.status, terminal.status.observed_at)  # reported as if it had just come
            registry.enqueue(terminal)
