"""Follows groups: when a group's members change, its subscriptions and streams watch the new members.

A subscription's groups, and the terminals that joined it, are stored first, since a restart needs them; memory follows.
Streams end with a restart, so nothing is stored for them.
Invariants: the writer's lock is held for each portion. A listener that cannot follow does not delay the others.

Deliberately absent: which terminals a group means (`group_directory.py`).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import msgspec
import structlog

from app.auth.policies import Policies
from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes, SubscriptionUpdate
from app.domain.errors import GatewayOverloaded, StoreUnavailable, TooManyAddresses, TooManyWatchedTerminals
from app.domain.records import Client
from app.domain.statuses import Liveness
from app.live.group_directory import Asked, Expansion, GroupDirectory, GroupKey
from app.live.index import SubscriptionIndex
from app.live.mailbox import Stream
from app.live.open_streams import OpenStreams
from app.live.registry import TerminalRegistry
from app.live.stream_moves import move_stream
from app.live.subscription import LiveSubscription, Progress
from app.live.terminal import Terminal
from app.live.writer import StatusWriter
from app.ports.store import Store

_TOGETHER = 200
"""Listeners that follow their groups in one transaction."""

Listener = LiveSubscription | Stream

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Move:
    """A listener, and the terminals that it will watch."""

    listener: Listener
    groups: tuple[TerminalAddress, ...]
    terminals: Sequence[Terminal]
    progress: Progress | None = None
    """A subscription's next progress; None for a stream."""
    awaited: list[Terminal] = field(default_factory=list)
    """Terminals that join a subscription, and whose next observation counts as their first."""


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
            updates = [update for move in moves if (update := _prepare(move)) is not None]
            if updates:
                await self._store.write(Changes(updates=updates))
            for move in moves:
                if self._active(move.listener):  # it may have ended meanwhile
                    self._apply(move)
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

    def _apply(self, move: _Move) -> None:
        if isinstance(move.listener, LiveSubscription):
            self._apply_to_subscription(move.listener, move)
        else:
            self._apply_to_stream(move.listener, move)

    def _apply_to_stream(self, stream: Stream, move: _Move) -> None:
        leaving = set(stream.sent).difference(move.terminals)
        move_stream(self._registry, stream, joining=move.terminals, leaving=leaving)
        stream.groups = move.groups

    def _apply_to_subscription(self, subscription: LiveSubscription, move: _Move) -> None:
        assert move.progress is not None  # noqa: S101  # `_prepare` has made it
        left = set(subscription.progress.terminals).difference(move.progress.terminals)
        subscription.progress = move.progress
        self._index.index_groups(subscription, move.groups)
        self._registry.remove_subscription(subscription, left)
        for terminal in move.terminals:
            if subscription not in terminal.subscriptions:
                self._registry.add_subscription(subscription, terminal)
        for terminal in move.awaited:
            terminal.write_next = True
            live = terminal.liveness is Liveness.LIVE
            if live and terminal.status is not None and not terminal.pending:
                terminal.observe(terminal.status.status, terminal.status.observed_at)  # reported as if it had just come
                self._registry.enqueue(terminal)


def _prepare(move: _Move) -> SubscriptionUpdate | None:
    """Sets `progress` and `awaited` of a subscription's move. Returns what the store must write first, if anything."""
    subscription = move.listener
    if not isinstance(subscription, LiveSubscription):
        return None
    before, now = subscription.progress, {terminal.address for terminal in move.terminals}
    for terminal in move.terminals:
        live = terminal.liveness is Liveness.LIVE and terminal.status is not None
        if subscription not in terminal.subscriptions and (subscription.check_immediate or not live):
            move.awaited.append(terminal)
    joined = before.joined.intersection(now).union([terminal.address for terminal in move.awaited])
    held = tuple([status for status in before.held if status.address in now])
    move.progress = msgspec.structs.replace(
        before,
        terminals=tuple([terminal.address for terminal in move.terminals]),
        awaiting=before.awaiting.intersection(now).union(joined),
        joined=joined,
        held=held,
    )
    regrouped = move.groups != subscription.groups
    if not regrouped and joined == before.joined and len(held) == len(before.held):
        return None
    return SubscriptionUpdate(
        subscription_id=subscription.id,
        groups=move.groups if regrouped else None,
        joined=tuple(sorted(joined)) if joined != before.joined else None,
        held=move.progress.held_addresses if len(held) != len(before.held) else None,
    )


def _name_of(listener: Listener) -> Mapping[str, str]:
    """The log field that names a listener."""
    return {"subscription": listener.id} if isinstance(listener, LiveSubscription) else {"client": listener.client_id}
