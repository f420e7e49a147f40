"""`grpc.health.v1`: whether the gateway works, for the server as a whole ("") and for each service; for
TerminalStatusService, whether a presence server answers too.

Invariants: it looks, where the stock servicer wants to be told of each change, and so cannot be out of date. One task
looks for all who watch, while somebody does.
Deliberately absent: credentials, since load balancers have none.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Collection, Iterator

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from app.core.fetcher import FetchService
from app.pb.terminalstatus.v1 import terminal_status_pb2

_NEEDS_PRESENCE = terminal_status_pb2.DESCRIPTOR.services_by_name["TerminalStatusService"].full_name


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Looks each `poll_s` seconds for those who watch."""

    def __init__(self, service: FetchService, names: Collection[str], stopping: asyncio.Event, poll_s: float) -> None:
        self._service = service
        self._names = {"", *names}
        self._stopping = stopping
        self._poll_s = poll_s
        self._watches = 0
        self._seen: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

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
        with self._watching():
            while True:
                stopping, changed = self._stopping.is_set(), self._changed
                if (health_now := self._seen.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)) != told:
                    yield HealthCheckResponse(status=health_now)
                    told = health_now
                if stopping:
                    return
                await changed.wait()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        self._look()
        if self._looking is None:
            self._looking = asyncio.create_task(self._keep_looking(), name="health")
        self._watches += 1
        try:
            yield
        finally:
            self._watches -= 1
            if not self._watches:
                self._looking.cancel()
                self._looking = None

    async def _keep_looking(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._poll_s)
            self._look()

    def _look(self) -> None:
        """Wakes those who watch where the health of any service has changed, or the gateway stops."""
        seen = {name: self._health(name) for name in self._names}
        if seen != self._seen or self._stopping.is_set():
            self._seen = seen
            self._changed.set()
            self._changed = asyncio.Event()

    def _health(self, name: str) -> int:
        if name not in self._names:
            return HealthCheckResponse.SERVICE_UNKNOWN
        serving = self._service.ready and not self._stopping.is_set()
        if name == _NEEDS_PRESENCE:
            serving = serving and self._service.presence_up
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
