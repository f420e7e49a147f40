"""Clients of other languages, over the code that protoc makes of `proto/`, against a real gateway and the sandbox.

Each program of `generated_clients/` is compiled here. It queries a terminal, reads the cause of a failed query and of a
failed result, receives a stream's snapshot, changes the addresses of an open stream, creates and cancels a
subscription, and prints what it saw as one JSON object. Argument: the gateway's gRPC address. Python and TypeScript
have their tools from the locked packages; Go's and Java's are Debian's.

The programs `wire` (TypeScript, Go, Java) look at deadlines, cancellation, message sizes, gzip, credentials and many
streams, on both engines, since every language has its own HTTP/2. Arguments: the gRPC addresses of a gateway that needs
no credentials and of one that needs some; for TypeScript also the time between its pings in ms.
"""

import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

import google.rpc  # type: ignore[import-untyped, unused-ignore]
import pytest
import pytest_asyncio

from app.main import run_gateway
from app.rpc import GrpcEngine, server
from app.sandbox import Sandbox
from tests.support.programs import require, run
from tests.support.settings import settings_for

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = Path(__file__).parent / "generated_clients"
NODE_MODULES = ROOT / ".tools" / "node-grpc" / "node_modules"
GO_CACHE = ROOT / ".tools" / "go-build"
GO_PACKAGES = Path("/usr/share/gocode")
JARS = Path("/usr/share/java")
JAVA_LIBRARIES = (
    *(f"grpc-{part}" for part in ("api", "context", "core", "netty", "protobuf", "protobuf-lite", "stub")),
    *(f"netty-{part}" for part in ("buffer", "codec", "codec-http", "codec-http2", "codec-socks", "common", "handler")),
    *("netty-handler-proxy", "netty-resolver", "netty-transport"),
    *("protobuf", "guava", "perfmark-api", "geronimo-annotation-1.3-spec"),
)

COMMON_PROTOS = Path(next(iter(google.rpc.__path__))).parent.parent
"""The folder of google/rpc/status.proto, which an installed package brings."""
INCLUDES = (f"-I{ROOT / 'proto'}", f"-I{COMMON_PROTOS}")
OWN = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
COMMON = ["google/rpc/status.proto", "google/rpc/error_details.proto"]
PROTOC = (sys.executable, "-m", "grpc_tools.protoc")

SEEN = {
    "status": "STATUS_REACHABLE",
    "source": "SOURCE_FETCH",
    "observed": True,
    "error": ["NotFound", "TERMINAL_UNKNOWN", "terminalstatus.v1", "sip:dave@example.com"],
    "query": [["sip:alice@example.com", "STATUS_REACHABLE"], ["sip:dave@example.com", "TERMINAL_UNKNOWN"]],
    "bookmarks": True,
    "snapshot": [["sip:alice@example.com", "STATUS_REACHABLE"], ["sip:bob@example.com", "STATUS_BUSY"]],
    "follow": [["sip:alice@example.com", "removed"], ["sip:bob@example.com", "added"], ["swap", "applied"]],
    "subscription": [True, "STATUS_BUSY"],
}
"""What every client must see."""

SEEN_ON_THE_WIRE = {
    "unary": ["STATUS_REACHABLE"],
    "deadline": ["DEADLINE_EXCEEDED"],
    "stream_deadline": "DEADLINE_EXCEEDED",
    "cancel": "CANCELLED",
    "large": ["INVALID_ARGUMENT", "INVALID_ADDRESS"],
    "too_large": ["RESOURCE_EXHAUSTED"],
    "gzip": ["STATUS_REACHABLE"],
    "gzip_large": ["INVALID_ARGUMENT", "INVALID_ADDRESS"],
    "gzip_too_large": ["RESOURCE_EXHAUSTED"],
    "credentials": ["UNAUTHENTICATED", "UNAUTHENTICATED"],
    "streams": 2000,
    "after": ["STATUS_REACHABLE"],
}
"""What every client's program `wire` must see: the statuses of terminals, the codes of calls, and the reasons of errors
with details. `large` is a request just below 1 MiB, `streams` the number of streams over one channel that got their
snapshot and could be cancelled."""

PINGS_FASTER = 40
"""A client that pings every 10 s would take minutes to be refused."""

GO_PROGRAMS = ("client", "wire")


def java_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.java"))


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(sandbox: Sandbox) -> AsyncIterator[str]:
    """The gRPC address of a gateway that asks the sandbox."""
    async with run_gateway(settings_for(f"{sandbox.uri};transport=tcp", fetch_timeout_ms=1000)) as gateway:
        yield gateway.grpc_address


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=get_args(GrpcEngine))
async def wire_addresses(request: pytest.FixtureRequest, sandbox: Sandbox) -> AsyncIterator[tuple[str, str]]:
    """As `address`, of each engine, and with pings allowed `PINGS_FASTER` times as often; and the address of a gateway
    that needs credentials."""
    pings = "grpc.http2.min_ping_interval_without_data_ms"
    options = tuple((name, value // PINGS_FASTER if name == pings else value) for name, value in server.OPTIONS)
    presence = f"{sandbox.uri};transport=tcp"
    settings = settings_for(presence, fetch_timeout_ms=2000, grpc_engine=request.param)
    closed_settings = settings_for(presence, grpc_engine=request.param, anonymous_access="never")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "OPTIONS", options)
        async with run_gateway(settings) as gateway, run_gateway(closed_settings) as closed:
            yield gateway.grpc_address, closed.grpc_address


Command = tuple[str | Path, ...]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def typescript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled programs. The generated code passes TypeScript's strict checks together with them."""
    require(shutil.which("node") and NODE_MODULES.is_dir(), "node, or its packages for gRPC,")
    folder = tmp_path_factory.mktemp("typescript")
    options = "outputServices=grpc-js,esModuleInterop=true,oneof=unions,env=node"
    plugin = f"--plugin=protoc-gen-ts_proto={NODE_MODULES / '.bin' / 'protoc-gen-ts_proto'}"
    await run(*PROTOC, *INCLUDES, plugin, f"--ts_proto_out={folder}", f"--ts_proto_opt={options}", *OWN, *COMMON)
    for name in ("client.ts", "wire.ts", "tsconfig.json"):
        shutil.copy(PROGRAMS / "typescript" / name, folder)
    (folder / "node_modules").symlink_to(NODE_MODULES)
    await run("node", NODE_MODULES / "typescript" / "bin" / "tsc", "--project", folder)
    return folder / "out"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled programs."""
    require(
        all(shutil.which(tool) for tool in ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc"))
        and (GO_PACKAGES / "src/google.golang.org/grpc").is_dir(),
        "Go, or its plugins and packages for gRPC,",
    )
    folder = tmp_path_factory.mktemp("go")
    source = folder / "src"
    for name in GO_PROGRAMS:
        (source / name).mkdir(parents=True)
        shutil.copy(PROGRAMS / f"{name}.go", source / name)
    await run("protoc", *INCLUDES, f"--go_out={source}", f"--go-grpc_out={source}", *OWN)
    environ = {"GO111MODULE": "off", "GOPATH": f"{folder}:{GO_PACKAGES}", "GOCACHE": str(GO_CACHE), "GOFLAGS": ""}
    for name in GO_PROGRAMS:
        await run("go", "build", "-o", folder / name, name, environ=environ)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def java(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The command before a program's name. Every generated class compiles, and with it the programs."""
    jars = [JARS / f"{name}.jar" for name in JAVA_LIBRARIES]
    require(
        all(shutil.which(tool) for tool in ("java", "javac", "protoc", "grpc_java_plugin"))
        and all(jar.exists() for jar in jars),
        "Java, or its plugin and packages for gRPC,",
    )
    folder = tmp_path_factory.mktemp("java")
    plugin = f"--plugin=protoc-gen-grpc-java={shutil.which('grpc_java_plugin')}"
    await run("protoc", *INCLUDES, plugin, f"--java_out={folder}", f"--grpc-java_out={folder}", *OWN, *COMMON)
    path = os.pathsep.join([str(folder / "classes"), *map(str, jars)])
    quick = "-J-XX:TieredStopAtLevel=1"
    options = [quick, "-proc:none", "-nowarn", "-cp", path, "-d", str(folder / "classes")]
    await run("javac", *options, *sorted(PROGRAMS.glob("*.java")), *java_files(folder))
    return ("java", quick[2:], "-cp", path)


async def test_python(address: str, tmp_path: Path) -> None:
    await run(*PROTOC, *INCLUDES, f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}", *OWN)
    output = await run(sys.executable, PROGRAMS / "client.py", address, environ={"PYTHONPATH": str(tmp_path)})
    assert json.loads(output) == SEEN


async def test_typescript(address: str, typescript: Path) -> None:
    assert json.loads(await run("node", typescript / "client.js", address)) == SEEN


async def test_go(address: str, go: Path) -> None:
    assert json.loads(await run(go / "client", address)) == SEEN


async def test_java(address: str, java: Command) -> None:
    assert json.loads(await run(*java, "Client", address)) == SEEN


async def test_typescript_on_the_wire(wire_addresses: tuple[str, str], typescript: Path) -> None:
    """`@grpc/grpc-js` pings its connection every 10 s (here faster, by `PINGS_FASTER`), which is no reason to close
    it. The programs in Go and Java cannot ping faster than every 10 s and do not try."""
    output = await run("node", typescript / "wire.js", *wire_addresses, str(10_000 // PINGS_FASTER))
    assert json.loads(output) == SEEN_ON_THE_WIRE | {"kept": True}


async def test_go_on_the_wire(wire_addresses: tuple[str, str], go: Path) -> None:
    assert json.loads(await run(go / "wire", *wire_addresses)) == SEEN_ON_THE_WIRE


async def test_java_on_the_wire(wire_addresses: tuple[str, str], java: Command) -> None:
    assert json.loads(await run(*java, "Wire", *wire_addresses)) == SEEN_ON_THE_WIRE
