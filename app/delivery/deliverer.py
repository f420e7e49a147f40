"""Delivers owed notifications: claims due ones by lease, sends them, and records each attempt with what follows of it.

The rows are the truth. A hint only wakes the deliverer, which looks every POLL_S anyway. A notification is claimed,
queued at its endpoint's host, sent, and recorded; attempts that end while a transaction is written share the next one.
Invariants: at least once, under one id; in order within a subscription, one at a time (the store's `claim`); a host
has only its share of the places, less until it has answered once and one place while it is silent, and a queue that
is bounded in number and time, so that a hanging one delays nobody else; what does not fit is put off. A lease outlives
queue, attempt and record, so two nodes send the same only when one was killed or lost its database.
A process that ends gives back what it holds; one that is killed leaves leases that run out after `lease_s`.

Deliberately absent: how it is sent (`Sender`), what is owed (the use cases that write it), and SQL.
"""

import asyncio
import contextlib
import heapq
import itertools
import random
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import structlog

from app.delivery.attempts import UNTRIED, RetryPolicy, judge, usage_of
from app.delivery.hosts import MAX_PUT_OFF_S, MAX_WAIT_S, Host, Job, Places
from app.domain import StoreUnavailable
from app.ports import Attempted, Sender, Sent, Store, SubscriptionUpdate
from app.records import (
    DeliveryAttempt,
    EndReason,
    OwedNotification,
    Sink,
    SinkKind,
    Subscription,
)

POLL_S = 1.0
"""Longest time a due notification waits where no hint came."""
RECORD_S = 12.0
"""What the lease has left for recording an attempt."""
MAX_BATCH = 256
"""Most notifications in one claim, and attempts in one transaction."""
MIN_BATCH = 16
MAX_GIVE_BACK = 64
"""Most leases given back in one transaction, between two of attempts."""
MAX_HOSTS = 10_000
"""Hosts that are remembered; above it those without work are forgotten, the oldest first."""
MAX_DUE = 10_000
"""Times that are remembered at which something is due; above it, polling finds what is."""
MIN_WAIT_S = 0.02
"""Least time between two looks that no hint asked for."""

_ENDPOINT_GIVEN_UP = {EndReason.SINK_GONE, EndReason.TOKEN_EXPIRED}
_log = structlog.get_logger(__name__)


class Deliverer:
    """The running outbox worker; one per process. `start` it, `hint` it, and `aclose` it before the senders and store.

    `owner` names this process among those that share the store, and must be new at each start. `senders` by kind;
    `send_limit_s` is above their own time limits. `ended` is told of a subscription that ended because of its
    endpoint, after that was stored. `attempted` counts: an outcome and the attempt's seconds.
    """

    def __init__(
        self,
        store: Store,
        senders: Mapping[SinkKind, Sender],
        *,
        owner: str,
        clock: Callable[[], datetime],
        policy: RetryPolicy | None = None,
        places: Places | None = None,
        send_limit_s: float = 15.0,
        jitter: Callable[[], float] = random.random,
        new_id: Callable[[], str] | None = None,
        ended: Callable[[Subscription, EndReason], None] = lambda subscription, reason: None,
        attempted: Callable[[str, float], None] = lambda outcome, seconds: None,
    ) -> None:
        self._store = store
        self._senders = senders
        self._owner = owner
        self._clock = clock
        self._policy = policy or RetryPolicy()
        self._places = places or Places()
        self._send_limit_s = send_limit_s
        self._jitter = jitter
        run, number = secrets.token_hex(8), itertools.count(1)  # cheaper than a random id for each
        self._new_id = new_id or (lambda: f"{run}{next(number):012x}")
        self._ended = ended
        self._attempted = attempted
        self.lease_s = MAX_WAIT_S + send_limit_s + RECORD_S
        self._hosts: dict[tuple[SinkKind, str], Host] = {}
        self._in_flight: dict[asyncio.Task[None], Job] = {}
        self._held: dict[str, int] = {}  # notification id: attempts made before
        self._due: list[datetime] = []  # heap: when something was put off to
        self._records: deque[tuple[Attempted, Job]] = deque()
        self._give_back: dict[str, datetime] = {}
        self._changed: dict[str, Sink] | None = None  # by subscription, while subscriptions are read for a claim
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._closing = False
        self._last = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def held(self) -> int:
        """How many notifications are claimed and not yet recorded."""
        return len(self._held) + len(self._give_back)

    def start(self) -> None:
        """Begins to deliver. In the event loop."""
        self._tasks = [
            asyncio.create_task(self._claim_for_ever(), name="deliveries: claim"),
            asyncio.create_task(self._record_for_ever(), name="deliveries: record"),
        ]

    def hint(self) -> None:
        """Something may be due: looks now rather than at the next poll."""
        self._wake.set()

    def sink_changed(self, subscription: Subscription) -> None:
        """The subscription has other parameters for its endpoint in the store: attempts that begin from now on use
        them, also of what is claimed already. (Another process's queue has the old ones for MAX_WAIT_S at most.)"""
        if self._changed is not None:
            self._changed[subscription.id] = subscription.sink
        for host in self._hosts.values():
            for job in host.queue:
                if job.subscription.id == subscription.id:
                    job.subscription = replace(job.subscription, sink=subscription.sink)

    async def aclose(self, limit_s: float = 5.0) -> None:
        """Claims no more, gives back what waits, and lets what is in flight end within `limit_s`; the rest is given
        back too, and will be sent again."""
        if self._closing or not self._tasks:
            return
        self._closing = True
        claimer, recorder = self._tasks
        self._wake.set()
        await asyncio.wait([claimer], timeout=limit_s)  # not in mid-claim: the leases would be known to nobody
        claimer.cancel()
        await asyncio.gather(claimer, return_exceptions=True)
        now = self._clock()
        for host in self._hosts.values():
            for job in host.queue:
                self._put_off(job.notification, now)
            host.queue.clear()
        if self._in_flight:
            _log.info("deliveries_draining", in_flight=len(self._in_flight), limit_s=limit_s)
            _, late = await asyncio.wait(list(self._in_flight), timeout=limit_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._last = True  # nothing follows: the recorder ends when nothing is left
        self._written.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await asyncio.shield(recorder)
        recorder.cancel()
        await asyncio.gather(recorder, return_exceptions=True)

    async def _claim_for_ever(self) -> None:
        most = MAX_BATCH
        while not self._closing:
            self._wake.clear()
            self._start_all()
            asked = min(most, self._places.held - self.held)
            claimed = crowded = 0
            try:
                if asked > 0:
                    claimed, crowded = await self._claim(asked)
            except StoreUnavailable as error:
                _log.warning("deliveries_not_claimed", message=str(error))
            except Exception:
                _log.exception("deliveries_not_claimed")
            # Where hosts that work well have no room, no more is claimed than they can take.
            most = max(MIN_BATCH, claimed - crowded) if crowded else min(MAX_BATCH, most * 2)
            if claimed < asked or asked <= 0 or crowded:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._until_due()):
                        await self._wake.wait()

    def _until_due(self) -> float:
        """Seconds until this process knows something to be due, and POLL_S at most."""
        now = self._clock()
        if self._due and self._due[0] <= now:  # perhaps since the last look
            while self._due and self._due[0] <= now:
                heapq.heappop(self._due)
            return MIN_WAIT_S
        return min(POLL_S, max(MIN_WAIT_S, (self._due[0] - now).total_seconds())) if self._due else POLL_S

    def _remember(self, due: datetime) -> None:
        if len(self._due) < MAX_DUE:
            heapq.heappush(self._due, due)

    async def _claim(self, most: int) -> tuple[int, int]:
        """How many were claimed, and how many of them had to be put off for less than a second."""
        now = self._clock()
        claimed_s = asyncio.get_running_loop().time()
        claimed = await self._store.claim(now, now + timedelta(seconds=self.lease_s), most, self._owner)
        # One that is held with as many attempts is still being sent, though its lease ran out; one that has more has
        # been recorded already, which is about to be noticed here.
        fresh = [owed for owed in claimed if self._held.get(owed.id, -1) < owed.attempts]
        if not fresh:
            return len(claimed), 0
        for owed in fresh:
            self._held[owed.id] = owed.attempts
            self._give_back.pop(owed.id, None)
        changed = self._changed = {}
        try:
            subscriptions = await self._store.subscriptions_by_id(list({owed.subscription_id for owed in fresh}))
        except Exception:
            for owed in fresh:
                self._put_off(owed, now)
            raise
        finally:
            self._changed = None
        crowded = 0
        for owed in fresh:
            subscription = subscriptions.get(owed.subscription_id)
            if subscription is None:
                _log.error("notification_without_subscription", notification_id=owed.id)
                del self._held[owed.id]
            else:
                if (sink := changed.get(subscription.id)) is not None:
                    subscription = replace(subscription, sink=sink)
                crowded += not self._take(Job(owed, subscription, claimed_s))
        self._start_all()
        return len(claimed), crowded

    def _take(self, job: Job) -> bool:
        """Queues it at its host, settles it where there is nothing to send, or puts it off where the host is full.

        False where the host works well, and is only busy.
        """
        if self._closing:
            self._put_off(job.notification, self._clock())
            return True
        sink = job.subscription.sink
        reason = job.subscription.end_reason
        if (
            reason in _ENDPOINT_GIVEN_UP and job.notification.attempts == 0
        ):  # one that was sent again by command is tried
            self._settle(job, Sent(delivered=False, outcome="gone", ends=reason), 0.0)
        elif sink.kind not in self._senders:
            listed = sink.kind is SinkKind.STREAM  # there is nowhere to send it
            self._settle(job, Sent(delivered=listed, outcome="listed" if listed else "no-sender"), 0.0)
        else:
            host = self._host(job)
            if len(host.queue) < self._places.queued_per_host:
                host.queue.append(job)
            else:
                return self._put_off_at(host, job) >= 1
        return True

    def _put_off_at(self, host: Host, job: Job) -> float:
        """Puts it off until the host may have room; for how many seconds."""
        wait_s = host.put_off_s(self._places, asyncio.get_running_loop().time()) * (0.5 + self._jitter())
        self._put_off(job.notification, self._clock() + timedelta(seconds=wait_s))
        return wait_s

    def _host(self, job: Job) -> Host:
        sink = job.subscription.sink
        try:
            key = sink.kind, urlsplit(sink.url).netloc.lower()
        except ValueError:  # the sender says what is wrong with it
            key = sink.kind, sink.url
        host = self._hosts.get(key)
        if host is None:
            if len(self._hosts) >= MAX_HOSTS:
                idle = (key for key, host in self._hosts.items() if not host.queue and not host.in_flight)
                del self._hosts[next(idle)]
            host = self._hosts[key] = Host(known_since_s=job.claimed_s)
        return host

    def _start_all(self) -> None:
        for key in [key for key, host in self._hosts.items() if host.queue]:
            host = self._hosts.pop(key)  # to the end: the next time others come first
            self._hosts[key] = host
            self._start(host)

    def _start(self, host: Host) -> None:
        loop = asyncio.get_running_loop()
        for job in host.overdue(loop.time()):
            self._put_off_at(host, job)
        while host.queue and host.in_flight < host.share(self._places) and len(self._in_flight) < self._places.overall:
            job = host.queue.popleft()
            host.in_flight += 1
            task = loop.create_task(self._send(job, host))
            self._in_flight[task] = job
            task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        job = self._in_flight.pop(task)
        if task.cancelled():  # told to stop: it may have arrived, and is sent again under the same id
            self._put_off(job.notification, self._clock())
        elif (error := task.exception()) is not None:
            _log.error("delivery_failed", notification_id=job.notification.id, exc_info=error)
            self._put_off(job.notification, self._clock() + timedelta(seconds=MAX_PUT_OFF_S))
        elif not self._closing:
            host = self._host(job)
            if len(self._in_flight) >= self._places.overall - 1:
                self._start_all()
            elif host.queue:
                self._start(host)

    async def _send(self, job: Job, host: Host) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(self._send_limit_s):
                sent = await self._senders[job.subscription.sink.kind].send(job.subscription, job.notification)
        except TimeoutError:
            sent = Sent(delivered=False, outcome="timed-out")
        except Exception:
            _log.exception("sender_failed", notification_id=job.notification.id, sink=job.subscription.sink.kind.name)
            sent = Sent(delivered=False, outcome="defect")
        finally:
            seconds = loop.time() - began_s
        host.ended(seconds, answered=sent.code > 0 or sent.outcome in UNTRIED)
        self._settle(job, sent, seconds)

    def _settle(self, job: Job, sent: Sent, seconds: float) -> None:
        """Makes the records of an attempt, for the recorder."""
        notification, subscription, now = job.notification, job.subscription, self._clock()
        verdict = judge(notification, subscription, sent, now, jitter=self._jitter(), policy=self._policy)
        if verdict.suspended_at is not None and subscription.suspended_at is None:
            _log.warning("subscription_suspended", subscription_id=subscription.id, outcome=sent.outcome)
        update = None
        if verdict.ends is not None and subscription.active:
            update = SubscriptionUpdate(
                subscription_id=subscription.id, ended_at=now, end_reason=verdict.ends, end_detail=sent.outcome
            )
        attempt = DeliveryAttempt(
            notification_id=notification.id,
            number=notification.attempts + 1,
            at=now - timedelta(seconds=seconds),
            code=sent.code,
            duration_ms=round(seconds * 1000),
            outcome=sent.outcome,
            answer=sent.answer,
        )
        usage = usage_of(notification, subscription, verdict.state, sent.outcome, now, self._new_id())
        self._attempted(sent.outcome, seconds)
        attempted = Attempted(
            attempt=attempt,
            owner=self._owner,
            state=verdict.state,
            next_attempt_at=verdict.next_attempt_at,
            usage=usage,
            suspended_at=verdict.suspended_at,
            update=update,
        )
        self._records.append((attempted, job))
        self._written.set()

    def _put_off(self, notification: OwedNotification, due: datetime) -> None:
        """Gives the lease back without an attempt."""
        del self._held[notification.id]
        self._give_back[notification.id] = due
        self._written.set()

    async def _record_for_ever(self) -> None:
        """Writes attempts and gives leases back. What ends while a transaction is written goes into the next one."""
        while True:
            if not self._records and not self._give_back:
                if self._last:
                    return
                self._written.clear()
                await self._written.wait()
                continue
            batch = [self._records[i] for i in range(min(MAX_BATCH, len(self._records)))]
            given_back = dict(itertools.islice(self._give_back.items(), MAX_GIVE_BACK))
            try:
                if batch:
                    await self._write(batch)
                if given_back:
                    await self._store.give_back(self._owner, given_back)
            except StoreUnavailable as error:
                _log.warning("deliveries_not_recorded", attempts=len(batch), message=str(error))
                await asyncio.sleep(POLL_S / 4)
                continue
            except Exception:
                _log.exception("leases_not_given_back")  # they run out
            for notification_id, due in given_back.items():
                self._remember(due)
                if self._give_back.get(notification_id) is due:
                    del self._give_back[notification_id]
            if batch:
                self._wake.set()  # the next of these subscriptions may be claimed now

    async def _write(self, batch: Sequence[tuple[Attempted, Job]]) -> None:
        try:
            await self._store.record_attempts([attempted for attempted, _ in batch])
        except StoreUnavailable:
            raise
        except Exception:
            _log.exception("attempts_not_recorded_together", attempts=len(batch))
            await self._write_singly(batch)
        for attempted, job in batch:
            self._records.popleft()
            if self._held.get(job.notification.id) == job.notification.attempts:
                del self._held[job.notification.id]
            if attempted.next_attempt_at is not None:
                self._remember(attempted.next_attempt_at)
            if attempted.update is not None and attempted.update.end_reason is not None:
                self._ended(job.subscription, attempted.update.end_reason)

    async def _write_singly(self, batch: Sequence[tuple[Attempted, Job]]) -> None:
        """So that one that cannot be written does not hold up the others; its lease runs out, and it is sent again."""
        for attempted, job in batch:
            try:
                await self._store.record_attempts([attempted])
            except StoreUnavailable:
                raise
            except Exception:
                _log.exception("attempt_not_recorded", notification_id=job.notification.id)
