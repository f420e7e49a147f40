"""REST API v1: the gateway's watches, for operators' clients; other clients get 403."""

import enum
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from app.core.use_cases import UseCases
from app.domain import watches
from app.domain.errors import InvalidAddress, NotPermitted, WatchUnknown
from app.domain.filters import WatchFilter
from app.domain.statuses import Liveness
from app.rest import to_json
from app.rest.error_examples import failures
from app.rest.parameters import Caller, Paged
from app.rest.responses import json_response, no_content
from app.rest.schemas import At
from app.rest.terminals import AddressInPath

TAG = "Operators"


class WatchState(enum.Enum):
    """State of a watch's SIP subscription.

    `INITIAL`: the first SUBSCRIBE has no answer yet. `ACCEPTED`: the first NOTIFY is awaited. `ACTIVE`: the presence
    server reports changes. `PENDING`: the presence server has not decided yet. `REFRESHING`: a refresh has no answer
    yet. `WAITING`: there is no SIP subscription; the gateway subscribes again at `next_action_time`. `ENDING`: the
    gateway has sent `Expires: 0`. `TERMINATED`: the SIP subscription is over.
    """

    INITIAL = "INITIAL"
    ACCEPTED = "ACCEPTED"
    ACTIVE = "ACTIVE"
    PENDING = "PENDING"
    REFRESHING = "REFRESHING"
    WAITING = "WAITING"
    ENDING = "ENDING"
    TERMINATED = "TERMINATED"


class Watch(BaseModel):
    """A watch: the gateway's own SIP subscription (RFC 6665) to one terminal."""

    address: str = Field(description="The terminal's address in canonical form.")
    state: WatchState = Field(description="State of the SIP subscription.")
    liveness: Liveness = Field(
        description="`LIVE`: the presence server reports each change. `STALE`: contact is "
        "lost. `UNKNOWN`: no status was observed yet."
    )
    state_time: At = Field(description="When `state` began (RFC 3339, UTC).")
    expire_time: At | None = Field(description="When the SIP subscription expires unless refreshed; null without one.")
    sip_code: int = Field(description="The last SIP status code; 0 before the first answer.")
    reason: str = Field(description="Why the watch is in this state, for people; may be empty.")
    next_action: str = Field(description="What the gateway does next; may be empty.")
    next_action_time: At | None = Field(description="When the gateway takes `next_action`; null if nothing is planned.")
    route: str = Field(description="The presence server of the watch, as configured.")
    subscription_ids: list[str] = Field(description="Ids of subscriptions that need the watch; at most 20.")
    stream_client_ids: list[str] = Field(
        description="Ids of clients whose open streams need the watch, each once; at most 20."
    )


class Watches(BaseModel):
    """One page of watches, in order of their addresses."""

    watches: list[Watch] = Field(description="The watches of this page.")
    next_page_token: str = Field(description="`page_token` of the next page; empty on the last page.")
    total_size: int = Field(description="Number of watches on all pages that match the filters.")


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operations to `router`."""
    administration = use_cases.administration

    @router.get(
        "/v1/watches",
        operation_id="listWatches",
        tags=[TAG],
        summary="List the gateway's watches",
        description="Lists the gateway's SIP subscriptions at the presence server, and who needs them.",
        response_model=Watches,
        response_description="Watches in order of their addresses.",
        responses=failures(InvalidAddress, NotPermitted),
    )
    async def list_watches(
        client: Caller,
        page: Paged,
        state: Annotated[WatchState | None, Query(description="Only watches in this state.")] = None,
        liveness: Annotated[Liveness | None, Query(description="Only watches of this liveness.")] = None,
        address: Annotated[str, Query(description="Only the watch of this terminal.")] = "",
    ) -> Response:
        only = WatchFilter(state=state and watches.WatchState[state.name], liveness=liveness, address=address)
        found, token, total = await administration.watches(client, page, only)
        shown = [to_json.watch(each.watch, each.wanted_by) for each in found]
        return json_response({"watches": shown, "next_page_token": token, "total_size": total})

    @router.post(
        "/v1/watches/{address:any_text}:refresh",
        status_code=204,
        operation_id="refreshWatch",
        tags=[TAG],
        summary="Refresh a watch",
        description="Refreshes the SIP subscription to a terminal now. The presence server then states the terminal's "
        "status again.",
        response_description="The refresh has begun.",
        responses=failures(InvalidAddress, NotPermitted, WatchUnknown),
    )
    async def refresh_watch(client: Caller, address: AddressInPath) -> Response:
        await administration.refresh_watch(client, address)
        return no_content()
