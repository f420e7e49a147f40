"""Counts changes: the events of one stream, and the revisions in the database, in the same time.

Run as `python -m bench.programs.changes HOST:PORT DATABASE …` beside a gateway whose terminals change all the time;
prints one line of JSON. Counting begins WARM_S after every terminal has changed once.
"""

import argparse
import asyncio
import json
import sqlite3
import sys
import time
from contextlib import closing

import psycopg
import uvloop

from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from bench import h2
from bench.h2 import LostError
from bench.programs.world import WATCH, address

WARM_S, LIMIT_S = 1.0, 60.0
_QUESTION = "select coalesce(sum(revision), 0) from terminal_status"


def revisions(where: str) -> int:
    """The sum of all terminals' revisions, in the PostgreSQL or the SQLite file at `where`."""
    if where.startswith("postgresql"):
        with psycopg.connect(where.replace("+psycopg", ""), autocommit=True) as connection:
            row = connection.execute(_QUESTION).fetchone()
            return int(row[0]) if row else 0
    with closing(sqlite3.connect(f"file:{where}?mode=ro", uri=True)) as database:
        return int(database.execute(_QUESTION).fetchone()[0])


async def _run(arguments: argparse.Namespace) -> dict[str, float]:
    events, changed, ended = 0, set[str](), asyncio.Event()

    def received(message: bytes) -> None:
        nonlocal events
        event = pb.WatchStatusesResponse.FromString(message)
        if event.HasField("change"):
            events += 1
            if len(changed) < arguments.count:
                changed.add(event.change.status.address)

    connection = await h2.Connection.open(arguments.server)
    request = pb.WatchStatusesRequest(addresses=[address(number) for number in range(arguments.count)])
    connection.begin(WATCH, request.SerializeToString(), received, ended.set)
    limit_s = time.monotonic() + LIMIT_S
    while len(changed) < arguments.count:
        if ended.is_set() or time.monotonic() > limit_s:
            raise LostError(f"{len(changed)} of {arguments.count} terminals have changed")
        await asyncio.sleep(0.05)
    await asyncio.sleep(WARM_S)
    marks = []
    for _ in range(2):
        stored = await asyncio.to_thread(revisions, arguments.database)
        marks.append((time.perf_counter(), stored, events))
        if len(marks) == 1:
            await asyncio.sleep(arguments.seconds)
    if ended.is_set():
        raise LostError("the stream ended")
    connection.close()
    (from_s, stored_before, events_before), (to_s, stored, events_now) = marks
    return {"seconds": to_s - from_s, "revisions": stored - stored_before, "events": events_now - events_before}


def main() -> None:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.programs.changes", description="Counts changes of terminals."
    )
    parser.add_argument("server", help="the gateway's gRPC HOST:PORT")
    parser.add_argument("database", help="an SQLite file's path, or the URL of a PostgreSQL database")
    parser.add_argument("--count", type=int, default=1000, help="terminals")
    parser.add_argument("--seconds", type=float, default=10, help="how long to count")
    arguments = parser.parse_args()
    try:
        print(json.dumps(uvloop.run(_run(arguments))), flush=True)
    except LostError as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    main()
