"""What a subscriber is sent, and when: Parlay X's criteria, checkImmediate, frequency, count and duration.

`decide` is the whole rule, and is pure: from news it makes the subscription's next `Progress` and the owed
notifications. `update_of` makes the store's update from two progresses. Memory changes after the store has written.
Two clocks: `now` is written in records, `now_s` (monotonic seconds) measures intervals and durations, so that a wall
clock that jumps causes neither a flood nor silence.
Invariants: two status notifications are never closer together than the interval. Only the newest status of each
terminal waits for the interval, and only while it meets the criteria. A terminal's first observation is not a change.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from app.domain.addresses import TerminalAddress
from app.domain.changes import SubscriptionUpdate
from app.domain.errors import DocumentUnreadable, TerminalStatusError, TooManyAddresses
from app.domain.owed import END_TEXTS, OwedWriter
from app.domain.policy import visible_status, with_status
from app.domain.records import NotificationKind, OwedNotification
from app.domain.sinks import EndReason
from app.domain.statuses import Status, TerminalStatus
from app.live.subscription import NO_TERMINALS, ONLY_REPORTED, LiveSubscription, Progress

News = tuple[TerminalStatus, Status | None]
"""A terminal's status now, and its status before (None: never observed)."""

Failures = Mapping[TerminalAddress, TerminalStatusError]

_replace = msgspec.structs.replace


class Decision(NamedTuple):
    """The next progress of one subscription, its update for the store (None: no stored value changes), and its new
    notifications."""

    subscription: LiveSubscription
    progress: Progress
    update: SubscriptionUpdate | None
    owed: Sequence[OwedNotification]


def decide(
    subscription: LiveSubscription, news: Sequence[News], failures: Failures, now_s: float, writer: OwedWriter
) -> Decision | None:
    """Applies `news` (in order), failures and the time to a subscription. None if nothing changes."""
    before = subscription.progress
    owed: list[OwedNotification] = []
    after = _with_news(subscription, before, news) if news else before
    if after.held and now_s >= after.allowed_s:
        after = _notified(subscription, after, now_s, writer, owed)
    if failures:
        after = _with_failures(subscription, after, failures, writer, owed)
    after = _ended(subscription, after, now_s, writer, owed)
    if after is before or after == before:
        return None
    return Decision(subscription, after, update_of(subscription.id, before, after, writer.now), owed)


def update_of(subscription_id: str, before: Progress, after: Progress, now: datetime) -> SubscriptionUpdate | None:
    """What the store must write for `after`; None if it differs from `before` only in fields that are not stored."""
    reason = after.end_reason
    notified = after.notified != before.notified
    held = after.held is not before.held and after.held_addresses != before.held_addresses
    joined = after.joined is not before.joined and after.joined != before.joined
    awaited = before.awaits_unnamed and not after.awaits_unnamed if after.awaiting is not before.awaiting else False
    if not (notified or held or joined or awaited or reason):
        return None
    return SubscriptionUpdate(
        subscription_id=subscription_id,
        notified=after.notified if notified else None,
        last_notified_at=now if notified else None,
        awaiting=False if awaited else None,
        joined=tuple(sorted(after.joined)) if joined else None,
        held=after.held_addresses if held else None,
        ended_at=now if reason else None,
        end_reason=reason,
        end_detail=END_TEXTS.get(reason) if reason else None,
    )


def _with_news(subscription: LiveSubscription, progress: Progress, news: Sequence[News]) -> Progress:
    """Adds statuses that must be reported to `held`, and removes statuses that a newer status has made obsolete."""
    held = {status.address: status for status in progress.held}
    awaiting = progress.awaiting
    for status, before in news:
        address = status.address
        visible = visible_status(subscription.shows_busy, status.status)
        if address in awaiting:
            awaiting = awaiting - {address}
            reports = subscription.check_immediate
        elif before is None or visible_status(subscription.shows_busy, before) is not visible:
            reports = True
        else:
            continue  # no change that this client can see; a held status stays valid
        if reports and subscription.meets_criteria(visible):
            held[address] = with_status(status, visible)
        else:
            held.pop(address, None)
    if awaiting is progress.awaiting:
        return _replace(progress, held=tuple(held.values()))
    return _replace(
        progress,
        held=tuple(held.values()),
        awaiting=awaiting or NO_TERMINALS,
        joined=progress.joined & awaiting or NO_TERMINALS,
    )


def _notified(
    subscription: LiveSubscription, progress: Progress, now_s: float, writer: OwedWriter, owed: list[OwedNotification]
) -> Progress:
    """Owes one notification with all held statuses."""
    owed.append(
        writer.owe(
            subscription.id, subscription.client_id, subscription.contract, NotificationKind.STATUS, progress.held
        )
    )
    return _replace(
        progress,
        held=(),
        notified=progress.notified + 1,
        allowed_s=now_s + subscription.interval_s if subscription.interval_s else -math.inf,
    )


def _with_failures(
    subscription: LiveSubscription,
    progress: Progress,
    failures: Failures,
    writer: OwedWriter,
    owed: list[OwedNotification],
) -> Progress:
    """Reports failures, and removes terminals that cannot be watched. Without any terminal left the subscription ends,
    unless it has groups, which other terminals may join."""
    for address, error in failures.items():
        waits = isinstance(error, DocumentUnreadable) and address in progress.awaiting
        if (waits or isinstance(error, TooManyAddresses)) and subscription.wants_error(address, error):
            owed.append(failure(subscription, address, error, writer))
            progress = _replace(progress, reported=progress.reported | {address})
    final = {address: error for address, error in failures.items() if not isinstance(error, ONLY_REPORTED)}
    failed = [address for address in progress.terminals if address in final]
    if not failed:
        return progress
    left = tuple([address for address in progress.terminals if address not in final])
    awaiting = progress.awaiting.difference(failed) or NO_TERMINALS
    ends = not (left or subscription.groups)
    for address in failed:
        of_all = ends and subscription.contract.last_error_ends and address == failed[-1]
        owed.append(failure(subscription, None if of_all else address, final[address], writer))
    return _replace(
        progress,
        terminals=left,
        awaiting=awaiting,
        joined=progress.joined & awaiting or NO_TERMINALS,
        held=tuple([status for status in progress.held if status.address not in final]),
        failed=progress.failed.union(failed) if subscription.groups else progress.failed,
        end_reason=EndReason.FAILED if ends else progress.end_reason,
    )


def _ended(
    subscription: LiveSubscription, progress: Progress, now_s: float, writer: OwedWriter, owed: list[OwedNotification]
) -> Progress:
    """Ends the subscription if it has failed, has reached its count, or has expired."""
    reason = progress.end_reason
    if reason is None:
        if subscription.max_notifications and progress.notified >= subscription.max_notifications:
            reason = EndReason.COUNT_REACHED
        elif now_s >= subscription.expires_s:
            reason = EndReason.EXPIRED
        else:
            return progress
    owed += writer.owe_end(subscription.id, subscription.client_id, subscription.contract, reason)
    return _replace(progress, held=(), end_reason=reason)


def failure(
    subscription: LiveSubscription, address: TerminalAddress | None, error: TerminalStatusError, writer: OwedWriter
) -> OwedNotification:
    """The notification that reports the failure of a terminal, or without an address of the subscription."""
    return writer.owe(
        subscription.id,
        subscription.client_id,
        subscription.contract,
        NotificationKind.ERROR,
        address=address,
        code=error.code,
        text=str(error),
    )
