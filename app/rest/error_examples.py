"""The error examples of the OpenAPI documents, as the gateway answered them.

`error_examples.json` has the problem for each domain error. `make generate` records the file: it provokes every error
over HTTP (`tests/support/error_examples.py`). A test compares the file with what is answered.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.domain.errors import (
    InvalidRequest,
    NotPermitted,
    RateLimited,
    StoreUnavailable,
    TerminalStatusError,
    Unauthenticated,
)
from app.rest.problem import (
    CHALLENGE,
    CHALLENGED,
    MEDIA_TYPE,
    SCHEMA,
    STATUSES,
    Problem,
    internal_error,
    problem,
    problem_of,
)

RECORDED = Path(__file__).with_suffix(".json")

ALICE = "sip:alice@example.com"
TEAM = "sip:team@example.com"


def _read() -> Mapping[type[TerminalStatusError], Problem]:
    recorded = json.loads(RECORDED.read_text("utf-8"))
    return {
        error: Problem(**recorded[error.code])
        if error.code in recorded
        else problem_of(error("There is no example yet: run `make generate`."))
        for error in STATUSES
    }


EXAMPLES = _read()
"""The example for each domain error."""

COMMON = (
    Unauthenticated,
    NotPermitted,
    RateLimited,
    InvalidRequest,
    StoreUnavailable,
)
"""Errors of every operation with credentials."""

INTERNAL_ERROR = internal_error("6f1c3f0d9c0b4b0c8a3f0e6f6d1c2b7a")


WRONG_METHOD = problem(405, "METHOD_NOT_ALLOWED", "POST /readyz: Method Not Allowed.")


def components(*others: Problem) -> dict[str, Any]:
    """Returns the document's `components/examples`: of domain errors, and of `others`, to which `documented` refers."""
    every = (*EXAMPLES.values(), INTERNAL_ERROR, WRONG_METHOD, *others)
    return {each.code: {"summary": each.title, "value": each.model_dump()} for each in every}


def failures(*errors: type[TerminalStatusError]) -> dict[int | str, dict[str, Any]]:
    """Returns FastAPI's `responses` for an operation with credentials that raises `errors` or one of COMMON."""
    return documented(*[EXAMPLES[error] for error in dict.fromkeys((*errors, *COMMON))], INTERNAL_ERROR)


def documented(*problems: Problem) -> dict[int | str, dict[str, Any]]:
    """Returns FastAPI's `responses` for an operation that answers `problems`, each an example under its status."""
    known: dict[int | str, dict[str, Any]] = {}
    for status in sorted({each.status for each in problems}):
        known[status] = _documented([each for each in problems if each.status == status])
    any_other = _documented([WRONG_METHOD])
    return {**known, "default": {**any_other, "description": "Any other error, such as a wrong method."}}


def _documented(problems: list[Problem]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{SCHEMA}"}
    examples = {each.code: {"$ref": f"#/components/examples/{each.code}"} for each in problems}
    documentation = {
        "description": ", ".join(f"`{code}`" for code in examples),
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
    }
    headers = ["Retry-After"] if any(each.retryable for each in problems) else []
    if any(each.status in CHALLENGED for each in problems):
        headers.append(CHALLENGE)
    if headers:
        documentation["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    return documentation
