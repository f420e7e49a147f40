"""Methods as grpc.aio serves them: the gate, then the message, then the servicer.

The handlers of grpc.aio get a call with its message, whenever that comes, and only handlers know a caller's address:
the metadata that generic handlers and interceptors see lack it. Handlers of streamed requests are called before any
message. So each method is served as if its request were streamed, which is the same on the wire, and its one message is
read when the gate has let the call in. Bytes that are no request are thus an error like others.

Invariants: a call is in `Calls.open` while it is handled, and in one pool of the gate. The message of a call that has
shown bad credentials, or none where some are needed, is not read.

Deliberately absent: what gRPC answers by itself: no such method, a message that is too large.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import grpc.aio
from google.protobuf.message import DecodeError

from app.domain.errors import InvalidRequest, RateLimited, TerminalStatusError, Unauthenticated
from app.domain.records import ANONYMOUS, Client
from app.rpc.call_limits import FREE_CALL, Gate, Pool
from app.rpc.calls import Calls, Context

SWEEP_S = 1.0

_Task = asyncio.Task[Any]
_T = TypeVar("_T")


class Handlers:
    """Adds services to a server, behind a gate."""

    def __init__(self, server: grpc.aio.Server, calls: Calls, gate: Gate) -> None:
        self._server = server
        self._calls = calls
        self._gate = gate
        self._sweeping = False

    def of_clients(self) -> grpc.aio.Server:
        """What generated code adds services to that are for clients: each call counts for its client."""
        return cast("grpc.aio.Server", _Added(self._server, self.of_client))

    def of_anybody(self, pool: Pool) -> grpc.aio.Server:
        """The same for services that need no credentials: each call counts in `pool` for its caller's address."""
        return cast(
            "grpc.aio.Server", _Added(self._server, lambda name, handler: self._of_address(pool, name, handler))
        )

    def of_client(self, name: str, handler: Any) -> Any:
        """The handler for a method that is for clients."""
        behaviour, parse = _behaviour(handler), handler.request_deserializer
        calls, clients, proved = self._calls, self._gate.clients, self._gate.proved

        async def handle(_messages: object, context: Context) -> Any:
            call = cast("_Task", asyncio.current_task())
            calls.open.add(call)
            client: Client | None = None
            try:
                try:
                    found, message = calls.known(context), None
                    if found is None or found.id == ANONYMOUS:
                        found, message = await self._stranger(context, call, found)
                    clients.enter(found.id)
                    client = calls.clients[context] = found
                    proved.add(context.peer())
                    request = _parsed(name, parse, await context.read() if message is None else message)
                except (Exception, asyncio.CancelledError) as error:
                    await calls.fail(context, name, error)
                return await behaviour(request, context)
            finally:
                calls.open.discard(call)
                if client is not None:
                    del calls.clients[context]
                    clients.leave(client.id)

        return _streamed(handler, handle)

    async def _stranger(self, context: Context, call: _Task, client: Client | None) -> tuple[Client, object]:
        """Who calls, and the message where no credentials were needed: until then the call counts for its address."""
        strangers, key = self._gate.strangers, self._calls.key(context)

        async def shown() -> tuple[Client, object]:
            found = client or await self._calls.client_of(context)
            return found, await context.read() if found.id == ANONYMOUS else None

        try:
            if key in self._gate.shut_out:
                raise strangers.excess(strangers.each)
            strangers.enter(key)
            try:
                return await self._in_time(strangers, key, call, shown())
            finally:
                strangers.leave(key)
        except (Unauthenticated, RateLimited, InvalidRequest):
            self._gate.count_bad(key)
            raise

    def _of_address(self, pool: Pool, name: str, handler: Any) -> Any:
        behaviour, parse = _behaviour(handler), handler.request_deserializer
        calls = self._calls

        async def handle(_messages: object, context: Context) -> Any:
            call, key = cast("_Task", asyncio.current_task()), calls.key(context)

            async def read() -> Any:
                return await self._in_time(pool, key, call, context.read())

            async def messages() -> AsyncIterator[Any]:
                while (message := await read()) is not grpc.aio.EOF:
                    yield _parsed(name, parse, message)

            entered = False
            self._gate.count_bad(key, FREE_CALL)
            calls.open.add(call)
            try:
                pool.enter(key)
                entered = True
                request = messages() if handler.request_streaming else _parsed(name, parse, await read())
                if not handler.response_streaming:
                    return await behaviour(request, context)
                async for answer in behaviour(request, context):
                    await context.write(answer)
            except (TerminalStatusError, asyncio.CancelledError) as error:
                await calls.fail(context, name, error)
            finally:
                calls.open.discard(call)
                if entered:
                    pool.leave(key)

        return _streamed(handler, handle)

    async def _in_time(self, pool: Pool, key: str, call: _Task, shown: Awaitable[_T]) -> _T:
        """What is shown. Raises what the gate gives the call up with, if that comes first."""
        loop = asyncio.get_running_loop()
        waiting = self._gate.wait(pool, key, loop.time(), call.cancel)
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_S, self._sweep, loop)
        try:
            return await shown
        except asyncio.CancelledError:
            if waiting.refusal is None:
                raise
            call.uncancel()
            raise waiting.refusal from None
        finally:
            self._gate.waiting.pop(waiting, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._gate.sweep(loop.time())
        self._sweeping = bool(self._gate.waiting)
        if self._sweeping:
            loop.call_later(SWEEP_S, self._sweep, loop)


class _Added:
    """A server as generated code sees it. Methods are added as generic handlers only: for each call, grpc.aio's server
    waits for a task per registered method anew, which with all of ours was a fifth of what an answer costs."""

    def __init__(self, server: grpc.aio.Server, wrap: Callable[[str, Any], Any]) -> None:
        self._server = server
        self._wrap = wrap

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """The same methods come as registered ones, which can be read."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        wrapped = {name: self._wrap(name, handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))


def _behaviour(handler: Any) -> Any:
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def _streamed(handler: Any, handle: Any) -> Any:
    """As the handler answers, but called before any message, of which it gets the bytes."""
    kind: Any = (
        grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    )
    return kind(handle, response_serializer=handler.response_serializer)


def _parsed(name: str, parse: Callable[[bytes], Any] | None, data: object) -> Any:
    """The request in a message. Raises InvalidRequest."""
    if data is grpc.aio.EOF:
        raise InvalidRequest("The call ended without a message; send one request.")
    try:
        return data if parse is None else parse(cast("bytes", data))
    except DecodeError:
        raise InvalidRequest(f"These bytes are no {name}Request.") from None
