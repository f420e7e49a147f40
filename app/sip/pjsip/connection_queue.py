"""Requests that wait until a presence server is known to accept connections.

PJSIP has 64 sockets, keeps the place of a closed one for half a second, and aborts when all are taken. If every request
tried a server that refuses connections, these would soon be used up. So while a server's state is unknown, one request
tries the connection and the others wait for its result.

Invariants: pure; `now_s` is of a monotonic clock. At most one attempt leaves in ATTEMPT_GAP_S. Each waiting request is
sent, or becomes an attempt itself, or fails with the attempt that it waits for.

Deliberately absent: sockets, and UDP, whose one socket serves all servers.
"""

import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

ATTEMPT_GAP_S = 0.05
ATTEMPT_S = 0.2
"""How long the other requests wait for one attempt. Then the next request is an attempt: the server may accept
connections and only leave requests about the first terminal unanswered."""

R = TypeVar("R")


@dataclass(slots=True)
class _Destination(Generic[R]):
    connected: bool = False
    attempted_s: float = -math.inf
    queue: deque[R] = field(default_factory=deque)


class ConnectionQueue(Generic[R]):
    """The waiting requests, by destination."""

    def __init__(self) -> None:
        self._destinations: dict[Hashable, _Destination[R]] = {}
        self._attempted_s = -math.inf
        self.queued = False
        """Whether any request waits."""

    def may_send(self, name: Hashable, request: R, now_s: float) -> bool:
        """Whether the request to this destination may leave now; otherwise it is queued."""
        destination = self._destinations.get(name)
        if destination is None:
            destination = self._destinations[name] = _Destination()
        if destination.connected or (not destination.queue and self._attempt(destination, now_s)):
            return True
        destination.queue.append(request)
        self.queued = True
        return False

    def on_answered(self, name: Hashable) -> None:
        """A message came from the destination: it is connected."""
        self._destinations[name].connected = True

    def on_connected(self, now_s: float) -> None:
        """A connection was made. PJSIP does not say to which destination, so each one just attempted counts as
        connected."""
        for destination in self._destinations.values():
            destination.connected |= now_s - destination.attempted_s <= ATTEMPT_S

    def on_broken(self) -> None:
        """A connection ended. PJSIP does not say to which destination, so none counts as connected."""
        for destination in self._destinations.values():
            destination.connected = False

    def on_refused(self, name: Hashable) -> list[R]:
        """A request could not be sent. Returns the requests that waited for it; they fail too."""
        destination = self._destinations[name]
        destination.connected = False
        failed = list(destination.queue)
        destination.queue.clear()
        return failed

    def due(self, now_s: float) -> Iterator[R]:
        """Yields the requests that may leave now."""
        self.queued = False
        for destination in self._destinations.values():
            while destination.queue and (destination.connected or self._attempt(destination, now_s)):
                yield destination.queue.popleft()
            self.queued |= bool(destination.queue)

    def _attempt(self, destination: _Destination[R], now_s: float) -> bool:
        if now_s - self._attempted_s < ATTEMPT_GAP_S or now_s - destination.attempted_s < ATTEMPT_S:
            return False
        self._attempted_s = destination.attempted_s = now_s
        return True
