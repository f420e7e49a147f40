"""Records the statements that a database is asked, and how many rows each returns."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, event


@dataclass
class Asked:
    """Statements in order, and the number of rows that each SQLite cursor returned."""

    statements: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    _cursor: object = None

    def reads_of(self, table: str) -> list[str]:
        return [one for one in self.statements if one.startswith("SELECT") and table in one]

    def forget(self) -> None:
        self.statements.clear()
        self.rows.clear()
        self._cursor = None

    def executed(self, _connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        self.statements.append(statement)

    def connected(self, connection: Any, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.row_factory = self._row

    def _row(self, cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        if cursor is not self._cursor:
            self._cursor = cursor
            self.rows.append(0)
        self.rows[-1] += 1
        return row


@contextmanager
def asked() -> Iterator[Asked]:
    """Records the statements of every database engine in this process, including engines made meanwhile."""
    seen = Asked()
    listeners = (("before_cursor_execute", seen.executed), ("connect", seen.connected))
    for name, listener in listeners:
        event.listen(Engine, name, listener)
    try:
        yield seen
    finally:
        for name, listener in listeners:
            event.remove(Engine, name, listener)
