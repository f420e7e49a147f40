"""The answers of successful calls: JSON, or nothing. None of them may be cached."""

from collections.abc import Mapping

import msgspec
from fastapi import Response

NO_STORE = {"cache-control": "no-store"}
"""A status is true at the moment of the answer, so no cache may repeat it."""

_encode = msgspec.json.Encoder().encode


def json_response(data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns the answer that carries `data` as JSON."""
    return Response(_encode(data), status, {**NO_STORE, **(headers or {})}, "application/json")


def no_content() -> Response:
    """Returns the answer 204."""
    return Response(status_code=204, headers=NO_STORE)
