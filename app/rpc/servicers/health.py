"""`grpc.health.v1`: whether the gateway works, as a whole ("") and for each service. TerminalStatusService also needs a
presence server that answers.

Invariants: the health is computed when it is asked for, and so is never out of date (grpcio's own servicer must be
notified of each change). One task serves all health watches, and runs only while there are any.

Deliberately absent: credentials; load balancers have none.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Collection, Iterator

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import (  # type: ignore[attr-defined]  # its published types lack List
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from app.core.fetcher import FetchService
from app.pb.terminalstatus.v1 import terminal_status_pb2

_NEEDS_PRESENCE = terminal_status_pb2.DESCRIPTOR.services_by_name["TerminalStatusService"].full_name


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Compares the health each `poll_s` seconds for the open health watches. `names` are the services."""

    def __init__(self, service: FetchService, names: Collection[str], stopping: asyncio.Event, poll_s: float) -> None:
        self._service = service
        self._names = {"", *names}
        self._stopping = stopping
        self._poll_s = poll_s
        self._watches = 0
        self._last: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None

    async def Check(  # noqa: N802
        self,
        request: HealthCheckRequest,
        context: grpc.aio.ServicerContext[HealthCheckRequest, Awaitable[HealthCheckResponse]],
    ) -> HealthCheckResponse:
        health_now = self._health(request.service)
        if health_now == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"This gateway has no service {request.service!r}.")
        return HealthCheckResponse(status=health_now)

    async def List(  # noqa: N802
        self,
        request: HealthListRequest,
        context: grpc.aio.ServicerContext[HealthListRequest, Awaitable[HealthListResponse]],
    ) -> HealthListResponse:
        return HealthListResponse(
            statuses={name: HealthCheckResponse(status=self._health(name)) for name in self._names}
        )

    async def Watch(  # noqa: N802
        self,
        request: HealthCheckRequest,
        context: grpc.aio.ServicerContext[HealthCheckRequest, AsyncIterator[HealthCheckResponse]],
    ) -> AsyncIterator[HealthCheckResponse]:
        sent: int | None = None
        with self._watch():
            while True:
                stopping, changed = self._stopping.is_set(), self._changed
                if (health_now := self._last.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)) != sent:
                    yield HealthCheckResponse(status=health_now)
                    sent = health_now
                if stopping:
                    return
                await changed.wait()

    @contextlib.contextmanager
    def _watch(self) -> Iterator[None]:
        self._compare()
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="health")
        self._watches += 1
        try:
            yield
        finally:
            self._watches -= 1
            if not self._watches:
                self._polling.cancel()
                self._polling = None

    async def _poll(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._poll_s)
            self._compare()

    def _compare(self) -> None:
        """Wakes the health watches if the health of any service has changed, or the gateway stops."""
        health_now = {name: self._health(name) for name in self._names}
        if health_now != self._last or self._stopping.is_set():
            self._last = health_now
            self._changed.set()
            self._changed = asyncio.Event()

    def _health(self, name: str) -> int:
        if name not in self._names:
            return HealthCheckResponse.SERVICE_UNKNOWN
        serving = self._service.ready and not self._stopping.is_set()
        if name == _NEEDS_PRESENCE:
            serving = serving and self._service.presence_up
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
