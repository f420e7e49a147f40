"""The active subscriptions in memory, by what they are looked up by: id, group, client, and when they are due.

Invariants: a subscription has one entry in the heap for its end, one while it holds something back, and a stale one for
each time it was prolonged or ended; where stale ones are the most, the heap is made anew. So all of it grows with the
number of active subscriptions only.

Deliberately absent: the rule itself (`rules.py`), terminals, and the store.
"""

import heapq
import math
from collections.abc import Iterable
from datetime import datetime
from itertools import count

from app.domain.addresses import TerminalAddress
from app.live.group_directory import GroupKey
from app.live.subscription import LiveSubscription

_SLACK = 1000


class SubscriptionIndex:
    """Active subscriptions."""

    def __init__(self) -> None:
        self.by_id: dict[str, LiveSubscription] = {}
        self.by_group: dict[GroupKey, dict[LiveSubscription, None]] = {}
        self._of_client: dict[str, int] = {}
        self._heap: list[tuple[float, int, LiveSubscription]] = []
        self._number = count()

    @property
    def next_due_s(self) -> float:
        """When `pop_due` may have something; too early does no harm."""
        return self._heap[0][0] if self._heap else math.inf

    def count(self, client_id: str) -> int:
        """How many the client has."""
        return self._of_client.get(client_id, 0)

    def add(self, standing: LiveSubscription) -> None:
        """Takes one in."""
        self.by_id[standing.id] = standing
        self._of_client[standing.client_id] = self.count(standing.client_id) + 1
        self.index_groups(standing, standing.groups)
        self.prolonged(standing)
        if standing.held:
            self.holds(standing)

    def remove(self, standing: LiveSubscription) -> None:
        """Takes one out, if it is in."""
        standing.ended = True
        if self.by_id.pop(standing.id, None) is None:
            return
        left = self.count(standing.client_id) - 1
        if left:
            self._of_client[standing.client_id] = left
        else:
            del self._of_client[standing.client_id]
        self._unindex(standing, standing.groups)

    def index_groups(self, standing: LiveSubscription, groups: tuple[TerminalAddress, ...]) -> None:
        """Lets it be found by these groups, and no others."""
        self._unindex(standing, set(standing.groups).difference(groups))
        standing.groups = groups
        for group in groups:
            self.by_group.setdefault((standing.client_id, group), {})[standing] = None

    def _unindex(self, standing: LiveSubscription, groups: Iterable[TerminalAddress]) -> None:
        for group in groups:
            key = (standing.client_id, group)
            members = self.by_group[key]
            del members[standing]
            if not members:
                del self.by_group[key]

    def prolonged(self, standing: LiveSubscription) -> None:
        """Its end is another now."""
        self._push(standing.expires_s, standing)

    def clock_jumped(self, now: datetime, now_s: float) -> None:
        """The wall clock, in which ends are stated, has left the monotonic one, in which they are found. An end comes
        when either of them says so: the first where the machine was suspended, the second where the wall clock was set
        back."""
        for standing in self.by_id.values():
            if standing.expires_at is not None:
                standing.expires_s = min(standing.expires_s, now_s + (standing.expires_at - now).total_seconds())
        self._rebuild()

    def holds(self, standing: LiveSubscription) -> None:
        """It holds something back, from now until `allowed_s`."""
        self._push(standing.allowed_s, standing)

    def pop_due(self, now_s: float) -> list[LiveSubscription]:
        """Those that are due, each once."""
        due: dict[LiveSubscription, None] = {}
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            standing = heapq.heappop(heap)[2]
            if not standing.ended and standing.due_s <= now_s:
                due[standing] = None
        return list(due)

    def _push(self, due_s: float, standing: LiveSubscription) -> None:
        if due_s < math.inf:
            heapq.heappush(self._heap, (due_s, next(self._number), standing))
        if len(self._heap) > 4 * len(self.by_id) + _SLACK:
            self._rebuild()

    def _rebuild(self) -> None:
        active = self.by_id.values()
        entries = [(one.expires_s, one) for one in active] + [(one.allowed_s, one) for one in active if one.held]
        self._heap = [(due_s, next(self._number), one) for due_s, one in entries if due_s < math.inf]
        heapq.heapify(self._heap)
