"""README.md, docs/, CONTRIBUTING.md, SECURITY.md: examples run, commands exist, tables agree with the code.

An `sh` block is run by bash in the root of the repository while `terminal-status demo` runs; the `text` block after it
is its output. A `bash` block subscribes a webhook, and is run with each receiver of its document. Commands, `make`
targets, settings and metrics in the prose are checked by name.
"""

import ast
import base64
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from app.cli.main import app
from app.domain.errors import PresenceUnavailable
from app.rest.problem import STATUSES
from app.rpc import CODES
from app.settings.loading import CONFIG_FILE, PREFIX, Settings
from soap_compat.faults import FAULTS
from tests.support.command_line import INSTALLED, ROOT, running
from tests.support.life_cycle import LIFE_CYCLE
from tests.support.waiting import until_blocking

MAX_README_LINES = 150
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]
}
README = DOCUMENTS["README.md"]
API = DOCUMENTS["docs/api.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(r"^```sh\n(.*?)^```\n(?:\n+```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
EXAMPLES = [
    pytest.param(command, printed, id=f"{name}-{number}")
    for name, text in DOCUMENTS.items()
    for number, (command, printed) in enumerate(EXAMPLE.findall(text), 1)
]
SUBSCRIBE = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
VARYING = [
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"), "TIME"),
    (re.compile(r"\d+\.\d+ *$", re.MULTILINE), "MS"),
]
NOT_SETTINGS = {CONFIG_FILE, "TS_API_KEY"}
"""Variables that are read elsewhere than by `Settings`."""
ENDLESS = {"serve", "sandbox", "demo", "watch"}
"""Commands that end by a signal only."""
WRITTEN = {"bench/out/report.json"}
"""Files that a run makes."""

STOPPING = "GATEWAY_STOPPING"
"""The one code that is no domain error's: the faces answer it themselves, with the numbers of PresenceUnavailable."""


def settled(text: str) -> str:
    """The text without the parts that differ from run to run."""
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return FENCED.sub("", text)


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, str]]:
    """For each address of a demo in the documents: the address on a free port."""
    listen = ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    with running("demo", *listen, deadline_s=300) as demo:
        where = re.search(r"sip:(\S+), gateway on gRPC (\S+)", demo.line_with("gateway on gRPC"))
        http = re.search(r"http://(\S+) ", demo.line_with("http://"))
        assert where
        assert http
        yield {"127.0.0.1:50051": where[2], "127.0.0.1:8080": http[1], "192.0.2.10:5060": where[1]}


def run(command: str, ports: dict[str, str]) -> str:
    """Runs a block by bash in the root of the repository; returns its output."""
    environ = os.environ | {"TS_GRPC_LISTEN": ports["127.0.0.1:50051"], "TS_HTTP_LISTEN": ports["127.0.0.1:8080"]}
    for usual, ours in ports.items():
        command = command.replace(usual, ours)
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_is_short() -> None:
    """A newcomer reads the README to its end; details belong in docs/."""
    assert len(README.splitlines()) <= MAX_README_LINES


def test_readme_has_an_example_for_each_face() -> None:
    """The command line, gRPC, REST, CAMARA and SOAP each have one."""
    commands = [command for command, _ in EXAMPLE.findall(README)]
    for word in ("terminal-status get", "pb2_grpc", "/v1/terminals/", "/retrieve", "/parlayx/"):
        assert any(word in command for command in commands), word
    assert SUBSCRIBE.search(README)


def test_output_of_make_run() -> None:
    """`make run` prints the lines that README.md shows, in this order; for a change, a line of the same form."""

    def lines(text: str) -> list[str]:
        for pattern, word in (
            (r"^\d\d:\d\d:\d\d  \S+ +\w+ → \w+ +reported after \d+\.\d ms$", "CHANGE"),
            (r" --(grpc|http)-server \S+", ""),
            (r"127\.0\.0\.1:\d+", "ADDRESS"),
        ):
            text = re.sub(pattern, word, text, flags=re.MULTILINE)
        return settled(text).splitlines()

    (block,) = (block for _, block in FENCED.findall(README) if block.startswith("Sandbox notifier"))
    with running("demo", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", deadline_s=120) as demo:
        demo.line_with(" reported after ")
        printed = iter(lines("".join(demo.seen)))
    for line in lines(block):
        assert line in printed, line


@pytest.mark.parametrize(("command", "printed"), EXAMPLES)
def test_example(command: str, printed: str, ports: dict[str, str]) -> None:
    """An `sh` block succeeds, and prints the `text` block after it."""
    output = run(command, ports)
    if printed:
        assert settled(output) == settled(printed)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_resolve(name: str) -> None:
    """Each relative link leads to a file, and its fragment to a heading there."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(DOCUMENTS[name])):
        path, _, fragment = target.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.exists(), target
        if fragment:
            assert fragment in anchors(file.read_text("utf-8")), target


def anchors(text: str) -> set[str]:
    """The fragments by which GitHub shows a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_of(text: str) -> list[str]:
    """Each `terminal-status …` in code, in a block or between backticks; continued lines are joined."""
    code = [block for language, block in FENCED.findall(text) if language != "text"]
    code += re.findall(r"`([^`\n]+)`", prose(text))
    lines = "\n".join(code).replace("\\\n", " ").splitlines()
    return [found[1] for line in lines if (found := re.search(r"(?:^|[ /])terminal-status ([a-z-].*)$", line))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_exist(name: str) -> None:
    """Each command that a document names exists with these subcommands and options."""
    for line in commands_of(DOCUMENTS[name]):
        command: Any = typer.main.get_command(app)
        words = shlex.split(line, comments=True)
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        if hasattr(command, "commands"):
            assert not words or words[0].startswith("-"), line
        options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {
            "-h",
            "--help",
        }
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options, line


def test_commands_run(ports: dict[str, str], tmp_path: Path) -> None:
    """Each command that ends by itself and has its arguments succeeds, at the demo or on a database of its own."""
    environ = os.environ | {
        "TS_GRPC_LISTEN": ports["127.0.0.1:50051"],
        "TS_HTTP_LISTEN": ports["127.0.0.1:8080"],
        "TS_PRESENCE_SERVER": f"sip:{ports['192.0.2.10:5060']}",
    }
    number = 0

    def command(line: str) -> str:
        nonlocal number
        number += 1
        own = {"TS_DATABASE_URL": f"sqlite:///{tmp_path}/{number}.sqlite3"}
        done = subprocess.run(
            [*INSTALLED, *shlex.split(line)],
            cwd=tmp_path,
            env=environ | own,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr)
        return done.stdout

    made = command("subscriptions create sip:bob@example.com --immediate").split()[0]
    ids = {"subscriptions": made, "deliveries": json.loads(command("deliveries list --json"))[0]["id"]}
    lines = {line for text in DOCUMENTS.values() for line in commands_of(text)}
    lines = {line for line in lines if line.split()[0] not in ENDLESS and has_its_arguments(line)}
    assert len(lines) > 12
    for line in sorted(lines):
        words = {"ID": ids.get(line.split()[0], "ID"), "ADDRESS": "sip:erin@example.com"}
        command(" ".join(words.get(word, word) for word in line.split()))


def has_its_arguments(line: str) -> bool:
    """Whether the command has its required arguments; without them a document only names the command."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)
    while words and words[0] in getattr(command, "commands", ()):
        command = command.commands[words.pop(0)]
    required = [each for each in command.params if each.required and each.param_type_name == "argument"]
    return not required or any(not word.startswith("-") for word in words)


def test_start_against_a_presence_server(ports: dict[str, str], tmp_path: Path) -> None:
    """The start in docs/operating.md works, with the demo's presence server in place of the documented one."""
    (block,) = (
        block for _, block in FENCED.findall(DOCUMENTS["docs/operating.md"]) if "terminal-status serve" in block
    )
    block = block.replace("192.0.2.10:5060", ports["192.0.2.10:5060"]).replace("192.0.2.20:5070", "127.0.0.1:0")
    with running(
        command=["bash", "-c", block],
        TS_DATABASE_URL=f"sqlite:///{tmp_path}/own.sqlite3",
        TS_GRPC_LISTEN="127.0.0.1:0",
        TS_HTTP_LISTEN="127.0.0.1:0",
    ) as serve:
        serve.line_with("gateway_started")
        assert serve.stop() == 0


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name: str) -> None:
    """Each `make TARGET` that is named is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    code = [block for language, block in FENCED.findall(DOCUMENTS[name]) if language != "text"]
    code += re.findall(r"`([^`\n]+)`", prose(DOCUMENTS[name]))
    for target in re.findall(r"^make ([a-z]+)", "\n".join(code), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_settings_exist(name: str) -> None:
    """Each `TS_…` that is named is a setting."""
    known = {PREFIX + field.upper() for field in Settings.model_fields} | NOT_SETTINGS
    assert set(re.findall(r"\bTS_[A-Z0-9_]+[A-Z0-9]\b", DOCUMENTS[name])) <= known


def test_metrics_are_those_of_the_gateway(ports: dict[str, str]) -> None:
    """docs/operating.md has each metric of a gateway, and names no other."""
    with urllib.request.urlopen(f"http://{ports['127.0.0.1:8080']}/metrics", timeout=30) as answer:
        shown = set(re.findall(r"^# TYPE (terminal_status_\w+)", answer.read().decode(), re.MULTILINE))
    shown = {name for name in shown if not name.endswith("_created")}
    named = re.findall(r"`(terminal_status_\w+)[`{]", DOCUMENTS["docs/operating.md"])
    assert set(named) == shown


def test_error_table() -> None:
    """docs/api.md has a row for each domain error, with its code on each face."""
    rows = re.findall(r"^\|[^|]*\| `([A-Z_]+)` \| (\w+) \| (\d+) \| (\w+) \|$", API, re.MULTILINE)
    kinds = {error.code: error for error in STATUSES}
    assert sorted(code for code, *_ in rows) == sorted([*kinds, STOPPING])
    for code, grpc_code, status, fault in rows:
        error = kinds.get(code, PresenceUnavailable)
        assert (CODES[error].name, str(STATUSES[error]), FAULTS[error][0]) == (grpc_code, status, fault), code


def test_life_of_a_watch() -> None:
    """docs/sip.md has each row of the life of a watch, with the docstring of its test and the test's name."""
    sentences = {
        node.name: " ".join((ast.get_docstring(node) or "").split()).rstrip(".")
        for path in (ROOT / "tests" / "pure").glob("test_sip_machine*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert len(set(LIFE_CYCLE.values())) == len(LIFE_CYCLE)
    for row, name in LIFE_CYCLE.items():
        follows = sentences[name]
        assert follows, name
        assert f"| {row} | {follows} | `{name}` |\n" in DOCUMENTS["docs/sip.md"], row


def test_named_tests_exist() -> None:
    """Every test that docs/testing.md and docs/architecture.md name exists."""
    named = re.findall(r"`(test_\w+)::(test_\w+)`", DOCUMENTS["docs/testing.md"] + DOCUMENTS["docs/architecture.md"])
    assert len(named) > 50
    for module, name in named:
        sources = [path.read_text("utf-8") for path in (ROOT / "tests").glob(f"*/{module}.py")]
        assert len(sources) == 1, module
        assert re.search(rf"^(async )?def {name}\(", sources[0], re.MULTILINE), f"{module}::{name}"


def test_table_of_test_files() -> None:
    """docs/testing.md names for each test file the source that it tests, and both exist."""
    text = DOCUMENTS["docs/testing.md"]
    named = set(re.findall(r"`(\w+/test_\w+\.py)`", text))
    assert named == {str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").glob("*/test_*.py")}
    for source in re.findall(r"`((?:app|soap_compat|bench|openapi)/[\w/.]*)`", text):
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str) -> None:
    """Each file and folder of the repository that a document names exists."""
    folders = "app|soap_compat|tests|bench|docs|proto|openapi"
    named = set(re.findall(rf"\b((?:{folders})/[\w/.-]*\w)(?![\w*])", DOCUMENTS[name]))
    assert not {path for path in named - WRITTEN if not (ROOT / path).exists()}


def test_map_of_the_tree() -> None:
    """docs/architecture.md names each folder of code."""
    text = DOCUMENTS["docs/architecture.md"]
    for folder in sorted((ROOT / "app").rglob("__init__.py")):
        name = str(folder.parent.relative_to(ROOT))
        assert f"`{name}/`" in text or name == "app" or name.startswith(("app/pb/", "app/store/migrations/")), name


@pytest.mark.parametrize(
    ("name", "language", "suffix", "program"),
    [
        ("README.md", "python", "py", [sys.executable]),
        ("docs/api.md", "python", "py", [sys.executable]),
        ("docs/api.md", "js", "mjs", ["node"]),
    ],
)
def test_webhook(
    name: str, language: str, suffix: str, program: list[str], ports: dict[str, str], tmp_path: Path
) -> None:
    """Each document's receiver accepts the events of its subscription: the test event where the caller names the
    secret, the start, and the current statuses."""
    if shutil.which(program[0]) is None:
        assert not os.environ.get("CI"), f"{program[0]} must be there in CI"
        pytest.skip(f"{program[0]} is not installed")
    text = DOCUMENTS[name]
    (source,) = (block for found, block in FENCED.findall(text) if found == language and "9000" in block)
    (subscribe,) = SUBSCRIBE.findall(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    file = tmp_path / f"receiver.{suffix}"
    file.write_text(source.replace("9000", port), "utf-8")
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    subscribe = re.sub(r"^SECRET=.*$", f"SECRET={secret}", subscribe, flags=re.MULTILINE).replace("9000", port)
    with subprocess.Popen([*program, str(file), secret], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as receiver:
        watchdog = threading.Timer(30, receiver.kill)
        watchdog.start()
        try:
            until_blocking(lambda: listens(int(port)))
            subscription_id = json.loads(run(subscribe, ports))["id"]
            assert receiver.stdout is not None
            received: dict[str, str] = {}
            while received.keys() < {"sip:erin@example.com", "sip:bob@example.com"}:
                data = json.loads(receiver.stdout.readline())
                assert data["subscription_id"] == subscription_id
                received |= {change["address"]: change["status"] for change in data.get("statuses", [])}
            assert received["sip:bob@example.com"] == "BUSY"
        finally:
            watchdog.cancel()
            receiver.kill()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
