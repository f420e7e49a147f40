"""The probes of orchestrators and load balancers, without credentials.

`/healthz` answers while the process can answer at all. `/readyz` answers 503 while the gateway cannot send queries to
the presence server; with TS_READY_NEEDS_PRESENCE also while no presence server answers.
"""

import asyncio
from typing import Literal

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.core.fetcher import FetchService
from app.rest.error_examples import WRONG_METHOD, documented
from app.rest.problem import answer, problem
from app.rest.responses import NO_STORE

TAG = "Operations"

NOT_READY = problem(503, "NOT_READY", "The gateway cannot send queries to the presence server now.", retryable=True)
_NO_PRESENCE = problem(503, "NOT_READY", "No presence server answers.", retryable=True, details={"presence": "down"})


class ProcessLiveness(BaseModel):
    """The process answers."""

    status: Literal["alive"] = Field(description="Always `alive`.")


class Readiness(BaseModel):
    """The gateway sends queries to the presence server."""

    status: Literal["ready"] = Field(description="Always `ready`; otherwise the answer is 503.")
    presence: Literal["up", "down"] = Field(
        description="Whether a presence server answers, as far as the gateway knows."
    )


def add_routes(app: FastAPI, service: FetchService, *, stopping: asyncio.Event, ready_needs_presence: bool) -> None:
    """Adds both probes. Once `stopping` is set, the gateway is not ready."""

    @app.get(
        "/healthz",
        operation_id="getLiveness",
        tags=[TAG],
        summary="Check that the process answers",
        description="Answers as soon as the process serves HTTP, without asking the presence server or the database.",
        response_description="The process answers.",
        responses=documented(WRONG_METHOD),
    )
    async def healthz() -> ProcessLiveness:
        return ProcessLiveness(status="alive")

    @app.get(
        "/readyz",
        operation_id="getReadiness",
        tags=[TAG],
        summary="Check that the gateway can query the presence server",
        description="Answers 503 until the gateway can send queries, and again while it stops.",
        response_description="The gateway sends queries to the presence server.",
        response_model=Readiness,
        responses=documented(NOT_READY, WRONG_METHOD),
    )
    async def readyz() -> Response:
        if not service.ready or stopping.is_set():
            return answer(NOT_READY)
        if ready_needs_presence and not service.presence_up:
            return answer(_NO_PRESENCE)
        presence = "up" if service.presence_up else "down"
        return JSONResponse({"status": "ready", "presence": presence}, headers=NO_STORE)
