"""Which responses count: those from where the request was sent, or from networks that the operator has named.

PJSIP checks neither where a response comes from nor over which transport, a branch can be guessed, and the first
response ends the transaction. Over TCP and TLS the port may differ, since a server may answer over a connection of its
own (RFC 3261 section 18.2.2). A response over UDP never answers a request over TCP or TLS, because the source address
of a datagram can be forged.

Invariants: pure. An address is eight bytes as the system writes it: family, port and IPv4 address. A transport is
`UDP`, `TCP` or `TLS`.

Deliberately absent: NOTIFYs, which are recognised by their Contact user (`dialogs.py`).
"""

import ipaddress
from collections.abc import Iterable

_IP = 4
"""Offset of the IP address."""


class ResponseSources:
    """`networks` may answer in place of any server."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def accepts(self, source: bytes, destination: bytes, *, came_over: bytes, sent_over: bytes) -> bool:
        """Whether a response from `source` counts for a request that was sent to `destination`."""
        if came_over != sent_over:
            return False
        if source == destination or (sent_over != b"UDP" and source[_IP:] == destination[_IP:]):
            return True
        ip = ipaddress.ip_address(source[_IP:])
        return any(ip in network for network in self._networks)
