"""What follows from a delivery attempt: when the notification is sent again (`judge`), and the usage records of
claim and result.

Invariants: pure; time and jitter are arguments. Waits grow up to `RetryPolicy.most_s`; a notification is settled after
about `RetryPolicy.give_up_s`; a sink's Retry-After is honoured up to `RetryPolicy.retry_after_most_s`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.domain.errors import SinkUnreachable
from app.domain.operations import Face, UsageOperation
from app.domain.outcomes import DeliveryOutcome
from app.domain.records import (
    MAX_USAGE_TARGETS,
    DeliveryState,
    NotificationKind,
    OwedNotification,
    Subscription,
    UsageRecord,
)
from app.domain.sinks import PROFILE_CAMARA, EndReason, SinkKind
from app.ports.delivery import Sent
from app.ports.store import Recipient

_Operations = tuple[UsageOperation, UsageOperation]
"""The operations of a first attempt, and of the result."""

_OPERATIONS: Mapping[NotificationKind, _Operations] = {
    NotificationKind.STATUS: (
        UsageOperation.STATUS_NOTIFICATION_DELIVERY_ATTEMPTED,
        UsageOperation.STATUS_NOTIFICATION_DELIVERY_RESULT,
    ),
    NotificationKind.ERROR: (
        UsageOperation.STATUS_ERROR_DELIVERY_ATTEMPTED,
        UsageOperation.STATUS_ERROR_DELIVERY_RESULT,
    ),
    NotificationKind.ENDED: (UsageOperation.STATUS_END_DELIVERY_ATTEMPTED, UsageOperation.STATUS_END_DELIVERY_RESULT),
}
ENDPOINT_GIVEN_UP = frozenset({EndReason.SINK_GONE, EndReason.TOKEN_EXPIRED})
"""Ends of subscriptions after which their sink gets no notification that was not tried before."""

_STATUS_CHANGED = (
    UsageOperation.STATUS_CHANGED_DELIVERY_ATTEMPTED,
    UsageOperation.STATUS_CHANGED_DELIVERY_RESULT,
)
_UNBILLED = frozenset(
    {
        DeliveryOutcome.LISTED,
        DeliveryOutcome.SUBSCRIPTION_ENDED,
        DeliveryOutcome.NO_SENDER,
        DeliveryOutcome.NOT_SENT,
        DeliveryOutcome.SECRET_UNREADABLE,
    }
)
"""Outcomes without usage records: they are known at the claim."""

UNTRIED = _UNBILLED | {DeliveryOutcome.TOKEN_EXPIRED}
"""Outcomes of attempts that sent nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed notification is sent again, in seconds."""

    first_s: float = 2.0
    factor: float = 2.0
    most_s: float = 1800.0
    """Longest wait between two attempts, except for Retry-After. A suspended subscription always waits this long."""
    retry_after_most_s: float = 6 * 3600.0
    """A longer Retry-After is cut to this."""
    give_up_s: float = 3 * 24 * 3600.0
    """Age at which delivery is given up. An older notification gets one attempt."""
    suspend_after: int = 10
    """The subscription is suspended after this number of failed attempts of one notification, about half an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from an attempt. `ends`: the reason if the subscription ends because of the attempt."""

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
    """What follows from the attempt that just ended. `jitter` in [0, 1) stretches the wait by 3/4 to 5/4."""
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


def usage_of_claim(
    notification: OwedNotification, to: Recipient, *, now: datetime, kinds: Collection[SinkKind]
) -> list[UsageRecord]:
    """The `…_DeliveryAttempted` records of a notification that is claimed for its first attempt: one for the
    notification, and one for each changed status in it. None if nothing will be sent: to a kind of sink that has no
    sender (`kinds` have one), to one that is given up or whose secrets cannot be read, and an error in CAMARA's format,
    which has no event for it.

    They are written in the transaction of the claim, so that an attempt that is cut off can be seen. Their ids are the
    same at each claim.
    """
    if notification.attempts or to.kind not in kinds or not to.readable or to.end_reason in ENDPOINT_GIVEN_UP:
        return []
    if to.profile == PROFILE_CAMARA and notification.kind is NotificationKind.ERROR:
        return []
    return _usage(notification, 0, to, now, new_id=notification.id, result="OK", root_cause="")


def usage_of_result(
    notification: OwedNotification,
    subscription: Subscription,
    state: DeliveryState,
    cause: str,
    now: datetime,
    new_id: str,
) -> list[UsageRecord]:
    """The `…_DeliveryResult` records of an attempt that settles its notification: one for the notification, and one for
    each changed status in it. Their ids begin with `new_id`. `cause` is the attempt's `Sent.outcome`."""
    outcome = DeliveryOutcome(cause)
    if state is DeliveryState.PENDING or outcome in _UNBILLED:
        return []
    result, root_cause = ("OK", "") if state is DeliveryState.DELIVERED else (SinkUnreachable.code, cause)
    return _usage(notification, 1, subscription, now, new_id=new_id, result=result, root_cause=root_cause)


def _usage(
    notification: OwedNotification,
    ending: int,
    to: Recipient | Subscription,
    now: datetime,
    *,
    new_id: str,
    result: str,
    root_cause: str,
) -> list[UsageRecord]:
    operations = _OPERATIONS.get(notification.kind)
    if operations is None:
        return []
    addresses = [status.address for status in notification.changes]
    if notification.address is not None:
        addresses.append(notification.address)
    acts: list[tuple[_Operations, Sequence[str]]] = [(operations, addresses)]
    acts += [(_STATUS_CHANGED, (status.address,)) for status in notification.changes]
    return [
        UsageRecord(
            id=f"{new_id}-{number}",
            at=now,
            operation=act[ending],
            client_id=notification.client_id,
            face=Face.GATEWAY,
            targets=tuple(targets[:MAX_USAGE_TARGETS]),
            target_count=len(targets),
            expanded_count=len(targets),
            correlator=to.correlator,
            subscription_id=notification.subscription_id,
            result=result,
            root_cause=root_cause,
            x_correlator=to.x_correlator,
        )
        for number, (act, targets) in enumerate(acts)
    ]
