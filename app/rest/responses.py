"""The answers of successful calls: JSON, or nothing. None of them may be cached."""

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import Response

NO_STORE = {"cache-control": "no-store"}
"""A status is true at the moment of the answer, so no cache may repeat it."""

LINES = "application/jsonl"
"""The media type of JSON objects, one a line."""

_encode = msgspec.json.Encoder().encode


def json_response(data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns the answer that carries `data` as JSON."""
    return Response(_encode(data), status, {**NO_STORE, **(headers or {})}, "application/json")


def location(description: str) -> dict[str, Any]:
    """Returns the documentation of the header `Location`, which every 201 has (RFC 9110 section 15.3.2)."""
    return {"Location": {"description": description, "schema": {"type": "string"}}}


def lines_of(schema: str) -> Mapping[str, object]:
    """Returns the schema of a body of the media type LINES, with an object of `schema` on each line."""
    return {
        "type": "string",
        "description": f"One {schema} a line, as JSON.",
        "contentMediaType": LINES,
        "contentSchema": {"$ref": f"#/components/schemas/{schema}"},
    }


def no_content() -> Response:
    """Returns the answer 204."""
    return Response(status_code=204, headers=NO_STORE)
