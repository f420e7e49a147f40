"""An active subscription as it is held in memory, and how it is made, newly or after a restart.

Invariants: pure. What follows from a restart is found from the stored rows (`restored`).
"""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta

from app.domain.addresses import TerminalAddress
from app.domain.errors import DocumentUnreadable, TerminalStatusError, TooManyAddresses
from app.domain.policy import visible_status, with_status
from app.domain.records import Subscription
from app.domain.sinks import PROFILE_CAMARA
from app.domain.statuses import Status, TerminalStatus

_NONE_AWAITED: frozenset[TerminalAddress] = frozenset()
_CRITERIA: dict[frozenset[Status], frozenset[Status]] = {}  # each of the eight once, whoever asks

_NOTICES = (DocumentUnreadable, TooManyAddresses)
"""Errors by which nothing ends."""


class LiveSubscription:
    """An active subscription as it is held in memory: a hundred thousand of them, so no more than the rule needs."""

    __slots__ = (
        "addresses",
        "allowed_s",
        "awaiting",
        "busy",
        "check_immediate",
        "client_id",
        "criteria",
        "ended",
        "expires_at",
        "expires_s",
        "failed",
        "groups",
        "held",
        "id",
        "interval_s",
        "joined",
        "kind",
        "most",
        "notified",
        "profile",
        "terminals",
        "warned",
    )

    def __init__(
        self,
        subscription: Subscription,
        *,
        terminals: tuple[TerminalAddress, ...],
        groups: tuple[TerminalAddress, ...] = (),
        busy: bool = True,
        expires_s: float = math.inf,
    ) -> None:
        self.id = subscription.id
        self.client_id = subscription.client_id
        self.kind = subscription.sink.kind
        self.profile = subscription.sink.profile
        self.criteria = _CRITERIA.setdefault(subscription.criteria, subscription.criteria)
        self.check_immediate = subscription.check_immediate
        self.interval_s = subscription.min_interval_ms / 1000
        self.most = subscription.max_notifications
        self.notified = subscription.notified
        self.expires_at = subscription.expires_at
        self.busy = busy and self.profile != PROFILE_CAMARA
        self.terminals = terminals
        self.groups = groups
        self.addresses = subscription.addresses if groups else ()
        """What it was asked for, where that may come to mean other terminals."""
        self.warned = _NONE_AWAITED
        """Of what it was told an error by which nothing ends: terminals whose documents cannot be read, and a group
        that is too large."""
        self.failed = _NONE_AWAITED
        """Members of groups that cannot be watched, of which it was told; they are left alone until they leave."""
        self.awaiting = _NONE_AWAITED
        """Terminals whose next observation is their first."""
        self.joined = _NONE_AWAITED
        """Those of them that joined a group."""
        self.held: tuple[TerminalStatus, ...] = ()
        """What waits for the interval."""
        self.allowed_s = -math.inf
        """When the next status notification may be made."""
        self.expires_s = expires_s
        self.ended = False

    @property
    def due_s(self) -> float:
        """When it wants to be looked at without any news."""
        return min(self.expires_s, self.allowed_s) if self.held else self.expires_s

    def wants_error(self, address: TerminalAddress, error: TerminalStatusError) -> bool:
        """Whether it is to be told this error: one by which nothing ends only once, and that a document cannot be read
        only where it waits to be told at once what that says."""
        if isinstance(error, TooManyAddresses):
            return address not in self.warned
        if not isinstance(error, DocumentUnreadable):
            return True
        return self.check_immediate and address in self.awaiting and address not in self.warned

    def shows(self, status: Status) -> bool:
        """Whether the (shown) status meets the criteria."""
        return not self.criteria or status in self.criteria


def begun(
    subscription: Subscription,
    *,
    terminals: tuple[TerminalAddress, ...],
    groups: tuple[TerminalAddress, ...],
    live: Mapping[TerminalAddress, TerminalStatus],
    busy: bool,
    now_s: float,
) -> LiveSubscription:
    """A new subscription. `live` are those of its terminals whose status is known now; the others are awaited."""
    standing = LiveSubscription(
        subscription, terminals=terminals, groups=groups, busy=busy, expires_s=_expires_s(subscription, now_s)
    )
    awaited = terminals if subscription.check_immediate else [address for address in terminals if address not in live]
    standing.awaiting = frozenset(awaited) or _NONE_AWAITED
    return standing


def restored(
    subscription: Subscription,
    *,
    terminals: tuple[TerminalAddress, ...],
    groups: tuple[TerminalAddress, ...],
    stored: Mapping[TerminalAddress, TerminalStatus],
    busy: bool,
    now: datetime,
    now_s: float,
) -> LiveSubscription:
    """A subscription as it was before a restart, from what is `stored` of its terminals.

    A terminal is awaited that was never observed, or not since it joined a group, or not since a subscription was made
    that still awaits some.
    """
    left_s = (subscription.expires_at - now).total_seconds() if subscription.expires_at else math.inf
    standing = LiveSubscription(subscription, terminals=terminals, groups=groups, busy=busy, expires_s=now_s + left_s)
    awaited, held = [], []
    joined, held_back = frozenset(subscription.joined), frozenset(subscription.held)
    for address in terminals:
        status = stored.get(address)
        old = status is not None and subscription.awaiting and status.observed_at < subscription.created_at
        if status is None or old or address in joined:
            awaited.append(address)
        elif address in held_back:
            shown = visible_status(standing.busy, status.status)
            if standing.shows(shown):
                held.append(with_status(status, shown))
    if awaited:
        standing.awaiting = frozenset(awaited)
    standing.joined = joined.intersection(awaited) or _NONE_AWAITED
    standing.held = tuple(held)
    standing.allowed_s = allowed_s(subscription, now, now_s)
    return standing


def allowed_s(subscription: Subscription, now: datetime, now_s: float) -> float:
    """When the next status notification may be made, by the monotonic clock."""
    if not subscription.min_interval_ms or subscription.last_notified_at is None:
        return -math.inf
    interval_s = subscription.min_interval_ms / 1000
    passed_s = (now - subscription.last_notified_at) / timedelta(seconds=1)
    return now_s + min(max(interval_s - passed_s, 0.0), interval_s)


def _expires_s(subscription: Subscription, now_s: float) -> float:
    if subscription.expires_at is None:
        return math.inf
    return now_s + (subscription.expires_at - subscription.created_at).total_seconds()
