"""REST API v1: groups. A group's ETag changes with its members, so `If-Match` protects changes and the deletion."""

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import BaseModel, ConfigDict, FailFast, Field

from app.core.use_cases import UseCases
from app.domain import errors, records
from app.domain.addresses import MAX_ADDRESS_LENGTH
from app.domain.errors import (
    GroupExists,
    GroupNotAllowed,
    GroupTooLarge,
    GroupUnknown,
    InvalidAddress,
    NestedGroupNotAllowed,
    TooManyGroups,
)
from app.domain.filters import GroupFilter
from app.domain.records import Client
from app.rest import to_json
from app.rest.error_examples import TEAM, failures
from app.rest.parameters import Caller, ClientId, Paged
from app.rest.responses import NO_STORE, json_response, location, no_content
from app.rest.schemas import ADDRESS_FORMAT, MAX_ADDRESSES, Address, At, Request

TAG = "Groups"
MAX_ETAG = 100
_PATH_SAFE = "@:!$&'()*+,;=~"
"""What a segment of a path may have unescaped (RFC 3986 section 3.3)."""

AddressInPath = Annotated[
    str,
    Path(
        description="The group's address. Percent-encode `/`, `?`, `#` and `%`.",
        max_length=MAX_ADDRESS_LENGTH,
        openapi_examples={"group": {"value": TEAM}},
        json_schema_extra={"format": ADDRESS_FORMAT},
    ),
]
IfMatch = Annotated[
    str,
    Header(
        max_length=MAX_ETAG,
        description="The ETag of the version to change; if the group has another version, the answer is 412 "
        "GROUP_CHANGED. Absent or `*`: any version.",
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
    Field(
        max_length=MAX_ADDRESSES, description="Addresses of terminals, and of groups if the policy allows; each once."
    ),
]


class GroupRequest(Request):
    """A group to create."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"address": TEAM, "members": ["sip:alice@example.com", "tel:+15551234567"]}]}
    )

    address: Annotated[str, Field(examples=["sip:team@example.com"], json_schema_extra={"format": ADDRESS_FORMAT})] = (
        Field(
            description="The group's own address, a `sip:` or `sips:` URI, which queries, subscriptions and streams "
            "take like a terminal's."
        )
    )
    members: Members


class MembersRequest(Request):
    """The new members of a group."""

    members: Members


class SomeMembersRequest(Request):
    """Members to add or remove, at least one."""

    members: Annotated[
        list[Address], FailFast(), Field(min_length=1, max_length=MAX_ADDRESSES, description="Addresses of members.")
    ]


class Group(BaseModel):
    """A named set of addresses. Queries, subscriptions and streams take its own address like a terminal's."""

    address: str = Field(description="The group's own address in canonical form.")
    client_id: str = Field(description="The group's client.")
    members: list[str] = Field(description="The members' addresses in canonical form.")
    etag: str = Field(
        description="Changes with each change of the members; the header `ETag` has the same, in double quotes."
    )
    create_time: At


class Groups(BaseModel):
    """One page of groups, in order of their addresses."""

    groups: list[Group] = Field(description="The groups of this page.")
    next_page_token: str = Field(description="`page_token` of the next page; empty on the last page.")


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operations to `router`."""
    groups = use_cases.groups

    @router.post(
        "/v1/groups",
        status_code=201,
        operation_id="createGroup",
        tags=[TAG],
        summary="Create a group",
        description="Creates a group. Its address must be a `sip:` or `sips:` URI that none of your groups has.",
        response_model=Group,
        response_description="The new group.",
        responses={
            **failures(*_MEMBERS, GroupExists, GroupNotAllowed, TooManyGroups),
            201: {"headers": {**location("The group's path."), **_ETAG}},
        },
    )
    async def create_group(client: Caller, asked: GroupRequest) -> Response:
        made = await groups.create(client, asked.address, asked.members)
        return _returned(made, 201, {"location": f"/v1/groups/{quote(made.address, safe=_PATH_SAFE)}"})

    @router.get(
        "/v1/groups",
        operation_id="listGroups",
        tags=[TAG],
        summary="List your groups",
        description="Lists your groups; an operator's client sees those of all clients.",
        response_model=Groups,
        response_description="Groups in order of their addresses.",
        responses=failures(InvalidAddress),
    )
    async def list_groups(
        client: Caller,
        page: Paged,
        client_id: ClientId = "",
        member: Annotated[str, Query(description="Only groups that have this address as a direct member.")] = "",
    ) -> Response:
        found, token = await groups.list(client, page, GroupFilter(client_id=client_id, member=member))
        return json_response({"groups": [to_json.group(each) for each in found], "next_page_token": token})

    @router.put(
        "/v1/groups/{address:any_text}/members",
        operation_id="setGroupMembers",
        tags=[TAG],
        summary="Replace a group's members",
        description="Replaces all members. Subscriptions and streams that name the group follow the change.",
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
        description="Addresses that are members already are ignored.",
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
        description="Addresses that are not members are ignored.",
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
        description="Returns one of your groups with its members.",
        response_model=Group,
        response_description="The group.",
        responses={
            **_KNOWN,
            200: {"headers": _ETAG},
            304: {"description": "The group still has the version of If-None-Match.", "headers": _ETAG},
        },
    )
    async def get_group(
        client: Caller,
        address: AddressInPath,
        if_none_match: Annotated[
            str, Header(max_length=MAX_ETAG, description="An ETag: the group is returned only if its own is different.")
        ] = "",
    ) -> Response:
        group = await groups.get(client, address)
        if if_none_match and (f'"{group.etag}"' in if_none_match or if_none_match.strip() == "*"):
            return Response(status_code=304, headers={**NO_STORE, "etag": f'"{group.etag}"'})
        return _returned(group)

    @router.delete(
        "/v1/groups/{address:group_address}",
        status_code=204,
        operation_id="deleteGroup",
        tags=[TAG],
        summary="Delete a group",
        description="Subscriptions and streams that name the group continue without it.",
        response_description="The group is deleted.",
        responses=failures(InvalidAddress, GroupUnknown, errors.GroupChanged),
    )
    async def delete_group(client: Caller, address: AddressInPath, if_match: IfMatch = "*") -> Response:
        await groups.delete(client, address, expected_version=await expected_version(client, address, if_match))
        return no_content()

    async def expected_version(client: Client, address: str, if_match: str) -> int | None:
        if if_match.strip() == "*":
            return None
        return await groups.expected_version(client, address, [tag.strip().strip('"') for tag in if_match.split(",")])


def _returned(group: records.Group, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return json_response(to_json.group(group), status, {"etag": f'"{group.etag}"', **(headers or {})})
