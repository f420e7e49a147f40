"""REST API v1: notifications of subscriptions, delivery attempts, sending again, and replay."""

import enum
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from app.core.deliveries import MAX_SEND_AGAIN
from app.core.use_cases import UseCases
from app.domain.errors import ChangeNotAllowed, NotificationUnknown, SubscriptionUnknown
from app.domain.filters import NotificationFilter
from app.domain.records import MAX_ID, DeliveryState
from app.domain.sinks import EndReason
from app.ports.store import MAX_PAGE_TOKEN
from app.rest import to_json
from app.rest.error_examples import failures
from app.rest.parameters import Caller, ClientId, EndTime, Paged, StartTime
from app.rest.responses import json_response
from app.rest.schemas import At, Id, Request, Rfc3339
from app.rest.status_schemas import NotifiedError, TerminalStatus

TAG = "Deliveries"

IdInPath = Annotated[str, Path(max_length=MAX_ID, description="The notification's id.")]


class StatusChanges(BaseModel):
    """Terminals have a new status."""

    kind: Literal["STATUS_CHANGES"] = Field(description="The kind of content.")
    statuses: list[TerminalStatus] = Field(description="The new statuses, one for each terminal.")


class SubscriptionStarted(BaseModel):
    """The subscription has started."""

    kind: Literal["SUBSCRIPTION_STARTED"] = Field(description="The kind of content.")


class SubscriptionFailed(BaseModel):
    """A terminal of the subscription, or the whole subscription, has failed."""

    kind: Literal["SUBSCRIPTION_FAILED"] = Field(description="The kind of content.")
    address: str | None = Field(description="The terminal that failed; null if the whole subscription did.")
    error: NotifiedError = Field(description="Why it failed.")


class SubscriptionEnded(BaseModel):
    """The subscription has ended; nothing follows."""

    kind: Literal["SUBSCRIPTION_ENDED"] = Field(description="The kind of content.")
    reason: EndReason = Field(description="Why the subscription ended, as `end_reason` of a Subscription.")
    detail: str = Field(description="Why the subscription ended, for people; may be empty.")


Content = Annotated[
    StatusChanges | SubscriptionStarted | SubscriptionFailed | SubscriptionEnded,
    Field(discriminator="kind", description="What the notification reports. Ignore kinds that you do not know."),
]


class Notification(BaseModel):
    """One message to a subscription's sink."""

    id: Id = Field(description="Equals the event's `id` and the header `webhook-id`; the same in each attempt.")
    subscription_id: Id
    client_id: str = Field(description="The subscription's client.")
    sequence: int = Field(description="Position within the subscription, from 1, without gaps.")
    content: Content
    create_time: At
    next_attempt_time: At | None = Field(description="PENDING only: the time of the next attempt; else null.")
    attempt_count: int = Field(description="Number of attempts so far.")
    state: DeliveryState = Field(
        description="`PENDING`: not delivered yet. `DELIVERED`. `DEAD`: given up; can be sent again. `WITHDRAWN`: not "
        "sent, since the client ended the subscription."
    )
    settle_time: At | None = Field(description="When the state became other than PENDING; null before.")


class Notifications(BaseModel):
    """One page of notifications, oldest first."""

    notifications: list[Notification] = Field(description="The notifications of this page.")
    next_page_token: str = Field(description="`page_token` of the next page; empty on the last page.")


class DeliveryOutcome(enum.Enum):
    """How a delivery attempt ended.

    `DELIVERED`: the endpoint answered 2xx. `LISTED`: nothing is sent to this sink; the notification can be listed.
    `NOT_SENT`: the sink's format has no word for the notification, which counts as delivered. `HTTP_ERROR`: the
    endpoint answered with another status, which is in `http_code`. `SOAP_FAULT`: the endpoint of a SOAP sink answered
    200 with a fault. `TIMED_OUT`, `CONNECTION_REFUSED`, `UNREACHABLE`, `CONNECTION_RESET`, `NAME_NOT_RESOLVED`,
    `TLS_FAILED`, `MALFORMED_RESPONSE`: there was no answer over HTTP. `ADDRESS_FORBIDDEN`, `SINK_REFUSED`: the operator
    does not allow the endpoint's address, or its URL. `SUBSCRIPTION_ENDED`, `TOKEN_EXPIRED`, `SECRET_UNREADABLE`,
    `NO_SENDER`: nothing was sent, since the sink ended the subscription before, its access token has expired, its
    secrets cannot be decrypted, or this gateway does not send to this kind of sink. `DEFECT`: a defect of the gateway.
    `UNKNOWN`: written by another version of the gateway.
    """

    UNKNOWN = "UNKNOWN"
    DELIVERED = "DELIVERED"
    LISTED = "LISTED"
    NOT_SENT = "NOT_SENT"
    HTTP_ERROR = "HTTP_ERROR"
    SOAP_FAULT = "SOAP_FAULT"
    TIMED_OUT = "TIMED_OUT"
    CONNECTION_REFUSED = "CONNECTION_REFUSED"
    UNREACHABLE = "UNREACHABLE"
    CONNECTION_RESET = "CONNECTION_RESET"
    NAME_NOT_RESOLVED = "NAME_NOT_RESOLVED"
    TLS_FAILED = "TLS_FAILED"
    MALFORMED_RESPONSE = "MALFORMED_RESPONSE"
    ADDRESS_FORBIDDEN = "ADDRESS_FORBIDDEN"
    SINK_REFUSED = "SINK_REFUSED"
    SUBSCRIPTION_ENDED = "SUBSCRIPTION_ENDED"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105  # not a secret
    SECRET_UNREADABLE = "SECRET_UNREADABLE"  # noqa: S105  # not a secret
    NO_SENDER = "NO_SENDER"
    DEFECT = "DEFECT"


class DeliveryAttempt(BaseModel):
    """One attempt to deliver a notification."""

    number: int = Field(description="The attempt's number, from 1.")
    start_time: At = Field(description="When the attempt began (RFC 3339, UTC).")
    http_code: int = Field(description="The HTTP status of the endpoint's answer; 0 without an answer.")
    duration_ms: int = Field(description="How long the attempt took.")
    outcome: DeliveryOutcome = Field(description="How the attempt ended. Later versions may add values.")
    response_body: str = Field(description="The first 2048 bytes of the endpoint's answer, as text.")


class DeliveryAttempts(BaseModel):
    """One page of the attempts to deliver a notification."""

    delivery_attempts: list[DeliveryAttempt] = Field(description="The attempts of this page, oldest first.")
    next_page_token: str = Field(description="`page_token` of the next page; empty on the last page.")


class SendAgainRequest(Request):
    """Notifications to send again."""

    notification_ids: list[Annotated[str, Field(max_length=MAX_ID)]] = Field(
        min_length=1, max_length=MAX_SEND_AGAIN, description="Ids of notifications."
    )


class SentAgain(BaseModel):
    """The number of notifications that are tried again: those that were DEAD."""

    sent_again_count: int = Field(description="Number of notifications.")


class ReplayRequest(Request):
    """Delivered notifications to send once more."""

    subscription_id: str = Field(max_length=MAX_ID, description="The subscription; it may have ended.")
    start_time: Rfc3339 = Field(description="Only notifications created at this time or later (RFC 3339).")
    end_time: Rfc3339 | None = Field(
        None, description="Only notifications created before this time (RFC 3339). Absent: until now."
    )
    page_token: str = Field(
        "",
        max_length=MAX_PAGE_TOKEN,
        description="`next_page_token` of the previous call, with the same other members; empty for the first call.",
    )


class Replayed(BaseModel):
    """The result of one call of a replay."""

    replayed_count: int = Field(description="Number of notifications that are due again.")
    next_page_token: str = Field(description="`page_token` of the next call; empty if there is nothing more to send.")


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operations to `router`."""
    deliveries = use_cases.deliveries

    @router.get(
        "/v1/notifications",
        operation_id="listNotifications",
        tags=[TAG],
        summary="List notifications",
        description="Lists notifications that your subscriptions were sent or are owed, while the gateway keeps them.",
        response_model=Notifications,
        response_description="Notifications, oldest first.",
        responses=failures(),
    )
    async def list_notifications(
        client: Caller,
        page: Paged,
        state: Annotated[DeliveryState | None, Query(description="Only notifications in this state.")] = None,
        subscription_id: Annotated[
            str, Query(max_length=MAX_ID, description="Only notifications of this subscription.")
        ] = "",
        client_id: ClientId = "",
        start_time: StartTime = None,
        end_time: EndTime = None,
    ) -> Response:
        only = NotificationFilter(
            state=state, subscription_id=subscription_id, client_id=client_id, start=start_time, end=end_time
        )
        found, token = await deliveries.list(client, page, only)
        return json_response(
            {"notifications": [to_json.notification(each) for each in found], "next_page_token": token}
        )

    @router.get(
        "/v1/notifications/{notification_id:id}",
        operation_id="getNotification",
        tags=[TAG],
        summary="Get a notification",
        description="Returns one of your notifications, while the gateway keeps it.",
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
        description="Lists the attempts to deliver one of your notifications.",
        response_model=DeliveryAttempts,
        response_description="Attempts, oldest first.",
        responses=failures(NotificationUnknown),
    )
    async def list_delivery_attempts(client: Caller, notification_id: IdInPath, page: Paged) -> Response:
        found, token = await deliveries.attempts(client, notification_id, page)
        shown = [to_json.delivery_attempt(each) for each in found]
        return json_response({"delivery_attempts": shown, "next_page_token": token})

    @router.post(
        "/v1/notifications:sendAgain",
        operation_id="sendNotificationsAgain",
        tags=[TAG],
        summary="Send notifications again",
        description="Schedules new attempts for notifications that were given up (DEAD). Others are not changed.",
        response_model=SentAgain,
        response_description="The number of notifications that are tried again.",
        responses=failures(NotificationUnknown),
    )
    async def send_notifications_again(client: Caller, asked: SendAgainRequest) -> Response:
        return json_response({"sent_again_count": await deliveries.send_again(client, asked.notification_ids)})

    @router.post(
        "/v1/notifications:replay",
        operation_id="replayNotifications",
        tags=[TAG],
        summary="Send delivered notifications once more",
        description="Sends the delivered notifications of one of your subscriptions that were created in a span of "
        "time once more, such as after the endpoint lost its data: each with its `id` and content, in their order and "
        f"before later ones that wait. One call sends up to {MAX_SEND_AGAIN}; call again with `next_page_token` until "
        "it is empty. A notification older than three days is tried once. Limits of the subscription's count and "
        "interval do not apply. Notifications that the gateway no longer keeps do not count.",
        response_model=Replayed,
        response_description="The number of notifications that are due again.",
        responses=failures(SubscriptionUnknown, ChangeNotAllowed),
    )
    async def replay_notifications(client: Caller, asked: ReplayRequest) -> Response:
        replayed, token = await deliveries.replay(
            client, asked.subscription_id, start=asked.start_time, end=asked.end_time, page_token=asked.page_token
        )
        return json_response({"replayed_count": replayed, "next_page_token": token})
