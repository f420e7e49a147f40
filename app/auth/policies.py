"""What each client may do, and how often: its policy, and a token bucket for its rate.

Invariants: time is an argument; the buckets that are kept are bounded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.domain.bounded import BoundedDict
from app.domain.errors import (
    RateLimited,
)
from app.domain.policy import Policy, effective
from app.domain.records import Client

MAX_BUCKETS = 10_000
"""Clients whose rate is remembered; above it those that rested longest are forgotten, being full again or nearly."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: how many calls were left, and when. Less than none is what a large query owes."""

    left: float
    at_s: float


def take(bucket: Bucket | None, rate_per_s: int, burst: int, now_s: float, calls: int = 1) -> tuple[Bucket, float]:
    """Takes calls out of the bucket (None: untouched, so full). Returns what it is then, and 0, or the seconds to wait
    until a call is left. Where one is left, all are taken, and the bucket owes what it did not have: a query larger
    than the burst passes too, and the next call waits for that. A clock that goes back gives and takes nothing."""
    most = burst or rate_per_s
    left = float(most) if bucket is None else min(most, bucket.left + max(0.0, now_s - bucket.at_s) * rate_per_s)
    if left < 1:
        return Bucket(left, now_s), (1 - left) / rate_per_s
    return Bucket(left - calls, now_s), 0.0


class Policies:
    """The operator's policy and what each client has used up of its rate. One per process."""

    def __init__(self, operator: Policy, clock_s: Callable[[], float]) -> None:
        """`clock_s` is monotonic, in seconds."""
        self.operator = operator
        self._clock_s = clock_s
        self._buckets = BoundedDict[str, Bucket](MAX_BUCKETS)

    def of(self, client: Client) -> Policy:
        """The policy that holds for the client."""
        return effective(self.operator, client)

    def of_id(self, client_id: str, clients: Mapping[str, Client]) -> Policy:
        """As `of`, for the one of these clients; the operator's for another."""
        client = clients.get(client_id)
        return self.operator if client is None else self.of(client)

    def admit(self, client: Client, calls: int = 1) -> Policy:
        """Counts a call of the client, or a query that is worth several; returns its policy. Raises RateLimited."""
        policy = effective(self.operator, client)
        if policy.rate_per_s:
            bucket, wait_s = take(
                self._buckets.get(client.id), policy.rate_per_s, policy.rate_burst, self._clock_s(), calls
            )
            self._buckets[client.id] = bucket
            if wait_s:
                raise RateLimited(
                    f"More than {policy.rate_per_s} calls per second (a query counts each terminal); wait.",
                    retry_after_s=wait_s,
                )
        return policy

    def charge(self, client: Client, calls: int) -> None:
        """Counts so many more calls (less than none: fewer) for one that was admitted, once its worth is known."""
        if (bucket := self._buckets.get(client.id)) is not None:
            self._buckets[client.id] = Bucket(bucket.left - calls, bucket.at_s)
