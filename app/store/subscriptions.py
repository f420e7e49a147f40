"""Stores, reads and ends subscriptions with their addresses.

At the start, each portion is read by a short statement by key, so that no old snapshot stays open. Repeated strings
(clients, sinks, addresses) are kept once in memory.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import structlog
from sqlalchemy import ColumnElement, and_, bindparam, func, insert, literal_column, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.addresses import TerminalAddress
from app.domain.changes import SubscriptionUpdate
from app.domain.errors import DuplicateCorrelator
from app.domain.filters import SubscriptionFilter, SubscriptionState
from app.domain.records import AuditEntry, OwedNotification, Subscription, UsageRecord
from app.domain.sinks import SINK_UNREADABLE, EndReason, Sink, SinkKind
from app.domain.statuses import Status
from app.ports.pages import number, token
from app.ports.store import ALL_ACTIVE, Page
from app.store import tables as t
from app.store.changes import NOTHING, SinkRow, Writing, as_json, audit_line, criteria_text
from app.store.database import ATTEMPTS, AnyRow, AnySelect
from app.store.encryption import SecretKeys
from app.store.scans import scan, within

PORTION = 2000
"""Subscriptions per read at the start."""

MAX_ADDRESSES = 50_000
"""Most addresses per read of subscriptions, on a page or at the start. A subscription with more is read alone."""

ENCRYPTED_AT_ONCE = 2000
"""Subscriptions per transaction when secrets are encrypted."""

_log = structlog.get_logger(__name__)
_sub = t.subscriptions.c
_address = t.subscription_addresses.c
_ACTIVE = _sub.ended_at.is_(None)
_ENDED = _sub.ended_at.is_not(None)
_ENCRYPTED = _sub.sink_key != literal_column(
    "''"
)  # a literal: SQLite does not match a parameter with the index's condition


class Subscriptions(Writing):
    """As `ports.store.Store` says."""

    async def create_subscription(
        self,
        subscription: Subscription,
        owed: Sequence[OwedNotification],
        usage: Sequence[UsageRecord],
        audit: Sequence[AuditEntry] = (),
    ) -> Subscription:
        """Stores a subscription with its first notifications, and returns it. If a subscription with the same
        `request_id` or id is stored, returns that one and stores nothing.

        Raises DuplicateCorrelator.
        """

        async def work(c: AsyncConnection) -> None:
            made = await c.execute(
                insert(t.subscriptions).returning(_sub.seq),
                {**_values(subscription), **self._sink_values(subscription.id, subscription.sink)},
            )
            seq = made.scalar_one()
            await c.execute(insert(t.outbox), {"subscription_seq": seq, "last_sequence": 0})
            await self._add_addresses(c, seq, subscription.addresses)
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
                        f"An active subscription of the client has the correlator {subscription.correlator!r} already.",
                        correlator=subscription.correlator,
                    ) from None
                if not attempts_left:  # otherwise try again: the conflicting subscription has ended meanwhile
                    raise
            else:
                return subscription
        raise AssertionError("the last attempt raises or returns")

    async def _known(self, subscription: Subscription) -> Subscription | None:
        """The stored subscription of the same request, or None."""
        if subscription.request_id:
            same = and_(_sub.client_id == subscription.client_id, _sub.request_id == subscription.request_id)
            if known := await self._subscription(same):
                return known
        return await self._subscription(_sub.id == subscription.id)

    async def subscription(self, subscription_id: str) -> Subscription | None:
        """The subscription, or None. Ended ones are kept until they are purged."""
        return await self._subscription(_sub.id == subscription_id)

    async def subscription_by_request_id(self, client_id: str, request_id: str) -> Subscription | None:
        """The client's subscription, active or ended, that was created with this request id; None for ""."""
        if not request_id:
            return None
        return await self._subscription(and_(_sub.client_id == client_id, _sub.request_id == request_id))

    async def subscription_by_correlator(self, client_id: str, correlator: str) -> Subscription | None:
        """The client's active subscription with this correlator; None for ""."""
        if not correlator:
            return None
        return await self._subscription(
            and_(_sub.client_id == client_id, _sub.correlator == correlator, _sub.correlator != "", _ACTIVE)
        )

    async def _subscription(self, which: ColumnElement[bool]) -> Subscription | None:
        found = await self._subscriptions(select(t.subscriptions).where(which))
        return found[0][1] if found else None

    async def subscriptions_by_id(self, subscription_ids: Sequence[str]) -> dict[str, Subscription]:
        """The subscriptions, active or ended, by id. Unknown ids are left out."""
        found = await self._subscriptions(self._sql.subscriptions, which=self._listed(subscription_ids))
        return {subscription.id: subscription for _, subscription in found}

    async def subscriptions(self, page: Page, only: SubscriptionFilter = ALL_ACTIVE) -> tuple[list[Subscription], str]:
        """A page of subscriptions, the oldest first, and the next page's token."""
        names = ("subscriptions", only)
        which = [_sub.seq > number(page, *names)]
        if only.client_id:
            which.append(_sub.client_id == only.client_id)
        if only.address:
            which.append(_sub.seq.in_(select(_address.subscription_seq).where(_address.address == only.address)))
        if only.state is SubscriptionState.ACTIVE:
            which.append(_ACTIVE)
        elif only.state is SubscriptionState.ENDED:
            which.append(_ENDED)

        async def work(c: AsyncConnection) -> tuple[list[tuple[int, Subscription]], int]:
            rows, last = await scan(c, select(t.subscriptions), _sub.seq, which, within(only, _sub.created_at), page)
            on_page = (await self._portions(c, rows))[0] if rows else rows
            if len(on_page) < len(rows):
                last = on_page[-1].seq
            return await self._addressed(c, on_page, Reader(self._keys)), last

        found, last = await self._read(work)
        return [subscription for _, subscription in found], token(last, *names) if last else ""

    async def active_subscriptions(self) -> AsyncIterator[Sequence[Subscription]]:
        """All active subscriptions in portions, the oldest first."""
        statement = select(t.subscriptions).where(_ACTIVE).order_by(_sub.seq).limit(PORTION)
        reader, last = Reader(self._keys), 0

        async def work(c: AsyncConnection) -> list[Sequence[AnyRow]]:
            return await self._portions(c, (await c.execute(statement.where(_sub.seq > last))).all())

        while portions := await self._read(work):
            last = portions[-1][-1].seq
            for rows in portions:
                found = await self._read(lambda c, rows=rows: self._addressed(c, rows, reader))  # type: ignore[misc]
                yield [subscription for _, subscription in found]

    async def keys_in_use(self) -> list[str]:
        """The ids of the keys with which sinks' parameters are encrypted."""

        async def work(c: AsyncConnection) -> list[str]:
            found: list[str] = [""]
            while True:  # each step is one index look-up, for any number of rows
                next_one = select(func.min(_sub.sink_key)).where(_sub.sink_key > found[-1], _ENCRYPTED)
                if (key := (await c.execute(next_one)).scalar()) is None:
                    return found[1:]
                found.append(key)

        return await self._read(work)

    async def encrypt_sinks(self, after: int) -> tuple[int | None, int]:
        """Encrypts sinks that are not encrypted with the first key, in one portion of the subscriptions after `after`.

        Returns the number to continue with (None: done, or there is no key), and how many were encrypted.
        """
        if not self._keys.first:
            return None, 0
        after += 1
        until = after + ENCRYPTED_AT_ONCE
        columns = (_sub.sink_kind, _sub.sink_url, _sub.sink_profile, _sub.sink_parameters, _sub.sink_key)
        others = select(_sub.seq, _sub.id, *columns).where(
            _sub.seq >= after, _sub.seq < until, _sub.sink_parameters != NOTHING, _sub.sink_key != self._keys.first
        )

        async def read(c: AsyncConnection) -> tuple[int | None, Sequence[AnyRow]]:
            rows = (await c.execute(others)).all()
            return (await c.execute(select(func.min(_sub.seq)).where(_sub.seq >= until))).scalar(), rows

        first_beyond, rows = await self._read(read)
        new = []
        for seq, subscription_id, *sink in rows:
            if (clear := SinkRow(*sink).decrypted(subscription_id, self._keys)) is not None:
                row = clear.encrypted(subscription_id, self._keys)
                new.append({"which": seq, "before": sink[3], "text": row.sink_parameters, "key": row.sink_key})
        if new:
            change = (
                update(t.subscriptions)
                .where(_sub.seq == bindparam("which"), _sub.sink_parameters == bindparam("before"))
                .values(sink_parameters=bindparam("text"), sink_key=bindparam("key"))
            )
            await self._write(lambda c: c.execute(change, new))
        return None if first_beyond is None else first_beyond - 1, len(new)

    async def _end_all(
        self,
        c: AsyncConnection,
        client_id: str,
        end: Callable[[Subscription], tuple[SubscriptionUpdate, Sequence[OwedNotification]]],
    ) -> list[Subscription]:
        """Ends the client's active subscriptions with their last notifications, and returns them ended."""
        active = select(t.subscriptions).where(_sub.client_id == client_id, _ACTIVE).order_by(_sub.seq)
        found = [
            one for _, one in await self._with_addresses(c, active.with_for_update(key_share=True), Reader(self._keys))
        ]
        ends = [end(subscription) for subscription in found]
        await self._owe(c, [update for update, _ in ends], [one for _, owed in ends for one in owed])
        return [
            replace(one, ended_at=update.ended_at, end_reason=update.end_reason, end_detail=update.end_detail or "")
            for one, (update, _) in zip(found, ends, strict=True)
        ]

    async def _subscriptions(
        self, statement: AnySelect, reader: "Reader | None" = None, which: Mapping[str, Any] | None = None
    ) -> list[tuple[int, Subscription]]:
        return await self._read(lambda c: self._with_addresses(c, statement, reader or Reader(self._keys), which))

    async def _with_addresses(
        self, c: AsyncConnection, statement: AnySelect, reader: "Reader", which: Mapping[str, Any] | None = None
    ) -> list[tuple[int, Subscription]]:
        return await self._addressed(c, (await c.execute(statement, which)).all(), reader)

    async def _addressed(
        self, c: AsyncConnection, rows: Sequence[AnyRow], reader: "Reader"
    ) -> list[tuple[int, Subscription]]:
        """The subscriptions of these rows."""
        if not rows:
            return []
        found = await c.execute(self._sql.addresses, self._listed([row.seq for row in rows]))
        return reader.read(rows, found.all())

    async def _portions(self, c: AsyncConnection, rows: Sequence[AnyRow]) -> list[Sequence[AnyRow]]:
        """The rows in portions with at most MAX_ADDRESSES addresses. Addresses are counted without reading them."""
        counted = await c.execute(self._sql.address_counts, self._listed([row.seq for row in rows]))
        counts = {row[0]: row[1] for row in counted}
        portions: list[Sequence[AnyRow]] = []
        start = addresses = 0
        for at, row in enumerate(rows):
            its = counts.get(row.seq, 0)
            if at > start and addresses + its > MAX_ADDRESSES:
                portions.append(rows[start:at])
                start, addresses = at, 0
            addresses += its
        return [*portions, rows[start:]] if rows else []


class Reader:
    """Makes subscriptions from rows; equal values share one object."""

    def __init__(self, keys: SecretKeys) -> None:
        self._keys = keys
        self._once: dict[Any, Any] = {}

    def read(self, rows: Sequence[Any], addresses: Iterable[Any]) -> list[tuple[int, Subscription]]:
        """Pairs of `seq` and subscription, from rows of `subscription` and `subscription_address`."""
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
                version,
                _secret_ends_at,
                x_correlator,
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
                sink=self._sink(id_, SinkRow(*sink)),
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
                version=version,
                x_correlator=x_correlator,
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

    def _sink(self, subscription_id: str, row: SinkRow) -> Sink:
        kind, url, profile = SinkKind(row.sink_kind), row.sink_url, row.sink_profile
        clear = row.decrypted(subscription_id, self._keys)
        if clear is None:
            _log.error("sink_unreadable", subscription=subscription_id, key=row.sink_key, has=self._keys.ids)
            return Sink(kind=kind, url=url, profile=profile, parameters={SINK_UNREADABLE: row.sink_key})
        if (sink := self._once.get(clear)) is None:
            sink = self._once[clear] = clear.sink()
        return sink


def _values(subscription: Subscription) -> dict[str, Any]:
    return {
        "id": subscription.id,
        "client_id": subscription.client_id,
        "criteria": criteria_text(subscription.criteria),
        "check_immediate": subscription.check_immediate,
        "min_interval_ms": subscription.min_interval_ms,
        "max_notifications": subscription.max_notifications,
        "created_at": subscription.created_at,
        "expires_at": subscription.expires_at,
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
        "version": subscription.version,
        "x_correlator": subscription.x_correlator,
    }
