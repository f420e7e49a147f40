"""`terminal-status groups …`: sets of terminals with one address, for queries, subscriptions and streams."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.console import err, shown
from app.cli.gateway_connection import GatewayConnection, gateway_command
from app.cli.options import LimitOption
from app.cli.protobuf_json import plain
from app.cli.tables import Cell, print_fields, print_json, print_list
from app.cli.times import clock

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.group_pb2 import Group

groups = typer.Typer(no_args_is_help=True, help="Manage groups: sets of terminals with one address.")

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="The group's own sip: URI.", show_default=False)]
_MEMBER = typer.Argument(metavar="MEMBER", help="Terminals or other groups.", show_default=False)
MembersArgument = Annotated[list[str] | None, _MEMBER]
RequiredMembersArgument = Annotated[list[str], _MEMBER]


@groups.command("list")
@gateway_command
def list_groups(
    gateway: GatewayConnection,
    limit: LimitOption = None,
) -> None:
    """List the groups by address.

    Example: terminal-status groups list --json
    """
    from app.pb.terminalstatus.v1.group_pb2 import ListGroupsRequest

    pages = gateway.pages(_stub(gateway).ListGroups, ListGroupsRequest(), "groups", limit)
    columns = ("group", "members", "version", "created", "client")
    print_list(pages, columns, _row, as_json=gateway.as_json, nothing="No groups.")


@groups.command()
@gateway_command
def show(gateway: GatewayConnection, group: GroupArgument) -> None:
    """Show a group and its members.

    Example: terminal-status groups show sip:sales@example.com
    """
    from app.pb.terminalstatus.v1.group_pb2 import GetGroupRequest

    found = gateway.call(_stub(gateway).GetGroup, GetGroupRequest(address=group)).group
    if gateway.as_json:
        print_json(plain(found))
        return
    print_fields(
        [
            ("group", found.address),
            ("client", found.client_id),
            ("created", clock(found.create_time)),
            ("etag", found.etag),
            *[("member", member) for member in found.members],
        ]
    )


@groups.command()
@gateway_command
def create(gateway: GatewayConnection, group: GroupArgument, members: MembersArgument = None) -> None:
    """Create a group. Its address must not be that of another group.

    Example: terminal-status groups create sip:sales@example.com sip:alice@example.com sip:bob@example.com
    """
    from app.pb.terminalstatus.v1.group_pb2 import CreateGroupRequest

    request = CreateGroupRequest(address=group, members=members)
    _print_group(gateway, gateway.call(_stub(gateway).CreateGroup, request).group)


@groups.command()
@gateway_command
def add(gateway: GatewayConnection, group: GroupArgument, members: RequiredMembersArgument) -> None:
    """Add members to a group. Subscriptions and streams of the group then include them.

    Example: terminal-status groups add sip:sales@example.com sip:carol@example.com
    """
    from app.pb.terminalstatus.v1.group_pb2 import AddGroupMembersRequest

    request = AddGroupMembersRequest(address=group, members=members)
    _print_group(gateway, gateway.call(_stub(gateway).AddGroupMembers, request).group)


@groups.command()
@gateway_command
def remove(gateway: GatewayConnection, group: GroupArgument, members: RequiredMembersArgument) -> None:
    """Remove members from a group. An address that is not a member is ignored.

    Example: terminal-status groups remove sip:sales@example.com sip:carol@example.com
    """
    from app.pb.terminalstatus.v1.group_pb2 import RemoveGroupMembersRequest

    request = RemoveGroupMembersRequest(address=group, members=members)
    _print_group(gateway, gateway.call(_stub(gateway).RemoveGroupMembers, request).group)


@groups.command("set")
@gateway_command
def set_members(
    gateway: GatewayConnection,
    group: GroupArgument,
    members: MembersArgument = None,
    etag: Annotated[
        str,
        typer.Option(
            help="Change the group only if it still has this etag, as groups list prints.", show_default=False
        ),
    ] = "",
) -> None:
    """Replace all members of a group; without members, the group becomes empty.

    Example: terminal-status groups set sip:sales@example.com sip:alice@example.com --etag 3-1790000000.000000
    """
    from app.pb.terminalstatus.v1.group_pb2 import SetGroupMembersRequest

    request = SetGroupMembersRequest(address=group, members=members, etag=etag)
    _print_group(gateway, gateway.call(_stub(gateway).SetGroupMembers, request).group)


@groups.command()
@gateway_command
def delete(
    gateway: GatewayConnection,
    group: GroupArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a group. Subscriptions and streams of the group lose its members.

    Example: terminal-status groups delete sip:sales@example.com --yes
    """
    from app.pb.terminalstatus.v1.group_pb2 import DeleteGroupRequest

    if not yes:
        typer.confirm(
            f"Delete {shown(group)}? Subscriptions and streams of the group lose its members.", abort=True, err=True
        )
    gateway.call(_stub(gateway).DeleteGroup, DeleteGroupRequest(address=group))
    if gateway.as_json:
        print_json({"address": group})
    else:
        err.print(f"Deleted {shown(group)}.")


def _stub(gateway: GatewayConnection) -> Any:
    from app.pb.terminalstatus.v1.group_pb2_grpc import GroupServiceStub

    return GroupServiceStub(gateway.channel)


def _print_group(gateway: GatewayConnection, group: "Group") -> None:
    if gateway.as_json:
        print_json(plain(group))
    else:
        err.print(f"{shown(group.address)} has {len(group.members)} members; etag {group.etag}.")


def _row(group: "Group") -> list[Cell]:
    return [group.address, str(len(group.members)), group.etag, clock(group.create_time), group.client_id]
