"""REST API v1: the audit log, for operators' clients; other clients get 403."""

import enum
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from app.core.use_cases import UseCases
from app.domain import operations
from app.domain.errors import NotPermitted
from app.domain.filters import AuditFilter
from app.rest import to_json
from app.rest.error_examples import failures
from app.rest.parameters import Caller, EndTime, Paged, StartTime
from app.rest.responses import json_response
from app.rest.schemas import At
from app.rest.watches import TAG

MAX_ACTOR = 300


class AuditAction(enum.Enum):
    """A kind of change. `UNKNOWN`: written by another version of the gateway."""

    UNKNOWN = "UNKNOWN"
    CLIENT_ADDED = "CLIENT_ADDED"
    CLIENT_KEY_ROTATED = "CLIENT_KEY_ROTATED"
    CLIENT_DISABLED = "CLIENT_DISABLED"
    CLIENT_ENABLED = "CLIENT_ENABLED"
    CLIENT_DELETED = "CLIENT_DELETED"
    GROUP_CREATED = "GROUP_CREATED"
    GROUP_CHANGED = "GROUP_CHANGED"
    GROUP_DELETED = "GROUP_DELETED"
    SUBSCRIPTION_CREATED = "SUBSCRIPTION_CREATED"
    SUBSCRIPTION_CHANGED = "SUBSCRIPTION_CHANGED"
    SUBSCRIPTION_CANCELLED = "SUBSCRIPTION_CANCELLED"
    SUBSCRIPTION_SECRET_ROTATED = "SUBSCRIPTION_SECRET_ROTATED"  # noqa: S105  # not a secret
    SUBSCRIPTION_OLD_SECRET_DROPPED = "SUBSCRIPTION_OLD_SECRET_DROPPED"  # noqa: S105  # not a secret
    WATCH_REFRESHED = "WATCH_REFRESHED"
    SUBSCRIPTION_RENEWED = "SUBSCRIPTION_RENEWED"


class AuditEntry(BaseModel):
    """One administrative change, without secrets."""

    create_time: At
    actor: str = Field(
        description="Who made the change: a client's id, or `cli:` and the user's name for the command line."
    )
    action: AuditAction = Field(description="The kind of change. Later versions may add values.")
    details: dict[str, str] = Field(
        description="What was changed, by name, such as `client` with the client's id. The names depend on `action`."
    )


class AuditEntries(BaseModel):
    """One page of the audit log, oldest first."""

    audit_entries: list[AuditEntry] = Field(description="The entries of this page.")
    next_page_token: str = Field(description="`page_token` of the next page; empty on the last page.")


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operation to `router`."""

    @router.get(
        "/v1/audit-entries",
        operation_id="listAuditEntries",
        tags=[TAG],
        summary="List the audit log",
        description="Lists the administrative changes, in the order in which they were written.",
        response_model=AuditEntries,
        response_description="Entries, oldest first.",
        responses=failures(NotPermitted),
    )
    async def list_audit_entries(
        client: Caller,
        page: Paged,
        start_time: StartTime = None,
        end_time: EndTime = None,
        actor: Annotated[str, Query(max_length=MAX_ACTOR, description="Only changes by this actor.")] = "",
        action: Annotated[AuditAction | None, Query(description="Only changes of this kind.")] = None,
    ) -> Response:
        only = AuditFilter(
            start=start_time, end=end_time, actor=actor, action=action and operations.AuditAction[action.name]
        )
        found, token = await use_cases.administration.audit_log(client, page, only)
        return json_response({"audit_entries": [to_json.audit_entry(each) for each in found], "next_page_token": token})
