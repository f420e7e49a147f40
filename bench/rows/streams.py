"""Rows about changes and streams: from a NOTIFY to one reader and to many readers, and what idle streams cost.

`changes.*`: SIPp changes WATCHED terminals faster than the gateway has to follow; the figure is the smaller of two
numbers: the events at one stream's reader, and the revisions in the database in the same time. `event.*`: presence
server and reader are one process, so one clock measures. `fanout.rate` and `stream.memory`: the baseline is a bare
grpc.aio server that sends the same message to, or keeps open, the same number of streams. `sse.*`: many streams of
server-sent events; each change has to reach all of them, and the gateway's memory must not grow with the changes.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.postgres import Postgres, PostgresFailed
from bench.processes import BenchError, World, gateway, noop, notifier, resident_bytes, run, world
from bench.row import Row, Run, compared, information, judged, p99

ROWS = (
    "changes.sqlite",
    "changes.postgresql",
    "event.median",
    "event.p99",
    "fanout.rate",
    "stream.memory",
    "sse.lost",
    "sse.memory",
    "sse.rate",
)

LEAST_CHANGES, OFFERED_PER_S, WATCHED, CHANGES_S = 1500.0, 2500.0, 1000, 10.0
MOST_EVENT_MS, MOST_EVENT_P99_MS, EVENTS_PER_S, EVENT_TERMINALS, EVENTS_S = 3.0, 20.0, 200.0, 100, 10.0
LEAST_FANOUT, STREAMS, FANOUT_CHANGES, WARM_CHANGES = 0.7, 1000, 20, 3
MOST_STREAM_MEMORY, STREAM_TERMINALS, IDLE_S, BOOKMARK_S = 1.3, 10, 4.0, 2.0
MOST_GROWTH, SSE_PARTS, SSE_CHANGES = 1.05, 9, 10
CONNECTIONS = 10
LIMIT_S = 90.0


def measure(bench: Run) -> list[Row]:
    """Measures the wanted rows, and their baselines."""
    rows = [_changes(bench, kind) for kind in ("sqlite", "postgresql") if bench.wants(f"changes.{kind}")]
    if bench.wants("event"):
        rows += _events(bench)
    if bench.wants("fanout"):
        rows.append(_fan_out(bench))
    if bench.wants("stream"):
        rows.append(_memory(bench))
    if bench.wants("sse"):
        rows += _server_sent(bench)
    return rows


def _changes(bench: Run, kind: str) -> Row:
    count = bench.sized(WATCHED)
    bench.progress(f"{OFFERED_PER_S:.0f} changes a second of {count} terminals, {kind}")
    folder = bench.own_folder(f"changes-{kind}")
    again_ms = max(1, round(count / OFFERED_PER_S * 1000))
    with (
        _database(kind) as settings,
        notifier(folder, keeps_subscriptions=True, again_ms=again_ms) as port,
        gateway(folder, port, setups_per_s=0, **settings) as (_, grpc, _),
    ):
        where = settings.get("database_url") or folder / "bench.sqlite3"
        seconds = bench.lasting(CHANGES_S)
        options = ("--count", count, "--seconds", seconds)
        figures: dict[str, Any] = run("bench.programs.changes", grpc, where, *options, limit_s=LIMIT_S)
    sent_per_s, stored_per_s = figures["events"] / figures["seconds"], figures["revisions"] / figures["seconds"]
    lesser = min(sent_per_s, stored_per_s)
    return judged(f"changes.{kind}", lesser, "1/s", least=LEAST_CHANGES, baseline=OFFERED_PER_S)


@contextmanager
def _database(kind: str) -> Iterator[dict[str, Any]]:
    if kind == "sqlite":
        yield {}
        return
    try:
        with Postgres.running(durable=True) as postgres:
            postgres.create_database("bench")
            yield {"database_url": postgres.url("bench")}
    except PostgresFailed as error:
        raise BenchError(f"PostgreSQL: {error}") from None


def _events(bench: Run) -> list[Row]:
    count = bench.sized(EVENT_TERMINALS, 10)
    bench.progress(f"{EVENTS_PER_S:.0f} NOTIFYs a second to one gRPC client")
    with world() as around, gateway(bench.own_folder("event"), around.sip_port) as (_, grpc, _):
        seconds = bench.lasting(EVENTS_S)
        figures = around.do("events", grpc=grpc, count=count, rate=EVENTS_PER_S, seconds=seconds)
    lags_ms = [lag_s * 1000 for lag_s in figures["lag_s"]]
    return [
        judged("event.median", statistics.median(lags_ms), "ms", most=MOST_EVENT_MS),
        judged("event.p99", p99(lags_ms), "ms", most=MOST_EVENT_P99_MS),
    ]


def _fan_out(bench: Run) -> Row:
    streams, changes = bench.sized(STREAMS, 20), bench.sized(FANOUT_CHANGES, 2)
    bench.progress(f"one change to {streams} streams")
    with world() as around, noop("grpc") as (_, server):
        bare = _fanned_out(around, server, streams, changes, publish=True)
    with world() as around, gateway(bench.own_folder("fanout"), around.sip_port) as (_, grpc, _):
        around.do("hold", grpc=grpc, count=1)
        own = _fanned_out(around, grpc, streams, changes, publish=False)
    return compared("fanout.rate", streams / own, streams / bare, "1/s", least=LEAST_FANOUT)


def _fanned_out(around: World, server: str, streams: int, changes: int, *, publish: bool) -> float:
    around.do("open", server=server, count=streams, terminals=1, connections=CONNECTIONS)
    around.do("fan_out", changes=WARM_CHANGES, publish=publish)
    figures = around.do("fan_out", changes=changes, publish=publish)
    around.do("close")
    return float(statistics.median(figures["seconds"]))


def _memory(bench: Run) -> Row:
    streams, idle_s = bench.sized(STREAMS, 20), bench.lasting(IDLE_S)
    bench.progress(f"{streams} idle streams")
    with world() as around, noop("grpc") as (pid, server):
        bare = _grown(around, server, pid, streams, idle_s)
    folder = bench.own_folder("memory")
    with world() as around, gateway(folder, around.sip_port, bookmark_s=BOOKMARK_S) as (pid, grpc, _):
        around.do("hold", grpc=grpc, count=STREAM_TERMINALS)
        own = _grown(around, grpc, pid, streams, idle_s)
    return compared("stream.memory", own / streams / 1e3, bare / streams / 1e3, "KB", most=MOST_STREAM_MEMORY)


def _grown(around: World, server: str, pid: int, streams: int, idle_s: float) -> int:
    """How many bytes `streams` more streams take, after they were idle for `idle_s`; some are open before."""
    options: dict[str, Any] = {"server": server, "terminals": STREAM_TERMINALS, "connections": CONNECTIONS}
    around.do("open", count=max(CONNECTIONS, streams // 4), **options)
    time.sleep(idle_s)
    before_bytes = resident_bytes(pid)
    around.do("open", count=streams, **options)
    time.sleep(idle_s)
    grown = resident_bytes(pid) - before_bytes
    around.do("close")
    return grown


def _server_sent(bench: Run) -> list[Row]:
    streams, changes = bench.sized(STREAMS, 20), bench.sized(SSE_CHANGES, 2)
    bench.progress(f"{streams} streams of server-sent events")
    lost, held, seconds = 0, list[int](), 0.0
    with world() as around, gateway(bench.own_folder("sse"), around.sip_port) as (pid, grpc, http):
        around.do("hold", grpc=grpc, count=STREAM_TERMINALS)
        around.do("open_sse", server=http, count=streams, terminals=STREAM_TERMINALS)
        for _ in range(SSE_PARTS):
            figures = around.do("change_sse", changes=changes, terminals=STREAM_TERMINALS)
            lost, seconds = lost + figures["lost"] + figures["closed"], seconds + figures["seconds"]
            held.append(resident_bytes(pid))
        around.do("close")
    part = SSE_PARTS // 3
    warm, last = statistics.median(held[part : 2 * part]) / 1e6, statistics.median(held[-part:]) / 1e6
    return [
        judged("sse.lost", lost, f"of {streams * changes * SSE_PARTS}", most=0, every=True),
        compared("sse.memory", last, warm, "MB", most=MOST_GROWTH),
        information("sse.rate", streams * changes * SSE_PARTS / seconds, "1/s"),
    ]
