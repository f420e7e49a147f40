"""Rows about one question: the gateway beside the bare PJSIP fetch loop, starts, and bursts.

In each round the bare loop, and a new gateway for every face, make the same number of fetches, first with the same
concurrency (rate, CPU), then one by one (latency); so what else the machine does in that minute touches all alike, and
the judgement is a ratio. A figure is the median over the rounds; a ratio is the median of the rounds' ratios. At the
end many questions are asked at once, over and over.
"""

import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.processes import gateway, notifier, run
from bench.rows import Row, Run
from bench.starts import demo_s, worker_replaced_s

FACES = ("grpc", "rest", "soap")
MOST_RATIO = {"grpc.cpu_per_fetch": 3.0, "rest.cpu_per_fetch": 3.5, "soap.cpu_per_fetch": 5.0}
MOST_ADDED_MS = {"grpc.added_median": 1.5}
MOST_GROWTH_PERCENT = 5.0
MOST_DEMO_S = 3.0
MOST_REPLACED_S = 1.0
BURST = 1000
BURSTS = 20
"""One a second."""
PART = 0.33
"""Of the bursts: after the first part the gateway has the memory it needs; the second is compared with the last."""

LIMIT_S = 90.0
"""Of one loop of fetches."""

Measured = dict[str, list[dict[str, Any]]]

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
    "start.demo",
    "start.worker_replaced",
    "burst.answered",
    "burst.seconds",
    "burst.memory",
)


def measure(bench: Run) -> list[Row]:
    """Measures the rows that are wanted, and what they are compared with."""
    arguments, folder = bench.arguments, bench.folder
    faces = [face for face in (*FACES, "floor") if bench.wants(face)]
    loops = ["bare", *faces] if faces or bench.wants("bare") else []
    options = ("--count", arguments.count, "--single", arguments.single, "--concurrency", arguments.concurrency)
    measured: Measured = {name: [] for name in loops}
    rows: list[Row] = []
    with notifier(folder) as port:
        for number in range(1, arguments.rounds + 1) if loops else ():
            for loop in loops:
                bench.tell(f"round {number} of {arguments.rounds}: {loop}")
                if loop == "bare":
                    figures = run("bench.bare", port, *options, limit_s=LIMIT_S)
                else:
                    figures = _load(folder, port, loop, *options)
                measured[loop].append(figures)
        if loops:
            rows += _bare_rows(measured["bare"])
        for face in faces:
            rows += _floor_rows(measured) if face == "floor" else _face_rows(face, measured)
        if bench.wants("start"):
            bench.tell("starts")
            rows += [
                _start_row("start.demo", min(demo_s() for _ in range(2)), MOST_DEMO_S),  # the first may be cold
                _start_row("start.worker_replaced", worker_replaced_s(folder, port), MOST_REPLACED_S),
            ]
        if bench.wants("burst"):
            bench.tell(f"{arguments.burst} at once, {arguments.bursts} times")
            times = ("--count", arguments.burst, "--bursts", arguments.bursts)
            rows += _burst_rows(arguments.burst, _load(folder, port, "grpc", *times))
    return rows


def _load(folder: Path, port: int, face: str, *options: object) -> dict[str, Any]:
    """Asks a gateway of its own, so that no face finds what another has left."""
    with gateway(folder, port) as (pid, grpc, http):
        figures: dict[str, Any] = run(
            "bench.load", face, grpc if face in ("grpc", "floor") else http, pid, *options, limit_s=LIMIT_S
        )
    return figures


def _rate(figures: dict[str, Any]) -> float:
    return float(figures["count"] / figures["seconds"])


def _cpu_us(figures: dict[str, Any]) -> float:
    return float(figures["cpu_seconds"] / figures["count"] * 1e6)


def _median_ms(figures: dict[str, Any]) -> float:
    return float(statistics.median(figures["single_s"]) * 1000)


def _p99_ms(figures: dict[str, Any]) -> float:
    ordered = sorted(figures["single_s"])
    return float(ordered[math.ceil(len(ordered) * 0.99) - 1] * 1000)


def _bare_rows(bare: list[dict[str, Any]]) -> list[Row]:
    def row(figure: str, unit: str, read: Callable[[dict[str, Any]], float]) -> Row:
        return Row(f"bare.{figure}", round(statistics.median(map(read, bare)), 3), unit, None, None, None, None)

    return [
        row("fetches_per_second", "1/s", _rate),
        row("cpu_per_fetch", "µs", _cpu_us),
        row("median", "ms", _median_ms),
        row("p99", "ms", _p99_ms),
    ]


def _face_rows(face: str, measured: Measured) -> list[Row]:
    def row(figure: str, unit: str, read: Callable[[dict[str, Any]], float], *, added: bool = False) -> Row:
        name = f"{face}.{figure}"
        bare = [read(figures) for figures in measured["bare"]]
        own = [read(figures) for figures in measured[face]]
        ratio = statistics.median(one / other for one, other in zip(own, bare, strict=True))
        value = statistics.median(one - other if added else one for one, other in zip(own, bare, strict=True))
        reach, ok = None, None
        if name in MOST_RATIO:
            reach, ok = f"ratio <= {MOST_RATIO[name]}", ratio <= MOST_RATIO[name]
        elif name in MOST_ADDED_MS:
            reach, ok = f"value <= {MOST_ADDED_MS[name]}", value <= MOST_ADDED_MS[name]
        return Row(name, round(value, 3), unit, round(statistics.median(bare), 3), round(ratio, 3), reach, ok)

    return [
        row("cpu_per_fetch", "µs", _cpu_us),
        row("added_median", "ms", _median_ms, added=True),
        row("added_p99", "ms", _p99_ms, added=True),
        row("fetches_per_second", "1/s", _rate),
    ]


def _floor_rows(measured: Measured) -> list[Row]:
    """What a gRPC call costs that does nothing, in the same terms: the part of the gRPC rows that is grpc.aio's."""

    def row(figure: str, unit: str, read: Callable[[dict[str, Any]], float]) -> Row:
        bare = [read(figures) for figures in measured["bare"]]
        own = [read(figures) for figures in measured["floor"]]
        ratio = statistics.median(one / other for one, other in zip(own, bare, strict=True))
        value, baseline = round(statistics.median(own), 3), round(statistics.median(bare), 3)
        return Row(f"floor.{figure}", value, unit, baseline, round(ratio, 3), None, None)

    return [row("cpu_per_call", "µs", _cpu_us), row("median", "ms", _median_ms)]


def _start_row(name: str, seconds: float, most_s: float) -> Row:
    return Row(name, round(seconds, 3), "s", None, None, f"value <= {most_s}", seconds <= most_s)


def _burst_rows(size: int, figures: dict[str, Any]) -> list[Row]:
    fewest = min(figures["answered"])
    if figures["lost"]:
        print(f"bench: one that was lost: {figures['lost']}", file=sys.stderr)
    resident_mb = [held / 1e6 for held in figures["resident_bytes"]]
    part = math.ceil(len(resident_mb) * PART)
    # Medians: what happens to be on its way when memory is read makes single figures differ by a tenth.
    warm, last = statistics.median(resident_mb[part : 2 * part] or resident_mb), statistics.median(resident_mb[-part:])
    return [
        Row("burst.answered", fewest, f"of {size}", None, None, f"value >= {size}", fewest >= size),
        Row("burst.seconds", round(statistics.median(figures["seconds"]), 3), "s", None, None, None, None),
        Row(
            "burst.memory",
            round(last, 1),
            "MB",
            round(warm, 1),
            round(last / warm, 3),
            f"ratio <= {1 + MOST_GROWTH_PERCENT / 100}",
            last <= warm * (1 + MOST_GROWTH_PERCENT / 100),
        ),
    ]
