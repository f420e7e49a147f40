"""`terminal-status sandbox`: a small presence server on this machine, for development and tests."""

import ipaddress
import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from app.cli.console import err, out, wrong_use
from app.cli.options import SeedOption
from app.cli.process import run_until_done, stop_signals
from app.cli.tables import print_json, styled

if TYPE_CHECKING:
    from app.domain.statuses import Status


def sandbox(
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Loopback address for SIP over UDP and TCP.")
    ] = "127.0.0.1:5060",
    seed: SeedOption = 1,
    every_s: Annotated[float, typer.Option(help="Seconds between two changes of status.", min=0.01)] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print each change as one line of JSON.")] = False,
) -> None:
    """Run a small presence server with made-up terminals, for development without an IMS core.

    Never use it in production. It prints each change of status until Ctrl-C.
    """
    from app.logs import configure_logging
    from app.sandbox import Sandbox

    configure_logging("warning", "auto")
    host, port = _loopback(listen)

    def on_changed(address: str, old: "Status", new: "Status") -> None:
        if as_json:
            print_json({"address": address, "old": old.value, "new": new.value}, indent=None)
        else:
            out.print(Text.assemble(address, "  ", styled(old.value), " → ", styled(new.value)))

    async def run() -> None:
        notifier = Sandbox(host, port, seed=seed, every_s=every_s, on_change=on_changed)
        async with stop_signals() as stop, notifier:
            err.print(f"Sandbox notifier on sip:{host}:{notifier.port}, UDP and TCP. Ctrl-C ends it.")
            await stop.wait()

    run_until_done(run())


def _loopback(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    try:
        valid = ipaddress.IPv4Address(host).is_loopback and re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535
    except ipaddress.AddressValueError:
        valid = False
    if not valid:
        wrong_use("--listen must be 127.x.y.z:PORT; the sandbox serves this machine only.")
    return host, int(port)
