"""Streams over gRPC, read by a test."""

import asyncio
from typing import Any

from tests.support.waiting import DEADLINE_S


async def until_status(stream: Any, status: int, deadline_s: float = 3 * DEADLINE_S) -> None:
    """Reads until a snapshot item or a change has the status. The default deadline covers a gateway that was killed and
    restarts."""
    async with asyncio.timeout(deadline_s):
        async for event in stream:
            if status in (event.snapshot_item.status.status, event.change.status.status):
                return
    raise AssertionError("the stream ended")
