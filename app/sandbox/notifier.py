"""The notifier's half of RFC 6665: transactions, subscription dialogs, and the NOTIFYs in them.

Invariants: a retransmitted SUBSCRIBE gets the same response and no second NOTIFY. Within a dialog a change waits for
the answer to the NOTIFY before it, and only the latest goes out. A NOTIFY answered with an error, or not at all, ends
its subscription. Bounded: subscriptions (503), answered requests and NOTIFYs under way (the oldest is forgotten),
addresses in the counters (the rest count under "other").

Deliberately absent: authentication, PUBLISH and REGISTER (405), persistence, any knowledge of terminals.
"""

import asyncio
import itertools
import math
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from app.domain.bounded import BoundedDict
from app.sandbox import sip
from app.sandbox.behaviours import NO_STATE
from app.sandbox.terminals import Document
from app.sandbox.transport import Peer, Transport

MAX_ANSWERED = 16_384
MAX_NOTIFIES = 16_384
MAX_DELAYED = 16_384
MAX_COUNTED_ADDRESSES = 100_000
MAX_EXPIRES_S = 3600
"""Lifetime granted at most, and where a SUBSCRIBE names none (RFC 3856, 6.4)."""
T2_S, GIVE_UP_S = 4.0, 32.0
"""Longest pause between retransmissions of a NOTIFY over UDP, and when it counts as unanswered (RFC 3261, 17.1.2)."""

_Key = tuple[str, str, str]


@dataclass(slots=True, kw_only=True)
class Counters:
    """What happened since the start. Retransmissions count under `other` only."""

    subscribes: Counter[str] = field(default_factory=Counter)
    """New SUBSCRIBEs by address, refreshes and refused ones included."""
    notifies: Counter[str] = field(default_factory=Counter)
    """NOTIFYs sent, by address."""
    notify_answers: Counter[int] = field(default_factory=Counter)
    """Final answers to NOTIFYs, by code; 0 for none at all."""
    other: Counter[str] = field(default_factory=Counter)
    """`dropped`, `failed`, `retransmitted SUBSCRIBE`, `retransmitted NOTIFY`, and other requests by method."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Dialog:
    user: str
    address: str
    key: _Key  # Call-ID, our tag, their tag
    local: str  # From of our NOTIFYs
    remote: str  # To of our NOTIFYs
    event: str
    routes: list[str]
    contact: str = ""
    source: Peer
    remote_cseq: int = 0
    cseq: int = 0
    ends_at: float = 0
    timer: asyncio.TimerHandle | None = None
    unanswered: int = 0
    stale: bool = False


@dataclass(eq=False, slots=True, kw_only=True)
class _Sent:
    """A NOTIFY without final answer yet."""

    data: bytes
    target: Peer
    dialog: _Dialog
    pause_s: float
    ends_at: float
    timer: asyncio.TimerHandle | None = None


@dataclass(eq=False, slots=True, kw_only=True)
class Exchange:
    """One new SUBSCRIBE, and what a behaviour may do with it."""

    notifier: "Notifier"
    request: sip.Message
    source: Peer
    user: str
    address: str
    expires_s: int
    in_dialog: bool
    tag: str
    dialog: _Dialog | None = None

    def answer(self, code: int, *headers: str) -> None:
        """Sends a response with these header lines."""
        self.notifier.answer(self.request, self.source, code, self.tag, *headers)

    def open(self) -> _Dialog:
        """Makes the dialog, or prolongs it; sends nothing."""
        self.dialog = self.notifier.open(self)
        return self.dialog

    def accept(self, code: int = 200) -> None:
        """Makes or prolongs the dialog, and sends a 2xx."""
        self.open()
        routes = (f"Record-Route: {route}" for route in self.request.headers.get("record-route", ()))
        self.answer(code, *routes, self.notifier.contact(self.source), f"Expires: {self.expires_s}")

    def notify(self, document: Document | None = None, *, state: str = "", unsent_bytes: int = 0) -> None:
        """Sends a NOTIFY in the dialog: the terminal's document and the dialog's state unless others are given."""
        self.notifier.notify(self.dialog or self.open(), document, state=state, unsent_bytes=unsent_bytes)

    def notify_stray(self, *, call_id: str = "", tag: str = "") -> None:
        """Sends a NOTIFY like this dialog's with another Call-ID and tag of theirs, or another tag of ours."""
        dialog = self.dialog or self.open()
        key = (call_id or dialog.key[0], tag or dialog.key[1], call_id or dialog.key[2])
        local, remote = (
            text.replace(f";tag={dialog.key[at]}", f";tag={key[at]}")
            for at, text in ((1, dialog.local), (2, dialog.remote))
        )
        stray = replace(dialog, key=key, local=local, remote=remote, timer=None, cseq=0, unanswered=0)
        self.notifier.notify(stray, state="active;expires=600")

    def later(self, delay_ms: int, call: Callable[[], None]) -> None:
        """Calls after so many milliseconds, unless the sandbox stops first."""
        self.notifier.later(delay_ms / 1000, call)


class Notifier:
    """Answers SUBSCRIBEs. `decide` says what happens to each, `document_of(user, address)` what a NOTIFY carries."""

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
        self.counters = Counters()
        self.transport = Transport(host, port, self._received, self.counters.other)
        self._decide = decide
        self._document_of = document_of
        self._max_subscriptions = max_subscriptions
        self._t1_s = t1_s
        self._answered = BoundedDict[_Key, bytes | None](MAX_ANSWERED)
        self._dialogs: dict[_Key, _Dialog] = {}
        self._by_user: dict[str, dict[_Key, _Dialog]] = {}
        self._sent: dict[str, _Sent] = {}
        self._delayed: set[asyncio.TimerHandle] = set()
        self._prefix = secrets.token_hex(4)  # a restarted sandbox must not know the dialogs of the one before
        self._numbers = itertools.count(1)

    async def stop(self) -> None:
        """Ends everything at once; subscribers aren't told."""
        for dialog in self._dialogs.values():
            if dialog.timer:
                dialog.timer.cancel()
        for sent in self._sent.values():
            if sent.timer:
                sent.timer.cancel()
        for handle in self._delayed:
            handle.cancel()
        self._dialogs.clear()
        self._by_user.clear()
        self._sent.clear()
        self._delayed.clear()
        await self.transport.stop()

    def subscriptions(self) -> Counter[str]:
        """Live subscriptions by address."""
        return Counter(dialog.address for dialog in self._dialogs.values())

    def changed(self, user: str) -> None:
        """The terminal has another document: tells every live subscription."""
        for dialog in list(self._by_user.get(user, {}).values()):
            if dialog.unanswered:
                dialog.stale = True
            else:
                self.notify(dialog)

    def terminate(self, user: str, reason: str) -> None:
        """Ends the terminal's live subscriptions with a last NOTIFY; reason "" leaves without one."""
        for dialog in list(self._by_user.get(user, {}).values()):
            if reason:
                self.notify(dialog, Document(body=b""), state=f"terminated;reason={reason}")
            else:
                self._close(dialog)

    def token(self) -> str:
        """A text never used before."""
        return f"{self._prefix}{next(self._numbers):x}"

    def contact(self, peer: Peer) -> str:
        """Our Contact header, as this peer can use it."""
        tcp = ";transport=tcp" if peer.tcp else ""
        return f"Contact: <sip:{self.transport.local_host(peer.host)}:{self.transport.port}{tcp}>"

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Calls after a while; too many at once are dropped."""
        if len(self._delayed) >= MAX_DELAYED:
            self.transport.drop("too many delayed behaviours")
            return

        def run() -> None:
            self._delayed.discard(handle)
            call()

        handle = asyncio.get_running_loop().call_later(delay_s, run)
        self._delayed.add(handle)

    # Requests

    def _received(self, data: bytes, source: Peer) -> None:
        message = sip.parse(data)
        if message.code:
            self._answer_received(message)
            return
        if message.method == "ACK":
            return
        wrong = sip.fault(message)
        key = self._key(message)
        if key in self._answered:
            self.counters.other[f"retransmitted {message.method}"[:60]] += 1
            response = self._answered[key]
            if response is not None:
                self.transport.send(response, self._back(message, source))
            return
        self._answered[key] = None
        refuse = partial(self.answer, message, source)
        if wrong:
            refuse(400, self.token(), f'Warning: 399 sandbox "{wrong}"')
        elif message.method == "OPTIONS":
            self.counters.other["OPTIONS"] += 1
            refuse(200, self.token(), *_ABILITIES)
        elif message.method != "SUBSCRIBE":
            self.counters.other[message.method if len(self.counters.other) < 100 else "unknown method"] += 1
            refuse(405, self.token(), _ABILITIES[0])
        else:
            self._subscribe(message, source, refuse)

    def _subscribe(self, request: sip.Message, source: Peer, refuse: Callable[..., None]) -> None:
        uri = sip.parse_uri(request.uri)
        remote_tag = sip.param(request.first("from"), "tag")
        local_tag = sip.param(request.first("to"), "tag")
        dialog = self._dialogs.get((request.first("call-id"), local_tag, remote_tag)) if local_tag else None
        if dialog is not None:
            user, address = dialog.user, dialog.address
        elif uri is not None:
            user, address = uri.user, uri.address
        else:
            refuse(416, self.token())
            return
        _count(self.counters.subscribes, address)
        expires = request.first("expires") or str(MAX_EXPIRES_S)
        event = request.first("event")
        if required := request.headers.get("require"):
            refuse(420, self.token(), f"Unsupported: {', '.join(required)}")
        elif event.partition(";")[0].strip().lower() != "presence":
            refuse(489, self.token(), *_ABILITIES)
        elif not (expires.isdecimal() and expires.isascii()) or sip.parse_uri(request.first("contact")) is None:
            refuse(400, self.token(), 'Warning: 399 sandbox "Expires or Contact is unreadable or missing"')
        elif local_tag and dialog is None:
            refuse(481, self.token())
        elif dialog is not None and request.cseq[0] <= dialog.remote_cseq:
            refuse(500, self.token())
        elif dialog is None and len(self._dialogs) >= self._max_subscriptions and expires.strip("0"):
            refuse(503, self.token(), "Retry-After: 5")
        else:
            self._decide(
                Exchange(
                    notifier=self,
                    request=request,
                    source=source,
                    user=user,
                    address=address,
                    expires_s=min(int(expires[:10]), MAX_EXPIRES_S),
                    in_dialog=dialog is not None,
                    tag=local_tag or self.token(),
                    dialog=dialog,
                )
            )

    def answer(self, request: sip.Message, source: Peer, code: int, tag: str, *headers: str) -> None:
        """Sends a response, and keeps it for retransmissions of its request."""
        response = sip.respond(request, code, (source.host, source.port), tag, *headers)
        self._answered[self._key(request)] = response
        self.transport.send(response, self._back(request, source))

    @staticmethod
    def _key(request: sip.Message) -> _Key:
        return request.first("via"), request.first("call-id"), request.first("cseq")

    @staticmethod
    def _back(request: sip.Message, source: Peer) -> Peer:
        return source if source.tcp else Peer(host=source.host, port=sip.reply_port(request, source.port))

    # Dialogs

    def open(self, exchange: Exchange) -> _Dialog:
        """Makes the exchange's dialog, or prolongs it. One that ends now is made too, but not kept."""
        request, dialog = exchange.request, exchange.dialog
        if dialog is None:
            dialog = _Dialog(
                user=exchange.user,
                address=exchange.address,
                key=(request.first("call-id"), exchange.tag, sip.param(request.first("from"), "tag")),
                local=f"{request.first('to')};tag={exchange.tag}",
                remote=request.first("from"),
                event=request.first("event"),
                routes=request.headers.get("record-route", []),
                source=exchange.source,
            )
        dialog.contact = sip.uri_text(request.first("contact"))
        dialog.source = exchange.source
        dialog.remote_cseq = request.cseq[0]
        self._close(dialog)
        if exchange.expires_s:
            loop = asyncio.get_running_loop()
            dialog.ends_at = loop.time() + exchange.expires_s
            dialog.timer = loop.call_later(exchange.expires_s, self._expired, dialog)
            self._dialogs[dialog.key] = dialog
            self._by_user.setdefault(dialog.user, {})[dialog.key] = dialog
        return dialog

    def _close(self, dialog: _Dialog) -> None:
        if dialog.timer:
            dialog.timer.cancel()
            dialog.timer = None
        if self._dialogs.pop(dialog.key, None):
            others = self._by_user[dialog.user]
            del others[dialog.key]
            if not others:
                del self._by_user[dialog.user]

    def _expired(self, dialog: _Dialog) -> None:
        self._close(dialog)
        self.notify(dialog)

    def notify(
        self, dialog: _Dialog, document: Document | None = None, *, state: str = "", unsent_bytes: int = 0
    ) -> None:
        """Sends a NOTIFY. `unsent_bytes` are claimed in Content-Length, over UDP, and don't follow."""
        now = asyncio.get_running_loop().time()
        if not state:
            lasts = dialog.key in self._dialogs
            state = f"active;expires={math.ceil(dialog.ends_at - now)}" if lasts else "terminated;reason=timeout"
        if state.startswith("terminated"):
            self._close(dialog)
        document = document or self._document_of(dialog.user, dialog.address)
        hop = dialog.routes[0] if dialog.routes else dialog.contact
        target = self.transport.target(sip.parse_uri(hop), dialog.source)
        branch = f"z9hG4bK{self.token()}"
        host = self.transport.local_host(target.host)
        dialog.cseq += 1
        dialog.stale = False
        lines = [
            f"NOTIFY {dialog.contact} SIP/2.0",
            f"Via: SIP/2.0/{'TCP' if target.tcp else 'UDP'} {host}:{self.transport.port};rport;branch={branch}",
            *(f"Route: {route}" for route in dialog.routes),
            "Max-Forwards: 70",
            f"From: {dialog.local}",
            f"To: {dialog.remote}",
            f"Call-ID: {dialog.key[0]}",
            f"CSeq: {dialog.cseq} NOTIFY",
            self.contact(target),
            f"Event: {dialog.event}",
            *([f"Subscription-State: {state}"] if state != NO_STATE else []),
        ]
        if document.body:
            lines.append(f"Content-Type: {document.content_type}")
        if document.content_encoding:
            lines.append(f"Content-Encoding: {document.content_encoding}")
        lines.append(f"Content-Length: {len(document.body) + (0 if target.tcp else unsent_bytes)}\r\n\r\n")
        sent = _Sent(
            data="\r\n".join(lines).encode("utf-8", "surrogateescape") + document.body,
            target=target,
            dialog=dialog,
            pause_s=GIVE_UP_S if target.tcp else self._t1_s,
            ends_at=now + GIVE_UP_S,
        )
        if len(self._sent) >= MAX_NOTIFIES:
            self._finished(next(iter(self._sent)), 0)
        self._sent[branch] = sent
        dialog.unanswered += 1
        _count(self.counters.notifies, dialog.address)
        self._send(branch, sent)

    def _send(self, branch: str, sent: _Sent) -> None:
        self.transport.send(sent.data, sent.target)
        sent.timer = asyncio.get_running_loop().call_later(sent.pause_s, self._unanswered, branch, sent)

    def _unanswered(self, branch: str, sent: _Sent) -> None:
        if sent.target.tcp or asyncio.get_running_loop().time() + sent.pause_s > sent.ends_at:
            self._finished(branch, 0)
            return
        self.counters.other["retransmitted NOTIFY"] += 1
        sent.pause_s = min(2 * sent.pause_s, T2_S)
        self._send(branch, sent)

    def _answer_received(self, response: sip.Message) -> None:
        if response.code >= 200 and response.cseq[1] == "NOTIFY":
            self._finished(sip.param(response.first("via"), "branch"), response.code)

    def _finished(self, branch: str, code: int) -> None:
        sent = self._sent.pop(branch, None)
        if sent is None:
            return
        if sent.timer:
            sent.timer.cancel()
        self.counters.notify_answers[code] += 1
        dialog = sent.dialog
        dialog.unanswered -= 1
        if not 200 <= code < 300:
            self._close(dialog)
        elif dialog.stale and not dialog.unanswered and dialog.key in self._dialogs:
            self.notify(dialog)


_ABILITIES = ("Allow: SUBSCRIBE, OPTIONS", "Allow-Events: presence", "Accept: application/pidf+xml")


def _count(counter: Counter[str], address: str) -> None:
    counter[address if address in counter or len(counter) < MAX_COUNTED_ADDRESSES else "other"] += 1
