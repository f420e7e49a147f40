"""REST API v1: live streams of statuses as server-sent events (the HTML standard, section 9.2).

The events are the use case's: snapshot, snapshot-complete, change, liveness, removed, bookmark, end. An event that has
a resume token has it as its `id`, so that a browser's EventSource resumes by itself, with Last-Event-ID; what was told
after that id is told again, each terminal in its newest state.
Invariants: a stream awaits each write, so a slow reader holds up nobody but itself, and what it has not read waits in
the use case's mailbox. What is wrong with the request is a problem, before the stream. Each HEARTBEAT_S without an
event a comment is sent, and it is looked whether the credentials are still good. The last event says why it ended.

Deliberately absent: snapshots, order and bookmarks, which are `live/engine.py`'s; WebSocket.
"""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated, Any, cast

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.types import Receive, Scope, Send

from app.auth.authenticator import Authenticator
from app.core.use_cases import UseCases
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
from app.domain.statuses import Status
from app.live import events
from app.rest import schemas, to_json
from app.rest.error_examples import ALICE, failures
from app.rest.operation import client_of
from app.rest.parameters import Caller
from app.rest.terminals import LIST_ERRORS, TAG

HEARTBEAT_S = 15.0
RETRY_MS = 2000
"""How long a browser waits before it comes again."""

MAX_ADDRESSES = 500
"""A request's head has 64 KiB; a group has more terminals than a URL."""
MAX_CRITERIA = 20
MAX_AGE = "MAX_AGE"
"""Why a stream ended that was as old as one may grow."""

_BEGIN = f"retry: {RETRY_MS}\n\n".encode()
_HEARTBEAT = b":\n\n"

_EXAMPLE = f"""retry: {RETRY_MS}

event: snapshot
data: {{"address":"{ALICE}","status":{{"address":"{ALICE}","status":"REACHABLE",\
"observed_at":"2026-01-02T03:04:05.678000Z","source":"WATCH","revision":7}},"liveness":"LIVE","reason":"",\
"since":"2026-01-02T03:00:00Z"}}

event: snapshot-complete
id: AfGrP8oZ1MhZBw
data: {{"resume_token":"AfGrP8oZ1MhZBw","reset":false}}

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

EVENT_SCHEMA: dict[str, Any] = {
    "description": "One event.",
    "oneOf": [
        {
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {"const": name},
                "id": {"type": "string", "description": "Resumes the stream after this event."},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": f"#/components/schemas/{model.__name__}"},
                },
            },
        }
        for name, model in schemas.STREAMED.items()
    ],
}
Events = AsyncGenerator[events.WatchEvent, None]


def add_routes(router: APIRouter, use_cases: UseCases, *, max_age_s: float | None = None) -> None:
    """Adds the operation to `router`. A stream as old as `max_age_s` seconds is ended, and may come again."""
    encoded = Encoded()

    @router.get(
        "/v1/terminals:watch",
        operation_id="watchTerminalStatuses",
        tags=[TAG],
        summary="Watch terminals' statuses",
        description="Tells how terminals and the members of groups stand now, and each change from then on, as "
        "server-sent events. First a `snapshot` for each terminal (WatchedTerminal), then `snapshot-complete` "
        "(SnapshotComplete); then `change` (TerminalStatus), `liveness` (WatchedTerminal), `removed` "
        "(TerminalRemoved), and a `bookmark` (ResumeToken) every few seconds; last, where the gateway ends it, `end` "
        "(StreamEnd). Ignore events you do not know. A reader that is slower than the changes misses intermediate "
        "ones and always gets the newest. Come again with the last event id, and only what differs is told.",
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
            200: {"content": {"text/event-stream": {"schema": EVENT_SCHEMA, "example": _EXAMPLE}}},
        },
    )
    async def watch_terminal_statuses(
        request: Request,
        client: Caller,
        address: Annotated[
            list[schemas.Address],
            Query(
                min_length=1,
                max_length=MAX_ADDRESSES,
                description="A terminal or group; may be given again. For many, make a group.",
            ),
        ],
        criteria: Annotated[
            list[Status] | None,
            Query(max_length=MAX_CRITERIA, description="A status whose changes are told; all if absent. Repeatable."),
        ] = None,
        min_interval_ms: Annotated[
            int, Query(ge=0, description="Least time between two changes told of one terminal; the newest is told.")
        ] = 0,
        resume_token: Annotated[str, Query(description="As Last-Event-ID, which goes before it.")] = "",
        last_event_id: Annotated[
            str,
            Header(
                description="The last event id this client had from such a stream. Where it cannot be used the "
                "snapshot has every terminal, and `snapshot-complete` says `reset`."
            ),
        ] = "",
    ) -> Response:
        events = use_cases.streams.stream(
            client,
            address,
            criteria=frozenset(criteria or ()),
            min_interval_ms=min_interval_ms,
            resume_token=last_event_id or resume_token,
        )
        first = await anext(events)  # what is wrong with the request is raised here
        return EventStream(first, events, client, use_cases.auth, encoded, max_age_s or math.inf)


class Encoded:
    """Events as bytes. The same event goes to many streams one after the other, and is made once."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._last: tuple[events.WatchEvent | None, bytes] = (None, b"")

    def __call__(self, event: events.WatchEvent) -> bytes:
        if self._last[0] is not event:
            self._last = event, self._made(*to_json.watch_event(event))
        return self._last[1]

    def own_end(self, reason: str, message: str, resume_token: str) -> bytes:
        """The last event of a stream that this face ends."""
        return self._made("end", {"reason": reason, "message": message, "resume_token": resume_token})

    def _made(self, name: str, data: to_json.Json) -> bytes:
        token = data.get("resume_token", "")
        text = f"event: {name}\nid: {token}\ndata: " if token else f"event: {name}\ndata: "
        return text.encode() + self._encode(data) + b"\n\n"


class EventStream(Response):
    """One stream: this task reads events and sends them, a second one hears the client leave and keeps the time."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: events.WatchEvent,
        events: Events,
        client: Client,
        auth: Authenticator,
        encoded: Encoded,
        max_age_s: float,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._client = client
        self._auth = auth
        self._encoded = encoded
        self._max_age_s = max_age_s
        self._sent = True
        self._token = ""
        self._end: tuple[str, str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = cast("asyncio.Task[None]", asyncio.current_task())
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            attendant = asyncio.create_task(self._attend(scope, receive, send, reader), name="event stream")
            try:
                await self._send(send, _BEGIN)
                await self._tell(send, self._first)
                async for event in self._events:
                    await self._tell(send, event)
            except asyncio.CancelledError:
                if not attendant.done() or attendant.cancelled():  # the server's, not the attendant's
                    raise
                reader.uncancel()
            finally:
                attendant.cancel()
                await asyncio.gather(attendant, return_exceptions=True)
        if self._end is not None:
            reason, message = self._end
            token = self._token if reason == MAX_AGE else ""
            await self._send(send, self._encoded.own_end(reason, message, token))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, send: Send, event: events.WatchEvent) -> None:
        if isinstance(event, events.SnapshotComplete | events.Bookmark):
            self._token = event.resume_token
        await self._send(send, self._encoded(event))

    async def _send(self, send: Send, data: bytes) -> None:
        self._sent = True
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _attend(self, scope: Scope, receive: Receive, send: Send, reader: "asyncio.Task[None]") -> None:
        """Ends with the stream, or ends it: when the client has left, its credentials are no longer good, or it is as
        old as it may grow."""
        leaving = asyncio.ensure_future(_left(receive))
        clock = asyncio.get_running_loop().time
        ends_at = clock() + self._max_age_s
        try:
            while True:
                self._sent = False
                await asyncio.wait({leaving}, timeout=max(0.0, min(HEARTBEAT_S, ends_at - clock())))
                if leaving.done():
                    break
                if clock() >= ends_at:
                    self._end = MAX_AGE, "The stream is as old as one may grow; come again."
                    break
                if not await self._still_good(scope):
                    self._end = events.StreamEnd.CREDENTIALS_EXPIRED.value, "The credentials are no longer good."
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
