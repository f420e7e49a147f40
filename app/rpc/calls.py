"""What every handler does around its use case: who calls, and what a failure, a stop or a leaving caller means.

Invariants: a call that is cancelled while the gateway stops is answered UNAVAILABLE, which `server.stop` would not do
at the end of its grace. A caller that leaves cancels the handler. Who calls is known without a suspension where the
same credentials were good a moment ago; calls that show the same unknown credentials share one look-up.

Deliberately absent: interceptors, each of which costs every call, and how a call comes in (`handlers.py`).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc.aio

from app.auth.authenticator import Authenticator, Credentials, client_names
from app.auth.proxies import TrustedProxies, bucket
from app.domain.errors import TerminalStatusError
from app.domain.records import Client
from app.rpc.errors import abort, abort_stopping

Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """The calls of one server. `open` holds those that are handled, `clients` who calls in those that were let in."""

    def __init__(
        self,
        auth: Authenticator,
        stopping: asyncio.Event,
        open_calls: set[asyncio.Task[Any]],
        proxies: TrustedProxies = TrustedProxies(),  # noqa: B008  # frozen
    ) -> None:
        self._auth = auth
        self._stopping = stopping
        self._proxies = proxies
        self.open = open_calls
        self.clients: dict[Context, Client] = {}
        self._looked_up: dict[Credentials, asyncio.Future[Client | TerminalStatusError | None]] = {}

    def known(self, context: Context) -> Client | None:
        """Who calls, if that is known; None means that `client_of` must be awaited."""
        return self._auth.known(_authorization(context))

    async def client_of(self, context: Context) -> Client:
        """Who calls. Raises Unauthenticated, NotPermitted, RateLimited, StoreUnavailable."""
        shown = Credentials(
            authorization=_authorization(context),
            certificate_names=_certificate_names(context),
            peer=self._address(context),
        )
        while (looked_up := self._looked_up.get(shown)) is not None:
            found = await asyncio.shield(looked_up)
            if isinstance(found, Client):
                return found
            if found is not None:
                raise found
        looked_up = self._looked_up[shown] = asyncio.get_running_loop().create_future()
        found = None  # a caller that leaves lets the next one look
        try:
            found = await self._auth.authenticate(shown)
        except TerminalStatusError as error:
            found = error
            raise
        finally:
            del self._looked_up[shown]
            looked_up.set_result(found)
        return found

    def key(self, context: Context) -> str:
        """What bounds per address count this call by; "" for a trusted proxy that names nobody else."""
        address = self._address(context)
        return "" if self._proxies.trusts(address) else _bucket(address)

    def _address(self, context: Context) -> str:
        address = address_of(context.peer())
        if self._proxies.trusts(address):
            return self._proxies.origin(address, context.invocation_metadata() or ()).address
        return address

    @asynccontextmanager
    async def answer(self, context: Context, method: str) -> AsyncIterator[Client]:
        """The client that calls, for a handler's body; whatever the body raises ends the call with its meaning."""
        try:
            yield self.clients[context]
        except (Exception, asyncio.CancelledError) as error:  # the last place before the wire
            await self.fail(context, method, error)

    async def fail(self, context: Context, method: str, error: BaseException) -> NoReturn:
        """Ends the call with what `error` means."""
        if isinstance(error, Exception):
            await abort(context, method, error)
        if not self.cut_off(context):
            raise error
        await abort_stopping(context)

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


@lru_cache(4096)
def address_of(peer: str) -> str:
    """The address in `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`; of other kinds of peer their whole name."""
    kind, _, address = peer.partition(":")
    return unquote(address.rpartition(":")[0]).strip("[]") if kind in ("ipv4", "ipv6") else peer


_bucket = lru_cache(4096)(bucket)
