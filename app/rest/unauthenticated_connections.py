"""Limits, per address, the HTTP connections that have not brought an authenticated request.

A connection above the limit closes the address's oldest one and is served. Refusing the new one instead would lock out
clients and probes behind the address of an attacker for as long as the attack lasts. A connection counts until it
brings an authenticated request. A connection from a trusted proxy counts only while a request runs on it, for the
client that the proxy names.

Deliberately absent: a limit of all connections together (`servers.py`).
"""

import math
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from app.auth.proxies import TrustedProxies, bucket
from app.rest.stranger_log import StrangerLog
from app.rest.work_queue import WorkQueue

MAX_PER_ADDRESS: Final = 256
LOG_S: Final = 10.0

_log = structlog.get_logger(__name__)


class Connection(Protocol):
    """A connection as this module needs it."""

    def give_way(self) -> None:
        """Ends the connection."""


class UnauthenticatedConnections:
    """The unauthenticated connections of one server. `clock` returns seconds that never go back."""

    def __init__(
        self, proxies: TrustedProxies, clock: Callable[[], float], *, most_per_address: int = MAX_PER_ADDRESS
    ) -> None:
        self.proxies = proxies
        self.work = WorkQueue()
        self.log = StrangerLog(clock)
        self._clock = clock
        self._most = most_per_address
        self._by_address: dict[str, dict[Connection, None]] = {}  # has only addresses with connections
        self._closed, self._logged_s = 0, -math.inf
        self._forwarded_logged = False

    def join(self, address: str, connection: Connection) -> str:
        """Counts the connection, and returns the key with which it leaves."""
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
        """Stops counting the connection, which may have given way already."""
        if (others := self._by_address.get(key)) is not None:
            others.pop(connection, None)
            if not others:
                del self._by_address[key]

    @property
    def watches_forwarded(self) -> bool:
        """Whether `on_forwarded` still has something to log."""
        return not (self._forwarded_logged or self.proxies.networks)

    def on_forwarded(self, peer: str, header: str) -> None:
        """Warns once that a proxy's header is ignored because the operator trusts no proxy. Anybody may send the
        header, so there is one line in the life of the server."""
        if self.watches_forwarded:
            self._forwarded_logged = True
            _log.warning(
                "forwarded_header_ignored",
                peer=peer,
                header=header,
                hint="The request seems to come through a proxy. Name the proxy in TS_TRUSTED_PROXIES, so that its "
                "clients' addresses count, and documents name https.",
            )

    def _log(self, address: str) -> None:
        self._closed += 1
        if (now_s := self._clock()) - self._logged_s >= LOG_S:
            _log.warning("unauthenticated_connections_closed", peer=address, closed=self._closed, most=self._most)
            self._closed, self._logged_s = 0, now_s
