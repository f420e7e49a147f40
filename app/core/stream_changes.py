"""Adds addresses to an open stream, and removes addresses from it.

A change is checked as the opening of a stream with the new addresses would be. A refused change has no effect.
Invariants: a stream with groups, before or after its change, is changed under the writer's lock, as the group follower
does. So neither of the two moves a stream that the other is about to move.

Deliberately absent: the order of a change's events (`live/mailbox.py`), and moving the stream (`live/stream_moves.py`).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from app.auth.policies import Policies
from app.domain.addresses import TerminalAddress
from app.domain.errors import InvalidRequest, NoValidAddresses
from app.domain.policy import Policy
from app.domain.records import Client
from app.live.group_directory import Expansion, GroupDirectory, parse_all, too_many
from app.live.mailbox import Stream
from app.live.open_streams import OpenStreams
from app.live.other_nodes import OtherNodes
from app.live.registry import TerminalRegistry
from app.live.stream_moves import move_stream
from app.live.terminal import Terminal
from app.live.writer import StatusWriter

ADD, REMOVE = "add_addresses", "remove_addresses"
"""The fields of a change that errors name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    """What a change means for the stream's terminals, and its addresses and groups afterwards."""

    joining: Sequence[TerminalAddress]
    leaving: Collection[Terminal]
    addresses: tuple[TerminalAddress, ...] = ()
    groups: tuple[TerminalAddress, ...] = ()


class StreamChanges:
    """Changes the addresses of open streams. One per process."""

    def __init__(
        self,
        registry: TerminalRegistry,
        writer: StatusWriter,
        streams: OpenStreams,
        directory: GroupDirectory,
        policies: Policies,
        other_nodes: OtherNodes | None,
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._streams = streams
        self._directory = directory
        self._policies = policies
        self._other_nodes = other_nodes

    async def make(
        self, stream: Stream, client: Client, add: Sequence[str], remove: Sequence[str], change_id: str
    ) -> None:
        """Moves the stream, and answers the change in its mailbox. One change of a stream is made at a time. A stream
        that ends meanwhile is not moved.

        Raises GatewayOverloaded, GroupNotAllowed, GroupUnknown, InvalidAddress, InvalidRequest,
        NestedGroupNotAllowed, NoValidAddresses, RateLimited, StoreUnavailable, TooManyAddresses,
        TooManyWatchedTerminals, having changed nothing.
        """
        policy = self._policies.admit(client)
        most = policy.max_notification_addresses
        adding, removing = await parse_all(add, ADD, most=most), await parse_all(remove, REMOVE, most=most)
        _check(adding, removing)
        has = self._has(stream, (*adding, *removing))
        adding = tuple([one for one in adding if one not in has])
        leaving = has.intersection(removing)
        if not adding and not leaving:
            stream.answer(change_id)
            return
        changes_before = self._directory.changes
        added = await self._directory.expand_parsed(client, adding, policy, most=most, field=ADD)
        if self._other_nodes is not None:
            await self._other_nodes.read(added.terminals)
        if not self._is_open(stream):
            return
        if stream.groups or added.groups:
            async with self._writer.lock:
                move = await self._move_by_groups(stream, added, leaving, policy)
                await self._apply(stream, client, move, policy, change_id)
            self.follow_again(stream, changes_before)
        else:
            move = self._move_of_terminals(stream, added, leaving, policy)
            await self._apply(stream, client, move, policy, change_id)

    def follow_again(self, stream: Stream, changes_before: int) -> None:
        """Follows the stream's groups once more if a group has changed (`GroupDirectory.changes`) since its members
        were read."""
        if self._directory.changes != changes_before:
            for group in stream.groups:
                self._directory.on_group_changed((stream.client_id, group))

    def _is_open(self, stream: Stream) -> bool:
        return stream in self._streams and not stream.ended

    def _has(self, stream: Stream, addresses: Iterable[TerminalAddress]) -> frozenset[TerminalAddress]:
        """Those of the addresses that the stream was opened with, or that were added."""
        if stream.groups:
            return frozenset(addresses).intersection(stream.addresses)
        terminals = [self._registry.by_address.get(one) for one in addresses]
        return frozenset([one.address for one in terminals if one is not None and one in stream.sent])

    def _move_of_terminals(
        self, stream: Stream, added: Expansion, leaving: Collection[TerminalAddress], policy: Policy
    ) -> _Move:
        """The move of a stream without groups: as much work as the change has addresses."""
        most, after = policy.max_notification_addresses, len(stream.sent) + len(added.terminals) - len(leaving)
        if added.terminals and after > most:
            raise too_many(most, ADD)
        if not after:
            raise _nothing_left()
        return _Move(joining=added.terminals, leaving=[self._registry.by_address[one] for one in leaving])

    async def _move_by_groups(
        self, stream: Stream, added: Expansion, leaving: Collection[TerminalAddress], policy: Policy
    ) -> _Move:
        its = {terminal.address: terminal for terminal in stream.sent}
        kept = [one for one in stream.addresses or its if one not in leaving]
        terminals = frozenset(added.addresses).difference(added.groups)
        known = frozenset(stream.groups).union(added.groups).difference(terminals)
        most = policy.max_notification_addresses
        now = await self._directory.members_now(stream.client_id, (*kept, *added.addresses), most, known)
        if added.addresses and now.left_out:
            raise too_many(most, ADD)
        if not now.terminals:
            raise _nothing_left()
        staying = frozenset(now.terminals)
        return _Move(
            joining=[one for one in now.terminals if one not in its],
            leaving=[terminal for address, terminal in its.items() if address not in staying],
            addresses=now.addresses if now.groups else (),
            groups=now.groups,
        )

    async def _apply(self, stream: Stream, client: Client, move: _Move, policy: Policy, change_id: str) -> None:
        joining = self._registry.want(move.joining, client.id, policy.max_watched_terminals, leaving=move.leaving)
        for terminal in joining:  # from now on they count for the client
            self._registry.add_stream(stream, terminal)
        try:
            await self._writer.load(joining)
            if self._is_open(stream):
                move_stream(self._registry, stream, joining=joining, leaving=move.leaving)
                stream.addresses, stream.groups = move.addresses, move.groups
                stream.answer(change_id)
        finally:
            for terminal in joining:
                if terminal not in stream.sent:
                    self._registry.remove_stream(stream, terminal)


def _check(adding: Collection[TerminalAddress], removing: Collection[TerminalAddress]) -> None:
    """Raises InvalidRequest."""
    if not adding and not removing:
        raise InvalidRequest(f"The change has no address; name some in `{ADD}` or `{REMOVE}`.", field=ADD)
    if both := set(adding).intersection(removing):
        raise InvalidRequest(f"{min(both)} is in `{ADD}` and in `{REMOVE}`; name it in one of them.", field=REMOVE)


def _nothing_left() -> NoValidAddresses:
    return NoValidAddresses(
        "The change would leave the stream without a terminal; end the stream, or add a terminal.", field=REMOVE
    )
