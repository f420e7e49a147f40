"""Tickets: what a database that is away changes, and the store's contract, on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.domain.errors import StoreUnavailable, Unauthenticated
from app.store import SqlStore
from tests.support.core import APP, new_database, run_core

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SOON, LATER, END = (NOW + timedelta(seconds=seconds) for seconds in (60, 900, 86_400))
TICKET = b"t" * 32


async def test_without_credentials(tmp_path: Path) -> None:
    """Where no credentials are needed a ticket works too, until they are needed."""
    async with run_core(await new_database(tmp_path), clients=[]) as core:
        auth = core.authenticator(open_allowed=True)
        tickets = core.make_use_cases(auth).tickets
        (ticket, _), (other, _) = [await tickets.make(auth.anonymous, "") for _ in range(2)]
        held = await tickets.open(ticket, resumes=False, peer="")
        assert (held.client, await tickets.check(held)) == (auth.anonymous, True)
        await core.store.put_client(APP)
        auth.forget()
        assert not await tickets.check(held)
        with pytest.raises(Unauthenticated):
            await tickets.open(other, resumes=False, peer="")


async def test_while_the_store_is_away(tmp_path: Path) -> None:
    """While the database is away no ticket opens a stream, and open streams go on."""
    async with run_core(await new_database(tmp_path)) as core:
        tickets = core.make_use_cases(core.authenticator(open_allowed=False)).tickets
        (ticket, _), (other, _) = [await tickets.make(APP, "") for _ in range(2)]
        held = await tickets.open(ticket, resumes=False, peer="")
        core.store.away = True
        assert await tickets.check(held)
        await tickets.release(held)
        with pytest.raises(StoreUnavailable):
            await tickets.open(other, resumes=False, peer="")


async def add(store: SqlStore, ticket: bytes = TICKET, *, expires_at: datetime = SOON, most: int = 10) -> bool:
    return await store.add_ticket(ticket, "app", NOW, expires_at, END, most)


async def test_of_many_that_open_one_does(store: SqlStore) -> None:
    """A ticket opens one stream, even if many ask at once; the same stream may repeat its statement."""
    assert await add(store)
    holders = [f"h{number}" for number in range(10)]
    held = await asyncio.gather(*[store.hold_ticket(TICKET, each, NOW, LATER, again=False) for each in holders])
    (winner,) = [holder for holder, found in zip(holders, held, strict=True) if found]
    assert await store.hold_ticket(TICKET, winner, NOW, LATER, again=False) == ("app", END)
    assert await store.ticket_held(TICKET, winner) == (LATER, END)
    assert await store.ticket_held(TICKET, "another") is None


async def test_again(store: SqlStore) -> None:
    """A stream that resumes takes the ticket from the stream that had it, which can change nothing then."""
    assert await add(store)
    assert await store.hold_ticket(TICKET, "one", NOW, LATER, again=False)
    assert await store.hold_ticket(TICKET, "two", NOW, LATER, again=True) == ("app", END)
    await store.extend_ticket(TICKET, "one", END)
    await store.delete_ticket(TICKET, "one")
    assert (await store.ticket_held(TICKET, "one"), await store.ticket_held(TICKET, "two")) == (None, (LATER, END))
    await store.delete_ticket(TICKET, "two")
    assert await store.hold_ticket(TICKET, "three", NOW, LATER, again=True) is None


async def test_its_times(store: SqlStore) -> None:
    """A ticket is valid before its expiry, which nothing extends beyond its end."""
    assert await add(store)
    assert await store.hold_ticket(TICKET, "one", SOON, LATER, again=True) is None, "at its expiry"
    assert await store.hold_ticket(b"unknown", "one", NOW, LATER, again=True) is None
    assert await store.hold_ticket(TICKET, "one", NOW, END + timedelta(seconds=1), again=False)
    assert await store.ticket_held(TICKET, "one") == (END, END)
    await store.end_tickets("other", NOW)
    await store.end_tickets("app", END + timedelta(days=1))
    assert await store.ticket_held(TICKET, "one") == (END, END)
    await store.end_tickets("app", LATER)
    assert await store.ticket_held(TICKET, "one") == (LATER, LATER)
    await store.extend_ticket(TICKET, "one", END)
    assert await store.ticket_held(TICKET, "one") == (LATER, LATER)


async def test_their_number_is_bounded(store: SqlStore) -> None:
    """A client has a limit of valid tickets; those that are no longer valid do not count, and are deleted."""
    assert await add(store, b"1", expires_at=NOW, most=1)
    assert await add(store, b"2", most=1)
    assert await add(store, b"2", most=1), "a repeated statement"
    assert await store.delete_ended_tickets(NOW, 10) == 0, "the second has deleted the first"
    assert not await add(store, b"3", most=1)
    assert await store.add_ticket(b"4", "other", NOW, SOON, END, 1)
    assert await store.delete_ended_tickets(SOON, 1) == 1
    assert await store.delete_ended_tickets(SOON, 10) == 1
