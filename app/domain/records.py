"""What the gateway stores: clients, groups, subscriptions, notifications, delivery attempts, usage records, audit.

Invariants: immutable; datetimes are aware UTC. Ids are at most MAX_ID characters, and unguessable where a caller may
send them. Texts that a caller chose (correlator, request id) are bounded by the faces.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from app.domain.addresses import TerminalAddress
from app.domain.operations import AuditAction, Face, UsageOperation
from app.domain.outcomes import DeliveryOutcome
from app.domain.sinks import EndReason, Sink
from app.domain.statuses import Status, TerminalStatus, require_utc

MAX_ID = 64
MAX_CORRELATOR = 255
MAX_REQUESTER = 200

ANONYMOUS = "anonymous"
"""The client id of all callers while no client is configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """An application with credentials, or an operator.

    `limits` are the client's own limits by field name of `policy.Policy`; they can only be stricter than the
    operator's. `admin`: an operator, who may also read and end what belongs to other clients. `soap_callback_version`:
    the version of Parlay X callbacks to the client; "" follows the version of the request.
    """

    id: str
    name: str
    created_at: datetime
    admin: bool = False
    limits: Mapping[str, int | bool] = field(default_factory=dict)
    disabled: bool = False
    soap_callback_version: str = ""

    def __post_init__(self) -> None:
        require_utc(self.created_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A set of terminals that can be queried and watched by the group's own `sip:` address.

    `members` are terminals, and groups where the policy allows nesting.
    """

    address: TerminalAddress
    client_id: str
    members: tuple[TerminalAddress, ...]
    created_at: datetime
    version: int = 1
    """Grows by one with each change of the members."""

    @property
    def etag(self) -> str:
        """Changes with each change of the members. A group that is deleted and created again gets another."""
        return f"{self.version}-{self.created_at.timestamp():.6f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """An application's stored request to be notified when one of these terminals changes its status."""

    id: str
    client_id: str
    addresses: tuple[TerminalAddress, ...]
    """Terminals and groups of the request, in canonical form, each once."""
    criteria: frozenset[Status]
    """The statuses that are reported; empty: every change."""
    check_immediate: bool
    """Report terminals that meet the criteria already at the start (Parlay X `checkImmediate`)."""
    min_interval_ms: int
    """Shortest interval between two notifications (Parlay X `frequency`). Until then the newest change is held."""
    max_notifications: int
    """Ends after this number of status notifications (Parlay X `count`); 0: unlimited."""
    created_at: datetime
    expires_at: datetime | None
    """None: never expires, where the policy allows it."""
    sink: Sink
    correlator: str = ""
    """The application's name for the subscription; if not empty, unique among the client's active subscriptions."""
    request_id: str = ""
    """Makes creation idempotent: a repeated request with the same id returns the subscription of the first one."""
    notified: int = 0
    """Number of status notifications so far."""
    last_notified_at: datetime | None = None
    awaiting: bool = False
    """Whether some of its terminals have not been observed since the subscription was created. The first observation
    of such a terminal is not a change: later observations are compared with it. With `check_immediate` it is
    reported."""
    groups: tuple[TerminalAddress, ...] = ()
    """The groups among `addresses`, and the groups that they contain. A deleted group remains in this list. An address
    that was a terminal at the start stays a terminal, even if a group with this address is created later."""
    joined: tuple[TerminalAddress, ...] = ()
    """The terminals not observed since the subscription was created, or since they joined one of its groups. Not used
    for a subscription created with a single terminal, where `awaiting` is enough."""
    held: tuple[TerminalAddress, ...] = ()
    """Terminals whose newest status is held until `min_interval_ms` has passed."""
    suspended_at: datetime | None = None
    """Since when its sink has failed so often that attempts are rare; None while the sink works."""
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    end_detail: str = ""
    version: int = 1
    """Grows by one with each change by its client."""
    x_correlator: str = ""
    """The x-correlator of the call that created it; empty if an older gateway did."""

    def __post_init__(self) -> None:
        require_utc(self.created_at, self.expires_at, self.last_notified_at, self.suspended_at, self.ended_at)

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.ended_at is None

    @property
    def etag(self) -> str:
        """The version as clients see it, an opaque text."""
        return f"v{self.version}"


class NotificationKind(enum.Enum):
    """What a notification reports."""

    STATUS = "STATUS"
    """Changed statuses: Parlay X `statusNotification`."""
    STARTED = "STARTED"
    ERROR = "ERROR"
    """One terminal, or the whole subscription, failed: Parlay X `statusError`."""
    ENDED = "ENDED"
    """The subscription has ended, and this is its last notification: Parlay X `statusEnd`."""
    TEST = "TEST"
    """A signed test of the sink."""


class DeliveryState(enum.Enum):
    """The state of a notification on its way to the sink."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"
    """Delivery was given up; the notification can be listed and sent again by command."""
    WITHDRAWN = "WITHDRAWN"
    """No longer to be sent: the subscription has ended, and its sink's contract sends nothing after such an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwedNotification:
    """One message owed to a sink. `id` is the same in every attempt, so that receivers recognize repetitions."""

    id: str
    subscription_id: str
    client_id: str
    sequence: int
    """Order within the subscription: 1, 2, 3, … without gaps."""
    kind: NotificationKind
    changes: tuple[TerminalStatus, ...]
    """STATUS: the changed statuses, one per terminal. Empty for other kinds."""
    address: TerminalAddress | None = None
    """ERROR: the terminal that failed; None: the whole subscription failed."""
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
    """One attempt to send a notification to its sink."""

    notification_id: str
    number: int
    at: datetime
    code: int
    """The sink's HTTP status; 0 if there was no response."""
    duration_ms: int
    outcome: DeliveryOutcome
    answer: bytes = b""
    """The first kilobytes of the response's body."""


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One billable operation.

    A Struct, because one is made for each answer: making a frozen dataclass takes ten times as long."""

    id: str
    at: datetime
    operation: UsageOperation
    client_id: str
    face: Face
    requester: str = ""
    targets: tuple[str, ...] = ()
    """The first MAX_USAGE_TARGETS addresses of the request."""
    target_count: int = 0
    expanded_count: int = 0
    """Number of terminals, with the members of groups."""
    correlator: str = ""
    subscription_id: str = ""
    result: str = "OK"
    """`OK`, or the domain error's code. Of a successful getStatus, the name of the status."""
    root_cause: str = ""
    expanded_targets: tuple[str, ...] = ()
    """The first MAX_USAGE_TARGETS terminals, if `targets` name groups; otherwise empty."""
    x_correlator: str = ""
    """The x-correlator of the call; of a delivery, that of its subscription."""


MAX_USAGE_TARGETS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One administrative change."""

    at: datetime
    actor: str
    """A client's id, or `cli:` and the user's name."""
    action: AuditAction
    details: Mapping[str, str] = field(default_factory=dict)
