"""The timers of all watches: a heap with at most one valid entry for each watch.

A timer that is set to a later time leaves its entry where it is; when the entry comes up, it moves. So a refresh that
only postpones the timer costs no entry.
"""

import heapq
from collections.abc import Iterator

from app.sip.worker.watch import Watch


class WatchTimers:
    """The heap of timers."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Watch]] = []
        self._order = 0

    def set(self, watch: Watch, at_s: float) -> None:
        """Sets the watch's timer, replacing its earlier time."""
        watch.timer_at_s = at_s
        self._add(watch)

    def fired(self, now_s: float) -> Iterator[Watch]:
        """Yields each watch whose timer is due; its timer is then unset."""
        entries = self._entries
        while entries and entries[0][0] <= now_s:
            at_s, _, watch = heapq.heappop(entries)
            if watch.timer_entry_s != at_s:
                continue  # an earlier entry replaced this one
            watch.timer_entry_s = 0.0
            if watch.timer_at_s > now_s:
                self._add(watch)
            elif watch.timer_at_s:
                watch.timer_at_s = 0.0
                yield watch

    @property
    def next_s(self) -> float | None:
        """When the first entry comes up; None where there is none."""
        return self._entries[0][0] if self._entries else None

    def _add(self, watch: Watch) -> None:
        if not watch.timer_entry_s or watch.timer_at_s < watch.timer_entry_s:
            self._order += 1
            watch.timer_entry_s = watch.timer_at_s
            heapq.heappush(self._entries, (watch.timer_at_s, self._order, watch))
