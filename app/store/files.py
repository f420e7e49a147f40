"""Who may read an SQLite database: the account that the gateway runs as, and the group that an operator gave it.

Invariants: a file is made with mode 0600 before anything is in it. SQLite gives `-wal` and `-shm` the mode of the
database file, so that these follow.

Deliberately absent: the folder, which is the operator's.
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
    """Closes the database's files to others; with `create` makes an empty file where there is none.

    Raises PermissionError where that cannot be done.
    """
    real = database.resolve()  # SQLite writes its log beside the file, not beside a link to the file
    if create:
        with contextlib.suppress(OSError):  # SQLite says why it cannot be made
            os.close(os.open(real, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE))
    for suffix in _BESIDE:
        close_to_others(real.with_name(real.name + suffix))


def close_to_others(path: Path) -> None:
    """Takes all rights of others from a file of this account. Raises PermissionError where they remain."""
    try:
        found = path.stat()
    except OSError:  # there is no such file, or no longer
        return
    mode = stat.S_IMODE(found.st_mode)
    if not mode & OTHERS:
        return
    if found.st_uid == os.geteuid():
        with contextlib.suppress(OSError):
            path.chmod(mode & ~OTHERS)
            if not path.stat().st_mode & OTHERS:  # there are file systems whose modes are fixed
                _log.warning("file_closed_to_others", path=str(path), mode_before=f"{mode:04o}")
                return
    raise PermissionError(
        f"{path} has mode {mode:04o}, so other accounts may read or write it; as its owner run: {close_command(path)}"
    )


def close_command(path: Path) -> str:
    """What an operator types to close the file to others."""
    return f"chmod o-rwx {shlex.quote(str(path))}"
