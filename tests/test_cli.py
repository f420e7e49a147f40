"""The `terminal-status` command as a user runs it: real processes, their output and exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "app.cli"]
ROOT = Path(__file__).parent.parent
DEADLINE_S = 20.0


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


class Running:
    """A command that keeps running; its output is read a line at a time, each with a deadline."""

    def __init__(self, *arguments: str, deadline_s: float = DEADLINE_S, **environ: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environ,
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
def running(*arguments: str, deadline_s: float = DEADLINE_S, **environ: str) -> Iterator[Running]:
    command = Running(*arguments, deadline_s=deadline_s, **environ)
    try:
        yield command
    finally:
        command.close()


@pytest.fixture(scope="module")
def sandbox_uri() -> Iterator[str]:
    with running("sandbox", "--listen", "127.0.0.1:0", deadline_s=600) as sandbox:
        yield sandbox.line_with("Sandbox notifier on ").split()[3].rstrip(",")


@pytest.fixture
def gateway(sandbox_uri: str) -> Iterator[tuple[Running, list[str]]]:
    listen = ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    with running("serve", "--json", "--presence-server", sandbox_uri, *listen) as command:
        where = json.loads(command.line_with('{"grpc"'))
        yield command, ["--grpc-server", where["grpc"], "--http-server", where["http"]]


@pytest.mark.parametrize("command", ["", "serve", "get", "sandbox", "openapi", "doctor", "demo"])
def test_help(command: str) -> None:
    """Every command explains itself."""
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("via", ["grpc", "rest", "soap"])
def test_get(gateway: tuple[Running, list[str]], via: str) -> None:
    """`get` tells each terminal's status through any face; one without an answer makes the exit code 1."""
    _, server = gateway
    done = run("get", "sip:alice@example.com", "sip:bob@example.com", "--via", via, *server, "--json")
    assert done.returncode == 0, done.stderr
    assert [answer["status"] for answer in json.loads(done.stdout)] == ["REACHABLE", "BUSY"]
    done = run("get", "sip:carol@example.com", "sip:dave@example.com", "--via", via, *server)
    assert done.returncode == 1
    assert "UNREACHABLE" in done.stdout
    assert "SVC0004" in done.stdout or "TERMINAL_UNKNOWN" in done.stdout


@pytest.mark.parametrize("via", ["grpc", "rest", "soap"])
def test_get_without_gateway(via: str) -> None:
    """Where no gateway answers, `get` says so and what to do."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        done = run(
            "get", "sip:a@b", "--via", via, "--server", f"127.0.0.1:{closed.getsockname()[1]}", "--timeout-s", "2"
        )
    assert done.returncode == 1
    assert "terminal-status serve" in done.stdout


def test_serve_stops_on_sigterm(gateway: tuple[Running, list[str]]) -> None:
    """SIGTERM ends the gateway and its worker in order, with exit code 0 and a word in the log."""
    command, _ = gateway
    assert command.stop(signal.SIGTERM) == 0
    assert "gateway_stopped" in "".join(command.seen)


@pytest.mark.parametrize(("setting", "kind"), [("TS_HTTP_LISTEN", "http"), ("TS_GRPC_LISTEN", "grpc")])
def test_taken_port(sandbox_uri: str, setting: str, kind: str) -> None:
    """A taken port is one clear line that names the setting, and exit code 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = {"TS_GRPC_LISTEN": "127.0.0.1:0", "TS_HTTP_LISTEN": "127.0.0.1:0"}
        listen[setting] = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "--presence-server", sandbox_uri, **listen)
    assert done.returncode == 1
    assert f"{setting}: cannot listen on {listen[setting]}" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_setting() -> None:
    """A wrong setting ends `serve` with exit code 2, its name and what is allowed."""
    done = run("serve", TS_PRESENCE_SERVER="sip:127.0.0.1", TS_FETCH_TIMEOUT_MS="soon", TS_COLOUR="blue")
    assert done.returncode == 2
    assert "TS_FETCH_TIMEOUT_MS = 'soon'" in done.stderr
    assert "TS_COLOUR is no setting" in done.stderr


def test_doctor_well(sandbox_uri: str, tmp_path: Path) -> None:
    """`doctor` finds configuration, PJSIP with its limits, presence server and database in order."""
    database = f"sqlite+aiosqlite:///{tmp_path}/ts.sqlite3"
    done = run("doctor", "--json", TS_PRESENCE_SERVER=sandbox_uri, TS_DATABASE_URL=database)
    checks = {check["check"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert set(checks) == {"configuration", "PJSIP", "presence server", "database"}
    assert "no IPv6" in " ".join(checks["PJSIP"]["notes"])
    assert "4000 bytes" in " ".join(checks["PJSIP"]["notes"])
    assert "TLS 1.2" in " ".join(checks["PJSIP"]["notes"])


def test_doctor_ill(tmp_path: Path) -> None:
    """`doctor` names what is wrong and what to look at, and its exit code is 1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        done = run(
            "doctor",
            TS_PRESENCE_SERVER=f"sip:127.0.0.1:{mute.getsockname()[1]}",
            TS_DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/x",
            TS_FETCH_TIMEOUT_MS="100",
        )
    assert done.returncode == 1
    assert "FAIL presence server: no answer within 100 ms. See TS_PRESENCE_SERVER" in done.stdout
    assert "FAIL database" in done.stdout
    assert "See TS_DATABASE_URL" in done.stdout


def test_doctor_without_settings() -> None:
    """Without a presence server `doctor` says what to set."""
    done = run("doctor")
    assert done.returncode == 1
    assert "TS_PRESENCE_SERVER is not set" in done.stdout


def test_openapi_to_a_file(tmp_path: Path) -> None:
    """`openapi` writes the REST face's description."""
    file = tmp_path / "api.json"
    assert run("openapi", "--output", str(file)).returncode == 0
    assert json.loads(file.read_text())["openapi"].startswith("3.")
    assert run("openapi").stdout == file.read_text()


def test_sandbox_prints_changes() -> None:
    """`sandbox` shows each change of its script."""
    with running("sandbox", "--listen", "127.0.0.1:0", "--every-s", "0.01", "--json") as sandbox:
        change = json.loads(sandbox.line_with('"address"'))
        assert change["old"] != change["new"]
        assert sandbox.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("listen", ["192.0.2.1:5060", "0.0.0.0:5060", "5060", "localhost"])
def test_sandbox_stays_on_loopback(listen: str) -> None:
    """The sandbox refuses to listen anywhere else."""
    done = run("sandbox", "--listen", listen)
    assert done.returncode == 2
    assert "127.x.y.z:PORT" in done.stderr


def test_demo() -> None:
    """`make run`: all three faces are asked by the command shown, then changes follow until Ctrl-C."""
    with running("demo", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0") as demo:
        demo.line_with("$ terminal-status get sip:bob@example.com --via grpc --via rest --via soap")
        for via in ("grpc", "rest", "soap"):
            assert demo.line_with("sip:bob@example.com").split()[1:3] == [via, "BUSY"]
        demo.line_with("asked and answered in")
        assert demo.stop(signal.SIGINT) == 0
