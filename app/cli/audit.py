"""`terminal-status audit`: who changed what, for operators."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.gateway import Gateway, asks_gateway
from app.cli.tables import Cell, print_list
from app.cli.times import clock, since_or_none
from app.cli.usage import Since

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.admin_pb2 import AuditEntry

audit = typer.Typer(no_args_is_help=True, help="The audit log: who changed what.")


@audit.callback()
def _audit() -> None:
    """A command of its own although it is the only one."""


@audit.command("list")
@asks_gateway
def list_audit(
    gateway: Gateway,
    from_time: Since = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Show so many at most; all otherwise.", show_default=False)
    ] = None,
) -> None:
    """List the audit log in the order in which it was written: changes of clients, groups and subscriptions.

    Example: terminal-status audit list --since 24h
    """
    from app.pb.terminalstatus.v1.admin_pb2 import ListAuditEntriesRequest
    from app.pb.terminalstatus.v1.admin_pb2_grpc import AdminServiceStub

    request = ListAuditEntriesRequest(since=since_or_none(from_time, datetime.now(UTC)))
    pages = gateway.pages(AdminServiceStub(gateway.channel).ListAuditEntries, request, "audit_entries", limit)
    print_list(pages, ("at", "who", "what", "details"), _row, as_json=gateway.as_json, nothing="No entries.")


def _row(entry: "AuditEntry") -> list[Cell]:
    details = " ".join([f"{name}={value}" for name, value in sorted(entry.details.items()) if value])
    return [clock(entry.at), entry.who, entry.what, details]
