"""A queue that serves clients in turn.

An entry that several clients want is in the queue of each of them, and leaves when the first of them has its turn.
Within one client's queue the order is that of `add`.

Invariants: pure. An entry is in the queues of all its clients or in none. Between two turns of a client, every other
client with waiting entries has one.
"""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """An entry. Its `clients` may change only while it is not queued; () is a queue of its own."""

    @property
    def clients(self) -> tuple[int, ...]:
        """The clients that want the entry, by number."""


Entry = TypeVar("Entry", bound=Queued)
_NOBODY = (0,)


class FairQueue(Generic[Entry]):
    """The queues of all clients; its length is the number of entries."""

    def __init__(self) -> None:
        self._queues: OrderedDict[int, OrderedDict[Entry, None]] = OrderedDict()  # in the order of their next turns
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entry: Entry, *, first: bool = False) -> None:
        """Queues an entry that is not queued: at the end, or `first`, of the queue of each of its clients."""
        self._count += 1
        for client in entry.clients or _NOBODY:
            queue = self._queues.get(client)
            if queue is None:
                queue = self._queues[client] = OrderedDict()
            queue[entry] = None
            if first:
                queue.move_to_end(entry, last=False)

    def pop(self) -> Entry:
        """Removes and returns the first entry of the client whose turn it is. Raises StopIteration when empty."""
        client, queue = next(iter(self._queues.items()))
        entry = next(iter(queue))
        self._queues.move_to_end(client)
        self.discard(entry)
        return entry

    def discard(self, entry: Entry) -> None:
        """Removes an entry, if it is queued."""
        was_queued = False
        for client in entry.clients or _NOBODY:
            queue = self._queues.get(client)
            if queue is not None and entry in queue:
                was_queued = True
                del queue[entry]
                if not queue:
                    del self._queues[client]
        self._count -= was_queued
