"""What an application may ask for: the policies of Parlay X (3GPP TS 29.199-8, by IBM's names), and rate limits.

Invariants: an operator's policy holds for everybody; a client's own limits can only make it stricter. A limit of 0 is
none, where the field says so. Each violation is a domain error of its own. The rules are pure: time is an argument.

Deliberately absent: the settings they are read from, what counts as busy (`presence.py`), and groups (`groups.py`).
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, fields
from typing import Any

from app.domain import (
    BusyNotSupported,
    CountTooLarge,
    DurationTooLong,
    IntervalTooShort,
    InvalidRequest,
    RateLimited,
    Status,
    TerminalStatus,
    UnlimitedCountNotAllowed,
)
from app.records import Client

MAX_INTERVAL_MS = 366 * 86_400_000
"""Longest interval between notifications and longest duration that can be asked for, in milliseconds."""

MAX_BUCKETS = 10_000
"""Clients whose rate is remembered; above it those that rested longest are forgotten, being full again or nearly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The limits of one client, or of all. Where 0 means no limit, it is said."""

    busy_available: bool = True
    """BusyAvailable: whether BUSY is told at all. Where not, a busy terminal is REACHABLE."""
    max_notification_addresses: int = 1000
    """MaximumNotificationAddresses: terminals of one subscription or stream, groups expanded."""
    min_interval_ms: int = 0
    """MaximumNotificationFrequency: least time between two notifications that may be asked for."""
    max_duration_ms: int = 0
    """MaximumNotificationDuration of a subscription; 0 is no limit."""
    default_duration_ms: int = 86_400_000
    """Default Notification Duration, where a subscription names none; 0 is the longest allowed."""
    max_count: int = 0
    """MaximumCount: notifications that may be asked for; 0 is no limit."""
    unlimited_count_allowed: bool = True
    """UnlimitedCountAllowed: whether a subscription may go without a count."""
    group_support: bool = True
    """GroupSupport: whether groups may be made and asked for."""
    nested_group_support: bool = True
    """NestedGroupSupport: whether groups may be members of groups."""
    max_targets: int = 1000
    """MaximumTargets: terminals of one group query, groups expanded."""
    process_up_to_limit: bool = False
    """ProcessUpToLimit: whether a group query above `max_targets` is answered up to it (else it is refused)."""
    max_group_size: int = 1000
    """MaxGroupSize: members of one group."""
    max_groups: int = 10_000
    """Groups of one client."""
    max_subscriptions: int = 100_000
    """Active subscriptions of one client."""
    max_streams: int = 2_500
    """Open streams of one client."""
    max_watched_terminals: int = 50_000
    """Terminals watched for one client's subscriptions and streams, each once."""
    rate_per_s: int = 0
    """Calls per second, in the long run; a query of many counts each terminal. 0 is no limit."""
    rate_burst: int = 0
    """Calls at once after a rest; 0 is one second's worth."""


_HIGHER_IS_STRICTER = frozenset({"min_interval_ms"})
_ZERO_IS_NO_LIMIT = frozenset({"max_duration_ms", "default_duration_ms", "max_count", "rate_per_s"})
_FIELDS: Mapping[str, type] = {field.name: type(field.default) for field in fields(Policy)}


def check_limits(limits: Mapping[str, object]) -> None:
    """Raises InvalidRequest for a limit of a client that is no policy, or whose value cannot be one."""
    for name, value in limits.items():
        kind = _FIELDS.get(name)
        if kind is None:
            raise InvalidRequest(f"{name[:40]!r} is no policy; there are {', '.join(_FIELDS)}.", field="limits")
        if type(value) is not kind or (kind is int and not 0 <= value < 1 << 53):  # type: ignore[operator]
            wanted = "true or false" if kind is bool else "a whole number from 0"
            raise InvalidRequest(f"The limit {name} must be {wanted}.", field="limits")


def effective(operator: Policy, client: Client) -> Policy:
    """The policy that holds for the client: of the operator's and its own, the stricter in each point."""
    if not client.limits:
        return operator
    values: dict[str, Any] = {name: getattr(operator, name) for name in _FIELDS}
    for name, own in client.limits.items():
        if name in values:
            values[name] = _stricter(name, values[name], own)
    values["rate_burst"] = _burst(operator, client.limits, values["rate_per_s"])
    return Policy(**values)


def _burst(operator: Policy, own: Mapping[str, int | bool], rate_per_s: int) -> int:
    """The stricter of both bursts: where a rate has 0, it is one second's worth, and that a limit too."""
    bursts = [operator.rate_burst or (rate_per_s if operator.rate_per_s else 0)]
    if "rate_burst" in own:
        bursts.append(int(own["rate_burst"]) or rate_per_s)
    return min(filter(None, bursts), default=0)


def _stricter(name: str, common: int | bool, own: int | bool) -> int | bool:
    if _FIELDS[name] is bool:
        return bool(common and own)
    if name in _HIGHER_IS_STRICTER:
        return max(common, own)
    if name in _ZERO_IS_NO_LIMIT and (not common or not own):
        return common or own
    return min(common, own)


def check_criteria(policy: Policy, criteria: Set[Status]) -> None:
    """Raises BusyNotSupported (POL0200)."""
    if Status.BUSY in criteria and not policy.busy_available:
        raise BusyNotSupported("BUSY is not told here; leave it out of the criteria.", field="criteria")


def interval_allowed(policy: Policy, min_interval_ms: int, *, named: bool = False) -> int:
    """The least time between notifications for a request of `min_interval_ms`, in milliseconds; 0 is the policy's, but
    where it is `named`, which asks for no interval at all.

    Raises IntervalTooShort (POL0009), InvalidRequest.
    """
    if not 0 <= min_interval_ms <= MAX_INTERVAL_MS:
        raise InvalidRequest(f"The interval must be 0 to {MAX_INTERVAL_MS} ms.", field="min_interval")
    if (named or min_interval_ms) and min_interval_ms < policy.min_interval_ms:
        raise IntervalTooShort(
            f"Notifications may be no closer together than {policy.min_interval_ms} ms.",
            field="min_interval",
            least=str(policy.min_interval_ms),
        )
    return min_interval_ms or policy.min_interval_ms


def check_count(policy: Policy, count: int) -> None:
    """Raises UnlimitedCountNotAllowed (POL0004), CountTooLarge (POL0005), InvalidRequest."""
    if not 0 <= count < 1 << 31:
        raise InvalidRequest("The count must be 0 (unlimited) or more.", field="max_notifications")
    if not count and not policy.unlimited_count_allowed:
        raise UnlimitedCountNotAllowed("A subscription must name a count of notifications.", field="max_notifications")
    if policy.max_count and count > policy.max_count:
        raise CountTooLarge(f"At most {policy.max_count} notifications may be asked for.", field="max_notifications")


def duration_allowed(policy: Policy, duration_ms: int | None) -> int | None:
    """The duration of a subscription that asks for `duration_ms` (None or 0: names none), in milliseconds.

    None is for ever. Raises DurationTooLong, InvalidRequest.
    """
    if not duration_ms:
        shorter = min(policy.default_duration_ms or MAX_INTERVAL_MS, policy.max_duration_ms or MAX_INTERVAL_MS)
        return shorter if policy.default_duration_ms or policy.max_duration_ms else None
    if not 0 < duration_ms <= MAX_INTERVAL_MS:
        raise InvalidRequest(f"The duration must be 1 to {MAX_INTERVAL_MS} ms.", field="duration")
    if policy.max_duration_ms and duration_ms > policy.max_duration_ms:
        raise DurationTooLong(
            f"A subscription may last {policy.max_duration_ms} ms at most.",
            field="duration",
            most=str(policy.max_duration_ms),
        )
    return duration_ms


def told_status(policy_tells_busy: bool, status: Status) -> Status:
    """The status as a client may see it."""
    return Status.REACHABLE if status is Status.BUSY and not policy_tells_busy else status


def shown_as(status: TerminalStatus, shown: Status) -> TerminalStatus:
    """What was observed, with the status that a client may see (`told_status`)."""
    if status.status is shown:
        return status
    return TerminalStatus(
        address=status.address,
        status=shown,
        observed_at=status.observed_at,
        source=status.source,
        revision=status.revision,
    )


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: how many calls were left, and when. Less than none is what a large query owes."""

    left: float
    at_s: float


def take(bucket: Bucket | None, rate_per_s: int, burst: int, now_s: float, calls: int = 1) -> tuple[Bucket, float]:
    """Takes calls out of the bucket (None: untouched, so full). Returns what it is then, and 0, or the seconds to wait
    until a call is left. Where one is left, all are taken, and the bucket owes what it did not have: a query larger
    than the burst passes too, and the next call waits for that. A clock that goes back gives and takes nothing."""
    most = burst or rate_per_s
    left = float(most) if bucket is None else min(most, bucket.left + max(0.0, now_s - bucket.at_s) * rate_per_s)
    if left < 1:
        return Bucket(left, now_s), (1 - left) / rate_per_s
    return Bucket(left - calls, now_s), 0.0


class Policies:
    """The operator's policy and what each client has used up of its rate. One per process."""

    def __init__(self, operator: Policy, clock_s: Callable[[], float]) -> None:
        """`clock_s` is monotonic, in seconds."""
        self.operator = operator
        self._clock_s = clock_s
        self._buckets: dict[str, Bucket] = {}  # in the order of their last call

    def of(self, client: Client) -> Policy:
        """The policy that holds for the client."""
        return effective(self.operator, client)

    def of_id(self, client_id: str, clients: Mapping[str, Client]) -> Policy:
        """As `of`, for the one of these clients; the operator's for another."""
        client = clients.get(client_id)
        return self.operator if client is None else self.of(client)

    def admit(self, client: Client, calls: int = 1) -> Policy:
        """Counts a call of the client, or a query that is worth several; returns its policy. Raises RateLimited."""
        policy = effective(self.operator, client)
        if policy.rate_per_s:
            bucket, wait_s = take(
                self._buckets.pop(client.id, None), policy.rate_per_s, policy.rate_burst, self._clock_s(), calls
            )
            self._buckets[client.id] = bucket
            if len(self._buckets) > MAX_BUCKETS:
                del self._buckets[next(iter(self._buckets))]
            if wait_s:
                raise RateLimited(
                    f"More than {policy.rate_per_s} calls per second (a query counts each terminal); wait.",
                    retry_after_s=wait_s,
                )
        return policy

    def charge(self, client: Client, calls: int) -> None:
        """Counts so many more calls (less than none: fewer) for one that was admitted, once its worth is known."""
        if (bucket := self._buckets.get(client.id)) is not None:
            self._buckets[client.id] = Bucket(bucket.left - calls, bucket.at_s)
