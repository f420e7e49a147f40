"""Limits each address's connections without a client's call, and blocks addresses that flood the port with bad calls.

gRPC limits only the number of all connections together, so one host with idle connections would keep out every other
host. And grpc.aio passes calls to Python in their order of arrival, about 3,000 a second, so a flood of bad calls
delays everybody's calls.

Invariants: these connections are never shut down: one on which a client's call was admitted, a trusted proxy's, and,
without a flood, one that was opened within the last CHECK_S. An address is blocked for MIN_BLOCK_S, twice as long after
each further flood, and at most MAX_BLOCK_S.

Deliberately absent: how connections are listed and shut down (`tcp_connections.py`), how the kernel blocks addresses
(`address_filter.py`), and limits on calls (`call_limits.py`).
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterable

import structlog

from app.auth.proxies import TrustedProxies, bucket
from app.domain.bounded import BoundedDict
from app.rpc.address_filter import MAX_BLOCKED, block_addresses
from app.rpc.call_limits import FLOOD_WEIGHT, CallLimits
from app.rpc.callers import address_of_peer
from app.rpc.tcp_connections import Connection, accepted_connections, shut_down

CHECK_S = 1.0
MIN_BLOCK_S, MAX_BLOCK_S = 10.0, 300.0
LOG_S = 10.0
"""Least time between two log lines."""

_log = structlog.get_logger(__name__)


class BlockedAddresses:
    """Which addresses may not connect, and until when."""

    def __init__(self) -> None:
        self._until = BoundedDict[str, tuple[float, float]](MAX_BLOCKED)  # when the block ends, and how long it lasts

    def add(self, keys: Iterable[str], now_s: float) -> list[str]:
        """Blocks addresses that have flooded. Returns the newly blocked ones: a blocked address may be among `keys`,
        since calls that it sent before are still counted."""
        new = []
        for key in keys:
            until_s, lasted_s = self._until.get(key, (now_s, MIN_BLOCK_S / 2))
            if now_s >= until_s:
                new.append(key)
                lasts_s = min(2 * lasted_s, MAX_BLOCK_S)
                self._until[key] = now_s + lasts_s, lasts_s
        return new

    def active(self, now_s: float) -> set[str]:
        """The addresses that are blocked now. Forgets an address MAX_BLOCK_S after its block has ended."""
        for key, (until_s, _) in list(self._until.items()):
            if now_s >= until_s + MAX_BLOCK_S:
                del self._until[key]
        return {key for key, (until_s, _) in self._until.items() if now_s < until_s}


async def enforce_connection_limits(limits: CallLimits, port: int, proxies: TrustedProxies) -> None:
    """Checks the connections at the port each CHECK_S, and at once when an address floods, until it is cancelled."""
    clock = asyncio.get_running_loop().time
    flooded = asyncio.Event()
    limits.on_flooded = flooded.set
    block_list, blocked = BlockedAddresses(), set[str]()
    seen: set[int] = set()
    number, log_at = 0, clock()
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHECK_S):
                await flooded.wait()
        flooded.clear()
        floods = [
            key for key, weight in limits.bad_calls.items() if weight >= FLOOD_WEIGHT and not proxies.overlap(key)
        ]
        newly_blocked = block_list.add(floods, clock())
        limits.bad_calls.clear()
        blocked_before, blocked = blocked, block_list.active(clock())
        limits.blocked = blocked
        if blocked != blocked_before:
            try:
                await asyncio.to_thread(block_addresses, port, blocked)
            except OSError as error:  # a kernel without socket filters, or a sandbox that forbids them
                _log.warning("grpc_filter_refused", reason=str(error))
        if newly_blocked:
            _log.warning("grpc_flood", addresses=newly_blocked[:10])
        before = set(limits.admitted_peers)  # peers that are admitted while the kernel is read may not be listed yet
        listed = await asyncio.to_thread(accepted_connections, port)
        limits.admitted_peers -= before - {each.peer for each in listed}
        doomed = connections_over_limit(listed, limits, proxies, seen)
        doomed += [
            each
            for each in listed
            if each.peer not in limits.admitted_peers and bucket(address_of_peer(each.peer)) in blocked
        ]
        if doomed:
            number += await asyncio.to_thread(shut_down, {each.inode for each in doomed})
            if number and clock() >= log_at:
                addresses = sorted({address_of_peer(each.peer) for each in doomed})
                _log.warning("grpc_connections_cut", number=number, addresses=addresses[:10])
                number, log_at = 0, clock() + LOG_S
        seen = {each.inode for each in listed}


def connections_over_limit(
    listed: Collection[Connection], limits: CallLimits, proxies: TrustedProxies, seen: Collection[int]
) -> list[Connection]:
    """The connections to shut down so that no address has more unauthenticated ones than allowed. Only connections that
    were `seen` before (by inode): a new one may be about to carry a client's call."""
    most = limits.unauthenticated_connections
    by_address: defaultdict[str, list[Connection]] = defaultdict(list)
    for each in listed if len(listed) > most else ():
        if each.peer not in limits.admitted_peers and not proxies.trusts(address := address_of_peer(each.peer)):
            by_address[bucket(address)].append(each)
    excess: list[Connection] = []
    for connections in by_address.values():
        excess += [each for each in connections if each.inode in seen][: max(0, len(connections) - most)]
    return excess
