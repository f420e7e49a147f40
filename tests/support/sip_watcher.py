"""A running watcher for tests, and an observer that keeps every report in order."""

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec

from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import (
    DocumentUnreadable,
    TerminalStatusError,
)
from app.domain.statuses import Liveness
from app.ports.sip import ReceivedNotify, WatchView
from app.settings.loading import Settings
from app.sip.protocol import Configure
from app.sip.settings import sip_configuration
from app.sip.watcher import SipWatcher
from tests.support.settings import settings_for
from tests.support.waiting import until

Report = Liveness | bytes | str
"""A liveness, the body of an observation, or `ended`."""

_numbers = itertools.count(1)


class Observer:
    """Keeps every report, by address."""

    def __init__(self) -> None:
        self.reported: dict[TerminalAddress, list[Report]] = {}
        self.unread: dict[TerminalAddress, list[str]] = {}
        self.reasons: dict[TerminalAddress, str] = {}
        self.errors: dict[TerminalAddress, TerminalStatusError | None] = {}

    def on_notify_received(self, address: TerminalAddress, notify: ReceivedNotify) -> None:
        self.reported.setdefault(address, []).append(notify.body)

    def on_notify_unreadable(self, address: TerminalAddress, error: DocumentUnreadable) -> None:
        self.unread.setdefault(address, []).append(error.details["reason"])

    def on_liveness_changed(
        self, address: TerminalAddress, liveness: Liveness, reason: str, error: TerminalStatusError | None
    ) -> None:
        self.reported.setdefault(address, []).append(liveness)
        self.reasons[address], self.errors[address] = reason, error

    def on_watch_ended(self, address: TerminalAddress, reason: str, error: TerminalStatusError | None) -> None:
        self.reported.setdefault(address, []).append("ended")
        self.reasons[address], self.errors[address] = reason, error

    def liveness(self, address: TerminalAddress) -> Liveness | None:
        """The liveness that was reported last; None before the first report and after the end."""
        last = next((each for each in reversed(self.reported.get(address, [])) if not isinstance(each, bytes)), None)
        return last if isinstance(last, Liveness) else None

    def bodies(self, address: TerminalAddress) -> list[bytes]:
        """The bodies of all observations."""
        return [each for each in self.reported.get(address, []) if isinstance(each, bytes)]

    def live(self, addresses: Iterable[TerminalAddress]) -> bool:
        """Whether all of these terminals are LIVE."""
        return all(self.liveness(address) is Liveness.LIVE for address in addresses)


@contextlib.asynccontextmanager
async def watching(
    presence_server: str, *, workers: int = 1, configure: dict[str, object] | None = None, **settings: object
) -> AsyncIterator[tuple[SipWatcher, Observer]]:
    """A running watcher; `configure` changes the configuration beyond what settings allow."""
    what = msgspec.structs.replace(configuration(presence_server, **settings), **(configure or {}))
    watcher, observer = SipWatcher(what, workers=workers), Observer()
    watcher.set_observer(observer)
    await watcher.start()
    try:
        yield watcher, observer
    finally:
        await watcher.aclose()


def terminal(user: str = "") -> TerminalAddress:
    """An address that no other test uses; without a given user part the sandbox serves it honestly."""
    number = next(_numbers)
    return parse_address(f"sip:{user or f'terminal-{number}'}@n{number}.example.com")


def user_of(address: TerminalAddress) -> str:
    """The name of the terminal in the sandbox: its user part."""
    return address.removeprefix("sip:").partition("@")[0]


async def view(watcher: SipWatcher, address: TerminalAddress) -> WatchView:
    """The watch's line in the list of watches."""
    return next(each for each in await watcher.watches() if each.address == address)


async def until_seen(
    watcher: SipWatcher, address: TerminalAddress, condition: Callable[[WatchView], bool]
) -> WatchView:
    """Waits until the watch's line in the list of watches meets the condition, and returns that line."""

    async def seen() -> WatchView | None:
        line = await view(watcher, address)
        return line if condition(line) else None

    found: WatchView = await until(seen)
    return found


async def started(watcher: SipWatcher, observer: Observer, *addresses: TerminalAddress) -> None:
    """Watches these terminals, and waits until they are LIVE."""
    for address in addresses:
        watcher.watch(address)
    await until(lambda: observer.live(addresses))


def configuration(presence_server: str, **changes: object) -> Configure:
    """A watcher's configuration: UDP unless the test sets another transport, no OPTIONS probes, and counts reported at
    once."""
    if ";transport=" not in presence_server:
        presence_server += ";transport=udp"
    settings: Settings = settings_for(presence_server, **{"probe_every_s": 0, **changes})
    return msgspec.structs.replace(sip_configuration(settings, "test"), counts_every_s=0.02)
