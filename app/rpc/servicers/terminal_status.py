"""TerminalStatusService: one terminal's status, many terminals' statuses, and streams of changes.

FollowStatuses has two tasks: one writes the stream's events, the other reads the client's changes. A change is made
when the answer to the one before is being written, so gRPC's flow control slows down a client that does not read.

Invariants: GetStatus is the most frequent call: it takes and returns bytes, and parses and serialises as little as
possible (`cached_requests.py`). A stream awaits each write, so a slow client holds up only its own stream; what it has
not received waits in the stream's mailbox. At most once per RECHECK_S, a stream's next event triggers two checks: are
the call's credentials still valid, and has the stream reached its greatest age?

Deliberately absent: snapshots, order and bookmarks of a stream (`app/live/`).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import TypeVar

from google.protobuf.message import Message

from app.core.queries import QueryService
from app.core.streams import OpenStream, StreamService
from app.domain.bounded import BoundedDict
from app.domain.errors import InvalidRequest, TerminalStatusError, Unauthenticated
from app.domain.records import MAX_REQUESTER, Client
from app.live import events
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1 import terminal_status_pb2_grpc as pb_grpc
from app.rpc import request_fields, response_messages
from app.rpc.callers import FACE, Callers, Context
from app.rpc.open_calls import OpenCalls
from app.rpc.servicers.cached_requests import MAX_CACHED_REQUESTS, CachedRequest, cached_request

RECHECK_S = 30.0
MAX_CHANGE_ID = 64
_RESUMABLE = (events.Bookmark, events.SnapshotComplete, events.ChangeApplied)
_Event = TypeVar("_Event", bound=events.OpenStreamEvent)
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TerminalStatusService"].full_name


class TerminalStatusServicer(pb_grpc.TerminalStatusServiceServicer):
    def __init__(
        self,
        calls: OpenCalls,
        callers: Callers,
        queries: QueryService,
        streams: StreamService,
        *,
        max_stream_age_s: float | None,
    ) -> None:
        self._calls = calls
        self._callers = callers
        self._queries = queries
        self._streams = streams
        self._max_stream_age_s = max_stream_age_s
        self._last_message: tuple[events.StreamEvent, pb.WatchStatusesResponse] | None = None
        self._requests = BoundedDict[bytes, CachedRequest](MAX_CACHED_REQUESTS)

    async def GetStatus(self, data: bytes, context: Context) -> bytes:  # type: ignore[override]  # noqa: N802
        try:
            client = self._calls.clients[context]
            return self._answer_from_watch(client, data) or await self._ask(client, data)
        except (Exception, asyncio.CancelledError) as error:  # the last place before the wire
            await self._calls.fail(context, "GetStatus", error)

    def _answer_from_watch(self, client: Client, data: bytes) -> bytes | None:
        request = cached_request(self._requests, data)
        status = self._queries.answer_from_watch(
            client, request.address, max_age_s=request.max_age_s, face=FACE, requester=request.requester
        )
        return request.response(status) if status else None

    async def _ask(self, client: Client, data: bytes) -> bytes:
        request = cached_request(self._requests, data)
        status = await self._queries.ask(
            client, request.address, max_age_s=request.max_age_s, face=FACE, requester=request.requester
        )
        return request.response(status)

    async def QueryStatuses(self, request: pb.QueryStatusesRequest, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        async with self._calls.answer(context, "QueryStatuses") as client:
            results = self._queries.query(
                client,
                request.addresses,
                max_age_s=request_fields.max_age_s(request),
                face=FACE,
                requester=request_fields.bounded(request.requester, MAX_REQUESTER, "requester"),
            )
            async with aclosing(results):
                async for result in results:
                    await context.write(pb.QueryStatusesResponse(result=response_messages.terminal_result(result)))

    async def WatchStatuses(self, request: pb.WatchStatusesRequest, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        async with self._calls.answer(context, "WatchStatuses") as client:
            stream = self._streams.stream(
                client,
                request.addresses,
                criteria=request_fields.criteria(request.criteria),
                min_interval_ms=request_fields.duration_ms(request, "min_interval"),
                resume_token=request.resume_token,
            )
            async with aclosing(stream):
                await self._send(context, client, stream, self._message, lambda last: last)

    async def FollowStatuses(  # type: ignore[override]  # noqa: N802
        self, requests: AsyncGenerator[pb.FollowStatusesRequest, None], context: Context
    ) -> None:
        async with self._calls.answer(context, "FollowStatuses") as client, AsyncExitStack() as stack:
            await stack.enter_async_context(aclosing(requests))
            opening = _opening(await anext(requests))
            with request_fields.fields_within("open", pb.WatchStatusesRequest.DESCRIPTOR):
                stream = await stack.enter_async_context(
                    self._streams.open(
                        client,
                        opening.addresses,
                        criteria=request_fields.criteria(opening.criteria),
                        min_interval_ms=request_fields.duration_ms(opening, "min_interval"),
                        resume_token=opening.resume_token,
                    )
                )
            del opening  # an idle stream keeps only what it needs
            try:
                async with asyncio.TaskGroup() as tasks:
                    changing = tasks.create_task(self._change(context, client, stream, requests))
                    await self._send(context, client, stream.events, self._follow_message, _status_event)
                    changing.cancel()
            except BaseExceptionGroup as failed:  # a request was not a change
                raise failed.exceptions[0] from None

    async def _send(
        self,
        context: Context,
        client: Client,
        stream: AsyncGenerator[_Event, None],
        message: Callable[[_Event], Message],
        last_message: Callable[[pb.WatchStatusesResponse], Message],
    ) -> None:
        """Writes the events of a stream, until it ends or must end."""
        clock, token = asyncio.get_running_loop().time, ""
        check_at = began_at = clock()
        check_at += RECHECK_S
        async for event in stream:
            await context.write(message(event))
            if isinstance(event, _RESUMABLE):
                token = event.resume_token or token
            if (now := clock()) >= check_at:
                check_at = now + RECHECK_S
                if end := await self._end(context, client, now - began_at, token):
                    await context.write(last_message(end))
                    return

    async def _change(
        self,
        context: Context,
        client: Client,
        stream: OpenStream,
        requests: AsyncGenerator[pb.FollowStatusesRequest, None],
    ) -> None:
        """Makes the changes that the client sends, until it half-closes. A refused change is answered."""
        async for request in requests:
            if request.WhichOneof("request") != "change":
                raise InvalidRequest("Only the first request has `open`; send `change`.", field="change")
            change = request.change
            try:
                with request_fields.fields_within("change", pb.AddressChange.DESCRIPTOR):
                    request_fields.bounded(change.change_id, MAX_CHANGE_ID, "change_id")
                    now = self._callers.known(context) or await self._callers.authenticate(context)
                    if now.id != client.id:
                        raise Unauthenticated("The call's credentials are no longer valid.")
                    await stream.change(
                        now, add=change.add_addresses, remove=change.remove_addresses, change_id=change.change_id
                    )
            except Unauthenticated:
                stream.end(events.StreamEnd.CREDENTIALS_EXPIRED)
                return
            except TerminalStatusError as error:
                await stream.refuse(change.change_id, error)

    def _follow_message(self, event: events.OpenStreamEvent) -> pb.FollowStatusesResponse:
        if isinstance(event, events.ChangeApplied):
            return response_messages.change_applied(event)
        return _status_event(self._message(event))

    def _message(self, event: events.StreamEvent) -> pb.WatchStatusesResponse:
        """The event as a message. The same event goes to many streams one after the other, so the last one is kept."""
        last = self._last_message
        if last is None or last[0] is not event:
            last = self._last_message = (event, response_messages.stream_event(event))
        return last[1]

    async def _end(self, context: Context, client: Client, age_s: float, token: str) -> pb.WatchStatusesResponse | None:
        """The last message of a stream that must end now; None for one that goes on."""
        if self._max_stream_age_s is not None and age_s >= self._max_stream_age_s:
            return response_messages.stream_end(
                pb.STREAM_END_REASON_MAX_AGE, "The stream has reached its greatest age; resume it.", token
            )
        try:
            if (self._callers.known(context) or await self._callers.authenticate(context)).id == client.id:
                return None
        except Unauthenticated:
            pass
        except TerminalStatusError:
            return None  # the credentials cannot be checked now
        return response_messages.stream_end(
            pb.STREAM_END_REASON_CREDENTIALS_EXPIRED, "The call's credentials are no longer valid.", ""
        )


def _opening(request: pb.FollowStatusesRequest) -> pb.WatchStatusesRequest:
    """Raises InvalidRequest."""
    if request.WhichOneof("request") != "open":
        raise InvalidRequest("The first request must have `open`, with the addresses of the stream.", field="open")
    return request.open


def _status_event(message: pb.WatchStatusesResponse) -> pb.FollowStatusesResponse:
    return pb.FollowStatusesResponse(status_event=message)
