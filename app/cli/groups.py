"""`terminal-status groups …`: sets of terminals that are asked and watched by one address."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.gateway import Gateway, asks_gateway
from app.cli.output import err, shown
from app.cli.tables import Cell, plain, print_fields, print_json, print_list
from app.cli.times import clock

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.group_pb2 import Group

groups = typer.Typer(no_args_is_help=True, help="Groups: sets of terminals with one address.")

Named = Annotated[str, typer.Argument(metavar="GROUP", help="The group's own sip: URI.", show_default=False)]
Members = Annotated[
    list[str] | None, typer.Argument(metavar="MEMBER", help="Terminals, or other groups.", show_default=False)
]
SomeMembers = Annotated[
    list[str], typer.Argument(metavar="MEMBER", help="Terminals, or other groups.", show_default=False)
]


@groups.command("list")
@asks_gateway
def list_groups(
    gateway: Gateway,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Show so many at most; all otherwise.", show_default=False)
    ] = None,
) -> None:
    """List the groups by address.

    Example: terminal-status groups list --json
    """
    from app.pb.terminalstatus.v1.group_pb2 import ListGroupsRequest

    pages = gateway.pages(_stub(gateway).ListGroups, ListGroupsRequest(), "groups", limit)
    columns = ("group", "members", "version", "made", "client")
    print_list(pages, columns, _row, as_json=gateway.as_json, nothing="No groups.")


@groups.command()
@asks_gateway
def show(gateway: Gateway, group: Named) -> None:
    """Show a group's members, a line for each.

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
            ("made", clock(found.created_at)),
            ("version", str(found.version)),
            *[("member", member) for member in found.members],
        ]
    )


@groups.command()
@asks_gateway
def create(gateway: Gateway, group: Named, members: Members = None) -> None:
    """Make a group. Its address must not be a group yet.

    Example: terminal-status groups create sip:sales@example.com sip:alice@example.com sip:bob@example.com
    """
    from app.pb.terminalstatus.v1.group_pb2 import CreateGroupRequest

    request = CreateGroupRequest(address=group, members=members)
    _tell(gateway, gateway.call(_stub(gateway).CreateGroup, request).group)


@groups.command()
@asks_gateway
def add(gateway: Gateway, group: Named, members: SomeMembers) -> None:
    """Add members; those that are in already stay. Running subscriptions and streams take them in.

    Example: terminal-status groups add sip:sales@example.com sip:carol@example.com
    """
    from app.pb.terminalstatus.v1.group_pb2 import AddGroupMembersRequest

    request = AddGroupMembersRequest(address=group, members=members)
    _tell(gateway, gateway.call(_stub(gateway).AddGroupMembers, request).group)


@groups.command()
@asks_gateway
def remove(gateway: Gateway, group: Named, members: SomeMembers) -> None:
    """Remove members; those that are not in it are no error.

    Example: terminal-status groups remove sip:sales@example.com sip:carol@example.com
    """
    from app.pb.terminalstatus.v1.group_pb2 import RemoveGroupMembersRequest

    request = RemoveGroupMembersRequest(address=group, members=members)
    _tell(gateway, gateway.call(_stub(gateway).RemoveGroupMembers, request).group)


@groups.command("set")
@asks_gateway
def set_members(
    gateway: Gateway,
    group: Named,
    members: Members = None,
    expected_version: Annotated[
        int, typer.Option(min=0, help="Only if the group is of this version (groups show); 0 is any.")
    ] = 0,
) -> None:
    """Replace all members; without any, the group is empty.

    Example: terminal-status groups set sip:sales@example.com sip:alice@example.com --expected-version 3
    """
    from app.pb.terminalstatus.v1.group_pb2 import SetGroupMembersRequest

    request = SetGroupMembersRequest(address=group, members=members, expected_version=expected_version)
    _tell(gateway, gateway.call(_stub(gateway).SetGroupMembers, request).group)


@groups.command()
@asks_gateway
def delete(
    gateway: Gateway, group: Named, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Delete a group. Subscriptions and streams that name it lose its members.

    Example: terminal-status groups delete sip:sales@example.com --yes
    """
    from app.pb.terminalstatus.v1.group_pb2 import DeleteGroupRequest

    if not yes:
        typer.confirm(f"Delete {shown(group)}? Subscriptions that name it lose its members.", abort=True, err=True)
    gateway.call(_stub(gateway).DeleteGroup, DeleteGroupRequest(address=group))
    if gateway.as_json:
        print_json({"address": group})
    else:
        err.print(f"Deleted {shown(group)}.")


def _stub(gateway: Gateway) -> Any:
    from app.pb.terminalstatus.v1.group_pb2_grpc import GroupServiceStub

    return GroupServiceStub(gateway.channel)


def _tell(gateway: Gateway, group: "Group") -> None:
    if gateway.as_json:
        print_json(plain(group))
    else:
        err.print(f"{shown(group.address)} has {len(group.members)} members; version {group.version}.")


def _row(group: "Group") -> list[Cell]:
    return [group.address, str(len(group.members)), str(group.version), clock(group.created_at), group.client_id]
