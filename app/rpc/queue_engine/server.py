"""The server: its port, the start of each call, and its stop.

Invariants: the core has CALLS_REQUESTED requests for calls, and gets a new one when the event loop has started the call
of an earlier one. So when the loop is behind, calls wait in the core, within its limits.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined, unused-ignore]  # its types lack it

from app.rpc.queue_engine.call import CallAborted, QueueCall
from app.rpc.queue_engine.poller import Poller, Step

CALLS_REQUESTED = 64
"""Most calls that one pass of the event loop starts."""

MAX_EARLY_MESSAGES = 64
"""Calls whose message the poller asks for as soon as it sees them, before the event loop does. Most messages then are
there when the loop starts their call, so it needs no second pass. Their bytes are held before the call is admitted."""

_log = structlog.get_logger(__name__)


class _Details:
    """What a generic handler is asked with."""

    invocation_metadata = ()

    def __init__(self, method: str) -> None:
        self.method = method


class QueueServer:
    """As `grpc.aio.Server`; `options` are the same. To be made, started and stopped in one running event loop.

    Every handler that is added must read its requests as a stream (`stream_unary` or `stream_stream`), be a coroutine
    function, and is called with None and the call.
    """

    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._poller = Poller()
        self._server: Any = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(self._poller.queue)
        self._generic: list[Any] = []
        self._handlers: dict[bytes, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._early_messages = 0  # used by the poller's thread only
        self._new: list[QueueCall] = []
        self._started = False
        self._stopping: asyncio.Future[None] | None = None

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._generic.extend(handlers)

    def add_insecure_port(self, address: str) -> int:
        """Returns the port. Raises RuntimeError if it cannot be bound."""
        return self._bound(address, self._server.add_http2_port(address.encode()))

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """Returns the port. Raises RuntimeError if it cannot be bound."""
        return self._bound(address, self._server.add_http2_port(address.encode(), credentials._credentials))  # type: ignore[attr-defined]  # noqa: SLF001  # as grpc._server does

    async def start(self) -> None:
        self._poller.start()
        self._server.start()
        self._started = True
        for _ in range(CALLS_REQUESTED):
            self._request_call()

    async def stop(self, grace: float | None) -> None:
        """Takes no more calls, and waits `grace` seconds (None: not at all) for those in progress; then cancels them.

        A second call waits for the same end.
        """
        if self._stopping is not None:
            await asyncio.shield(self._stopping)
            return
        self._stopping = self._loop.create_future()
        if self._started:
            down = self._loop.create_future()
            self._server.shutdown(self._poller.queue, lambda _event: partial(down.set_result, None))
            if grace is None or not (await asyncio.wait({down}, timeout=grace))[0]:
                self._server.cancel_all_calls()
            await down
            if self._tasks:
                await asyncio.wait(self._tasks)
        self._server.destroy()
        await self._poller.finish()
        self._stopping.set_result(None)

    def _bound(self, address: str, port: int) -> int:
        if not port:
            raise RuntimeError(f"Failed to bind to address {address}.")
        return port

    def _request_call(self) -> None:
        if self._stopping is None:
            self._server.request_call(self._poller.queue, self._poller.queue, self._on_call)

    def _on_call(self, event: Any) -> Step | None:
        """Called in the poller's thread."""
        if not event.success:  # the server stops
            return None
        call = QueueCall(event, self._loop)
        if self._early_messages < MAX_EARLY_MESSAGES:
            self._early_messages += 1
            call.request_message(self._on_early_message)
        return partial(self._start_call, call)

    def _on_early_message(self) -> None:
        """Called in the poller's thread."""
        self._early_messages -= 1

    def _start_call(self, call: QueueCall) -> None:
        self._request_call()
        handler = self._handlers.get(call.method) or self._find(call.method)
        if handler is None:
            call.finish(None, grpc.StatusCode.UNIMPLEMENTED.value[0], "Method not found!")
            return
        call.serialize = handler.response_serializer
        task = call.task = self._loop.create_task(_serve(call, handler))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not self._new:  # runs after the first step of the tasks that are made now
            self._loop.call_soon(self._request_closes)
        self._new.append(call)

    def _request_closes(self) -> None:
        new, self._new = self._new, []
        for call in new:
            call.request_close()

    def _find(self, method: bytes) -> Any:
        details = _Details(method.decode("utf-8", "replace"))
        for each in self._generic:
            if (handler := each.service(details)) is not None:
                self._handlers[method] = handler
                return handler
        return None


async def _serve(call: QueueCall, handler: Any) -> None:
    try:
        if handler.response_streaming:
            await handler.stream_stream(None, call)
            await call.end(None, unary=False)
        else:
            await call.end(await handler.stream_unary(None, call), unary=True)
    except CallAborted:
        pass
    except asyncio.CancelledError:
        call.finish(None, grpc.StatusCode.CANCELLED.value[0], "The gateway has cancelled the call.")
    except Exception as error:  # a defect: servicers end their calls with a status
        _log.error("grpc_call_failed", method=call.method.decode("utf-8", "replace"), exc_info=error)
        call.finish(None, grpc.StatusCode.UNKNOWN.value[0], "The gateway failed.")
