"""One-shot questions of applications, about one terminal or many: getStatus and getStatusForGroup.

A question that accepts an age is answered from a live watch, or from a recent observation, where there is one; else,
and always with an age of 0, the presence server is asked (`fetcher.py`).
Invariants: an answer from a watch costs neither a task nor a suspension. A query of many has MAX_AT_ONCE questions in
flight, gives each terminal exactly one result as soon as it has it, and does not fail for one of them. Every call
leaves one usage record, failed ones too, but for those that were refused for their rate.

Deliberately absent: SIP, and the fetch itself.
"""

import asyncio
import enum
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.auth.policies import Policies
from app.core.fetcher import FetchService
from app.core.usage import GET_STATUS, GET_STATUS_FOR_GROUP, Caller, UsageLog
from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import GroupNotAllowed, InvalidRequest, TerminalStatusError, TooManyAddresses
from app.domain.policy import Policy, visible_status, with_status
from app.domain.records import Client
from app.domain.statuses import TerminalStatus
from app.live.engine import Engine
from app.live.group_directory import GroupDirectory

MAX_AT_ONCE = 64
"""Questions in flight for one query."""
MAX_AGE_S = 86_400.0
MAX_RECENT = 10_000
"""Fetched statuses that are remembered; above it the oldest is forgotten."""


class RetrievalStatus(enum.Enum):
    """What came of the question about one terminal, in the words of 3GPP TS 29.199-8 `RetrievalStatus`."""

    RETRIEVED = "RETRIEVED"
    NOT_RETRIEVED = "NOT_RETRIEVED"
    """Not tried, or not answered in time: the same question may succeed later. The error says which."""
    ERROR = "ERROR"
    """Refused, unknown, or another error that waiting does not mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalResult:
    """One terminal's part of a query; `address` is canonical. `status` is there if RETRIEVED, `error` if not."""

    address: TerminalAddress
    retrieval: RetrievalStatus
    status: TerminalStatus | None = None
    error: TerminalStatusError | None = None


class QueryService:
    """Answers applications' questions within their policies. One per process."""

    def __init__(
        self,
        status_service: FetchService,
        watching: Engine,
        groups: GroupDirectory,
        policies: Policies,
        usage: UsageLog,
        clock: Callable[[], datetime],
    ) -> None:
        """`clock` gives the time in UTC."""
        self._fetches = status_service
        self._watching = watching
        self._groups = groups
        self._policies = policies
        self._usage = usage
        self._clock = clock
        self._recent: dict[TerminalAddress, TerminalStatus] = {}  # in the order of observation

    def at_once(
        self, client: Client, address: str, *, max_age_s: float, face: str, requester: str = ""
    ) -> TerminalStatus | None:
        """What `get_status` would tell of a terminal with a live watch, without waiting: what is asked most, without a
        step too many. None means that `get_status` must be asked, and that nothing was counted. Raises RateLimited."""
        if not 0 < max_age_s <= MAX_AGE_S:
            return None
        live = self._watching.live(TerminalAddress(address))  # there is none under an address that is not canonical
        if live is None or self._groups.is_group(client.id, address):
            return None
        policy = self._policies.admit(client)
        self._usage.answered(client, face, requester, address)
        return live if policy.busy_available else with_status(live, visible_status(False, live.status))

    async def get_status(
        self, client: Client, address: str, *, max_age_s: float = 0, face: str, requester: str = ""
    ) -> TerminalStatus:
        """The terminal's status, as the presence server says now, or said at most `max_age_s` seconds ago.

        A terminal with a live watch is always answered from it where `max_age_s` is not 0; `observed_at` is when it was
        stated last. Raises GroupNotAllowed (a group of the client's), InvalidRequest (the age), RateLimited, and as
        `FetchService.get_status`.
        """
        live = self.at_once(client, address, max_age_s=max_age_s, face=face, requester=requester)
        if live is not None:
            return live
        policy = self._policies.admit(client)
        caller = Caller(client=client, face=face, requester=requester)
        try:
            age_s = _checked_age(max_age_s)
            terminal = self._canonical(address)
            if self._groups.is_group(client.id, terminal):
                raise GroupNotAllowed(f"{terminal} is a group; ask for one terminal.", field="address")
            status = self._known(terminal, age_s) if age_s else None
            if status is None:
                status = await self._fetch(terminal, client)
        except TerminalStatusError as error:
            self._record(GET_STATUS, caller, (address,), 1, error)
            raise
        except asyncio.CancelledError:
            self._usage.record(
                self._usage.make(GET_STATUS, caller, targets=(address,), expanded_count=1, result="CANCELLED")
            )
            raise
        self._record(GET_STATUS, caller, (address,), 1, None)
        return with_status(status, visible_status(policy.busy_available, status.status))

    async def query(
        self, client: Client, addresses: Sequence[str], *, max_age_s: float = 0, face: str, requester: str = ""
    ) -> AsyncGenerator[TerminalResult, None]:
        """The statuses of terminals and groups' members, each terminal once, as the answers come.

        Close the iterator (`contextlib.aclosing`) where it is left early: what is in flight is given up. Before the
        first result it raises GroupNotAllowed, InvalidAddress, InvalidRequest, NestedGroupNotAllowed, NoValidAddresses,
        RateLimited, StoreUnavailable, TooManyAddresses; thereafter nothing. Each terminal counts against the rate.
        """
        calls = min(len(addresses), self._policies.of(client).max_targets) or 1
        policy = self._policies.admit(client, calls)
        caller = Caller(client=client, face=face, requester=requester)
        try:
            age_s = _checked_age(max_age_s)
            expansion = await self._groups.expand(
                client, addresses, policy, most=None if policy.process_up_to_limit else policy.max_targets
            )
        except TerminalStatusError as error:
            self._record(GET_STATUS_FOR_GROUP, caller, addresses, 0, error)
            raise
        self._policies.charge(client, min(len(expansion.terminals), policy.max_targets) - calls)
        result = "CANCELLED"
        try:
            to_ask: list[TerminalAddress] = []
            for terminal in expansion.terminals[: policy.max_targets]:
                if age_s and (status := self._known(terminal, age_s)) is not None:
                    yield _retrieved(policy, status)
                else:
                    to_ask.append(terminal)
            if over := expansion.terminals[policy.max_targets :]:
                not_asked = TooManyAddresses(
                    f"Not asked: it is beyond the first {policy.max_targets}.", most=str(policy.max_targets)
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
                    GET_STATUS_FOR_GROUP,
                    caller,
                    targets=addresses,
                    expanded_count=len(expansion.terminals),
                    result=result,
                )
            )

    async def _ask_all(
        self, terminals: Sequence[TerminalAddress], policy: Policy, client: Client
    ) -> AsyncGenerator[TerminalResult, None]:
        answers: asyncio.Queue[TerminalResult | Exception] = asyncio.Queue()  # as many as terminals, at most
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
            except Exception as defect:  # the one who reads the answers raises it
                answers.put_nowait(defect)

    def _canonical(self, address: str) -> TerminalAddress:
        """The canonical form; a look-up where something is known of the terminal."""
        terminal = TerminalAddress(address)
        known = terminal in self._recent or self._watching.last(terminal) is not None
        return terminal if known else parse_address(address)

    def _known(self, terminal: TerminalAddress, age_s: float) -> TerminalStatus | None:
        """What is known of the terminal and no older than that."""
        if (status := self._watching.live(terminal)) is not None:
            return status
        status, watched = self._recent.get(terminal), self._watching.last(terminal)
        if watched is not None and (status is None or status.observed_at < watched.observed_at):
            status = watched
        unreadable_at = self._watching.unreadable_at(terminal)
        if status is None or (unreadable_at is not None and unreadable_at >= status.observed_at):
            return None  # what it said last could not be read: what it said before is no answer
        now = self._clock()
        # Nothing was observed later than now, but by a clock that was set back since: that tells no age.
        return status if now - timedelta(seconds=age_s) <= status.observed_at <= now else None

    async def _fetch(self, terminal: TerminalAddress, client: Client) -> TerminalStatus:
        status = await self._fetches.get_status(terminal, client.id)
        recent = self._recent
        if recent.get(terminal) is not status:  # else another caller of the same fetch was here
            self._watching.fetched(status)
        recent.pop(terminal, None)
        recent[terminal] = status
        if len(recent) > MAX_RECENT:
            del recent[next(iter(recent))]
        return status

    def _record(
        self,
        operation: str,
        caller: Caller,
        targets: Sequence[str],
        expanded_count: int,
        error: TerminalStatusError | None,
    ) -> None:
        usage = self._usage
        if error is None:
            usage.record(usage.make(operation, caller, targets=targets, expanded_count=expanded_count))
        else:
            usage.record(
                usage.make(
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
        raise InvalidRequest(f"The age must be 0 to {MAX_AGE_S:.0f} seconds.", field="max_age")
    return max_age_s


def _retrieved(policy: Policy, status: TerminalStatus) -> TerminalResult:
    shown = with_status(status, visible_status(policy.busy_available, status.status))
    return TerminalResult(address=status.address, retrieval=RetrievalStatus.RETRIEVED, status=shown)
