"""CAMARA's device identifiers and what they stand for: the terminal of a `device` object or of an access token.

Invariants: pure. IP addresses identify no terminal here: CAMARA's API answers them UNSUPPORTED_IDENTIFIER.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import InvalidAddress

NUMBER = "{number}"
"""The part of a number pattern (such as `tel:{number}`) that a telephone number, with its plus, replaces."""

_NAI = re.compile(r"[A-Za-z0-9\-_.!~*'()&=+$,/]+@[A-Za-z0-9.\-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifiedDevice:
    """A device: the identifier that named it, and its terminal."""

    identifier: Mapping[str, str]
    """Of one member, as in CAMARA's `device`; empty if the access token named the device."""
    address: TerminalAddress


def identify(
    phone_number: str | None, network_access_identifier: str | None, number_pattern: str
) -> IdentifiedDevice | None:
    """Returns the device with these identifiers, or None without one. The telephone number has precedence.

    Raises InvalidAddress.
    """
    if phone_number is not None:
        address = parse_address(number_pattern.replace(NUMBER, phone_number))
        return IdentifiedDevice(identifier={"phoneNumber": phone_number}, address=address)
    if network_access_identifier is not None:
        address = _of_name(network_access_identifier)
        return IdentifiedDevice(identifier={"networkAccessIdentifier": network_access_identifier}, address=address)
    return None


def device_of_token(subject: str, number_pattern: str) -> TerminalAddress:
    """Returns the terminal that an access token names by a URI, a telephone number with its plus, or a network access
    identifier.

    Raises InvalidAddress.
    """
    if subject.startswith("+"):
        subject = number_pattern.replace(NUMBER, subject)
    elif not subject.lower().startswith(("sip:", "sips:", "tel:")):
        return _of_name(subject)
    return parse_address(subject)


def _of_name(identifier: str) -> TerminalAddress:
    """A network access identifier is a name and a realm (RFC 7542), so it cannot carry a SIP URI's parameters."""
    if not _NAI.fullmatch(identifier):
        raise InvalidAddress(
            "A network access identifier is a name, @ and a realm (RFC 7542).", field="networkAccessIdentifier"
        )
    return parse_address(f"sip:{identifier}")
