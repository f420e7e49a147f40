"""The demo that `make run` shows: a sandbox presence server and a gateway, queried through all three faces.

The queries are real `terminal-status get` commands, printed as a user would type them. Then each change that the
sandbox makes is printed as the gateway's gRPC stream reports it. The database is in a temporary folder.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from datetime import datetime

import grpc
from rich.console import Console
from rich.text import Text

from app.cli.tables import print_json, styled
from app.domain.statuses import Status
from app.main import Gateway, run_gateway
from app.pb.terminalstatus.v1 import terminal_status_pb2, terminal_status_pb2_grpc
from app.sandbox import SCRIPTED, Sandbox
from app.settings.loading import Settings

_QUERIED = "sip:bob@example.com"
_RECONNECT_S = 0.5

Changes = dict[str, tuple[Status, float]]
"""By address: the status before the sandbox's last change, and the monotonic time in seconds of that change."""


async def run_demo(settings: Settings, seed: int, stop: asyncio.Event, out: Console, *, as_json: bool) -> None:
    """Runs until `stop` is set. Raises CannotStart where the gateway, or OSError where the sandbox cannot listen."""
    changes: Changes = {}

    def on_changed(address: str, old: Status, _new: Status) -> None:
        changes[address] = old, time.monotonic()

    with tempfile.TemporaryDirectory(prefix="terminal-status-demo-") as folder:
        async with Sandbox("127.0.0.1", 0, seed=seed, on_change=on_changed) as sandbox:
            settings = settings.model_copy(
                update={
                    "presence_server": sandbox.uri,
                    "database_url": f"sqlite:///{folder}/demo.sqlite3",
                    "anonymous_access": "loopback",
                    # So that users can try webhooks and SOAP callbacks to this machine.
                    "sink_allowed_networks": frozenset({"127.0.0.0/8", "::1/128"}),
                    "sink_allow_http": True,
                }
            )
            async with run_gateway(settings, open_is_admin=True) as gateway:
                show = asyncio.create_task(_show(gateway, sandbox, changes, out, as_json=as_json), name="demo")
                stopped = asyncio.create_task(stop.wait(), name="stop")
                await asyncio.wait({show, stopped}, return_when=asyncio.FIRST_COMPLETED)
                for task in (show, stopped):
                    task.cancel()
                await asyncio.wait({show, stopped})
                if not show.cancelled():
                    show.result()


async def _show(gateway: Gateway, sandbox: Sandbox, changes: Changes, out: Console, *, as_json: bool) -> None:
    if not as_json:
        out.print(f"Sandbox notifier (SIP) on {sandbox.uri}, gateway on gRPC {gateway.grpc_address}")
        out.print(f"and http://{gateway.http_address} (REST, SOAP). Querying {_QUERIED} over all three:\n")
        await _show_faces(gateway, out)
        out.print(f"\nTry it yourself: curl http://{gateway.http_address}/v1/terminals/{_QUERIED}/status")
        out.print("Changes of status, as the gateway's gRPC stream reports them; Ctrl-C ends the demo:\n")
    await _follow(gateway, changes, out, as_json=as_json)


async def _show_faces(gateway: Gateway, out: Console) -> None:
    command = ["get", _QUERIED, "--via", "grpc", "--via", "rest", "--via", "soap"]
    if gateway.grpc_address != Settings.model_fields["grpc_listen"].default:
        command += ["--grpc-server", gateway.grpc_address]
    if gateway.http_address != Settings.model_fields["http_listen"].default:
        command += ["--http-server", gateway.http_address]
    out.print(f"[bold]$ terminal-status {' '.join(command)}[/]")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # imports nothing from the working directory, like the SIP worker
        "-m",
        "app.cli",
        *command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    out.print(output.decode().rstrip(), markup=False)


async def _follow(gateway: Gateway, changes: Changes, out: Console, *, as_json: bool) -> None:
    addresses = [f"tel:{user}" if user.startswith("+") else f"sip:{user}@example.com" for user in SCRIPTED]
    request = terminal_status_pb2.WatchStatusesRequest(addresses=addresses)
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        stub = terminal_status_pb2_grpc.TerminalStatusServiceStub(channel)
        while True:
            try:
                async for response in stub.WatchStatuses(request):
                    match response.WhichOneof("event"):
                        case "change":
                            _print_change(response.change.status, changes, out, as_json=as_json)
                        case "snapshot_complete":
                            request.resume_token = response.snapshot_complete.resume_token
                        case "bookmark":
                            request.resume_token = response.bookmark.resume_token
            except grpc.aio.AioRpcError as error:
                out.print(f"[red]{error.code().name}[/] {error.details()}")
            await asyncio.sleep(_RECONNECT_S)


def _print_change(status: terminal_status_pb2.TerminalStatus, changes: Changes, out: Console, *, as_json: bool) -> None:
    new = terminal_status_pb2.Status.Name(status.status).removeprefix("STATUS_")
    if status.address not in changes:
        return  # the status at the start of the stream
    old, changed_s = changes[status.address]
    after_ms = round((time.monotonic() - changed_s) * 1000, 1)
    if as_json:
        change = {"address": status.address, "was": old.value, "status": new, "after_ms": after_ms}
        print_json(change, indent=None)
        return
    clock = datetime.now().astimezone().strftime("%H:%M:%S")
    arrow = Text.assemble(styled(f"{old.value:>11}"), " → ", styled(f"{new:<11}"))
    out.print(Text(f"{clock}  {status.address:<28} ") + arrow + f" reported after {after_ms} ms")
