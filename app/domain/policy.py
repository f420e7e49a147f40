"""The limits of an application: the policies of Parlay X (3GPP TS 29.199-8, with IBM's names), and rate limits.

Invariants: the operator's policy applies to every client; a client's own limits can only make it stricter. Each
violation has a domain error of its own.

Deliberately absent: which activities count as busy (`presence.py`).
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, fields
from typing import Any

from app.domain.errors import (
    BusyNotSupported,
    CountTooLarge,
    DurationTooLong,
    IntervalTooShort,
    InvalidRequest,
    UnlimitedCountNotAllowed,
)
from app.domain.records import Client
from app.domain.statuses import Status, TerminalStatus

MAX_INTERVAL_MS = 366 * 86_400_000
"""Longest interval and longest duration that a request may contain, in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The limits that apply to one client, or the operator's for all clients."""

    busy_available: bool = True
    """BusyAvailable: whether BUSY is reported. If false, a busy terminal is reported as REACHABLE."""
    max_notification_addresses: int = 1000
    """MaximumNotificationAddresses: terminals of one subscription or stream; members of groups count."""
    min_interval_ms: int = 0
    """MaximumNotificationFrequency: shortest interval between two notifications that a request may contain."""
    max_duration_ms: int = 0
    """MaximumNotificationDuration: longest duration of a subscription; 0: no limit."""
    default_duration_ms: int = 86_400_000
    """Default Notification Duration: the duration of a subscription without a requested one; 0: the longest allowed."""
    max_count: int = 0
    """MaximumCount: notifications that a subscription may request; 0: no limit."""
    unlimited_count_allowed: bool = True
    """UnlimitedCountAllowed: whether a subscription may leave its number of notifications unlimited."""
    group_support: bool = True
    """GroupSupport: whether groups may be created and queried."""
    nested_group_support: bool = True
    """NestedGroupSupport: whether a group may contain groups."""
    max_targets: int = 1000
    """MaximumTargets: terminals of one group query; members of groups count."""
    process_up_to_limit: bool = False
    """ProcessUpToLimit: a group query above `max_targets` is answered for the first `max_targets` terminals, instead of
    being refused."""
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
    """Calls per second on average; a query counts once per terminal. 0: no limit."""
    rate_burst: int = 0
    """Most calls at once after a pause; 0: the calls of one second."""


_HIGHER_IS_STRICTER = frozenset({"min_interval_ms"})
_ZERO_IS_NO_LIMIT = frozenset({"max_duration_ms", "default_duration_ms", "max_count", "rate_per_s"})
_MAX_LIMIT = (1 << 53) - 1
_FIELDS: Mapping[str, type] = {field.name: type(field.default) for field in fields(Policy)}


def check_limits(limits: Mapping[str, object]) -> None:
    """Raises InvalidRequest for an unknown limit, or a value of the wrong type or range."""
    for name, value in limits.items():
        kind = _FIELDS.get(name)
        if kind is None:
            raise InvalidRequest(f"{name[:40]!r} is not a limit; the limits are {', '.join(_FIELDS)}.", field="limits")
        if type(value) is not kind or (kind is int and not 0 <= value <= _MAX_LIMIT):  # type: ignore[operator]
            wanted = "true or false" if kind is bool else f"a whole number from 0 to {_MAX_LIMIT}"
            raise InvalidRequest(f"The limit {name} must be {wanted}.", field=f"limits.{name}")


def effective(operator: Policy, client: Client) -> Policy:
    """The policy that applies to the client: for each limit the stricter of the operator's and the client's."""
    if not client.limits:
        return operator
    values: dict[str, Any] = {name: getattr(operator, name) for name in _FIELDS}
    for name, own in client.limits.items():
        if name in values:
            values[name] = _stricter(name, values[name], own)
    values["rate_burst"] = _burst(operator, client.limits, values["rate_per_s"])
    return Policy(**values)


def _burst(operator: Policy, own: Mapping[str, int | bool], rate_per_s: int) -> int:
    """The stricter of the two bursts. A burst of 0 beside a rate stands for the calls of one second."""
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
        raise BusyNotSupported("This operator does not report BUSY; remove it from the criteria.", field="criteria")


def interval_allowed(policy: Policy, min_interval_ms: int, *, named: bool = False) -> int:
    """The interval that applies to a request of `min_interval_ms`, in milliseconds.

    0 means the policy's interval. If `named`, the caller sent the 0 explicitly, and the policy may refuse it.

    Raises IntervalTooShort (POL0009), InvalidRequest.
    """
    if not 0 <= min_interval_ms <= MAX_INTERVAL_MS:
        raise InvalidRequest(f"The interval must be 0 to {MAX_INTERVAL_MS} ms.", field="min_interval")
    if (named or min_interval_ms) and min_interval_ms < policy.min_interval_ms:
        raise IntervalTooShort(
            f"The interval between notifications must be at least {policy.min_interval_ms} ms.",
            field="min_interval",
            least=str(policy.min_interval_ms),
        )
    return min_interval_ms or policy.min_interval_ms


def check_count(policy: Policy, count: int) -> None:
    """Raises UnlimitedCountNotAllowed (POL0004), CountTooLarge (POL0005), InvalidRequest."""
    if not 0 <= count < 1 << 31:
        raise InvalidRequest(
            "`max_notification_count` must be 0 (unlimited) to 2147483647.", field="max_notification_count"
        )
    if not count and not policy.unlimited_count_allowed:
        raise UnlimitedCountNotAllowed(
            "The subscription must limit its number of notifications; set `max_notification_count`.",
            field="max_notification_count",
        )
    if policy.max_count and count > policy.max_count:
        raise CountTooLarge(
            f"`max_notification_count` must be at most {policy.max_count}.", field="max_notification_count"
        )


def duration_allowed(policy: Policy, duration_ms: int | None) -> int | None:
    """The duration of a subscription, in milliseconds; None: unlimited. `duration_ms` is the requested duration; None
    or 0 requests the policy's default.

    Raises DurationTooLong, InvalidRequest.
    """
    if not duration_ms:
        shorter = min(policy.default_duration_ms or MAX_INTERVAL_MS, policy.max_duration_ms or MAX_INTERVAL_MS)
        return shorter if policy.default_duration_ms or policy.max_duration_ms else None
    if not 0 < duration_ms <= MAX_INTERVAL_MS:
        raise InvalidRequest(f"The duration must be 1 to {MAX_INTERVAL_MS} ms.", field="duration")
    if policy.max_duration_ms and duration_ms > policy.max_duration_ms:
        raise DurationTooLong(
            f"The duration must be at most {policy.max_duration_ms} ms.",
            field="duration",
            most=str(policy.max_duration_ms),
        )
    return duration_ms


def visible_status(busy_available: bool, status: Status) -> Status:
    """The status as a client sees it: BUSY becomes REACHABLE where the policy does not make BUSY available."""
    return Status.REACHABLE if status is Status.BUSY and not busy_available else status


def with_status(observed: TerminalStatus, status: Status) -> TerminalStatus:
    """A copy of `observed` with another status; `observed` itself if the status is the same."""
    if observed.status is status:
        return observed
    return TerminalStatus(
        address=observed.address,
        status=status,
        observed_at=observed.observed_at,
        source=observed.source,
        revision=observed.revision,
    )
