"""What `make run` shows: the sandbox notifier and a gateway against it, asked through all three faces.

The questions are put by real `terminal-status get` commands, printed as used; then each change that the sandbox's
script makes is printed as a gRPC stream tells it, until told to stop. The database is in a folder that goes with it.

Deliberately absent: anything a production gateway needs; `terminal-status serve` is that.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime

import grpc
from rich.console import Console

from app.domain.statuses import Status
from app.main import Gateway, run_gateway
from app.pb.terminalstatus.v1 import terminal_status_pb2, terminal_status_pb2_grpc
from app.sandbox import SCRIPTED, Sandbox
from app.settings.loading import Settings

_COLOURS = {"REACHABLE": "green", "BUSY": "yellow", "UNREACHABLE": "bright_black"}
_SHOWN = "sip:bob@example.com"
_AGAIN_S = 0.5

Changes = dict[str, tuple[Status, float]]
"""By address: what it was before the sandbox changed it last, and when that was, in monotonic seconds."""


async def run_demo(settings: Settings, seed: int, stop: asyncio.Event, out: Console, *, as_json: bool) -> None:
    """Runs until `stop` is set. Raises CannotStart, or OSError where the sandbox cannot listen."""
    changes: Changes = {}

    def changed(address: str, old: Status, _new: Status) -> None:
        changes[address] = old, time.monotonic()

    with tempfile.TemporaryDirectory(prefix="terminal-status-demo-") as folder:
        async with Sandbox("127.0.0.1", 0, seed=seed, on_change=changed) as sandbox:
            settings = settings.model_copy(
                update={
                    "presence_server": sandbox.uri,
                    "database_url": f"sqlite:///{folder}/demo.sqlite3",
                    "anonymous_access": "loopback",
                    # Webhooks and callbacks to this machine may be tried.
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
        out.print(f"and http://{gateway.http_address} (REST, SOAP). Asking all three faces about {_SHOWN}:\n")
        await _show_faces(gateway, out)
        out.print(f"\nBy hand: curl http://{gateway.http_address}/v1/terminals/{_SHOWN}/status")
        out.print("Changes as a gRPC stream tells them, Ctrl-C to end:\n")
    await _follow(gateway, changes, out, as_json=as_json)


async def _show_faces(gateway: Gateway, out: Console) -> None:
    command = ["get", _SHOWN, "--via", "grpc", "--via", "rest", "--via", "soap"]
    if gateway.grpc_address != Settings.model_fields["grpc_listen"].default:
        command += ["--grpc-server", gateway.grpc_address]
    if gateway.http_address != Settings.model_fields["http_listen"].default:
        command += ["--http-server", gateway.http_address]
    out.print(f"[bold]$ terminal-status {' '.join(command)}[/]")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # as for the SIP worker: nothing is imported from the working directory
        "-m",
        "app.cli.main",
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
            await asyncio.sleep(_AGAIN_S)


def _print_change(status: terminal_status_pb2.TerminalStatus, changes: Changes, out: Console, *, as_json: bool) -> None:
    told = terminal_status_pb2.Status.Name(status.status).removeprefix("STATUS_")
    if status.address not in changes:
        return  # as it was when the stream began
    was, changed_s = changes[status.address]
    after_ms = round((time.monotonic() - changed_s) * 1000, 1)
    if as_json:
        line = {"address": status.address, "was": was.value, "status": told, "after_ms": after_ms}
        print(json.dumps(line), flush=True)  # noqa: T201  # standard output is this command's answer
        return
    clock = datetime.now().astimezone().strftime("%H:%M:%S")
    before = f"[{_COLOURS[was.value]}]{was.value:>11}[/]"
    now = f"[{_COLOURS[told]}]{told:<11}[/]"
    out.print(f"{clock}  {status.address:<28} {before} → {now} told after {after_ms} ms")
