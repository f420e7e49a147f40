"""Reads one page of a list that is ordered by numbers.

Invariants: a page reads at most MAX_SCANNED rows that its filter may leave out, so that a filter that matches few of
many rows needs several short reads instead of a long one. Such a page is short, or even empty, and has a next page.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.filters import Period
from app.ports.pages import cut, numbers, token
from app.ports.store import Page
from app.store.database import AnyRow, AnySelect

MAX_SCANNED = 50_000


def within(period: Period, at: Column[Any]) -> list[ColumnElement[bool]]:
    """The conditions of the period."""
    found: list[ColumnElement[bool]] = []
    if period.start is not None:
        found.append(at >= period.start)
    if period.end is not None:
        found.append(at < period.end)
    return found


async def scan(
    c: AsyncConnection,
    statement: AnySelect,
    order: Column[Any],
    which: Sequence[ColumnElement[bool]],
    rest: Sequence[ColumnElement[bool]],
    page: Page,
) -> tuple[Sequence[AnyRow], int]:
    """The rows of the page, and the number after which the next page begins; 0 after the last page.

    `which` are conditions that an index answers, or that most rows meet; `rest` are the others.
    """
    until = None
    if rest:
        numbered = select(order).where(*which).order_by(order)
        until = (await c.execute(numbered.offset(MAX_SCANNED - 1).limit(1))).scalar()
        which = which if until is None else [*which, order <= until]
    found = await c.execute(statement.where(*which, *rest).order_by(order).limit(page.size + 1))
    rows, more = cut(found.all(), page)
    return rows, getattr(rows[-1], order.name) if more else until or 0


async def scan_period(
    c: AsyncConnection,
    table: Table,
    period: Period,
    which: Sequence[ColumnElement[bool]],
    rest: Sequence[ColumnElement[bool]],
    page: Page,
    names: Sequence[object],
) -> tuple[Sequence[AnyRow], str]:
    """As `scan`, for a table of rows with a time `at` and an index on it, with the next page's token. `names` are those
    of the token. The token contains the number at which the period ends."""
    seq, at = table.c.seq, table.c.at
    after, last = numbers(page, *names)
    times = within(period, at)
    if times and not after:
        # Finds the numbers of the period by the index on `at`, then reads by number. Without `+ 0`, a database would go
        # through all other rows in the order of their numbers.
        ends = [func.min(seq + 0), *([func.max(seq + 0)] if period.end is not None else [])]
        first, *greatest = (await c.execute(select(*ends).where(*times))).one()
        if first is None:
            return [], ""
        after, last = first - 1, greatest[0] if greatest else 0
    numbered = [seq > after, seq <= last] if last else [seq > after]
    rows, reached = await scan(c, select(table), seq, [*numbered, *which, *times], rest, page)
    return rows, token(f"{reached}.{last}" if last else reached, *names) if reached else ""
