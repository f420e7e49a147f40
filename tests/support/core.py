"""The use cases over a real SQLite store, with a played presence server and clocks that the test moves."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

from app.auth.authenticator import Authenticator
from app.auth.policies import Policies
from app.core.fetcher import FetchService
from app.core.groups import GroupService
from app.core.queries import QueryService
from app.core.streams import StreamService
from app.core.subscription_changes import SubscriptionChanges
from app.core.subscription_requests import SubscriptionRequest
from app.core.subscriptions import SubscriptionService
from app.core.usage import UsageLog
from app.core.use_cases import UseCases
from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    StoreUnavailable,
    TerminalStatusError,
    TerminalUnknown,
    WatcherRefused,
)
from app.domain.filters import NotificationFilter, UsageFilter
from app.domain.operations import Face
from app.domain.policy import Policy
from app.domain.records import Client, NotificationKind, OwedNotification, Subscription, UsageRecord
from app.domain.sinks import Sink, SinkKind
from app.domain.statuses import Liveness, Status
from app.live.engine import DEFAULT_TUNING, Tuning
from app.live.events import StreamEvent
from app.live.group_directory import GroupDirectory
from app.ports.delivery import Sender, Sent
from app.ports.sip import ReceivedNotify, WatchObserver, WatchView
from app.ports.store import Page, Store
from app.sinks import SINK_CONTRACTS
from app.store import SqlStore, migrate, open_store
from app.wiring import Live, make_live, make_use_cases
from tests.support.fakes import ON_THE_PHONE, OPEN, FakeMeter
from tests.support.waiting import until

BEGAN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
ALICE, BOB, CAROL = (TerminalAddress(f"sip:{name}@example.com") for name in ("alice", "bob", "carol"))
TEAM, ALL = TerminalAddress("sip:team@groups.example.com"), TerminalAddress("sip:all@groups.example.com")
APP = Client(id="app", name="App", created_at=BEGAN)
OTHER = Client(id="other", name="Other", created_at=BEGAN)
ADMIN = Client(id="admin", name="Admin", created_at=BEGAN, admin=True)
WEBHOOK = Sink(kind=SinkKind.WEBHOOK, url="https://example.com/hook", profile="v1")
SOAP = Sink(kind=SinkKind.SOAP, url="http://example.com/soap", profile="v2_2")
REACHABLE, UNREACHABLE, BUSY = Status.REACHABLE, Status.UNREACHABLE, Status.BUSY
BODIES = {REACHABLE: OPEN, UNREACHABLE: b"", BUSY: ON_THE_PHONE}


@dataclass
class Clocks:
    """A wall clock and a monotonic one, which move when the test says so."""

    now: datetime = BEGAN
    now_s: float = 1000.0

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.now_s += seconds


@dataclass
class PlayedWatcher:
    """A watcher whose observations the test plays. As with the real one, only watched terminals are observed."""

    clocks: Clocks
    ready: bool = True
    presence_up: bool = True
    wanted: dict[TerminalAddress, None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    answer: Callable[[TerminalAddress], Status | TerminalStatusError | None] = lambda _: REACHABLE
    """What fetches are answered; None never answers."""
    fetched: list[TerminalAddress] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    _observer: WatchObserver | None = None

    def set_observer(self, observer: WatchObserver) -> None:
        self._observer = observer

    def watch(self, address: TerminalAddress, client_id: str = "") -> None:
        if address in self.wanted:
            return
        self.asked.append(f"watch {address}")
        self.wanted[address] = None

    def unwatch(self, address: TerminalAddress) -> None:
        self.asked.append(f"unwatch {address}")
        self.wanted.pop(address, None)

    def refresh(self, address: TerminalAddress) -> None:
        self.asked.append(f"refresh {address}")

    async def watches(self) -> list[WatchView]:
        return []

    async def fetch(self, address: TerminalAddress, client_id: str = "") -> ReceivedNotify:
        self.fetched.append(address)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            answer = self.answer(address)
            if answer is None:
                await asyncio.Event().wait()
            if isinstance(answer, TerminalStatusError):
                raise answer
            return self._notify(cast("Status", answer), self.clocks.now)
        finally:
            self.in_flight -= 1

    def play(self, address: TerminalAddress, status: Status, at: datetime | None = None) -> None:
        """The presence server reports the status; from then on the watch is live."""
        assert self._observer is not None
        if address in self.wanted:
            self._observer.on_notify_received(address, self._notify(status, at or self.clocks.now))
            self._observer.on_liveness_changed(address, Liveness.LIVE, "", None)

    def send(self, address: TerminalAddress, body: bytes) -> None:
        """The presence server sends a NOTIFY with this body."""
        assert self._observer is not None
        self._observer.on_notify_received(
            address,
            ReceivedNotify(
                body=body,
                content_type="application/pidf+xml",
                content_encoding="",
                observed_at=self.clocks.now,
            ),
        )

    def lose(self, address: TerminalAddress, reason: str = "the presence server does not answer") -> None:
        """The watch loses contact with the presence server."""
        assert self._observer is not None
        self._observer.on_liveness_changed(address, Liveness.STALE, reason, None)

    def say(self, address: TerminalAddress, liveness: Liveness, error: TerminalStatusError | None) -> None:
        """The watch has this liveness from now on, for this reason."""
        assert self._observer is not None
        self._observer.on_liveness_changed(address, liveness, "said" if error else "", error)

    def fail(self, address: TerminalAddress, error: TerminalStatusError) -> None:
        """The watch ends with an error."""
        assert self._observer is not None
        self.wanted.pop(address)
        self._observer.on_watch_ended(address, "ended", error)

    def _notify(self, status: Status, at: datetime) -> ReceivedNotify:
        return ReceivedNotify(
            body=BODIES[status], content_type="application/pidf+xml", content_encoding="", observed_at=at
        )


class FaultyStore:
    """A store with faults that the test asks for. All other calls go to the real store."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.away = False
        """Whether every call raises StoreUnavailable."""
        self.before_write: Callable[[Any], Any] | None = None
        """Awaited with the changes before each write; may raise."""
        self.writes: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if self.away and callable(method):
            raise StoreUnavailable("The test has taken the database away.")
        return method

    async def write(self, changes: Any) -> Any:
        if self.before_write is not None:
            await self.before_write(changes)
        if self.away:
            raise StoreUnavailable("The test has taken the database away.")
        self.writes.append(changes)
        return await self._store.write(changes)


@dataclass
class FakeSender:
    """A sender whose endpoint checks have the result that the test sets."""

    error: TerminalStatusError | None = None
    checked: list[Subscription] = field(default_factory=list)

    async def check(self, subscription: Subscription) -> None:
        self.checked.append(subscription)
        if self.error is not None:
            raise self.error

    async def send(self, subscription: Subscription, notification: OwedNotification) -> Sent:
        raise NotImplementedError


@dataclass
class Core:
    """One gateway's use cases."""

    store: FaultyStore
    clocks: Clocks
    watcher: PlayedWatcher
    policies: Policies
    live: Live
    fetcher: FetchService
    usage: UsageLog
    senders: Mapping[SinkKind, Sender]
    sender: FakeSender
    hints: list[str] = field(default_factory=list)
    use_cases: UseCases = field(init=False)

    def authenticator(self, **options: Any) -> Authenticator:
        """An authenticator that uses this core's clocks."""
        options.setdefault("monotonic", lambda: self.clocks.now_s)
        return Authenticator(cast("Store", self.store), clock=lambda: self.clocks.now, **options)

    def make_use_cases(self, auth: Authenticator, **options: Any) -> UseCases:
        """The use cases as the gateway wires them, without delivery."""
        use_cases = make_use_cases(
            self.live,
            cast("Store", self.store),
            self.watcher,
            self.fetcher,
            self.senders,
            self.policies,
            auth,
            self.usage,
            clock=lambda: self.clocks.now,
            clock_s=lambda: self.clocks.now_s,
            **options,
        )
        use_cases.deliveries.on_notifications_owed = lambda: self.hints.append("again")
        return use_cases

    @property
    def directory(self) -> GroupDirectory:
        return self.live.directory

    @property
    def groups(self) -> GroupService:
        return self.use_cases.groups

    @property
    def streams(self) -> StreamService:
        return self.use_cases.streams

    @property
    def subscription_changes(self) -> SubscriptionChanges:
        return self.use_cases.subscription_changes

    @property
    def subscriptions(self) -> SubscriptionService:
        return self.use_cases.subscriptions

    @property
    def queries(self) -> QueryService:
        return self.use_cases.queries

    async def settled(self) -> None:
        """Waits until all observations are written."""
        await until(lambda: not self.live.engine.figures()["waiting"])

    async def advance(self, seconds: float) -> None:
        """Moves the clocks, and waits until everything that is due is done."""
        self.clocks.advance(seconds)
        for _ in range(2):  # the round that was running may have read the clock before
            rounds = self.live.engine.rounds
            self.live.engine.wake()
            for stream in self.live.streams:
                stream.wake()
            await until(partial(self._looked_since, rounds))
        await self.settled()

    def _looked_since(self, rounds: int) -> bool:
        return self.live.engine.rounds > rounds

    async def play(self, address: TerminalAddress, status: Status) -> None:
        """The presence server reports the status, and everything that follows is written."""
        self.watcher.play(address, status)
        await self.settled()

    async def subscribe(self, *addresses: str, client: Client = APP, **request: Any) -> Subscription:
        return await self.subscriptions.create(
            client, SubscriptionRequest(addresses=addresses, **request), face=Face.GRPC
        )

    async def owed(self, subscription: Subscription) -> list[OwedNotification]:
        """The subscription's notifications, in order."""
        found, token = await self.store.notifications(
            Page(size=1000), NotificationFilter(subscription_id=subscription.id)
        )
        assert not token
        return cast("list[OwedNotification]", found)

    async def owed_in_short(self, subscription: Subscription) -> list[str]:
        """The subscription's notifications, in short: `alice BUSY`, `ENDED EXPIRED`, `ERROR bob TERMINAL_UNKNOWN`."""
        return [short(one) for one in await self.owed(subscription)]

    async def stored(self, subscription: Subscription) -> Subscription:
        found = await self.store.subscription(subscription.id)
        assert found is not None
        return cast("Subscription", found)

    async def usage_records(self) -> list[UsageRecord]:
        await until(lambda: not self.usage.buffered)
        records, _ = await self.store.usage(Page(size=1000), UsageFilter(start=BEGAN - timedelta(days=1)))
        return cast("list[UsageRecord]", records)


def short(one: OwedNotification) -> str:
    """A notification in a few words."""
    if one.kind is NotificationKind.STATUS:
        return ", ".join(f"{name(change.address)} {change.status.name}" for change in one.changes)
    words = [one.kind.name, name(one.address) if one.address else "", one.code]
    return " ".join(word for word in words if word)


def name(address: str) -> str:
    """The user part of an address."""
    return address.partition(":")[2].partition("@")[0]


_TEMPLATE: dict[str, Path] = {}


async def new_database(directory: Path) -> str:
    """The URL of a new database in the directory: a copy of a database that is migrated once per run."""
    target = directory / "core.sqlite3"
    template = _TEMPLATE.get("path")
    if template is None or not template.exists():
        template = directory / "template.sqlite3"
        await migrate(f"sqlite:///{template}")
        _TEMPLATE["path"] = template
    shutil.copy(template, target)
    return f"sqlite:///{target}"


def nobody_waits(subscription: Subscription) -> Callable[[], Awaitable[None]]:
    """Stands for the deliverer: nothing is delivered here, so nothing is in flight."""

    async def waited() -> None:
        pass

    return waited


@asynccontextmanager
async def run_core(
    url: str,
    *,
    clocks: Clocks | None = None,
    policy: Policy | None = None,
    tuning: Tuning = DEFAULT_TUNING,
    reread_s: float | None = None,
    clients: Sequence[Client] = (APP, OTHER, ADMIN),
    senders: Mapping[SinkKind, Sender] | None = None,
    withdrawn: Callable[[Subscription], Callable[[], Awaitable[None]]] = nobody_waits,
    entropy: Callable[[int], bytes] = secrets.token_bytes,
    crash: bool = False,
    secret_key_file: Path | None = None,
    busy_when_closed: bool = False,
    fetch_timeout_s: float = 0.2,
) -> AsyncIterator[Core]:
    """The use cases over the database at `url`. With `crash` they are cancelled at the end, as `kill -9` would do."""
    clocks = clocks or Clocks()
    async with await open_store(url, secret_key_file=secret_key_file) as sql:
        faulty = FaultyStore(sql)
        store = cast("Store", faulty)
        known = {client.id for client in await sql.clients()}
        for client in clients:
            if client.id not in known:
                await sql.put_client(client)
        watcher = PlayedWatcher(clocks)
        policies = Policies(policy or Policy(), lambda: clocks.now_s)
        live = make_live(
            store,
            watcher,
            policies,
            SINK_CONTRACTS,
            busy_activities={"on-the-phone", "busy"},
            busy_when_closed=busy_when_closed,
            clock=lambda: clocks.now,
            clock_s=lambda: clocks.now_s,
            tuning=replace(tuning, close_s=0.01) if crash else tuning,
            reread_s=reread_s,
        )
        sender = FakeSender()
        core = Core(
            faulty,
            clocks,
            watcher,
            policies,
            live,
            FetchService(
                watcher,
                FakeMeter(),
                busy_activities={"on-the-phone", "busy"},
                busy_when_closed=busy_when_closed,
                fetch_timeout_s=fetch_timeout_s,
                max_fetches=10_000,
            ),
            UsageLog(store, lambda: clocks.now, policies),
            senders if senders is not None else {SinkKind.WEBHOOK: sender, SinkKind.SOAP: sender},
            sender,
        )
        core.use_cases = core.make_use_cases(core.authenticator(open_allowed=True), entropy=entropy)
        live.writer.on_notifications_owed = lambda: core.hints.append("owed")
        core.subscriptions.on_withdrawn = withdrawn
        await live.directory.reload()
        await core.usage.start()
        await live.engine.start()
        try:
            yield core
        finally:
            if crash:
                faulty.away = True
            else:
                faulty.away, faulty.before_write = False, None
            await live.engine.aclose()
            await core.usage.aclose()


class Reading:
    """Reads a stream in the background and keeps all of its events."""

    def __init__(self, events: Any) -> None:
        self.events: list[StreamEvent] = []
        self.error: BaseException | None = None
        self._stream = events
        self._task = asyncio.create_task(self._read(), name="reading")

    async def _read(self) -> None:
        try:
            async for event in self._stream:
                self.events.append(event)
        except TerminalStatusError as error:
            self.error = error

    async def until(self, true: Callable[[list[StreamEvent]], object]) -> list[StreamEvent]:
        """Waits until the condition holds for the events that were read."""
        await until(lambda: true(self.events) or self.error)
        if self.error is not None:
            raise self.error
        return self.events

    async def some(self, kind: type, number: int = 1) -> list[Any]:
        """Waits for this number of events of one kind, and returns all events of that kind."""
        await self.until(lambda events: sum(isinstance(event, kind) for event in events) >= number)
        return [event for event in self.events if isinstance(event, kind)]

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._stream.aclose()


@asynccontextmanager
async def reading(core: Core, *addresses: str, client: Client = APP, **options: Any) -> AsyncIterator[Reading]:
    """Opens a stream and reads it from its start."""
    reader = Reading(core.streams.stream(client, addresses, **options))
    try:
        yield reader
    finally:
        await reader.aclose()


UNKNOWN = TerminalUnknown("The presence server answered 404.")


REFUSED = WatcherRefused("The presence server answered 403.")
