"""The bodies of REST API v1 as models. Requests are validated by them; answers are only documented by them.

Invariants: an unknown member, or one of the wrong type, is refused; otherwise a misspelt member would be ignored in
silence. Within v1, members and values may be added, never removed or given another meaning.

Deliberately absent: rules about terminals, which the use cases check, and the conversion of answers (`to_json.py`).
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from app.domain.records import MAX_REQUESTER
from app.domain.statuses import Status
from app.rest.middleware import MAX_BODY_BYTES

ADDRESS_FORMAT = "terminal-address"
MAX_ADDRESSES = MAX_BODY_BYTES // 8
MAX_SECRET = 100

EXAMPLE_ADDRESS = "sip:alice@example.com"
EXAMPLE_AT = "2026-01-02T03:04:05.678000Z"


_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,12})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


def _rfc3339(value: object) -> object:
    """Refuses numbers and times without a zone, which Pydantic alone would accept."""
    if not isinstance(value, datetime) and not (isinstance(value, str) and _RFC3339.fullmatch(value)):
        raise ValueError("not an RFC 3339 time with a zone")
    return value


def utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("not a valid time in UTC") from None


Rfc3339 = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(utc), Field(strict=False)]
Address = Annotated[
    str,
    Field(
        description="A terminal's address: a `sip:` or `sips:` URI (RFC 3261) without password and headers, or a "
        "`tel:` URI (RFC 3966; local numbers need `;phone-context=`). ASCII, at most 200 characters.",
        examples=[EXAMPLE_ADDRESS, "tel:+15551234567"],
        json_schema_extra={"format": ADDRESS_FORMAT},
    ),
]
Addresses = Annotated[
    list[Address],
    FailFast(),  # listing a hundred thousand faults takes a second
    Field(
        max_length=MAX_ADDRESSES,
        description="Addresses of terminals and groups, at least one. The policy limits their number.",
        json_schema_extra={"minItems": 1},  # the use case refuses none, with the code that gRPC has
    ),
]
Criteria = Annotated[
    list[Annotated[Status, Field(strict=False)]],
    Field(max_length=20, description="The statuses to report; empty means all."),
]
Requester = Annotated[
    str,
    Field(
        max_length=MAX_REQUESTER,
        description="On whose behalf the client calls, a URI or a name. Stored in the usage record, not used "
        "otherwise.",
    ),
]
Id = Annotated[str, Field(description="Opaque; at most 64 characters.", examples=["6f1c3f0d9c0b4b0c8a3f0e6f6d1c2b7a"])]
At = Annotated[AwareDatetime, Field(description="RFC 3339, UTC.", examples=[EXAMPLE_AT])]


def example(request: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [request]})


class Request(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
