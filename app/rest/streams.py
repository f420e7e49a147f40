"""REST API v1: live streams of statuses as server-sent events (the HTML standard, section 9.2).

The `id` of an event is its resume token, so a browser's EventSource resumes by itself with Last-Event-ID: changes after
that id are sent again, each terminal in its newest state.
Invariants: a stream awaits each write, so a slow reader delays only itself; the core keeps its unread events. Errors of
the request are answered as problems before the stream begins. After HEARTBEAT_S without an event the stream sends a
comment and checks that the credentials are still valid. The last event says why the stream ended.

Deliberately absent: snapshots, order and bookmarks (the core makes them); WebSocket.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.types import Receive, Scope, Send

from app.core.use_cases import UseCases
from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    BusyNotSupported,
    GatewayOverloaded,
    IntervalTooShort,
    TerminalStatusError,
    TooManyStreams,
    TooManyWatchedTerminals,
    Unauthenticated,
)
from app.domain.records import Client
from app.domain.statuses import Liveness, Source, Status, TerminalStatus, WatchedTerminal
from app.live import events
from app.rest import schemas, status_schemas, to_json
from app.rest.error_examples import ALICE, failures
from app.rest.operation import client_of
from app.rest.parameters import Caller
from app.rest.terminals import LIST_ERRORS, TAG
from app.rest.tickets import NO_REFERRER, held_by, operation_with

HEARTBEAT_S = 15.0
RETRY_MS = 2000
"""How long a browser waits on average before it opens the stream again: half to one and a half of this, at random, so
that the streams of a gateway that stopped do not all come at one moment."""

MAX_ADDRESSES = 500
"""Addresses of one URL: a request's head has at most 64 KiB. Groups permit more terminals."""
MAX_CRITERIA = 20
MAX_AGE = "MAX_AGE"
"""The reason of `end` for a stream that reached its maximum age."""

_HEARTBEAT = b":\n\n"

EVENT = "StreamEvent"
"""The name of the events' schema in the OpenAPI document."""
EVENT_SCHEMA: dict[str, Any] = {
    "description": "One server-sent event.",
    "oneOf": [
        {
            "title": "".join(word.capitalize() for word in name.split("-")) + "Event",
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {"type": "string", "const": name, "description": "The name of the event."},
                "id": {"type": "string", "description": "Resume token: resumes the stream after this event."},
                "data": {
                    "type": "string",
                    "description": f"A {model.__name__} as JSON.",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": f"#/components/schemas/{model.__name__}"},
                },
            },
        }
        for name, model in status_schemas.STREAMED.items()
    ],
}
Events = AsyncGenerator[events.StreamEvent, None]


def add_routes(
    router: APIRouter, use_cases: UseCases, *, max_age_s: float | None = None, jitter: Callable[[], float]
) -> None:
    """Adds the operation to `router`. Streams end at an age of `max_age_s` seconds; clients then resume them. `jitter`
    returns a number from 0 to 1 at random."""
    encoder = EventEncoder()

    async def watch_terminal_statuses(
        request: Request,
        client: Caller,
        address: Annotated[
            list[schemas.Address],
            Query(
                min_length=1,
                max_length=MAX_ADDRESSES,
                description="The address of a terminal or group; repeatable. For many terminals, create a group.",
            ),
        ],
        criteria: Annotated[
            list[Status] | None,
            Query(max_length=MAX_CRITERIA, description="A status to report; repeatable. All if absent."),
        ] = None,
        min_interval_ms: Annotated[
            int, Query(ge=0, description="Minimum time between two changes of one terminal; then the newest is sent.")
        ] = 0,
        resume_token: Annotated[str, Query(description="As Last-Event-ID, which has precedence.")] = "",
        last_event_id: Annotated[
            str,
            Header(
                description="The last event id that the client received on such a stream. If it cannot be used, the "
                "snapshot has every terminal and `reset` of `snapshot-complete` is true."
            ),
        ] = "",
        ticket: Annotated[
            str,
            Query(description="A ticket of `POST /v1/tickets`, in place of an Authorization header."),
        ] = "",
    ) -> Response:
        del ticket  # `tickets.operation_with` has read it
        events = use_cases.streams.stream(
            client,
            address,
            criteria=frozenset(criteria or ()),
            min_interval_ms=min_interval_ms,
            resume_token=last_event_id or resume_token,
        )
        first = await anext(events)  # raises the errors of the request
        retry_ms = int(RETRY_MS * (0.5 + jitter()))
        return EventStream(first, events, client, use_cases, encoder, max_age_s or math.inf, retry_ms)

    router.add_api_route(
        "/v1/terminals:watch",
        watch_terminal_statuses,
        methods=["GET"],
        operation_id="watchTerminalStatuses",
        tags=[TAG],
        summary="Watch terminals' statuses",
        description="Streams the state of terminals and of the members of groups, and each later change, as "
        "server-sent events.\n\nFirst comes a `snapshot-item` for each terminal (WatchedTerminal), then "
        "`snapshot-complete` (SnapshotComplete). Then come `change` (TerminalStatus), `liveness-change` "
        "(LivenessChange) and `terminal-removed` (TerminalRemoved), and every few seconds a `bookmark` (ResumeToken). "
        "A client that receives nothing for twice `bookmark_interval_ms` takes the connection for dead and resumes. "
        "If the gateway ends the stream, the last event is `end` (StreamEnd). Ignore unknown events.\n\nA reader that "
        "is slower than the changes misses intermediate ones, never the newest. To resume, open the stream again with "
        "the last event id: its snapshot has only the terminals that have changed.",
        response_class=Response,
        response_description="Events until the client or the gateway ends the stream.",
        responses={
            **failures(
                *LIST_ERRORS,
                BusyNotSupported,
                IntervalTooShort,
                TooManyStreams,
                TooManyWatchedTerminals,
                GatewayOverloaded,
            ),
            200: {
                "content": {
                    "text/event-stream": {"schema": {"$ref": f"#/components/schemas/{EVENT}"}, "examples": _examples()}
                }
            },
        },
        route_class_override=operation_with(use_cases.tickets),
    )


class EventEncoder:
    """Encodes events. Keeps the last one, since the same event goes to many streams one after the other."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._last: tuple[events.StreamEvent | None, bytes] = (None, b"")

    def __call__(self, event: events.StreamEvent) -> bytes:
        if self._last[0] is not event:
            self._last = event, self._encoded(*to_json.stream_event(event))
        return self._last[1]

    def own_end(self, reason: str, message: str, resume_token: str) -> bytes:
        """Returns the last event of a stream that this face ends."""
        return self._encoded("end", {"reason": reason, "message": message, "resume_token": resume_token})

    def _encoded(self, name: str, data: to_json.Json) -> bytes:
        token = data.get("resume_token", "")
        text = f"event: {name}\nid: {token}\ndata: " if token else f"event: {name}\ndata: "
        return text.encode() + self._encode(data) + b"\n\n"


class EventStream(Response):
    """One stream. This task reads events and sends them; a second task ends it: see `_supervise`."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: events.StreamEvent,
        events: Events,
        client: Client,
        use_cases: UseCases,
        encoder: EventEncoder,
        max_age_s: float,
        retry_ms: int,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no", **NO_REFERRER})
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._client = client
        self._use_cases = use_cases
        self._encoder = encoder
        self._max_age_s = max_age_s
        self._retry_ms = retry_ms
        self._sent = True
        self._token = ""
        self._end: tuple[str, str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = cast("asyncio.Task[None]", asyncio.current_task())
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            supervisor = asyncio.create_task(self._supervise(scope, receive, send, reader), name="event stream")
            try:
                await self._send(send, f"retry: {self._retry_ms}\n\n".encode())
                await self._send_event(send, self._first)
                async for event in self._events:
                    await self._send_event(send, event)
            except asyncio.CancelledError:
                if not supervisor.done() or supervisor.cancelled():  # cancelled by the server, not by the supervisor
                    raise
                reader.uncancel()
            finally:
                supervisor.cancel()
                await asyncio.gather(supervisor, return_exceptions=True)
                if (held := held_by(scope)) is not None:
                    await self._use_cases.tickets.release(held)
        if self._end is not None:
            reason, message = self._end
            token = self._token if reason == MAX_AGE else ""
            await self._send(send, self._encoder.own_end(reason, message, token))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_event(self, send: Send, event: events.StreamEvent) -> None:
        if isinstance(event, events.SnapshotComplete | events.Bookmark):
            self._token = event.resume_token
        await self._send(send, self._encoder(event))

    async def _send(self, send: Send, data: bytes) -> None:
        self._sent = True
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _supervise(self, scope: Scope, receive: Receive, send: Send, reader: "asyncio.Task[None]") -> None:
        """Ends the stream: when the client disconnects, when its credentials expire, and at the maximum age."""
        leaving = asyncio.ensure_future(_disconnected(receive))
        clock = asyncio.get_running_loop().time
        ends_at = clock() + self._max_age_s
        try:
            while True:
                self._sent = False
                await asyncio.wait({leaving}, timeout=max(0.0, min(HEARTBEAT_S, ends_at - clock())))
                if leaving.done():
                    break
                if clock() >= ends_at:
                    self._end = MAX_AGE, "The stream has reached its maximum age; open it again."
                    break
                if not await self._credentials_valid(scope):
                    self._end = events.StreamEnd.CREDENTIALS_EXPIRED.value, "The credentials are no longer valid."
                    break
                if not self._sent:
                    await send({"type": "http.response.body", "body": _HEARTBEAT, "more_body": True})
        finally:
            leaving.cancel()
        reader.cancel()

    async def _credentials_valid(self, scope: Scope) -> bool:
        if (held := held_by(scope)) is not None:
            return await self._use_cases.tickets.check(held)
        try:
            return (await client_of(self._use_cases.auth, scope)).id == self._client.id
        except Unauthenticated:
            return False
        except TerminalStatusError:
            return True  # unknown at present, as while the database is away


async def _disconnected(receive: Receive) -> None:
    with suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass


def _examples() -> dict[str, Any]:
    """Returns an example of each common event, as a client parses it."""
    token, later = "AfGrP8oZ1MhZBw", "AfGrP8oZ1MhZCA"
    began = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
    reachable = TerminalStatus(
        address=TerminalAddress(ALICE),
        status=Status.REACHABLE,
        observed_at=began + timedelta(minutes=4, seconds=5.678),
        source=Source.WATCH,
        revision=7,
    )
    busy = replace(reachable, status=Status.BUSY, observed_at=began + timedelta(minutes=5), revision=8)
    terminal = WatchedTerminal(
        address=reachable.address, status=reachable, liveness=Liveness.LIVE, reason="", since=began
    )
    shown: tuple[events.StreamEvent, ...] = (
        events.Snapshot(terminal=terminal),
        events.SnapshotComplete(resume_token=token, bookmark_interval_s=10),
        events.Change(status=busy),
        events.Bookmark(resume_token=later),
        events.end_event(events.StreamEnd.GATEWAY_STOPPING, later),
    )
    examples = {}
    for name, data in map(to_json.stream_event, shown):
        parsed = {"event": name, "data": msgspec.json.encode(data).decode()}
        examples[name] = {"value": {**parsed, "id": data["resume_token"]} if "resume_token" in data else parsed}
    return examples
