"""Who may have how many gRPC calls open: half-open calls, strangers, health and reflection; and bursts lose nothing."""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from app.auth.proxies import TrustedProxies
from app.domain.errors import GatewayOverloaded, RateLimited, StoreUnavailable, TerminalStatusError
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.rpc import SERVICE_NAME, calls, connection_limits, connections, handlers
from app.rpc.call_limits import EXCESS_PATIENCE_S, PATIENCE_S, Gate, Pool, Waiting
from bench import h2
from tests.support.core import ADMIN, ALICE, APP, OTHER, new_database, run_core
from tests.support.rpc_face import Face, Metadata, face_over, failure_of
from tests.support.waiting import until

LIMIT_S = 30
GET_STATUS = f"/{SERVICE_NAME}/GetStatus"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
WATCH_STATUSES = f"/{SERVICE_NAME}/WatchStatuses"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
PROXY = TrustedProxies.of(["127.0.0.1/32"])
TOO_MANY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "")


@asynccontextmanager
async def face_behind(gate: Gate, tmp_path: Path, *, open_to_all: bool = False, **more: Any) -> AsyncIterator[Face]:
    async with (
        asyncio.timeout(2 * LIMIT_S),
        run_core(await new_database(tmp_path)) as core,
        face_over(core, gate=gate, **more) as face,
    ):
        for client in (APP, OTHER, ADMIN) if open_to_all else ():
            await face.registry.delete(client.id, who="test")
        yield face


def half_open(face: Face, path: str = GET_STATUS, metadata: Metadata | None = None) -> Any:
    """A call of which the server gets the metadata and never a message."""
    return face.channel.stream_stream(path)(metadata=metadata, timeout=LIMIT_S)


def behind(address: str, metadata: Metadata = ()) -> Metadata:
    """As a proxy sends what comes from that address."""
    return (("x-forwarded-for", address), *metadata)


async def status_of(face: Face, metadata: Metadata | None) -> str:
    answer = await face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE), metadata=metadata)
    return str(answer.status.address)


async def health_of(face: Face, metadata: Metadata | None = None) -> Any:
    stub: Any = HealthStub(face.channel)
    return (await stub.Check(HealthCheckRequest(), metadata=metadata)).status


# The gate by itself.


def refusal(enter: Callable[[], object]) -> type[TerminalStatusError] | None:
    try:
        enter()
    except TerminalStatusError as error:
        return type(error)
    return None


def test_a_pool_is_bounded_by_key_and_as_a_whole() -> None:
    """One key has at most its share, all have at most the whole, and who leaves makes room."""
    pool = Pool(2, 5, "here")
    assert [refusal(lambda: pool.enter("a")) for _ in range(3)] == [None, None, RateLimited]
    assert [refusal(lambda: pool.enter("")) for _ in range(3)] == [None, None, None]
    assert refusal(lambda: pool.enter("b")) is GatewayOverloaded
    assert (pool.open, pool.refused) == (5, 2)
    pool.leave("a")
    assert refusal(lambda: pool.enter("a")) is None
    for key in ("a", "a", "", "", ""):
        pool.leave(key)
    assert (pool.open, pool.open_of) == (0, {})


def test_a_call_has_its_time() -> None:
    """Within the bound of its address a call has its whole patience, above it a short one; a proxy has no bound."""
    gate = Gate(max_streams=10, unauthenticated=2)
    given_up: list[str] = []

    def wait(pool: Pool, key: str, at_s: float, name: str) -> Waiting:
        return gate.wait(pool, key, at_s, lambda: given_up.append(name))

    ready = wait(gate.strangers, "a", 0, "ready")
    wait(gate.strangers, "a", 0, "first")
    wait(gate.strangers, "a", 1, "second")
    wait(gate.strangers, "a", 1, "third")
    wait(gate.strangers, "b", 1, "other")
    wait(gate.health, "a", 1, "health")
    for _ in range(3):
        wait(gate.strangers, "", 1, "proxied")
    del gate.waiting[ready]
    gate.sweep(1 + EXCESS_PATIENCE_S - 0.1)
    assert given_up == []
    gate.sweep(1 + EXCESS_PATIENCE_S)
    assert given_up == ["third"]
    gate.sweep(PATIENCE_S)
    assert given_up == ["third", "first"]
    gate.sweep(1 + PATIENCE_S)
    assert given_up == ["third", "first", "second", "other", "health", *["proxied"] * 3]
    assert not gate.waiting


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("ipv6:[::1]:5000", "::1"),
        ("unix:/run/gateway.sock", "unix:/run/gateway.sock"),
    ],
)
def test_addresses_of_peers(peer: str, address: str) -> None:
    """The address that bounds and proxies compare, without port and brackets."""
    assert calls.address_of(peer) == address


# Half-open calls.


@pytest.mark.parametrize("credentials", [(), (("authorization", "Bearer tsk_a_b"),)], ids=["none", "bad"])
async def test_bad_credentials_are_refused_before_the_message(tmp_path: Path, credentials: Metadata) -> None:
    """A call whose metadata show nobody is refused without its message, and leaves nothing behind."""
    gate = Gate(max_streams=10)
    async with face_behind(gate, tmp_path) as face:
        for path in (GET_STATUS, WATCH_STATUSES):
            refused = await failure_of(half_open(face, path, credentials))
            assert refused == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "")
        await until(lambda: not face.calls)
        assert (gate.strangers.open, gate.clients.open, gate.waiting) == (0, 0, {})


async def test_half_open_calls_shut_out_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-open calls of one address, above its bound, are refused soon and those within it later; calls from the same
    and from another address are answered meanwhile."""
    monkeypatch.setattr("app.rpc.call_limits.EXCESS_PATIENCE_S", 0.1)
    monkeypatch.setattr(handlers, "SWEEP_S", 0.05)
    gate = Gate(max_streams=10, unauthenticated=5)
    async with face_behind(gate, tmp_path, open_to_all=True, proxies=PROXY) as face:
        open_calls = [half_open(face, metadata=behind("192.0.2.1")) for _ in range(20)]
        ends = [asyncio.ensure_future(failure_of(call)) for call in open_calls]
        await until(lambda: sum(end.done() for end in ends) == 15)
        assert Counter(end.result() for end in ends if end.done()) == {TOO_MANY: 15}
        for address in ("192.0.2.1", "192.0.2.2"):
            assert await status_of(face, behind(address)) == ALICE
        assert (gate.strangers.open, gate.clients.open) == (5, 0)
        monkeypatch.setattr("app.rpc.call_limits.PATIENCE_S", 0.1)
        assert {await end for end in ends} == {
            TOO_MANY,
            (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", ""),
        }
        await until(lambda: not gate.strangers.open)


async def test_half_open_calls_of_connections_that_end_are_forgotten(tmp_path: Path) -> None:
    """A caller that leaves before its message came counts no longer."""
    gate = Gate(max_streams=10)
    async with face_behind(gate, tmp_path, open_to_all=True) as face:
        for path in (GET_STATUS, REFLECTION):
            call = half_open(face, path)
            await until(lambda: gate.waiting)
            call.cancel()
            await until(lambda: not gate.waiting)
        await until(lambda: not gate.strangers.open and not gate.reflection.open and not face.calls)


async def test_a_call_without_a_message(tmp_path: Path) -> None:
    """A call that ends before it has sent a message is answered, and not left open."""
    async with face_behind(Gate(max_streams=10), tmp_path) as face:
        call = half_open(face, metadata=face.app)
        await call.done_writing()
        assert await failure_of(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "")


async def test_bytes_that_are_no_request(tmp_path: Path) -> None:
    """On each method bytes that are no protobuf are the caller's mistake, with details."""
    async with face_behind(Gate(max_streams=10), tmp_path) as face:
        for path in (
            GET_STATUS,
            WATCH_STATUSES,
            "/terminalstatus.v1.GroupService/GetGroup",
            "/grpc.health.v1.Health/Check",
        ):
            call = half_open(face, path, face.app)
            await call.write(b"\xff\xff")
            assert await failure_of(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "")


async def test_a_client_has_its_share(tmp_path: Path) -> None:
    """Calls count for their client, half-open ones too: one more than its share is refused, another's is answered."""
    gate = Gate(max_streams=10)
    gate.clients = Pool(3, 6, "by this client")
    async with face_behind(gate, tmp_path) as face:
        for _ in range(3):
            half_open(face, metadata=face.app)
        await until(lambda: gate.clients.open == 3)
        assert await failure_of(half_open(face, metadata=face.app)) == TOO_MANY
        assert await status_of(face, face.other) == ALICE


# Addresses.


async def test_a_proxy_is_exempt_and_its_clients_are_not(tmp_path: Path) -> None:
    """Behind a trusted proxy the address that it names is counted; the proxy's own calls are not. Of others the header
    counts for nothing."""
    gate = Gate(max_streams=10, unauthenticated=1)
    gate.strangers = Pool(1, 100, "from this address")
    async with face_behind(gate, tmp_path, open_to_all=True, proxies=PROXY) as face:
        for metadata in ((), (), behind("192.0.2.1"), behind("192.0.2.2")):
            half_open(face, metadata=metadata)
        await until(lambda: gate.strangers.open == 4)
        for address in ("192.0.2.1", "192.0.2.2"):
            assert await failure_of(half_open(face, metadata=behind(address))) == TOO_MANY
    gate = Gate(max_streams=10)
    gate.strangers = Pool(1, 100, "from this address")
    async with face_behind(gate, tmp_path, open_to_all=True) as face:
        half_open(face, metadata=behind("192.0.2.1"))
        await until(lambda: gate.strangers.open == 1)
        assert await failure_of(half_open(face, metadata=behind("192.0.2.2"))) == TOO_MANY


# Health and reflection.


async def test_health_and_reflection_have_pools_of_their_own(tmp_path: Path) -> None:
    """Idle health and reflection streams of one address take nobody's calls, nor the health of another address."""
    gate = Gate(max_streams=10)
    gate.health, gate.reflection = Pool(3, 100, "to health"), Pool(2, 100, "to reflection")
    async with face_behind(gate, tmp_path, proxies=PROXY) as face:
        stub: Any = HealthStub(face.channel)
        for _ in range(3):
            watch = stub.Watch(HealthCheckRequest(), metadata=behind("192.0.2.1"))
            assert (await watch.read()).status == HealthCheckResponse.SERVING
        for _ in range(2):
            half_open(face, REFLECTION, behind("192.0.2.1"))
        await until(lambda: gate.reflection.open == 2)
        for call in (
            half_open(face, REFLECTION, behind("192.0.2.1")),
            stub.Watch(HealthCheckRequest(), metadata=behind("192.0.2.1")),
            stub.Check(HealthCheckRequest(), metadata=behind("192.0.2.1")),
        ):
            assert await failure_of(call) == TOO_MANY
        assert await health_of(face, behind("192.0.2.2")) == HealthCheckResponse.SERVING
        assert await status_of(face, behind("192.0.2.1", face.app)) == ALICE
        assert (gate.strangers.open, gate.clients.open) == (0, 0)


async def test_an_idle_reflection_stream_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reflection stream on which nothing is asked ends."""
    monkeypatch.setattr("app.rpc.call_limits.PATIENCE_S", 0.1)
    monkeypatch.setattr(handlers, "SWEEP_S", 0.05)
    gate = Gate(max_streams=10)
    async with face_behind(gate, tmp_path) as face:
        ended = await failure_of(half_open(face, REFLECTION))
        assert ended == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "")
        await until(lambda: not gate.reflection.open)


# Bursts.


async def test_a_burst_of_new_credentials_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls at once with the same credentials, never seen before, share one look-up, its failure and its success."""
    async with face_behind(Gate(max_streams=10), tmp_path) as face:
        store: Any = face.core.store
        real, looks, failing = store.key, 0, True

        async def key(key_id: str) -> Any:
            nonlocal looks
            looks += 1
            await until(lambda: len(face.calls) == 50)
            if failing:
                raise StoreUnavailable("The store is away.")
            return await real(key_id)

        monkeypatch.setattr(
            face.auth, "_store", type("Slow", (), {"key": staticmethod(key), "clients": store.clients})()
        )
        failures = await asyncio.gather(*[failure_of(half_open(face, metadata=face.app)) for _ in range(50)])
        assert set(failures) == {(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "")}
        failing = False
        assert set(await asyncio.gather(*[status_of(face, face.app) for _ in range(50)])) == {ALICE}
        assert looks == 2


async def test_a_caller_that_leaves_takes_no_look_up_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the call that looks up its credentials is cancelled, the next one with the same looks."""
    async with face_behind(Gate(max_streams=10), tmp_path) as face:
        store: Any = face.core.store
        real, looked, go = store.key, asyncio.Event(), asyncio.Event()

        async def key(key_id: str) -> Any:
            looked.set()
            await go.wait()
            return await real(key_id)

        monkeypatch.setattr(
            face.auth, "_store", type("Slow", (), {"key": staticmethod(key), "clients": store.clients})()
        )
        first = half_open(face, metadata=face.app)
        await looked.wait()
        second = asyncio.ensure_future(status_of(face, face.app))
        await until(lambda: len(face.calls) == 2)
        looked.clear()
        first.cancel()
        await looked.wait()
        go.set()
        assert await second == ALICE


@pytest.mark.parametrize("open_to_all", [False, True], ids=["credentials", "open"])
@pytest.mark.parametrize(("number", "connections"), [(2000, 1), (2000, 20), (8000, 8)])
async def test_no_call_of_a_burst_is_lost(tmp_path: Path, number: int, connections: int, open_to_all: bool) -> None:
    """Thousands of calls at once, over one connection or several, are all answered."""
    async with face_behind(Gate(max_streams=10), tmp_path, open_to_all=open_to_all) as face:
        request = pb.GetStatusRequest(address=ALICE).SerializeToString()
        async with raw_connections(face, connections, () if open_to_all else face.app) as opened:
            answers = await asyncio.gather(
                *[opened[n % connections].ask(GET_STATUS, request) for n in range(number)], return_exceptions=True
            )
        assert Counter(type(answer) for answer in answers) == {bytes: number}


async def test_no_stream_of_a_burst_is_lost(tmp_path: Path) -> None:
    """Two thousand streams begun at once over one connection all get their snapshot."""
    begun: Counter[str] = Counter()
    async with face_behind(Gate(max_streams=10_000), tmp_path) as face:
        request = pb.WatchStatusesRequest(addresses=[ALICE]).SerializeToString()
        async with raw_connections(face, 1, face.app) as (connection,):
            for _ in range(2000):
                first = iter([True])
                connection.begin(
                    WATCH_STATUSES,
                    request,
                    lambda _, first=first: begun.update(["begun"] if next(first, False) else []),  # type: ignore[misc]
                    lambda: begun.update(["ended"]),
                )
            async with asyncio.timeout(LIMIT_S):
                await until(lambda: begun.total() >= 2000)
        assert begun["begun"] == 2000


async def test_a_connection_takes_more_streams_than_a_client_may_have(tmp_path: Path) -> None:
    """SETTINGS_MAX_CONCURRENT_STREAMS lies above a client's own bound; below it, calls would hang without a word."""
    gate = Gate(max_streams=123_456)
    async with face_behind(gate, tmp_path) as face:
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        writer.close()
        settings = dict(struct.iter_unpack(">HI", payload))
        assert head[3] == 4
        assert settings.get(3, 2**32) > gate.clients.each > 123_456


@asynccontextmanager
async def raw_connections(
    face: Face, number: int, metadata: Metadata, source: str = "127.0.0.1"
) -> AsyncIterator[list[h2.Connection]]:
    """Connections without a stub, which costs more than the server."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for _ in range(number):
            connection = await h2.Connection.open(f"127.0.0.1:{face.port}", dict(metadata), source=source)
            stack.callback(connection.close)
            opened.append(connection)
        yield opened


# Connections.


@asynccontextmanager
async def idle_connections(port: int, address: str, number: int) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Connections that speak HTTP/2 and call nothing."""
    opened = [await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)) for _ in range(number)]
    for _, writer in opened:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    try:
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def ended(readers: list[asyncio.StreamReader]) -> int:
    """How many of them the gateway has closed."""
    for reader in readers:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(65_536), 0.001)
    return sum(reader.at_eof() for reader in readers)


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.times = 0
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        self.times += 1
        return self._function(*arguments)


async def test_idle_connections_of_one_address_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one address's connections that brought no client's call only so many stay; those that did bring one stay
    beside them, and those of another address and of a trusted proxy too."""
    monkeypatch.setattr(connection_limits, "LOOK_S", 0.05)
    gate = Gate(max_streams=10, unauthenticated_connections=5)
    proxies = TrustedProxies.of(["127.0.0.4/32"])
    async with face_behind(gate, tmp_path) as face, raw_connections(face, 8, face.app) as known:
        request = pb.GetStatusRequest(address=ALICE).SerializeToString()
        for connection in known:
            await connection.ask(GET_STATUS, request)
        guarding = asyncio.create_task(connection_limits.guard_connections(gate, face.port, proxies))
        async with (
            idle_connections(face.port, "127.0.0.2", 20) as idle,
            idle_connections(face.port, "127.0.0.3", 5) as few,
            idle_connections(face.port, "127.0.0.4", 20) as proxied,
            idle_connections(face.port, "127.0.0.1", 5) as beside,
        ):
            async with asyncio.timeout(LIMIT_S):
                while await ended(idle) < 15:
                    pass
            monkeypatch.setattr(connection_limits, "excess", counted := Counted(connection_limits.excess))
            await until(lambda: counted.times == 5)
            assert [await ended(each) for each in (idle, few, proxied, beside)] == [15, 0, 0, 0]
            for connection in known:
                await connection.ask(GET_STATUS, request)
        for connection in known:
            connection.close()
        await until(lambda: not gate.proved)
        guarding.cancel()


# Floods.


async def connects(host: str, port: int, source: str) -> bool:
    """Whether a connection from there is taken before the kernel asks a second time, after a second."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            _, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
            writer.close()
            return True
    return False


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_an_address_is_shut_out_by_the_kernel(family: socket.AddressFamily) -> None:
    """Those of a listed address connect no more, others do, and connections that stand go on; until the list ends."""
    with socket.socket(family) as listening:
        listening.bind(("" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)) as before:
            taken, _ = listening.accept()
            connections.shut_out(port, ["127.0.0.2", "behind 127.0.0.9", "198.51.100.7", "2001:db8::/64"])
            assert not await connects("127.0.0.1", port, "127.0.0.2")
            assert await connects("127.0.0.1", port, "127.0.0.1")
            if family == socket.AF_INET6:
                assert await connects("::1", port, "::1")
                connections.shut_out(port, ["2001:db8::/64", "::/64"])
                assert not await connects("::1", port, "::1")
                assert await connects("127.0.0.1", port, "127.0.0.2")
            before.sendall(b"x")
            assert taken.recv(1) == b"x"
            taken.close()
        connections.shut_out(port, [])
        connections.shut_out(port, [])
        assert await connects("127.0.0.1", port, "127.0.0.2")


def test_times_of_addresses_that_are_shut_out() -> None:
    """Each flood shuts out for twice as long as the one before, up to a bound; and at last an address is forgotten."""
    out = connection_limits.ShutOut()
    lasts, now_s = [], 0.0
    for _ in range(7):
        assert out.add(["a"], now_s) == ["a"]
        assert out.add(["a"], now_s + 5) == []
        start_s = now_s
        while out.now(now_s):
            now_s += 1
        lasts.append(now_s - start_s)
    assert lasts == [10, 20, 40, 80, 160, 300, 300]
    assert not out.now(now_s + connection_limits.LONGEST_SHUT_OUT_S)
    out.add(["a"], now_s := now_s + connection_limits.LONGEST_SHUT_OUT_S)
    assert out.now(now_s + 9.9)
    assert not out.now(now_s + 10)
    out.add(map(str, range(100)), 0)
    assert len(out.now(0)) == connections.MOST_SHUT_OUT


def test_a_flood_is_seen_once() -> None:
    """The guard is woken at the call that makes a flood; a trusted proxy's own calls do not count."""
    gate, woken = Gate(max_streams=1), list[int]()
    gate.on_flood = lambda: woken.append(round(gate.bad["a"]))
    for _ in range(300):
        gate.count_bad("a")
        gate.count_bad("")
        gate.count_bad("b", 0.2)
    assert woken == [200]
    assert set(gate.bad) == {"a", "b"}


@pytest.mark.parametrize(
    ("key", "expected"),
    [("2001:db8::/64", True), ("2001:db8:1::/64", False), ("10.1.0.3", True), ("10.1.0.9", False), ("behind x", False)],
)
def test_trusted_proxies_among_what_counts_as_one_address(key: str, expected: bool) -> None:
    """A stranger in the /64 network of a trusted proxy must not get the proxy shut out."""
    assert TrustedProxies.of(["2001:db8::5/128", "10.1.0.0/29"]).overlap(key) is expected


async def test_a_flood_beside_a_trusted_proxy_shuts_nobody_out(tmp_path: Path) -> None:
    """Where a trusted proxy may be among the flooding addresses, no connection of theirs is cut or refused."""
    gate, looks = Gate(max_streams=10), Counted(connections.connections)
    async with face_behind(gate, tmp_path) as face, idle_connections(face.port, "127.0.0.2", 2) as idle:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connection_limits, "connections", looks)
            proxies = TrustedProxies.of(["127.0.0.2/32"])
            guarding = asyncio.create_task(connection_limits.guard_connections(gate, face.port, proxies))
            await asyncio.sleep(0)
            gate.count_bad("127.0.0.2", 1000)
            await until(lambda: looks.times == 2)
            assert await connects("127.0.0.1", face.port, "127.0.0.2")
            assert await ended(idle) == 0
            guarding.cancel()


@pytest.mark.parametrize("kind", ["wrong-key", "no-key", "health", "no-message"])
async def test_who_floods_is_cut_and_shut_out(tmp_path: Path, kind: str) -> None:
    """Its unproved connections end and no new ones are taken; a client at the same address that is known is served on,
    and everybody elsewhere."""
    gate = Gate(max_streams=10, unauthenticated=50)
    request = pb.GetStatusRequest(address=ALICE).SerializeToString()
    path = HEALTH_CHECK if kind == "health" else GET_STATUS
    message = {"health": b"", "no-message": None}.get(kind, request)
    metadata = {"wrong-key": (("authorization", "Bearer tsk_a_b"),)}.get(kind, ())
    async with face_behind(gate, tmp_path) as face, raw_connections(face, 1, face.app, "127.0.0.2") as (known,):
        await known.ask(GET_STATUS, request)
        guarding = asyncio.create_task(connection_limits.guard_connections(gate, face.port, TrustedProxies()))
        async with raw_connections(face, 4, metadata, "127.0.0.2") as flood:
            for connection in flood * 750:
                connection.begin(path, message, lambda _data: None, lambda: None)
            await until(lambda: all(connection.closed for connection in flood))
        assert not await connects("127.0.0.1", face.port, "127.0.0.2")
        await known.ask(GET_STATUS, request)
        assert await status_of(face, face.app) == ALICE
        guarding.cancel()


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("0100007F:1388", "ipv4:127.0.0.1:5000"),
        ("0000000000000000FFFF00000100007F:1388", "ipv4:127.0.0.1:5000"),
        ("B80D0120000000000000000001000000:1388", "ipv6:%5B2001:db8::1%5D:5000"),
    ],
)
def test_peers_are_named_as_grpc_names_them(text: str, peer: str) -> None:
    """The kernel's table of connections is read to the names that calls have."""
    assert connections.peer_of(text) == peer
