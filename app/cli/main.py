"""Puts the commands together into `terminal-status`, the command for operators and developers.

Exit codes: 0 success; 1 an operation failed (an address without an answer, a failed check of `doctor`, a gateway that
cannot start); 2 wrong arguments or settings; 130 interrupted by Ctrl-C, or 0 where Ctrl-C is the usual way to stop
(`serve`, `sandbox`, `demo`, `watch`). Results go to standard output, messages and logs to standard error. `--json`
prints one JSON document, or one JSON object per line where a command prints events.

Invariants: modules of commands import grpc, protobuf, pydantic and the gateway only inside functions, so that `--help`
answers quickly (`tests/faces/test_commands.py`).
"""

import os
import sys
from typing import Annotated

import typer

from app import VERSION
from app.cli.commands.audit import audit
from app.cli.commands.clients import clients
from app.cli.commands.deliveries import deliveries
from app.cli.commands.demo import demo
from app.cli.commands.doctor import doctor
from app.cli.commands.get import get
from app.cli.commands.groups import groups
from app.cli.commands.migrate import migrate
from app.cli.commands.openapi import openapi
from app.cli.commands.query import query
from app.cli.commands.sandbox import sandbox
from app.cli.commands.serve import serve
from app.cli.commands.subscriptions import subscriptions
from app.cli.commands.usage import usage
from app.cli.commands.watch import watch
from app.cli.commands.watches import watches
from app.cli.console import INTERRUPTED, OK

app = typer.Typer(
    name="terminal-status",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Is this SIP/IMS terminal reachable, unreachable or busy? Query a running gateway, or run one.",
    epilog="Settings come from TS_… environment variables and a TOML file (--config or TS_CONFIG_FILE); "
    "docs/settings.md lists them. "
    "Exit codes: 0 success, 1 an operation failed, 2 wrong arguments or settings.",
)
for _command in (serve, get, query, watch, sandbox, openapi, migrate, doctor, demo):
    app.command()(_command)
for _name, _group in (
    ("watches", watches),
    ("subscriptions", subscriptions),
    ("groups", groups),
    ("deliveries", deliveries),
    ("usage", usage),
    ("clients", clients),
    ("audit", audit),
):
    app.add_typer(_group, name=_name)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"terminal-status {VERSION}")  # noqa: T201  # standard output is this option's answer
        raise typer.Exit(OK)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of `terminal-status` itself; eager, so that they work without a command."""


def main() -> None:
    """The entry point of `terminal-status`."""
    # The SIP worker is spawned, not forked, so gRPC need not prepare for forks, and should not warn about them.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    # gRPC's core would print its own lines about a taken port; ours name the setting.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
