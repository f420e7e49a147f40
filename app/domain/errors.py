"""Everything that can go wrong for a caller, one class for each.

Invariants: a class has a stable `code` and knows no transport: each transport holds one total table from these classes
to its own answers.

Deliberately absent: status codes of HTTP, gRPC and SIP.
"""

from typing import ClassVar


class TerminalStatusError(Exception):
    """Base of everything a use case may raise. `str(error)` is safe to show to the caller.

    `code` is stable and part of every public API. `retryable` says whether the same request may succeed later
    unchanged; `retry_after_s` (seconds) is set where the presence server or the gateway knows how long to wait.
    `details` are short strings for machines, such as the address or the SIP code.
    """

    code: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None, **details: str) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.details = details


class InvalidAddress(TerminalStatusError):
    """The address is not a `sip:`, `sips:` or `tel:` URI that the gateway can ask about."""

    code = "INVALID_ADDRESS"


class TerminalUnknown(TerminalStatusError):
    """The presence server knows no such terminal (404, 604, `noresource`)."""

    code = "TERMINAL_UNKNOWN"


class WatcherRefused(TerminalStatusError):
    """The presentity or the operator refuses this watcher (403, 603, `rejected`, or approval still pending)."""

    code = "WATCHER_REFUSED"


class WatcherUnauthenticated(TerminalStatusError):
    """The presence server wants credentials that the gateway does not have or that it refused (401, 407)."""

    code = "WATCHER_UNAUTHENTICATED"


class FetchTimedOut(TerminalStatusError):
    """No NOTIFY came within the fetch time limit."""

    code = "FETCH_TIMED_OUT"
    retryable = True


class PresenceUnavailable(TerminalStatusError):
    """The presence server cannot answer now (408, 480, 5xx, or it cannot be reached)."""

    code = "PRESENCE_UNAVAILABLE"
    retryable = True


class WatcherRestarting(TerminalStatusError):
    """The SIP worker died with the query in flight, or is being replaced."""

    code = "WATCHER_RESTARTING"
    retryable = True


class GatewayOverloaded(TerminalStatusError):
    """As many fetches are in flight, or terminals watched, as the gateway allows."""

    code = "GATEWAY_OVERLOADED"
    retryable = True


class PresenceMisconfigured(TerminalStatusError):
    """The presence server does not speak the presence event package with us (405, 406, 415, 420, 489, …)."""

    code = "PRESENCE_MISCONFIGURED"


class DocumentUnreadable(TerminalStatusError):
    """The presence document cannot be read. `details["reason"]` is one word for metrics and logs."""

    code = "DOCUMENT_UNREADABLE"


class InvalidRequest(TerminalStatusError):
    """A part of the request cannot be used. `details["field"]` names it in the words of `terminal_status.proto`."""

    code = "INVALID_REQUEST"


class NoValidAddresses(TerminalStatusError):
    """Not one address was given that can be asked about. `details["field"]` names the part."""

    code = "NO_VALID_ADDRESSES"


class TooManyAddresses(TerminalStatusError):
    """More addresses than the policy allows, after groups were expanded. `details["field"]`, `details["most"]`."""

    code = "TOO_MANY_ADDRESSES"


class GroupUnknown(TerminalStatusError):
    """There is no such group, or it is another client's. `details["group"]`, `details["field"]`."""

    code = "GROUP_UNKNOWN"


class GroupExists(TerminalStatusError):
    """The address is a group already."""

    code = "GROUP_EXISTS"


class GroupTooLarge(TerminalStatusError):
    """A group with more members than the policy allows."""

    code = "GROUP_TOO_LARGE"


class GroupNotAllowed(TerminalStatusError):
    """A group where only a terminal may stand, or where the policy allows no groups (Parlay X POL0006)."""

    code = "GROUP_NOT_ALLOWED"


class NestedGroupNotAllowed(TerminalStatusError):
    """A group in a group where the policy allows none (POL0007)."""

    code = "NESTED_GROUP_NOT_ALLOWED"


class GroupChanged(TerminalStatusError):
    """The group is no longer of the version that the caller wants to change."""

    code = "GROUP_CHANGED"
    retryable = True


class UnlimitedCountNotAllowed(TerminalStatusError):
    """A subscription without an end by count, where the policy wants one (POL0004)."""

    code = "UNLIMITED_COUNT_NOT_ALLOWED"


class CountTooLarge(TerminalStatusError):
    """More notifications than the policy allows (POL0005)."""

    code = "COUNT_TOO_LARGE"


class IntervalTooShort(TerminalStatusError):
    """Notifications closer together than the policy allows (POL0009)."""

    code = "INTERVAL_TOO_SHORT"


class DurationTooLong(TerminalStatusError):
    """A subscription that lasts longer than the policy allows."""

    code = "DURATION_TOO_LONG"


class BusyNotSupported(TerminalStatusError):
    """Criteria with BUSY, where the operator does not tell it (POL0200)."""

    code = "BUSY_NOT_SUPPORTED"


class TooManySubscriptions(TerminalStatusError):
    """As many active subscriptions as the policy allows the client."""

    code = "TOO_MANY_SUBSCRIPTIONS"


class TooManyStreams(TerminalStatusError):
    """As many open streams as the gateway serves, or as the policy allows the client."""

    code = "TOO_MANY_STREAMS"


class TooManyWatchedTerminals(TerminalStatusError):
    """More terminals watched for the client than the policy allows it."""

    code = "TOO_MANY_WATCHED_TERMINALS"


class TooManyGroups(TerminalStatusError):
    """As many groups as the policy allows the client."""

    code = "TOO_MANY_GROUPS"


class RateLimited(TerminalStatusError):
    """More calls than the policy allows the client in this time."""

    code = "RATE_LIMITED"
    retryable = True


class DuplicateCorrelator(TerminalStatusError):
    """The client has an active subscription with this correlator (SVC0005)."""

    code = "DUPLICATE_CORRELATOR"


class RequestIdReused(TerminalStatusError):
    """The request id (Idempotency-Key) was used before, for another request."""

    code = "REQUEST_ID_REUSED"


class SubscriptionUnknown(TerminalStatusError):
    """There is no such active subscription, or it is another client's."""

    code = "SUBSCRIPTION_UNKNOWN"


class NotificationUnknown(TerminalStatusError):
    """There is no such owed notification, or it is another client's."""

    code = "NOTIFICATION_UNKNOWN"


class SinkRefused(TerminalStatusError):
    """The endpoint may not be used: its scheme, its address or its name is not allowed."""

    code = "SINK_REFUSED"


class SinkUnreachable(TerminalStatusError):
    """The endpoint cannot be resolved, refuses the connection, or failed the test."""

    code = "SINK_UNREACHABLE"


class ClientUnknown(TerminalStatusError):
    """There is no such client."""

    code = "CLIENT_UNKNOWN"


class ClientExists(TerminalStatusError):
    """There is a client of this name."""

    code = "CLIENT_EXISTS"


class Unauthenticated(TerminalStatusError):
    """No credentials, or none that are accepted. The message never tells which part was wrong."""

    code = "UNAUTHENTICATED"


class NotPermitted(TerminalStatusError):
    """The client is known, and may not do this."""

    code = "NOT_PERMITTED"


class WatchUnknown(TerminalStatusError):
    """The terminal is not being watched."""

    code = "WATCH_UNKNOWN"


class StoreUnavailable(TerminalStatusError):
    """The database cannot be used now: locked, full or gone. Nothing was changed."""

    code = "STORE_UNAVAILABLE"
    retryable = True
