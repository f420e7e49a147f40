"""What an application may ask for: the policies of Parlay X (3GPP TS 29.199-8, by IBM's names), and rate limits.

Invariants: an operator's policy holds for everybody; a client's own limits can only make it stricter. A limit of 0 is
none, where the field says so. Each violation is a domain error of its own. The rules are pure: time is an argument.

Deliberately absent: the settings they are read from, what counts as busy (`presence.py`), and groups.
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
"""Longest interval between notifications and longest duration that can be asked for, in milliseconds."""


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


def visible_status(busy_available: bool, status: Status) -> Status:
    """The status as a client sees it: BUSY becomes REACHABLE where the policy does not make BUSY available."""
    return Status.REACHABLE if status is Status.BUSY and not busy_available else status


def with_status(observed: TerminalStatus, status: Status) -> TerminalStatus:
    """A copy of `observed` with another status; `observed` itself where the status is the same."""
    if observed.status is status:
        return observed
    return TerminalStatus(
        address=observed.address,
        status=status,
        observed_at=observed.observed_at,
        source=observed.source,
        revision=observed.revision,
    )
