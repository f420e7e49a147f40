"""The `terminal-status` command: for people at a terminal, and for `make run`.

Exit codes: 0 all went well; 1 something that was asked for failed (an address had no answer, a check of `doctor`
is not good, the gateway cannot start); 2 wrong use or wrong settings. `--json` prints one JSON document on standard
output; messages for people and logs go to standard error. Ctrl-C is no failure of the program: exit code 130, or 0
where it is the way to end (`serve`, `sandbox`, `demo`).

Invariants: heavy imports stand inside the commands, so that `--help` is quick. Deliberately absent: rules.
"""

import asyncio
import gc
import ipaddress
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from app import VERSION
from app.cli.audit import audit
from app.cli.clients import clients
from app.cli.deliveries import deliveries
from app.cli.gateway import (
    ApiKeyOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    TlsOption,
    access_of,
    gateway_settings,
    is_utf8,
    warn_of_clear_text,
    wrong_use,
)
from app.cli.groups import groups
from app.cli.output import (
    FAILED,
    INTERRUPTED,
    OK,
    USAGE,
    ConfigOption,
    JsonOption,
    err,
    fail,
    loading,
    out,
    read_settings,
    run_main,
    shown,
)
from app.cli.query import query
from app.cli.subscriptions import subscriptions
from app.cli.tables import print_table, styled
from app.cli.times import SPAN_HELP, span_ms
from app.cli.usage import usage
from app.cli.watch import watch
from app.cli.watches import watches

if TYPE_CHECKING:
    from app.domain.statuses import Status

app = typer.Typer(
    name="terminal-status",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Can this SIP/IMS terminal be reached right now, is it busy? Ask, or serve the answer.",
    epilog="Settings come from TS_… variables and a TOML file; docs/settings.md lists them. "
    "Exit codes: 0 well, 1 something failed, 2 wrong use or settings.",
)
app.add_typer(watches, name="watches")
app.add_typer(subscriptions, name="subscriptions")
app.add_typer(groups, name="groups")
app.add_typer(deliveries, name="deliveries")
app.add_typer(usage, name="usage")
app.add_typer(clients, name="clients")
app.add_typer(audit, name="audit")


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"terminal-status {VERSION}")  # noqa: T201  # standard output is this option's answer
        raise typer.Exit(OK)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of no command; they are answered before one is looked for."""


class Face(StrEnum):
    """A face of the gateway to ask through."""

    GRPC = "grpc"
    REST = "rest"
    SOAP = "soap"


@app.command()
def serve(
    config: ConfigOption = None,
    presence_server: Annotated[
        str | None,
        typer.Option(help="As TS_PRESENCE_SERVER: sip:HOST[:PORT][;transport=tcp|udp|tls].", show_default=False),
    ] = None,
    grpc_listen: Annotated[str | None, typer.Option(help="As TS_GRPC_LISTEN.", show_default=False)] = None,
    http_listen: Annotated[str | None, typer.Option(help="As TS_HTTP_LISTEN.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print where it listens as one line of JSON.")] = False,
) -> None:
    """Run the gateway until SIGINT or SIGTERM; questions in flight are then let finish. SIGHUP rereads TLS files."""
    from app.logs import configure_logging

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again; see `_told_to_stop`
    settings = read_settings(config, presence_server=presence_server, grpc_listen=grpc_listen, http_listen=http_listen)
    configure_logging(settings.log_level, settings.log_format)

    with loading():
        from app.main import run_gateway

    async def run() -> None:
        _raise_file_limit()
        async with _told_to_stop(at_once=True) as stop, run_gateway(settings) as gateway:
            stop.at_once, stop.on_hang_up = False, gateway.read_tls_files
            gc.collect()
            gc.freeze()  # what start made lives as long as the process; the collector need not walk it again and again
            where = {"grpc": gateway.grpc_address, "http": gateway.http_address, "sip": gateway.sip_ports}
            where |= {"metrics": gateway.metrics_address} if gateway.metrics_address else {}
            if as_json:
                print(json.dumps(where), flush=True)  # noqa: T201  # standard output is this command's answer
            else:
                err.print(f"Serving gRPC on {gateway.grpc_address}, REST and SOAP on http://{gateway.http_address}.")
            await stop.wait()

    run_main(run())


@app.command()
def get(
    addresses: Annotated[list[str], typer.Argument(help="Terminals: sip:, sips: or tel: URIs.", show_default=False)],
    via: Annotated[list[Face], typer.Option(help="The face to ask through; may be given again.")] = [Face.GRPC],  # noqa: B006  # typer copies it
    max_age: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help=f"How old an answer may be, {SPAN_HELP}; 0 asks the presence server now. Not over SOAP.",
        ),
    ] = "0",
    grpc_server: Annotated[
        str | None,
        typer.Option(
            "--grpc-server", "--server", help="HOST:PORT of the gateway; TS_GRPC_LISTEN otherwise.", show_default=False
        ),
    ] = None,
    http_server: Annotated[
        str | None, typer.Option(help="HOST:PORT for REST and SOAP; TS_HTTP_LISTEN otherwise.", show_default=False)
    ] = None,
    api_key: ApiKeyOption = "",
    tls: TlsOption = None,
    tls_ca_file: TlsCaOption = None,
    tls_cert_file: TlsCertOption = None,
    tls_key_file: TlsKeyOption = None,
    timeout_s: Annotated[
        float,
        typer.Option("--timeout-s", "--timeout", help="How long to wait for each answer, in seconds.", min=0.1),
    ] = 10,
    as_json: JsonOption = False,
) -> None:
    """Ask a running gateway about terminals. Exit code 1 if one of them had no answer."""
    from app.cli.access import AccessUnusable
    from app.cli.ask import ask

    if unreadable := [address for address in addresses if not is_utf8(address)]:
        wrong_use(f"{unreadable[0]} is not UTF-8; an address is a sip:, sips: or tel: URI.")
    max_age_s = span_ms(max_age) / 1000
    if max_age_s and Face.SOAP in via:
        wrong_use("--max-age: Parlay X has no word for it; see TS_SOAP_MAX_AGE_S.")
    called = {"grpc_listen": "--grpc-server", "http_listen": "--http-server"}
    settings = gateway_settings(grpc_server, http_server, called)
    servers = {Face.GRPC: settings.grpc_listen, Face.REST: settings.http_listen, Face.SOAP: settings.http_listen}
    try:
        access = access_of(
            settings,
            local=grpc_server is None and http_server is None,
            api_key=api_key,
            tls=tls,
            tls_ca_file=tls_ca_file,
            tls_cert_file=tls_cert_file,
            tls_key_file=tls_key_file,
        )
        for server in {servers[face] for face in via}:
            warn_of_clear_text(access, server)
        answers = [
            ask(face.value, servers[face], address, timeout_s, max_age_s=max_age_s, access=access)
            for address in addresses
            for face in via
        ]
    except AccessUnusable as error:
        wrong_use(str(error))
    if as_json:
        print(json.dumps(answers, indent=2))  # noqa: T201  # standard output is this command's answer
    else:
        why_not = ("why not",) if any("error" in answer for answer in answers) else ()
        print_table(
            ("address", "via", "status", "observed at", "ms", *why_not),
            [
                [
                    answer["address"],
                    answer["via"],
                    styled(answer["status"]) if "status" in answer else styled(answer["code"], "red"),
                    answer.get("observed_at", ""),
                    str(answer["elapsed_ms"]),
                    *([answer.get("error", "")] if why_not else []),
                ]
                for answer in answers
            ],
        )
    raise typer.Exit(FAILED if any("error" in answer for answer in answers) else OK)


app.command()(query)
app.command()(watch)


@app.command()
def sandbox(
    listen: Annotated[str, typer.Option(help="HOST:PORT for SIP over UDP and TCP, loopback.")] = "127.0.0.1:5060",
    seed: Annotated[int, typer.Option(help="Seed of the script by which terminals change.")] = 1,
    every_s: Annotated[float, typer.Option(help="Seconds between changes.", min=0.01)] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print each change as one line of JSON.")] = False,
) -> None:
    """Run the sandbox notifier, a small presence server for people without an IMS core. Never for production."""
    from app.logs import configure_logging
    from app.sandbox import Sandbox

    configure_logging("warning", "auto")
    host, port = _loopback(listen)

    def tell(address: str, old: "Status", new: "Status") -> None:
        if as_json:
            line = json.dumps({"address": address, "old": old.value, "new": new.value})
            print(line, flush=True)  # noqa: T201  # standard output is this command's answer
        else:
            out.print(f"{address}  {_coloured(old.value)} → {_coloured(new.value)}")

    async def run() -> None:
        notifier = Sandbox(host, port, seed=seed, every_s=every_s, on_change=tell)
        async with _told_to_stop() as stop, notifier:
            err.print(f"Sandbox notifier on sip:{host}:{notifier.port}, UDP and TCP. Ctrl-C ends it.")
            await stop.wait()

    run_main(run())


@app.command()
def openapi(
    api: Annotated[str, typer.Argument(help="Which API, by the name of its file.")] = "terminal-status-v1",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write, or a folder for all APIs' files; standard output otherwise.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Accepted for symmetry: the file is JSON anyway.")] = False,
) -> None:
    """Export the OpenAPI descriptions of the HTTP APIs."""
    from app.rest.application import export_openapi

    texts = export_openapi()
    if api not in texts:
        err.print(f"[red]error:[/] {shown(api)} is no API of this gateway; there are {', '.join(texts)}.")
        raise typer.Exit(USAGE)
    if output is None:
        print(texts[api], end="")  # noqa: T201  # standard output is this command's answer
        return
    files = {output / f"{name}.json": text for name, text in texts.items()} if output.is_dir() else {output: texts[api]}
    for file, text in files.items():
        try:
            file.write_text(text, "utf-8")
        except OSError as error:
            fail(f"{file}: cannot be written: {error.strerror}.")
        err.print(f"Wrote {shown(str(file))}.")


@app.command()
def migrate(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Bring the database's schema up to date, as `serve` does at its start. Safe while others run."""
    from app.logs import configure_logging
    from app.store import DatabaseUnavailable
    from app.store import migrate as migrate_database

    configure_logging("warning", "auto")
    settings = read_settings(config, presence_server="sip:127.0.0.1", sip_listen="127.0.0.1:0")  # nobody asks one here
    try:
        migrated = asyncio.run(migrate_database(settings.database_url))
    except DatabaseUnavailable as error:
        fail(f"The database does not open: {error}. See TS_DATABASE_URL.")
    if as_json:
        print(json.dumps({"before": migrated.before, "now": migrated.now}))  # noqa: T201  # standard output is the answer
    elif migrated.before == migrated.now:
        out.print(f"The database is up to date: {migrated.now}.")
    else:
        out.print(f"The database is now at {migrated.now}; it was {migrated.before or 'new'}.")


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check the configuration, the PJSIP build and its limits, the presence server and the database."""
    from app.cli.doctor import check_everything
    from app.logs import configure_logging

    configure_logging("error", "auto")
    checks = asyncio.run(check_everything(config))
    if as_json:
        print(json.dumps(checks, indent=2))  # noqa: T201  # standard output is this command's answer
    else:
        for check in checks:
            out.print(
                f"{'[green]ok  [/]' if check['ok'] else '[red]FAIL[/]'} {check['check']}: {escape(check['found'])}"
            )
            for note in check.get("notes", []):
                out.print(f"     note: {escape(note)}")
    wrong_settings = not checks[0]["ok"]
    raise typer.Exit(USAGE if wrong_settings else OK if all(check["ok"] for check in checks) else FAILED)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of the script by which terminals change.")] = 1,
    grpc_listen: Annotated[str | None, typer.Option(help="As TS_GRPC_LISTEN.", show_default=False)] = None,
    http_listen: Annotated[str | None, typer.Option(help="As TS_HTTP_LISTEN.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each change as one line of JSON.")] = False,
) -> None:
    """Run sandbox and gateway together, ask all three faces, then print each change until Ctrl-C (`make run`)."""
    with loading():
        from app.cli.demo import run_demo
    from app.logs import configure_logging

    settings = read_settings(None, presence_server="sip:127.0.0.1", grpc_listen=grpc_listen, http_listen=http_listen)
    configure_logging("warning", "auto")

    async def run() -> None:
        async with _told_to_stop() as stop:
            await run_demo(settings, seed, stop, out, as_json=as_json)

    run_main(run())


def main() -> None:
    """The entry point of `terminal-status`."""
    # The SIP worker is spawned, never merely forked, so gRPC need not prepare for forks, nor complain of them.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    # What gRPC's core says on a taken port is no log line of ours, and ours says it better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _raise_file_limit() -> None:
    """Takes as many open files as the system grants: each caller's connection is one, and 1024 is the usual start."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Stop(asyncio.Event):
    at_once = False
    """Whether nothing was served yet, so that nothing is to be ended in order. A start may wait for a database that is
    locked, which nothing else would cut short."""
    on_hang_up: Callable[[], None] | None = None
    """What SIGHUP asks for, once there is something to ask."""


@asynccontextmanager
async def _told_to_stop(*, at_once: bool = False) -> AsyncIterator["_Stop"]:
    """An event that SIGINT and SIGTERM set; a second one ends the process at once. SIGHUP is left as it is, but for a
    process that is ended `at_once` before it serves."""
    loop, stop = asyncio.get_running_loop(), _Stop()
    stop.at_once = at_once

    def told() -> None:
        # An exception would leave the loop with gRPC's threads at work in it, which crashes.
        if stop.is_set():
            os.write(sys.stderr.fileno(), b"Told to stop again: ending at once.\n")
            os._exit(FAILED)
        if stop.at_once:
            os.write(sys.stderr.fileno(), b"Told to stop before it served: ending at once.\n")
            os._exit(0)
        stop.set()

    def hung_up() -> None:
        if stop.on_hang_up is not None:
            stop.on_hang_up()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told)
    if at_once:
        loop.add_signal_handler(signal.SIGHUP, hung_up)
    try:
        yield stop
    finally:
        if at_once:
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _loopback(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    try:
        here = ipaddress.IPv4Address(host).is_loopback and re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535
    except ipaddress.AddressValueError:
        here = False
    if not here:
        err.print("[red]error:[/] --listen must be 127.x.y.z:PORT; the sandbox is for this machine only.")
        raise typer.Exit(USAGE)
    return host, int(port)


def _coloured(status: str) -> str:
    colours = {"REACHABLE": "green", "BUSY": "yellow", "UNREACHABLE": "bright_black"}
    return f"[{colours.get(status, 'red')}]{escape(status)}[/]"


if __name__ == "__main__":
    main()
