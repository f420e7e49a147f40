"""GetStatus over gRPC: a real server and channel, and a fetcher over a fake watcher."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc.aio
import pytest
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped, unused-ignore]
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    QuotaFailure,
    ResourceInfo,
    RetryInfo,
)
from grpc_status import rpc_status

from app.core.fetcher import FetchService
from app.domain.addresses import parse_address
from app.domain.records import ANONYMOUS, Client
from app.domain.statuses import TerminalStatus
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub
from app.rpc import UseCases, create_server
from tests.support.fakes import OBSERVED_AT, FakeWatcher, make_service
from tests.support.grpc_engines import engine

ALICE = "sip:alice@example.com"


def use_cases_of(service: FetchService) -> UseCases:
    """GetStatus for every caller; `test_rpc_services.py` covers the other use cases."""

    class Open:
        def known(self, authorization: str, *, confined: bool = False) -> Client:
            return Client(id=ANONYMOUS, name=ANONYMOUS, created_at=OBSERVED_AT)

    class Questions:
        def answer_from_watch(self, client: Client, address: str, **how: Any) -> None:
            """Answers None: no terminal is watched."""

        async def ask(self, client: Client, address: str, **how: Any) -> TerminalStatus:
            return await service.fetch(parse_address(address))

    absent: Any = None
    return UseCases(
        auth=cast("Any", Open()),
        queries=cast("Any", Questions()),
        streams=absent,
        tickets=absent,
        policies=absent,
        engine=absent,
        registry=absent,
        subscriptions=absent,
        subscription_changes=absent,
        groups=absent,
        deliveries=absent,
        usage=absent,
        clients=absent,
        administration=absent,
    )


@asynccontextmanager
async def channel_to(
    service: FetchService,
    *,
    stopping: asyncio.Event | None = None,
    calls: set[asyncio.Task[Any]] | None = None,
    health_poll_s: float = 1,
) -> AsyncIterator[grpc.aio.Channel]:
    server = create_server(
        service, use_cases_of(service), stopping=stopping, calls=calls, health_poll_s=health_poll_s, engine=engine()
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            yield channel
    finally:
        await server.stop(None)


async def failure_of(call: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    """The code, the message and the details by message name that a call failed with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = {}
    for message in (ErrorInfo(), RetryInfo(), BadRequest(), ResourceInfo(), PreconditionFailure(), QuotaFailure()):
        for packed in getattr(rpc_status.from_call(cast("grpc.Call", caught.value)), "details", ()):
            if packed.Unpack(message):
                details[message.DESCRIPTOR.name] = message
    return caught.value.code(), caught.value.details() or "", details


async def get_status(watcher: FakeWatcher, address: str = ALICE) -> pb.TerminalStatus:
    async with channel_to(make_service(watcher)) as channel:
        response = await TerminalStatusServiceStub(channel).GetStatus(pb.GetStatusRequest(address=address))
    return response.status


async def failed_get_status(watcher: FakeWatcher, address: str = ALICE) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    return await failure_of(get_status(watcher, address))
