"""CAMARA's event types, and the statuses that each reports.

BUSY is reachable with DATA, as REACHABLE is. The core reports no BUSY to a CAMARA subscription, so a change between the
two is neither sent nor counted.
"""

from collections.abc import Mapping

from app.domain.statuses import Status

EVENT_PREFIX = "org.camaraproject.device-reachability-status-subscriptions.v0."
REACHABILITY_DATA = EVENT_PREFIX + "reachability-data"
REACHABILITY_SMS = EVENT_PREFIX + "reachability-sms"
REACHABILITY_DISCONNECTED = EVENT_PREFIX + "reachability-disconnected"
SUBSCRIPTION_STARTED = EVENT_PREFIX + "subscription-started"
SUBSCRIPTION_ENDED = EVENT_PREFIX + "subscription-ended"

CRITERIA: Mapping[str, frozenset[Status]] = {
    REACHABILITY_DATA: frozenset({Status.REACHABLE}),
    REACHABILITY_DISCONNECTED: frozenset({Status.UNREACHABLE}),
}
"""The statuses that each offered event type reports. REACHABILITY_SMS is not offered."""
