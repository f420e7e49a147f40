"""Writing what happened: statuses by compare-and-set, progress of subscriptions, owed notifications, usage records.

Every transaction locks rows in one order, so that none waits for another in a circle: statuses by address, then
subscriptions and their outbox by `seq`, then what it adds; usage records last.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    Executable,
    bindparam,
    case,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Source, Status, SubscriptionUnknown, TerminalAddress, TerminalStatus
from app.ports import Changes, SubscriptionUpdate
from app.records import DeliveryState, OwedNotification, Sink, UsageRecord
from app.store import tables as t
from app.store.database import AnyRow, Database

USAGE_LOCK = 0x7465_7273
"""PostgreSQL's advisory lock: shared by who adds usage records, and a reader's alone, so that it misses none.

Numbers are given before the commit: without it a page could end at a number while a smaller one was still to come.
Taken just before the last statement of a transaction, or else it could wait in a circle with the locks of rows."""

_status = t.terminal_statuses.c
_sub = t.subscriptions.c
_box = t.outbox.c


class _Conflict(Exception):
    def __init__(self, stored: Sequence[TerminalStatus]) -> None:
        super().__init__()
        self.stored = stored


class Writing(Database):
    """As `ports.Store` says."""

    async def write(self, changes: Changes) -> Sequence[TerminalStatus]:
        """Writes all of it in one transaction, or returns the stored statuses that were not of the expected revision.

        A terminal may have several statuses in it, of revisions that follow each other. Where nothing is stored of a
        terminal, any revision is taken. An update leaves the first end of a subscription as it is. Usage records and
        owed notifications of an id that is there already are left out: they were written by the same call before,
        whose answer was lost. Raises SubscriptionUnknown for what is owed to a subscription that is not there.
        """
        owed = changes.owed

        async def work(c: AsyncConnection) -> None:
            await self._put_statuses(c, changes.statuses)
            await self._owe(c, changes.updates, owed)
            await self._add_usage(c, changes.usage)

        try:
            try:
                await self._write(work)
            except IntegrityError:
                known = await self._known_notifications(owed)
                if not known:
                    raise
                owed = [one for one in owed if one.id not in known]
                await self._write(work)
        except _Conflict as conflict:
            return conflict.stored
        return ()

    async def statuses(self, addresses: Sequence[TerminalAddress]) -> dict[TerminalAddress, TerminalStatus]:
        """The stored statuses of those that have one."""
        rows = await self._all(select(t.terminal_statuses).where(self._among(_status.address, addresses)))
        return {row.address: _terminal_status(row) for row in rows}

    async def write_usage(self, records: Sequence[UsageRecord]) -> None:
        """Adds usage records; those of an id that is there already are left out."""
        if records:
            await self._write(lambda c: self._add_usage(c, records))

    async def _put_statuses(self, c: AsyncConnection, statuses: Sequence[TerminalStatus]) -> None:
        """Raises _Conflict."""
        if not statuses:
            return
        first: dict[TerminalAddress, int] = {}
        last: dict[TerminalAddress, TerminalStatus] = {}
        for status in statuses:
            expected = last[status.address].revision + 1 if status.address in last else max(status.revision, 1)
            if status.revision != expected:
                raise ValueError(f"revision {status.revision} of {status.address} is not {expected}")
            first.setdefault(status.address, status.revision)
            last[status.address] = status
        stored = await self._lock_statuses(c, sorted(last))
        if conflicts := [row for row in stored.values() if row.revision != first[row.address] - 1]:
            raise _Conflict(conflicts)
        columns = ("address", "status", "observed_at", "source", "revision")
        values = [
            dict(zip(columns, (a, s.status.value, s.observed_at, s.source.value, s.revision), strict=True))
            for a, s in sorted(last.items())
        ]
        if new := [row for row in values if row["address"] not in stored]:
            upsert = sqlite.insert(t.terminal_statuses) if self.sqlite else postgresql.insert(t.terminal_statuses)
            added = await c.execute(upsert.on_conflict_do_nothing().returning(_status.address), new)
            if missed := {a for a in last if a not in stored} - set(added.scalars()):  # another was first
                raise _Conflict(list((await self._lock_statuses(c, missed)).values()))
        if known := [{f"new_{k}": v for k, v in row.items()} for row in values if row["address"] in stored]:
            await c.execute(_CHANGE_STATUS, known)

    async def _lock_statuses(
        self, c: AsyncConnection, addresses: Iterable[TerminalAddress]
    ) -> dict[TerminalAddress, TerminalStatus]:
        statement = select(t.terminal_statuses).where(self._among(_status.address, addresses))
        rows = await c.execute(statement.order_by(_status.address).with_for_update(key_share=True))
        return {row.address: _terminal_status(row) for row in rows}

    async def _owe(
        self, c: AsyncConnection, updates: Sequence[SubscriptionUpdate], owed: Sequence[OwedNotification]
    ) -> None:
        """Updates subscriptions, and gives notifications their place in the order of theirs."""
        ids = {one.subscription_id for one in updates} | {one.subscription_id for one in owed}
        if not ids:
            return
        statement = (
            select(_sub.seq, _sub.id, _box.last_sequence, _box.head, _box.due_at)
            .join_from(t.subscriptions, t.outbox)
            .where(self._among(_sub.id, sorted(ids)))
            .order_by(_sub.seq)
            .with_for_update(key_share=True)
        )
        boxes = {row.id: _Box(row) for row in await c.execute(statement)}
        if missing := ids - boxes.keys():
            raise SubscriptionUnknown(f"There is no subscription {min(missing)!r}.", subscription_id=min(missing))
        await self._update_subscriptions(c, updates)
        if not owed:
            return
        rows: list[dict[str, Any]] = []
        moved: dict[str, _Box] = {}
        for one in owed:
            box = moved[one.subscription_id] = boxes[one.subscription_id]
            box.last_sequence += 1
            if one.state is DeliveryState.PENDING and box.head is None:
                box.head, box.due_at = box.last_sequence, one.next_attempt_at
            rows.append(_owed_values(one, box.seq, box.last_sequence))
        await c.execute(
            _MOVE_BOX,
            [
                {"new_seq": box.seq, "new_last": box.last_sequence, "new_head": box.head, "new_due": box.due_at}
                for box in moved.values()
            ],
        )
        await c.execute(insert(t.owed_notifications), rows)

    async def _update_subscriptions(self, c: AsyncConnection, updates: Sequence[SubscriptionUpdate]) -> None:
        if not updates:
            return
        await c.execute(_UPDATE, [_update_values(one) for one in updates])
        for one in updates:
            if one.sink is not None:
                statement = update(t.subscriptions).where(_sub.id == one.subscription_id)
                await c.execute(statement.values(sink_values(one.sink)))

    async def _known_notifications(self, owed: Sequence[OwedNotification]) -> set[str]:
        ids = t.owed_notifications.c.id
        return {row.id for row in await self._all(select(ids).where(self._among(ids, [one.id for one in owed])))}

    async def _add_usage(self, c: AsyncConnection, records: Sequence[UsageRecord]) -> None:
        """The last statement of its transaction."""
        if not records:
            return
        insertion = sqlite.insert(t.usage_records) if self.sqlite else postgresql.insert(t.usage_records)
        if not self.sqlite:
            await c.execute(text("select pg_advisory_xact_lock_shared(:key)"), {"key": USAGE_LOCK})
        await c.execute(insertion.on_conflict_do_nothing(), [_usage_values(record) for record in records])


class _Box:
    __slots__ = ("due_at", "head", "last_sequence", "seq")

    def __init__(self, row: AnyRow) -> None:
        self.seq: int = row.seq
        self.last_sequence: int = row.last_sequence
        self.head: int | None = row.head
        self.due_at = row.due_at


def _new(name: str, column: Any) -> Any:
    return bindparam(name, type_=column.type)


_CHANGE_STATUS: Executable = (
    update(t.terminal_statuses)
    .where(_status.address == _new("new_address", _status.address))
    .values({column.name: _new(f"new_{column.name}", column) for column in _status if not column.primary_key})
)

_MOVE_BOX: Executable = (
    update(t.outbox)
    .where(_box.subscription_seq == _new("new_seq", _box.subscription_seq))
    .values(
        last_sequence=_new("new_last", _box.last_sequence),
        head=_new("new_head", _box.head),
        due_at=_new("new_due", _box.due_at),
    )
)

_UPDATE: Executable = (
    update(t.subscriptions)
    .where(_sub.id == _new("new_id", _sub.id))
    .values(
        {
            column: func.coalesce(_new(f"new_{column.name}", column), column)
            for column in (_sub.notified, _sub.last_notified_at, _sub.awaiting, _sub.expires_at)
        }
        | {
            column: case(
                (_sub.ended_at.is_(None), func.coalesce(_new(f"new_{column.name}", column), column)), else_=column
            )
            for column in (_sub.ended_at, _sub.end_reason, _sub.end_detail)
        }
    )
)


def _update_values(one: SubscriptionUpdate) -> dict[str, Any]:
    return {
        "new_id": one.subscription_id,
        "new_notified": one.notified,
        "new_last_notified_at": one.last_notified_at,
        "new_awaiting": one.awaiting,
        "new_expires_at": one.expires_at,
        "new_ended_at": one.ended_at,
        "new_end_reason": one.end_reason.value if one.end_reason else None,
        "new_end_detail": one.end_detail,
    }


def _terminal_status(row: AnyRow) -> TerminalStatus:
    return TerminalStatus(
        address=TerminalAddress(row.address),
        status=Status(row.status),
        observed_at=row.observed_at,
        source=Source(row.source),
        revision=row.revision,
    )


def sink_values(sink: Sink) -> dict[str, str]:
    """A sink as columns of `subscription`."""
    return {
        "sink_kind": sink.kind.value,
        "sink_url": sink.url,
        "sink_profile": sink.profile,
        "sink_parameters": _json({t.clean(name): t.clean(value) for name, value in sink.parameters.items()}),
    }


def _owed_values(one: OwedNotification, subscription_seq: int, sequence: int) -> dict[str, Any]:
    changes = [(c.address, c.status.value, c.observed_at, c.source.value, c.revision) for c in one.changes]
    return {
        "id": one.id,
        "subscription_seq": subscription_seq,
        "client_id": one.client_id,
        "sequence": sequence,
        "kind": one.kind.value,
        "changes": _json(changes),
        "address": one.address,
        "code": one.code,
        "text": one.text,
        "created_at": one.created_at,
        "next_attempt_at": one.next_attempt_at,
        "attempts": one.attempts,
        "state": one.state.value,
        "settled_at": one.settled_at,
    }


def _usage_values(record: UsageRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "at": record.at,
        "operation": record.operation,
        "client_id": record.client_id,
        "face": record.face,
        "requester": record.requester,
        "targets": _json([t.clean(target) for target in record.targets]),
        "target_count": record.target_count,
        "expanded_count": record.expanded_count,
        "correlator": record.correlator,
        "subscription_id": record.subscription_id,
        "result": record.result,
        "root_cause": record.root_cause,
    }


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
