"""What one endpoint's host gets of the places for deliveries, by how it has behaved.

Invariants: no I/O and no clock. A host that has not answered yet has few places, one that answers has its full share,
and one that is silent has one, until it answers again. What waits for it is bounded in number and time.

Deliberately absent: what is sent, and to which address (`deliverer.py`, `egress/client.py`).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.domain.records import OwedNotification, Subscription

MAX_WAIT_S = 20.0
"""Longest wait in a host's queue; then the lease is given back."""
MIN_PUT_OFF_S = 0.1
SILENT_PUT_OFF_S = 2.0
"""The least for a host that does not answer."""
MAX_PUT_OFF_S = 30.0
SILENT_AFTER = 5
"""Attempts in a row without any HTTP status after which a host has one place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """How many deliveries are in flight at most."""

    overall: int = 512
    """A client alone gets half of them."""
    per_host: int = 32
    unproven_host: int = 8
    """For a host that has not answered yet."""
    queued_per_host: int = 1024
    """Claimed and waiting; more is put off."""
    held: int = 8192
    """Claimed and not yet recorded; nothing is claimed above it."""


@dataclass(eq=False, slots=True)
class Job:
    """A notification that is claimed. `claimed_s` is in the event loop's time."""

    notification: OwedNotification
    subscription: Subscription
    claimed_s: float
    withdrawn: bool = False
    """Whether it is not to be tried again, should this attempt fail."""


@dataclass(eq=False, slots=True)
class Host:
    """One host, its queue and what is known of it."""

    known_since_s: float
    """When it was first met, in the event loop's time."""
    queue: deque[Job] = field(default_factory=deque)
    in_flight: int = 0
    proven: bool = False
    silent: int = 0
    average_s: float = 0.5

    def share(self, places: Places) -> int:
        """How many may be in flight."""
        if self.silent >= SILENT_AFTER:
            return 1
        return places.per_host if self.proven else places.unproven_host

    def put_off_s(self, places: Places, now_s: float) -> float:
        """When there will be room again, as far as one can tell; while it has never answered, as long again."""
        wait_s = max(MIN_PUT_OFF_S, (len(self.queue) + 1) * self.average_s / self.share(places))
        if self.silent >= SILENT_AFTER:
            wait_s = max(SILENT_PUT_OFF_S, wait_s)
        elif not self.proven:
            wait_s = max(SILENT_PUT_OFF_S, now_s - self.known_since_s)
        return min(MAX_PUT_OFF_S, wait_s)

    def overdue(self, now_s: float) -> Iterator[Job]:
        """Takes out of the queue what has waited too long."""
        while self.queue and now_s - self.queue[0].claimed_s > MAX_WAIT_S:
            yield self.queue.popleft()

    def interrupted(self) -> None:
        """One attempt is over and says nothing: the gateway itself was stopped meanwhile."""
        self.in_flight -= 1

    def ended(self, seconds: float, *, answered: bool) -> None:
        """One attempt is over."""
        self.in_flight -= 1
        self.average_s += (max(seconds, 0.001) - self.average_s) / 8
        self.silent = 0 if answered else self.silent + 1
        self.proven = answered or (self.proven and self.silent < SILENT_AFTER)
