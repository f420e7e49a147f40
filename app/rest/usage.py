"""REST API v1: usage records, in pages, or all of them as JSON Lines or CSV (RFC 4180).

In CSV, a cell that a spreadsheet would take for a formula gets an apostrophe in front; JSON Lines is exact.
"""

import csv
import enum
import io
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from app.core.use_cases import UseCases
from app.domain import records
from app.domain.filters import UsageFilter
from app.rest import to_json
from app.rest.error_examples import failures
from app.rest.parameters import Caller, Paged
from app.rest.responses import NO_STORE, json_response
from app.rest.schemas import At, Id, Rfc3339

TAG = "Usage"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Since = Annotated[Rfc3339, Query(description="Only records since this time (RFC 3339).")]


class Format(enum.Enum):
    """Formats of an export."""

    JSONL = "jsonl"
    CSV = "csv"


MEDIA_TYPES = {Format.JSONL: "application/jsonl", Format.CSV: "text/csv; charset=utf-8"}


class UsageRecord(BaseModel):
    """One billable operation or delivery, named as in the Parlay X contract."""

    id: Id
    at: At
    operation: str = Field(
        description="The operation or delivery, in Parlay X's names.",
        examples=["getStatus", "statusNotification_DeliverySuccessful"],
    )
    client_id: str = Field(description="The client that called, or that the delivery was for.")
    face: str = Field(
        description="`grpc`, `rest`, `camara`, `soap`, or `gateway` for deliveries. Later versions may add values."
    )
    requester: str = Field(description="On whose behalf the client called; may be empty.")
    targets: list[str] = Field(description="The first twenty addresses of the request.")
    target_count: int = Field(description="Number of addresses in the request.")
    expanded_count: int = Field(description="Number of terminals, with groups expanded.")
    correlator: str = Field(description="The subscription's correlator; may be empty.")
    subscription_id: str = Field(description="The subscription, if the record is about one; else empty.")
    result: str = Field(description="`OK`, or an error's code.")
    root_cause: str = Field(description="What failed, for people; empty if OK.")


COLUMNS = tuple(UsageRecord.model_fields)


class UsageRecords(BaseModel):
    """One page of usage records, oldest first."""

    usage_records: list[UsageRecord] = Field(description="The records of this page.")
    next_page_token: str = Field(description="`page_token` of the next page; empty on the last page.")


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
    async def list_usage_records(client: Caller, page: Paged, since: Since = _EPOCH) -> Response:
        found, token = await usage.page(client, page, UsageFilter(start=since))
        return json_response(
            {"usage_records": [to_json.usage_record(each) for each in found], "next_page_token": token}
        )

    @router.get(
        "/v1/usage-records:export",
        operation_id="exportUsageRecords",
        tags=[TAG],
        summary="Export usage records",
        description="Returns all records since a time. In CSV, a cell that a spreadsheet would take for a formula gets "
        "an apostrophe in front; JSON Lines is exact.",
        response_class=Response,
        response_description="One UsageRecord per line; in CSV after a line with the members' names.",
        responses={
            **failures(),
            200: {
                "content": {
                    "application/jsonl": {"schema": {"type": "string"}},
                    "text/csv": {"schema": {"type": "string"}},
                }
            },
        },
    )
    async def export_usage_records(
        client: Caller,
        since: Since = _EPOCH,
        form: Annotated[Format, Query(alias="format", description="The format of the answer.")] = Format.JSONL,
    ) -> Response:
        pages = usage.export(client, UsageFilter(start=since))
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
