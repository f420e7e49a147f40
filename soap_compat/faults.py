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

from app.domain import (
    DocumentUnreadable,
    FetchTimedOut,
    GatewayOverloaded,
    InvalidAddress,
    PresenceMisconfigured,
    PresenceUnavailable,
    TerminalStatusError,
    TerminalUnknown,
    WatcherRefused,
    WatcherRestarting,
    WatcherUnauthenticated,
)

TEXTS: Final[Mapping[str, str]] = {
    "SVC0001": "A service error occurred. Error code is %1",
    "SVC0002": "Invalid input value for message part %1",
    "SVC0004": "No valid addresses provided in message part %1",
    "POL0002": "Privacy verification failed for address %1, request is refused",
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


def _part(_: TerminalStatusError) -> str:
    return "address"


def _address(error: TerminalStatusError) -> str:
    return error.details.get("address", "")


def _code(error: TerminalStatusError) -> str:
    return error.code


FAULTS: Final[Mapping[type[TerminalStatusError], tuple[str, Callable[[TerminalStatusError], str]]]] = {
    InvalidAddress: ("SVC0002", _part),
    TerminalUnknown: ("SVC0004", _part),
    WatcherRefused: ("POL0002", _address),
    WatcherUnauthenticated: ("POL0002", _address),
    FetchTimedOut: ("SVC0001", _code),
    PresenceUnavailable: ("SVC0001", _code),
    WatcherRestarting: ("SVC0001", _code),
    GatewayOverloaded: ("SVC0001", _code),
    PresenceMisconfigured: ("SVC0001", _code),
    DocumentUnreadable: ("SVC0001", _code),
}
"""messageId and its variable, by domain error."""


def fault_for(error: TerminalStatusError) -> SoapFault:
    """Returns the fault that the contract has for a domain error."""
    message_id, variable = FAULTS[type(error)]
    return declared_fault(message_id, variable(error), reason=str(error), retry_after_s=error.retry_after_s)
