"""The gRPC services served over real use cases and a real store; the presence server is played."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo  # type: ignore[import-untyped, unused-ignore]
from grpc_status import rpc_status

from app.auth.authenticator import Authenticator
from app.auth.clients import ClientRegistry
from app.pb.terminalstatus.v1 import (
    admin_pb2_grpc,
    delivery_pb2_grpc,
    group_pb2_grpc,
    subscription_pb2,
    subscription_pb2_grpc,
    usage_pb2_grpc,
)
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub
from app.rpc import EngineServer, create_server
from tests.support.core import (
    ADMIN,
    APP,
    OTHER,
    Core,
    new_database,
    run_core,
)
from tests.support.fakes import FakeWatcher, make_service
from tests.support.grpc_engines import engine

LIMIT_S = 10


Metadata = tuple[tuple[str, str], ...]


@dataclass
class Face:
    """A server over the use cases, a channel to it, and each client's credentials."""

    core: Core
    auth: Authenticator
    registry: ClientRegistry
    channel: Any
    port: int
    server: EngineServer
    stopping: asyncio.Event
    calls: set[asyncio.Task[Any]]
    app: Metadata
    other: Metadata
    admin: Metadata

    def __post_init__(self) -> None:
        self.terminals: Any = TerminalStatusServiceStub(self.channel)
        self.subscriptions: Any = subscription_pb2_grpc.SubscriptionServiceStub(self.channel)
        self.groups: Any = group_pb2_grpc.GroupServiceStub(self.channel)
        self.deliveries: Any = delivery_pb2_grpc.DeliveryServiceStub(self.channel)
        self.usage: Any = usage_pb2_grpc.UsageServiceStub(self.channel)
        self.operators: Any = admin_pb2_grpc.AdminServiceStub(self.channel)

    def watch(self, *addresses: str, metadata: Metadata | None = None, timeout_s: float = LIMIT_S, **more: Any) -> Any:
        request = pb.WatchStatusesRequest(addresses=addresses, **more)
        return self.terminals.WatchStatuses(request, metadata=metadata or self.app, timeout=timeout_s)

    async def subscribe(self, *addresses: str, **more: Any) -> subscription_pb2.Subscription:
        request = subscription_pb2.CreateSubscriptionRequest(addresses=addresses, **more)
        answer = await self.subscriptions.CreateSubscription(request, metadata=self.app)
        return cast("subscription_pb2.Subscription", answer.subscription)


@asynccontextmanager
async def face_over(core: Core, **options: Any) -> AsyncIterator[Face]:
    auth = core.authenticator(open_allowed=True)
    use_cases = core.make_use_cases(auth)
    keys = {}
    for client in (APP, OTHER, ADMIN):
        _, key = await use_cases.clients.rotate(client.id, who="test")
        keys[client.id] = (("authorization", f"Bearer {key}"),)
    stopping = asyncio.Event()
    calls: set[asyncio.Task[Any]] = set()
    server = create_server(
        make_service(FakeWatcher()), use_cases, stopping=stopping, calls=calls, **{"engine": engine(), **options}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            yield Face(
                core,
                auth,
                use_cases.clients,
                channel,
                port,
                server,
                stopping,
                calls,
                keys[APP.id],
                keys[OTHER.id],
                keys[ADMIN.id],
            )
    finally:
        await server.stop(None)


async def finished(call: Any) -> None:
    """Waits for an answer, or reads a stream to its end."""
    if hasattr(call, "read"):
        while await call.read() is not grpc.aio.EOF:
            pass
    else:
        await call


async def failure_of(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """Code, ErrorInfo's reason, and the field at fault; "" for what the error does not have."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finished(call)
    reason = field = ""
    for packed in getattr(rpc_status.from_call(cast("grpc.Call", caught.value)), "details", ()):
        info, bad = ErrorInfo(), BadRequest()
        if packed.Unpack(info):
            reason = info.reason
        if packed.Unpack(bad):
            field = bad.field_violations[0].field
    return caught.value.code(), reason, field


def details_of(status: Any) -> tuple[str, int]:
    """The reason of a google.rpc.Status in a message, and its retry delay in ms; 0 without one."""
    reason, delay_ms = "", 0
    for packed in status.details:
        info, retry = ErrorInfo(), RetryInfo()
        if packed.Unpack(info):
            reason = info.reason
        if packed.Unpack(retry):
            delay_ms = retry.retry_delay.ToMilliseconds()
    return reason, delay_ms


async def read(call: Any, kind: str) -> Any:
    """The next event of a stream, which must be of this kind."""
    async with asyncio.timeout(LIMIT_S):
        event = await call.read()
    assert isinstance(event, pb.WatchStatusesResponse), event
    assert event.WhichOneof("event") == kind
    return getattr(event, kind)


async def quiet(face: Face) -> None:
    """Lets enough time pass for a stream to get a bookmark if nothing happens."""
    for _ in range(5):
        await face.core.advance(2.5)


@pytest_asyncio.fixture
async def face(tmp_path: Path) -> AsyncIterator[Face]:
    async with run_core(await new_database(tmp_path)) as core, face_over(core) as running:
        yield running


NEVER = Timestamp(seconds=1 << 60)
