"""`terminal-status audit …`: the log of changes to clients, groups and subscriptions, for operators."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.gateway_connection import GatewayConnection, gateway_command
from app.cli.options import LimitOption, SinceOption
from app.cli.protobuf_json import enum_name
from app.cli.tables import Cell, print_list
from app.cli.times import clock, since_or_none

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.admin_pb2 import AuditEntry

audit = typer.Typer(no_args_is_help=True, help="Show the audit log: which client changed what, and when.")


@audit.callback()
def _audit() -> None:
    """Keeps `list` a subcommand: typer merges a single command into its group unless the group has a callback."""


@audit.command("list")
@gateway_command
def list_audit(
    gateway: GatewayConnection,
    from_time: SinceOption = "",
    actor: Annotated[
        str, typer.Option(help="Only changes by this actor, a client's id or cli:NAME.", show_default=False)
    ] = "",
    limit: LimitOption = None,
) -> None:
    """List changes of clients, groups and subscriptions, oldest first. Operators only.

    Example: terminal-status audit list --since 24h
    """
    from app.pb.terminalstatus.v1.admin_pb2 import ListAuditEntriesRequest
    from app.pb.terminalstatus.v1.admin_pb2_grpc import AdminServiceStub

    request = ListAuditEntriesRequest(start_time=since_or_none(from_time, datetime.now(UTC)), actor=actor)
    pages = gateway.pages(AdminServiceStub(gateway.channel).ListAuditEntries, request, "audit_entries", limit)
    print_list(pages, ("at", "actor", "action", "details"), _row, as_json=gateway.as_json, nothing="No entries.")


def _row(entry: "AuditEntry") -> list[Cell]:
    details = " ".join([f"{name}={value}" for name, value in sorted(entry.details.items()) if value])
    return [clock(entry.create_time), entry.actor, enum_name(entry, "action"), details]
