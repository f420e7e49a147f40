"""REST API v1: usage records, in pages, or all of them as JSON Lines or CSV (RFC 4180).

In CSV, a cell that a spreadsheet would take for a formula gets an apostrophe in front; JSON Lines is exact.
"""

import csv
import enum
import io
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from app.core.use_cases import UseCases
from app.domain import operations, records
from app.domain.filters import UsageFilter
from app.domain.x_correlator import MAX_X_CORRELATOR
from app.rest import to_json
from app.rest.error_examples import failures
from app.rest.parameters import Caller, ClientId, EndTime, Paged, StartTime
from app.rest.responses import LINES, NO_STORE, json_response, lines_of
from app.rest.schemas import At, Id

TAG = "Usage"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class UsageOperation(enum.Enum):
    """A billable operation.

    `GET_STATUS`: a query for one terminal. `GET_STATUS_FOR_GROUP`: a query for several terminals or a group.
    `START_NOTIFICATION`: a subscription was created. `END_NOTIFICATION`: a subscription was ended by its client.
    `…_DELIVERY_ATTEMPTED`: the first attempt to deliver a notification, a changed status in it, an error, or a
    subscription's end; `…_DELIVERY_RESULT`: its result. `UNKNOWN`: written by another version of the gateway.
    """

    UNKNOWN = "UNKNOWN"
    GET_STATUS = "GET_STATUS"
    GET_STATUS_FOR_GROUP = "GET_STATUS_FOR_GROUP"
    START_NOTIFICATION = "START_NOTIFICATION"
    END_NOTIFICATION = "END_NOTIFICATION"
    STATUS_NOTIFICATION_DELIVERY_ATTEMPTED = "STATUS_NOTIFICATION_DELIVERY_ATTEMPTED"
    STATUS_NOTIFICATION_DELIVERY_RESULT = "STATUS_NOTIFICATION_DELIVERY_RESULT"
    STATUS_CHANGED_DELIVERY_ATTEMPTED = "STATUS_CHANGED_DELIVERY_ATTEMPTED"
    STATUS_CHANGED_DELIVERY_RESULT = "STATUS_CHANGED_DELIVERY_RESULT"
    STATUS_ERROR_DELIVERY_ATTEMPTED = "STATUS_ERROR_DELIVERY_ATTEMPTED"
    STATUS_ERROR_DELIVERY_RESULT = "STATUS_ERROR_DELIVERY_RESULT"
    STATUS_END_DELIVERY_ATTEMPTED = "STATUS_END_DELIVERY_ATTEMPTED"
    STATUS_END_DELIVERY_RESULT = "STATUS_END_DELIVERY_RESULT"


class Face(enum.Enum):
    """An API of the gateway.

    `GATEWAY`: none; the gateway itself, which delivers notifications. `UNKNOWN`: written by another version of the
    gateway.
    """

    UNKNOWN = "UNKNOWN"
    GRPC = "GRPC"
    REST = "REST"
    CAMARA = "CAMARA"
    SOAP = "SOAP"
    GATEWAY = "GATEWAY"


class Format(enum.Enum):
    """Formats of an export."""

    JSONL = "jsonl"
    CSV = "csv"


MEDIA_TYPES = {Format.JSONL: LINES, Format.CSV: "text/csv; charset=utf-8"}


class UsageRecord(BaseModel):
    """One billable operation or delivery."""

    id: Id
    create_time: At
    operation: UsageOperation = Field(description="The operation or delivery. Later versions may add values.")
    client_id: str = Field(description="The client that called, or that the delivery was for.")
    face: Face = Field(description="The API of the call. Later versions may add values.")
    requester: str = Field(description="On whose behalf the client called; may be empty.")
    targets: list[str] = Field(description="The first twenty addresses of the request.")
    target_count: int = Field(description="Number of addresses in the request.")
    expanded_target_count: int = Field(description="Number of terminals, with groups expanded.")
    correlator: str = Field(description="The subscription's correlator; may be empty.")
    subscription_id: str = Field(description="The subscription, if the record is about one; else empty.")
    result: str = Field(
        description="`OK`, or an error's code; of a successful `GET_STATUS`, the status: `REACHABLE`, "
        "`UNREACHABLE` or `BUSY`."
    )
    root_cause: str = Field(description="What failed, for people; empty if OK.")
    expanded_targets: list[str] = Field(
        description="The first 20 terminals of a request that names groups, with the groups expanded; otherwise empty."
    )
    x_correlator: str = Field(
        description="The call's `x-correlator`; for a delivery, that of the call that created the subscription. "
        "Empty in records of older versions of the gateway."
    )


COLUMNS = tuple(UsageRecord.model_fields)


class UsageRecords(BaseModel):
    """One page of usage records, oldest first."""

    usage_records: list[UsageRecord] = Field(description="The records of this page.")
    next_page_token: str = Field(description="`page_token` of the next page; empty on the last page.")


async def _filter(
    start_time: StartTime = None,
    end_time: EndTime = None,
    client_id: ClientId = "",
    operation: Annotated[UsageOperation | None, Query(description="Only records of this operation.")] = None,
    face: Annotated[Face | None, Query(description="Only records of calls over this API.")] = None,
    x_correlator: Annotated[
        str, Query(max_length=MAX_X_CORRELATOR, description="Only records with this `x_correlator`.")
    ] = "",
) -> UsageFilter:
    return UsageFilter(
        start=start_time,
        end=end_time,
        client_id=client_id,
        operation=operation and operations.UsageOperation[operation.name],
        face=face and operations.Face[face.name],
        x_correlator=x_correlator,
    )


Filter = Annotated[UsageFilter, Depends(_filter)]


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operations to `router`."""
    usage = use_cases.usage

    @router.get(
        "/v1/usage-records",
        operation_id="listUsageRecords",
        tags=[TAG],
        summary="List usage records",
        description="Lists the records of your calls, and of deliveries to you.",
        response_model=UsageRecords,
        response_description="Usage records, oldest first.",
        responses=failures(),
    )
    async def list_usage_records(client: Caller, page: Paged, only: Filter) -> Response:
        found, token = await usage.page(client, page, only)
        return json_response(
            {"usage_records": [to_json.usage_record(each) for each in found], "next_page_token": token}
        )

    @router.get(
        "/v1/usage-records:export",
        operation_id="exportUsageRecords",
        tags=[TAG],
        summary="Export usage records",
        description="Returns all records that match the filters. In CSV, a cell that a spreadsheet would take for a "
        "formula gets an apostrophe in front; JSON Lines is exact.",
        response_class=Response,
        response_description="One UsageRecord per line; in CSV after a line with the members' names.",
        responses={
            **failures(),
            200: {
                "content": {
                    LINES: {"schema": lines_of("UsageRecord")},
                    "text/csv": {"schema": {"type": "string", "description": "A table (RFC 4180)."}},
                }
            },
        },
    )
    async def export_usage_records(
        client: Caller,
        only: Filter,
        form: Annotated[Format, Query(alias="format", description="The format of the answer.")] = Format.JSONL,
    ) -> Response:
        pages = usage.export(client, only)
        first = await anext(pages)  # raises the errors of the request
        lines: Callable[[Sequence[records.UsageRecord]], bytes] = _csv if form is Format.CSV else _jsonl
        return StreamingResponse(
            _export(first, pages, lines, _header() if form is Format.CSV else b""),
            media_type=MEDIA_TYPES[form],
            headers=NO_STORE,
        )


async def _export(
    first: Sequence[records.UsageRecord],
    pages: AsyncIterator[Sequence[records.UsageRecord]],
    lines: Callable[[Sequence[records.UsageRecord]], bytes],
    header: bytes,
) -> AsyncIterator[bytes]:
    yield header + lines(first)
    async for page in pages:
        yield lines(page)


def _jsonl(page: Sequence[records.UsageRecord]) -> bytes:
    return msgspec.json.Encoder().encode_lines([to_json.usage_record(record) for record in page])


def _header() -> bytes:
    return (",".join(COLUMNS) + "\r\n").encode()


def _csv(page: Sequence[records.UsageRecord]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    for record in page:
        row = to_json.usage_record(record)
        writer.writerow([_cell(row[name]) for name in COLUMNS])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    text = " ".join(value) if isinstance(value, tuple) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
