"""The gRPC calls in progress: the client of each, and how each ends.

Invariants: every exception of a servicer ends its call with the status of `errors.py`. A call that is cancelled because
the gateway stops ends with UNAVAILABLE; `server.stop` would only reset it at the end of its grace. A call that is
cancelled because its caller left ends without a status.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from app.domain.records import Client
from app.rpc.callers import Context
from app.rpc.errors import abort, abort_stopping


class OpenCalls:
    """`tasks` are the calls in progress, and `clients` the clients of those that were admitted."""

    def __init__(self, stopping: asyncio.Event, tasks: set[asyncio.Task[Any]]) -> None:
        self._stopping = stopping
        self.tasks = tasks
        self.clients: dict[Context, Client] = {}

    @asynccontextmanager
    async def answer(self, context: Context, method: str) -> AsyncIterator[Client]:
        """The body of a servicer's method: yields the client, and ends the call with what the body raises."""
        try:
            yield self.clients[context]
        except (Exception, asyncio.CancelledError) as error:  # the last place before the wire
            await self.fail(context, method, error)

    async def fail(self, context: Context, method: str, error: BaseException) -> NoReturn:
        """Ends the call with the status for `error`; raises a cancellation of the caller again."""
        if isinstance(error, Exception):
            await abort(context, method, error)
        if not self._stopping.is_set() or context.cancelled():
            raise error
        await abort_stopping(context)
