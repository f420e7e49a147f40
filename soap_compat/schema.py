"""The Parlay X contract as Spyne knows it: the types, and the operations of each interface.

Invariants: names, order and occurrence of parts are those of `wsdl/`, which a test holds against this module, but for
`requester`, which is of 3.x and taken from everybody. The operations call the use cases and translate words; they
decide nothing.

Deliberately absent: Spyne's own WSDL generator. The files in `wsdl/` are what clients see, because their structure
(imports, message and part names, fault messages) is part of the contract and Spyne's differs.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from spyne import AnyUri, Boolean, ComplexModel, Enum, Integer32, Service, Unicode, rpc

from app.core.queries import TerminalResult
from app.core.subscriptions import SubscriptionRequest
from app.domain.addresses import canonical
from app.domain.records import MAX_CORRELATOR, MAX_REQUESTER, Client
from app.domain.sinks import Sink, SinkKind
from app.domain.statuses import Status
from soap_compat.reading import invalid
from soap_compat.versions import COMMON, NOTIFICATION_MANAGER, TERMINAL_STATUS, TYPES, Dialect, dialect_of_served

if TYPE_CHECKING:
    from app.core.queries import QueryService
    from app.core.subscriptions import SubscriptionService
    from app.core.usage import UsageLog

FACE: Final = "soap"

WRITTEN: Final = "written"
"""Sink parameter: the application's own spelling of addresses (JSON, by the canonical ones), for its callbacks."""

MAX_WRITTEN: Final = 100
"""Where more addresses differ, callbacks have the canonical ones."""

STATUS_WORDS: Final[Mapping[Status, str]] = {
    Status.REACHABLE: "Reachable",
    Status.UNREACHABLE: "Unreachable",
    Status.BUSY: "Busy",
}
_STATUSES: Final = {word: status for status, word in STATUS_WORDS.items()}

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
"""TimeMetrics. A month has 30 days and a year 365: the contract does not say, and a duration is no date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCases:
    """What the operations call. `max_age_s` is the age of a status that a question accepts (0: it is asked anew).
    `usage` is for requests that are refused before a use case is called; of all others the use cases keep records."""

    queries: "QueryService"
    subscriptions: "SubscriptionService"
    usage: "UsageLog"
    max_age_s: float = 0


@dataclass(slots=True)
class Call:
    """What an operation finds in `ctx.udc`."""

    use_cases: UseCases
    dialect: Dialect
    client: Client | None = None


def _shared(name: str, namespace: str, *members: tuple[str, Any]) -> Any:
    return type(name, (ComplexModel,), {"__namespace__": namespace, "_type_info": list(members)})


def _enum(name: str, namespace: str, words: Sequence[str]) -> Any:
    model = Enum(*words, type_name=name)
    model.__namespace__ = namespace
    return model


_Status = _enum("Status", TYPES, list(STATUS_WORDS.values()))
_RetrievalStatus = _enum("RetrievalStatus", TYPES, ["Retrieved", "NotRetrieved", "Error"])
_TimeMetrics = _enum("TimeMetrics", COMMON, list(MILLISECONDS))
_Once: Final = {"min_occurs": 1}
_Uri, _Text = AnyUri(**_Once), Unicode(**_Once)
_TimeMetric = _shared("TimeMetric", COMMON, ("metric", _TimeMetrics(**_Once)), ("units", Integer32(**_Once)))
_SimpleReference = _shared(
    "SimpleReference", COMMON, ("endpoint", _Uri), ("interfaceName", _Text), ("correlator", _Text)
)
_ServiceError = _shared(
    "ServiceError", COMMON, ("messageId", _Text), ("text", _Text), ("variables", Unicode(max_occurs="unbounded"))
)
_StatusData = _shared(
    "StatusData",
    TYPES,
    ("address", _Uri),
    ("reportStatus", _RetrievalStatus(**_Once)),
    ("currentStatus", _Status),
    ("errorInformation", _ServiceError),
)
_Addresses: Final = AnyUri(min_occurs=1, max_occurs="unbounded")
_Requester: Final = AnyUri


# Spyne passes its context first; `ctx.udc` is ours: the call, with the use cases. Spyne has no types.
async def _get_status(ctx: Any, requester: str | None, address: str) -> Status:
    call: Call = ctx.udc
    status = await call.use_cases.queries.get_status(
        call.client,  # type: ignore[arg-type]  # it is known by now
        address,
        max_age_s=call.use_cases.max_age_s,
        face=FACE,
        requester=_requester(requester),
    )
    return status.status


async def _get_status_for_group(
    ctx: Any, requester: str | None, addresses: list[str]
) -> list[tuple[str, TerminalResult]]:
    call: Call = ctx.udc
    answers = call.use_cases.queries.query(
        call.client,  # type: ignore[arg-type]  # it is known by now
        addresses,
        max_age_s=call.use_cases.max_age_s,
        face=FACE,
        requester=_requester(requester),
    )
    async with aclosing(answers):
        results = [result async for result in answers]
    # In the order of the question and as it was written there, members of groups last: there are clients that count, or
    # compare text.
    asked = {address: (place, address) for place, address in enumerate(addresses)}
    if any(result.address not in asked for result in results):
        asked |= {canonical(address): found for address, found in asked.items()}
    last = len(addresses)
    results.sort(key=lambda result: asked.get(result.address, (last, ""))[0])
    return [(asked.get(result.address, (last, result.address))[1], result) for result in results]


async def _start_notification(
    ctx: Any,
    reference: tuple[str, str, str],
    requester: str | None,
    addresses: list[str],
    criteria: list[str],
    check_immediate: bool,
    frequency: tuple[str, int],
    duration: tuple[str, int] | None,
    count: int | None,
) -> None:
    call: Call = ctx.udc
    endpoint, _, correlator = reference
    await call.use_cases.subscriptions.create(
        call.client,  # type: ignore[arg-type]  # it is known by now
        SubscriptionRequest(
            addresses=addresses,
            criteria=frozenset([_STATUSES[word] for word in criteria]),
            check_immediate=check_immediate,
            min_interval_ms=_milliseconds(frequency),
            interval_named=True,
            duration_ms=None if duration is None else _duration_ms(duration),
            count=count or 0,
            correlator=_correlator(correlator, "reference.correlator"),
            sink=Sink(kind=SinkKind.SOAP, url=endpoint, profile=call.dialect.profile, parameters=_written(addresses)),
        ),
        face=FACE,
        requester=_requester(requester),
    )


async def _end_notification(ctx: Any, requester: str | None, correlator: str) -> None:
    call: Call = ctx.udc
    await call.use_cases.subscriptions.cancel_by_correlator(
        call.client,  # type: ignore[arg-type]  # it is known by now
        _correlator(correlator, "correlator"),
        face=FACE,
        requester=_requester(requester),
    )


def _requester(requester: str | None) -> str:
    if requester is not None and len(requester) > MAX_REQUESTER:
        raise invalid("requester", f"It is longer than {MAX_REQUESTER} characters.")
    return requester or ""


def _correlator(correlator: str, part: str) -> str:
    if not correlator.strip():
        raise invalid(part, "It is empty.")
    if len(correlator) > MAX_CORRELATOR:
        raise invalid(part, f"It is longer than {MAX_CORRELATOR} characters.")
    return correlator


def _written(addresses: list[str]) -> dict[str, str]:
    """The sink's parameters: how the application wrote those addresses that are written otherwise here."""
    differing = {address: text for text in addresses if (address := canonical(text)) != text}
    return {WRITTEN: json.dumps(differing)} if 0 < len(differing) <= MAX_WRITTEN else {}


@lru_cache(maxsize=256)
def written(text: str) -> Mapping[str, str]:
    """What `WRITTEN` holds, by canonical address."""
    found: dict[str, str] = json.loads(text) if text else {}
    return found


def _milliseconds(time_metric: tuple[str, int]) -> int:
    metric, units = time_metric
    return units * MILLISECONDS[metric]


def _duration_ms(time_metric: tuple[str, int]) -> int:
    """No duration at all is not the default one, which is what the part's absence means."""
    if time_metric[1] < 1:
        raise invalid("duration.units", "It must be 1 or more; leave the duration out for the default.")
    return _milliseconds(time_metric)


class TerminalStatus(Service):  # type: ignore[misc]  # Spyne has no types
    """The TerminalStatus interface of 3GPP TS 29.199-8: the attributes' names are the operations'."""

    getStatus = rpc(  # noqa: N815 - the contract's name
        _Requester, _Uri, _args=["requester", "address"], _returns=_Status(**_Once), _out_variable_name="result"
    )(_get_status)
    getStatusForGroup = rpc(  # noqa: N815 - the contract's name
        _Requester,
        _Addresses,
        _args=["requester", "addresses"],
        _returns=_StatusData.customize(max_occurs="unbounded"),
        _out_variable_name="result",
    )(_get_status_for_group)


class TerminalStatusNotificationManager(Service):  # type: ignore[misc]  # Spyne has no types
    """The TerminalStatusNotificationManager interface."""

    startNotification = rpc(  # noqa: N815 - the contract's name
        _SimpleReference.customize(min_occurs=1),
        _Requester,
        _Addresses,
        _Status.customize(max_occurs="unbounded"),
        Boolean(min_occurs=1),
        _TimeMetric.customize(min_occurs=1),
        _TimeMetric,
        Integer32,
        _args=[
            "reference",
            "requester",
            "addresses",
            "criteria",
            "checkImmediate",
            "frequency",
            "duration",
            "count",
        ],
    )(_start_notification)
    endNotification = rpc(  # noqa: N815 - the contract's name
        _Requester, _Text, _args=["requester", "correlator"]
    )(_end_notification)


INTERFACES: Final[Mapping[str, tuple[type[Service], Dialect]]] = {
    "TerminalStatus": (TerminalStatus, dialect_of_served(TERMINAL_STATUS)),
    "TerminalStatusNotificationManager": (TerminalStatusNotificationManager, dialect_of_served(NOTIFICATION_MANAGER)),
}
"""The interfaces that are served, each with the dialect of its WSDL."""
