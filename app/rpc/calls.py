"""What every handler does around its use case: who calls, and what a failure, a stop or a leaving caller means.

Invariants: a call is in `open` while it is handled; one that is cancelled while the gateway stops is answered
UNAVAILABLE, which `server.stop` would not do at the end of its grace. A caller that leaves cancels the handler. Who
calls is known without a suspension where the same credentials were good a moment ago.

Deliberately absent: interceptors, each of which costs every call.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc.aio

from app.auth.authenticator import Authenticator, Credentials, client_names
from app.records import Client
from app.rpc.errors import abort, abort_stopping

Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """The calls of one server."""

    def __init__(self, auth: Authenticator, stopping: asyncio.Event, open_calls: set[asyncio.Task[Any]]) -> None:
        self._auth = auth
        self._stopping = stopping
        self.open = open_calls

    def known(self, context: Context) -> Client | None:
        """Who calls, if that is known; None means that `client_of` must be awaited."""
        return self._auth.known(_authorization(context))

    async def client_of(self, context: Context) -> Client:
        """Who calls. Raises Unauthenticated, RateLimited, StoreUnavailable."""
        return await self._auth.authenticate(
            Credentials(
                authorization=_authorization(context),
                certificate_names=_certificate_names(context),
                peer=_peer(context),
            )
        )

    @asynccontextmanager
    async def answer(self, context: Context, method: str) -> AsyncIterator[Client]:
        """The client that calls, for a handler's body; whatever the body raises ends the call with its meaning."""
        call = cast("asyncio.Task[Any]", asyncio.current_task())
        self.open.add(call)
        try:
            yield self.known(context) or await self.client_of(context)
        except asyncio.CancelledError:
            if not self.cut_off(context):
                raise
            await abort_stopping(context)
        except Exception as error:  # the last place before the wire
            await abort(context, method, error)
        finally:
            self.open.discard(call)

    def cut_off(self, context: Context) -> bool:
        """Whether a handler that was cancelled was so by the gateway that stops; else the caller left."""
        return self._stopping.is_set() and not context.cancelled()


def _authorization(context: Context) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            return value if isinstance(value, str) else ""
    return ""


def _certificate_names(context: Context) -> tuple[str, ...]:
    found: Any = context.auth_context()
    common, dns, uris = (
        [name.decode("utf-8", "replace") for name in found.get(kind, ())]
        for kind in ("x509_common_name", "peer_dns", "peer_uri")
    )
    return client_names(common, dns, uris)


def _peer(context: Context) -> str:
    """The address in `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    return str(context.peer()).partition(":")[2].rpartition(":")[0]
