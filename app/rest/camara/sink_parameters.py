"""What a CAMARA subscription keeps in its sink's parameters, and its status in CAMARA's words.

A CAMARA subscription is a `Subscription` to one terminal whose sink has the profile PROFILE_CAMARA. The parts of its
request for which a `Subscription` has no field are parameters of the sink.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from app.domain.records import Subscription
from app.domain.sinks import EndReason
from app.rest.camara.event_types import CRITERIA

TYPE = "type"
"""The event type."""
DEVICE = "device"
"""The identifier that named the device, as JSON; empty if the access token named it."""
EXPIRE_TIME = "expire_time"
"""`subscriptionExpireTime` as requested."""
ENDS_WITH_TOKEN = "ends_with_token"  # noqa: S105  # a parameter's name
"""Not empty if the subscription expires because its sink's access token does."""


def identifier(subscription: Subscription) -> Mapping[str, str] | None:
    """Returns the identifier that named the device; None if the access token named it."""
    text = subscription.sink.parameters.get(DEVICE, "")
    return json.loads(text) if text else None


def is_valid(subscription: Subscription) -> bool:
    """Whether CAMARA's API can show the subscription and send its events with these parameters. A database may contain
    other parameters: earlier versions accepted this profile, with any parameters, over other APIs.
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
    """The subscription's state as CAMARA's `Subscription.status` names it."""
    if subscription.active:
        return "ACTIVE"
    return "EXPIRED" if subscription.end_reason in (EndReason.EXPIRED, EndReason.TOKEN_EXPIRED) else "DELETED"
