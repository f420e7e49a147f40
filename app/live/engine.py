"""The loop that drives everything in `live/`: one task, which writes what was observed and what is due.

In each round it sends bookmarks, releases terminals, writes a batch (`writer.py`) and follows changed groups
(`group_follower.py`).
Invariants: while the store is unavailable, the newest observation of each terminal waits. An item that cannot be
written for another reason is tried again, then dropped, so that it does not delay the other items.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from app.domain.errors import StoreUnavailable
from app.live.group_directory import GroupKey
from app.live.group_follower import GroupFollower
from app.live.index import SubscriptionIndex
from app.live.lifecycle import Lifecycle
from app.live.open_streams import OpenStreams
from app.live.other_nodes import OtherNodes
from app.live.registry import TerminalRegistry
from app.live.restore import SubscriptionLoader
from app.live.writer import MAX_BATCH, StatusWriter
from app.ports.sip import Watcher

_JUMP_S = 1.0
"""If the wall clock and the monotonic clock drift apart by this much, ends of subscriptions are computed again."""
_RETRY_S = (0.05, 2.0)
"""First and longest wait before an unavailable store is tried again."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Times in seconds, and limits of the whole gateway."""

    linger_s: float = 30.0
    """How long a terminal is watched after the last subscription or stream that wanted it."""
    bookmark_s: float = 10.0
    """Longest time between two resume tokens of a stream, also without changes."""
    gather_s: float = 0.002
    """Least time between two transactions."""
    max_terminals: int = 250_000
    """Most watched terminals; more are refused as overload."""
    max_streams: int = 10_000
    """Most streams of all clients together; more are refused."""
    close_s: float = 5.0
    """How long the last write may take at the end."""


DEFAULT_TUNING = Tuning()


class Engine:
    """One per process, in one event loop. `start` it before use, and `aclose` it after the last call."""

    def __init__(
        self,
        watcher: Watcher,
        registry: TerminalRegistry,
        index: SubscriptionIndex,
        writer: StatusWriter,
        lifecycle: Lifecycle,
        loader: SubscriptionLoader,
        follower: GroupFollower,
        streams: OpenStreams,
        other_nodes: OtherNodes | None,
        *,
        clock: Callable[[], datetime],
        clock_s: Callable[[], float],
        tuning: Tuning,
    ) -> None:
        """`clock` gives the time in UTC, `clock_s` monotonic seconds."""
        self.rounds = 0
        """How many rounds the loop has made, for tests that move the clock."""
        self._watcher = watcher
        self._registry = registry
        self._index = index
        self._writer = writer
        self._lifecycle = lifecycle
        self._loader = loader
        self._follower = follower
        self._streams = streams
        self._other_nodes = other_nodes
        self._clock, self._clock_s = clock, clock_s
        self._tuning = tuning
        self._wall_s = clock().timestamp() - clock_s()
        self._changed_groups: set[GroupKey] = set()
        self._drop: Callable[[], None] = writer.drop_first
        """Drops the items of the round's current step; called if rounds keep failing."""
        self._wake = asyncio.Event()
        self._closing = False
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Takes the active subscriptions of the store into memory, and starts the loop. Raises StoreUnavailable."""
        self._watcher.set_observer(self._registry)
        self._changed_groups.clear()  # `GroupDirectory.reload` added these; `restore` reads the present members anyway
        await self._loader.restore()
        self._running = asyncio.create_task(self._run(), name="engine")
        _log.info("watching", **self.figures())

    async def aclose(self) -> None:
        """Ends streams, writes the waiting items (within `close_s`), and stops the loop."""
        self._streams.end_all()
        await self._lifecycle.finish_running()
        self._closing = True
        if self._running is not None:
            self.wake()
            await asyncio.wait({self._running}, timeout=self._tuning.close_s)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    def figures(self) -> dict[str, int]:
        """How many terminals, subscriptions, streams and waiting items there are, for metrics."""
        return {
            "terminals": len(self._registry.by_address),
            "subscriptions": len(self._index.by_id),
            "streams": len(self._streams),
            "waiting": self._writer.waiting,
        }

    def wake(self) -> None:
        """Starts a round soon."""
        self._wake.set()

    def on_group_changed(self, key: GroupKey) -> None:
        """A group was made, changed or deleted: its subscriptions and streams follow in the next round."""
        self._changed_groups.add(key)
        self.wake()

    @property
    def _work_waits(self) -> bool:
        hints = self._other_nodes is not None and self._other_nodes.waiting
        return bool(self._writer.waiting or self._changed_groups or hints)

    async def _run(self) -> None:
        retry_s, defects, began_s = 0.0, 0, -math.inf
        loop = asyncio.get_running_loop()
        while True:
            if retry_s:
                await asyncio.sleep(retry_s)
            elif not self._work_waits:
                if self._closing:
                    return
                await self._until_due_or_woken()
            if not retry_s and (wait_s := began_s + self._tuning.gather_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            began_s = loop.time()
            try:
                await self._round(1 if defects else MAX_BATCH)
            except StoreUnavailable as error:
                if not retry_s:
                    _log.warning("store_unavailable", message=str(error), **self.figures())
                self._writer.keep_newest()
                retry_s = min(max(2 * retry_s, _RETRY_S[0]), _RETRY_S[1])
            except Exception:
                _log.exception("defect_in_watching")
                if defects:  # a batch of one item failed, too
                    self._drop()
                defects, retry_s = defects + 1, _RETRY_S[0]
            else:
                if retry_s:
                    _log.info("store_available")
                retry_s, defects = 0.0, max(0, defects - 1)
            self.rounds += 1

    async def _until_due_or_woken(self) -> None:
        due_s = min(self._index.next_due_s, self._registry.next_due_s, self._streams.next_due_s)
        if self._other_nodes is not None:
            due_s = min(due_s, self._other_nodes.next_due_s)
        wait_s = max(0.0, due_s - self._clock_s())
        timer = asyncio.get_running_loop().call_later(wait_s, self.wake)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()

    async def _round(self, most: int) -> None:
        """Does some of each kind of work: at most `most` items are written. Raises StoreUnavailable."""
        now_s = self._clock_s()
        self._drop = self._writer.drop_first
        self._compare_clocks(now_s)
        self._streams.tick(now_s)
        self._registry.release_idle(now_s)
        if self._writer.waiting or self._index.next_due_s <= now_s:
            await self._writer.write_batch(most)
        if self._changed_groups:
            await self._follow_groups()
        if self._other_nodes is not None:
            self._drop = self._other_nodes.drop
            await self._other_nodes.follow(now_s)

    async def _follow_groups(self) -> None:
        # A group that changes meanwhile, perhaps the same one again, is followed in the next round.
        changed, self._changed_groups = self._changed_groups, set()
        try:
            await self._follower.follow(changed)
        except BaseException:
            self._changed_groups |= changed
            self._drop = self._changed_groups.clear
            raise

    def _compare_clocks(self, now_s: float) -> None:
        now = self._clock()
        wall_s = now.timestamp() - now_s
        if abs(wall_s - self._wall_s) >= _JUMP_S:
            _log.warning("wall_clock_jumped", seconds=round(wall_s - self._wall_s, 1))
            self._wall_s = wall_s
            self._index.on_clock_jumped(now, now_s)
