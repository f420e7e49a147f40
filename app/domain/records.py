"""What the gateway stores: clients, groups, subscriptions, notifications and attempts to deliver them, usage, audit.

Invariants: pure and frozen; datetimes are aware UTC. Ids are opaque text of at most MAX_ID characters, unguessable
where a caller may name them. What a caller chose (correlator, request id) is bounded before it gets here.

Deliberately absent: tables (`app/store/`) and wire formats.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from app.domain.addresses import TerminalAddress
from app.domain.sinks import EndReason, Sink
from app.domain.statuses import Status, TerminalStatus, require_utc

MAX_ID = 64
MAX_CORRELATOR = 255
MAX_REQUESTER = 200

ANONYMOUS = "anonymous"
"""The client id of whoever calls while no client is configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """An application with credentials. `limits` are this client's own policies by field name of `policy.Policy`,
    which can only be stricter than the operator's; `admin` may see and end what is others' (never by an API key of an
    application)."""

    id: str
    name: str
    created_at: datetime
    admin: bool = False
    limits: Mapping[str, int | bool] = field(default_factory=dict)
    disabled: bool = False

    def __post_init__(self) -> None:
        require_utc(self.created_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A named set of addresses, which may be asked and watched by its own `sip:` URI.

    `members` are terminals, or other groups where the policy allows nesting.
    """

    address: TerminalAddress
    client_id: str
    members: tuple[TerminalAddress, ...]
    created_at: datetime
    version: int = 1
    """Grows by one with each change of the members; what an ETag is made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """An application's standing request: tell me when one of these terminals changes."""

    id: str
    client_id: str
    addresses: tuple[TerminalAddress, ...]
    """Terminals and groups as asked for, canonical, each once."""
    criteria: frozenset[Status]
    """The statuses that are told; empty means each change."""
    check_immediate: bool
    """Whether terminals that meet the criteria at the start are told at once (Parlay X `checkImmediate`)."""
    min_interval_ms: int
    """Least time between two notifications (Parlay X `frequency`); changes meanwhile are held, the newest wins."""
    max_notifications: int
    """How many status notifications end it; 0 is unlimited (Parlay X `count`)."""
    created_at: datetime
    expires_at: datetime | None
    """None is for ever, where the policy allows it."""
    sink: Sink
    correlator: str = ""
    """The application's own name for it; unique among the client's active subscriptions where not empty."""
    request_id: str = ""
    """Makes creation idempotent: the same client's same id returns the subscription that was made first."""
    notified: int = 0
    """Status notifications made so far."""
    last_notified_at: datetime | None = None
    awaiting: bool = False
    """Whether some of its terminals have not been observed since it was made: the first observation of such a one is
    no change, but what later ones are compared with (and is told at once where `check_immediate`)."""
    groups: tuple[TerminalAddress, ...] = ()
    """Its addresses that are groups, and the groups in them: they stay that when they are deleted, and an address asked
    for as a terminal stays one whatever groups are made later."""
    joined: tuple[TerminalAddress, ...] = ()
    """Terminals of several that have not been observed since it was made, or since they joined a group of it; what
    `awaiting` says of a single one."""
    held: tuple[TerminalAddress, ...] = ()
    """Terminals whose last status waits for the interval."""
    suspended_at: datetime | None = None
    """When its endpoint had failed for so long that attempts were put off; None while it works."""
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    end_detail: str = ""

    def __post_init__(self) -> None:
        require_utc(self.created_at, self.expires_at, self.last_notified_at, self.suspended_at, self.ended_at)

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.ended_at is None


class NotificationKind(enum.Enum):
    """What an owed notification says."""

    STATUS = "STATUS"
    """Changes of terminals: Parlay X `statusNotification`."""
    STARTED = "STARTED"
    ERROR = "ERROR"
    """One terminal, or the whole subscription, failed: Parlay X `statusError`."""
    ENDED = "ENDED"
    """Nothing follows: Parlay X `statusEnd`, and the lifecycle event of webhooks."""
    TEST = "TEST"
    """A signed test of the endpoint."""


class DeliveryState(enum.Enum):
    """Where an owed notification stands."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"
    """Given up; it is listed, and can be sent again by command."""
    WITHDRAWN = "WITHDRAWN"
    """Not sent, or not again, since its subscription's client ended a subscription that then wants no callback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwedNotification:
    """One message owed to a subscription's sink; `id` is stable over every attempt and the receiver's to compare."""

    id: str
    subscription_id: str
    client_id: str
    sequence: int
    """Order within the subscription, from 1, without gaps."""
    kind: NotificationKind
    changes: tuple[TerminalStatus, ...]
    """What STATUS tells, each terminal once; empty otherwise."""
    address: TerminalAddress | None = None
    """The terminal that an ERROR is about; None is the whole subscription."""
    code: str = ""
    """ERROR: the domain error's code. ENDED: the EndReason's name."""
    text: str = ""
    created_at: datetime
    next_attempt_at: datetime
    attempts: int = 0
    state: DeliveryState = DeliveryState.PENDING
    settled_at: datetime | None = None

    def __post_init__(self) -> None:
        require_utc(self.created_at, self.next_attempt_at, self.settled_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryAttempt:
    """One try to deliver an owed notification."""

    notification_id: str
    number: int
    at: datetime
    code: int
    """The endpoint's HTTP status; 0 where none came."""
    duration_ms: int
    outcome: str
    """`delivered`, or a short word for what failed: `refused`, `timed-out`, `dns`, `forbidden-address`, `http-500`."""
    answer: bytes = b""
    """The first kilobytes of the answer's body."""


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One billable act, in the contract's names (`getStatus`, `statusNotification_DeliveryAttempted`, …).

    Made for each answer, so a Struct: a frozen dataclass takes ten times as long to make."""

    id: str
    at: datetime
    operation: str
    client_id: str
    face: str
    """`grpc`, `rest`, `camara`, `soap` or `gateway` (deliveries)."""
    requester: str = ""
    targets: tuple[str, ...] = ()
    """As asked for, cut after MAX_USAGE_TARGETS."""
    target_count: int = 0
    expanded_count: int = 0
    """Terminals after groups were expanded."""
    correlator: str = ""
    subscription_id: str = ""
    result: str = "OK"
    """`OK`, or the domain error's code."""
    root_cause: str = ""


MAX_USAGE_TARGETS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One change that somebody made to what the gateway keeps: `who` did `what`, such as `client added`."""

    at: datetime
    who: str
    what: str
    details: Mapping[str, str] = field(default_factory=dict)
