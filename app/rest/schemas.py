"""What REST API v1 takes and returns, as models: requests are checked against them, answers are documented by them.

Invariants: a request's member that is unknown, or of another type than it should be, is refused: one misspelt would
else mean nothing without a word. Within v1 members and values are added, never removed or given another meaning.

Deliberately absent: rules about terminals, which the use cases check, and the making of answers (`to_json.py`).
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
    """Pydantic alone would take numbers too, and times without a zone."""
    if not isinstance(value, datetime) and not (isinstance(value, str) and _RFC3339.fullmatch(value)):
        raise ValueError("no time with a zone, as RFC 3339 has it")
    return value


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("no time that a calendar has in UTC") from None


Rfc3339 = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_utc), Field(strict=False)]
Address = Annotated[
    str,
    Field(
        description="A terminal: a `sip:` or `sips:` URI (RFC 3261) without password and headers, or a `tel:` URI "
        "(RFC 3966), a local number with `;phone-context=`. ASCII, at most 200 characters.",
        examples=[_ALICE, "tel:+15551234567"],
        json_schema_extra={"format": ADDRESS_FORMAT},
    ),
]
Addresses = Annotated[
    list[Address],
    FailFast(),  # a hundred thousand faults take a second to name
    Field(min_length=1, max_length=MAX_ADDRESSES, description="Terminals and groups, as many as the policy allows."),
]
Criteria = Annotated[
    list[Annotated[Status, Field(strict=False)]],
    Field(max_length=20, description="The statuses that are told; empty means every change."),
]
Requester = Annotated[
    str,
    Field(
        max_length=MAX_REQUESTER,
        description="On whose behalf the client asks, a URI or a name; only stands in the usage record.",
    ),
]
Id = Annotated[str, Field(description="Opaque; at most 64 characters.", examples=["6f1c3f0d9c0b4b0c8a3f0e6f6d1c2b7a"])]
At = Annotated[AwareDatetime, Field(description="RFC 3339, UTC.", examples=[_AT])]


def _example(request: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [request]})


class Request(BaseModel):
    """What is common to bodies of requests."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


# Terminals.


class TerminalStatus(BaseModel):
    """What the presence server said about a terminal, and when."""

    address: str = Field(
        description="The terminal in canonical form, by which equal terminals are equal strings: scheme, host and "
        "parameters in lower case, a telephone number without visual separators. May differ from the request's."
    )
    status: Status = Field(
        description="`REACHABLE`: registered, and nothing says that the user is busy. `UNREACHABLE`: not registered. "
        "`BUSY`: registered, and the user is occupied. Take a value you do not know as an unknown status."
    )
    observed_at: At = Field(description="When the presence server stated it, by the gateway's clock (RFC 3339, UTC).")
    source: Source = Field(
        description="Where the status came from. `FETCH`: the presence server was asked for this very answer. "
        "`WATCH`: a live subscription at the presence server says so."
    )
    revision: int = Field(
        description="Grows by one with each change of the terminal's stored status, from 1. 0: it is not stored."
    )


class Failure(BaseModel):
    """What went wrong with a part of a request."""

    code: str = Field(description="As `code` of a problem.")
    detail: str = Field(description="For people; wording may change.")
    retryable: bool = Field(description="Whether the same question may succeed later.")
    retry_after_s: float | None = Field(description="Seconds to wait before that; null where not known.")
    details: dict[str, str] = Field(description="Short strings for machines.")


class QueryRequest(Request):
    """A question about many terminals."""

    model_config = _example({"addresses": ["sip:alice@example.com", "tel:+15551234567"], "max_age_s": 5})

    addresses: Addresses
    max_age_s: float = Field(
        0, ge=0, le=86_400, description="How old each answer may be, in seconds; 0 asks the presence server now."
    )
    requester: Requester = ""


class TerminalResult(BaseModel):
    """What came of the question about one terminal."""

    address: str = Field(description="The terminal in canonical form; never a group.")
    retrieval_status: queries.RetrievalStatus = Field(
        description="`RETRIEVED`: there is a status. `NOT_RETRIEVED`: not asked, or not answered in time; the same "
        "question may succeed. `ERROR`: the terminal is unknown, or the answer is refused."
    )
    status: TerminalStatus | None = Field(description="There exactly where RETRIEVED.")
    failure: Failure | None = Field(description="Why there is no status.")


class QueryResults(BaseModel):
    """The results of a query, one for each terminal."""

    results: list[TerminalResult]


class WatchedTerminal(BaseModel):
    """Data of `snapshot` and `liveness`: how a watched terminal stands."""

    address: str
    status: TerminalStatus | None = Field(description="The last known one; null where nothing was observed yet.")
    liveness: Liveness = Field(description="What that status is worth now.")
    reason: str = Field(description="Why it is not LIVE, for people.")
    since: At
    failure: Failure | None = Field(None, description="Only in `liveness`, where the presence server refuses it.")


class ResumeToken(BaseModel):
    """Data of `bookmark`; the event's `id` says the same."""

    resume_token: str


class SnapshotComplete(ResumeToken):
    """Data of `snapshot-complete`."""

    reset: bool = Field(
        description="The id with which this client came could not be used: of an older gateway, of other terminals, or "
        "of a database that was restored or replaced. The snapshot has every terminal; forget whatever it does not "
        "have, and take it also where its revisions are smaller than those that you know."
    )


class StreamEnd(BaseModel):
    """Data of `end`, the last event."""

    reason: Literal["GATEWAY_STOPPING", "NOTHING_TO_WATCH", "CREDENTIALS_EXPIRED", "MAX_AGE"] = Field(
        description="Come again after GATEWAY_STOPPING and MAX_AGE. More may come."
    )
    message: str
    resume_token: str = Field(description="Resumes the stream; empty where coming again makes no sense.")


class TerminalRemoved(BaseModel):
    """Data of `removed`: the terminal left the group by which it was watched."""

    address: str


STREAMED: Mapping[str, type[BaseModel]] = {
    "snapshot": WatchedTerminal,
    "snapshot-complete": SnapshotComplete,
    "change": TerminalStatus,
    "liveness": WatchedTerminal,
    "removed": TerminalRemoved,
    "bookmark": ResumeToken,
    "end": StreamEnd,
}
"""The data of a stream's events, by their names."""


# Subscriptions.


def _default_handshake(asked: Mapping[str, Any]) -> Handshake:
    """By a signed event only where its receiver knows the secret by now, and can verify it."""
    return Handshake.TEST if asked.get("secrets") else Handshake.NONE


class SinkRequest(Request):
    """Where notifications shall go."""

    kind: Literal["STREAM", "WEBHOOK"] = Field(
        description="`STREAM`: nowhere by themselves; hold a stream, or list notifications. `WEBHOOK`: CloudEvents by "
        "HTTP POST to `url`."
    )
    url: str = Field("", max_length=MAX_URL, description="The endpoint, an https URL; for WEBHOOK.")
    secrets: list[str] = Field(
        [],
        max_length=MAX_SECRETS,
        description="Keys that sign webhooks (Standard Webhooks), `whsec_` and base64 of 24 to 64 bytes, the newest "
        "first; two during rotation. None: the gateway makes one, and returns it once: no webhook is unsigned. A "
        "receiver that verifies signatures does not know that one yet when it is checked: see `handshake`.",
    )
    access_token: str = Field(
        "", max_length=MAX_SINK_TOKEN, description="Bearer token for the endpoint. Never shown again."
    )
    access_token_expires_at: Rfc3339 | None = Field(
        None, description="When that token ends, RFC 3339; the subscription ends five seconds before."
    )
    handshake: Annotated[Handshake, Field(strict=False)] = Field(
        default_factory=_default_handshake,
        description="How the endpoint is checked now. `test`: it answers 2xx to a signed event. `options`: it answers "
        "OPTIONS with WebHook-Allowed-Origin (CloudEvents). `none`: it accepts a connection, over which nothing is "
        "sent. Only the event of `test` carries the access token. Absent: `test` where `secrets` are named, and `none` "
        "where the gateway makes one, since the endpoint cannot know it before this call's answer.",
    )


class SubscriptionRequest(Request):
    """What to subscribe to."""

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
        False, description="Whether terminals that meet the criteria now are told at once; that counts."
    )
    min_interval_ms: int = Field(
        0, ge=0, description="Least time between two notifications; in between the newest is held. 0: the policy's."
    )
    duration_ms: int = Field(0, ge=0, description="How long it shall last; 0: the policy's default.")
    max_notifications: int = Field(0, ge=0, description="How many notifications end it; 0: unlimited, where allowed.")
    sink: SinkRequest | None = Field(None, description="Where notifications go; STREAM if absent.")
    correlator: str = Field(
        "",
        max_length=MAX_CORRELATOR,
        description="Your own name for it, unique among your active ones; may be empty.",
    )
    requester: Requester = ""


class Sink(BaseModel):
    """Where notifications go; secrets and tokens are never shown."""

    kind: SinkKind
    url: str
    profile: str = Field(description="How the endpoint is spoken to: `v1` or `camara`, or a version of Parlay X.")
    signed: bool
    with_access_token: bool
    access_token_expires_at: str | None
    handshake: str | None


class Subscription(BaseModel):
    """A standing request: tell me when one of these terminals changes."""

    id: Id
    client_id: str
    addresses: list[str] = Field(description="Terminals and groups as asked for, in canonical form, each once.")
    criteria: list[Status]
    check_immediate: bool
    min_interval_ms: int
    max_notifications: int
    sink: Sink
    correlator: str
    created_at: At
    expires_at: At | None
    notified: int = Field(description="Notifications of changes made so far.")
    last_notified_at: At | None
    suspended_at: At | None = Field(description="Since when its endpoint fails and attempts are rare.")
    ended_at: At | None = Field(description="Null while it is active.")
    end_reason: EndReason | None
    end_detail: str


class CreatedSubscription(Subscription):
    """A subscription that was just made."""

    secret: str | None = Field(
        description="The key that signs its webhooks, where the gateway made it. Keep it: it is shown this once."
    )


class Subscriptions(BaseModel):
    """One page of subscriptions, oldest first."""

    subscriptions: list[Subscription]
    next_page_token: str = Field(description="Gets the next page; empty on the last.")


class RenewRequest(Request):
    """How to prolong a subscription."""

    duration_ms: int = Field(ge=1, description="How long it shall last from now.", examples=[3_600_000])


class RotateSecretRequest(Request):
    """How to change a webhook's signing secret."""

    secret: str = Field(
        "",
        max_length=MAX_SECRET,
        description="The new secret, `whsec_` and base64 of 24 to 64 bytes; makes the call safe to repeat. Empty: the "
        "gateway makes one, and returns it once; with `drop_old` it makes none.",
    )
    drop_old: bool = Field(
        False, description="Whether only the newest secret signs from now on; otherwise the one before does too."
    )
    requester: Requester = ""


class RotatedSubscription(Subscription):
    """A subscription whose signing secret was changed."""

    secret: str | None = Field(
        description="The key that signs its webhooks from now on, where the gateway made it. Keep it: it is shown this "
        "once."
    )


class CancelRequest(Request):
    """Which subscription to end."""

    correlator: str = Field(
        min_length=1, max_length=MAX_CORRELATOR, description="The name that the application gave it."
    )
    requester: Requester = ""
