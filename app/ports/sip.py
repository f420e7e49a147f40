"""What the use cases need of SIP: fetches and watches (implemented by `app/sip/watcher.py`)."""

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from app.domain.addresses import TerminalAddress
from app.domain.errors import DocumentUnreadable, TerminalStatusError
from app.domain.statuses import Liveness
from app.domain.watches import WatchState


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedNotify:
    """The body of one NOTIFY as it was received, and its media type and content coding ("" where absent)."""

    body: bytes
    content_type: str
    content_encoding: str
    observed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchView:
    """One watch, as operators see it."""

    address: TerminalAddress
    state: WatchState
    liveness: Liveness
    since: datetime
    """When `state` was entered."""
    expires_at: datetime | None
    """When the SIP subscription ends unless it is refreshed; None without a SIP subscription."""
    code: int
    """The last SIP status; 0 before the first response."""
    reason: str
    next_action: str
    next_at: datetime | None
    route: str
    """The presence server that the watch uses, as TS_PRESENCE_SERVER names it."""


class WatchObserver(Protocol):
    """Receives what happens to the watches. Its methods are called in the event loop; they must not block or raise."""

    def on_notify_received(self, address: TerminalAddress, notify: ReceivedNotify) -> None:
        """The presence server sent a NOTIFY, and its body arrived whole."""

    def on_notify_unreadable(self, address: TerminalAddress, error: DocumentUnreadable) -> None:
        """The presence server sent a NOTIFY whose body was cut: the terminal's status is unknown."""

    def on_liveness_changed(
        self, address: TerminalAddress, liveness: Liveness, reason: str, error: TerminalStatusError | None
    ) -> None:
        """The liveness of the terminal's status changed, or the reason why it is not LIVE."""

    def on_watch_ended(self, address: TerminalAddress, reason: str, error: TerminalStatusError | None) -> None:
        """The watch ended and is not tried again until the next `Watcher.watch`: the presence server does not know the
        terminal, or (`error` is None) the last status is final."""


class Fetcher(Protocol):
    """Fetches: one SUBSCRIBE with `Expires: 0`, and its NOTIFY."""

    @property
    def ready(self) -> bool:
        """Whether a fetch would be sent to a presence server now."""

    @property
    def presence_up(self) -> bool:
        """Whether a presence server answers, as far as is known; any SIP status counts as an answer."""

    def fetch(self, address: TerminalAddress, client_id: str = "") -> Awaitable[ReceivedNotify]:
        """Fetches the terminal's presence. If fetches have to wait, clients take turns. The client id "" stands for the
        gateway itself.

        Awaiting raises a TerminalStatusError. There is no time limit: the caller cancels, and the SIP side cleans up.
        """


class Watcher(Fetcher, Protocol):
    """Fetches and watches."""

    def set_observer(self, observer: WatchObserver) -> None:
        """Sets the only observer. Call it before the first `watch`."""

    def watch(self, address: TerminalAddress, client_id: str = "") -> None:
        """Watches the terminal until `unwatch`, also across restarts of workers and of presence servers. Idempotent.

        If many watches wait to be set up, clients take turns. A watch that several clients want is set up in the turn
        of the client that was served least.
        """

    def unwatch(self, address: TerminalAddress) -> None:
        """Ends the watch. The observer is no longer called for this watch. Idempotent."""

    def refresh(self, address: TerminalAddress) -> None:
        """Refreshes the watch now instead of shortly before it expires. Raises WatchUnknown."""

    async def watches(self) -> list[WatchView]:
        """All watches with their present state, by address."""
