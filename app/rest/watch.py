"""REST API v1: live streams of statuses as server-sent events (the HTML standard, section 9.2).

The events are the use case's: snapshot, snapshot-complete, change, liveness, removed, bookmark, end. An event that has
a resume token has it as its `id`, so that a browser's EventSource resumes by itself, with Last-Event-ID; what was told
after that id is told again, each terminal in its newest state.
Invariants: a stream awaits each write, so a slow reader holds up nobody but itself, and what it has not read waits in
the use case's mailbox. What is wrong with the request is a problem, before the stream. Each HEARTBEAT_S without an
event a comment is sent, and it is looked whether the credentials are still good. The last event says why it ended.

Deliberately absent: snapshots, order and bookmarks, which are `watching.py`'s; WebSocket.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated, cast

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.types import Receive, Scope, Send

from app import domain, streams
from app.auth import Authenticator
from app.domain import TerminalStatusError, Unauthenticated
from app.records import Client
from app.rest import schemas, wire
from app.rest.calls import Caller, client_of
from app.rest.examples import ALICE, failures
from app.rest.terminals import LIST_ERRORS, TAG
from app.usecases import UseCases

HEARTBEAT_S = 15.0
RETRY_MS = 2000
"""How long a browser waits before it comes again."""

MAX_CRITERIA = 20
_BEGIN = f"retry: {RETRY_MS}\n\n".encode()
_HEARTBEAT = b":\n\n"

_EXAMPLE = f"""retry: {RETRY_MS}

event: snapshot
data: {{"address":"{ALICE}","status":{{"address":"{ALICE}","status":"REACHABLE",\
"observed_at":"2026-01-02T03:04:05.678000Z","source":"WATCH","revision":7}},"liveness":"LIVE","reason":"",\
"since":"2026-01-02T03:00:00Z"}}

event: snapshot-complete
id: AfGrP8oZ1MhZBw
data: {{"resume_token":"AfGrP8oZ1MhZBw"}}

event: change
data: {{"address":"{ALICE}","status":"BUSY","observed_at":"2026-01-02T03:05:00Z","source":"WATCH","revision":8}}

event: bookmark
id: AfGrP8oZ1MhZCA
data: {{"resume_token":"AfGrP8oZ1MhZCA"}}

event: end
id: AfGrP8oZ1MhZCA
data: {{"reason":"GATEWAY_STOPPING","message":"The gateway is stopping; come again, or to another one.",\
"resume_token":"AfGrP8oZ1MhZCA"}}

"""

Events = AsyncGenerator[streams.WatchEvent, None]


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operation to `router`."""
    encoded = Encoded()

    @router.get(
        "/v1/terminals:watch",
        operation_id="watchTerminalStatuses",
        tags=[TAG],
        summary="Watch terminals' statuses",
        description="Tells how terminals and the members of groups stand now, and each change from then on, as "
        "server-sent events. First a `snapshot` for each terminal (WatchedTerminal), then `snapshot-complete` "
        "(ResumeToken); then `change` (TerminalStatus), `liveness` (WatchedTerminal), `removed` (TerminalRemoved), and "
        "`bookmark` (ResumeToken) where nothing changed for a while; last, where the gateway ends it, `end` "
        "(StreamEnd). Ignore events you do not know. A reader that is slower than the changes misses intermediate "
        "ones and always gets the newest. Come again with the last event id, and only what differs is told.",
        response_class=Response,
        response_description="Events until the client or the gateway ends the stream.",
        responses={
            **failures(
                *LIST_ERRORS,
                domain.BusyNotSupported,
                domain.IntervalTooShort,
                domain.TooManySubscriptions,
                domain.GatewayOverloaded,
            ),
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}}},
        },
    )
    async def watch_terminal_statuses(
        request: Request,
        client: Caller,
        address: Annotated[
            list[schemas.Address],
            Query(min_length=1, max_length=1000, description="A terminal or group; may be given again."),
        ],
        criteria: Annotated[
            list[domain.Status] | None,
            Query(max_length=MAX_CRITERIA, description="A status whose changes are told; all if absent. Repeatable."),
        ] = None,
        min_interval_ms: Annotated[
            int, Query(ge=0, description="Least time between two changes told of one terminal; the newest is told.")
        ] = 0,
        resume_token: Annotated[
            str, Query(max_length=streams.MAX_TOKEN, description="As Last-Event-ID, which goes before it.")
        ] = "",
        last_event_id: Annotated[
            str,
            Header(max_length=streams.MAX_TOKEN, description="The last event id this client had from such a stream."),
        ] = "",
    ) -> Response:
        events = use_cases.watching.stream(
            client,
            address,
            criteria=frozenset(criteria or ()),
            min_interval_ms=min_interval_ms,
            resume_token=last_event_id or resume_token,
        )
        first = await anext(events)  # what is wrong with the request is raised here
        return EventStream(first, events, client, use_cases.auth, encoded)


class Encoded:
    """Events as bytes. The same event goes to many streams one after the other, and is made once."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._last: tuple[streams.WatchEvent | None, bytes] = (None, b"")

    def __call__(self, event: streams.WatchEvent) -> bytes:
        if self._last[0] is not event:
            name, data = wire.watch_event(event)
            token = data.get("resume_token", "")
            text = f"event: {name}\nid: {token}\ndata: " if token else f"event: {name}\ndata: "
            self._last = event, text.encode() + self._encode(data) + b"\n\n"
        return self._last[1]


class EventStream(Response):
    """One stream: this task reads events and sends them, a second one hears the client leave and keeps the time."""

    media_type = "text/event-stream"

    def __init__(
        self, first: streams.WatchEvent, events: Events, client: Client, auth: Authenticator, encoded: Encoded
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._client = client
        self._auth = auth
        self._encoded = encoded
        self._sent = True
        self._refused = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = cast("asyncio.Task[None]", asyncio.current_task())
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            attendant = asyncio.create_task(self._attend(scope, receive, send, reader), name="event stream")
            try:
                await self._send(send, _BEGIN + self._encoded(self._first))
                async for event in self._events:
                    await self._send(send, self._encoded(event))
            except asyncio.CancelledError:
                if not attendant.done() or attendant.cancelled():  # the server's, not the attendant's
                    raise
                reader.uncancel()
            finally:
                attendant.cancel()
                await asyncio.gather(attendant, return_exceptions=True)
        if self._refused:
            end = streams.ending(streams.StreamEnd.CREDENTIALS_EXPIRED, "")
            await self._send(send, self._encoded(end))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        self._sent = True
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _attend(self, scope: Scope, receive: Receive, send: Send, reader: "asyncio.Task[None]") -> None:
        """Ends with the stream: when the client has left, or its credentials are no longer good."""
        leaving = asyncio.ensure_future(_left(receive))
        try:
            while True:
                self._sent = False
                await asyncio.wait({leaving}, timeout=HEARTBEAT_S)
                if leaving.done():
                    break
                if not await self._still_good(scope):
                    self._refused = True
                    break
                if not self._sent:
                    await send({"type": "http.response.body", "body": _HEARTBEAT, "more_body": True})
        finally:
            leaving.cancel()
        reader.cancel()

    async def _still_good(self, scope: Scope) -> bool:
        try:
            return (await client_of(self._auth, scope)).id == self._client.id
        except Unauthenticated:
            return False
        except TerminalStatusError:
            return True  # it cannot be told now


async def _left(receive: Receive) -> None:
    with suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass
