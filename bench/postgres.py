"""Starts a real PostgreSQL (Debian package) on a free loopback port in a temporary directory, and stops it.

Invariants: only this machine can connect, with a password of this run. The server ends with the process that started
it, even if that process is killed. PostgreSQL refuses to run as root; root runs it as the user `postgres`.

Deliberately absent: replicas, TLS, the schema.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psycopg

START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 15.0
_USER = "postgres"


class PostgresFailed(Exception):
    """PostgreSQL didn't start; the message ends with what it logged last."""


def _binaries() -> Path | None:
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    if found := shutil.which("initdb"):
        places.append(Path(found).resolve().parent)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


def missing() -> str:
    """Why PostgreSQL cannot be started here, "" if it can."""
    if _binaries() is None:
        return "postgresql isn't installed (Debian package postgresql)"
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            return "setpriv isn't installed, and PostgreSQL does not run as root (Debian package util-linux)"
        try:
            pwd.getpwnam(_USER)
        except KeyError:
            return "there is no user postgres, and PostgreSQL does not run as root"
    return ""


class Postgres:
    """A running PostgreSQL: `with Postgres.running() as postgres: …`. Not tied to an event loop."""

    def __init__(self, directory: Path, *, durable: bool) -> None:
        self.directory = directory
        self.port = _free_port()
        self._durable = durable
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def running(cls, *, durable: bool = False) -> Iterator[Self]:
        """Starts a server and stops it at the end; `durable` switches fsync on. Raises PostgresFailed."""
        if reason := missing():
            raise PostgresFailed(reason)
        with tempfile.TemporaryDirectory(prefix="postgres-") as directory:
            postgres = cls(Path(directory), durable=durable)
            postgres._initialise()
            postgres.start()
            try:
                yield postgres
            finally:
                postgres.stop()

    def url(self, database: str) -> str:
        """The database's URL, for the gateway."""
        return f"postgresql+psycopg://{_USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """A connection of the caller's own, in autocommit."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=_USER, password=self._password, dbname=database, autocommit=True
        )

    def start(self) -> None:
        """Starts the server, also after `stop`, and waits until it answers. Raises PostgresFailed."""
        binaries = _binaries()
        assert binaries is not None
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 60,
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # SIGINT is its fast shutdown: transactions are rolled back.
        command = [*_as_user("--pdeathsig", "INT"), str(binaries / "postgres"), "-D", str(self._data), *options]
        with (self.directory / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise PostgresFailed(f"{error}. Its log ends:\n{self.log[-4000:]}") from error
                time.sleep(0.02)  # the pause between two attempts to connect
            else:
                return

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Fast shutdown by default; SIGQUIT is like a crash. SIGKILL to its group if that isn't enough in time."""
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    @property
    def log(self) -> str:
        """The server's log so far."""
        return (self.directory / "postgres.log").read_text(errors="replace")

    def create_database(self, name: str, template: str = "template0") -> None:
        """Creates a database as a copy of `template`, empty by default."""
        with self.connect() as connection:
            connection.execute(f'create database "{name}" template "{template}"'.encode())

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _initialise(self) -> None:
        binaries = _binaries()
        assert binaries is not None
        password = self.directory / "password"
        password.write_text(self._password)
        if os.geteuid() == 0:
            user = pwd.getpwnam(_USER)
            for path in (self.directory, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        command = [*_as_user(), str(binaries / "initdb"), "-D", str(self._data), "-U", _USER, "--no-sync"]
        command += ["--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C.UTF-8"]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, timeout=120)
        if done.returncode:
            raise PostgresFailed(f"initdb ended with {done.returncode}: {done.stderr}{done.stdout}")


def _as_user(*options: str) -> list[str]:
    who = ["--reuid", _USER, "--regid", _USER, "--init-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *who, *options] if shutil.which("setpriv") and (who or options) else []


def _free_port() -> int:
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        port: int = tcp.getsockname()[1]
        return port
