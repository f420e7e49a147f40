"""Admits each gRPC call before its servicer runs: counts it, authenticates its caller, and reads its request.

grpc.aio calls the handler of a unary request only after its message has arrived, but the handler of a request stream
before any message. Only handlers see the caller's address; generic handlers and interceptors do not. So every method is
registered as if its request were a stream, which looks the same on the wire. Its first message is read after the call
is counted; unparsable bytes then become an error with details. The servicer of a method whose request is a stream reads
the other messages, and sees the first one among them.

Invariants: a call in progress is in `OpenCalls.tasks`, and counts for exactly one `CallLimit`. The message of a call
with bad credentials, or without required ones, is not read here (the queue engine has received 64 of them at most).

Deliberately absent: errors that gRPC itself answers: unknown methods, and messages that are too large.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import grpc.aio
from google.protobuf.message import DecodeError

from app.domain.errors import InvalidRequest, RateLimited, TerminalStatusError, Unauthenticated
from app.domain.records import ANONYMOUS, Client
from app.rpc import correlation
from app.rpc.call_limits import OPEN_METHOD_WEIGHT, PENDING_LIMIT_S, CallLimit, CallLimits, no_message
from app.rpc.callers import Callers, Context
from app.rpc.engines import EngineServer
from app.rpc.open_calls import OpenCalls

CHECK_PENDING_S = 1.0

_Task = asyncio.Task[Any]
_T = TypeVar("_T")


class CallAdmission:
    """Registers services at a server, each method behind the admission of its calls."""

    def __init__(self, server: EngineServer, callers: Callers, calls: OpenCalls, limits: CallLimits) -> None:
        self._server = server
        self._callers = callers
        self._calls = calls
        self._limits = limits
        self._checking = False

    def for_clients(self) -> grpc.aio.Server:
        """The server to which generated code adds services for clients: each call counts for its client."""
        return cast("grpc.aio.Server", _AdmittingServer(self._server, self._client_handler))

    def for_anyone(self, limit: CallLimit) -> grpc.aio.Server:
        """The same for services without credentials: each call counts in `limit` for its caller's address."""
        return cast(
            "grpc.aio.Server",
            _AdmittingServer(self._server, lambda name, handler: self._open_handler(limit, name, handler)),
        )

    def _client_handler(self, name: str, handler: Any) -> Any:
        behaviour, parse, many = _behaviour(handler), handler.request_deserializer, handler.request_streaming
        callers, calls = self._callers, self._calls
        clients, admitted_peers = self._limits.clients, self._limits.admitted_peers

        async def handle(_messages: object, context: Context) -> Any:
            task = cast("_Task", asyncio.current_task())
            calls.tasks.add(task)
            client: Client | None = None
            try:
                correlation.begin(context)
                try:
                    found, message = callers.known(context), None
                    if found is None or found.id == ANONYMOUS:
                        found, message = await self._authenticated(context, task, found)
                    clients.enter(found.id)
                    client = calls.clients[context] = found
                    admitted_peers.add(context.peer())
                    if message is None:
                        message = await (_first_message(context) if many else context.read())
                    request = _parsed(name, parse, message)
                except (Exception, asyncio.CancelledError) as error:
                    await calls.fail(context, name, error)
                return await behaviour(_all_messages(name, parse, request, context) if many else request, context)
            finally:
                calls.tasks.discard(task)
                if client is not None:
                    del calls.clients[context]
                    clients.leave(client.id)

        return _streaming_handler(handler, handle)

    async def _authenticated(self, context: Context, task: _Task, client: Client | None) -> tuple[Client, object]:
        """Returns the client; and the message, if the gateway requires no credentials. Until then the call counts for
        its address."""
        limit, key = self._limits.unauthenticated, self._callers.limit_key(context)

        async def client_and_message() -> tuple[Client, object]:
            found = client or await self._callers.authenticate(context)
            return found, await context.read() if found.id == ANONYMOUS else None

        try:
            if key in self._limits.blocked:
                raise limit.refusal(limit.per_key)
            limit.enter(key)
            try:
                return await self._in_time(limit, key, task, client_and_message())
            finally:
                limit.leave(key)
        except (Unauthenticated, RateLimited, InvalidRequest):
            self._limits.count_bad_call(key)
            raise

    def _open_handler(self, limit: CallLimit, name: str, handler: Any) -> Any:
        behaviour, parse = _behaviour(handler), handler.request_deserializer
        calls = self._calls

        async def handle(_messages: object, context: Context) -> Any:
            task, key = cast("_Task", asyncio.current_task()), self._callers.limit_key(context)

            async def read() -> Any:
                return await self._in_time(limit, key, task, context.read())

            async def messages() -> AsyncIterator[Any]:
                while (message := await read()) is not grpc.aio.EOF:
                    yield _parsed(name, parse, message)

            entered = False
            correlation.begin(context)
            self._limits.count_bad_call(key, OPEN_METHOD_WEIGHT)
            calls.tasks.add(task)
            try:
                limit.enter(key)
                entered = True
                request = messages() if handler.request_streaming else _parsed(name, parse, await read())
                if not handler.response_streaming:
                    return await behaviour(request, context)
                async for answer in behaviour(request, context):
                    await context.write(answer)
            except (TerminalStatusError, asyncio.CancelledError) as error:
                await calls.fail(context, name, error)
            finally:
                calls.tasks.discard(task)
                if entered:
                    limit.leave(key)

        return _streaming_handler(handler, handle)

    async def _in_time(self, limit: CallLimit, key: str, task: _Task, result: Awaitable[_T]) -> _T:
        """Awaits `result`. Raises the refusal of `cancel_overdue` if the call's time ends first."""
        loop = asyncio.get_running_loop()
        pending = self._limits.add_pending(limit, key, loop.time(), task.cancel)
        if not self._checking:
            self._checking = True
            loop.call_later(CHECK_PENDING_S, self._check_pending, loop)
        try:
            return await result
        except asyncio.CancelledError:
            if pending.refusal is None:
                raise
            task.uncancel()
            raise pending.refusal from None
        finally:
            self._limits.pending.pop(pending, None)

    def _check_pending(self, loop: asyncio.AbstractEventLoop) -> None:
        self._limits.cancel_overdue(loop.time())
        self._checking = bool(self._limits.pending)
        if self._checking:
            loop.call_later(CHECK_PENDING_S, self._check_pending, loop)


class _AdmittingServer:
    """A server as generated code sees it. Adds every method as a generic handler: for each registered method grpc.aio
    starts a task per call, which with all our methods was a fifth of a call's cost."""

    def __init__(self, server: EngineServer, wrap: Callable[[str, Any], Any]) -> None:
        self._server = server
        self._wrap = wrap

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Ignored: generated code adds the same methods as registered ones too, which can be wrapped."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        wrapped = {name: self._wrap(name, handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))


def _behaviour(handler: Any) -> Any:
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def _streaming_handler(handler: Any, handle: Any) -> Any:
    """A handler with the responses of `handler` that runs `handle` before any message arrives, and reads bytes."""
    kind: Any = (
        grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    )
    return kind(handle, response_serializer=handler.response_serializer)


async def _first_message(context: Context) -> object:
    """The first message of a stream. A client may hold a stream open for long, but not without its first message.

    Raises InvalidRequest."""
    try:
        async with asyncio.timeout(PENDING_LIMIT_S):
            return await context.read()
    except TimeoutError:
        raise no_message() from None


async def _all_messages(
    name: str, parse: Callable[[bytes], Any] | None, first: Any, context: Context
) -> AsyncGenerator[Any, None]:
    """The messages of a stream whose first one was read. Raises InvalidRequest."""
    yield first
    while (message := await context.read()) is not grpc.aio.EOF:
        yield _parsed(name, parse, message)


def _parsed(name: str, parse: Callable[[bytes], Any] | None, data: object) -> Any:
    """The request message. Raises InvalidRequest."""
    if data is grpc.aio.EOF:
        raise InvalidRequest(f"The call ended without a message; send one {name}Request.")
    try:
        return data if parse is None else parse(cast("bytes", data))
    except DecodeError:
        raise InvalidRequest(f"The message does not parse as a {name}Request.") from None
