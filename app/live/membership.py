"""Lets subscriptions follow their groups: who is in them now is watched for them, who left is not.

What a restart must know of it (groups, who joined) is stored first, and memory follows.
Invariants: the writer's lock is held for each portion of subscriptions. A subscription that cannot follow holds up no
other.

Deliberately absent: streams, which `engine.py` lets follow, and what a group stands for (`group_directory.py`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from app.auth.policies import Policies
from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes, SubscriptionUpdate
from app.domain.errors import GatewayOverloaded, StoreUnavailable, TooManyAddresses, TooManyWatchedTerminals
from app.domain.records import Client
from app.domain.statuses import Liveness
from app.live.group_directory import Asked, Expansion, GroupDirectory, GroupKey
from app.live.index import SubscriptionIndex
from app.live.registry import TerminalRegistry
from app.live.subscription import LiveSubscription
from app.live.terminal import Terminal
from app.live.writer import StatusWriter
from app.ports import Store

_TOGETHER = 200
"""Subscriptions that follow their groups in one transaction."""

_log = structlog.get_logger(__name__)


class _Move:
    """Where a subscription by groups goes when they have changed."""

    __slots__ = ("awaited", "groups", "held", "joined", "standing", "terminals", "update")

    def __init__(
        self, standing: LiveSubscription, groups: tuple[TerminalAddress, ...], terminals: Sequence[Terminal]
    ) -> None:
        self.standing = standing
        self.groups = groups
        self.terminals = terminals
        self.awaited: list[Terminal] = []
        self.joined = standing.joined
        self.held = standing.held
        self.update: SubscriptionUpdate | None = None


class Membership:
    """Of all active subscriptions by groups."""

    def __init__(
        self,
        store: Store,
        watches: TerminalRegistry,
        standings: SubscriptionIndex,
        commits: StatusWriter,
        groups: GroupDirectory,
        policies: Policies,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when there may be something to write."""
        self._store = store
        self._watches = watches
        self._standings = standings
        self._commits = commits
        self._groups = groups
        self._policies = policies
        self._wake = wake

    async def regroup(self, changed: Iterable[GroupKey], clients: Mapping[str, Client]) -> None:
        """Lets subscriptions by these groups follow their members. Raises StoreUnavailable, and may be repeated."""
        concerned = [one for group in changed for one in (*self._standings.by_group.get(group, ()), *self._met(group))]
        standings = list(dict.fromkeys(concerned))
        for start in range(0, len(standings), _TOGETHER):
            async with self._commits.lock:  # others have their turn between portions
                portion = [one for one in standings[start : start + _TOGETHER] if not one.ended]
                await self._regroup(portion, clients)
        self._wake()

    def _met(self, group: GroupKey) -> list[LiveSubscription]:
        """Subscriptions that have it as a terminal, by another group."""
        client_id, address = group
        terminal = self._watches.by_address.get(address)
        standings = terminal.standings if terminal is not None else ()
        return [one for one in standings if one.groups and one.client_id == client_id and address not in one.addresses]

    async def _regroup(self, standings: Sequence[LiveSubscription], clients: Mapping[str, Client]) -> None:
        moves: list[_Move] = []
        same: dict[Asked, Expansion] = {}  # many may be to the same groups, which are read once
        try:
            for standing in standings:
                moves += await self._moves(standing, clients, same)
            await self._commits.load([terminal for move in moves for terminal in move.terminals])
            for move in moves:
                self._weigh(move)
            updates = [move.update for move in moves if move.update is not None]
            if updates:
                await self._store.write(Changes(updates=updates))
            for move in moves:
                if not move.standing.ended:  # by the endpoint, meanwhile
                    self._follow(move)
        except StoreUnavailable:
            raise
        except Exception:  # the others follow
            if len(standings) == 1:
                _log.exception("defect_in_watching", subscription=standings[0].id)
            else:
                for standing in standings:
                    await self._regroup([standing], clients)
        finally:
            for terminal in dict.fromkeys([terminal for move in moves for terminal in move.terminals]):
                if not terminal.wanted:
                    self._watches.unwanted(terminal)

    async def _moves(
        self, standing: LiveSubscription, clients: Mapping[str, Client], same: dict[Asked, Expansion]
    ) -> "list[_Move]":
        """Where it is to go; none where too many terminals are watched for that."""
        policy, client_id = self._policies.of_id(standing.client_id, clients), standing.client_id
        most = policy.max_notification_addresses
        asked = client_id, standing.addresses, standing.groups
        if (expansion := same.get(asked)) is None:
            expansion = same[asked] = await self._groups.members_now(
                client_id, standing.addresses, most, standing.groups
            )
        self._tell_left_out(standing, expansion)
        standing.failed = standing.failed.intersection(expansion.terminals)
        try:
            its = {one: self._watches.by_address[one] for one in standing.terminals}  # not to be asked anew
            others = [one for one in expansion.terminals if not (one in its or one in standing.failed)]
            wanted = self._watches.want(others, client_id, policy.max_watched_terminals)
            its.update((terminal.address, terminal) for terminal in wanted)
        except (GatewayOverloaded, TooManyWatchedTerminals) as error:
            _log.warning("group_not_followed", subscription=standing.id, message=str(error))
            return []
        return [_Move(standing, expansion.groups, [its[one] for one in expansion.terminals if one in its])]

    def _tell_left_out(self, standing: LiveSubscription, expansion: Expansion) -> None:
        """The groups may have grown beyond what the policy allows: that is told once, until they fit again."""
        fitting = standing.warned.intersection(expansion.terminals)
        if not expansion.left_out:
            standing.warned = fitting
            return
        group = expansion.groups[0]
        if group in standing.warned:
            return
        most, over = len(expansion.terminals), expansion.left_out
        _log.warning("group_cut", subscription=standing.id, group=group, watched=most, left_out=over)
        error = TooManyAddresses(f"{over} terminals are not watched: {most} are allowed.", most=str(most))
        self._watches.failed.append((group, (standing,), error))

    def _weigh(self, move: "_Move") -> None:
        """Finds who joins and is awaited, and what the store does not know of it all."""
        standing, now = move.standing, {terminal.address for terminal in move.terminals}
        for terminal in move.terminals:
            live = terminal.liveness is Liveness.LIVE and terminal.status is not None
            if standing not in terminal.standings and (standing.check_immediate or not live):
                move.awaited.append(terminal)
        move.joined = standing.joined.intersection(now).union([terminal.address for terminal in move.awaited])
        move.held = tuple([status for status in standing.held if status.address in now])
        regrouped, joined = move.groups != standing.groups, move.joined != standing.joined
        held = len(move.held) != len(standing.held)
        if regrouped or joined or held:
            move.update = SubscriptionUpdate(
                subscription_id=standing.id,
                groups=move.groups if regrouped else None,
                joined=tuple(sorted(move.joined)) if joined else None,
                held=tuple([status.address for status in move.held]) if held else None,
            )

    def _follow(self, move: "_Move") -> None:
        standing = move.standing
        now = tuple([terminal.address for terminal in move.terminals])
        left = set(standing.terminals).difference(now)
        standing.terminals = now
        standing.awaiting = (standing.awaiting - left).union(move.joined)
        standing.joined, standing.held = move.joined, move.held
        self._standings.index_groups(standing, move.groups)
        self._watches.unlink(standing, left)
        for terminal in move.terminals:
            if standing not in terminal.standings:
                self._watches.link(standing, terminal)
        for terminal in move.awaited:
            terminal.attentive = True
            live = terminal.liveness is Liveness.LIVE
            if live and terminal.status is not None and not terminal.pending:
                terminal.note(terminal.status.status, terminal.status.observed_at)  # as if it were observed now
                self._watches.enqueue(terminal)
