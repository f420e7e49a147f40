"""One call, as servicers see it: the part of `grpc.aio.ServicerContext` that they use.

Invariants: the status is sent once, after the last message. A call has one message in flight: `write` returns when the
core has taken the message, and first waits until the core has sent the one before. Everything but the flags of a write
is changed in the event loop only.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined, unused-ignore]  # its types lack it

from app.rpc.queue_engine.poller import Step

Metadata = tuple[tuple[str, str | bytes], ...]

_OK = 0
_NO_FLAGS = 0


class CallAborted(Exception):  # not an error: the call has its status
    """Ends the servicer's method after `abort`."""


class QueueCall:
    """A call in progress. `serialize` turns a response into bytes; None: responses are bytes."""

    __slots__ = (
        "_call",
        "_cancelled",
        "_close_requested",
        "_deadline",
        "_finished",
        "_loop",
        "_message_requested",
        "_metadata",
        "_metadata_sent",
        "_on_message",
        "_peer",
        "_received",
        "_receiver",
        "_sending",
        "_trailing",
        "_write_waiter",
        "method",
        "serialize",
        "task",
    )

    def __init__(self, event: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._call = event.call
        self._metadata: Metadata = event.invocation_metadata
        self._deadline: float = event.call_details.deadline
        self.method: bytes = event.call_details.method
        self._loop = loop
        self._peer = ""
        self.serialize: Callable[[Any], bytes] | None = None
        self.task: asyncio.Task[None] | None = None
        self._received: list[bytes | None] = []
        self._receiver: asyncio.Future[None] | None = None
        self._metadata_sent = self._message_requested = self._finished = False
        self._cancelled = self._close_requested = False
        self._trailing: Metadata = ()
        self._sending = False
        self._write_waiter: asyncio.Future[None] | None = None

    # What servicers use, as grpc.aio.ServicerContext has it

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def peer(self) -> str:
        if not self._peer:
            self._peer = self._call.peer().decode("utf-8", "replace")
        return self._peer

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What TLS says of the client: `x509_common_name` and others; empty without a certificate."""
        found: Any = cygrpc.auth_context(self._call)
        return {key.decode(): values for key, values in (found or {}).items()}

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if math.isinf(self._deadline) else max(self._deadline - time.time(), 0.0)

    def cancelled(self) -> bool:
        """Whether the client has cancelled the call, its deadline has passed, or its connection is broken."""
        return self._cancelled

    def done(self) -> bool:
        return self._finished or self._cancelled

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        self._trailing = tuple(metadata)

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        if not self._metadata_sent and not self.done():
            self._metadata_sent = True
            self._start((cygrpc.SendInitialMetadataOperation(tuple(metadata), _NO_FLAGS),), _ignore)

    async def read(self) -> Any:
        """The bytes of the next message; `grpc.aio.EOF` after the last one, and when the call is cancelled."""
        if not self._received:
            if not self._message_requested:  # by the server, or by a `read` that was cancelled
                self.request_message()
            receiver = self._receiver = self._loop.create_future()
            try:
                await receiver
            finally:
                self._receiver = None
        message = self._received.pop()
        return grpc.aio.EOF if message is None else message

    async def write(self, message: Any) -> None:
        """Sends a message. Returns when the core has taken it; the core then has nothing else of this call to send."""
        data = message if self.serialize is None else self.serialize(message)
        if self._sending:
            await self._sent()
        if self.done():
            return
        self._sending = True
        send = cygrpc.SendMessageOperation(data, _NO_FLAGS)
        if self._metadata_sent:
            self._start((send,), self._on_sent)
        else:
            self._metadata_sent = True
            self._start((cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS), send), self._on_sent)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Ends the call with this status. Raises CallAborted, which ends the servicer's method."""
        if self._sending:
            await self._sent()
        self.finish(None, code.value[0], details, trailing_metadata or self._trailing)
        raise CallAborted(details)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata)

    # What the server uses

    def request_message(self, on_received: Callable[[], None] | None = None) -> None:
        """Asks the core for the next message, which the next `read` returns. `on_received` is called in the poller's
        thread."""
        self._message_requested = True
        self._on_message = on_received
        self._start((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._on_received)

    def request_close(self) -> None:
        """Has the core report when the client cancels. Not needed by a call that is answered at once."""
        if not self._close_requested:
            self._close_requested = True
            self._start((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._on_closed)

    async def end(self, response: Any, *, unary: bool) -> None:
        """Ends the call with status OK, and with its response if it is `unary`."""
        if self._sending:
            await self._sent()
        data = None
        if unary:
            data = response if self.serialize is None else self.serialize(response)
        self.finish(data, _OK, "", self._trailing)

    def finish(self, message: bytes | None, code: int, details: str, trailing: Metadata = ()) -> None:
        """Sends the status, with a last message if there is one. Without effect if the call has ended."""
        if self.done():
            return
        self._finished = True
        operations = [] if self._metadata_sent else [cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)]
        if message is not None:
            operations.append(cygrpc.SendMessageOperation(message, _NO_FLAGS))
        if not self._close_requested:
            self._close_requested = True
            operations.append(cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS))
        operations.append(
            cygrpc.SendStatusFromServerOperation(trailing or None, code, details.encode("utf-8", "replace"), _NO_FLAGS)
        )
        self._start(operations, _ignore)

    async def _sent(self) -> None:
        """Waits until the message in flight was sent, or the call has ended."""
        waiter = self._write_waiter = self._loop.create_future()
        try:
            if self._sending:  # after the waiter is set: see `_on_sent`
                await waiter
        finally:
            self._write_waiter = None

    def _start(self, operations: Sequence[Any], tag: Callable[[Any], Step | None]) -> None:
        """Operations are made for one use: each holds the core's memory for its result."""
        if error := self._call.start_server_batch(operations, tag):
            raise RuntimeError(f"gRPC's core refuses operations of a call, with its error {error}.")

    # Called in the poller's thread; what they return is called in the event loop

    def _on_sent(self, _event: Any) -> Step | None:
        self._sending = False  # before the waiter is read: see `_sent`
        return self._wake_writer if self._write_waiter is not None else None

    def _on_received(self, event: Any) -> Step:
        message = event.batch_operations[0].message()
        if self._on_message is not None:
            self._on_message()
            self._on_message = None

        def received() -> None:
            self._message_requested = False
            self._received.append(message)
            if self._receiver is not None and not self._receiver.done():
                self._receiver.set_result(None)

        return received

    def _on_closed(self, event: Any) -> Step | None:
        return self.on_closed if event.batch_operations[0].cancelled() else None

    def _wake_writer(self) -> None:
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)

    def on_closed(self) -> None:
        """The client has cancelled, the deadline has passed, the connection is broken, or the server stops."""
        if not self._finished:
            self._cancelled = True
            if self.task is not None:
                self.task.cancel()


def _ignore(_event: Any) -> None:
    """The tag of operations of which nobody needs to know the end."""
