"""Which answers count: those from where the request went, or from networks that the operator has named.

A branch can be guessed, and whoever answers first would end the transaction: PJSIP does not look where an answer comes
from. Over a stream the port may differ, since a server may answer over a connection of its own (RFC 3261 section
18.2.2).

Invariants: pure; an address is eight bytes as the system writes them: family, port and IPv4 address. A request without
an answer is remembered for KEPT_S, longer than its transaction lives.

Deliberately absent: NOTIFYs, which are known by their Contact user (`dialogs.py`).
"""

import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Iterable

KEPT_S = 40.0
MOST = 200_000
"""Requests remembered; more than the pace lets leave in KEPT_S without an answer."""

_IP = 4
"""Where the IP address begins."""


def address_of(text: str) -> bytes:
    """An address from `IP:PORT`; empty where it is not IPv4."""
    host, _, port = text.rpartition(":")
    try:
        return socket.AF_INET.to_bytes(2, "little") + int(port).to_bytes(2, "big") + socket.inet_aton(host)
    except (OSError, ValueError, OverflowError):
        return b""


class Answers:
    """Requests that were sent, by branch. `networks` may answer in place of others."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._sent: OrderedDict[bytes, tuple[float, bytes, bool]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sent)

    def sent(self, branch: bytes, destination: bytes, *, stream: bool, now_s: float) -> None:
        """A request leaves, perhaps once more."""
        sent = self._sent
        before = sent.get(branch)
        sent[branch] = (before[0] if before else now_s, destination, stream)
        while len(sent) > MOST or next(iter(sent.values()))[0] < now_s - KEPT_S:
            sent.popitem(last=False)

    def counts(self, branch: bytes, source: bytes, *, final: bool) -> bool | None:
        """Whether an answer counts; None where nothing awaits it (a copy of a final one, or a late one)."""
        sent = self._sent.get(branch)
        if sent is None:
            return None
        _, destination, stream = sent
        same = source == destination or (stream and source[_IP:] == destination[_IP:])
        if not same and not self._named(source):
            return False
        if final:
            del self._sent[branch]
        return True

    def _named(self, source: bytes) -> bool:
        ip = ipaddress.ip_address(source[_IP:])
        return any(ip in network for network in self._networks)
