"""Permissions of the files that the gateway writes: its own account, and the group where the operator allowed it."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.cli.commands.usage import _opened
from app.domain.changes import Changes
from app.domain.errors import StoreUnavailable
from app.store import DatabaseUnavailable, SqlStore, check_database, migrate, only_gateway, open_store
from tests.support.records import ALICE, make, status

SUFFIXES = ("", "-wal", "-shm", ".lock")


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """Sets a umask that protects no file, so that only the gateway can."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my data.sqlite3"


def modes(path: Path) -> dict[str, str]:
    """The modes of the database's files, by file-name suffix."""
    return {one.name.removeprefix(path.name): f"{stat.S_IMODE(one.stat().st_mode):o}" for one in path.parent.iterdir()}


def fail(store: object) -> None:
    pytest.fail(f"{store} was opened")


def close(path: Path) -> None:
    path.chmod(0o640)


async def written(path: Path) -> SqlStore:
    """A store over the file, with a write in its log."""
    store = await open_store(f"sqlite:///{path}")
    await store.write(Changes(statuses=[status(ALICE)]))
    return store


async def test_new_files_are_the_accounts_own(path: Path) -> None:
    """The database, its log and index, and the lock are created with mode 0600."""
    with only_gateway(f"sqlite:///{path}"):
        async with await written(path):
            assert modes(path) == dict.fromkeys(SUFFIXES, "600")


@pytest.mark.parametrize("use", [migrate, check_database])
async def test_commands_keep_the_file_private(path: Path, use: object) -> None:
    """`migrate` and `doctor` create the file with mode 0600 too."""
    await use(f"sqlite:///{path}")  # type: ignore[operator]
    assert modes(path)[""] == "600"


def test_commands_make_private_files(tmp_path: Path, path: Path) -> None:
    """The command line, run as a process, creates private files."""
    subprocess.run(
        [sys.executable, "-m", "app.cli", "migrate"],
        env={**os.environ, "TS_DATABASE_URL": f"sqlite:///{path}"},
        check=True,
        capture_output=True,
    )
    assert set(modes(path).values()) == {"600"}


async def test_existing_files_are_closed_to_others(path: Path) -> None:
    """Existing files lose the permissions of others, with a log line each; the group keeps its permissions."""
    with only_gateway(f"sqlite:///{path}"):
        store = await written(path)
        for suffix in SUFFIXES:
            path.with_name(path.name + suffix).chmod(0o664)
        with capture_logs() as logs:
            async with await open_store(f"sqlite:///{path}"):
                pass
        assert modes(path) == {"": "660", "-wal": "660", "-shm": "660", ".lock": "664"}
        await store.aclose()
    assert [(line["event"], line["path"], line["mode_before"]) for line in logs] == [
        ("file_closed_to_others", f"{path}{suffix}", "0664") for suffix in ("", "-wal", "-shm")
    ]
    with only_gateway(f"sqlite:///{path}"):
        assert modes(path)[".lock"] == "660"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another account")
@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_anothers_file_that_others_may_read_is_refused(path: Path, suffix: str) -> None:
    """A file of another account that others may read is refused, with the command that corrects it; after that command
    the file opens."""
    url = f"sqlite:///{path}"
    with only_gateway(url):
        store = await written(path)
        theirs = path.with_name(path.name + suffix)
        theirs.chmod(0o644)
        os.chown(theirs, 65534, -1)
        if suffix != ".lock":
            with pytest.raises(DatabaseUnavailable, match="has mode 0644") as refused:
                await open_store(url)
    if suffix == ".lock":
        with pytest.raises(DatabaseUnavailable, match="has mode 0644") as refused, only_gateway(url) as alone:
            fail(alone)
    command = str(refused.value).partition(" run: ")[2]
    await asyncio.to_thread(subprocess.run, command, shell=True, check=True)
    assert modes(path)[suffix] == "640"
    with only_gateway(url):
        async with await open_store(url):
            pass
    await store.aclose()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another account")
async def test_a_file_that_is_replaced_by_an_open_one(path: Path) -> None:
    """A running gateway does not use a new file that others may read: calls fail until its mode is corrected."""
    async with await written(path) as store:
        await make(store, "s1")
        other = path.with_name("other.sqlite3")
        async with await open_store(f"sqlite:///{other}") as opened:
            await make(opened, "s2")
        os.chown(other, 65534, -1)
        other.chmod(0o644)
        for suffix in ("-wal", "-shm"):  # they belong to the earlier file
            path.with_name(path.name + suffix).unlink()
        other.rename(path)
        with pytest.raises(StoreUnavailable):
            await store.subscription("s2")
        close(path)
        assert await store.subscription("s2") is not None


def test_a_link_to_the_database_has_no_lock_of_its_own(path: Path) -> None:
    """Two names of one file share one lock, so a second gateway is refused."""
    path.touch(0o600)
    link = path.with_name("link")
    link.symlink_to(path)
    with (
        only_gateway(f"sqlite:///{path}"),
        pytest.raises(DatabaseUnavailable, match="another gateway"),
        only_gateway(f"sqlite:///{link}") as alone,
    ):
        fail(alone)


@pytest.mark.parametrize(("before", "after"), [(None, "600"), (0o664, "660")])
def test_exports_are_private(tmp_path: Path, before: int | None, after: str) -> None:
    """An export of usage records, which say who asked about whom, has mode 0600."""
    output = tmp_path / "usage.csv"
    if before is not None:
        output.touch()
        output.chmod(before)
    with _opened(output) as file:
        file.write("x")
        assert set(modes(output).values()) - {f"{before or 0:o}"} == {"600"}
    assert modes(output) == {"": after}
