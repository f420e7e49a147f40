"""The bench runs, and its report has every row. Figures are not judged here: machines differ."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import ROWS
from bench.processes import ROOT, sipp_installed
from bench.row import compared, judged, medians, report_of
from bench.rows.queries import FACES

FIELDS = {"name", "value", "unit", "baseline", "ratio", "low", "high", "reach", "ok"}
REACHES = {
    "grpc.cpu_per_fetch": "ratio <= 3.0",
    "rest.cpu_per_fetch": "ratio <= 3.5",
    "soap.cpu_per_fetch": "ratio <= 5.0",
    "grpc.added_median": "value <= 1.5",
    "engine.cpu_per_fetch": "ratio <= 0.65",
    "start.demo": "value <= 3.0",
    "start.worker_replaced": "value <= 1.0",
    "burst.answered": "value >= 20",
    "burst.memory": "ratio <= 1.05",
    "envelope.call": "ratio <= 0.25",
    "envelope.group": "ratio <= 0.25",
    "watch.memory": "ratio <= 1.4",
    "watch.setup_rate": "ratio >= 0.6",
    "watch.idle_cpu": "value <= 3.0",
    "watch.lag_median": "value <= 1.0",
    "watch.lag_p99": "value <= 10.0",
    "watch.killed_all_live": "value <= 10.0",
    "watch.killed_answered": "value <= 1.0",
    "live.grpc": "ratio >= 0.75",
    "live.rest": "ratio >= 0.6",
    "live.soap": "ratio >= 0.45",
    "live.group": "value >= 5.0",
    "live.group_memory": "value <= 60.0",
    "changes.sqlite": "value >= 1500.0",
    "changes.postgresql": "value >= 1500.0",
    "event.median": "value <= 3.0",
    "event.p99": "value <= 20.0",
    "fanout.rate": "ratio >= 0.7",
    "stream.memory": "ratio <= 1.3",
    "sse.lost": "value <= 0",
    "sse.memory": "ratio <= 1.05",
    "stored.start": "value <= 15.0",
    "stored.memory": "value <= 3.0",
    "stored.start_members": "ratio <= 1.2",
    "webhook.rate": "ratio >= 0.4",
    "webhook.per_second": "value >= 400.0",
    "webhook.lag_median": "value <= 25.0",
    "callback.rate": "ratio >= 0.8",
    "hanging.p99": "ratio <= 1.5",
}
TINY = (
    *("--rounds", "1", "--count", "50", "--single", "5", "--burst", "20", "--bursts", "2", "--watches", "40"),
    *("--percent", "1"),
)


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=420)
        finally:
            process.terminate()  # unwinds, so that no SIPp and no gateway stays running
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def needs_sipp() -> None:
    if not sipp_installed():
        assert not os.environ.get("CI"), "SIPp (Debian package sip-tester) must be there in CI"
        pytest.skip("SIPp (Debian package sip-tester) is not installed")


SOME = ("bare", "grpc", "start", "burst", "envelope", "watch", "live.rest", "stored.start_members", "webhook.rate")
"""Rows of each kind of loop, without `rest`, which `test_part` measures. All rows take minutes."""


def test_report(tmp_path: Path) -> None:
    """One tiny round: the table and the report have every requested row, and every judged row has its reach."""
    needs_sipp()
    report = tmp_path / "out" / "report.json"
    wanted = tuple(row for row in ROWS if row.startswith(SOME))
    finished = run_bench(*SOME, *TINY, "--report", str(report))
    assert finished.returncode in (0, 1), finished.stderr
    assert report.exists(), finished.stderr
    rows = {row["name"]: row for row in json.loads(report.read_text("utf-8"))}
    assert tuple(rows) == wanted
    assert all(set(row) == FIELDS for row in rows.values())
    assert all(row["low"] == row["high"] for row in rows.values()), "the range of one round"
    assert {name: row["reach"] for name, row in rows.items() if row["reach"]} == {
        name: reach for name, reach in REACHES.items() if name in wanted
    }
    assert all(isinstance(row["ok"], bool) == bool(row["reach"]) for row in rows.values())
    assert finished.returncode == int(not all(row["ok"] for row in rows.values() if row["reach"]))
    assert all(
        rows[f"{face}.cpu_per_fetch"]["baseline"] == rows["bare.cpu_per_fetch"]["value"]
        for face in FACES
        if f"{face}.cpu_per_fetch" in rows
    )
    assert rows["burst.answered"]["value"] == 20
    assert all(name in finished.stdout for name in wanted)


def test_part(tmp_path: Path) -> None:
    """The first letters of a row's name select that row and its baselines only."""
    needs_sipp()
    report = tmp_path / "report.json"
    finished = run_bench("rest.cpu", *TINY, "--report", str(report))
    assert [row["name"] for row in json.loads(report.read_text("utf-8"))] == ["rest.cpu_per_fetch"], finished.stderr
    assert "soap" not in finished.stderr


def test_median_and_range() -> None:
    """Over several rounds a row has the medians, and the range of the judged figure; a row that must hold in every
    round has the worst figure."""
    rounds = [
        [
            compared("a", value, 10, "ms", most=1.0),
            judged("b", value, "s", least=3.0, baseline=1),
            judged("c", lost, "of 9", most=0, every=True),
        ]
        for value, lost in ((20, 0), (5, 1), (6, 0))
    ]
    ratio, value, every = medians(rounds)
    assert (ratio.value, ratio.baseline, ratio.ratio, ratio.low, ratio.high, ratio.ok) == (6, 10, 0.6, 0.5, 2.0, True)
    assert (value.value, value.low, value.high, value.ok) == (6, 5, 20, True)
    assert (every.value, every.low, every.high, every.ok) == (1, 0, 1, False)
    assert report_of(ratio)["reach"] == "ratio <= 1.0"


def test_unknown_row() -> None:
    """An unknown row is wrong use; the message lists the rows."""
    finished = run_bench("grcp")
    assert finished.returncode == 2
    assert "grcp" in finished.stderr
    assert all(name in finished.stderr for name in ROWS)


def test_help() -> None:
    """`--help` names the rows."""
    finished = run_bench("--help")
    assert finished.returncode == 0
    assert "burst.memory" in finished.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the bench reads /proc")
def test_without_sipp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SIPp the bench says which package to install."""
    monkeypatch.setenv("PATH", "/nonexistent")
    finished = run_bench()
    assert finished.returncode == 2
    assert "sip-tester" in finished.stderr
