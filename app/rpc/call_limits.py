"""Who may have how many calls open: strangers by their address until they are known, clients by their id.

A call is counted from its metadata on, before its message is read. Until its caller is known, and where no credentials
are needed until its message has come, it counts for the caller's address; then for its client. Health and reflection,
which need no credentials, have pools of their own, so that they and the calls of clients cannot starve each other.

Invariants: it does not know which engine serves: time is an argument, and a call that has to go is given up by the
function that came with it. What is refused is a RateLimited (this caller has too much) or GatewayOverloaded (all
together have), which every face's table knows. A key of "" (a trusted proxy) is bounded by the pool as a whole only.

Deliberately absent: who calls (`calls.py`), the rate of calls and the number of streams (`domain/policy.py`), and
connections (`connection_limits.py`).
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from app.domain.errors import GatewayOverloaded, InvalidRequest, RateLimited, TerminalStatusError

UNAUTHENTICATED_CALLS: Final = 500
UNAUTHENTICATED_CONNECTIONS: Final = 256
"""Of one address, unless the operator says otherwise."""

PATIENCE_S: Final = 10.0
"""How long a call may take to show who calls and what is asked."""

EXCESS_PATIENCE_S: Final = 2.0
"""The same for those above the bound of their address. Not 0: some clients (grpc-go) send the metadata of many calls
before the message of the first, and thousands of calls may wait for one look-up of their credentials."""

FLOOD: Final = 200.0
"""Weight of one address's bad calls, since the guard looked last, from which on the address is shut out."""

BAD_CALL, FREE_CALL = 1.0, 0.2
"""Weight of a call without good credentials or without a message; and of one that needs no credentials."""

UNARY_CALLS: Final = 10_000
"""Calls that one client may have open beside its streams; 8,000 at once are a burst that must lose nothing."""

RETRY_S: Final = 1.0


class Pool:
    """Calls of one kind that are open: at most `each` of one key, of which `steady` may stay without having shown all
    that is needed, and `most` in all. `who` names a key's owner."""

    def __init__(self, each: int, most: int, who: str, *, steady: int | None = None) -> None:
        self.each = each
        self.most = most
        self.steady = each if steady is None else steady
        self.open = 0
        self.refused = 0
        self._who = who
        self.open_of: dict[str, int] = {}

    def enter(self, key: str) -> None:
        """Counts a call until it leaves. Raises RateLimited, GatewayOverloaded."""
        count = self.open_of.get(key, 0)
        if count >= self.each and key:
            self.refused += 1
            raise self.excess(self.each)
        if self.open >= self.most:
            self.refused += 1
            raise GatewayOverloaded("The gateway has as many calls open as it serves.", retry_after_s=RETRY_S)
        self.open_of[key] = count + 1
        self.open += 1

    def leave(self, key: str) -> None:
        """A call that entered has ended."""
        self.open -= 1
        if (count := self.open_of[key] - 1) > 0:
            self.open_of[key] = count
        else:
            del self.open_of[key]

    def excess(self, limit: int) -> RateLimited:
        """What a call above a key's limit is refused with."""
        return RateLimited(
            f"Limit reached: {limit} calls are open {self._who}. Wait until some have ended.", retry_after_s=RETRY_S
        )


@dataclass(eq=False, slots=True)
class Waiting:
    """A call of which the caller or the message is awaited; `refusal` is why it was given up."""

    pool: Pool
    key: str
    since_s: float
    give_up: Callable[[], object]
    refusal: TerminalStatusError | None = field(default=None)


class Gate:
    """The pools of one server, and the calls that have not shown enough yet. `max_streams` is what one client may have;
    `unauthenticated` the calls of one address whose caller is not known, `unauthenticated_connections` its connections
    that have brought no call of a client."""

    def __init__(
        self,
        *,
        max_streams: int,
        unauthenticated: int = UNAUTHENTICATED_CALLS,
        unauthenticated_connections: int = UNAUTHENTICATED_CONNECTIONS,
    ) -> None:
        self.unauthenticated_connections = unauthenticated_connections
        self.proved: set[str] = set()
        """Connections, by the names of their peers, that have brought a call of a client; `connection_limits.py` takes
        out what has ended."""
        each = max_streams + UNARY_CALLS
        self.clients = Pool(each, 2 * each, "by this client")
        burst = max(UNARY_CALLS, unauthenticated)
        self.strangers = Pool(burst, 2 * burst, "from this address, of callers not known yet", steady=unauthenticated)
        self.health = Pool(100, 1000, "to health from this address")
        self.reflection = Pool(20, 200, "to reflection from this address")
        self.waiting: dict[Waiting, None] = {}
        self.bad: dict[str, float] = {}
        """Weight of the bad calls of each address; the guard empties it."""
        self.on_flood: Callable[[], object] = lambda: None
        self.shut_out: Collection[str] = ()
        """Addresses whose calls are refused unseen, until their callers are known: those that gRPC had read before the
        guard cut their connections."""

    def count_bad(self, key: str, weight: float = BAD_CALL) -> None:
        """Counts a call against its address; a trusted proxy's own does not count."""
        if key:
            before = self.bad.get(key, 0.0)
            self.bad[key] = before + weight
            if before < FLOOD <= before + weight:
                self.on_flood()

    def wait(self, pool: Pool, key: str, now_s: float, give_up: Callable[[], object]) -> Waiting:
        """Notes a call that must show something in time; take it out of `waiting` when it has."""
        waiting = Waiting(pool, key, now_s, give_up)
        self.waiting[waiting] = None
        return waiting

    def sweep(self, now_s: float) -> None:
        """Gives up the calls that had their time; to be called about once a second while there are any."""
        seen: Counter[tuple[Pool, str]] = Counter()
        for waiting in list(self.waiting):  # the oldest first
            pool, key = waiting.pool, waiting.key
            seen[pool, key] += 1
            within = not key or seen[pool, key] <= pool.steady
            if now_s - waiting.since_s >= (PATIENCE_S if within else EXCESS_PATIENCE_S):
                late = InvalidRequest(f"The message did not come within {PATIENCE_S:.0f} seconds of the metadata.")
                waiting.refusal = late if within else pool.excess(pool.steady)
                pool.refused += 1
                del self.waiting[waiting]
                waiting.give_up()
