"""The CloudEvents that CAMARA subscriptions' sinks get.

Deliberately absent: their delivery (`egress/webhook.py`), and events for errors and tests, which CAMARA does not have.
"""

from collections.abc import Mapping
from datetime import UTC

from app.domain.records import NotificationKind, OwedNotification, Subscription
from app.domain.sinks import EndReason
from app.rest.camara.errors import bounded
from app.rest.camara.event_types import SUBSCRIPTION_ENDED, SUBSCRIPTION_STARTED
from app.rest.camara.sink_parameters import ENDS_WITH_TOKEN, TYPE, identifier

SUBSCRIPTIONS_PATH = "/device-reachability-status-subscriptions/v0.8/subscriptions"

TERMINATION_REASONS: Mapping[EndReason, str] = {
    EndReason.EXPIRED: "SUBSCRIPTION_EXPIRED",
    EndReason.COUNT_REACHED: "MAX_EVENTS_REACHED",
    EndReason.CANCELLED: "SUBSCRIPTION_DELETED",
    EndReason.CLIENT_DELETED: "NETWORK_TERMINATED",
    EndReason.FAILED: "NETWORK_TERMINATED",
    EndReason.SINK_GONE: "NETWORK_TERMINATED",
    EndReason.TOKEN_EXPIRED: "ACCESS_TOKEN_EXPIRED",
}


def event(subscription: Subscription, notification: OwedNotification, source: str) -> Mapping[str, object] | None:
    """Returns a notification's CloudEvent, for `WebhookSender`; None if CAMARA has no event for the notification."""
    data: dict[str, object] = {"subscriptionId": subscription.id}
    if (device := identifier(subscription)) is not None:
        data["device"] = device
    at = notification.created_at
    match notification.kind:
        case NotificationKind.STATUS:
            kind, at = subscription.sink.parameters[TYPE], notification.changes[-1].observed_at
        case NotificationKind.STARTED:
            kind, data["initiationReason"] = SUBSCRIPTION_STARTED, "SUBSCRIPTION_CREATED"
        case NotificationKind.ENDED:
            kind, data["terminationReason"] = SUBSCRIPTION_ENDED, _termination(subscription, notification)
            if notification.text:
                data["terminationDescription"] = bounded(notification.text)
        case _:
            return None  # an ERROR is followed by ENDED
    return {
        "id": notification.id,
        "source": f"{source}{SUBSCRIPTIONS_PATH}/{subscription.id}",
        "specversion": "1.0",
        "type": kind,
        "datacontenttype": "application/json",
        "time": at.astimezone(UTC),
        "data": data,
    }


def _termination(subscription: Subscription, notification: OwedNotification) -> str:
    reason = EndReason[notification.code]
    if reason is EndReason.EXPIRED and subscription.sink.parameters.get(ENDS_WITH_TOKEN):
        reason = EndReason.TOKEN_EXPIRED
    return TERMINATION_REASONS[reason]
