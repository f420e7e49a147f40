"""Changes of active subscriptions: their addresses, criteria, expiry, sink and signing secret.

Invariants: a client changes only its own subscriptions; an operator's change keeps to the owner's policy. Each change
is audited in the transaction that stores it; with an etag, it is made only if the subscription still has this etag.

Deliberately absent: storing a change and applying it in memory (`live/changing.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from app.auth.clients import DEFAULT_OVERLAP_S, MAX_OVERLAP_S
from app.auth.policies import Policies
from app.core.sink_secrets import before_token_ends, checked, moved, rotated
from app.core.subscription_lookup import check_sink, own_subscription, unknown_subscription
from app.core.subscription_requests import SubscriptionChange
from app.domain.addresses import TerminalAddress
from app.domain.errors import ChangeNotAllowed, InvalidRequest, SinkRefused, SubscriptionChanged
from app.domain.operations import AuditAction, Face
from app.domain.policy import check_criteria, duration_allowed
from app.domain.records import ANONYMOUS, AuditEntry, Client, Subscription
from app.domain.sink_contracts import SinkContracts
from app.domain.sinks import (
    SECRET_BYTES,
    SIGNED_PROFILES,
    SinkKind,
    read_secret,
    require_readable,
    signing_secret,
)
from app.live.changing import Change
from app.live.group_directory import GroupDirectory
from app.live.lifecycle import Lifecycle
from app.ports.delivery import Sender
from app.ports.store import Store


class SubscriptionChanges:
    """Changes active subscriptions within their owners' policies. One per process."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        directory: GroupDirectory,
        policies: Policies,
        senders: Mapping[SinkKind, Sender],
        contracts: SinkContracts,
        clock: Callable[[], datetime],
        *,
        entropy: Callable[[int], bytes],
    ) -> None:
        """`senders` by the kind of sink that they check; STREAM needs none. `clock` gives the time in UTC,
        `entropy(n)` gives n unguessable bytes."""
        self.on_sink_changed: Callable[[Subscription], None] = lambda subscription: None
        """Called with a subscription whose sink was replaced in the store; may not block or raise."""
        self._store = store
        self._lifecycle = lifecycle
        self._directory = directory
        self._policies = policies
        self._senders = senders
        self._contracts = contracts
        self._clock = clock
        self._entropy = entropy

    async def update(
        self,
        client: Client,
        subscription_id: str,
        change: SubscriptionChange,
        *,
        etag: str = "",
        face: Face,
        requester: str = "",
    ) -> Subscription:
        """Changes an active subscription within the policy of its owner; with `etag`, only if it still has this etag. A
        new sink is checked as at the creation. The subscription ends before its sink's access token does.

        Raises BusyNotSupported, ChangeNotAllowed (its sink's contract), DurationTooLong, GatewayOverloaded,
        GroupNotAllowed, GroupUnknown, InvalidAddress, InvalidRequest, NestedGroupNotAllowed, NoValidAddresses,
        RateLimited, SinkRefused (also if the token ends now), SinkUnreachable, StoreUnavailable, SubscriptionChanged,
        SubscriptionUnknown, TooManyAddresses, TooManyWatchedTerminals.
        """
        self._policies.admit(client)
        if not change.named:
            raise InvalidRequest(
                "The request changes nothing; name at least one of `addresses`, `criteria`, `duration` and `sink`.",
                field="update_mask",
            )
        subscription = await self._own_active(client, subscription_id)
        require_etag(subscription, etag)
        if not self._contracts.of(subscription.sink.kind, subscription.sink.profile).changeable:
            raise ChangeNotAllowed(
                "A subscription of the CAMARA API cannot be changed; create another.",
                field="subscription_id",
            )
        owner = client if subscription.client_id == client.id else await self._owner_of(subscription)
        policy = self._policies.of(owner)
        check_criteria(policy, change.criteria or frozenset())
        duration_ms = duration_allowed(policy, change.duration_ms)
        expansion = None
        if change.addresses is not None:
            most = policy.max_notification_addresses
            expansion = await self._directory.expand(owner, change.addresses, policy, most=most)

        def revise(stored: Subscription) -> Subscription:
            require_etag(stored, etag)
            addresses = None if expansion is None else expansion.addresses
            return revised(stored, change, addresses=addresses, duration_ms=duration_ms, now=self._clock())

        planned = revise(subscription)
        if change.sink is not None:
            await check_sink(self._senders, replace(planned, sink=checked(planned.sink)))
        details = {"subscription": subscription.id, "face": face.value, "requester": requester}
        details["changed"] = ", ".join(change.named)
        return await self._lifecycle.change(
            Change(
                subscription_id=subscription.id,
                revise=revise,
                audit=AuditEntry(
                    at=self._clock(), actor=client.id, action=AuditAction.SUBSCRIPTION_CHANGED, details=details
                ),
                policy=policy,
                expansion=expansion,
                resumes=change.sink is not None,
                on_sink_changed=self.on_sink_changed,
            )
        )

    async def rotate_secret(
        self,
        client: Client,
        subscription_id: str,
        *,
        secret: str = "",
        drop_old: bool = False,
        overlap_s: int | None = None,
        face: Face,
        requester: str = "",
    ) -> tuple[Subscription, str]:
        """Gives a webhook of profile v1 a new signing secret: `secret`, or a generated secret. Returns the generated
        secret, otherwise "". Later attempts are signed with the new secret, and for `overlap_s` seconds (None:
        DEFAULT_OVERLAP_S) with the previous one.

        With `drop_old` only the newest secret signs later attempts; no secret is generated if `secret` is empty. A call
        may be repeated: if `secret` is the newest secret already, the overlap may become shorter, not longer.

        Raises InvalidRequest (an overlap above MAX_OVERLAP_S, or one with `drop_old`), RateLimited, SinkRefused (a bad
        secret: reason `secret`; a sink that is not signed: `profile`),
        StoreUnavailable, SubscriptionUnknown (also if it has ended).
        """
        policy = self._policies.admit(client)
        if overlap_s is not None and not (0 <= overlap_s <= MAX_OVERLAP_S and not drop_old):
            raise InvalidRequest(
                f"The overlap must be 0 to {MAX_OVERLAP_S} seconds, and none may be given with `drop_old`.",
                field="overlap",
            )
        overlap_s = DEFAULT_OVERLAP_S if overlap_s is None else overlap_s
        subscription = await self._own_active(client, subscription_id)
        if subscription.sink.kind is not SinkKind.WEBHOOK or subscription.sink.profile not in SIGNED_PROFILES:
            raise ChangeNotAllowed(
                "Only webhooks are signed; this subscription has another kind of sink.", field="subscription_id"
            )
        if secret:
            try:
                read_secret(secret)
            except SinkRefused as error:
                error.details["field"] = "secret"
                raise
        made = "" if secret or drop_old else signing_secret(self._entropy(SECRET_BYTES))
        details = {"subscription": subscription.id, "face": face.value, "requester": requester}
        action = (
            AuditAction.SUBSCRIPTION_SECRET_ROTATED if secret or made else AuditAction.SUBSCRIPTION_OLD_SECRET_DROPPED
        )
        if drop_old and secret:
            details["old"] = "dropped"
        elif not drop_old:
            details["overlap_s"] = str(overlap_s)

        def revise(stored: Subscription) -> Subscription:
            require_readable(stored.sink)
            return replace(
                stored,
                sink=rotated(stored.sink, secret or made, now=self._clock(), overlap_s=0 if drop_old else overlap_s),
            )

        stored = await self._lifecycle.change(
            Change(
                subscription_id=subscription.id,
                revise=revise,
                audit=AuditEntry(at=self._clock(), actor=client.id, action=action, details=details),
                policy=policy,
                on_sink_changed=self.on_sink_changed,
            )
        )
        return stored, made

    async def _own_active(self, client: Client, subscription_id: str) -> Subscription:
        found = await own_subscription(self._store, client, subscription_id)
        if not found.active:
            raise unknown_subscription(found.id)
        return found

    async def _owner_of(self, subscription: Subscription) -> Client:
        """The client of a subscription that an operator changes."""
        if owner := await self._store.client(subscription.client_id):
            return owner
        if subscription.client_id != ANONYMOUS:  # deleted a moment ago
            raise unknown_subscription(subscription.id)
        return Client(id=ANONYMOUS, name=ANONYMOUS, created_at=subscription.created_at)


def require_etag(subscription: Subscription, etag: str) -> None:
    """Raises SubscriptionChanged if the subscription has another etag; "" stands for any."""
    if etag and etag != subscription.etag:
        raise SubscriptionChanged(
            f"The subscription has changed: its etag is {subscription.etag!r} now. Read it again before you change it.",
            field="etag",
        )


def revised(
    stored: Subscription,
    change: SubscriptionChange,
    *,
    addresses: Sequence[TerminalAddress] | None,
    duration_ms: int | None,
    now: datetime,
) -> Subscription:
    """The subscription after `change`. `addresses` are those of the change in canonical form; `duration_ms` is what the
    policy makes of the change's duration (None: unlimited). The subscription ends before its sink's token does.

    Raises SinkRefused, StoreUnavailable (the sink's present secrets cannot be decrypted).
    """
    sink, expires_at = stored.sink, stored.expires_at
    if change.sink is not None:
        require_readable(sink)
        sink = moved(sink, change.sink)
    if change.duration_ms is not None:
        expires_at = None if duration_ms is None else now + timedelta(milliseconds=duration_ms)
    if change.sink is not None or change.duration_ms is not None:
        expires_at = before_token_ends(expires_at, sink, now)
    return replace(
        stored,
        addresses=stored.addresses if addresses is None else tuple(addresses),
        criteria=stored.criteria if change.criteria is None else change.criteria,
        expires_at=expires_at,
        sink=sink,
    )
