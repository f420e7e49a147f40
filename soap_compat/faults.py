"""How an error looks on the SOAP face: Parlay X's messages, and the table from domain errors to them.

Invariants: FAULTS covers every domain error (a test checks). As Parlay X requires, `text` keeps its placeholders, and
the variables are separate; `faultstring` has the complete sentence for people. The text of an unexpected exception
never reaches a caller, only a reference to the log.

Deliberately absent: XML (`envelope_writer.py`), and HTTP status codes: SOAP 1.1 section 6.2 requires 500 for every
fault.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from spyne import Fault

from app.domain import errors

TEXTS: Final[Mapping[str, str]] = {
    "SVC0001": "A service error occurred. Error code is %1",
    "SVC0002": "Invalid input value for message part %1",
    "SVC0004": "No valid addresses provided in message part %1",
    "SVC0005": "Correlator %1 specified in message part %2 is a duplicate",
    "SVC0006": "Group %1 in message part %2 is not a valid group",
    "POL0001": "A policy error occurred. Error code is %1",
    "POL0002": "Privacy verification failed for address %1, request is refused",
    "POL0003": "Too many addresses specified in message part %1",
    "POL0004": "Unlimited notification request not supported",
    "POL0005": "Too many notifications requested",
    "POL0006": "Group specified in message part %1 not allowed",
    "POL0007": "Nested groups specified in message part %1 not allowed",
    "POL0009": "Invalid frequency requested",
    "POL0200": "Busy criteria not supported",
}
"""Parlay X's texts by messageId (3GPP TS 29.199-1 and -8): SVC is a ServiceException, POL a PolicyException."""

_PLACEHOLDER = re.compile(r"%([1-9])")


@dataclass(frozen=True, slots=True)
class Detail:
    """The content of a ServiceException or PolicyException: a messageId and its variables."""

    message_id: str
    variables: tuple[str, ...]

    @property
    def element(self) -> str:
        """The name of the element in the fault's detail."""
        return "ServiceException" if self.message_id.startswith("SVC") else "PolicyException"

    @property
    def text(self) -> str:
        """Parlay X's text with its placeholders."""
        return TEXTS[self.message_id]

    @property
    def sentence(self) -> str:
        """The text with its variables filled in."""
        return _PLACEHOLDER.sub(lambda match: self.variables[int(match[1]) - 1], self.text)


class SoapFault(Fault):  # type: ignore[misc]  # Spyne has no types
    """A fault: a SOAP 1.1 code, a sentence for people, and the detail if the contract declares one.

    `code` is one of SOAP 1.1 section 4.4.1: Client (the message is wrong), Server, VersionMismatch, MustUnderstand.
    """

    def __init__(
        self,
        code: str,
        sentence: str,
        detail: Detail | None = None,
        *,
        retry_after_s: float | None = None,
        result: str = "",
    ) -> None:
        super().__init__(code, sentence, detail=detail)
        self.retry_after_s = retry_after_s
        self.result = result
        """The code of the equivalent domain error, for usage records."""


def client_fault(sentence: str) -> SoapFault:
    """The fault, without a detail, for a message that is wrong as SOAP or XML; the same message always fails."""
    return SoapFault("Client", sentence)


def declared_fault(message_id: str, *variables: str, reason: str = "", result: str = "") -> SoapFault:
    """A ServiceException or PolicyException; `reason` is an optional sentence about this case."""
    detail = Detail(message_id, variables)
    sentence = f"{message_id}: {detail.sentence}. {reason}".rstrip()
    return SoapFault("Server", sentence, detail, result=result)


def invalid_part(name: str, reason: str) -> SoapFault:
    """SVC0002 about the message part `name`; `reason` is a sentence."""
    return declared_fault("SVC0002", name, reason=reason, result=errors.InvalidRequest.code)


_Variables = Callable[[errors.TerminalStatusError, str], tuple[str, ...]]
"""Returns the variables of a fault for an error about a message part."""


def _part(error: errors.TerminalStatusError, part: str) -> tuple[str, ...]:
    return (part,)


def _address(error: errors.TerminalStatusError, part: str) -> tuple[str, ...]:
    return (error.details.get("address", ""),)


def _code(error: errors.TerminalStatusError, part: str) -> tuple[str, ...]:
    return (error.code,)


def _correlator(error: errors.TerminalStatusError, part: str) -> tuple[str, ...]:
    return (error.details.get("correlator", ""), part)


def _group(error: errors.TerminalStatusError, part: str) -> tuple[str, ...]:
    return (error.details.get("group", ""), part)


def _nothing(error: errors.TerminalStatusError, part: str) -> tuple[str, ...]:
    return ()


FAULTS: Final[Mapping[type[errors.TerminalStatusError], tuple[str, _Variables]]] = {
    errors.InvalidAddress: ("SVC0002", _part),
    errors.TerminalUnknown: ("SVC0004", _part),
    errors.AddressIsList: ("SVC0002", _part),
    errors.WatcherRefused: ("POL0002", _address),
    errors.WatcherUnauthenticated: ("POL0002", _address),
    errors.FetchTimedOut: ("SVC0001", _code),
    errors.PresenceUnavailable: ("SVC0001", _code),
    errors.WatcherRestarting: ("SVC0001", _code),
    errors.GatewayOverloaded: ("SVC0001", _code),
    errors.PresenceMisconfigured: ("SVC0001", _code),
    errors.DocumentUnreadable: ("SVC0001", _code),
    errors.InvalidRequest: ("SVC0002", _part),
    errors.NoValidAddresses: ("SVC0004", _part),
    errors.TooManyAddresses: ("POL0003", _part),
    errors.GroupUnknown: ("SVC0006", _group),
    errors.GroupExists: ("SVC0001", _code),
    errors.GroupTooLarge: ("POL0003", _part),
    errors.GroupNotAllowed: ("POL0006", _part),
    errors.NestedGroupNotAllowed: ("POL0007", _part),
    errors.GroupChanged: ("SVC0001", _code),
    errors.UnlimitedCountNotAllowed: ("POL0004", _nothing),
    errors.CountTooLarge: ("POL0005", _nothing),
    errors.IntervalTooShort: ("POL0009", _nothing),
    errors.DurationTooLong: ("POL0001", _code),
    errors.BusyNotSupported: ("POL0200", _nothing),
    errors.TooManySubscriptions: ("POL0001", _code),
    errors.TooManyStreams: ("POL0001", _code),
    errors.TooManyWatchedTerminals: ("POL0001", _code),
    errors.TooManyGroups: ("POL0001", _code),
    errors.TooManyClients: ("POL0001", _code),
    errors.RateLimited: ("POL0001", _code),
    errors.DuplicateCorrelator: ("SVC0005", _correlator),
    errors.RequestIdReused: ("SVC0001", _code),
    errors.SubscriptionUnknown: ("SVC0002", _part),
    errors.SubscriptionChanged: ("SVC0001", _code),
    errors.ChangeNotAllowed: ("POL0001", _code),
    errors.NotificationUnknown: ("SVC0001", _code),
    errors.SinkRefused: ("SVC0002", _part),
    errors.SinkUnreachable: ("SVC0002", _part),
    errors.ClientUnknown: ("SVC0001", _code),
    errors.ClientExists: ("SVC0001", _code),
    errors.Unauthenticated: ("POL0001", _code),
    errors.NotPermitted: ("POL0001", _code),
    errors.WatchUnknown: ("SVC0001", _code),
    errors.StoreUnavailable: ("SVC0001", _code),
}
"""The messageId and its variables for each domain error."""

_ERRORS: Final[Mapping[str, type[errors.TerminalStatusError]]] = {error.code: error for error in FAULTS}


@dataclass(frozen=True, slots=True)
class Operation:
    """The messages that an operation may raise, and the names of its parts by the fields of the use cases."""

    messages: frozenset[str]
    part: str
    """The part of an error that names no field."""
    parts: Mapping[str, str]


_SINK_PARTS: Final = dict.fromkeys(("sink", "sink.url", "sink.uri", "sink.endpoint", "url"), "reference.endpoint")

OPERATIONS: Final[Mapping[str, Operation]] = {
    # TS 29.199-8 does not list SVC0004 here, but no other message says that a terminal does not exist.
    "getStatus": Operation(
        frozenset({"SVC0001", "SVC0002", "SVC0004", "POL0001", "POL0002", "POL0006"}), "address", {}
    ),
    "getStatusForGroup": Operation(
        frozenset({"SVC0001", "SVC0002", "SVC0004", "SVC0006", "POL0001", "POL0003", "POL0006", "POL0007"}),
        "addresses",
        {"address": "addresses"},
    ),
    "startNotification": Operation(
        frozenset({"SVC0001", "SVC0002", "SVC0004", "SVC0005", "SVC0006", "POL0001", "POL0003", "POL0004", "POL0005"})
        | {"POL0006", "POL0007", "POL0009", "POL0200"},
        "addresses",
        {
            "address": "addresses",
            "min_interval": "frequency",
            "max_notification_count": "count",
            "count": "count",
            "correlator": "reference.correlator",
            **_SINK_PARTS,
        },
    ),
    "endNotification": Operation(frozenset({"SVC0001", "SVC0002", "POL0001"}), "correlator", {}),
}
"""The messages of each operation, as 3GPP TS 29.199-8 lists them."""

_PART_OF: Final[Mapping[type[errors.TerminalStatusError], str]] = {
    errors.SinkRefused: "reference.endpoint",
    errors.SinkUnreachable: "reference.endpoint",
    errors.DuplicateCorrelator: "reference.correlator",
    errors.SubscriptionUnknown: "correlator",
}
"""Errors that concern one part, whatever field they name."""


def detail_for(error: errors.TerminalStatusError, operation: str) -> Detail:
    """The Parlay X message for a domain error within a result of this operation; may be outside its list."""
    of = OPERATIONS[operation]
    field = error.details.get("field", "").partition("[")[0]
    part = _PART_OF.get(type(error)) or of.parts.get(field, field) or of.part
    message_id, variables = FAULTS[type(error)]
    return Detail(message_id, variables(error, part))


def fault_for(error: errors.TerminalStatusError, operation: str) -> SoapFault:
    """The fault for a domain error. A message that is not in the operation's list is replaced by SVC0001 or POL0001."""
    detail = detail_for(error, operation)
    if detail.message_id not in OPERATIONS[operation].messages:
        detail = _general(detail, error.code)
    sentence = f"{detail.message_id}: {detail.sentence}. {error}".rstrip()
    return SoapFault("Server", sentence, detail, retry_after_s=error.retry_after_s)


def reason_for(code: str, address: str) -> Detail:
    """The reason of a statusError for a domain error's `code` about the terminal `address`. If `address` is "", a
    message that has to name the terminal is replaced by SVC0001 or POL0001."""
    error = _ERRORS.get(code)
    if error is None:
        return Detail("SVC0001", (code,))
    detail = detail_for(error("", address=address), "startNotification")
    return detail if all(detail.variables) else _general(detail, code)


def _general(detail: Detail, code: str) -> Detail:
    return Detail("SVC0001" if detail.element == "ServiceException" else "POL0001", (code,))
