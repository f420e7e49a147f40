"""Rows about the XML of Parlay X: the CPU of a call through the gateway's own reader and writer, beside Spyne's Soap11
on the same model (docs/decisions.md has the decision that these rows show).

Both run alternately, each in a process of its own that does nothing else: `envelope.call` is getStatus,
`envelope.group` getStatusForGroup of a thousand terminals.
"""

from bench.processes import run
from bench.row import Row, Run, compared_pairs

ROWS = ("envelope.call", "envelope.group")

MOST_RATIO = 0.25
CALLS, GROUP_CALLS, TERMINALS, PAIRS = 3000, 10, 1000, 3
LIMIT_S = 120.0


def measure(bench: Run) -> list[Row]:
    """Measures the wanted rows, and their baselines."""
    sizes = {"envelope.call": (0, CALLS), "envelope.group": (TERMINALS, GROUP_CALLS)}
    return [_row(bench, name, *sizes[name]) for name in ROWS if name in bench.wanted]


def _row(bench: Run, name: str, terminals: int, calls: int) -> Row:
    count = bench.sized(calls)
    bench.progress(f"{count} SOAP calls for {max(1, terminals)} terminals, and through Soap11")
    cpu_us: dict[str, list[float]] = {"own": [], "soap11": []}
    for _ in range(bench.sized(PAIRS)):
        for what, its in cpu_us.items():
            measured = run("bench.programs.envelopes", what, terminals, count, limit_s=LIMIT_S)
            its.append(measured["seconds"] / count * 1e6)
    return compared_pairs(name, cpu_us["own"], cpu_us["soap11"], "µs", most=MOST_RATIO)
