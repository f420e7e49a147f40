"""The rules of deliveries: waits between attempts, suspension, usage records, and how many attempts a host may have."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.delivery.hosts import Host, Places
from app.delivery.retry import judge, usage_of_claim, usage_of_result
from app.domain.operations import Face
from app.domain.records import DeliveryState, NotificationKind, OwedNotification, UsageRecord
from app.domain.sinks import PROFILE_CAMARA, EndReason, SinkKind
from app.ports.delivery import Sent
from app.ports.store import Recipient
from tests.support.deliveries import DELIVERED, FAILED, GONE, OLD, POLICY, SUBSCRIPTION
from tests.support.outbox import ALICE, BOB, NOW, OWNER, change, make_owed


def judged(sent: Sent, *, attempts: int = 0, age: timedelta = timedelta(), jitter: float = 0.5, **fields: Any) -> Any:
    """The verdict on an attempt of a notification of this age."""
    notification = make_owed(SUBSCRIPTION, at=NOW - age, attempts=attempts)
    return judge(notification, replace(SUBSCRIPTION, **fields), sent, NOW, jitter=jitter, policy=POLICY)


def test_waits_grow_and_end_after_three_days() -> None:
    """Waits grow from seconds to half an hour; the last attempt is after exactly three days, then the notification is
    dead."""
    notification, now, waits = make_owed(SUBSCRIPTION), NOW, []
    subscription = SUBSCRIPTION
    while True:
        verdict = judge(notification, subscription, FAILED, now, jitter=0.5, policy=POLICY)
        if verdict.next_attempt_at is None:
            break
        waits.append((verdict.next_attempt_at - now).total_seconds())
        now = verdict.next_attempt_at
        notification = replace(notification, attempts=notification.attempts + 1)
        subscription = replace(subscription, suspended_at=verdict.suspended_at)
    assert verdict.state is DeliveryState.DEAD
    assert waits[:5] == [2, 4, 8, 16, 32]
    assert max(waits) == POLICY.most_s
    assert now == NOW + timedelta(days=3)
    assert 100 < len(waits) < 200


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 10_000))
def test_jitter_spreads_waits_by_a_quarter(jitter: float, attempts: int) -> None:
    """Jitter changes a wait by at most a quarter up or down, whatever the number of attempts."""
    plain = (judged(FAILED, attempts=attempts).next_attempt_at - NOW).total_seconds()
    wait = (judged(FAILED, attempts=attempts, jitter=jitter).next_attempt_at - NOW).total_seconds()
    assert 0.74 * plain <= wait <= 1.26 * plain
    assert wait <= 1.26 * POLICY.most_s


@pytest.mark.parametrize(("said_s", "wait_s"), [(None, 2), (0, 2), (1, 2), (60, 60), (10**9, 6 * 3600)])
def test_retry_after_is_honoured_and_bounded(said_s: float | None, wait_s: float) -> None:
    """An endpoint may ask for a longer wait, up to six hours, but not for a shorter one."""
    verdict = judged(replace(FAILED, code=429, retry_after_s=said_s))
    assert verdict.next_attempt_at == NOW + timedelta(seconds=wait_s)


def test_a_last_attempt_stands_at_the_end() -> None:
    """No wait goes beyond the age limit of a notification; a failed attempt at that age is the last one."""
    verdict = judged(FAILED, attempts=5, age=timedelta(days=3, seconds=-1))
    assert verdict.next_attempt_at == NOW + timedelta(seconds=1)
    assert judged(FAILED, attempts=0, age=timedelta(days=3)).state is DeliveryState.DEAD


def test_410_and_an_expired_token_end_the_subscription() -> None:
    """The notification is dead at once, and the subscription ends with the reason."""
    assert (judged(GONE).state, judged(GONE).ends) == (DeliveryState.DEAD, EndReason.SINK_GONE)
    expired = judged(Sent(delivered=False, outcome="token-expired", ends=EndReason.TOKEN_EXPIRED))
    assert (expired.state, expired.ends) == (DeliveryState.DEAD, EndReason.TOKEN_EXPIRED)


def test_suspension() -> None:
    """Ten failures in a row suspend the subscription. It keeps the time of its suspension, is tried at the longest
    wait, and the first success ends the suspension."""
    assert judged(FAILED, attempts=8).suspended_at is None
    assert judged(FAILED, attempts=9).suspended_at == NOW
    later = judged(FAILED, attempts=0, suspended_at=OLD)
    assert later.suspended_at == OLD
    assert later.next_attempt_at == NOW + timedelta(seconds=POLICY.most_s)
    assert judged(DELIVERED, attempts=50, suspended_at=OLD).suspended_at is None
    assert judged(GONE, suspended_at=OLD).suspended_at == OLD


def in_short(records: Sequence[UsageRecord]) -> list[tuple[str, str, str]]:
    """Operation, result and targets of usage records."""
    assert len({record.id for record in records}) == len(records)
    assert {(r.client_id, r.face, r.correlator, r.subscription_id) for r in records} <= {
        (OWNER.id, Face.GATEWAY, SUBSCRIPTION.correlator, SUBSCRIPTION.id)
    }
    return [(record.operation.value, record.result, " ".join(record.targets)) for record in records]


def of_claim(notification: OwedNotification, **to: Any) -> list[tuple[str, str, str]]:
    recipient = Recipient(
        **{
            "kind": SUBSCRIPTION.sink.kind,
            "profile": SUBSCRIPTION.sink.profile,
            "correlator": SUBSCRIPTION.correlator,
            "x_correlator": "x-1",
            "end_reason": None,
            "readable": True,
            **to,
        }
    )
    first, again = (usage_of_claim(notification, recipient, now=NOW, kinds=[SinkKind.WEBHOOK]) for _ in range(2))
    assert first == again, "the same ids at each claim"
    assert all(record.x_correlator == "x-1" for record in first)
    return in_short(first)


def of_result(notification: OwedNotification, state: DeliveryState, outcome: str) -> list[tuple[str, str, str]]:
    return in_short(usage_of_result(notification, SUBSCRIPTION, state, outcome, NOW, "id"))


def test_usage_of_a_status_notification() -> None:
    """The attempt is recorded at the first claim, the result when the notification is settled; each once for the
    message and once for each change in it."""
    two = make_owed(SUBSCRIPTION, changes=[change(), change(BOB)])
    attempted = [
        ("statusNotification_DeliveryAttempted", "OK", f"{ALICE} {BOB}"),
        ("statusChanged_DeliveryAttempted", "OK", ALICE),
        ("statusChanged_DeliveryAttempted", "OK", BOB),
    ]
    result = [(name.replace("Attempted", "Result"), ok, targets) for name, ok, targets in attempted]
    assert of_claim(two) == attempted
    assert of_claim(replace(two, attempts=1)) == []
    assert of_result(two, DeliveryState.PENDING, "http-500") == []
    assert of_result(two, DeliveryState.DELIVERED, "delivered") == result
    assert of_result(two, DeliveryState.DEAD, "http-500") == [
        (name, "SINK_UNREACHABLE", targets) for name, _, targets in result
    ]


def test_usage_of_other_notifications() -> None:
    """Errors and ends have their own operation names. Notifications that the contract does not name, or that are not
    sent, are not billed."""
    error = make_owed(SUBSCRIPTION, kind=NotificationKind.ERROR, address=BOB)
    assert of_claim(error) == [("statusError_DeliveryAttempted", "OK", BOB)]
    assert of_result(error, DeliveryState.DELIVERED, "delivered") == [("statusError_DeliveryResult", "OK", BOB)]
    end = make_owed(SUBSCRIPTION, kind=NotificationKind.ENDED)
    assert [name for name, _, _ in of_claim(end)] == ["statusEnd_DeliveryAttempted"]
    assert [name for name, _, _ in of_result(end, DeliveryState.DELIVERED, "delivered")] == ["statusEnd_DeliveryResult"]
    for kind in (NotificationKind.STARTED, NotificationKind.TEST):
        assert of_claim(make_owed(SUBSCRIPTION, kind=kind)) == []
        assert of_result(make_owed(SUBSCRIPTION, kind=kind), DeliveryState.DELIVERED, "delivered") == []
    for outcome in ("gone", "listed", "not-sent", "no-sender", "secret-unreadable"):
        assert of_result(end, DeliveryState.DEAD, outcome) == []
    assert of_result(end, DeliveryState.DEAD, "token-expired") == [("statusEnd_DeliveryResult", "SINK_UNREACHABLE", "")]
    assert of_claim(end, kind=SinkKind.STREAM) == of_claim(end, readable=False) == []
    assert of_claim(end, end_reason=EndReason.SINK_GONE) == of_claim(error, profile=PROFILE_CAMARA) == []


def test_a_hosts_places() -> None:
    """A host has few places until it answers, then all, and one while it is silent; further attempts wait
    accordingly."""
    places, host = Places(), Host(known_since_s=0)
    assert host.share(places) == places.unproven_host
    for _ in range(50):
        host.ended(0.001, answered=True)
    assert host.share(places) == places.per_host
    assert host.put_off_s(places, 0) < 1
    for _ in range(5):
        host.ended(10, answered=False)
    assert host.share(places) == 1
    assert host.put_off_s(places, 0) > 1
    host.ended(0.001, answered=True)
    assert host.share(places) == places.per_host
    host.in_flight = 5
    for _ in range(5):
        host.interrupted()
    assert (host.share(places), host.in_flight) == (places.per_host, 0), "a pause of ours is no silence of a host"
