"""TerminalStatusService: one terminal, many, and live events.

Invariants: GetStatus, which is on the bench, does nothing that it need not: it takes and gives bytes. A stream awaits
each write, so a slow reader holds up nobody but itself: what it has not read waits in the use case's mailbox. Each
RECHECK_S an event of the stream is taken as occasion to look whether the credentials are still good, and whether the
stream is too old.

Deliberately absent: snapshots, order and bookmarks, which are `live/engine.py`'s.
"""

import asyncio
from contextlib import aclosing
from typing import Any, cast

import grpc.aio
from google.protobuf.message import DecodeError

from app.core.queries import QueryService
from app.domain.bounded import BoundedDict
from app.domain.errors import InvalidRequest, TerminalStatusError, Unauthenticated
from app.domain.records import MAX_REQUESTER, Client
from app.domain.statuses import TerminalStatus
from app.live import events
from app.live.engine import Engine
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1 import terminal_status_pb2_grpc as pb_grpc
from app.rpc import wire
from app.rpc.calls import Calls, Context

RECHECK_S = 30.0
MAX_QUESTIONS = 10_000
"""Requests for GetStatus that are kept, with their answers."""
MAX_QUESTION_BYTES = 500
"""Of one that is kept."""
FACE = "grpc"
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TerminalStatusService"].full_name


class Question:
    """A request for GetStatus, and the last answer to it. Applications ask the same again and again, and a watched
    terminal's status is the same object until it changes: neither is read nor written twice."""

    __slots__ = ("_answer", "_status", "address", "max_age_s", "requester")

    def __init__(self, data: bytes) -> None:
        """Raises InvalidRequest."""
        try:
            request = pb.GetStatusRequest.FromString(data)
        except DecodeError:
            raise InvalidRequest("These bytes are no GetStatusRequest.") from None
        self.address = request.address
        self.max_age_s = wire.max_age_s(request)
        self.requester = wire.bounded(request.requester, MAX_REQUESTER, "requester")
        self._status: TerminalStatus | None = None
        self._answer = b""

    def answer(self, status: TerminalStatus) -> bytes:
        """The message that tells the status."""
        if self._status is not status:
            self._answer = pb.GetStatusResponse(status=wire.terminal_status(status)).SerializeToString()
            self._status = status
        return self._answer


def question(kept: BoundedDict[bytes, Question], data: bytes) -> Question:
    """What the request asks; kept for the next time, unless it is long. Raises InvalidRequest."""
    known = kept.get(data)
    if known is None:
        known = Question(data)
        if len(data) <= MAX_QUESTION_BYTES:
            kept[data] = known
    return known


class TerminalStatusServicer(pb_grpc.TerminalStatusServiceServicer):
    """As the proto says."""

    def __init__(
        self, calls: Calls, queries: QueryService, watching: Engine, *, max_stream_age_s: float | None
    ) -> None:
        self._calls = calls
        self._queries = queries
        self._watching = watching
        self._max_stream_age_s = max_stream_age_s
        self._last: tuple[events.WatchEvent, pb.WatchStatusesResponse] | None = None
        self._questions = BoundedDict[bytes, Question](MAX_QUESTIONS)

    def raw_handlers(self) -> dict[str, Any]:
        """GetStatus on messages as they are on the wire; to be added before the generated handler."""
        return {"GetStatus": cast("Any", grpc.unary_unary_rpc_method_handler)(self.GetStatus)}

    async def GetStatus(self, data: bytes, context: Context) -> bytes:  # type: ignore[override]  # noqa: N802
        try:
            client = self._calls.clients[context]
            return self._at_once(client, data) or await self._ask(client, data)
        except (Exception, asyncio.CancelledError) as error:  # the last place before the wire
            await self._calls.fail(context, "GetStatus", error)

    def _at_once(self, client: Client, data: bytes) -> bytes | None:
        asked = question(self._questions, data)
        status = self._queries.at_once(
            client, asked.address, max_age_s=asked.max_age_s, face=FACE, requester=asked.requester
        )
        return asked.answer(status) if status else None

    async def _ask(self, client: Client, data: bytes) -> bytes:
        asked = question(self._questions, data)
        status = await self._queries.get_status(
            client, asked.address, max_age_s=asked.max_age_s, face=FACE, requester=asked.requester
        )
        return asked.answer(status)

    async def QueryStatuses(self, request: pb.QueryStatusesRequest, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        async with self._calls.answer(context, "QueryStatuses") as client:
            results = self._queries.query(
                client,
                request.addresses,
                max_age_s=wire.max_age_s(request),
                face=FACE,
                requester=wire.bounded(request.requester, MAX_REQUESTER, "requester"),
            )
            async with aclosing(results):
                async for result in results:
                    await context.write(pb.QueryStatusesResponse(result=wire.terminal_result(result)))

    async def WatchStatuses(self, request: pb.WatchStatusesRequest, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        async with self._calls.answer(context, "WatchStatuses") as client:
            stream = self._watching.stream(
                client,
                request.addresses,
                criteria=wire.criteria(request.criteria),
                min_interval_ms=wire.duration_ms(request, "min_interval"),
                resume_token=request.resume_token,
            )
            clock, token = asyncio.get_running_loop().time, ""
            check_at = began_at = clock()
            check_at += RECHECK_S
            async with aclosing(stream):
                async for event in stream:
                    await context.write(self._message(event))
                    if isinstance(event, events.Bookmark | events.SnapshotComplete):
                        token = event.resume_token
                    if (now := clock()) >= check_at:
                        check_at = now + RECHECK_S
                        if end := await self._end(context, client, now - began_at, token):
                            await context.write(end)
                            return

    def _message(self, event: events.WatchEvent) -> pb.WatchStatusesResponse:
        """The event as a message; the same event goes to many streams one after the other, and is made once."""
        last = self._last
        if last is None or last[0] is not event:
            last = self._last = (event, wire.watch_event(event))
        return last[1]

    async def _end(self, context: Context, client: Client, age_s: float, token: str) -> pb.WatchStatusesResponse | None:
        """What is said last to a stream that must end now."""
        if self._max_stream_age_s is not None and age_s >= self._max_stream_age_s:
            return wire.stream_end(pb.STREAM_END_REASON_MAX_AGE, "The stream is old; resume it.", token)
        try:
            if (self._calls.known(context) or await self._calls.client_of(context)).id == client.id:
                return None
        except Unauthenticated:
            pass
        except TerminalStatusError:
            return None  # it cannot be told now
        return wire.stream_end(pb.STREAM_END_REASON_CREDENTIALS_EXPIRED, "The credentials are no longer good.", "")
