"""What `make run` shows: the sandbox notifier and a gateway against it, asked through all three faces.

The questions are put by real `terminal-status get` commands, printed as used; then each change that the sandbox's
script makes is looked up over gRPC and printed as the gateway tells it, until told to stop.

Deliberately absent: anything a production gateway needs; `terminal-status serve` is that.
"""

import asyncio
import json
import subprocess
import sys
import time
from datetime import datetime

import grpc
from rich.console import Console

from app.config import Settings
from app.domain import Status
from app.main import Gateway, run_gateway
from app.pb.terminalstatus.v1 import terminal_status_pb2, terminal_status_pb2_grpc
from app.sandbox import Sandbox

_MOST_WAITING_CHANGES = 100
_COLOURS = {"REACHABLE": "green", "BUSY": "yellow", "UNREACHABLE": "bright_black"}
_SHOWN = "sip:bob@example.com"

Change = tuple[str, Status, Status]


async def run_demo(settings: Settings, seed: int, stop: asyncio.Event, out: Console, *, as_json: bool) -> None:
    """Runs until `stop` is set. Raises CannotStart, or OSError where the sandbox cannot listen."""
    changes: asyncio.Queue[Change] = asyncio.Queue(_MOST_WAITING_CHANGES)

    def changed(address: str, old: Status, new: Status) -> None:
        if changes.full():
            changes.get_nowait()  # the newest matter; this is a display
        changes.put_nowait((address, old, new))

    async with Sandbox("127.0.0.1", 0, seed=seed, on_change=changed) as sandbox:
        settings = settings.model_copy(update={"presence_server": sandbox.uri})
        async with run_gateway(settings) as gateway:
            show = asyncio.create_task(_show(gateway, sandbox, changes, out, as_json=as_json), name="demo")
            stopped = asyncio.create_task(stop.wait(), name="stop")
            await asyncio.wait({show, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for task in (show, stopped):
                task.cancel()
            await asyncio.wait({show, stopped})
            if not show.cancelled():
                show.result()


async def _show(
    gateway: Gateway, sandbox: Sandbox, changes: asyncio.Queue[Change], out: Console, *, as_json: bool
) -> None:
    if not as_json:
        out.print(f"Sandbox notifier (SIP) on {sandbox.uri}, gateway on gRPC {gateway.grpc_address}")
        out.print(f"and http://{gateway.http_address} (REST, SOAP). Asking all three faces about {_SHOWN}:\n")
        await _show_faces(gateway, out)
        out.print(f"\nBy hand: curl http://{gateway.http_address}/v1/terminals/{_SHOWN}/status")
        out.print("Changes as the gateway tells them, Ctrl-C to end:\n")
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


async def _follow(gateway: Gateway, changes: asyncio.Queue[Change], out: Console, *, as_json: bool) -> None:
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        stub = terminal_status_pb2_grpc.TerminalStatusServiceStub(channel)
        while True:
            address, old, _ = await changes.get()
            started_s = time.monotonic()
            try:
                answer = await stub.GetStatus(terminal_status_pb2.GetStatusRequest(address=address), timeout=10)
                told = terminal_status_pb2.Status.Name(answer.status.status).removeprefix("STATUS_")
            except grpc.aio.AioRpcError as error:
                told = f"{error.code().name} {error.details()}"
            elapsed_ms = round((time.monotonic() - started_s) * 1000, 1)
            if as_json:
                line = {"address": address, "was": old.value, "status": told, "elapsed_ms": elapsed_ms}
                print(json.dumps(line), flush=True)  # noqa: T201  # standard output is this command's answer
            else:
                clock = datetime.now().astimezone().strftime("%H:%M:%S")
                was = f"[{_COLOURS[old.value]}]{old.value:>11}[/]"
                now = f"[{_COLOURS.get(told, 'red')}]{told:<11}[/]"
                out.print(f"{clock}  {address:<28} {was} → {now} asked and answered in {elapsed_ms} ms")
