"""The notifier's half of RFC 6665: receives requests, checks SUBSCRIBEs, and passes them to the behaviours.

Invariants: a retransmitted SUBSCRIBE gets the same response and no second NOTIFY. Bounded: live subscriptions (a new
one is answered 503), remembered responses (the oldest is forgotten), delayed actions (a new one is dropped).

Deliberately absent: authentication, PUBLISH and REGISTER (405), persistence, any knowledge of terminals.
"""

import asyncio
import itertools
import secrets
from collections.abc import Callable
from functools import partial

from app.domain.bounded import BoundedDict
from app.sandbox import messages
from app.sandbox.counters import Counters
from app.sandbox.dialogs import Dialogs
from app.sandbox.documents import NOTHING, Document
from app.sandbox.exchange import Exchange
from app.sandbox.notifies import Notifies
from app.sandbox.transport import Peer, Transport

MAX_ANSWERED = 16_384
MAX_DELAYED = 16_384
MAX_EXPIRES_S = 3600
"""Longest lifetime of a subscription, and its lifetime without an Expires header (RFC 3856, 6.4)."""

_CAPABILITIES = ("Allow: SUBSCRIBE, OPTIONS", "Allow-Events: presence", "Accept: application/pidf+xml")

_Transaction = tuple[str, str, str]
"""Via, Call-ID and CSeq of a request, which a retransmission repeats."""


class Notifier:
    """Answers requests. `decide` handles each SUBSCRIBE; `document_of(user, address)` returns the document of a
    NOTIFY."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        decide: Callable[[Exchange], None],
        document_of: Callable[[str, str], Document],
        max_subscriptions: int,
        t1_s: float,
    ) -> None:
        # A random prefix, so that a restarted sandbox does not use tags of dialogs that it has forgotten.
        prefix, numbers = secrets.token_hex(4), itertools.count(1)
        self._new_token: Callable[[], str] = lambda: f"{prefix}{next(numbers):x}"
        self.counters = Counters()
        self.transport = Transport(host, port, self._on_message, self.counters.other)
        self.dialogs = Dialogs(on_expired=lambda dialog: self.notifies.send(dialog))
        self.notifies = Notifies(
            self.transport,
            self.dialogs,
            self.counters,
            document_of=document_of,
            new_token=self._new_token,
            t1_s=t1_s,
        )
        self._decide = decide
        self._max_subscriptions = max_subscriptions
        self._answered = BoundedDict[_Transaction, bytes | None](MAX_ANSWERED)
        self._delayed: set[asyncio.TimerHandle] = set()

    async def stop(self) -> None:
        """Ends everything at once and sends nothing."""
        self.dialogs.end_all()
        self.notifies.forget_all()
        for handle in self._delayed:
            handle.cancel()
        self._delayed.clear()
        await self.transport.stop()

    def on_document_changed(self, user: str) -> None:
        """The terminal has another document: sends it in the terminal's live dialogs."""
        for dialog in self.dialogs.of_user(user):
            if dialog.unanswered:
                dialog.stale = True
            else:
                self.notifies.send(dialog)

    def terminate(self, user: str, reason: str) -> None:
        """Ends the terminal's live dialogs with a last NOTIFY, or without one if `reason` is ""."""
        for dialog in self.dialogs.of_user(user):
            if reason:
                self.notifies.send(dialog, NOTHING, state=f"terminated;reason={reason}")
            else:
                self.dialogs.end(dialog)

    def contact(self, peer: Peer) -> str:
        """See `exchange.Server`."""
        return self.transport.contact(peer)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """See `exchange.Server`. Calls above MAX_DELAYED are dropped."""
        if len(self._delayed) >= MAX_DELAYED:
            self.transport.drop("too many delayed behaviours")
            return

        def run() -> None:
            self._delayed.discard(handle)
            call()

        handle = asyncio.get_running_loop().call_later(delay_s, run)
        self._delayed.add(handle)

    def answer(self, request: messages.Message, source: Peer, code: int, tag: str, *headers: str) -> None:
        """Sends a response, and remembers it for retransmissions of the request."""
        response = messages.respond(request, code, (source.host, source.port), tag, *headers)
        self._answered[_transaction(request)] = response
        self.transport.send(response, _return_path(request, source))

    def _on_message(self, data: bytes, source: Peer) -> None:
        message = messages.parse(data)
        if message.code:
            self.notifies.on_response(message)
            return
        if message.method == "ACK":
            return
        wrong = messages.fault(message)
        transaction = _transaction(message)
        if transaction in self._answered:
            self.counters.other[f"retransmitted {message.method}"[:60]] += 1
            response = self._answered[transaction]
            if response is not None:
                self.transport.send(response, _return_path(message, source))
            return
        self._answered[transaction] = None
        refuse = partial(self.answer, message, source)
        if wrong:
            refuse(400, self._new_token(), f'Warning: 399 sandbox "{wrong}"')
        elif message.method == "OPTIONS":
            self.counters.other["OPTIONS"] += 1
            refuse(200, self._new_token(), *_CAPABILITIES)
        elif message.method != "SUBSCRIBE":
            self.counters.other[message.method if len(self.counters.other) < 100 else "unknown method"] += 1
            refuse(405, self._new_token(), _CAPABILITIES[0])
        else:
            self._on_subscribe(message, source, refuse)

    def _on_subscribe(self, request: messages.Message, source: Peer, refuse: Callable[..., None]) -> None:
        uri = messages.parse_uri(request.uri)
        remote_tag = messages.param(request.first("from"), "tag")
        local_tag = messages.param(request.first("to"), "tag")
        dialog = self.dialogs.find((request.first("call-id"), local_tag, remote_tag)) if local_tag else None
        if dialog is not None:
            user, address = dialog.user, dialog.address
        elif uri is not None:
            user, address = uri.user, uri.address
        else:
            refuse(416, self._new_token())
            return
        self.counters.count_subscribe(address)
        expires = request.first("expires") or str(MAX_EXPIRES_S)
        event = request.first("event")
        if required := request.headers.get("require"):
            refuse(420, self._new_token(), f"Unsupported: {', '.join(required)}")
        elif event.partition(";")[0].strip().lower() != "presence":
            refuse(489, self._new_token(), *_CAPABILITIES)
        elif not (expires.isdecimal() and expires.isascii()) or messages.parse_uri(request.first("contact")) is None:
            refuse(400, self._new_token(), 'Warning: 399 sandbox "Expires or Contact is unreadable or missing"')
        elif local_tag and dialog is None:
            refuse(481, self._new_token())
        elif dialog is not None and request.cseq[0] <= dialog.remote_cseq:
            refuse(500, self._new_token())
        elif dialog is None and len(self.dialogs) >= self._max_subscriptions and expires.strip("0"):
            refuse(503, self._new_token(), "Retry-After: 5")
        else:
            self._decide(
                Exchange(
                    server=self,
                    request=request,
                    source=source,
                    user=user,
                    address=address,
                    expires_s=min(int(expires[:10]), MAX_EXPIRES_S),
                    in_dialog=dialog is not None,
                    tag=local_tag or self._new_token(),
                    dialog=dialog,
                )
            )


def _transaction(request: messages.Message) -> _Transaction:
    return request.first("via"), request.first("call-id"), request.first("cseq")


def _return_path(request: messages.Message, source: Peer) -> Peer:
    """Where the response to a request goes."""
    return source if source.tcp else Peer(host=source.host, port=messages.reply_port(request, source.port))
