"""The commands that call a running gateway, as a user runs them: gateway and sandbox are processes."""

import csv
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer

from app.cli import main
from app.cli.commands import usage
from app.cli.protobuf_json import enum_name, plain
from app.cli.tables import print_table
from app.cli.times import short, since, span_ms
from app.pb.terminalstatus.v1 import delivery_pb2, subscription_pb2
from tests.support.certificates import sign
from tests.support.command_line import COMMAND, DEADLINE_S, ROOT, Running, run, running

ALICE, BOB, CAROL, DAVE = [f"sip:{name}@example.com" for name in ("alice", "bob", "carol", "dave")]
SCRIPTED = ["sip:erin@example.com", "sip:frank@example.com", "sip:grace@example.com"]
NO_KEY = "tsk_none_of_this_gateway"


@pytest.fixture(scope="module")
def sandbox_uri() -> Iterator[str]:
    """The address of a sandbox whose scripted terminals change several times a second."""
    with running("sandbox", "--listen", "127.0.0.1:0", "--every-s", "0.2", deadline_s=600) as sandbox:
        uri = sandbox.line_with("Sandbox notifier on ").split()[3].rstrip(",")
        threading.Thread(target=sandbox.end, daemon=True).start()  # keeps reading, so that the sandbox can print
        yield uri
        sandbox.process.terminate()


@contextmanager
def serving(
    sandbox_uri: str, directory: Path, grpc: str = "127.0.0.1:0", **environ: str
) -> Iterator[tuple[Running, str]]:
    """A gateway as a process; yields its gRPC address. Webhooks may go to this machine."""
    settings = {
        "TS_PRESENCE_SERVER": sandbox_uri,
        "TS_GRPC_LISTEN": grpc,
        "TS_HTTP_LISTEN": "127.0.0.1:0",
        "TS_DATABASE_URL": f"sqlite:///{directory}/ts.sqlite3",
        "TS_SINK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "TS_SINK_ALLOW_HTTP": "true",
        "TS_BOOKMARK_S": "0.5",
        "TS_LOG_LEVEL": "error",
        "TS_API_KEY": NO_KEY,  # not a setting, and no obstacle to `serve`
    }
    with running("serve", "--json", deadline_s=600, **settings | environ) as command:
        yield command, json.loads(command.line_with('{"grpc"'))["grpc"]


@pytest.fixture(scope="module")
def server(sandbox_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway's gRPC address; commands use the API key of its operator."""
    folder = tmp_path_factory.mktemp("gateway")
    added = run("clients", "add", "ops", "--id", "ops", "--admin", TS_DATABASE_URL=f"sqlite:///{folder}/ts.sqlite3")
    with pytest.MonkeyPatch.context() as patch, serving(sandbox_uri, folder) as (_, address):
        patch.setenv("TS_API_KEY", added.stdout.strip())
        yield address


def done(*arguments: str, server: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command against the gateway, and checks its exit code."""
    finished = run(*arguments, "--server", server)
    assert finished.returncode == code, (arguments, finished.stdout, finished.stderr)
    assert "Traceback" not in finished.stderr
    return finished


def answer(*arguments: str, server: str, code: int = 0) -> Any:
    """The JSON that the command prints."""
    return json.loads(done(*arguments, "--json", server=server, code=code).stdout)


def one_line(*arguments: str, server: str, code: int = 1) -> str:
    """The single line on standard error of a command that fails."""
    finished = done(*arguments, server=server, code=code)
    assert finished.stderr.count("\n") == 1, finished.stderr
    return finished.stderr


@pytest.mark.parametrize(
    "command",
    [
        "query",
        "watch",
        "watches",
        "watches refresh",
        "groups set",
        "subscriptions create",
        "subscriptions rotate-secret",
        "deliveries list",
        "usage list",
        "audit list",
    ],
)
def test_help(command: str) -> None:
    """The help of every command has an example and names the API key's variable."""
    shown = run(*command.split(), "--help", COLUMNS="200")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"Example: terminal-status {command}" in shown.stdout
    assert "TS_API_KEY" in shown.stdout


def test_help_is_quick() -> None:
    """`--help` imports no module that only running the command needs."""
    heavy = "{'grpc', 'pydantic', 'structlog', 'sqlalchemy', 'fastapi', 'google.protobuf'}"
    code = f"import sys, app.cli.main; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=DEADLINE_S).returncode == 0


def test_groups(server: str) -> None:
    """Groups are created, changed, shown and deleted; a failure is one line with its code and what to do."""
    team = "sip:team@example.com"
    assert "2 members; etag 1-" in done("groups", "create", team, ALICE, BOB, server=server).stderr
    assert "GROUP_EXISTS" in (line := one_line("groups", "create", team, server=server))
    assert "groups set" in line
    assert answer("groups", "add", team, CAROL, server=server)["members"] == [ALICE, BOB, CAROL]
    etag = answer("groups", "remove", team, BOB, server=server)["etag"]
    done("groups", "add", team, BOB, server=server)
    done("groups", "remove", team, BOB, server=server)
    assert "GROUP_CHANGED" in one_line("groups", "set", team, ALICE, "--etag", etag, server=server)
    shown = answer("groups", "show", team, server=server)
    assert set(shown) == {"address", "client_id", "members", "etag", "create_time"}
    assert shown["members"] == [ALICE, CAROL]
    assert f"member   {CAROL}" in done("groups", "show", team, server=server).stdout
    assert team in [group["address"] for group in answer("groups", "list", server=server)]
    assert done("groups", "list", server=server).stdout.startswith("group")
    assert answer("groups", "set", team, server=server)["members"] == []
    assert done("groups", "delete", team, server=server, code=1).stderr.startswith("Delete ")  # no "y" on stdin
    done("groups", "delete", team, "--yes", server=server)
    assert "GROUP_UNKNOWN" in one_line("groups", "show", team, server=server)


def test_query(server: str) -> None:
    """One query about a group and a terminal; a terminal that fails has an error, and the exit code is 1."""
    group = "sip:asked@example.com"
    done("groups", "create", group, ALICE, DAVE, server=server)
    results = {result["address"]: result for result in answer("query", group, BOB, server=server, code=1)}
    assert set(results) == {ALICE, BOB, DAVE}
    assert set(results[ALICE]) == {"address", "retrieval_status", "status", "error"}
    assert results[BOB]["status"]["status"] == "BUSY"
    assert results[DAVE]["retrieval_status"] == "ERROR"
    assert results[DAVE]["error"]["reason"] == "TERMINAL_UNKNOWN"
    shown = done("query", group, server=server, code=1)
    assert "1 of 2 terminals have a status." in shown.stderr
    assert "ERROR" in shown.stdout
    done("query", ALICE, BOB, server=server)
    line = one_line("query", "alice", server=server, code=2)
    assert "INVALID_ADDRESS" in line


def test_max_age(server: str) -> None:
    """With `--max-age` a stored status answers; with SOAP the option is refused."""
    first = answer("get", CAROL, server=server)[0]["observe_time"]
    assert answer("get", CAROL, "--max-age", "1h", server=server)[0]["observe_time"] == first
    assert answer("query", CAROL, "--max-age", "1h", server=server)[0]["status"]["observe_time"] == first
    assert answer("get", CAROL, server=server)[0]["observe_time"] != first
    assert "--max-age" in one_line("get", CAROL, "--max-age", "1h", "--via", "soap", server=server, code=2)


def test_watch_json(server: str) -> None:
    """`watch --json` prints the snapshot, its end with a resume token, and each change; with the token a second `watch`
    resumes with later changes. Ctrl-C and SIGTERM end it with exit code 0."""
    with running("watch", ALICE, *SCRIPTED, "--json", "--server", server) as command:
        command.line_with('"snapshot_complete"')
        change = json.loads(command.line_with('"change"'))
        bookmark = json.loads(command.line_with("resume_token"))
        assert command.stop(signal.SIGINT) == 0
    items = [json.loads(line) for line in command.seen if '"snapshot_item"' in line]
    assert {item["address"] for item in items} == {ALICE, *SCRIPTED}
    assert set(change) == {"event", "status"}
    assert change["status"]["address"] in [ALICE, *SCRIPTED]
    with running(
        *("watch", ALICE, *SCRIPTED, "--json", "--server", server, "--resume-token", bookmark["resume_token"])
    ) as command:
        command.line_with('"snapshot_complete"')
        assert command.stop(signal.SIGTERM) == 0
    assert f'"snapshot_item", "address": "{ALICE}"' not in "".join(command.seen)  # the terminal has not changed
    assert "Traceback" not in "".join(command.seen)


def test_watch_lines(server: str) -> None:
    """Into a pipe `watch` prints a line for each event."""
    with running("watch", BOB, *SCRIPTED, "--server", server, "--criteria", "busy") as command:
        command.line_with("complete")
        assert command.line_with("change").split()[-1] == "BUSY"
        assert command.stop(signal.SIGINT) == 0


def test_watch_table(server: str) -> None:
    """On a terminal `watch` is a live table that fits the width, and restores the cursor at its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 100, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, "watch", ALICE, *SCRIPTED, "--server", server], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    seen = ""
    try:
        while "REACHABLE" not in seen or "watching at" not in seen:
            seen += os.read(ours, 65536).decode("utf-8", "replace")
        process.send_signal(signal.SIGINT)
        while chunk := _read(ours):
            seen += chunk
        assert process.wait() == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        os.close(ours)
    assert seen.rstrip().endswith("\x1b[?25h")
    assert "Traceback" not in seen


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 65536).decode("utf-8", "replace")
    except OSError:  # the last process has closed the terminal
        return ""


def test_watch_goes_on_after_a_crash(sandbox_uri: str, tmp_path: Path) -> None:
    """After a gateway is killed and restarted, `watch` reconnects and resumes its stream."""
    with (
        serving(sandbox_uri, tmp_path) as (gateway, address),
        running("watch", ALICE, "--json", "--server", address) as command,
    ):
        change = json.loads(command.line_with('"status": "REACHABLE"'))
        command.line_with('"bookmark"')
        gateway.process.kill()
        gateway.process.wait()
        command.line_with('"lost"')
        with serving(sandbox_uri, tmp_path, address):
            command.line_with('"snapshot_complete"')
            assert command.stop(signal.SIGINT) == 0
    assert change["event"] in ("change", "snapshot_item")
    after = "".join(command.seen).rpartition('"lost"')[2]
    assert '"REACHABLE"' in after  # the last known status is kept, if STALE


def test_subscriptions(server: str) -> None:
    """A subscription is created, shown, changed and cancelled; a second one with the same correlator is refused."""
    create = ("subscriptions", "create", *SCRIPTED, "--criteria", "BUSY", "--duration", "2h", "--correlator", "door 7")
    made = done(*create, server=server)
    found = answer("subscriptions", "show", made.stdout.strip(), server=server)
    assert (found["criteria"], found["correlator"], found["end_reason"]) == (["BUSY"], "door 7", None)
    assert [kind for kind, sink in found["sink"].items() if sink is not None] == ["listed"]
    assert "DUPLICATE_CORRELATOR" in (line := one_line(*create, server=server))
    assert "subscriptions cancel" in line
    assert found["id"] in done("subscriptions", "list", server=server).stdout
    update = ("subscriptions", "update", found["id"], "--duration", "7d", "--etag", found["etag"])
    renewed = answer(*update, server=server)
    assert renewed["expire_time"] > found["expire_time"]
    assert "SUBSCRIPTION_CHANGED" in one_line(*update, server=server)
    changes = ("--address", ALICE, "--every-change", "--etag", renewed["etag"])
    changed = answer("subscriptions", "update", found["id"], *changes, server=server)
    assert (changed["addresses"], changed["criteria"]) == ([ALICE], [])
    assert changed["expire_time"] == renewed["expire_time"]
    stale = one_line("subscriptions", "update", found["id"], *changes, server=server)
    assert "SUBSCRIPTION_CHANGED" in stale
    assert "--duration" in one_line("subscriptions", "update", found["id"], server=server, code=2)
    by_address = ("subscriptions", "list", "--address", ALICE)
    assert found["id"] in [one["id"] for one in answer(*by_address, server=server)]
    assert answer("subscriptions", "cancel", "--correlator", "door 7", server=server) == {"correlator": "door 7"}
    assert found["id"] in [one["id"] for one in answer(*by_address, "--ended", server=server)]
    assert "CANCELLED" in done("subscriptions", "show", found["id"], server=server).stdout
    assert answer("subscriptions", "list", server=server) == []
    line = one_line("subscriptions", "create", ALICE, "--webhook", "http://192.0.2.1/", server=server, code=2)
    assert "SINK_REFUSED" in line
    assert "TS_SINK_ALLOWED_NETWORKS" in line


class Accepting(BaseHTTPRequestHandler):
    """A webhook that accepts every event."""

    def do_POST(self) -> None:
        self.send_response(self.code_for(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def code_for(self, event: Any) -> int:
        return 204

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the standard library's name
        pass


def test_rotate_secret(server: str, tmp_path: Path) -> None:
    """A generated secret is printed alone on standard output; a secret from a file is not printed; a malformed one is
    refused."""
    own = tmp_path / "secret.txt"
    own.write_text("whsec_" + "QUJD" * 8 + "\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Accepting) as endpoint:
        threading.Thread(target=endpoint.serve_forever).start()
        url = f"http://127.0.0.1:{endpoint.server_address[1]}/"
        made = answer("subscriptions", "create", CAROL, "--webhook", url, server=server)
        endpoint.shutdown()
    rotate = ("subscriptions", "rotate-secret", made["id"])
    printed = done(*rotate, server=server)
    assert printed.stdout.startswith("whsec_")
    assert (printed.stdout.count("\n"), "shown only now" in printed.stderr) == (1, True)
    mine = done(*rotate, "--secret-file", str(own), server=server)
    assert (mine.stdout, "the previous one" in mine.stderr) == ("", True)
    dropped = answer(*rotate, "--drop-old", server=server)
    assert (dropped["id"], dropped["secret"], dropped["sink"]["webhook"]["secrets"]) == (made["id"], None, [])
    assert answer(*rotate, server=server)["secret"].startswith("whsec_")
    own.write_text("hunter2")
    assert "SINK_REFUSED" in one_line(*rotate, "--secret-file", str(own), server=server, code=2)
    own.write_text("\n")
    assert "empty" in one_line(*rotate, "--secret-file", str(own), server=server, code=2)
    done("subscriptions", "cancel", made["id"], server=server)


def test_watches(server: str) -> None:
    """`watches` lists the watched terminals with their listeners; `refresh` fails for a terminal without a watch."""
    subscription = done("subscriptions", "create", *SCRIPTED, server=server).stdout.strip()
    watches = {watch["address"]: watch for watch in answer("watches", server=server)}
    assert set(SCRIPTED) <= set(watches)
    assert subscription in watches[SCRIPTED[0]]["subscription_ids"]
    assert {
        "state",
        "liveness",
        "state_time",
        "expire_time",
        "sip_code",
        "next_action",
        "next_action_time",
        "route",
    } <= set(watches[SCRIPTED[0]])
    assert SCRIPTED[0] in done("watches", "--limit", "100", server=server).stdout
    assert len(answer("watches", "--limit", "1", server=server)) == 1
    done("watches", "refresh", SCRIPTED[0], server=server)
    assert "WATCH_UNKNOWN" in one_line("watches", "refresh", "sip:unwatched@example.com", server=server)
    misplaced = run("watches", "--server", server, "refresh", ALICE)
    assert (misplaced.returncode, "after the command" in misplaced.stderr) == (2, True)
    done("subscriptions", "cancel", subscription, server=server)


class Gone(Accepting):
    """Accepts the test event, then answers 410 Gone."""

    def code_for(self, event: Any) -> int:
        return 204 if event["type"].endswith("test") else 410


def test_deliveries(server: str, tmp_path: Path) -> None:
    """A notification that its sink refuses is listed as dead with its attempt, and can be sent again."""
    secret = tmp_path / "secret.txt"
    secret.write_text("whsec_" + "QUJD" * 8 + "\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Gone) as endpoint:
        threading.Thread(target=endpoint.serve_forever).start()
        url = f"http://127.0.0.1:{endpoint.server_address[1]}/events"
        create = ("subscriptions", "create", BOB, "--immediate", "--webhook", url, "--secret-file", str(secret))
        made = answer(*create, server=server)
        assert (made["sink"]["webhook"]["uri"], made["sink"]["webhook"]["secrets"]) == (url, [])
        of = ("--subscription", made["id"])
        dead: list[Any] = []
        deadline = threading.Event()
        threading.Timer(DEADLINE_S, deadline.set).start()
        while not dead and not deadline.is_set():
            dead = answer("deliveries", "list", "--state", "dead", *of, server=server)
        attempts = answer("deliveries", "attempts", dead[0]["id"], server=server)
        assert [attempt["http_code"] for attempt in attempts] == [410]
        assert isinstance(attempts[0]["duration_ms"], int)
        assert "410" in done("deliveries", "attempts", dead[0]["id"], server=server).stdout
        assert "DEAD" in done("deliveries", "list", *of, server=server).stdout
        assert answer("deliveries", "send-again", dead[0]["id"], server=server) == {"sent_again_count": 1}
        again = done("deliveries", "send-again", "--dead", *of, server=server)
        assert "were dead" in again.stderr
        endpoint.shutdown()
    assert "NOTIFICATION_UNKNOWN" in one_line("deliveries", "attempts", "x", server=server)
    assert "ids" in one_line("deliveries", "send-again", server=server, code=2)


def test_clients_name_the_setting_of_a_database_that_does_not_open(tmp_path: Path) -> None:
    """A file that is not a database causes one line with the name of the setting, without a traceback."""
    (file := tmp_path / "text").write_text("This is no database, though it is as long as the head of one. " * 4)
    file.chmod(0o600)
    finished = run("clients", "list", TS_DATABASE_URL=f"sqlite:///{file}", TS_API_KEY="")
    assert (finished.returncode, finished.stdout, finished.stderr.count("\n")) == (1, "", 1)
    assert finished.stderr.startswith(f"error: TS_DATABASE_URL: sqlite:///{file} cannot be opened: ")


def test_audit(server: str) -> None:
    """The audit log is listed from a given time, as a table and as JSON."""
    team = "sip:audited@example.com"
    done("groups", "create", team, ALICE, server=server)
    done("groups", "delete", team, "--yes", server=server)
    listed = answer("audit", "list", "--since", "1h", server=server)
    entries = [(one["actor"], one["action"]) for one in listed if one["details"].get("group") == team]
    assert entries == [("ops", "GROUP_CREATED"), ("ops", "GROUP_DELETED")]
    assert f"group={team}" in done("audit", "list", server=server).stdout
    assert answer("audit", "list", "--since", "2999-01-01", server=server) == []


def test_usage(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Usage records are listed, and exported as JSON Lines and CSV; a long export prints its progress."""
    done("query", ALICE, "--requester", "=1+1", server=server)
    done("query", ALICE, BOB, server=server)
    listed = answer("usage", "list", "--since", "1h", server=server)
    asked = [record for record in listed if record["operation"] == "GET_STATUS_FOR_GROUP"][-1]
    assert (asked["client_id"], asked["face"], asked["targets"], asked["result"]) == (
        "ops",
        "GRPC",
        [ALICE, BOB],
        "OK",
    )
    assert "GET_STATUS_FOR_GROUP" in done("usage", "list", server=server).stdout
    lines = [json.loads(line) for line in done("usage", "export", server=server).stdout.splitlines()]
    assert asked in lines
    file = tmp_path / "usage.csv"
    exported = done("usage", "export", "--format", "csv", "--output", str(file), server=server)
    assert f"usage records to {file}" in exported.stderr
    with file.open(newline="") as opened:
        rows = {row["id"]: row for row in csv.DictReader(opened)}
    assert rows[asked["id"]]["targets"] == f"{ALICE} {BOB}"
    assert {row["requester"] for row in rows.values()} >= {
        "",
        "'=1+1",
    }  # quoted: spreadsheets must not compute it
    assert list(tmp_path.iterdir()) == [file]
    assert done("usage", "export", "--since", "2999-01-01", server=server).stdout == ""
    assert "/nonexistent/x" in one_line("usage", "export", "-o", "/nonexistent/x", server=server)
    assert "not a time" in run("usage", "list", "--since", "yesterday", COLUMNS="200").stderr

    monkeypatch.setattr(usage, "PROGRESS_S", 0.0)
    main.app(["usage", "export", "--server", server, "--output", str(file)], standalone_mode=False)
    assert "usage records …" in capsys.readouterr().err


def test_no_gateway() -> None:
    """Without a gateway, every kind of call says that no gateway answers and what to check."""
    for command in (["watches"], ["watch", ALICE], ["query", ALICE], ["usage", "export"]):
        line = one_line(*command, server="127.0.0.1:1")
        assert line.startswith("error: NO_ANSWER: No answer from 127.0.0.1:1")
        assert "terminal-status serve" in line


def test_credentials_and_tls(sandbox_uri: str, tmp_path: Path) -> None:
    """Calls over TLS, with and without a key, as operator and not: each failure says what to do, and none prints the
    key."""
    authority = sign(tmp_path, "authority")
    certificate = sign(tmp_path, "server", authority)
    tls = {"TS_TLS_CERT_FILE": str(certificate.cert_file), "TS_TLS_KEY_FILE": str(certificate.key_file)}
    database = f"sqlite:///{tmp_path}/ts.sqlite3"
    key = run("clients", "add", "app", TS_DATABASE_URL=database).stdout.strip()
    operator = run("clients", "add", "ops", "--admin", TS_DATABASE_URL=database).stdout.strip()
    with serving(sandbox_uri, tmp_path, **tls) as (_, address):
        at = ("--server", f"localhost:{address.rpartition(':')[2]}", "--tls-ca-file", str(authority.cert_file))
        asked = [
            (["groups", "list", *at], {}, 1, "UNAUTHENTICATED", "terminal-status clients add"),
            (["groups", "list", *at], {"TS_API_KEY": NO_KEY}, 1, "UNAUTHENTICATED", "TS_API_KEY"),
            (["watches", *at], {"TS_API_KEY": key}, 1, "NOT_PERMITTED", "--admin"),
            (["groups", "list", "--server", at[1]], {"TS_API_KEY": key}, 1, "NO_ANSWER", "--tls"),
            (["groups", "list", "--server", at[1], "--tls"], {}, 1, "NO_ANSWER", "--tls-ca-file"),
            (["groups", "list", *at[:3], "/nonexistent"], {}, 2, "/nonexistent", "cannot be read"),
            (["groups", "list", *at], {"TS_API_KEY": f"{key}\n"}, 2, "API key", "characters"),
        ]
        for arguments, environ, code, name, todo in asked:
            failed = run(*arguments, **environ)
            assert (failed.returncode, failed.stderr.count("\n")) == (code, 1), failed.stderr
            assert name in failed.stderr
            assert todo in failed.stderr
            assert key not in failed.stdout + failed.stderr
        assert json.loads(run("groups", "list", *at, "--json", TS_API_KEY=key).stdout) == []
        assert json.loads(run("watches", *at, "--json", "--api-key", operator).stdout) == []
        done_ = run("get", BOB, "--json", *at, TS_API_KEY=key)
        assert json.loads(done_.stdout)[0]["status"] == "BUSY"


def test_wrong_use() -> None:
    """Contradictory or malformed arguments fail before any call, with exit code 2."""
    for arguments, said in (
        (["watch", ALICE, "--criteria", "away"], "REACHABLE, UNREACHABLE or BUSY"),
        (["query", ALICE, "--max-age", "soon"], "not a duration"),
        (["query", "sip:\udcff@b"], "is not UTF-8"),
        (["subscriptions", "cancel"], "--correlator"),
        (["subscriptions", "create", ALICE, "--handshake", "none"], "--webhook"),
        (["usage", "export", "--json", "--format", "csv"], "exclude each other"),
    ):
        failed = run(*arguments, COLUMNS="200")
        assert failed.returncode == 2, failed.stderr
        assert said in failed.stderr


def test_messages_as_json() -> None:
    """Every field is present, null where unset; enums lose their prefix, durations are milliseconds."""
    attempt = delivery_pb2.DeliveryAttempt(number=1, response_body=b"\xff<")
    attempt.duration.FromMilliseconds(1500)
    shown = {
        "number": 1,
        "start_time": None,
        "http_code": 0,
        "duration_ms": 1500,
        "outcome": None,
        "response_body": "\ufffd<",
    }
    assert plain(attempt) == shown
    ended = subscription_pb2.Subscription(end_reason=subscription_pb2.END_REASON_SINK_GONE)
    assert enum_name(ended, "end_reason") == "SINK_GONE"
    ended.ParseFromString(b"\x88\x01\x63")  # end_reason = 99, of a newer gateway
    assert plain(ended)["end_reason"] == "99"


def test_tables_escape_control_characters_and_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """Text from servers is printed without markup and control characters, and is not cut."""
    print_table(("a", "b"), [["[red]x", "\x1b[2J\n" + "y" * 200]])
    assert capsys.readouterr().out == f"a       b\n[red]x  \\x1b[2J\\n{'y' * 200}\n"


def test_times() -> None:
    """Durations and times are parsed in everyday notation; other text is refused."""
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert [span_ms(text) for text in ("90", "1.5s", "500ms", "2h", "7d")] == [
        90_000,
        1500,
        500,
        7_200_000,
        604_800_000,
    ]
    assert since("24h", now) == datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert since("2026-11-23", now) == datetime(2026, 11, 23, tzinfo=UTC)
    assert since("2026-11-23T08:00+02:00", now) == datetime(2026, 11, 23, 6, tzinfo=UTC)
    assert [short(seconds) for seconds in (-1, 0.5, 62, 90_061)] == ["0s", "0s", "1m 2s", "1d 1h"]
    for wrong in ("", "-1s", "1y", "nan"):
        with pytest.raises(typer.BadParameter):
            span_ms(wrong)


def in_folder(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs `clients` in that folder, with these environment variables only."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environ}
    command = [*COMMAND, "clients", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_clients_at_the_running_gateway(server: str, tmp_path: Path) -> None:
    """With an operator's key `clients` calls the running gateway, from any folder: changes apply at once, and the audit
    log names the operator."""
    operator = {"TS_API_KEY": os.environ["TS_API_KEY"]}
    at = ("--server", server)
    added = in_folder(
        tmp_path,
        "add",
        "far",
        "--id",
        "far-1",
        "--limit",
        "busy_available=no",
        "--soap-callback-version",
        "v3_1",
        *at,
        **operator,
    )
    assert (added.returncode, added.stdout.startswith("tsk_")) == (0, True), added.stderr
    assert f"(gateway {server})" in added.stderr
    assert run("groups", "list", *at, TS_API_KEY=added.stdout.strip()).returncode == 0
    rotated = in_folder(tmp_path, "rotate", "far", "--overlap-s", "60", "--json", *at, **operator)
    listed = json.loads(in_folder(tmp_path, "list", "--json", *at, **operator).stdout)
    (far,) = [each for each in listed if each["id"] == "far-1"]
    assert (far["limits"], len(far["keys"])) == ({"busy_available": False}, 2)
    assert far["soap_callback_version"] == "v3_1"
    new_key = json.loads(rotated.stdout)["api_key"]
    for state, code in (("disable", 1), ("enable", 0)):
        changed = json.loads(in_folder(tmp_path, state, "far-1", "--json", *at, **operator).stdout)
        assert changed["disabled"] is (state == "disable")
        assert run("groups", "list", *at, TS_API_KEY=new_key).returncode == code
    refused = in_folder(tmp_path, "add", "more", *at, TS_API_KEY=new_key)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "NOT_PERMITTED" in refused.stderr
    assert "--database" in refused.stderr
    deleted = in_folder(tmp_path, "delete", "far", "--yes", "--json", *at, **operator)
    assert json.loads(deleted.stdout) == {"id": "far-1", "ended_subscriptions": 0}
    for command in (("rotate", "far"), ("disable", "far"), ("delete", "far", "--yes")):
        gone = in_folder(tmp_path, *command, *at, **operator)
        assert gone.returncode == 1
        assert "no client with the id or name 'far'" in gone.stderr
    entries = [(one["actor"], one["action"]) for one in answer("audit", "list", server=server) if one["actor"] == "ops"]
    assert ("ops", "CLIENT_ADDED") in entries
    assert list(tmp_path.iterdir()) == []


def test_clients_in_another_folder(tmp_path: Path) -> None:
    """Unless an option or setting names the gateway's database, none is created; messages have the absolute path."""
    refused = in_folder(tmp_path, "add", "app")
    assert (refused.returncode, refused.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert "(--database sqlite:///terminal-status.sqlite3 creates it here" in refused.stderr
    named = in_folder(tmp_path, "add", "app", "--database", "sqlite:///of/a.sqlite3")
    assert (named.returncode, named.stdout) == (1, "")  # there is no such folder
    named = in_folder(tmp_path, "add", "app", "--database", "sqlite:///a.sqlite3")
    assert (named.returncode, named.stdout.startswith("tsk_")) == (0, True)
    assert f"(new database {tmp_path}/a.sqlite3)" in named.stderr
    again = in_folder(tmp_path, "rotate", "app", TS_DATABASE_URL="sqlite:///a.sqlite3")
    assert f"(database {tmp_path}/a.sqlite3)" in again.stderr
    wrong = in_folder(tmp_path, "list", "--database", "a.sqlite3")
    assert (wrong.returncode, "--database = 'a.sqlite3'" in wrong.stderr) == (2, True)
    both = in_folder(tmp_path, "list", "--database", "sqlite:///a.sqlite3", "--server", "127.0.0.1:1")
    assert (both.returncode, "exclude each other" in both.stderr) == (2, True)


def test_clients_where_the_gateway_was_started(tmp_path: Path) -> None:
    """In a folder with the default database `clients` needs no option. Where an API key is set but no gateway answers,
    a message says so, and the database is changed."""
    (tmp_path / "terminal-status.sqlite3").touch(0o644)  # logged as file_closed_to_others on standard error
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"127.0.0.1:{closed.getsockname()[1]}"
        added = in_folder(tmp_path, "add", "app", TS_API_KEY=NO_KEY, TS_GRPC_LISTEN=away)
        elsewhere = in_folder(tmp_path, "add", "app", "--server", away, TS_API_KEY=NO_KEY)
    assert (added.returncode, added.stdout.startswith("tsk_"), added.stdout.count("\n")) == (0, True, 1), added.stderr
    assert f"No gateway answers at {away}" in added.stderr
    assert "file_closed_to_others" in added.stderr
    assert f"(database {tmp_path}/terminal-status.sqlite3)" in added.stderr
    assert (elsewhere.returncode, elsewhere.stdout, "NO_ANSWER" in elsewhere.stderr) == (1, "", True)
