"""The database as the store's parts use it: transactions, and what happens when it is away.

Invariants: a write is one transaction, all or nothing. It is a task of the store: a caller who leaves in the middle
leaves no half-used connection behind. On SQLite there is one writer at a time (`BEGIN IMMEDIATE`, and a lock here
rather than polling for the file's); on PostgreSQL as many as connections. What is done in a transaction (`Work`) is
written once for both and awaits nothing but its connection: on PostgreSQL each of them waits in the event
loop, on SQLite the whole runs in a thread in one go, since a trip to a thread for each statement, as asyncio drivers of
SQLite make, costs the event loop several times what the statement does. Whatever says that the database is locked,
full or gone is StoreUnavailable; other errors of the database are defects and pass.
A commit is on disk before it is acknowledged. Only a connection lost while PostgreSQL answers COMMIT leaves open
whether it did; a repeated write then meets what it wrote itself, which every write bears.

Deliberately absent: statements (the parts have them), how a connection is opened (`engines.py`), and the schema.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import structlog
from sqlalchemy import ColumnElement, Connection, CursorResult, Engine, Executable, Row, Select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain.errors import StoreUnavailable
from app.store.engines import POSTGRESQL_CONNECTIONS, SQLITE_CONNECTIONS, TURN_TIMEOUT_S, dispose, why
from app.store.statements import LISTED, among, listed

TRANSACTION_S = 10.0
"""How long a transaction may take: a database that hangs is away too. Its connection is thrown away; where that happens
in COMMIT, nobody knows whether it was done, and compare-and-set and ids make the repetition safe."""

PATIENCE_S = 60.0
"""How long each call of a start waits for a database that cannot be used."""

RETRY_S = 0.5

CLOSE_S = 10.0
"""How long what is under way at the end may take."""

ATTEMPTS = 3
"""How often a transaction is tried that lost its connection before COMMIT, or was chosen to end a deadlock."""

_DEFECTS = (IntegrityError, DataError, ProgrammingError, NotSupportedError)
_AGAIN = {"40001", "40P01"}  # serialization_failure, deadlock_detected

AnyRow: TypeAlias = Row[*tuple[Any, ...]]
AnySelect: TypeAlias = Select[*tuple[Any, ...]]
T = TypeVar("T")
Work = Callable[[AsyncConnection], Coroutine[Any, Any, T]]

_log = structlog.get_logger(__name__)


class Database:
    """What the parts of the store inherit: reading and writing. Used from one event loop."""

    def __init__(self, engine: AsyncEngine | Engine) -> None:
        self.engine = engine
        """For tests and operators' tools; the gateway asks the store's methods."""
        self.sqlite = engine.dialect.name == "sqlite"
        self._free_threads = asyncio.Semaphore(SQLITE_CONNECTIONS)
        self._threads = ThreadPoolExecutor(SQLITE_CONNECTIONS, thread_name_prefix="sqlite")
        self._writers = asyncio.Semaphore(1 if self.sqlite else POSTGRESQL_CONNECTIONS)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._path = Path(str(engine.url.database)) if self.sqlite else None
        self._inode = self._present()
        self._available = True
        self._away_for_writes = False
        self._patient = False

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Meanwhile calls wait up to PATIENCE_S for a database that is locked or away, and the log says so. This is for
        a start, when nobody is served yet who could be answered StoreUnavailable."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    async def aclose(self) -> None:
        """Waits up to CLOSE_S for what is under way, and closes every connection."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=CLOSE_S)
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._threads.shutdown(wait=False)
        await dispose(self.engine)

    async def _read(self, work: Work[T]) -> T:
        """What `work` returns; on SQLite it sees one state of the database, on PostgreSQL each statement the latest."""
        return await self._owned(lambda: self._transact(work))

    async def _all(self, statement: AnySelect) -> Sequence[AnyRow]:
        async def work(c: AsyncConnection) -> Sequence[AnyRow]:
            return (await c.execute(statement)).all()

        return await self._owned(lambda: self._transact(work, one_statement=True))

    async def _first(self, statement: AnySelect) -> AnyRow | None:
        rows = await self._all(statement)
        return rows[0] if rows else None

    async def _write(self, work: Work[T], *, one_statement: bool = False) -> T:
        """What `work` returns when everything it did is committed; nothing of it is where it raises."""
        return await self._owned(lambda: self._wait_and_write(work, one_statement))

    async def _wait_and_write(self, work: Work[T], one_statement: bool) -> T:
        await self._one_of(self._writers, writes=True)
        try:
            return await self._transact(work, writes=True, one_statement=one_statement)
        finally:
            self._writers.release()

    async def _one_of(self, free: asyncio.Semaphore, *, writes: bool = False) -> None:
        """Waits for one, up to TURN_TIMEOUT_S; without a timer where nobody waits."""
        try:
            if free.locked():
                async with asyncio.timeout(TURN_TIMEOUT_S):
                    await free.acquire()
            else:
                await free.acquire()
        except TimeoutError as error:
            raise self._unavailable("locked", error, writes=writes) from None

    async def _owned(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.create_task(self._patiently(begin) if self._patient else begin())
        self._under_way.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def _patiently(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        give_up_s = asyncio.get_running_loop().time() + PATIENCE_S
        said = False
        while True:
            try:
                return await begin()
            except StoreUnavailable as error:
                if asyncio.get_running_loop().time() >= give_up_s:
                    raise
                if not said:
                    _log.warning("database_not_ready", reason=error.details["reason"], most_s=PATIENCE_S)
                    said = True
            await asyncio.sleep(RETRY_S)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the caller may have left

    async def _transact(self, work: Work[T], **options: bool) -> T:
        writes = options.get("writes", False)
        for attempts_left in reversed(range(ATTEMPTS)):
            await self._same_file()
            turn = _Turn(options)
            try:
                if isinstance(self.engine, AsyncEngine):
                    async with asyncio.timeout(TRANSACTION_S):
                        result = await _in_loop(self.engine, work, turn)
                else:
                    result = await self._when_a_thread_is_free(self.engine, work, turn)
            except asyncio.CancelledError:
                turn.left = True
                raise
            except TimeoutError as error:
                turn.left = True
                raise self._unavailable("hangs", error, writes=writes) from error
            except (DBAPIError, InterfaceError) as error:
                if isinstance(error, _DEFECTS) and not error.connection_invalidated:
                    raise
                again = error.connection_invalidated or getattr(error.orig, "sqlstate", "") in _AGAIN
                if not again or turn.committing or not attempts_left:
                    raise self._unavailable(_reason(error), error, writes=writes) from error
            except NoConnectionFree as error:
                raise self._unavailable("locked", error, writes=writes) from error
            except OSError as error:
                raise self._unavailable("gone", error, writes=writes) from error
            else:
                if not self._available and (writes or not self._away_for_writes):  # what is locked may still be read
                    self._available, self._away_for_writes = True, False
                    _log.info("store_available")
                return result
        raise AssertionError("the last attempt raises or returns")

    async def _when_a_thread_is_free(self, engine: Engine, work: Work[T], turn: "_Turn") -> T:
        loop = asyncio.get_running_loop()
        await self._one_of(self._free_threads)

        def free(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(self._free_threads.release)

        done = self._threads.submit(_in_thread, engine, work, turn)
        done.add_done_callback(free)  # not before, whoever has left
        async with asyncio.timeout(TRANSACTION_S):
            return await asyncio.wrap_future(done)

    def _unavailable(self, reason: str, error: BaseException, *, writes: bool = False) -> StoreUnavailable:
        self._away_for_writes |= writes
        if self._available:  # once, not for each call while it lasts
            self._available = False
            _log.error("store_unavailable", reason=reason, why=why(error))
        return StoreUnavailable("The database cannot be used now; nothing was changed.", retry_after_s=1, reason=reason)

    async def _same_file(self) -> None:
        """SQLite goes on in a file that was removed or replaced, and all of it would be lost."""
        if self._path is None or (inode := self._present()) == self._inode:
            return
        if not inode:
            raise self._unavailable("gone", FileNotFoundError(f"{self._path} is not there"))
        await dispose(self.engine)
        self._inode = inode

    def _present(self) -> int:
        try:
            return self._path.stat().st_ino if self._path else 0
        except OSError:
            return 0

    def _among(self, column: ColumnElement[Any], values: Iterable[str] | Iterable[int]) -> ColumnElement[bool]:
        """Whether the column is one of the values."""
        return among(column, None, listed(values, for_sqlite=self.sqlite), for_sqlite=self.sqlite)

    def _listed(self, values: Iterable[str] | Iterable[int]) -> dict[str, Any]:
        """The parameter of a statement made before."""
        return {LISTED: listed(values, for_sqlite=self.sqlite)}


class _Turn:
    """One try of a transaction."""

    __slots__ = ("committing", "left", "options")

    def __init__(self, options: Mapping[str, bool]) -> None:
        self.options = options
        self.committing = False
        self.left = False
        """Whether nobody waits for it any more: no statement follows then, and no commit. One that commits by itself
        may be under way, so what is written so must bear to be written again."""

    def still(self) -> None:
        """Raises TimeoutError where nobody waits."""
        if self.left:
            raise TimeoutError


async def _in_loop(engine: AsyncEngine, work: Work[T], turn: _Turn) -> T:
    connection = await engine.connect()
    try:
        result = await work(connection)
        turn.committing = True
        if turn.options.get("writes"):
            await connection.commit()
    except asyncio.CancelledError:
        await connection.invalidate()  # a database that hangs would not answer a rollback either
        raise
    finally:
        await connection.close()
    return result


def _in_thread(engine: Engine, work: Work[T], turn: _Turn) -> T:
    with engine.connect() as connection:
        connection.execution_options(**turn.options)  # an engine with options costs several times as much
        result = _done_at_once(work(cast("AsyncConnection", _Here(connection, turn))))
        turn.still()
        turn.committing = True
        if turn.options.get("writes"):
            connection.commit()
    return result


class _Here:
    """A connection whose methods are done when they return: what `Work` needs of an AsyncConnection."""

    def __init__(self, connection: Connection, turn: _Turn) -> None:
        self._connection = connection
        self._turn = turn

    async def execute(self, statement: Executable, parameters: Any = None) -> "CursorResult[Any]":
        self._turn.still()
        return self._connection.execute(statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> "CursorResult[Any]":
        self._turn.still()
        return self._connection.exec_driver_sql(statement, parameters)


def _done_at_once(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        call.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    call.close()
    raise AssertionError("the work of a transaction waited for something else than its connection")


def _reason(error: DBAPIError) -> str:
    said, state = str(error.orig).lower(), getattr(error.orig, "sqlstate", None) or ""
    if "locked" in said or "busy" in said or state in {"55P03", "57014"} | _AGAIN:
        return "locked"
    if "is full" in said or state.startswith("53"):
        return "full"
    return "gone"
