"""What follows of one attempt to deliver a notification: when it is tried again, and what is put on the bill.

Invariants: pure; time and jitter are arguments. Waits grow up to a bound, a notification is settled after about
`RetryPolicy.give_up_s`, and an endpoint's own wish to wait (Retry-After) is honoured up to a bound.

Deliberately absent: sending, and the order of notifications (`deliverer.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.domain.errors import SinkUnreachable
from app.domain.records import (
    MAX_USAGE_TARGETS,
    DeliveryState,
    NotificationKind,
    OwedNotification,
    Subscription,
    UsageRecord,
)
from app.domain.sinks import EndReason
from app.ports import Sent

_USAGE_NAMES = {
    NotificationKind.STATUS: "statusNotification",
    NotificationKind.ERROR: "statusError",
    NotificationKind.ENDED: "statusEnd",
}
_STATUS_CHANGED = "statusChanged"
UNTRIED = {"listed", "gone", "token-expired", "not-told", "no-sender", "secret-unreadable"}
"""Outcomes for which nothing was sent: not billed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed notification is tried again. Seconds."""

    first_s: float = 2.0
    factor: float = 2.0
    most_s: float = 1800.0
    """Longest time between two attempts, but for Retry-After; also the time between probes of a suspended endpoint."""
    retry_after_most_s: float = 6 * 3600.0
    """Longest Retry-After that is honoured."""
    give_up_s: float = 3 * 24 * 3600.0
    """Age at which a notification is dead; one older than that is tried once."""
    suspend_after: int = 10
    """Failed attempts of one notification, about half an hour, after which the subscription counts as suspended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows of an attempt."""

    state: DeliveryState
    next_attempt_at: datetime | None = None
    suspended_at: datetime | None = None
    ends: EndReason | None = None


def judge(
    notification: OwedNotification,
    subscription: Subscription,
    sent: Sent,
    now: datetime,
    *,
    jitter: float,
    policy: RetryPolicy,
) -> Verdict:
    """What follows of the attempt that just ended. `jitter` is in [0, 1): waits are that much between 3/4 and 5/4."""
    if sent.delivered:
        return Verdict(state=DeliveryState.DELIVERED)
    ends = sent.ends or (EndReason.SINK_GONE if sent.gone else None)
    if ends is not None:
        return Verdict(state=DeliveryState.DEAD, suspended_at=subscription.suspended_at, ends=ends)
    failed = notification.attempts + 1
    suspended_at = subscription.suspended_at or (now if failed >= policy.suspend_after else None)
    give_up_at = notification.created_at + timedelta(seconds=policy.give_up_s)
    if now >= give_up_at:
        return Verdict(state=DeliveryState.DEAD, suspended_at=suspended_at)
    wait_s = policy.most_s
    if suspended_at is None:
        wait_s = min(policy.most_s, policy.first_s * policy.factor ** min(failed - 1, 64))
    wait_s = max(wait_s * (0.75 + jitter / 2), min(sent.retry_after_s or 0.0, policy.retry_after_most_s))
    return Verdict(
        state=DeliveryState.PENDING,
        next_attempt_at=min(now + timedelta(seconds=wait_s), give_up_at),
        suspended_at=suspended_at,
    )


def usage_of(
    notification: OwedNotification,
    subscription: Subscription,
    state: DeliveryState,
    outcome: str,
    now: datetime,
    new_id: str,
) -> list[UsageRecord]:
    """The attempt's usage records: `…_DeliveryAttempted` with the first attempt of a message, `…_DeliveryResult` when
    it is settled, each once for the message and, of a status notification, once for each change in it.

    Their ids begin with `new_id`.
    """
    name = _USAGE_NAMES.get(notification.kind)
    if name is None or outcome in UNTRIED:
        return []
    addresses = [status.address for status in notification.changes]
    if notification.address is not None:
        addresses.append(notification.address)
    acts: list[tuple[str, Sequence[str]]] = [(name, addresses)]
    acts += [(_STATUS_CHANGED, (status.address,)) for status in notification.changes]
    endings = [("_DeliveryAttempted", True)] if notification.attempts == 0 else []
    if state is not DeliveryState.PENDING:
        endings.append(("_DeliveryResult", state is DeliveryState.DELIVERED))
    return [
        UsageRecord(
            id=f"{new_id}-{number}",
            at=now,
            operation=act + ending,
            client_id=notification.client_id,
            face="gateway",
            targets=tuple(targets[:MAX_USAGE_TARGETS]),
            target_count=len(targets),
            expanded_count=len(targets),
            correlator=subscription.correlator,
            subscription_id=subscription.id,
            result="OK" if good else SinkUnreachable.code,
            root_cause="" if good else outcome,
        )
        for number, (ending, good, act, targets) in enumerate(
            (ending, good, act, targets) for ending, good in endings for act, targets in acts
        )
    ]
