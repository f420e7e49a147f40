"""Standing watches: observations come in, become stored statuses, and subscriptions and streams are told.

This is the whole of it, made of `TerminalRegistry` (what was observed), `StatusWriter` (the writer), `Lifecycle`
(subscriptions), `Membership` (of their groups) and streams. One task (`_run`) gathers what was observed and what is
due, and writes statuses, the progress of subscriptions and what they are owed in one transaction; then, and only then,
memory follows and streams are told. A status's revision grows by one, by compare-and-set: where another has written,
what the store has is taken for true and all is decided anew. Who writes a status owes its notifications; what others
wrote only goes to streams here. Invariants: memory's statuses are the store's. While the store is away, the newest
observation of each terminal waits, and nothing is lost. All that grows, grows with subscriptions, streams and
terminals, which are bounded.

Deliberately absent: the SIP side (`Watcher`), sending (`deliverer.py`), what clients may ask for
(`core/subscriptions.py`).
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import structlog

from app.auth.policies import Policies
from app.domain.addresses import TerminalAddress
from app.domain.errors import GatewayOverloaded, StoreUnavailable, TooManyStreams, TooManyWatchedTerminals
from app.domain.policy import Policy, check_criteria, interval_allowed
from app.domain.records import Client
from app.domain.statuses import Status
from app.live.events import StreamEnd, WatchEvent, ending
from app.live.group_directory import GroupDirectory, GroupKey
from app.live.index import SubscriptionIndex
from app.live.lifecycle import Lifecycle
from app.live.mailbox import Stream
from app.live.membership import Membership
from app.live.registry import TerminalRegistry
from app.live.resume_tokens import returned
from app.live.terminal import Terminal
from app.live.writer import MAX_BATCH, StatusWriter
from app.ports import Store, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Times and bounds of watching; seconds."""

    linger_s: float = 30.0
    """How long a terminal is watched after the last who wanted it."""
    bookmark_s: float = 10.0
    """Longest time between two resume tokens of a stream, changes or not."""
    gather_s: float = 0.002
    """Least time between two transactions."""
    reread_s: float | None = None
    """How often everything is read again that other nodes may have written; None where there are none."""
    max_watches: int = 250_000
    """Terminals watched; one more is refused as overload."""
    max_streams: int = 10_000
    """Streams of all clients; one more is refused."""
    close_s: float = 5.0
    """How long the last write may take at the end."""


_JUMP_S = 1.0
"""By so much the wall clock leaves the monotonic one before ends of subscriptions are reckoned again."""
_TICKS = 4
"""Ticks in `bookmark_s`."""
BOOKMARKS_AT_ONCE = 40
_BOOKMARKS_EVERY_S = 0.02
"""So many streams make their tokens together, and the next ones later: a token of a thousand terminals takes 1 ms, in
which nobody else is served."""
DEFAULT_TUNING = Tuning()
_RETRY_S = (0.05, 2.0)
"""First and longest wait for a store that is away."""
_REREAD = 500

_log = structlog.get_logger(__name__)


class Engine:
    """What is known of watched terminals, and who is told. One per process, in one event loop.

    `start` it before use; at the end `end_streams`, and `aclose` when nobody calls any more.
    """

    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        groups: GroupDirectory,
        policies: Policies,
        *,
        busy_activities: Set[str],
        clock: Callable[[], datetime],
        clock_s: Callable[[], float],
        tuning: Tuning = DEFAULT_TUNING,
        owed: Callable[[], None] = lambda: None,
    ) -> None:
        """`clock` gives the time in UTC, `clock_s` monotonic seconds. `owed` is called when there is something to
        deliver; it may not block or raise."""
        self.rounds = 0
        """How often it has looked what is to be done."""
        self._store = store
        self._watcher = watcher
        self._groups = groups
        self._policies = policies
        self._tuning = tuning
        self._clock, self._clock_s = clock, clock_s
        self._wall_s = clock().timestamp() - clock_s()
        self._streams: dict[Stream, None] = {}
        self._streams_of: Counter[str] = Counter()
        self._changed_groups: set[GroupKey] = set()
        self._hinted: set[TerminalAddress] = set()
        self._at: set[GroupKey] | set[TerminalAddress] | None = None  # what `_work` is about; None: what is written
        self._wake = asyncio.Event()
        self._stopping = self._closing = False
        self._running: asyncio.Task[None] | None = None
        self._ticked_s = self._reread_s = clock_s()
        self._standings = SubscriptionIndex()
        self._watches = TerminalRegistry(
            watcher,
            busy_activities=busy_activities,
            clock=clock,
            clock_s=clock_s,
            linger_s=tuning.linger_s,
            most=tuning.max_watches,
            wake=self._wake.set,
        )
        self._commits = StatusWriter(
            store,
            self._watches,
            self._standings,
            clock=clock,
            clock_s=clock_s,
            owed=owed,
        )
        self.enrolment = Lifecycle(
            store,
            self._watches,
            self._standings,
            self._commits,
            groups,
            policies,
            clock=clock,
            clock_s=clock_s,
            wake=self._wake.set,
            end_streams_of=self.end_streams_of,
        )
        self._following = Membership(
            store, self._watches, self._standings, self._commits, groups, policies, wake=self._wake.set
        )
        self.live = self._watches.live
        self.last = self._watches.last
        self.doubt = self._watches.doubt
        self.fetched = self._watches.fetched
        self.unreadable_at = self._watches.unreadable_at
        self.wanted_by = self._watches.wanted_by

    async def start(self) -> None:
        """TerminalRegistry again what active subscriptions want, and begins to write. Raises StoreUnavailable."""
        self._watcher.set_observer(self._watches)
        self._groups.on_change(self._group_changed)
        await self.enrolment.restore()
        self._running = asyncio.create_task(self._run(), name="watching")
        _log.info("watching", **self.figures())

    async def aclose(self) -> None:
        """Ends streams, writes what waits (within `close_s`), and ends."""
        self.end_streams()
        await self.enrolment.settled()
        self._closing = True
        if self._running is not None:
            self._wake.set()
            await asyncio.wait({self._running}, timeout=self._tuning.close_s)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    @property
    def unreadable(self) -> Mapping[str, int]:
        """How many documents could not be read, by reason."""
        return self._watches.unreadable_counts

    @property
    def contradictions(self) -> int:
        """How often a newer fetch contradicted a live watch, which was refreshed for it."""
        return self._watches.contradictions

    def figures(self) -> dict[str, int]:
        """How much there is of what grows, for metrics."""
        return {
            "terminals": len(self._watches.by_address),
            "subscriptions": len(self._standings.by_id),
            "streams": len(self._streams),
            "waiting": self._commits.waiting,
        }

    def hint(self, addresses: Iterable[TerminalAddress]) -> None:
        """Another node may have written the statuses of these: they are read again."""
        self._hinted.update([address for address in addresses if address in self._watches.by_address])
        self._wake.set()

    def poke(self) -> None:
        """Looks at the clock now."""
        self._wake.set()
        for stream in self._streams:
            stream.wake()

    # Streams.

    async def stream(
        self,
        client: Client,
        addresses: Sequence[str],
        *,
        criteria: frozenset[Status] = frozenset(),
        min_interval_ms: int = 0,
        resume_token: str = "",
    ) -> AsyncGenerator[WatchEvent, None]:
        """How the terminals (and groups' members) stand now, and each change from then on.

        Close it (`contextlib.aclosing`) where it is left early. Snapshots, SnapshotComplete, then Changes,
        LivenessChanges, Removed, and a Bookmark in each `bookmark_s`; End is last where the gateway ends it. `criteria`
        (empty: any) are the statuses whose Changes are told; `min_interval_ms` is the least time between two Changes
        told of one terminal (0: as the policy allows). A `resume_token` that cannot be used brings a whole snapshot,
        marked as a reset.

        Before the first event it raises BusyNotSupported, GatewayOverloaded, GroupNotAllowed, IntervalTooShort,
        InvalidAddress, InvalidRequest (the interval), NestedGroupNotAllowed, NoValidAddresses, RateLimited,
        StoreUnavailable, TooManyAddresses, TooManyStreams, TooManyWatchedTerminals; thereafter nothing.
        """
        policy = self._policies.admit(client)
        check_criteria(policy, criteria)
        interval_s = interval_allowed(policy, min_interval_ms) / 1000
        most = policy.max_notification_addresses
        expansion = await self._groups.expand(client, addresses, policy, most=most)
        if self._stopping:
            yield ending(StreamEnd.GATEWAY_STOPPING, returned(resume_token))
            return
        if len(self._streams) >= self._tuning.max_streams or self._streams_of[client.id] >= policy.max_streams:
            raise TooManyStreams("As many streams are open as allowed.")
        stream = Stream(
            client.id,
            addresses=expansion.addresses,
            groups=expansion.groups,
            criteria=criteria,
            interval_s=interval_s,
            busy=policy.busy_available,
            most=most,
        )
        terminals = self._watches.want(expansion.terminals, client.id, policy.max_watched_terminals)
        for terminal in terminals:
            self._watches.join(stream, terminal)
            stream.told[terminal] = None
        stream.ticks = len(self._streams) % _TICKS  # so that not all make their tokens at once
        self._streams[stream] = None
        self._streams_of[client.id] += 1
        try:
            if self._tuning.reread_s is not None:  # the reader may come from a node that knows more
                for start in range(0, len(terminals), _REREAD):
                    await self._reread([terminal.address for terminal in terminals[start : start + _REREAD]])
            await self._commits.load(terminals)
            del addresses, expansion, terminals  # an idle stream keeps what it needs
            async with aclosing(stream.read(resume_token, self._clock_s)) as events:
                async for event in events:
                    yield event
        finally:
            del self._streams[stream]
            self._streams_of[client.id] -= 1
            if not self._streams_of[client.id]:
                del self._streams_of[client.id]
            for terminal in stream.told:
                self._watches.leave(stream, terminal)

    def end_streams_of(self, client_id: str) -> None:
        """Ends the client's streams (CREDENTIALS_EXPIRED)."""
        for stream in self._streams:
            if stream.client_id == client_id:
                stream.end(StreamEnd.CREDENTIALS_EXPIRED)

    def end_streams(self) -> None:
        """Ends every stream, and those to come at once (GATEWAY_STOPPING)."""
        self._stopping = True
        for stream in self._streams:
            stream.end(StreamEnd.GATEWAY_STOPPING)

    def _group_changed(self, key: GroupKey) -> None:
        self._changed_groups.add(key)
        self._wake.set()

    async def _run(self) -> None:
        retry_s, defects, began_s = 0.0, 0, -math.inf
        loop = asyncio.get_running_loop()
        while True:
            if retry_s:
                await asyncio.sleep(retry_s)
            elif not (self._commits.waiting or self._changed_groups or self._hinted):
                if self._closing:
                    return
                await self._rest()
            if not retry_s and (wait_s := began_s + self._tuning.gather_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            began_s = loop.time()
            try:
                await self._work(1 if defects else MAX_BATCH)
            except StoreUnavailable as error:
                if not retry_s:
                    _log.warning("store_unavailable", message=str(error), **self.figures())
                self._commits.keep_newest()
                retry_s = min(max(2 * retry_s, _RETRY_S[0]), _RETRY_S[1])
            except Exception:
                _log.exception("defect_in_watching")
                if defects:  # it is not the size of the batch
                    self._give_up()
                defects, retry_s = defects + 1, _RETRY_S[0]
            else:
                if retry_s:
                    _log.info("store_available")
                retry_s, defects = 0.0, max(0, defects - 1)
            self.rounds += 1

    async def _rest(self) -> None:
        """Waits until something is to be done."""
        now_s = self._clock_s()
        due_s = min(
            self._standings.next_due_s, self._watches.next_due_s, self._ticked_s + self._tuning.bookmark_s / _TICKS
        )
        if self._tuning.reread_s is not None:
            due_s = min(due_s, self._reread_s + self._tuning.reread_s)
        timer = asyncio.get_running_loop().call_later(max(0.0, due_s - now_s), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()

    async def _work(self, most: int) -> None:
        """Does all that is to be done now, of each kind a part. Raises StoreUnavailable."""
        now_s = self._clock_s()
        self._at = None
        self._look_at_wall_clock(now_s)
        self._tick(now_s)
        self._watches.let_go(now_s)
        if self._commits.waiting or self._standings.next_due_s <= now_s:
            await self._commits.round(most)
        if self._changed_groups:
            # What changes meanwhile, perhaps the same group again, is for the next time.
            changed, self._changed_groups = self._changed_groups, set()
            try:
                await self._regroup(changed)
            except BaseException:
                self._changed_groups |= changed
                self._at = self._changed_groups
                raise
        if self._hinted:
            self._at = self._hinted
            hinted = list(islice(self._hinted, _REREAD))
            await self._reread(hinted)
            self._hinted.difference_update(hinted)
        if self._tuning.reread_s is not None and now_s - self._reread_s >= self._tuning.reread_s:
            self._reread_s = now_s
            await self._groups.reload()
            self._hinted.update(self._watches.by_address)

    def _give_up(self) -> None:
        """Drops what cannot be done by any means, and nothing else."""
        if self._at is None:
            self._commits.give_up()
        else:
            self._at.clear()

    def _look_at_wall_clock(self, now_s: float) -> None:
        now = self._clock()
        wall_s = now.timestamp() - now_s
        if abs(wall_s - self._wall_s) >= _JUMP_S:
            _log.warning("wall_clock_jumped", seconds=round(wall_s - self._wall_s, 1))
            self._wall_s = wall_s
            self._standings.clock_jumped(now, now_s)

    def _tick(self, now_s: float) -> None:
        tick_s = self._tuning.bookmark_s / _TICKS
        if now_s - self._ticked_s < tick_s:
            return
        self._ticked_s = now_s
        due: list[Stream] = []
        for stream in self._streams:
            stream.ticks += 1
            if stream.ticks >= _TICKS:
                stream.ticks = 0
                due.append(stream)
        self._bookmark(due)

    def _bookmark(self, due: Sequence[Stream]) -> None:
        for stream in due[:BOOKMARKS_AT_ONCE]:
            stream.bookmark()
        if rest := due[BOOKMARKS_AT_ONCE:]:
            asyncio.get_running_loop().call_later(_BOOKMARKS_EVERY_S, self._bookmark, rest)

    async def _reread(self, addresses: Sequence[TerminalAddress]) -> None:
        async with self._commits.lock:
            self._commits.adopt((await self._store.statuses(addresses)).values())

    async def _regroup(self, changed: Set[GroupKey]) -> None:
        clients = {client.id: client for client in await self._store.clients()}
        await self._following.regroup(changed, clients)
        met = {stream for group in changed for stream in self._met(group)}
        for stream in list(self._streams):
            if not (stream in met or any((stream.client_id, group) in changed for group in stream.groups)):
                continue
            try:
                await self._regroup_stream(stream, self._policies.of_id(stream.client_id, clients))
            except StoreUnavailable:
                raise
            except Exception:  # the others follow
                _log.exception("defect_in_watching", client=stream.client_id)

    def _met(self, group: GroupKey) -> list[Stream]:
        """Streams that have it as a terminal, by another group."""
        client_id, address = group
        terminal = self._watches.by_address.get(address)
        streams = terminal.streams if terminal is not None else ()
        return [one for one in streams if one.groups and one.client_id == client_id and address not in one.addresses]

    async def _regroup_stream(self, stream: Stream, policy: Policy) -> None:
        expansion = await self._groups.members_now(stream.client_id, stream.addresses, stream.most, stream.groups)
        if expansion.left_out:
            _log.warning("group_cut", client=stream.client_id, watched=stream.most, left_out=expansion.left_out)
        its = {terminal.address: terminal for terminal in stream.told}  # failed ones, too: not watched anew
        try:
            others = [one for one in expansion.terminals if one not in its]
            wanted = self._watches.want(others, stream.client_id, policy.max_watched_terminals)
            its.update((one.address, one) for one in wanted)
            terminals = [its[address] for address in expansion.terminals]
        except (GatewayOverloaded, TooManyWatchedTerminals) as error:
            _log.warning("group_not_followed", client=stream.client_id, message=str(error))
            return
        try:
            await self._commits.load(terminals)
            if stream in self._streams:  # it may have been closed meanwhile
                self._follow(stream, terminals)
                stream.groups = expansion.groups
        finally:
            for terminal in terminals:
                if not terminal.wanted:
                    self._watches.unwanted(terminal)

    def _follow(self, stream: Stream, terminals: Sequence[Terminal]) -> None:
        for terminal in set(stream.told).difference(terminals):
            stream.leave(terminal)
            self._watches.leave(stream, terminal)
        for terminal in terminals:
            if terminal not in stream.told:
                self._watches.join(stream, terminal)
                stream.join(terminal)
