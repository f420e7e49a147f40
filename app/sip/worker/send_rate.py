"""How fast SUBSCRIBEs leave: never more at once than sockets hold, and set-ups no faster than the operator wants.

Invariants: pure; `now_s` is of a monotonic clock. Questions of callers do not wait for the pace of set-ups, only for
the burst. What has had no answer for BURST_S no longer holds others up, so silent presentities delay nobody.

Deliberately absent: who is asked, and in which order.
"""

from collections import deque
from typing import Protocol

BURST = 64
"""Most SUBSCRIBEs sent within BURST_S that are not answered yet. A UDP socket of default size holds about 90; what is
sent into a full one is lost, and sent again only half a second later."""

KEPT = 16
"""Of BURST, what questions leave to set-ups that wait: silent presentities that many ask about would stop these."""

BURST_S = 0.025
SETUP_BURST_S = 0.05
"""Set-ups that may leave at once: as many as belong to this time."""


class Asking(Protocol):
    """Something that sends SUBSCRIBEs. `recent` while its last one counts against BURST; the pace keeps both."""

    recent: bool
    sent_at_s: float


class Pace:
    """The pace of one worker. `setups_per_s` 0 is no limit."""

    def __init__(self, setups_per_s: float) -> None:
        self._rate = setups_per_s
        self._most = max(1.0, setups_per_s * SETUP_BURST_S)
        self._tokens = self._most
        self._filled_at_s = 0.0
        self._recent: deque[Asking] = deque()
        self._count = 0

    def open(self, now_s: float, *, kept: int = 0) -> bool:
        """Whether one more SUBSCRIBE may leave now, and leave so many `kept` for others."""
        recent = self._recent
        while recent and (not recent[0].recent or recent[0].sent_at_s < now_s - BURST_S):
            self.answered(recent.popleft())
        return self._count < BURST - kept

    def setup_delay_s(self, now_s: float) -> float:
        """How long until a set-up may leave; 0 is now."""
        if not self._rate:
            return 0.0
        self._tokens = min(self._most, self._tokens + (now_s - self._filled_at_s) * self._rate)
        self._filled_at_s = now_s
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) / self._rate

    def sent(self, asking: Asking, now_s: float, *, setup: bool = False) -> None:
        """One has left."""
        if setup and self._rate:
            self._tokens -= 1
        asking.sent_at_s = now_s
        if not asking.recent:
            asking.recent = True
            self._count += 1
        self._recent.append(asking)

    def answered(self, asking: Asking) -> None:
        """Something came back, or nobody waits for it."""
        if asking.recent:
            asking.recent = False
            self._count -= 1
