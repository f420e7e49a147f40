"""Bounds the connections of one address that have brought no client's call: gRPC bounds all together only, so that one
host with idle connections would shut out everybody.

An address that floods the gateway with bad calls is shut out for a while: grpc.aio passes each call to Python, in their
order and about 3,000 a second, so a flood would hold up everybody's calls.

Invariants: a connection that has brought a call that was let in is never cut, nor is one of a trusted proxy; and
without a flood none that has just come. Addresses are shut out for SHUT_OUT_S, twice as long each time they flood
again, and LONGEST_SHUT_OUT_S at most.

Deliberately absent: how connections are found and cut (`connections.py`), and calls (`call_limits.py`).
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterable

import structlog

from app.auth.proxies import TrustedProxies, bucket
from app.domain.bounded import BoundedDict
from app.rpc.call_limits import FLOOD, Gate
from app.rpc.calls import address_of
from app.rpc.connections import MOST_SHUT_OUT, Connection, connections, cut, shut_out

LOOK_S = 1.0
SHUT_OUT_S, LONGEST_SHUT_OUT_S = 10.0, 300.0
LOG_S = 10.0
"""Least time between two log lines."""

_log = structlog.get_logger(__name__)


class ShutOut:
    """Which addresses may not connect, and until when."""

    def __init__(self) -> None:
        self._until = BoundedDict[str, tuple[float, float]](MOST_SHUT_OUT)  # when it ends, and how long it lasts

    def add(self, keys: Iterable[str], now_s: float) -> list[str]:
        """These have flooded. Returns those that were not shut out: what an address has sent before it was goes on to
        be counted."""
        new = []
        for key in keys:
            until_s, lasted_s = self._until.get(key, (now_s, SHUT_OUT_S / 2))
            if now_s >= until_s:
                new.append(key)
                lasts_s = min(2 * lasted_s, LONGEST_SHUT_OUT_S)
                self._until[key] = now_s + lasts_s, lasts_s
        return new

    def now(self, now_s: float) -> set[str]:
        """Those that are shut out; a while after it is over, an address is forgotten."""
        for key, (until_s, _) in list(self._until.items()):
            if now_s >= until_s + LONGEST_SHUT_OUT_S:
                del self._until[key]
        return {key for key, (until_s, _) in self._until.items() if now_s < until_s}


async def guard_connections(gate: Gate, port: int, proxies: TrustedProxies) -> None:
    """Looks each LOOK_S, and at once where an address floods, until it is cancelled."""
    clock = asyncio.get_running_loop().time
    flood = asyncio.Event()
    gate.on_flood = flood.set
    out, shut = ShutOut(), set[str]()
    seen: set[int] = set()
    number, log_at = 0, clock()
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await flood.wait()
        flood.clear()
        floods = [key for key, weight in gate.bad.items() if weight >= FLOOD and not proxies.overlap(key)]
        flooding = out.add(floods, clock())
        gate.bad.clear()
        before_shut, shut = shut, out.now(clock())
        gate.shut_out = shut
        if shut != before_shut:
            try:
                await asyncio.to_thread(shut_out, port, shut)
            except OSError as error:  # a kernel without socket filters, or a sandbox that forbids them
                _log.warning("grpc_filter_refused", reason=str(error))
        if flooding:
            _log.warning("grpc_flood", addresses=flooding[:10])
        before = set(gate.proved)  # of those that come while the kernel is asked nothing is known
        listed = await asyncio.to_thread(connections, port)
        gate.proved -= before - {each.peer for each in listed}
        doomed = excess(listed, gate, proxies, seen)
        doomed += [each for each in listed if each.peer not in gate.proved and bucket(address_of(each.peer)) in shut]
        if doomed:
            number += await asyncio.to_thread(cut, {each.inode for each in doomed})
            if number and clock() >= log_at:
                addresses = sorted({address_of(each.peer) for each in doomed})
                _log.warning("grpc_connections_cut", number=number, addresses=addresses[:10])
                number, log_at = 0, clock() + LOG_S
        seen = {each.inode for each in listed}


def excess(
    listed: Collection[Connection], gate: Gate, proxies: TrustedProxies, seen: Collection[int]
) -> list[Connection]:
    """Those that have to go, of which each was `seen` before: one that has just come may be about to bring a call."""
    most = gate.unauthenticated_connections
    of_address: defaultdict[str, list[Connection]] = defaultdict(list)
    for each in listed if len(listed) > most else ():
        if each.peer not in gate.proved and not proxies.trusts(address := address_of(each.peer)):
            of_address[bucket(address)].append(each)
    gone: list[Connection] = []
    for theirs in of_address.values():
        gone += [each for each in theirs if each.inode in seen][: max(0, len(theirs) - most)]
    return gone
