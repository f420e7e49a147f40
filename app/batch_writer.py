"""A background task that writes gathered items to the store, one batch in each transaction (`BatchWriter`).

Used for usage records (`core/usage.py`) and for the results of deliveries (`delivery/recorder.py`).

Not used by the writer of statuses (`live/writer.py`), whose batches also contain due subscriptions, nor by the purge
and the encryption (`core/`), which gather no items.
"""

import asyncio
from collections.abc import Awaitable, Callable


class BatchWriter:
    """Calls `write_batch` while items wait, until it is closed. `start` it in the event loop.

    `write_batch` writes the oldest items, which no longer count as waiting. If it raises, nothing is lost: `on_failed`
    is called with the exception, and the same items are tried again after `retry_s` seconds.
    `waiting` returns how many items wait.
    `gather_s` is how long the first item waits for more to share its transaction; a `full` batch does not wait.
    """

    def __init__(
        self,
        name: str,
        write_batch: Callable[[], Awaitable[None]],
        *,
        waiting: Callable[[], int],
        on_failed: Callable[[Exception], None],
        retry_s: float,
        gather_s: float = 0.0,
        full: int = 1,
    ) -> None:
        self._name = name
        self._write_batch = write_batch
        self._waiting = waiting
        self._on_failed = on_failed
        self._retry_s = retry_s
        self._gather_s = gather_s
        self._full = full
        self._some = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to write."""
        self._task = asyncio.create_task(self._write_until_closed(), name=self._name)

    def wake(self) -> None:
        """Call this when an item waits and none waited before."""
        self._some.set()

    async def aclose(self, limit_s: float) -> None:
        """Writes the waiting items, within `limit_s` seconds."""
        if self._task is None:
            return
        self._closing = True
        self._some.set()
        await asyncio.wait({self._task}, timeout=limit_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _write_until_closed(self) -> None:
        while True:
            if not self._waiting():
                if self._closing:
                    return
                self._some.clear()
                await self._some.wait()
                continue
            if self._gather_s and not self._closing and self._waiting() < self._full:
                await asyncio.sleep(self._gather_s)
            try:
                await self._write_batch()
            except Exception as error:
                self._on_failed(error)
                await asyncio.sleep(self._retry_s)
