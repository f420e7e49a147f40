"""Whether this process has the database to itself: with SQLite it must, with PostgreSQL it need not.

Invariants: the lock is the system's (flock) on a file beside the database, so it goes with the process, however that
ends; the file stays, empty. The command line (`clients`, `migrate`) needs no such lock.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url

from app.store.engines import DatabaseUnavailable
from app.store.files import PRIVATE, close_to_others


@contextmanager
def only_gateway(url: str) -> Iterator[bool]:
    """Keeps other gateways off an SQLite database while the context is open; whether this one is alone by that.

    Raises DatabaseUnavailable where another gateway serves from it, or the lock's file cannot be made.
    """
    target = make_url(url)
    if target.get_backend_name() != "sqlite" or target.database in (None, "", ":memory:"):
        yield target.get_backend_name() == "sqlite"
        return
    path = Path(f"{Path(str(target.database)).resolve()}.lock")  # one file, however it is called
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, PRIVATE)
    except OSError as error:
        raise DatabaseUnavailable(f"{path} cannot be made: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as lock:
        try:
            close_to_others(path)
        except PermissionError as error:
            raise DatabaseUnavailable(str(error)) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DatabaseUnavailable(
                "another gateway serves from this SQLite database; several gateways need PostgreSQL"
            ) from None
        yield True
