"""REST API v1: one terminal's status, and many terminals' at once.

Invariants: `getTerminalStatus` is on the bench: FastAPI's solving of dependencies, which costs 40 µs of CPU in each
request to find what the router has found already, is left out, and its signature is documentation. Unknown query
parameters are ignored.

Deliberately absent: business rules, caching.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.core.queries import TerminalResult
from app.core.use_cases import UseCases
from app.domain.addresses import MAX_ADDRESS_LENGTH
from app.domain.errors import (
    DocumentUnreadable,
    FetchTimedOut,
    GatewayOverloaded,
    GroupNotAllowed,
    GroupUnknown,
    InvalidAddress,
    InvalidRequest,
    NestedGroupNotAllowed,
    NoValidAddresses,
    PresenceMisconfigured,
    PresenceUnavailable,
    TerminalUnknown,
    TooManyAddresses,
    WatcherRefused,
    WatcherRestarting,
    WatcherUnauthenticated,
)
from app.domain.records import MAX_REQUESTER
from app.domain.statuses import Status
from app.rest import schemas, to_json
from app.rest.error_examples import ALICE, failures
from app.rest.operation import FACE, Operation, client_of
from app.rest.parameters import Caller
from app.rest.responses import NO_STORE, json_response

TAG = "Terminal status"
LINES = "application/jsonl"

_FETCH_ERRORS = (
    InvalidAddress,
    TerminalUnknown,
    WatcherRefused,
    WatcherUnauthenticated,
    FetchTimedOut,
    PresenceUnavailable,
    WatcherRestarting,
    GatewayOverloaded,
    PresenceMisconfigured,
    DocumentUnreadable,
)
LIST_ERRORS = (
    InvalidAddress,
    NoValidAddresses,
    TooManyAddresses,
    GroupUnknown,
    GroupNotAllowed,
    NestedGroupNotAllowed,
)
"""How a list of terminals and groups fails."""

ADDRESS_EXAMPLES: Any = {
    "sip": {"summary": "A SIP URI", "value": ALICE},
    "tel": {"summary": "A telephone number", "value": "tel:+15551234567"},
}
AddressInPath = Annotated[
    str,
    Path(
        description="The terminal: a `sip:`, `sips:` (RFC 3261, without password and headers) or `tel:` URI "
        "(RFC 3966). Percent-encode what a path cannot hold, such as `/`, `?`, `#` and `%`; `+` is a plus.",
        min_length=1,
        max_length=MAX_ADDRESS_LENGTH,
        openapi_examples=ADDRESS_EXAMPLES,
        json_schema_extra={"format": schemas.ADDRESS_FORMAT},
    ),
]


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operations to `router`."""
    queries = use_cases.queries

    async def get_terminal_status(
        client: Caller,
        address: AddressInPath,
        max_age_s: Annotated[
            float,
            Query(
                ge=0,
                le=86_400,
                description="How old the answer may be, in seconds since the presence server stated or confirmed it. 0 "
                "asks the presence server now; more may be answered from a live subscription or a recent answer.",
            ),
        ] = 0,
        requester: Annotated[
            str,
            Query(
                max_length=MAX_REQUESTER,
                description="On whose behalf the client asks, a URI or a name; only stands in the usage record.",
            ),
        ] = "",
    ) -> Response:
        status = await queries.get_status(client, address, max_age_s=max_age_s, face=FACE, requester=requester)
        return json_response(to_json.terminal_status(status))

    router.add_api_route(
        "/v1/terminals/{address:any_text}/status",
        get_terminal_status,
        methods=["GET"],
        operation_id="getTerminalStatus",
        tags=[TAG],
        summary="Get a terminal's status",
        description="Asks the presence server for the terminal's status now, unless `max_age_s` accepts what is known "
        "already. A terminal that exists and is not registered is no error: it is `UNREACHABLE`. Concurrent questions "
        "about one terminal share one SIP SUBSCRIBE. Unknown query parameters are ignored.",
        response_model=schemas.TerminalStatus,
        response_description="The terminal's status.",
        responses={
            **failures(*_FETCH_ERRORS, GroupNotAllowed),
            200: {"content": {"application/json": {"examples": _EXAMPLE_STATUSES}}},
        },
        route_class_override=_Lean,
    )

    @router.post(
        "/v1/terminals:query",
        operation_id="queryTerminalStatuses",
        tags=[TAG],
        summary="Get the statuses of many terminals",
        description="Asks about terminals and the members of groups. Each terminal has one result, however often it is "
        "named; the order is not that of the request. What fails for one terminal is that terminal's result and no "
        f"failure of the request. With `Accept: {LINES}` each result is a line, sent as soon as it is there.",
        response_model=schemas.QueryResults,
        response_description="A result for each terminal.",
        responses={
            **failures(*LIST_ERRORS),
            200: {"content": {LINES: {"schema": {"$ref": "#/components/schemas/TerminalResult"}}}},
        },
    )
    async def query_terminal_statuses(
        client: Caller,
        asked: schemas.QueryRequest,
        accept: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        results = queries.query(
            client, asked.addresses, max_age_s=asked.max_age_s, face=FACE, requester=asked.requester
        )
        if LINES in accept:
            first = await anext(results)  # what is wrong with the whole request is raised here
            return StreamingResponse(_lines(first, results), media_type=LINES, headers=NO_STORE)
        async with aclosing(results):
            return json_response({"results": [to_json.terminal_result(result) async for result in results]})


async def _lines(first: TerminalResult, results: Any) -> AsyncIterator[bytes]:
    encode = msgspec.json.Encoder().encode
    async with aclosing(results):
        yield encode(to_json.terminal_result(first)) + b"\n"
        async for result in results:
            yield encode(to_json.terminal_result(result)) + b"\n"


class _Lean(Operation):
    """`getTerminalStatus` without FastAPI's solving of its dependencies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint

        async def handle(request: Request) -> Response:
            scope = request.scope
            auth = scope["app"].state.auth
            query = scope["query_string"]
            return await endpoint(
                client=await client_of(auth, scope),
                address=scope["path_params"]["address"],
                **(_read_query(query) if query else {}),
            )

        return handle


def _read_query(query: bytes) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, text in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name == "max_age_s":
            try:
                if "_" in text:  # which Python would take
                    raise ValueError
                given[name] = float(text)
            except ValueError:
                raise InvalidRequest("max_age_s is no number.", field="max_age_s") from None
        elif name == "requester":
            if len(text) > MAX_REQUESTER:
                raise InvalidRequest(f"At most {MAX_REQUESTER} characters are allowed.", field="requester")
            given[name] = text
    return given


_EXAMPLE_STATUSES: dict[str, Any] = {
    status.value: {
        "summary": summary,
        "value": {
            "address": ALICE,
            "status": status,
            "observed_at": "2026-01-02T03:04:05.678Z",
            "source": "FETCH",
            "revision": 0,
        },
    }
    for status, summary in {
        Status.REACHABLE: "Registered, nothing says that the user is busy",
        Status.UNREACHABLE: "Not registered",
        Status.BUSY: "Registered, the user is on the phone",
    }.items()
}
