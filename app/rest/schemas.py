"""The bodies of REST API v1 as models. Requests are validated by them; answers are only documented by them.

Invariants: an unknown member, or one of the wrong type, is refused; otherwise a misspelt member would be ignored in
silence. Within v1, members and values may be added, never removed or given another meaning.

Deliberately absent: rules about terminals, which the use cases check, and the conversion of answers (`to_json.py`).
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from app.core import queries
from app.domain.records import MAX_CORRELATOR, MAX_REQUESTER
from app.domain.sinks import MAX_SECRETS, MAX_SINK_TOKEN, MAX_URL, EndReason, Handshake, SinkKind
from app.domain.statuses import Liveness, Source, Status
from app.rest.middleware import MAX_BODY_BYTES

ADDRESS_FORMAT = "terminal-address"
MAX_ADDRESSES = MAX_BODY_BYTES // 8
MAX_SECRET = 100

_ALICE = "sip:alice@example.com"
_AT = "2026-01-02T03:04:05.678000Z"


_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,12})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


def _rfc3339(value: object) -> object:
    """Refuses numbers and times without a zone, which Pydantic alone would accept."""
    if not isinstance(value, datetime) and not (isinstance(value, str) and _RFC3339.fullmatch(value)):
        raise ValueError("not an RFC 3339 time with a zone")
    return value


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("not a valid time in UTC") from None


Rfc3339 = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_utc), Field(strict=False)]
Address = Annotated[
    str,
    Field(
        description="A terminal's address: a `sip:` or `sips:` URI (RFC 3261) without password and headers, or a "
        "`tel:` URI (RFC 3966; local numbers need `;phone-context=`). ASCII, at most 200 characters.",
        examples=[_ALICE, "tel:+15551234567"],
        json_schema_extra={"format": ADDRESS_FORMAT},
    ),
]
Addresses = Annotated[
    list[Address],
    FailFast(),  # listing a hundred thousand faults takes a second
    Field(
        min_length=1,
        max_length=MAX_ADDRESSES,
        description="Addresses of terminals and groups. The policy limits their number.",
    ),
]
Criteria = Annotated[
    list[Annotated[Status, Field(strict=False)]],
    Field(max_length=20, description="The statuses to report; empty means all."),
]
Requester = Annotated[
    str,
    Field(
        max_length=MAX_REQUESTER,
        description="On whose behalf the client calls, a URI or a name. Stored in the usage record, not used "
        "otherwise.",
    ),
]
Id = Annotated[str, Field(description="Opaque; at most 64 characters.", examples=["6f1c3f0d9c0b4b0c8a3f0e6f6d1c2b7a"])]
At = Annotated[AwareDatetime, Field(description="RFC 3339, UTC.", examples=[_AT])]


def _example(request: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [request]})


class Request(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


# Terminals.


class TerminalStatus(BaseModel):
    """A terminal's status, and when the presence server stated it."""

    address: str = Field(
        description="The terminal's address in canonical form: scheme, host and parameters in lower case, a telephone "
        "number without visual separators. May differ from the request's; equal terminals have equal canonical forms."
    )
    status: Status = Field(
        description="`REACHABLE`: registered, and not known to be busy. `UNREACHABLE`: not registered. `BUSY`: "
        "registered, and the user is busy, as on a call. Treat an unknown value as an unknown status."
    )
    observed_at: At = Field(
        description="When the presence server stated the status, by the gateway's clock (RFC 3339, UTC)."
    )
    source: Source = Field(
        description="Where the status came from. `FETCH`: from a query to the presence server. `WATCH`: from the "
        "gateway's own subscription at the presence server."
    )
    revision: int = Field(
        description="Number of the terminal's stored status, from 1; each change adds 1. 0: the status is not stored."
    )


class Failure(BaseModel):
    """Why one terminal of a request failed."""

    code: str = Field(description="The error's code, as `code` of a Problem.")
    detail: str = Field(description="What happened, for people. The wording may change.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    retry_after_s: float | None = Field(description="Seconds to wait before the next attempt; null if unknown.")
    details: dict[str, str] = Field(description="Short strings for machines, such as the SIP code.")


class QueryRequest(Request):
    """A query for many terminals."""

    model_config = _example({"addresses": ["sip:alice@example.com", "tel:+15551234567"], "max_age_s": 5})

    addresses: Addresses
    max_age_s: float = Field(
        0, ge=0, le=86_400, description="The accepted age of a status, in seconds. 0 queries the presence server now."
    )
    requester: Requester = ""


class TerminalResult(BaseModel):
    """The result of a query for one terminal."""

    address: str = Field(description="The terminal's address in canonical form; never a group's.")
    retrieval_status: queries.RetrievalStatus = Field(
        description="`RETRIEVED`: `status` is present. `NOT_RETRIEVED`: not queried, or no answer in time; a repeated "
        "query may succeed. `ERROR`: the terminal is unknown, or the presence server refuses the answer."
    )
    status: TerminalStatus | None = Field(description="Present if RETRIEVED, otherwise null.")
    failure: Failure | None = Field(description="Why the status is null; null if RETRIEVED.")


class QueryResults(BaseModel):
    """The results of a query, one for each terminal."""

    results: list[TerminalResult] = Field(description="The results, in no particular order.")


class WatchedTerminal(BaseModel):
    """Data of `snapshot` and `liveness`: the state of a watched terminal."""

    address: str = Field(description="The terminal's address in canonical form.")
    status: TerminalStatus | None = Field(description="The last known status; null before the first.")
    liveness: Liveness = Field(
        description="`LIVE`: the presence server reports each change. `STALE`: contact is lost, and the status is the "
        "last known one. `UNKNOWN`: no status was observed yet."
    )
    reason: str = Field(description="Why the liveness is not LIVE, for people; else empty.")
    since: At = Field(description="When this liveness began (RFC 3339, UTC).")
    failure: Failure | None = Field(
        None,
        description="Only in `liveness`: the error, if the presence server refuses the watch or does not know the "
        "terminal, or if its last presence document cannot be read.",
    )


class ResumeToken(BaseModel):
    """Data of `bookmark`; the event's `id` has the same token."""

    resume_token: str = Field(description="Resumes the stream after this event.")


class SnapshotComplete(ResumeToken):
    """Data of `snapshot-complete`: every terminal has been sent; changes follow."""

    reset: bool = Field(
        description="Whether the client's last event id could not be used, since it comes from an older gateway, from "
        "a stream of other terminals, or from before the database was restored or replaced. The snapshot then has "
        "every terminal: discard what you know and keep the snapshot, even if its revisions are smaller."
    )


class StreamEnd(BaseModel):
    """Data of `end`, the last event."""

    reason: Literal["GATEWAY_STOPPING", "NOTHING_TO_WATCH", "CREDENTIALS_EXPIRED", "MAX_AGE"] = Field(
        description="Open the stream again after GATEWAY_STOPPING and MAX_AGE. Later versions may add reasons."
    )
    message: str = Field(description="Why the stream ended, for people.")
    resume_token: str = Field(description="Resumes the stream; empty if opening it again is pointless.")


class TerminalRemoved(BaseModel):
    """Data of `removed`: the terminal left the group through which it was watched."""

    address: str = Field(description="The terminal's address in canonical form.")


STREAMED: Mapping[str, type[BaseModel]] = {
    "snapshot": WatchedTerminal,
    "snapshot-complete": SnapshotComplete,
    "change": TerminalStatus,
    "liveness": WatchedTerminal,
    "removed": TerminalRemoved,
    "bookmark": ResumeToken,
    "end": StreamEnd,
}
"""The data of a stream's events by event name."""


# Subscriptions.


def _default_handshake(given: Mapping[str, Any]) -> Handshake:
    """A signed test event only if the receiver can know the secret already."""
    return Handshake.TEST if given.get("secrets") else Handshake.NONE


class SinkRequest(Request):
    """Where to send notifications."""

    kind: Literal["STREAM", "WEBHOOK"] = Field(
        description="`WEBHOOK`: the gateway sends CloudEvents by HTTP POST to `url`. `STREAM`: the gateway sends "
        "nothing; the client reads a stream or lists notifications."
    )
    url: str = Field("", max_length=MAX_URL, description="WEBHOOK only: the endpoint, an https URL.")
    secrets: list[str] = Field(
        [],
        max_length=MAX_SECRETS,
        description="Keys that sign the webhooks (Standard Webhooks): `whsec_` and base64 of 24 to 64 bytes; the "
        "newest first, two during a rotation. If empty, the gateway makes a secret and returns it once, in this "
        "call's answer: every webhook is signed. The endpoint does not know such a secret yet when it is checked: see "
        "`handshake`.",
    )
    access_token: str = Field(
        "",
        max_length=MAX_SINK_TOKEN,
        description="Bearer token that the gateway sends to the endpoint. Never returned.",
    )
    access_token_expires_at: Rfc3339 | None = Field(
        None, description="When `access_token` expires (RFC 3339). The subscription ends five seconds earlier."
    )
    handshake: Annotated[Handshake, Field(strict=False)] = Field(
        default_factory=_default_handshake,
        description="How this call checks the endpoint. `test`: the endpoint answers 2xx to a signed `sink-test` "
        "event, which carries the access token. `options`: the endpoint answers OPTIONS with WebHook-Allowed-Origin "
        "(CloudEvents). `none`: the endpoint accepts a connection; nothing is sent over it. Default: `test` if "
        "`secrets` are given, otherwise `none`, since the endpoint cannot know the gateway's secret yet.",
    )


class SubscriptionRequest(Request):
    """A subscription to create."""

    model_config = _example(
        {
            "addresses": ["sip:alice@example.com"],
            "criteria": ["REACHABLE", "BUSY"],
            "check_immediate": True,
            "duration_ms": 3_600_000,
            "sink": {"kind": "WEBHOOK", "url": "https://app.example.com/events"},
            "correlator": "order-4711",
        }
    )

    addresses: Addresses
    criteria: Criteria = []
    check_immediate: bool = Field(
        False,
        description="Whether to report at once the terminals that meet the criteria now. Such a notification counts "
        "towards `max_notifications`.",
    )
    min_interval_ms: int = Field(
        0,
        ge=0,
        description="Minimum time between two notifications. Changes in between are combined: the next notification "
        "has each terminal's newest status. 0: the policy's minimum.",
    )
    duration_ms: int = Field(0, ge=0, description="How long the subscription lasts; 0: the policy's default.")
    max_notifications: int = Field(
        0,
        ge=0,
        description="The subscription ends after this number of notifications; 0: unlimited, if the policy allows.",
    )
    sink: SinkRequest | None = Field(None, description="Where to send notifications; STREAM if absent.")
    correlator: str = Field(
        "",
        max_length=MAX_CORRELATOR,
        description="Your own name for the subscription, unique among your active subscriptions; may be empty.",
    )
    requester: Requester = ""


class Sink(BaseModel):
    """Where notifications go. Secrets and tokens are never returned."""

    kind: SinkKind = Field(description="`STREAM`: nothing is sent. `WEBHOOK`: CloudEvents. `SOAP`: Parlay X callbacks.")
    url: str = Field(description="The endpoint; empty for STREAM.")
    profile: str = Field(description="Form of the messages to the endpoint: `v1`, `camara`, or a version of Parlay X.")
    signed: bool = Field(description="Whether webhooks are signed.")
    with_access_token: bool = Field(description="Whether webhooks carry an access token.")
    access_token_expires_at: str | None = Field(
        description="When the access token expires (RFC 3339); null without one."
    )
    handshake: str | None = Field(
        description="How the endpoint was checked: `test`, `options` or `none`; null if it was not."
    )


class Subscription(BaseModel):
    """A stored request to report changes of terminals."""

    id: Id
    client_id: str = Field(description="The client that made the subscription.")
    addresses: list[str] = Field(description="Terminals and groups of the request, in canonical form, each once.")
    criteria: list[Status] = Field(description="The statuses to report; empty means all.")
    check_immediate: bool = Field(description="As in the request.")
    min_interval_ms: int = Field(description="Minimum time between two notifications; 0: the policy's minimum.")
    max_notifications: int = Field(
        description="The subscription ends after this number of notifications; 0: unlimited."
    )
    sink: Sink = Field(description="Where notifications go.")
    correlator: str = Field(description="The client's own name for the subscription; may be empty.")
    created_at: At
    expires_at: At | None = Field(description="When the subscription ends; null: it does not expire.")
    notified: int = Field(description="Number of notifications of changes so far.")
    last_notified_at: At | None = Field(
        description="When the last notification of changes was made; null before the first."
    )
    suspended_at: At | None = Field(
        description="Since when the endpoint fails and is tried less often; null while it works."
    )
    ended_at: At | None = Field(description="Null while the subscription is active.")
    end_reason: EndReason | None = Field(
        description="`EXPIRED`: the duration is over. `COUNT_REACHED`: `max_notifications` are made. `CANCELLED`: the "
        "client ended it. `CLIENT_DELETED`: the client was deleted. `FAILED`: no terminal can be watched any more. "
        "`SINK_GONE`: the endpoint answered 410. `TOKEN_EXPIRED`: the sink's access token has expired. Null while "
        "active."
    )
    end_detail: str = Field(description="More about the end, for people; may be empty.")


class CreatedSubscription(Subscription):
    """A new subscription."""

    secret: str | None = Field(
        description="The key that signs the webhooks, if the gateway made it. Keep it: it is returned only once."
    )


class Subscriptions(BaseModel):
    """One page of subscriptions, oldest first."""

    subscriptions: list[Subscription] = Field(description="The subscriptions of this page.")
    next_page_token: str = Field(description="`page_token` of the next page; empty on the last page.")


class RenewRequest(Request):
    """A new duration for a subscription."""

    duration_ms: int = Field(ge=1, description="How long the subscription lasts from now.", examples=[3_600_000])


class RotateSecretRequest(Request):
    """A change of a webhook's signing secret."""

    secret: str = Field(
        "",
        max_length=MAX_SECRET,
        description="The new secret: `whsec_` and base64 of 24 to 64 bytes. Makes the call safe to repeat. If empty, "
        "the gateway makes a secret and returns it once; with `drop_old` it makes none.",
    )
    drop_old: bool = Field(
        False, description="Whether only the newest secret signs from now on. Otherwise the previous one signs too."
    )
    requester: Requester = ""


class RotatedSubscription(Subscription):
    """A subscription with a new signing secret."""

    secret: str | None = Field(
        description="The key that signs the webhooks from now on, if the gateway made it. Keep it: it is returned only "
        "once."
    )


class CancelRequest(Request):
    """The subscription to end."""

    correlator: str = Field(min_length=1, max_length=MAX_CORRELATOR, description="The subscription's `correlator`.")
    requester: Requester = ""
