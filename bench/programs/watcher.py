"""The gateway's watcher alone: sets up watches, and measures what they cost.

Run as `python -m bench.programs.watcher PORT …` against a notifier on 127.0.0.1:PORT; prints one line of JSON. The
process runs the gateway's event loop with `SipWatcher`, one SIP worker, and an observer that only counts. Figures are
the sum of both processes.

Invariants: a figure is read when every watch is LIVE; every wait has a deadline.
"""

import argparse
import asyncio
import json
import os
import signal
import time

import uvloop

from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import DocumentUnreadable, TerminalStatusError
from app.domain.statuses import Liveness
from app.logs import configure_logging
from app.ports.sip import ReceivedNotify
from app.settings.loading import load_settings
from app.sip.settings import sip_configuration
from app.sip.watcher import SipWatcher
from bench.processes import cpu_seconds, resident_bytes

_LIMIT_S = 120.0
_SETTLE_S = 3.0


class Counting:
    """An observer that counts NOTIFYs and LIVE watches."""

    def __init__(self) -> None:
        self.live: set[TerminalAddress] = set()
        self.observed_count = 0

    def on_notify_received(self, address: TerminalAddress, notify: ReceivedNotify) -> None:
        """See `app.ports.sip.WatchObserver`."""
        self.observed_count += 1

    def on_notify_unreadable(self, address: TerminalAddress, error: DocumentUnreadable) -> None:
        """See `app.ports.sip.WatchObserver`."""
        raise RuntimeError(f"{address}: {error}")

    def on_liveness_changed(
        self, address: TerminalAddress, liveness: Liveness, reason: str, error: TerminalStatusError | None
    ) -> None:
        """See `app.ports.sip.WatchObserver`."""
        if liveness is Liveness.LIVE:
            self.live.add(address)
        else:
            self.live.discard(address)

    def on_watch_ended(self, address: TerminalAddress, reason: str, error: TerminalStatusError | None) -> None:
        """See `app.ports.sip.WatchObserver`."""
        raise RuntimeError(f"{address} ended: {reason}")

    async def all_live(self, count: int) -> None:
        """Waits until `count` watches are LIVE."""
        async with asyncio.timeout(_LIMIT_S):
            while len(self.live) < count:  # noqa: ASYNC110  # polling is cheaper than an event for each watch
                await asyncio.sleep(0.005)


async def _run(arguments: argparse.Namespace) -> dict[str, object]:
    settings = load_settings(
        {},
        presence_server=f"sip:127.0.0.1:{arguments.port};transport=udp",
        probe_every_s="0",
        setups_per_s=str(arguments.setups_per_s),
    )
    observer, lags_s = Counting(), list[float]()
    watcher = SipWatcher(sip_configuration(settings, "bench"), on_lag=lags_s.append)
    watcher.set_observer(observer)
    await watcher.start()
    pid, count = os.getpid(), arguments.count
    terminals = [parse_address(f"sip:terminal-{number}@bench.example.com") for number in range(count)]
    await watcher.fetch(parse_address("sip:warm@bench.example.com"))
    before_bytes, started_s = resident_bytes(pid), time.perf_counter()
    for terminal in terminals:
        watcher.watch(terminal)
    await observer.all_live(count)
    figures: dict[str, object] = {"count": count, "setup_s": time.perf_counter() - started_s}
    await asyncio.sleep(_SETTLE_S)
    figures["bytes"] = resident_bytes(pid) - before_bytes
    if arguments.idle_s:
        cpu_s, at_s = cpu_seconds(pid), time.perf_counter()
        await asyncio.sleep(arguments.idle_s)
        figures["idle_cpu"] = (cpu_seconds(pid) - cpu_s) / (time.perf_counter() - at_s)
    if arguments.notified_s:
        lags_s.clear()
        observed = observer.observed_count
        await asyncio.sleep(arguments.notified_s)
        figures["notified_per_s"] = (observer.observed_count - observed) / arguments.notified_s
        figures["lag_s"] = lags_s[:]
    if arguments.kill:
        figures |= await _kill(watcher, observer, terminals)
    await watcher.aclose()
    return figures


async def _kill(watcher: SipWatcher, observer: Counting, terminals: list[TerminalAddress]) -> dict[str, object]:
    pid = watcher.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    killed_s = time.perf_counter()
    async with asyncio.timeout(_LIMIT_S):
        while len(observer.live) == len(terminals):  # noqa: ASYNC110  # until the crash is noticed
            await asyncio.sleep(0)
        answered_s = 0.0
        while not answered_s:
            try:
                await watcher.fetch(parse_address("sip:asked@bench.example.com"))
                answered_s = time.perf_counter() - killed_s
            except TerminalStatusError:
                await asyncio.sleep(0.005)
    await observer.all_live(len(terminals))
    return {"answered_s": answered_s, "all_live_s": time.perf_counter() - killed_s}


def main() -> None:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.programs.watcher", description="Measures watches.")
    parser.add_argument("port", type=int, help="the notifier's port on 127.0.0.1")
    parser.add_argument("--count", type=int, default=20_000, help="watches")
    parser.add_argument("--setups-per-s", type=float, default=0, help="0 is no limit")
    parser.add_argument("--idle-s", type=float, default=0, help="how long to measure the CPU of idle watches")
    parser.add_argument("--notified-s", type=float, default=0, help="how long to measure the delay of NOTIFYs")
    parser.add_argument("--kill", action="store_true", help="kill the worker at the end, and wait until all is LIVE")
    arguments = parser.parse_args()
    configure_logging("error", "console")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_run(arguments))), flush=True)


if __name__ == "__main__":
    main()
