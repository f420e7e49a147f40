"""What one transaction of the store writes.

Invariants: pure and frozen; datetimes are aware UTC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.domain.addresses import TerminalAddress
from app.domain.records import (
    AuditEntry,
    DeliveryAttempt,
    DeliveryState,
    OwedNotification,
    UsageRecord,
)
from app.domain.sinks import EndReason, Sink
from app.domain.statuses import TerminalStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionUpdate:
    """New values of a subscription's progress; None leaves a value as it is."""

    subscription_id: str
    notified: int | None = None
    last_notified_at: datetime | None = None
    awaiting: bool | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    end_detail: str | None = None
    groups: tuple[TerminalAddress, ...] | None = None
    joined: tuple[TerminalAddress, ...] | None = None
    held: tuple[TerminalAddress, ...] | None = None
    sink: Sink | None = None
    """Another endpoint, or other secrets for it."""
    withdraws: bool = False
    """With `ended_at`: what it is owed and is not settled becomes WITHDRAWN at that time, and is not claimed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """What one attempt to deliver leads to, written in one transaction by `Store.record_attempts`."""

    attempt: DeliveryAttempt
    """Its `number` is the next free one where that is taken: a lease that ran out lets two nodes try at once."""
    owner: str
    """Who claimed it. Where the lease is another's by now, a failed attempt is only added and changes nothing else."""
    state: DeliveryState
    """What becomes of the notification. One that is settled already stays as it is."""
    next_attempt_at: datetime | None = None
    """When it is due again, if `state` is PENDING."""
    usage: Sequence[UsageRecord] = ()
    suspended_at: datetime | None = None
    """The subscription's new one (None: its endpoint works)."""
    update: SubscriptionUpdate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one transaction writes: statuses by compare-and-set, and what follows from them."""

    statuses: Sequence[TerminalStatus] = ()
    """Each with the revision it shall have; it is written only where the stored one is the revision before, or where
    none is stored. Several of one terminal follow each other."""
    updates: Sequence[SubscriptionUpdate] = ()
    owed: Sequence[OwedNotification] = ()
    """`sequence` is given by the store."""
    usage: Sequence[UsageRecord] = ()
    audit: Sequence[AuditEntry] = ()
