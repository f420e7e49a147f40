"""Subscriptions: clients create, list, renew and end them, within their policies.

Invariants: a client sees and ends only its own; another client's subscription is unknown to it. Creation is idempotent
by `request_id`: the digest of the first request is kept with the subscription, and the same request again returns it
without further checks. A change of a webhook's signing secret is audited in the transaction that makes it. Every start
and end makes one usage record, failed ones too, except calls that exceed the client's rate; the record of a success is
written in the transaction that makes it.

Deliberately absent: what a subscriber is sent and when (`live/rules.py`), and sending (`delivery/deliverer.py`).
"""

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.auth.policies import Policies
from app.core.usage import END_NOTIFICATION, START_NOTIFICATION, Caller, UsageLog
from app.domain.addresses import canonical
from app.domain.errors import (
    InvalidRequest,
    NotPermitted,
    RequestIdReused,
    SinkRefused,
    SubscriptionUnknown,
    TerminalStatusError,
)
from app.domain.policy import Policy, check_count, check_criteria, duration_allowed, interval_allowed
from app.domain.records import MAX_CORRELATOR, MAX_ID, AuditEntry, Client, Subscription
from app.domain.sink_contracts import SinkContract, SinkContracts
from app.domain.sinks import (
    HIDDEN_PARAMETERS,
    MAX_SECRETS,
    SECRET_BYTES,
    SIGNED_PROFILES,
    SINK_MADE,
    SINK_REQUEST,
    SINK_SECRETS,
    SINK_TOKEN,
    TOKEN_LEAD,
    EndReason,
    Sink,
    SinkKind,
    read_secret,
    require_readable,
    signing_secret,
    token_ends_at,
)
from app.domain.statuses import Status
from app.live.group_directory import Expansion, GroupDirectory
from app.live.lifecycle import Lifecycle
from app.ports import Page, Sender, Store

NO_SINK = Sink(kind=SinkKind.STREAM)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRequest:
    """What a client asks for. The fields are as those of `Subscription`."""

    addresses: Sequence[str]
    criteria: frozenset[Status] = frozenset()
    check_immediate: bool = False
    min_interval_ms: int = 0
    """0 is the policy's minimum, unless `interval_named`."""
    interval_named: bool = False
    """Whether the face has no way to omit the interval: then 0 asks for no interval, and is refused if the policy has a
    minimum."""
    duration_ms: int | None = None
    """None and 0 ask for the policy's default."""
    count: int = 0
    """0 is unlimited."""
    sink: Sink = NO_SINK
    correlator: str = ""
    request_id: str = ""


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
        *,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`senders` by the kind of sink that they check; STREAM needs none. `clock` gives the time in UTC,
        `entropy(n)` gives n unguessable bytes."""
        self.on_sink_changed: Callable[[Subscription], None] = lambda subscription: None
        """Called with a subscription whose sink was replaced in the store; may not block or raise."""
        self.on_withdrawn: Callable[[Subscription], Callable[[], Awaitable[None]]] = lambda subscription: _nothing
        """Called with a subscription to which nothing more is sent. The function it returns waits until no delivery
        attempt of the subscription is in flight."""
        self._store = store
        self._lifecycle = lifecycle
        self._directory = directory
        self._policies = policies
        self._usage = usage
        self._senders = senders
        self._contracts = contracts
        self._clock = clock
        self._entropy = entropy

    async def create(
        self, client: Client, request: SubscriptionRequest, *, face: str, requester: str = ""
    ) -> Subscription:
        """Starts a subscription, or returns the one that was started with the same `request_id`.

        Raises BusyNotSupported, CountTooLarge, DuplicateCorrelator, DurationTooLong, GatewayOverloaded,
        GroupNotAllowed, IntervalTooShort, InvalidAddress, InvalidRequest, NestedGroupNotAllowed,
        NoValidAddresses, RateLimited, RequestIdReused, SinkRefused, SinkUnreachable, StoreUnavailable,
        TooManyAddresses, TooManySubscriptions, TooManyWatchedTerminals, Unauthenticated (the client was deleted
        meanwhile), UnlimitedCountNotAllowed.
        """
        policy = self._policies.admit(client)
        caller = Caller(client=client, face=face, requester=requester)
        expansion: Expansion | None = None
        try:
            _check_names(request)
            digest = _digest_of(request)
            if known := await self._store.subscription_by_request_id(client.id, request.request_id):
                return _repeated(known, digest)
            check_criteria(policy, request.criteria)
            expansion = await self._directory.expand(
                client, request.addresses, policy, most=policy.max_notification_addresses
            )
            subscription = self._made(client, request, policy, expansion, digest)
            self._lifecycle.require_room(client.id, policy.max_subscriptions)
            await self._check_sink(subscription)
            record = self._usage.make(
                START_NOTIFICATION,
                caller,
                targets=request.addresses,
                expanded_count=len(expansion.terminals),
                correlator=request.correlator,
                subscription_id=subscription.id,
            )
            stored = await self._lifecycle.begin(
                subscription,
                expansion,
                busy_allowed=policy.busy_available,
                usage=[record],
                most=policy.max_subscriptions,
            )
            if stored.id != subscription.id:
                return _repeated(stored, digest)
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
        """One of the client's subscriptions. Ended ones are found until the retention time deletes them.

        Raises RateLimited, StoreUnavailable, SubscriptionUnknown.
        """
        self._policies.admit(client)
        return await self._own(client, subscription_id)

    async def list(self, client: Client, page: Page, *, active_only: bool = True) -> tuple[Sequence[Subscription], str]:
        """The client's (an admin: everybody's) subscriptions, oldest first, and the next page's token.

        Raises InvalidRequest (the token), RateLimited, StoreUnavailable.
        """
        self._policies.admit(client)
        return await self._page(client, page, active_only=active_only)

    async def pages(self, client: Client, page_size: int) -> AsyncIterator[Sequence[Subscription]]:
        """All active subscriptions, in the pages of `list`; the first page may be empty. It counts as one call, so that
        the client's rate does not cut it off. Raises RateLimited, StoreUnavailable."""
        self._policies.admit(client)
        token = ""
        while True:
            found, token = await self._page(client, Page(size=page_size, token=token), active_only=True)
            yield found
            if not token:
                return

    async def cancel(self, client: Client, subscription_id: str, *, face: str, requester: str = "") -> None:
        """Ends a subscription. Webhooks are still sent what is owed already. If the sink's contract withdraws it
        (`withdrawn_at`), nothing more is sent after this call returns: it waits for an attempt in flight.

        Raises RateLimited, StoreUnavailable, SubscriptionUnknown (also if it has ended).
        """
        caller = Caller(client=client, face=face, requester=requester)
        self._policies.admit(client)
        try:
            await self._end(caller, await self._own(client, subscription_id))
        except TerminalStatusError as error:
            self._record_end(caller, "", subscription_id[:MAX_ID], error)
            raise

    async def cancel_by_correlator(self, client: Client, correlator: str, *, face: str, requester: str = "") -> None:
        """As `cancel`, for the active subscription of this correlator."""
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

    async def renew(self, client: Client, subscription_id: str, duration_ms: int) -> Subscription:
        """Renews an active subscription for a duration from now (0: the policy's default), but not beyond the end of
        its endpoint's access token.

        Raises DurationTooLong, InvalidRequest (also if the default is unlimited), NotPermitted (its sink's contract),
        RateLimited, SinkRefused (the token ends now), StoreUnavailable, SubscriptionUnknown.
        """
        policy = self._policies.admit(client)
        duration = duration_allowed(policy, duration_ms)
        if duration is None:
            raise InvalidRequest(
                "`duration` is missing: subscriptions have no default duration here.", field="duration"
            )
        subscription = await self._own(client, subscription_id)
        if not subscription.active:
            raise _unknown()
        if not self._contract_of(subscription).renewable:
            raise NotPermitted(
                f"Subscriptions with the profile {subscription.sink.profile} cannot be renewed; create another."
            )
        now = self._clock()
        expires_at = _within_token(now + timedelta(milliseconds=duration), subscription.sink, now)
        if expires_at is not None:
            await self._lifecycle.renew(subscription, expires_at, who=client.id)
        return await self._own(client, subscription_id)

    async def rotate_secret(
        self,
        client: Client,
        subscription_id: str,
        *,
        secret: str = "",
        drop_old: bool = False,
        face: str,
        requester: str = "",
    ) -> tuple[Subscription, str]:
        """Gives a webhook of profile v1 a new signing secret: `secret`, or a generated one, which is returned
        (otherwise "" is returned). Every later attempt is signed with the new secret and with the previous one.

        With `drop_old` only the newest secret signs later attempts; then none is generated if `secret` is empty. A call
        that repeats the newest secret changes nothing, so it may be repeated.

        Raises RateLimited, SinkRefused (a bad secret: reason `secret`; a sink that is not signed: `profile`),
        StoreUnavailable, SubscriptionUnknown (also if it has ended).
        """
        self._policies.admit(client)
        subscription = await self._own(client, subscription_id)
        if not subscription.active:
            raise _unknown()
        if subscription.sink.kind is not SinkKind.WEBHOOK or subscription.sink.profile not in SIGNED_PROFILES:
            raise SinkRefused(
                "Only webhooks with the profile v1 are signed; this subscription has another sink.", reason="profile"
            )
        if secret:
            read_secret(secret)
        made = "" if secret or drop_old else signing_secret(self._entropy(SECRET_BYTES))
        details = {"subscription": subscription.id, "face": face, "requester": requester}
        what = "subscription secret rotated" if secret or made else "old subscription secret dropped"
        if drop_old and secret:
            details["old"] = "dropped"
        stored = await self._lifecycle.change_sink(
            subscription,
            lambda sink: _rotated(sink, secret or made, drop_old=drop_old),
            [AuditEntry(at=self._clock(), who=client.id, what=what, details=details)],
            self.on_sink_changed,
        )
        return stored, made

    def default_duration_ms(self, client: Client) -> int | None:
        """The duration of a subscription that asks for none, in milliseconds; None is unlimited."""
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
            expires_at=_within_token(
                None if duration_ms is None else now + timedelta(milliseconds=duration_ms), request.sink, now
            ),
            sink=self._completed(request.sink, digest),
            correlator=request.correlator,
            request_id=request.request_id,
        )

    def _completed(self, sink: Sink, digest: str) -> Sink:
        """The sink with the parameters that the gateway adds, and with a signing secret if it needs one.

        Raises SinkRefused.
        """
        if own := sorted(sink.parameters.keys() & set(HIDDEN_PARAMETERS)):
            raise SinkRefused(
                f"The sink parameter {own[0]} is reserved for the gateway; leave it out.",
                field="sink",
                reason="parameter",
            )
        if sink.kind is SinkKind.STREAM and (sink.url or sink.profile or sink.parameters):
            raise SinkRefused(
                "A sink of kind STREAM has no endpoint: leave out URL, profile and parameters.",
                field="sink",
                reason="kind",
            )
        added = {SINK_REQUEST: digest} if digest else {}
        if sink.kind is SinkKind.WEBHOOK and sink.profile in SIGNED_PROFILES and not sink.parameters.get(SINK_SECRETS):
            secret = signing_secret(self._entropy(SECRET_BYTES))
            added |= {SINK_SECRETS: secret, SINK_MADE: _sha256(secret)}
        return replace(sink, parameters={**sink.parameters, **added})

    async def _check_sink(self, subscription: Subscription) -> None:
        kind = subscription.sink.kind
        if kind is SinkKind.STREAM:
            return
        sender = self._senders.get(kind)
        if sender is None:
            raise SinkRefused(f"This gateway does not offer notifications by {kind.name}.", field="sink")
        await sender.check(subscription)

    async def _page(self, client: Client, page: Page, *, active_only: bool) -> tuple[Sequence[Subscription], str]:
        return await self._store.subscriptions(None if client.admin else client.id, page, active_only=active_only)

    def _contract_of(self, subscription: Subscription) -> SinkContract:
        return self._contracts.of(subscription.sink.kind, subscription.sink.profile)

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
        raise InvalidRequest(f"`correlator` is longer than {MAX_CORRELATOR} characters.", field="correlator")
    if len(request.request_id) > MAX_ID:
        raise InvalidRequest(f"`request_id` is longer than {MAX_ID} characters.", field="request_id")


def _rotated(sink: Sink, newest: str, *, drop_old: bool) -> Sink:
    """The sink with `newest` before its other secrets; "" keeps its newest secret."""
    kept = sink.parameters.get(SINK_SECRETS, "").split()
    if newest:
        kept = [newest, *[one for one in kept if read_secret(one) != read_secret(newest)]]
    kept = kept[: 1 if drop_old else MAX_SECRETS]
    return replace(sink, parameters={**sink.parameters, SINK_SECRETS: " ".join(kept)}) if kept else sink


def made_secret(subscription: Subscription) -> str:
    """The signing secret that the gateway made for the subscription, while it is the newest; otherwise ""."""
    newest = subscription.sink.parameters.get(SINK_SECRETS, "").partition(" ")[0]
    return newest if newest and _sha256(newest) == subscription.sink.parameters.get(SINK_MADE) else ""


def _digest_of(request: SubscriptionRequest) -> str:
    """A digest of the request, whose addresses count in canonical form; "" without a request id."""
    if not request.request_id:
        return ""
    sink = request.sink
    asked = [
        [*dict.fromkeys([canonical(address) for address in request.addresses])],
        sorted([status.value for status in request.criteria]),
        [request.check_immediate, request.min_interval_ms, request.duration_ms or 0, request.count, request.correlator],
        [sink.kind.value, sink.url, sink.profile, sorted(sink.parameters.items())],
    ]
    return _sha256(json.dumps(asked))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _repeated(known: Subscription, digest: str) -> Subscription:
    """The subscription of the first request, for the same request again. Raises RequestIdReused."""
    require_readable(known.sink)
    if known.sink.parameters.get(SINK_REQUEST) != digest:
        raise RequestIdReused(
            "`request_id` was used before for a different request; use a new one.", field="request_id"
        )
    return known


def _within_token(expires_at: datetime | None, sink: Sink, now: datetime) -> datetime | None:
    """The end of a subscription, but TOKEN_LEAD before its endpoint's access token ends. Raises SinkRefused."""
    token_ends = token_ends_at(sink) if sink.kind is SinkKind.WEBHOOK and sink.parameters.get(SINK_TOKEN) else None
    if token_ends is None:
        return expires_at
    if token_ends - TOKEN_LEAD <= now:
        raise SinkRefused(
            "The endpoint's access token has expired or is about to; send a newer one.", reason="token-expired"
        )
    return token_ends - TOKEN_LEAD if expires_at is None else min(expires_at, token_ends - TOKEN_LEAD)


def _unknown() -> SubscriptionUnknown:
    return SubscriptionUnknown(
        "There is no such subscription, or it belongs to another client.", field="subscription_id"
    )
