"""A terminal in a child process, driven by lines of JSON: what all of them can do, and the loop inside those of Python.

Invariants: a terminal sends to 127.0.0.1 only, by SIP over UDP, with no DNS, STUN or audio device. It keeps its files
in the directory that it is given. It ends with the `async with` block, and dies with the test process.
"""

import asyncio
import contextlib
import json
import os
import select
import shutil
import sys
from abc import ABC, abstractmethod
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from tests.support.programs import ROOT, require
from tests.support.waiting import until

ANSWER_S = 10.0
"""How long a terminal may take to obey."""

_POLL_S = 0.01
_ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}


@dataclass(frozen=True)
class Account:
    """What a terminal registers as: `user`@example.com at the registrar on this port of 127.0.0.1."""

    registrar_port: int
    user: str
    register_s: int = 600
    publish_s: int = 600
    """Asked for in Expires, where the terminal can be set so."""

    @property
    def address(self) -> str:
        return f"sip:{self.user}@example.com"


class RealTerminal(ABC):
    """A terminal that registers and publishes; it answers each call at once. `async with Linphone(account, tmp_path)`
    yields when it is registered.

    `choices` are those that its user has, in its own words.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    """What brings it: a Debian package, or one of Python."""
    choices: ClassVar[tuple[str, ...]]
    answers: ClassVar[bool] = False
    """Standard output has answers; otherwise it goes to the file `log`."""

    def __init__(self, account: Account, directory: Path) -> None:
        self.account = account
        self.directory = directory
        self._process: Process | None = None

    @classmethod
    @abstractmethod
    def installed(cls) -> bool:
        """Whether the terminal can be started here."""

    @classmethod
    def require(cls) -> None:
        """Skips the test where the terminal is not installed; in CI the test fails instead."""
        require(cls.installed(), f"{cls.name} ({cls.package})")

    @abstractmethod
    def _command(self) -> list[str]:
        """The program, after its files have been written to the directory."""

    @abstractmethod
    async def ask(self, action: str, value: str = "") -> Any:
        """Sends a command and returns the answer. Raises TimeoutError after ANSWER_S."""

    async def __aenter__(self) -> Self:
        self.directory.mkdir()
        command = self._command()
        dying = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
        with (self.directory / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *dying,
                *command,
                stdin=PIPE,
                stdout=PIPE if self.answers else log,
                stderr=log,
                cwd=self.directory,
                env=_ENVIRON | {"HOME": str(self.directory), "PYTHONPATH": str(ROOT)},
            )
        try:
            await self._registered()
        except BaseException as error:
            await self.kill()
            error.add_note(f"{self.name}'s log ends:\n{(self.directory / 'log').read_text(errors='replace')[-2000:]}")
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def _registered(self) -> None:
        async def answered() -> bool:
            return bool(await self.ask("registered"))

        await until(answered)

    async def choose(self, choice: str) -> None:
        """Sets the presence that the user chooses."""
        assert choice in self.choices
        await self.ask("choose", choice)

    async def calls(self) -> int:
        """The number of calls that are up."""
        return int(await self.ask("calls"))

    async def call(self, other: "RealTerminal") -> None:
        """Calls, and returns when the call is up at both ends."""
        await self.ask("call", other.account.address)

        async def up() -> bool:
            return (await self.calls(), await other.calls()) == (1, 1)

        await until(up)

    async def hang_up(self) -> None:
        """Ends the call, and returns when it has ended."""
        await self.ask("hang_up")

        async def down() -> bool:
            return await self.calls() == 0

        await until(down)

    async def quit(self) -> None:
        """Ends the program as its user does, and waits for its end."""
        assert self._process is not None
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self.ask("quit")
        async with asyncio.timeout(ANSWER_S):
            await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, as when a phone loses its network or its battery: nothing is withdrawn."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


class PythonTerminal(RealTerminal):
    """A terminal that is a library, in a child process of Python that runs the class's own module."""

    answers = True

    def _command(self) -> list[str]:
        return [sys.executable, "-m", type(self).__module__, json.dumps(asdict(self.account))]

    async def ask(self, action: str, value: str = "") -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([action, value]).encode() + b"\n")
        async with asyncio.timeout(ANSWER_S):
            line = await self._process.stdout.readuntil()
        return json.loads(line)


class Phone(Protocol):
    """The terminal inside the child. `turn` is called every 10 ms; the others answer a command, with its value."""

    def turn(self) -> None: ...
    def registered(self, _: str, /) -> bool: ...
    def choose(self, choice: str, /) -> None: ...
    def call(self, address: str, /) -> None: ...
    def calls(self, _: str, /) -> int: ...
    def hang_up(self, _: str, /) -> None: ...
    def quit(self, _: str, /) -> None: ...


def serve(start: Callable[[Account], Phone]) -> None:
    """In the child: starts the phone for the account of the command line, and obeys until `quit`."""
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries log to standard output
    phone = start(Account(**json.loads(sys.argv[1])))
    waiting = b""
    while True:
        phone.turn()
        if not select.select([0], [], [], _POLL_S)[0]:
            continue
        received = os.read(0, 65536)
        if not received:
            return
        *lines, waiting = (waiting + received).split(b"\n")
        for line in lines:
            action, value = json.loads(line)
            answer = getattr(phone, action)(value)
            os.write(answers, json.dumps(answer).encode() + b"\n")
            if action == "quit":
                os._exit(0)  # the garbage collector would free objects of a library that has ended
