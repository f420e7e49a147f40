"""The README's examples, run as a reader runs them: an `sh` block before a `text` block must print that text."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faces.test_cli import ROOT, running
from tests.pure import test_sip_machine

README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```sh\n(.*?)```\n+```text\n(.*?)```", README, re.DOTALL)
VARYING = [
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"), "TIME"),
    (re.compile(r"(seconds|nanos): \d+"), r"\1: N"),
    (re.compile(r"\d+\.\d+ *$", re.MULTILINE), "MS"),
]


def settled(text: str) -> str:
    """The text without what differs from run to run."""
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, str]]:
    """What `make run` starts, on free ports in place of the usual ones."""
    listen = ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    with running("demo", *listen, deadline_s=120) as demo:
        where = re.search(r"gRPC (\S+)", demo.line_with("gateway on gRPC"))
        http = re.search(r"http://(\S+) ", demo.line_with("http://"))
        assert where
        assert http
        yield {"127.0.0.1:50051": where[1], "127.0.0.1:8080": http[1]}


def test_there_is_one_for_each_interface() -> None:
    """The command line, gRPC, REST and SOAP each have an example."""
    for word in ("terminal-status get", "pb2_grpc", "/v1/terminals/", "/v1/terminals:watch", "/retrieve", "/parlayx/"):
        assert any(word in command for command, _ in EXAMPLES), word


@pytest.mark.parametrize(("command", "printed"), EXAMPLES)
def test_example(command: str, printed: str, ports: dict[str, str]) -> None:
    """What the README shows is what comes out."""
    environ = os.environ | {"TS_GRPC_LISTEN": ports["127.0.0.1:50051"], "TS_HTTP_LISTEN": ports["127.0.0.1:8080"]}
    for usual, ours in ports.items():
        command = command.replace(usual, ours)
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert settled(done.stdout) == settled(printed), done.stderr


def test_files_named_exist() -> None:
    """Every relative link leads somewhere."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_tables_name_every_error_code() -> None:
    """The table of failures has a row for each domain error."""
    source = (Path(ROOT) / "app" / "domain" / "errors.py").read_text("utf-8")
    for code in re.findall(r'code = "([A-Z_]+)"', source):
        assert f"`{code}`" in README, code


def test_life_cycle_is_told() -> None:
    """The table of a subscription's life has each row with what follows, as its test says, and the test's name."""
    for row, name in test_sip_machine.LIFE_CYCLE.items():
        follows = " ".join((getattr(test_sip_machine, name).__doc__ or "").split()).rstrip(".")
        assert f"| {row} | {follows} | `{name}` |\n" in README, row


def test_feature_table_names_tests_that_exist() -> None:
    """Every test that the README names is there."""
    named = re.findall(r"`(test_\w+)::(test_\w+)`", README)
    assert len(named) > 50
    for module, name in named:
        sources = [path.read_text("utf-8") for path in (ROOT / "tests").glob(f"*/{module}.py")]
        assert len(sources) == 1, module
        assert re.search(rf"^(async )?def {name}\(", sources[0], re.MULTILINE), f"{module}::{name}"


@pytest.mark.parametrize(
    ("language", "suffix", "command"),
    [("python", "py", [sys.executable]), ("js", "mjs", ["node"])],
    ids=["python", "node"],
)
def test_webhook_receivers(
    language: str, suffix: str, command: list[str], ports: dict[str, str], tmp_path: Path
) -> None:
    """The README's receivers verify what the gateway sends: its test, the start, and the statuses now."""
    if shutil.which(command[0]) is None:
        assert not os.environ.get("CI"), f"{command[0]} must be there in CI"
        pytest.skip(f"{command[0]} is not installed")
    source = next(block for block in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if "9000" in block)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = tmp_path / f"receiver.{suffix}"
    program.write_text(source.replace("9000", str(port)), "utf-8")
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    with subprocess.Popen([*command, str(program), secret], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as receiver:
        watchdog = threading.Timer(30, receiver.kill)
        watchdog.start()
        try:
            wait_for_port(port)
            asked = {
                "addresses": ["sip:alice@example.com", "sip:bob@example.com"],
                "check_immediate": True,
                "sink": {"kind": "WEBHOOK", "url": f"http://127.0.0.1:{port}/events", "secrets": [secret]},
            }
            request = urllib.request.Request(
                f"http://{ports['127.0.0.1:8080']}/v1/subscriptions",
                json.dumps(asked).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as answered:
                subscription_id = json.load(answered)["id"]
            assert receiver.stdout is not None
            told: dict[str, str] = {}
            while len(told) < 2:
                data = json.loads(receiver.stdout.readline())
                assert data["subscription_id"] == subscription_id
                told |= {change["address"]: change["status"] for change in data.get("changes", [])}
            assert told == {"sip:alice@example.com": "REACHABLE", "sip:bob@example.com": "BUSY"}
        finally:
            watchdog.cancel()
            receiver.kill()


def wait_for_port(port: int) -> None:
    deadline_s = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline_s, "the receiver does not listen"
            time.sleep(0.01)
        else:
            return
