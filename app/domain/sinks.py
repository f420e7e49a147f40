"""Where a subscription's notifications go: kinds of endpoint, their parameters and secrets.

Invariants: pure and frozen. Parameters hold secrets, and are never shown in full.
"""

import base64
import binascii
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from app.domain.errors import SinkRefused, StoreUnavailable

MAX_URL = 2000
"""Longest URL of an endpoint that REST and gRPC take."""


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
    """The subscription's duration is over."""
    COUNT_REACHED = "COUNT_REACHED"
    """The requested number of notifications was sent."""
    CANCELLED = "CANCELLED"
    """The client ended the subscription."""
    CLIENT_DELETED = "CLIENT_DELETED"
    FAILED = "FAILED"
    """An error that no waiting mends: the last terminal is unknown or refuses the gateway."""
    SINK_GONE = "SINK_GONE"
    """The endpoint answered 410 Gone."""
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105  # a reason, not a secret
    """The access token for the endpoint has expired."""
