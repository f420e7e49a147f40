"""Bounds the connections of one address that have brought no client's call: gRPC bounds all together only, so that one
host with idle connections would shut out everybody.

Invariants: a connection that has brought a call that was let in is never cut; nor is one of a trusted proxy, or one
that has just come.

Deliberately absent: how connections are found and cut (`connections.py`), and calls (`gate.py`).
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection

import structlog

from app.proxies import TrustedProxies, bucket
from app.rpc.calls import address_of
from app.rpc.connections import Connection, connections, cut
from app.rpc.gate import Gate

LOOK_S = 1.0
LOG_S = 10.0
"""Least time between two log lines."""

_log = structlog.get_logger(__name__)


async def guard_connections(gate: Gate, port: int, proxies: TrustedProxies) -> None:
    """Looks each LOOK_S, until it is cancelled."""
    clock = asyncio.get_running_loop().time
    seen: set[int] = set()
    number, log_at = 0, clock()
    while True:
        await asyncio.sleep(LOOK_S)
        before = set(gate.proved)  # of those that come while the kernel is asked nothing is known
        listed = await asyncio.to_thread(connections, port)
        gate.proved -= before - {each.peer for each in listed}
        if doomed := excess(listed, gate, proxies, seen):
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
