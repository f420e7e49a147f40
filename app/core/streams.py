"""Streams: a client's live reading of terminals and groups, from a snapshot on.

Deliberately absent: what is sent when (`live/mailbox.py`), and transports.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from app.auth.policies import Policies
from app.domain.policy import check_criteria, interval_allowed
from app.domain.records import Client
from app.domain.statuses import Status
from app.live.events import StreamEnd, StreamEvent, end_event
from app.live.group_directory import GroupDirectory
from app.live.mailbox import Stream
from app.live.open_streams import OpenStreams
from app.live.other_nodes import OtherNodes
from app.live.registry import TerminalRegistry
from app.live.resume_tokens import returned
from app.live.writer import StatusWriter


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

        Before the first event it raises BusyNotSupported, GatewayOverloaded, GroupNotAllowed, IntervalTooShort,
        InvalidAddress, InvalidRequest (the interval), NestedGroupNotAllowed, NoValidAddresses, RateLimited,
        StoreUnavailable, TooManyAddresses, TooManyStreams, TooManyWatchedTerminals; later nothing.
        """
        policy = self._policies.admit(client)
        check_criteria(policy, criteria)
        interval_s = interval_allowed(policy, min_interval_ms) / 1000
        expansion = await self._directory.expand(client, addresses, policy, most=policy.max_notification_addresses)
        if self._streams.stopping:
            yield end_event(StreamEnd.GATEWAY_STOPPING, returned(resume_token))
            return
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
            if self._other_nodes is not None:
                await self._other_nodes.read([terminal.address for terminal in terminals])
            await self._writer.load(terminals)
            del addresses, expansion, terminals  # an idle stream keeps only what it needs
            async with aclosing(stream.read(resume_token, self._clock_s)) as events:
                async for event in events:
                    yield event
        finally:
            self._streams.remove(stream)
            for terminal in stream.sent:
                self._registry.remove_stream(stream, terminal)

    def end_streams_of(self, client_id: str) -> None:
        """Ends the client's streams (CREDENTIALS_EXPIRED)."""
        self._streams.end_of_client(client_id)

    def end_all(self) -> None:
        """Ends every stream (GATEWAY_STOPPING). From now on new streams end at once."""
        self._streams.end_all()
