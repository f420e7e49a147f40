"""Waits for conditions that another task, process or socket makes true."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

DEADLINE_S = 20.0
"""How long a test waits for what must happen. A test fails at the deadline, and never passes by reaching it."""

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.02


async def until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> Any:
    """Calls the condition (a function or a coroutine function) until it returns a true value; returns that value.

    Raises TimeoutError at the deadline.
    """
    pause_s = _SHORTEST_PAUSE_S
    async with asyncio.timeout(deadline_s):
        while True:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(pause_s)
            pause_s = min(1.3 * pause_s, _LONGEST_PAUSE_S)


def until_blocking(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Like `until`, for tests without an event loop."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError
        time.sleep(_LONGEST_PAUSE_S)
