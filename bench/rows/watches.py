"""Rows about watches: what a watch costs beside a bare PJSIP dialog, and how fast watches return after a crash.

The bare loop sets up the same number of subscriptions in the same way, and does nothing else. Memory and CPU are the
sum of the watcher's two processes, the event loop's and the SIP worker's.
"""

import mmap
import statistics
from typing import Any

from bench.processes import notifier, run
from bench.row import Row, Run, compared, information, judged, p99

ROWS = (
    "watch.memory",
    "watch.setup_rate",
    "watch.idle_cpu",
    "watch.lag_median",
    "watch.lag_p99",
    "watch.notified_per_second",
    "watch.killed_all_live",
    "watch.killed_answered",
)

MOST_MEMORY, LEAST_RATE, MOST_IDLE_CPU = 1.4, 0.6, 3.0
MOST_LAG_MS, MOST_LAG_P99_MS, NOTIFIES_PER_S = 1.0, 10.0, 500
MOST_LIVE_S, MOST_ANSWERED_S, KILLED_SHARE, SETUPS_PER_S = 10.0, 1.0, 4, 1000
AT_ONCE = 64
IDLE_S, NOTIFIED_S, LIMIT_S = 20.0, 10.0, 240.0


def measure(bench: Run) -> list[Row]:
    """Measures the wanted rows, and their baselines."""
    count, folder = bench.arguments.watches, bench.folder
    rows: list[Row] = []
    if any(bench.wants(f"watch.{row}") for row in ("memory", "setup", "idle")):
        bench.progress(f"{count} watches, and bare dialogs")
        with notifier(folder, keeps_subscriptions=True) as port:
            bare = run("bench.programs.bare", port, "--dialogs", count, "--concurrency", AT_ONCE, limit_s=LIMIT_S)
        with notifier(folder, keeps_subscriptions=True) as port:
            own = run(
                "bench.programs.watcher", port, "--count", count, "--idle-s", bench.lasting(IDLE_S), limit_s=LIMIT_S
            )
        rows += [
            compared("watch.memory", _kilobytes(own), _kilobytes(bare), "KB", most=MOST_MEMORY),
            compared("watch.setup_rate", _rate(own), _rate(bare), "1/s", least=LEAST_RATE),
            judged("watch.idle_cpu", own["idle_cpu"] * 100, "% of a core", most=MOST_IDLE_CPU),
        ]
    if bench.wants("watch.lag") or bench.wants("watch.notified"):
        talkative = max(1, count // 10)
        bench.progress(f"{NOTIFIES_PER_S} NOTIFYs a second to {talkative} watches")
        again_ms = round(talkative / NOTIFIES_PER_S * 1000)
        with notifier(folder, keeps_subscriptions=True, again_ms=again_ms) as port:
            own = run(
                "bench.programs.watcher",
                port,
                "--count",
                talkative,
                "--notified-s",
                bench.lasting(NOTIFIED_S),
                limit_s=LIMIT_S,
            )
        rows += _lag_rows(own)
    if bench.wants("watch.killed"):
        killed = max(1, count // KILLED_SHARE)
        bench.progress(f"the worker of {killed} watches killed")
        with notifier(folder, keeps_subscriptions=True) as port:
            options = ("--count", killed, "--setups-per-s", SETUPS_PER_S, "--kill")
            own = run("bench.programs.watcher", port, *options, limit_s=LIMIT_S)
        rows += [
            judged("watch.killed_all_live", own["all_live_s"], "s", most=MOST_LIVE_S),
            judged("watch.killed_answered", own["answered_s"], "s", most=MOST_ANSWERED_S),
        ]
    return rows


def _kilobytes(seen: dict[str, Any]) -> float:
    """Memory for each watch. At least a page in all: a few watches fit into memory that was freed after the warm-up."""
    return float(max(seen["bytes"], mmap.PAGESIZE) / seen["count"] / 1e3)


def _rate(seen: dict[str, Any]) -> float:
    """Set-ups per second."""
    return float(seen["count"] / seen["setup_s"])


def _lag_rows(own: dict[str, Any]) -> list[Row]:
    lags_ms = [lag_s * 1000 for lag_s in own["lag_s"]]
    return [
        judged("watch.lag_median", statistics.median(lags_ms), "ms", most=MOST_LAG_MS),
        judged("watch.lag_p99", p99(lags_ms), "ms", most=MOST_LAG_P99_MS),
        information("watch.notified_per_second", own["notified_per_s"], "1/s"),
    ]
