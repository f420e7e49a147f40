"""Which endpoints of applications may be connected to, and the one HTTP client that connects to them.

Invariants: a URL is read here and nowhere else, strictly, and sent on in the form it was read in. Every address a name
resolves to must be allowed, or none is used. The address is judged a second time when the socket for it is opened, so
what is connected to is what was judged: a name that resolves differently later (DNS rebinding) gains nothing. No
redirect is followed, no proxy, cookie or compressed answer is taken. A request has one time limit, over everything
from the name to the answer's last byte; of an answer at most MAX_ANSWER bytes are read and KEPT_ANSWER are kept.

Deliberately absent: what is sent (`webhook.py`, `soap_compat`), and when it is tried again (`delivery.py`).
"""

import asyncio
import errno
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from app.domain import SinkRefused, SinkUnreachable
from app.ports import Sent

MAX_URL_LENGTH = 2048
MAX_ANSWER = 64 * 1024
"""Bytes of an answer that are read; the connection is closed on the rest."""

KEPT_ANSWER = 2048
"""Bytes of an answer that are kept with the attempt."""

KEEP_ALIVE_S = 4.0
"""How long an idle connection is kept: less than the five seconds after which common servers close theirs."""

MAX_LOOKUPS = 8
"""Names that are resolved at a time; the others wait, within their request's time limit."""

_DNS_CACHE_S = 10
_MAX_RETRY_AFTER_DIGITS = 9

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a host name and port to the texts of its addresses. Raises OSError."""

OpenSocket = Callable[[tuple[Any, ...]], socket.socket]
"""Makes a socket for an entry as `socket.getaddrinfo` gives it; it is connected to that entry's address."""

_NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        "224.0.0.0/3",
    )
)
"""IANA's special-purpose IPv4 addresses (RFC 6890), multicast and what is reserved."""

_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
"""Teredo, ORCHID, benchmarks, documentation and 6to4 in the range of public IPv6 addresses."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?P<fragment>#.*)?"
)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]@]+)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_\-]{0,61}[a-z0-9_])?")
_PRINTABLE = re.compile(r"[!-\[\]-~]*")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


class ForbiddenAddress(OSError):
    """The address may not be connected to."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, f"{address} may not be connected to")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the operator allows. `networks` are allowed beside the public internet, loopback too if it is named."""

    networks: tuple[Network, ...] = ()
    allow_http: bool = False

    @classmethod
    def of(cls, networks: Iterable[str], *, allow_http: bool) -> "Rules":
        """From networks as `ipaddress.ip_network` reads them, in CIDR notation. Raises ValueError."""
        return cls(networks=tuple(map(ipaddress.ip_network, networks)), allow_http=allow_http)

    def permits(self, address: str) -> bool:
        """Whether a connection to the address may be opened. What is no plain IP address may not."""
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
    """A URL that was read: canonical, in ASCII, without credentials or fragment."""

    scheme: str
    host: str
    """A name in A-labels (RFC 5891), an IPv4 address, or an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query."""

    @property
    def url(self) -> str:
        """The whole of it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == {"https": 443, "http": 80}[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.target}"


@lru_cache(maxsize=4096)
def read_endpoint(url: str, *, allow_http: bool) -> Endpoint:
    """Reads an endpoint's URL. Raises SinkRefused, whose `details["reason"]` is one word for what is wrong.

    An IPv4 address must be written as four decimal numbers: the octal, hexadecimal, short and one-number forms that C
    libraries take are refused.
    """
    if len(url) > MAX_URL_LENGTH:
        raise _refused("length", f"The endpoint's URL is longer than {MAX_URL_LENGTH} characters.")
    match = _URL.fullmatch(url)
    if match is None:
        raise _refused("url", "The endpoint is no absolute URL such as https://example.com/events.")
    scheme, authority = match["scheme"].lower(), match["authority"]
    if scheme != "https" and not (scheme == "http" and allow_http):
        allowed = "https or http" if allow_http else "https"
        raise _refused("scheme", f"The endpoint's scheme must be {allowed}, not {scheme[:32]}.")
    if "@" in authority:
        raise _refused("credentials", "The endpoint's URL may not hold credentials.")
    if match["fragment"] is not None:
        raise _refused("fragment", "The endpoint's URL may not have a fragment.")
    target = (match["path"] or "/") + (match["query"] or "")
    if not _PRINTABLE.fullmatch(target):
        raise _refused("url", "The endpoint's path and query must be printable ASCII; percent-encode the rest.")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise _refused("host", "The endpoint's URL names no host, or no port after its colon.")
    port = int(parts["port"]) if parts["port"] else {"https": 443, "http": 80}[scheme]
    if port not in (80, 443) and not 1024 <= port <= 65535:
        raise _refused("port", f"The endpoint's port {port} is not 80, 443, or 1024 to 65535.")
    return Endpoint(scheme=scheme, host=_read_host(parts["host"]), port=port, target=target)


def _read_host(host: str) -> str:
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise _refused("host", f"The endpoint's host {host[:64]} is no IPv6 address.") from None
    if not host.isascii():
        try:
            host = URL.build(scheme="https", host=host).raw_host or ""
        except (ValueError, UnicodeError):
            raise _refused("host", "The endpoint's host is no international domain name.") from None
    host = host.lower()
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise _refused("host", f"The endpoint's host {host[:64]} is no IPv4 address as people write it.") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _refused("host", f"The endpoint's host {host[:64]!r} is no domain name.")
    return host


def _refused(reason: str, message: str) -> SinkRefused:
    return SinkRefused(message, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back. `outcome` is `answered`, or a word for what failed before there was a status: `refused`, `dns`,
    `forbidden-address`, `unreachable`, `tls`, `reset`, `timed-out`, `malformed`."""

    outcome: str
    code: int = 0
    """The HTTP status; 0 where none came."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Without regard to case."""
    body: bytes = b""
    """At most as much as was asked for; see `complete`."""
    complete: bool = False
    """Whether `body` is the whole answer."""
    retry_after_s: float | None = None

    def as_sent(self) -> Sent:
        """What it means for a delivery: 2xx is delivered, 410 is gone, everything else failed, redirects too."""
        delivered = 200 <= self.code < 300
        outcome = "delivered" if delivered else f"http-{self.code}" if self.code else self.outcome
        return Sent(
            delivered=delivered,
            code=self.code,
            outcome=outcome,
            answer=self.body[:KEPT_ANSWER],
            retry_after_s=None if delivered else self.retry_after_s,
            gone=self.code == 410,
        )


def read_retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds of a Retry-After header (RFC 9110 section 10.2.3), at least 0; None where it says nothing that can be
    read. It has no upper bound: who waits sets one."""
    text = (text or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:_MAX_RETRY_AFTER_DIGITS])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - now).total_seconds())


class _Resolver(AbstractResolver):
    """Resolves a name to addresses that are all allowed, for aiohttp."""

    def __init__(self, rules: Rules, lookup: Lookup) -> None:
        self._rules = rules
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found: list[ResolveResult] = []
        for address in await self._lookup(host, port):
            if not self._rules.permits(address):
                raise ForbiddenAddress(address)
            found.append(
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=port,
                    family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST,
                )
            )
        if not found:
            raise OSError(errno.ENOENT, f"{host} has no address")
        return found

    async def close(self) -> None:
        """Holds nothing."""


class Egress:
    """The HTTP client for endpoints. Made in the event loop that uses it, and closed by `aclose`.

    `total_s` limits a request as a whole, `connect_s` the opening of a connection. `now` is for Retry-After dates.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        total_s: float = 10.0,
        connect_s: float = 3.0,
        tls: ssl.SSLContext | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        lookup: Lookup | None = None,
        open_socket: OpenSocket = lambda info: socket.socket(info[0], info[1], info[2]),
    ) -> None:
        self.rules = rules
        self.total_s = total_s
        self._now = now
        self._executor = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="lookup")
        self._lookup = lookup or self._system_lookup
        self._open_socket = open_socket
        self._connect_s = connect_s
        self._tls = tls or ssl.create_default_context()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # whoever calls bounds the requests in flight
                resolver=_Resolver(rules, self._lookup),
                ttl_dns_cache=_DNS_CACHE_S,
                socket_factory=self._socket,
                keepalive_timeout=KEEP_ALIVE_S,
                ssl=self._tls,
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding",),
            headers={"User-Agent": "terminal-status-gateway", "Accept": "*/*"},
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._session.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def check(self, url: str) -> Endpoint:
        """Reads the URL, resolves its host and judges each address, connecting to nothing.

        Raises SinkRefused, SinkUnreachable. Messages never tell the address that a name resolves to.
        """
        return (await self._judged(url))[0]

    async def connect(self, url: str) -> None:
        """As `check`, and opens a connection (with TLS, where the scheme is https) and closes it, sending nothing.

        Raises SinkRefused, SinkUnreachable.
        """
        endpoint, addresses = await self._judged(url)
        error: OSError = ConnectionRefusedError()
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                async with asyncio.timeout(self._connect_s):
                    await self._open(endpoint, (family, socket.SOCK_STREAM, 0, "", (address, endpoint.port)))
                return
            except ForbiddenAddress:
                raise _refused(
                    "forbidden-address", f"The endpoint's host {endpoint.host} is at an address not allowed."
                ) from None
            except OSError as failed:  # TimeoutError and ssl.SSLError are OSErrors
                error = failed
        raise SinkUnreachable(
            f"The endpoint at {endpoint.host} port {endpoint.port} cannot be connected to: {_connect_outcome(error)}.",
            reason=_connect_outcome(error),
        ) from None

    async def _open(self, endpoint: Endpoint, info: tuple[Any, ...]) -> None:
        loop = asyncio.get_running_loop()
        with self._socket(info) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, info[4])
            if endpoint.scheme == "https":
                transport, _ = await loop.create_connection(
                    asyncio.Protocol, sock=sock.dup(), ssl=self._tls, server_hostname=endpoint.host
                )
                transport.abort()

    async def _judged(self, url: str) -> tuple[Endpoint, Sequence[str]]:
        endpoint = read_endpoint(url, allow_http=self.rules.allow_http)
        try:
            ipaddress.ip_address(endpoint.host)
            addresses: Sequence[str] = [endpoint.host]
        except ValueError:
            try:
                async with asyncio.timeout(self.total_s):
                    addresses = await self._lookup(endpoint.host, endpoint.port)
            except (OSError, UnicodeError):  # TimeoutError is an OSError
                raise SinkUnreachable(
                    f"The endpoint's host {endpoint.host} cannot be resolved.", reason="dns"
                ) from None
        if not addresses:
            raise SinkUnreachable(f"The endpoint's host {endpoint.host} has no address.", reason="dns")
        if not all(self.rules.permits(address) for address in addresses):
            raise _refused("forbidden-address", f"The endpoint's host {endpoint.host} is at an address not allowed.")
        return endpoint, addresses

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, keep: int = KEPT_ANSWER
    ) -> Reply:
        """Sends one request and reads the answer: `keep` bytes of it (at most MAX_ANSWER) are returned.

        Raises SinkRefused for a URL that is not allowed; whatever else goes wrong is the reply's `outcome`. A status
        that came in time counts, whatever becomes of the body behind it.
        """
        target = URL(read_endpoint(url, allow_http=self.rules.allow_http).url, encoded=True)
        code, answer_headers, kept, complete = 0, dict[str, str](), bytearray(), False
        outcome = "answered"
        try:
            async with (
                asyncio.timeout(self.total_s),
                self._session.request(
                    method, target, data=body or None, headers=headers, allow_redirects=False
                ) as response,
            ):
                code, answer_headers = response.status, response.headers  # type: ignore[assignment]  # read-only view
                read = 0
                while read < MAX_ANSWER:
                    chunk = await response.content.read(MAX_ANSWER - read)
                    if not chunk:
                        complete = read <= keep
                        break
                    read += len(chunk)
                    kept += chunk[: max(0, keep - len(kept))]
                else:
                    response.close()
        except (OSError, aiohttp.ClientError, ValueError) as error:
            if not code:
                outcome = _outcome(error)
        return Reply(
            outcome=outcome,
            code=code,
            headers=answer_headers,
            body=bytes(kept),
            complete=complete,
            retry_after_s=read_retry_after(answer_headers.get("Retry-After"), self._now()) if code else None,
        )

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """The second judgement: of the very address that is connected to."""
        if not self.rules.permits(str(info[4][0])):
            raise ForbiddenAddress(str(info[4][0]))
        return self._open_socket(info)

    async def _system_lookup(self, host: str, port: int) -> Sequence[str]:
        def lookup() -> list[str]:
            return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

        return await asyncio.get_running_loop().run_in_executor(self._executor, lookup)


def _connect_outcome(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timed-out"
    if isinstance(error, ssl.SSLError):
        return "tls"
    return "refused" if isinstance(error, ConnectionRefusedError) else "unreachable"


def _outcome(error: Exception) -> str:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ForbiddenAddress) or isinstance(error, aiohttp.InvalidURL):
        return "forbidden-address"
    if isinstance(error, TimeoutError):
        return "timed-out"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(error, aiohttp.ClientSSLError):
        return "tls"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "refused" if isinstance(cause, ConnectionRefusedError) else "unreachable"
    if isinstance(error, aiohttp.ServerDisconnectedError | OSError):  # ClientOSError, a reset in mid-answer
        return "reset"
    return "malformed"
