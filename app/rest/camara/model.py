"""What CAMARA's words mean here: devices, event types, life times and CloudEvents (release r1.2).

A CAMARA subscription is a `Subscription` to one terminal whose sink has the profile PROFILE_CAMARA; what it was asked
for beyond that stands in the sink's parameters. Such a subscription is told no BUSY (`rules.py`), so that a change
between REACHABLE and BUSY, which both are reachable with DATA, neither is an event nor counts as one.
Invariants: pure; the clock is an argument. An IP address is nobody's address here, and nothing is reachable by SMS.

Deliberately absent: HTTP, and how an event gets to its sink (`webhook.py`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import InvalidAddress
from app.domain.policy import MAX_INTERVAL_MS
from app.domain.records import NotificationKind, OwedNotification, Subscription
from app.domain.sinks import TOKEN_LEAD, EndReason
from app.domain.statuses import Status

SUBSCRIPTIONS_PATH = "/device-reachability-status-subscriptions/v0.8/subscriptions"
EVENT_PREFIX = "org.camaraproject.device-reachability-status-subscriptions.v0."
REACHABILITY_DATA = EVENT_PREFIX + "reachability-data"
REACHABILITY_SMS = EVENT_PREFIX + "reachability-sms"
REACHABILITY_DISCONNECTED = EVENT_PREFIX + "reachability-disconnected"
SUBSCRIPTION_STARTED = EVENT_PREFIX + "subscription-started"
SUBSCRIPTION_ENDED = EVENT_PREFIX + "subscription-ended"

CRITERIA: Mapping[str, frozenset[Status]] = {
    REACHABILITY_DATA: frozenset({Status.REACHABLE}),  # which BUSY is shown as
    REACHABILITY_DISCONNECTED: frozenset({Status.UNREACHABLE}),
}
"""The statuses that an event type tells; a type that is not in it is not offered."""

TYPE = "type"
"""Sink parameter: the event type."""
DEVICE = "device"
"""Sink parameter: the identifier by which the device was named, as JSON; empty where the access token named it."""
EXPIRE_TIME = "expire_time"
"""Sink parameter: `subscriptionExpireTime` as it was asked for."""
ENDS_WITH_TOKEN = "ends_with_token"  # noqa: S105  # a parameter's name
"""Sink parameter, not empty: it expires because its access token does."""

_NAI = re.compile(r"[A-Za-z0-9\-_.!~*'()&=+$,/]+@[A-Za-z0-9.\-]+")
NUMBER = "{number}"
TERMINATION_REASONS: Mapping[EndReason, str] = {
    EndReason.EXPIRED: "SUBSCRIPTION_EXPIRED",
    EndReason.COUNT_REACHED: "MAX_EVENTS_REACHED",
    EndReason.CANCELLED: "SUBSCRIPTION_DELETED",
    EndReason.CLIENT_DELETED: "NETWORK_TERMINATED",
    EndReason.FAILED: "NETWORK_TERMINATED",
    EndReason.SINK_GONE: "NETWORK_TERMINATED",
    EndReason.TOKEN_EXPIRED: "ACCESS_TOKEN_EXPIRED",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """A device: by which identifier it was named, and the terminal that it is."""

    identifier: Mapping[str, str]
    address: TerminalAddress


def identify(phone_number: str | None, network_access_identifier: str | None, number_pattern: str) -> Identified | None:
    """The device of these identifiers, of which the telephone number goes first; None where there is neither.

    `number_pattern` is an address with NUMBER in the place of the number, which begins with its plus.
    Raises InvalidAddress.
    """
    if phone_number is not None:
        address = parse_address(number_pattern.replace(NUMBER, phone_number))
        return Identified(identifier={"phoneNumber": phone_number}, address=address)
    if network_access_identifier is not None:
        address = _of_name(network_access_identifier)
        return Identified(identifier={"networkAccessIdentifier": network_access_identifier}, address=address)
    return None


def device_of_token(subject: str, number_pattern: str) -> TerminalAddress:
    """The terminal that an access token names: a URI, a telephone number with its plus, or a network access identifier.

    Raises InvalidAddress.
    """
    if subject.startswith("+"):
        subject = number_pattern.replace(NUMBER, subject)
    elif not subject.lower().startswith(("sip:", "sips:", "tel:")):
        return _of_name(subject)
    return parse_address(subject)


def _of_name(identifier: str) -> TerminalAddress:
    """A network access identifier is a name and a realm (RFC 7542), and brings no parameters of a SIP URI with it."""
    if not _NAI.fullmatch(identifier):
        raise InvalidAddress("A network access identifier is a name, @ and a realm.", field="networkAccessIdentifier")
    return parse_address(f"sip:{identifier}")


def duration(
    now: datetime, expire_time: datetime | None, token_expires_at: datetime | None, default_ms: int | None
) -> tuple[int | None, bool]:
    """How long a subscription lasts, in milliseconds, and whether its access token is what ends it.

    `default_ms` is what holds where no time is asked for; None is for ever. A token that outlives every duration that
    can be asked for bounds none: the subscription ends with it all the same.
    """
    asked_ms = default_ms if expire_time is None else _ms(expire_time - now)
    if token_expires_at is not None:
        token_ms = max(1, _ms(token_expires_at - TOKEN_LEAD - now))
        if asked_ms is None or token_ms < asked_ms:
            return (None if asked_ms is None and token_ms > MAX_INTERVAL_MS else token_ms), True
    return asked_ms, False


def _ms(of: timedelta) -> int:
    return -(-of // timedelta(milliseconds=1))


def identifier(subscription: Subscription) -> Mapping[str, str] | None:
    """By which identifier a subscription's device was named; None where the access token named it."""
    text = subscription.sink.parameters.get(DEVICE, "")
    return json.loads(text) if text else None


def is_whole(subscription: Subscription) -> bool:
    """Whether a sink's parameters are what `identifier`, `event` and those who show it rely on.

    A database may hold another one: gateways took this profile from other APIs once, with whatever parameters.
    """
    parameters = subscription.sink.parameters
    try:
        device = identifier(subscription)
        if expire_time := parameters.get(EXPIRE_TIME):
            datetime.fromisoformat(expire_time).astimezone(UTC)
    except (ValueError, OverflowError, RecursionError):
        return False
    named = device is None or (
        isinstance(device, dict) and all(isinstance(each, str) and each.isascii() for each in device.values())
    )
    return named and parameters.get(TYPE) in CRITERIA


def status(subscription: Subscription) -> str:
    """A subscription's status, in CAMARA's words."""
    if subscription.active:
        return "ACTIVE"
    return "EXPIRED" if subscription.end_reason in (EndReason.EXPIRED, EndReason.TOKEN_EXPIRED) else "DELETED"


def event(subscription: Subscription, notification: OwedNotification, source: str) -> Mapping[str, object] | None:
    """The CloudEvent of a notification, for `WebhookSender`'s envelopes; None where CAMARA has none for it."""
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
                data["terminationDescription"] = notification.text
        case _:
            return None  # an error is followed by the end; a test is no event of CAMARA's
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
