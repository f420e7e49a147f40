"""The parameters that many operations share: the client that calls, the page of a list, the Idempotency-Key; and the
path convertors that the routes' paths name (`{id:id}`, `{address:any_text}`)."""

import re
from typing import Annotated, cast

from fastapi import Depends, Header, Query, Request
from starlette.convertors import Convertor, register_url_convertor

from app.domain.errors import InvalidRequest
from app.domain.records import MAX_ID, Client
from app.ports.store import DEFAULT_PAGE, MAX_PAGE, MAX_PAGE_TOKEN, Page
from app.rest.operation import CLIENT
from app.rest.schemas import Rfc3339


async def _client(request: Request) -> Client:
    return cast("Client", request.scope[CLIENT])


Caller = Annotated[Client, Depends(_client)]
"""A handler's parameter: the client that calls."""


async def _page(
    page_size: Annotated[
        int, Query(ge=1, description=f"The largest number of items to return; more than {MAX_PAGE} means {MAX_PAGE}.")
    ] = DEFAULT_PAGE,
    page_token: Annotated[
        str,
        Query(
            max_length=MAX_PAGE_TOKEN,
            description="The `next_page_token` of the previous page; empty for the first page. A token is valid for "
            "the operation that returned it, for the same client and the same filters. A page may be short, and even "
            "empty, before the last: read on until `next_page_token` is empty.",
        ),
    ] = "",
) -> Page:
    return Page(size=min(page_size, MAX_PAGE), token=page_token)


Paged = Annotated[Page, Depends(_page)]
"""A handler's parameter: which part of a list to return."""

StartTime = Annotated[Rfc3339 | None, Query(description="Only items of this time or later (RFC 3339).")]
EndTime = Annotated[
    Rfc3339 | None, Query(description="Only items of before this time (RFC 3339). Must be later than `start_time`.")
]
ClientId = Annotated[
    str,
    Query(
        max_length=MAX_ID,
        description="Only items of this client. Only an operator's client sees items of others; for the rest such a "
        "list is empty.",
    ),
]

_KEY = re.compile(rf'[!#-~]{{1,{MAX_ID}}}|"[!#-~]{{1,{MAX_ID}}}"')


async def _request_id(
    idempotency_key: Annotated[
        str,
        Header(
            max_length=MAX_ID + 2,
            description="Makes the call safe to repeat: a call with the key of an earlier call of the same client "
            "creates nothing and returns what the earlier call created. "
            f"1 to {MAX_ID} printable ASCII characters except quotes and spaces, such as a UUID; double quotes around "
            "the key are allowed.",
        ),
    ] = "",
) -> str:
    if idempotency_key and not _KEY.fullmatch(idempotency_key):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {MAX_ID} printable ASCII characters without quotes and spaces.",
            field="Idempotency-Key",
        )
    return idempotency_key.strip('"')


RequestId = Annotated[str, Depends(_request_id)]
"""A handler's parameter: the Idempotency-Key, empty where absent."""


class _AnyText(Convertor[str]):
    """As Starlette's `path`, but accepts line ends too: the use case refuses them with a reason, while `path` would
    answer 404."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _GroupAddress(_AnyText):
    """Any text that does not end like the paths of a group's members; no address ends so."""

    regex = r"[\s\S]*(?<!/members)(?<!/members:add)(?<!/members:remove)"


class _Id(_AnyText):
    """An id. Ids contain no colon: in a path, a colon begins a custom method such as `:rotateSecret`."""

    regex = "[^/:]+"


register_url_convertor("any_text", _AnyText())
register_url_convertor("id", _Id())
register_url_convertor("group_address", _GroupAddress())
