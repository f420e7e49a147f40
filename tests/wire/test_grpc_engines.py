"""Both gRPC engines under hostile and unlucky clients, and the choice between them.

After each attack another client's call is answered, no task of a call is left, and no client's call is counted as open.
"""

import asyncio
import contextlib
import gc
import gzip
import os
import struct
import threading
from collections import Counter
from pathlib import Path
from types import CoroutineType, SimpleNamespace
from typing import Any

import grpc.aio
import pytest
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined, unused-ignore]  # its types lack it

from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.rpc import SERVICE_NAME, engines
from app.rpc.call_limits import CallLimits
from app.rpc.engines import engine_server
from app.rpc.queue_engine import QueueServer, missing_requirements
from app.rpc.queue_engine.call import QueueCall
from bench import h2
from tests.support.core import ALICE, new_database, run_core
from tests.support.grpc_engines import ON_BOTH_ENGINES
from tests.support.rpc_face import Face, face_over, failure_of
from tests.support.waiting import until

LIMIT_S = 60
GET_STATUS = f"/{SERVICE_NAME}/GetStatus"
WATCH_STATUSES = f"/{SERVICE_NAME}/WatchStatuses"
FOLLOW_STATUSES = f"/{SERVICE_NAME}/FollowStatuses"
REQUEST = pb.GetStatusRequest(address=ALICE).SerializeToString()
WATCH = pb.WatchStatusesRequest(addresses=[ALICE]).SerializeToString()


def both(test: Any) -> Any:
    """Runs one test on both engines."""
    for mark in ON_BOTH_ENGINES:
        test = mark(test)
    return test


class Attacked:
    """A face with an honest client; `leave` asserts that an attack left nothing behind."""

    def __init__(self, face: Face, limits: CallLimits) -> None:
        self.face = face
        self.limits = limits

    async def connection(self) -> h2.Connection:
        return await h2.Connection.open(f"127.0.0.1:{self.face.port}", dict(self.face.app))

    async def assert_unharmed(self) -> None:
        answer = await self.face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE), metadata=self.face.app)
        assert answer.status.address == ALICE
        await until(lambda: not self.face.calls)
        await until(lambda: not self.limits.clients.open and not self.limits.unauthenticated.open)
        assert not self.limits.pending


async def attacked(tmp_path: Path, attack: Any) -> None:
    limits = CallLimits(max_streams=20_000)
    async with (
        asyncio.timeout(LIMIT_S),
        run_core(await new_database(tmp_path)) as core,
        face_over(core, limits=limits) as face,
    ):
        attacking = Attacked(face, limits)
        await attacking.assert_unharmed()
        await attack(attacking)
        await attacking.assert_unharmed()


async def rapid_resets(attacked: Attacked) -> None:
    """CVE-2023-44487: streams that are reset as soon as they are begun."""
    connection = await attacked.connection()
    for _ in range(3000):
        connection.cancel(connection.begin(GET_STATUS, REQUEST, lambda _: None, lambda: None))
    connection.close()


async def streams_dropped(attacked: Attacked) -> None:
    """1,000 streams on one connection, which then breaks."""
    connection, begun = await attacked.connection(), Counter[str]()
    for _ in range(1000):
        connection.begin(WATCH_STATUSES, WATCH, lambda _: begun.update(["message"]), lambda: begun.update(["end"]))
    await until(lambda: begun["message"] >= 1000)
    assert begun["end"] == 0
    connection.close()


async def large_metadata(attacked: Attacked) -> None:
    """64 KB of metadata is above the limit of 8 KB: gRPC refuses the call."""
    metadata = (*attacked.face.app, ("x-large", "a" * 65_536))
    call = attacked.face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE), metadata=metadata)
    assert (await failure_of(call))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


async def large_message(attacked: Attacked) -> None:
    call = attacked.face.terminals.GetStatus(pb.GetStatusRequest(address="a" * 2_000_000), metadata=attacked.face.app)
    assert (await failure_of(call))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


async def compressed_bomb(attacked: Attacked) -> None:
    """A message of 20 KB that is 20 MB when decompressed is refused: the limit is that of the decompressed message."""
    channel = grpc.aio.insecure_channel(
        f"127.0.0.1:{attacked.face.port}", options=[("grpc.enable_http_proxy", 0)], compression=grpc.Compression.Gzip
    )
    async with channel:
        bomb = pb.GetStatusRequest(address="a" * 20_000_000).SerializeToString()
        assert len(gzip.compress(bomb)) < 25_000
        call: Any = channel.unary_unary(GET_STATUS)
        assert (await failure_of(call(bomb, metadata=attacked.face.app)))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


async def garbage(attacked: Attacked) -> None:
    """Bytes that are no HTTP/2 frame after the preface, and no HTTP/2 at all."""
    for start in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", attacked.face.port)
        writer.write(start + os.urandom(20_000))
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):  # gRPC closes the connection
                pass
        writer.close()


async def truncated_message(attacked: Attacked) -> None:
    """A message that is announced longer than it is, and a connection that then breaks."""
    connection = await attacked.connection()
    call = connection.begin(GET_STATUS, None, lambda _: None, lambda: None)
    connection.send(h2.frame(0, 0, call.id, b"\0" + struct.pack(">I", 1000) + b"abc"))
    await until(lambda: attacked.limits.clients.open == 1)
    connection.close()


async def half_closed(attacked: Attacked) -> None:
    """Calls that end their request without a message are refused; a stream that is half-closed goes on."""
    answer = await failure_of(attacked.face.channel.stream_unary(GET_STATUS)(iter(()), metadata=attacked.face.app))
    assert answer[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    follow = attacked.face.terminals.FollowStatuses(metadata=attacked.face.app)
    await follow.write(pb.FollowStatusesRequest(open=pb.WatchStatusesRequest(addresses=[ALICE])))
    await follow.done_writing()
    assert (await follow.read()).HasField("status_event")
    follow.cancel()


async def never_reads(attacked: Attacked) -> None:
    """A client that begins ten queries of 300 terminals over one connection, reads none of their 300 KB, and leaves."""
    reader, writer = await asyncio.open_connection("127.0.0.1", attacked.face.port, limit=1)
    connection = await attacked.connection()
    head = connection.head(f"/{SERVICE_NAME}/QueryStatuses")
    query = pb.QueryStatusesRequest(addresses=[f"sip:{number}@example.com" for number in range(300)])
    data = query.SerializeToString()
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2.frame(4, 0, 0, b""))
    for number in range(1, 21, 2):
        writer.write(h2.frame(1, 4, number, head))
        writer.write(h2.frame(0, 1, number, b"\0" + struct.pack(">I", len(data)) + data))
    await until(lambda: attacked.limits.clients.open >= 1)
    writer.close()
    connection.close()
    del reader


ATTACKS = (
    rapid_resets,
    streams_dropped,
    large_metadata,
    large_message,
    compressed_bomb,
    garbage,
    truncated_message,
    half_closed,
    never_reads,
)


@both
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_attack_leaves_nothing_behind(tmp_path: Path, attack: Any) -> None:
    """During and after each attack another client is served, and no task or counted call is left."""
    await attacked(tmp_path, attack)


def objects_of_calls() -> int:
    """The number of tasks, futures, coroutines and calls in this process."""
    gc.collect()
    kinds = (asyncio.Future, CoroutineType, QueueCall)
    return sum(isinstance(each, kinds) for each in gc.get_objects())


@both
async def test_dropped_streams_leave_no_memory(tmp_path: Path) -> None:
    """Three times 1,000 streams are opened and dropped: no object of a call is left."""

    async def attack(attacked: Attacked) -> None:
        before = objects_of_calls()
        for _ in range(3):
            await streams_dropped(attacked)
            await attacked.assert_unharmed()
        await until(lambda: objects_of_calls() <= before + 50)  # a few of other tasks come and go

    await attacked(tmp_path, attack)


@both
async def test_a_stop_answers_every_open_call(tmp_path: Path) -> None:
    """A gateway that stops with 1,000 queries and 1,000 streams open ends each with a status, and no task is left."""
    ends = Counter[str]()
    async with (
        asyncio.timeout(LIMIT_S),
        run_core(await new_database(tmp_path)) as core,
        face_over(core, limits=CallLimits(max_streams=20_000)) as face,
    ):
        connection = await h2.Connection.open(f"127.0.0.1:{face.port}", dict(face.app))
        for number in range(1000):
            connection.begin(WATCH_STATUSES, WATCH, lambda _: ends.update(["snapshot"]), lambda: ends.update(["end"]))
            address = f"sip:silent-{number}@example.com"
            query = pb.GetStatusRequest(address=address).SerializeToString()
            connection.begin(GET_STATUS, query, lambda _: None, lambda: ends.update(["end"]))
        await until(lambda: len(face.calls) >= 1000 and ends["snapshot"] >= 1000)
        face.stopping.set()
        stop = asyncio.ensure_future(face.server.stop(5))
        for call in list(face.calls):
            call.cancel()
        await stop
        await until(lambda: ends["end"] == 2000)
        assert not face.calls


async def test_a_stopped_server_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    """The queue engine's thread and event descriptor end with its server, also of a server that was never started."""
    async with run_core(await new_database(tmp_path)) as core:
        async with face_over(core) as face:
            assert isinstance(face.server, QueueServer)
            assert pollers() == 1
        before = event_descriptors()
        async with face_over(core):
            assert event_descriptors() > before
        await QueueServer(()).stop(None)
        await until(lambda: (event_descriptors(), pollers()) == (before, 0))


def event_descriptors() -> int:
    gc.collect()
    return sum(os.path.realpath(each).endswith("[eventfd]") for each in Path("/proc/self/fd").iterdir())


def pollers() -> int:
    return sum(each.name == "grpc poller" for each in threading.enumerate())


async def test_a_second_stop_waits_for_the_first() -> None:
    """Both calls of `stop` return when the server has stopped."""
    server = QueueServer(())
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.gather(server.stop(1), server.stop(None))


def core_with(name: str, changed: Any) -> Any:
    """grpcio's core as another version might have it: one name is missing (None), or is something else."""
    names = {each: getattr(cygrpc, each) for each in dir(cygrpc) if not each.startswith("__")} | {name: changed}
    return SimpleNamespace(**{each: value for each, value in names.items() if value is not None})


class OtherServer:
    """A server with all methods, which takes other arguments."""

    add_http2_port = cancel_all_calls = destroy = register_completion_queue = request_call = shutdown = start = None


def test_the_installed_grpcio_has_what_the_queue_engine_needs() -> None:
    """Otherwise every gateway would run on `aio`, with a warning."""
    assert missing_requirements() == []


@pytest.mark.parametrize(
    ("core", "missing"),
    [
        (core_with("SendMessageOperation", None), "SendMessageOperation"),
        (core_with("CompletionQueue", None), "CompletionQueue is missing"),
        (core_with("Call", object), "Call.start_server_batch is missing"),
        (core_with("Server", OtherServer), "TypeError"),
    ],
    ids=["no operation", "no queue", "no method", "other arguments"],
)
def test_another_grpcio_is_noticed(core: Any, missing: str) -> None:
    """A missing name, a missing method and other arguments are each reported."""
    assert [each for each in missing_requirements(core) if missing in each]


async def test_a_grpcio_without_the_queue_is_served_by_aio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway starts all the same, and its log says what is missing."""
    monkeypatch.setattr(engines, "missing_requirements", lambda: ["Server.start is missing"])
    with structlog.testing.capture_logs() as logs:
        server = engine_server("queue", ())
    assert isinstance(server, grpc.aio.Server)
    assert [(each["event"], each["missing"]) for each in logs] == [
        ("grpc_engine_unavailable", ["Server.start is missing"])
    ]
    await server.stop(None)
