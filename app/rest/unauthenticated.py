"""The HTTP connections that have not brought an authenticated request, bounded per address.

One more closes the oldest of its address, and is served: else a client behind the same address as an attacker, or a
probe, would be refused for as long as the attack lasts. A connection counts until it brings an authenticated request.
One from a trusted proxy counts while a request runs on it, for the client that the proxy names.

Invariants: who holds nothing takes no memory here.

Deliberately absent: a bound on all connections together (`servers.py`).
"""

import math
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from app.auth.proxies import TrustedProxies, bucket
from app.rest.turns import Turns

MAX_STRANGERS: Final = 256
LOG_S: Final = 10.0

_log = structlog.get_logger(__name__)


class Connection(Protocol):
    """What is bounded."""

    def give_way(self) -> None:
        """Ends the connection."""


class Strangers:
    """Those of one server. `clock` gives seconds that never go back."""

    def __init__(
        self, proxies: TrustedProxies, clock: Callable[[], float], *, most_per_address: int = MAX_STRANGERS
    ) -> None:
        self.proxies = proxies
        self.turns = Turns()
        self._clock = clock
        self._most = most_per_address
        self._by_address: dict[str, dict[Connection, None]] = {}
        self._closed, self._logged_s = 0, -math.inf

    def join(self, address: str, connection: Connection) -> str:
        """Counts the connection until it leaves what is returned."""
        key = bucket(address)
        others = self._by_address.setdefault(key, {})
        if len(others) >= self._most:
            oldest = next(iter(others))
            del others[oldest]
            oldest.give_way()
            self._log(address)
        others[connection] = None
        return key

    def leave(self, key: str, connection: Connection) -> None:
        """The connection counts no more; it may have given way already."""
        if (others := self._by_address.get(key)) is not None:
            others.pop(connection, None)
            if not others:
                del self._by_address[key]

    def _log(self, address: str) -> None:
        self._closed += 1
        if (now_s := self._clock()) - self._logged_s >= LOG_S:
            _log.warning("unauthenticated_connections_closed", peer=address, closed=self._closed, most=self._most)
            self._closed, self._logged_s = 0, now_s
