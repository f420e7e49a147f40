"""CAMARA device-reachability-status v1: is a device reachable?"""

from typing import Any

from fastapi import APIRouter, Response

from app.domain.operations import UsageOperation
from app.domain.statuses import Status, TerminalStatus
from app.rest.camara.callers import FACE, CamaraCaller, CamaraDependencies, caller_with, identified, recorded, scopes
from app.rest.camara.errors import (
    CORRELATED,
    IDENTIFIER_NOT_FOUND,
    MISSING_IDENTIFIER,
    SERVICE_NOT_APPLICABLE,
    UNNECESSARY_IDENTIFIER,
    UNSUPPORTED_IDENTIFIER,
    failures,
)
from app.rest.camara.schemas import ReachabilityStatusResponse, RequestReachabilityStatus
from app.rest.responses import json_response

TAG = "Device reachability status"
SCOPE = "device-reachability-status:read"
DEVICE_ERRORS = (SERVICE_NOT_APPLICABLE, MISSING_IDENTIFIER, UNSUPPORTED_IDENTIFIER, UNNECESSARY_IDENTIFIER)


def add_routes(router: APIRouter, api: CamaraDependencies) -> None:
    """Adds the operation to `router`."""

    @router.post(
        "/retrieve",
        operation_id="getReachabilityStatus",
        tags=[TAG],
        summary="Get the current reachability status information",
        description="Asks the presence server whether a device is reachable.",
        response_model=ReachabilityStatusResponse,
        response_description="The current reachability status.",
        responses={**failures(*DEVICE_ERRORS, IDENTIFIER_NOT_FOUND), 200: {"headers": CORRELATED}},
        openapi_extra=scopes(SCOPE),
    )
    async def get_reachability_status(
        asked: RequestReachabilityStatus,
        caller: CamaraCaller = caller_with(api, SCOPE),  # noqa: B008  # FastAPI's way of naming a dependency
    ) -> Response:
        with recorded(api, caller, UsageOperation.GET_STATUS):
            device = identified(api, caller, asked.device)
        status = await api.use_cases.queries.get_status(caller.client, device.address, face=FACE)
        return json_response({**({"device": device.identifier} if device.identifier else {}), **_reachability(status)})


def _reachability(of: TerminalStatus) -> dict[str, Any]:
    if of.status is Status.UNREACHABLE:
        return {"lastStatusTime": of.observed_at, "reachable": False}
    return {"lastStatusTime": of.observed_at, "reachable": True, "connectivity": ["DATA"]}
