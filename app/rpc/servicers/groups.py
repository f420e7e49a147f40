"""GroupService: named sets of terminals."""

from collections.abc import Sequence

from app.core.groups import GroupService
from app.domain.errors import InvalidRequest
from app.domain.records import MAX_ID, Client
from app.pb.terminalstatus.v1 import group_pb2 as pb
from app.pb.terminalstatus.v1 import group_pb2_grpc as pb_grpc
from app.rpc import list_filters, request_fields, response_messages
from app.rpc.callers import Context
from app.rpc.open_calls import OpenCalls

_Change = pb.SetGroupMembersRequest | pb.AddGroupMembersRequest | pb.RemoveGroupMembersRequest | pb.DeleteGroupRequest


class GroupServicer(pb_grpc.GroupServiceServicer):
    def __init__(self, calls: OpenCalls, groups: GroupService) -> None:
        self._calls = calls
        self._groups = groups

    async def CreateGroup(self, request: pb.CreateGroupRequest, context: Context) -> pb.CreateGroupResponse:  # noqa: N802
        async with self._calls.answer(context, "CreateGroup") as client:
            made = await self._groups.create(client, request.address, request.members)
            return pb.CreateGroupResponse(group=response_messages.group(made))

    async def GetGroup(self, request: pb.GetGroupRequest, context: Context) -> pb.GetGroupResponse:  # noqa: N802
        async with self._calls.answer(context, "GetGroup") as client:
            return pb.GetGroupResponse(group=response_messages.group(await self._groups.get(client, request.address)))

    async def ListGroups(self, request: pb.ListGroupsRequest, context: Context) -> pb.ListGroupsResponse:  # noqa: N802
        async with self._calls.answer(context, "ListGroups") as client:
            found, token = await self._groups.list(
                client, request_fields.page(request), list_filters.of_groups(request)
            )
            return pb.ListGroupsResponse(groups=map(response_messages.group, found), next_page_token=token)

    async def SetGroupMembers(  # noqa: N802
        self, request: pb.SetGroupMembersRequest, context: Context
    ) -> pb.SetGroupMembersResponse:
        async with self._calls.answer(context, "SetGroupMembers") as client:
            version = await self._version(client, request)
            changed = await self._groups.set_members(client, request.address, request.members, expected_version=version)
            return pb.SetGroupMembersResponse(group=response_messages.group(changed))

    async def AddGroupMembers(  # noqa: N802
        self, request: pb.AddGroupMembersRequest, context: Context
    ) -> pb.AddGroupMembersResponse:
        async with self._calls.answer(context, "AddGroupMembers") as client:
            members, version = _at_least_one(request.members), await self._version(client, request)
            changed = await self._groups.add_members(client, request.address, members, expected_version=version)
            return pb.AddGroupMembersResponse(group=response_messages.group(changed))

    async def RemoveGroupMembers(  # noqa: N802
        self, request: pb.RemoveGroupMembersRequest, context: Context
    ) -> pb.RemoveGroupMembersResponse:
        async with self._calls.answer(context, "RemoveGroupMembers") as client:
            members, version = _at_least_one(request.members), await self._version(client, request)
            changed = await self._groups.remove_members(client, request.address, members, expected_version=version)
            return pb.RemoveGroupMembersResponse(group=response_messages.group(changed))

    async def DeleteGroup(self, request: pb.DeleteGroupRequest, context: Context) -> pb.DeleteGroupResponse:  # noqa: N802
        async with self._calls.answer(context, "DeleteGroup") as client:
            version = await self._version(client, request)
            await self._groups.delete(client, request.address, expected_version=version)
            return pb.DeleteGroupResponse()

    async def _version(self, client: Client, request: _Change) -> int | None:
        """The only version to change; None: any. Raises GroupChanged."""
        etag = request_fields.bounded(request.etag, MAX_ID, "etag")
        return await self._groups.expected_version(client, request.address, [etag]) if etag else None


def _at_least_one(members: Sequence[str]) -> Sequence[str]:
    if not members:
        raise InvalidRequest("`members` is empty; name at least one.", field="members")
    return members
