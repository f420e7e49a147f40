"""Loads the active subscriptions from the store when the gateway starts.

Invariants: each portion of subscriptions costs a few queries, not one query for each subscription.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import msgspec
import structlog

from app.auth.policies import Policies
from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes, SubscriptionUpdate
from app.domain.owed import ClientDeletion
from app.domain.records import ANONYMOUS, Client, Subscription
from app.domain.sink_contracts import SinkContracts
from app.live.group_directory import Asked, Expansion, GroupDirectory
from app.live.registry import TerminalRegistry
from app.live.subscription import restored
from app.live.terminal import Terminal
from app.live.writer import StatusWriter
from app.ports.store import Store

_log = structlog.get_logger(__name__)


class SubscriptionLoader:
    """One per process; `restore` is called once, before the engine's first round."""

    def __init__(
        self,
        store: Store,
        registry: TerminalRegistry,
        writer: StatusWriter,
        directory: GroupDirectory,
        policies: Policies,
        contracts: SinkContracts,
        *,
        clock: Callable[[], datetime],
        clock_s: Callable[[], float],
    ) -> None:
        self._store = store
        self._registry = registry
        self._writer = writer
        self._directory = directory
        self._policies = policies
        self._contracts = contracts
        self._clock = clock
        self._clock_s = clock_s

    async def restore(self) -> None:
        """Loads every active subscription, and ends subscriptions of deleted clients. Raises StoreUnavailable."""
        clients = {client.id: client for client in await self._store.clients()}
        gone: set[str] = set()
        async for portion in self._store.active_subscriptions():
            owned = [one for one in portion if one.client_id in clients or one.client_id == ANONYMOUS]
            gone.update([one.client_id for one in portion if one.client_id not in clients])
            await self._restore(owned, clients)
        for client_id in gone - {ANONYMOUS}:
            await self._store.finish_client_deletion(client_id, ClientDeletion(self._contracts, self._clock()))

    async def _restore(self, portion: Sequence[Subscription], clients: Mapping[str, Client]) -> None:
        expansions = await self._expand_again(portion, clients)
        wanted: dict[str, dict[TerminalAddress, None]] = {}
        for subscription in portion:
            by_group = expansions.get(subscription.id)
            addresses = by_group.terminals if by_group else subscription.addresses
            wanted.setdefault(subscription.client_id, {}).update(dict.fromkeys(addresses))
        terminals: dict[TerminalAddress, Terminal] = {}
        for client_id, its in wanted.items():
            terminals.update((one.address, one) for one in self._registry.want(tuple(its), client_id, None))
        await self._writer.load(terminals.values())
        stored = {address: terminal.status for address, terminal in terminals.items() if terminal.status}
        now, now_s = self._clock(), self._clock_s()
        for subscription in portion:
            by_group = expansions.get(subscription.id)
            its_terminals = [terminals[one] for one in (by_group.terminals if by_group else subscription.addresses)]
            live = restored(
                subscription,
                self._contracts.of(subscription.sink.kind, subscription.sink.profile),
                terminals=tuple([terminal.address for terminal in its_terminals]),
                groups=by_group.groups if by_group else (),
                stored=stored,
                busy_allowed=self._policies.of_id(subscription.client_id, clients).busy_available,
                now=now,
                now_s=now_s,
            )
            if by_group and by_group.left_out:
                watched, left_out = len(its_terminals), by_group.left_out
                _log.warning("group_cut", subscription=live.id, watched=watched, left_out=left_out)
                # The client was sent the error when the group grew.
                live.progress = msgspec.structs.replace(live.progress, reported=frozenset(by_group.groups[:1]))
            self._writer.activate(live, its_terminals)

    async def _expand_again(
        self, portion: Sequence[Subscription], clients: Mapping[str, Client]
    ) -> dict[str, Expansion]:
        """The terminals that addresses mean now, by subscription id, for subscriptions with groups."""
        expansions: dict[str, Expansion] = {}
        changed: list[SubscriptionUpdate] = []
        same: dict[Asked, Expansion] = {}  # many subscriptions may name the same groups, which are read once
        for subscription in portion:
            if not (known := subscription.groups):
                continue
            client_id = subscription.client_id
            asked = client_id, subscription.addresses, known
            if (expansion := same.get(asked)) is None:
                most = self._policies.of_id(client_id, clients).max_notification_addresses
                expansion = same[asked] = await self._directory.members_now(
                    client_id, subscription.addresses, most, known
                )
            expansions[subscription.id] = expansion
            if expansion.groups != known:
                changed.append(SubscriptionUpdate(subscription_id=subscription.id, groups=expansion.groups))
        if changed:
            await self._store.write(Changes(updates=changed))
        return expansions
