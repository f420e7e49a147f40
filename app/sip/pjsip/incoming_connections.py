"""Limits the connections that others open to our SIP ports.

PJSIP has 64 sockets, keeps the place of a closed one for half a second, and aborts when it accepts a connection without
a place for it. While too many connections were accepted lately or are open, `dup2` puts another socket, to which nobody
connects, in place of the listening one. New connections then wait in the kernel or are refused by it.

Invariants: at most MOST_RECENT connections are accepted in RECENT_S, and at most MOST_OPEN are open; the other places
are for our own connections.

Deliberately absent: who may connect. Over TLS nobody may: without a certificate of ours no handshake succeeds.
"""

import os
import socket
from collections import deque
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

RECENT_S = 0.6
MOST_RECENT = 16
MOST_OPEN = 24


class IncomingConnectionLimit:
    """The limit on this process's listening sockets at `ports`; those at `closed_ports` are closed for good."""

    def __init__(self, ports: AbstractSet[int], closed_ports: AbstractSet[int] = frozenset()) -> None:
        self._substitute = socket.socket(socket.AF_UNIX)
        self._substitute.bind("")  # to a name that the kernel chooses
        self._substitute.listen(1)
        self._substitute.setblocking(False)
        self._listening = {number: os.dup(number) for number in _listening(ports)}
        self._replace(dict.fromkeys(_listening(closed_ports), self._substitute.fileno()))
        self._recent_s: deque[float] = deque(maxlen=MOST_RECENT)
        self._connections: set[int] = set()
        self.accepting = True

    def on_accepted(self, key: int, now_s: float) -> None:
        """A connection was accepted. May be called while PJSIP accepts."""
        self._connections.add(key)
        self._recent_s.append(now_s)
        if self.accepting and self._is_full(now_s):
            self._replace(dict.fromkeys(self._listening, self._substitute.fileno()))
            self.accepting = False

    def on_closed(self, key: int) -> None:
        """A connection ended."""
        self._connections.discard(key)

    def resume(self, now_s: float) -> None:
        """Accepts connections again once the limit allows it."""
        if not self.accepting and not self._is_full(now_s):
            self._replace(self._listening)
            self.accepting = True

    def _is_full(self, now_s: float) -> bool:
        recent = len(self._recent_s) == MOST_RECENT and now_s - self._recent_s[0] < RECENT_S
        return recent or len(self._connections) >= MOST_OPEN

    @staticmethod
    def _replace(sockets: dict[int, int]) -> None:
        for number, other in sockets.items():
            os.dup2(other, number, inheritable=False)


def _listening(ports: AbstractSet[int]) -> list[int]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as copy:
            accepts = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if accepts and copy.family == socket.AF_INET and copy.getsockname()[1] in ports:
                found.append(int(path.name))
    return found
