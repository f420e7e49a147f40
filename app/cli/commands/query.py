"""`terminal-status query`: one query about many terminals and groups, with partial results."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from app.cli.console import FAILED, OK, err, printable
from app.cli.gateway_connection import GatewayConnection, gateway_command
from app.cli.options import AddressesArgument, MaxAgeOption, RequesterOption
from app.cli.protobuf_json import enum_name, reason_of
from app.cli.tables import Cell, print_list, styled
from app.cli.times import clock, duration, span_ms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.pb.terminalstatus.v1.terminal_status_pb2 import TerminalResult


@gateway_command
def query(
    gateway: GatewayConnection,
    addresses: AddressesArgument,
    max_age: MaxAgeOption = "0",
    deadline: Annotated[
        str,
        typer.Option(metavar="DURATION", help="Time to wait for all results. Those received by then are shown."),
    ] = "60s",
    requester: RequesterOption = "",
) -> None:
    """Get the status of many terminals, and of the members of groups, in one query.

    Each terminal has one result: its status, or an error. Exit code 1 if any has an error.

    Example: terminal-status query sip:sales@example.com sip:bob@example.com --max-age 30s
    """
    from app.cli.call_failures import CallFailed
    from app.pb.terminalstatus.v1.terminal_status_pb2 import QueryStatusesRequest
    from app.pb.terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub

    request = QueryStatusesRequest(addresses=addresses, max_age=duration(span_ms(max_age)), requester=requester)
    method = TerminalStatusServiceStub(gateway.channel).QueryStatuses
    failure: CallFailed | None = None
    found = retrieved = 0

    def results() -> "Iterator[TerminalResult]":
        nonlocal found, retrieved, failure
        try:
            for message in gateway.stream(method, request, timeout_s=span_ms(deadline) / 1000):
                found += 1
                retrieved += message.result.HasField("status")
                yield message.result
        except CallFailed as failed:
            if not found:
                raise
            failure = failed  # raised after the results received so far are printed

    pages: Any = ([result] for result in results()) if gateway.as_json else iter([list(results())])
    columns = ("address", "status", "observed at", "source", "error")
    print_list(pages, columns, _row, as_json=gateway.as_json, nothing="No results.")
    if failure is not None:
        raise failure
    if retrieved < found:
        err.print(f"{retrieved} of {found} terminals have a status.")
    raise typer.Exit(OK if retrieved == found else FAILED)


def _row(result: "TerminalResult") -> list[Cell]:
    if result.HasField("status"):
        status = result.status
        return [
            result.address,
            styled(enum_name(status, "status")),
            clock(status.observe_time),
            enum_name(status, "source"),
            "",
        ]
    why = ": ".join(filter(None, [reason_of(result.error), result.error.message]))
    return [result.address, Text(printable(enum_name(result, "retrieval_status")), "red"), "", "", why]
