"""The `terminal-status` command as a user runs it: processes, their output and exit codes."""

import json
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
import structlog.testing

from app.cli import main
from app.cli.face_clients import get_status
from app.domain.errors import DocumentUnreadable, FetchTimedOut, TerminalStatusError, WatcherUnauthenticated
from app.metrics import Metrics
from tests.support.command_line import DEADLINE_S, INSTALLED, Running, run, running


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
    """The help of every command explains the command."""
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("via", ["grpc", "rest", "soap"])
def test_get(gateway: tuple[Running, list[str]], via: str) -> None:
    """`get` prints each terminal's status through any face; where a terminal has no answer, the exit code is 1."""
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
    """Without a gateway, `get` says that no gateway answers and what to do."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        done = run(
            *("get", "sip:a@b", "--via", via, "--timeout-s", "2"),
            *("--grpc-server" if via == "grpc" else "--http-server", f"127.0.0.1:{closed.getsockname()[1]}"),
        )
    assert done.returncode == 1
    assert "terminal-status serve" in done.stdout


def test_get_from_a_server_that_is_no_gateway(gateway: tuple[Running, list[str]]) -> None:
    """HTTP sent to a gRPC port fails with one message, not a traceback."""
    _, server = gateway
    done = run("get", "sip:a@b", "--via", "rest", "--http-server", server[1], "--json")
    assert (done.returncode, done.stderr) == (1, "")
    (answer,) = json.loads(done.stdout)
    assert answer["code"] == "NO_ANSWER"
    assert "does not speak HTTP" in answer["error"]


def test_get_shows_no_control_characters() -> None:
    """Control characters and markup in a server's answer are not printed as such."""
    said = {"status": "\x1b[2J[blink]x", "observe_time": "\u202e\x07\x9b"}
    body = json.dumps(said, ensure_ascii=False).encode()
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as threads:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

        threads.submit(serve)
        done = run("get", "sip:a@b", "--via", "rest", "--http-server", f"127.0.0.1:{listening.getsockname()[1]}")
    assert done.stderr == ""
    assert all(char.isprintable() or char == "\n" for char in done.stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["get", "sip:a@b", "--grpc-server", "x"], 2, "--grpc-server = 'x': not HOST:PORT"),
        (["get", "sip:a@b", "--http-server", "x"], 2, "--http-server = 'x': not HOST:PORT"),
        (["get", "sip:\udcff@b"], 2, "is not UTF-8"),
        (["openapi", "-o", "/nonexistent/x"], 1, "/nonexistent/x: cannot be written"),
        (["openapi", "nothing"], 2, "nothing is not an API"),
        (["serve", "--presence-server", "sip:192.0.2.1"], 2, "TS_SIP_LISTEN must be an address"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], code: int, said: str) -> None:
    """Wrong arguments end the command with one line that quotes them."""
    done = run(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert said in done.stderr


def test_version() -> None:
    """`--version` prints the version of the package."""
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"terminal-status {version('terminal-status-gateway')}\n")


def test_ctrl_c_while_waiting() -> None:
    """Ctrl-C ends `get` quietly with exit code 130."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        server = f"127.0.0.1:{mute.getsockname()[1]}"
        with running("get", "sip:a@b", "--via", "rest", "--http-server", server) as command:
            connection, _ = mute.accept()
            with connection:
                assert connection.recv(65536)
                assert command.stop(signal.SIGINT) == 130
    assert "".join(command.seen) == ""


def test_ctrl_c_before_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before typer handles signals also ends with exit code 130."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "app", interrupted)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 130


def test_serve_stops_on_sigterm(gateway: tuple[Running, list[str]]) -> None:
    """SIGTERM ends the gateway and its worker in order, with exit code 0 and a log event."""
    command, _ = gateway
    assert command.stop(signal.SIGTERM) == 0
    assert "gateway_stopped" in "".join(command.seen)


def test_a_second_signal_ends_at_once(sandbox_uri: str) -> None:
    """While a query is in flight, a second SIGTERM ends the gateway with a message, exit code 1 and no crash."""
    listen = ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    with running(
        "serve", "--json", "--presence-server", sandbox_uri, *listen, TS_FETCH_TIMEOUT_MS="30000", TS_LOG_FORMAT="json"
    ) as command:
        http = json.loads(command.line_with('{"grpc"'))["http"]
        with query_in_flight(http):
            command.process.send_signal(signal.SIGTERM)
            command.line_with("gateway_stopping")
            assert command.stop(signal.SIGTERM) == 1
    assert "Second stop signal" in "".join(command.seen)


def test_a_start_that_waits_for_the_database(sandbox_uri: str, tmp_path: Path) -> None:
    """While another process has the database locked, the start logs that it waits, and SIGTERM ends it."""
    listen = ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    database = tmp_path / "status.sqlite3"
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with running(
            "serve", "--presence-server", sandbox_uri, *listen, TS_DATABASE_URL=f"sqlite:///{database}"
        ) as command:
            assert "locked" in command.line_with("database_not_ready")
            assert command.stop(signal.SIGTERM) == 0
    assert "Stopped before serving" in "".join(command.seen)


@contextmanager
def query_in_flight(http: str) -> Iterator[socket.socket]:
    """A connection with a query that the presence server never answers."""
    host, _, port = http.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        connection.sendall(b"GET /v1/terminals/sip:silent@example.com/status HTTP/1.1\r\nHost: h\r\n\r\n")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as second:  # the query was read by then
            second.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            while second.recv(65536):
                pass
        yield connection


def test_queries_in_flight_at_a_stop(sandbox_uri: str) -> None:
    """Both servers drain together within 5 s; queries still in flight get a 503 or UNAVAILABLE, without a traceback.

    Each line of the log, the HTTP server's own too, is one JSON object.
    """
    listen = ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    with running(
        "serve", "--json", "--presence-server", sandbox_uri, *listen, TS_FETCH_TIMEOUT_MS="30000", TS_LOG_FORMAT="json"
    ) as command:
        where = json.loads(command.line_with('{"grpc"'))
        with ThreadPoolExecutor() as threads, query_in_flight(where["http"]) as connection:
            over_grpc = threads.submit(get_status, "grpc", where["grpc"], "sip:silent@example.com", 15)
            assert (
                get_status("grpc", where["grpc"], "sip:alice@example.com", 15)["status"] == "REACHABLE"
            )  # the query in flight was read before this one
            started_s = time.monotonic()
            command.process.send_signal(signal.SIGTERM)
            command.line_with("gateway_stopping")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert over_grpc.result()["code"] == "GATEWAY_STOPPING"
            assert time.monotonic() - started_s < 8
            assert command.end() == 0
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"GATEWAY_STOPPING"' in answer
    events = [json.loads(line) for line in command.seen if "stop signal" not in line]
    assert "Traceback" not in "".join(command.seen)
    assert [event["logger"] for event in events if "running task" in event.get("event", "")] == ["uvicorn.error"]


@pytest.mark.parametrize(("setting", "kind"), [("TS_HTTP_LISTEN", "http"), ("TS_GRPC_LISTEN", "grpc")])
def test_taken_port(sandbox_uri: str, setting: str, kind: str) -> None:
    """A port that is in use causes one line with the name of the setting, and exit code 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = {"TS_GRPC_LISTEN": "127.0.0.1:0", "TS_HTTP_LISTEN": "127.0.0.1:0"}
        listen[setting] = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "--presence-server", sandbox_uri, **listen)
    assert done.returncode == 1
    assert f"{setting}: cannot listen on {listen[setting]}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "add_port" not in done.stderr  # gRPC's core prints this message


def test_wrong_setting() -> None:
    """A wrong setting ends `serve` with exit code 2 and a message with its name and the allowed values."""
    done = run("serve", TS_PRESENCE_SERVER="sip:127.0.0.1", TS_FETCH_TIMEOUT_MS="soon", TS_COLOUR="blue")
    assert done.returncode == 2
    assert "TS_FETCH_TIMEOUT_MS = 'soon'" in done.stderr
    assert "TS_COLOUR is not a setting" in done.stderr


def test_doctor_passes(sandbox_uri: str, tmp_path: Path) -> None:
    """`doctor` passes for the settings, PJSIP with its limits, the presence server, the database and the secret key."""
    database = f"sqlite:///{tmp_path}/ts.sqlite3"
    key_file = tmp_path / "keys"
    key_file.touch(0o600)
    key_file.write_text(f"{'a' * 43}=\n{'b' * 42}A=\n")
    settings = {"TS_DATABASE_URL": database, "TS_SECRET_KEY_FILE": str(key_file)}
    done = run("doctor", "--json", TS_PRESENCE_SERVER=sandbox_uri, **settings)
    checks = {check["check"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert set(checks) == {"configuration", "PJSIP", "presence server", "database", "secret key"}
    assert re.fullmatch("[0-9a-f]{8} encrypts, [0-9a-f]{8} decrypts", checks["secret key"]["found"])
    assert "no IPv6" in " ".join(checks["PJSIP"]["notes"])
    assert "4000 bytes" in " ".join(checks["PJSIP"]["notes"])
    assert "TLS 1.2" in " ".join(checks["PJSIP"]["notes"])


def test_doctor_warns_of_tls_towards_sip(tmp_path: Path) -> None:
    """With `transport=tls` `doctor` warns about the OpenSSL in PJSIP's wheel, and says what to do."""
    environ = {"TS_DATABASE_URL": f"sqlite:///{tmp_path}/x", "TS_FETCH_TIMEOUT_MS": "50"}
    done = run("doctor", "--json", TS_PRESENCE_SERVER="sip:127.0.0.1:9;transport=tls", **environ)
    (check,) = [check for check in json.loads(done.stdout) if check["check"] == "SIP over TLS"]
    assert "OpenSSL 1.0.2k" in check["found"]
    assert "TLS 1.2 at most" in check["found"]
    assert "proxy" in check["notes"][0]


def test_doctor_fails(tmp_path: Path) -> None:
    """`doctor` names each failed check with the settings to look at; the exit code is 1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        done = run(
            "doctor",
            TS_PRESENCE_SERVER=f"sip:127.0.0.1:{mute.getsockname()[1]};transport=udp",
            TS_DATABASE_URL=f"sqlite:///{tmp_path}/no/such/folder/x",
            TS_SECRET_KEY_FILE=f"{tmp_path}/none",
            TS_FETCH_TIMEOUT_MS="100",
        )
    assert done.returncode == 1
    assert "FAIL presence server: no answer within 100 ms. See TS_PRESENCE_SERVER" in done.stdout
    assert "FAIL database" in done.stdout
    assert "See TS_DATABASE_URL" in done.stdout
    assert "FAIL secret key: TS_SECRET_KEY_FILE: " in done.stdout


def test_doctor_without_settings() -> None:
    """Without TS_PRESENCE_SERVER `doctor` names that setting; the exit code is 2."""
    done = run("doctor")
    assert done.returncode == 2
    assert "TS_PRESENCE_SERVER is not set" in done.stdout


def test_openapi_to_a_file(tmp_path: Path) -> None:
    """`openapi` writes the OpenAPI document of REST API v1."""
    file = tmp_path / "api.json"
    assert run("openapi", "--output", str(file)).returncode == 0
    assert json.loads(file.read_text())["openapi"].startswith("3.")
    assert run("openapi").stdout == file.read_text()


def test_openapi_to_a_folder(tmp_path: Path) -> None:
    """For a folder, `openapi` writes one file for each HTTP API; a name selects one of them."""
    assert run("openapi", "--output", str(tmp_path)).returncode == 0
    names = sorted(file.stem for file in tmp_path.iterdir())
    assert names == [
        "device-reachability-status-subscriptions-v0.8",
        "device-reachability-status-v1",
        "terminal-status-v1",
    ]
    assert run("openapi", names[1]).stdout == (tmp_path / f"{names[1]}.json").read_text()


def test_sandbox_prints_changes() -> None:
    """`sandbox` prints each change of its script."""
    with running("sandbox", "--listen", "127.0.0.1:0", "--every-s", "0.01", "--json") as sandbox:
        change = json.loads(sandbox.line_with('"address"'))
        assert change["old"] != change["new"]
        assert sandbox.stop(signal.SIGINT) == 0


@pytest.mark.parametrize(
    "listen",
    ["192.0.2.1:5060", "0.0.0.0:5060", "5060", "localhost", "127.0.0.1:99999", "127.0.0.1:\u00b2", "127.evil:5060"],
)
def test_sandbox_stays_on_loopback(listen: str) -> None:
    """The sandbox refuses to listen on other addresses than loopback."""
    done = run("sandbox", "--listen", listen)
    assert done.returncode == 2
    assert "127.x.y.z:PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo() -> None:
    """`make run`: the printed command queries all three faces; then changes are printed until Ctrl-C. Callers on this
    machine are operators, whatever TS_ANONYMOUS_ACCESS says."""
    listen = ("--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with running("demo", *listen, TS_ANONYMOUS_ACCESS="never") as demo:
        server = demo.line_with("gateway on gRPC").split()[-1]
        assert run("watches", "--server", server, "--json").returncode == 0
        demo.line_with("$ terminal-status get sip:bob@example.com --via grpc --via rest --via soap")
        for via in ("grpc", "rest", "soap"):
            assert demo.line_with("sip:bob@example.com").split()[1:3] == [via, "BUSY"]
        demo.line_with("reported after")
        assert demo.stop(signal.SIGINT) == 0


FOREIGN_MODULES = ("app", "soap_compat", "cffi", "json", "socket", "sitecustomize", "pjsua2")


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_nothing_is_imported_from_the_working_directory(sandbox_uri: str, tmp_path: Path, command: str) -> None:
    """In a folder with packages of the same names, neither the gateway nor its child processes import them."""
    for name in FOREIGN_MODULES:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\nraise SystemExit(9)"
        )
    arguments = [command, "--json", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    if command == "serve":
        arguments += ["--presence-server", sandbox_uri]
    with running(*arguments, command=INSTALLED, cwd=str(tmp_path)) as process:
        process.line_with('"grpc"' if command == "serve" else '"status"')
        assert process.stop() == 0
    assert not (tmp_path / "ran").exists()


def test_failures_are_logged_once_in_a_while() -> None:
    """Each kind of failure that the operator must mend is logged at most once per second, with the number of omitted
    lines."""
    now_s = [100.0]
    metrics = Metrics(clock=lambda: now_s[0])

    def fail(error: TerminalStatusError) -> None:
        metrics.fetched(error.code, 0.1, error)

    with structlog.testing.capture_logs() as logs:
        for _ in range(1000):
            fail(DocumentUnreadable("No XML.", reason="xml", address="sip:a@b"))
        fail(DocumentUnreadable("Cut.", reason="cut"))
        fail(WatcherUnauthenticated("Who?", sip_code="401"))
        fail(WatcherUnauthenticated("Who?", sip_code="407"))
        fail(FetchTimedOut("Nothing."))
        now_s[0] += 1
        fail(DocumentUnreadable("No XML.", reason="xml"))
        now_s[0] += 1
        fail(DocumentUnreadable("No XML.", reason="xml"))
    assert [
        (log["event"], log["code"], log.get("reason") or log["sip_code"], log.get("suppressed")) for log in logs
    ] == [
        ("fetch_failed", "DOCUMENT_UNREADABLE", "xml", None),
        ("fetch_failed", "DOCUMENT_UNREADABLE", "cut", None),
        ("fetch_failed", "WATCHER_UNAUTHENTICATED", "401", None),
        ("fetch_failed", "WATCHER_UNAUTHENTICATED", "407", None),
        ("fetch_failed", "DOCUMENT_UNREADABLE", "xml", 999),
        ("fetch_failed", "DOCUMENT_UNREADABLE", "xml", None),
    ]
