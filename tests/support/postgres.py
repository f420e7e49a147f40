"""A real PostgreSQL (`bench/postgres.py`) for tests: a database for each test, with a check for connections left open.

Invariants: `new_database` copies a template that has the schema; `drop_database` fails where a connection was left
open. The server does not flush to disk (`fsync=off`): no test here cuts the power.
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
    """Skips the test, with the reason, where PostgreSQL cannot be started; in CI the test fails instead."""
    if reason := postgres.missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class Postgres(postgres.Postgres):
    """A running PostgreSQL: `with Postgres.running() as postgres: …`. It does not depend on an event loop."""

    _migrated = False
    _made = 0

    async def new_database(self, *, empty: bool = False) -> str:
        """Makes a database for one test, with the schema unless `empty`; returns its name."""
        if not self._migrated and not empty:
            self.create_database(_TEMPLATE)
            await migrate(self.url(_TEMPLATE))
            self._migrated = True
        self._made += 1
        name = f"test_{self._made}"
        self.create_database(name, "template0" if empty else _TEMPLATE)
        return name

    def drop_database(self, name: str) -> None:
        """Drops the database. Fails the test where a connection is still open, with that connection's last
        statement."""
        with self.connect() as connection:
            deadline = time.monotonic() + LEAK_DEADLINE_S
            question = "select pid, state, query from pg_stat_activity where datname = %s and pid <> pg_backend_pid()"
            while left := connection.execute(question, [name]).fetchall():
                if time.monotonic() > deadline:
                    connection.execute(f'drop database "{name}" with (force)'.encode())
                    pytest.fail(f"connections are left open: {left}")
                time.sleep(0.01)  # a backend ends a moment after its connection: the pause before the next look
            connection.execute(f'drop database "{name}"'.encode())
