"""The route of one operation: authenticates the caller, then checks the JSON body, then runs the handler.

Invariants: the caller is authenticated before a byte of the body is read, and without a suspension if the same
credentials were accepted a moment ago. Handlers check, call a use case, convert and return; errors become responses in
`problem.py`.
"""

import re
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.auth.authenticator import Authenticator
from app.auth.credentials import asgi_authorization, asgi_credentials
from app.domain.errors import InvalidRequest
from app.domain.operations import Face
from app.domain.records import Client

FACE = Face.REST
CLIENT = "client_that_calls"
"""The scope's key for the authenticated client."""

MAX_CONTAINERS = 10_000
"""Limit of objects and lists in a body, which Python is slow to create; a bracket in an address may count as one."""
MAX_MEMBERS = 1_000
"""Limit of members in all objects of a body together; no operation takes a tenth of it."""


async def client_of(auth: Authenticator, scope: Scope, *, confined: bool = False) -> Client:
    """Returns the client that calls, and notes it as CLIENT in the scope. `confined` as
    `Authenticator.authenticate` takes it.

    Raises NotPermitted, Unauthenticated, RateLimited, StoreUnavailable.
    """
    client = auth.known(asgi_authorization(scope), confined=confined)
    client = client or await auth.authenticate(asgi_credentials(scope), confined=confined)
    scope[CLIENT] = client
    if on_authenticated := scope.get("on_authenticated"):
        on_authenticated()
    return client


class Operation(APIRoute):
    """A route that authenticates the caller first, with the app's `state.auth`. Handlers take it as `Caller`."""

    confined_tokens = False
    """Whether access tokens that are valid for CAMARA's APIs only are accepted."""

    async def authenticate(self, scope: Scope) -> Client:
        """Returns the client that calls; raises as `client_of`."""
        return await client_of(scope["app"].state.auth, scope, confined=self.confined_tokens)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_json = self.body_field is not None

        async def authenticated(request: Request) -> Response:
            scope = request.scope
            await self.authenticate(scope)
            if takes_json:
                _check_media_type(scope)
            return await handle(_JsonRequest(scope, request.receive))

        return authenticated


def _check_media_type(scope: Scope) -> None:
    headers = dict(scope["headers"])
    named = headers.get(b"content-type")
    has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
    if (has_body and named is None) or (named is not None and not _JSON.fullmatch(named)):
        raise HTTPException(415, "the body must be JSON, and Content-Type must be application/json")
    codings = [value for name, value in scope["headers"] if name == b"content-encoding"]  # of which each line counts
    if has_body and any(coding.strip().lower() not in (b"identity", b"") for coding in codings):
        # RFC 9110 sections 8.4 and 15.5.16; decompressing could take any amount of memory.
        raise HTTPException(415, "the body must not be compressed", {"accept-encoding": "identity"})


_JSON = re.compile(rb"application/([!-.0-~]+\+)?json[ \t]*(;.*)?", re.IGNORECASE)


def given_several_times(name: str) -> InvalidRequest:
    """Returns the error for a query parameter that is not a list and has several values."""
    return InvalidRequest(f"The query parameter {name} is given several times; send it once.", field=name)


class _OperationParams(QueryParams):
    """Query parameters. FastAPI reads those that are repeatable with `getlist`, all others with `get`."""

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the only value. Raises InvalidRequest for several: proxies and servers would differ in which one
        counts."""
        if len(self._list) > len(self._dict) and len(self.getlist(key)) > 1:
            raise given_several_times(key)
        return self._dict.get(key, default)


class _JsonRequest(Request):
    """A request whose body is strict JSON (RFC 8259). The standard library's parser would also accept NaN and
    unpaired surrogates, which databases refuse."""

    @cached_property
    def query_params(self) -> QueryParams:
        return _OperationParams(self.scope["query_string"])

    async def json(self) -> Any:
        body = await self.body()
        braces = body.count(b"{")
        if braces + body.count(b"[") - body.count(b"@[") > MAX_CONTAINERS:
            raise HTTPException(400, f"the body has more than {MAX_CONTAINERS} objects and lists")
        found = _decode(body)
        if found is None:  # where a body may be absent, FastAPI would take null for that
            raise HTTPException(400, "the body is null; send an object")
        _check_members(found, braces)
        return found


def _check_members(found: object, objects: int) -> None:
    """Raises HTTPException if the objects in `found`, at most `objects`, have more than MAX_MEMBERS members together.

    Pydantic reports each unknown member, at 10 µs each: a body of one megabyte took a second.
    """
    left, waiting = MAX_MEMBERS, [found]
    while waiting and objects:
        each = waiting.pop()
        if isinstance(each, dict):
            objects -= 1
            left -= len(each)
            if left < 0:
                raise HTTPException(400, f"the body's objects have more than {MAX_MEMBERS} members")
            waiting += each.values()
        elif isinstance(each, list):
            waiting += [one for one in each if isinstance(one, dict | list)]


_decode = msgspec.json.Decoder().decode
