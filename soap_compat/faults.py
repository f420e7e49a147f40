"""Faults: the catalogue of Parlay X messages, and the one table from domain errors to them.

Invariants: the table is total over the subclasses of `TerminalStatusError` (a test proves it). A fault's text keeps
the catalogue's placeholders and its variables stand apart, as Parlay X has it; the sentence with both put together
goes into `faultstring`, for people. Nothing of an unexpected exception but a reference reaches the wire.

Deliberately absent: XML (`interface.py` writes it), and HTTP status numbers: SOAP 1.1 section 6.2 wants 500 for all.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from spyne import Fault

from app import domain
from app.domain import TerminalStatusError

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
"""The messages in use, by messageId (3GPP TS 29.199-1 and -8): SVC is a ServiceException, POL a PolicyException."""

_PLACEHOLDER = re.compile(r"%([1-9])")


@dataclass(frozen=True, slots=True)
class Detail:
    """The content of a ServiceException or PolicyException."""

    message_id: str
    variables: tuple[str, ...]

    @property
    def element(self) -> str:
        """The name of the exception's element."""
        return "ServiceException" if self.message_id.startswith("SVC") else "PolicyException"

    @property
    def text(self) -> str:
        """The catalogue's text, placeholders kept."""
        return TEXTS[self.message_id]

    @property
    def sentence(self) -> str:
        """The text with its variables put in."""
        return _PLACEHOLDER.sub(lambda match: self.variables[int(match[1]) - 1], self.text)


class SoapFault(Fault):  # type: ignore[misc]  # Spyne has no types
    """A fault as it goes out: a SOAP 1.1 code and a sentence, and the detail where the contract declares one.

    `code` is of SOAP 1.1 section 4.4.1: Client (the message is wrong), Server, VersionMismatch, MustUnderstand.
    """

    def __init__(
        self, code: str, sentence: str, detail: Detail | None = None, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(code, sentence, detail=detail)
        self.retry_after_s = retry_after_s


def client_fault(sentence: str) -> SoapFault:
    """A message that is not understood: not worth sending again unchanged, and no fault the contract declares."""
    return SoapFault("Client", sentence)


def declared_fault(message_id: str, *variables: str, reason: str = "", retry_after_s: float | None = None) -> SoapFault:
    """A ServiceException or PolicyException, with an optional sentence about this case."""
    detail = Detail(message_id, variables)
    sentence = f"{message_id}: {detail.sentence}. {reason}".rstrip()
    return SoapFault("Server", sentence, detail, retry_after_s=retry_after_s)


_Variables = Callable[[TerminalStatusError], tuple[str, ...]]


def _part(error: TerminalStatusError) -> tuple[str, ...]:
    return (error.details.get("field", "address"),)


def _address(error: TerminalStatusError) -> tuple[str, ...]:
    return (error.details.get("address", ""),)


def _code(error: TerminalStatusError) -> tuple[str, ...]:
    return (error.code,)


def _correlator(error: TerminalStatusError) -> tuple[str, ...]:
    return (error.details.get("correlator", ""), error.details.get("field", "correlator"))


def _group(error: TerminalStatusError) -> tuple[str, ...]:
    return (error.details.get("group", ""), error.details.get("field", "addresses"))


def _nothing(_: TerminalStatusError) -> tuple[str, ...]:
    return ()


FAULTS: Final[Mapping[type[TerminalStatusError], tuple[str, _Variables]]] = {
    domain.InvalidAddress: ("SVC0002", _part),
    domain.TerminalUnknown: ("SVC0004", _part),
    domain.WatcherRefused: ("POL0002", _address),
    domain.WatcherUnauthenticated: ("POL0002", _address),
    domain.FetchTimedOut: ("SVC0001", _code),
    domain.PresenceUnavailable: ("SVC0001", _code),
    domain.WatcherRestarting: ("SVC0001", _code),
    domain.GatewayOverloaded: ("SVC0001", _code),
    domain.PresenceMisconfigured: ("SVC0001", _code),
    domain.DocumentUnreadable: ("SVC0001", _code),
    domain.InvalidRequest: ("SVC0002", _part),
    domain.NoValidAddresses: ("SVC0004", _part),
    domain.TooManyAddresses: ("POL0003", _part),
    domain.GroupUnknown: ("SVC0006", _group),
    domain.GroupExists: ("SVC0001", _code),
    domain.GroupTooLarge: ("POL0003", _part),
    domain.GroupNotAllowed: ("POL0006", _part),
    domain.NestedGroupNotAllowed: ("POL0007", _part),
    domain.GroupChanged: ("SVC0001", _code),
    domain.UnlimitedCountNotAllowed: ("POL0004", _nothing),
    domain.CountTooLarge: ("POL0005", _nothing),
    domain.IntervalTooShort: ("POL0009", _nothing),
    domain.DurationTooLong: ("POL0001", _code),
    domain.BusyNotSupported: ("POL0200", _nothing),
    domain.TooManySubscriptions: ("POL0001", _code),
    domain.RateLimited: ("POL0001", _code),
    domain.DuplicateCorrelator: ("SVC0005", _correlator),
    domain.RequestIdReused: ("SVC0001", _code),
    domain.SubscriptionUnknown: ("SVC0002", lambda _: ("correlator",)),
    domain.NotificationUnknown: ("SVC0001", _code),
    domain.SinkRefused: ("SVC0002", lambda _: ("reference.endpoint",)),
    domain.SinkUnreachable: ("SVC0002", lambda _: ("reference.endpoint",)),
    domain.ClientUnknown: ("SVC0001", _code),
    domain.ClientExists: ("SVC0001", _code),
    domain.Unauthenticated: ("POL0001", _code),
    domain.NotPermitted: ("POL0001", _code),
    domain.WatchUnknown: ("SVC0001", _code),
    domain.StoreUnavailable: ("SVC0001", _code),
}
"""messageId and its variables, by domain error."""


def fault_for(error: TerminalStatusError) -> SoapFault:
    """Returns the fault that the contract has for a domain error."""
    message_id, variables = FAULTS[type(error)]
    return declared_fault(message_id, *variables(error), reason=str(error), retry_after_s=error.retry_after_s)
