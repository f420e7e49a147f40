"""Long work over HTTP, and all of strangers, is done in turn: one piece in each pass of the event loop, address by
address, and client by client.

A piece (the start of a request, a slice of an envelope) holds the loop for a few milliseconds. Two hundred connections
that each bring one would hold it for a second in each pass, and every call needs several passes.

Invariants: between two turns of one of them every other one that waits has one. Where nothing waits a piece is done at
once.

Deliberately absent: who is a stranger (`connection.py`), and how many there may be (`unauthenticated.py`).
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

_Piece = Callable[[], object]


class Turns:
    """Those of one server."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[_Piece]] = OrderedDict()  # in the order of their next turns
        self._taken = False
        """A piece was done in this pass of the loop."""

    def add(self, key: str, piece: _Piece) -> None:
        """Does the piece when its turn comes; `key` is an address or a client's id."""
        if self._taken:
            self._waiting.setdefault(key, deque()).append(piece)
        else:
            self._take(piece)

    async def come(self, key: str) -> None:
        """Returns when the caller's turn comes."""
        turn = asyncio.Event()
        self.add(key, turn.set)
        await turn.wait()

    def _take(self, piece: _Piece) -> None:
        self._taken = True
        asyncio.get_running_loop().call_soon(self._next)
        piece()

    def _next(self) -> None:
        self._taken = False
        if self._waiting:
            key, pieces = self._waiting.popitem(last=False)
            piece = pieces.popleft()
            if pieces:
                self._waiting[key] = pieces
            self._take(piece)
