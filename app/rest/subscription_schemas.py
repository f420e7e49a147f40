"""What REST API v1 takes and returns about subscriptions and their sinks."""

import enum
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from app.auth.clients import MAX_OVERLAP_S
from app.domain.records import MAX_CORRELATOR
from app.domain.sinks import MAX_SECRETS, MAX_SINK_TOKEN, MAX_URL, EndReason
from app.domain.statuses import Status
from app.rest.schemas import MAX_SECRET, Addresses, At, Criteria, Id, Request, Requester, Rfc3339, example

MAX_VERSION = 64
"""Longest version of Parlay X, in characters."""

Endpoint = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL,
        description="The endpoint: an https URL, or http where the operator allows it.",
        examples=["https://app.example.com/events"],
    ),
]


class SinkHandshake(enum.Enum):
    """How a webhook's endpoint is checked.

    `TEST`: the endpoint must answer 2xx to a signed `sink-test` event, which carries the access token. `OPTIONS`: the
    endpoint must answer OPTIONS with WebHook-Allowed-Origin (CloudEvents). `NONE`: the endpoint must accept a
    connection; nothing is sent over it.
    """

    TEST = "TEST"
    OPTIONS = "OPTIONS"
    NONE = "NONE"


def _default_handshake(given: Mapping[str, Any]) -> SinkHandshake:
    """A signed test event only if the receiver can know the secret already."""
    return SinkHandshake.TEST if given.get("secrets") else SinkHandshake.NONE


class AccessTokenRequest(Request):
    """A bearer token (RFC 6750) that the gateway sends to an endpoint."""

    token: str = Field(min_length=1, max_length=MAX_SINK_TOKEN, description="The token. Never returned.")
    expire_time: Rfc3339 | None = Field(
        None,
        description="When the token expires (RFC 3339); the subscription ends five seconds earlier. Absent: never.",
    )


class ListedSinkRequest(Request):
    """No endpoint: notifications are stored and not sent. The client lists them, or reads a stream."""

    kind: Literal["LISTED"] = Field(description="The kind of sink.")


class WebhookSinkRequest(Request):
    """A webhook: CloudEvents by HTTP POST, signed as Standard Webhooks."""

    kind: Literal["WEBHOOK"] = Field(description="The kind of sink.")
    uri: Endpoint
    secrets: list[str] = Field(
        [],
        max_length=MAX_SECRETS,
        description="Keys that sign the webhooks (Standard Webhooks): `whsec_` and base64 of 24 to 64 bytes; the "
        "newest first, two during a rotation. If empty, the gateway makes a secret and returns it once, in this "
        "call's answer: every webhook is signed. The endpoint does not know such a secret yet when it is checked: see "
        "`handshake`.",
    )
    access_token: AccessTokenRequest | None = Field(
        None, description="The bearer token that the gateway sends to the endpoint. Absent: none."
    )
    handshake: Annotated[SinkHandshake, Field(strict=False)] = Field(
        default_factory=_default_handshake,
        description="How this call checks the endpoint. Default: `TEST` if `secrets` are given or a subscription is "
        "changed, otherwise `NONE`, since the endpoint cannot know the gateway's secret yet.",
    )


class SoapSinkRequest(Request):
    """The endpoint of a Parlay X application, which gets callbacks (3GPP TS 29.199-8)."""

    kind: Literal["SOAP"] = Field(description="The kind of sink.")
    uri: str = Field(
        min_length=1,
        max_length=MAX_URL,
        description="The endpoint: an https URL, or http where the operator allows it. A user and password in it "
        "(`https://user:password@host/`) are sent as HTTP Basic, and are not in answers.",
        examples=["https://app.example.com/callbacks"],
    )
    version: str = Field(
        "",
        max_length=MAX_VERSION,
        description="The version of the callbacks' namespaces; empty: the newest.",
        examples=["v2_2"],
    )


SinkRequest = Annotated[ListedSinkRequest | WebhookSinkRequest | SoapSinkRequest, Field(discriminator="kind")]


class SubscriptionRequest(Request):
    """A subscription to create."""

    model_config = example(
        {
            "addresses": ["sip:alice@example.com"],
            "criteria": ["REACHABLE", "BUSY"],
            "check_immediate": True,
            "duration_ms": 3_600_000,
            "sink": {"kind": "WEBHOOK", "uri": "https://app.example.com/events"},
            "correlator": "order-4711",
        }
    )

    addresses: Addresses
    criteria: Criteria = Field([])
    check_immediate: bool = Field(
        False,
        description="Whether to report at once the terminals that meet the criteria now. Such a notification counts "
        "towards `max_notification_count`.",
    )
    min_interval_ms: int = Field(
        0,
        ge=0,
        description="Minimum time between two notifications. Changes in between are combined: the next notification "
        "has each terminal's newest status. 0: the policy's minimum.",
    )
    duration_ms: int = Field(0, ge=0, description="How long the subscription lasts; 0: the policy's default.")
    max_notification_count: int = Field(
        0,
        ge=0,
        description="The subscription ends after this number of notifications; 0: unlimited, if the policy allows.",
    )
    sink: SinkRequest | None = Field(None, description="Where to send notifications; LISTED if absent.")
    correlator: str = Field(
        "",
        max_length=MAX_CORRELATOR,
        description="Your own name for the subscription, unique among your active subscriptions; may be empty.",
    )
    requester: Requester = ""


class AccessToken(BaseModel):
    """The bearer token that the gateway sends to an endpoint, without the token itself."""

    expire_time: At | None = Field(description="When the token expires; null: never.")


class ListedSink(BaseModel):
    """No endpoint: notifications are stored and not sent."""

    kind: Literal["LISTED"] = Field(description="The kind of sink.")


class WebhookSink(BaseModel):
    """A webhook: CloudEvents by HTTP POST, signed as Standard Webhooks. Secrets are never returned."""

    kind: Literal["WEBHOOK"] = Field(description="The kind of sink.")
    uri: str = Field(description="The endpoint.")
    access_token: AccessToken | None = Field(description="The token that the endpoint is sent; null: none.")
    handshake: SinkHandshake | None = Field(description="How the endpoint was checked; null: as by default.")
    previous_secret_expire_time: At | None = Field(
        description="When the older of two signing secrets stops signing, after a rotation; null: there is one secret, "
        "or both came with the request that created the subscription."
    )


class CamaraSink(BaseModel):
    """A sink that was created with the CAMARA API."""

    kind: Literal["CAMARA"] = Field(description="The kind of sink.")
    uri: str = Field(description="The endpoint.")
    access_token: AccessToken | None = Field(description="The token that the endpoint is sent; null: none.")


class SoapSink(BaseModel):
    """The endpoint of a Parlay X application."""

    kind: Literal["SOAP"] = Field(description="The kind of sink.")
    uri: str = Field(description="The endpoint.")
    version: str = Field(description="The version of the callbacks' namespaces, such as `v2_2`.")


Sink = Annotated[
    ListedSink | WebhookSink | CamaraSink | SoapSink,
    Field(discriminator="kind", description="Where notifications go. Secrets and tokens are never returned."),
]


class Subscription(BaseModel):
    """A stored request to report changes of terminals."""

    id: Id
    client_id: str = Field(description="The client that made the subscription.")
    addresses: list[str] = Field(description="Terminals and groups of the request, in canonical form, each once.")
    criteria: list[Status] = Field(description="The statuses to report; empty means all.")
    check_immediate: bool = Field(description="As in the request.")
    min_interval_ms: int = Field(description="Minimum time between two notifications; 0: the policy's minimum.")
    max_notification_count: int = Field(
        description="The subscription ends after this number of notifications; 0: unlimited."
    )
    sink: Sink
    correlator: str = Field(description="The client's own name for the subscription; may be empty.")
    create_time: At
    expire_time: At | None = Field(description="When the subscription ends; null: it does not expire.")
    notification_count: int = Field(description="Number of notifications of changes so far.")
    last_notification_time: At | None = Field(
        description="When the last notification of changes was made; null before the first."
    )
    suspend_time: At | None = Field(
        description="Since when the endpoint fails and is tried less often; null while it works."
    )
    end_time: At | None = Field(description="Null while the subscription is active.")
    end_reason: EndReason | None = Field(
        description="`EXPIRED`: the duration is over. `COUNT_REACHED`: `max_notification_count` is reached. "
        "`CANCELLED`: the client ended it. `CLIENT_DELETED`: the client was deleted. `FAILED`: no terminal can be "
        "watched any more. `SINK_GONE`: the endpoint answered 410. `TOKEN_EXPIRED`: the sink's access token has "
        "expired. Null while active."
    )
    end_detail: str = Field(description="More about the end, for people; may be empty.")
    etag: str = Field(
        description="Changes with each change of the subscription by its client; opaque. The header `ETag` has it in "
        "quotes."
    )
    x_correlator: str = Field(
        description="The `x-correlator` of the call that created the subscription. Each webhook has it in the header "
        "`x-correlator`. Empty if an older version of the gateway created the subscription."
    )


class CreatedSubscription(Subscription):
    """A new subscription."""

    secret: str | None = Field(
        description="The key that signs the webhooks, if the gateway made it. Keep it: it is returned only once."
    )


class Subscriptions(BaseModel):
    """One page of subscriptions, oldest first."""

    subscriptions: list[Subscription] = Field(description="The subscriptions of this page.")
    next_page_token: str = Field(description="`page_token` of the next page; empty on the last page.")


def _refuse_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("null", "must not be null; leave the member out to keep its value")
    return value


def _absent() -> Any:
    """The value of a member that is not given; no value of it is a default in the document."""


_NotNull = BeforeValidator(_refuse_null)


class UpdateSubscriptionRequest(Request):
    """New values of a subscription. Members that are left out keep their values; at least one is required."""

    model_config = example({"addresses": ["sip:alice@example.com", "sip:bob@example.com"], "duration_ms": 3_600_000})

    addresses: Annotated[Addresses, _NotNull] = Field(
        default_factory=list, description="All terminals and groups of the subscription, not only new ones."
    )
    criteria: Annotated[Criteria, _NotNull] = Field(default_factory=list)
    duration_ms: Annotated[int, _NotNull] = Field(
        default_factory=int,
        ge=0,
        description="How long the subscription lasts from now; 0: the policy's default. It still ends before its "
        "sink's access token expires.",
    )
    sink: Annotated[SinkRequest, _NotNull] = Field(
        default_factory=_absent,
        description="Where to send notifications, with all its members: a sink of the same kind. A webhook keeps its "
        "signing secrets, so `secrets` must be left out. Without `access_token` it has none afterwards.",
    )
    requester: Requester = ""


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
    overlap_ms: int | None = Field(
        None,
        ge=0,
        le=MAX_OVERLAP_S * 1000,
        description="How long the previous secret signs too; 24 hours if absent. Not together with `drop_old`. A call "
        "that is repeated with the newest `secret` may make the overlap shorter, not longer.",
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
