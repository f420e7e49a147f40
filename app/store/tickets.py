"""Stores tickets, with which browsers open streams. Only a ticket's hash is stored.

Invariants: one statement decides who opens a stream with a ticket, so that of several gateways one does.
"""

from datetime import datetime

from sqlalchemy import case, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store import tables as t
from app.store.changes import Writing

_ticket = t.stream_tickets.c


class Tickets(Writing):
    """As `ports.store.Store` says."""

    async def add_ticket(
        self, ticket_hash: bytes, client_id: str, now: datetime, expires_at: datetime, ends_at: datetime, most: int
    ) -> bool:
        """Adds a ticket, unless the client has `most` tickets that are valid at `now`. Returns whether it did. Deletes
        those of the client that are no longer valid, so that the table is bounded between two runs of retention."""
        valid = select(func.count()).where(_ticket.client_id == client_id, _ticket.expires_at > now)
        values = {
            "hash": ticket_hash,
            "client_id": client_id,
            "expires_at": expires_at,
            "ends_at": ends_at,
            "holder": "",
        }

        async def work(c: AsyncConnection) -> bool:
            if (await c.execute(select(_ticket.hash).where(_ticket.hash == ticket_hash))).first():
                return True  # an earlier try was committed
            await c.execute(delete(t.stream_tickets).where(_ticket.client_id == client_id, _ticket.expires_at <= now))
            if (await c.execute(valid)).scalar_one() >= most:
                return False
            await c.execute(insert(t.stream_tickets).values(values))
            return True

        return await self._write(work)

    async def hold_ticket(
        self, ticket_hash: bytes, holder: str, now: datetime, until: datetime, *, again: bool
    ) -> tuple[str, datetime] | None:
        """Gives the ticket to the stream `holder` until the time `until`, if the ticket is valid, and unused or (with
        `again`) used before. Returns the ticket's client and its last end; None if the ticket is not valid."""
        allowed = [] if again else [_ticket.holder.in_(("", holder))]
        statement = (
            update(t.stream_tickets)
            .where(_ticket.hash == ticket_hash, _ticket.expires_at > now, *allowed)
            .values(holder=holder, expires_at=_no_later_than_end(until))
            .returning(_ticket.client_id, _ticket.ends_at)
        )

        async def work(c: AsyncConnection) -> tuple[str, datetime] | None:
            row = (await c.execute(statement)).first()
            return None if row is None else (row.client_id, row.ends_at)

        return await self._write(work)

    async def ticket_held(self, ticket_hash: bytes, holder: str) -> tuple[datetime, datetime] | None:
        """When the ticket expires if nothing extends it, and its last end; None if `holder` does not hold it."""
        its = (_ticket.hash == ticket_hash) & (_ticket.holder == holder)
        row = await self._first(select(_ticket.expires_at, _ticket.ends_at).where(its))
        return None if row is None else (row.expires_at, row.ends_at)

    async def extend_ticket(self, ticket_hash: bytes, holder: str, until: datetime) -> None:
        """Makes the ticket that `holder` holds valid until this time, but not beyond its end."""
        its = (_ticket.hash == ticket_hash) & (_ticket.holder == holder)
        statement = update(t.stream_tickets).where(its).values(expires_at=_no_later_than_end(until))
        await self._write(lambda c: c.execute(statement))

    async def delete_ticket(self, ticket_hash: bytes, holder: str) -> None:
        """Deletes the ticket that `holder` holds."""
        its = (_ticket.hash == ticket_hash) & (_ticket.holder == holder)
        await self._write(lambda c: c.execute(delete(t.stream_tickets).where(its)))

    async def end_tickets(self, client_id: str, ends_at: datetime) -> None:
        """Lets no ticket of the client be valid after this time."""
        later = (_ticket.client_id == client_id) & (_ticket.ends_at > ends_at)
        expires_at = case((_ticket.expires_at > ends_at, ends_at), else_=_ticket.expires_at)
        statement = update(t.stream_tickets).where(later).values(ends_at=ends_at, expires_at=expires_at)
        await self._write(lambda c: c.execute(statement))

    async def delete_ended_tickets(self, now: datetime, most: int) -> int:
        """Deletes up to `most` tickets that are no longer valid, and returns how many."""
        ended = select(_ticket.hash).where(_ticket.expires_at <= now).order_by(_ticket.expires_at).limit(most)
        statement = delete(t.stream_tickets).where(_ticket.hash.in_(ended.scalar_subquery()))

        async def work(c: AsyncConnection) -> int:
            return (await c.execute(statement)).rowcount

        return await self._write(work)


def _no_later_than_end(until: datetime) -> object:
    return case((_ticket.ends_at < until, _ticket.ends_at), else_=until)
