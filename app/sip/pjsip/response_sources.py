"""Which answers count: those from where the request went, or from networks that the operator has named.

A branch can be guessed, and whoever answers first would end the transaction: PJSIP looks neither where an answer comes
from nor over what. Over a stream the port may differ, since a server may answer over a connection of its own (RFC 3261
section 18.2.2). A request over TCP or TLS is never answered over UDP, where a sender may write any address as its own.

Invariants: pure; an address is eight bytes as the system writes them: family, port and IPv4 address. A transport is
`UDP`, `TCP` or `TLS`.

Deliberately absent: NOTIFYs, which are known by their Contact user (`dialogs.py`).
"""

import ipaddress
from collections.abc import Iterable

_IP = 4
"""Where the IP address begins."""


class Answers:
    """`networks` may answer in place of others."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def counts(self, source: bytes, destination: bytes, *, came: bytes, sent: bytes) -> bool:
        """Whether an answer that `came` over one transport counts for a request that was `sent` over another."""
        if came != sent:
            return False
        if source == destination or (sent != b"UDP" and source[_IP:] == destination[_IP:]):
            return True
        ip = ipaddress.ip_address(source[_IP:])
        return any(ip in network for network in self._networks)
