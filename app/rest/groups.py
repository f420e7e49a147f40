"""REST API v1: groups. A group's ETag is its version: `If-Match` makes a change or its deletion safe.

Deliberately absent: rules.
"""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from pydantic import BaseModel, ConfigDict, FailFast, Field

from app.core.use_cases import UseCases
from app.domain import errors, records
from app.domain.addresses import MAX_ADDRESS_LENGTH
from app.domain.errors import (
    GroupChanged,
    GroupExists,
    GroupNotAllowed,
    GroupTooLarge,
    GroupUnknown,
    InvalidAddress,
    NestedGroupNotAllowed,
    TooManyGroups,
)
from app.domain.records import Client
from app.rest import to_json
from app.rest.error_examples import TEAM, failures
from app.rest.parameters import Caller, Paged
from app.rest.responses import NO_STORE, json_response, no_content
from app.rest.schemas import ADDRESS_FORMAT, MAX_ADDRESSES, Address, At, Request

TAG = "Groups"
MAX_ETAG = 100

AddressInPath = Annotated[
    str,
    Path(
        description="The group's address. Percent-encode what a path cannot hold.",
        max_length=MAX_ADDRESS_LENGTH,
        openapi_examples={"group": {"value": TEAM}},
        json_schema_extra={"format": ADDRESS_FORMAT},
    ),
]
IfMatch = Annotated[
    str,
    Header(
        max_length=MAX_ETAG,
        description="The ETag of the group that is to be changed; another version is 412 GROUP_CHANGED. Absent or `*`: "
        "whatever it is.",
    ),
]
_KNOWN = failures(InvalidAddress, GroupUnknown)
_MEMBERS = (
    InvalidAddress,
    GroupUnknown,
    errors.GroupChanged,
    GroupTooLarge,
    NestedGroupNotAllowed,
)
_ETAG = {"ETag": {"description": "The group's version, for If-Match.", "schema": {"type": "string"}}}


Members = Annotated[
    list[Address],
    FailFast(),
    Field(max_length=MAX_ADDRESSES, description="Terminals, or groups where the policy allows that; each once."),
]


class GroupRequest(Request):
    """A group to make."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"address": TEAM, "members": ["sip:alice@example.com", "tel:+15551234567"]}]}
    )

    address: Annotated[str, Field(examples=["sip:team@example.com"], json_schema_extra={"format": ADDRESS_FORMAT})] = (
        Field(description="The group's own address, a `sip:` or `sips:` URI, by which it is asked and watched.")
    )
    members: Members


class MembersRequest(Request):
    """Members of a group."""

    members: Members


class SomeMembersRequest(Request):
    """Members to add or remove, at least one."""

    members: Annotated[list[Address], FailFast(), Field(min_length=1, max_length=MAX_ADDRESSES)]


class Group(BaseModel):
    """A named set of addresses, which may be asked and watched by its own."""

    address: str
    client_id: str
    members: list[str]
    version: int = Field(description="Grows by one with each change of the members; the ETag is made of it.")
    created_at: At


class Groups(BaseModel):
    """One page of groups, by address."""

    groups: list[Group]
    next_page_token: str = Field(description="Gets the next page; empty on the last.")


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operations to `router`."""
    groups = use_cases.groups

    @router.post(
        "/v1/groups",
        status_code=201,
        operation_id="createGroup",
        tags=[TAG],
        summary="Make a group",
        response_model=Group,
        response_description="The group.",
        responses={
            **failures(*_MEMBERS, GroupExists, GroupNotAllowed, TooManyGroups),
            201: {"headers": _ETAG},
        },
    )
    async def create_group(client: Caller, asked: GroupRequest) -> Response:
        return _returned(await groups.create(client, asked.address, asked.members), 201)

    @router.get(
        "/v1/groups",
        operation_id="listGroups",
        tags=[TAG],
        summary="List your groups",
        response_model=Groups,
        response_description="By address.",
        responses=failures(),
    )
    async def list_groups(client: Caller, page: Paged) -> Response:
        found, token = await groups.list(client, page)
        return json_response({"groups": [to_json.group(each) for each in found], "next_page_token": token})

    @router.put(
        "/v1/groups/{address:any_text}/members",
        operation_id="setGroupMembers",
        tags=[TAG],
        summary="Replace a group's members",
        response_model=Group,
        response_description="The changed group.",
        responses={**failures(*_MEMBERS), 200: {"headers": _ETAG}},
    )
    async def set_group_members(
        client: Caller,
        address: AddressInPath,
        asked: MembersRequest,
        if_match: IfMatch = "*",
    ) -> Response:
        version = await expected_version(client, address, if_match)
        return _returned(await groups.set_members(client, address, asked.members, expected_version=version))

    @router.post(
        "/v1/groups/{address:any_text}/members:add",
        operation_id="addGroupMembers",
        tags=[TAG],
        summary="Add members to a group",
        description="Those it has already do no harm.",
        response_model=Group,
        response_description="The changed group.",
        responses={**failures(*_MEMBERS), 200: {"headers": _ETAG}},
    )
    async def add_group_members(
        client: Caller, address: AddressInPath, asked: SomeMembersRequest, if_match: IfMatch = "*"
    ) -> Response:
        version = await expected_version(client, address, if_match)
        return _returned(await groups.add_members(client, address, asked.members, expected_version=version))

    @router.post(
        "/v1/groups/{address:any_text}/members:remove",
        operation_id="removeGroupMembers",
        tags=[TAG],
        summary="Remove members from a group",
        description="Those it has not do no harm.",
        response_model=Group,
        response_description="The changed group.",
        responses={**failures(*_MEMBERS), 200: {"headers": _ETAG}},
    )
    async def remove_group_members(
        client: Caller, address: AddressInPath, asked: SomeMembersRequest, if_match: IfMatch = "*"
    ) -> Response:
        version = await expected_version(client, address, if_match)
        return _returned(await groups.remove_members(client, address, asked.members, expected_version=version))

    @router.get(
        "/v1/groups/{address:group_address}",
        operation_id="getGroup",
        tags=[TAG],
        summary="Get a group",
        response_model=Group,
        response_description="The group.",
        responses={
            **_KNOWN,
            200: {"headers": _ETAG},
            304: {"description": "It is still the version of If-None-Match.", "headers": _ETAG},
        },
    )
    async def get_group(
        client: Caller,
        address: AddressInPath,
        if_none_match: Annotated[
            str, Header(max_length=MAX_ETAG, description="An ETag: the group is returned only if it has another.")
        ] = "",
    ) -> Response:
        group = await groups.get(client, address)
        if if_none_match and (etag(group) in if_none_match or if_none_match.strip() == "*"):
            return Response(status_code=304, headers={**NO_STORE, "etag": etag(group)})
        return _returned(group)

    @router.delete(
        "/v1/groups/{address:group_address}",
        status_code=204,
        operation_id="deleteGroup",
        tags=[TAG],
        summary="Delete a group",
        description="What is subscribed by it goes on without it.",
        response_description="It is gone.",
        responses=failures(InvalidAddress, GroupUnknown, errors.GroupChanged),
    )
    async def delete_group(client: Caller, address: AddressInPath, if_match: IfMatch = "*") -> Response:
        await groups.delete(client, address, expected_version=await expected_version(client, address, if_match))
        return no_content()

    async def expected_version(client: Client, address: str, if_match: str) -> int | None:
        if if_match.strip() == "*":
            return None
        group = await groups.get(client, address)
        if etag(group) not in [tag.strip() for tag in if_match.split(",")]:
            raise GroupChanged("The group is of another version; read it again.")
        return group.version


def etag(group: records.Group) -> str:
    """A group's ETag: two groups of one address, one after the other, have not the same."""
    return f'"{group.version}-{group.created_at.timestamp():.6f}"'


def _returned(group: records.Group, status: int = 200) -> Response:
    return json_response(to_json.group(group), status, {"etag": etag(group)})
