"""REST API v1: the status of one terminal, and of many terminals in one query.

`getTerminalStatus`, the hottest call, is answered beside FastAPI (`StatusShortcut`), which has the operation for the
OpenAPI document only.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec
from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.queries import TerminalResult
from app.core.use_cases import UseCases
from app.domain.addresses import MAX_ADDRESS_LENGTH
from app.domain.errors import (
    AddressIsList,
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
    TerminalStatusError,
    TerminalUnknown,
    TooManyAddresses,
    WatcherRefused,
    WatcherRestarting,
    WatcherUnauthenticated,
)
from app.domain.records import MAX_REQUESTER
from app.domain.statuses import Status
from app.rest import schemas, status_schemas, to_json
from app.rest.error_examples import ALICE, failures
from app.rest.operation import FACE, client_of, given_several_times
from app.rest.parameters import Caller
from app.rest.problem import answer_error
from app.rest.responses import LINES, NO_STORE, json_response, lines_of

TAG = "Terminal status"

_FETCH_ERRORS = (
    InvalidAddress,
    TerminalUnknown,
    AddressIsList,
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
"""Errors of a list of terminals and groups."""

ADDRESS_EXAMPLES: Any = {
    "sip": {"summary": "A SIP URI", "value": ALICE},
    "tel": {"summary": "A telephone number", "value": "tel:+15551234567"},
}
AddressInPath = Annotated[
    str,
    Path(
        description="The terminal's address: a `sip:` or `sips:` URI (RFC 3261, without password and headers) or a "
        "`tel:` URI (RFC 3966). Percent-encode `/`, `?`, `#` and `%`; `+` means a plus.",
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
                description="The accepted age of the status: seconds since the presence server stated or confirmed it. "
                "0 queries the presence server now. Other values permit an answer from a watch or a recent query.",
            ),
        ] = 0,
        requester: Annotated[
            str,
            Query(
                max_length=MAX_REQUESTER,
                description="On whose behalf the client calls, a URI or a name. Stored in the usage record, not used "
                "otherwise.",
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
        description="Queries the presence server for the terminal's status, unless `max_age_s` accepts a known "
        "status. A terminal that exists and is not registered is `UNREACHABLE`; this is not an error. Concurrent "
        "queries of one client for one terminal share one SIP SUBSCRIBE. Unknown query parameters are ignored.",
        response_model=status_schemas.TerminalStatus,
        response_description="The terminal's status.",
        responses={
            **failures(*_FETCH_ERRORS, GroupNotAllowed),
            200: {"content": {"application/json": {"examples": _EXAMPLE_STATUSES}}},
        },
    )

    @router.post(
        "/v1/terminals:query",
        operation_id="queryTerminalStatuses",
        tags=[TAG],
        summary="Get the statuses of many terminals",
        description="Queries terminals and the members of groups. Each terminal has one result, even if the request "
        "has it several times; the results are not in the order of the request. An error of one terminal is part of "
        f"its result and does not fail the request. With `Accept: {LINES}` each result is sent as a line, as soon as "
        "it is known.",
        response_model=status_schemas.QueryResults,
        response_description="One result for each terminal.",
        responses={
            **failures(*LIST_ERRORS),
            200: {"content": {LINES: {"schema": lines_of("TerminalResult")}}},
        },
    )
    async def query_terminal_statuses(
        client: Caller,
        asked: status_schemas.QueryRequest,
        accept: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        results = queries.query(
            client, asked.addresses, max_age_s=asked.max_age_s, face=FACE, requester=asked.requester
        )
        if LINES in accept:
            first = await anext(results)  # raises the errors of the whole request
            return StreamingResponse(_lines(first, results), media_type=LINES, headers=NO_STORE)
        async with aclosing(results):
            return json_response({"results": [to_json.terminal_result(result) async for result in results]})


async def _lines(first: TerminalResult, results: Any) -> AsyncIterator[bytes]:
    encode = msgspec.json.Encoder().encode
    async with aclosing(results):
        yield encode(to_json.terminal_result(first)) + b"\n"
        async for result in results:
            yield encode(to_json.terminal_result(result)) + b"\n"


class StatusShortcut:
    """Answers `getTerminalStatus` beside FastAPI, whose routing, middleware and dependencies cost more than a status
    from a live watch. FastAPI has the same operation for its document, and gets every other request.

    `token_scope` is as in `create_app`.
    """

    _BEGIN, _END = "/v1/terminals/", "/status"

    def __init__(self, app: ASGIApp, *, use_cases: UseCases, token_scope: str) -> None:
        self._app = app
        self._auth = use_cases.auth
        self._queries = use_cases.queries
        self._token_scope = token_scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"] if scope["type"] == "http" and scope["method"] == "GET" else ""
        begin, end = self._BEGIN, self._END
        if not (path.startswith(begin) and path.endswith(end) and len(path) >= len(begin) + len(end)):
            await self._app(scope, receive, send)
            return
        try:
            client = await client_of(self._auth, scope)
            address = path[len(begin) : -len(end)]
            query = scope["query_string"]
            status = await self._queries.get_status(client, address, face=FACE, **(_read_query(query) if query else {}))
            response = json_response(to_json.terminal_status(status))
        except TerminalStatusError as error:
            response = answer_error(scope, error, self._token_scope)
        await response(scope, receive, send)


def _read_query(query: bytes) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, text in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in given:
            raise given_several_times(name)
        if name == "max_age_s":
            try:
                if "_" in text:  # float() would accept it
                    raise ValueError
                given[name] = float(text)
            except ValueError:
                raise InvalidRequest("max_age_s must be a number of seconds.", field="max_age_s") from None
        elif name == "requester":
            if len(text) > MAX_REQUESTER:
                raise InvalidRequest(f"requester may have at most {MAX_REQUESTER} characters.", field="requester")
            given[name] = text
    return given


_EXAMPLE_STATUSES: dict[str, Any] = {
    status.value: {
        "summary": summary,
        "value": {
            "address": ALICE,
            "status": status,
            "observe_time": "2026-01-02T03:04:05.678Z",
            "source": "FETCH",
            "revision": 0,
        },
    }
    for status, summary in {
        Status.REACHABLE: "Registered, not known to be busy",
        Status.UNREACHABLE: "Not registered",
        Status.BUSY: "Registered, and the user is on a call",
    }.items()
}
