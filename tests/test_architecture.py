"""What holds for the code as a whole and no linter checks."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import app
import soap_compat

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    name
    for package in (app, soap_compat)
    for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not name.startswith("app.pb.")
)
NO_EFFECT = """
import importlib, sys, threading, warnings
warnings.simplefilter("error")
opened = []
sys.addaudithook(lambda event, args: opened.append(event) if event in ("socket.bind", "socket.connect",
    "subprocess.Popen", "sqlite3.connect") else None)
importlib.import_module(sys.argv[1])
assert not opened, opened
assert threading.active_count() == 1, threading.enumerate()
"""


@pytest.mark.parametrize("module", MODULES)
def test_import_has_no_effect(module: str) -> None:
    """Importing a module opens nothing, starts nothing, prints nothing and warns of nothing."""
    done = subprocess.run(
        [sys.executable, "-c", NO_EFFECT, module], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is_for(module: str) -> None:
    """Every module opens with a docstring of at most twenty lines."""
    source = (ROOT / module.replace(".", "/")).with_suffix(".py")
    text = (source if source.exists() else source.with_suffix("") / "__init__.py").read_text("utf-8")
    assert text.startswith('"""')
    assert text[3:].partition('"""')[0].count("\n") <= 20


def test_commit_and_begin_stand_only_in_the_store() -> None:
    """Transactions have one home."""
    for path in (*ROOT.glob("app/**/*.py"), *ROOT.glob("soap_compat/**/*.py")):
        if not {"store", "pb"} & set(path.parts):
            assert ".commit(" not in path.read_text("utf-8"), path
