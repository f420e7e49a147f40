"""Clients of other languages, over the code that protoc makes of `proto/`, against a real gateway and the sandbox.

Each program of `generated_clients/` is compiled here. It queries a terminal, reads the cause of a failed query and of a
failed result, receives a stream's snapshot, changes the addresses of an open stream, creates and cancels a
subscription, and prints what it saw as one JSON object. Argument: the gateway's gRPC address. Python and TypeScript
have their tools from the locked packages; Go's and Java's are Debian's.
"""

import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import google.rpc  # type: ignore[import-untyped, unused-ignore]
import pytest
import pytest_asyncio

from app.main import run_gateway
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


def java_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.java"))


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(sandbox: Sandbox) -> AsyncIterator[str]:
    """The gRPC address of a gateway that asks the sandbox."""
    async with run_gateway(settings_for(f"{sandbox.uri};transport=tcp", fetch_timeout_ms=1000)) as gateway:
        yield gateway.grpc_address


async def test_python(address: str, tmp_path: Path) -> None:
    await run(*PROTOC, *INCLUDES, f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}", *OWN)
    output = await run(sys.executable, PROGRAMS / "client.py", address, environ={"PYTHONPATH": str(tmp_path)})
    assert json.loads(output) == SEEN


async def test_typescript(address: str, tmp_path: Path) -> None:
    """The generated code passes TypeScript's strict checks together with the client's."""
    require(shutil.which("node") and NODE_MODULES.is_dir(), "node, or its packages for gRPC,")
    options = "outputServices=grpc-js,esModuleInterop=true,oneof=unions,env=node"
    plugin = f"--plugin=protoc-gen-ts_proto={NODE_MODULES / '.bin' / 'protoc-gen-ts_proto'}"
    await run(*PROTOC, *INCLUDES, plugin, f"--ts_proto_out={tmp_path}", f"--ts_proto_opt={options}", *OWN, *COMMON)
    for name in ("client.ts", "tsconfig.json"):
        shutil.copy(PROGRAMS / "typescript" / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    await run("node", NODE_MODULES / "typescript" / "bin" / "tsc", "--project", tmp_path)
    assert json.loads(await run("node", tmp_path / "out" / "client.js", address)) == SEEN


async def test_go(address: str, tmp_path: Path) -> None:
    require(
        all(shutil.which(tool) for tool in ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc"))
        and (GO_PACKAGES / "src/google.golang.org/grpc").is_dir(),
        "Go, or its plugins and packages for gRPC,",
    )
    source = tmp_path / "src"
    (source / "client").mkdir(parents=True)
    shutil.copy(PROGRAMS / "client.go", source / "client")
    await run("protoc", *INCLUDES, f"--go_out={source}", f"--go-grpc_out={source}", *OWN)
    environ = {"GO111MODULE": "off", "GOPATH": f"{tmp_path}:{GO_PACKAGES}", "GOCACHE": str(GO_CACHE), "GOFLAGS": ""}
    await run("go", "build", "-o", tmp_path / "client", "client", environ=environ)
    assert json.loads(await run(tmp_path / "client", address)) == SEEN


async def test_java(address: str, tmp_path: Path) -> None:
    """Every generated class compiles, and with it the client."""
    jars = [JARS / f"{name}.jar" for name in JAVA_LIBRARIES]
    require(
        all(shutil.which(tool) for tool in ("java", "javac", "protoc", "grpc_java_plugin"))
        and all(jar.exists() for jar in jars),
        "Java, or its plugin and packages for gRPC,",
    )
    plugin = f"--plugin=protoc-gen-grpc-java={shutil.which('grpc_java_plugin')}"
    await run("protoc", *INCLUDES, plugin, f"--java_out={tmp_path}", f"--grpc-java_out={tmp_path}", *OWN, *COMMON)
    path = os.pathsep.join([str(tmp_path / "classes"), *map(str, jars)])
    quick = "-J-XX:TieredStopAtLevel=1"
    options = [quick, "-proc:none", "-nowarn", "-cp", path, "-d", str(tmp_path / "classes")]
    await run("javac", *options, PROGRAMS / "Client.java", *java_files(tmp_path))
    assert json.loads(await run("java", quick[2:], "-cp", path, "Client", address)) == SEEN
