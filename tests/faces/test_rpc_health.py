"""Health and reflection over gRPC: what load balancers and tools ask, without credentials."""

import asyncio
from graphlib import TopologicalSorter
from typing import Any

import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1.health_pb2 import (  # type: ignore[attr-defined]  # its published types lack List
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
)
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from app.rpc import SERVICE_NAME, SERVICE_NAMES
from tests.support.fakes import FakeWatcher, make_service
from tests.support.grpc_engines import ON_BOTH_ENGINES
from tests.support.rpc_get_status import channel_to, failure_of

pytestmark = ON_BOTH_ENGINES

LIMIT_S = 5


def health_of(channel: grpc.aio.Channel) -> Any:
    """The stub of grpc.health.v1, whose published types lack its methods."""
    return HealthStub(channel)


def in_order(files: dict[str, FileDescriptorProto]) -> list[str]:
    """The names of `files`, each after those that it imports."""
    sorter = TopologicalSorter({name: list(file.dependency) for name, file in files.items()})
    return list(sorter.static_order())


@pytest.mark.parametrize("name", ["", *SERVICE_NAMES])
async def test_health_is_whether_the_presence_server_could_be_queried(name: str) -> None:
    """The health of the server and of the service follows the watcher's readiness."""
    watcher = FakeWatcher()
    async with channel_to(make_service(watcher)) as channel:
        question = HealthCheckRequest(service=name)
        assert (await health_of(channel).Check(question)).status == HealthCheckResponse.SERVING
        watcher.ready = False
        assert (await health_of(channel).Check(question)).status == HealthCheckResponse.NOT_SERVING


async def test_health_of_the_service_follows_the_presence_server() -> None:
    """Without a presence server TerminalStatusService is not serving; the process and the other services are."""
    watcher = FakeWatcher(presence_up=False)
    async with channel_to(make_service(watcher)) as channel:
        for up in (False, True):
            watcher.presence_up = up
            checks = {
                name: (await health_of(channel).Check(HealthCheckRequest(service=name))).status
                for name in ("", *SERVICE_NAMES)
            }
            serving = {name for name, status in checks.items() if status == HealthCheckResponse.SERVING}
            assert set(checks) - serving == (set() if up else {SERVICE_NAME})


async def test_health_of_an_unknown_service_is_not_found() -> None:
    """A health check of an unknown service is NOT_FOUND, as grpc.health.v1 requires."""
    async with channel_to(make_service(FakeWatcher())) as channel:
        code, _, _ = await failure_of(health_of(channel).Check(HealthCheckRequest(service="nothing")))
    assert code == grpc.StatusCode.NOT_FOUND


async def test_health_lists_every_service() -> None:
    """The list of health has the server ("") and every service of the contract, as Check answers for each."""
    watcher = FakeWatcher(presence_up=False)
    async with channel_to(make_service(watcher)) as channel:
        listed = (await health_of(channel).List(HealthListRequest())).statuses
    assert {name: health.status for name, health in listed.items()} == {
        name: HealthCheckResponse.NOT_SERVING if name == SERVICE_NAME else HealthCheckResponse.SERVING
        for name in ("", *SERVICE_NAMES)
    }


async def test_a_health_watch_reports_changes_and_ends_with_the_server() -> None:
    """A health watch reports the current health, then each change. The stop is its last report, and the stop does not
    wait for the watch."""
    watcher, stopping = FakeWatcher(), asyncio.Event()
    async with (
        asyncio.timeout(LIMIT_S),
        channel_to(make_service(watcher), stopping=stopping, health_poll_s=0.01) as channel,
    ):
        watch = health_of(channel).Watch(HealthCheckRequest(service=SERVICE_NAME))
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        watcher.ready = False
        assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
        watcher.ready = True
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        stopping.set()
        assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
        assert await watch.read() == grpc.aio.EOF


async def test_health_watches_share_one_look() -> None:
    """One task checks the health for a hundred health watches, each of which gets each change; the task ends with the
    last watch."""

    def looking() -> int:
        return len([task for task in asyncio.all_tasks() if task.get_name() == "health"])

    watcher = FakeWatcher()
    async with asyncio.timeout(LIMIT_S), channel_to(make_service(watcher), health_poll_s=0.01) as channel:
        watches = [health_of(channel).Watch(HealthCheckRequest(service=name)) for name in ["", SERVICE_NAME] * 50]
        for watch in watches:
            assert (await watch.read()).status == HealthCheckResponse.SERVING
        assert looking() == 1
        watcher.ready = False
        for watch in watches:
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
        for watch in watches:
            watch.cancel()
        while looking():  # noqa: ASYNC110 - it ends by itself
            await asyncio.sleep(0)


async def test_a_health_watch_of_an_unknown_service_stays_open() -> None:
    """A health watch of an unknown service reports SERVICE_UNKNOWN, as grpc.health.v1 requires."""
    async with asyncio.timeout(LIMIT_S), channel_to(make_service(FakeWatcher())) as channel:
        watch = health_of(channel).Watch(HealthCheckRequest(service="nothing"))
        assert (await watch.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
        assert not watch.done()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_the_services(version: str) -> None:
    """Tools of both versions of reflection find every service by its name, and with it the whole contract."""
    name = f"grpc.reflection.{version}.ServerReflection"
    async with asyncio.timeout(LIMIT_S), channel_to(make_service(FakeWatcher())) as channel:
        call: Any = channel.stream_stream(
            f"/{name}/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )()
        await call.write(ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await call.read()).list_services_response.service}
        files = {}
        for symbol in names:
            await call.write(ServerReflectionRequest(file_containing_symbol=symbol))
            for file in (await call.read()).file_descriptor_response.file_descriptor_proto:
                described = FileDescriptorProto.FromString(file)
                files[described.name] = described
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF
    own = {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
    assert names == {*SERVICE_NAMES, *own}
    assert {f"{file.package}.{service.name}" for file in files.values() for service in file.service} == names
    # Whole, so that a tool can build the contract from what it received.
    assert all(needed in files for file in files.values() for needed in file.dependency)
    pool = DescriptorPool()
    for path in in_order(files):
        pool.Add(files[path])
    assert pool.FindServiceByName(name).methods[0].input_type.full_name.startswith(f"grpc.reflection.{version}.")
