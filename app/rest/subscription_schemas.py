"""What REST API v1 takes and returns about subscriptions and their sinks."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.domain.records import MAX_CORRELATOR
from app.domain.sinks import MAX_SECRETS, MAX_SINK_TOKEN, MAX_URL, EndReason, Handshake, SinkKind
from app.domain.statuses import Status
from app.rest.schemas import MAX_SECRET, Addresses, At, Criteria, Id, Request, Requester, Rfc3339, example

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

    model_config = example(
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
    criteria: Criteria = Field([])
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
