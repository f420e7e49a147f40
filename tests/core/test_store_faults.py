"""The store while its database is locked, full or gone, and when processes die or start at once."""

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, bindparam, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from app.domain.changes import Changes
from app.domain.errors import StoreUnavailable
from app.domain.filters import AuditFilter, SubscriptionFilter, UsageFilter
from app.domain.operations import AuditAction
from app.main import CannotStart, run_gateway
from app.ports.store import Page
from app.sandbox import Sandbox
from app.settings.loading import Settings
from app.store import DatabaseUnavailable, SqlStore, check_database, migrate, migrations, open_store, shown_url
from app.store.engines import dispose, make_engine, on_connection
from app.store.tables import METADATA, UtcDateTime
from tests.support.core import TEAM
from tests.support.postgres import Postgres
from tests.support.records import ALICE, AT, BOB, after, edit_of, make, owed, sequences, status, subscription, usage
from tests.support.settings import settings_for
from tests.support.waiting import until

EVERYTHING = Changes(statuses=[status(BOB)], owed=[owed("n1")], usage=[usage("u1")])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path for an SQLite database, in a directory of its own."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "ts.sqlite3"


@pytest_asyncio.fixture
async def sqlite(path: Path) -> AsyncIterator[SqlStore]:
    """A store in that file; statements wait 50 ms for locks."""
    async with await open_store(f"sqlite:///{path}", busy_timeout_ms=50) as store:
        await make(store, "s1")
        await store.write(Changes(statuses=[status(ALICE)]))
        yield store


@pytest_asyncio.fixture
async def postgresql(postgres: Postgres) -> AsyncIterator[tuple[SqlStore, str]]:
    """A store in PostgreSQL whose statements wait 50 ms for locks, and the name of its database."""
    name = await postgres.new_database()
    async with await open_store(postgres.url(name), busy_timeout_ms=50) as store:
        await make(store, "s1")
        await store.write(Changes(statuses=[status(ALICE)]))
        yield store, name
    postgres.drop_database(name)


async def fails(store: SqlStore, reason: str) -> None:
    """Asserts that every kind of write raises StoreUnavailable with this reason."""
    for write in (
        store.write(EVERYTHING),
        store.create_subscription(subscription("s2", request_id="r"), [owed("n2", "s2")], ()),
        store.write_usage([usage("u1")]),
        store.audit(AT, "operator", AuditAction.CLIENT_ADDED, {}),
        store.claim(after(99), after(100), 10, "me"),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            await write
        assert (caught.value.details["reason"], caught.value.retryable) == (reason, True)


async def works_and_has_nothing_of_what_failed(store: SqlStore) -> None:
    """Asserts that failed writes left nothing behind, and succeed now."""
    assert await store.statuses([ALICE, BOB]) == {ALICE: status(ALICE)}
    assert await sequences(store, "s1") == []
    assert await store.subscription("s2") is None
    assert await store.usage(Page(), UsageFilter(start=AT)) == ([], "")
    assert await store.audit_entries(Page(), AuditFilter(start=AT)) == ([], "")
    assert await store.write(EVERYTHING) == ()
    assert await sequences(store, "s1") == [("n1", 1)]


def move(old: Path, new: Path) -> None:
    """Renames a file or folder."""
    old.rename(new)


async def test_sqlite_locked(sqlite: SqlStore, path: Path) -> None:
    """While another process writes, writes fail after the busy timeout and reads work; afterwards everything works."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with capture_logs() as logs:
            for _ in range(2):
                await fails(sqlite, "locked")
                assert await sqlite.statuses([ALICE]) == {ALICE: status(ALICE)}
            other.execute("rollback")
            await works_and_has_nothing_of_what_failed(sqlite)
    assert [line["event"] for line in logs] == ["store_unavailable", "store_available"]


def all_connections(store: SqlStore) -> Iterator[Connection]:
    """All connections of the SQLite store, held at once."""
    assert isinstance(store.engine, Engine)
    with contextlib.ExitStack() as stack:
        yield from [stack.enter_context(store.engine.connect()) for _ in range(5)]


SLOW = text("with recursive n(x) as (select 1 union all select x + 1 from n where x < 400000) select count(*) from n")


async def test_sqlite_transaction_that_takes_too_long_goes_no_further(
    sqlite: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that takes too long is rolled back in the middle: no further statement runs, and the next
    transaction proceeds."""
    begun = 0

    async def too_much(c: AsyncConnection) -> None:
        nonlocal begun
        await c.execute(insert(METADATA.tables["audit_log"]), {"at": AT, "who": "x", "what": "y", "details": "{}"})
        for _ in range(100):
            begun += 1
            await c.execute(SLOW)

    monkeypatch.setattr("app.store.database.TRANSACTION_S", 0.2)
    with pytest.raises(StoreUnavailable) as caught:
        await sqlite._write(too_much)  # noqa: SLF001  # nothing of the store takes so long
    assert caught.value.details["reason"] == "hangs"
    monkeypatch.undo()
    async with asyncio.timeout(20):
        while sqlite._free_threads._value < 5:  # noqa: SLF001, ASYNC110  # no event to await
            await asyncio.sleep(0.01)
    assert begun < 100
    assert (await sqlite.audit_entries(Page(), AuditFilter(start=AT)))[0] == []
    await works_and_has_nothing_of_what_failed(sqlite)


async def test_sqlite_that_is_too_busy_says_so(sqlite: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that does not get its turn in time fails, while the calls before it are answered."""
    monkeypatch.setattr("app.store.database.TURN_TIMEOUT_S", 0.05)
    many = [asyncio.create_task(sqlite._all(SLOW)) for _ in range(5)]  # type: ignore[arg-type]  # noqa: SLF001
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable) as caught:
        await sqlite.statuses([ALICE])
    assert caught.value.details["reason"] == "locked"
    assert [rows[0][0] for rows in await asyncio.gather(*many)] == [400_000] * 5


async def test_sqlite_full(sqlite: SqlStore) -> None:
    """Where the disk is full a large write fails as a whole; with space again everything works."""

    def limit(pages: int) -> None:
        for connection in all_connections(sqlite):
            connection.execute(text(f"pragma max_page_count = {pages}"))

    limit(1)  # SQLite takes the present size if that is larger
    many = [usage(f"u{number}") for number in range(2000)]
    with pytest.raises(StoreUnavailable) as caught:
        await sqlite.write(Changes(statuses=[status(BOB)], owed=[owed("n1")], usage=many))
    assert caught.value.details["reason"] == "full"
    assert await sqlite.statuses([ALICE]) == {ALICE: status(ALICE)}
    limit(1_000_000)
    await works_and_has_nothing_of_what_failed(sqlite)


async def test_sqlite_gone_and_back(sqlite: SqlStore, path: Path) -> None:
    """A database file that was moved away is neither written nor created again; when it is back everything works."""
    away = path.parent.with_name("away")
    move(path.parent, away)
    await fails(sqlite, "gone")
    with pytest.raises(StoreUnavailable):
        await sqlite.statuses([ALICE])
    move(away, path.parent)  # fails if a file was created there
    await works_and_has_nothing_of_what_failed(sqlite)


async def test_sqlite_replaced(sqlite: SqlStore, path: Path) -> None:
    """Where another file, such as a backup, replaces the database, the store continues with that file."""
    with (
        contextlib.closing(sqlite3.connect(path)) as source,
        contextlib.closing(sqlite3.connect(f"{path}.new")) as copy,
    ):
        source.backup(copy)
    await sqlite.write(Changes(statuses=[status(ALICE, 2)]))
    for end in ("", "-wal", "-shm"):
        move(Path(f"{path}{end}"), Path(f"{path}{end}.old"))
    move(Path(f"{path}.new"), path)
    await works_and_has_nothing_of_what_failed(sqlite)


async def test_sqlite_writers_wait_their_turn(sqlite: SqlStore) -> None:
    """Many writers in one process at once do not lock each other out."""
    await asyncio.gather(*(sqlite.audit(AT, f"{number}", AuditAction.CLIENT_ADDED, {}) for number in range(30)))
    assert len((await sqlite.audit_entries(Page(), AuditFilter(start=AT)))[0]) == 30


async def test_sqlite_is_on_disk_when_it_is_acknowledged(sqlite: SqlStore) -> None:
    """Every connection uses the write-ahead log, syncs at each commit, and enforces foreign keys."""
    for connection in all_connections(sqlite):
        values = [
            connection.execute(text(f"pragma {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
        assert values == ["wal", 2, 1]


async def test_postgresql_locked(postgresql: tuple[SqlStore, str], postgres: Postgres) -> None:
    """While another transaction locks the tables, writes fail after the lock timeout; afterwards everything works."""
    store, name = postgresql
    with postgres.connect(name) as other, other.transaction():
        for table in reversed(METADATA.sorted_tables):
            other.execute(f"lock table {table.name} in exclusive mode".encode())
        await fails(store, "locked")
        assert await store.statuses([ALICE]) == {ALICE: status(ALICE)}
    await works_and_has_nothing_of_what_failed(store)


async def test_postgresql_full(postgresql: tuple[SqlStore, str], postgres: Postgres) -> None:
    """PostgreSQL's error for a full disk (SQLSTATE 53100, raised here by a trigger) is StoreUnavailable."""
    store, name = postgresql
    with postgres.connect(name) as other:
        other.execute(
            "create function full_disk() returns trigger language plpgsql as "
            "$$ begin raise 'could not extend file' using errcode = '53100'; end $$"
        )
        other.execute("create trigger full_disk before insert on usage_record execute function full_disk()")
        with pytest.raises(StoreUnavailable) as caught:
            await store.write(EVERYTHING)
        assert caught.value.details["reason"] == "full"
        other.execute("drop trigger full_disk on usage_record")
    await works_and_has_nothing_of_what_failed(store)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_postgresql_gone_and_back(
    postgresql: tuple[SqlStore, str], postgres: Postgres, how: signal.Signals
) -> None:
    """While the server is down or starting, calls fail; when it is back everything works, over new connections."""
    store, _ = postgresql
    await asyncio.gather(*(store.statuses([ALICE]) for _ in range(8)))  # several connections
    postgres.stop(how)
    try:
        await fails(store, "gone")
        with pytest.raises(StoreUnavailable):
            await store.statuses([ALICE])
    finally:
        postgres.start()
    await works_and_has_nothing_of_what_failed(store)


async def test_postgresql_connections_that_were_cut_are_replaced(
    postgresql: tuple[SqlStore, str], postgres: Postgres
) -> None:
    """After a server restart, or after an administrator ended sessions, the next call succeeds."""
    store, name = postgresql
    await asyncio.gather(*(store.statuses([ALICE]) for _ in range(8)))
    with postgres.connect() as other:
        other.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
    await works_and_has_nothing_of_what_failed(store)


async def test_caller_who_leaves_disturbs_nothing(store: SqlStore) -> None:
    """A cancelled call is done as a whole or not at all, and its connection stays usable."""
    await make(store, "s1")
    chance = random.Random(4)
    for number in range(25):
        call = asyncio.create_task(store.write(Changes(owed=[owed(f"n{number}")], usage=[usage(f"u{number}")])))
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await store.write(Changes(owed=[owed("last")]))
    # A cancelled call may still be on its way.
    await until(lambda: store.engine.pool.checkedout() == 0)  # type: ignore[attr-defined]  # as in the fixture `store`
    found = await sequences(store, "s1")
    assert [number for _, number in found] == list(range(1, len(found) + 1))
    written = {one.id for one in (await store.usage(Page(), UsageFilter(start=AT)))[0]}
    assert written == {name.replace("n", "u") for name, _ in found if name != "last"}


# Opening and migrating


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def empty_url(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[str]:
    """The URL of a database without tables, of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{path}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = await server.new_database(empty=True)
    yield server.url(name)
    server.drop_database(name)


def run_migrate(url: str) -> "subprocess.Popen[bytes]":
    """`terminal-status migrate` as a process."""
    command = [sys.executable, "-m", "app.cli", "migrate", "--json"]
    environment = {**os.environ, "TS_DATABASE_URL": url}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def test_migrations_make_the_tables_of_the_code(empty_url: str) -> None:
    """The migrated schema equals `app/store/tables.py`, column by column and index by index."""
    await migrate(empty_url)
    engine = make_engine(empty_url)
    different = await on_connection(engine, differences)
    await dispose(engine)
    assert different == []


async def test_migration_finds_groups_and_what_was_held_back(empty_url: str) -> None:
    """In active subscriptions of the first schema, addresses that are groups of their client become groups. Statuses
    that were observed after the last notification wait for the interval. Groups get their number of members."""
    engine = make_engine(empty_url, create=True)
    await on_connection(engine, first_schema, writes=True)
    await dispose(engine)
    assert (await migrate(empty_url)).before == "0001"
    async with await open_store(empty_url) as store:
        found, _ = await store.subscriptions(Page(), SubscriptionFilter(state=None))
        assert await store.group_sizes("c1", [TEAM]) == {TEAM: 2}
    assert [(one.id, one.groups, one.joined, one.held) for one in found] == [
        ("grouped", (TEAM,), (), (BOB,)),
        ("another's", (), (), (BOB,)),
        ("no interval", (TEAM,), (), ()),
        ("ended", (), (), ()),
    ]


def first_schema(connection: Connection) -> None:
    """Makes the first schema, with subscriptions to a group's address and to terminals."""
    migrations._upgrade(connection, "0001")  # noqa: SLF001

    def add(statement: str, **values: Any) -> Any:
        times = [bindparam(name, type_=UtcDateTime()) for name in ("at", "ended") if name in values]
        return connection.execute(text(statement).bindparams(*times), values)

    for name, client_id, interval_ms, ended in (
        ("grouped", "c1", 1000, None),
        ("another's", "c2", 1000, None),
        ("no interval", "c1", 0, None),
        ("ended", "c1", 1000, AT),
    ):
        seq = add(
            "insert into subscription (id, client_id, criteria, check_immediate, min_interval_ms, max_notifications, "
            "created_at, sink_kind, sink_url, sink_profile, sink_parameters, correlator, request_id, notified, "
            "last_notified_at, awaiting, ended_at, end_detail) values (:id, :client_id, '', false, :interval_ms, 0, "
            ":at, 'STREAM', '', '', '{}', '', '', 1, :at, false, :ended, '') returning seq",
            id=name,
            client_id=client_id,
            interval_ms=interval_ms,
            at=AT,
            ended=ended,
        ).scalar_one()
        for position, address in enumerate((TEAM, ALICE, BOB)):
            statement = "insert into subscription_address values (:seq, :position, :address)"
            add(statement, seq=seq, position=position, address=address)
    for address, at in ((ALICE, AT), (BOB, after(1))):
        add("insert into terminal_status values (:address, 'BUSY', :at, 'WATCH', 1)", address=address, at=at)
    add("insert into terminal_group values ('c1', :address, :at, 1)", address=TEAM, at=AT)
    for position, address in enumerate((ALICE, BOB)):
        statement = "insert into group_member values ('c1', :group, :position, :address)"
        add(statement, group=TEAM, position=position, address=address)


async def test_rows_of_the_schema_before_versions_have_version_1(empty_url: str) -> None:
    """A subscription that was stored before subscriptions had versions has version 1, and can be edited."""
    engine = make_engine(empty_url, create=True)
    await on_connection(engine, unversioned_schema, writes=True)
    await dispose(engine)
    assert (await migrate(empty_url)).before == "0004"
    async with await open_store(empty_url) as store:
        found = await store.subscription("old")
        assert found is not None
        assert (found.version, found.etag, found.addresses) == (1, "v1", (ALICE,))
        await store.write(Changes(edits=[edit_of(found, addresses=(BOB,))]))
        assert await store.subscription("old") == replace(found, version=2, addresses=(BOB,))


def unversioned_schema(connection: Connection) -> None:
    """Makes the schema 0004, with one subscription."""
    migrations._upgrade(connection, "0004")  # noqa: SLF001
    statement = text(
        "insert into subscription (id, client_id, criteria, check_immediate, min_interval_ms, max_notifications, "
        "created_at, sink_kind, sink_url, sink_profile, sink_parameters, sink_key, correlator, request_id, notified, "
        "awaiting, end_detail, groups, joined, held) values ('old', 'c1', '', false, 0, 0, :at, 'STREAM', '', '', "
        "'{}', '', '', '', 0, false, '', '[]', '[]', '[]') returning seq"
    ).bindparams(bindparam("at", type_=UtcDateTime()))
    seq = connection.execute(statement, {"at": AT}).scalar_one()
    connection.execute(text("insert into outbox (subscription_seq, last_sequence) values (:seq, 0)"), {"seq": seq})
    address = text("insert into subscription_address values (:seq, 0, :address)")
    connection.execute(address, {"seq": seq, "address": ALICE})


def differences(connection: Connection) -> list[Any]:
    """The changes by which Alembic would turn the database into the schema of the code; types as written in SQL."""

    def is_another_type(_context: object, _column: object, _meta: object, found: Any, wanted: Any) -> bool:
        sql = [kind.compile(connection.dialect).replace("VARCHAR", "TEXT") for kind in (found, wanted)]
        return bool(sql[0] != sql[1])  # SQLAlchemy's PostgreSQL dialect calls any text VARCHAR

    context = MigrationContext.configure(connection, opts={"compare_type": is_another_type})
    return list(compare_metadata(context, METADATA))


async def test_processes_that_migrate_at_once_take_turns(empty_url: str) -> None:
    """Of several processes that start at once one migrates; the others wait, and find the schema migrated."""
    processes = [run_migrate(empty_url) for _ in range(3)]
    done = await asyncio.gather(*(asyncio.to_thread(process.communicate, timeout=60) for process in processes))
    assert [process.returncode for process in processes] == [0, 0, 0], done
    befores = sorted(json.loads(output)["before"] for output, _ in done)
    assert befores == ["", befores[1], befores[1]]
    assert befores[1], "the newest revision"


async def test_migration_that_is_killed_leaves_the_schema_as_it_was(empty_url: str) -> None:
    """A migration that is killed in its transaction leaves no table behind; the next start does the whole migration."""
    script = (
        "import asyncio, os, signal, sys, app.store.migrations as m\n"
        "from sqlalchemy import event\n"
        "from sqlalchemy.engine import Engine\n"
        "seen = []\n"
        "@event.listens_for(Engine, 'after_cursor_execute')\n"
        "def executed(c, cursor, statement, *_):\n"
        "    seen.extend([statement] * ('CREATE TABLE' in statement))\n"
        "    if len(seen) == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(m.migrate(sys.argv[1]))\n"
    )
    for tables in (1, 5, 12):
        command = [sys.executable, "-c", script, empty_url, str(tables)]
        killed = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=False)
        assert killed.returncode == -signal.SIGKILL, killed
        engine = make_engine(empty_url)
        assert await on_connection(engine, lambda connection: connection.dialect.get_table_names(connection)) == []
        await dispose(engine)
    async with await open_store(empty_url) as store:
        await make(store, "s1")


async def test_killed_writer_leaves_whole_transactions(database_url: str) -> None:
    """After `kill -9` at random moments, a change and the notifications owed for it are either both stored or
    neither."""
    async with await open_store(database_url) as store:
        await make(store, "s1")
        chance = random.Random(7)
        for _ in range(3):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.writer_process", database_url, stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            acknowledged = 0
            async with asyncio.timeout(60):
                for _ in range(chance.randrange(3, 30)):
                    acknowledged = int(await process.stdout.readline())
            process.kill()
            rest = await process.stdout.read()
            await process.wait()
            acknowledged = max([acknowledged, *(int(line) for line in rest.split(b"\n")[:-1])])
            revision = await settled_revision(store)
            assert revision in (acknowledged, acknowledged + 1)
            assert await sequences(store, "s1") == [(f"n{n}", n) for n in range(1, revision + 1)]


async def settled_revision(store: SqlStore) -> int:
    """The revision once no process writes: the backend of a killed client may still be ending its last transaction."""
    async with asyncio.timeout(10):
        while True:
            try:
                # Waits if a backend still has the row's lock; writes nothing, since this is not the next revision.
                (stored,) = await store.write(Changes(statuses=[status(ALICE, 1)]))
            except StoreUnavailable:
                continue
            return stored.revision


async def test_schema_of_a_newer_version_is_left_alone(empty_url: str) -> None:
    """An older gateway refuses to run on the tables of a newer one."""
    await migrate(empty_url)
    engine = make_engine(empty_url)
    newer = text("update alembic_version set version_num = '9999'")
    await on_connection(engine, lambda connection: connection.execute(newer).rowcount, writes=True)
    await dispose(engine)
    with pytest.raises(DatabaseUnavailable, match="newer version"):
        await open_store(empty_url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:////no/such/folder/x", "unable to open"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite+aiosqlite:///x", "is not sqlite"),
        ("mysql://x/y", "is not sqlite"),
        ("nonsense", "parse"),
        ("postgresql+psycopg://nobody:x@127.0.0.1:1/x", "refused"),
    ],
)
async def test_database_that_cannot_be_used_says_why(url: str, reason: str) -> None:
    """Opening, migrating and checking an unusable database raise DatabaseUnavailable."""
    for use in (open_store, migrate, check_database):
        with pytest.raises(DatabaseUnavailable, match=reason):
            await use(url)


def test_file_that_is_no_database_says_so(path: Path) -> None:
    """A file that is not a database is refused, and not overwritten."""
    path.write_text("This is a letter to my aunt, and rather long, so that it is more than one header." * 20)
    before = path.read_bytes()
    with pytest.raises(DatabaseUnavailable, match="not a database"):
        asyncio.run(open_store(f"sqlite:///{path}"))
    assert path.read_bytes() == before


async def test_wrong_password_says_so(postgres: Postgres) -> None:
    """A wrong password is refused; the message does not contain it."""
    url = f"postgresql+psycopg://postgres:sesame@127.0.0.1:{postgres.port}/postgres"
    with pytest.raises(DatabaseUnavailable, match="password authentication failed") as caught:
        await open_store(url)
    assert "sesame" not in str(caught.value) + shown_url(url)


def test_leak_check_finds_a_leak(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping a test's database finds a connection that was left open."""
    with postgres.connect() as admin:
        admin.execute("create database leaky")
    leak: psycopg.Connection[Any] = postgres.connect("leaky")
    monkeypatch.setattr("tests.support.postgres.LEAK_DEADLINE_S", 0.1)
    with pytest.raises(pytest.fail.Exception, match="left open"):
        postgres.drop_database("leaky")
    leak.close()


async def test_postgresql_that_hangs(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that no longer answers counts as away: calls end, and so does closing the store."""
    monkeypatch.setattr("app.store.database.TRANSACTION_S", 0.5)
    monkeypatch.setattr("app.store.database.CLOSE_S", 0.5)
    name = await postgres.new_database()
    store = await open_store(postgres.url(name))
    assert await store.clients() == []
    with postgres.connect() as connection:
        rows = connection.execute("select pid from pg_stat_activity where datname = %s", [name]).fetchall()
    backends = [int(str(pid)) for (pid,) in rows]
    assert backends
    for pid in backends:
        os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(StoreUnavailable) as refused:
                await store.clients()
            await store.aclose()
    finally:
        for pid in backends:
            os.kill(pid, signal.SIGCONT)
    assert refused.value.details["reason"] == "hangs"
    postgres.drop_database(name)


async def test_start_waits_for_a_locked_sqlite(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another process locks the file just after it was opened, the start logs that it waits, and goes on
    afterwards."""
    path = tmp_path / "ts.sqlite3"
    settings = settings_for(sandbox.uri, database_url=f"sqlite:///{path}")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:

        async def open_and_lock(*arguments: Any, **options: Any) -> SqlStore:
            store = await open_store(*arguments, busy_timeout_ms=50, **options)
            other.execute("begin immediate")
            return store

        monkeypatch.setattr("app.main.open_store", open_and_lock)
        await starts_once(settings, lambda: other.execute("rollback"))


async def test_start_waits_for_a_locked_postgresql(sandbox: Sandbox, postgres: Postgres) -> None:
    """A start also waits while a table is locked, by a backup or by a session."""
    name = await postgres.new_database()
    with postgres.connect(name) as other:
        other.execute("begin")
        other.execute("lock table terminal_group in access exclusive mode")
        settings = settings_for(sandbox.uri, database_url=postgres.url(name))
        await starts_once(settings, lambda: other.execute("rollback"))
    postgres.drop_database(name)


async def test_start_waits_for_a_postgresql_that_is_down(sandbox: Sandbox) -> None:
    """A start also waits for a server that is down, as where both are started at once."""
    with Postgres.running() as postgres:
        name = await postgres.new_database()
        postgres.stop()
        await starts_once(settings_for(sandbox.uri, database_url=postgres.url(name)), postgres.start, reason="gone")


async def test_start_does_not_wait_for_what_stays_wrong(sandbox: Sandbox, postgres: Postgres) -> None:
    """A wrong password, a missing database, and a file that cannot be created end the start at once."""
    wrong = f"postgresql+psycopg://postgres:sesame@127.0.0.1:{postgres.port}/postgres"
    for url in (wrong, postgres.url("not_there"), "sqlite:////no/such/folder/x"):
        with capture_logs() as logs, pytest.raises(CannotStart, match="TS_DATABASE_URL: "):
            async with run_gateway(settings_for(sandbox.uri, database_url=url)):
                pytest.fail("it started")
        assert [line["event"] for line in logs if line["event"] == "database_not_ready"] == []


async def starts_once(settings: Settings, release: Callable[[], object], *, reason: str = "locked") -> None:
    """Asserts that the gateway logs that it waits, and serves once the database is unlocked or up."""
    with capture_logs() as logs:

        async def released_when_waited_for() -> None:
            await until(lambda: [line for line in logs if line["event"] == "database_not_ready"])
            assert not [line for line in logs if line["event"] == "gateway_started"]
            release()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(released_when_waited_for())
            async with run_gateway(settings) as gateway:
                assert gateway.use_cases.groups.is_group("c", ALICE) is False
    assert [line["reason"] for line in logs if line["event"] == "database_not_ready"] == [reason]


async def test_start_does_not_wait_for_ever(
    sandbox: Sandbox, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time limit the start ends, with one line that names the setting and the problem."""
    monkeypatch.setattr("app.store.database.PATIENCE_S", 0.2)
    name = await postgres.new_database()
    with postgres.connect(name) as other, other.transaction():
        other.execute("lock table terminal_group in access exclusive mode")
        with pytest.raises(CannotStart, match=r"TS_DATABASE_URL: .* cannot be used: locked for too long"):
            async with run_gateway(settings_for(sandbox.uri, database_url=postgres.url(name))):
                pytest.fail("it started")
    postgres.drop_database(name)
