"""A real PostgreSQL (`bench/postgres.py`) for tests: a database for each, and none of its connections left open.

Invariants: `new_database` copies a template that has the schema; `drop_database` fails where a connection was left
open. It writes nothing through to the disk (`fsync=off`): no test here cuts the power.
"""

import os
import time

import pytest

from app.store import migrate
from bench import postgres

__all__ = ["Postgres", "require"]

LEAK_DEADLINE_S = 5.0
_TEMPLATE = "template_of_tests"


def require() -> None:
    """Skips the test where PostgreSQL cannot be started, and says why; in CI that is a failure."""
    if reason := postgres.missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class Postgres(postgres.Postgres):
    """A running PostgreSQL: `with Postgres.running() as postgres: …`. Not tied to an event loop."""

    _migrated = False
    _made = 0

    async def new_database(self, *, empty: bool = False) -> str:
        """A database of its own for a test, with the schema unless `empty`; its name."""
        if not self._migrated and not empty:
            self.create_database(_TEMPLATE)
            await migrate(self.url(_TEMPLATE))
            self._migrated = True
        self._made += 1
        name = f"test_{self._made}"
        self.create_database(name, "template0" if empty else _TEMPLATE)
        return name

    def drop_database(self, name: str) -> None:
        """Drops it. Fails the test where one of its connections is still open, and says what it was doing."""
        with self.connect() as connection:
            deadline = time.monotonic() + LEAK_DEADLINE_S
            question = "select pid, state, query from pg_stat_activity where datname = %s and pid <> pg_backend_pid()"
            while left := connection.execute(question, [name]).fetchall():
                if time.monotonic() > deadline:
                    connection.execute(f'drop database "{name}" with (force)'.encode())
                    pytest.fail(f"connections are left open: {left}")
                time.sleep(0.01)  # a backend ends a moment after its connection; the pause between two questions
            connection.execute(f'drop database "{name}"'.encode())
