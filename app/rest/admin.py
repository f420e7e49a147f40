"""REST API v1: watches and clients, which operators see and change; 403 for other clients. No rules here."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from app.core.use_cases import UseCases
from app.domain.errors import ClientExists, ClientUnknown, InvalidAddress, NotPermitted, WatchUnknown
from app.domain.records import MAX_ID
from app.domain.statuses import Liveness
from app.rest import to_json
from app.rest.error_examples import failures
from app.rest.parameters import Caller, Paged
from app.rest.responses import json_response, no_content
from app.rest.schemas import At, Request
from app.rest.terminals import AddressInPath

TAG = "Operators"

IdInPath = Annotated[str, Path(max_length=MAX_ID, description="The client's id.")]
_CLIENT = failures(NotPermitted, ClientUnknown)


class Watch(BaseModel):
    """One standing SIP subscription of the gateway (RFC 6665)."""

    address: str
    state: str = Field(
        description="`initial`, `accepted`, `active`, `pending`, `refreshing`, `waiting`, `ending` or `terminated`."
    )
    liveness: Liveness
    since: At
    expires_at: At | None
    sip_code: int = Field(description="The last SIP status; 0 where none came.")
    reason: str
    next_action: str
    next_at: At | None
    route: str = Field(description="The presence server it is at, as configured.")
    wanted_by: list[str] = Field(description="Ids of subscriptions, and `stream:` with a client's id; at most 20.")


class Watches(BaseModel):
    """One page of watches, by address."""

    watches: list[Watch]
    next_page_token: str = Field(description="Gets the next page; empty on the last.")
    total: int = Field(description="How many there are in all.")


_Limits = Annotated[
    dict[str, int | bool],
    Field(max_length=50, description="Policies by name, which can only be stricter than the operator's."),
]


class ClientRequest(Request):
    """A client to make."""

    name: str = Field(
        min_length=1,
        max_length=64,
        description="Its name, unique: letters, digits, blanks and `.-_@`.",
        examples=["Call centre"],
    )
    client_id: str = Field(
        "",
        max_length=MAX_ID,
        description="Its id, of A-Z a-z 0-9 . - _ @; the gateway makes one if empty. For clients that certificates or "
        "access tokens name.",
    )
    admin: bool = Field(False, description="Whether it is an operator's.")
    limits: _Limits = Field({}, json_schema_extra={"examples": [{"max_subscriptions": 1000}]})


class ClientKey(BaseModel):
    """An API key without its secret."""

    id: str
    expires_at: At | None


class Client(BaseModel):
    """An application, or an operator's tool, with credentials."""

    id: str
    name: str
    admin: bool
    limits: dict[str, Any]
    disabled: bool
    created_at: At
    keys: list[ClientKey]


class ClientWithKey(BaseModel):
    """A client and its new API key."""

    client: Client
    api_key: str = Field(description="`tsk_KEYID_SECRET`. Shown this once.")


class Clients(BaseModel):
    """One page of clients, by name."""

    clients: list[Client]
    next_page_token: str = Field(description="Gets the next page; empty on the last.")


class RotateRequest(Request):
    """How to rotate a client's key."""

    overlap_s: int = Field(86_400, ge=0, le=90 * 86_400, description="How long its other keys still hold, in seconds.")


class EndedSubscriptions(BaseModel):
    """What deleting a client ended."""

    ended_subscriptions: int


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operations to `router`."""
    administration = use_cases.administration

    @router.get(
        "/v1/watches",
        operation_id="listWatches",
        tags=[TAG],
        summary="List the gateway's watches",
        description="The standing SIP subscriptions at the presence server, and who wants them.",
        response_model=Watches,
        response_description="By address.",
        responses=failures(NotPermitted),
    )
    async def list_watches(client: Caller, page: Paged) -> Response:
        found, token, total = await administration.watches(client, page)
        watches = [to_json.watch(each.watch, each.wanted_by) for each in found]
        return json_response({"watches": watches, "next_page_token": token, "total": total})

    @router.post(
        "/v1/watches/{address:any_text}:refresh",
        status_code=204,
        operation_id="refreshWatch",
        tags=[TAG],
        summary="Refresh a watch",
        description="Asks the presence server about a watched terminal now, rather than at the next refresh.",
        response_description="It is begun.",
        responses=failures(InvalidAddress, NotPermitted, WatchUnknown),
    )
    async def refresh_watch(client: Caller, address: AddressInPath) -> Response:
        await administration.refresh_watch(client, address)
        return no_content()

    @router.get(
        "/v1/clients",
        operation_id="listClients",
        tags=[TAG],
        summary="List clients",
        response_model=Clients,
        response_description="By name.",
        responses=failures(NotPermitted),
    )
    async def list_clients(client: Caller, page: Paged) -> Response:
        found, token = await administration.clients(client, page)
        return json_response(
            {"clients": [to_json.client(each, keys) for each, keys in found], "next_page_token": token}
        )

    @router.post(
        "/v1/clients",
        status_code=201,
        operation_id="createClient",
        tags=[TAG],
        summary="Make a client",
        response_model=ClientWithKey,
        response_description="The client, and its API key.",
        responses=failures(NotPermitted, ClientExists),
    )
    async def create_client(client: Caller, asked: ClientRequest) -> Response:
        made, key = await administration.create_client(
            client, asked.name, client_id=asked.client_id, admin=asked.admin, limits=asked.limits
        )
        keys = await administration.keys(client, made.id)
        return json_response({"client": to_json.client(made, keys), "api_key": key}, 201)

    @router.post(
        "/v1/clients/{client_id:id}:rotateKey",
        operation_id="rotateClientKey",
        tags=[TAG],
        summary="Rotate a client's key",
        description="Gives a client a new API key, and lets its others end after an overlap.",
        response_model=ClientWithKey,
        response_description="The client, and its new API key.",
        responses=_CLIENT,
    )
    async def rotate_client_key(client: Caller, client_id: IdInPath, asked: RotateRequest) -> Response:
        rotated, key = await administration.rotate_key(client, client_id, asked.overlap_s)
        keys = await administration.keys(client, rotated.id)
        return json_response({"client": to_json.client(rotated, keys), "api_key": key})

    @router.post(
        "/v1/clients/{client_id:id}:disable",
        operation_id="disableClient",
        tags=[TAG],
        summary="Disable a client",
        description="Its credentials are refused from now on; its subscriptions go on.",
        response_model=Client,
        response_description="The client.",
        responses=_CLIENT,
    )
    async def disable_client(client: Caller, client_id: IdInPath) -> Response:
        changed = await administration.set_disabled(client, client_id, True)
        return json_response(to_json.client(changed, await administration.keys(client, changed.id)))

    @router.post(
        "/v1/clients/{client_id:id}:enable",
        operation_id="enableClient",
        tags=[TAG],
        summary="Enable a client",
        response_model=Client,
        response_description="The client.",
        responses=_CLIENT,
    )
    async def enable_client(client: Caller, client_id: IdInPath) -> Response:
        changed = await administration.set_disabled(client, client_id, False)
        return json_response(to_json.client(changed, await administration.keys(client, changed.id)))

    @router.delete(
        "/v1/clients/{client_id:id}",
        operation_id="deleteClient",
        tags=[TAG],
        summary="Delete a client",
        description="With its keys and groups; its subscriptions end.",
        response_model=EndedSubscriptions,
        response_description="How many subscriptions ended.",
        responses=_CLIENT,
    )
    async def delete_client(client: Caller, client_id: IdInPath) -> Response:
        return json_response({"ended_subscriptions": await administration.delete_client(client, client_id)})
