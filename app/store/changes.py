"""Writes statuses by compare-and-set, the progress of subscriptions, owed notifications and usage records.

Every transaction locks rows in the same order, so that there are no deadlocks: statuses by address, then subscriptions
and their outbox by `seq`, then added rows; usage records last.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import CursorResult, Engine, Executable, case, delete, insert, null, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes, SubscriptionEdit, SubscriptionUpdate
from app.domain.errors import SubscriptionUnknown
from app.domain.records import AuditEntry, DeliveryState, OwedNotification, UsageRecord
from app.domain.sinks import SINK_UNREADABLE, Sink, SinkKind, overlap_ends_at
from app.domain.statuses import Source, Status, TerminalStatus
from app.store import tables as t
from app.store.database import AnyRow, Database
from app.store.encryption import SecretKeys
from app.store.statements import IS, MAX_ROWS, add_rows, encoded, sqlite_time, statements

USAGE_LOCK = 0x7465_7273
"""A PostgreSQL advisory lock: shared by writers of usage records, exclusive for readers, who would else miss records.

Numbers are assigned before the commit: without the lock, a page could end at a number while a smaller number is not
committed yet. The lock is taken before the last statement of a transaction: earlier, it could deadlock with row
locks."""

NOTHING = "{}"
"""The stored parameters of a sink without parameters."""

_status = t.terminal_statuses.c
_sub = t.subscriptions.c
_box = t.outbox.c
_owed = t.owed_notifications.c


class _Conflict(Exception):
    def __init__(self, stored: Sequence[TerminalStatus]) -> None:
        super().__init__()
        self.stored = stored


class Writing(Database):
    """As `ports.store.Store` says."""

    def __init__(self, engine: AsyncEngine | Engine, keys: SecretKeys | None = None) -> None:
        """`keys` encrypt sinks' parameters; None: they are stored unencrypted."""
        super().__init__(engine)
        self._keys = keys or SecretKeys()
        self._sql = statements(for_sqlite=self.sqlite)

    async def write(self, changes: Changes) -> Sequence[TerminalStatus]:
        """Writes all changes in one transaction, or nothing, and returns the stored statuses that prevented it.

        Several statuses of one terminal must have consecutive revisions. If no status of a terminal is stored, any
        revision is accepted. An update never changes the end of a subscription that has ended. Usage records and
        notifications with a stored id are skipped: an earlier call wrote them, and its answer was lost. Raises
        SubscriptionUnknown if a notification's subscription does not exist, or an edited subscription has ended.
        """
        owed = changes.owed

        async def work(c: AsyncConnection) -> None:
            await self._put_statuses(c, changes.statuses)
            await self._owe(c, changes.updates, owed, edits=changes.edits)
            for entry in changes.audit:
                await c.execute(audit_line(entry))
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
        """The stored statuses, by address. Terminals without a stored status are left out."""
        rows = await self._all(select(t.terminal_statuses).where(self._among(_status.address, addresses)))
        return {row.address: _terminal_status(row) for row in rows}

    async def write_usage(self, records: Sequence[UsageRecord]) -> None:
        """Adds usage records; records with a stored id are skipped."""
        if records:
            alone = self.sqlite and len(records) <= MAX_ROWS
            await self._write(lambda c: self._add_usage(c, records), one_statement=alone)

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
        rows = {
            address: (address, one.status.value, one.observed_at, one.source.value, one.revision, first[address] - 1)
            for address, one in sorted(last.items())
        }
        changed = await self._run(c, self._sql.change_statuses, rows.values())
        if missed := rows.keys() - changed.scalars().all():
            new = await self._run(c, self._sql.add_statuses, [rows[address][:-1] for address in sorted(missed)])
            if missed := missed - set(new.scalars()):
                rows_there = select(t.terminal_statuses).where(self._among(_status.address, missed))
                raise _Conflict([_terminal_status(row) for row in await c.execute(rows_there)])

    async def _owe(
        self,
        c: AsyncConnection,
        updates: Sequence[SubscriptionUpdate],
        owed: Sequence[OwedNotification],
        *,
        edits: Sequence[SubscriptionEdit] = (),
        ended_too: bool = False,
    ) -> None:
        """Edits and updates subscriptions and numbers their notifications. Without `ended_too`, subscriptions that have
        ended meanwhile get no more notifications."""
        ids = {one.subscription_id for one in updates} | {one.subscription_id for one in owed}
        ids.update([one.subscription_id for one in edits])
        if not ids:
            return
        boxes = {row.id: _Box(row) for row in await self._run(c, self._sql.lock_boxes, [[one] for one in ids])}
        if missing := ids - boxes.keys():
            raise SubscriptionUnknown(f"There is no subscription {min(missing)!r}.", subscription_id=min(missing))
        for edit in edits:
            box = boxes[edit.subscription_id]
            if box.ended:
                raise SubscriptionUnknown("The subscription has ended.", subscription_id=edit.subscription_id)
            await self._edit(c, edit, box.seq)
        await self._update_subscriptions(c, updates)
        for ended in updates:
            if ended.withdraws:
                await self._withdraw(c, boxes[ended.subscription_id].seq, ended.ended_at)
        owed = [one for one in owed if ended_too or not boxes[one.subscription_id].ended]
        if not owed:
            return
        rows: list[Sequence[Any]] = []
        moved: dict[str, _Box] = {}
        for one in owed:
            box = moved[one.subscription_id] = boxes[one.subscription_id]
            box.last_sequence += 1
            if one.state is DeliveryState.PENDING and box.head is None:
                box.head, box.due_at = box.last_sequence, one.next_attempt_at
            rows.append(_owed_values(one, box.seq, box.last_sequence))
        boxes_now = [(box.seq, box.last_sequence, box.head, box.due_at) for box in moved.values()]
        await self._run(c, self._sql.move_boxes, boxes_now)
        await self._run(c, self._sql.owe, rows)

    async def _withdraw(self, c: AsyncConnection, subscription_seq: int, at: datetime | None) -> None:
        """Withdraws unsettled notifications. A running lease stays with its owner, who will release it."""
        pending = (_owed.subscription_seq == subscription_seq) & IS[DeliveryState.PENDING]
        settled = {"state": DeliveryState.WITHDRAWN.value, "settled_at": at}
        await c.execute(update(t.owed_notifications).where(pending).values(settled))
        held = _box.due_at > at
        values = {
            "head": None,
            "due_at": None,
            "lease_owner": case((held, _box.lease_owner), else_=null()),
            "leased": case((held, _box.leased), else_=null()),
        }
        await c.execute(update(t.outbox).where(_box.subscription_seq == subscription_seq).values(values))

    async def _edit(self, c: AsyncConnection, edit: SubscriptionEdit, seq: int) -> None:
        """Writes a client's change of a subscription; the caller has locked its row."""
        values: dict[str, Any] = {
            "version": edit.version,
            "criteria": criteria_text(edit.criteria),
            "expires_at": edit.expires_at,
        }
        if edit.sink is not None:
            values |= self._sink_values(edit.subscription_id, edit.sink)
        if edit.resumes_at is not None:
            values["suspended_at"] = None
        await c.execute(update(t.subscriptions).where(_sub.seq == seq).values(values))
        if edit.addresses is not None:
            await c.execute(delete(t.subscription_addresses).where(t.subscription_addresses.c.subscription_seq == seq))
            await self._add_addresses(c, seq, edit.addresses)
        if edit.resumes_at is not None:
            await self._resume(c, seq, edit.resumes_at)

    async def _add_addresses(self, c: AsyncConnection, seq: int, addresses: Sequence[TerminalAddress]) -> None:
        if addresses:
            texts = as_json([t.clean(address) for address in addresses])
            await c.execute(self._sql.add_addresses, {"subscription_seq": seq, "texts": texts})

    async def _resume(self, c: AsyncConnection, seq: int, at: datetime) -> None:
        """Makes unsettled notifications due at `at`. A running lease stays with its owner: an attempt is in flight, or
        will begin."""
        waits = (_owed.subscription_seq == seq) & IS[DeliveryState.PENDING] & (_owed.next_attempt_at > at)
        await c.execute(update(t.owed_notifications).where(waits).values(next_attempt_at=at))
        free = _box.lease_owner.is_(None) & (_box.due_at > at)
        await c.execute(update(t.outbox).where((_box.subscription_seq == seq) & free).values(due_at=at))

    async def _update_subscriptions(self, c: AsyncConnection, updates: Sequence[SubscriptionUpdate]) -> None:
        if not updates:
            return
        merged: dict[str, list[Any]] = {}
        for one in updates:
            merged[one.subscription_id] = _merged(merged.get(one.subscription_id), one)
        if rows := [row for row in merged.values() if any(value is not None for value in row[1:])]:
            await self._run(c, self._sql.update_subscriptions, rows)
        if lists := _lists(updates):
            await self._run(c, self._sql.update_lists, lists)

    def _sink_values(self, subscription_id: str, sink: Sink) -> dict[str, Any]:
        """A sink as columns of `subscription`."""
        if SINK_UNREADABLE in sink.parameters:
            raise ValueError(f"the unreadable parameters of {subscription_id}'s sink would be lost")
        text = as_json({t.clean(name): t.clean(value) for name, value in sink.parameters.items()})
        row = SinkRow(sink.kind.value, t.clean(sink.url), t.clean(sink.profile), text, "")
        return {**row.encrypted(subscription_id, self._keys)._asdict(), "secret_ends_at": overlap_ends_at(sink)}

    async def _known_notifications(self, owed: Sequence[OwedNotification]) -> set[str]:
        ids = t.owed_notifications.c.id
        return {row.id for row in await self._all(select(ids).where(self._among(ids, [one.id for one in owed])))}

    async def _add_usage(self, c: AsyncConnection, records: Sequence[UsageRecord]) -> None:
        """Must be the last statement of its transaction, because of USAGE_LOCK."""
        if not records:
            return
        if self.sqlite:
            rows = [_usage_values(record, sqlite_time(record.at)) for record in records]
            for start in range(0, len(rows), MAX_ROWS):
                await c.exec_driver_sql(*add_rows(t.usage_records, rows[start : start + MAX_ROWS]))
        else:
            await c.execute(text("select pg_advisory_xact_lock_shared(:key)"), {"key": USAGE_LOCK})
            await self._run(c, self._sql.add_usage, [_usage_values(record, record.at) for record in records])

    async def _run(
        self, c: AsyncConnection, statement: Executable, rows: Iterable[Iterable[Any]]
    ) -> "CursorResult[*tuple[Any, ...]]":
        """Executes a statement of `self._sql` with its rows."""
        return await c.execute(statement, encoded(rows, for_sqlite=self.sqlite))


class _Box:
    __slots__ = ("due_at", "ended", "head", "last_sequence", "seq")

    def __init__(self, row: AnyRow) -> None:
        self.seq: int = row.seq
        self.ended = row.ended_at is not None
        self.last_sequence: int = row.last_sequence
        self.head: int | None = row.head
        self.due_at = row.due_at


def _merged(before: list[Any] | None, one: SubscriptionUpdate) -> list[Any]:
    """An update as a row of `update_subscriptions`, merged with an earlier update of the same subscription."""
    reason = one.end_reason.value if one.end_reason else None
    progress: list[Any] = [one.subscription_id, one.notified, one.last_notified_at, one.awaiting]
    end: list[Any] = [one.ended_at, reason, one.end_detail]
    if before is None:
        return progress + end
    ended = before[len(progress)] is not None
    return [
        old if new is None or (ended and i >= len(progress)) else new
        for i, (old, new) in enumerate(zip(before, progress + end, strict=True))
    ]


def _lists(updates: Sequence[SubscriptionUpdate]) -> list[list[str | None]]:
    """Rows of `update_lists`, for updates with lists; the last update of each subscription wins."""
    rows: dict[str, list[str | None]] = {}
    for one in updates:
        if one.groups is None and one.joined is None and one.held is None:
            continue
        before = rows.get(one.subscription_id, [one.subscription_id, None, None, None])
        new = (
            one.subscription_id,
            *[as_json(of) if of is not None else None for of in (one.groups, one.joined, one.held)],
        )
        rows[one.subscription_id] = [old if value is None else value for old, value in zip(before, new, strict=True)]
    return list(rows.values())


def criteria_text(criteria: Iterable[Status]) -> str:
    """Criteria as the cell of `subscription`."""
    return ",".join(sorted(status.value for status in criteria))


def _terminal_status(row: AnyRow) -> TerminalStatus:
    return TerminalStatus(
        address=TerminalAddress(row.address),
        status=Status(row.status),
        observed_at=row.observed_at,
        source=Source(row.source),
        revision=row.revision,
    )


def audit_line(entry: AuditEntry) -> Executable:
    """The statement that adds an entry to the audit log."""
    details = as_json({t.clean(name): t.clean(value) for name, value in entry.details.items()})
    return insert(t.audit_log).values(at=entry.at, who=entry.actor, what=entry.action.value, details=details)


class SinkRow(NamedTuple):
    """A sink as columns of `subscription`."""

    sink_kind: str
    sink_url: str
    sink_profile: str
    sink_parameters: str
    sink_key: str
    """The id of the key that encrypts the parameters; "": unencrypted."""

    def encrypted(self, subscription_id: str, keys: SecretKeys) -> "SinkRow":
        """The row with encrypted parameters, if it has any and they are not encrypted yet."""
        if self.sink_parameters == NOTHING:
            return self
        text, key_id = keys.encrypted(self.sink_parameters, subscription_id, *self[:3])
        return self._replace(sink_parameters=text, sink_key=key_id)

    def decrypted(self, subscription_id: str, keys: SecretKeys) -> "SinkRow | None":
        """The row with decrypted parameters; None if they cannot be decrypted."""
        if not self.sink_key:
            return self
        text = keys.decrypted(self.sink_parameters, self.sink_key, subscription_id, *self[:3])
        return None if text is None else self._replace(sink_parameters=text, sink_key="")

    def sink(self) -> Sink:
        """The sink of a row that is not encrypted."""
        parameters = msgspec.json.decode(self.sink_parameters)
        return Sink(kind=SinkKind(self.sink_kind), url=self.sink_url, profile=self.sink_profile, parameters=parameters)


def _owed_values(one: OwedNotification, subscription_seq: int, sequence: int) -> Sequence[Any]:
    changes = [(c.address, c.status.value, c.observed_at, c.source.value, c.revision) for c in one.changes]
    return (
        one.id,
        subscription_seq,
        one.client_id,
        sequence,
        one.kind.value,
        as_json(changes),
        one.address,
        one.code,
        one.text,
        one.created_at,
        one.next_attempt_at,
        one.attempts,
        one.state.value,
        one.settled_at,
    )


def _usage_values(record: UsageRecord, at: datetime | str) -> Sequence[Any]:
    """Cells of a usage record. Only texts from callers are cleaned; the others are the gateway's own."""
    return (
        record.id,
        at,
        record.operation.value,
        record.client_id,
        record.face.value,
        t.clean(record.requester),
        as_json([t.clean(target) for target in record.targets]),
        record.target_count,
        record.expanded_count,
        t.clean(record.correlator),
        t.clean(record.subscription_id),
        record.result,
        t.clean(record.root_cause),
        as_json([t.clean(target) for target in record.expanded_targets]) if record.expanded_targets else "[]",
        record.x_correlator,
    )


def as_json(value: object) -> str:
    """Lists and mappings as they are stored."""
    return msgspec.json.encode(value).decode()
