"""Tests of `app/domain/policy.py`: limits of operator and client, and rates."""

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.auth.policies import MAX_BUCKETS, Bucket, Policies, take
from app.domain.errors import IntervalTooShort, InvalidRequest, RateLimited
from app.domain.policy import Policy, check_limits, duration_allowed, effective, interval_allowed, visible_status
from app.domain.records import Client
from app.domain.statuses import Status
from tests.support.core import APP, BEGAN, BUSY, OTHER, REACHABLE, UNREACHABLE


def client(**limits: int | bool) -> Client:
    return Client(id="c", name="C", created_at=BEGAN, limits=limits)


@pytest.mark.parametrize(
    ("name", "common", "own", "expected"),
    [
        ("max_targets", 100, 10, 10),
        ("max_targets", 10, 100, 10),
        ("min_interval_ms", 100, 1000, 1000),
        ("min_interval_ms", 1000, 0, 1000),
        ("max_duration_ms", 0, 1000, 1000),
        ("max_duration_ms", 1000, 0, 1000),
        ("max_duration_ms", 1000, 2000, 1000),
        ("max_count", 0, 0, 0),
        ("rate_per_s", 0, 5, 5),
        ("rate_per_s", 5, 50, 5),
        ("busy_available", True, False, False),
        ("busy_available", False, True, False),
        ("nested_group_support", True, True, True),
        ("process_up_to_limit", False, True, False),
    ],
)
def test_client_can_only_be_stricter(name: str, common: Any, own: Any, expected: Any) -> None:
    """The stricter of the operator's and the client's value holds; 0 means unlimited where the policy says so."""
    operator = Policy(**{name: common})
    assert getattr(effective(operator, client(**{name: own})), name) == expected


@pytest.mark.parametrize(
    ("rate", "burst", "own", "expected"),
    [
        (10, 0, {"rate_burst": 1000}, 10),  # one second's worth is stricter
        (10, 5, {"rate_burst": 0}, 5),
        (10, 100, {"rate_burst": 0}, 10),
        (10, 100, {"rate_burst": 50}, 50),
        (10, 100, {"rate_per_s": 5}, 100),
        (10, 0, {"rate_per_s": 5}, 5),
        (10, 0, {"rate_per_s": 5, "rate_burst": 7}, 5),
        (0, 0, {"rate_per_s": 5, "rate_burst": 7}, 7),
        (0, 3, {"rate_per_s": 5, "rate_burst": 7}, 3),
        (0, 0, {"rate_per_s": 5}, 5),
        (10, 0, {"max_targets": 1}, 10),
    ],
)
def test_clients_burst_can_only_be_stricter(rate: int, burst: int, own: dict[str, int], expected: int) -> None:
    """A burst of 0 means one second's worth of calls, for operator and client; a client cannot exceed the operator's
    burst by it."""
    policies = Policies(Policy(rate_per_s=rate, rate_burst=burst), lambda: 0.0)
    for _ in range(expected):
        policies.admit(client(**own))
    with pytest.raises(RateLimited):
        policies.admit(client(**own))


def test_client_without_limits_has_the_operators_policy() -> None:
    """A client without limits has the operator's policy object itself; unknown limits are ignored."""
    operator = Policy(max_targets=5)
    assert effective(operator, APP) is operator
    assert effective(operator, client(left_from_an_old_version=1)) == operator


@pytest.mark.parametrize(
    "limits",
    [{"max_terminals": 1}, {"max_targets": -1}, {"max_targets": True}, {"busy_available": 1}, {"rate_per_s": 1 << 60}],
)
def test_limits_that_are_none_are_refused(limits: dict[str, Any]) -> None:
    """A client's limits are named after policies; values are whole numbers from 0, or true and false."""
    with pytest.raises(InvalidRequest):
        check_limits(limits)


def test_every_policy_can_be_a_limit() -> None:
    """Each policy's default is a valid limit."""
    check_limits({field.name: field.default for field in fields(Policy)})


def test_interval_and_duration_fall_back_to_the_policy() -> None:
    """A request without interval or duration gets the policy's; it lasts for ever only where the policy allows that."""
    policy = Policy(min_interval_ms=5, default_duration_ms=100, max_duration_ms=50)
    assert (interval_allowed(policy, 0), interval_allowed(policy, 7)) == (5, 7)
    assert (interval_allowed(policy, 5, named=True), interval_allowed(Policy(), 0, named=True)) == (5, 0)
    with pytest.raises(IntervalTooShort):
        interval_allowed(policy, 0, named=True)
    assert (duration_allowed(policy, None), duration_allowed(policy, 0), duration_allowed(policy, 50)) == (50, 50, 50)
    assert duration_allowed(Policy(default_duration_ms=0), None) is None


def test_busy_is_seen_as_reachable_where_the_policy_hides_it() -> None:
    """Only BUSY is shown as another status, and only where the policy does not report BUSY."""
    assert [visible_status(False, status) for status in Status] == [REACHABLE, UNREACHABLE, REACHABLE]
    assert visible_status(True, BUSY) is BUSY


@given(
    rate=st.integers(1, 50),
    burst=st.integers(0, 50),
    calls=st.lists(st.tuples(st.floats(-1, 3, allow_nan=False), st.integers(1, 1000)), min_size=1, max_size=200),
)
def test_no_more_calls_than_burst_and_rate_allow(rate: int, burst: int, calls: list[tuple[float, int]]) -> None:
    """In any time at most the burst and the rate's worth of calls passes. Only the last query may exceed this; later
    calls wait for its debt. A caller that waits as long as it was asked to passes. Clocks may go back."""
    bucket: Bucket | None = None
    now_s = elapsed_s = 0.0
    taken = last = 0
    for gap, worth in calls:
        now_s += gap
        elapsed_s += max(0.0, gap)
        bucket, wait_s = take(bucket, rate, burst, now_s, worth)
        if wait_s:
            _, then_s = take(bucket, rate, burst, now_s + wait_s + 1e-6)
            assert then_s == 0
        else:
            taken, last = taken + worth, worth
        assert taken - last + 1 <= (burst or rate) + rate * elapsed_s + 1e-6


def test_rate_is_each_clients_own() -> None:
    """A client above its rate is refused with the time to wait; the others are not affected."""
    now_s = [0.0]
    policies = Policies(Policy(rate_per_s=2), lambda: now_s[0])
    for _ in range(2):
        policies.admit(APP)
    with pytest.raises(RateLimited) as refused:
        policies.admit(APP)
    assert refused.value.retry_after_s == pytest.approx(0.5)
    policies.admit(client())
    now_s[0] = 0.5
    policies.admit(APP)


def test_a_query_counts_as_many_calls_as_it_is_worth() -> None:
    """A query above the burst uses what is left and owes the rest; its count is corrected when its size is known."""
    now_s = [0.0]
    policies = Policies(Policy(rate_per_s=10, rate_burst=20), lambda: now_s[0])
    policies.admit(APP, 1000)
    with pytest.raises(RateLimited) as refused:
        policies.admit(APP)
    assert refused.value.retry_after_s == pytest.approx(98.1)
    policies.charge(APP, 500 - 1000)
    policies.charge(OTHER, 500)  # an unknown client, which owes nothing
    with pytest.raises(RateLimited) as refused:
        policies.admit(APP)
    assert refused.value.retry_after_s == pytest.approx(48.1)
    policies.admit(OTHER)
    now_s[0] = 48.2
    policies.admit(APP)


def test_rates_of_many_clients_are_bounded() -> None:
    """At most MAX_BUCKETS clients are remembered; those that have been idle the longest are forgotten."""
    policies = Policies(Policy(rate_per_s=1), lambda: 0.0)
    for number in range(MAX_BUCKETS + 10):
        policies.admit(Client(id=str(number), name="", created_at=BEGAN))
    assert len(policies._buckets) == MAX_BUCKETS  # noqa: SLF001
    assert "0" not in policies._buckets  # noqa: SLF001
