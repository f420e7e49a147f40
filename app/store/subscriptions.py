"""Subscriptions and their addresses: making, reading, ending.

Each portion read at a start is its own short statement by key, so that a start holds no old snapshot open, and strings
that repeat (clients, endpoints, addresses) are kept once.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import DuplicateCorrelator, Status, TerminalAddress
from app.ports import Page, SubscriptionUpdate
from app.records import AuditEntry, EndReason, OwedNotification, Sink, SinkKind, Subscription, UsageRecord
from app.store import tables as t
from app.store.changes import Writing, as_json, audit_line, sink_values
from app.store.database import ATTEMPTS, AnySelect
from app.store.pages import cut, number, token

PORTION = 2000
"""Subscriptions read at once at a start."""

_sub = t.subscriptions.c
_address = t.subscription_addresses.c
_ACTIVE = _sub.ended_at.is_(None)


class Subscriptions(Writing):
    """As `ports.Store` says."""

    async def create_subscription(
        self,
        subscription: Subscription,
        owed: Sequence[OwedNotification],
        usage: Sequence[UsageRecord],
        audit: Sequence[AuditEntry] = (),
    ) -> Subscription:
        """Stores it with what it owes at once, or returns the client's one of the same `request_id` (or id).

        Raises DuplicateCorrelator.
        """

        async def work(c: AsyncConnection) -> None:
            made = await c.execute(insert(t.subscriptions).returning(_sub.seq), _values(subscription))
            seq = made.scalar_one()
            await c.execute(insert(t.outbox), {"subscription_seq": seq, "last_sequence": 0})
            if subscription.addresses:
                await c.execute(
                    insert(t.subscription_addresses),
                    [
                        {"subscription_seq": seq, "position": i, "address": address}
                        for i, address in enumerate(subscription.addresses)
                    ],
                )
            await self._owe(c, (), owed, ended_too=True)
            for entry in audit:
                await c.execute(audit_line(entry))
            await self._add_usage(c, usage)

        if subscription.request_id and (known := await self._known(subscription)):
            return known
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                await self._write(work)
            except IntegrityError:
                if known := await self._known(subscription):
                    return known
                if await self.subscription_by_correlator(subscription.client_id, subscription.correlator):
                    raise DuplicateCorrelator(
                        f"The client has an active subscription with the correlator {subscription.correlator!r}.",
                        correlator=subscription.correlator,
                    ) from None
                if not attempts_left:  # or else the one in the way has ended meanwhile
                    raise
            else:
                return subscription
        raise AssertionError("the last attempt raises or returns")

    async def _known(self, subscription: Subscription) -> Subscription | None:
        """The same subscription, where it is made already."""
        if subscription.request_id:
            same = and_(_sub.client_id == subscription.client_id, _sub.request_id == subscription.request_id)
            if known := await self._subscription(same):
                return known
        return await self._subscription(_sub.id == subscription.id)

    async def subscription(self, subscription_id: str) -> Subscription | None:
        """One subscription, ended ones for as long as they are kept."""
        return await self._subscription(_sub.id == subscription_id)

    async def subscription_by_request_id(self, client_id: str, request_id: str) -> Subscription | None:
        """The client's subscription that was made with this request id, ended ones too; "" is none."""
        if not request_id:
            return None
        return await self._subscription(and_(_sub.client_id == client_id, _sub.request_id == request_id))

    async def subscription_by_correlator(self, client_id: str, correlator: str) -> Subscription | None:
        """The client's active subscription with this correlator; "" is none."""
        if not correlator:
            return None
        return await self._subscription(
            and_(_sub.client_id == client_id, _sub.correlator == correlator, _sub.correlator != "", _ACTIVE)
        )

    async def _subscription(self, which: ColumnElement[bool]) -> Subscription | None:
        found = await self._subscriptions(select(t.subscriptions).where(which))
        return found[0][1] if found else None

    async def subscriptions_by_id(self, subscription_ids: Sequence[str]) -> dict[str, Subscription]:
        """Those of them that are there, ended ones too."""
        found = await self._subscriptions(self._sql.subscriptions, which=self._listed(subscription_ids))
        return {subscription.id: subscription for _, subscription in found}

    async def subscriptions(
        self, client_id: str | None, page: Page, *, active_only: bool = True
    ) -> tuple[list[Subscription], str]:
        """A client's (None: everybody's) subscriptions, oldest first, and the next page's token."""
        names = ("subscriptions", client_id, active_only)
        statement = select(t.subscriptions).where(_sub.seq > number(page, *names))
        if client_id is not None:
            statement = statement.where(_sub.client_id == client_id)
        if active_only:
            statement = statement.where(_ACTIVE)
        found, more = cut(await self._subscriptions(statement.order_by(_sub.seq).limit(page.size + 1)), page)
        return [subscription for _, subscription in found], token(found[-1][0], *names) if more else ""

    async def active_subscriptions(self) -> AsyncIterator[Sequence[Subscription]]:
        """All of them in portions, oldest first."""
        statement = select(t.subscriptions).where(_ACTIVE).order_by(_sub.seq).limit(PORTION)
        reader, last = Reader(), 0
        while True:
            found = await self._subscriptions(statement.where(_sub.seq > last), reader)
            if not found:
                return
            last = found[-1][0]
            yield [subscription for _, subscription in found]

    async def _end_all(
        self,
        c: AsyncConnection,
        client_id: str,
        end: Callable[[Subscription], tuple[SubscriptionUpdate, Sequence[OwedNotification]]],
    ) -> list[Subscription]:
        """Ends the client's active subscriptions, with what they owe then, and returns them as they are then."""
        active = select(t.subscriptions).where(_sub.client_id == client_id, _ACTIVE).order_by(_sub.seq)
        found = [one for _, one in await self._with_addresses(c, active.with_for_update(key_share=True), Reader())]
        ends = [end(subscription) for subscription in found]
        await self._owe(c, [update for update, _ in ends], [one for _, owed in ends for one in owed])
        return [
            replace(one, ended_at=update.ended_at, end_reason=update.end_reason, end_detail=update.end_detail or "")
            for one, (update, _) in zip(found, ends, strict=True)
        ]

    async def _subscriptions(
        self, statement: AnySelect, reader: "Reader | None" = None, which: Mapping[str, Any] | None = None
    ) -> list[tuple[int, Subscription]]:
        return await self._read(lambda c: self._with_addresses(c, statement, reader or Reader(), which))

    async def _with_addresses(
        self, c: AsyncConnection, statement: AnySelect, reader: "Reader", which: Mapping[str, Any] | None = None
    ) -> list[tuple[int, Subscription]]:
        rows = (await c.execute(statement, which)).all()
        if not rows:
            return []
        found = await c.execute(self._sql.addresses, self._listed([row.seq for row in rows]))
        return reader.read(rows, found.all())


class Reader:
    """Makes subscriptions of rows; what is equal in many of them is one object."""

    def __init__(self) -> None:
        self._once: dict[Any, Any] = {}

    def read(self, rows: Sequence[Any], addresses: Iterable[Any]) -> list[tuple[int, Subscription]]:
        """Rows of `subscription` and of `subscription_address`, as pairs of `seq` and subscription."""
        once = self._once.setdefault
        of: dict[int, list[TerminalAddress]] = {}
        for seq, address in addresses:
            of.setdefault(seq, []).append(once(address, address))
        found = []
        for row in rows:
            (
                seq,
                id_,
                client_id,
                criteria,
                check_immediate,
                min_interval_ms,
                max_notifications,
                created_at,
                expires_at,
                *sink,
                correlator,
                request_id,
                notified,
                last_notified_at,
                awaiting,
                suspended_at,
                ended_at,
                end_reason,
                end_detail,
                groups,
                joined,
                held,
            ) = row
            subscription = Subscription(
                id=id_,
                client_id=once(client_id, client_id),
                addresses=tuple(of.get(seq, ())),
                criteria=self._criteria(criteria),
                check_immediate=check_immediate,
                min_interval_ms=min_interval_ms,
                max_notifications=max_notifications,
                created_at=created_at,
                expires_at=expires_at,
                sink=self._sink(tuple(sink)),
                correlator=correlator,
                request_id=request_id,
                notified=notified,
                last_notified_at=last_notified_at,
                awaiting=awaiting,
                groups=self._list(groups),
                joined=self._list(joined),
                held=self._list(held),
                suspended_at=suspended_at,
                ended_at=ended_at,
                end_reason=None if end_reason is None else EndReason(end_reason),
                end_detail=end_detail,
            )
            found.append((seq, subscription))
        return found

    def _criteria(self, text: str) -> frozenset[Status]:
        key = ("criteria", text)
        if (criteria := self._once.get(key)) is None:
            criteria = self._once[key] = frozenset(Status(word) for word in text.split(",") if word)
        return criteria

    def _list(self, text: str) -> tuple[TerminalAddress, ...]:
        if text == "[]":
            return ()
        key = ("list", text)
        if (addresses := self._once.get(key)) is None:
            once = self._once.setdefault
            addresses = self._once[key] = tuple([once(one, one) for one in msgspec.json.decode(text)])
        return addresses

    def _sink(self, values: tuple[str, ...]) -> Sink:
        if (sink := self._once.get(values)) is None:
            kind, url, profile, parameters = values
            sink = Sink(kind=SinkKind(kind), url=url, profile=profile, parameters=msgspec.json.decode(parameters))
            self._once[values] = sink
        return sink


def _values(subscription: Subscription) -> dict[str, Any]:
    return {
        "id": subscription.id,
        "client_id": subscription.client_id,
        "criteria": ",".join(sorted(status.value for status in subscription.criteria)),
        "check_immediate": subscription.check_immediate,
        "min_interval_ms": subscription.min_interval_ms,
        "max_notifications": subscription.max_notifications,
        "created_at": subscription.created_at,
        "expires_at": subscription.expires_at,
        **sink_values(subscription.sink),
        "correlator": subscription.correlator,
        "request_id": subscription.request_id,
        "notified": subscription.notified,
        "last_notified_at": subscription.last_notified_at,
        "awaiting": subscription.awaiting,
        "suspended_at": subscription.suspended_at,
        "ended_at": subscription.ended_at,
        "end_reason": subscription.end_reason.value if subscription.end_reason else None,
        "end_detail": subscription.end_detail,
        "groups": as_json(subscription.groups),
        "joined": as_json(subscription.joined),
        "held": as_json(subscription.held),
    }
