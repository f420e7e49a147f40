"""The thread that waits for the events of the completion queue, and the queue by which they reach the event loop.

Invariants: the tag of an event is a function that is called in the poller's thread with the event. It returns what the
event loop is to do (a function without arguments), or None. The loop is woken once for all that was queued since its
last pass.
"""

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined, unused-ignore]  # its types lack it

Step = Callable[[], object]

MAX_STEPS = 128
"""Most steps of one pass of the event loop: about 5 ms. Timers, HTTP and answers to fetches run between passes."""

_log = structlog.get_logger(__name__)


class Poller:
    """Polls `queue` from `start` until `finished`. To be made and used in a running event loop."""

    def __init__(self) -> None:
        self.queue: Any = cygrpc.CompletionQueue()
        self._loop = asyncio.get_running_loop()
        self._steps: deque[Step] = deque()
        self._wake_needed = True
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._poll, name="grpc poller", daemon=True)

    def start(self) -> None:
        self._loop.add_reader(self._descriptor, self._run_steps)
        self._thread.start()

    async def finish(self) -> None:
        """Ends the thread, after the events that the core still has."""
        self.queue.shutdown()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
            self._loop.remove_reader(self._descriptor)
            self._run_steps()
        os.close(self._descriptor)

    def _poll(self) -> None:
        poll, steps = self.queue.poll, self._steps
        while True:
            event = poll()
            if event.completion_type != cygrpc.CompletionType.operation_complete:
                return  # the queue is shut down, and empty
            try:
                step = event.tag(event)
            except Exception:  # the thread must not end: every call would hang
                _log.exception("grpc_event_failed")
                step = None
            del event  # before the next poll: it refers to a call, which must be freed when it has ended
            if step is not None:
                steps.append(step)
                if self._wake_needed:
                    self._wake_needed = False
                    os.eventfd_write(self._descriptor, 1)

    def _run_steps(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)
        steps = self._steps
        for _ in range(min(len(steps), MAX_STEPS)):  # the rest waits for the next pass: others have their turn
            steps.popleft()()
        # In this order: a step that the poller adds after the check finds the flag set, and wakes the loop.
        self._wake_needed = True
        if steps:
            self._wake_needed = False
            self._loop.call_soon(self._run_steps)
