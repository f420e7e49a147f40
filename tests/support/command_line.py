"""The `terminal-status` command as a process: run to its end, or kept running and read line by line."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

COMMAND = [sys.executable, "-m", "app.cli"]
INSTALLED = [str(Path(sys.executable).with_name("terminal-status"))]
ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 20.0
_DATABASES = tempfile.TemporaryDirectory(prefix="terminal-status-")


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command: that of the tests, with a database of its own and the given variables."""
    database = f"sqlite:///{_DATABASES.name}/{secrets.token_hex(8)}.sqlite3"
    return {"TS_DATABASE_URL": database, **os.environ, **changes}


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=environment(environ),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


class Running:
    """A command that keeps running; its output is read a line at a time, each with a deadline."""

    def __init__(
        self,
        *arguments: str,
        deadline_s: float = DEADLINE_S,
        command: Sequence[str] = COMMAND,
        cwd: str = str(ROOT),
        **environ: str,
    ) -> None:
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=cwd,
            env=environment({"PYTHONUNBUFFERED": "1", **environ}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.seen: list[str] = []
        self._watchdog = threading.Timer(deadline_s, self.process.kill)
        self._watchdog.start()

    def line_with(self, text: str) -> str:
        """The next line that holds `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} was never printed:\n{''.join(self.seen)}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit code."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        """Waits for the end and returns the exit code."""
        assert self.process.stdout is not None
        self.seen += self.process.stdout.readlines()
        return self.process.wait()

    def close(self) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def running(
    *arguments: str,
    deadline_s: float = DEADLINE_S,
    command: Sequence[str] = COMMAND,
    cwd: str = str(ROOT),
    **environ: str,
) -> Iterator[Running]:
    process = Running(*arguments, deadline_s=deadline_s, command=command, cwd=cwd, **environ)
    try:
        yield process
    finally:
        process.close()
