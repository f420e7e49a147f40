"""Begins, changes and ends active subscriptions, in the store and in memory together.

Invariants: every change here holds the writer's lock. So a new subscription misses no change between its first
notifications and the later ones, and nothing is sent after its end. Memory follows the store, never the reverse. An
operation that has begun is finished even if its caller leaves: otherwise memory would not follow the store.

Deliberately absent: what clients may ask for (`core/subscriptions.py`), what a subscriber is sent (`rules.py`), the
change of a subscription itself (`changing.py`), and changes of groups (`group_follower.py`).
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec
import structlog

from app.auth.policies import Policies
from app.domain.addresses import MAX_ADDRESS_LENGTH, TerminalAddress
from app.domain.changes import Changes, SubscriptionUpdate
from app.domain.errors import SubscriptionUnknown, TerminalStatusError, TooManySubscriptions, Unauthenticated
from app.domain.operations import AuditAction
from app.domain.owed import END_TEXTS, ClientDeletion, OwedWriter
from app.domain.policy import Policy
from app.domain.records import (
    ANONYMOUS,
    AuditEntry,
    NotificationKind,
    OwedNotification,
    Subscription,
    UsageRecord,
)
from app.domain.sink_contracts import SinkContracts
from app.domain.sinks import EndReason
from app.domain.statuses import Liveness
from app.live.changing import Change, SubscriptionChanger
from app.live.group_directory import Expansion, GroupDirectory
from app.live.index import SubscriptionIndex
from app.live.open_streams import OpenStreams
from app.live.registry import TerminalRegistry
from app.live.rules import Decision, decide, failure
from app.live.subscription import LiveSubscription, begun
from app.live.terminal import Terminal
from app.live.writer import StatusWriter
from app.ports.store import Store

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)

NO_INVALID: Final[Mapping[str, TerminalStatusError]] = MappingProxyType({})


class Lifecycle:
    """Begins, changes and ends active subscriptions. One per process."""

    def __init__(
        self,
        store: Store,
        registry: TerminalRegistry,
        index: SubscriptionIndex,
        writer: StatusWriter,
        streams: OpenStreams,
        directory: GroupDirectory,
        policies: Policies,
        contracts: SinkContracts,
        *,
        clock: Callable[[], datetime],
        clock_s: Callable[[], float],
    ) -> None:
        self.on_work: Callable[[], None] = lambda: None
        """Called when something may be due earlier than before; may not block or raise."""
        self._store = store
        self._registry = registry
        self._index = index
        self._writer = writer
        self._streams = streams
        self._directory = directory
        self._policies = policies
        self._contracts = contracts
        self._clock = clock
        self._clock_s = clock_s
        self._changer = SubscriptionChanger(store, registry, index, writer, directory, clock=clock, clock_s=clock_s)
        self._running: set[asyncio.Task[Any]] = set()

    def require_room(self, client_id: str, most: int) -> None:
        """Raises TooManySubscriptions if the client has `most` active subscriptions."""
        if self._index.count(client_id) >= most:
            raise TooManySubscriptions(
                f"Limit reached: {most} active subscriptions. End one, or ask the operator to raise "
                "`max_subscriptions`."
            )

    async def finish_running(self) -> None:
        """Waits for operations whose caller has left; they run to completion in the background."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def begin(
        self,
        subscription: Subscription,
        expansion: Expansion,
        *,
        busy_allowed: bool,
        usage: Sequence[UsageRecord],
        most: int | None = None,
        invalid: Mapping[str, TerminalStatusError] = NO_INVALID,
    ) -> Subscription:
        """Stores a subscription with its first notifications, and makes it active. Returns the stored subscription,
        which is an earlier one if its request id was used before. `most` is how many active subscriptions the client
        may have (None: any number). `invalid` are addresses of the request that the subscription leaves out, with their
        errors: a notification reports each.

        Raises DuplicateCorrelator, GatewayOverloaded, StoreUnavailable, TooManySubscriptions, TooManyWatchedTerminals,
        Unauthenticated.
        """
        return await self._run_to_completion(self._begin(subscription, expansion, busy_allowed, usage, most, invalid))

    async def _begin(
        self,
        subscription: Subscription,
        expansion: Expansion,
        busy_allowed: bool,
        usage: Sequence[UsageRecord],
        most: int | None,
        invalid: Mapping[str, TerminalStatusError],
    ) -> Subscription:
        async with self._writer.lock:
            policy = await self._policy_now(subscription.client_id)
            if most is not None and self._index.count(subscription.client_id) >= most:
                # Several calls may have passed `require_room` at once, perhaps with this same request id.
                known = await self._store.subscription_by_request_id(subscription.client_id, subscription.request_id)
                if known is not None:
                    return known
                self.require_room(subscription.client_id, most)
            if expansion.groups:  # a group may have changed since it was expanded
                expansion = await self._directory.members_now(
                    subscription.client_id,
                    subscription.addresses,
                    policy.max_notification_addresses,
                    expansion.groups,
                )
                subscription = replace(subscription, groups=expansion.groups)
            terminals = self._registry.want(expansion.terminals, subscription.client_id, policy.max_watched_terminals)
            try:
                await self._writer.load(terminals)
                live, row, owed, decision = self._first(
                    subscription, terminals, expansion.groups, busy_allowed, invalid
                )
                stored = await self._store.create_subscription(
                    row, owed, usage, _audit(AuditAction.SUBSCRIPTION_CREATED, usage)
                )
                if stored.id == subscription.id:
                    if stored.active:
                        if decision is not None:
                            live.progress = decision.progress
                        self._writer.activate(live, terminals)
                        self.on_work()
                    self._writer.on_written(owed)
                return stored
            finally:
                self._registry.release_unwanted(terminals)

    async def _policy_now(self, client_id: str) -> Policy:
        """The client's present policy. Raises Unauthenticated if the client was deleted or disabled since the call
        began, for example while its sink was checked."""
        if client_id == ANONYMOUS:
            return self._policies.operator
        client = await self._store.client(client_id)
        if client is None or client.disabled:
            raise Unauthenticated("The credentials are no longer valid: the client was deleted or disabled.")
        return self._policies.of(client)

    def _first(
        self,
        subscription: Subscription,
        terminals: Sequence[Terminal],
        groups: tuple[TerminalAddress, ...],
        busy_allowed: bool,
        invalid: Mapping[str, TerminalStatusError],
    ) -> tuple[LiveSubscription, Subscription, list[OwedNotification], Decision | None]:
        """A new subscription in memory, its row, its first notifications, and the decision about statuses known now."""
        contract = self._contracts.of(subscription.sink.kind, subscription.sink.profile)
        known = {one.address: one.status for one in terminals if one.liveness is Liveness.LIVE and one.status}
        now_s = self._clock_s()
        live = begun(
            subscription,
            contract,
            terminals=tuple([one.address for one in terminals]),
            groups=groups,
            live=known,
            busy_allowed=busy_allowed,
            now_s=now_s,
        )
        writer, owed = OwedWriter(self._clock()), []
        if contract.announces_start:
            owed.append(writer.owe(subscription.id, subscription.client_id, contract, NotificationKind.STARTED))
        owed += [
            failure(live, TerminalAddress(text[:MAX_ADDRESS_LENGTH]), why, writer) for text, why in invalid.items()
        ]
        decision = None
        if known and subscription.check_immediate:
            decision = decide(live, [(status, None) for status in known.values()], {}, now_s, writer)
        progress = live.progress if decision is None else decision.progress
        if len(terminals) > 1:  # awaited by name: some may be observed long before others
            progress = msgspec.structs.replace(progress, joined=progress.awaiting)
            row = replace(subscription, joined=tuple(sorted(progress.awaiting)))
        else:
            row = replace(subscription, awaiting=bool(progress.awaiting))
        if decision is None:
            live.progress = progress
            return live, row, owed, None
        owed += decision.owed
        if (update := decision.update) is not None:
            row = replace(
                row,
                notified=progress.notified,
                last_notified_at=update.last_notified_at,
                ended_at=update.ended_at,
                end_reason=update.end_reason,
                end_detail=update.end_detail or "",
            )
        return live, row, owed, decision._replace(progress=progress)

    async def end(
        self,
        subscription: Subscription,
        reason: EndReason,
        usage: Sequence[UsageRecord],
        *,
        on_stored: Callable[[], None],
    ) -> None:
        """Ends an active subscription in the store, then calls `on_stored`, even if the caller has left.

        Raises StoreUnavailable, having changed nothing; SubscriptionUnknown if it has ended meanwhile.
        """
        await self._run_to_completion(self._end(subscription.id, reason, usage, on_stored))

    async def _end(
        self, subscription_id: str, reason: EndReason, usage: Sequence[UsageRecord], on_stored: Callable[[], None]
    ) -> None:
        async with self._writer.lock:
            live = self._active(subscription_id)
            writer = OwedWriter(self._clock())
            update = SubscriptionUpdate(
                subscription_id=live.id,
                ended_at=writer.now,
                end_reason=reason,
                end_detail=END_TEXTS[reason],
                withdraws=reason in live.contract.withdrawn_at,
            )
            owed = writer.owe_end(live.id, live.client_id, live.contract, reason)
            audit = _audit(AuditAction.SUBSCRIPTION_CANCELLED, usage)
            await self._store.write(Changes(updates=[update], owed=owed, usage=usage, audit=audit))
            self._writer.remove(live)
            on_stored()
            self._writer.on_written(owed)

    async def change(self, change: Change) -> Subscription:
        """Makes a change of an active subscription, and returns the changed subscription. Raises as
        `SubscriptionChanger.change`; SubscriptionUnknown if the subscription has ended."""
        return await self._run_to_completion(self._change(change))

    async def _change(self, change: Change) -> Subscription:
        async with self._writer.lock:
            changed = await self._changer.change(self._active(change.subscription_id), change)
        self.on_work()
        return changed

    async def delete_client(self, client_id: str) -> list[Subscription]:
        """Deletes a client with its keys and groups; ends its subscriptions, which are returned, and its streams.

        Raises ClientUnknown, StoreUnavailable.
        """
        return await self._run_to_completion(self._delete_client(client_id))

    async def on_client_deleted(self, client_id: str) -> None:
        """As `delete_client`, for a client that another process has deleted in the store."""
        await self._run_to_completion(self._client_deleted(client_id))

    async def _delete_client(self, client_id: str) -> list[Subscription]:
        if await self._store.client(client_id) is not None:
            await self._store.delete_groups(client_id)  # before the lock is taken: it may take long
        async with self._writer.lock:
            ended = await self._store.delete_client(client_id, ClientDeletion(self._contracts, self._clock()))
            self._forget_client(client_id, [subscription.id for subscription in ended])
        return ended

    async def _client_deleted(self, client_id: str) -> None:
        async with self._writer.lock:
            active = [each.id for each in self._index.by_id.values() if each.client_id == client_id]
            self._forget_client(client_id, active)
            # Subscriptions that began here while the other process deleted the client.
            await self._store.finish_client_deletion(client_id, ClientDeletion(self._contracts, self._clock()))

    def _forget_client(self, client_id: str, ended: Iterable[str]) -> None:
        for subscription_id in ended:
            self.on_ended_in_store(subscription_id)
        self._directory.on_client_deleted(client_id)
        self._streams.end_of_client(client_id)
        self._writer.on_notifications_owed()

    def on_ended_in_store(self, subscription_id: str) -> None:
        """Removes from memory a subscription that has ended in the store."""
        live = self._index.by_id.get(subscription_id)
        if live is not None:
            self._writer.remove(live)

    def terminals_of(self, subscription_id: str) -> tuple[TerminalAddress, ...]:
        """The terminals that are watched for an active subscription now; () if it has ended."""
        live = self._index.by_id.get(subscription_id)
        return () if live is None else live.progress.terminals

    def _active(self, subscription_id: str) -> LiveSubscription:
        live = self._index.by_id.get(subscription_id)
        if live is None:
            raise SubscriptionUnknown(
                "There is no active subscription of this id. It may have ended.", subscription_id=subscription_id
            )
        return live

    async def _run_to_completion(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        task = asyncio.create_task(work, name="lifecycle")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)


def _audit(action: AuditAction, usage: Sequence[UsageRecord]) -> list[AuditEntry]:
    """The audit entries of the calls that these usage records are about."""
    return [
        AuditEntry(
            at=one.at,
            actor=one.client_id,
            action=action,
            details={"subscription": one.subscription_id, "face": one.face.value, "requester": one.requester},
        )
        for one in usage
    ]
