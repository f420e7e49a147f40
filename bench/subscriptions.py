"""Rows about many subscriptions in the store: how long a start takes, and what each costs in memory.

The start is that of a gateway whose subscriptions have a terminal each, which is the hardest: from its command to the
ports it serves at. What a subscription costs beside its watch is the difference of two gateways that watch the same
terminals, one with a subscription to each, one with as many more as wanted; memory is that of the gateway's own
process, since watches live in the SIP worker. `stored.memory_watched` is for information: with a watch each.
`stored.start_members` is a start with a million members in groups that nobody asks for, beside one with none.
"""

import time

from bench.fill import fill, fill_groups
from bench.processes import World, database_url, gateway, own_bytes, world
from bench.rows import Row, Run, compared_pairs, judged, told

ROWS = ("stored.start", "stored.memory_watched", "stored.memory", "stored.start_members")

MOST_START_S, MOST_KB, MOST_RATIO = 15.0, 3.0, 1.2
GROUPS, MEMBERS, PAIRS = 1000, 1000, 3
SUBSCRIPTIONS, TERMINALS = 100_000, 500
START_LIMIT_S, SETTLE_S = 90.0, 2.0


def measure(bench: Run) -> list[Row]:
    """Measures the rows that are wanted, and what they are compared with."""
    count, terminals = bench.sized(SUBSCRIPTIONS, 40), bench.sized(TERMINALS, 10)
    rows: list[Row] = []
    with world() as around:
        if bench.wants("stored.start") or bench.wants("stored.memory_watched"):
            bench.tell(f"a start with {count} subscriptions to a terminal each")
            _, empty = _started(bench, around, 0, 0)
            seconds, held = _started(bench, around, count, count)
            rows += [
                judged("stored.start", seconds, "s", most=MOST_START_S),
                told("stored.memory_watched", (held - empty) / count / 1e3, "KB"),
            ]
        if bench.wants("stored.memory"):
            bench.tell(f"{count} subscriptions to {terminals} terminals")
            _, few = _started(bench, around, terminals, terminals)
            _, many = _started(bench, around, count, terminals)
            each_kb = (many - few) / (count - terminals) / 1e3
            rows.append(judged("stored.memory", each_kb, "KB", most=MOST_KB))
        if bench.wants("stored.start_members"):
            rows.append(_with_members(bench, around))
    return rows


def _with_members(bench: Run, around: World) -> Row:
    """Starts with members and without by turns."""
    count = bench.sized(GROUPS, 2)
    bench.tell(f"starts with {count * MEMBERS} members of groups, and with none")
    seconds: dict[int, list[float]] = {count: [], 0: []}
    for groups in seconds:
        fill_groups(database_url(bench.own_folder(f"members-{groups}")), groups, MEMBERS)
    for _ in range(PAIRS):
        for groups, its in seconds.items():
            started_s = time.perf_counter()
            with gateway(bench.folder / f"members-{groups}", around.sip_port, limit_s=START_LIMIT_S):
                its.append(time.perf_counter() - started_s)
    return compared_pairs("stored.start_members", seconds[count], seconds[0], "s", most=MOST_RATIO)


def _started(bench: Run, around: World, count: int, terminals: int) -> tuple[float, int]:
    """How long the start took, in seconds, and the gateway's memory when its watches are set up."""
    folder = bench.own_folder(f"stored-{count}-{terminals}")
    addresses = [f"sip:terminal-{number % terminals}@bench.example.com" for number in range(count)]
    fill(database_url(folder), addresses)
    started_s = time.perf_counter()
    with gateway(folder, around.sip_port, limit_s=START_LIMIT_S) as (pid, _, _):
        seconds = time.perf_counter() - started_s
        if terminals <= bench.sized(TERMINALS, 10):  # the others' are set up at a pace, for minutes
            around.do("subscribed", numbers=list(range(terminals)))
        time.sleep(SETTLE_S)
        return seconds, own_bytes(pid)
