"""Subscriptions of applications: made, shown, prolonged and ended, within their policies.

Invariants: a client sees and ends its own only; another's is unknown to it. Creation is idempotent by `request_id`.
Every start and end leaves one usage record, failed ones too, but for those that were refused for their rate; that of a
success is written in the transaction that makes it.

Deliberately absent: what a subscription is told and when (`standing.py`), and sending (`delivery.py`).
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.core.groups import Expansion, GroupService
from app.core.policy import Policies, Policy, check_count, check_criteria, duration_allowed, interval_allowed
from app.core.usage import END_NOTIFICATION, START_NOTIFICATION, Caller, UsageLog
from app.core.watching import Watching
from app.domain import (
    InvalidRequest,
    RequestIdReused,
    SinkRefused,
    Status,
    SubscriptionUnknown,
    TerminalStatusError,
)
from app.ports import Page, Sender, Store
from app.records import MAX_ID, Client, EndReason, Sink, SinkKind, Subscription

MAX_CORRELATOR = 255
"""Longest correlator, in characters."""

NO_SINK = Sink(kind=SinkKind.STREAM)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRequest:
    """What an application asks for; as the fields of `Subscription` of the same names."""

    addresses: Sequence[str]
    criteria: frozenset[Status] = frozenset()
    check_immediate: bool = False
    min_interval_ms: int = 0
    """0 is the policy's least, but see `interval_named`."""
    interval_named: bool = False
    """The face cannot leave the interval out: 0 was asked for, and is too short where the policy has a least."""
    duration_ms: int | None = None
    """None and 0 are the policy's default."""
    count: int = 0
    """0 is unlimited."""
    sink: Sink = NO_SINK
    correlator: str = ""
    request_id: str = ""


class SubscriptionService:
    """Makes, shows, prolongs and ends subscriptions. One per process."""

    def __init__(
        self,
        store: Store,
        watching: Watching,
        groups: GroupService,
        policies: Policies,
        usage: UsageLog,
        senders: Mapping[SinkKind, Sender],
        clock: Callable[[], datetime],
        *,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        """`senders` by the kind of sink that they check; STREAM needs none. `clock` gives the time in UTC."""
        self._store = store
        self._watching = watching
        self._groups = groups
        self._policies = policies
        self._usage = usage
        self._senders = senders
        self._clock = clock
        self._new_id = new_id

    async def create(
        self, client: Client, request: SubscriptionRequest, *, face: str, requester: str = ""
    ) -> Subscription:
        """Starts a subscription, or returns the one that was made with the same `request_id`.

        Raises BusyNotSupported, CountTooLarge, DuplicateCorrelator, DurationTooLong, GatewayOverloaded,
        GroupNotAllowed, IntervalTooShort, InvalidAddress, InvalidRequest, NestedGroupNotAllowed,
        NoValidAddresses, RateLimited, RequestIdReused, SinkRefused, SinkUnreachable, StoreUnavailable,
        TooManyAddresses, TooManySubscriptions, UnlimitedCountNotAllowed.
        """
        policy = self._policies.admit(client)
        caller = Caller(client=client, face=face, requester=requester)
        expansion: Expansion | None = None
        try:
            _check_names(request)
            check_criteria(policy, request.criteria)
            expansion = await self._groups.expand(
                client, request.addresses, policy, "addresses", most=policy.max_notification_addresses
            )
            subscription = self._made(client, request, policy, expansion)
            self._watching.enrolment.require_room(client.id, policy.max_subscriptions)
            await self._check_sink(subscription)
            record = self._usage.make(
                START_NOTIFICATION,
                caller,
                targets=request.addresses,
                expanded_count=len(expansion.terminals),
                correlator=request.correlator,
                subscription_id=subscription.id,
            )
            stored = await self._watching.enrolment.begin(
                subscription, expansion, busy=policy.busy_available, usage=[record], most=policy.max_subscriptions
            )
            if stored.id != subscription.id and not _same(stored, subscription):
                raise RequestIdReused("The request id was used before, for another request.", field="request_id")
        except TerminalStatusError as error:
            self._usage.record(
                self._usage.make(
                    START_NOTIFICATION,
                    caller,
                    targets=request.addresses,
                    expanded_count=len(expansion.terminals) if expansion else 0,
                    correlator=request.correlator,
                    result=error.code,
                    root_cause=str(error),
                )
            )
            raise
        return stored

    async def get(self, client: Client, subscription_id: str) -> Subscription:
        """One of the client's subscriptions, an ended one for as long as it is kept.

        Raises RateLimited, StoreUnavailable, SubscriptionUnknown.
        """
        self._policies.admit(client)
        return await self._own(client, subscription_id)

    async def list(self, client: Client, page: Page, *, active_only: bool = True) -> tuple[list[Subscription], str]:
        """The client's (an admin: everybody's) subscriptions, oldest first, and the next page's token.

        Raises InvalidRequest (the token), RateLimited, StoreUnavailable.
        """
        self._policies.admit(client)
        return await self._store.subscriptions(None if client.admin else client.id, page, active_only=active_only)

    async def cancel(self, client: Client, subscription_id: str, *, face: str, requester: str = "") -> None:
        """Ends a subscription; what is owed already is still delivered.

        Raises RateLimited, StoreUnavailable, SubscriptionUnknown (also where it has ended).
        """
        caller = Caller(client=client, face=face, requester=requester)
        self._policies.admit(client)
        try:
            await self._end(caller, await self._own(client, subscription_id))
        except TerminalStatusError as error:
            self._record_end(caller, "", subscription_id[:MAX_ID], error)
            raise

    async def cancel_by_correlator(self, client: Client, correlator: str, *, face: str, requester: str = "") -> None:
        """As `cancel`, by the name that the application gave it."""
        caller = Caller(client=client, face=face, requester=requester)
        self._policies.admit(client)
        try:
            found = None
            if 0 < len(correlator) <= MAX_CORRELATOR:
                found = await self._store.subscription_by_correlator(client.id, correlator)
            if found is None:
                raise SubscriptionUnknown("There is no active subscription of this correlator.", field="correlator")
            await self._end(caller, found)
        except TerminalStatusError as error:
            self._record_end(caller, correlator, "", error)
            raise

    async def renew(self, client: Client, subscription_id: str, duration_ms: int) -> Subscription:
        """Lets an active subscription last for a new duration from now (0: the policy's default).

        Raises DurationTooLong, InvalidRequest (also where the default is for ever), RateLimited, StoreUnavailable,
        SubscriptionUnknown.
        """
        policy = self._policies.admit(client)
        duration = duration_allowed(policy, duration_ms)
        if duration is None:
            raise InvalidRequest("Name a duration.", field="duration")
        subscription = await self._own(client, subscription_id)
        if not subscription.active:
            raise _unknown()
        await self._watching.enrolment.prolong(subscription, self._clock() + timedelta(milliseconds=duration))
        return await self._own(client, subscription_id)

    def default_duration_ms(self, client: Client) -> int | None:
        """How long a subscription lasts that names no duration, in milliseconds; None is for ever."""
        return duration_allowed(self._policies.of(client), None)

    async def delete_client(self, client_id: str) -> int:
        """Deletes a client with its keys and groups; ends its subscriptions, whose number is returned, and its streams.

        For operators' use. Raises ClientUnknown, StoreUnavailable.
        """
        return len(await self._watching.enrolment.delete_client(client_id))

    async def client_gone(self, client_id: str) -> None:
        """Says that another process has deleted the client in the store: its subscriptions' ends are told, and its
        streams end."""
        await self._watching.enrolment.client_gone(client_id)

    def ended(self, subscription_id: str) -> None:
        """Says that delivery has ended the subscription in the store (SINK_GONE, TOKEN_EXPIRED)."""
        self._watching.enrolment.forget(subscription_id)

    def _made(self, client: Client, request: SubscriptionRequest, policy: Policy, expansion: Expansion) -> Subscription:
        interval_ms = interval_allowed(policy, request.min_interval_ms, named=request.interval_named)
        check_count(policy, request.count)
        duration_ms = duration_allowed(policy, request.duration_ms)
        now = self._clock()
        return Subscription(
            id=self._new_id(),
            client_id=client.id,
            addresses=expansion.addresses,
            criteria=request.criteria,
            check_immediate=request.check_immediate,
            min_interval_ms=interval_ms,
            max_notifications=request.count,
            created_at=now,
            expires_at=None if duration_ms is None else now + timedelta(milliseconds=duration_ms),
            sink=request.sink,
            correlator=request.correlator,
            request_id=request.request_id,
        )

    async def _check_sink(self, subscription: Subscription) -> None:
        kind = subscription.sink.kind
        if kind is SinkKind.STREAM:
            return
        sender = self._senders.get(kind)
        if sender is None:
            raise SinkRefused(f"Notifications by {kind.name} are not offered here.", field="sink")
        await sender.check(subscription)

    async def _own(self, client: Client, subscription_id: str) -> Subscription:
        found = await self._store.subscription(subscription_id) if 0 < len(subscription_id) <= MAX_ID else None
        if found is None or (found.client_id != client.id and not client.admin):
            raise _unknown()
        return found

    async def _end(self, caller: Caller, subscription: Subscription) -> None:
        if not subscription.active:
            raise _unknown()
        record = self._usage.make(
            END_NOTIFICATION,
            caller,
            targets=subscription.addresses,
            correlator=subscription.correlator,
            subscription_id=subscription.id,
        )
        await self._watching.enrolment.finish(subscription, EndReason.CANCELLED, [record])

    def _record_end(self, caller: Caller, correlator: str, subscription_id: str, error: TerminalStatusError) -> None:
        self._usage.record(
            self._usage.make(
                END_NOTIFICATION,
                caller,
                correlator=correlator,
                subscription_id=subscription_id,
                result=error.code,
                root_cause=str(error),
            )
        )


def _check_names(request: SubscriptionRequest) -> None:
    if len(request.correlator) > MAX_CORRELATOR:
        raise InvalidRequest(f"The correlator is longer than {MAX_CORRELATOR} characters.", field="correlator")
    if len(request.request_id) > MAX_ID:
        raise InvalidRequest(f"The request id is longer than {MAX_ID} characters.", field="request_id")


def _same(stored: Subscription, asked: Subscription) -> bool:
    """Whether both were made for the same request: what it did not name may have another default by now."""
    return (
        stored.addresses == asked.addresses
        and stored.criteria == asked.criteria
        and stored.check_immediate == asked.check_immediate
        and stored.min_interval_ms == asked.min_interval_ms
        and stored.max_notifications == asked.max_notifications
        and stored.correlator == asked.correlator
        and (stored.sink.kind, stored.sink.url, stored.sink.profile)
        == (asked.sink.kind, asked.sink.url, asked.sink.profile)
    )


def _unknown() -> SubscriptionUnknown:
    return SubscriptionUnknown("There is no such subscription.", field="subscription_id")
