"""Log lines about requests of peers that nobody authenticated: few, and each names a peer.

Deliberately absent: wrong credentials (`auth/failures.py`), and connections that give way
(`unauthenticated_connections.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

LOG_S: Final = 10.0
"""Least time between two lines of one event; the next line's `left_out` counts what was not logged."""

MAX_PEER: Final = 64

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Line:
    at_s: float
    left_out: int = 0


class StrangerLog:
    """The lines of one server. `clock` returns seconds that never go back. There are few events."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lines: dict[str, _Line] = {}

    def add(self, event: str, peer: str) -> None:
        """Logs the event, or counts it as left out."""
        now_s, last = self._clock(), self._lines.get(event)
        if last is not None and now_s - last.at_s < LOG_S:
            last.left_out += 1
            return
        left_out = {"left_out": last.left_out} if last is not None and last.left_out else {}
        _log.warning(event, peer=peer[:MAX_PEER], **left_out)
        self._lines[event] = _Line(now_s)
