"""A watch whose presence server is played by the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.domain.addresses import TerminalAddress
from app.sip.watcher import SipWatcher
from tests.support.sip_notifier import Asked, ScriptedNotifier
from tests.support.sip_watcher import Observer, terminal, until_seen, watching
from tests.support.waiting import until


@asynccontextmanager
async def scene(
    transport: str, **settings: Any
) -> AsyncIterator[tuple[ScriptedNotifier, SipWatcher, Observer, TerminalAddress, Asked]]:
    """A watch whose first SUBSCRIBE has arrived and is not yet answered."""
    async with ScriptedNotifier(transport) as server, watching(server.uri, **settings) as (watcher, observer):
        address = terminal()
        watcher.watch(address)
        yield server, watcher, observer, address, await server.asked()


async def until_refused(watcher: SipWatcher, reason: str, count: int = 1) -> None:
    await until(lambda: watcher.counts().refused.get(reason, 0) >= count)


async def refresh(watcher: SipWatcher, address: TerminalAddress) -> None:
    """Forces a refresh, as an operator can, once the last SUBSCRIBE has been answered."""
    await until_seen(watcher, address, lambda seen: seen.next_action == "refresh")
    watcher.refresh(address)
