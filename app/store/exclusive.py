"""Locks an SQLite database, which only one gateway process may serve. PostgreSQL needs no such lock.

The lock is the system's (flock) on a file beside the database, so it ends with the process; the empty file stays. The
command line (`clients`, `migrate`) needs no lock.
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
    """Locks an SQLite database while the context is open. Yields whether it is locked (False: PostgreSQL).

    Raises DatabaseUnavailable if another gateway has the lock, or the lock file cannot be created.
    """
    target = make_url(url)
    if target.get_backend_name() != "sqlite" or target.database in (None, "", ":memory:"):
        yield target.get_backend_name() == "sqlite"
        return
    path = Path(f"{Path(str(target.database)).resolve()}.lock")  # one file for all names of the database
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, PRIVATE)
    except OSError as error:
        raise DatabaseUnavailable(f"{path} cannot be created: {error.strerror}") from None
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
