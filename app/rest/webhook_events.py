"""The `webhooks` of REST API v1's OpenAPI document: the CloudEvents that subscriptions' endpoints are sent.

Invariants: the types are those that `WebhookSender` sends, which a test holds this to.

Deliberately absent: the sending (`webhook.py`), CAMARA's events.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

from fastapi import Body, FastAPI, Header
from pydantic import AwareDatetime, BaseModel, Field

from app.domain.statuses import Source, Status

TAG = "Webhooks"
_PREFIX = "org.terminalstatus.v1."


class Change(BaseModel):
    """One terminal's change."""

    address: str
    status: Status
    observed_at: AwareDatetime
    source: Source
    revision: int


class _Data(BaseModel):
    subscription_id: str
    correlator: str = Field(description="Your own name for the subscription; may be empty.")


class StatusChanged(_Data):
    """Data of `status-changed`."""

    changes: list[Change] = Field(description="Each terminal once.")


class SubscriptionStarted(_Data):
    """Data of `subscription-started`."""

    addresses: list[str]
    expires_at: AwareDatetime | None


class SubscriptionError(_Data):
    """Data of `subscription-error`: a terminal is unknown or refused; the subscription goes on with the others."""

    address: str | None
    code: str = Field(description="As `code` of a problem.")
    message: str


class SubscriptionEnded(_Data):
    """Data of `subscription-ended`; nothing follows. Who ends a subscription by a call is not told of it."""

    reason: Literal["EXPIRED", "COUNT_REACHED", "CLIENT_DELETED", "FAILED", "SINK_GONE", "TOKEN_EXPIRED"]
    message: str


class SinkTest(_Data):
    """Data of `sink-test`: the endpoint is checked. Answer 2xx if you want the events."""


class _Event(BaseModel):
    specversion: Literal["1.0"]
    id: str = Field(description="The same at each attempt; compare it to know an event that came twice.")
    source: str = Field(description="The subscription, as a URI reference.")
    time: AwareDatetime
    sequence: str = Field(description="Orders the events of a subscription as text.")
    subject: str | None = Field(None, description="The terminal, where the event is about one.")
    datacontenttype: Literal["application/json"]


class StatusChangedEvent(_Event):
    """A CloudEvent (1.0, structured JSON): terminals have changed."""

    type: Literal["org.terminalstatus.v1.status-changed"]
    data: StatusChanged


class SubscriptionStartedEvent(_Event):
    """A CloudEvent (1.0, structured JSON): the subscription has started."""

    type: Literal["org.terminalstatus.v1.subscription-started"]
    data: SubscriptionStarted


class SubscriptionErrorEvent(_Event):
    """A CloudEvent (1.0, structured JSON): a terminal failed."""

    type: Literal["org.terminalstatus.v1.subscription-error"]
    data: SubscriptionError


class SubscriptionEndedEvent(_Event):
    """A CloudEvent (1.0, structured JSON): the subscription has ended."""

    type: Literal["org.terminalstatus.v1.subscription-ended"]
    data: SubscriptionEnded


class SinkTestEvent(_Event):
    """A CloudEvent (1.0, structured JSON): a test of the endpoint."""

    type: Literal["org.terminalstatus.v1.sink-test"]
    data: SinkTest


EVENTS: dict[str, tuple[type[BaseModel], str]] = {
    "status-changed": (StatusChangedEvent, "Terminals have changed"),
    "subscription-started": (SubscriptionStartedEvent, "A subscription has started"),
    "subscription-error": (SubscriptionErrorEvent, "A terminal of a subscription failed"),
    "subscription-ended": (SubscriptionEndedEvent, "A subscription has ended"),
    "sink-test": (SinkTestEvent, "An endpoint is tested"),
}
"""The events by the end of their type."""

_DESCRIPTION = (
    "Sent to the subscription's endpoint as `application/cloudevents+json`, at least once, in order within a "
    "subscription, signed as Standard Webhooks says. Any 2xx is taken for delivered, 410 ends the subscription, "
    "anything else is tried again later (Retry-After is heeded). Redirects are not followed."
)


def add_webhooks(app: FastAPI) -> None:
    """Adds the events to the document of `app`."""
    for name, (event, summary) in EVENTS.items():
        app.webhooks.post(
            name,
            operation_id=_operation_id(name),
            tags=[TAG],
            summary=summary,
            description=_DESCRIPTION,
            status_code=204,
            response_description="The event was taken.",
            responses={
                410: {"description": "Nothing more is wanted: the subscription ends."},
                "default": {"description": "It is tried again later."},
            },
        )(_receiver(event))


def _operation_id(name: str) -> str:
    return "receive" + "".join(word.capitalize() for word in name.split("-"))


def _receiver(event: type[BaseModel]) -> Callable[..., Awaitable[None]]:
    async def receive(
        body: Annotated[event, Body(media_type="application/cloudevents+json")],  # type: ignore[valid-type]
        webhook_id: Annotated[str, Header(description="The event's id.")],
        webhook_timestamp: Annotated[str, Header(description="When this attempt was made, in Unix seconds.")],
        webhook_signature: Annotated[
            str, Header(description="`v1,` and the signature, one for each secret, blanks between.")
        ],
    ) -> None:
        """Only documentation."""

    return receive
