"""`grpc.health.v1`: whether the presence server could be asked, for the server as a whole ("") and for each service.

Invariants: it looks, where the stock servicer wants to be told of each change, and so cannot be out of date.
Deliberately absent: credentials, since load balancers have none.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Collection

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from app.core.service import StatusService


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Looks each `poll_s` seconds for those who watch."""

    def __init__(self, service: StatusService, names: Collection[str], stopping: asyncio.Event, poll_s: float) -> None:
        self._service = service
        self._names = {"", *names}
        self._stopping = stopping
        self._poll_s = poll_s

    async def Check(  # noqa: N802
        self,
        request: HealthCheckRequest,
        context: grpc.aio.ServicerContext[HealthCheckRequest, Awaitable[HealthCheckResponse]],
    ) -> HealthCheckResponse:
        health_now = self._health(request.service)
        if health_now == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service!r} here.")
        return HealthCheckResponse(status=health_now)

    async def Watch(  # noqa: N802
        self,
        request: HealthCheckRequest,
        context: grpc.aio.ServicerContext[HealthCheckRequest, AsyncIterator[HealthCheckResponse]],
    ) -> AsyncIterator[HealthCheckResponse]:
        told: int | None = None
        while True:
            stopping = self._stopping.is_set()
            if (health_now := self._health(request.service)) != told:
                yield HealthCheckResponse(status=health_now)
                told = health_now
            if stopping:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._poll_s)

    def _health(self, name: str) -> int:
        if name not in self._names:
            return HealthCheckResponse.SERVICE_UNKNOWN
        serving = self._service.ready and not self._stopping.is_set()
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
