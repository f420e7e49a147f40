"""`terminal-status serve`: runs the gateway."""

import gc
import json
import signal
from typing import Annotated

import typer

from app.cli.configuration import read_settings
from app.cli.console import err
from app.cli.options import ConfigOption, GrpcListenOption, HttpListenOption
from app.cli.process import quick_imports, raise_file_limit, run_until_done, stop_signals


def serve(
    config: ConfigOption = None,
    presence_server: Annotated[
        str | None,
        typer.Option(
            help="SIP URI of the presence server, sip:HOST[:PORT][;transport=tcp|udp|tls]. "
            "Default: TS_PRESENCE_SERVER.",
            show_default=False,
        ),
    ] = None,
    grpc_listen: GrpcListenOption = None,
    http_listen: HttpListenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the listening addresses as one line of JSON.")] = False,
) -> None:
    """Run the gateway until SIGINT or SIGTERM.

    The first signal lets calls in flight finish; a second one exits at once. SIGHUP rereads the TLS files.
    """
    from app.logs import configure_logging

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # its default action would end the process before `stop_signals`
    settings = read_settings(config, presence_server=presence_server, grpc_listen=grpc_listen, http_listen=http_listen)
    configure_logging(settings.log_level, settings.log_format)

    with quick_imports():
        from app.main import run_gateway

    async def run() -> None:
        raise_file_limit()
        async with stop_signals(serving=True) as stop, run_gateway(settings) as gateway:
            stop.exit_at_once, stop.on_hang_up = False, gateway.read_tls_files
            gc.collect()
            gc.freeze()  # objects made at start live as long as the process; later collections skip them
            where = {"grpc": gateway.grpc_address, "http": gateway.http_address, "sip": gateway.sip_ports}
            where |= {"metrics": gateway.metrics_address} if gateway.metrics_address else {}
            if as_json:
                print(json.dumps(where), flush=True)  # noqa: T201  # standard output is this command's answer
            else:
                err.print(f"Serving gRPC on {gateway.grpc_address}, REST and SOAP on http://{gateway.http_address}.")
            await stop.wait()

    run_until_done(run())
