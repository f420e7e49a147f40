"""Writes any number of subscriptions into a new SQLite database in seconds, directly into its tables.

The rows are those that the gateway itself would have after creating the subscriptions and sending each terminal's first
status (REACHABLE).

Deliberately absent: PostgreSQL, whose sequences do not follow explicit numbers.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import Table, create_engine, event, insert

from app.domain.records import ANONYMOUS
from app.domain.sinks import Sink, SinkKind
from app.domain.statuses import Source, Status
from app.store import migrate
from app.store import tables as t

_PORTION = 5000
_LASTS = timedelta(days=30)
_STREAM = Sink(kind=SinkKind.STREAM)


def fill(url: str, addresses: Sequence[str], *, sink: Sink = _STREAM, first: int = 1) -> None:
    """Adds a subscription to each address, numbered from `first`, and creates the database at `url` if necessary.

    An address may occur several times in one call, but not in two calls.
    """
    asyncio.run(migrate(url))
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    now = datetime.now(UTC)
    numbers = range(first, first + len(addresses))
    with engine.begin() as connection:

        def add(table: Table, rows: Iterator[dict[str, Any]]) -> None:
            while portion := list(islice(rows, _PORTION)):
                connection.execute(insert(table), portion)

        add(t.terminal_statuses, ({**_STATUS, "address": one, "observed_at": now} for one in dict.fromkeys(addresses)))
        add(t.subscriptions, (_subscription(number, sink, now) for number in numbers))
        add(t.outbox, ({"subscription_seq": number, "last_sequence": 0} for number in numbers))
        add(
            t.subscription_addresses,
            (
                {"subscription_seq": number, "position": 0, "address": one}
                for number, one in zip(numbers, addresses, strict=True)
            ),
        )
    engine.dispose()


def fill_groups(url: str, count: int, size: int) -> None:
    """Adds `count` groups of `size` members each, and creates the database at `url` if necessary."""
    asyncio.run(migrate(url))
    now = datetime.now(UTC)
    engine = create_engine(url)
    with engine.begin() as connection:
        for number in range(count):
            key = {"client_id": ANONYMOUS, "address": f"sip:group-{number}@bench.example.com"}
            its = [f"sip:member-{number}-{position}@bench.example.com" for position in range(size)]
            sizes = {"members": size, "characters": sum(map(len, its))}
            connection.execute(insert(t.groups), {**key, "created_at": now, "version": 1, **sizes})
            rows = [
                {"client_id": ANONYMOUS, "group_address": key["address"], "position": position, "member": member}
                for position, member in enumerate(its)
            ]
            connection.execute(insert(t.group_members), rows)
    engine.dispose()


_STATUS = {"status": Status.REACHABLE.value, "source": Source.WATCH.value, "revision": 1}


def _subscription(number: int, sink: Sink, now: datetime) -> dict[str, Any]:
    return {
        "seq": number,
        "id": f"{number:032x}",
        "client_id": ANONYMOUS,
        "criteria": "",
        "check_immediate": False,
        "min_interval_ms": 0,
        "max_notifications": 0,
        "created_at": now,
        "expires_at": now + _LASTS,
        "sink_kind": sink.kind.value,
        "sink_url": sink.url,
        "sink_profile": sink.profile,
        "sink_parameters": json.dumps(dict(sink.parameters)),
        "sink_key": "",
        "correlator": f"correlator-{number}",
        "request_id": "",
        "notified": 0,
        "last_notified_at": None,
        "awaiting": False,
        "suspended_at": None,
        "ended_at": None,
        "end_reason": None,
        "end_detail": "",
        "groups": "[]",
        "joined": "[]",
        "held": "[]",
    }
