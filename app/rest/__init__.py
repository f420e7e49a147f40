"""The REST face: one FastAPI app for each HTTP API, a module for each noun, problem details for whatever goes wrong.

Invariants: the committed files in `openapi/` are what `export_openapi` returns. Nothing served needs the internet.
`/healthz` says that the process answers; `/readyz` whether the presence server would be asked now, and
answers. CAMARA's paths are
answered by apps of their own beside this one, so that their failures have CAMARA's form.

Deliberately absent: redirects for a trailing slash, FastAPI's telemetry (it costs 6 µs in each request, and would
listen to the environment), business rules.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Literal, cast

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.types import Receive, Scope, Send

from app.auth.oidc import Grant
from app.core.fetcher import FetchService
from app.core.use_cases import UseCases
from app.rest import (
    admin,
    api_page,
    camara,
    deliveries,
    groups,
    schemas,
    streams,
    subscriptions,
    terminals,
    usage,
    webhook_events,
)
from app.rest.calls import Operation
from app.rest.examples import components, documented
from app.rest.middleware import CORRELATOR_PATTERN, Problem, problem
from app.rest.problem import NO_STORE, answer, answer_with_problems

__all__ = ("API_VERSION", "V1", "create_app", "export_openapi")

API_VERSION = "1.1.0"
"""The contract's version, not the product's: its second number rises with each addition."""

V1 = "terminal-status-v1"

_NOT_READY = problem(503, "NOT_READY", "The gateway cannot ask the presence server now.", retryable=True)
_NO_PRESENCE = problem(503, "NOT_READY", "No presence server answers.", retryable=True, details={"presence": "down"})
_DESCRIPTION = """\
Asks the presence server as an IMS watcher (SIP SUBSCRIBE/NOTIFY), and tells changes.

Every failure is an `application/problem+json` document (RFC 9457): switch on its `code`, which is the same over gRPC.

Credentials are an API key, or an access token where the operator takes them, as `Authorization: Bearer …`. What belongs
to another client is 404, as if it were not there. `x-correlator` and `traceparent` come back as they were sent.
Members of requests that are unknown are refused, query parameters ignored. Bodies have at most 1 MiB."""


class Liveness(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Readiness(BaseModel):
    """The presence server would be asked now."""

    status: Literal["ready"]
    presence: Literal["up", "down"] = Field(description="Whether a presence server answers, as far as is known.")


def create_app(
    service: FetchService,
    use_cases: UseCases,
    *,
    stopping: asyncio.Event | None = None,
    number_pattern: str = "tel:{number}",
    grant: Callable[[str], Grant] | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    max_stream_age_s: float | None = None,
    public_url: str | None = None,
    ready_needs_presence: bool = False,
) -> FastAPI:
    """Returns the ASGI app. Routes and mounts may be added to it; what fails under them is answered as a problem.

    Once `stopping` is set the gateway is not ready. `number_pattern` is the address that CAMARA's `phoneNumber` stands
    for, and `grant` what an access token grants that `use_cases.auth` took (`AccessTokens.grant`), where it takes any.
    `public_url` is where callers reach the app, for the OpenAPI documents; without it, as each reader names it.
    With `ready_needs_presence` it is not ready either while no presence server answers.
    A stream of events as old as `max_stream_age_s` seconds is ended, and its client comes again.
    """
    stopping = stopping or asyncio.Event()
    beside = camara.Camara(use_cases=use_cases, number_pattern=number_pattern, grant=grant, clock=clock)
    app = _App(
        camara.create_apps(beside),
        title="Terminal status gateway",
        version=API_VERSION,
        summary="Can this SIP/IMS terminal be reached right now, is it busy?",
        description=_DESCRIPTION,
        openapi_tags=[
            {"name": terminals.TAG, "description": "Questions about terminals, and live streams."},
            {"name": subscriptions.TAG, "description": "Standing requests, told by webhooks."},
            {"name": groups.TAG, "description": "Named sets of terminals."},
            {"name": deliveries.TAG, "description": "What subscriptions were told or are owed."},
            {"name": usage.TAG, "description": "What a client did and was sent."},
            {"name": admin.TAG, "description": "For operators' clients: watches and clients."},
            {"name": "Operations", "description": "For those who run the gateway; without credentials."},
            {"name": webhook_events.TAG, "description": "The events that endpoints of subscriptions are sent."},
        ],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.auth = use_cases.auth
    documents = _documents(app)
    answer_with_problems(app)
    # Straight onto the app's router: `include_router` would cost 12 µs in each request. The hottest route first.
    app.router.route_class = Operation
    terminals.add_routes(app.router, use_cases)
    streams.add_routes(app.router, use_cases, max_age_s=max_stream_age_s)
    for noun in (subscriptions, groups, deliveries, usage, admin):
        noun.add_routes(app.router, use_cases)
    app.router.route_class = APIRoute
    webhook_events.add_webhooks(app)
    api_page.add_routes(app, documents, public_url)

    @app.get(
        "/healthz",
        operation_id="getLiveness",
        tags=["Operations"],
        summary="Is the process alive",
        response_description="The process answers.",
        responses=documented(),
    )
    @app.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False)  # this one serves, HEAD too
    async def healthz() -> Liveness:
        return Liveness(status="alive")

    @app.get(
        "/readyz",
        operation_id="getReadiness",
        tags=["Operations"],
        summary="Can the presence server be asked",
        response_description="A question would be put to the presence server now.",
        response_model=Readiness,
        responses=documented(_NOT_READY),
    )
    @app.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False, response_model=None)
    async def readyz() -> Response:
        if not service.ready or stopping.is_set():
            return answer(_NOT_READY)
        if ready_needs_presence and not service.presence_up:
            return answer(_NO_PRESENCE)
        presence = "up" if service.presence_up else "down"
        return JSONResponse({"status": "ready", "presence": presence}, headers=NO_STORE)

    return app


def export_openapi() -> dict[str, str]:
    """The OpenAPI documents as JSON texts by name, the same for the same code."""
    # Routes hold the use cases and do not look at them before they are called, which here they never are.
    nothing: Any = dict.fromkeys([each.name for each in fields(UseCases)])
    app = create_app(cast("FetchService", None), UseCases(**nothing))
    return {name: api_page.as_text(document()) for name, document in _documents(cast("_App", app)).items()}


def _documents(app: "_App") -> Mapping[str, Callable[[], dict[str, Any]]]:
    return {V1: app.openapi, **{name: face.openapi for name, face in app.camara.items()}}


class _App(FastAPI):
    """REST API v1, with CAMARA's apps beside it."""

    def __init__(self, beside: Mapping[str, FastAPI], **described: Any) -> None:
        super().__init__(**described)
        self.camara = beside
        self._prefixes = [(camara.PREFIXES[name], face) for name, face in beside.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(camara.COMMON_PREFIX):
            for prefix, face in self._prefixes:
                if scope["path"].startswith(prefix + "/"):
                    await face({**scope, "root_path": scope.get("root_path", "") + prefix}, receive, send)
                    return
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Adds what FastAPI does not know: the problem's schema, the events' data, and the credentials."""
        if self.openapi_schema is None:
            document = super().openapi()
            known = document["components"]
            known["examples"] = components(_NOT_READY)
            known["headers"] = {**_TRACING, "Retry-After": _RETRY_AFTER}
            known["parameters"] = {name: {"name": name, "in": "header", **each} for name, each in _TRACING.items()}
            for model in _UNKNOWN_TO_FASTAPI:
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                known["schemas"].update(schema.pop("$defs", {}))
                known["schemas"][model.__name__] = schema
            known["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or an access token."}
            }
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["security"] = [{"bearer": []}] if path.startswith("/v1/") else []
                    if path.startswith("/v1/"):
                        operation.setdefault("parameters", []).extend(
                            [{"$ref": f"#/components/parameters/{name}"} for name in _TRACING]
                        )
            for response in _responses(document["paths"]):
                refs = {name: {"$ref": f"#/components/headers/{name}"} for name in _TRACING}
                response.setdefault("headers", {}).update(refs)
        return self.openapi_schema or {}


_UNKNOWN_TO_FASTAPI: tuple[type[BaseModel], ...] = (Problem, *schemas.STREAMED.values(), usage.UsageRecord)
"""What bodies are made of that are not `application/json`."""
_CORRELATOR = {"type": "string", "maxLength": 256, "pattern": CORRELATOR_PATTERN}
_TRACING: dict[str, dict[str, Any]] = {
    "x-correlator": {"description": "Correlation id; comes back as it was.", "schema": _CORRELATOR},
    "traceparent": {
        "description": "W3C Trace Context; comes back as it was. One that is none is ignored.",
        "schema": {"type": "string"},
    },
}
"""What `Around` sees to, in requests and answers."""
_RETRY_AFTER = {
    "description": "Seconds after which it is worth asking again; absent where nobody knows.",
    "schema": {"type": "integer"},
}


def _responses(paths: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for operations in paths.values():
        for operation in operations.values():
            yield from operation["responses"].values()
