"""What the store writes in one transaction."""

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
from app.domain.statuses import Status, TerminalStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionUpdate:
    """New values of a subscription; None leaves a value unchanged."""

    subscription_id: str
    notified: int | None = None
    last_notified_at: datetime | None = None
    awaiting: bool | None = None
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    end_detail: str | None = None
    groups: tuple[TerminalAddress, ...] | None = None
    joined: tuple[TerminalAddress, ...] | None = None
    held: tuple[TerminalAddress, ...] | None = None
    withdraws: bool = False
    """With `ended_at`: notifications that are not settled become WITHDRAWN at that time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionEdit:
    """A change of a subscription by its client. The store refuses it if the subscription has ended."""

    subscription_id: str
    version: int
    criteria: frozenset[Status]
    expires_at: datetime | None
    addresses: tuple[TerminalAddress, ...] | None = None
    """None: unchanged."""
    sink: Sink | None = None
    """None: unchanged."""
    resumes_at: datetime | None = None
    """With a time, delivery starts again: the subscription is no longer suspended, and its first unsettled notification
    is due at this time, or when the attempt in flight has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """The result of one delivery attempt, written in one transaction by `Store.record_attempts`."""

    attempt: DeliveryAttempt
    """If its `number` is taken, the store assigns the next free number: after a lease ran out, two nodes may make
    attempts at once."""
    owner: str
    """The deliverer that claimed the notification. If another deliverer holds the lease by now, a failed attempt is
    stored, but changes nothing else."""
    state: DeliveryState
    """The notification's new state. A notification that is settled already is not changed."""
    next_attempt_at: datetime | None = None
    """When the next attempt is due, if `state` is PENDING."""
    usage: Sequence[UsageRecord] = ()
    suspended_at: datetime | None = None
    """The subscription's new `suspended_at`; None: its sink works."""
    update: SubscriptionUpdate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Statuses, and the updates of subscriptions and notifications that follow from them: one transaction."""

    statuses: Sequence[TerminalStatus] = ()
    """Each has its new revision, and is written by compare-and-set: only if the stored revision is one less, or if no
    status of the terminal is stored. Several statuses of one terminal are in the order of their revisions."""
    edits: Sequence[SubscriptionEdit] = ()
    updates: Sequence[SubscriptionUpdate] = ()
    owed: Sequence[OwedNotification] = ()
    """The store assigns `sequence`."""
    usage: Sequence[UsageRecord] = ()
    audit: Sequence[AuditEntry] = ()
