"""Starts a real Kamailio (Debian package) as registrar and presence server on a free loopback port, and stops it.

Invariants: only this machine can reach it. It needs no network, keeps all files in a temporary directory of its own,
and takes UDP and TCP on one port. `Kamailio.running` yields when Kamailio answers OPTIONS over both, or raises
KamailioFailed with the end of its log. Kamailio ends with the test process, even if that is killed.

Deliberately absent: TLS, clusters, a real database. Its configuration is explained in `kamailio_config/kamailio.cfg`.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.sip_terminal import SipClient

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 10.0
START_ATTEMPTS = 3

_TEMPLATE = Path(__file__).parent / "kamailio_config" / "kamailio.cfg"
_DATABASE = "kamailio.sqlite"
_TABLES = ("standard", "usrloc", "presence")
_PUBLICATION = re.compile(r"publication of (\S+) expires=(\S+) if-match=(\S+) body=(\S*)\n")
"""A line that `kamailio_config/kamailio.cfg` writes."""
_SCRIPTS = Path("/usr/share/kamailio/db_sqlite")


class KamailioFailed(Exception):
    """Kamailio did not start; the message ends with the last lines of its log."""


def missing() -> str:
    """The reason why Kamailio cannot be started here; "" if it can."""
    modules = _modules()
    if _binary() is None:
        return "kamailio isn't installed (Debian package kamailio)"
    for module, package in (
        ("presence.so", "kamailio-presence-modules"),
        ("presence_xml.so", "kamailio-presence-modules"),
        ("db_sqlite.so", "kamailio-sqlite-modules"),
    ):
        if modules is None or not (modules / module).exists():
            return f"Kamailio's {module} isn't installed (Debian package {package})"
    if not _SCRIPTS.is_dir():
        return f"{_SCRIPTS} isn't there (Debian package kamailio)"
    return ""


def require() -> None:
    """Skips the test, with the reason, where Kamailio cannot be started; in CI the test fails instead."""
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def _binary() -> str | None:
    return shutil.which("kamailio", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _modules() -> Path | None:
    places = [*Path("/usr/lib").glob("*/kamailio/modules"), Path("/usr/lib/kamailio/modules")]
    return next((place for place in places if place.is_dir()), None)


@dataclass(frozen=True)
class Publication:
    """A client's PUBLISH as Kamailio received it."""

    user: str
    expires_s: int | None
    """None: the PUBLISH has no Expires, and the server chooses the duration."""
    refreshes: bool
    """The PUBLISH names an earlier one in SIP-If-Match."""
    body: bytes


class Kamailio:
    """A running Kamailio: `async with Kamailio.running() as kamailio: …`. It does not depend on the event loop that
    started it."""

    def __init__(self, directory: Path, port: int, children: int) -> None:
        self.directory = directory
        self.host = "127.0.0.1"
        self.port = port
        self.started_in_s = 0.0
        self._children = children
        self._process = self._spawn()

    @property
    def uri(self) -> str:
        """The URI that SUBSCRIBEs are sent to; add `;transport=tcp` for TCP."""
        return f"sip:{self.host}:{self.port}"

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return (self.directory / "kamailio.log").read_text(errors="replace")

    def publications(self, user: str) -> list[Publication]:
        """What clients have published for the user, in order. Those are included that Kamailio refused."""
        return [
            Publication(
                user,
                None if expires == "<null>" else int(expires),
                etag != "<null>",
                b"" if body == "<null>" else bytes.fromhex(body),
            )
            for who, expires, etag, body in _PUBLICATION.findall(self.log)
            if who == user
        ]

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, port: int = 0, *, children: int = 1) -> AsyncIterator["Kamailio"]:
        """Starts a Kamailio (port 0: a free port), and stops it at the end. Raises KamailioFailed.

        `children` processes read the UDP socket: one keeps messages in order (see `Terminal`), more are faster.
        """
        if reason := missing():
            raise KamailioFailed(reason)
        with tempfile.TemporaryDirectory(prefix="kamailio-") as directory:
            kamailio = await cls._start(Path(directory), port, children)
            try:
                yield kamailio
            finally:
                await kamailio.stop()

    @classmethod
    async def _start(cls, directory: Path, port: int, children: int) -> "Kamailio":
        for attempts_left in reversed(range(START_ATTEMPTS)):
            kamailio = cls(directory, port or free_port(), children)
            try:
                await kamailio._answering()
            except KamailioFailed:
                await kamailio.stop()
                if port or not attempts_left or "Address already in use" not in kamailio.log:
                    raise  # else another process took the free port in between
            except BaseException:
                await kamailio.stop()
                raise
            else:
                return kamailio
        raise AssertionError("the last attempt raises or returns")

    def _spawn(self) -> subprocess.Popen[bytes]:
        database = self.directory / _DATABASE
        if not database.exists():
            with contextlib.closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # a query does not fail while another process publishes
                for name in _TABLES:
                    connection.executescript((_SCRIPTS / f"{name}-create.sql").read_text())
        text = _TEMPLATE.read_text()
        values = {"PORT": self.port, "MODULES": f"{_modules()}/", "DATABASE": database, "CHILDREN": self._children}
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        (self.directory / "kamailio.cfg").write_text(text)
        command = [
            *(
                ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
            ),  # Kamailio ends with the thread that starts it
            _binary() or "kamailio",
            *("-f", str(self.directory / "kamailio.cfg")),
            *("-P", str(self.directory / "kamailio.pid")),
            *("-Y", str(self.directory)),  # run-time files
            *("-w", str(self.directory)),  # working directory
            *("-m", "512", "-M", "8"),  # MB at most, shared and per process; a fetch holds 20 KB for 5 s
            "-DD",  # stay in the foreground, with children
            "-E",  # log to standard error
        ]
        with (self.directory / "kamailio.log").open("wb") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.directory
            )

    async def _answering(self) -> None:
        """Waits until OPTIONS is answered over UDP and TCP. Raises KamailioFailed."""
        started = time.monotonic()
        for tcp in (False, True):  # UDP first: a TCP connection is refused at once, without a pause
            while not await self._asked(tcp):
                if self._process.poll() is not None:
                    raise KamailioFailed(f"Kamailio ended with {self._process.returncode}. {self._log_end}")
                if time.monotonic() - started > START_DEADLINE_S:
                    raise KamailioFailed(f"Kamailio answers nothing after {START_DEADLINE_S} s. {self._log_end}")
        self.started_in_s = time.monotonic() - started

    async def _asked(self, tcp: bool) -> bool:
        """Whether OPTIONS is answered within 50 ms, which is also the pause between two attempts."""
        with contextlib.suppress(OSError, TimeoutError):
            async with SipClient(self.host, self.port, tcp=tcp) as client:
                client.send(client.request("OPTIONS", self.uri))
                return (await client.receive(deadline_s=0.05)).code == 200
        return False

    @property
    def _log_end(self) -> str:
        return f"Its log ends:\n{self.log[-4000:]}"

    async def start_again(self) -> None:
        """After `stop`: starts a new Kamailio, without any state, on the same port. Raises KamailioFailed."""
        for file in self.directory.glob(f"{_DATABASE}*"):
            file.unlink()
        self._process = self._spawn()
        await self._answering()

    async def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL to the process group if Kamailio does not end in time."""
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await asyncio.to_thread(self._process.wait)


def free_port() -> int:
    """A loopback port that is free on UDP and TCP now."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port
