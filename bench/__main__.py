"""`make bench`: measures the gateway beside the libraries that it is built on, in one run on one machine.

`bench/rows/` has a module for each group of rows: one query, the XML of Parlay X, watches, answers from live watches,
changes and streams, many stored subscriptions, deliveries. A group starts a presence server where it needs one, and
measures the gateway and a baseline that does nothing else; where it makes sense a row is judged by the ratio of the
two. There are several rounds with new processes, because the machine's speed drifts and two starts of the same server
differ. A figure is the median of the rounds, with its range.

Prints a table, and writes the same rows to bench/out/report.json. Exit codes: 0 if every measured row keeps its bound;
1 if a row does not, or the bench failed; 2 for wrong use, or without SIPp.

Deliberately absent: a history of figures, and absolute bounds of CPU or rate, which would judge the machine.
"""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.processes import ROOT, BenchError, sipp_installed
from bench.row import Row, Run, medians, report_of, table_of
from bench.rows import deliveries, envelopes, live, queries, stored, streams, watches

REPORT = ROOT / "bench" / "out" / "report.json"
GROUPS = (queries, envelopes, watches, live, streams, stored, deliveries)
ROWS = tuple(row for group in GROUPS for row in group.ROWS)


def main() -> int:
    """Measures, prints and writes the report; returns the exit code."""
    arguments = _arguments()
    wanted = [row for row in ROWS if not arguments.rows or row.startswith(tuple(arguments.rows))]
    if unknown := [prefix for prefix in arguments.rows if not any(row.startswith(prefix) for row in ROWS)]:
        print(f"bench: no row begins with {', '.join(unknown)}. The rows are:", *ROWS, sep="\n  ", file=sys.stderr)
        return 2
    if not sipp_installed():
        print("bench: SIPp is not installed (Debian package sip-tester).", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        rows = _measure(arguments, wanted)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(json.dumps([report_of(row) for row in rows], indent=2) + "\n", "utf-8")
    Console(soft_wrap=True).print(table_of(rows, arguments))
    return 1 if any(row.ok is False for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures the gateway beside the libraries that it is built on, in half an hour.",
        epilog="Rows: " + ", ".join(ROWS),
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="first letters of rows, such as rest.cpu; default all")
    parser.add_argument("--rounds", type=_positive, default=3, help="default 3")
    parser.add_argument("--count", type=_positive, default=5000, help="fetches of a loaded part; default 5000")
    parser.add_argument("--single", type=_positive, default=400, help="fetches one by one; default 400")
    parser.add_argument("--concurrency", type=_positive, default=32, help="fetches in flight; default 32")
    parser.add_argument("--burst", type=_positive, default=queries.BURST, help="queries at once in a burst")
    parser.add_argument("--bursts", type=_positive, default=queries.BURSTS, help="number of bursts")
    parser.add_argument("--watches", type=_positive, default=20_000, help="watches; default 20000")
    parser.add_argument("--percent", type=_positive, default=100, help="size of all other rows, in percent")
    parser.add_argument("--report", type=Path, default=REPORT, help="default bench/out/report.json")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _stop(number: int, _frame: object) -> None:
    sys.exit(128 + number)  # unwinds the stack, which stops the processes that were started


def _measure(arguments: argparse.Namespace, wanted: list[str]) -> list[Row]:
    rounds: list[list[Row]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for number in range(1, arguments.rounds + 1):
            folder = Path(name) / str(number)
            folder.mkdir()
            rounds.append([row for group in GROUPS for row in _round(group, arguments, wanted, folder, number)])
    return medians(rounds)


def _round(group: Any, arguments: argparse.Namespace, wanted: list[str], folder: Path, number: int) -> list[Row]:
    def progress(what: str) -> None:
        print(f"round {number} of {arguments.rounds}: {what} …", file=sys.stderr, flush=True)

    run = Run(
        arguments=arguments, wanted=[row for row in wanted if row in group.ROWS], folder=folder, progress=progress
    )
    return [row for row in group.measure(run) if row.name in wanted] if run.wanted else []


if __name__ == "__main__":
    sys.exit(main())
