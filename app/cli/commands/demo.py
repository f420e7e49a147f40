"""`terminal-status demo`, which `make run` starts: a sandbox and a gateway together."""

from typing import Annotated

import typer

from app.cli.configuration import read_settings
from app.cli.console import out
from app.cli.options import GrpcListenOption, HttpListenOption, SeedOption
from app.cli.process import quick_imports, run_until_done, stop_signals


def demo(
    seed: SeedOption = 1,
    grpc_listen: GrpcListenOption = None,
    http_listen: HttpListenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each change as one line of JSON.")] = False,
) -> None:
    """Run a sandbox presence server and a gateway together, to try the gateway on this machine.

    Queries one terminal over gRPC, REST and SOAP, then prints each change of status until Ctrl-C. `make run` runs this.
    """
    with quick_imports():
        from app.cli.demonstration import run_demo
    from app.logs import configure_logging

    settings = read_settings(None, presence_server="sip:127.0.0.1", grpc_listen=grpc_listen, http_listen=http_listen)
    configure_logging("warning", "auto")

    async def run() -> None:
        async with stop_signals() as stop:
            await run_demo(settings, seed, stop, out, as_json=as_json)

    run_until_done(run())
