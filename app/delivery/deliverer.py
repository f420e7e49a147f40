"""Sends owed notifications: claims them by a lease when due, queues them for their sink's host, sends and records them.

Only the rows in the store count. A hint wakes the deliverer earlier; it polls every POLL_S anyway.
`live/rules.py` decides which notifications a subscriber is owed, `retry.py` when a failed notification is sent again.
The senders in `egress/` and `soap_compat/` make the requests; `recorder.py` writes the results.

Invariants: each notification is sent at least once, under one id; a subscription's notifications are sent one after the
other (the store's `claim`). A slow host delays no other host: each host has a limited number of attempts in flight
(fewer until it has answered, one while it is silent) and a bounded queue; notifications that do not fit are postponed.
A client starts no attempt while it has as many in flight as places are free. A lease lasts longer than queue, attempt
and record, so two nodes send the same notification only after one of them was killed or lost its database. A process
that stops releases its leases; after a kill the leases expire (`lease_s`).
"""

import asyncio
import contextlib
import itertools
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from urllib.parse import urlsplit

import structlog

from app.delivery.hosts import MAX_PUT_OFF_S, MAX_WAIT_S, Host, Job, Places
from app.delivery.recorder import Recorder
from app.delivery.retry import ENDPOINT_GIVEN_UP, UNTRIED, RetryPolicy, Verdict, judge, usage_of_claim, usage_of_result
from app.delivery.withdrawal import Withdrawals
from app.domain.changes import Attempted, SubscriptionUpdate
from app.domain.errors import StoreUnavailable
from app.domain.outcomes import DeliveryOutcome
from app.domain.records import DeliveryAttempt, DeliveryState, Subscription
from app.domain.sinks import SINK_UNREADABLE, EndReason, SinkKind, same_endpoint
from app.ports.delivery import Sender, Sent
from app.ports.store import Store

POLL_S = 1.0
"""Longest time that a due notification waits without a hint."""
RECORD_S = 12.0
"""Part of the lease that is reserved for recording an attempt."""
MAX_BATCH = 256
"""Most notifications in one claim."""
MIN_BATCH = 16
LOOKED_AT = 64
"""Entries of a host's queue that are searched for a client with free places."""
PAUSE_S = 2.0
"""If an attempt exceeds its time limit by more than this, a pause of the gateway delayed it, not the host."""
MAX_HOSTS = 10_000
"""Hosts that are remembered. Above this number idle hosts are forgotten, the oldest first."""

_log = structlog.get_logger(__name__)


class Deliverer:
    """The outbox worker, one per process. Close it before the senders and the store.

    `owner` identifies this process among the processes that share the store, and must be new at each start.
    `send_limit_s` must be above the senders' own time limits.
    `on_ended` is called after the end of a subscription was stored that its sink caused. `on_attempted` is called with
    the outcome and the seconds of each attempt.
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
        on_ended: Callable[[Subscription, EndReason], None] = lambda subscription, reason: None,
        on_attempted: Callable[[str, float], None] = lambda outcome, seconds: None,
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
        self._on_attempted = on_attempted
        self.lease_s = MAX_WAIT_S + send_limit_s + RECORD_S
        self._withdrawals = Withdrawals(store, owner, clock=clock, new_id=self._new_id, lease_s=self.lease_s)
        self._hosts: dict[tuple[SinkKind, str], Host] = {}
        self._in_flight: dict[asyncio.Task[None], Job] = {}
        self._of_client: Counter[str] = Counter()  # attempts in flight, by client id
        self._crowded = False  # a queued notification waits because its client has too many in flight
        self._recorder = Recorder(store, owner, on_written=self.hint, on_ended=on_ended)
        # Changes that arrive during a claim, by subscription id; None: no claim is being made.
        self._changed: dict[str, Subscription] | None = None
        self._withdrawn: set[str] | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._claimer: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """Number of notifications that are claimed and not recorded yet."""
        return self._recorder.held

    def start(self) -> None:
        """Begins to deliver. Call it in the event loop."""
        self._claimer = asyncio.create_task(self._claim_for_ever(), name="deliveries: claim")
        self._recorder.start()

    def hint(self) -> None:
        """Claims now instead of at the next poll: a notification may be due."""
        self._wake.set()

    def sink_changed(self, subscription: Subscription) -> None:
        """The stored sink of the subscription was changed: attempts that begin from now on use the new sink, also for
        notifications that are claimed already. Another process may use the old sink for MAX_WAIT_S longer."""
        if self._changed is not None:
            self._changed[subscription.id] = subscription
        for host in self._hosts.values():
            for job in [job for job in host.queue if job.subscription.id == subscription.id]:
                if same_endpoint(job.subscription.sink, subscription.sink):
                    job.subscription = _with_sink_of(subscription, job.subscription)
                else:  # it is claimed again, and queued at its new host
                    host.queue.remove(job)
                    self._recorder.put_off(job.notification, self._clock())
        self._recorder.redirect(subscription.id, self._clock())
        for job in self._in_flight.values():
            if job.subscription.id == subscription.id:
                job.redirected = job.redirected or not same_endpoint(job.subscription.sink, subscription.sink)

    def withdrawn(self, subscription: Subscription) -> Callable[[], Awaitable[None]]:
        """The subscription's notifications are WITHDRAWN in the store: this process begins no further attempt.

        Returns a function that waits until no other process begins an attempt either, and attempts in flight have ended
        (each within its time limit)."""
        if self._withdrawn is not None:
            self._withdrawn.add(subscription.id)
        for host in self._hosts.values():
            for job in [job for job in host.queue if job.subscription.id == subscription.id]:
                host.queue.remove(job)
                self._recorder.put_off(job.notification, self._clock())
        in_flight = {task: job for task, job in self._in_flight.items() if job.subscription.id == subscription.id}
        for job in in_flight.values():
            job.withdrawn = True
        return partial(self._withdrawals.finish, subscription, in_flight)

    async def aclose(self, limit_s: float = 5.0) -> None:
        """Stops claiming, releases the leases of queued notifications, and waits up to `limit_s` for attempts in
        flight. Attempts that are cancelled then are made again by another process, or at the next start."""
        if self._closing or (claimer := self._claimer) is None:
            return
        self._closing = True
        self._wake.set()
        await asyncio.wait(
            [claimer], timeout=limit_s
        )  # a claim that is cut off would leave leases that nobody releases
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
            # While busy hosts have no room, claim only as many as they accept.
            most = max(MIN_BATCH, claimed - crowded) if crowded else min(MAX_BATCH, most * 2)
            if claimed < asked or asked <= 0 or crowded:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(POLL_S, self._recorder.until_due(self._clock()))):
                        await self._wake.wait()

    async def _claim(self, most: int) -> tuple[int, int]:
        """Returns how many were claimed, and how many of these were postponed by less than a second."""
        self._withdrawn = set()
        try:
            return await self._claim_and_queue(most, self._withdrawn)
        finally:
            self._withdrawn = None

    async def _claim_and_queue(self, most: int, withdrawn: Set[str]) -> tuple[int, int]:
        now = self._clock()
        claimed_s = asyncio.get_running_loop().time()
        until = now + timedelta(seconds=self.lease_s)
        billed = partial(usage_of_claim, now=now, kinds=self._senders.keys())
        claimed = await self._store.claim(now, until, most, self._owner, billed)
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
                if (newer := changed.get(subscription.id)) is not None:
                    subscription = _with_sink_of(newer, subscription)
                crowded += not self._take(Job(owed, subscription, claimed_s))
        self._start_all()
        return len(claimed), crowded

    def _take(self, job: Job) -> bool:
        """Queues the notification at its host, settles it if there is nothing to send, or postpones it if the host is
        full.

        Returns False if the host's queue is full, and expected to have room within a second.
        """
        if self._closing:
            self._recorder.put_off(job.notification, self._clock())
            return True
        sink = job.subscription.sink
        reason = job.subscription.end_reason
        if (
            reason in ENDPOINT_GIVEN_UP and job.notification.attempts == 0
        ):  # a notification that was sent again by command has attempts, and is tried
            self._settle(job, Sent(delivered=False, outcome="gone", ends=reason), 0.0)
        elif SINK_UNREADABLE in sink.parameters:  # tried again: the operator may add the missing key
            self._settle(job, Sent(delivered=False, outcome="secret-unreadable"), 0.0)
        elif sink.kind not in self._senders:
            listed = sink.kind is SinkKind.STREAM  # the application lists its notifications
            self._settle(job, Sent(delivered=listed, outcome="listed" if listed else "no-sender"), 0.0)
        else:
            host = self._host(job)
            if len(host.queue) < self._places.queued_per_host:
                host.queue.append(job)
            else:
                return self._put_off_at(host, job) >= 1
        return True

    def _put_off_at(self, host: Host, job: Job) -> float:
        """Postpones the notification until the host may have room. Returns the seconds."""
        wait_s = host.put_off_s(self._places, asyncio.get_running_loop().time()) * (0.5 + self._jitter())
        self._recorder.put_off(job.notification, self._clock() + timedelta(seconds=wait_s))
        return wait_s

    def _host(self, job: Job) -> Host:
        sink = job.subscription.sink
        try:
            key = sink.kind, urlsplit(sink.url).netloc.lower()
        except ValueError:  # the sender reports what is wrong with the URL
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
            host = self._hosts.pop(key)  # to the end, so that other hosts come first the next time
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
        """The first job whose client has fewer attempts in flight than places are free. So a single client uses half of
        all places, and a client with many silent hosts leaves places to the other clients."""
        free = self._places.overall - len(self._in_flight)
        first = itertools.islice(host.queue, LOOKED_AT)
        return next((job for job in first if self._of_client[job.subscription.client_id] < free), None)

    def _left(self, task: asyncio.Task[None]) -> None:
        job = self._in_flight.pop(task)
        client_id = job.subscription.client_id
        self._of_client[client_id] -= 1
        if not self._of_client[client_id]:
            del self._of_client[client_id]
        if task.cancelled():  # cut off by `aclose`: it may have arrived, and is sent again under the same id
            self._recorder.put_off(job.notification, self._clock())
        elif (error := task.exception()) is not None:
            _log.error("delivery_failed", **_names(job), exc_info=error)
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
            _log.exception("sender_failed", **_names(job), sink=job.subscription.sink.kind.name)
            sent = Sent(delivered=False, outcome="defect")
        finally:
            seconds = loop.time() - began_s
        answered = sent.code > 0 or DeliveryOutcome(sent.outcome) in UNTRIED
        if seconds > self._send_limit_s + PAUSE_S and not answered:
            host.interrupted()
        else:
            host.ended(seconds, answered=answered)
        self._settle(job, sent, seconds)

    def _settle(self, job: Job, sent: Sent, seconds: float) -> None:
        """Passes the result of an attempt to the recorder, with the usage records."""
        notification, subscription, now = job.notification, job.subscription, self._clock()
        verdict = judge(notification, subscription, sent, now, jitter=self._jitter(), policy=self._policy)
        if job.redirected and not sent.delivered:  # the old endpoint's answer says nothing about the new one
            verdict = Verdict(state=DeliveryState.PENDING, next_attempt_at=now)
        if job.withdrawn and verdict.state is DeliveryState.PENDING:
            verdict = replace(verdict, state=DeliveryState.WITHDRAWN, next_attempt_at=None)
        if verdict.suspended_at is not None and subscription.suspended_at is None:
            _log.warning("subscription_suspended", **_names(job), outcome=sent.outcome)
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
            outcome=DeliveryOutcome(sent.outcome),
            answer=sent.answer,
        )
        usage = usage_of_result(notification, subscription, verdict.state, sent.outcome, now, self._new_id())
        self._on_attempted(sent.outcome, seconds)
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


def _names(job: Job) -> dict[str, str]:
    """How a line of the log names a delivery: by what was sent with it, too."""
    return {
        "notification_id": job.notification.id,
        "subscription_id": job.subscription.id,
        "x_correlator": job.subscription.x_correlator,
    }


def _with_sink_of(newer: Subscription, subscription: Subscription) -> Subscription:
    return replace(subscription, sink=newer.sink, suspended_at=newer.suspended_at)
