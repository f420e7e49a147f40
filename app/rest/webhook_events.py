"""The `webhooks` of REST API v1's OpenAPI document: the CloudEvents that the gateway sends to endpoints.

Invariants: these are the types that `WebhookSender` sends, as a test checks.

Deliberately absent: sending (`egress/webhook.py`), and CAMARA's events (`camara/cloud_events.py`).
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

from fastapi import Body, FastAPI, Header
from pydantic import AwareDatetime, BaseModel, Field

from app.rest.status_schemas import NotifiedError, TerminalStatus

TAG = "Webhooks"
_PREFIX = "org.terminalstatus.v1."


class _Data(BaseModel):
    subscription_id: str = Field(description="The subscription's id.")
    correlator: str = Field(description="Your own name for the subscription; may be empty.")


class StatusChangedData(_Data):
    """Data of `status-changed`: the new statuses of one or several terminals."""

    statuses: list[TerminalStatus] = Field(description="The new statuses, one for each terminal.")


class SubscriptionStartedData(_Data):
    """Data of `subscription-started`: the subscription's terminals and groups, and its end."""

    addresses: list[str] = Field(description="Terminals and groups of the subscription, in canonical form.")
    expire_time: AwareDatetime | None = Field(description="When the subscription ends; null: it does not expire.")


class SubscriptionFailedData(_Data):
    """Data of `subscription-failed`: a terminal is unknown or refused. The subscription continues with the others."""

    address: str | None = Field(description="The terminal that failed; null if the whole subscription did.")
    error: NotifiedError = Field(description="Why it failed.")


class SubscriptionEndedData(_Data):
    """Data of `subscription-ended`, the last event. A subscription that its client ends has no such event."""

    reason: Literal["EXPIRED", "COUNT_REACHED", "CLIENT_DELETED", "FAILED", "SINK_GONE", "TOKEN_EXPIRED"] = Field(
        description="Why the subscription ended, as `end_reason` of a Subscription."
    )
    detail: str = Field(description="Why the subscription ended, for people. The wording may change.")


class SinkTestData(_Data):
    """Data of `sink-test`, which checks the endpoint: answer 2xx to accept the events."""


class _Event(BaseModel):
    specversion: Literal["1.0"] = Field(description="Version of CloudEvents.")
    id: str = Field(description="The same in each attempt: use it to recognise an event that arrives twice.")
    source: str = Field(description="URI reference of the subscription.")
    time: AwareDatetime = Field(description="When the gateway made the event (RFC 3339, UTC).")
    sequence: str = Field(description="Position within the subscription; sorts as text.")
    subject: str | None = Field(None, description="The terminal's address, if the event is about one terminal.")
    datacontenttype: Literal["application/json"] = Field(description="Media type of `data`.")


class StatusChangedEvent(_Event):
    """A CloudEvent (1.0, structured JSON): terminals have a new status."""

    type: Literal["org.terminalstatus.v1.status-changed"] = Field(description="The type of the event.")
    data: StatusChangedData


class SubscriptionStartedEvent(_Event):
    """A CloudEvent (1.0, structured JSON): a subscription has started."""

    type: Literal["org.terminalstatus.v1.subscription-started"] = Field(description="The type of the event.")
    data: SubscriptionStartedData


class SubscriptionFailedEvent(_Event):
    """A CloudEvent (1.0, structured JSON): a terminal of a subscription failed."""

    type: Literal["org.terminalstatus.v1.subscription-failed"] = Field(description="The type of the event.")
    data: SubscriptionFailedData


class SubscriptionEndedEvent(_Event):
    """A CloudEvent (1.0, structured JSON): a subscription has ended."""

    type: Literal["org.terminalstatus.v1.subscription-ended"] = Field(description="The type of the event.")
    data: SubscriptionEndedData


class SinkTestEvent(_Event):
    """A CloudEvent (1.0, structured JSON): a check of the endpoint."""

    type: Literal["org.terminalstatus.v1.sink-test"] = Field(description="The type of the event.")
    data: SinkTestData


EVENTS: dict[str, tuple[type[BaseModel], str]] = {
    "status-changed": (StatusChangedEvent, "Terminals have a new status"),
    "subscription-started": (SubscriptionStartedEvent, "A subscription has started"),
    "subscription-failed": (SubscriptionFailedEvent, "A terminal of a subscription failed"),
    "subscription-ended": (SubscriptionEndedEvent, "A subscription has ended"),
    "sink-test": (SinkTestEvent, "An endpoint is checked"),
}
"""The events by the end of their type."""

_DESCRIPTION = (
    "The gateway sends the event to the subscription's endpoint as `application/cloudevents+json`, signed as Standard "
    "Webhooks specifies; at least once, and in order within a subscription. An answer 2xx confirms delivery, 410 ends "
    "the subscription; after any other answer the gateway tries again later, and heeds Retry-After. It does not follow "
    "redirects."
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
            response_description="The event is accepted.",
            responses={
                410: {"description": "The endpoint wants no more events: the subscription ends."},
                "default": {"description": "The gateway tries again later."},
            },
        )(_receiver(event))


def _operation_id(name: str) -> str:
    return "receive" + "".join(word.capitalize() for word in name.split("-"))


def _receiver(event: type[BaseModel]) -> Callable[..., Awaitable[None]]:
    async def receive(
        body: Annotated[event, Body(media_type="application/cloudevents+json")],  # type: ignore[valid-type]
        webhook_id: Annotated[str, Header(description="The event's id.")],
        webhook_timestamp: Annotated[str, Header(description="The time of this attempt, in Unix seconds.")],
        webhook_signature: Annotated[
            str, Header(description="`v1,` and the signature in base64; one for each secret, separated by spaces.")
        ],
    ) -> None:
        """Serves only as documentation."""

    return receive
