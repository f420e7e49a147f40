"""How fast SUBSCRIBEs leave: no more at once than a socket buffers, and new watches no faster than the operator allows.

Invariants: pure; `now_s` is of a monotonic clock. Fetches wait only for the burst limit, not for the rate of new
watches. A SUBSCRIBE counts against the burst for at most BURST_S, so a silent presentity delays no other.

Deliberately absent: which SUBSCRIBE is next (`fair_queue.py`).
"""

from collections import deque
from typing import Protocol

BURST = 64
"""Most unanswered SUBSCRIBEs within BURST_S. A UDP socket of default size holds about 90; a datagram sent into a full
socket is lost, and retransmitted only after half a second."""

RESERVED_FOR_SETUPS = 16
"""The part of BURST that fetches leave to waiting watches. Otherwise many fetches about silent presentities would stop
every new watch."""

BURST_S = 0.025
SETUP_BURST_S = 0.05
"""New watches may leave in bursts as large as this time's share of the rate."""


class Sender(Protocol):
    """A fetch or watch that sends SUBSCRIBEs. Both fields are written by `SendRate` only."""

    recent: bool
    """Whether its last SUBSCRIBE counts against BURST."""
    sent_at_s: float


class SendRate:
    """The send rate of one worker. `setups_per_s`: new watches per second; 0 is unlimited."""

    def __init__(self, setups_per_s: float) -> None:
        self._rate = setups_per_s
        self._most = max(1.0, setups_per_s * SETUP_BURST_S)
        self._tokens = self._most
        self._filled_at_s = 0.0
        self._recent: deque[Sender] = deque()
        self._count = 0

    def allows(self, now_s: float, *, reserved: int = 0) -> bool:
        """Whether one more SUBSCRIBE may leave now and still leave room for `reserved` others."""
        recent = self._recent
        while recent and (not recent[0].recent or recent[0].sent_at_s < now_s - BURST_S):
            self.on_answered(recent.popleft())
        return self._count < BURST - reserved

    def setup_delay_s(self, now_s: float) -> float:
        """The delay until the next new watch may send its first SUBSCRIBE; 0 is now."""
        if not self._rate:
            return 0.0
        self._tokens = min(self._most, self._tokens + (now_s - self._filled_at_s) * self._rate)
        self._filled_at_s = now_s
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) / self._rate

    def on_sent(self, sender: Sender, now_s: float, *, setup: bool = False) -> None:
        """A SUBSCRIBE was sent; `setup`: it counts against the rate of new watches."""
        if setup and self._rate:
            self._tokens -= 1
        sender.sent_at_s = now_s
        if not sender.recent:
            sender.recent = True
            self._count += 1
        self._recent.append(sender)

    def on_answered(self, sender: Sender) -> None:
        """The SUBSCRIBE was answered, or its answer no longer matters."""
        if sender.recent:
            sender.recent = False
            self._count -= 1
