"""Delivers owed notifications: claims due ones by lease, sends them, and records each attempt with what follows of it.

The rows are the truth. A hint only wakes the deliverer, which looks every POLL_S anyway. A notification is claimed,
queued at its endpoint's host, sent, and recorded.
Invariants: at least once, under one id; in order within a subscription, one at a time (the store's `claim`); a host
has only its share of the places, less until it has answered once and one place while it is silent, and a queue that
is bounded in number and time, so that a hanging one delays nobody else; what does not fit is put off. A client has no
more attempts in flight than places are left, however many hosts it has. A lease outlives
queue, attempt and record, so two nodes send the same only when one was killed or lost its database.
A process that ends gives back what it holds; one that is killed leaves leases that run out after `lease_s`.

Deliberately absent: how it is sent (`Sender`), what follows from an answer (`retry.py`), how that is written
(`recorder.py`), what is owed (the use cases that write it), and SQL.
"""

import asyncio
import contextlib
import itertools
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from urllib.parse import urlsplit

import structlog

from app.delivery.hosts import MAX_PUT_OFF_S, MAX_WAIT_S, Host, Job, Places
from app.delivery.recorder import Recorder
from app.delivery.retry import UNTRIED, RetryPolicy, judge, usage_of
from app.domain.changes import Attempted, SubscriptionUpdate
from app.domain.errors import StoreUnavailable
from app.domain.records import DeliveryAttempt, DeliveryState, Subscription
from app.domain.sinks import SINK_UNREADABLE, EndReason, Sink, SinkKind
from app.ports import Page, Sender, Sent, Store

POLL_S = 1.0
"""Longest time a due notification waits where no hint came."""
RECORD_S = 12.0
"""What the lease has left for recording an attempt."""
OTHERS_S = 0.1
"""Between two looks whether another process has given back a lease."""
MAX_BATCH = 256
"""Most notifications in one claim."""
MIN_BATCH = 16
LOOKED_AT = 64
"""Of a host's queue, where the first one's client has its share."""
PAUSE_S = 2.0
"""An attempt that takes so much longer than its limit was held up by a stop of the gateway itself."""
MAX_HOSTS = 10_000
"""Hosts that are remembered; above it those without work are forgotten, the oldest first."""

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
        self._attempted = attempted
        self.lease_s = MAX_WAIT_S + send_limit_s + RECORD_S
        self._hosts: dict[tuple[SinkKind, str], Host] = {}
        self._in_flight: dict[asyncio.Task[None], Job] = {}
        self._of_client: Counter[str] = Counter()  # how many of them
        self._crowded = False  # whether one waits because its client has its share
        self._recorder = Recorder(store, owner, written=self.hint, ended=ended)
        self._changed: dict[str, Sink] | None = None  # by subscription, while subscriptions are read for a claim
        self._withdrawn: set[str] | None = None  # subscriptions, while a claim is made
        self._wake = asyncio.Event()
        self._closing = False
        self._claimer: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """How many notifications are claimed and not yet recorded."""
        return self._recorder.held

    def start(self) -> None:
        """Begins to deliver. In the event loop."""
        self._claimer = asyncio.create_task(self._claim_for_ever(), name="deliveries: claim")
        self._recorder.start()

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

    def withdrawn(self, subscription: Subscription) -> Callable[[], Awaitable[None]]:
        """What the subscription was owed is WITHDRAWN in the store: no attempt of it begins here any more.

        Await what is returned, if somebody waits for it: then none begins in another process either, and those in
        flight have ended, each within its own time limit."""
        if self._withdrawn is not None:
            self._withdrawn.add(subscription.id)
        for host in self._hosts.values():
            for job in [job for job in host.queue if job.subscription.id == subscription.id]:
                host.queue.remove(job)
                self._recorder.put_off(job.notification, self._clock())
        in_flight = {task: job for task, job in self._in_flight.items() if job.subscription.id == subscription.id}
        for job in in_flight.values():
            job.withdrawn = True
        return partial(self._withdrawn_everywhere, subscription, in_flight)

    async def _withdrawn_everywhere(
        self, subscription: Subscription, in_flight: Collection[asyncio.Task[None]]
    ) -> None:
        if in_flight:
            await asyncio.wait(in_flight)
        try:
            if not (await self._left_by_others(subscription) or in_flight):
                await self._bill_withdrawn(subscription)
        except StoreUnavailable as error:
            _log.warning("withdrawal_not_followed", subscription_id=subscription.id, message=str(error))

    async def _left_by_others(self, subscription: Subscription) -> bool:
        """Waits until no other process holds anything of the subscription; whether one did."""
        loop, waited = asyncio.get_running_loop(), False
        until_s = loop.time() + self.lease_s
        while await self._store.lease_owner(subscription.id) not in (None, self._owner) and loop.time() < until_s:
            waited = True
            await asyncio.sleep(OTHERS_S)
        return waited

    async def _bill_withdrawn(self, subscription: Subscription) -> None:
        """Writes the result of a notification that was tried before it was withdrawn: only the first can have been."""
        page = Page(size=1)
        withdrawn, _ = await self._store.notifications(
            None, page, state=DeliveryState.WITHDRAWN, subscription_id=subscription.id
        )
        for one in withdrawn:
            if one.attempts:
                usage = usage_of(one, subscription, one.state, "withdrawn", self._clock(), self._new_id())
                await self._store.write_usage(usage)

    async def aclose(self, limit_s: float = 5.0) -> None:
        """Claims no more, gives back what waits, and lets what is in flight end within `limit_s`; the rest is given
        back too, and will be sent again."""
        if self._closing or (claimer := self._claimer) is None:
            return
        self._closing = True
        self._wake.set()
        await asyncio.wait([claimer], timeout=limit_s)  # not in mid-claim: the leases would be known to nobody
        claimer.cancel()
        await asyncio.gather(claimer, return_exceptions=True)
        now = self._clock()
        for host in self._hosts.values():
            for job in host.queue:
                self._recorder.put_off(job.notification, now)
            host.queue.clear()
        if self._in_flight:
            _log.info("deliveries_draining", in_flight=len(self._in_flight), limit_s=limit_s)
            _, late = await asyncio.wait(list(self._in_flight), timeout=limit_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._recorder.aclose(limit_s)

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
                    async with asyncio.timeout(min(POLL_S, self._recorder.until_due(self._clock()))):
                        await self._wake.wait()

    async def _claim(self, most: int) -> tuple[int, int]:
        """How many were claimed, and how many of them had to be put off for less than a second."""
        self._withdrawn = set()
        try:
            return await self._claim_and_queue(most, self._withdrawn)
        finally:
            self._withdrawn = None

    async def _claim_and_queue(self, most: int, withdrawn: Set[str]) -> tuple[int, int]:
        now = self._clock()
        claimed_s = asyncio.get_running_loop().time()
        claimed = await self._store.claim(now, now + timedelta(seconds=self.lease_s), most, self._owner)
        fresh = [owed for owed in claimed if not self._recorder.holds(owed)]
        if not fresh:
            return len(claimed), 0
        for owed in fresh:
            self._recorder.took(owed)
        changed = self._changed = {}
        try:
            subscriptions = await self._store.subscriptions_by_id(list({owed.subscription_id for owed in fresh}))
        except Exception:
            for owed in fresh:
                self._recorder.put_off(owed, now)
            raise
        finally:
            self._changed = None
        crowded = 0
        for owed in fresh:
            subscription = subscriptions.get(owed.subscription_id)
            if subscription is None:
                _log.error("notification_without_subscription", notification_id=owed.id)
                self._recorder.forget(owed)
            elif owed.subscription_id in withdrawn:
                self._recorder.put_off(owed, now)
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
            self._recorder.put_off(job.notification, self._clock())
            return True
        sink = job.subscription.sink
        reason = job.subscription.end_reason
        if (
            reason in _ENDPOINT_GIVEN_UP and job.notification.attempts == 0
        ):  # one that was sent again by command is tried
            self._settle(job, Sent(delivered=False, outcome="gone", ends=reason), 0.0)
        elif SINK_UNREADABLE in sink.parameters:  # tried again, since the operator may bring the key back
            self._settle(job, Sent(delivered=False, outcome="secret-unreadable"), 0.0)
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
        self._recorder.put_off(job.notification, self._clock() + timedelta(seconds=wait_s))
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
        self._crowded = False
        for key in [key for key, host in self._hosts.items() if host.queue]:
            host = self._hosts.pop(key)  # to the end: the next time others come first
            self._hosts[key] = host
            self._start(host)

    def _start(self, host: Host) -> None:
        loop = asyncio.get_running_loop()
        for late in host.overdue(loop.time()):
            self._put_off_at(host, late)
        while host.queue and host.in_flight < host.share(self._places) and len(self._in_flight) < self._places.overall:
            job = self._first_with_room(host)
            if job is None:
                self._crowded = True
                return
            host.queue.remove(job)
            host.in_flight += 1
            self._of_client[job.subscription.client_id] += 1
            task = loop.create_task(self._send(job, host))
            self._in_flight[task] = job
            task.add_done_callback(self._left)

    def _first_with_room(self, host: Host) -> Job | None:
        """The first whose client has fewer attempts in flight than places are free: so a client takes half of what is
        free (one alone: half of all), and its many silent hosts leave places to the others."""
        free = self._places.overall - len(self._in_flight)
        first = itertools.islice(host.queue, LOOKED_AT)
        return next((job for job in first if self._of_client[job.subscription.client_id] < free), None)

    def _left(self, task: asyncio.Task[None]) -> None:
        job = self._in_flight.pop(task)
        client_id = job.subscription.client_id
        self._of_client[client_id] -= 1
        if not self._of_client[client_id]:
            del self._of_client[client_id]
        if task.cancelled():  # told to stop: it may have arrived, and is sent again under the same id
            self._recorder.put_off(job.notification, self._clock())
        elif (error := task.exception()) is not None:
            _log.error("delivery_failed", notification_id=job.notification.id, exc_info=error)
            self._recorder.put_off(job.notification, self._clock() + timedelta(seconds=MAX_PUT_OFF_S))
        elif not self._closing:
            host = self._host(job)
            if self._crowded or len(self._in_flight) >= self._places.overall - 1:
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
        answered = sent.code > 0 or sent.outcome in UNTRIED
        if seconds > self._send_limit_s + PAUSE_S and not answered:
            host.interrupted()
        else:
            host.ended(seconds, answered=answered)
        self._settle(job, sent, seconds)

    def _settle(self, job: Job, sent: Sent, seconds: float) -> None:
        """Makes the records of an attempt, for the recorder."""
        notification, subscription, now = job.notification, job.subscription, self._clock()
        verdict = judge(notification, subscription, sent, now, jitter=self._jitter(), policy=self._policy)
        if job.withdrawn and verdict.state is DeliveryState.PENDING:
            verdict = replace(verdict, state=DeliveryState.WITHDRAWN, next_attempt_at=None)
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
        self._recorder.attempted(attempted, job)
