"""An active subscription in memory: its request (`LiveSubscription`), and how far it has come (`Progress`).

A hundred thousand subscriptions may be active, so both have only the fields that `rules.py` needs.
Invariants: a `Progress` is immutable, and replaced only when the store has written the difference. After a restart it
is made from the stored rows (`restored`).
"""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

from app.domain.addresses import TerminalAddress
from app.domain.errors import DocumentUnreadable, TerminalStatusError, TooManyAddresses
from app.domain.policy import visible_status, with_status
from app.domain.records import Subscription
from app.domain.sink_contracts import SinkContract
from app.domain.sinks import EndReason
from app.domain.statuses import Status, TerminalStatus

NO_TERMINALS: frozenset[TerminalAddress] = frozenset()
_CRITERIA: dict[frozenset[Status], frozenset[Status]] = {}  # the eight possible sets, each once in memory
ONLY_REPORTED = (DocumentUnreadable, TooManyAddresses)
"""Errors that are reported once and end nothing."""


class Progress(msgspec.Struct, frozen=True, gc=False):
    """How far an active subscription has come. A Struct, because one is made for each notification, in 0.3 µs."""

    terminals: tuple[TerminalAddress, ...]
    """The terminals that are watched for it, groups expanded."""
    notified: int = 0
    """Status notifications that were written."""
    allowed_s: float = -math.inf
    """When the next status notification may be written; monotonic."""
    held: tuple[TerminalStatus, ...] = ()
    """Statuses that wait until `allowed_s`: the newest of each terminal."""
    awaiting: frozenset[TerminalAddress] = NO_TERMINALS
    """Terminals whose next observation counts as their first, which is not a change."""
    joined: frozenset[TerminalAddress] = NO_TERMINALS
    """The terminals of `awaiting` that are stored by name: all if the subscription has several terminals, and those
    that joined a group later. The others are stored as one flag (`Subscription.awaiting`)."""
    reported: frozenset[TerminalAddress] = NO_TERMINALS
    """Terminals, and a group that is too large, about which an error of ONLY_REPORTED was sent."""
    failed: frozenset[TerminalAddress] = NO_TERMINALS
    """Members of groups that cannot be watched; they are ignored until they leave the group."""
    end_reason: EndReason | None = None

    @property
    def awaits_unnamed(self) -> bool:
        """Whether `awaiting` has terminals that are not stored by name: then the stored flag is set."""
        return bool(self.awaiting - self.joined)

    @property
    def held_addresses(self) -> tuple[TerminalAddress, ...]:
        """The terminals of `held`, in its order."""
        return tuple([status.address for status in self.held])


class LiveSubscription:
    """The subscription's request, and its `progress`. Changed only by code that holds the writer's lock."""

    __slots__ = (
        "addresses",
        "check_immediate",
        "client_id",
        "contract",
        "criteria",
        "ended",
        "expires_at",
        "expires_s",
        "groups",
        "id",
        "interval_s",
        "max_notifications",
        "progress",
        "shows_busy",
    )

    def __init__(
        self,
        subscription: Subscription,
        contract: SinkContract,
        progress: Progress,
        *,
        groups: tuple[TerminalAddress, ...] = (),
        busy_allowed: bool = True,
        expires_s: float = math.inf,
    ) -> None:
        """`busy_allowed` is the client's policy; `expires_s` is monotonic."""
        self.id = subscription.id
        self.client_id = subscription.client_id
        self.contract = contract
        self.set_criteria(subscription.criteria)
        self.check_immediate = subscription.check_immediate
        self.interval_s = subscription.min_interval_ms / 1000
        self.max_notifications = subscription.max_notifications
        self.expires_at = subscription.expires_at
        self.expires_s = expires_s
        self.shows_busy = busy_allowed and contract.shows_busy
        self.groups = groups
        self.addresses = subscription.addresses if groups else ()
        """The addresses of the request; kept only if there are groups among them, whose members may change."""
        self.progress = progress
        self.ended = False

    def set_criteria(self, criteria: frozenset[Status]) -> None:
        self.criteria = _CRITERIA.setdefault(criteria, criteria)

    @property
    def due_s(self) -> float:
        """When `decide` must be called even without news; monotonic."""
        return min(self.expires_s, self.progress.allowed_s) if self.progress.held else self.expires_s

    def wants_error(self, address: TerminalAddress, error: TerminalStatusError) -> bool:
        """Whether the error is to be sent. An error of ONLY_REPORTED is sent once; DocumentUnreadable only while the
        client waits for the first status of that terminal (`check_immediate`)."""
        progress = self.progress
        if isinstance(error, TooManyAddresses):
            return address not in progress.reported
        if not isinstance(error, DocumentUnreadable):
            return True
        return self.check_immediate and address in progress.awaiting and address not in progress.reported

    def meets_criteria(self, status: Status) -> bool:
        """Whether the client asked for this status, as it is visible to the client."""
        return not self.criteria or status in self.criteria


def begun(
    subscription: Subscription,
    contract: SinkContract,
    *,
    terminals: tuple[TerminalAddress, ...],
    groups: tuple[TerminalAddress, ...],
    live: Mapping[TerminalAddress, TerminalStatus],
    busy_allowed: bool,
    now_s: float,
) -> LiveSubscription:
    """A new subscription. `live` has the statuses of its LIVE terminals. With `check_immediate` all terminals are
    awaited, otherwise the terminals that are not in `live`."""
    awaited = terminals if subscription.check_immediate else [address for address in terminals if address not in live]
    expires_s = math.inf
    if subscription.expires_at is not None:
        expires_s = now_s + (subscription.expires_at - subscription.created_at).total_seconds()
    return LiveSubscription(
        subscription,
        contract,
        Progress(terminals, subscription.notified, awaiting=frozenset(awaited) or NO_TERMINALS),
        groups=groups,
        busy_allowed=busy_allowed,
        expires_s=expires_s,
    )


def restored(
    subscription: Subscription,
    contract: SinkContract,
    *,
    terminals: tuple[TerminalAddress, ...],
    groups: tuple[TerminalAddress, ...],
    stored: Mapping[TerminalAddress, TerminalStatus],
    busy_allowed: bool,
    now: datetime,
    now_s: float,
) -> LiveSubscription:
    """A subscription as it was before a restart. `stored` has the stored statuses of its terminals.

    A terminal is awaited if it was never observed, if it is in `Subscription.joined`, or, while `Subscription.awaiting`
    is set, if it was not observed since the subscription was created.
    """
    left_s = (subscription.expires_at - now).total_seconds() if subscription.expires_at else math.inf
    live = LiveSubscription(
        subscription,
        contract,
        Progress(terminals),
        groups=groups,
        busy_allowed=busy_allowed,
        expires_s=now_s + left_s,
    )
    awaited, held = [], []
    joined, held_back = frozenset(subscription.joined), frozenset(subscription.held)
    for address in terminals:
        status = stored.get(address)
        old = status is not None and subscription.awaiting and status.observed_at < subscription.created_at
        if status is None or old or address in joined:
            awaited.append(address)
        elif address in held_back:
            visible = visible_status(live.shows_busy, status.status)
            if live.meets_criteria(visible):
                held.append(with_status(status, visible))
    live.progress = Progress(
        terminals,
        subscription.notified,
        allowed_s(subscription, now, now_s),
        tuple(held),
        frozenset(awaited) or NO_TERMINALS,
        joined.intersection(awaited) or NO_TERMINALS,
    )
    return live


def allowed_s(subscription: Subscription, now: datetime, now_s: float) -> float:
    """When the next status notification of a stored subscription may be written, by the monotonic clock."""
    if not subscription.min_interval_ms or subscription.last_notified_at is None:
        return -math.inf
    interval_s = subscription.min_interval_ms / 1000
    passed_s = (now - subscription.last_notified_at) / timedelta(seconds=1)
    return now_s + min(max(interval_s - passed_s, 0.0), interval_s)
