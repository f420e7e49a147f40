"""Limits on open gRPC calls and connections: half-open calls, health, reflection, floods; and bursts without loss."""

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
from app.rpc import SERVICE_NAME, address_filter, call_admission, callers, connection_limits, tcp_connections
from app.rpc.call_limits import EXCESS_PENDING_LIMIT_S, PENDING_LIMIT_S, CallLimit, CallLimits, PendingCall
from app.rpc.connection_limits import enforce_connection_limits
from bench import h2
from tests.support.core import ADMIN, ALICE, APP, OTHER, new_database, run_core
from tests.support.grpc_engines import ON_BOTH_ENGINES
from tests.support.rpc_face import Face, Metadata, face_over, failure_of
from tests.support.waiting import until

pytestmark = ON_BOTH_ENGINES

LIMIT_S = 30
GET_STATUS = f"/{SERVICE_NAME}/GetStatus"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
WATCH_STATUSES = f"/{SERVICE_NAME}/WatchStatuses"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
PROXY = TrustedProxies.of(["127.0.0.1/32"])
TOO_MANY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "")


@asynccontextmanager
async def face_behind(
    limits: CallLimits, tmp_path: Path, *, open_to_all: bool = False, **more: Any
) -> AsyncIterator[Face]:
    async with (
        asyncio.timeout(2 * LIMIT_S),
        run_core(await new_database(tmp_path), fetch_timeout_s=LIMIT_S) as core,  # all wait for one in a burst
        face_over(core, limits=limits, **more) as face,
    ):
        for client in (APP, OTHER, ADMIN) if open_to_all else ():
            await face.registry.delete(client.id, who="test")
        yield face


def half_open(face: Face, path: str = GET_STATUS, metadata: Metadata | None = None) -> Any:
    """A call whose metadata reach the server and whose message never does."""
    return face.channel.stream_stream(path)(metadata=metadata, timeout=LIMIT_S)


def behind(address: str, metadata: Metadata = ()) -> Metadata:
    """The metadata of a proxy that forwards a call from this address."""
    return (("x-forwarded-for", address), *metadata)


async def status_of(face: Face, metadata: Metadata | None) -> str:
    answer = await face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE), metadata=metadata)
    return str(answer.status.address)


async def health_of(face: Face, metadata: Metadata | None = None) -> Any:
    stub: Any = HealthStub(face.channel)
    return (await stub.Check(HealthCheckRequest(), metadata=metadata)).status


# The limits as units.


def refusal(enter: Callable[[], object]) -> type[TerminalStatusError] | None:
    try:
        enter()
    except TerminalStatusError as error:
        return type(error)
    return None


def test_a_limit_holds_for_each_key_and_in_total() -> None:
    """One key has at most `per_key` calls, all keys together `total`; a call that ends makes room."""
    limit = CallLimit(2, 5, "here")
    assert [refusal(lambda: limit.enter("a")) for _ in range(3)] == [None, None, RateLimited]
    assert [refusal(lambda: limit.enter("")) for _ in range(3)] == [None, None, None]
    assert refusal(lambda: limit.enter("b")) is GatewayOverloaded
    assert (limit.open, limit.refused) == (5, 2)
    limit.leave("a")
    assert refusal(lambda: limit.enter("a")) is None
    for key in ("a", "a", "", "", ""):
        limit.leave(key)
    assert (limit.open, limit.open_by_key) == (0, {})


def test_pending_calls_are_cancelled_when_overdue() -> None:
    """A pending call has PENDING_LIMIT_S within its address's limit, and less beyond it; a proxy has no limit of its
    own."""
    limits = CallLimits(max_streams=10, unauthenticated_calls=2)
    cancelled: list[str] = []

    def wait(limit: CallLimit, key: str, at_s: float, name: str) -> PendingCall:
        return limits.add_pending(limit, key, at_s, lambda: cancelled.append(name))

    ready = wait(limits.unauthenticated, "a", 0, "ready")
    wait(limits.unauthenticated, "a", 0, "first")
    wait(limits.unauthenticated, "a", 1, "second")
    wait(limits.unauthenticated, "a", 1, "third")
    wait(limits.unauthenticated, "b", 1, "other")
    wait(limits.health, "a", 1, "health")
    for _ in range(3):
        wait(limits.unauthenticated, "", 1, "proxied")
    del limits.pending[ready]
    limits.cancel_overdue(1 + EXCESS_PENDING_LIMIT_S - 0.1)
    assert cancelled == []
    limits.cancel_overdue(1 + EXCESS_PENDING_LIMIT_S)
    assert cancelled == ["third"]
    limits.cancel_overdue(PENDING_LIMIT_S)
    assert cancelled == ["third", "first"]
    limits.cancel_overdue(1 + PENDING_LIMIT_S)
    assert cancelled == ["third", "first", "second", "other", "health", *["proxied"] * 3]
    assert not limits.pending


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
    """The address without its port and brackets."""
    assert callers.address_of_peer(peer) == address


# Half-open calls.


@pytest.mark.parametrize("credentials", [(), (("authorization", "Bearer tsk_a_b"),)], ids=["none", "bad"])
async def test_bad_credentials_are_refused_before_the_message(tmp_path: Path, credentials: Metadata) -> None:
    """A call without valid credentials is refused before its message is read, and is not counted afterwards."""
    limits = CallLimits(max_streams=10)
    async with face_behind(limits, tmp_path) as face:
        for path in (GET_STATUS, WATCH_STATUSES):
            refused = await failure_of(half_open(face, path, credentials))
            assert refused == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "")
        await until(lambda: not face.calls)
        assert (limits.unauthenticated.open, limits.clients.open, limits.pending) == (0, 0, {})


async def test_half_open_calls_do_not_block_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-open calls of one address are refused soon beyond its limit, and later within it. Meanwhile calls from this
    and other addresses are answered."""
    monkeypatch.setattr("app.rpc.call_limits.EXCESS_PENDING_LIMIT_S", 0.1)
    monkeypatch.setattr(call_admission, "CHECK_PENDING_S", 0.05)
    limits = CallLimits(max_streams=10, unauthenticated_calls=5)
    async with face_behind(limits, tmp_path, open_to_all=True, proxies=PROXY) as face:
        open_calls = [half_open(face, metadata=behind("192.0.2.1")) for _ in range(20)]
        ends = [asyncio.ensure_future(failure_of(call)) for call in open_calls]
        await until(lambda: sum(end.done() for end in ends) == 15)
        assert Counter(end.result() for end in ends if end.done()) == {TOO_MANY: 15}
        for address in ("192.0.2.1", "192.0.2.2"):
            assert await status_of(face, behind(address)) == ALICE
        assert (limits.unauthenticated.open, limits.clients.open) == (5, 0)
        monkeypatch.setattr("app.rpc.call_limits.PENDING_LIMIT_S", 0.1)
        assert {await end for end in ends} == {
            TOO_MANY,
            (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", ""),
        }
        await until(lambda: not limits.unauthenticated.open)


async def test_half_open_calls_of_connections_that_end_are_forgotten(tmp_path: Path) -> None:
    """A caller that leaves before its message arrives is no longer counted."""
    limits = CallLimits(max_streams=10)
    async with face_behind(limits, tmp_path, open_to_all=True) as face:
        for path in (GET_STATUS, REFLECTION):
            call = half_open(face, path)
            await until(lambda: limits.pending)
            call.cancel()
            await until(lambda: not limits.pending)
        await until(lambda: not limits.unauthenticated.open and not limits.reflection.open and not face.calls)


async def test_a_call_without_a_message(tmp_path: Path) -> None:
    """A call that ends before its message is answered, and not left open."""
    async with face_behind(CallLimits(max_streams=10), tmp_path) as face:
        call = half_open(face, metadata=face.app)
        await call.done_writing()
        assert await failure_of(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "")


async def test_bytes_that_are_no_request(tmp_path: Path) -> None:
    """Bytes that do not parse are INVALID_ARGUMENT with details, in each method."""
    async with face_behind(CallLimits(max_streams=10), tmp_path) as face:
        for path in (
            GET_STATUS,
            WATCH_STATUSES,
            "/terminalstatus.v1.GroupService/GetGroup",
            "/grpc.health.v1.Health/Check",
        ):
            call = half_open(face, path, face.app)
            await call.write(b"\xff\xff")
            assert await failure_of(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "")


async def test_a_client_has_its_own_limit(tmp_path: Path) -> None:
    """Calls count for their client, half-open ones too: a client beyond its limit is refused, another client is
    answered."""
    limits = CallLimits(max_streams=10)
    limits.clients = CallLimit(3, 6, "by this client")
    async with face_behind(limits, tmp_path) as face:
        for _ in range(3):
            half_open(face, metadata=face.app)
        await until(lambda: limits.clients.open == 3)
        assert await failure_of(half_open(face, metadata=face.app)) == TOO_MANY
        assert await status_of(face, face.other) == ALICE


# Addresses.


async def test_a_proxy_is_exempt_and_its_clients_are_not(tmp_path: Path) -> None:
    """Behind a trusted proxy the forwarded address is counted, and the proxy's own calls are not. The header of other
    peers is ignored."""
    limits = CallLimits(max_streams=10, unauthenticated_calls=1)
    limits.unauthenticated = CallLimit(1, 100, "from this address")
    async with face_behind(limits, tmp_path, open_to_all=True, proxies=PROXY) as face:
        for metadata in ((), (), behind("192.0.2.1"), behind("192.0.2.2")):
            half_open(face, metadata=metadata)
        await until(lambda: limits.unauthenticated.open == 4)
        for address in ("192.0.2.1", "192.0.2.2"):
            assert await failure_of(half_open(face, metadata=behind(address))) == TOO_MANY
    limits = CallLimits(max_streams=10)
    limits.unauthenticated = CallLimit(1, 100, "from this address")
    async with face_behind(limits, tmp_path, open_to_all=True) as face:
        half_open(face, metadata=behind("192.0.2.1"))
        await until(lambda: limits.unauthenticated.open == 1)
        assert await failure_of(half_open(face, metadata=behind("192.0.2.2"))) == TOO_MANY


# Health and reflection.


async def test_health_and_reflection_have_limits_of_their_own(tmp_path: Path) -> None:
    """Idle health and reflection streams of one address block neither its other calls nor another address's health
    calls."""
    limits = CallLimits(max_streams=10)
    limits.health, limits.reflection = CallLimit(3, 100, "to health"), CallLimit(2, 100, "to reflection")
    async with face_behind(limits, tmp_path, proxies=PROXY) as face:
        stub: Any = HealthStub(face.channel)
        for _ in range(3):
            watch = stub.Watch(HealthCheckRequest(), metadata=behind("192.0.2.1"))
            assert (await watch.read()).status == HealthCheckResponse.SERVING
        for _ in range(2):
            half_open(face, REFLECTION, behind("192.0.2.1"))
        await until(lambda: limits.reflection.open == 2)
        for call in (
            half_open(face, REFLECTION, behind("192.0.2.1")),
            stub.Watch(HealthCheckRequest(), metadata=behind("192.0.2.1")),
            stub.Check(HealthCheckRequest(), metadata=behind("192.0.2.1")),
        ):
            assert await failure_of(call) == TOO_MANY
        assert await health_of(face, behind("192.0.2.2")) == HealthCheckResponse.SERVING
        assert await status_of(face, behind("192.0.2.1", face.app)) == ALICE
        assert (limits.unauthenticated.open, limits.clients.open) == (0, 0)


async def test_an_idle_reflection_stream_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reflection stream without a message ends."""
    monkeypatch.setattr("app.rpc.call_limits.PENDING_LIMIT_S", 0.1)
    monkeypatch.setattr(call_admission, "CHECK_PENDING_S", 0.05)
    limits = CallLimits(max_streams=10)
    async with face_behind(limits, tmp_path) as face:
        ended = await failure_of(half_open(face, REFLECTION))
        assert ended == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "")
        await until(lambda: not limits.reflection.open)


# Bursts.


async def test_a_burst_of_new_credentials_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simultaneous calls with the same new credentials share one look-up, whether it fails or succeeds."""
    async with face_behind(CallLimits(max_streams=10), tmp_path) as face:
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


async def test_a_cancelled_call_does_not_cancel_a_shared_look_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the call that looks up credentials is cancelled, the next call with these credentials looks them up."""
    async with face_behind(CallLimits(max_streams=10), tmp_path) as face:
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
    """Thousands of simultaneous calls, over one connection or several, are all answered."""
    async with face_behind(CallLimits(max_streams=10), tmp_path, open_to_all=open_to_all) as face:
        request = pb.GetStatusRequest(address=ALICE).SerializeToString()
        async with raw_connections(face, connections, () if open_to_all else face.app) as opened:
            answers = await asyncio.gather(
                *[opened[n % connections].ask(GET_STATUS, request) for n in range(number)], return_exceptions=True
            )
        assert Counter(type(answer) for answer in answers) == {bytes: number}


async def test_no_stream_of_a_burst_is_lost(tmp_path: Path) -> None:
    """Two thousand streams that are begun at once over one connection all get their snapshot."""
    begun: Counter[str] = Counter()
    async with face_behind(CallLimits(max_streams=10_000), tmp_path) as face:
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
    """SETTINGS_MAX_CONCURRENT_STREAMS is above a client's own limit: at a lower value, excess calls would hang and not
    be refused."""
    limits = CallLimits(max_streams=123_456)
    async with face_behind(limits, tmp_path) as face:
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        writer.close()
        settings = dict(struct.iter_unpack(">HI", payload))
        assert head[3] == 4
        assert settings.get(3, 2**32) > limits.clients.per_key > 123_456


@asynccontextmanager
async def raw_connections(
    face: Face, number: int, metadata: Metadata, source: str = "127.0.0.1"
) -> AsyncIterator[list[h2.Connection]]:
    """Connections without generated stubs, which would cost more CPU than the server."""
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
    """Connections that speak HTTP/2 and make no call."""
    opened = [await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)) for _ in range(number)]
    for _, writer in opened:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    try:
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def ended(readers: list[asyncio.StreamReader]) -> int:
    """The number of these connections that the gateway has closed."""
    for reader in readers:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(65_536), 0.001)
    return sum(reader.at_eof() for reader in readers)


class Counted:
    """Wraps a function and counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.times = 0
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        self.times += 1
        return self._function(*arguments)


async def test_idle_connections_of_one_address_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address keeps 5 connections without a client's call. Its connections with such a call stay too, and so do
    those of another address and of a trusted proxy."""
    monkeypatch.setattr(connection_limits, "CHECK_S", 0.05)
    limits = CallLimits(max_streams=10, unauthenticated_connections=5)
    proxies = TrustedProxies.of(["127.0.0.4/32"])
    async with face_behind(limits, tmp_path) as face, raw_connections(face, 8, face.app) as known:
        request = pb.GetStatusRequest(address=ALICE).SerializeToString()
        for connection in known:
            await connection.ask(GET_STATUS, request)
        enforcing = asyncio.create_task(enforce_connection_limits(limits, face.port, proxies))
        async with (
            idle_connections(face.port, "127.0.0.2", 20) as idle,
            idle_connections(face.port, "127.0.0.3", 5) as few,
            idle_connections(face.port, "127.0.0.4", 20) as proxied,
            idle_connections(face.port, "127.0.0.1", 5) as beside,
        ):
            async with asyncio.timeout(LIMIT_S):
                while await ended(idle) < 15:
                    pass
            monkeypatch.setattr(
                connection_limits,
                "connections_over_limit",
                counted := Counted(connection_limits.connections_over_limit),
            )
            await until(lambda: counted.times == 5)
            assert [await ended(each) for each in (idle, few, proxied, beside)] == [15, 0, 0, 0]
            for connection in known:
                await connection.ask(GET_STATUS, request)
        for connection in known:
            connection.close()
        await until(lambda: not limits.admitted_peers)
        enforcing.cancel()


# Floods.


async def connects(host: str, port: int, source: str) -> bool:
    """Whether a connection from this address is accepted within a second, before the kernel sends a second SYN."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            _, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
            writer.close()
            return True
    return False


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_the_kernel_blocks_an_address(family: socket.AddressFamily) -> None:
    """During a block its address cannot connect, other addresses can, and established connections go on."""
    with socket.socket(family) as listening:
        listening.bind(("" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)) as before:
            taken, _ = listening.accept()
            address_filter.block_addresses(port, ["127.0.0.2", "behind 127.0.0.9", "198.51.100.7", "2001:db8::/64"])
            assert not await connects("127.0.0.1", port, "127.0.0.2")
            assert await connects("127.0.0.1", port, "127.0.0.1")
            if family == socket.AF_INET6:
                assert await connects("::1", port, "::1")
                address_filter.block_addresses(port, ["2001:db8::/64", "::/64"])
                assert not await connects("::1", port, "::1")
                assert await connects("127.0.0.1", port, "127.0.0.2")
            before.sendall(b"x")
            assert taken.recv(1) == b"x"
            taken.close()
        address_filter.block_addresses(port, [])
        address_filter.block_addresses(port, [])
        assert await connects("127.0.0.1", port, "127.0.0.2")


def test_how_long_an_address_is_blocked() -> None:
    """Each flood blocks twice as long as the one before, up to a limit; later the address is forgotten."""
    out = connection_limits.BlockedAddresses()
    lasts, now_s = [], 0.0
    for _ in range(7):
        assert out.add(["a"], now_s) == ["a"]
        assert out.add(["a"], now_s + 5) == []
        start_s = now_s
        while out.active(now_s):
            now_s += 1
        lasts.append(now_s - start_s)
    assert lasts == [10, 20, 40, 80, 160, 300, 300]
    assert not out.active(now_s + connection_limits.MAX_BLOCK_S)
    out.add(["a"], now_s := now_s + connection_limits.MAX_BLOCK_S)
    assert out.active(now_s + 9.9)
    assert not out.active(now_s + 10)
    out.add(map(str, range(100)), 0)
    assert len(out.active(0)) == address_filter.MAX_BLOCKED


def test_a_flood_is_seen_once() -> None:
    """`on_flooded` is called once, by the call that reaches FLOOD_WEIGHT; a trusted proxy's own calls do not count."""
    limits, woken = CallLimits(max_streams=1), list[int]()
    limits.on_flooded = lambda: woken.append(round(limits.bad_calls["a"]))
    for _ in range(300):
        limits.count_bad_call("a")
        limits.count_bad_call("")
        limits.count_bad_call("b", 0.2)
    assert woken == [200]
    assert set(limits.bad_calls) == {"a", "b"}


@pytest.mark.parametrize(
    ("key", "expected"),
    [("2001:db8::/64", True), ("2001:db8:1::/64", False), ("10.1.0.3", True), ("10.1.0.9", False), ("behind x", False)],
)
def test_trusted_proxies_among_what_counts_as_one_address(key: str, expected: bool) -> None:
    """A flood from another host in a trusted proxy's /64 network does not block the proxy."""
    assert TrustedProxies.of(["2001:db8::5/128", "10.1.0.0/29"]).overlap(key) is expected


async def test_a_flood_beside_a_trusted_proxy_blocks_nobody(tmp_path: Path) -> None:
    """Where a trusted proxy may be among the flooding addresses, none of their connections is shut down or refused."""
    limits, looks = CallLimits(max_streams=10), Counted(tcp_connections.accepted_connections)
    async with face_behind(limits, tmp_path) as face, idle_connections(face.port, "127.0.0.2", 2) as idle:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connection_limits, "accepted_connections", looks)
            proxies = TrustedProxies.of(["127.0.0.2/32"])
            enforcing = asyncio.create_task(enforce_connection_limits(limits, face.port, proxies))
            await asyncio.sleep(0)
            limits.count_bad_call("127.0.0.2", 1000)
            await until(lambda: looks.times == 2)
            assert await connects("127.0.0.1", face.port, "127.0.0.2")
            assert await ended(idle) == 0
            enforcing.cancel()


@pytest.mark.parametrize("kind", ["wrong-key", "no-key", "health", "no-message"])
async def test_a_flooding_address_is_blocked(tmp_path: Path, kind: str) -> None:
    """The address's connections without a client's call end, and new ones are refused. A client at the same address is
    still served on its connection; so are all other addresses."""
    limits = CallLimits(max_streams=10, unauthenticated_calls=50)
    request = pb.GetStatusRequest(address=ALICE).SerializeToString()
    path = HEALTH_CHECK if kind == "health" else GET_STATUS
    message = {"health": b"", "no-message": None}.get(kind, request)
    metadata = {"wrong-key": (("authorization", "Bearer tsk_a_b"),)}.get(kind, ())
    async with face_behind(limits, tmp_path) as face, raw_connections(face, 1, face.app, "127.0.0.2") as (known,):
        await known.ask(GET_STATUS, request)
        enforcing = asyncio.create_task(enforce_connection_limits(limits, face.port, TrustedProxies()))
        async with raw_connections(face, 4, metadata, "127.0.0.2") as flood:
            for connection in flood * 750:
                connection.begin(path, message, lambda _data: None, lambda: None)
            await until(lambda: all(connection.closed for connection in flood))
        assert not await connects("127.0.0.1", face.port, "127.0.0.2")
        await known.ask(GET_STATUS, request)
        assert await status_of(face, face.app) == ALICE
        enforcing.cancel()


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("0100007F:1388", "ipv4:127.0.0.1:5000"),
        ("0000000000000000FFFF00000100007F:1388", "ipv4:127.0.0.1:5000"),
        ("B80D0120000000000000000001000000:1388", "ipv6:%5B2001:db8::1%5D:5000"),
    ],
)
def test_peers_are_named_as_grpc_names_them(text: str, peer: str) -> None:
    """The rows of the kernel's table give the same peer names as gRPC."""
    assert tcp_connections.peer_of(text) == peer
