"""The sinks' hosts: each with its queue, and how many deliveries may be in flight to it.

A host that has not answered yet gets few places (`unproven_host`), a host that answers gets `per_host`, and a silent
host gets one until it answers again. Its queue is bounded in length and time.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.domain.records import OwedNotification, Subscription

MAX_WAIT_S = 20.0
"""Longest wait in a host's queue; then the lease is released."""
MIN_PUT_OFF_S = 0.1
SILENT_PUT_OFF_S = 2.0
"""Shortest postponement at a host that does not answer."""
MAX_PUT_OFF_S = 30.0
SILENT_AFTER = 5
"""A host is silent, and has one place, after this number of attempts in a row without an HTTP status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Limits on deliveries in flight, queued and claimed."""

    overall: int = 512
    """In flight in all. A single client uses half of them."""
    per_host: int = 32
    unproven_host: int = 8
    """In flight to a host that has not answered yet."""
    queued_per_host: int = 1024
    """Claimed and waiting for a place; further notifications are postponed."""
    held: int = 8192
    """Claimed and not recorded yet. At this number the deliverer claims no more."""


@dataclass(eq=False, slots=True)
class Job:
    """A claimed notification. `claimed_s` is in the event loop's time."""

    notification: OwedNotification
    subscription: Subscription
    claimed_s: float
    withdrawn: bool = False
    """Whether the notification was withdrawn: a failed attempt is not repeated."""
    redirected: bool = False
    """Whether the sink got another endpoint during the attempt: if it fails, the next attempt follows at once."""


@dataclass(eq=False, slots=True)
class Host:
    """One host, its queue and its record."""

    known_since_s: float
    """When the host got its first notification, in the event loop's time."""
    queue: deque[Job] = field(default_factory=deque)
    in_flight: int = 0
    proven: bool = False
    silent: int = 0
    average_s: float = 0.5

    def share(self, places: Places) -> int:
        """How many attempts may be in flight to this host."""
        if self.silent >= SILENT_AFTER:
            return 1
        return places.per_host if self.proven else places.unproven_host

    def put_off_s(self, places: Places, now_s: float) -> float:
        """Estimated seconds until the queue has room; for a host that has not answered yet, at least the time since its
        first notification."""
        wait_s = max(MIN_PUT_OFF_S, (len(self.queue) + 1) * self.average_s / self.share(places))
        if self.silent >= SILENT_AFTER:
            wait_s = max(SILENT_PUT_OFF_S, wait_s)
        elif not self.proven:
            wait_s = max(SILENT_PUT_OFF_S, now_s - self.known_since_s)
        return min(MAX_PUT_OFF_S, wait_s)

    def overdue(self, now_s: float) -> Iterator[Job]:
        """Removes and yields the jobs that have waited longer than MAX_WAIT_S."""
        while self.queue and now_s - self.queue[0].claimed_s > MAX_WAIT_S:
            yield self.queue.popleft()

    def interrupted(self) -> None:
        """An attempt is over whose result does not count for the host, because the gateway itself was paused."""
        self.in_flight -= 1

    def ended(self, seconds: float, *, answered: bool) -> None:
        """An attempt is over; `answered`: with an HTTP status."""
        self.in_flight -= 1
        self.average_s += (max(seconds, 0.001) - self.average_s) / 8
        self.silent = 0 if answered else self.silent + 1
        self.proven = answered or (self.proven and self.silent < SILENT_AFTER)
