"""How many SUBSCRIBEs one watch may send: BURST at once, then one every GAP_S (a token bucket)."""

import math

from app.sip.machine.timing import BURST, GAP_S


class SendLimit:
    """The token bucket of one watch."""

    __slots__ = ("allowed_at_s",)

    def __init__(self) -> None:
        self.allowed_at_s = -math.inf
        """The earliest time of the next SUBSCRIBE."""

    def on_sent(self, now_s: float) -> None:
        """One SUBSCRIBE was sent."""
        self.allowed_at_s = max(self.allowed_at_s + GAP_S, now_s - (BURST - 2) * GAP_S)
