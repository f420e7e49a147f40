"""Which presence servers are known to take connections: where it is not known one request knocks, and others wait.

PJSIP has 64 places for sockets, keeps a closed one's place for half a second, and aborts where all are taken. A server
that refuses connections would otherwise be tried by every request.

Invariants: pure; `now_s` is of a monotonic clock. What waits leaves when its door is open, knocks in its turn, or fails
with the one that knocked. No more than one knock leaves in KNOCK_GAP_S.

Deliberately absent: sockets, and UDP, which has one for all.
"""

import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

KNOCK_GAP_S = 0.05
KNOCK_S = 0.2
"""So long nobody else knocks while one waits; a silent terminal behind an open door holds the others no longer."""

W = TypeVar("W")


@dataclass(slots=True)
class _Door(Generic[W]):
    open: bool = False
    knocked_s: float = -math.inf
    waiting: deque[W] = field(default_factory=deque)


class Doors(Generic[W]):
    """The doors that were met so far, each by its name."""

    def __init__(self) -> None:
        self._doors: dict[Hashable, _Door[W]] = {}
        self._knocked_s = -math.inf
        self.waiting = False
        """Whether anything waits."""

    def enter(self, name: Hashable, who: W, now_s: float) -> bool:
        """Whether `who` may leave now; else it waits."""
        door = self._doors.get(name)
        if door is None:
            door = self._doors[name] = _Door()
        if door.open or (not door.waiting and self._knocks(door, now_s)):
            return True
        door.waiting.append(who)
        self.waiting = True
        return False

    def answered(self, name: Hashable) -> None:
        """Something came back: it is open."""
        self._doors[name].open = True

    def connected(self, now_s: float) -> None:
        """A connection was made: whichever was knocked at lately is taken to be open."""
        for door in self._doors.values():
            door.open |= now_s - door.knocked_s <= KNOCK_S

    def broken(self) -> None:
        """A connection ended, it is not known whose."""
        for door in self._doors.values():
            door.open = False

    def refused(self, name: Hashable) -> list[W]:
        """A request could not be sent; so cannot those that wait, which are returned."""
        door = self._doors[name]
        door.open = False
        failed = list(door.waiting)
        door.waiting.clear()
        return failed

    def due(self, now_s: float) -> Iterator[W]:
        """Those that may leave now."""
        self.waiting = False
        for door in self._doors.values():
            while door.waiting and (door.open or self._knocks(door, now_s)):
                yield door.waiting.popleft()
            self.waiting |= bool(door.waiting)

    def _knocks(self, door: _Door[W], now_s: float) -> bool:
        if now_s - self._knocked_s < KNOCK_GAP_S or now_s - door.knocked_s < KNOCK_S:
            return False
        self._knocked_s = door.knocked_s = now_s
        return True
