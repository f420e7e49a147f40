"""Examples of failures, as the OpenAPI documents show them.

Invariants: `ERRORS` has one of each domain error that REST answers with. Deliberately absent: anything that runs.
"""

from collections.abc import Mapping
from typing import Any

from app.domain.errors import (
    BusyNotSupported,
    ClientExists,
    ClientUnknown,
    CountTooLarge,
    DocumentUnreadable,
    DuplicateCorrelator,
    DurationTooLong,
    FetchTimedOut,
    GatewayOverloaded,
    GroupChanged,
    GroupExists,
    GroupNotAllowed,
    GroupTooLarge,
    GroupUnknown,
    IntervalTooShort,
    InvalidAddress,
    InvalidRequest,
    NestedGroupNotAllowed,
    NotificationUnknown,
    NotPermitted,
    NoValidAddresses,
    PresenceMisconfigured,
    PresenceUnavailable,
    RateLimited,
    RequestIdReused,
    SinkRefused,
    SinkUnreachable,
    StoreUnavailable,
    SubscriptionUnknown,
    TerminalStatusError,
    TerminalUnknown,
    TooManyAddresses,
    TooManyGroups,
    TooManyStreams,
    TooManySubscriptions,
    TooManyWatchedTerminals,
    Unauthenticated,
    UnlimitedCountNotAllowed,
    WatcherRefused,
    WatcherRestarting,
    WatcherUnauthenticated,
    WatchUnknown,
)
from app.rest.problem import MEDIA_TYPE, SCHEMA, Problem, internal_error, problem, problem_of

ALICE = "sip:alice@example.com"
TEAM = "sip:team@example.com"

_ALL: tuple[TerminalStatusError, ...] = (
    InvalidAddress(
        "The address 'alice' is no sip:, sips: or tel: URI such as sip:alice@example.com or tel:+15551234567."
    ),
    TerminalUnknown("The presence server answered 404 Not Found.", sip_code="404", address=ALICE),
    WatcherRefused("The presence server answered 403 Forbidden.", sip_code="403", address=ALICE),
    WatcherUnauthenticated(
        "The presence server answered 401 Unauthorized. The gateway has no credentials it accepts.",
        sip_code="401",
        address=ALICE,
    ),
    FetchTimedOut("The presence server did not answer within 1000 ms.", address=ALICE),
    PresenceUnavailable(
        "The presence server answered 503 Service Unavailable.", retry_after_s=30, sip_code="503", address=ALICE
    ),
    WatcherRestarting("The SIP worker is being replaced.", retry_after_s=1, address=ALICE),
    GatewayOverloaded("1000 fetches are in flight, as many as allowed; try again.", retry_after_s=1),
    PresenceMisconfigured("The presence server answered 489 Bad Event.", sip_code="489", address=ALICE),
    DocumentUnreadable("The presence document was cut short: 3000 of 4500 bytes arrived.", reason="cut", address=ALICE),
    InvalidRequest("The age must be 0 to 86400 seconds.", field="max_age"),
    NoValidAddresses("No terminal was given, or only empty groups.", field="addresses"),
    TooManyAddresses("More than 1000 terminals, groups expanded.", field="addresses", most="1000"),
    GroupUnknown("There is no such group.", group=TEAM, field="address"),
    GroupExists(f"{TEAM} is a group already."),
    GroupTooLarge("A group has at most 1000 members.", field="members"),
    GroupNotAllowed(f"{TEAM} is a group; ask for one terminal.", field="address"),
    NestedGroupNotAllowed(f"{TEAM} is a group, which may not be in a group here.", field="members"),
    GroupChanged("The group has changed since; read it again."),
    UnlimitedCountNotAllowed("A subscription must name a count of notifications.", field="max_notifications"),
    CountTooLarge("At most 100 notifications may be asked for.", field="max_notifications"),
    IntervalTooShort("Notifications may be no closer together than 1000 ms.", field="min_interval"),
    DurationTooLong("A subscription may last 86400000 ms at most.", field="duration", most="86400000"),
    BusyNotSupported("BUSY is not told here; leave it out of the criteria.", field="criteria"),
    TooManySubscriptions("There are 1000 active subscriptions, as many as allowed."),
    TooManyStreams("As many streams are open as allowed."),
    TooManyWatchedTerminals(
        "Limit reached: 50000 watched terminals. End a subscription or a stream, or ask the operator to raise "
        "`max_watched_terminals`."
    ),
    TooManyGroups("There are 1000 groups already, as many as allowed."),
    RateLimited("More than 50 calls per second (a query counts each terminal); wait.", retry_after_s=1),
    DuplicateCorrelator("There is an active subscription of this correlator."),
    RequestIdReused("The request id was used before, for another request.", field="request_id"),
    SubscriptionUnknown("There is no such subscription.", field="subscription_id"),
    NotificationUnknown("There is no notification 'n-1'."),
    SinkRefused("The endpoint's host is at an address that is not allowed.", reason="forbidden-address"),
    SinkUnreachable("The endpoint failed its test: http-500.", reason="http-500"),
    ClientUnknown("There is no such client."),
    ClientExists("There is a client of this name."),
    Unauthenticated("The credentials are not accepted."),
    NotPermitted("Only an operator's client may do this."),
    WatchUnknown("The terminal is not being watched.", address=ALICE),
    StoreUnavailable("The database cannot be used now."),
)
ERRORS: Mapping[type[TerminalStatusError], TerminalStatusError] = {type(error): error for error in _ALL}

COMMON = (
    Unauthenticated,
    NotPermitted,
    RateLimited,
    InvalidRequest,
    StoreUnavailable,
)
"""What every operation with credentials may answer."""

INTERNAL_ERROR = internal_error("6f1c3f0d9c0b4b0c8a3f0e6f6d1c2b7a")


WRONG_METHOD = problem(405, "METHOD_NOT_ALLOWED", "POST /readyz: Method Not Allowed.")


def components(*others: Problem) -> dict[str, Any]:
    """The document's `components/examples`, to which `documented` refers; `others` are no domain errors."""
    every = (*map(problem_of, _ALL), INTERNAL_ERROR, WRONG_METHOD, *others)
    return {each.code: {"summary": each.title, "value": each.model_dump()} for each in every}


def failures(*errors: type[TerminalStatusError]) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for an operation with credentials that fails in these ways too."""
    return documented(*[problem_of(ERRORS[error]) for error in dict.fromkeys((*errors, *COMMON))], INTERNAL_ERROR)


def documented(*problems: Problem) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for an operation that fails in these ways, each an example under its status."""
    known: dict[int | str, dict[str, Any]] = {}
    for status in sorted({each.status for each in problems}):
        known[status] = _documented([each for each in problems if each.status == status])
    any_other = _documented([WRONG_METHOD])
    return {**known, "default": {**any_other, "description": "Any other failure, such as a wrong method."}}


def _documented(problems: list[Problem]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{SCHEMA}"}
    examples = {each.code: {"$ref": f"#/components/examples/{each.code}"} for each in problems}
    documentation = {
        "description": ", ".join(f"`{code}`" for code in examples),
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
    }
    if any(each.retryable for each in problems):
        documentation["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return documentation
