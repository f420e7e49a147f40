"""Rules of the code as a whole that no linter checks."""

import ast
import json
import pkgutil
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

import app
import soap_compat

ROOT = Path(__file__).parent.parent.parent
MODULES = sorted(
    name
    for package in (app, soap_compat)
    for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not name.startswith("app.pb.")
)
NO_EFFECT = """
import importlib, json, os, sys, threading, traceback, warnings
import aiohttp, alembic, cffi, fastapi, google.rpc.status_pb2, grpc.aio, grpc_health.v1.health  # noqa
import grpc_reflection.v1alpha.reflection, grpc_status.rpc_status, joserfc.jwk, lxml.etree, msgspec, pjsua2  # noqa
import prometheus_client, psycopg, rich.console, sqlmodel, structlog, typer, uvicorn, uvloop  # noqa

def look(module):
    warnings.simplefilter("error")
    opened = []
    sys.addaudithook(lambda event, args: opened.append(event) if event in ("socket.bind", "socket.connect",
        "subprocess.Popen", "sqlite3.connect") else None)
    importlib.import_module(module)
    assert not opened, opened
    assert threading.active_count() == 1, threading.enumerate()

seen = {}
for module in sys.argv[1:]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 1), os.dup2(writer, 2), os.close(reader)
        try:
            look(module)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as said:
        seen[module] = said.read().decode(errors="replace")
    os.waitpid(child, 0)
    if not seen[module]:
        importlib.import_module(module)  # those that need it need not do it all again
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, str]:
    """The output of importing each module, or its failure. Each import runs in a process that has loaded the modules
    before it."""
    command = [sys.executable, "-c", NO_EFFECT, *MODULES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_import_has_no_effect(module: str, seen: dict[str, str]) -> None:
    """Importing a module opens nothing, starts nothing, prints nothing and gives no warning."""
    assert seen[module] == ""


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is_for(module: str) -> None:
    """Every module opens with a docstring of at most twenty lines."""
    source = (ROOT / module.replace(".", "/")).with_suffix(".py")
    text = (source if source.exists() else source.with_suffix("") / "__init__.py").read_text("utf-8")
    assert text.startswith('"""')
    assert text[3:].partition('"""')[0].count("\n") <= 20


def test_commit_and_begin_stand_only_in_the_store() -> None:
    """Only the store begins and commits transactions."""
    for path in (*ROOT.glob("app/**/*.py"), *ROOT.glob("soap_compat/**/*.py")):
        if not {"store", "pb"} & set(path.parts):
            assert ".commit(" not in path.read_text("utf-8"), path


def test_files_that_docstrings_and_comments_name_are_there() -> None:
    """A name without a path means a file in the same folder, or the only file of that name."""
    folders = [ROOT / name for name in ("app", "soap_compat", "bench", "tests")]
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    there = [f"/{path.relative_to(ROOT)}" for path in (*sources, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
    lost = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources
        if "pb" not in path.parts
        for line, text in prose(path)
        for name in re.findall(r"[\w./-]*\w\.(?:py|md)\b", text)
        if not (path.parent / name).exists() and sum(one.endswith(f"/{name}") for one in there) != 1
    ]
    assert not lost


def test_tests_share_by_support_alone() -> None:
    """No test file imports another; shared code is in `tests/support`."""
    shared = re.compile(r"^\s*(?:from|import) (tests(?:\.\w+)*)(?: import (\w+))?", re.MULTILINE)
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for folder in ("tests", "bench")
        for path in (ROOT / folder).rglob("*.py")
        for module, name in shared.findall(path.read_text("utf-8"))
        if not f"{module}.{name}.".startswith("tests.support.")
    ]
    assert not wrong


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings and comments of a module, each with its first line's number."""
    with tokenize.open(path) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
                yield token.start[0], token.string


def test_no_circle_of_imports() -> None:
    """No modules import each other in a circle; imports in functions and under TYPE_CHECKING count too."""
    assert circles({name: imports_of(name) for name in MODULES}) == []


def test_circles_are_found() -> None:
    """A circle of several modules is found whole; two circles that share a module are one."""
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a", "f"}, "g": set()}
    assert circles(imports) == [{"a", "b", "c"}, {"d", "e"}]
    assert circles(imports | {"e": {"d", "a"}}) == [{"a", "b", "c", "d", "e"}]


def test_the_import_contract_names_folders_only() -> None:
    """Each layer is a package or a module directly under app, or soap_compat, and the contract has at most 15 lines."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    assert [contract["type"] for contract in contracts] == ["layers"]
    lines = contracts[0]["layers"]
    assert len(lines) <= 15
    named = [name.strip() for line in lines for name in re.split("[|:]", line)]
    top = {f"app.{path.stem}" for path in (ROOT / "app").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert [name for name in named if name not in top | {"soap_compat"}] == []
    # `app.pb` is generated, and imports nothing of the gateway.
    assert top - {"app.__init__", "app.__pycache__", "app.pb", "app.py"} <= set(named)


def imports_of(module: str) -> set[str]:
    """The gateway's modules that a module imports, anywhere in its text. Its own package, which Python imports first,
    counts only where the module names the package."""
    path = (ROOT / module.replace(".", "/")).with_suffix(".py")
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found.update(submodules)
            if len(submodules) < len(node.names):
                found.add(node.module)
    return (found & set(MODULES)) - {module}


def circles(imports: Mapping[str, Set[str]]) -> list[set[str]]:
    """The strongly connected components of more than one module, sorted by their first name."""
    reached = {name: reachable(name, imports) for name in imports}
    found = {frozenset({name} | {other for other in reached[name] if name in reached[other]}) for name in imports}
    return sorted([set(circle) for circle in found if len(circle) > 1], key=min)


def reachable(start: str, imports: Mapping[str, Set[str]]) -> set[str]:
    """The modules that `start` imports, and the modules that these import, and so on."""
    seen: set[str] = set()
    left = set(imports[start])
    while left:
        name = left.pop()
        seen.add(name)
        left |= imports[name] - seen
    return seen
