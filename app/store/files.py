"""Keeps an SQLite database private: only the gateway's account, and a group that the operator sets, may read it.

Invariants: a new file has mode 0600 before anything is written. SQLite creates `-wal` and `-shm` with the mode of the
database file. The folder's mode is left to the operator.
"""

import contextlib
import os
import shlex
import stat
from pathlib import Path

import structlog

PRIVATE = 0o600
OTHERS = stat.S_IRWXO

_BESIDE = ("", "-wal", "-shm", "-journal")
_log = structlog.get_logger(__name__)


def keep_private(database: Path, *, create: bool) -> None:
    """Removes other accounts' access to the database's files; `create`: creates an empty file if there is none.

    Raises PermissionError if that fails.
    """
    real = database.resolve()  # SQLite writes its log beside the file, not beside a link to the file
    if create:
        with contextlib.suppress(OSError):  # SQLite reports why it cannot be created
            os.close(os.open(real, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE))
    for suffix in _BESIDE:
        close_to_others(real.with_name(real.name + suffix))


def close_to_others(path: Path) -> None:
    """Removes other accounts' access to a file. Raises PermissionError if it remains."""
    try:
        found = path.stat()
    except OSError:  # the file does not exist (any more)
        return
    mode = stat.S_IMODE(found.st_mode)
    if not mode & OTHERS:
        return
    if found.st_uid == os.geteuid():
        with contextlib.suppress(OSError):
            path.chmod(mode & ~OTHERS)
            if not path.stat().st_mode & OTHERS:  # some file systems have fixed modes
                _log.warning("file_closed_to_others", path=str(path), mode_before=f"{mode:04o}")
                return
    raise PermissionError(
        f"{path} has mode {mode:04o}, so other accounts can read or write it; as its owner run: {close_command(path)}"
    )


def close_command(path: Path) -> str:
    """The shell command that removes other accounts' access to the file."""
    return f"chmod o-rwx {shlex.quote(str(path))}"
