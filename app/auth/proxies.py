"""The client behind a trusted proxy: its address, scheme and host, from `Forwarded` (RFC 7239) or `X-Forwarded-For`,
`X-Forwarded-Proto` and `X-Forwarded-Host`.

The lists are read from the right, past trusted proxies, because a client may write any entries further left. If both
kinds of list are present, they must name the same client: a proxy that writes one kind may forward what a client wrote
in the other.

Invariants: from an address that is not a trusted proxy, no header is read. Limits per address exempt trusted proxies.
Requests with unreadable headers share one address, `behind PROXY`, which is not exempt: otherwise a malformed header
would bypass every limit.

Deliberately absent: `Via`, and headers of single vendors.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

MAX_LIST: Final = 4096
"""Longest list that is read, in characters; a longer one counts as malformed."""

_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105  # RFC 9110's word
_PAIR = re.compile(rf'[ \t]*(?:({_TOKEN})=({_TOKEN}|"(?:[^"\\]|\\.)*"))?[ \t]*([;,]|$)')
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+|_[A-Za-z0-9._\-]{1,64}|unknown))(?::[0-9A-Za-z._\-]{1,64})?")
_SCHEMES: Final = ("http", "https")
_HOST = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from. `scheme` and `host` are "" if no trusted proxy names them."""

    address: str
    scheme: str = ""
    host: str = ""


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The networks of trusted proxies."""

    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    @classmethod
    def of(cls, networks: Iterable[str]) -> Self:
        """Raises ValueError."""
        return cls(tuple(sorted(map(ipaddress.ip_network, networks), key=str)))

    def trusts(self, address: str) -> bool:
        """Whether this is the address of a trusted proxy."""
        if not self.networks or (ip := _ip(address)) is None:
            return False
        return any(ip in network for network in self.networks)

    def overlap(self, key: str) -> bool:
        """Whether a trusted proxy may be among the addresses that `bucket` counts as one."""
        try:
            counted = ipaddress.ip_network(key)
        except ValueError:  # not an address, but an identifier from a proxy
            return False
        return any(network.version == counted.version and network.overlaps(counted) for network in self.networks)

    def origin(self, peer: str, headers: Iterable[tuple[str | bytes, str | bytes]]) -> Origin:
        """Where a request on a connection from `peer` comes from. Names of headers are in lower case."""
        if not self.trusts(peer):
            return Origin(peer)
        lists = _lists(headers)
        named: list[tuple[str | None, int]] = []
        elements = _elements(lists["forwarded"])
        if elements is not None:
            named.append(self._walk(peer, [each.get("for", "unknown") for each in elements]))
        elif lists["forwarded"]:
            named.append((None, 0))
        if lists["x-forwarded-for"]:
            named.append(self._walk(peer, lists["x-forwarded-for"].split(",")))
        clients = {client for client, _ in named}
        if len(clients) > 1 or None in clients:
            return Origin(f"behind {peer}")
        address, hops = named[0] if named else (peer, 1)
        element = elements[-min(hops, len(elements))] if elements else {}
        scheme = _agreed(element.get("proto", ""), _from_right(lists["x-forwarded-proto"], hops)).lower()
        host = _agreed(element.get("host", ""), _from_right(lists["x-forwarded-host"], hops))
        return Origin(address or peer, scheme if scheme in _SCHEMES else "", host if _HOST.fullmatch(host) else "")

    def _walk(self, peer: str, nodes: list[str]) -> tuple[str | None, int]:
        """The client that a list names (None: malformed), and its place from the right."""
        client = peer
        for hops, text in enumerate(reversed(nodes), start=1):
            node = _node(text)
            if node is None or node == "unknown":
                return (peer, hops) if node else (None, hops)
            if not self.trusts(node):
                return node, hops
            client = node
        return client, len(nodes)


def server_url(scope: Mapping[str, Any]) -> str | None:
    """The URL of the server that an HTTP request was sent to, from its ASGI scope; None if its Host header is invalid
    (RFC 9110 section 7.2)."""
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    if not host and scope.get("server"):  # HTTP/1.0
        address, port = scope["server"]
        host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return f"{scope.get('scheme', 'http')}://{host}" if _HOST.fullmatch(host) else None


def bucket(address: str) -> str:
    """The key of limits per address: an IPv4 address, or an IPv6 /64 network, since one client may use all its
    addresses."""
    ip = _ip(address) if ":" in address else None
    if not isinstance(ip, ipaddress.IPv6Address):
        return address if ip is None else str(ip)
    return str(ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))


def _ip(text: str) -> _Address | None:
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


def _lists(headers: Iterable[tuple[str | bytes, str | bytes]]) -> dict[str, str]:
    """The lists by name, each joined from all lines of its header. A list that is too long is replaced by a malformed
    text."""
    found: dict[str, list[str]] = {
        name: [] for name in ("forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")
    }
    for name, value in headers:
        name = name.decode("latin-1") if isinstance(name, bytes) else name
        if name in found:
            found[name].append(value.decode("latin-1") if isinstance(value, bytes) else value)
    joined = {name: ",".join(values).strip(" \t") for name, values in found.items()}
    return {name: text if len(text) <= MAX_LIST else "?" for name, text in joined.items()}


def _elements(text: str) -> list[dict[str, str]] | None:
    """The elements of `Forwarded` (RFC 7239 section 4); None if malformed or empty."""
    elements: list[dict[str, str]] = [{}]
    at = 0
    while text:
        match = _PAIR.match(text, at)
        if match is None or (match[1] and match[1].lower() in elements[-1]):
            return None
        if match[1]:
            value = re.sub(r"\\(.)", r"\1", match[2][1:-1]) if match[2].startswith('"') else match[2]
            elements[-1][match[1].lower()] = value
        if not match[3]:
            break
        if match[3] == "," and elements[-1]:
            elements.append({})
        at = match.end()
    found = [each for each in elements if each]
    return found or None


def _node(text: str) -> str | None:
    """An address in normal form, an obfuscated identifier or `unknown` (RFC 7239 section 6); None if malformed. Some
    proxies write IPv6 without brackets, some add a port."""
    text = text.strip(" \t")
    if (ip := _ip(text)) is not None:
        return str(ip)
    if (match := _NODE.fullmatch(text)) is None:
        return None
    node = match[1] or match[2]
    if node[0] == "_" or node == "unknown":
        return node
    return None if (ip := _ip(node)) is None else str(ip)


def _from_right(text: str, hops: int) -> str:
    values = [value.strip(" \t") for value in text.split(",")]
    return values[-min(hops, len(values))]


def _agreed(one: str, other: str) -> str:
    """The value that is given once, or twice identically; "" if the two differ."""
    return "" if one and other and one.lower() != other.lower() else one or other
