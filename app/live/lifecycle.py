"""Takes subscriptions in and out, in the store and in memory together.

Invariants: whoever is here holds the writer's lock, so that no change falls between what a new subscription is told at
once and what it is told later, and none is told that has ended. Memory follows the store, never the reverse.

Deliberately absent: what clients may ask for (`core/subscriptions.py`), the rule of who is told what (`rules.py`), and
groups that change later (`membership.py`).
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

import structlog

from app.auth.policies import Policies
from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes, SubscriptionUpdate
from app.domain.errors import SubscriptionUnknown, TooManySubscriptions, Unauthenticated
from app.domain.owed import END_TEXTS, OwedWriter
from app.domain.policy import Policy
from app.domain.records import (
    ANONYMOUS,
    AuditEntry,
    Client,
    NotificationKind,
    OwedNotification,
    Subscription,
    UsageRecord,
)
from app.domain.sinks import EndReason, Sink, SinkKind, require_readable, withdraws
from app.domain.statuses import Liveness
from app.live.group_directory import Asked, Expansion, GroupDirectory
from app.live.index import SubscriptionIndex
from app.live.registry import TerminalRegistry
from app.live.rules import Decision, decide
from app.live.subscription import LiveSubscription, begun, restored
from app.live.terminal import Terminal
from app.live.writer import StatusWriter
from app.ports import Store

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


class Lifecycle:
    """The active subscriptions' coming and going."""

    def __init__(
        self,
        store: Store,
        watches: TerminalRegistry,
        standings: SubscriptionIndex,
        commits: StatusWriter,
        groups: GroupDirectory,
        policies: Policies,
        *,
        clock: Callable[[], datetime],
        clock_s: Callable[[], float],
        wake: Callable[[], None],
        end_streams_of: Callable[[str], None],
    ) -> None:
        self._store = store
        self._watches = watches
        self._standings = standings
        self._commits = commits
        self._groups = groups
        self._policies = policies
        self._clock = clock
        self._clock_s = clock_s
        self._wake = wake
        self._end_streams_of = end_streams_of
        self._works: set[asyncio.Task[Any]] = set()

    def require_room(self, client_id: str, most: int) -> None:
        """Raises TooManySubscriptions where the client has so many active ones."""
        if self._standings.count(client_id) >= most:
            raise TooManySubscriptions(f"There are {most} active subscriptions, as many as allowed.")

    async def restore(self) -> None:
        """Takes in what is active in the store. Raises StoreUnavailable."""
        clients = {client.id: client for client in await self._store.clients()}
        gone: set[str] = set()
        async for portion in self._store.active_subscriptions():
            owned = [one for one in portion if one.client_id in clients or one.client_id == ANONYMOUS]
            gone.update([one.client_id for one in portion if one.client_id not in clients])
            await self._restore(owned, clients)
        for client_id in gone - {ANONYMOUS}:
            await self._store.client_gone(client_id, OwedWriter(self._clock()).client_deleted)

    async def settled(self) -> None:
        """Waits for what callers who left have begun."""
        await asyncio.gather(*self._works, return_exceptions=True)

    async def begin(
        self,
        subscription: Subscription,
        expansion: Expansion,
        *,
        busy: bool,
        usage: Sequence[UsageRecord],
        most: int | None = None,
    ) -> Subscription:
        """Stores a subscription with what it is told at once, and lets it stand. Returns what is stored, which is
        another one where its request id was used before. With `most`, that many of the client's may be active then.
        Raises DuplicateCorrelator, GatewayOverloaded, StoreUnavailable, TooManySubscriptions, TooManyWatchedTerminals,
        Unauthenticated."""
        return await self._undisturbed(self._begin(subscription, expansion, busy, usage, most))

    async def _begin(
        self,
        subscription: Subscription,
        expansion: Expansion,
        busy: bool,
        usage: Sequence[UsageRecord],
        most: int | None,
    ) -> Subscription:
        async with self._commits.lock:
            policy = await self._policy_now(subscription.client_id)
            if most is not None and self._standings.count(subscription.client_id) >= most:
                # Many may have been let in at once, this request itself among them.
                known = await self._store.subscription_by_request_id(subscription.client_id, subscription.request_id)
                if known is not None:
                    return known
                self.require_room(subscription.client_id, most)
            if expansion.groups:  # they may have changed since, when it did not follow them yet
                allowed = policy.max_notification_addresses
                expansion = await self._groups.members_now(
                    subscription.client_id, subscription.addresses, allowed, expansion.groups
                )
                subscription = replace(subscription, groups=expansion.groups)
            terminals = self._watches.want(expansion.terminals, subscription.client_id, policy.max_watched_terminals)
            try:
                await self._commits.load(terminals)
                standing, told, owed, decision = self._started(subscription, terminals, expansion.groups, busy)
                stored = await self._store.create_subscription(told, owed, usage, _audit("subscription created", usage))
                if stored.id == subscription.id:
                    if stored.active:
                        if decision is not None:
                            decision.apply()
                        self._stand(standing, terminals)
                    self._commits.hint_owed(owed)
                return stored
            finally:
                for terminal in terminals:
                    if not terminal.wanted:
                        self._watches.unwanted(terminal)

    async def _policy_now(self, client_id: str) -> Policy:
        """The policy of a client that may have been deleted, or disabled, since the call began: an endpoint takes its
        time to test."""
        if client_id == ANONYMOUS:
            return self._policies.operator
        client = await self._store.client(client_id)
        if client is None or client.disabled:
            raise Unauthenticated("The credentials are no longer good.")
        return self._policies.of(client)

    def _started(
        self,
        subscription: Subscription,
        terminals: Sequence[Terminal],
        groups: tuple[TerminalAddress, ...],
        busy: bool,
    ) -> tuple[LiveSubscription, Subscription, list[OwedNotification], Decision | None]:
        live = {one.address: one.status for one in terminals if one.liveness is Liveness.LIVE and one.status}
        now_s = self._clock_s()
        addresses = tuple([one.address for one in terminals])
        standing = begun(subscription, terminals=addresses, groups=groups, live=live, busy=busy, now_s=now_s)
        writer = OwedWriter(self._clock())
        sink, owed = subscription.sink.kind, []
        if sink is SinkKind.WEBHOOK:
            owed.append(writer.owe(subscription.id, subscription.client_id, sink, NotificationKind.STARTED))
        decision = None
        if live and subscription.check_immediate:
            decision = decide(standing, [(status, None) for status in live.values()], {}, now_s, writer)
        awaited = standing.awaiting if decision is None else decision.awaiting
        if len(terminals) > 1:  # by name: some may be known long before others
            standing.joined = awaited
            subscription = replace(subscription, joined=tuple(sorted(awaited)))
        else:
            subscription = replace(subscription, awaiting=bool(awaited))
        if decision is not None:
            decision.joined = standing.joined
            owed += decision.owed
            if (update := decision.update) is not None:
                subscription = replace(
                    subscription,
                    notified=decision.notified,
                    last_notified_at=update.last_notified_at,
                    ended_at=update.ended_at,
                    end_reason=update.end_reason,
                    end_detail=update.end_detail or "",
                )
        return standing, subscription, owed, decision

    async def finish(
        self, subscription: Subscription, reason: EndReason, usage: Sequence[UsageRecord], *, stored: Callable[[], None]
    ) -> None:
        """Ends an active subscription; calls `stored` then, also where the caller has left. Raises StoreUnavailable,
        having changed nothing, and SubscriptionUnknown where it has ended meanwhile."""
        await self._undisturbed(self._finish(subscription.id, reason, usage, stored))

    async def _finish(
        self, subscription_id: str, reason: EndReason, usage: Sequence[UsageRecord], stored: Callable[[], None]
    ) -> None:
        async with self._commits.lock:
            standing = self._standing(subscription_id)
            writer = OwedWriter(self._clock())
            update = SubscriptionUpdate(
                subscription_id=standing.id,
                ended_at=writer.now,
                end_reason=reason,
                end_detail=END_TEXTS[reason],
                withdraws=withdraws(standing.kind, reason),
            )
            owed = writer.ending(standing.id, standing.client_id, standing, reason)
            audit = _audit(f"subscription {reason.name.lower()}", usage)
            await self._store.write(Changes(updates=[update], owed=owed, usage=usage, audit=audit))
            self._drop(standing)
            stored()
            self._commits.hint_owed(owed)

    async def prolong(self, subscription: Subscription, expires_at: datetime, *, who: str) -> None:
        """Lets an active subscription end at another time, as the client `who` wants. Raises as `finish`."""
        await self._undisturbed(self._prolong(subscription.id, expires_at, who))

    async def _prolong(self, subscription_id: str, expires_at: datetime, who: str) -> None:
        async with self._commits.lock:
            standing = self._standing(subscription_id)
            details = {"subscription": standing.id, "expires_at": expires_at.isoformat()}
            entry = AuditEntry(at=self._clock(), who=who, what="subscription renewed", details=details)
            update = SubscriptionUpdate(subscription_id=standing.id, expires_at=expires_at)
            await self._store.write(Changes(updates=[update], audit=[entry]))
            standing.expires_at = expires_at
            standing.expires_s = self._clock_s() + (expires_at - self._clock()).total_seconds()
            self._standings.prolonged(standing)
        self._wake()

    async def change_sink(
        self,
        subscription: Subscription,
        change: Callable[[Sink], Sink],
        audit: Sequence[AuditEntry],
        changed: Callable[[Subscription], None],
    ) -> Subscription:
        """Gives an active subscription another sink of the same kind and profile, made by `change` of the one it has
        now. `changed` is called with what is stored, which is returned. Raises as `finish`."""
        return await self._undisturbed(self._change_sink(subscription.id, change, audit, changed))

    async def _change_sink(
        self,
        subscription_id: str,
        change: Callable[[Sink], Sink],
        audit: Sequence[AuditEntry],
        changed: Callable[[Subscription], None],
    ) -> Subscription:
        async with self._commits.lock:
            self._standing(subscription_id)
            stored = await self._store.subscription(subscription_id)
            if stored is None or not stored.active:  # its endpoint ended it, a moment ago
                raise _unknown()
            require_readable(stored.sink)
            stored = replace(stored, sink=change(stored.sink))
            update = SubscriptionUpdate(subscription_id=stored.id, sink=stored.sink)
            await self._store.write(Changes(updates=[update], audit=audit))
            changed(stored)
        return stored

    async def delete_client(self, client_id: str) -> list[Subscription]:
        """Deletes a client with its keys and groups, ends its subscriptions (which are returned) and its streams.
        Raises ClientUnknown, StoreUnavailable."""
        return await self._undisturbed(self._delete_client(client_id))

    async def client_gone(self, client_id: str) -> None:
        """Follows another process that deleted a client in the store, as `delete_client` does its own."""
        await self._undisturbed(self._client_gone(client_id))

    async def _delete_client(self, client_id: str) -> list[Subscription]:
        if await self._store.client(client_id) is not None:
            await self._store.delete_groups(client_id)  # which may take long, so before the lock is taken
        async with self._commits.lock:
            ended = await self._store.delete_client(client_id, OwedWriter(self._clock()).client_deleted)
            self._let_go(client_id, [subscription.id for subscription in ended])
        return ended

    async def _client_gone(self, client_id: str) -> None:
        async with self._commits.lock:
            stood = [each.id for each in self._standings.by_id.values() if each.client_id == client_id]
            self._let_go(client_id, stood)
            # What this process let in while the other one deleted the client.
            await self._store.client_gone(client_id, OwedWriter(self._clock()).client_deleted)

    def _let_go(self, client_id: str, ended: Iterable[str]) -> None:
        for subscription_id in ended:
            self.forget(subscription_id)
        self._groups.client_deleted(client_id)
        self._end_streams_of(client_id)
        self._commits.hint_due()  # what the deletion's transaction wrote

    def forget(self, subscription_id: str) -> None:
        """The subscription has ended in the store."""
        standing = self._standings.by_id.get(subscription_id)
        if standing is not None:
            self._drop(standing)

    def _standing(self, subscription_id: str) -> LiveSubscription:
        standing = self._standings.by_id.get(subscription_id)
        if standing is None:
            raise _unknown()
        return standing

    async def _undisturbed(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Does it whole, also where the caller leaves: memory would not follow the store otherwise."""
        task = asyncio.create_task(work, name="enrolment")
        self._works.add(task)
        task.add_done_callback(self._works.discard)
        return await asyncio.shield(task)

    def _stand(self, standing: LiveSubscription, terminals: Iterable[Terminal]) -> None:
        for terminal in terminals:
            self._watches.link(standing, terminal)
            if terminal.address in standing.awaiting:
                terminal.attentive = True
        self._standings.add(standing)
        self._wake()

    def _drop(self, standing: LiveSubscription) -> None:
        self._standings.remove(standing)
        self._watches.unlink(standing, standing.terminals)

    async def _restore(self, portion: Sequence[Subscription], clients: Mapping[str, Client]) -> None:
        now, now_s = self._clock(), self._clock_s()
        expansions: dict[str, Expansion] = {}
        regrouped: list[SubscriptionUpdate] = []
        same: dict[Asked, Expansion] = {}  # many may be to the same groups, which are read once
        for subscription in portion:
            client_id = subscription.client_id
            if known := subscription.groups:
                most = self._policies.of_id(client_id, clients).max_notification_addresses
                asked = client_id, subscription.addresses, known
                if (expansion := same.get(asked)) is None:
                    expansion = same[asked] = await self._groups.members_now(
                        client_id, subscription.addresses, most, known
                    )
                expansions[subscription.id] = expansion
                if expansion.groups != known:
                    regrouped.append(SubscriptionUpdate(subscription_id=subscription.id, groups=expansion.groups))
        if regrouped:
            await self._store.write(Changes(updates=regrouped))
        wanted: dict[str, dict[TerminalAddress, None]] = {}
        for subscription in portion:
            by_group = expansions.get(subscription.id)
            its_own = by_group.terminals if by_group else subscription.addresses
            wanted.setdefault(subscription.client_id, {}).update(dict.fromkeys(its_own))
        terminals: dict[TerminalAddress, Terminal] = {}
        for client_id, addresses in wanted.items():
            terminals.update((one.address, one) for one in self._watches.want(tuple(addresses), client_id, None))
        await self._commits.load(terminals.values())
        stored = {address: terminal.status for address, terminal in terminals.items() if terminal.status}
        for subscription in portion:
            by_group = expansions.get(subscription.id)
            its = [terminals[one] for one in (by_group.terminals if by_group else subscription.addresses)]
            standing = restored(
                subscription,
                terminals=tuple([terminal.address for terminal in its]),
                groups=by_group.groups if by_group else (),
                stored=stored,
                busy=self._policies.of_id(subscription.client_id, clients).busy_available,
                now=now,
                now_s=now_s,
            )
            if by_group and by_group.left_out:
                _log.warning("group_cut", subscription=standing.id, watched=len(its), left_out=by_group.left_out)
                standing.warned = frozenset(by_group.groups[:1])  # it was told when the group grew
            self._stand(standing, its)


def _audit(what: str, usage: Sequence[UsageRecord]) -> list[AuditEntry]:
    """What stands in the audit log of the acts that these records are of."""
    return [
        AuditEntry(
            at=one.at,
            who=one.client_id,
            what=what,
            details={"subscription": one.subscription_id, "face": one.face, "requester": one.requester},
        )
        for one in usage
    ]


def _unknown() -> SubscriptionUnknown:
    return SubscriptionUnknown("There is no such active subscription.")
