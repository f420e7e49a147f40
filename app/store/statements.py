"""The statements that run most, each made once, for any number of rows in one parameter: a JSON array of arrays.

A parameter for each value would cost the event loop several times as much, and a statement text for each number of
rows would defeat the caches of SQLAlchemy and PostgreSQL. SQLite and PostgreSQL both read JSON; `encoded` writes times
the way SQLAlchemy does in SQLite, and cleans texts, since the types of the columns are not asked here.
"""

from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import (
    JSON,
    Column,
    Executable,
    Select,
    Subquery,
    Table,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from app.domain import require_utc
from app.store import tables as t

_status = t.terminal_statuses.c
_sub = t.subscriptions.c
_box = t.outbox.c
_owed = t.owed_notifications.c


def encoded(rows: Iterable[Iterable[Any]], *, for_sqlite: bool) -> dict[str, str]:
    """The parameter of a statement. Raises ValueError for a time that is not UTC."""
    length = len("2026-03-29 01:30:00.123456") if for_sqlite else None  # PostgreSQL is told the zone

    def cell(value: Any) -> Any:
        if isinstance(value, str):
            return t.clean(value)
        if isinstance(value, datetime):
            require_utc(value)
            return value.isoformat(" ", "microseconds")[:length]
        return value

    return {"rows": msgspec.json.encode([[cell(value) for value in row] for row in rows]).decode()}


class Statements:
    """For one kind of database. Each takes rows of the columns that its comment names."""

    def __init__(self, for_sqlite: bool) -> None:
        self._sqlite = for_sqlite
        self.add_statuses = self._add_statuses()
        self.change_statuses = self._change_statuses()
        self.lock_boxes = self._lock_boxes()
        self.move_boxes = self._move_boxes()
        self.update_subscriptions = self._update_subscriptions()
        self.settle = self._settle()
        self.owe = self._insert(t.owed_notifications)
        """Every column but `seq`, in the order of the table; so in `add_usage`."""
        self.add_usage = self._insert(t.usage_records).on_conflict_do_nothing()

    def _rows(self, *columns: Column[Any] | tuple[str, Column[Any]]) -> "Select[*tuple[Any, ...]]":
        """A query of the parameter's cells, with the types of these columns, and their names or others."""
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
        insert = sqlite.insert(table) if self._sqlite else postgresql.insert(table)
        # Without WHERE, SQLite would read ON CONFLICT as a join's.
        return insert.from_select([column.name for column in columns], self._rows(*columns).where(true()))

    def _add_statuses(self) -> Executable:
        """`terminal_status`'s columns; returns the addresses of those that were not there."""
        executable: Executable = self._insert(t.terminal_statuses).on_conflict_do_nothing().returning(_status.address)
        return executable

    def _change_statuses(self) -> Executable:
        """Those and the revision that must be stored; returns the addresses of those that were so."""
        given = self._named(*_status, ("expected", _status.revision))
        return (
            update(t.terminal_statuses)
            .where(_status.address == given.c.address, _status.revision == given.c.expected)
            .values({column.name: given.c[column.name] for column in _status if not column.primary_key})
            .returning(_status.address)
        )

    def _lock_boxes(self) -> Executable:
        """Subscriptions' ids; returns those that are there, with their outbox, and locks both."""
        return (
            select(_sub.seq, _sub.id, _sub.ended_at, _box.last_sequence, _box.head, _box.due_at)
            .join_from(t.subscriptions, t.outbox)
            .where(_sub.id.in_(self._rows(_sub.id)))
            .order_by(_sub.seq)
            .with_for_update(key_share=True)
        )

    def _move_boxes(self) -> Executable:
        """`subscription_seq`, and new values of the others."""
        columns = (_box.last_sequence, _box.head, _box.due_at)
        given = self._named(_box.subscription_seq, *columns)
        return (
            update(t.outbox)
            .where(_box.subscription_seq == given.c.subscription_seq)
            .values({column.name: given.c[column.name] for column in columns})
        )

    def _update_subscriptions(self) -> Executable:
        """`id` of each subscription once, and new values, NULL for none; the first end of a subscription stays."""
        progress = (_sub.notified, _sub.last_notified_at, _sub.awaiting, _sub.expires_at)
        end = (_sub.ended_at, _sub.end_reason, _sub.end_detail)
        given = self._named(_sub.id, *progress, *end)
        values: dict[str, Any] = {c.name: func.coalesce(given.c[c.name], c) for c in (*progress, *end)}
        for column in end:
            values[column.name] = case((_sub.ended_at.is_(None), values[column.name]), else_=column)
        return update(t.subscriptions).where(_sub.id == given.c.id).values(values)

    def _settle(self) -> Executable:
        """`seq` of each notification once, and new values."""
        columns = (_owed.attempts, _owed.state, _owed.next_attempt_at, _owed.settled_at)
        given = self._named(_owed.seq, *columns)
        values = {column.name: given.c[column.name] for column in columns}
        return update(t.owed_notifications).where(_owed.seq == given.c.seq).values(values)


@cache
def statements(*, for_sqlite: bool) -> Statements:
    """Those of one kind of database."""
    return Statements(for_sqlite)
