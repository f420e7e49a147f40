"""Which sinks are allowed: parses their URLs, and checks network addresses.

Invariants: a sink's URL is parsed here only, strictly, and used in its parsed form.
"""

import errno
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from yarl import URL

from app.domain.errors import SinkRefused

MAX_URL_LENGTH = 2048

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/3", "168.63.129.16/32"),
    )
)
"""IANA's special-purpose IPv4 addresses (RFC 6890), multicast and reserved addresses; and 168.63.129.16, at which each
virtual machine of Microsoft Azure reaches its host, with configuration and secrets."""

_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
"""Teredo, ORCHID, benchmarking, documentation and 6to4 within the range of public IPv6 addresses."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?P<fragment>#.*)?"
)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]@]+)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_\-]{0,61}[a-z0-9_])?")
_PRINTABLE = re.compile(r"[!-\[\]-~]*")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


class ForbiddenAddress(OSError):
    """Connections to this address are not allowed."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, f"{address} may not be connected to")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the operator allows. `networks` are allowed beside the public internet, and may contain loopback."""

    networks: tuple[Network, ...] = ()
    allow_http: bool = False

    @classmethod
    def of(cls, networks: Iterable[str], *, allow_http: bool) -> "Rules":
        """From networks in CIDR notation. Raises ValueError."""
        return cls(networks=tuple(map(ipaddress.ip_network, networks)), allow_http=allow_http)

    def permits(self, address: str) -> bool:
        """Whether a connection to the address may be opened; False for a text that is not an IP address."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return self._permits(ip)

    def _permits(self, ip: _Address) -> bool:
        if isinstance(ip, ipaddress.IPv6Address):
            if ip.ipv4_mapped is not None:
                return self._permits(ip.ipv4_mapped)
            if ip in _NAT64:  # RFC 6052: a translator connects to the IPv4 address in the last 32 bits
                return self._permits(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
            public = ip in _PUBLIC_V6 and not any(ip in network for network in _NOT_PUBLIC_V6)
        else:
            public = not any(ip in network for network in _NOT_PUBLIC_V4)
        return public or any(ip in network for network in self.networks if network.version == ip.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A parsed URL: canonical, in ASCII, without credentials or fragment."""

    scheme: str
    host: str
    """A name in A-labels (RFC 5891), an IPv4 address, or an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query."""

    @property
    def url(self) -> str:
        """The whole URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == {"https": 443, "http": 80}[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.target}"


@lru_cache(maxsize=4096)
def read_endpoint(url: str, *, allow_http: bool) -> Endpoint:
    """Parses a sink's URL. Raises SinkRefused, whose `details["reason"]` is a word for the problem.

    An IPv4 address must be written as four decimal numbers: the octal, hexadecimal, short and one-number forms that C
    libraries take are refused.
    """
    if len(url) > MAX_URL_LENGTH:
        raise refused("length", f"The sink's URL is longer than {MAX_URL_LENGTH} characters.")
    match = _URL.fullmatch(url)
    if match is None:
        raise refused("url", "The sink must be an absolute URL such as https://example.com/events.")
    scheme, authority = match["scheme"].lower(), match["authority"]
    if scheme != "https" and not (scheme == "http" and allow_http):
        allowed = "https or http" if allow_http else "https"
        raise refused("scheme", f"The sink's scheme must be {allowed}, not {scheme[:32]}.")
    if "@" in authority:
        raise refused("credentials", "The sink's URL must not contain credentials.")
    if match["fragment"] is not None:
        raise refused("fragment", "The sink's URL must not have a fragment.")
    target = (match["path"] or "/") + (match["query"] or "")
    if not _PRINTABLE.fullmatch(target):
        raise refused("url", "The sink's path and query must be printable ASCII; percent-encode the rest.")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise refused("host", "The sink's URL has no host, or no port after its colon.")
    port = int(parts["port"]) if parts["port"] else {"https": 443, "http": 80}[scheme]
    if port not in (80, 443) and not 1024 <= port <= 65535:
        raise refused("port", f"The sink's port {port} is not 80, 443, or 1024 to 65535.")
    return Endpoint(scheme=scheme, host=_read_host(parts["host"]), port=port, target=target)


def _read_host(host: str) -> str:
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise refused("host", f"The sink's host {host[:64]} is not an IPv6 address.") from None
    if not host.isascii():
        try:
            host = URL.build(scheme="https", host=host).raw_host or ""
        except (ValueError, UnicodeError):
            raise refused("host", "The sink's host is not an internationalized domain name.") from None
    host = host.lower()
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise refused(
                "host", f"The sink's host {host[:64]} is not an IPv4 address of four decimal numbers."
            ) from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise refused("host", f"The sink's host {host[:64]!r} is not a domain name.")
    return host


def refused(reason: str, message: str) -> SinkRefused:
    """The error for a sink that is not allowed; `reason` is one word."""
    return SinkRefused(message, reason=reason)
