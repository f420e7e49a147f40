"""Parlay X clients of other makers, against a real gateway and a notifier.

Each program of `interop/` is generated or configured from the served WSDL. It uses all four operations, reads a fault
of each with its fields, receives the three callbacks, and prints what it saw as lines of JSON. Arguments: the URL of
/parlayx, client id, secret, and a prefix for its correlators. zeep and node's `soap` authenticate by WS-Security
digest, PHP and gSOAP by HTTP Basic. The results are the table in `docs/testing.md`.
"""

import json
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.auth.clients import ClientRegistry
from app.auth.credentials import hash_secret, parse_key, password_equivalent
from app.main import Gateway, run_gateway
from app.sandbox import Sandbox
from app.sinks import SINK_CONTRACTS
from app.store import open_store
from soap_compat.faults import TEXTS
from tests.support.programs import require, run
from tests.support.settings import settings_for

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = Path(__file__).parent / "interop"
NODE_MODULES = ROOT / ".tools" / "node-soap" / "node_modules"
TABLE = ROOT / "bench" / "out" / "interop.md"
REFUSED = "sip:answer-403@example.com"
SERVICES = ("TerminalStatus", "TerminalStatusNotificationManager", "TerminalStatusNotification")
CALLBACKS = ("statusNotification", "statusError", "statusEnd")
OPERATIONS = ("getStatus", "getStatusForGroup", "startNotification", "endNotification")


def seen_by(name: str) -> dict[str, Any]:
    """What every client must see; kinds of clients differ in some details."""

    def fault(element: str, message_id: str, *variables: str) -> list[object]:
        return [element, message_id, TEXTS[message_id], list(variables)]

    return {
        "getStatus": "Reachable",
        "getStatusForGroup": [
            ["sip:alice@example.com", "Retrieved", "Reachable", None, []],
            ["sip:bob@example.com", "Retrieved", "Busy", None, []],
            [REFUSED, "Error", None, "POL0002", [REFUSED]],
            ["sip:silent@example.com", "NotRetrieved", None, None, []],
        ],
        "fault of getStatus": fault("PolicyException", "POL0002", REFUSED),
        "fault of getStatusForGroup": fault("ServiceException", "SVC0004", "addresses"),
        "startNotification": None,
        "statusNotification": [f"{name}-1", [["sip:alice@example.com", "Reachable"]]],
        "statusEnd": f"{name}-1",
        "statusError": [f"{name}-2", None, "SVC0004", TEXTS["SVC0004"], ["addresses"]],
        "fault of startNotification": fault("ServiceException", "SVC0005", f"{name}-3", "reference.correlator"),
        "endNotification": None,
        "fault of endNotification": fault("ServiceException", "SVC0002", "correlator"),
    }


CLIENTS = ("zeep", "PHP SoapClient", "gSOAP (C++)", "node soap")


@dataclass
class World:
    """A gateway with one client."""

    gateway: Gateway
    base: str
    client_id: str
    key: str

    @property
    def password(self) -> str:
        """The password from which digests are made."""
        parsed = parse_key(self.key)
        assert parsed is not None
        return password_equivalent(hash_secret(parsed[1]))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The gateway as `serve` runs it, against the sandbox; callbacks may go to this machine."""
    database = tmp_path_factory.mktemp("interop") / "ts.sqlite3"
    settings = settings_for(
        f"{sandbox.uri};transport=tcp",
        fetch_timeout_ms=500,
        database_url=f"sqlite:///{database}",
        sink_allowed_networks="127.0.0.0/8",
        sink_allow_http=True,
    )
    async with await open_store(settings.database_url) as store:
        registry = ClientRegistry(store, contracts=SINK_CONTRACTS, clock=lambda: datetime.now(UTC))
        made, key = await registry.add("interop", who="test", client_id="interop")
    async with run_gateway(settings) as gateway:
        yield World(gateway, f"http://{gateway.http_address}/parlayx", made.id, key)


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, dict[str, Any]]]:
    """What each client saw; made into the table at the end."""
    everything: dict[str, dict[str, Any]] = {}
    yield everything
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table(everything), "utf-8")


def table(everything: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown: a row for each client, a column for each operation with its fault and for each
    callback."""
    columns = [*OPERATIONS, *CALLBACKS]
    lines = [f"| client | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for client, found in everything.items():
        expected = seen_by(prefix(client))
        cells = []
        for column in columns:
            wanted = [column, f"fault of {column}"] if column in OPERATIONS else [column]
            good = all(what in found and found[what] == expected[what] for what in wanted)
            cells.append("no" if not good else "answer, fault" if column in OPERATIONS else "received")
        lines.append(f"| {client} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def prefix(client: str) -> str:
    return client.split()[0].lower()


async def zeep(world: World, _: Path) -> str:
    return await run(
        sys.executable, PROGRAMS / "zeep_client.py", world.base, world.client_id, world.password, prefix("zeep")
    )


async def php(world: World, _: Path) -> str:
    require(shutil.which("php"), "PHP")
    require("soap" in (await run("php", "-m")).split(), "PHP's SOAP extension")
    return await run("php", PROGRAMS / "client.php", world.base, world.client_id, world.key, prefix("PHP"))


async def gsoap(world: World, directory: Path) -> str:
    require(shutil.which("wsdl2h") and shutil.which("soapcpp2") and shutil.which("g++"), "gSOAP, or g++,")
    wsdls = [f"{world.base}/{name}?wsdl" for name in SERVICES]
    for name in ("client.cpp", "typemap.dat"):
        shutil.copy(PROGRAMS / name, directory)
    await run("wsdl2h", "-t", "typemap.dat", "-o", "services.h", *wsdls, cwd=directory)
    await run("soapcpp2", "-j", "-x", "-I/usr/share/gsoap/import", "services.h", cwd=directory)
    generated = ["soapC.cpp", "soapTerminalStatusBindingProxy.cpp"]
    generated += ["soapTerminalStatusNotificationManagerBindingProxy.cpp"]
    generated += ["soapTerminalStatusNotificationBindingService.cpp"]
    options = ["-std=c++17", "-O0", "-w", "-DWITH_PURE_VIRTUAL", "-o", "client"]
    await run("g++", *options, "client.cpp", *generated, "-lgsoap++", "-lpthread", cwd=directory)
    return await run(directory / "client", world.base, world.client_id, world.key, prefix("gSOAP"))


async def node(world: World, _: Path) -> str:
    require(shutil.which("node") and (NODE_MODULES / "soap").is_dir(), "node, or its package soap,")
    return await run(
        "node",
        PROGRAMS / "client.js",
        world.base,
        world.client_id,
        world.password,
        prefix("node"),
        environ={"NODE_PATH": str(NODE_MODULES)},
    )


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("client", CLIENTS)
async def test_client(client: str, world: World, seen: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """The client uses all four operations, reads a fault of each, and receives all three callbacks."""
    program = dict(zip(CLIENTS, (zeep, php, gsoap, node), strict=True))[client]
    lines = (await program(world, tmp_path)).splitlines()
    seen[client] = dict(json.loads(line) for line in lines)
    assert seen[client] == seen_by(prefix(client))
    assert [json.loads(line)[0] for line in lines] == list(seen_by(prefix(client)))


def test_table() -> None:
    """The table has a cell for each operation and callback, and says where something was not seen."""
    good = {client: seen_by(prefix(client)) for client in CLIENTS}
    text = table(good)
    assert text.count("answer, fault") == 4 * len(CLIENTS)
    assert text.count("received") == 3 * len(CLIENTS)
    del good["zeep"]["statusEnd"]
    assert "| zeep | " in table(good)
    assert "| no |" in table(good)
