"""What the gateway keeps: clients, groups, subscriptions, owed notifications, delivery attempts and usage records.

Invariants: as in `domain.py`: frozen values, aware UTC datetimes, pure. Ids are opaque text of at most MAX_ID
characters, unguessable where a caller may name them. What a caller chose (correlator, request id) is bounded before
it gets here.

Deliberately absent: tables (`app/store/`), policies (`policy.py`) and wire formats.
"""

import base64
import binascii
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from app.domain import SinkRefused, Status, StoreUnavailable, TerminalAddress, TerminalStatus, require_utc

MAX_ID = 64
MAX_CORRELATOR = 255
MAX_REQUESTER = 200
MAX_URL = 2000
"""Longest URL of an endpoint that REST and gRPC take."""

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


class SinkKind(enum.Enum):
    """Where an application's notifications go."""

    STREAM = "STREAM"
    """Nowhere by themselves: the application holds a gRPC or SSE stream, or lists what happened."""
    WEBHOOK = "WEBHOOK"
    """CloudEvents by HTTP POST."""
    SOAP = "SOAP"
    """Parlay X callbacks."""


SINK_SECRETS = "secrets"
"""Sink parameter: signing secrets (`whsec_…`, Standard Webhooks), the newest first, a space between; at most
MAX_SECRETS. Each notification is signed with every one of them, so that receivers can change from one to the next."""

MAX_SECRETS = 2

SECRET_BYTES = 32
"""Unguessable bytes in a secret that the gateway makes."""

_SECRET_LENGTHS = range(24, 65)

SINK_TOKEN = "token"  # noqa: S105  # a parameter's name
"""Sink parameter: the bearer token that each request to the endpoint carries (RFC 6750)."""

MAX_SINK_TOKEN = 4096
"""Its greatest length."""

SINK_TOKEN_EXPIRES_AT = "token_expires_at"  # noqa: S105  # a parameter's name
"""Sink parameter: when that token ends, RFC 3339 with a zone."""

TOKEN_LEAD = timedelta(seconds=5)
"""How long before its endpoint's access token a subscription ends, so that its end can still be told."""

SINK_HANDSHAKE = "handshake"
"""Sink parameter: how the endpoint is checked when the subscription is made, a `Handshake` value."""


SINK_MADE = "made"
"""Sink parameter: SHA-256 in hexadecimal digits of the secret that the gateway made when the subscription was."""

SINK_REQUEST = "request"
"""Sink parameter: SHA-256 of the request that made the subscription, where it had a request id."""

SINK_UNREADABLE = "unreadable"
"""Sink parameter, in the place of all: the id of the key by which they are encrypted, where they cannot be decrypted.
Nothing is sent to such an endpoint, since it would come without signature and token."""

HIDDEN_PARAMETERS = (SINK_MADE, SINK_REQUEST, SINK_UNREADABLE)
"""What no client gave and none is shown, not even by name."""


def token_ends_at(sink: "Sink") -> datetime | None:
    """When the endpoint's access token ends; None for never. Raises SinkRefused for what is no time."""
    text = sink.parameters.get(SINK_TOKEN_EXPIRES_AT)
    if not text:
        return None
    try:
        ends_at = datetime.fromisoformat(text)
        if ends_at.tzinfo is not None:
            return ends_at.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise SinkRefused("The end of the endpoint's access token is no RFC 3339 time with a zone.", reason="token")


def require_readable(sink: "Sink") -> None:
    """Raises StoreUnavailable for a sink whose parameters cannot be decrypted."""
    if SINK_UNREADABLE in sink.parameters:
        raise StoreUnavailable(
            "The secrets of this subscription's endpoint cannot be read; the operator must give the gateway their key.",
            reason="secret-key",
        )


def signing_secret(entropy: bytes) -> str:
    """A secret for SINK_SECRETS from 24 to 64 unguessable bytes; shown to its client once."""
    return "whsec_" + base64.b64encode(entropy).decode()


def read_secret(text: str) -> bytes:
    """The key of a signing secret: base64 of 24 to 64 bytes, `whsec_` before it or not. Raises SinkRefused."""
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) not in _SECRET_LENGTHS:
        raise SinkRefused("A signing secret is whsec_ and base64 of 24 to 64 bytes.", reason="secret")
    return key


class Handshake(enum.Enum):
    """How a webhook endpoint shows that it wants notifications."""

    TEST = "test"
    """It answers 2xx to a signed event of type `…sink.test`; the default where the application named a secret."""
    OPTIONS = "options"
    """It answers OPTIONS with WebHook-Allowed-Origin (CloudEvents HTTP webhook section 4)."""
    NONE = "none"
    """Only its address is checked, and that it accepts a connection; the default where nobody knows the secret yet."""


PROFILE_V1 = "v1"
PROFILE_CAMARA = "camara"
"""The sink profile whose contract tells cancellation too, and has no word for BUSY: it is shown as REACHABLE."""

SIGNED_PROFILES = ("", PROFILE_V1)
"""Profiles of webhooks whose events are signed; "" is the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """An endpoint. `profile` is how it is spoken to (PROFILE_V1, PROFILE_CAMARA, a Parlay X version); `parameters` are
    that profile's own, such as a bearer token, and are never shown in full."""

    kind: SinkKind
    url: str = ""
    profile: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)


class EndReason(enum.Enum):
    """Why a subscription ended."""

    EXPIRED = "EXPIRED"
    """Its duration is over."""
    COUNT_REACHED = "COUNT_REACHED"
    """As many notifications as asked for were made."""
    CANCELLED = "CANCELLED"
    """Its client ended it."""
    CLIENT_DELETED = "CLIENT_DELETED"
    FAILED = "FAILED"
    """An error that no waiting mends: the last terminal is unknown or refuses the gateway."""
    SINK_GONE = "SINK_GONE"
    """The endpoint answered 410 Gone."""
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105  # a reason, not a secret
    """The access token for the endpoint has expired."""


def withdraws(sink: SinkKind, reason: EndReason) -> bool:
    """Whether nothing more is sent to a subscription that ends so, also of what it is owed already. A Parlay X client
    takes endNotification's answer for the end of its callbacks; a webhook's client is owed what was promised."""
    return sink is SinkKind.SOAP and reason is EndReason.CANCELLED


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
