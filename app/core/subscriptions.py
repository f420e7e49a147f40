"""Subscriptions of applications: made, shown, prolonged and ended, within their policies.

Invariants: a client sees and ends its own only; another's is unknown to it. Creation is idempotent by `request_id`:
the first request's digest is kept with the subscription, and nothing is looked at again for the same request.
A change of a webhook's signing secret is audited, in the transaction that makes it.
Every start and end leaves one usage record, failed ones too, but for those that were refused for their rate; that of a
success is written in the transaction that makes it.

Deliberately absent: what a subscription is told and when (`rules.py`), and sending (`deliverer.py`).
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
from app.domain.sinks import (
    HIDDEN_PARAMETERS,
    MAX_SECRETS,
    PROFILE_CAMARA,
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
    withdraws,
)
from app.domain.statuses import Status
from app.live.engine import Engine
from app.live.group_directory import Expansion, GroupDirectory
from app.ports import Page, Sender, Store

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


async def _nothing() -> None:
    pass


class SubscriptionService:
    """Makes, shows, prolongs and ends subscriptions. One per process."""

    def __init__(
        self,
        store: Store,
        watching: Engine,
        groups: GroupDirectory,
        policies: Policies,
        usage: UsageLog,
        senders: Mapping[SinkKind, Sender],
        clock: Callable[[], datetime],
        *,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        sink_changed: Callable[[Subscription], None] = lambda subscription: None,
        withdrawn: Callable[[Subscription], Callable[[], Awaitable[None]]] = lambda subscription: _nothing,
    ) -> None:
        """`senders` by the kind of sink that they check; STREAM needs none. `clock` gives the time in UTC, `entropy`
        so many unguessable bytes. `sink_changed` is told of a subscription whose sink is another in the store;
        `withdrawn` of one that is owed nothing more, and what it returns is awaited until none of its attempts is in
        flight."""
        self._store = store
        self._watching = watching
        self._groups = groups
        self._policies = policies
        self._usage = usage
        self._senders = senders
        self._clock = clock
        self._entropy = entropy
        self._sink_changed = sink_changed
        self._withdrawn = withdrawn

    async def create(
        self, client: Client, request: SubscriptionRequest, *, face: str, requester: str = ""
    ) -> Subscription:
        """Starts a subscription, or returns the one that was made with the same `request_id`.

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
            expansion = await self._groups.expand(
                client, request.addresses, policy, most=policy.max_notification_addresses
            )
            subscription = self._made(client, request, policy, expansion, digest)
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
        """One of the client's subscriptions, an ended one for as long as it is kept.

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
        """All active ones that `list` gives, by pages; the first may be empty. All of it is one call, so that a rate
        does not cut it off. Raises RateLimited, StoreUnavailable."""
        self._policies.admit(client)
        token = ""
        while True:
            found, token = await self._page(client, Page(size=page_size, token=token), active_only=True)
            yield found
            if not token:
                return

    async def cancel(self, client: Client, subscription_id: str, *, face: str, requester: str = "") -> None:
        """Ends a subscription. What is owed already is still delivered to webhooks; to a SOAP endpoint nothing is sent
        any more when this returns, for which an attempt that is in flight is waited for.

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
        """Lets an active subscription last for a new duration from now (0: the policy's default), but no longer than
        its endpoint's access token.

        Raises DurationTooLong, InvalidRequest (also where the default is for ever), NotPermitted (CAMARA's),
        RateLimited, SinkRefused (the token ends now), StoreUnavailable, SubscriptionUnknown.
        """
        policy = self._policies.admit(client)
        duration = duration_allowed(policy, duration_ms)
        if duration is None:
            raise InvalidRequest("Name a duration.", field="duration")
        subscription = await self._own(client, subscription_id)
        if not subscription.active:
            raise _unknown()
        if subscription.sink.profile == PROFILE_CAMARA:
            raise NotPermitted("A subscription of CAMARA's lasts as long as it was asked for; make another.")
        now = self._clock()
        expires_at = _within_token(now + timedelta(milliseconds=duration), subscription.sink, now)
        if expires_at is not None:
            await self._watching.enrolment.prolong(subscription, expires_at, who=client.id)
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
        """Gives a webhook of profile v1 a new signing secret: `secret`, or one that is made here and returned ("" is
        returned where none is made). Every attempt from now on is signed with it and with the one before.

        With `drop_old` only the newest signs from now on; then none is made where `secret` is empty. A secret that is
        the newest already stays that, and the one before stays too, so that a call that names it may be repeated.

        Raises RateLimited, SinkRefused (a secret that is none: reason `secret`; a sink that is not signed: `profile`),
        StoreUnavailable, SubscriptionUnknown (also where it has ended).
        """
        self._policies.admit(client)
        subscription = await self._own(client, subscription_id)
        if not subscription.active:
            raise _unknown()
        if subscription.sink.kind is not SinkKind.WEBHOOK or subscription.sink.profile not in SIGNED_PROFILES:
            raise SinkRefused("Only webhooks of profile v1 are signed.", reason="profile")
        if secret:
            read_secret(secret)
        made = "" if secret or drop_old else signing_secret(self._entropy(SECRET_BYTES))
        details = {"subscription": subscription.id, "face": face, "requester": requester}
        what = "subscription secret rotated" if secret or made else "old subscription secret dropped"
        if drop_old and secret:
            details["old"] = "dropped"
        stored = await self._watching.enrolment.change_sink(
            subscription,
            lambda sink: _rotated(sink, secret or made, drop_old=drop_old),
            [AuditEntry(at=self._clock(), who=client.id, what=what, details=details)],
            self._sink_changed,
        )
        return stored, made

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
        """The sink with what is kept beside it, and with a signing secret where it needs one and has none.

        Raises SinkRefused.
        """
        if own := sorted(sink.parameters.keys() & set(HIDDEN_PARAMETERS)):
            raise SinkRefused(f"{own[0]} is no parameter that can be named.", field="sink", reason="parameter")
        if sink.kind is SinkKind.STREAM and (sink.url or sink.profile or sink.parameters):
            raise SinkRefused(
                "A sink of kind STREAM goes nowhere, so it has neither URL nor profile nor parameters.",
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
            raise SinkRefused(f"Notifications by {kind.name} are not offered here.", field="sink")
        await sender.check(subscription)

    async def _page(self, client: Client, page: Page, *, active_only: bool) -> tuple[Sequence[Subscription], str]:
        return await self._store.subscriptions(None if client.admin else client.id, page, active_only=active_only)

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

        def stored() -> None:
            if withdraws(subscription.sink.kind, EndReason.CANCELLED):
                in_flight.append(self._withdrawn(subscription))

        await self._watching.enrolment.finish(subscription, EndReason.CANCELLED, [record], stored=stored)
        for ended in in_flight:
            await ended()

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


def _rotated(sink: Sink, newest: str, *, drop_old: bool) -> Sink:
    """The sink with `newest` ("": the newest it has) before its other secrets."""
    kept = sink.parameters.get(SINK_SECRETS, "").split()
    if newest:
        kept = [newest, *[one for one in kept if read_secret(one) != read_secret(newest)]]
    kept = kept[: 1 if drop_old else MAX_SECRETS]
    return replace(sink, parameters={**sink.parameters, SINK_SECRETS: " ".join(kept)}) if kept else sink


def made_secret(subscription: Subscription) -> str:
    """The signing secret that was made when the subscription was, as long as it is the newest; "" for none."""
    newest = subscription.sink.parameters.get(SINK_SECRETS, "").partition(" ")[0]
    return newest if newest and _sha256(newest) == subscription.sink.parameters.get(SINK_MADE) else ""


def _digest_of(request: SubscriptionRequest) -> str:
    """The same for the same request, however its addresses are written; "" for one without a request id."""
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
    """What the first request made, for the same one again. Raises RequestIdReused."""
    require_readable(known.sink)
    if known.sink.parameters.get(SINK_REQUEST) != digest:
        raise RequestIdReused("The request id was used before, for another request.", field="request_id")
    return known


def _within_token(expires_at: datetime | None, sink: Sink, now: datetime) -> datetime | None:
    """The end of a subscription, not after TOKEN_LEAD before its endpoint's access token. Raises SinkRefused."""
    token_ends = token_ends_at(sink) if sink.kind is SinkKind.WEBHOOK and sink.parameters.get(SINK_TOKEN) else None
    if token_ends is None:
        return expires_at
    if token_ends - TOKEN_LEAD <= now:
        raise SinkRefused("The endpoint's access token has expired, or is about to.", reason="token-expired")
    return token_ends - TOKEN_LEAD if expires_at is None else min(expires_at, token_ends - TOKEN_LEAD)


def _unknown() -> SubscriptionUnknown:
    return SubscriptionUnknown("There is no such subscription.", field="subscription_id")
