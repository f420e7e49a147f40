"""Makes the use cases of one gateway from their parts, and connects their callbacks.

Each part gets the parts below it as arguments. It reports events upwards by callbacks `on_…`, all of which are set
here.
Invariants: parts are stopped in the reverse order of their start. No call is served before the store was read.

Deliberately absent: sockets, TLS and the command line (`main.py`).
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import datetime

import structlog

from app.auth.authenticator import Authenticator, TokenVerifier, listens_on_loopback
from app.auth.clients import ClientFollower, ClientRegistry
from app.auth.policies import Policies
from app.auth.proxies import TrustedProxies
from app.core.administration import Administration
from app.core.deliveries import Deliveries
from app.core.encryption import encrypt_sinks
from app.core.fetcher import FetchService
from app.core.groups import GroupService
from app.core.queries import QueryService
from app.core.retention import keep_for
from app.core.streams import StreamService
from app.core.subscription_changes import SubscriptionChanges
from app.core.subscriptions import SubscriptionService
from app.core.tickets import Tickets
from app.core.usage import UsageLog
from app.core.use_cases import UseCases
from app.delivery.deliverer import Deliverer
from app.domain.policy import Policy
from app.domain.records import Subscription
from app.domain.sink_contracts import SinkContracts
from app.domain.sinks import EndReason, SinkKind
from app.live.engine import DEFAULT_TUNING, Engine, Tuning
from app.live.group_directory import GroupDirectory
from app.live.group_follower import GroupFollower
from app.live.index import SubscriptionIndex
from app.live.last_statuses import LastStatuses
from app.live.lifecycle import Lifecycle
from app.live.open_streams import OpenStreams
from app.live.other_nodes import OtherNodes
from app.live.registry import TerminalRegistry
from app.live.restore import SubscriptionLoader
from app.live.writer import StatusWriter
from app.ports.delivery import Sender
from app.ports.sip import Watcher
from app.ports.store import Store
from app.settings.loading import Settings
from app.sinks import SINK_CONTRACTS

CLOSE_LIMIT_S = 8.0
"""Time limit of all writes at shutdown together, in seconds: the database may hang."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The parts of `live/`, made and connected by `make_live`."""

    registry: TerminalRegistry
    last_statuses: LastStatuses
    index: SubscriptionIndex
    writer: StatusWriter
    streams: OpenStreams
    directory: GroupDirectory
    lifecycle: Lifecycle
    engine: Engine
    other_nodes: OtherNodes | None


def make_live(
    store: Store,
    watcher: Watcher,
    policies: Policies,
    contracts: SinkContracts,
    *,
    busy_activities: Set[str],
    busy_when_closed: bool,
    clock: Callable[[], datetime],
    clock_s: Callable[[], float],
    tuning: Tuning = DEFAULT_TUNING,
    reread_s: float | None = None,
) -> Live:
    """Makes the parts of `live/`. `clock` gives the time in UTC, `clock_s` monotonic seconds. `reread_s` is for several
    gateways on one database (`other_nodes.py`); None if there is only one."""
    registry = TerminalRegistry(
        watcher,
        busy_activities=busy_activities,
        busy_when_closed=busy_when_closed,
        clock=clock,
        clock_s=clock_s,
        linger_s=tuning.linger_s,
        max_terminals=tuning.max_terminals,
    )
    index, directory, last_statuses = SubscriptionIndex(), GroupDirectory(store), LastStatuses(registry)
    streams = OpenStreams(bookmark_s=tuning.bookmark_s, max_streams=tuning.max_streams, now_s=clock_s())
    writer = StatusWriter(store, registry, index, clock=clock, clock_s=clock_s)
    lifecycle = Lifecycle(
        store, registry, index, writer, streams, directory, policies, contracts, clock=clock, clock_s=clock_s
    )
    loader = SubscriptionLoader(store, registry, writer, directory, policies, contracts, clock=clock, clock_s=clock_s)
    follower = GroupFollower(store, registry, index, writer, streams, directory, policies)
    other_nodes = None
    if reread_s is not None:
        other_nodes = OtherNodes(store, registry, writer, directory, reread_s=reread_s, now_s=clock_s())
    engine = Engine(
        watcher,
        registry,
        index,
        writer,
        lifecycle,
        loader,
        follower,
        streams,
        other_nodes,
        clock=clock,
        clock_s=clock_s,
        tuning=tuning,
    )
    registry.on_work = lifecycle.on_work = engine.wake
    if other_nodes is not None:
        other_nodes.on_work = engine.wake
    registry.on_unwatched = last_statuses.on_unwatched
    directory.on_group_changed = engine.on_group_changed
    return Live(
        registry=registry,
        last_statuses=last_statuses,
        index=index,
        writer=writer,
        streams=streams,
        directory=directory,
        lifecycle=lifecycle,
        engine=engine,
        other_nodes=other_nodes,
    )


def make_use_cases(
    live: Live,
    store: Store,
    watcher: Watcher,
    fetcher: FetchService,
    senders: Mapping[SinkKind, Sender],
    policies: Policies,
    auth: Authenticator,
    usage: UsageLog,
    *,
    clock: Callable[[], datetime],
    clock_s: Callable[[], float],
    entropy: Callable[[int], bytes] = secrets.token_bytes,
) -> UseCases:
    """Makes the use cases over `live`. `clock` gives the time in UTC, `clock_s` monotonic seconds; `entropy(n)` gives n
    unguessable bytes."""
    queries = QueryService(fetcher, live.registry, live.last_statuses, live.directory, policies, usage, clock)
    subscriptions = SubscriptionService(
        store,
        live.lifecycle,
        live.directory,
        policies,
        usage,
        senders,
        SINK_CONTRACTS,
        clock,
        queries.require_known,
        entropy=entropy,
    )
    streams = StreamService(
        live.registry, live.writer, live.streams, live.directory, policies, live.other_nodes, clock_s=clock_s
    )
    clients = ClientRegistry(
        store,
        clock=clock,
        contracts=SINK_CONTRACTS,
        on_changed=auth.forget,
        delete=subscriptions.delete_client,
        on_disabled=streams.end_streams_of,
    )
    return UseCases(
        auth=auth,
        queries=queries,
        streams=streams,
        subscriptions=subscriptions,
        subscription_changes=SubscriptionChanges(
            store, live.lifecycle, live.directory, policies, senders, SINK_CONTRACTS, clock, entropy=entropy
        ),
        groups=GroupService(store, live.directory, policies, clock),
        deliveries=Deliveries(store, clock, policies, SINK_CONTRACTS),
        usage=usage,
        clients=clients,
        administration=Administration(store, watcher, clients, live.registry, clock),
        tickets=Tickets(store, auth, policies, clock, entropy=entropy),
        policies=policies,
        engine=live.engine,
        registry=live.registry,
    )


def connect_delivery(live: Live, use_cases: UseCases, deliverer: Deliverer) -> None:
    """Connects the callbacks that wake the deliverer for due notifications, and report changed sinks and withdrawn
    notifications to it."""
    live.writer.on_notifications_owed = use_cases.deliveries.on_notifications_owed = deliverer.hint
    use_cases.subscription_changes.on_sink_changed = deliverer.sink_changed
    use_cases.subscriptions.on_withdrawn = deliverer.withdrawn


@asynccontextmanager
async def run_use_cases(
    settings: Settings,
    store: Store,
    watcher: Watcher,
    fetcher: FetchService,
    senders: Mapping[SinkKind, Sender],
    *,
    clock: Callable[[], datetime],
    monotonic: Callable[[], float],
    tokens: TokenVerifier | None,
    on_attempted: Callable[[str, float], None],
    open_is_admin: bool = False,
) -> AsyncIterator[UseCases]:
    """Makes the use cases, starts their background tasks, and stops them at the end. With `open_is_admin`, callers on
    this machine are operators while no client is configured. Raises StoreUnavailable."""
    policies = Policies(Policy(**{each.name: getattr(settings, each.name) for each in fields(Policy)}), monotonic)
    live = make_live(
        store,
        watcher,
        policies,
        SINK_CONTRACTS,
        busy_activities=settings.busy_activities,
        busy_when_closed=settings.busy_when_closed,
        clock=clock,
        clock_s=monotonic,
        tuning=Tuning(linger_s=settings.linger_s, bookmark_s=settings.bookmark_s),
    )
    usage = UsageLog(store, clock, policies)
    auth = _authenticator(settings, store, tokens, clock=clock, monotonic=monotonic, open_is_admin=open_is_admin)
    use_cases = make_use_cases(
        live, store, watcher, fetcher, senders, policies, auth, usage, clock=clock, clock_s=monotonic
    )

    def on_ended_by_endpoint(subscription: Subscription, _reason: EndReason) -> None:
        live.lifecycle.on_ended_in_store(subscription.id)

    deliverer = Deliverer(
        store,
        senders,
        owner=secrets.token_hex(8),
        clock=clock,
        on_ended=on_ended_by_endpoint,
        send_limit_s=settings.sink_timeout_ms / 1000 + 5,
        on_attempted=on_attempted,
    )
    connect_delivery(live, use_cases, deliverer)

    async def on_client_deleted(client_id: str) -> None:
        auth.forget()  # first: a cached key would let the client open a stream again at once
        await live.lifecycle.on_client_deleted(client_id)

    def on_client_disabled(client_id: str) -> None:
        auth.forget()
        use_cases.streams.end_streams_of(client_id)

    follower = ClientFollower(store, on_deleted=on_client_deleted, on_disabled=on_client_disabled)
    await usage.start()
    try:
        await live.directory.reload()
        await live.engine.start()
        deliverer.start()
        keeping = keep_for(
            store, clock, deliveries_days=settings.delivery_retention_days, usage_days=settings.usage_retention_days
        )
        beside = [
            asyncio.create_task(follower.run(), name="clients: follow"),
            asyncio.create_task(keeping, name="purge"),
            asyncio.create_task(encrypt_sinks(store), name="encrypt sinks"),
        ]
        try:
            yield use_cases
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
    finally:
        closing = asyncio.create_task(_close(live.engine, deliverer, usage), name="closing")
        await asyncio.wait({closing}, timeout=CLOSE_LIMIT_S)
        if not closing.done():
            _log.error("closing_cut_off", after_s=CLOSE_LIMIT_S)
            closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)


def _authenticator(
    settings: Settings,
    store: Store,
    tokens: TokenVerifier | None,
    *,
    clock: Callable[[], datetime],
    monotonic: Callable[[], float],
    open_is_admin: bool,
) -> Authenticator:
    on_loopback = listens_on_loopback(settings.grpc_listen) and listens_on_loopback(settings.http_listen)
    return Authenticator(
        store,
        clock=clock,
        monotonic=monotonic,
        open_allowed=settings.anonymous_access in (("anywhere", "loopback") if on_loopback else ("anywhere",)),
        open_is_admin=on_loopback and open_is_admin,
        tokens=tokens,
        proxies=TrustedProxies.of(settings.trusted_proxies),
    )


async def _close(engine: Engine, deliverer: Deliverer, usage: UsageLog) -> None:
    await engine.aclose()
    await deliverer.aclose()
    await usage.aclose()
