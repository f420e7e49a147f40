"""The versions of the contract: which namespaces a client means, and in which it is answered and called back.

Stubs in the field were made from several drops of the standard, whose namespaces differ in a digit. Each client is
answered in the namespace it wrote, and called back in that of the drop from which its stubs came.
Invariants: pure; what is no version of a known interface is None.

Deliberately absent: WSDLs of versions other than the served one (`documents.py`): only the digits differ.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_SCHEMA: Final = "http://www.csapi.org/schema/parlayx/"
COMMON: Final = f"{_SCHEMA}common/v2_1"
TYPES: Final = f"{_SCHEMA}terminal_status/v2_2"
TERMINAL_STATUS: Final = f"{_SCHEMA}terminal_status/v2_2/local"
"""The wrapper elements of TerminalStatus, in the version that the served WSDL declares; so the next two."""
NOTIFICATION_MANAGER: Final = f"{_SCHEMA}terminal_status/notification_manager/v2_3/local"
NOTIFICATION: Final = f"{_SCHEMA}terminal_status/notification/v2_2/local"

SERVED_PROFILE: Final = "v2_3"

_VERSIONED = re.compile(rf"({re.escape(_SCHEMA)}.+/)(v([23])_[0-9]{{1,2}})(?:/local)?")
_PROFILE = re.compile(r"v[23]_[0-9]{1,2}")
_LONGEST: Final = 120
_COMMON: Final = {"2": COMMON, "3": f"{_SCHEMA}common/v3_1"}
_NOTIFICATION_OF: Final = {"v2_3": "v2_2", "v3_1": "v3_0"}
"""Drops in which the manager's version and the callback's differ, as published for Terminal Location (2.3 goes with
2.2, and 3.1 with 3.0). In others both are the same."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The version of the contract that a client speaks."""

    local: str
    """Namespace of the wrapper elements."""
    common: str
    """Namespace of the common types, and so of the faults' details."""
    profile: str
    """The version itself, such as `v2_3`: what a subscription's sink keeps of it."""


def dialect_of_served(served: str) -> Dialect:
    """The dialect of the served WSDL, for answers to requests that do not say which they speak."""
    match = _VERSIONED.fullmatch(served)
    assert match is not None  # noqa: S101  # one of the constants above
    return Dialect(served, _COMMON[match[3]], match[2])


def dialect_of(namespace: str, served: str) -> Dialect | None:
    """The dialect of a wrapper element's namespace, or None if it is of no version of `served`.

    No namespace at all, and that of the types, are taken too: lenient clients leave the wrapper unqualified, or qualify
    it as the types. They are answered in the namespace that the contract has.
    """
    return _dialect_of(namespace, served) if len(namespace) <= _LONGEST else None


@lru_cache(maxsize=256)
def _dialect_of(namespace: str, served: str) -> Dialect | None:
    if not namespace:
        return dialect_of_served(served)
    asked, own = _VERSIONED.fullmatch(namespace), _VERSIONED.fullmatch(served)
    if asked is None or own is None or (asked[1] != own[1] and namespace.removesuffix("/local") != _types_of(asked[2])):
        return None
    return Dialect(f"{own[1]}{asked[2]}/local", _COMMON[asked[3]], asked[2])


@lru_cache(maxsize=256)
def callback_namespace(profile: str) -> str:
    """The wrapper namespace in which a subscription is called back that was started in version `profile`."""
    if not _PROFILE.fullmatch(profile):
        profile = SERVED_PROFILE
    return f"{_SCHEMA}terminal_status/notification/{_NOTIFICATION_OF.get(profile, profile)}/local"


def _types_of(version: str) -> str:
    return f"{_SCHEMA}terminal_status/{version}"
