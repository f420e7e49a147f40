"""Rows about one query: the gateway beside the bare PJSIP fetch loop, starts, and bursts.

The bare loop, and a new gateway for every face, make the same number of fetches: first with the same concurrency (rate,
CPU), then one by one (latency). The rows are ratios, because whatever else the machine does in that minute slows all of
them alike. The burst rows send many queries at once, again and again.
"""

import math
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.processes import gateway, notifier, run
from bench.row import Row, Run, compared, information, judged, p99
from bench.starts import demo_s, worker_replaced_s

FACES = ("grpc", "rest", "soap")
MOST_RATIO = {"grpc.cpu_per_fetch": 3.0, "rest.cpu_per_fetch": 3.5, "soap.cpu_per_fetch": 5.0}
MOST_ENGINE_RATIO = 0.65
MOST_ADDED_MS = {"grpc.added_median": 1.5}
MOST_GROWTH_PERCENT = 5.0
MOST_DEMO_S = 3.0
MOST_REPLACED_S = 1.0
BURST = 1000
BURSTS = 20
"""One burst a second."""
PART = 0.33
"""Share of the bursts in one part: the first part lets the gateway's memory grow, the second is compared with the
last."""

LIMIT_S = 90.0
"""Time limit of one loop of fetches."""

Figures = dict[str, Any]

ROWS = (
    "bare.fetches_per_second",
    "bare.cpu_per_fetch",
    "bare.median",
    "bare.p99",
    *(
        f"{face}.{figure}"
        for face in FACES
        for figure in ("cpu_per_fetch", "added_median", "added_p99", "fetches_per_second")
    ),
    "floor.cpu_per_call",
    "floor.median",
    "engine.cpu_per_fetch",
    "start.demo",
    "start.worker_replaced",
    "burst.answered",
    "burst.seconds",
    "burst.memory",
)


def measure(bench: Run) -> list[Row]:
    """Measures the wanted rows, and their baselines."""
    arguments, folder = bench.arguments, bench.folder
    faces = [face for face in (*FACES, "floor") if bench.wants(face)]
    options = ("--count", arguments.count, "--single", arguments.single, "--concurrency", arguments.concurrency)
    rows: list[Row] = []
    with notifier(folder) as port:
        if faces or bench.wants("bare"):
            bench.progress("bare")
            bare = run("bench.programs.bare", port, *options, limit_s=LIMIT_S)
            rows += _bare_rows(bare)
            for face in faces:
                bench.progress(face)
                own = _load(folder, port, face, *options)
                rows += _floor_rows(own, bare) if face == "floor" else _face_rows(face, own, bare)
        if bench.wants("engine"):
            bench.progress("both gRPC engines")
            aio, queue = [_load(folder, port, "grpc", *options, grpc_engine=each) for each in ("aio", "queue")]
            rows.append(compared("engine.cpu_per_fetch", _cpu_us(queue), _cpu_us(aio), "µs", most=MOST_ENGINE_RATIO))
        if bench.wants("start"):
            bench.progress("starts")
            rows += [
                judged(
                    "start.demo", min(demo_s() for _ in range(bench.sized(2))), "s", most=MOST_DEMO_S
                ),  # one may be cold
                judged("start.worker_replaced", worker_replaced_s(folder, port), "s", most=MOST_REPLACED_S),
            ]
        if bench.wants("burst"):
            bench.progress(f"{arguments.burst} at once, {arguments.bursts} times")
            times = ("--count", arguments.burst, "--bursts", arguments.bursts)
            rows += _burst_rows(arguments.burst, _load(folder, port, "grpc", *times))
    return rows


def _load(folder: Path, port: int, face: str, *options: object, **settings: Any) -> dict[str, Any]:
    """Sends queries to a new gateway, so that no face profits from the queries of another."""
    with gateway(folder, port, **settings) as (pid, grpc, http):
        figures: dict[str, Any] = run(
            "bench.programs.load", face, grpc if face in ("grpc", "floor") else http, pid, *options, limit_s=LIMIT_S
        )
    return figures


def _rate(figures: Figures) -> float:
    return float(figures["count"] / figures["seconds"])


def _cpu_us(figures: Figures) -> float:
    return float(figures["cpu_seconds"] / figures["count"] * 1e6)


def _median_ms(figures: Figures) -> float:
    return float(statistics.median(figures["single_s"]) * 1000)


def _p99_ms(figures: Figures) -> float:
    return p99(figures["single_s"]) * 1000


def _bare_rows(bare: Figures) -> list[Row]:
    return [
        information("bare.fetches_per_second", _rate(bare), "1/s"),
        information("bare.cpu_per_fetch", _cpu_us(bare), "µs"),
        information("bare.median", _median_ms(bare), "ms"),
        information("bare.p99", _p99_ms(bare), "ms"),
    ]


def _face_rows(face: str, own: Figures, bare: Figures) -> list[Row]:
    cpu, added = f"{face}.cpu_per_fetch", f"{face}.added_median"
    median_ms, p99_ms = _median_ms(bare), _p99_ms(bare)
    return [
        compared(cpu, _cpu_us(own), _cpu_us(bare), "µs", most=MOST_RATIO[cpu]),
        judged(added, _median_ms(own) - median_ms, "ms", most=MOST_ADDED_MS.get(added), baseline=median_ms),
        information(f"{face}.added_p99", _p99_ms(own) - p99_ms, "ms", baseline=p99_ms),
        information(f"{face}.fetches_per_second", _rate(own), "1/s", baseline=_rate(bare)),
    ]


def _floor_rows(own: Figures, bare: Figures) -> list[Row]:
    """The cost of a gRPC call that does nothing: the share of gRPC itself in the gRPC rows."""
    return [
        information("floor.cpu_per_call", _cpu_us(own), "µs", baseline=_cpu_us(bare)),
        information("floor.median", _median_ms(own), "ms", baseline=_median_ms(bare)),
    ]


def _burst_rows(size: int, figures: Figures) -> list[Row]:
    fewest = min(figures["answered"])
    if figures["lost"]:
        print(f"bench: the first lost query: {figures['lost']}", file=sys.stderr)
    resident_mb = [held / 1e6 for held in figures["resident_bytes"]]
    part = math.ceil(len(resident_mb) * PART)
    # Medians, because calls in flight when memory is read make single figures differ by a tenth.
    warm, last = statistics.median(resident_mb[part : 2 * part] or resident_mb), statistics.median(resident_mb[-part:])
    return [
        judged("burst.answered", fewest, f"of {size}", least=size, every=True),
        information("burst.seconds", statistics.median(figures["seconds"]), "s"),
        compared("burst.memory", last, warm, "MB", most=1 + MOST_GROWTH_PERCENT / 100),
    ]
