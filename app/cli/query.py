"""`terminal-status query`: many terminals and the members of groups at once, with partial results."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from app.cli.gateway import Gateway, asks_gateway
from app.cli.output import FAILED, OK, err, printable
from app.cli.tables import Cell, enum_name, print_list, styled
from app.cli.times import SPAN_HELP, clock, duration, span_ms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.pb.terminalstatus.v1.terminal_status_pb2 import TerminalResult

Addresses = Annotated[
    list[str], typer.Argument(metavar="ADDRESS", help="Terminals and groups: sip:, sips: or tel: URIs.")
]


@asks_gateway
def query(
    gateway: Gateway,
    addresses: Addresses,
    max_age: Annotated[
        str,
        typer.Option(
            "--max-age",
            metavar="DURATION",
            help=f"How old an answer may be, {SPAN_HELP}; 0 asks the presence server now.",
        ),
    ] = "0",
    deadline: Annotated[
        str,
        typer.Option(metavar="DURATION", help="How long to wait for all; what came until then is shown."),
    ] = "60s",
    requester: Annotated[str, typer.Option(help="On whose behalf, for the usage record.", show_default=False)] = "",
) -> None:
    """Ask about many terminals and the members of groups at once.

    Each terminal has one result, RETRIEVED or with the reason why not. Exit code 1 if there was none for some of them.

    Example: terminal-status query sip:sales@example.com sip:bob@example.com --max-age 30s
    """
    from app.cli.access import CallFailed
    from app.pb.terminalstatus.v1.terminal_status_pb2 import QueryStatusesRequest
    from app.pb.terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub

    request = QueryStatusesRequest(addresses=addresses, max_age=duration(span_ms(max_age)), requester=requester)
    method = TerminalStatusServiceStub(gateway.channel).QueryStatuses
    broken: list[CallFailed] = []
    found = retrieved = 0

    def results() -> "Iterator[TerminalResult]":
        nonlocal found, retrieved
        try:
            for message in gateway.stream(method, request, timeout_s=span_ms(deadline) / 1000):
                found += 1
                retrieved += message.result.HasField("status")
                yield message.result
        except CallFailed as failed:
            if not found:
                raise
            broken.append(failed)  # what came before is shown first

    pages: Any = ([result] for result in results()) if gateway.as_json else iter([list(results())])
    columns = ("address", "status", "observed at", "source", "why not")
    print_list(pages, columns, _row, as_json=gateway.as_json, nothing="No results.")
    if broken:
        raise broken[0]
    if retrieved < found:
        err.print(f"{retrieved} of {found} terminals answered.")
    raise typer.Exit(OK if retrieved == found else FAILED)


def _row(result: "TerminalResult") -> list[Cell]:
    if result.HasField("status"):
        status = result.status
        return [
            result.address,
            styled(enum_name(status, "status")),
            clock(status.observed_at),
            enum_name(status, "source"),
            "",
        ]
    why = ": ".join(filter(None, [result.failure.reason, result.failure.message]))
    return [result.address, Text(printable(enum_name(result, "retrieval_status")), "red"), "", "", why]
