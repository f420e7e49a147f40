"""Keeps those who connect to us from taking all places for sockets that PJSIP has: 64, and a closed one's place is
taken for half a second more. PJSIP aborts where it accepts a connection and has no place for it.

While too many have come lately, or are here, another socket to which nobody connects stands at the listening one's
number; connections wait in the kernel meanwhile, or are refused by it.

Invariants: no more than MOST_LATELY are accepted in LATELY_S, beside MOST_HERE that are here; our own connections have
the other places.

Deliberately absent: who is let in. Over TLS nobody is: without a certificate of ours nobody could speak to us.
"""

import os
import socket
from collections import deque
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

LATELY_S = 0.6
MOST_LATELY = 16
MOST_HERE = 24


class Gate:
    """The listening sockets on these ports of this process; those on ports that are `shut` are closed for good."""

    def __init__(self, ports: AbstractSet[int], shut: AbstractSet[int] = frozenset()) -> None:
        self._nobody = socket.socket(socket.AF_UNIX)
        self._nobody.bind("")  # a name that the kernel makes up
        self._nobody.listen(1)
        self._nobody.setblocking(False)
        self._listening = {number: os.dup(number) for number in _listening(ports)}
        self._stand(dict.fromkeys(_listening(shut), self._nobody.fileno()))
        self._lately: deque[float] = deque(maxlen=MOST_LATELY)
        self._here: set[int] = set()
        self.open = True

    def arrived(self, key: int, now_s: float) -> None:
        """A connection was accepted. May be called while PJSIP accepts."""
        self._here.add(key)
        self._lately.append(now_s)
        if self.open and self._full(now_s):
            self._stand(dict.fromkeys(self._listening, self._nobody.fileno()))
            self.open = False

    def left(self, key: int) -> None:
        """One ended."""
        self._here.discard(key)

    def reopen(self, now_s: float) -> None:
        """Lets more in where there is room again."""
        if not self.open and not self._full(now_s):
            self._stand(self._listening)
            self.open = True

    def _full(self, now_s: float) -> bool:
        lately = len(self._lately) == MOST_LATELY and now_s - self._lately[0] < LATELY_S
        return lately or len(self._here) >= MOST_HERE

    @staticmethod
    def _stand(sockets: dict[int, int]) -> None:
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
