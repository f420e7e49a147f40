"""The active subscriptions in memory, found by id, client, group, and when they are due.

Invariants: the heap has one entry for each subscription's end, one more for a subscription that holds statuses back,
and outdated entries of renewed or ended subscriptions. When most entries are outdated, the heap is rebuilt, so its size
depends on the number of active subscriptions only.
"""

import heapq
import math
from collections.abc import Iterable
from datetime import datetime
from itertools import count

from app.domain.addresses import TerminalAddress
from app.live.group_directory import GroupKey
from app.live.subscription import LiveSubscription, Progress

_SLACK = 1000
"""Outdated heap entries that are always allowed, even if there are few subscriptions."""


class SubscriptionIndex:
    """One per process."""

    def __init__(self) -> None:
        self.by_id: dict[str, LiveSubscription] = {}
        self.by_group: dict[GroupKey, dict[LiveSubscription, None]] = {}
        self._of_client: dict[str, int] = {}
        self._heap: list[tuple[float, int, LiveSubscription]] = []
        self._number = count()

    @property
    def next_due_s(self) -> float:
        """When `pop_due` may return a subscription; sometimes too early, never too late."""
        return self._heap[0][0] if self._heap else math.inf

    def count(self, client_id: str) -> int:
        """How many active subscriptions the client has."""
        return self._of_client.get(client_id, 0)

    def add(self, subscription: LiveSubscription) -> None:
        self.by_id[subscription.id] = subscription
        self._of_client[subscription.client_id] = self.count(subscription.client_id) + 1
        self.index_groups(subscription, subscription.groups)
        self._push(subscription.expires_s, subscription)
        if subscription.progress.held:
            self._push(subscription.progress.allowed_s, subscription)

    def remove(self, subscription: LiveSubscription) -> None:
        """Marks the subscription as ended, and removes it if it is here."""
        subscription.ended = True
        if self.by_id.pop(subscription.id, None) is None:
            return
        left = self.count(subscription.client_id) - 1
        if left:
            self._of_client[subscription.client_id] = left
        else:
            del self._of_client[subscription.client_id]
        self._unindex(subscription, subscription.groups)

    def index_groups(self, subscription: LiveSubscription, groups: tuple[TerminalAddress, ...]) -> None:
        """Sets the subscription's groups, by which `by_group` finds it."""
        self._unindex(subscription, set(subscription.groups).difference(groups))
        subscription.groups = groups
        for group in groups:
            self.by_group.setdefault((subscription.client_id, group), {})[subscription] = None

    def _unindex(self, subscription: LiveSubscription, groups: Iterable[TerminalAddress]) -> None:
        for group in groups:
            key = (subscription.client_id, group)
            members = self.by_group[key]
            del members[subscription]
            if not members:
                del self.by_group[key]

    def make_progress(self, subscription: LiveSubscription, progress: Progress) -> None:
        """Sets progress that was stored; removes the subscription if it has ended."""
        subscription.progress = progress
        if progress.end_reason is not None:
            self.remove(subscription)
        elif progress.held:
            self._push(progress.allowed_s, subscription)

    def renew(self, subscription: LiveSubscription, expires_at: datetime | None, expires_s: float) -> None:
        """Sets another end of the subscription (None, and infinity: none); `expires_s` is monotonic."""
        subscription.expires_at, subscription.expires_s = expires_at, expires_s
        self._push(expires_s, subscription)

    def on_clock_jumped(self, now: datetime, now_s: float) -> None:
        """Recomputes ends after the two clocks drifted apart. A subscription ends when the first of them reaches its
        end: the wall clock after the machine was suspended, the monotonic clock after the wall clock was set back."""
        for subscription in self.by_id.values():
            if subscription.expires_at is not None:
                left_s = (subscription.expires_at - now).total_seconds()
                subscription.expires_s = min(subscription.expires_s, now_s + left_s)
        self._rebuild()

    def pop_due(self, now_s: float) -> list[LiveSubscription]:
        """The subscriptions that are due, each once."""
        due: dict[LiveSubscription, None] = {}
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            subscription = heapq.heappop(heap)[2]
            if not subscription.ended and subscription.due_s <= now_s:
                due[subscription] = None
        return list(due)

    def _push(self, due_s: float, subscription: LiveSubscription) -> None:
        if due_s < math.inf:
            heapq.heappush(self._heap, (due_s, next(self._number), subscription))
        if len(self._heap) > 4 * len(self.by_id) + _SLACK:
            self._rebuild()

    def _rebuild(self) -> None:
        active = self.by_id.values()
        entries = [(one.expires_s, one) for one in active]
        entries += [(one.progress.allowed_s, one) for one in active if one.progress.held]
        self._heap = [(due_s, next(self._number), one) for due_s, one in entries if due_s < math.inf]
        heapq.heapify(self._heap)
