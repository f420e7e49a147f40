"""How long starts take: of the whole demo, and of a SIP worker that replaces a killed one. There is no baseline."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc

from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1 import terminal_status_pb2_grpc as pb_grpc
from bench.processes import ROOT, BenchError, descendants, gateway

_LIMIT_S = 30.0


def worker_replaced_s(folder: Path, notifier_port: int) -> float:
    """The time from `kill -9` of the SIP worker to the next answer over gRPC; failed queries are repeated."""
    with gateway(folder, notifier_port) as (pid, server, _), grpc.insecure_channel(server) as channel:
        get_status = pb_grpc.TerminalStatusServiceStub(channel).GetStatus
        request = pb.GetStatusRequest(address="sip:terminal-1@bench.example.com")
        get_status(request, timeout=_LIMIT_S)
        (worker,) = descendants(pid)
        os.kill(worker, signal.SIGKILL)
        killed_s = time.perf_counter()
        while time.perf_counter() - killed_s < _LIMIT_S:
            try:
                get_status(request, timeout=_LIMIT_S)
            except grpc.RpcError:
                time.sleep(0.005)
            else:
                return time.perf_counter() - killed_s
    raise BenchError(f"the worker was not replaced within {_LIMIT_S:.0f} s")


def demo_s() -> float:
    """The time from the command of `make run` to the answer of the third face, with everything installed."""
    started_s = time.perf_counter()
    listen = ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    command = [sys.executable, "-m", "app.cli", "demo", *listen]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        watchdog = threading.Timer(_LIMIT_S, demo.kill)
        watchdog.start()
        try:
            assert demo.stdout is not None
            for line in demo.stdout:
                if line.startswith("sip:bob@example.com  soap  BUSY"):
                    return time.perf_counter() - started_s
        finally:
            watchdog.cancel()
            demo.send_signal(signal.SIGINT)
            demo.communicate()
    raise BenchError("the demo ended without the answer of all three faces")
