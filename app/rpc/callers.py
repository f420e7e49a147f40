"""Who makes a gRPC call: its client, by credentials or certificate, and its address, behind trusted proxies too.

Invariants: a client whose credentials were valid a moment ago is known without a suspension. Calls with the same
unknown credentials share one look-up.
"""

import asyncio
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import grpc.aio

from app.auth.authenticator import Authenticator
from app.auth.credentials import Credentials, client_names
from app.auth.proxies import TrustedProxies, bucket
from app.domain.errors import InvalidRequest, TerminalStatusError
from app.domain.operations import Face
from app.domain.records import Client

FACE = Face.GRPC
"""The name of this API in usage records."""

ENTRY = "authorization"
"""The metadata entry with the credentials."""

Context = grpc.aio.ServicerContext[Any, Any]


class Callers:
    """Authenticates the callers of one server."""

    def __init__(self, auth: Authenticator, proxies: TrustedProxies) -> None:
        self._auth = auth
        self._proxies = proxies
        self._lookups: dict[Credentials, asyncio.Future[Client | TerminalStatusError | None]] = {}

    def known(self, context: Context) -> Client | None:
        """The client, if its credentials are known already; None: await `authenticate`."""
        found = _authorizations(context)
        return None if len(found) > 1 else self._auth.known("".join(found))

    async def authenticate(self, context: Context) -> Client:
        """Returns the client. Raises Unauthenticated, NotPermitted, RateLimited, StoreUnavailable; InvalidRequest for
        several entries `authorization`, as REST does."""
        shown = _authorizations(context)
        if len(shown) > 1:
            raise InvalidRequest("The call has several metadata entries `authorization`; send one.", field=ENTRY)
        credentials = Credentials(
            authorization="".join(shown),
            certificate_names=_certificate_names(context),
            peer=self._address(context),
        )
        while (lookup := self._lookups.get(credentials)) is not None:
            found = await asyncio.shield(lookup)
            if isinstance(found, Client):
                return found
            if found is not None:
                raise found
        lookup = self._lookups[credentials] = asyncio.get_running_loop().create_future()
        found = None  # stays None if this call is cancelled: then the next waiting call looks up
        try:
            found = await self._auth.authenticate(credentials)
        except TerminalStatusError as error:
            found = error
            raise
        finally:
            del self._lookups[credentials]
            lookup.set_result(found)
        return found

    def limit_key(self, context: Context) -> str:
        """The key by which limits per address count this call; "" for a trusted proxy that names no other address."""
        address = self._address(context)
        return "" if self._proxies.trusts(address) else _bucket(address)

    def _address(self, context: Context) -> str:
        address = address_of_peer(context.peer())
        if self._proxies.trusts(address):
            return self._proxies.origin(address, context.invocation_metadata() or ()).address
        return address


def _authorizations(context: Context) -> list[str]:
    return [
        value if isinstance(value, str) else "" for name, value in context.invocation_metadata() or () if name == ENTRY
    ]


def _certificate_names(context: Context) -> tuple[str, ...]:
    found: Any = context.auth_context()
    common, dns, uris = (
        [name.decode("utf-8", "replace") for name in found.get(kind, ())]
        for kind in ("x509_common_name", "peer_dns", "peer_uri")
    )
    return client_names(common, dns, uris)


@lru_cache(4096)
def address_of_peer(peer: str) -> str:
    """The address in gRPC's `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`; other kinds of peer are returned whole."""
    kind, _, address = peer.partition(":")
    return unquote(address.rpartition(":")[0]).strip("[]") if kind in ("ipv4", "ipv6") else peer


_bucket = lru_cache(4096)(bucket)
