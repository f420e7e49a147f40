"""The contract's types as Spyne models, and its words for statuses and units of time.

Invariants: names, order and occurrence of members are those of the schemas in `wsdl/` (a test checks).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from spyne import AnyUri, ComplexModel, Enum, Integer32, Unicode

from app.domain.statuses import Status
from soap_compat.versions import COMMON, TYPES

STATUS_WORDS: Final[Mapping[Status, str]] = {
    Status.REACHABLE: "Reachable",
    Status.UNREACHABLE: "Unreachable",
    Status.BUSY: "Busy",
}
_SECOND: Final = 1000
_DAY: Final = 86_400 * _SECOND
MILLISECONDS: Final[Mapping[str, int]] = {
    "Millisecond": 1,
    "Second": _SECOND,
    "Minute": 60 * _SECOND,
    "Hour": 3600 * _SECOND,
    "Day": _DAY,
    "Week": 7 * _DAY,
    "Month": 30 * _DAY,
    "Year": 365 * _DAY,
}
"""The units of TimeMetrics. The contract does not define a month and a year: they have 30 and 365 days here."""


def _shared(name: str, namespace: str, *members: tuple[str, Any]) -> Any:
    return type(name, (ComplexModel,), {"__namespace__": namespace, "_type_info": list(members)})


def _enum(name: str, namespace: str, words: Sequence[str]) -> Any:
    model = Enum(*words, type_name=name)
    model.__namespace__ = namespace
    return model


StatusWord = _enum("Status", TYPES, list(STATUS_WORDS.values()))
_RetrievalStatus = _enum("RetrievalStatus", TYPES, ["Retrieved", "NotRetrieved", "Error"])
_TimeMetrics = _enum("TimeMetrics", COMMON, list(MILLISECONDS))
ONCE: Final = {"min_occurs": 1}
Uri, Text = AnyUri(**ONCE), Unicode(**ONCE)
TimeMetric = _shared("TimeMetric", COMMON, ("metric", _TimeMetrics(**ONCE)), ("units", Integer32(**ONCE)))
SimpleReference = _shared("SimpleReference", COMMON, ("endpoint", Uri), ("interfaceName", Text), ("correlator", Text))
_ServiceError = _shared(
    "ServiceError", COMMON, ("messageId", Text), ("text", Text), ("variables", Unicode(max_occurs="unbounded"))
)
StatusData = _shared(
    "StatusData",
    TYPES,
    ("address", Uri),
    ("reportStatus", _RetrievalStatus(**ONCE)),
    ("currentStatus", StatusWord),
    ("errorInformation", _ServiceError),
)
Addresses: Final = AnyUri(min_occurs=1, max_occurs="unbounded")
