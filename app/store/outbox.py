"""The outbox: claims due notifications by a lease, records attempts, and makes dead notifications pending again.

Invariants: only a subscription's head (its first unsettled notification) is ever leased, and the lease is in the
subscription's row of `outbox`. So two deliverers never hold two notifications of one subscription. After a lease ran
out, its notification is claimed like any due notification. A delivered notification stays delivered, whatever the
result of a late attempt.

Deliberately absent: when to try again and when to give up (`delivery/retry.py`).
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import bindparam, insert, null, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.addresses import TerminalAddress
from app.domain.changes import Attempted
from app.domain.filters import NotificationFilter
from app.domain.outcomes import DeliveryOutcome
from app.domain.records import DeliveryAttempt, DeliveryState, NotificationKind, OwedNotification
from app.domain.sink_contracts import SinkContracts
from app.domain.sinks import EndReason, SinkKind
from app.domain.statuses import Source, Status, TerminalStatus
from app.ports.pages import number, token
from app.ports.store import ALL_NOTIFICATIONS, Billed, Page, Recipient
from app.store import tables as t
from app.store.changes import Writing
from app.store.database import AnyRow
from app.store.scans import scan, within
from app.store.statements import IS, OWED

_box = t.outbox.c
_owed = t.owed_notifications.c
_sub = t.subscriptions.c
_attempt = t.delivery_attempts.c
_PENDING = DeliveryState.PENDING.value


class Outbox(Writing):
    """As `ports.store.Store` says."""

    async def claim(
        self, now: datetime, lease_until: datetime, most: int, owner: str, billed: Billed | None = None
    ) -> list[OwedNotification]:
        """Leases due notifications, the oldest first, at most one of each subscription: the first unsettled one. Writes
        the usage records of `billed`; those with a stored id are skipped."""

        async def work(c: AsyncConnection) -> list[OwedNotification]:
            seqs = (await c.execute(self._sql.due, {"now": now, "most": most})).scalars().all()
            if not seqs:
                return []
            picked = self._listed(seqs)
            await c.execute(self._sql.lease, {**picked, "until": lease_until, "owner": owner})
            rows = (await c.execute(self._sql.heads, picked)).all()
            claimed = [_notification(row) for row in rows]
            if billed is not None:
                usage = [
                    record
                    for owed, row in zip(claimed, rows, strict=True)
                    for record in billed(owed, self._recipient(row))
                ]
                await self._add_usage(c, usage)
            return claimed

        return await self._write(work)

    def _recipient(self, row: AnyRow) -> Recipient:
        return Recipient(
            kind=SinkKind(row.sink_kind),
            profile=row.sink_profile,
            correlator=row.correlator,
            x_correlator=row.x_correlator,
            end_reason=None if row.end_reason is None else EndReason(row.end_reason),
            readable=not row.sink_key or self._keys.has(row.sink_key),
        )

    async def record_attempts(self, attempted: Sequence[Attempted]) -> None:
        """Records attempts, settles or postpones their notifications, releases the leases, and adds usage records, in
        one transaction. Attempts of deleted notifications are skipped."""
        if not attempted:
            return
        if any(one.state is DeliveryState.PENDING and one.next_attempt_at is None for one in attempted):
            raise ValueError("a notification that stays pending needs `next_attempt_at`")

        async def work(c: AsyncConnection) -> None:
            rows = await self._lock_notifications(c, [one.attempt.notification_id for one in attempted])
            there = [
                (one, rows[one.attempt.notification_id]) for one in attempted if one.attempt.notification_id in rows
            ]
            if not there:
                return
            attempts, settled, suspended, updates = [], [], [], []
            free: set[int] = set()
            held: set[int] = set()
            for one, row in there:
                attempts.append(_attempt_values(one.attempt, row.seq, max(row.attempts + 1, one.attempt.number)))
                mine = row.lease_owner == one.owner and row.leased == row.sequence
                settled.append(_settled_values(one, row, mine))
                if mine:
                    if one.suspended_at != row.suspended_at:
                        suspended.append({"which_seq": row.subscription_seq, "new_suspended_at": one.suspended_at})
                    updates.extend([] if one.update is None else [one.update])
                (free if mine else held).add(row.subscription_seq)
            await c.execute(insert(t.delivery_attempts), attempts)
            await self._run(c, self._sql.settle, settled)
            if suspended:
                await c.execute(_SUSPEND, suspended)
            await self._update_subscriptions(c, updates)
            await self._move_heads(c, free, held - free)
            await self._add_usage(c, [record for one, _ in there for record in one.usage])

        await self._write(work)

    async def release_leases(self, owner: str, due: Mapping[str, datetime]) -> None:
        """Releases leases without an attempt. `due` maps a notification's id to when it is due again."""
        if not due:
            return

        async def work(c: AsyncConnection) -> None:
            rows = await self._lock_notifications(c, list(due))
            mine = [row for row in rows.values() if row.lease_owner == owner and row.leased == row.sequence]
            if mine:
                await c.execute(_PUT_OFF, [{"which_seq": row.seq, "new_next": due[row.id]} for row in mine])
                await self._move_heads(c, {row.subscription_seq for row in mine}, ())

        await self._write(work)

    async def end_leases(self, at: datetime) -> int:
        """Ends all leases, and returns their number. For a process that has the database to itself."""

        async def work(c: AsyncConnection) -> int:
            leased = _box.lease_owner.is_not(None) & (_box.due_at > at)
            done = await c.execute(update(t.outbox).where(leased).values(due_at=at, lease_owner=null(), leased=None))
            return done.rowcount

        return await self._write(work)

    async def lease_owner(self, subscription_id: str) -> str | None:
        """The owner of the subscription's lease, also after its notifications were withdrawn, until the owner releases
        the lease; None without a lease."""
        statement = select(_box.lease_owner).join_from(t.outbox, t.subscriptions).where(_sub.id == subscription_id)
        row = await self._first(statement)
        return None if row is None else row.lease_owner

    async def send_again(
        self,
        notification_ids: Sequence[str],
        at: datetime,
        contracts: SinkContracts,
        *,
        state: DeliveryState = DeliveryState.DEAD,
    ) -> int:
        """Makes those of the notifications that are in this state pending and due at `at`, and returns their number.
        Skips notifications of subscriptions whose end withdrew them (`SinkContract.withdrawn_at`)."""
        if not notification_ids:
            return 0

        async def work(c: AsyncConnection) -> int:
            rows = await self._lock_notifications(c, notification_ids)
            its = [row for row in rows.values() if row.state == state.value and _may_be_sent(row, contracts)]
            if its:
                statement = update(t.owed_notifications).where(self._among(_owed.seq, [row.seq for row in its]))
                await c.execute(statement.values(state=_PENDING, next_attempt_at=at, settled_at=null()))
                await self._move_heads(c, (), {row.subscription_seq for row in its})
            return len(its)

        return await self._write(work)

    async def _lock_notifications(self, c: AsyncConnection, ids: Sequence[str]) -> dict[str, AnyRow]:
        """Locks notifications and their outbox, after their subscriptions as `_owe` does. Returns them by id."""
        which = self._listed(ids)
        if not self.sqlite:
            await c.execute(self._sql.lock_owing, which)
        return {row.id: row for row in await c.execute(self._sql.notifications, which)}

    async def _move_heads(self, c: AsyncConnection, free: Collection[int], held: Collection[int]) -> None:
        """Advances each outbox to its first unsettled notification. `free`: also clears the lease. `held`: keeps a
        running lease and its expiry."""
        if free:
            await c.execute(self._sql.move_free_heads, self._listed(free))
        if held:
            await c.execute(self._sql.move_held_heads, self._listed(held))

    async def notification(self, notification_id: str) -> OwedNotification | None:
        """The notification, or None. Settled ones are kept until they are purged."""
        row = await self._first(OWED.where(_owed.id == notification_id))
        return None if row is None else _notification(row)

    async def notifications(
        self, page: Page, only: NotificationFilter = ALL_NOTIFICATIONS
    ) -> tuple[list[OwedNotification], str]:
        """A page of notifications, the oldest first, and the next page's token."""
        names = ("notifications", only)
        # Within one subscription both orders are the same, and `sequence` has an index.
        order = _owed.sequence if only.subscription_id else _owed.seq
        which = [order > number(page, *names)]
        rest = within(only, _owed.created_at)
        if only.client_id:
            which.append(_owed.client_id == only.client_id)
        if only.subscription_id:
            of = select(_sub.seq).where(_sub.id == only.subscription_id).scalar_subquery()
            which.append(_owed.subscription_seq == of)
        if only.state is not None:
            indexed = only.subscription_id or only.state is DeliveryState.DEAD
            (which if indexed else rest).append(IS[only.state])
        rows, last = await self._read(lambda c: scan(c, OWED, order, which, rest, page))
        return [_notification(row) for row in rows], token(last, *names) if last else ""

    async def attempts(self, notification_id: str) -> list[DeliveryAttempt]:
        """The attempts of a notification, in their order."""
        statement = select(t.delivery_attempts).join_from(t.delivery_attempts, t.owed_notifications)
        rows = await self._all(statement.where(_owed.id == notification_id).order_by(_attempt.number))
        return [
            DeliveryAttempt(
                notification_id=notification_id,
                number=row.number,
                at=row.at,
                code=row.code,
                duration_ms=row.duration_ms,
                outcome=DeliveryOutcome(row.outcome),
                answer=row.answer,
            )
            for row in rows
        ]


_PUT_OFF = (
    update(t.owed_notifications)
    .where(_owed.seq == bindparam("which_seq", type_=_owed.seq.type))
    .values(next_attempt_at=bindparam("new_next", type_=_owed.next_attempt_at.type))
)

_SUSPEND = (
    update(t.subscriptions)
    .where(_sub.seq == bindparam("which_seq", type_=_sub.seq.type))
    .values(suspended_at=bindparam("new_suspended_at", type_=_sub.suspended_at.type))
)


def _settled_values(one: Attempted, row: AnyRow, mine: bool) -> Sequence[Any]:
    """The new values of the notification. A delivery always counts; other results count only from the owner of the
    lease, and only while the notification is pending."""
    delivered = one.state is DeliveryState.DELIVERED and row.state != one.state.value
    attempts = row.attempts + 1
    if not (delivered or (mine and row.state == _PENDING)):
        return row.seq, attempts, row.state, row.next_attempt_at, row.settled_at
    if one.state is DeliveryState.PENDING:
        return row.seq, attempts, one.state.value, one.next_attempt_at, None
    ended_at = one.attempt.at + timedelta(milliseconds=one.attempt.duration_ms)
    return row.seq, attempts, one.state.value, row.next_attempt_at, ended_at


def _may_be_sent(row: AnyRow, contracts: SinkContracts) -> bool:
    contract = contracts.of(SinkKind(row.sink_kind), row.sink_profile)
    return row.end_reason is None or EndReason(row.end_reason) not in contract.withdrawn_at


def _attempt_values(attempt: DeliveryAttempt, notification_seq: int, number: int) -> dict[str, Any]:
    return {
        "notification_seq": notification_seq,
        "number": number,
        "at": attempt.at,
        "code": attempt.code,
        "duration_ms": attempt.duration_ms,
        "outcome": attempt.outcome.value,
        "answer": attempt.answer,
    }


def _notification(row: AnyRow) -> OwedNotification:
    return OwedNotification(
        id=row.id,
        subscription_id=row.subscription_id,
        client_id=row.client_id,
        sequence=row.sequence,
        kind=NotificationKind(row.kind),
        changes=tuple(
            [
                TerminalStatus(
                    address=TerminalAddress(address),
                    status=Status(status),
                    observed_at=datetime.fromisoformat(observed_at),
                    source=Source(source),
                    revision=revision,
                )
                for address, status, observed_at, source, revision in msgspec.json.decode(row.changes)
            ]
        ),
        address=None if row.address is None else TerminalAddress(row.address),
        code=row.code,
        text=row.text,
        created_at=row.created_at,
        next_attempt_at=row.next_attempt_at,
        attempts=row.attempts,
        state=DeliveryState(row.state),
        settled_at=row.settled_at,
    )
