"""Shares the event loop: runs long pieces of work one per pass of the loop, each caller in turn.

A piece (the start of a request of an unauthenticated caller, a slice of a SOAP envelope) takes the loop for a few
milliseconds. Without the queue, two hundred connections with one piece each would block the loop for a second per pass,
and every call needs several passes.

Invariants: a piece runs at once if none ran in this pass. A key is a caller's IP address, or a client's id. Between two
pieces of one key, a piece of every other waiting key runs.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

_Piece = Callable[[], object]


class WorkQueue:
    """The waiting pieces of one server."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[_Piece]] = OrderedDict()  # in the order of their next turns
        self._ran = False
        """Whether a piece ran in this pass of the loop."""

    def add(self, key: str, piece: _Piece) -> None:
        """Runs the piece when `key` (an IP address or a client's id) has its turn."""
        if self._ran:
            self._waiting.setdefault(key, deque()).append(piece)
        else:
            self._run(piece)

    async def wait_for_turn(self, key: str) -> None:
        """Returns when `key` has its turn."""
        turn = asyncio.Event()
        self.add(key, turn.set)
        await turn.wait()

    def _run(self, piece: _Piece) -> None:
        self._ran = True
        asyncio.get_running_loop().call_soon(self._next)
        piece()

    def _next(self) -> None:
        self._ran = False
        if self._waiting:
            key, pieces = self._waiting.popitem(last=False)
            piece = pieces.popleft()
            if pieces:
                self._waiting[key] = pieces
            self._run(piece)
