"""The one HTTP client that connects to applications' endpoints.

Invariants: every address a name resolves to must be allowed, or none is used. The address is judged a second time when
the socket for it is opened, so what is connected to is what was judged: a name that resolves differently later (DNS
rebinding) gains nothing. No redirect is followed, no proxy, cookie or compressed answer is taken. A request has one
time limit, over everything from the name to the answer's last byte; of an answer at most MAX_ANSWER bytes are read and
KEPT_ANSWER are kept. What comes before its status, and what nobody asked for behind it, is bounded too (`_Answers`).

Deliberately absent: what is allowed (`allowed.py`), what is sent (`webhook.py`, `soap_compat`), and when it is tried
again (`deliverer.py`).
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
from app.ports import Sent

MAX_ANSWER = 64 * 1024
"""Bytes of an answer that are read; the connection is closed on the rest."""

KEPT_ANSWER = 2048
"""Bytes of an answer that are kept with the attempt."""

MAX_INFORMATIONAL = 16
"""Informational answers (1xx) that are taken before a status; who sends more is cut off."""

MAX_BEFORE_STATUS = 64 * 1024
"""Bytes that may come before an answer's head is complete, informational answers included."""

KEEP_ALIVE_S = 4.0
"""How long an idle connection is kept: less than the five seconds after which common servers close theirs."""

MAX_LOOKUPS = 8
"""Names that are resolved at a time; the others wait, within their request's time limit."""

_SLICE = 4096
"""Bytes that are parsed before it is looked at what they were."""

_DNS_CACHE_S = 10
_MAX_RETRY_AFTER_DIGITS = 9

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a host name and port to the texts of its addresses. Raises OSError."""

OpenSocket = Callable[[tuple[Any, ...]], socket.socket]
"""Makes a socket for an entry as `socket.getaddrinfo` gives it; it is connected to that entry's address."""


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


class _Answers(ResponseHandler):
    """aiohttp's end of a connection, bounded where aiohttp takes whatever comes: it would make a message of each
    informational answer, and of each answer that nobody asked for, without end and a socket's buffer full at a time.

    So that little is parsed before it is counted, bytes are handed on in slices. A connection that is cut gives the
    request `malformed`, unless its status came before.
    """

    _answered = True
    """Whether the request has its status; so it is when there is no request."""
    _informational = 0
    _before_status = 0
    _cut = False

    def set_response_params(self, **params: Any) -> None:
        """A request begins; what came before it is parsed in here."""
        self._answered, self._informational, self._before_status = False, 0, 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Called with nothing to go on parsing, too."""
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
        """One answer has its head."""
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
        """Why a connection was cut is not overwritten by what comes of cutting it."""
        if not self._cut:
            super().set_exception(exc, *cause)

    def _cut_off(self) -> None:
        self.set_exception(HttpProcessingError(code=0, message="too much before the status, or behind the answer"))
        self._cut = True
        if self.transport is not None:
            self.transport.abort()


class _Connector(aiohttp.TCPConnector):
    """Makes connections of `_Answers`; aiohttp has no public place to say so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(_Answers, loop=self._loop)  # type: ignore[assignment]  # a subclass


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
            connector=_Connector(
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
                raise refused(
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
            raise refused("forbidden-address", f"The endpoint's host {endpoint.host} is at an address not allowed.")
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
