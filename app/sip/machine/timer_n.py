"""The wait for the NOTIFY that must follow each accepted refresh (Timer N, RFC 6665 section 4.1.2.2)."""

import math

from app.sip.machine.timing import TIMER_N_S

NO_NOTIFICATION = 204
"""A refresh answered with this code succeeded, and no NOTIFY follows (RFC 5839; RFC 6665 section 4.1.2.2 then cancels
Timer N)."""


class TimerN:
    """Timer N of one watch. `due_s`: when the first accepted refresh without a NOTIFY counts as failed."""

    __slots__ = ("_awaits_notify", "due_s", "sent_s")

    def __init__(self) -> None:
        self.sent_s = -math.inf
        """When the last SUBSCRIBE was sent."""
        self.due_s = math.inf
        self._awaits_notify = False  # whether the last SUBSCRIBE was a refresh and no NOTIFY has come since

    def on_sent(self, now_s: float, *, refresh: bool) -> None:
        """A SUBSCRIBE was sent."""
        self.sent_s, self._awaits_notify = now_s, refresh

    def on_accepted(self, code: int) -> None:
        """The SUBSCRIBE got a 2xx."""
        if self._awaits_notify:
            due_s = min(self.due_s, self.sent_s + TIMER_N_S)
            self.due_s = math.inf if code == NO_NOTIFICATION else due_s

    def cancel(self) -> None:
        """A NOTIFY came, or the dialog was dropped."""
        self._awaits_notify, self.due_s = False, math.inf
