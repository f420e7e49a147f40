"""One new SUBSCRIBE, and the actions that a behaviour can take on it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from app.sandbox import messages
from app.sandbox.dialogs import Dialog, Dialogs
from app.sandbox.documents import Document
from app.sandbox.notifies import Notifies
from app.sandbox.transport import Peer


class Server(Protocol):
    """What an exchange needs from the notifier that received its SUBSCRIBE."""

    @property
    def dialogs(self) -> Dialogs: ...

    @property
    def notifies(self) -> Notifies: ...

    def answer(self, request: messages.Message, source: Peer, code: int, tag: str, *headers: str) -> None:
        """Sends a response."""

    def contact(self, peer: Peer) -> str:
        """The Contact header to send to this peer."""

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Calls after a delay, unless the notifier stops first."""


@dataclass(eq=False, slots=True, kw_only=True)
class Exchange:
    """One new SUBSCRIBE, in a dialog or not. Behaviours act through its methods."""

    server: Server
    request: messages.Message
    source: Peer
    user: str
    address: str
    expires_s: int
    in_dialog: bool
    tag: str
    """The sandbox's tag of the dialog."""
    dialog: Dialog | None = None

    def answer(self, code: int, *headers: str) -> None:
        """Sends a response with these header lines."""
        self.server.answer(self.request, self.source, code, self.tag, *headers)

    def open(self) -> Dialog:
        """Makes the dialog, or prolongs it, and sends nothing. With `expires_s` 0 the dialog is made, but not live."""
        request, dialog = self.request, self.dialog
        if dialog is None:
            dialog = self.dialog = Dialog(
                user=self.user,
                address=self.address,
                key=(request.first("call-id"), self.tag, messages.param(request.first("from"), "tag")),
                local=f"{request.first('to')};tag={self.tag}",
                remote=request.first("from"),
                event=request.first("event"),
                routes=request.headers.get("record-route", []),
                source=self.source,
            )
        dialog.contact = messages.uri_text(request.first("contact"))
        dialog.source = self.source
        dialog.remote_cseq = request.cseq[0]
        self.server.dialogs.keep(dialog, self.expires_s)
        return dialog

    def accept(self, code: int = 200) -> None:
        """Makes or prolongs the dialog, and sends a 2xx."""
        self.open()
        routes = (f"Record-Route: {route}" for route in self.request.headers.get("record-route", ()))
        self.answer(code, *routes, self.server.contact(self.source), f"Expires: {self.expires_s}")

    def notify(self, document: Document | None = None, *headers: str, state: str = "", unsent_bytes: int = 0) -> None:
        """Sends a NOTIFY in the dialog; see `Notifies.send`."""
        dialog = self.dialog or self.open()
        self.server.notifies.send(dialog, document, *headers, state=state, unsent_bytes=unsent_bytes)

    def notify_stray(self, *, call_id: str = "", tag: str = "") -> None:
        """Sends a NOTIFY outside the dialog: with another Call-ID and watcher's tag, or with another tag of the
        sandbox."""
        dialog = self.dialog or self.open()
        key = (call_id or dialog.key[0], tag or dialog.key[1], call_id or dialog.key[2])
        local, remote = (
            text.replace(f";tag={dialog.key[at]}", f";tag={key[at]}")
            for at, text in ((1, dialog.local), (2, dialog.remote))
        )
        stray = replace(dialog, key=key, local=local, remote=remote, timer=None, cseq=0, unanswered=0)
        self.server.notifies.send(stray, state="active;expires=600")

    def later(self, delay_ms: int, call: Callable[[], None]) -> None:
        """Calls after a delay, unless the sandbox stops first."""
        self.server.call_later(delay_ms / 1000, call)
