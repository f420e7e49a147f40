"""The REST face: one FastAPI app, one module per HTTP API, problem details for whatever goes wrong.

Invariants: the committed `openapi/terminal-status-v1.json` is what `export_openapi` returns. Nothing served needs
the internet. `/healthz` says that the process answers; `/readyz` whether the presence server could be asked now.

Deliberately absent: a documentation page (FastAPI's loads a CDN), redirects for a trailing slash, FastAPI's telemetry
(it costs 6 µs in each request, and would listen to the environment), business rules.
"""

import asyncio
import json
from typing import Any, Literal, cast

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.rest import v1
from app.rest.problem import NO_STORE, SCHEMA, Problem, answer, answer_with_problems, documented, problem
from app.service import StatusService

API_VERSION = "1.0.0"
"""The contract's version, not the product's: its second number rises with each addition."""

_NOT_READY = problem(503, "NOT_READY", "The gateway cannot ask the presence server now.", retryable=True)


class Liveness(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Readiness(BaseModel):
    """The presence server could be asked now."""

    status: Literal["ready"]


def create_app(service: StatusService, *, stopping: asyncio.Event | None = None) -> FastAPI:
    """Returns the ASGI app. Routes and mounts may be added to it; what fails under them is answered as a problem.

    Once `stopping` is set the gateway is not ready.
    """
    stopping = stopping or asyncio.Event()
    app = _App(
        title="Terminal status gateway",
        version=API_VERSION,
        summary="Can this SIP/IMS terminal be reached right now, is it busy?",
        description="Asks the presence server as an IMS watcher (SIP SUBSCRIBE/NOTIFY). Every failure is an "
        "`application/problem+json` document (RFC 9457): switch on its `code`, which is the same over gRPC.",
        openapi_tags=[
            {"name": "Terminal status", "description": "Questions about terminals."},
            {"name": "Operations", "description": "For those who run the gateway."},
        ],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    answer_with_problems(app)
    # Straight onto the app's router: `include_router` would cost 12 µs in each request.
    v1.add_routes(app.router, service)

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
        ready = JSONResponse({"status": "ready"}, headers=NO_STORE)
        return ready if service.ready and not stopping.is_set() else answer(_NOT_READY)

    return app


def export_openapi() -> str:
    """Returns the OpenAPI document as JSON text, the same for the same code."""
    # Routes hold the service and do not look at it before they are called, which here they never are.
    app = create_app(cast("StatusService", None))
    return json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n"


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Adds the problem's schema, which FastAPI would describe as `application/json` only."""
        document = super().openapi()
        document["components"]["schemas"][SCHEMA] = Problem.model_json_schema()
        return document
