"""Options and arguments that several commands have, each with one name and one help text.

Deliberately absent: the options for reaching a gateway (`gateway_options.py`).
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.times import SPAN_HELP

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with settings. Default: TS_CONFIG_FILE.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
GrpcListenOption = Annotated[
    str | None, typer.Option(help="HOST:PORT to serve gRPC on. Default: TS_GRPC_LISTEN.", show_default=False)
]
HttpListenOption = Annotated[
    str | None, typer.Option(help="HOST:PORT to serve REST and SOAP on. Default: TS_HTTP_LISTEN.", show_default=False)
]
SeedOption = Annotated[int, typer.Option(help="Seed of the random script by which terminals change status.")]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Show at most this many. Default: all.", show_default=False),
]
SinceOption = Annotated[
    str,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Only from this time on: 2026-11-23, 2026-11-23T08:00Z (UTC if without a zone), or an age such as 24h. "
        "Default: all.",
        show_default=False,
    ),
]
MaxAgeOption = Annotated[
    str,
    typer.Option(
        "--max-age",
        metavar="DURATION",
        help=f"Accept a stored status up to this age, {SPAN_HELP}. 0 always asks the presence server.",
    ),
]
RequesterOption = Annotated[
    str,
    typer.Option(
        "--requester",
        help="On whose behalf you make this call; stored in usage records and the audit log.",
        show_default=False,
    ),
]
AddressesArgument = Annotated[
    list[str], typer.Argument(metavar="ADDRESS", help="Terminals and groups: sip:, sips: or tel: URIs.")
]
CriteriaOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STATUS",
        help="Report only changes to this status: REACHABLE, UNREACHABLE or BUSY. Repeatable. Default: all.",
    ),
]


def criteria_statuses(names: list[str] | None) -> list[Any]:
    """The values of CriteriaOption as protobuf enum values. Raises BadParameter."""
    from app.pb.terminalstatus.v1.terminal_status_pb2 import Status

    found = [f"STATUS_{name.upper()}" for name in names or []]
    for name in found:
        if name not in Status.keys() or name == "STATUS_UNSPECIFIED":  # noqa: SIM118  # not a mapping
            raise typer.BadParameter(
                f"{name.removeprefix('STATUS_')!r} is not a status; use REACHABLE, UNREACHABLE or BUSY."
            )
    return [Status.Value(name) for name in found]
