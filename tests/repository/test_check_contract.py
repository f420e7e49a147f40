"""`.ci/check-contract` refuses a change of `proto/` that breaks callers, in a repository made for the test."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.programs import ROOT, require

BUF = ROOT / ".tools" / "buf" / "node_modules" / ".bin" / "buf"
FIELD = "  // As `GetStatusRequest.requester`.\n  string requester = 5;\n"

Check = Callable[[], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Runs the check in `tmp_path`, which has our contract and its baseline in one commit."""
    require(BUF.exists(), "buf")
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    (tmp_path / ".ci").mkdir()
    for name in ("check-contract", "contract-baseline"):
        shutil.copy(ROOT / ".ci" / name, tmp_path / ".ci")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [tmp_path / ".ci" / "check-contract", sys.executable, BUF],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert run().returncode == 0, run()
    return run


def git(folder: Path, *command: str) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *command], cwd=folder, check=True, timeout=60)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "test")


def without_a_field(folder: Path) -> None:
    proto = folder / "proto" / "terminalstatus" / "v1" / "subscription.proto"
    text = proto.read_text("utf-8")
    assert text.count(FIELD) == 1
    proto.write_text(text.replace(FIELD, ""), "utf-8")


def with_a_field(folder: Path) -> None:
    proto = folder / "proto" / "terminalstatus" / "v1" / "subscription.proto"
    text = proto.read_text("utf-8")
    proto.write_text(text.replace(FIELD, f"{FIELD}\n  // A new field.\n  string added = 9;\n"), "utf-8")


def test_a_new_field_breaks_nothing(check: Check, tmp_path: Path) -> None:
    with_a_field(tmp_path)
    assert check().returncode == 0


def test_a_removed_field_is_refused(check: Check, tmp_path: Path) -> None:
    """Before it is committed, in the commit, and however many changes of the contract follow."""
    without_a_field(tmp_path)
    for _ in range(4):
        found = check()
        assert (found.returncode, "Previously present field" in found.stdout) == (1, True), found
        assert "breaks callers of the contract of" in found.stderr
        with (tmp_path / "proto" / "terminalstatus" / "v1" / "usage.proto").open("a", encoding="utf-8") as file:
            file.write("\n// The end.\n")
        commit(tmp_path)


def test_a_field_removed_after_it_was_added_is_refused(check: Check, tmp_path: Path) -> None:
    """The baseline lacks the field, and the last commit has it."""
    with_a_field(tmp_path)
    commit(tmp_path)
    git(tmp_path, "revert", "--no-edit", "--no-commit", "HEAD")
    assert check().returncode == 1


def test_a_new_baseline_allows_a_break(check: Check, tmp_path: Path) -> None:
    without_a_field(tmp_path)
    with (tmp_path / ".ci" / "contract-baseline").open("a", encoding="utf-8") as file:
        file.write("\nA reason.\n")
    assert check().returncode == 0
    commit(tmp_path)
    assert check().returncode == 0


def test_an_undocumented_field_is_refused(check: Check, tmp_path: Path) -> None:
    """buf's rules hold, too."""
    proto = tmp_path / "proto" / "terminalstatus" / "v1" / "group.proto"
    proto.write_text(proto.read_text("utf-8") + "\nmessage Undocumented {}\n", "utf-8")
    assert check().returncode != 0
