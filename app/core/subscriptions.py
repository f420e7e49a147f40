"""Subscriptions: clients create, list and end them, within their policies.

Invariants: a client sees and ends only its own; another client's subscription is unknown to it. Creation is idempotent
by `request_id`: the digest of the first request is kept with the subscription, and a repeated request returns the
subscription without further checks. Every call that starts or ends a subscription makes one usage record, also if it
fails, except calls that exceed the client's rate; the usage record of a success is written in the same transaction as
the subscription.

Deliberately absent: changes of active subscriptions (`subscription_changes.py`), what a subscriber is sent and
when (`live/rules.py`), and sending (`delivery/deliverer.py`).
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from app.auth.policies import Policies
from app.core.sink_secrets import before_token_ends, prepared
from app.core.subscription_lookup import check_sink, own_subscription, unknown_subscription
from app.core.subscription_requests import (
    SubscriptionRequest,
    check_names,
    digest_of,
    repeated,
)
from app.core.usage import Caller, UsageLog
from app.domain import x_correlator
from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    InvalidAddress,
    SubscriptionUnknown,
    TerminalStatusError,
)
from app.domain.filters import SubscriptionFilter, seen_by
from app.domain.operations import Face, UsageOperation
from app.domain.policy import Policy, check_count, check_criteria, duration_allowed, interval_allowed
from app.domain.records import MAX_CORRELATOR, MAX_ID, Client, Subscription
from app.domain.sink_contracts import SinkContract, SinkContracts
from app.domain.sinks import (
    EndReason,
    SinkKind,
)
from app.live.group_directory import Expansion, GroupDirectory, parse_field
from app.live.lifecycle import Lifecycle
from app.ports.delivery import Sender
from app.ports.pages import empty
from app.ports.store import ALL_ACTIVE, Page, Store


async def _nothing() -> None:
    pass


class SubscriptionService:
    """One per process."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        directory: GroupDirectory,
        policies: Policies,
        usage: UsageLog,
        senders: Mapping[SinkKind, Sender],
        contracts: SinkContracts,
        clock: Callable[[], datetime],
        require_known: Callable[[Client, TerminalAddress], Awaitable[None]],
        *,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`senders` by the kind of sink that they check; STREAM needs none. `clock` gives the time in UTC,
        `entropy(n)` gives n unguessable bytes; `require_known` is `QueryService.require_known`."""
        self.on_withdrawn: Callable[[Subscription], Callable[[], Awaitable[None]]] = lambda subscription: _nothing
        """Called with a subscription whose owed notifications were withdrawn. It returns a function that waits until no
        delivery attempt of the subscription is in flight."""
        self._store = store
        self._lifecycle = lifecycle
        self._directory = directory
        self._policies = policies
        self._usage = usage
        self._senders = senders
        self._contracts = contracts
        self._clock = clock
        self._require_known = require_known
        self._entropy = entropy

    async def create(
        self, client: Client, request: SubscriptionRequest, *, face: Face, requester: str = ""
    ) -> Subscription:
        """Starts a subscription, or returns the subscription that was started with the same `request_id`.

        Raises BusyNotSupported, CountTooLarge, DuplicateCorrelator, DurationTooLong, GatewayOverloaded,
        GroupNotAllowed, IntervalTooShort, InvalidAddress, InvalidRequest, NestedGroupNotAllowed,
        NoValidAddresses, RateLimited, RequestIdReused, SinkRefused, SinkUnreachable, StoreUnavailable,
        TooManyAddresses, TooManySubscriptions, TooManyWatchedTerminals, Unauthenticated (the client was deleted
        meanwhile), UnlimitedCountNotAllowed; with `ask_first` also TerminalUnknown and WatcherRefused.
        """
        policy = self._policies.admit(client)
        caller = Caller(client=client, face=face, requester=requester)
        expansion: Expansion | None = None
        try:
            check_names(request)
            digest = digest_of(request)
            if known := await self._store.subscription_by_request_id(client.id, request.request_id):
                return repeated(known, request)
            check_criteria(policy, request.criteria)
            invalid: dict[str, InvalidAddress] = {}
            expansion = await self._directory.expand(
                client,
                request.addresses,
                policy,
                most=policy.max_notification_addresses,
                invalid=invalid if request.skip_invalid else None,
            )
            subscription = self._made(client, request, policy, expansion, digest)
            self._lifecycle.require_room(client.id, policy.max_subscriptions)
            await check_sink(self._senders, subscription)
            if request.ask_first:
                for terminal in expansion.terminals:
                    await self._require_known(client, terminal)
            record = self._usage.make(
                UsageOperation.START_NOTIFICATION,
                caller,
                targets=request.addresses,
                expanded_count=len(expansion.terminals),
                expanded_targets=expansion.terminals if expansion.groups else (),
                correlator=request.correlator,
                subscription_id=subscription.id,
            )
            stored = await self._lifecycle.begin(
                subscription,
                expansion,
                busy_allowed=policy.busy_available,
                usage=[record],
                most=policy.max_subscriptions,
                invalid=invalid,
            )
            if stored.id != subscription.id:
                return repeated(stored, request)
        except TerminalStatusError as error:
            self._usage.record(
                self._usage.make(
                    UsageOperation.START_NOTIFICATION,
                    caller,
                    targets=request.addresses,
                    expanded_count=len(expansion.terminals) if expansion else 0,
                    expanded_targets=expansion.terminals if expansion and expansion.groups else (),
                    correlator=request.correlator,
                    result=error.code,
                    root_cause=str(error),
                )
            )
            raise
        return stored

    async def get(self, client: Client, subscription_id: str) -> Subscription:
        """One of the client's subscriptions. Ended subscriptions are found until their retention time is over.

        Raises RateLimited, StoreUnavailable, SubscriptionUnknown.
        """
        self._policies.admit(client)
        return await own_subscription(self._store, client, subscription_id)

    async def list(
        self, client: Client, page: Page, only: SubscriptionFilter = ALL_ACTIVE
    ) -> tuple[Sequence[Subscription], str]:
        """The client's (an admin: everybody's) subscriptions, oldest first, and the next page's token.

        Raises InvalidAddress, InvalidRequest (the token), RateLimited, StoreUnavailable.
        """
        self._policies.admit(client)
        if only.address:
            only = replace(only, address=parse_field(only.address, "address"))
        return await self._page(client, page, only)

    async def pages(self, client: Client, page_size: int) -> AsyncIterator[Sequence[Subscription]]:
        """All active subscriptions of `list`, page by page; the first page may be empty. All pages count as one call
        against the client's rate. Raises RateLimited, StoreUnavailable."""
        self._policies.admit(client)
        token = ""
        while True:
            found, token = await self._page(client, Page(size=page_size, token=token), ALL_ACTIVE)
            yield found
            if not token:
                return

    async def cancel(self, client: Client, subscription_id: str, *, face: Face, requester: str = "") -> None:
        """Ends a subscription. Notifications that are owed already are still sent, unless the sink's contract withdraws
        them (`withdrawn_at`): then this call waits for an attempt in flight, and nothing is sent after it returns.

        Raises RateLimited, StoreUnavailable, SubscriptionUnknown (also if it has ended).
        """
        caller = Caller(client=client, face=face, requester=requester)
        self._policies.admit(client)
        try:
            await self._end(caller, await own_subscription(self._store, client, subscription_id))
        except TerminalStatusError as error:
            self._record_end(caller, "", subscription_id[:MAX_ID], error)
            raise

    async def cancel_by_correlator(self, client: Client, correlator: str, *, face: Face, requester: str = "") -> None:
        """As `cancel`, for the client's active subscription with this correlator."""
        caller = Caller(client=client, face=face, requester=requester)
        self._policies.admit(client)
        try:
            found = None
            if 0 < len(correlator) <= MAX_CORRELATOR:
                found = await self._store.subscription_by_correlator(client.id, correlator)
            if found is None:
                raise SubscriptionUnknown(
                    "There is no active subscription with this correlator. It may have ended.", field="correlator"
                )
            await self._end(caller, found)
        except TerminalStatusError as error:
            self._record_end(caller, correlator, "", error)
            raise

    def default_duration_ms(self, client: Client) -> int | None:
        """The duration of a subscription without a requested duration, in milliseconds; None is unlimited."""
        return duration_allowed(self._policies.of(client), None)

    async def delete_client(self, client_id: str) -> int:
        """Deletes a client with its keys and groups; ends its streams and its subscriptions; returns how many.

        For operators. Raises ClientUnknown, StoreUnavailable.
        """
        return len(await self._lifecycle.delete_client(client_id))

    def _made(
        self, client: Client, request: SubscriptionRequest, policy: Policy, expansion: Expansion, digest: str
    ) -> Subscription:
        interval_ms = interval_allowed(policy, request.min_interval_ms, named=request.interval_named)
        check_count(policy, request.count)
        duration_ms = duration_allowed(policy, request.duration_ms)
        now = self._clock()
        return Subscription(
            id=secrets.token_hex(16),
            client_id=client.id,
            addresses=expansion.addresses,
            groups=expansion.groups,
            criteria=request.criteria,
            check_immediate=request.check_immediate,
            min_interval_ms=interval_ms,
            max_notifications=request.count,
            created_at=now,
            expires_at=before_token_ends(
                None if duration_ms is None else now + timedelta(milliseconds=duration_ms), request.sink, now
            ),
            sink=prepared(request.sink, digest, self._entropy, callback_version=client.soap_callback_version),
            correlator=request.correlator,
            request_id=request.request_id,
            x_correlator=x_correlator.current_text(),
        )

    async def _page(self, client: Client, page: Page, only: SubscriptionFilter) -> tuple[Sequence[Subscription], str]:
        seen = seen_by(client, only)
        return empty(page) if seen is None else await self._store.subscriptions(page, seen)

    def _contract_of(self, subscription: Subscription) -> SinkContract:
        return self._contracts.of(subscription.sink.kind, subscription.sink.profile)

    async def _end(self, caller: Caller, subscription: Subscription) -> None:
        if not subscription.active:
            raise unknown_subscription(subscription.id)
        terminals = self._lifecycle.terminals_of(subscription.id)
        record = self._usage.make(
            UsageOperation.END_NOTIFICATION,
            caller,
            targets=subscription.addresses,
            expanded_count=len(terminals),
            expanded_targets=terminals if subscription.groups else (),
            correlator=subscription.correlator,
            subscription_id=subscription.id,
        )
        in_flight: list[Callable[[], Awaitable[None]]] = []

        def on_stored() -> None:
            if EndReason.CANCELLED in self._contract_of(subscription).withdrawn_at:
                in_flight.append(self.on_withdrawn(subscription))

        await self._lifecycle.end(subscription, EndReason.CANCELLED, [record], on_stored=on_stored)
        for attempts_end in in_flight:
            await attempts_end()

    def _record_end(self, caller: Caller, correlator: str, subscription_id: str, error: TerminalStatusError) -> None:
        self._usage.record(
            self._usage.make(
                UsageOperation.END_NOTIFICATION,
                caller,
                correlator=correlator,
                subscription_id=subscription_id,
                result=error.code,
                root_cause=str(error),
            )
        )
