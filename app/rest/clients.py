"""REST API v1: clients and their API keys, for operators' clients; other clients get 403."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from app.core.use_cases import UseCases
from app.domain.errors import ClientExists, ClientUnknown, NotPermitted, TooManyClients
from app.domain.records import MAX_ID
from app.rest import to_json
from app.rest.client_limits import ClientLimits
from app.rest.error_examples import failures
from app.rest.parameters import Caller, Paged
from app.rest.responses import json_response, location
from app.rest.schemas import At, Request
from app.rest.subscription_schemas import MAX_VERSION
from app.rest.watches import TAG

IdInPath = Annotated[str, Path(max_length=MAX_ID, description="The client's id.")]
_CLIENT = failures(NotPermitted, ClientUnknown)


class ClientRequest(Request):
    """A client to create."""

    name: str = Field(
        min_length=1,
        max_length=64,
        description="Unique name: letters, digits, spaces and `.-_@`.",
        examples=["Call centre"],
    )
    client_id: str = Field(
        "",
        max_length=MAX_ID,
        description="The client's id, of A-Z a-z 0-9 . - _ @, as certificates or access tokens name it. If empty, the "
        "gateway makes an id.",
    )
    admin: bool = Field(False, description="Whether the client is an operator's.")
    limits: ClientLimits | None = Field(
        None, description="The client's own limits; absent: none.", examples=[{"max_subscriptions": 1000}]
    )
    soap_callback_version: str = Field(
        "",
        max_length=MAX_VERSION,
        description="The version of Parlay X callbacks to the client, where its stubs are of another drop than the "
        "gateway assumes; empty: it follows the version of startNotification.",
        examples=["v2_3"],
    )


class ClientKey(BaseModel):
    """An API key without its secret."""

    id: str = Field(description="The key's id, its part between the underscores.")
    expire_time: At | None = Field(description="When the key expires; null: never.")


class Client(BaseModel):
    """An application, or an operator's tool, with credentials."""

    id: str = Field(description="The client's id.")
    name: str = Field(description="The client's unique name.")
    admin: bool = Field(description="Whether the client is an operator's.")
    limits: ClientLimits | None = Field(
        description="The client's own limits, without those that it does not have; null: none."
    )
    disabled: bool = Field(description="Whether the client's credentials are refused.")
    soap_callback_version: str = Field(
        description="The version of Parlay X callbacks to the client; empty: it follows the version of "
        "startNotification."
    )
    create_time: At
    keys: list[ClientKey] = Field(description="The client's API keys, without secrets.")


class ClientWithKey(BaseModel):
    """A client and its new API key."""

    client: Client = Field(description="The client.")
    api_key: str = Field(description="The key, `tsk_KEYID_SECRET`. It is returned only once.")


class Clients(BaseModel):
    """One page of clients, in order of their names."""

    clients: list[Client] = Field(description="The clients of this page.")
    next_page_token: str = Field(description="`page_token` of the next page; empty on the last page.")


class RotateRequest(Request):
    """How to rotate a client's key."""

    overlap_s: int = Field(
        86_400,
        ge=0,
        le=90 * 86_400,
        description="How long the client's other keys remain valid, in seconds; absent: one day.",
    )


class EndedSubscriptions(BaseModel):
    """The number of subscriptions that ended with the client."""

    ended_subscription_count: int = Field(description="Number of subscriptions.")


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operations to `router`."""
    administration = use_cases.administration

    @router.get(
        "/v1/clients",
        operation_id="listClients",
        tags=[TAG],
        summary="List clients",
        description="Lists all clients with their keys, without secrets.",
        response_model=Clients,
        response_description="Clients in order of their names.",
        responses=failures(NotPermitted),
    )
    async def list_clients(client: Caller, page: Paged) -> Response:
        found, token = await administration.clients(client, page)
        return json_response(
            {"clients": [to_json.client(each, keys) for each, keys in found], "next_page_token": token}
        )

    @router.get(
        "/v1/clients/{client_id:id}",
        operation_id="getClient",
        tags=[TAG],
        summary="Get a client",
        description="Returns one client with the ids of its API keys.",
        response_model=Client,
        response_description="The client.",
        responses=_CLIENT,
    )
    async def get_client(client: Caller, client_id: IdInPath) -> Response:
        found, keys = await administration.client(client, client_id)
        return json_response(to_json.client(found, keys))

    @router.post(
        "/v1/clients",
        status_code=201,
        operation_id="createClient",
        tags=[TAG],
        summary="Create a client",
        description="Creates a client with one API key, which only this answer shows.",
        response_model=ClientWithKey,
        response_description="The new client and its API key.",
        responses={
            **failures(NotPermitted, ClientExists, TooManyClients),
            201: {"headers": location("The client's path.")},
        },
    )
    async def create_client(client: Caller, asked: ClientRequest) -> Response:
        limits = {} if asked.limits is None else asked.limits.model_dump(exclude_none=True)
        made, key = await administration.create_client(
            client,
            asked.name,
            client_id=asked.client_id,
            admin=asked.admin,
            limits=limits,
            soap_callback_version=asked.soap_callback_version,
        )
        keys = await administration.keys(client, made.id)
        path = {"location": f"/v1/clients/{quote(made.id, safe='@')}"}
        return json_response({"client": to_json.client(made, keys), "api_key": key}, 201, path)

    @router.post(
        "/v1/clients/{client_id:id}:rotateKey",
        operation_id="rotateClientKey",
        tags=[TAG],
        summary="Rotate a client's key",
        description="Gives the client a new API key. Its other keys expire after `overlap_s` seconds.",
        response_model=ClientWithKey,
        response_description="The client and its new API key.",
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
        description="The client's credentials are refused from now on, and its streams end; its subscriptions "
        "continue.",
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
        description="The client's credentials are accepted again.",
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
        description="Deletes the client with its keys and groups, and ends its subscriptions.",
        response_model=EndedSubscriptions,
        response_description="The number of subscriptions that ended.",
        responses=_CLIENT,
    )
    async def delete_client(client: Caller, client_id: IdInPath) -> Response:
        return json_response({"ended_subscription_count": await administration.delete_client(client, client_id)})
