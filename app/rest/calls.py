"""What every operation does around its use case: who calls, the parts of a request that many have, JSON answers.

Invariants: who calls is known before a byte of the body is read, and without a suspension where the same credentials
were good a moment ago. A handler is check, call, map, return; errors are mapped in `problem`.

Deliberately absent: values (`wire.py`), documentation (`schemas.py`).
"""

import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, cast

import msgspec
from fastapi import Depends, Header, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.auth.authenticator import Authenticator, asgi_authorization, asgi_credentials
from app.domain.errors import InvalidRequest
from app.domain.records import MAX_ID, Client
from app.ports import DEFAULT_PAGE, MAX_PAGE, MAX_PAGE_TOKEN, Page
from app.rest.problem import NO_STORE

FACE = "rest"


async def client_of(auth: Authenticator, scope: Scope, *, confined: bool = False) -> Client:
    """Who calls. Raises NotPermitted, Unauthenticated, RateLimited, StoreUnavailable; `confined` as `authenticate`."""
    client = auth.known(asgi_authorization(scope), confined=confined)
    client = client or await auth.authenticate(asgi_credentials(scope), confined=confined)
    if authenticated := scope.get("authenticated"):
        authenticated()
    return client


class Operation(APIRoute):
    """A route whose caller is known first; the app's `state.auth` tells who it is, and `Caller` hands it on."""

    confined_tokens = False
    """Whether access tokens are taken that serve CAMARA's APIs only."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        confined, takes_json = self.confined_tokens, self.body_field is not None

        async def authenticated(request: Request) -> Response:
            scope = request.scope
            scope["client_that_calls"] = await client_of(scope["app"].state.auth, scope, confined=confined)
            if takes_json:
                _check_media_type(scope)
            return await handle(_JsonRequest(scope, request.receive))

        return authenticated


def _check_media_type(scope: Scope) -> None:
    headers = dict(scope["headers"])
    named = headers.get(b"content-type")
    there = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
    if (there and named is None) or (named is not None and not _JSON.fullmatch(named)):
        raise HTTPException(415, "the body must be application/json, and Content-Type say so")


_JSON = re.compile(rb"application/([!-.0-~]+\+)?json[ \t]*(;.*)?", re.IGNORECASE)


class _JsonRequest(Request):
    """A request whose body is JSON by the letter (RFC 8259): the standard library takes NaN, and halves of surrogate
    pairs, which no database does."""

    async def json(self) -> Any:
        body = await self.body()
        braces = body.count(b"{")
        if braces + body.count(b"[") - body.count(b"@[") > MAX_CONTAINERS:
            raise HTTPException(400, f"the body has over {MAX_CONTAINERS} objects and lists")
        found = _decode(body)
        _check_members(found, braces)
        return found


def _check_members(found: object, objects: int) -> None:
    """Pydantic names each member that is one too many, at 10 µs: a body of a megabyte took a second. There are as many
    `objects` as that, or fewer."""
    left, waiting = MAX_MEMBERS, [found]
    while waiting and objects:
        each = waiting.pop()
        if isinstance(each, dict):
            objects -= 1
            left -= len(each)
            if left < 0:
                raise HTTPException(400, f"the body's objects have over {MAX_MEMBERS} members")
            waiting += each.values()
        elif isinstance(each, list):
            waiting += [one for one in each if isinstance(one, dict | list)]


MAX_CONTAINERS = 10_000
"""Most objects and lists in a body, which Python takes long to make; a bracket in an address may count as one."""
MAX_MEMBERS = 1_000
"""Most members of all objects in a body together; no operation takes a tenth."""
_decode = msgspec.json.Decoder().decode


async def _client(request: Request) -> Client:
    return cast("Client", request.scope["client_that_calls"])


Caller = Annotated[Client, Depends(_client)]
"""A handler's parameter: the client that calls."""


async def _page(
    page_size: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most items to return.")] = DEFAULT_PAGE,
    page_token: Annotated[
        str,
        Query(
            max_length=MAX_PAGE_TOKEN,
            description="The `next_page_token` of the page before; empty for the first. Good for the operation that "
            "gave it, by the same client and with the same filters.",
        ),
    ] = "",
) -> Page:
    return Page(size=page_size, token=page_token)


Paged = Annotated[Page, Depends(_page)]
"""A handler's parameter: which part of a list."""

_KEY = re.compile(rf'[!#-~]{{1,{MAX_ID}}}|"[!#-~]{{1,{MAX_ID}}}"')


async def _request_id(
    idempotency_key: Annotated[
        str,
        Header(
            max_length=MAX_ID + 2,
            description="Makes the call safe to repeat: with the key of an earlier call of the same client, nothing is "
            f"made, and what that call made is returned. 1 to {MAX_ID} printable ASCII characters without quotes and "
            "blanks, such as a UUID; may stand in double quotes.",
        ),
    ] = "",
) -> str:
    if idempotency_key and not _KEY.fullmatch(idempotency_key):
        raise InvalidRequest(f"The Idempotency-Key is not 1 to {MAX_ID} printable characters.", field="Idempotency-Key")
    return idempotency_key.strip('"')


RequestId = Annotated[str, Depends(_request_id)]
"""A handler's parameter: the Idempotency-Key."""

_encode = msgspec.json.Encoder().encode


def returned(data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that carries `data` as JSON; never to be cached."""
    return Response(_encode(data), status, {**NO_STORE, **(headers or {})}, "application/json")


def nothing() -> Response:
    """The answer 204."""
    return Response(status_code=204, headers=NO_STORE)


class _AnyText(Convertor[str]):
    """As Starlette's `path`, but line ends too: a domain rule refuses them, not a 404."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _GroupAddress(_AnyText):
    """Any text but what ends as the paths of a group's members do, which no address does."""

    regex = r"[\s\S]*(?<!/members)(?<!/members:add)(?<!/members:remove)"


class _Id(_AnyText):
    """An id: none has a colon, which sets a custom method off."""

    regex = "[^/:]+"


register_url_convertor("any_text", _AnyText())
register_url_convertor("id", _Id())
register_url_convertor("group_address", _GroupAddress())
