"""The open streams: how many a client has, when each is sent a bookmark, and how they end.

Invariants: every stream is sent a bookmark in each `bookmark_s`, also without changes. BOOKMARKS_AT_ONCE streams make
their tokens together, the others a moment later: a token of a thousand terminals takes 1 ms, and nothing else runs
meanwhile.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence

from app.domain.errors import TooManyStreams
from app.live.events import StreamEnd
from app.live.mailbox import Stream

_TICKS = 4
"""Number of ticks in `bookmark_s`; a part of the streams is sent bookmarks in each tick."""
BOOKMARKS_AT_ONCE = 40
BOOKMARKS_EVERY_S = 0.02


class OpenStreams:
    """One per process, in one event loop."""

    def __init__(self, *, bookmark_s: float, max_streams: int, now_s: float) -> None:
        """`bookmark_s` is the longest time between two resume tokens of a stream; `max_streams` is of all clients."""
        self._max_streams = max_streams
        self.bookmark_s = bookmark_s
        self._tick_s = bookmark_s / _TICKS
        self._ticked_s = now_s
        self._streams: dict[Stream, None] = {}
        self._of_client: Counter[str] = Counter()
        self.stopping = False
        """Whether `end_all` was called."""

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams)

    def __contains__(self, stream: Stream) -> bool:
        return stream in self._streams

    def require_room(self, client_id: str, max_of_client: int) -> None:
        """Raises TooManyStreams."""
        if self._of_client[client_id] >= max_of_client:
            raise TooManyStreams(
                f"Limit reached: {max_of_client} open streams. Close one, or ask the operator to raise `max_streams`."
            )
        if len(self._streams) >= self._max_streams:
            raise TooManyStreams(f"Limit reached: {self._max_streams} open streams of all clients. Try again later.")

    def add(self, stream: Stream) -> None:
        stream.ticks = len(self._streams) % _TICKS  # so that not all make their tokens at once
        self._streams[stream] = None
        self._of_client[stream.client_id] += 1

    def remove(self, stream: Stream) -> None:
        del self._streams[stream]
        self._of_client[stream.client_id] -= 1
        if not self._of_client[stream.client_id]:
            del self._of_client[stream.client_id]

    def end_of_client(self, client_id: str) -> None:
        """Ends the client's streams (CREDENTIALS_EXPIRED)."""
        for stream in self._streams:
            if stream.client_id == client_id:
                stream.end(StreamEnd.CREDENTIALS_EXPIRED)

    def end_all(self) -> None:
        """Ends every stream (GATEWAY_STOPPING), and makes new ones end at once."""
        self.stopping = True
        for stream in self._streams:
            stream.end(StreamEnd.GATEWAY_STOPPING)

    @property
    def next_due_s(self) -> float:
        """When `tick` has something to do."""
        return self._ticked_s + self._tick_s

    def tick(self, now_s: float) -> None:
        """Sends the bookmarks that are due. Call it at `next_due_s`."""
        if now_s < self.next_due_s:
            return
        self._ticked_s = now_s
        due: list[Stream] = []
        for stream in self._streams:
            stream.ticks += 1
            if stream.ticks >= _TICKS:
                stream.ticks = 0
                due.append(stream)
        self._send_bookmarks(due)

    def _send_bookmarks(self, due: Sequence[Stream]) -> None:
        for stream in due[:BOOKMARKS_AT_ONCE]:
            stream.bookmark()
        if rest := due[BOOKMARKS_AT_ONCE:]:
            asyncio.get_running_loop().call_later(BOOKMARKS_EVERY_S, self._send_bookmarks, rest)
