"""`make bench`: the gateway beside the bare PJSIP fetch loop, in one run on one machine.

Starts a SIPp notifier. In each round the bare loop, and a new gateway for every face, make the same number of fetches,
first with the same concurrency (rate, CPU), then one by one (latency); so what else the machine does in that minute
touches all alike, and the judgement is a ratio. A figure is the median over the rounds; a ratio is the median of the
rounds' ratios. At the end many questions are asked at once, over and over.

Prints a table and writes the same rows to bench/out/report.json. Exit codes: 0 every row that was measured reaches
what it must; 1 one does not, or the bench failed; 2 wrong use, or no SIPp.

Deliberately absent: a history of figures, and absolute reaches of CPU or rate, which say more about the machine.
"""

import argparse
import json
import math
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.processes import ROOT, BenchError, gateway, notifier, run, sipp_installed
from bench.starts import demo_s, worker_replaced_s

REPORT = ROOT / "bench" / "out" / "report.json"
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


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `reach` says what is judged: the ratio or the value; None is for information."""

    name: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None
    reach: str | None
    ok: bool | None


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


def main() -> int:
    """Measures, prints, reports; see the module."""
    arguments = _arguments()
    wanted = [row for row in ROWS if not arguments.rows or row.startswith(tuple(arguments.rows))]
    if unknown := [prefix for prefix in arguments.rows if not any(row.startswith(prefix) for row in ROWS)]:
        print(f"bench: no row begins with {', '.join(unknown)}. The rows are:", *ROWS, sep="\n  ", file=sys.stderr)
        return 2
    if not sipp_installed():
        print("bench: SIPp is not installed (Debian package sip-tester).", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _told_to_stop)
    try:
        rows = [row for row in _measure(arguments, wanted) if row.name in wanted]
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", "utf-8")
    Console(soft_wrap=True).print(_table(rows, arguments))
    return 1 if any(row.ok is False for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures the gateway against the bare PJSIP fetch loop, in about two minutes.",
        epilog="Rows: " + ", ".join(ROWS),
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="first letters of rows, such as grpc or rest.cpu; all")
    parser.add_argument("--rounds", type=_positive, default=3, help="default 3")
    parser.add_argument("--count", type=_positive, default=5000, help="fetches of a loaded part; default 5000")
    parser.add_argument("--single", type=_positive, default=400, help="fetches one by one; default 400")
    parser.add_argument("--concurrency", type=_positive, default=32, help="fetches in flight; default 32")
    parser.add_argument("--burst", type=_positive, default=BURST, help=f"questions at once; default {BURST}")
    parser.add_argument("--bursts", type=_positive, default=BURSTS, help=f"how many times; default {BURSTS}")
    parser.add_argument("--report", type=Path, default=REPORT, help="default bench/out/report.json")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _told_to_stop(number: int, _frame: object) -> None:
    sys.exit(128 + number)  # unwinds, so that what was started is stopped


def _measure(arguments: argparse.Namespace, wanted: list[str]) -> list[Row]:
    faces = [face for face in FACES if any(row.startswith(face) for row in wanted)]
    if any(row.startswith("floor") for row in wanted):
        faces.append("floor")
    loops = ["bare", *faces] if faces or any(row.startswith("bare") for row in wanted) else []
    bursts = any(row.startswith("burst") for row in wanted)
    starts = any(row.startswith("start") for row in wanted)
    steps = arguments.rounds * len(loops) + bursts + starts
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{steps}] {what} …", file=sys.stderr, flush=True)

    options = ("--count", arguments.count, "--single", arguments.single, "--concurrency", arguments.concurrency)
    measured: Measured = {name: [] for name in loops}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with notifier(folder) as port:
            for number in range(1, arguments.rounds + 1):
                for loop in loops:
                    tell(f"round {number}: {loop}")
                    if loop == "bare":
                        figures = run("bench.bare", port, *options, limit_s=LIMIT_S)
                    else:
                        figures = _load(folder, port, loop, *options)
                    measured[loop].append(figures)
            if loops:
                rows += _bare_rows(measured["bare"])
            for face in faces:
                rows += _floor_rows(measured) if face == "floor" else _face_rows(face, measured)
            if starts:
                tell("starts")
                rows += [
                    _start_row("start.demo", min(demo_s() for _ in range(2)), MOST_DEMO_S),  # the first may be cold
                    _start_row("start.worker_replaced", worker_replaced_s(folder, port), MOST_REPLACED_S),
                ]
            if bursts:
                tell(f"{arguments.burst} at once, {arguments.bursts} times")
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


def _table(rows: list[Row], arguments: argparse.Namespace) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{arguments.rounds} rounds of {arguments.count} fetches, {arguments.concurrency} at once, "
        f"and {arguments.single} one by one",
        title_justify="left",
        caption="baseline: the bare PJSIP loop; of burst.memory: the second third of the bursts",
        caption_justify="left",
    )
    table.add_column("row")
    for heading in ("value", "unit", "baseline", "ratio"):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    table.add_column("reach")
    table.add_column("ok")
    verdicts = {None: "", True: "[green]yes[/]", False: "[red]NO[/]"}
    for row in rows:
        table.add_row(
            row.name,
            _number(row.value),
            row.unit,
            _number(row.baseline),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            (row.reach or "").replace("<=", "≤").replace(">=", "≥"),
            verdicts[row.ok],
        )
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.2f}"


if __name__ == "__main__":
    sys.exit(main())
