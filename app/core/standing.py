"""What an active subscription is told, and when: Parlay X's criteria, checkImmediate, frequency, count and duration.

`decide` is the whole rule and pure: it returns what to write and how the subscription stands thereafter, and changes
nothing; `Decision.apply` does once it is written. Times are of two clocks: `now` stands in records, `now_s` (monotonic
seconds) measures intervals and durations, so that a clock that jumps neither floods nor starves anybody.
Invariants: two status notifications are never closer together than the interval; what is held back is the newest of
each terminal, only while it meets the criteria, and is told once the interval has passed. What a terminal was before
its first observation is no change. What follows from a restart is found from the stored rows (`restored`).

Deliberately absent: the store, tasks and timers (`standings.py` keeps `due_s` in a heap), and what clients may ask.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from app.core.policy import shown_as, told_status
from app.domain import (
    ClientUnknown,
    DocumentUnreadable,
    Status,
    TerminalAddress,
    TerminalStatus,
    TerminalStatusError,
    TooManyAddresses,
)
from app.ports import SubscriptionUpdate
from app.records import (
    PROFILE_CAMARA,
    DeliveryState,
    EndReason,
    NotificationKind,
    OwedNotification,
    Sink,
    SinkKind,
    Subscription,
)

_NONE_AWAITED: frozenset[TerminalAddress] = frozenset()
_CRITERIA: dict[frozenset[Status], frozenset[Status]] = {}  # each of the eight once, whoever asks
END_TEXTS: Mapping[EndReason, str] = {
    EndReason.EXPIRED: "Its duration is over.",
    EndReason.COUNT_REACHED: "As many notifications as asked for were made.",
    EndReason.CANCELLED: "Its client ended it.",
    EndReason.CLIENT_DELETED: "Its client was deleted.",
    EndReason.FAILED: "None of its terminals can be watched.",
}

_NOTICES = (DocumentUnreadable, TooManyAddresses)
"""Errors by which nothing ends."""

News = tuple[TerminalStatus, Status | None]
"""How a terminal is now, and how it was before (None: never observed)."""


class Standing:
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


class Decision:
    """What follows of news for one subscription: what to write, and how it stands when that is written."""

    __slots__ = (
        "allowed_s",
        "awaiting",
        "end_reason",
        "failed",
        "held",
        "joined",
        "notified",
        "owed",
        "standing",
        "terminals",
        "update",
        "warned",
    )

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.owed: list[OwedNotification] = []
        self.update: SubscriptionUpdate | None = None
        self.notified = standing.notified
        self.awaiting = standing.awaiting
        self.joined = standing.joined
        self.held = standing.held
        self.allowed_s = standing.allowed_s
        self.terminals = standing.terminals
        self.warned = standing.warned
        self.failed = standing.failed
        self.end_reason: EndReason | None = None

    def apply(self) -> None:
        """Makes it so, in memory."""
        standing = self.standing
        standing.notified, standing.awaiting, standing.held = self.notified, self.awaiting, self.held
        standing.allowed_s, standing.terminals, standing.warned = self.allowed_s, self.terminals, self.warned
        standing.failed, standing.joined = self.failed, self.joined
        standing.ended = standing.ended or self.end_reason is not None


class Writer:
    """Makes owed notifications of one moment."""

    __slots__ = ("_new_id", "now")

    def __init__(self, now: datetime, new_id: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        self.now = now
        self._new_id = new_id

    def owe(
        self,
        subscription_id: str,
        client_id: str,
        sink: SinkKind,
        kind: NotificationKind,
        changes: tuple[TerminalStatus, ...] = (),
        *,
        address: TerminalAddress | None = None,
        code: str = "",
        text: str = "",
    ) -> OwedNotification:
        """One notification; what goes to no endpoint is delivered by being listed."""
        listed = sink is SinkKind.STREAM
        return OwedNotification(
            id=self._new_id(),
            subscription_id=subscription_id,
            client_id=client_id,
            sequence=0,  # the store's to give
            kind=kind,
            changes=changes,
            address=address,
            code=code,
            text=text,
            created_at=self.now,
            next_attempt_at=self.now,
            state=DeliveryState.DELIVERED if listed else DeliveryState.PENDING,
            settled_at=self.now if listed else None,
        )

    def ending(
        self, subscription_id: str, client_id: str, sink: Sink | Standing, reason: EndReason
    ) -> list[OwedNotification]:
        """What a subscription that ends for `reason` is owed (TS 29.199-8: statusEnd for duration and count only)."""
        if reason is EndReason.CANCELLED and sink.profile != PROFILE_CAMARA and sink.kind is not SinkKind.STREAM:
            return []
        if sink.kind is SinkKind.SOAP and reason is EndReason.CLIENT_DELETED:
            code, text = ClientUnknown.code, END_TEXTS[reason]
            return [self.owe(subscription_id, client_id, sink.kind, NotificationKind.ERROR, code=code, text=text)]
        if sink.kind is SinkKind.SOAP and reason not in (EndReason.EXPIRED, EndReason.COUNT_REACHED):
            return []
        text = END_TEXTS.get(reason, "")
        return [
            self.owe(subscription_id, client_id, sink.kind, NotificationKind.ENDED, code=reason.name, text=text),
        ]

    def client_deleted(self, subscription: Subscription) -> tuple[SubscriptionUpdate, list[OwedNotification]]:
        """How a subscription ends whose client is deleted, and what it is owed."""
        reason = EndReason.CLIENT_DELETED
        update = SubscriptionUpdate(
            subscription_id=subscription.id, ended_at=self.now, end_reason=reason, end_detail=END_TEXTS[reason]
        )
        return update, self.ending(subscription.id, subscription.client_id, subscription.sink, reason)


def decide(
    standing: Standing,
    news: Sequence[News],
    failures: Mapping[TerminalAddress, TerminalStatusError],
    now_s: float,
    writer: Writer,
) -> Decision | None:
    """What the subscription is told of `news` (in order), of terminals that failed for good, and of the time.

    None if nothing follows, neither now nor later.
    """
    decision = Decision(standing)
    now = writer.now
    told = {status.address: status for status in standing.held}
    for status, before in news:
        _weigh(decision, told, status, before)
    if told and now_s >= standing.allowed_s:
        changes = tuple(told.values())
        decision.owed.append(
            writer.owe(standing.id, standing.client_id, standing.kind, NotificationKind.STATUS, changes)
        )
        decision.notified += 1
        decision.allowed_s = now_s + standing.interval_s if standing.interval_s else -math.inf
        told = {}
    decision.held = tuple(told.values()) if told else ()
    if failures:
        _fail(decision, failures, writer)
    if decision.end_reason is None:
        if standing.most and decision.notified >= standing.most:
            decision.end_reason = EndReason.COUNT_REACHED
        elif now_s >= standing.expires_s:
            decision.end_reason = EndReason.EXPIRED
    if decision.end_reason is not None:
        decision.held = ()
        decision.owed += writer.ending(standing.id, standing.client_id, standing, decision.end_reason)
    notified = decision.notified != standing.notified
    awaited = False
    if decision.awaiting is not standing.awaiting:
        awaited = bool(standing.awaiting - standing.joined) and not decision.awaiting - standing.joined
        decision.joined = standing.joined & decision.awaiting or _NONE_AWAITED
    joined = decision.joined is not standing.joined and decision.joined != standing.joined
    held = decision.held is not standing.held and _addresses(decision.held) != _addresses(standing.held)
    if notified or awaited or joined or held or decision.end_reason is not None:
        ended = decision.end_reason is not None
        decision.update = SubscriptionUpdate(
            subscription_id=standing.id,
            notified=decision.notified if notified else None,
            last_notified_at=now if notified else None,
            awaiting=False if awaited else None,
            joined=tuple(sorted(decision.joined)) if joined else None,
            held=_addresses(decision.held) if held else None,
            ended_at=now if ended else None,
            end_reason=decision.end_reason,
            end_detail=END_TEXTS[decision.end_reason] if decision.end_reason else None,
        )
    elif (
        decision.held == standing.held
        and decision.awaiting is standing.awaiting
        and decision.terminals is standing.terminals
        and decision.warned is standing.warned
    ):
        return None
    return decision


def _addresses(held: Sequence[TerminalStatus]) -> tuple[TerminalAddress, ...]:
    return tuple([status.address for status in held])


def _weigh(
    decision: Decision, told: dict[TerminalAddress, TerminalStatus], status: TerminalStatus, before: Status | None
) -> None:
    """Takes one terminal's news into what is to be told."""
    standing, address = decision.standing, status.address
    shown = told_status(standing.busy, status.status)
    if address in decision.awaiting:
        decision.awaiting = decision.awaiting - {address} or _NONE_AWAITED
        tells = standing.check_immediate
    else:
        tells = before is None or told_status(standing.busy, before) is not shown
        if not tells:
            return  # nothing new for this client; what is held is still so
    if tells and standing.shows(shown):
        told[address] = shown_as(status, shown)
    else:
        told.pop(address, None)  # the newest state wins, and it is none to be told


def _fail(decision: Decision, failures: Mapping[TerminalAddress, TerminalStatusError], writer: Writer) -> None:
    """Takes out terminals that cannot be watched; the last one ends the subscription, unless others may still join a
    group. Errors by which nothing ends are told, no more."""
    standing = decision.standing
    for address, error in failures.items():
        waits = isinstance(error, DocumentUnreadable) and address in decision.awaiting
        if (waits or isinstance(error, TooManyAddresses)) and standing.wants_error(address, error):
            decision.owed.append(_error(standing, address, error, writer))
            decision.warned = decision.warned | {address}
    failures = {address: error for address, error in failures.items() if not isinstance(error, _NOTICES)}
    failed = [address for address in standing.terminals if address in failures]
    if not failed:
        return
    decision.terminals = tuple([address for address in standing.terminals if address not in failures])
    decision.awaiting = decision.awaiting.difference(failed) or _NONE_AWAITED
    decision.held = tuple([status for status in decision.held if status.address not in failures])
    if standing.groups:
        decision.failed = standing.failed.union(failed)
    elif not decision.terminals:
        decision.end_reason = EndReason.FAILED
    for address in failed:
        # A Parlay X statusError without an address is about the whole subscription, which ends by it.
        whole = standing.kind is SinkKind.SOAP and decision.end_reason is not None and address == failed[-1]
        decision.owed.append(_error(standing, None if whole else address, failures[address], writer))


def _error(
    standing: Standing, address: TerminalAddress | None, error: TerminalStatusError, writer: Writer
) -> OwedNotification:
    return writer.owe(
        standing.id,
        standing.client_id,
        standing.kind,
        NotificationKind.ERROR,
        address=address,
        code=error.code,
        text=str(error),
    )


def begun(
    subscription: Subscription,
    *,
    terminals: tuple[TerminalAddress, ...],
    groups: tuple[TerminalAddress, ...],
    live: Mapping[TerminalAddress, TerminalStatus],
    busy: bool,
    now_s: float,
) -> Standing:
    """A new subscription. `live` are those of its terminals whose status is known now; the others are awaited."""
    standing = Standing(
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
) -> Standing:
    """A subscription as it was before a restart, from what is `stored` of its terminals.

    A terminal is awaited that was never observed, or not since it joined a group, or not since a subscription was made
    that still awaits some.
    """
    left_s = (subscription.expires_at - now).total_seconds() if subscription.expires_at else math.inf
    standing = Standing(subscription, terminals=terminals, groups=groups, busy=busy, expires_s=now_s + left_s)
    awaited, held = [], []
    joined, held_back = frozenset(subscription.joined), frozenset(subscription.held)
    for address in terminals:
        status = stored.get(address)
        old = status is not None and subscription.awaiting and status.observed_at < subscription.created_at
        if status is None or old or address in joined:
            awaited.append(address)
        elif address in held_back:
            shown = told_status(standing.busy, status.status)
            if standing.shows(shown):
                held.append(shown_as(status, shown))
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
