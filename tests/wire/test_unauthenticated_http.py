"""HTTP connections without an authenticated request: bounded per address, without delay for other clients."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.domain.records import Client
from app.main import Gateway, run_gateway
from app.rest.connection import MAX_PIPELINED
from app.rest.work_queue import WorkQueue
from app.sandbox import Sandbox
from app.servers import bound, serve_http
from soap_compat.request_envelope import MAX_HEADER_BYTES, SLICE_BYTES, SMALL_SLICE_BYTES, RequestEnvelope
from tests.support.core import new_database, run_core
from tests.support.http_face import http_face
from tests.support.settings import settings_for
from tests.support.soap import envelope
from tests.support.waiting import DEADLINE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST = 4
PROXY, STRANGER, OTHER = "127.0.0.2", "127.0.0.3", "127.0.0.4"
OPERATOR = Client(id="operator", name="operator", created_at=datetime(2026, 1, 2, tzinfo=UTC), admin=True)
PROBE = "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
SLOW = "POST /parlayx/TerminalStatus HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: {0}\r\nContent-Type: text/xml\r\n"
SLOW += "Content-Length: 4\r\nExpect: 100-continue\r\n\r\n"

HEAD = f"<e:Envelope xmlns:e='http://schemas.xmlsoap.org/soap/envelope/'><e:Header>{'<b/>' * 18_000}"
ENVELOPE = f"POST /parlayx/TerminalStatus HTTP/1.1\r\nHost: h\r\nContent-Type: text/xml\r\nContent-Length: {len(HEAD)}"
ENVELOPE += f"\r\n\r\n{HEAD}"


def noting(method: Callable[..., Any], note: Callable[[], object]) -> Callable[..., Any]:
    """Wraps the method: calls `note` first."""

    def noted(*args: Any, **named: Any) -> Any:
        note()
        return method(*args, **named)

    return noted


@contextmanager
def passes() -> Iterator[Callable[[], int]]:
    """Counts the passes of the event loop."""
    loop, number, counting = asyncio.get_running_loop(), 0, True

    def count() -> None:
        nonlocal number
        number += 1
        if counting:
            loop.call_soon(count)

    count()
    yield lambda: number
    counting = False


@dataclass
class Talk:
    """A connection that stays open."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: str = PROBE) -> str:
        """Sends a request; returns the head of the answer, "" where the connection has ended."""
        try:
            self.writer.write(request.encode())
            async with asyncio.timeout(DEADLINE_S):
                head = await self.reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                await self.reader.readexactly(length)
        except (ConnectionError, asyncio.IncompleteReadError):
            return ""
        return head.decode()

    async def ends(self) -> bool:
        """Waits for the end of the connection; whether it came."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self.reader.read() == b""
        except ConnectionError:
            return True


@dataclass
class World:
    """A gateway that allows MOST unauthenticated connections of an address, and trusts PROXY."""

    gateway: Gateway
    key: str
    opened: list[Talk] = field(default_factory=list)

    async def open(self, by: str, count: int = 1) -> list[Talk]:
        host, _, port = self.gateway.http_address.rpartition(":")
        made = [Talk(*await asyncio.open_connection(host, int(port), local_addr=(by, 0))) for _ in range(count)]
        self.opened += made
        return made

    @property
    def question(self) -> str:
        return f"GET /v1/groups HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {self.key}\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(sandbox: Sandbox) -> AsyncIterator[World]:
    settings = settings_for(sandbox.uri, trusted_proxies=PROXY, http_max_unauthenticated=MOST)
    async with run_gateway(settings) as running:
        _, key = await running.use_cases.administration.create_client(
            OPERATOR, "app", client_id="app", admin=False, limits={}
        )
        yield World(running, key)


@pytest.fixture
def world(gateway: World) -> Iterator[World]:
    yield gateway
    for talk in gateway.opened:
        talk.writer.transport.abort()
    gateway.opened.clear()


async def test_one_more_closes_the_oldest(world: World) -> None:
    """One address may have MOST silent connections; each further one is served and closes the oldest. Connections of
    another address stay."""
    (bystander,) = await world.open(OTHER)
    silent = await world.open(STRANGER, MOST)
    for oldest in silent:
        (new,) = await world.open(STRANGER)
        assert " 200 " in await new.ask()
        assert await oldest.ends()
    assert " 200 " in await bystander.ask()


async def test_authenticated_connections_do_not_count(world: World) -> None:
    """Connections that brought a good key stay, however many there are and whatever else comes from their address; a
    bad key does not protect its connection."""
    known = []
    for _ in range(2 * MOST):
        known += await world.open(STRANGER)
        assert " 200 " in await known[-1].ask(world.question)
    bad = world.question.replace(world.key, world.key + "x")
    (refused,) = await world.open(STRANGER)
    assert " 401 " in await refused.ask(bad)
    for talk in await world.open(STRANGER, 2 * MOST):
        await talk.ask()
    assert await refused.ends()
    for talk in known:
        assert " 200 " in await talk.ask(world.question)


async def test_a_known_caller_over_soap_does_not_count(world: World) -> None:
    """Authenticated connections over SOAP stay too."""
    head = f"POST /parlayx/TerminalStatus HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {world.key}\r\n"
    (known,) = await world.open(STRANGER)
    assert " 500 " in await known.ask(f"{head}Content-Type: text/xml\r\nContent-Length: 4\r\n\r\n<a/>")
    for talk in await world.open(STRANGER, MOST):
        assert " 200 " in await talk.ask()
    assert " 200 " in await known.ask(world.question)


async def test_strangers_behind_a_proxy(world: World) -> None:
    """A proxy's silent connections do not count. Its requests count, while they run, for the client that the proxy
    names."""
    idle = await world.open(PROXY, 2 * MOST)
    other, *slow = await world.open(PROXY, 1 + MOST)
    for talk in (other, *slow):
        client = "192.0.2.2" if talk is other else "192.0.2.1"
        talk.writer.write(SLOW.format(client).encode())
        async with asyncio.timeout(DEADLINE_S):
            assert b" 100 " in await talk.reader.readuntil(b"\r\n\r\n")
    named = PROBE.replace("\r\n\r\n", "\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n")
    for _ in range(3):  # one after the other they count as one
        assert " 200 " in await idle[0].ask(named)
    assert await slow[0].ends()
    for talk in (other, *slow[1:]):
        assert " 500 " in await talk.ask("<a/>")
    for talk in idle:
        assert " 200 " in await talk.ask()


async def test_probes_are_always_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of connections probes are still answered, and other requests are not."""
    monkeypatch.setattr("app.servers.MAX_HTTP_CONNECTIONS", MOST)
    async with run_core(await new_database(tmp_path)) as core, http_face(core) as face:
        host, _, port = face.url.removeprefix("http://").rpartition(":")
        talks = [Talk(*await asyncio.open_connection(host, int(port))) for _ in range(2 * MOST)]
        assert " 503 " in await talks[-1].ask(PROBE.replace("/healthz", "/v1/groups"))
        for path in ("/healthz", "/readyz", "/healthz?verbose"):
            assert " 200 " in await talks[0].ask(PROBE.replace("/healthz", path))
        for talk in talks:
            talk.writer.transport.abort()


async def test_pipelined_requests_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many requests in one packet are answered; too many end the connection before all are read."""
    (talk,) = await world.open(STRANGER)
    talk.writer.write(PROBE.encode() * MAX_PIPELINED)
    for _ in range(MAX_PIPELINED):
        assert " 200 " in await talk.ask("")
    begun = list[int]()
    monkeypatch.setattr(
        HttpToolsProtocol, "on_headers_complete", noting(HttpToolsProtocol.on_headers_complete, lambda: begun.append(1))
    )
    talk.writer.write(b"GET / HTTP/1.1\r\n\r\n" * 3_000)
    assert await talk.ends()
    assert len(begun) == MAX_PIPELINED + 1


async def test_strangers_take_turns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests on many connections are not all begun in one pass of the event loop, nor are slices of their envelopes
    all read in one."""
    pieces = list[int]()
    with passes() as now:
        for owner, name in ((HttpToolsProtocol, "_start_asgi_task"), (RequestEnvelope, "_feed")):
            monkeypatch.setattr(owner, name, noting(getattr(owner, name), lambda: pieces.append(now())))
        talks = await world.open(STRANGER, MOST) + await world.open(OTHER, MOST)
        answers = await asyncio.gather(*[talk.ask(ENVELOPE) for talk in talks])
    assert [" 500 " in answer for answer in answers] == [True] * 2 * MOST
    assert len(pieces) > 2 * MOST * MAX_HEADER_BYTES // SLICE_BYTES
    assert max(Counter(pieces).values()) <= 2  # one where nothing waited, and the next one's in the same pass


async def test_long_envelopes_of_clients_take_turns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long envelopes are read in rotation, so that one client's large requests do not delay the others."""
    body = envelope(f"<a>{'<b/>' * 18_000}</a>")
    request = f"{world.question.replace('GET /v1/groups', 'POST /parlayx/TerminalStatus').strip()}\r\n"
    request += f"Content-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    read, slices = vars(RequestEnvelope)["_feed"], list[int]()

    def feed(reading: RequestEnvelope, piece: bytes, *, last: bool = False) -> None:
        slices.extend([now()] if len(piece) > SMALL_SLICE_BYTES else [])
        read(reading, piece, last=last)

    with passes() as now:
        monkeypatch.setattr(RequestEnvelope, "_feed", feed)
        talks = list[Talk]()
        for _ in range(4 * MOST):
            talks += await world.open(OTHER)
            assert " 200 " in await talks[-1].ask(world.question)
        answers = await asyncio.gather(*[talk.ask(request) for talk in talks])
    assert [" 500 " in answer for answer in answers] == [True] * 4 * MOST  # an unknown operation
    assert len(slices) > 4 * MOST * (len(body) // SLICE_BYTES - 2)
    assert max(Counter(slices).values()) <= 2


async def test_turns_go_by_address() -> None:
    """A new connection waits for at most one piece of each other address, however many that has; the order within an
    address is kept."""
    turns, done = WorkQueue(), list[str]()
    for address, name in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("a", "a4"), ("c", "c1"), ("b", "b2")):
        turns.add(address, partial(done.append, name))
    assert done == ["a1"]
    await turns.wait_for_turn("b")
    assert done == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_many_connections_are_accepted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that arrives behind many others does not wait one pass of the event loop for each of them."""
    made = list[int]()

    async def accept() -> None:
        with bound("127.0.0.1:0") as listening, passes() as now:
            noted = noting(HttpToolsProtocol.connection_made, lambda: made.append(now()))
            monkeypatch.setattr(HttpToolsProtocol, "connection_made", noted)
            async with serve_http(PlainTextResponse(), listening, None):
                sockets = [socket.create_connection(listening.getsockname()) for _ in range(64)]
                await until(lambda: len(made) == 64)
                for each in sockets:
                    each.close()

    def run() -> None:
        with asyncio.Runner(
            loop_factory=uvloop.new_event_loop
        ) as runner:  # uvloop, as in `serve`; asyncio's own loop has no limit
            runner.run(accept())

    await asyncio.to_thread(run)
    assert made[-1] - made[0] < 64 // 4
