"""The errors that use cases raise for their callers: one class for each error, with a stable `code`.

Each face (gRPC, REST, CAMARA, SOAP) has its own table from these classes to its status codes or faults; a test checks
that each table is complete. The classes contain nothing about transports.
"""

from typing import ClassVar


class TerminalStatusError(Exception):
    """Base of every error that a use case may raise. `str(error)` is safe to show to the caller.

    `code` is stable and part of every public API. `retryable`: the same request may succeed later. `retry_after_s`:
    how many seconds to wait before repeating the request, if known. `details`: short strings for programs, such as the
    address or the SIP code.
    """

    code: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None, **details: str) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.details = details


class InvalidAddress(TerminalStatusError):
    """The address is not a `sip:`, `sips:` or `tel:` URI of a terminal."""

    code = "INVALID_ADDRESS"


class TerminalUnknown(TerminalStatusError):
    """The presence server does not know the terminal (SIP 404, 410, 484, 604, or `noresource`)."""

    code = "TERMINAL_UNKNOWN"


class AddressIsList(TerminalStatusError):
    """The address is that of a list of terminals at the presence server (RFC 4662), not of one terminal."""

    code = "ADDRESS_IS_LIST"


class WatcherRefused(TerminalStatusError):
    """The gateway may not watch this terminal (SIP 403, 6xx, `rejected`, or approval is still pending)."""

    code = "WATCHER_REFUSED"


class WatcherUnauthenticated(TerminalStatusError):
    """The presence server did not accept the gateway's SIP credentials, or the gateway has none (SIP 401, 407)."""

    code = "WATCHER_UNAUTHENTICATED"


class FetchTimedOut(TerminalStatusError):
    """The presence server sent no NOTIFY within the time limit of a fetch."""

    code = "FETCH_TIMED_OUT"
    retryable = True


class PresenceUnavailable(TerminalStatusError):
    """The presence server cannot answer now, or cannot be reached (SIP 408, 480, 486, 491, 5xx, …)."""

    code = "PRESENCE_UNAVAILABLE"
    retryable = True


class WatcherRestarting(TerminalStatusError):
    """The SIP worker process stopped during the query, and is being restarted."""

    code = "WATCHER_RESTARTING"
    retryable = True


class GatewayOverloaded(TerminalStatusError):
    """The gateway has reached its limit of fetches in flight, or of watched terminals."""

    code = "GATEWAY_OVERLOADED"
    retryable = True


class PresenceMisconfigured(TerminalStatusError):
    """The presence server does not serve the gateway (SIP 405, 489, any other 4xx, 3xx to a foreign server)."""

    code = "PRESENCE_MISCONFIGURED"


class DocumentUnreadable(TerminalStatusError):
    """The presence document cannot be read. `details["reason"]` is a word for metrics and logs."""

    code = "DOCUMENT_UNREADABLE"


class InvalidRequest(TerminalStatusError):
    """A field of the request is invalid. `details["field"]` has the field's name in the gRPC contract."""

    code = "INVALID_REQUEST"


class NoValidAddresses(TerminalStatusError):
    """The request has no valid address. `details["field"]` names the field."""

    code = "NO_VALID_ADDRESSES"


class TooManyAddresses(TerminalStatusError):
    """The request has more terminals than the policy allows; members of groups count. `details`: `field`, `most`."""

    code = "TOO_MANY_ADDRESSES"


class GroupUnknown(TerminalStatusError):
    """The group does not exist, or belongs to another client. `details`: `group`, `field`."""

    code = "GROUP_UNKNOWN"


class GroupExists(TerminalStatusError):
    """A group of this address exists already."""

    code = "GROUP_EXISTS"


class GroupTooLarge(TerminalStatusError):
    """The group would have more members than the policy allows."""

    code = "GROUP_TOO_LARGE"


class GroupNotAllowed(TerminalStatusError):
    """A group was given where only terminals are accepted, or the policy allows no groups (Parlay X POL0006)."""

    code = "GROUP_NOT_ALLOWED"


class NestedGroupNotAllowed(TerminalStatusError):
    """A group would contain a group, which the policy does not allow (POL0007)."""

    code = "NESTED_GROUP_NOT_ALLOWED"


class GroupChanged(TerminalStatusError):
    """The group was changed since the caller read it: its version differs from the one in the request."""

    code = "GROUP_CHANGED"
    retryable = True


class UnlimitedCountNotAllowed(TerminalStatusError):
    """The policy requires a subscription to limit its number of notifications (POL0004)."""

    code = "UNLIMITED_COUNT_NOT_ALLOWED"


class CountTooLarge(TerminalStatusError):
    """The subscription requests more notifications than the policy allows (POL0005)."""

    code = "COUNT_TOO_LARGE"


class IntervalTooShort(TerminalStatusError):
    """The subscription requests a shorter interval between notifications than the policy allows (POL0009)."""

    code = "INTERVAL_TOO_SHORT"


class DurationTooLong(TerminalStatusError):
    """The subscription requests a longer duration than the policy allows."""

    code = "DURATION_TOO_LONG"


class BusyNotSupported(TerminalStatusError):
    """The criteria contain BUSY, which this operator does not report (POL0200)."""

    code = "BUSY_NOT_SUPPORTED"


class TooManySubscriptions(TerminalStatusError):
    """The client has as many active subscriptions as the policy allows."""

    code = "TOO_MANY_SUBSCRIPTIONS"


class TooManyStreams(TerminalStatusError):
    """The client has as many open streams as the policy allows, or the gateway serves no more."""

    code = "TOO_MANY_STREAMS"


class TooManyWatchedTerminals(TerminalStatusError):
    """The request would make the client watch more terminals than the policy allows."""

    code = "TOO_MANY_WATCHED_TERMINALS"


class TooManyGroups(TerminalStatusError):
    """The client has as many groups as the policy allows."""

    code = "TOO_MANY_GROUPS"


class TooManyClients(TerminalStatusError):
    """The gateway has its greatest number of clients."""

    code = "TOO_MANY_CLIENTS"


class RateLimited(TerminalStatusError):
    """The client makes more calls than the policy allows; wait `retry_after_s`."""

    code = "RATE_LIMITED"
    retryable = True


class DuplicateCorrelator(TerminalStatusError):
    """The client already has an active subscription with this correlator (SVC0005)."""

    code = "DUPLICATE_CORRELATOR"


class RequestIdReused(TerminalStatusError):
    """The request id (`Idempotency-Key`) was used before for a different request."""

    code = "REQUEST_ID_REUSED"


class SubscriptionUnknown(TerminalStatusError):
    """The subscription does not exist, has ended, or belongs to another client."""

    code = "SUBSCRIPTION_UNKNOWN"


class SubscriptionChanged(TerminalStatusError):
    """The subscription was changed since the caller read it: its etag differs from the one in the request."""

    code = "SUBSCRIPTION_CHANGED"
    retryable = True


class ChangeNotAllowed(TerminalStatusError):
    """The API with which the subscription was created has no such change (CAMARA, Parlay X)."""

    code = "CHANGE_NOT_ALLOWED"


class NotificationUnknown(TerminalStatusError):
    """The notification does not exist, or belongs to another client."""

    code = "NOTIFICATION_UNKNOWN"


class SinkRefused(TerminalStatusError):
    """The sink is not allowed: its scheme, host name, network address or parameters."""

    code = "SINK_REFUSED"


class SinkUnreachable(TerminalStatusError):
    """The sink's host cannot be resolved or connected to, or the sink failed its test."""

    code = "SINK_UNREACHABLE"


class ClientUnknown(TerminalStatusError):
    """The client does not exist."""

    code = "CLIENT_UNKNOWN"


class ClientExists(TerminalStatusError):
    """A client of this name exists already."""

    code = "CLIENT_EXISTS"


class Unauthenticated(TerminalStatusError):
    """The credentials are missing or wrong. The message never says which part of them is wrong."""

    code = "UNAUTHENTICATED"


class NotPermitted(TerminalStatusError):
    """The client is authenticated, but may not do this."""

    code = "NOT_PERMITTED"


class WatchUnknown(TerminalStatusError):
    """The terminal is not watched."""

    code = "WATCH_UNKNOWN"


class StoreUnavailable(TerminalStatusError):
    """The database cannot be used now (locked, full or not reachable). Nothing was changed."""

    code = "STORE_UNAVAILABLE"
    retryable = True
