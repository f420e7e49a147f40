"""Real HTTP(S) receivers on loopback that applications could run, well-behaved and hostile, for tests of deliveries."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

WAIT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request. A behaviour that raises ConnectionAbortedError has the connection reset."""


def answer(code: int = 204, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Behaviour:
    """Answers at once with this status, headers and body."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {code} X", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        if code != 204:
            lines.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()

    return behave


def raw(data: bytes, *, close: bool = True) -> Behaviour:
    """Writes exactly these bytes and closes."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return behave


async def hang(request: Request, writer: asyncio.StreamWriter) -> None:
    """Never answers."""
    await asyncio.Event().wait()


async def reset(request: Request, writer: asyncio.StreamWriter) -> None:
    """Resets the connection instead of answering."""
    raise ConnectionAbortedError


def drip(first: bytes, endless: bytes, *, every_s: float = 0.01) -> Behaviour:
    """Sends `first`, then a piece of `endless` again and again, slowly."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while not writer.is_closing():
            writer.write(endless)
            await writer.drain()
            await asyncio.sleep(every_s)

    return behave


def gigabyte() -> Behaviour:
    """Answers 200 with a gigabyte, or as much of it as the client reads; `sent` counts the bytes."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 1073741824\r\n\r\n")
        for _ in range(1 << 14):
            writer.write(b"G" * 65536)
            await writer.drain()

    return behave


def flood(first: bytes, endless: bytes) -> Behaviour:
    """Sends `first`, then `endless` again and again, as fast as the client reads."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while not writer.is_closing():
            writer.write(endless)
            await writer.drain()

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Each behaviour once, then the last one for ever."""
    left = list(behaviours)

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, writer)

    return behave


@dataclass
class Receiver:
    """A running receiver. `behave` may be replaced while it runs."""

    behave: Behaviour
    scheme: str
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    most_at_once: int = 0
    _now: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}/events"

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds; checks it whenever a request arrives or ends."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(condition)

    async def wait_for_requests(self, count: int) -> None:
        """Waits until this number of requests has come."""
        await self.wait_for(lambda: len(self.requests) >= count)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection, request after request."""
        self.connections += 1
        self.open_connections += 1
        try:
            while not writer.is_closing():
                request = await _read_request(reader)
                self.requests.append(request)
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
                await self._tell()
                try:
                    await self.behave(request, writer)
                finally:
                    self._now -= 1
        except ConnectionAbortedError:
            writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()
            await self._tell()


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method=method, target=target, headers=headers, body=body)


@asynccontextmanager
async def receiver(
    behave: Behaviour | None = None, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """A receiver on 127.0.0.1 while the context is open; it answers 204 unless the test sets a behaviour."""
    running = Receiver(behave or answer(), "https" if tls else "http")
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(running.connected(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", port, ssl=tls, backlog=2048)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                await server.wait_closed()


def make_certificate(folder: Path, host: str = "127.0.0.1") -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for the host (an address or a name), and the file of the authority that signed its
    certificate."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    name = f"IP:{host}" if host[0].isdigit() else f"DNS:{host}"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "30", "-subj", "/CN=receiver"),
            *("-addext", f"subjectAltName={name}"),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
