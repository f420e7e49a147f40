"""Rows about many stored subscriptions: how long a start takes, and what each subscription costs in memory.

`stored.start` is the time from the gateway's command to its open ports, with a terminal of its own for each
subscription, the hardest case. `stored.memory` is the cost of a subscription without its watch: the difference between
two gateways that watch the same terminals, with few and with many subscriptions. `stored.memory_watched`, for
information, includes a watch for each subscription. Memory is that of the gateway's main process; watches live in the
SIP worker. `stored.start_members` is a start with a million members of unused groups, beside a start with none.
"""

import time

from bench.fill import fill, fill_groups
from bench.processes import World, database_url, gateway, own_bytes, world
from bench.row import Row, Run, compared_pairs, information, judged

ROWS = ("stored.start", "stored.memory_watched", "stored.memory", "stored.start_members")

MOST_START_S, MOST_KB, MOST_RATIO = 15.0, 3.0, 1.2
GROUPS, MEMBERS, PAIRS = 1000, 1000, 3
SUBSCRIPTIONS, TERMINALS = 100_000, 500
START_LIMIT_S, SETTLE_S = 90.0, 2.0


def measure(bench: Run) -> list[Row]:
    """Measures the wanted rows, and their baselines."""
    count, terminals = bench.sized(SUBSCRIPTIONS, 40), bench.sized(TERMINALS, 10)
    rows: list[Row] = []
    with world() as around:
        if {"stored.start", "stored.memory_watched"} & set(bench.wanted):
            bench.progress(f"a start with {count} subscriptions to a terminal each")
            _, empty = _started(bench, around, 0, 0)
            seconds, held = _started(bench, around, count, count)
            rows += [
                judged("stored.start", seconds, "s", most=MOST_START_S),
                information("stored.memory_watched", (held - empty) / count / 1e3, "KB"),
            ]
        if "stored.memory" in bench.wanted:
            bench.progress(f"{count} subscriptions to {terminals} terminals")
            _, few = _started(bench, around, terminals, terminals)
            _, many = _started(bench, around, count, terminals)
            each_kb = (many - few) / (count - terminals) / 1e3
            rows.append(judged("stored.memory", each_kb, "KB", most=MOST_KB))
        if bench.wants("stored.start_members"):
            rows.append(_with_members(bench, around))
    return rows


def _with_members(bench: Run, around: World) -> Row:
    """Starts with members and without, alternately."""
    count = bench.sized(GROUPS, 2)
    bench.progress(f"starts with {count * MEMBERS} members of groups, and with none")
    seconds: dict[int, list[float]] = {count: [], 0: []}
    for groups in seconds:
        fill_groups(database_url(bench.own_folder(f"members-{groups}")), groups, MEMBERS)
    for _ in range(bench.sized(PAIRS)):
        for groups, its in seconds.items():
            started_s = time.perf_counter()
            with gateway(bench.folder / f"members-{groups}", around.sip_port, limit_s=START_LIMIT_S):
                its.append(time.perf_counter() - started_s)
    return compared_pairs("stored.start_members", seconds[count], seconds[0], "s", most=MOST_RATIO)


def _started(bench: Run, around: World, count: int, terminals: int) -> tuple[float, int]:
    """The seconds that the start took, and the gateway's memory after its watches are set up."""
    folder = bench.own_folder(f"stored-{count}-{terminals}")
    addresses = [f"sip:terminal-{number % terminals}@bench.example.com" for number in range(count)]
    fill(database_url(folder), addresses)
    started_s = time.perf_counter()
    with gateway(folder, around.sip_port, limit_s=START_LIMIT_S) as (pid, _, _):
        seconds = time.perf_counter() - started_s
        if terminals <= bench.sized(TERMINALS, 10):  # more are set up at a limited rate, over minutes
            around.do("subscribed", numbers=list(range(terminals)))
        time.sleep(SETTLE_S)
        return seconds, own_bytes(pid)
