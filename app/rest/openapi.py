"""The OpenAPI document of REST API v1: its introduction, and the parts that FastAPI cannot derive from the routes."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from app.domain.x_correlator import MAX_X_CORRELATOR, PATTERN
from app.rest import (
    deliveries,
    groups,
    probes,
    rate_limits,
    status_schemas,
    streams,
    subscriptions,
    terminals,
    usage,
    watches,
    webhook_events,
)
from app.rest.error_examples import components
from app.rest.problem import CHALLENGE, CHALLENGE_DOCUMENTED, Problem

V1 = "terminal-status-v1"
"""The name of the document, and of its file in `openapi/`."""

VERSION = "1.1.0"
"""The version of the contract, not of the product: additions raise its second number."""

DESCRIPTION = """\
Whether a SIP/IMS terminal is reachable, unreachable or busy. The gateway asks a presence server as an IMS watcher \
(SIP SUBSCRIBE/NOTIFY, RFC 6665) and reports the answers and later changes.

**Credentials.** Send an API key, or an access token if the operator accepts them, as `Authorization: Bearer …`. \
Objects of other clients answer 404, as objects that do not exist.

**Errors.** Every error is an `application/problem+json` document (RFC 9457). Switch on `code`: its values are stable, \
and the same over gRPC. If `retryable` is true, the same request may succeed later; the header `Retry-After` says when.

**Requests.** Bodies are JSON of at most 1 MiB. Unknown members of a body are refused; unknown query parameters are \
ignored. A query parameter that is not a list may be sent once only. The gateway's log, usage \
records and webhooks name a call by its `x-correlator`; every answer has it."""

TAGS = [
    {"name": terminals.TAG, "description": "The status of one or many terminals now, and live streams of changes."},
    {
        "name": subscriptions.TAG,
        "description": "Stored requests for changes, which the gateway reports by webhooks. They outlive connections "
        "and restarts.",
    },
    {"name": groups.TAG, "description": "Named sets of terminals, to be used in place of lists of addresses."},
    {"name": deliveries.TAG, "description": "Notifications that subscriptions were sent or are owed."},
    {"name": usage.TAG, "description": "A record of each call of a client and of each delivery to it, for billing."},
    {"name": watches.TAG, "description": "For operators' clients: the gateway's watches, and its clients."},
    {"name": probes.TAG, "description": "Probes for those who run the gateway; without credentials."},
    {"name": webhook_events.TAG, "description": "The events that the gateway sends to subscriptions' endpoints."},
]

_WEBHOOK_SIGNATURE, _ENDPOINT_TOKEN = "webhookSignature", "endpointToken"
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or an access token."},
    _WEBHOOK_SIGNATURE: {
        "type": "apiKey",
        "in": "header",
        "name": "webhook-signature",
        "description": "In webhooks: the signature of the event, as Standard Webhooks specifies, with each secret of "
        "the subscription's sink. The endpoint verifies it.",
    },
    _ENDPOINT_TOKEN: {
        "type": "http",
        "scheme": "bearer",
        "description": "In webhooks: the access token of the subscription's sink, where the sink has one.",
    },
}
_WEBHOOK_SECURITY: list[dict[str, list[str]]] = [
    {_WEBHOOK_SIGNATURE: []},
    {_WEBHOOK_SIGNATURE: [], _ENDPOINT_TOKEN: []},
]

_UNKNOWN_TO_FASTAPI: tuple[type[BaseModel], ...] = (Problem, *status_schemas.STREAMED.values(), usage.UsageRecord)
"""Schemas of bodies whose media type is not `application/json`."""
_TRACING: dict[str, dict[str, Any]] = {
    "x-correlator": {
        "description": "Names the call in the gateway's log, in usage records, and in the webhooks of a subscription. "
        f"A request's is valid if it matches `{PATTERN}`. "
        "Where the request has no valid one: the trace id of `traceparent`, or else a random one.",
        "schema": {"type": "string", "maxLength": MAX_X_CORRELATOR, "pattern": PATTERN},
    },
    "traceparent": {
        "description": "W3C Trace Context, returned as received. An invalid value is ignored.",
        "schema": {"type": "string"},
    },
}
"""The headers that `middleware.py` returns."""
_RETRY_AFTER = {
    "description": "Seconds to wait before the next attempt; absent if unknown.",
    "schema": {"type": "integer"},
}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Adds schemas, headers, examples and credentials to FastAPI's `document`, and returns it."""
    known = document["components"]
    known["examples"] = components(probes.NOT_READY)
    known["headers"] = {
        **_TRACING,
        **rate_limits.DOCUMENTED,
        "Retry-After": _RETRY_AFTER,
        CHALLENGE: CHALLENGE_DOCUMENTED,
    }
    # A request may have any text there: an invalid one is replaced, not refused.
    known["parameters"] = {
        name: {"name": name, "in": "header", **each, "schema": {"type": "string"}} for name, each in _TRACING.items()
    }
    for model in _UNKNOWN_TO_FASTAPI:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        known["schemas"].update(schema.pop("$defs", {}))
        known["schemas"][model.__name__] = schema
    for schema in known["schemas"].values():
        for member in schema.get("properties", {}).values():
            member.pop("default", None)  # openapi-typescript takes a member with a default for a required one
    known["schemas"][streams.EVENT] = streams.EVENT_SCHEMA
    known["securitySchemes"] = _SECURITY_SCHEMES
    for (webhook,) in [operations.values() for operations in document["webhooks"].values()]:
        webhook["security"] = _WEBHOOK_SECURITY
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _name_optional_body(operation)
            operation["security"] = [{"bearer": []}] if path.startswith("/v1/") else []
            if path.startswith("/v1/"):
                operation.setdefault("parameters", []).extend(
                    [{"$ref": f"#/components/parameters/{name}"} for name in _TRACING]
                )
    for path, operations in document["paths"].items():
        added = {**_TRACING, **rate_limits.DOCUMENTED} if path.startswith("/v1/") else _TRACING
        for response in _responses(operations):
            response.setdefault("headers", {}).update(
                {name: {"$ref": f"#/components/headers/{name}"} for name in added}
            )
    return document


def _name_optional_body(operation: dict[str, Any]) -> None:
    """Replaces FastAPI's `SCHEMA or null` of a body that may be absent: null is refused, and the call that
    openapi-python-client makes for such a schema fails without a body."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        if "anyOf" in content["schema"]:
            (content["schema"],) = [each for each in content["schema"]["anyOf"] if "$ref" in each]


def _responses(operations: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for operation in operations.values():
        yield from operation["responses"].values()
