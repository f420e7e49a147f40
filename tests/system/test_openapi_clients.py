"""Other people's generators take every OpenAPI document, and the clients that they make call a real gateway.

Each program of `openapi_clients/` queries a terminal, reads the problem of a failed query, receives a stream's
snapshot, creates, changes and ends a subscription with a webhook, calls both CAMARA APIs, and prints what it saw as one
JSON object. The tools are locked in `.ci/openapi/`.
"""

import json
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from app.auth.clients import ClientRegistry
from app.main import run_gateway
from app.sandbox import Sandbox
from app.sinks import SINK_CONTRACTS
from app.store import open_store
from tests.support.programs import require, run
from tests.support.receivers import answer, receiver
from tests.support.settings import settings_for

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = Path(__file__).parent / "openapi_clients"
NODE = Path(sys.executable).with_name("node")
NODE_MODULES = ROOT / ".tools" / "openapi" / "node_modules"
PYTHON = ROOT / ".tools" / "openapi-python" / "bin" / "python"
PACKAGES = {
    "terminal-status-v1": "terminal_status",
    "device-reachability-status-v1": "reachability",
    "device-reachability-status-subscriptions-v0.8": "reachability_subscriptions",
}
"""The documents, and what the Python program calls the packages that are made of them."""

SEEN = {
    "status": ["REACHABLE", "FETCH", True],
    "error": [404, "TERMINAL_UNKNOWN"],
    "query": [["sip:alice@example.com", "REACHABLE"], ["sip:dave@example.com", "TERMINAL_UNKNOWN"]],
    "stream": ["snapshot-item", "snapshot-complete"],
    "subscription": [True, True, ["BUSY"]],
    "secrets": [True, True],
    "ended": ["CANCELLED", True],
    "camara": [True, ["DATA"], []],
}
"""What every client must see."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class World:
    """A gateway with one client, and a receiver of webhooks."""

    gateway: str
    key: str
    receiver: str

    @property
    def arguments(self) -> tuple[str, str, str]:
        """What the programs take."""
        return self.gateway, self.key, self.receiver


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The gateway as `serve` runs it, against the sandbox; webhooks may go to this machine."""
    settings = settings_for(
        f"{sandbox.uri};transport=tcp",
        fetch_timeout_ms=1000,
        database_url=f"sqlite:///{tmp_path_factory.mktemp('openapi') / 'ts.sqlite3'}",
        camara_number_pattern="tel:{number}",
        sink_allowed_networks="127.0.0.0/8",
        sink_allow_http=True,
    )
    async with await open_store(settings.database_url) as store:
        registry = ClientRegistry(store, contracts=SINK_CONTRACTS, clock=lambda: datetime.now(UTC))
        _, key = await registry.add("generated", who="test")
    async with run_gateway(settings) as gateway, receiver(answer(204)) as endpoint:
        yield World(f"http://{gateway.http_address}", key, endpoint.url)


async def test_every_document_has_a_client() -> None:
    """The programs call every API that has an OpenAPI document."""
    assert {path.stem for path in (ROOT / "openapi").glob("*.json")} == set(PACKAGES)


async def test_typescript(world: World, tmp_path: Path) -> None:
    """openapi-typescript takes every document, and its types pass TypeScript's strict checks together with a client."""
    require(NODE.exists() and NODE_MODULES.is_dir(), "node, or openapi-typescript,")
    for name in PACKAGES:
        tool = NODE_MODULES / "openapi-typescript" / "bin" / "cli.js"
        await run(NODE, tool, ROOT / "openapi" / f"{name}.json", "--output", tmp_path / f"{name}.ts")
    for name in ("client.ts", "tsconfig.json"):
        shutil.copy(PROGRAMS / name, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    await run(NODE, NODE_MODULES / "typescript" / "bin" / "tsc", "--project", tmp_path)
    assert json.loads(await run(NODE, tmp_path / "out" / "client.js", *world.arguments)) == SEEN


async def test_python(world: World, tmp_path: Path) -> None:
    """openapi-python-client takes every document without a warning, and leaves no operation out."""
    require(PYTHON.exists(), "openapi-python-client")
    environ = {"PATH": f"{PYTHON.parent}:/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}
    for name, package in PACKAGES.items():
        document = ROOT / "openapi" / f"{name}.json"
        command = ("-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning")
        said = await run(
            PYTHON, *command, "--path", document, "--output-path", tmp_path / package, environ=environ, cwd=tmp_path
        )
        assert "arning" not in said
        operations = [each for path in json.loads(document.read_text())["paths"].values() for each in path]
        modules = [path for path in (tmp_path / package / "api").glob("*/*.py") if path.name != "__init__.py"]
        assert len(modules) == len(operations)
    assert json.loads(await run(PYTHON, PROGRAMS / "client.py", *world.arguments, environ=environ)) == SEEN
