"""Whether this process has the database to itself: with SQLite it must, with PostgreSQL it need not.

Invariants: the lock is the system's (flock) on a file beside the database, so it goes with the process, however that
ends; the file stays, empty. The command line (`clients`, `migrate`) needs no such lock.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url

from app.store.engines import DatabaseUnavailable


@contextmanager
def only_gateway(url: str) -> Iterator[bool]:
    """Keeps other gateways off an SQLite database while the context is open; whether this one is alone by that.

    Raises DatabaseUnavailable where another gateway serves from it, or the lock's file cannot be made.
    """
    target = make_url(url)
    if target.get_backend_name() != "sqlite" or target.database in (None, "", ":memory:"):
        yield target.get_backend_name() == "sqlite"
        return
    path = Path(f"{target.database}.lock")
    try:
        lock = path.open("ab")
    except OSError as error:
        raise DatabaseUnavailable(f"{path} cannot be made: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DatabaseUnavailable(
                "another gateway serves from this SQLite database; several gateways need PostgreSQL"
            ) from None
        yield True
