"""Fetches in the worker: one SUBSCRIBE with `Expires: 0` each, and how each ends.

A server that refuses `Expires: 0` (481, or 423 with Min-Expires) is asked with a longer one, and the subscription is
ended at its first NOTIFY. A 481 is remembered for that server for a while.

Invariants: a fetch that is not cancelled ends in exactly one FetchAnswered or FetchFailed. If a server fails and
another route is up, the fetch is repeated on that route, at most once on each. One redirection to a route is followed.
A document that UDP cut is fetched again over TCP, as is every later one of the terminal.

Deliberately absent: time limits (the gateway cancels), and the meaning of an answer (`answers.py`).
"""

import contextlib
import time

from app.sip.answers import BAD_ADDRESS, retry_expires_s
from app.sip.headers import Event, Final, Notify, Unusable
from app.sip.pjsip.library import AddressRefused, SipStackError
from app.sip.pjsip.stack import Stack
from app.sip.pjsip.subscribe_dialog import SubscribeDialog
from app.sip.protocol import FetchAnswered, FetchFailed, Report, StartFetch
from app.sip.worker.failover import Routes
from app.sip.worker.fair_queue import FairQueue
from app.sip.worker.large_documents import LargeDocuments
from app.sip.worker.send_rate import RESERVED_FOR_SETUPS, SendRate


class Fetch:
    """One fetch, queued or in progress."""

    __slots__ = (
        "address",
        "asked_s",
        "attempt",
        "clients",
        "dialog",
        "id",
        "named",
        "over_tcp",
        "recent",
        "redirected",
        "route",
        "sent_at_s",
    )

    def __init__(self, number: int, address: str, client: int) -> None:
        self.id = number
        self.address = address
        self.clients = (client,)
        self.asked_s = 0
        """The Expires sent: 0, the Min-Expires of a 423, or ASKED_AGAIN_S for a server that answers 481 to 0."""
        self.attempt = 0
        self.route = 0
        self.redirected = False
        """Whether a redirection was followed."""
        self.named: int | None = None
        """The route that it named; None again once that route has failed."""
        self.over_tcp = False
        self.dialog: SubscribeDialog | None = None
        self.recent = False
        self.sent_at_s = 0.0


class Fetches:
    """The worker's fetches. They append their results to `reports`."""

    def __init__(
        self, stack: Stack, rate: SendRate, routes: Routes, large: LargeDocuments, reports: list[Report]
    ) -> None:
        self._stack = stack
        self._rate = rate
        self._routes = routes
        self._large = large
        self._reports = reports
        self._fetches: dict[int, Fetch] = {}
        self._queue = FairQueue[Fetch]()
        self.cut = 0
        """Documents that UDP cut."""
        self.sent = 0
        """SUBSCRIBEs sent."""

    def __len__(self) -> int:
        return len(self._fetches)

    @property
    def queued(self) -> bool:
        """Whether a fetch waits to be sent."""
        return bool(self._queue)

    def start(self, command: StartFetch) -> None:
        """Queues a fetch."""
        fetch = self._fetches[command.id] = Fetch(command.id, command.address, command.client)
        self._queue.add(fetch)

    def cancel(self, number: int) -> None:
        """Drops a fetch without a report."""
        fetch = self._fetches.pop(number, None)
        if fetch is None:
            return
        self._queue.discard(fetch)
        self._rate.on_answered(fetch)
        if fetch.dialog is not None:
            self._stack.drop(fetch.dialog)
            self._routes.suspect(fetch.route, time.monotonic())

    def send_queued(self, *, watches_queued: bool = False) -> None:
        """Sends queued fetches as the send rate allows, leaving room for queued watches."""
        if not self._queue:
            return
        now_s, reserved = time.monotonic(), RESERVED_FOR_SETUPS if watches_queued else 0
        while self._queue and self._rate.allows(now_s, reserved=reserved):
            fetch = self._queue.pop()
            self._rate.on_sent(fetch, now_s)
            self._subscribe(fetch, 0)

    def on_event(self, fetch: Fetch, dialog: SubscribeDialog, event: Event) -> None:
        """PJSIP reported a NOTIFY, an answer or a failure of this dialog."""
        self._rate.on_answered(fetch)
        if self._fetches.get(fetch.id) is not fetch or fetch.dialog is not dialog:
            return
        if isinstance(event, Unusable):
            self._routes.on_answered(fetch.route)
            return  # another NOTIFY may follow; otherwise the gateway's time limit ends the fetch
        if isinstance(event, Notify):
            self._routes.on_answered(fetch.route)
            self._on_notify(fetch, dialog, event)
            return
        if event.local:
            self._routes.on_failed(fetch.route, event.code, time.monotonic())
        else:
            self._routes.on_answered(fetch.route)
        if (again_s := retry_expires_s(event, fetch.asked_s)) is not None:
            if event.code == 481:
                self._routes.on_fetch_refused(fetch.route, time.monotonic())
            self._subscribe(fetch, again_s)
        elif not fetch.redirected and (named := self._routes.named_by(event)) is not None:
            fetch.redirected, fetch.named = True, named
            self._subscribe(fetch, fetch.asked_s)
        elif self._should_try_next_route(fetch, event):
            fetch.attempt, fetch.named = fetch.attempt + 1, None
            self._subscribe(fetch, 0)
        else:
            del self._fetches[fetch.id]
            self._reports.append(
                FetchFailed(fetch.id, event.code, event.phrase, event.retry_after_s, event.local, event.of_list)
            )

    def _on_notify(self, fetch: Fetch, dialog: SubscribeDialog, event: Notify) -> None:
        cut = event.declared_bytes not in (-1, len(event.body))
        if fetch.asked_s == 0 or event.state == "terminated":
            self._stack.drop(dialog)  # a fetch ends with its NOTIFY, whatever state the server gives
        else:
            with contextlib.suppress(SipStackError):  # we have the answer; the subscription then expires by itself
                self._stack.refresh(dialog, 0)
        if cut:
            self.cut += 1
            if not fetch.over_tcp and self._stack.can_use_tcp(fetch.route):
                self._large.add(fetch.address)
                self._subscribe(fetch, 0)
                return
        del self._fetches[fetch.id]
        self._reports.append(
            FetchAnswered(
                fetch.id,
                time.time(),
                event.state,
                event.reason,
                event.retry_after_s,
                event.content_type,
                event.content_encoding,
                event.declared_bytes,
                event.body,
                event.of_list,
            )
        )

    def _should_try_next_route(self, fetch: Fetch, final: Final) -> bool:
        """Whether another server may answer after this server's failure (RFC 3263 section 4.3)."""
        server_failed = (final.local and final.code not in (0, BAD_ADDRESS)) or final.code == 503
        return server_failed and fetch.attempt + 1 < len(self._routes.up) and any(self._routes.up)

    def _subscribe(self, fetch: Fetch, expires_s: int) -> None:
        fetch.route = self._routes.choose(fetch.attempt) if fetch.named is None else fetch.named
        fetch.asked_s = expires_s or self._routes.fetch_expires_s(fetch.route, time.monotonic())
        fetch.over_tcp = fetch.address in self._large
        self.sent += 1
        try:
            fetch.dialog = self._stack.subscribe(
                fetch, fetch.address, fetch.asked_s, route=fetch.route, over_tcp=fetch.over_tcp
            )
        except SipStackError as error:
            code = BAD_ADDRESS if isinstance(error, AddressRefused) else 503
            fetch.dialog = SubscribeDialog(fetch, None, None, False)
            self.on_event(fetch, fetch.dialog, Final(code, str(error), local=True))
