"""The Parlay X contract as Spyne knows it: namespaces, types, and the operations of each interface.

Invariants: names, order and occurrence of parts are those of `wsdl/`, which a test holds against this module. The
operations call the use cases and translate words; they decide nothing.

Deliberately absent: Spyne's own WSDL generator. The files in `wsdl/` are what clients see, because their structure
(imports, message and part names, fault messages) is part of the contract and Spyne's differs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from spyne import AnyUri, Enum, Service, rpc

from app.domain import Status

TYPES: Final = "http://www.csapi.org/schema/parlayx/terminal_status/v2_2"
TERMINAL_STATUS: Final = f"{TYPES}/local"
"""The namespace of the TerminalStatus wrapper elements, in the version that the served WSDL declares."""

STATUS_WORDS: Final[Mapping[Status, str]] = {
    Status.REACHABLE: "Reachable",
    Status.UNREACHABLE: "Unreachable",
    Status.BUSY: "Busy",
}

_VERSIONED = re.compile(r"(http://www\.csapi\.org/schema/parlayx/.+/)v([23])_[0-9]{1,2}/local")
_COMMON: Final = {
    "2": "http://www.csapi.org/schema/parlayx/common/v2_1",
    "3": "http://www.csapi.org/schema/parlayx/common/v3_1",
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """The version of the contract that a client speaks, as two namespaces: wrapper elements and common types.

    Stubs in the field were made from several drops of the standard; each is answered in its own.
    """

    local: str
    common: str


DIALECT: Final = Dialect(TERMINAL_STATUS, _COMMON["2"])
"""The served WSDL's own: for answers to requests that do not say which they speak."""


def dialect_of(namespace: str, served: str) -> Dialect | None:
    """Returns the dialect of a wrapper element's namespace, or None if it is of no version of `served`."""
    asked, own = _VERSIONED.fullmatch(namespace), _VERSIONED.fullmatch(served)
    if asked is None or own is None or asked[1] != own[1]:
        return None
    return Dialect(namespace, _COMMON[asked[2]])


_Status = Enum(*STATUS_WORDS.values(), type_name="Status")
_Status.__namespace__ = TYPES


# Spyne passes its context first; `ctx.udc` is ours: the call, with the use cases. Spyne has no types.
async def _get_status(ctx: Any, address: str) -> str:
    return STATUS_WORDS[(await ctx.udc.service.get_status(address)).status]


class TerminalStatus(Service):  # type: ignore[misc]  # Spyne has no types
    """The TerminalStatus interface of 3GPP TS 29.199-8: the attributes' names are the operations'."""

    getStatus = rpc(  # noqa: N815 - the contract's name
        AnyUri(min_occurs=1), _returns=_Status, _out_variable_name="result"
    )(_get_status)
