"""Sinks, to which a subscription's notifications are sent: their kinds, parameters and secrets.

Invariants: parameters contain secrets; no face, log or error shows their values.
"""

import base64
import binascii
import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote_to_bytes

from app.domain.errors import InvalidRequest, SinkRefused, SinkUnreachable, StoreUnavailable

MAX_URL = 2000
"""Longest URL of a sink in REST and gRPC."""


class SinkKind(enum.Enum):
    """How notifications reach the application."""

    STREAM = "STREAM"
    """Nothing is sent: the application reads a gRPC or SSE stream, or lists its notifications."""
    WEBHOOK = "WEBHOOK"
    """CloudEvents by HTTP POST."""
    SOAP = "SOAP"
    """Parlay X callbacks."""


SINK_SECRETS = "secrets"
"""Sink parameter: up to MAX_SECRETS signing secrets (`whsec_…`, Standard Webhooks), separated by spaces, the newest
first. Each notification carries a signature for each of them, so that receivers can rotate secrets."""

MAX_SECRETS = 2

SECRET_BYTES = 32
"""Random bytes in a secret that the gateway generates."""

_SECRET_LENGTHS = range(24, 65)

SINK_TOKEN = "token"  # noqa: S105  # a parameter's name
"""Sink parameter: the bearer token in each request to the sink (RFC 6750)."""

MAX_SINK_TOKEN = 4096
"""Longest token, in characters."""

SINK_TOKEN_EXPIRES_AT = "token_expires_at"  # noqa: S105  # a parameter's name
"""Sink parameter: when the token expires, in RFC 3339 with a zone."""

TOKEN_LEAD = timedelta(seconds=5)
"""A subscription ends this long before its sink's token expires, so that its last notification can still be sent."""

SINK_BASIC = "basic"
"""Sink parameter of a SOAP endpoint: its user and password, `user:password`, for HTTP Basic (RFC 7617)."""

MAX_BASIC = 512
"""Longest user and password together, in characters."""

SINK_HANDSHAKE = "handshake"
"""Sink parameter: how the sink is checked when the subscription is created, a `Handshake` value."""


SINK_MADE = "made"
"""Sink parameter: SHA-256 (hexadecimal) of the secret that the gateway generated for a new subscription."""

SINK_OVERLAP_ENDS_AT = "overlap_ends_at"
"""Sink parameter: when the older of two SINK_SECRETS stops signing, in RFC 3339 with a zone; absent: never."""

SINK_REQUEST = "request"
"""Sink parameter: SHA-256 of the request that created the subscription, if it had a request id."""

SINK_UNREADABLE = "unreadable"
"""Sink parameter: the id of the missing key, if the stored parameters cannot be decrypted; the sink then has no other
parameter. Nothing is sent to such a sink, because requests would lack their signature and token."""

SINK_CALLBACK_VERSION = "callback_version"
"""Sink parameter of a SOAP endpoint: the version of its callbacks, from `Client.soap_callback_version`."""

HIDDEN_PARAMETERS = (SINK_MADE, SINK_OVERLAP_ENDS_AT, SINK_REQUEST, SINK_UNREADABLE, SINK_CALLBACK_VERSION)
"""Parameters that the gateway sets itself; they are never shown, not even their names."""


_CALLBACK_VERSION = re.compile(r"v[23]_[0-9]{1,2}")


def is_callback_version(text: str) -> bool:
    """Whether `text` names a version of Parlay X, such as `v2_3`."""
    return _CALLBACK_VERSION.fullmatch(text) is not None


def check_callback_version(text: str) -> None:
    """Raises InvalidRequest for a client's `soap_callback_version` that is neither empty nor a version."""
    if text and not is_callback_version(text):
        raise InvalidRequest(
            "`soap_callback_version` must be a version of Parlay X, such as v2_3; leave it out to follow the version "
            "of the client's requests.",
            field="soap_callback_version",
        )


_USER_INFO = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)([^/?#\\]*)@(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def without_user_info(sink: "Sink") -> "Sink":
    """The sink with the user info of its URL (RFC 3986 section 3.2.1) moved to SINK_BASIC, where it is kept as secrets
    are. Raises SinkRefused, without the user info."""
    match = _USER_INFO.fullmatch(sink.url)
    if match is None:
        return sink
    user, _, password = match[2].partition(":")
    try:
        user, password = unquote_to_bytes(user).decode(), unquote_to_bytes(password).decode()
    except UnicodeDecodeError:
        raise SinkRefused("The user info of the sink's URL is not UTF-8.", reason="credentials") from None
    basic = f"{user}:{password}"
    if not user or ":" in user or _CONTROL.search(basic) or len(basic) > MAX_BASIC:
        raise SinkRefused(
            "The user info of the sink's URL must be a user without a colon, a colon and a password, of "
            f"{MAX_BASIC} characters at most, without control characters.",
            reason="credentials",
        )
    return replace(sink, url=match[1] + match[3], parameters={**sink.parameters, SINK_BASIC: basic})


def token_ends_at(sink: "Sink") -> datetime | None:
    """When the sink's access token expires; None: never. Raises SinkRefused for a malformed time."""
    text = sink.parameters.get(SINK_TOKEN_EXPIRES_AT)
    if not text:
        return None
    try:
        ends_at = datetime.fromisoformat(text)
        if ends_at.tzinfo is not None:
            return ends_at.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise SinkRefused("The expiry of the sink's access token is not an RFC 3339 time with a zone.", reason="token")


def overlap_ends_at(sink: "Sink") -> datetime | None:
    """When the older of two signing secrets stops signing; None if there is one secret, or no such time."""
    text = sink.parameters.get(SINK_OVERLAP_ENDS_AT)
    return datetime.fromisoformat(text) if text else None


def signing_secrets(sink: "Sink", now: datetime) -> list[str]:
    """The secrets that sign at this time, the newest first."""
    secrets = sink.parameters.get(SINK_SECRETS, "").split()
    ends_at = overlap_ends_at(sink)
    return secrets[:1] if ends_at is not None and ends_at <= now else secrets


def with_secrets(sink: "Sink", secrets: Sequence[str], ends_at: datetime | None) -> "Sink":
    """The sink with these secrets; `ends_at` is when the older of two stops signing."""
    others = {name: value for name, value in sink.parameters.items() if name != SINK_OVERLAP_ENDS_AT}
    if ends_at is not None and len(secrets) > 1:
        others[SINK_OVERLAP_ENDS_AT] = ends_at.isoformat()
    return replace(sink, parameters={**others, SINK_SECRETS: " ".join(secrets)})


def require_readable(sink: "Sink") -> None:
    """Raises StoreUnavailable for a sink whose parameters cannot be decrypted."""
    if SINK_UNREADABLE in sink.parameters:
        raise StoreUnavailable(
            "The secrets of this subscription's sink cannot be decrypted; the operator must add their key to "
            "TS_SECRET_KEY_FILE.",
            reason="secret-key",
        )


def signing_secret(entropy: bytes) -> str:
    """A secret for SINK_SECRETS, made of 24 to 64 random bytes."""
    return "whsec_" + base64.b64encode(entropy).decode()


def read_secret(text: str) -> bytes:
    """The bytes of a signing secret: base64 of 24 to 64 bytes, with or without `whsec_`. Raises SinkRefused."""
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) not in _SECRET_LENGTHS:
        raise SinkRefused(
            "A signing secret must be `whsec_` followed by the base64 of 24 to 64 bytes.", reason="secret"
        )
    return key


_REFUSED_PARTS = {
    "secret": "secrets",
    "token": "access_token.token",
    "token-expired": "access_token.expire_time",
    "version": "version",
}


def refused_part(error: SinkRefused | SinkUnreachable) -> str:
    """The part of a sink, by its name in gRPC and REST, that an error is about."""
    return _REFUSED_PARTS.get(error.details.get("reason", ""), "uri")


class Handshake(enum.Enum):
    """How a webhook sink confirms that it wants notifications."""

    TEST = "test"
    """The sink answers 2xx to a signed event of type `…sink.test`. The default if the request contains a secret."""
    OPTIONS = "options"
    """The sink answers OPTIONS with WebHook-Allowed-Origin (CloudEvents HTTP webhook section 4)."""
    NONE = "none"
    """The sink has an allowed address and accepts a connection; nothing is sent. The default if the gateway generates
    the secret, because the application does not know that secret yet."""


PROFILE_V1 = "v1"
PROFILE_CAMARA = "camara"
"""CAMARA's event format. It also reports that the client ended the subscription, and shows BUSY as REACHABLE."""

SIGNED_PROFILES = ("", PROFILE_V1)
"""Profiles of webhooks whose events are signed; "" stands for the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """A sink. `profile` is the format of its notifications (PROFILE_V1, PROFILE_CAMARA, a Parlay X version);
    `parameters` are those of the profile, such as a bearer token."""

    kind: SinkKind
    url: str = ""
    profile: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)


def same_endpoint(one: Sink, other: Sink) -> bool:
    """Whether both sinks are the same endpoint with the same access token, user and password."""
    return one.url == other.url and all(
        one.parameters.get(name) == other.parameters.get(name) for name in (SINK_TOKEN, SINK_BASIC)
    )


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
    """A permanent error: the last terminal is unknown, or the gateway may not watch it."""
    SINK_GONE = "SINK_GONE"
    """The sink answered 410 Gone."""
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105  # a reason, not a secret
    """The access token for the sink has expired."""
