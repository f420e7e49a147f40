"""The sandbox's live subscription dialogs (RFC 6665), and when each of them expires."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from app.sandbox.transport import Peer

DialogKey = tuple[str, str, str]
"""Call-ID, the sandbox's tag, the watcher's tag."""


@dataclass(eq=False, slots=True, kw_only=True)
class Dialog:
    """One subscription dialog, live or ended."""

    user: str
    address: str
    key: DialogKey
    local: str
    """The From header of NOTIFYs."""
    remote: str
    """The To header of NOTIFYs."""
    event: str
    routes: list[str]
    contact: str = ""
    """The watcher's Contact."""
    source: Peer
    """Where the last SUBSCRIBE came from."""
    remote_cseq: int = 0
    cseq: int = 0
    ends_at: float = 0
    """The event loop's time at which the subscription expires."""
    timer: asyncio.TimerHandle | None = None
    unanswered: int = 0
    """NOTIFYs without a final response yet."""
    stale: bool = False
    """Whether the terminal changed after the last NOTIFY was sent."""


class Dialogs:
    """The live dialogs. `on_expired` is called for each dialog that expires, after it has ended."""

    def __init__(self, on_expired: Callable[[Dialog], None]) -> None:
        self._on_expired = on_expired
        self._live: dict[DialogKey, Dialog] = {}
        self._by_user: dict[str, dict[DialogKey, Dialog]] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, dialog: Dialog) -> bool:
        return dialog.key in self._live

    def find(self, key: DialogKey) -> Dialog | None:
        """The live dialog with this key."""
        return self._live.get(key)

    def of_user(self, user: str) -> list[Dialog]:
        """The live dialogs of one terminal."""
        return list(self._by_user.get(user, {}).values())

    def by_address(self) -> Counter[str]:
        """How many dialogs are live, by the terminal's address."""
        return Counter(dialog.address for dialog in self._live.values())

    def keep(self, dialog: Dialog, expires_s: int) -> None:
        """Adds the dialog, or prolongs it, for `expires_s` from now; 0 ends it."""
        self.end(dialog)
        if not expires_s:
            return
        loop = asyncio.get_running_loop()
        dialog.ends_at = loop.time() + expires_s
        dialog.timer = loop.call_later(expires_s, self._expire, dialog)
        self._live[dialog.key] = dialog
        self._by_user.setdefault(dialog.user, {})[dialog.key] = dialog

    def end(self, dialog: Dialog) -> None:
        """Ends the dialog without a NOTIFY; does nothing for a dialog that is not live."""
        if dialog.timer:
            dialog.timer.cancel()
            dialog.timer = None
        if self._live.pop(dialog.key, None):
            others = self._by_user[dialog.user]
            del others[dialog.key]
            if not others:
                del self._by_user[dialog.user]

    def end_all(self) -> None:
        """Ends every dialog without a NOTIFY."""
        for dialog in list(self._live.values()):
            self.end(dialog)

    def _expire(self, dialog: Dialog) -> None:
        self.end(dialog)
        self._on_expired(dialog)
