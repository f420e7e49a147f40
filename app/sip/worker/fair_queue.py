"""Whose turn it is: what waits is taken in turn, client by client.

An entry stands in the queue of each client that wants it, and leaves by the first whose turn comes: so it waits for
the client that was served least. A client's own queue keeps the order in which it was filled.
Invariants: pure; an entry stands in each queue of its clients once, or in no queue. Between two turns of a client every
other one that waits has one.

Deliberately absent: when something may leave (`send_rate.py`).
"""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Wanted(Protocol):
    """Something that waits. Its `clients` change only while it does not wait; () is a queue of its own."""

    @property
    def clients(self) -> tuple[int, ...]:
        """Those that want it, by number."""


Entry = TypeVar("Entry", bound=Wanted)
_NOBODY = (0,)


class Turns(Generic[Entry]):
    """What waits, by client."""

    def __init__(self) -> None:
        self._queues: OrderedDict[int, OrderedDict[Entry, None]] = OrderedDict()  # in the order of their next turns
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entry: Entry, *, first: bool = False) -> None:
        """Queues what does not wait yet: last, or `first`, of each of its clients."""
        self._count += 1
        for client in entry.clients or _NOBODY:
            queue = self._queues.get(client)
            if queue is None:
                queue = self._queues[client] = OrderedDict()
            queue[entry] = None
            if first:
                queue.move_to_end(entry, last=False)

    def pop(self) -> Entry:
        """Takes out the first entry of the client whose turn it is. Raises StopIteration where nothing waits."""
        client, queue = next(iter(self._queues.items()))
        entry = next(iter(queue))
        self._queues.move_to_end(client)
        self.discard(entry)
        return entry

    def discard(self, entry: Entry) -> None:
        """Takes an entry out, if it waits."""
        waited = False
        for client in entry.clients or _NOBODY:
            queue = self._queues.get(client)
            if queue is not None and entry in queue:
                waited = True
                del queue[entry]
                if not queue:
                    del self._queues[client]
        self._count -= waited
