"""The HTTP client for sinks.

Invariants: a host is used only if every address that it resolves to is allowed. The address is checked again when its
socket is opened, so a name that resolves differently later (DNS rebinding) is refused. Redirects, proxies, cookies and
compressed responses are not used. One time limit covers a request from the name lookup to the last byte; at most
MAX_ANSWER bytes of a response are read and KEPT_ANSWER kept. Bytes before the status, and unrequested bytes after the
response, are bounded too (`_Answers`).
"""

import asyncio
import errno
import functools
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, RawResponseMessage
from aiohttp.streams import StreamReader
from yarl import URL

from app.domain.errors import SinkUnreachable
from app.egress.allowed import Endpoint, ForbiddenAddress, Rules, read_endpoint, refused
from app.ports.delivery import Sent

MAX_ANSWER = 64 * 1024
"""Bytes of a response that are read; then the connection is closed."""

KEPT_ANSWER = 2048
"""Bytes of a response that are stored with the attempt."""

MAX_INFORMATIONAL = 16
"""Informational responses (1xx) before the final status; with more, the connection is closed."""

MAX_BEFORE_STATUS = 64 * 1024
"""Most bytes until a response's head is complete, with informational responses."""

KEEP_ALIVE_S = 4.0
"""How long an idle connection is kept: common servers close theirs after five seconds."""

MAX_LOOKUPS = 8
"""Concurrent name lookups; others wait within their request's time limit."""

_SLICE = 4096
"""Bytes that are parsed between two checks of the limits."""

_DNS_CACHE_S = 10
_MAX_RETRY_AFTER_DIGITS = 9

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a host name and port to its addresses as texts. Raises OSError."""

OpenSocket = Callable[[tuple[Any, ...]], socket.socket]
"""Opens a socket for an entry of `socket.getaddrinfo`; the caller connects the socket to the entry's address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response. `outcome` is `answered`, or a word for the failure before a status: `refused`, `dns`,
    `forbidden-address`, `unreachable`, `tls`, `reset`, `timed-out`, `malformed`."""

    outcome: str
    code: int = 0
    """The HTTP status; 0 without a response."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Case-insensitive."""
    body: bytes = b""
    """At most `keep` bytes (`Egress.request`); see `complete`."""
    complete: bool = False
    """Whether `body` is the whole response."""
    retry_after_s: float | None = None

    def as_sent(self) -> Sent:
        """The result of a delivery attempt: 2xx is delivered, 410 is gone, everything else (also 3xx) has failed."""
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
    """Seconds of a Retry-After header (RFC 9110 section 10.2.3), at least 0; None if it is absent or malformed. The
    caller must set an upper bound."""
    text = (text or "").strip()
    if not text:
        return None
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
    """aiohttp's resolver, which resolves a name only if all its addresses are allowed."""

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
            raise OSError(errno.ENOENT, f"{host} has no IP address")
        return found

    async def close(self) -> None:
        """Does nothing: there is nothing to close."""


class _Answers(ResponseHandler):
    """aiohttp's protocol of a connection, with limits: aiohttp itself would parse any number of informational and
    unrequested responses, a whole socket buffer at a time.

    Bytes are parsed in slices, so that little is parsed before it is counted. If a limit closes the connection, the
    request's outcome is `malformed`, unless its status has arrived.
    """

    _answered = True
    """Whether the request has its status; True without a request."""
    _informational = 0
    _before_status = 0
    _cut = False

    def set_response_params(self, **params: Any) -> None:
        """A request begins; bytes that arrived earlier are parsed in this call."""
        self._answered, self._informational, self._before_status = False, 0, 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Also called without data, to continue parsing."""
        for start in range(0, len(data) or 1, _SLICE):
            if self._cut:
                return
            piece = data[start : start + _SLICE]
            super().data_received(piece)
            if not self._answered:
                self._before_status += len(piece)
                if self._before_status > MAX_BEFORE_STATUS:
                    self._cut_off()

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """The head of a response is complete."""
        if self._cut:
            return
        if 100 <= data[0].code < 200 and data[0].code != 101:
            self._informational += 1
        if self._answered or self._informational > MAX_INFORMATIONAL:
            self._cut_off()
            return
        self._answered = data[0].code >= 200 or data[0].code == 101
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Keeps the first exception: closing the connection causes further ones."""
        if not self._cut:
            super().set_exception(exc, *cause)

    def _cut_off(self) -> None:
        self.set_exception(HttpProcessingError(code=0, message="too much before the status, or after the response"))
        self._cut = True
        if self.transport is not None:
            self.transport.abort()


class _Connector(aiohttp.TCPConnector):
    """Makes connections with `_Answers`; aiohttp has no public interface to do so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(_Answers, loop=self._loop)  # type: ignore[assignment]  # a subclass


class Egress:
    """The HTTP client for sinks. Created in the event loop that uses it, and closed by `aclose`.

    `total_s` limits a whole request, `connect_s` the opening of a connection. `now` is for Retry-After dates.
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
            connector=_Connector(
                limit=0,  # the callers limit the requests in flight
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
        """Parses the URL, resolves its host and checks each address, without connecting.

        Raises SinkRefused, SinkUnreachable. Messages never contain the address that a name resolves to.
        """
        return (await self._judged(url))[0]

    async def connect(self, url: str) -> None:
        """As `check`; also opens a connection (with TLS for https), and closes it without sending anything.

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
                raise refused(
                    "forbidden-address", f"The sink's host {endpoint.host} is at an address that is not allowed."
                ) from None
            except OSError as failed:  # TimeoutError and ssl.SSLError are OSErrors
                error = failed
        raise SinkUnreachable(
            f"The sink at {endpoint.host} port {endpoint.port} cannot be connected to: {_connect_outcome(error)}.",
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
                raise SinkUnreachable(f"The sink's host {endpoint.host} cannot be resolved.", reason="dns") from None
        if not addresses:
            raise SinkUnreachable(f"The sink's host {endpoint.host} has no IP address.", reason="dns")
        if not all(self.rules.permits(address) for address in addresses):
            raise refused("forbidden-address", f"The sink's host {endpoint.host} is at an address that is not allowed.")
        return endpoint, addresses

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, keep: int = KEPT_ANSWER
    ) -> Reply:
        """Sends one request and returns the response, with `keep` bytes of its body (at most MAX_ANSWER).

        Raises SinkRefused for a URL that is not allowed; other failures are the reply's `outcome`. A status that
        arrived in time counts, even if reading the body fails.
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
        """Opens the socket after the second check, of the address that it will be connected to."""
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
