"""Follows groups: when a group's members change, its subscriptions and streams watch the new members.

A subscription's groups, and the terminals that joined it, are stored first, since a restart needs them; memory follows.
Streams end with a restart, so nothing is stored for them.
Listeners are moved in portions, so that other tasks may take the writer's lock between two portions.
Invariants: the lock is held while a portion moves. A listener that cannot follow does not delay the others.

Deliberately absent: which terminals a group means (`group_directory.py`), and how a subscription moves
(`subscription_moves.py`).
"""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import msgspec
import structlog

from app.auth.policies import Policies
from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes
from app.domain.errors import GatewayOverloaded, StoreUnavailable, TooManyAddresses, TooManyWatchedTerminals
from app.domain.records import Client
from app.live.group_directory import Asked, Expansion, GroupDirectory, GroupKey
from app.live.index import SubscriptionIndex
from app.live.mailbox import Stream
from app.live.open_streams import OpenStreams
from app.live.registry import TerminalRegistry
from app.live.stream_moves import move_stream
from app.live.subscription import LiveSubscription
from app.live.subscription_moves import apply, move_of, update_of
from app.live.terminal import Terminal
from app.live.writer import StatusWriter
from app.ports.store import Store

_TOGETHER = 200
"""Listeners that follow their groups in one transaction."""

Listener = LiveSubscription | Stream

_log = structlog.get_logger(__name__)


class _Move(NamedTuple):
    """A listener, and the terminals that it will watch."""

    listener: Listener
    groups: tuple[TerminalAddress, ...]
    terminals: Sequence[Terminal]


class GroupFollower:
    """Moves listeners (subscriptions and streams) when their groups change. One per process."""

    def __init__(
        self,
        store: Store,
        registry: TerminalRegistry,
        index: SubscriptionIndex,
        writer: StatusWriter,
        streams: OpenStreams,
        directory: GroupDirectory,
        policies: Policies,
    ) -> None:
        self._store = store
        self._registry = registry
        self._index = index
        self._writer = writer
        self._streams = streams
        self._directory = directory
        self._policies = policies

    async def follow(self, changed: Set[GroupKey]) -> None:
        """Moves the listeners of these groups to their present members. Raises StoreUnavailable; then call it again."""
        clients = {client.id: client for client in await self._store.clients()}
        listeners = self._listeners(changed)
        for start in range(0, len(listeners), _TOGETHER):
            async with self._writer.lock:  # other tasks may take it between portions
                await self._move([one for one in listeners[start : start + _TOGETHER] if self._active(one)], clients)

    def _listeners(self, changed: Set[GroupKey]) -> list[Listener]:
        found: dict[Listener, None] = {}
        for group in changed:
            found.update(dict.fromkeys(self._index.by_group.get(group, ())))
        for stream in self._streams:
            if any((stream.client_id, group) in changed for group in stream.groups):
                found[stream] = None
        for client_id, address in changed:
            found.update(dict.fromkeys(self._having_as_member(client_id, address)))
        return list(found)

    def _having_as_member(self, client_id: str, address: TerminalAddress) -> list[Listener]:
        """Listeners that watch the address as a terminal, because another group of theirs has it as a member."""
        terminal = self._registry.by_address.get(address)
        if terminal is None:
            return []
        streams = [one for one in terminal.streams if isinstance(one, Stream)]
        listeners: list[Listener] = [*terminal.subscriptions, *streams]
        return [one for one in listeners if one.groups and one.client_id == client_id and address not in one.addresses]

    def _active(self, listener: Listener) -> bool:
        return not listener.ended if isinstance(listener, LiveSubscription) else listener in self._streams

    async def _move(self, listeners: Sequence[Listener], clients: Mapping[str, Client]) -> None:
        moves: list[_Move] = []
        same: dict[Asked, Expansion] = {}  # many listeners may name the same groups, which are read once
        try:
            for listener in listeners:
                moves += await self._move_of(listener, clients, same)
            await self._writer.load([terminal for move in moves for terminal in move.terminals])
            of_subscriptions = [
                move_of(listener, groups, terminals)
                for listener, groups, terminals in moves
                if isinstance(listener, LiveSubscription)
            ]
            updates = [update for move in of_subscriptions if (update := update_of(move)) is not None]
            if updates:
                await self._store.write(Changes(updates=updates))
            for ready in of_subscriptions:
                if not ready.subscription.ended:  # it may have ended meanwhile
                    apply(ready, self._index, self._registry)
            for move in moves:
                if isinstance(move.listener, Stream) and move.listener in self._streams:
                    self._apply_to_stream(move.listener, move)
        except StoreUnavailable:
            raise
        except Exception:
            if len(listeners) == 1:
                _log.exception("defect_in_watching", **_name_of(listeners[0]))
            else:  # a defect of one listener may not stop the others
                for listener in listeners:
                    await self._move([listener], clients)
        finally:
            self._registry.release_unwanted(dict.fromkeys([terminal for move in moves for terminal in move.terminals]))

    async def _move_of(
        self, listener: Listener, clients: Mapping[str, Client], same: dict[Asked, Expansion]
    ) -> list[_Move]:
        """The listener's move; an empty list if it would then watch too many terminals."""
        client_id, policy = listener.client_id, self._policies.of_id(listener.client_id, clients)
        asked = client_id, listener.addresses, listener.groups
        if (expansion := same.get(asked)) is None:
            expansion = same[asked] = await self._directory.members_now(
                client_id, listener.addresses, policy.max_notification_addresses, listener.groups
            )
        if isinstance(listener, LiveSubscription):
            self._report_left_out(listener, expansion)
            failed = listener.progress.failed
            # Only new terminals are passed to `want` below, because `want` would watch a failed terminal again.
            its = {one: self._registry.by_address[one] for one in listener.progress.terminals}
        else:
            if expansion.left_out:
                watched, left_out = len(expansion.terminals), expansion.left_out
                _log.warning("group_cut", client=client_id, watched=watched, left_out=left_out)
            failed = frozenset()
            its = {terminal.address: terminal for terminal in listener.sent}
        try:
            others = [one for one in expansion.terminals if not (one in its or one in failed)]
            wanted = self._registry.want(others, client_id, policy.max_watched_terminals)
        except (GatewayOverloaded, TooManyWatchedTerminals) as error:
            _log.warning("group_not_followed", **_name_of(listener), message=str(error))
            return []
        its.update((terminal.address, terminal) for terminal in wanted)
        return [_Move(listener, expansion.groups, [its[one] for one in expansion.terminals if one in its])]

    def _report_left_out(self, subscription: LiveSubscription, expansion: Expansion) -> None:
        """Sends the client an error if its groups have more terminals than the policy allows: once, and again only
        after the groups did fit in between."""
        progress = subscription.progress
        failed = progress.failed.intersection(expansion.terminals)
        reported = progress.reported.intersection(expansion.terminals) if not expansion.left_out else progress.reported
        subscription.progress = msgspec.structs.replace(progress, failed=failed, reported=reported)
        if not expansion.left_out or expansion.groups[0] in reported:
            return
        group, most, left_out = expansion.groups[0], len(expansion.terminals), expansion.left_out
        _log.warning("group_cut", subscription=subscription.id, group=group, watched=most, left_out=left_out)
        error = TooManyAddresses(
            f"Limit reached: {most} terminals of the groups are watched, {left_out} are not. Make the groups smaller, "
            "or ask the operator to raise `max_notification_addresses`.",
            most=str(most),
        )
        self._registry.report_error(group, [subscription], error)

    def _apply_to_stream(self, stream: Stream, move: _Move) -> None:
        leaving = set(stream.sent).difference(move.terminals)
        move_stream(self._registry, stream, joining=move.terminals, leaving=leaving)
        stream.groups = move.groups


def _name_of(listener: Listener) -> Mapping[str, str]:
    """The log field that names a listener."""
    return {"subscription": listener.id} if isinstance(listener, LiveSubscription) else {"client": listener.client_id}
