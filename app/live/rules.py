"""What an active subscription is told, and when: Parlay X's criteria, checkImmediate, frequency, count and duration.

`decide` is the whole rule and pure: it returns what to write and how the subscription stands thereafter, and changes
nothing; `Decision.apply` does once it is written. Times are of two clocks: `now` stands in records, `now_s` (monotonic
seconds) measures intervals and durations, so that a clock that jumps neither floods nor starves anybody.
Invariants: two status notifications are never closer together than the interval; what is held back is the newest of
each terminal, only while it meets the criteria, and is told once the interval has passed. What a terminal was before
its first observation is no change. What follows from a restart is found from the stored rows (`restored`).

Deliberately absent: the store, tasks and timers (`index.py` keeps `due_s` in a heap), and what clients may ask.
"""

import math
from collections.abc import Mapping, Sequence

from app.domain.addresses import TerminalAddress
from app.domain.changes import SubscriptionUpdate
from app.domain.errors import DocumentUnreadable, TerminalStatusError, TooManyAddresses
from app.domain.owed import END_TEXTS, OwedWriter
from app.domain.policy import visible_status, with_status
from app.domain.records import NotificationKind, OwedNotification
from app.domain.sinks import EndReason, SinkKind
from app.domain.statuses import Status, TerminalStatus
from app.live.subscription import _NONE_AWAITED, _NOTICES, LiveSubscription

News = tuple[TerminalStatus, Status | None]
"""How a terminal is now, and how it was before (None: never observed)."""


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

    def __init__(self, standing: LiveSubscription) -> None:
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


def decide(
    standing: LiveSubscription,
    news: Sequence[News],
    failures: Mapping[TerminalAddress, TerminalStatusError],
    now_s: float,
    writer: OwedWriter,
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
    shown = visible_status(standing.busy, status.status)
    if address in decision.awaiting:
        decision.awaiting = decision.awaiting - {address} or _NONE_AWAITED
        tells = standing.check_immediate
    else:
        tells = before is None or visible_status(standing.busy, before) is not shown
        if not tells:
            return  # nothing new for this client; what is held is still so
    if tells and standing.shows(shown):
        told[address] = with_status(status, shown)
    else:
        told.pop(address, None)  # the newest state wins, and it is none to be told


def _fail(decision: Decision, failures: Mapping[TerminalAddress, TerminalStatusError], writer: OwedWriter) -> None:
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
    standing: LiveSubscription, address: TerminalAddress | None, error: TerminalStatusError, writer: OwedWriter
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
