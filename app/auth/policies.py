"""The policy of each client, and a token bucket for its rate of calls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.domain.bounded import BoundedDict
from app.domain.errors import RateLimited
from app.domain.policy import Policy, effective
from app.domain.records import Client

MAX_BUCKETS = 10_000
"""How many clients' rates are remembered. The longest idle clients are forgotten; their buckets are full again, or
nearly."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: the calls left, and the time of that count. Negative after a query larger than the bucket."""

    left: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Quota:
    """A client's limit of calls, and what is left of it."""

    calls: int
    """Most calls at once."""
    window_s: float
    """The time after which all of them are available again."""
    left: int
    full_in_s: float
    """The time after which all calls are available, if none is made meanwhile."""


def take(bucket: Bucket | None, rate_per_s: int, burst: int, now_s: float, calls: int = 1) -> tuple[Bucket, float]:
    """Takes calls out of the bucket (None: a full one). Returns the bucket afterwards, and the seconds to wait (0: the
    calls were taken). If at least one call is left, all `calls` are taken, even if the bucket becomes negative: a query
    larger than the burst is accepted, and the next call waits longer. A clock that goes back changes nothing."""
    most = burst or rate_per_s
    left = float(most) if bucket is None else min(most, bucket.left + max(0.0, now_s - bucket.at_s) * rate_per_s)
    if left < 1:
        return Bucket(left, now_s), (1 - left) / rate_per_s
    return Bucket(left - calls, now_s), 0.0


class Policies:
    """The operator's policy, and the rate of each client. One per process."""

    def __init__(self, operator: Policy, clock_s: Callable[[], float]) -> None:
        """`clock_s` is monotonic, in seconds."""
        self.operator = operator
        self._clock_s = clock_s
        self._buckets = BoundedDict[str, Bucket](MAX_BUCKETS)

    def of(self, client: Client) -> Policy:
        """The policy that applies to the client."""
        return effective(self.operator, client)

    def of_id(self, client_id: str, clients: Mapping[str, Client]) -> Policy:
        """As `of` for the client of this id; the operator's policy if it is not among `clients`."""
        client = clients.get(client_id)
        return self.operator if client is None else self.of(client)

    def admit(self, client: Client, calls: int = 1) -> Policy:
        """Counts a call of the client, or a query that counts as several; returns its policy. Raises RateLimited."""
        policy = effective(self.operator, client)
        if policy.rate_per_s:
            bucket, wait_s = take(
                self._buckets.get(client.id), policy.rate_per_s, policy.rate_burst, self._clock_s(), calls
            )
            self._buckets[client.id] = bucket
            if wait_s:
                raise RateLimited(
                    f"The limit of {policy.rate_per_s} calls per second is exceeded (a query counts once per "
                    "terminal); wait and try again.",
                    retry_after_s=wait_s,
                )
        return policy

    def quota(self, client: Client) -> Quota | None:
        """The client's limit of calls; None without a limit, and before the first call that counts."""
        bucket = self._buckets.get(client.id)
        if bucket is None or not (policy := effective(self.operator, client)).rate_per_s:
            return None
        rate_per_s, most = policy.rate_per_s, policy.rate_burst or policy.rate_per_s
        left = min(most, bucket.left + max(0.0, self._clock_s() - bucket.at_s) * rate_per_s)
        return Quota(most, most / rate_per_s, max(0, int(left)), (most - left) / rate_per_s)

    def charge(self, client: Client, calls: int) -> None:
        """Counts `calls` more (negative: fewer) for an admitted call, once the number of its terminals is known."""
        if (bucket := self._buckets.get(client.id)) is not None:
            self._buckets[client.id] = Bucket(bucket.left - calls, bucket.at_s)
