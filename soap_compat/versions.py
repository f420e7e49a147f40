"""The versions of the contract: the version of a client's namespace, and the namespaces of its responses and callbacks.

Client stubs in the field were generated from several published versions, whose namespaces differ in a digit. A client
is answered in the namespace of its request, with faults in the common types of the same publication, and called back in
the namespace of the same publication, or in the version that its `soap_callback_version` names.

Invariants: pure.

Deliberately absent: WSDL files of versions other than the served one (`wsdl_files.py`); only the digits differ.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from app.domain.sinks import SINK_CALLBACK_VERSION, Sink, is_callback_version

_SCHEMA: Final = "http://www.csapi.org/schema/parlayx/"
COMMON: Final = f"{_SCHEMA}common/v2_1"
TYPES: Final = f"{_SCHEMA}terminal_status/v2_2"
TERMINAL_STATUS: Final = f"{_SCHEMA}terminal_status/v2_2/local"
"""The namespace of an interface's wrapper elements in the served WSDL; so are the next two constants."""
NOTIFICATION_MANAGER: Final = f"{_SCHEMA}terminal_status/notification_manager/v2_3/local"
NOTIFICATION: Final = f"{_SCHEMA}terminal_status/notification/v2_2/local"

SERVED_PROFILE: Final = "v2_3"

_VERSIONED = re.compile(rf"({re.escape(_SCHEMA)}.+/)(v([23])_[0-9]{{1,2}})(?:/local)?")
_LONGEST: Final = 120
_COMMON_PREFIX: Final = f"{_SCHEMA}common/v"
_COMMON = re.compile(rf"{re.escape(_SCHEMA)}common/v([23])_[0-9]{{1,2}}")
_COMMON_OF: Final = {"v2_0": f"{_SCHEMA}common/v2_0", "v3_0": f"{_SCHEMA}common/v3_0"}
_COMMON_OF_SERIES: Final = {"2": COMMON, "3": f"{_SCHEMA}common/v3_1"}
"""The common types by the version of an interface, and by the series of every other version."""

_NOTIFICATION_OF: Final = {"v2_3": "v2_2", "v3_1": "v3_0"}
"""The callback's version by the notification manager's, for publications in which the two differ. They were published
like this for Terminal Location."""
_OTHER: Final = {"v2_2": "v2_3", "v3_0": "v3_1"}
"""The version to try where an application does not know the first one."""
_USUAL: Final = {"2": "v2_2", "3": "v3_0"}
"""The version to try in place of every other version, by series."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The version of the contract that a client speaks."""

    local: str
    """The namespace of the wrapper elements."""
    common: str
    """The namespace of the common types, which details of faults belong to."""
    profile: str
    """The version, such as `v2_3`, which a subscription's sink stores."""


def dialect_of_served(served: str) -> Dialect:
    """The dialect of the served WSDL, for responses to requests without a usable namespace."""
    match = _VERSIONED.fullmatch(served)
    assert match is not None  # noqa: S101  # one of the constants above
    return Dialect(served, _common_of(match[2]), match[2])


def dialect_of(namespace: str, served: str, declared: Collection[str] = ()) -> Dialect | None:
    """The dialect of a wrapper element's namespace; None if the namespace is not a version of `served`.

    An unqualified wrapper and the namespace of the types are accepted too, since lenient clients send them. Those
    clients are answered in the contract's namespace. `declared` are the namespaces of common types that the request
    declares: some stubs (JAX-WS) declare every namespace that they know. If it is one of the client's series, and not
    also the usual one of its version, the faults belong to it.
    """
    dialect = _dialect_of(namespace, served) if len(namespace) <= _LONGEST else None
    if dialect is None or not declared or dialect.common in declared:
        return dialect
    known = [each for each in declared if (match := _COMMON.fullmatch(each)) and match[1] == dialect.profile[1]]
    return replace(dialect, common=known[0]) if len(known) == 1 else dialect


def is_common(namespace: str) -> bool:
    """Whether this is the namespace of the common types, in any version."""
    return namespace.startswith(_COMMON_PREFIX) and _COMMON.fullmatch(namespace) is not None


@lru_cache(maxsize=256)
def _dialect_of(namespace: str, served: str) -> Dialect | None:
    if not namespace:
        return dialect_of_served(served)
    asked, own = _VERSIONED.fullmatch(namespace), _VERSIONED.fullmatch(served)
    if asked is None or own is None or (asked[1] != own[1] and namespace.removesuffix("/local") != _types_of(asked[2])):
        return None
    return Dialect(f"{own[1]}{asked[2]}/local", _common_of(asked[2]), asked[2])


def callback_version(sink: Sink) -> str:
    """The version of the callbacks to a sink: its client's `soap_callback_version`, or else that of the publication
    in whose version the subscription was started."""
    named = sink.parameters.get(SINK_CALLBACK_VERSION, "")
    if is_callback_version(named):
        return named
    profile = sink.profile if is_callback_version(sink.profile) else SERVED_PROFILE
    return _NOTIFICATION_OF.get(profile, profile)


def other_version(version: str) -> str:
    """The version of the same series in which an application may know callbacks that it does not know in `version`."""
    return _OTHER.get(version) or _USUAL[version[1]]


@lru_cache(maxsize=256)
def callback_namespace(version: str) -> str:
    """The namespace of the wrapper elements of callbacks in this version."""
    return f"{_SCHEMA}terminal_status/notification/{version}/local"


def _common_of(version: str) -> str:
    return _COMMON_OF.get(version) or _COMMON_OF_SERIES[version[1]]


def _types_of(version: str) -> str:
    return f"{_SCHEMA}terminal_status/{version}"
