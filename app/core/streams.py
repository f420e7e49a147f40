"""Streams: a client's live reading of terminals and groups, from a snapshot on.

Deliberately absent: what is sent when (`live/mailbox.py`), what a change of addresses means (`stream_changes.py`), and
transports.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import cast

from app.auth.policies import Policies
from app.core.stream_changes import StreamChanges
from app.domain.errors import TerminalStatusError
from app.domain.policy import check_criteria, interval_allowed
from app.domain.records import Client
from app.domain.statuses import Status
from app.live.events import OpenStreamEvent, StreamEnd, StreamEvent, end_event
from app.live.group_directory import GroupDirectory
from app.live.mailbox import Stream
from app.live.open_streams import OpenStreams
from app.live.other_nodes import OtherNodes
from app.live.registry import TerminalRegistry
from app.live.resume_tokens import returned
from app.live.writer import StatusWriter


class OpenStream:
    """A stream that is open: one task reads `events`, while others change its addresses."""

    def __init__(
        self, events: AsyncGenerator[OpenStreamEvent, None], stream: Stream | None, changes: StreamChanges
    ) -> None:
        """`stream` is None for a stream that only sends End."""
        self.events = events
        self._stream = stream
        self._changes = changes
        self._changing = asyncio.Lock()

    async def change(
        self, client: Client, *, add: Sequence[str] = (), remove: Sequence[str] = (), change_id: str = ""
    ) -> None:
        """Adds addresses to the stream and removes others. Snapshots of the added terminals follow, Removed for those
        that no other address of the stream covers, then ChangeApplied. `client` is the stream's client, as it is now.

        A change waits until the reader has taken the answer to the one before. It raises what `StreamService.open`
        raises for addresses, and InvalidRequest; then it has no effect. A stream that has ended is not changed.
        """
        async with self._changing:
            if (stream := await self._ready()) is not None:
                await self._changes.make(stream, client, add, remove, change_id)

    async def refuse(self, change_id: str, error: TerminalStatusError) -> None:
        """Sends a ChangeApplied with this error. It waits as `change` does."""
        async with self._changing:
            if (stream := await self._ready()) is not None:
                stream.answer(change_id, error)

    def end(self, reason: StreamEnd) -> None:
        """Sends End, after the changes that are due."""
        if self._stream is not None:
            self._stream.end(reason)

    async def _ready(self) -> Stream | None:
        if self._stream is None:
            return None
        await self._stream.until_answered()
        return None if self._stream.ended else self._stream


class StreamService:
    """Opens streams within the client's policy. One per process."""

    def __init__(
        self,
        registry: TerminalRegistry,
        writer: StatusWriter,
        streams: OpenStreams,
        directory: GroupDirectory,
        policies: Policies,
        other_nodes: OtherNodes | None,
        *,
        clock_s: Callable[[], float],
    ) -> None:
        """`clock_s` gives monotonic seconds."""
        self._registry = registry
        self._writer = writer
        self._streams = streams
        self._directory = directory
        self._policies = policies
        self._other_nodes = other_nodes
        self._clock_s = clock_s
        self._changes = StreamChanges(registry, writer, streams, directory, policies, other_nodes)

    async def stream(
        self,
        client: Client,
        addresses: Sequence[str],
        *,
        criteria: frozenset[Status] = frozenset(),
        min_interval_ms: int = 0,
        resume_token: str = "",
    ) -> AsyncGenerator[StreamEvent, None]:
        """The terminals (and groups' members) as they are now, then each change. Close the iterator
        (`contextlib.aclosing`) if you leave it early.

        Snapshots, SnapshotComplete, then Changes, LivenessChanges, Removed, and a Bookmark in each `bookmark_s`; End is
        last if the gateway ends the stream. `criteria` (empty: all) are the statuses whose Changes are sent.
        `min_interval_ms` is the least time between two Changes of one terminal (0: the policy's). With a `resume_token`
        that cannot be used, the whole snapshot is sent, marked as a reset.

        Before the first event it raises BusyNotSupported, GatewayOverloaded, GroupNotAllowed, GroupUnknown,
        IntervalTooShort, InvalidAddress, InvalidRequest (the interval), NestedGroupNotAllowed, NoValidAddresses,
        RateLimited, StoreUnavailable, TooManyAddresses, TooManyStreams, TooManyWatchedTerminals; later nothing.
        """
        stream = await self._open(client, addresses, criteria, min_interval_ms)
        del addresses  # an idle stream keeps only what it needs
        try:
            # Nobody changes the addresses of this stream, so it has no ChangeApplied.
            its = cast("AsyncGenerator[StreamEvent, None]", self._events(stream, resume_token))
            async with aclosing(its) as events:
                async for event in events:
                    yield event
        finally:
            self._close(stream)

    @asynccontextmanager
    async def open(
        self,
        client: Client,
        addresses: Sequence[str],
        *,
        criteria: frozenset[Status] = frozenset(),
        min_interval_ms: int = 0,
        resume_token: str = "",
    ) -> AsyncIterator[OpenStream]:
        """As `stream`, and its addresses can be changed. Raises the errors of `stream` before it yields the stream."""
        stream = await self._open(client, addresses, criteria, min_interval_ms)
        try:
            async with aclosing(self._events(stream, resume_token)) as events:
                yield OpenStream(events, stream, self._changes)
        finally:
            self._close(stream)

    async def _open(
        self, client: Client, addresses: Sequence[str], criteria: frozenset[Status], min_interval_ms: int
    ) -> Stream | None:
        """Watches the terminals for a new stream; None if the gateway is stopping. Then `_close` it."""
        policy = self._policies.admit(client)
        check_criteria(policy, criteria)
        interval_s = interval_allowed(policy, min_interval_ms) / 1000
        changes_before = self._directory.changes
        expansion = await self._directory.expand(client, addresses, policy, most=policy.max_notification_addresses)
        if self._streams.stopping:
            return None
        self._streams.require_room(client.id, policy.max_streams)
        stream = Stream(
            client.id,
            addresses=expansion.addresses,
            groups=expansion.groups,
            criteria=criteria,
            interval_s=interval_s,
            busy=policy.busy_available,
        )
        terminals = self._registry.want(expansion.terminals, client.id, policy.max_watched_terminals)
        for terminal in terminals:
            self._registry.add_stream(stream, terminal)
            stream.sent[terminal] = None
        self._streams.add(stream)
        try:
            self._changes.follow_again(stream, changes_before)
            if self._other_nodes is not None:
                await self._other_nodes.read([terminal.address for terminal in terminals])
            await self._writer.load(terminals)
        except BaseException:
            self._close(stream)
            raise
        return stream

    def _events(self, stream: Stream | None, resume_token: str) -> AsyncGenerator[OpenStreamEvent, None]:
        if stream is None:
            return _only_end(resume_token)
        return stream.read(resume_token, self._clock_s, self._streams.bookmark_s)

    def _close(self, stream: Stream | None) -> None:
        if stream is None:
            return
        self._streams.remove(stream)
        for terminal in stream.sent:
            self._registry.remove_stream(stream, terminal)
        stream.drop_answer()

    def end_streams_of(self, client_id: str) -> None:
        """Ends the client's streams (CREDENTIALS_EXPIRED)."""
        self._streams.end_of_client(client_id)

    def end_all(self) -> None:
        """Ends every stream (GATEWAY_STOPPING). From now on new streams end at once."""
        self._streams.end_all()


async def _only_end(resume_token: str) -> AsyncGenerator[OpenStreamEvent, None]:
    yield end_event(StreamEnd.GATEWAY_STOPPING, returned(resume_token))
