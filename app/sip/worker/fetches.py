"""One-shot questions in the worker: SUBSCRIBE with `Expires: 0`, and what ends each.

Invariants: a fetch that is not cancelled is answered exactly once, by Notified or Failed. Where the server is away and
another route is up, it is asked there, each route once. A document that UDP cut is asked for again over TCP, and so is
the terminal from then on.

Deliberately absent: time limits (the parent's), and every decision about meaning.
"""

import contextlib
import time

from app.domain.bounded import BoundedDict
from app.sip.answers import BAD_ADDRESS, retry_expires_s
from app.sip.headers import Event, Final, Notify, Unusable
from app.sip.pjsip.library import AddressRefused, SipStackError
from app.sip.pjsip.stack import Stack, Subscription
from app.sip.protocol import Failed, Fetch, Notified, Report
from app.sip.worker.failover import Routes
from app.sip.worker.fair_queue import Turns
from app.sip.worker.send_rate import KEPT, Pace

MOST_LARGE = 10_000
"""Terminals remembered to need TCP; the oldest is forgotten, and found out again."""


class Query:
    """One fetch, waiting to be sent or in progress."""

    __slots__ = (
        "address",
        "asked_s",
        "attempt",
        "clients",
        "id",
        "over_tcp",
        "recent",
        "route",
        "sent_at_s",
        "subscription",
    )

    def __init__(self, number: int, address: str, client: int) -> None:
        self.id = number
        self.address = address
        self.clients = (client,)
        self.asked_s = 0
        self.attempt = 0
        self.route = 0
        self.over_tcp = False
        self.subscription: Subscription | None = None
        self.recent = False
        self.sent_at_s = 0.0


class Large:
    """Terminals whose documents do not fit a datagram."""

    def __init__(self) -> None:
        self._addresses = BoundedDict[str, None](MOST_LARGE)

    def __contains__(self, address: str) -> bool:
        return address in self._addresses

    def add(self, address: str) -> None:
        """Remembers one more."""
        self._addresses[address] = None


class Fetches:
    """The worker's fetches. `reports` is where answers go."""

    def __init__(self, stack: Stack, pace: Pace, routes: Routes, large: Large, reports: list[Report]) -> None:
        self._stack = stack
        self._pace = pace
        self._routes = routes
        self._large = large
        self._reports = reports
        self._queries: dict[int, Query] = {}
        self._waiting = Turns[Query]()
        self.cut = 0
        """Documents that UDP cut."""
        self.sent = 0
        """SUBSCRIBEs sent."""

    def __len__(self) -> int:
        return len(self._queries)

    @property
    def waiting(self) -> bool:
        """Whether some have not been sent yet."""
        return bool(self._waiting)

    def start(self, fetch: Fetch) -> None:
        """Takes a question."""
        query = self._queries[fetch.id] = Query(fetch.id, fetch.address, fetch.client)
        self._waiting.add(query)

    def cancel(self, number: int) -> None:
        """Gives one up; it is not answered."""
        query = self._queries.pop(number, None)
        if query is None:
            return
        self._waiting.discard(query)
        self._pace.answered(query)
        if query.subscription is not None:
            self._stack.forget(query.subscription)
            self._routes.suspect(query.route, time.monotonic())

    def send_waiting(self, *, others_wait: bool = False) -> None:
        """Sends those that the pace lets go, with room for others."""
        if not self._waiting:
            return
        now_s, kept = time.monotonic(), KEPT if others_wait else 0
        while self._waiting and self._pace.open(now_s, kept=kept):
            query = self._waiting.pop()
            self._pace.sent(query, now_s)
            self._subscribe(query, 0)

    def handle(self, query: Query, subscription: Subscription, event: Event) -> None:
        """What PJSIP saw of one."""
        self._pace.answered(query)
        if self._queries.get(query.id) is not query or query.subscription is not subscription:
            return
        if isinstance(event, Unusable):
            self._routes.answered(query.route)
            return  # another may follow; else the caller's time limit ends it
        if isinstance(event, Notify):
            self._routes.answered(query.route)
            self._notified(query, subscription, event)
            return
        if event.local:
            self._routes.failed(query.route, event.code, time.monotonic())
        else:
            self._routes.answered(query.route)
        if (again_s := retry_expires_s(event, query.asked_s)) is not None:
            self._subscribe(query, again_s)
        elif self._elsewhere(query, event):
            query.attempt += 1
            self._subscribe(query, 0)
        else:
            del self._queries[query.id]
            self._reports.append(Failed(query.id, event.code, event.phrase, event.retry_after_s, event.local))

    def _notified(self, query: Query, subscription: Subscription, event: Notify) -> None:
        cut = event.declared_bytes not in (-1, len(event.body))
        if query.asked_s == 0 or event.state == "terminated":
            self._stack.forget(subscription)  # whatever state the server calls it, a fetch ends with its NOTIFY
        else:
            with contextlib.suppress(SipStackError):  # the answer is here; the server's own expiry ends the rest
                self._stack.refresh(subscription, 0)
        if cut:
            self.cut += 1
            if not query.over_tcp and self._stack.can_use_tcp(query.route):
                self._large.add(query.address)
                self._subscribe(query, 0)
                return
        del self._queries[query.id]
        self._reports.append(
            Notified(
                query.id,
                time.time(),
                event.state,
                event.reason,
                event.retry_after_s,
                event.content_type,
                event.content_encoding,
                event.declared_bytes,
                event.body,
            )
        )

    def _elsewhere(self, query: Query, final: Final) -> bool:
        """Whether another server may know what this one could not say (RFC 3263 section 4.3)."""
        away = (final.local and final.code not in (0, BAD_ADDRESS)) or final.code == 503
        return away and query.attempt + 1 < len(self._routes.up) and any(self._routes.up)

    def _subscribe(self, query: Query, expires_s: int) -> None:
        query.asked_s = expires_s
        query.route = self._routes.choose(query.attempt)
        query.over_tcp = query.address in self._large
        self.sent += 1
        try:
            query.subscription = self._stack.subscribe(
                query, query.address, expires_s, route=query.route, over_tcp=query.over_tcp
            )
        except SipStackError as error:
            code = BAD_ADDRESS if isinstance(error, AddressRefused) else 503
            query.subscription = Subscription(query, None, None, False)
            self.handle(query, query.subscription, Final(code, str(error), local=True))
