"""The terminals whose documents do not fit a UDP datagram, and that are therefore queried over TCP."""

from app.domain.bounded import BoundedDict

MOST_ADDRESSES = 10_000
"""When full, the oldest address is forgotten; its next cut document brings it back."""


class LargeDocuments:
    """The addresses of these terminals."""

    def __init__(self) -> None:
        self._addresses = BoundedDict[str, None](MOST_ADDRESSES)

    def __contains__(self, address: str) -> bool:
        return address in self._addresses

    def add(self, address: str) -> None:
        """Remembers one more address."""
        self._addresses[address] = None
