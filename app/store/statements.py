"""The most frequent statements, prepared once. One parameter has any number of rows: a JSON array of arrays.

With one parameter per value, SQLAlchemy takes several times as long, and a statement text for each number of rows would
fill the statement caches of SQLAlchemy and PostgreSQL. Both databases read JSON. `encoded` writes times as SQLAlchemy
does for SQLite, and cleans texts, because the types of the columns are not applied here. Usage records on SQLite are
the exception, because there are so many: `add_rows` bypasses SQLAlchemy.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Executable,
    Integer,
    Select,
    Subquery,
    Table,
    Text,
    any_,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from app.domain.records import DeliveryState
from app.domain.statuses import require_utc
from app.store import tables as t

_status = t.terminal_statuses.c
_sub = t.subscriptions.c
_box = t.outbox.c
_owed = t.owed_notifications.c
_address = t.subscription_addresses.c

OWED = select(t.owed_notifications, _sub.id.label("subscription_id")).join_from(t.owed_notifications, t.subscriptions)
IS = {state: _owed.state == literal_column(f"'{state.value}'") for state in DeliveryState}
"""Literals, not parameters: only then can a plan use the partial indexes for pending and for dead notifications."""


def sqlite_time(time: datetime) -> str:
    """The time as SQLAlchemy writes it in SQLite. Raises ValueError for a time that is not UTC."""
    if time.tzinfo is not UTC:
        require_utc(time)
    text = msgspec.json.encode(time).decode()  # "2026-03-29T01:30:00.123456Z", in a tenth of `isoformat`'s time
    return f"{text[1:11]} {text[12:-2] if text[20] == '.' else text[12:20] + '.000000'}"


def encoded(rows: Iterable[Iterable[Any]], *, for_sqlite: bool) -> dict[str, str]:
    """The parameter of a statement. Raises ValueError for a time that is not UTC."""

    def cell(value: Any) -> Any:
        if isinstance(value, str):
            return t.clean(value)
        if isinstance(value, datetime):
            if for_sqlite:
                return sqlite_time(value)
            require_utc(value)  # it is encoded with its zone, for PostgreSQL
        return value

    return {"rows": msgspec.json.encode([[cell(value) for value in row] for row in rows]).decode()}


MAX_ROWS = 2048
"""Most rows of one `add_rows`: SQLite allows 32,766 parameters."""


def add_rows(table: Table, rows: Sequence[Sequence[Any]]) -> tuple[str, tuple[Any, ...]]:
    """A statement for SQLite's driver, with its parameters, that adds rows and skips existing rows. Rows have all
    columns except `seq`, in the order of the table: times by `sqlite_time`, texts cleaned. Takes a third of the time of
    JSON.

    The last row is repeated until the number of rows is one of a few sizes (eight between two powers of two), so that
    few statements are parsed; the database skips the repetitions. Raises ValueError for more than MAX_ROWS.
    """
    step = max(1, 1 << (len(rows) - 1).bit_length() >> 4)
    size = -(-len(rows) // step) * step
    if not 0 < size <= MAX_ROWS:
        raise ValueError(f"{len(rows)} rows are not 1 to {MAX_ROWS}")
    return _add_rows(table, size), tuple(chain.from_iterable((*rows, *([rows[-1]] * (size - len(rows))))))


@cache
def _add_rows(table: Table, size: int) -> str:
    names = [column.name for column in table.c if column.name != "seq"]
    row = f"({', '.join('?' * len(names))})"
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES {', '.join([row] * size)} ON CONFLICT DO NOTHING"  # noqa: S608


LISTED = "listed"


def among(column: ColumnElement[Any], name: str | None, value: Any = None, *, for_sqlite: bool) -> ColumnElement[bool]:
    """Whether the column has one of any number of values, which are a single parameter, made by `listed`. Either the
    parameter's `name` is given, for a value set later, or its `value`."""

    def parameter(kind: Any) -> BindParameter[Any]:
        return bindparam(name, type_=kind, required=True) if name else bindparam(None, value, kind)

    if for_sqlite:
        each = func.json_each(parameter(Text)).table_valued("value")
        return column.in_(select(each.c.value))
    return column == any_(parameter(ARRAY(BigInteger() if isinstance(column.type, BigInteger) else Text())))


def listed(values: Iterable[str] | Iterable[int], *, for_sqlite: bool) -> Any:
    """The parameter of `among`."""
    items = [t.clean(value) if isinstance(value, str) else value for value in values]
    return msgspec.json.encode(items).decode() if for_sqlite else items


class Statements:
    """The statements for one kind of database. The parameter of each has rows of the columns that the statement's
    docstring names, or the values for `among`."""

    def __init__(self, for_sqlite: bool) -> None:
        self._sqlite = for_sqlite
        self.add_statuses = self._add_statuses()
        self.change_statuses = self._change_statuses()
        self.lock_boxes = self._lock_boxes()
        self.move_boxes = self._move_boxes()
        self.update_subscriptions = self._update_subscriptions()
        self.update_lists = self._update_lists()
        self.settle = self._settle()
        self.owe = self._insert(t.owed_notifications)
        """All columns except `seq`, in the order of the table; also for `add_usage` (SQLite: `add_rows`)."""
        self.add_usage = self._insert(t.usage_records).on_conflict_do_nothing()
        self.add_members = self._add_list(t.group_members)
        self.add_addresses = self._add_list(t.subscription_addresses)
        self.subscriptions = select(t.subscriptions).where(self._among(_sub.id))
        self.addresses = (
            select(_address.subscription_seq, _address.address)
            .where(self._among(_address.subscription_seq))
            .order_by(_address.subscription_seq, _address.position)
        )
        """By the subscriptions' `seq`."""
        self.address_counts = (
            select(_address.subscription_seq, func.count())
            .where(self._among(_address.subscription_seq))
            .group_by(_address.subscription_seq)
        )
        self.due = (
            select(_box.subscription_seq)
            .where(_box.due_at <= bindparam("now", type_=_box.due_at.type))
            .order_by(_box.due_at)
            .limit(bindparam("most", type_=Integer))
            .with_for_update(skip_locked=True)
        )
        self.lease = (
            update(t.outbox)
            .where(self._among(_box.subscription_seq))
            .values(
                due_at=bindparam("until", type_=_box.due_at.type),
                lease_owner=bindparam("owner", type_=_box.lease_owner.type),
                leased=_box.head,
            )
        )
        self.heads = (
            OWED.add_columns(
                _sub.sink_kind, _sub.sink_profile, _sub.sink_key, _sub.correlator, _sub.x_correlator, _sub.end_reason
            )
            .join(t.outbox, (_box.subscription_seq == _owed.subscription_seq) & (_box.head == _owed.sequence))
            .where(self._among(_box.subscription_seq))
            .order_by(_owed.seq)
        )
        self.lock_owing = (
            select(_sub.seq)
            .join_from(t.subscriptions, t.outbox)
            .where(_sub.seq.in_(select(_owed.subscription_seq).where(self._among(_owed.id))))
            .order_by(_sub.seq)
            .with_for_update(key_share=True)
        )
        self.notifications = (
            select(
                _owed.id,
                _owed.seq,
                _owed.subscription_seq,
                _owed.sequence,
                _owed.attempts,
                _owed.state,
                _owed.next_attempt_at,
                _owed.settled_at,
                _box.leased,
                _box.lease_owner,
                _sub.suspended_at,
                _sub.sink_kind,
                _sub.sink_profile,
                _sub.end_reason,
            )
            .join_from(t.owed_notifications, t.outbox, _box.subscription_seq == _owed.subscription_seq)
            .join(t.subscriptions, _sub.seq == _owed.subscription_seq)
            .where(self._among(_owed.id))
        )
        self.move_free_heads, self.move_held_heads = self._move_heads()

    def _among(self, column: ColumnElement[Any]) -> ColumnElement[bool]:
        return among(column, LISTED, for_sqlite=self._sqlite)

    def _rows(self, *columns: Column[Any] | tuple[str, Column[Any]]) -> "Select[*tuple[Any, ...]]":
        """A query of the parameter's cells, with the types of these columns, and their names or the given names."""
        data = bindparam("rows", type_=Text)
        named = [column if isinstance(column, tuple) else (column.name, column) for column in columns]
        if self._sqlite:
            each = func.json_each(data).table_valued("value", name="each")
            cells = [
                func.json_extract(each.c.value, literal_column(f"'$[{i}]'"), type_=column.type).label(name)
                for i, (name, column) in enumerate(named)
            ]
            return select(*cells).select_from(each)
        one = func.json_array_elements(cast(data, JSON)).column_valued("each")
        texts = [one.op("->>")(literal_column(str(i))) for i in range(len(named))]
        return select(
            *(
                (text if isinstance(column.type, t.CleanText) else cast(text, column.type)).label(name)
                for text, (name, column) in zip(texts, named, strict=True)
            )
        )

    def _named(self, *columns: Column[Any] | tuple[str, Column[Any]]) -> Subquery:
        return self._rows(*columns).subquery("given")

    def _insert(self, table: Table) -> Any:  # the two dialects' Insert have no common type with `on_conflict…`
        columns = [column for column in table.c if column.name != "seq"]
        added = sqlite.insert(table) if self._sqlite else postgresql.insert(table)
        # Without WHERE, SQLite's parser takes ON CONFLICT for part of a join.
        return added.from_select([column.name for column in columns], self._rows(*columns).where(true()))

    def _add_list(self, table: Table) -> Executable:
        """The table's first columns, which identify the list, and `texts`: its items in JSON, which get positions. One
        row per item would block the writer for long."""
        data = bindparam("texts", type_=Text)
        if self._sqlite:
            given = func.json_each(data).table_valued("key", "value")
            position: ColumnElement[Any] = given.c.key
        else:
            given = func.json_array_elements_text(cast(data, JSON)).table_valued("value", with_ordinality="key")
            given = given.render_derived()
            position = cast(given.c.key - 1, Integer)
        *whose, _position, _item = table.c
        named = [bindparam(column.name, type_=column.type) for column in whose]
        return insert(table).from_select([column.name for column in table.c], select(*named, position, given.c.value))

    def _add_statuses(self) -> Executable:
        """The columns of `terminal_status`; returns the addresses that had no row."""
        executable: Executable = self._insert(t.terminal_statuses).on_conflict_do_nothing().returning(_status.address)
        return executable

    def _change_statuses(self) -> Executable:
        """The columns of `terminal_status`, and the expected stored revision. A smaller stored revision is accepted:
        the database has lost its last transactions (a restored backup, a failover). Returns the changed addresses."""
        given = self._named(*_status, ("expected", _status.revision))
        return (
            update(t.terminal_statuses)
            .where(_status.address == given.c.address, _status.revision <= given.c.expected)
            .values({column.name: given.c[column.name] for column in _status if not column.primary_key})
            .returning(_status.address)
        )

    def _lock_boxes(self) -> Executable:
        """Ids of subscriptions; returns and locks the existing ones with their outbox."""
        return (
            select(_sub.seq, _sub.id, _sub.ended_at, _box.last_sequence, _box.head, _box.due_at)
            .join_from(t.subscriptions, t.outbox)
            .where(_sub.id.in_(self._rows(_sub.id)))
            .order_by(_sub.seq)
            .with_for_update(key_share=True)
        )

    def _move_boxes(self) -> Executable:
        """`subscription_seq`, and new values of the other columns."""
        columns = (_box.last_sequence, _box.head, _box.due_at)
        given = self._named(_box.subscription_seq, *columns)
        return (
            update(t.outbox)
            .where(_box.subscription_seq == given.c.subscription_seq)
            .values({column.name: given.c[column.name] for column in columns})
        )

    def _move_heads(self) -> tuple[Executable, Executable]:
        """By `subscription_seq`: two statements that make the first unsettled notification the head of its outbox. The
        first clears the lease, the second keeps a running lease and its expiry."""
        pending = (_owed.subscription_seq == _box.subscription_seq) & IS[DeliveryState.PENDING]
        head = select(func.min(_owed.sequence)).where(pending).scalar_subquery()
        due = select(_owed.next_attempt_at).where(pending).order_by(_owed.sequence).limit(1).scalar_subquery()
        leased = _box.lease_owner.is_not(None) & _box.due_at.is_not(None) & head.is_not(None)
        which = update(t.outbox).where(self._among(_box.subscription_seq))
        return (
            which.values(head=head, due_at=due, lease_owner=null(), leased=null()),
            which.values(head=head, due_at=case((leased, _box.due_at), else_=due)),
        )

    def _update_subscriptions(self) -> Executable:
        """`id` of each subscription once, and new values (NULL: unchanged). An end that is stored is not changed."""
        progress = (_sub.notified, _sub.last_notified_at, _sub.awaiting)
        end = (_sub.ended_at, _sub.end_reason, _sub.end_detail)
        given = self._named(_sub.id, *progress, *end)
        values: dict[str, Any] = {c.name: func.coalesce(given.c[c.name], c) for c in (*progress, *end)}
        for column in end:
            values[column.name] = case((_sub.ended_at.is_(None), values[column.name]), else_=column)
        return update(t.subscriptions).where(_sub.id == given.c.id).values(values)

    def _update_lists(self) -> Executable:
        """`id` of each subscription once, and new lists (NULL: unchanged)."""
        columns = (_sub.groups, _sub.joined, _sub.held)
        given = self._named(_sub.id, *columns)
        values = {column.name: func.coalesce(given.c[column.name], column) for column in columns}
        return update(t.subscriptions).where(_sub.id == given.c.id).values(values)

    def _settle(self) -> Executable:
        """`seq` of each notification once, and new values."""
        columns = (_owed.attempts, _owed.state, _owed.next_attempt_at, _owed.settled_at)
        given = self._named(_owed.seq, *columns)
        values = {column.name: given.c[column.name] for column in columns}
        return update(t.owed_notifications).where(_owed.seq == given.c.seq).values(values)


@cache
def statements(*, for_sqlite: bool) -> Statements:
    """The statements for one kind of database."""
    return Statements(for_sqlite)
