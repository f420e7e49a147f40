"""The bodies of CAMARA's operations (release r1.2).

Invariants: as in CAMARA's schemas, unknown members are allowed and null is not.

Deliberately absent: long descriptions, which CAMARA's own documents have.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.domain.records import MAX_ID
from app.domain.sinks import MAX_URL
from app.rest.camara import event_types
from app.rest.camara.errors import MAX_MESSAGE
from app.rest.schemas import Rfc3339

PHONE_NUMBER_PATTERN = r"^\+[1-9][0-9]{4,14}$"
MAX_TEXT = 4096


def _not_null(value: object) -> object:
    if value is None:
        raise ValueError("null is not allowed; leave the member out")
    return value


def _text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("an address must be a string")
    return value


def _without_null(schema: dict[str, Any]) -> None:
    """Removes null, FastAPI's default for optional members, from a member's types in the document."""
    schema.pop("default", None)
    if "anyOf" in schema:
        kept = [each for each in schema.pop("anyOf") if each != {"type": "null"}]
        schema.update(kept[0] if len(kept) == 1 else {"anyOf": kept})


def _optional(**described: Any) -> Any:
    return Field(None, json_schema_extra=_without_null, **described)


_Ipv4 = Annotated[IPv4Address, BeforeValidator(_text), Field(strict=False)]
_Ipv6 = Annotated[IPv6Address, BeforeValidator(_text), Field(strict=False)]
_GivenText = Annotated[str | None, BeforeValidator(_not_null)]
_GivenTime = Annotated[Rfc3339 | None, BeforeValidator(_not_null)]
_GivenFlag = Annotated[bool | None, BeforeValidator(_not_null)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class DeviceIpv4Addr(_Model):
    """A public address, with a private one or a port."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": ["publicAddress", "privateAddress"]}, {"required": ["publicAddress", "publicPort"]}]
        }
    )

    publicAddress: _Ipv4 = Field(description="The public IPv4 address.", examples=["84.125.93.10"])
    privateAddress: Annotated[_Ipv4 | None, BeforeValidator(_not_null)] = _optional(
        description="The address behind NAT."
    )
    publicPort: Annotated[int | None, BeforeValidator(_not_null)] = _optional(
        ge=0, le=65535, description="The public TCP or UDP port."
    )

    @model_validator(mode="after")
    def _enough(self) -> "DeviceIpv4Addr":
        if self.privateAddress is None and self.publicPort is None:
            raise ValueError("privateAddress or publicPort is needed")
        return self


class Device(_Model):
    """End-user equipment able to connect to a mobile network, by at least one identifier.

    Only `phoneNumber` and `networkAccessIdentifier` are supported here.
    """

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    phoneNumber: _GivenText = _optional(
        description="A phone number in E.164 format with `+`.", pattern=PHONE_NUMBER_PATTERN, examples=["+123456789"]
    )
    networkAccessIdentifier: _GivenText = _optional(
        description="A SIP user as `user@domain` (3GPP TS 23.003).", examples=["123456789@domain.com"]
    )
    ipv4Address: Annotated[DeviceIpv4Addr | None, BeforeValidator(_not_null)] = _optional()
    ipv6Address: Annotated[_Ipv6 | None, BeforeValidator(_not_null)] = _optional(
        description="An IPv6 address; not supported.", examples=["2001:db8:85a3:8d3:1319:8a2e:370:7344"]
    )

    @model_validator(mode="before")
    @classmethod
    def _some(cls, value: object) -> object:
        if value == {}:
            raise ValueError("at least one identifier is needed")
        return value


_GivenDevice = Annotated[Device | None, BeforeValidator(_not_null)]


class DeviceResponse(BaseModel):
    """The identifier that was used, of those in the request."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    phoneNumber: str | None = _optional(
        description="A phone number in E.164 format with `+`.", pattern=PHONE_NUMBER_PATTERN, examples=["+123456789"]
    )
    networkAccessIdentifier: str | None = _optional(
        description="A SIP user as `user@domain` (3GPP TS 23.003).", examples=["123456789@domain.com"]
    )


class RequestReachabilityStatus(_Model):
    """The device to query."""

    device: _GivenDevice = _optional()


class ReachabilityStatusResponse(BaseModel):
    """Whether a device is reachable."""

    device: DeviceResponse | None = _optional(description="Present if the request had `device`.")
    lastStatusTime: AwareDatetime = Field(
        description="When the presence server stated the status (RFC 3339).", examples=["2024-02-20T10:41:38.657Z"]
    )
    reachable: bool = Field(description="Overall device reachability.")
    connectivity: list[Literal["DATA", "SMS"]] | None = _optional(description="Present if reachable; then DATA.")


# Subscriptions.

EventType = Literal[
    "org.camaraproject.device-reachability-status-subscriptions.v0.reachability-data",
    "org.camaraproject.device-reachability-status-subscriptions.v0.reachability-sms",
    "org.camaraproject.device-reachability-status-subscriptions.v0.reachability-disconnected",
]
Protocol = Literal["HTTP", "MQTT3", "MQTT5", "AMQP", "NATS", "KAFKA"]
_EVENT_EXAMPLES = [[event_types.REACHABILITY_DATA]]
_EXPIRE_EXAMPLES = ["2023-01-17T13:18:23.682Z"]


class PlainCredential(_Model):
    """An identifier and a secret; not offered (INVALID_CREDENTIAL)."""

    credentialType: Literal["PLAIN"] = Field(description="The kind of credential.")
    identifier: str = Field(max_length=MAX_TEXT, description="The account or user.")
    secret: str = Field(max_length=MAX_TEXT, description="The password.")


class AccessTokenCredential(_Model):
    """An access token for the sink; never returned."""

    credentialType: Literal["ACCESSTOKEN"] = Field(description="The kind of credential.")
    accessToken: str = Field(min_length=1, max_length=MAX_TEXT, description="Sent as a bearer token (RFC 6750).")
    accessTokenExpiresUtc: Rfc3339 = Field(
        description="When the token expires; the subscription ends with it.", examples=["2027-07-03T12:27:08.312Z"]
    )
    accessTokenType: Literal["bearer"] = Field(description="The type of the access token.")


class RefreshTokenCredential(_Model):
    """An access token that can be refreshed; not offered (INVALID_CREDENTIAL)."""

    credentialType: Literal["REFRESHTOKEN"] = Field(description="The kind of credential.")
    accessToken: str = Field(max_length=MAX_TEXT, description="The access token.")
    accessTokenExpiresUtc: Rfc3339 = Field(description="When the access token expires.")
    accessTokenType: Literal["bearer"] = Field(description="The type of the access token.")
    refreshToken: str = Field(max_length=MAX_TEXT, description="The refresh token.")
    refreshTokenEndpoint: str = Field(
        max_length=MAX_TEXT, description="Where the token is refreshed.", json_schema_extra={"format": "uri"}
    )


SinkCredential = Annotated[
    PlainCredential | AccessTokenCredential | RefreshTokenCredential, Field(discriminator="credentialType")
]


class CreateSubscriptionDetail(_Model):
    """The device, unless the access token identifies it."""

    device: _GivenDevice = _optional()


class Config(_Model):
    """How events are acquired."""

    subscriptionDetail: CreateSubscriptionDetail
    subscriptionExpireTime: _GivenTime = _optional(
        description="When the subscription expires (RFC 3339).", examples=_EXPIRE_EXAMPLES
    )
    subscriptionMaxEvents: Annotated[int | None, BeforeValidator(_not_null)] = _optional(
        ge=1,
        le=(1 << 31) - 1,
        description="The subscription ends after this number of events; an initial event counts.",
    )
    initialEvent: _GivenFlag = _optional(
        description="Whether to send an event at once if the device is in the state of the event type now."
    )


class SubscriptionRequest(_Model):
    """A subscription to create."""

    protocol: Protocol = Field(description="Only HTTP is offered.", examples=["HTTP"])
    sink: str = Field(
        max_length=MAX_URL,
        pattern=r"^https:\/\/.+$",
        description="Where events are delivered.",
        examples=["https://endpoint.example.com/sink"],
        json_schema_extra={"format": "uri"},
    )
    sinkCredential: Annotated[SinkCredential | None, BeforeValidator(_not_null)] = _optional(
        description="The credential for the sink."
    )
    types: list[EventType] = Field(
        min_length=1, max_length=1, description="The type of event.", examples=_EVENT_EXAMPLES
    )
    config: Config


class SubscriptionDetail(BaseModel):
    """The device, if the request had it."""

    device: DeviceResponse | None = _optional()


class SubscriptionConfig(BaseModel):
    """How events are acquired."""

    subscriptionDetail: SubscriptionDetail
    subscriptionExpireTime: AwareDatetime | None = _optional(description="As requested.", examples=_EXPIRE_EXAMPLES)
    subscriptionMaxEvents: int | None = _optional(ge=1, description="As requested.")
    initialEvent: bool = Field(description="As requested.")


class Subscription(BaseModel):
    """A subscription."""

    id: str = Field(max_length=MAX_ID, description="The id of the subscription.")
    protocol: Literal["HTTP"] = Field(description="How events are delivered.")
    sink: str = Field(description="Where events are delivered.")
    types: list[EventType] = Field(
        min_length=1, max_length=1, description="The type of event.", examples=_EVENT_EXAMPLES
    )
    config: SubscriptionConfig
    startsAt: AwareDatetime = Field(description="When the subscription started.")
    expiresAt: AwareDatetime | None = _optional(description="Absent if the subscription does not expire.")
    status: Literal["ACTIVE", "EXPIRED", "DELETED"] = Field(description="Whether the subscription is active.")


# Events.


class EventData(BaseModel):
    """The subscription and the device of an event."""

    device: DeviceResponse | None = _optional()
    subscriptionId: str = Field(description="The id of the subscription.")


class StartedData(EventData):
    """Why a subscription started."""

    initiationReason: Literal["SUBSCRIPTION_CREATED"] = Field(description="Why the subscription started.")


class EndedData(EventData):
    """Why a subscription ended."""

    terminationReason: Literal[
        "MAX_EVENTS_REACHED",
        "NETWORK_TERMINATED",
        "SUBSCRIPTION_EXPIRED",
        "ACCESS_TOKEN_EXPIRED",
        "SUBSCRIPTION_DELETED",
    ] = Field(description="Why the subscription ended.")
    terminationDescription: str | None = _optional(
        max_length=MAX_MESSAGE, description="Why the subscription ended, for people."
    )


class CloudEvent(BaseModel):
    """A CloudEvent (1.0, structured JSON)."""

    id: str = Field(description="The same in each attempt: use it to recognise an event that arrives twice.")
    source: str = Field(description="The subscription's URL.", json_schema_extra={"format": "uri-reference"})
    type: Literal[
        "org.camaraproject.device-reachability-status-subscriptions.v0.reachability-data",
        "org.camaraproject.device-reachability-status-subscriptions.v0.reachability-disconnected",
        "org.camaraproject.device-reachability-status-subscriptions.v0.subscription-started",
        "org.camaraproject.device-reachability-status-subscriptions.v0.subscription-ended",
    ] = Field(description="The type of event.")
    specversion: Literal["1.0"] = Field(description="Version of CloudEvents.")
    datacontenttype: Literal["application/json"] = Field(description="The media type of `data`.")
    time: AwareDatetime = Field(description="When the event happened (RFC 3339).")
    data: EndedData | StartedData | EventData = Field(description="What happened, by the type of event.")
