"""Queries: the status of one terminal (getStatus), or of many (getStatusForGroup).

A query that accepts an age is answered from a live watch, or from a recent status (`live/last_statuses.py`). Otherwise,
and always with an age of 0, the presence server is asked (`fetcher.py`).
Invariants: an answer from a watch costs neither a task nor a suspension. A query of many has at most MAX_AT_ONCE
fetches in flight, yields one result for each terminal as soon as it is known, and does not fail as a whole because of
one terminal. Every call makes one usage record, failed calls too, except calls that exceed the client's rate.
"""

import asyncio
import enum
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from app.auth.policies import Policies
from app.core.fetcher import FetchService
from app.core.usage import Caller, UsageLog
from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import (
    GroupNotAllowed,
    InvalidAddress,
    InvalidRequest,
    TerminalStatusError,
    TerminalUnknown,
    TooManyAddresses,
    WatcherRefused,
)
from app.domain.operations import Face, UsageOperation
from app.domain.policy import Policy, visible_status, with_status
from app.domain.records import Client
from app.domain.statuses import TerminalStatus
from app.live.group_directory import GroupDirectory
from app.live.last_statuses import LastStatuses
from app.live.registry import TerminalRegistry

MAX_AT_ONCE = 64
"""Most fetches in flight for one query."""
MAX_AGE_S = 86_400.0


class RetrievalStatus(enum.Enum):
    """The outcome for one terminal of a query, in the words of 3GPP TS 29.199-8 `RetrievalStatus`."""

    RETRIEVED = "RETRIEVED"
    NOT_RETRIEVED = "NOT_RETRIEVED"
    """Not asked, or not answered in time: the same query may succeed later. The error says which."""
    ERROR = "ERROR"
    """Refused, unknown, or another error that repeating the query does not solve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalResult:
    """One terminal's result; `address` is canonical, unless the error is InvalidAddress. `status` is set if RETRIEVED,
    `error` if not."""

    address: TerminalAddress
    retrieval: RetrievalStatus
    status: TerminalStatus | None = None
    error: TerminalStatusError | None = None


class QueryService:
    """Answers queries within the clients' policies. One per process."""

    def __init__(
        self,
        fetcher: FetchService,
        registry: TerminalRegistry,
        last_statuses: LastStatuses,
        directory: GroupDirectory,
        policies: Policies,
        usage: UsageLog,
        clock: Callable[[], datetime],
    ) -> None:
        """`clock` gives the time in UTC."""
        self._fetcher = fetcher
        self._registry = registry
        self._last_statuses = last_statuses
        self._directory = directory
        self._policies = policies
        self._usage = usage
        self._clock = clock

    def answer_from_watch(
        self, client: Client, address: str, *, max_age_s: float, face: Face, requester: str = ""
    ) -> TerminalStatus | None:
        """The status of a terminal with a live watch, without waiting: the most frequent query in the fewest steps.

        None means that `get_status` must be called, and that nothing was counted. Raises RateLimited.
        """
        if not 0 < max_age_s <= MAX_AGE_S:
            return None
        live = self._registry.live(TerminalAddress(address))  # finds nothing under an address that is not canonical
        if live is None or self._directory.is_group(client.id, address):
            return None
        policy = self._policies.admit(client)
        if not policy.busy_available:
            live = with_status(live, visible_status(False, live.status))
        self._usage.answered(client, face, requester, address, live.status)
        return live

    async def get_status(
        self, client: Client, address: str, *, max_age_s: float = 0, face: Face, requester: str = ""
    ) -> TerminalStatus:
        """The terminal's status, as the presence server states it now, or stated it at most `max_age_s` seconds ago.

        If `max_age_s` is not 0, a terminal with a live watch is always answered from it; `observed_at` is when the
        status was confirmed last. Raises GroupNotAllowed (a group of the client's), InvalidAddress, InvalidRequest (the
        age), RateLimited, and as `FetchService.fetch`.
        """
        live = self.answer_from_watch(client, address, max_age_s=max_age_s, face=face, requester=requester)
        if live is not None:
            return live
        return await self.ask(client, address, max_age_s=max_age_s, face=face, requester=requester)

    async def ask(
        self, client: Client, address: str, *, max_age_s: float = 0, face: Face, requester: str = ""
    ) -> TerminalStatus:
        """As `get_status`, after `answer_from_watch` has returned None."""
        policy = self._policies.admit(client)
        caller = Caller(client=client, face=face, requester=requester)
        try:
            age_s = _checked_age(max_age_s)
            known = self._last_statuses.knows(address)
            terminal = TerminalAddress(address) if known else parse_address(address)
            if self._directory.is_group(client.id, terminal):
                raise GroupNotAllowed(f"{terminal} is a group; ask for one terminal.", field="address")
            status = self._newest(terminal, age_s) if age_s else None
            if status is None:
                status = await self._fetch(terminal, client)
        except TerminalStatusError as error:
            self._record_failure(UsageOperation.GET_STATUS, caller, (address,), 1, error)
            raise
        except asyncio.CancelledError:
            self._usage.record(
                self._usage.make(
                    UsageOperation.GET_STATUS, caller, targets=(address,), expanded_count=1, result="CANCELLED"
                )
            )
            raise
        shown = with_status(status, visible_status(policy.busy_available, status.status))
        self._usage.record(
            self._usage.make(
                UsageOperation.GET_STATUS, caller, targets=(address,), expanded_count=1, result=shown.status.name
            )
        )
        return shown

    async def require_known(self, client: Client, terminal: TerminalAddress) -> None:
        """Raises TerminalUnknown or WatcherRefused if the presence server answers a fetch so, within its time limit.

        Every other outcome passes, silence too. A terminal with a live watch is not asked. Makes no usage record, and
        does not count against the rate: the caller's request does.
        """
        if self._registry.live(terminal) is not None:
            return
        try:
            await self._fetch(terminal, client)
        except (TerminalUnknown, WatcherRefused):
            raise
        except TerminalStatusError:
            pass

    async def query(
        self,
        client: Client,
        addresses: Sequence[str],
        *,
        max_age_s: float = 0,
        face: Face,
        requester: str = "",
        skip_invalid: bool = False,
    ) -> AsyncGenerator[TerminalResult, None]:
        """The results for terminals and members of groups, each terminal once, in the order in which they arrive. With
        `skip_invalid` an invalid address has a result too, under its text, and InvalidAddress is not raised.

        Close the iterator (`contextlib.aclosing`) if it is left early: fetches in flight are cancelled. Before the
        first result it raises GroupNotAllowed, InvalidAddress, InvalidRequest, NestedGroupNotAllowed, NoValidAddresses,
        RateLimited, StoreUnavailable, TooManyAddresses; later nothing. Each terminal counts against the rate.
        """
        calls = min(len(addresses), self._policies.of(client).max_targets) or 1
        policy = self._policies.admit(client, calls)
        caller = Caller(client=client, face=face, requester=requester)
        invalid: dict[str, InvalidAddress] = {}
        try:
            age_s = _checked_age(max_age_s)
            expansion = await self._directory.expand(
                client,
                addresses,
                policy,
                most=None if policy.process_up_to_limit else policy.max_targets,
                invalid=invalid if skip_invalid else None,
            )
        except TerminalStatusError as error:
            self._record_failure(UsageOperation.GET_STATUS_FOR_GROUP, caller, addresses, 0, error)
            raise
        self._policies.charge(client, min(len(expansion.terminals), policy.max_targets) - calls)
        result = "CANCELLED"
        try:
            for text, why in invalid.items():
                yield TerminalResult(address=TerminalAddress(text), retrieval=RetrievalStatus.ERROR, error=why)
            to_ask: list[TerminalAddress] = []
            for terminal in expansion.terminals[: policy.max_targets]:
                if age_s and (status := self._newest(terminal, age_s)) is not None:
                    yield _retrieved(policy, status)
                else:
                    to_ask.append(terminal)
            if over := expansion.terminals[policy.max_targets :]:
                not_asked = TooManyAddresses(
                    f"Not asked: only the first {policy.max_targets} terminals are.", most=str(policy.max_targets)
                )
                for terminal in over:
                    yield TerminalResult(address=terminal, retrieval=RetrievalStatus.NOT_RETRIEVED, error=not_asked)
            asked = self._ask_all(to_ask, policy, client)
            try:
                async for answer in asked:
                    yield answer
            finally:
                await asked.aclose()
            result = "OK"
        finally:
            self._usage.record(
                self._usage.make(
                    UsageOperation.GET_STATUS_FOR_GROUP,
                    caller,
                    targets=addresses,
                    expanded_count=len(expansion.terminals),
                    expanded_targets=expansion.terminals if expansion.groups else (),
                    result=result,
                )
            )

    async def _ask_all(
        self, terminals: Sequence[TerminalAddress], policy: Policy, client: Client
    ) -> AsyncGenerator[TerminalResult, None]:
        answers: asyncio.Queue[TerminalResult | Exception] = asyncio.Queue()  # one result per terminal
        rest = iter(terminals)
        askers = [
            asyncio.create_task(self._ask_some(rest, policy, client, answers), name="query")
            for _ in range(min(MAX_AT_ONCE, len(terminals)))
        ]
        try:
            for _ in terminals:
                answer = await answers.get()
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        finally:
            for asker in askers:
                asker.cancel()
            await asyncio.gather(*askers, return_exceptions=True)

    async def _ask_some(
        self,
        rest: Iterator[TerminalAddress],
        policy: Policy,
        client: Client,
        answers: asyncio.Queue[TerminalResult | Exception],
    ) -> None:
        for terminal in rest:
            try:
                answers.put_nowait(_retrieved(policy, await self._fetch(terminal, client)))
            except TerminalStatusError as error:
                retrieval = RetrievalStatus.NOT_RETRIEVED if error.retryable else RetrievalStatus.ERROR
                answers.put_nowait(TerminalResult(address=terminal, retrieval=retrieval, error=error))
            except Exception as defect:  # raised where the answers are read
                answers.put_nowait(defect)

    def _newest(self, terminal: TerminalAddress, age_s: float) -> TerminalStatus | None:
        return self._last_statuses.newest(terminal, self._clock(), age_s)  # now: a query may last long

    async def _fetch(self, terminal: TerminalAddress, client: Client) -> TerminalStatus:
        status = await self._fetcher.fetch(terminal, client.id)
        if self._last_statuses.on_fetched(status):  # if not, another caller shared this fetch
            self._registry.on_fetched(status)
        return status

    def _record_failure(
        self,
        operation: UsageOperation,
        caller: Caller,
        targets: Sequence[str],
        expanded_count: int,
        error: TerminalStatusError,
    ) -> None:
        self._usage.record(
            self._usage.make(
                operation,
                caller,
                targets=targets,
                expanded_count=expanded_count,
                result=error.code,
                root_cause=str(error),
            )
        )


def _checked_age(max_age_s: float) -> float:
    if not 0 <= max_age_s <= MAX_AGE_S:  # not for a NaN either
        raise InvalidRequest(f"`max_age` must be from 0 to {MAX_AGE_S:.0f} seconds.", field="max_age")
    return max_age_s


def _retrieved(policy: Policy, status: TerminalStatus) -> TerminalResult:
    shown = with_status(status, visible_status(policy.busy_available, status.status))
    return TerminalResult(address=status.address, retrieval=RetrievalStatus.RETRIEVED, status=shown)
