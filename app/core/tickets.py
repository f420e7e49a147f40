"""Tickets: a browser's EventSource cannot send credentials in a header, so it opens a stream with a ticket in the URL.

A ticket has the rights of the client that made it. It opens one stream within OPEN_S. After that stream broke, the
ticket opens a stream again within RESUME_S, if the request resumes the stream; a stream that still holds the ticket
then ends at its next check.
Invariants: the store has only the SHA-256 of a ticket (256 random bits), and no log line, message or metric has a part
of a ticket. A ticket ends with the credentials that made it, after MAX_AGE at the latest, and when its client is
disabled or deleted. Failures are limited per peer, as those of other credentials.

Deliberately absent: which route accepts a ticket (`rest/streams.py`). Other faces accept none.
"""

import base64
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from app.auth.authenticator import Authenticator
from app.auth.credentials import Credentials, hash_secret
from app.auth.failures import MALFORMED, REFUSED, unauthenticated
from app.auth.policies import Policies
from app.domain.errors import RateLimited, StoreUnavailable, TooManyStreams, Unauthenticated
from app.domain.records import ANONYMOUS, Client
from app.ports.store import ClientStore, TicketStore

PREFIX = "tst_"
OPEN_S = 60
"""How long an unused ticket is valid, in seconds."""

RESUME_S = 600
"""How long a ticket can resume its stream after that broke, in seconds."""

EXTEND_S = 300
"""A stream extends its ticket when less than RESUME_S remain, by this much more: a gateway that is killed cannot say
when its streams broke."""

MAX_AGE = timedelta(hours=24)
"""How long a ticket can be used in all."""

TICKETS_PER_STREAM = 2
"""A client has at most this many valid tickets for each stream that it may have open."""

MAX_TICKET = 64
"""Longest text that is looked up as a ticket, in characters."""

_SECRET_BYTES = 32


class TicketsStore(TicketStore, ClientStore, Protocol):
    """What tickets need of the store."""


@dataclass(frozen=True, slots=True)
class HeldTicket:
    """A ticket that a stream holds."""

    client: Client
    hash: bytes
    holder: str


class Tickets:
    """One per process."""

    def __init__(
        self,
        store: TicketsStore,
        auth: Authenticator,
        policies: Policies,
        clock: Callable[[], datetime],
        *,
        entropy: Callable[[int], bytes],
    ) -> None:
        """`clock` gives the time in UTC, `entropy(n)` gives n unguessable bytes."""
        self._store = store
        self._auth = auth
        self._policies = policies
        self._clock = clock
        self._entropy = entropy

    async def make(self, client: Client, authorization: str) -> tuple[str, datetime]:
        """Returns a new ticket and when it expires if it is not used. `authorization`: the header with the client's
        credentials. Raises RateLimited, StoreUnavailable, TooManyStreams, Unauthenticated."""
        policy = self._policies.admit(client)
        now = self._clock()
        credentials_end = await self._expire_time(client, authorization)
        ends_at = min(now + MAX_AGE, credentials_end or now + MAX_AGE)
        expires_at = min(now + timedelta(seconds=OPEN_S), ends_at)
        ticket = PREFIX + self._text()
        most = TICKETS_PER_STREAM * policy.max_streams
        if not await self._store.add_ticket(hash_secret(ticket), client.id, now, expires_at, ends_at, most):
            raise TooManyStreams(
                f"Limit reached: {most} tickets of this client are valid, two for each stream that it may have open. "
                "Wait until some have expired, or ask the operator to raise `max_streams`."
            )
        # A rotation ends the keys first and the tickets last. If it ended the tickets before this one was stored, then
        # the key has another end by now.
        if await self._expire_time(client, authorization) != credentials_end:
            raise unauthenticated("The credentials were changed meanwhile; send the request again.")
        return ticket, expires_at

    async def open(self, ticket: str, *, resumes: bool, peer: str) -> HeldTicket:
        """Uses the ticket for a stream. `resumes`: the request resumes a stream, so the ticket may have been used
        before. Then `check` it while the stream is open, and `release` it. Raises RateLimited, StoreUnavailable,
        Unauthenticated."""
        try:
            return await self._open(ticket, resumes=resumes, peer=peer)
        except (RateLimited, Unauthenticated) as error:
            self._auth.failures.count(error)
            raise

    async def _open(self, ticket: str, *, resumes: bool, peer: str) -> HeldTicket:
        failures = self._auth.failures
        well_formed = ticket.startswith(PREFIX) and len(ticket) <= MAX_TICKET and ticket.isascii()
        failures.check_look_up(peer)
        found, ticket_hash, holder = None, hash_secret(ticket) if well_formed else b"", self._text()
        if well_formed:
            now = self._clock()
            until = now + timedelta(seconds=RESUME_S + EXTEND_S)
            found = await self._store.hold_ticket(ticket_hash, holder, now, until, again=resumes)
        client = None if found is None else await self._client(found[0])
        if client is None:
            failures.add_look_up(peer)
            failures.check(peer)
            failures.add(peer, "ticket")
            raise unauthenticated(
                "The ticket is not valid: it has expired or was used, or its client is disabled. Make another.",
                reason=REFUSED if well_formed else MALFORMED,
            )
        return HeldTicket(client, ticket_hash, holder)

    async def check(self, held: HeldTicket) -> bool:
        """Whether the stream may go on; extends the ticket where necessary."""
        try:
            found = await self._store.ticket_held(held.hash, held.holder)
            if found is None or await self._client(held.client.id) is None:
                return False
            now, (expires_at, ends_at) = self._clock(), found
            if ends_at <= now:
                return False
            if expires_at < min(ends_at, now + timedelta(seconds=RESUME_S)):
                until = now + timedelta(seconds=RESUME_S + EXTEND_S)
                await self._store.extend_ticket(held.hash, held.holder, until)
        except StoreUnavailable:
            pass  # unknown at present
        return True

    async def release(self, held: HeldTicket) -> None:
        """The stream broke: the ticket can resume it within RESUME_S."""
        with suppress(StoreUnavailable):  # then the ticket expires a little later or earlier
            until = self._clock() + timedelta(seconds=RESUME_S)
            await self._store.extend_ticket(held.hash, held.holder, until)

    async def drop(self, held: HeldTicket) -> None:
        """The stream could not be opened: the ticket is used up."""
        with suppress(StoreUnavailable):  # then the ticket expires by itself
            await self._store.delete_ticket(held.hash, held.holder)

    async def _expire_time(self, client: Client, authorization: str) -> datetime | None:
        return await self._auth.expire_time(authorization) if authorization and client.id != ANONYMOUS else None

    async def _client(self, client_id: str) -> Client | None:
        """The client, if it may call; None otherwise."""
        if client_id == ANONYMOUS:
            try:
                found = await self._auth.authenticate(Credentials())
            except Unauthenticated:
                return None
            return found if found.id == ANONYMOUS else None
        client = await self._store.client(client_id)
        return None if client is None or client.disabled else client

    def _text(self) -> str:
        return base64.urlsafe_b64encode(self._entropy(_SECRET_BYTES)).decode().rstrip("=")
