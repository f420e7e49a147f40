"""REST API v1: owed and settled notifications, their attempts, and sending again. No rules here."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from app.core.deliveries import MAX_SEND_AGAIN
from app.core.use_cases import UseCases
from app.domain.errors import NotificationUnknown
from app.domain.records import MAX_ID, DeliveryState, NotificationKind
from app.rest import to_json
from app.rest.error_examples import failures
from app.rest.parameters import Caller, Paged
from app.rest.responses import json_response
from app.rest.schemas import At, Id, Request, TerminalStatus

TAG = "Deliveries"

IdInPath = Annotated[str, Path(max_length=MAX_ID, description="The notification's id.")]


class Notification(BaseModel):
    """One message owed, or delivered, to a subscription's sink."""

    id: Id = Field(description="The event's `id` and the `webhook-id`, the same at each attempt.")
    subscription_id: Id
    client_id: str
    sequence: int = Field(description="Order within the subscription, from 1, without gaps.")
    kind: NotificationKind
    changes: list[TerminalStatus] = Field(description="What STATUS tells; empty otherwise.")
    address: str | None = Field(description="The terminal that an ERROR is about; null is the whole subscription.")
    code: str = Field(description="Of ERROR the error's code, of ENDED the reason.")
    text: str
    created_at: At
    next_attempt_at: At | None = Field(description="When it is tried next, if PENDING.")
    attempts: int
    state: DeliveryState
    settled_at: At | None


class Notifications(BaseModel):
    """One page of notifications, oldest first."""

    notifications: list[Notification]
    next_page_token: str = Field(description="Gets the next page; empty on the last.")


class DeliveryAttempt(BaseModel):
    """One try to deliver a notification."""

    number: int
    at: At
    code: int = Field(description="The endpoint's HTTP status; 0 where none came.")
    duration_ms: int
    outcome: str = Field(description="`delivered`, or a word for what failed, such as `timed-out` or `http-500`.")
    answer: str = Field(description="The first kilobytes of what the endpoint answered.")


class DeliveryAttempts(BaseModel):
    """The attempts to deliver a notification, in order."""

    attempts: list[DeliveryAttempt]


class SendAgainRequest(Request):
    """Notifications to send again."""

    notification_ids: list[Annotated[str, Field(max_length=MAX_ID)]] = Field(min_length=1, max_length=MAX_SEND_AGAIN)


class SentAgain(BaseModel):
    """How many notifications are tried again: those that had been given up."""

    sent_again: int


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operations to `router`."""
    deliveries = use_cases.deliveries

    @router.get(
        "/v1/notifications",
        operation_id="listNotifications",
        tags=[TAG],
        summary="List notifications",
        description="What your subscriptions were told or are owed, for as long as the gateway keeps it.",
        response_model=Notifications,
        response_description="Oldest first.",
        responses=failures(),
    )
    async def list_notifications(
        client: Caller,
        page: Paged,
        state: Annotated[DeliveryState | None, Query(description="Only those that stand so.")] = None,
        subscription_id: Annotated[str, Query(max_length=MAX_ID, description="Only those of this subscription.")] = "",
    ) -> Response:
        found, token = await deliveries.list(client, page, state=state, subscription_id=subscription_id)
        return json_response(
            {"notifications": [to_json.notification(each) for each in found], "next_page_token": token}
        )

    @router.get(
        "/v1/notifications/{notification_id:id}",
        operation_id="getNotification",
        tags=[TAG],
        summary="Get a notification",
        response_model=Notification,
        response_description="The notification.",
        responses=failures(NotificationUnknown),
    )
    async def get_notification(client: Caller, notification_id: IdInPath) -> Response:
        return json_response(to_json.notification(await deliveries.get(client, notification_id)))

    @router.get(
        "/v1/notifications/{notification_id:id}/attempts",
        operation_id="listDeliveryAttempts",
        tags=[TAG],
        summary="List a notification's delivery attempts",
        response_model=DeliveryAttempts,
        response_description="In order.",
        responses=failures(NotificationUnknown),
    )
    async def list_delivery_attempts(client: Caller, notification_id: IdInPath) -> Response:
        found = await deliveries.attempts(client, notification_id)
        return json_response({"attempts": [to_json.delivery_attempt(each) for each in found]})

    @router.post(
        "/v1/notifications:sendAgain",
        operation_id="sendNotificationsAgain",
        tags=[TAG],
        summary="Send notifications again",
        description="Has notifications tried again that were given up (DEAD); the others stay as they are.",
        response_model=SentAgain,
        response_description="How many were dead.",
        responses=failures(NotificationUnknown),
    )
    async def send_notifications_again(client: Caller, asked: SendAgainRequest) -> Response:
        return json_response({"sent_again": await deliveries.send_again(client, asked.notification_ids)})
