"""The NOTIFYs that the sandbox sends: their bytes, their retransmission over UDP, and their responses.

Invariants: within a dialog a change waits until the previous NOTIFY is answered; then only the latest document is sent.
A NOTIFY that is refused, or not answered in GIVE_UP_S, ends its dialog. At most MAX_NOTIFIES wait for a response; above
that number the oldest is given up.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from app.sandbox import messages
from app.sandbox.counters import Counters
from app.sandbox.dialogs import Dialog, Dialogs
from app.sandbox.documents import Document
from app.sandbox.transport import Peer, Transport

MAX_NOTIFIES = 16_384
T2_S, GIVE_UP_S = 4.0, 32.0
"""Longest pause between retransmissions of a NOTIFY over UDP, and the time after which it counts as unanswered
(RFC 3261, 17.1.2)."""

NO_STATE = "none"
"""As `state` of a NOTIFY: its Subscription-State header is left out."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Sent:
    """A NOTIFY without a final response yet."""

    data: bytes
    target: Peer
    dialog: Dialog
    pause_s: float
    ends_at: float
    timer: asyncio.TimerHandle | None = None


class Notifies:
    """Sends NOTIFYs. `document_of(user, address)` returns the document of a terminal, `new_token` a text that was never
    used before."""

    def __init__(
        self,
        transport: Transport,
        dialogs: Dialogs,
        counters: Counters,
        *,
        document_of: Callable[[str, str], Document],
        new_token: Callable[[], str],
        t1_s: float,
    ) -> None:
        self._transport = transport
        self._dialogs = dialogs
        self._counters = counters
        self._document_of = document_of
        self._new_token = new_token
        self._t1_s = t1_s
        self._sent: dict[str, _Sent] = {}

    def send(
        self,
        dialog: Dialog,
        document: Document | None = None,
        *headers: str,
        state: str = "",
        unsent_bytes: int = 0,
    ) -> None:
        """Sends a NOTIFY with the dialog's state and the terminal's document, unless other values are given, and with
        these header lines.

        Over UDP, Content-Length is higher than the length of the body, by `unsent_bytes`.
        """
        now = asyncio.get_running_loop().time()
        if not state:
            live = dialog in self._dialogs
            state = f"active;expires={math.ceil(dialog.ends_at - now)}" if live else "terminated;reason=timeout"
        if state.startswith("terminated"):
            self._dialogs.end(dialog)
        document = document or self._document_of(dialog.user, dialog.address)
        hop = dialog.routes[0] if dialog.routes else dialog.contact
        target = self._transport.target(messages.parse_uri(hop), dialog.source)
        branch = f"z9hG4bK{self._new_token()}"
        dialog.cseq += 1
        dialog.stale = False
        sent = _Sent(
            data=self._bytes(dialog, document, state, target, branch, unsent_bytes, headers),
            target=target,
            dialog=dialog,
            pause_s=GIVE_UP_S if target.tcp else self._t1_s,
            ends_at=now + GIVE_UP_S,
        )
        if len(self._sent) >= MAX_NOTIFIES:
            self._finish(next(iter(self._sent)), 0)
        self._sent[branch] = sent
        dialog.unanswered += 1
        self._counters.count_notify(dialog.address)
        self._transmit(branch, sent)

    def on_response(self, response: messages.Message) -> None:
        """A response arrived. Provisional responses, and responses to other requests, are ignored."""
        if response.code >= 200 and response.cseq[1] == "NOTIFY":
            self._finish(messages.param(response.first("via"), "branch"), response.code)

    def forget_all(self) -> None:
        """Stops all retransmissions."""
        for sent in self._sent.values():
            if sent.timer:
                sent.timer.cancel()
        self._sent.clear()

    def _bytes(
        self,
        dialog: Dialog,
        document: Document,
        state: str,
        target: Peer,
        branch: str,
        unsent_bytes: int,
        headers: tuple[str, ...],
    ) -> bytes:
        host = self._transport.local_host(target.host)
        lines = [
            f"NOTIFY {dialog.contact} SIP/2.0",
            f"Via: SIP/2.0/{'TCP' if target.tcp else 'UDP'} {host}:{self._transport.port};rport;branch={branch}",
            *(f"Route: {route}" for route in dialog.routes),
            "Max-Forwards: 70",
            f"From: {dialog.local}",
            f"To: {dialog.remote}",
            f"Call-ID: {dialog.key[0]}",
            f"CSeq: {dialog.cseq} NOTIFY",
            self._transport.contact(target),
            f"Event: {dialog.event}",
            *([f"Subscription-State: {state}"] if state != NO_STATE else []),
            *headers,
        ]
        if document.body:
            lines.append(f"Content-Type: {document.content_type}")
        if document.content_encoding:
            lines.append(f"Content-Encoding: {document.content_encoding}")
        lines.append(f"Content-Length: {len(document.body) + (0 if target.tcp else unsent_bytes)}\r\n\r\n")
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + document.body

    def _transmit(self, branch: str, sent: _Sent) -> None:
        self._transport.send(sent.data, sent.target)
        sent.timer = asyncio.get_running_loop().call_later(sent.pause_s, self._retransmit, branch, sent)

    def _retransmit(self, branch: str, sent: _Sent) -> None:
        if sent.target.tcp or asyncio.get_running_loop().time() + sent.pause_s > sent.ends_at:
            self._finish(branch, 0)
            return
        self._counters.other["retransmitted NOTIFY"] += 1
        sent.pause_s = min(2 * sent.pause_s, T2_S)
        self._transmit(branch, sent)

    def _finish(self, branch: str, code: int) -> None:
        sent = self._sent.pop(branch, None)
        if sent is None:
            return
        if sent.timer:
            sent.timer.cancel()
        self._counters.notify_answers[code] += 1
        dialog = sent.dialog
        dialog.unanswered -= 1
        if not 200 <= code < 300:
            self._dialogs.end(dialog)
        elif dialog.stale and not dialog.unanswered and dialog in self._dialogs:
            self.send(dialog)
