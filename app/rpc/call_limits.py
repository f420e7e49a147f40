"""How many gRPC calls may be open at once, for each client and for each address whose caller is not known yet.

A call counts from the arrival of its metadata, before its message is read. It counts for the caller's address until the
caller is authenticated (on a gateway without credentials: until the message arrives), and then for its client. Health
and reflection need no credentials, so they have limits of their own: they cannot use up the limits of the clients'
calls.

Invariants: this module does not depend on the gRPC engine: time is an argument, and an overdue call is ended by the
function given with it. A refusal is RateLimited (this caller's limit) or GatewayOverloaded (the limit of all callers).
The key "" is a trusted proxy's own address: only the limit of all callers applies to it.

Deliberately absent: authentication (`callers.py`), the rate of calls and the number of streams (`domain/policy.py`),
and connections (`connection_limits.py`).
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from app.domain.errors import GatewayOverloaded, InvalidRequest, RateLimited, TerminalStatusError

UNAUTHENTICATED_CALLS: Final = 500
UNAUTHENTICATED_CONNECTIONS: Final = 256
"""Defaults of the limits for one address."""

PENDING_LIMIT_S: Final = 10.0
"""How long a call may take until its caller is authenticated and its message has arrived."""

EXCESS_PENDING_LIMIT_S: Final = 2.0
"""The same for pending calls beyond `CallLimit.pending_per_key`. Not 0: some clients (grpc-go) send the metadata of
many calls before the message of the first, and thousands of calls may wait for one look-up of their credentials."""

FLOOD_WEIGHT: Final = 200.0
"""An address is blocked when its bad calls within one interval of `enforce_connection_limits` weigh this much."""

BAD_CALL_WEIGHT, OPEN_METHOD_WEIGHT = 1.0, 0.2
"""Weight of a call without valid credentials or without a message; weight of a call to a method that needs no
credentials."""

MAX_UNARY_CALLS: Final = 10_000
"""Calls that one client may have open beside its streams. Bursts of 8,000 calls at once must not lose any."""

RETRY_AFTER_S: Final = 1.0


class CallLimit:
    """Counts the open calls of one kind and limits them: `per_key` for one key, `total` for all keys together.

    Of a key's pending calls, the oldest `pending_per_key` (default: `per_key`) may take PENDING_LIMIT_S, the others
    EXCESS_PENDING_LIMIT_S. `whose` completes the message "… calls are open …".
    """

    def __init__(self, per_key: int, total: int, whose: str, *, pending_per_key: int | None = None) -> None:
        self.per_key = per_key
        self.total = total
        self.pending_per_key = per_key if pending_per_key is None else pending_per_key
        self.open = 0
        self.refused = 0
        self._whose = whose
        self.open_by_key: dict[str, int] = {}

    def enter(self, key: str) -> None:
        """Counts a call until `leave`. Raises RateLimited, GatewayOverloaded."""
        count = self.open_by_key.get(key, 0)
        if count >= self.per_key and key:
            self.refused += 1
            raise self.refusal(self.per_key)
        if self.open >= self.total:
            self.refused += 1
            raise GatewayOverloaded(
                f"Limit reached: {self.total} calls are open on this gateway. Retry later.",
                retry_after_s=RETRY_AFTER_S,
            )
        self.open_by_key[key] = count + 1
        self.open += 1

    def leave(self, key: str) -> None:
        """Uncounts a call of the key."""
        self.open -= 1
        if (count := self.open_by_key[key] - 1) > 0:
            self.open_by_key[key] = count
        else:
            del self.open_by_key[key]

    def refusal(self, limit: int) -> RateLimited:
        """The error for a call beyond the `limit` of its key."""
        return RateLimited(
            f"Limit reached: {limit} calls are open {self._whose}. Wait until some have ended.",
            retry_after_s=RETRY_AFTER_S,
        )


@dataclass(eq=False, slots=True)
class PendingCall:
    """A call whose caller is not authenticated yet, or whose message has not arrived. `cancel` ends it; `refusal` is
    then the error for the caller."""

    limit: CallLimit
    key: str
    since_s: float
    cancel: Callable[[], object]
    refusal: TerminalStatusError | None = field(default=None)


class CallLimits:
    """The limits of one gRPC server and its pending calls. One client may have `max_streams` streams open. One address
    may have `unauthenticated_calls` pending calls, and `unauthenticated_connections` connections on which no client has
    called yet."""

    def __init__(
        self,
        *,
        max_streams: int,
        unauthenticated_calls: int = UNAUTHENTICATED_CALLS,
        unauthenticated_connections: int = UNAUTHENTICATED_CONNECTIONS,
    ) -> None:
        self.unauthenticated_connections = unauthenticated_connections
        self.admitted_peers: set[str] = set()
        """gRPC's names of connections on which a client's call was admitted; `connection_limits.py` removes those that
        have closed."""
        per_client = max_streams + MAX_UNARY_CALLS
        self.clients = CallLimit(per_client, 2 * per_client, "by this client")
        burst = max(MAX_UNARY_CALLS, unauthenticated_calls)
        self.unauthenticated = CallLimit(
            burst, 2 * burst, "from this address without an authenticated client", pending_per_key=unauthenticated_calls
        )
        self.health = CallLimit(100, 1000, "to health from this address")
        self.reflection = CallLimit(20, 200, "to reflection from this address")
        self.pending: dict[PendingCall, None] = {}
        self.bad_calls: dict[str, float] = {}
        """Weight of each address's bad calls since `enforce_connection_limits` last read and cleared it."""
        self.on_flooded: Callable[[], object] = lambda: None
        """Called when an address reaches FLOOD_WEIGHT."""
        self.blocked: Collection[str] = ()
        """Addresses whose unauthenticated calls are refused at once. gRPC still delivers the calls that it had read
        before the address's connections were shut down."""

    def count_bad_call(self, key: str, weight: float = BAD_CALL_WEIGHT) -> None:
        """Counts a call against its address; not against a trusted proxy."""
        if key:
            before = self.bad_calls.get(key, 0.0)
            self.bad_calls[key] = before + weight
            if before < FLOOD_WEIGHT <= before + weight:
                self.on_flooded()

    def add_pending(self, limit: CallLimit, key: str, now_s: float, cancel: Callable[[], object]) -> PendingCall:
        """Starts a call's time limit. Remove the returned call from `pending` when it is no longer pending."""
        call = PendingCall(limit, key, now_s, cancel)
        self.pending[call] = None
        return call

    def cancel_overdue(self, now_s: float) -> None:
        """Cancels the pending calls whose time is over. To be called about once a second while there are any."""
        seen: Counter[tuple[CallLimit, str]] = Counter()
        for call in list(self.pending):  # the oldest first
            limit, key = call.limit, call.key
            seen[limit, key] += 1
            within = not key or seen[limit, key] <= limit.pending_per_key
            if now_s - call.since_s >= (PENDING_LIMIT_S if within else EXCESS_PENDING_LIMIT_S):
                call.refusal = no_message() if within else limit.refusal(limit.pending_per_key)
                limit.refused += 1
                del self.pending[call]
                call.cancel()


def no_message() -> InvalidRequest:
    """The error for a call whose message has not arrived within PENDING_LIMIT_S."""
    return InvalidRequest(f"No message arrived within {PENDING_LIMIT_S:.0f} seconds of the call's metadata; send one.")
