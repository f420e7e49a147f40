"""The operations of the two served interfaces: each translates the contract's words and calls one use case.

Invariants: names, order and occurrence of parts are those of `wsdl/` (a test checks), except `requester`, which belongs
to version 3.x and is accepted in every version. The operations contain no rules.

Deliberately absent: Spyne's WSDL generator. Clients load the files in `wsdl/`, whose structure (imports, names of
messages and parts, fault messages) is part of the contract and differs from Spyne's.
"""

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from spyne import AnyUri, Boolean, Integer32, Service, rpc

from app.core.queries import QueryService, TerminalResult
from app.core.subscription_requests import SubscriptionRequest
from app.core.subscriptions import SubscriptionService
from app.core.usage import UsageLog
from app.domain.addresses import canonical, with_tel_context
from app.domain.errors import DurationTooLong
from app.domain.operations import Face
from app.domain.policy import MAX_INTERVAL_MS
from app.domain.records import MAX_CORRELATOR, MAX_REQUESTER, Client
from app.domain.sinks import Sink, SinkKind
from app.domain.statuses import Status
from soap_compat.address_spelling import spelling_parameters
from soap_compat.contract_types import (
    MILLISECONDS,
    ONCE,
    STATUS_WORDS,
    Addresses,
    SimpleReference,
    StatusData,
    StatusWord,
    Text,
    TimeMetric,
    Uri,
)
from soap_compat.faults import declared_fault, invalid_part
from soap_compat.versions import NOTIFICATION_MANAGER, TERMINAL_STATUS, Dialect, dialect_of_served

FACE: Final = Face.SOAP
"""The name of this API in usage records."""

_STATUSES: Final = {word: status for status, word in STATUS_WORDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCases:
    """The use cases that the operations call. `max_age_s` is the greatest age of a status that queries accept (0: they
    ask the presence server). `usage` records requests that are refused before a use case is called. `tel_context`
    completes telephone numbers (`with_tel_context`)."""

    queries: QueryService
    subscriptions: SubscriptionService
    usage: UsageLog
    max_age_s: float = 0
    tel_context: str = ""

    def completed(self, address: str) -> str:
        """The address with the operator's context, if it is a telephone number without one."""
        return with_tel_context(address, self.tel_context)


@dataclass(slots=True)
class Call:
    """One call, in `ctx.udc` of Spyne's context. `client` is set before an operation runs."""

    use_cases: UseCases
    dialect: Dialect
    client: Client | None = None


_Requester: Final = AnyUri


# Spyne passes its context first; `ctx.udc` is our `Call`. Spyne has no types.
async def _get_status(ctx: Any, requester: str | None, address: str) -> Status:
    call: Call = ctx.udc
    status = await call.use_cases.queries.get_status(
        call.client,  # type: ignore[arg-type]  # set by now
        call.use_cases.completed(address),
        max_age_s=call.use_cases.max_age_s,
        face=FACE,
        requester=_requester(requester),
    )
    return status.status


async def _get_status_for_group(
    ctx: Any, requester: str | None, addresses: list[str]
) -> list[tuple[str, TerminalResult]]:
    call: Call = ctx.udc
    completed = [call.use_cases.completed(address) for address in addresses]
    answers = call.use_cases.queries.query(
        call.client,  # type: ignore[arg-type]  # set by now
        completed,
        max_age_s=call.use_cases.max_age_s,
        face=FACE,
        requester=_requester(requester),
        skip_invalid=True,
    )
    async with aclosing(answers):
        results = [result async for result in answers]
    # In the order and spelling of the request, members of groups last: some clients count results, or compare text.
    requested = {asked: (place, addresses[place]) for place, asked in enumerate(completed)}
    if any(result.address not in requested for result in results):
        requested |= {canonical(address): found for address, found in requested.items()}
    last = len(addresses)
    results.sort(key=lambda result: requested.get(result.address, (last, ""))[0])
    return [(requested.get(result.address, (last, result.address))[1], result) for result in results]


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
        call.client,  # type: ignore[arg-type]  # set by now
        SubscriptionRequest(
            addresses=[call.use_cases.completed(address) for address in addresses],
            skip_invalid=True,
            criteria=frozenset([_STATUSES[word] for word in criteria]),
            check_immediate=check_immediate,
            min_interval_ms=_milliseconds(frequency),
            interval_named=True,
            duration_ms=None if duration is None else _duration_ms(duration),
            count=count or 0,
            correlator=_correlator(correlator, "reference.correlator"),
            sink=Sink(
                kind=SinkKind.SOAP,
                url=endpoint,
                profile=call.dialect.profile,
                parameters=spelling_parameters(addresses, call.use_cases.tel_context),
            ),
        ),
        face=FACE,
        requester=_requester(requester),
    )


async def _end_notification(ctx: Any, requester: str | None, correlator: str) -> None:
    call: Call = ctx.udc
    await call.use_cases.subscriptions.cancel_by_correlator(
        call.client,  # type: ignore[arg-type]  # set by now
        _correlator(correlator, "correlator"),
        face=FACE,
        requester=_requester(requester),
    )


def _requester(requester: str | None) -> str:
    if requester is not None and len(requester) > MAX_REQUESTER:
        raise invalid_part("requester", f"The part is longer than {MAX_REQUESTER} characters.")
    return requester or ""


def _correlator(correlator: str, part: str) -> str:
    if not correlator.strip():
        raise invalid_part(part, "The part is empty.")
    if len(correlator) > MAX_CORRELATOR:
        raise invalid_part(part, f"The part is longer than {MAX_CORRELATOR} characters.")
    return correlator


def _milliseconds(time_metric: tuple[str, int]) -> int:
    metric, units = time_metric
    return units * MILLISECONDS[metric]


def _duration_ms(time_metric: tuple[str, int]) -> int:
    """0 is refused: the default duration is requested by omitting the part. A duration above the gateway's own bound is
    the same fault as one above the policy's: to the application both are a maximum (3GPP TS 29.199-8)."""
    if time_metric[1] < 1:
        raise invalid_part("duration.units", "The part must be 1 or more; omit `duration` for the default.")
    duration_ms = _milliseconds(time_metric)
    if duration_ms > MAX_INTERVAL_MS:
        code, days = DurationTooLong.code, MAX_INTERVAL_MS // MILLISECONDS["Day"]
        raise declared_fault("POL0001", code, reason=f"The duration must be at most {days} days.", result=code)
    return duration_ms


class TerminalStatus(Service):  # type: ignore[misc]  # Spyne has no types
    """The TerminalStatus interface of 3GPP TS 29.199-8. Spyne takes the operations' names from the attributes."""

    getStatus = rpc(  # noqa: N815 - the contract's name
        _Requester, Uri, _args=["requester", "address"], _returns=StatusWord(**ONCE), _out_variable_name="result"
    )(_get_status)
    getStatusForGroup = rpc(  # noqa: N815 - the contract's name
        _Requester,
        Addresses,
        _args=["requester", "addresses"],
        _returns=StatusData.customize(max_occurs="unbounded"),
        _out_variable_name="result",
    )(_get_status_for_group)


class TerminalStatusNotificationManager(Service):  # type: ignore[misc]  # Spyne has no types
    """The TerminalStatusNotificationManager interface of 3GPP TS 29.199-8."""

    startNotification = rpc(  # noqa: N815 - the contract's name
        SimpleReference.customize(min_occurs=1),
        _Requester,
        Addresses,
        StatusWord.customize(max_occurs="unbounded"),
        Boolean(min_occurs=1),
        TimeMetric.customize(min_occurs=1),
        TimeMetric,
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
        _Requester, Text, _args=["requester", "correlator"]
    )(_end_notification)


INTERFACES: Final[Mapping[str, tuple[type[Service], Dialect]]] = {
    "TerminalStatus": (TerminalStatus, dialect_of_served(TERMINAL_STATUS)),
    "TerminalStatusNotificationManager": (TerminalStatusNotificationManager, dialect_of_served(NOTIFICATION_MANAGER)),
}
"""The served interfaces, each with the dialect of its WSDL."""
