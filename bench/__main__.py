"""`make bench`: the gateway beside what it is made of, in one run on one machine.

Rows come in groups, a module each: one question (`questions.py`), standing subscriptions (`rules.py`), answers from
live watches (`live.py`), changes and streams (`events.py`), many subscriptions (`subscriptions.py`), webhooks and
callbacks (`deliveries.py`). Each starts a presence server and measures beside the gateway what the gateway is made of;
the judgement is a ratio wherever that makes sense. All of it is done in several rounds with new processes, since the
machine's speed drifts and two starts of the same server differ; a figure is the median over the rounds, with its range.

Prints a table and writes the same rows to bench/out/report.json. Exit codes: 0 every row that was measured reaches
what it must; 1 one does not, or the bench failed; 2 wrong use, or no SIPp.

Deliberately absent: a history of figures, and absolute reaches of CPU or rate, which say more about the machine.
"""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import deliveries, live, questions, standing, streams, subscriptions
from bench.processes import ROOT, BenchError, sipp_installed
from bench.rows import Row, Run, medians, report_of, table_of

REPORT = ROOT / "bench" / "out" / "report.json"
GROUPS = (questions, standing, live, streams, subscriptions, deliveries)
ROWS = tuple(row for group in GROUPS for row in group.ROWS)


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
        description="Measures the gateway against what it is made of, in half an hour.",
        epilog="Rows: " + ", ".join(ROWS),
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="first letters of rows, such as grpc or rest.cpu; all")
    parser.add_argument("--rounds", type=_positive, default=3, help="default 3")
    parser.add_argument("--count", type=_positive, default=5000, help="fetches of a loaded part; default 5000")
    parser.add_argument("--single", type=_positive, default=400, help="fetches one by one; default 400")
    parser.add_argument("--concurrency", type=_positive, default=32, help="fetches in flight; default 32")
    parser.add_argument("--burst", type=_positive, default=questions.BURST, help="questions at once")
    parser.add_argument("--bursts", type=_positive, default=questions.BURSTS, help="how many times")
    parser.add_argument("--watches", type=_positive, default=20_000, help="standing subscriptions; default 20000")
    parser.add_argument(
        "--percent", type=_positive, default=100, help="size of the rows without an option of their own"
    )
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
    rounds: list[list[Row]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for number in range(1, arguments.rounds + 1):
            folder = Path(name) / str(number)
            folder.mkdir()
            rounds.append([row for group in GROUPS for row in _round(group, arguments, wanted, folder, number)])
    return medians(rounds)


def _round(group: Any, arguments: argparse.Namespace, wanted: list[str], folder: Path, number: int) -> list[Row]:
    def tell(what: str) -> None:
        print(f"round {number} of {arguments.rounds}: {what} …", file=sys.stderr, flush=True)

    run = Run(arguments=arguments, wanted=[row for row in wanted if row in group.ROWS], folder=folder, tell=tell)
    return [row for row in group.measure(run) if row.name in wanted] if run.wanted else []


if __name__ == "__main__":
    sys.exit(main())
