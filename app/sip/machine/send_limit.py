"""How many SUBSCRIBEs one watch may send: BURST at once, then one every GAP_S (a token bucket)."""

import math

from app.sip.machine.timing import BURST, GAP_S


class SendLimit:
    """The token bucket of one watch."""

    __slots__ = ("_empty_until_s",)

    def __init__(self) -> None:
        self._empty_until_s = -math.inf  # with (BURST - 1) * GAP_S of credit

    @property
    def allowed_at_s(self) -> float:
        """The earliest time of the next SUBSCRIBE."""
        return self._empty_until_s - (BURST - 1) * GAP_S

    def on_sent(self, now_s: float) -> None:
        """One SUBSCRIBE was sent."""
        self._empty_until_s = max(self._empty_until_s, now_s) + GAP_S
