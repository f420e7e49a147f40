"""The wheel is complete: code, metadata, and the contracts that users build against."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 120
SOURCES = ("app", "soap_compat", "proto", "openapi", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy, since a build leaves folders in the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, folder / "out", folder], check=True, timeout=DEADLINE_S, capture_output=True)
    (built,) = (folder / "out").glob("*.whl")
    return zipfile.ZipFile(built)


def test_code_is_complete(wheel: zipfile.ZipFile) -> None:
    """The wheel has each module, the migrations, the error examples, and the markers of typed packages."""
    names = set(wheel.namelist())
    for package in ("app", "soap_compat"):
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert modules <= names
        assert f"{package}/py.typed" in names
    assert {"app/rest/error_examples.json", "app/rest/camara/error_examples.json"} <= names


def test_contracts_are_in_it(wheel: zipfile.ZipFile) -> None:
    """The `.proto`, OpenAPI and WSDL files are the same as in the source."""
    for path in [*(ROOT / "proto").rglob("*.proto"), *(ROOT / "openapi").glob("*.json")]:
        (name,) = [
            name
            for name in wheel.namelist()
            if name.endswith(f"/share/terminal-status-gateway/{path.relative_to(ROOT)}")
        ]
        assert wheel.read(name) == path.read_bytes()
    assert {f"soap_compat/wsdl/{path.name}" for path in (ROOT / "soap_compat" / "wsdl").iterdir()} <= set(
        wheel.namelist()
    )


def test_metadata(wheel: zipfile.ZipFile) -> None:
    """The wheel names the licence, with its texts, and the versions of Python."""
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = wheel.read(name).decode()
    for line in (
        "License-Expression: GPL-3.0-or-later",
        "License-File: LICENSE",
        "License-File: proto/LICENSE",
        "License-File: openapi/LICENSE",
        "Requires-Python: <3.13,>=3.11",
        "Classifier: Programming Language :: Python :: 3.12",
    ):
        assert line in metadata.splitlines()
