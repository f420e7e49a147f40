"""Values, the address rule and the errors of the gateway: what every other module talks in.

Invariants: everything here is pure. No I/O, no clock, no randomness, no `async`, no framework. Values are
frozen; datetimes are aware UTC. An error is a class with a stable `code` and knows no transport: each transport
holds one total table from these classes to its own answers.

Deliberately absent: HTTP, gRPC and SIP status numbers, XML (presence documents are read in `presence.py`), and the
limits of operators and clients (`policy.py`).
"""

import enum
import ipaddress
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, NewType

MAX_ADDRESS_LENGTH = 200
"""Longest address accepted, in characters. PJSIP holds a URI in 256 bytes, brackets and parameters included."""

TerminalAddress = NewType("TerminalAddress", str)
"""A canonical `sip:`, `sips:` or `tel:` URI, as `parse_address` returns it. Equal terminals are equal strings."""


class Status(enum.Enum):
    """What a terminal is, in the words of 3GPP TS 29.199-8 `Status`."""

    REACHABLE = "REACHABLE"
    UNREACHABLE = "UNREACHABLE"
    BUSY = "BUSY"


class Source(enum.Enum):
    """Where a terminal status came from."""

    FETCH = "FETCH"
    """The presence server was asked for this answer: SUBSCRIBE with `Expires: 0` (RFC 6665 section 4.4.3)."""
    WATCH = "WATCH"
    """A live subscription at the presence server says so (RFC 6665 section 4.1)."""


class Liveness(enum.Enum):
    """What the last observation of a watched terminal is worth."""

    LIVE = "LIVE"
    """The presence server tells each change: a subscription is active."""
    STALE = "STALE"
    """It no longer does; what it said last stays, with its age."""
    UNKNOWN = "UNKNOWN"
    """Nothing was ever observed."""


def require_utc(*times: datetime | None) -> None:
    """Raises ValueError for a datetime that is naive or of another zone; None passes."""
    for time in times:
        if time is not None and time.utcoffset() != timedelta(0):
            raise ValueError(f"{time!r} is no aware UTC datetime")


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalStatus:
    """A terminal's status as the presence server stated it at `observed_at` (aware, UTC).

    `revision` grows by one with each change of the stored status, from 1; 0 is a status that is not stored: one
    that was fetched, or was just observed.
    """

    address: TerminalAddress
    status: Status
    observed_at: datetime
    source: Source
    revision: int = 0

    def __post_init__(self) -> None:
        require_utc(self.observed_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTerminal:
    """What is known of a watched terminal now. `status` is None where nothing was ever observed.

    `reason` says why it is not LIVE, in a few words for people; `since` is when the liveness began.
    """

    address: TerminalAddress
    status: TerminalStatus | None
    liveness: Liveness
    reason: str
    since: datetime

    def __post_init__(self) -> None:
        require_utc(self.since)


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


_USER = r"(?:[A-Za-z0-9\-_.!~*'()&=+$,;?/]|%[0-9A-Fa-f]{2})+"
_HOST = (
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?)*\.?"
    r"|\[[0-9A-Fa-f:.]{2,45}\])"
)
_PVALUE = r"(?:[A-Za-z0-9\-_.!~*'()\[\]/:&+$]|%[0-9A-Fa-f]{2})+"
_PARAMS = rf"(?:;{_PVALUE}(?:={_PVALUE})?)*"
_SIP = re.compile(rf"(sips?):(?:({_USER})@)?({_HOST})(:[0-9]{{1,5}})?({_PARAMS})", re.IGNORECASE)
_TEL = re.compile(rf"tel:(\+?[0-9A-Fa-f*#\-.()]+)({_PARAMS})", re.IGNORECASE)
_SEPARATORS = str.maketrans("", "", "-.()")
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!~*'()")
_FIRST_PARAMS = ("ext", "isub", "phone-context")
_SENT_PLAIN_IN_USER = frozenset("&=+$,;?/")
_SENT_PLAIN_IN_PARAMS = frozenset("[]/:&+$")
_TEL_NAME = re.compile(r"[A-Za-z0-9\-]+")
_GLOBAL_NUMBER = re.compile(r"\+[0-9]+")
_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9.\-]*[a-z0-9])?\.?")


def _unescape(escape: re.Match[str]) -> str:
    char = chr(int(escape[1], 16))
    return char if char in _UNRESERVED else escape[0].upper()


def _refuse_escapes(part: str, sent_plain: frozenset[str], never: str, where: str) -> None:
    """Refuses the escapes that PJSIP undoes when it writes the URI: another terminal would be asked about. An escaped
    quotation mark at the start of a parameter's value even lets the line breaks behind it through."""
    for escape in _ESCAPE.finditer(part):
        char = chr(int(escape[1], 16))
        if char in sent_plain:
            raise InvalidAddress(f"The address has {escape[0]} in {where}; write it as a plain {char}")
        if char in never:
            raise InvalidAddress(f"The address has {escape[0]} in {where}, which cannot be asked about; leave it out.")


def _canonical_params(params: str, *, tel: bool) -> str:
    if not params:
        return ""
    _refuse_escapes(params, _SENT_PLAIN_IN_PARAMS, '%"', "a parameter")
    found: dict[str, str] = {}
    for param in _ESCAPE.sub(_unescape, params).lower().split(";")[1:]:
        name, equals, value = param.partition("=")
        if name in found:
            raise InvalidAddress(f"The address names the parameter {name!r} twice; name it once.")
        if tel:
            value = _tel_value(name, value)
        elif name == "method":
            raise InvalidAddress("The address has a method parameter, which says nothing of a terminal; leave it out.")
        elif name == "user" and "%" in value:
            raise InvalidAddress("The address has an escape in its user parameter; write user=phone, user=ip or none.")
        found[name] = f";{name}{equals}{value}"
    return "".join(found[name] for name in sorted(found, key=lambda name: (name not in _FIRST_PARAMS, name)))


def _tel_value(name: str, value: str) -> str:
    """The value of a parameter of a `tel:` URI, without visual separators where it is a number (RFC 3966)."""
    if not _TEL_NAME.fullmatch(name):
        raise InvalidAddress(
            f"The address has a parameter {name!r}; names in tel: URIs have letters, digits and hyphens (RFC 3966)."
        )
    if name == "ext":
        value = value.translate(_SEPARATORS)
        if not value.isdigit():
            raise InvalidAddress("The address has an ext that is no number (RFC 3966 section 5.3).")
    if name == "isub" and not value:
        raise InvalidAddress("The address has an isub without a value (RFC 3966 section 5.3).")
    if name == "phone-context":
        if value.startswith("+"):
            value = value.translate(_SEPARATORS)
        if not (_GLOBAL_NUMBER.fullmatch(value) or _DOMAIN.fullmatch(value)):
            raise InvalidAddress(
                "The address has a phone-context that is neither a number such as +1555 nor a domain name "
                "(RFC 3966 section 5.1.5)."
            )
    return value


def parse_address(text: str) -> TerminalAddress:
    """Returns the canonical form of a terminal's address, by which equal terminals are equal strings.

    `sip:` and `sips:` URIs follow RFC 3261 section 19.1 without password and headers, which have no meaning for a
    presentity; scheme, host and parameters are lower-cased, and needless escapes are undone (section 19.1.4).
    `tel:` URIs follow RFC 3966; visual separators are dropped, in `ext` and a numeric `phone-context` too (sections 3
    and 4), and a local number needs `phone-context`. Parameters are sorted as RFC 3966 section 3 wants them; in SIP
    their order means nothing. Refused is what PJSIP would write as another URI: some escapes, a `method`, a repeated
    parameter.

    Raises InvalidAddress, whose message says what is wrong.
    """
    if not text:
        raise InvalidAddress("The address is empty; give a sip:, sips: or tel: URI.")
    if len(text) > MAX_ADDRESS_LENGTH:
        raise InvalidAddress(f"The address has {len(text)} characters; at most {MAX_ADDRESS_LENGTH} are allowed.")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise InvalidAddress(
            "The address holds a space, a control character or a character outside ASCII; percent-encode it."
        )
    if match := _SIP.fullmatch(text):
        scheme, user, host, port, params = match.groups()
        if port and not 0 < int(port[1:]) < 65536:
            raise InvalidAddress(f"The address {text!r} names port {port[1:]}; ports are 1 to 65535.")
        if host.startswith("["):
            try:
                ipv6 = ipaddress.IPv6Address(host[1:-1])
            except ValueError:
                raise InvalidAddress(f"The address {text!r} names {host}, which is no IPv6 address.") from None
            if ipv6.ipv4_mapped:  # Python 3.13 prints these in a longer form
                mapped = int(ipv6.ipv4_mapped)
                host = f"[::ffff:{mapped >> 16:x}:{mapped & 0xFFFF:x}]"
            else:
                host = f"[{ipv6}]"
        if user and "%" in user:
            _refuse_escapes(user, _SENT_PLAIN_IN_USER, "%", "its user part")
            user = _ESCAPE.sub(_unescape, user)
        user = f"{user}@" if user else ""
        port = f":{int(port[1:])}" if port else ""
        return TerminalAddress(f"{scheme.lower()}:{user}{host.lower()}{port}{_canonical_params(params, tel=False)}")
    if match := _TEL.fullmatch(text):
        number, params = match.groups()
        digits, params = number.translate(_SEPARATORS).lower(), _canonical_params(params, tel=True)
        local = not digits.startswith("+")
        if not digits.strip("+") or (not local and not digits[1:].isdigit()):
            raise InvalidAddress(f"The address {text!r} is no telephone number (RFC 3966).")
        if local and ";phone-context=" not in params:
            raise InvalidAddress(
                f"The address {text!r} is a local number without ;phone-context= (RFC 3966 section 5.1.5); "
                "write it as tel:+COUNTRY…"
            )
        return TerminalAddress(f"tel:{digits}{params}")
    if "?" in text.rpartition("@")[2] and _SIP.fullmatch(text.rpartition("?")[0]):
        raise InvalidAddress(f"The address {text!r} has headers behind a question mark; leave them out.")
    raise InvalidAddress(
        f"The address {text!r} is no sip:, sips: or tel: URI such as sip:alice@example.com or tel:+15551234567."
    )


def canonical(text: str) -> str:
    """The canonical form of an address; what is none stays as it is."""
    try:
        return parse_address(text)
    except InvalidAddress:
        return text
