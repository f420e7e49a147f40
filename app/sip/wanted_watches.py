"""The watches that one worker has to keep. The worker's own list is a copy of this list. A new worker gets all of them;
a running worker gets those that were added in the present round of the event loop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from app.domain.addresses import TerminalAddress
from app.domain.statuses import Liveness
from app.sip.protocol import StartWatches

MOST_CLIENTS = 8
"""How many of the clients that want a watch are kept, the last ones. The watch is set up when one of them has its
turn."""

_WATCHES_PER_COMMAND = 1000


@dataclass(eq=False, slots=True)
class WantedWatch:
    """One watch. `clients` are those that want it, by number."""

    id: int
    address: TerminalAddress
    clients: tuple[int, ...]
    observed: bool = False
    """Whether a status was ever observed."""
    liveness: Liveness = Liveness.UNKNOWN
    """The liveness last reported to the observer."""


class WantedWatches:
    """The list, in the order of `add`."""

    def __init__(self) -> None:
        self._by_address: dict[TerminalAddress, WantedWatch] = {}
        self._by_id: dict[int, WantedWatch] = {}
        self._unsent: list[WantedWatch] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[WantedWatch]:
        return iter(self._by_address.values())

    def by_address(self, address: TerminalAddress) -> WantedWatch | None:
        """The watch of the terminal."""
        return self._by_address.get(address)

    def by_id(self, number: int) -> WantedWatch | None:
        """The watch of that number."""
        return self._by_id.get(number)

    @property
    def has_unsent(self) -> bool:
        """Whether the worker does not know a watch, or all clients of a watch, yet."""
        return bool(self._unsent)

    def add(self, number: int, address: TerminalAddress, client: int) -> bool:
        """Adds a watch as `number`, or one more client of it. Returns whether there is anything to send."""
        watch = self._by_address.get(address)
        if watch is None:
            watch = self._by_address[address] = self._by_id[number] = WantedWatch(number, address, (client,))
        elif client in watch.clients:
            return False
        else:
            watch.clients = (*watch.clients, client)[-MOST_CLIENTS:]
        self._unsent.append(watch)
        return True

    def remove(self, address: TerminalAddress) -> WantedWatch | None:
        """Removes and returns the watch of the terminal; None where there is none."""
        watch = self._by_address.pop(address, None)
        if watch is not None:
            del self._by_id[watch.id]
        return watch

    def take_unsent(self) -> list[WantedWatch]:
        """Returns the watches to send, and counts them as sent."""
        unsent, self._unsent = [watch for watch in self._unsent if watch.id in self._by_id], []
        return unsent


def start_commands(watches: Iterable[WantedWatch]) -> Iterator[StartWatches]:
    """The commands that start `watches`, which are in order from the oldest to the newest."""
    by_clients: dict[tuple[int, ...], list[WantedWatch]] = {}
    for watch in watches:
        by_clients.setdefault(watch.clients, []).append(watch)
    for clients, group in by_clients.items():
        for start in range(0, len(group), _WATCHES_PER_COMMAND):
            # A worker expects the most urgent watch, the newest, first, and puts each command before earlier ones.
            part = reversed(group[start : start + _WATCHES_PER_COMMAND])
            yield StartWatches([(watch.id, watch.address, watch.observed) for watch in part], clients)
