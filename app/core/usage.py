"""Usage records: one for each billable call, with its result.

Records of calls are gathered and written together, at the latest FLUSH_S after the first one; a process that is killed
loses the records of that time. Records of deliveries are written by `delivery/deliverer.py` in the delivery's own
transaction, so none is lost.
Invariants: `record` never blocks, raises or awaits. While the database is unavailable, MAX_BUFFERED records are kept;
above that number the oldest are dropped, counted and logged.

Deliberately absent: prices, and formats (the command line writes JSON Lines and CSV).
"""

import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count, islice

import structlog

from app.auth.policies import Policies
from app.batch_writer import BatchWriter
from app.domain import x_correlator
from app.domain.errors import StoreUnavailable
from app.domain.filters import UsageFilter, seen_by
from app.domain.operations import Face, UsageOperation
from app.domain.records import MAX_USAGE_TARGETS, Client, UsageRecord
from app.domain.statuses import Status
from app.domain.x_correlator import XCorrelator
from app.ports.pages import empty
from app.ports.store import ALL_USAGE, MAX_PAGE, Page, UsageStore

FLUSH_S = 0.05
"""Longest time that a record waits while the database is available, in seconds."""
GATHER_S = 0.8 * FLUSH_S
"""How long records are gathered for one transaction, which costs more than its records. The rest of FLUSH_S is for
writing."""
MAX_BUFFERED = 100_000
MAX_WRITE = 2_000
"""Records in one transaction."""
RETRY_S = 1.0
"""How long to wait before the next attempt while the database is unavailable."""
CLOSE_S = 5.0
"""Time limit of the last write at shutdown."""
_MAX_TEXT = 255

_Answered = tuple[int, datetime, str, Face, str, str, Status, XCorrelator | None]
"""Number, time, client id, face, requester, target and its status, and the x-correlator of the call."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The client of a call and its face; `requester` is a field of Parlay X 3.x."""

    client: Client
    face: Face
    requester: str = ""


class UsageLog:
    """One per process. `start` it, and `aclose` it after the last record."""

    def __init__(self, store: UsageStore, clock: Callable[[], datetime], policies: Policies) -> None:
        """`clock` gives the time in UTC."""
        self._store = store
        self._clock = clock
        self._policies = policies
        self._buffer: deque[UsageRecord | _Answered] = deque()
        self._writer = BatchWriter(
            "usage log",
            self._write_batch,
            waiting=lambda: len(self._buffer),
            on_failed=self._on_failed,
            retry_s=RETRY_S,
            gather_s=GATHER_S,
            full=MAX_WRITE,
        )
        self._run = secrets.token_hex(8)
        # A number is cheaper than a random id, and growing ids are cheaper in a unique index.
        self._number = count(1)
        self.dropped = 0
        """How many records were dropped while the database was unavailable."""

    @property
    def buffered(self) -> int:
        """How many records wait to be written."""
        return len(self._buffer)

    async def start(self) -> None:
        """Starts writing."""
        self._writer.start()

    async def aclose(self) -> None:
        """Writes the remaining records, within CLOSE_S."""
        await self._writer.aclose(CLOSE_S)
        if self._buffer:
            _log.error("usage_records_lost", records=len(self._buffer))

    def make(
        self,
        operation: UsageOperation,
        caller: Caller,
        *,
        targets: Sequence[str] = (),
        expanded_count: int = 0,
        expanded_targets: Sequence[str] = (),
        correlator: str = "",
        subscription_id: str = "",
        result: str = "OK",
        root_cause: str = "",
    ) -> UsageRecord:
        """A record with the present time and a new id. Texts from callers are cut to a bounded length. Where `targets`
        name groups, `expanded_targets` are the terminals."""
        return UsageRecord(
            id=self._id(next(self._number)),
            at=self._clock(),
            operation=operation,
            client_id=caller.client.id,
            face=caller.face,
            requester=caller.requester[:_MAX_TEXT],
            targets=tuple([target[:_MAX_TEXT] for target in targets[:MAX_USAGE_TARGETS]]),
            target_count=len(targets),
            expanded_count=expanded_count,
            expanded_targets=tuple(expanded_targets[:MAX_USAGE_TARGETS]),
            correlator=correlator[:_MAX_TEXT],
            subscription_id=subscription_id,
            result=result,
            root_cause=root_cause[:_MAX_TEXT],
            x_correlator=x_correlator.current_text(),
        )

    def record(self, record: UsageRecord) -> None:
        """Queues the record; it is written within FLUSH_S."""
        self._keep(record)

    def answered(self, client: Client, face: Face, requester: str, target: str, status: Status) -> None:
        """As `record`, for a successful getStatus. The record is made when it is written, so the caller waits less."""
        call = x_correlator.current()
        self._keep((next(self._number), self._clock(), client.id, face, requester, target, status, call))

    def _keep(self, item: UsageRecord | _Answered) -> None:
        buffer = self._buffer
        if len(buffer) >= MAX_BUFFERED:
            buffer.popleft()
            if not self.dropped:
                _log.error("usage_records_dropped", buffered=MAX_BUFFERED)
            self.dropped += 1
        buffer.append(item)
        if len(buffer) == 1:
            self._writer.wake()

    def _id(self, number: int) -> str:
        return f"{self._run}{number:012x}"

    def _of_answer(
        self,
        number: int,
        at: datetime,
        client_id: str,
        face: Face,
        requester: str,
        target: str,
        status: Status,
        call: XCorrelator | None,
    ) -> UsageRecord:
        return UsageRecord(
            id=self._id(number),
            at=at,
            operation=UsageOperation.GET_STATUS,
            client_id=client_id,
            face=face,
            requester=requester[:_MAX_TEXT],
            targets=(target[:_MAX_TEXT],),
            target_count=1,
            expanded_count=1,
            result=status.name,
            x_correlator="" if call is None else call.text,
        )

    async def export(
        self, client: Client, only: UsageFilter = ALL_USAGE, page_size: int = MAX_PAGE
    ) -> AsyncIterator[Sequence[UsageRecord]]:
        """The client's records (an operator's client gets all), in the order they were written, page by page; pages may
        be empty. All pages count as one call. Raises RateLimited, StoreUnavailable."""
        self._policies.admit(client)
        token = ""
        while True:
            records, token = await self._page(client, Page(size=page_size, token=token), only)
            yield records
            if not token:
                return

    async def page(self, client: Client, page: Page, only: UsageFilter = ALL_USAGE) -> tuple[list[UsageRecord], str]:
        """One page of `export`, and the next page's token. Raises InvalidRequest, RateLimited, StoreUnavailable."""
        self._policies.admit(client)
        return await self._page(client, page, only)

    async def _page(self, client: Client, page: Page, only: UsageFilter) -> tuple[list[UsageRecord], str]:
        seen = seen_by(client, only)
        return empty(page) if seen is None else await self._store.usage(page, seen)

    async def _write_batch(self) -> None:
        dropped = self.dropped
        items = islice(self._buffer, MAX_WRITE)
        records = [item if isinstance(item, UsageRecord) else self._of_answer(*item) for item in items]
        await self._store.write_usage(records)
        for _ in range(len(records) - (self.dropped - dropped)):  # `_keep` may have dropped some of them meanwhile
            self._buffer.popleft()

    def _on_failed(self, error: Exception) -> None:
        if isinstance(error, StoreUnavailable):
            _log.warning("usage_records_wait", records=len(self._buffer), why=str(error))
        else:  # records that can never be written are dropped once the buffer is full: they are the oldest
            _log.error("usage_records_wait", records=len(self._buffer), exc_info=error)
