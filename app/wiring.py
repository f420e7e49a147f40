"""The use cases of one gateway, made of its ports: the part of the composition that knows no transport.

Invariants: what is started here is stopped in the reverse order; nothing serves before the store has told what stands.

Deliberately absent: sockets, TLS and the command line (`main.py`).
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import datetime

import structlog

from app.auth.authenticator import Authenticator, TokenVerifier, is_loopback
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
from app.core.subscriptions import SubscriptionService
from app.core.usage import UsageLog
from app.core.use_cases import UseCases
from app.delivery.deliverer import Deliverer
from app.domain.policy import Policy
from app.domain.records import Subscription
from app.domain.sinks import EndReason, SinkKind
from app.live.engine import Engine, Tuning
from app.live.group_directory import GroupDirectory
from app.ports import Sender, Store, Watcher
from app.settings.loading import Settings

CLOSE_LIMIT_S = 8.0
"""How long everything that is left at the end may take together, be it that the database hangs."""

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def run_use_cases(
    settings: Settings,
    store: Store,
    watcher: Watcher,
    status_service: FetchService,
    senders: Mapping[SinkKind, Sender],
    *,
    clock: Callable[[], datetime],
    monotonic: Callable[[], float],
    tokens: TokenVerifier | None,
    attempted: Callable[[str, float], None],
    open_is_admin: bool = False,
) -> AsyncIterator[UseCases]:
    """Makes the use cases, starts what runs by itself, and stops it in the end. `open_is_admin` is whether callers on
    this machine are operators while no client is configured. Raises StoreUnavailable."""
    policies = Policies(Policy(**{each.name: getattr(settings, each.name) for each in fields(Policy)}), monotonic)
    usage = UsageLog(store, clock, policies)
    directory = GroupDirectory(store)

    def subscription_ended(subscription: Subscription, _reason: EndReason) -> None:
        subscriptions.ended(subscription.id)

    deliverer = Deliverer(
        store,
        senders,
        owner=secrets.token_hex(8),
        clock=clock,
        ended=subscription_ended,
        send_limit_s=settings.sink_timeout_ms / 1000 + 5,
        attempted=attempted,
    )
    watching = Engine(
        store,
        watcher,
        directory,
        policies,
        busy_activities=settings.busy_activities,
        clock=clock,
        clock_s=monotonic,
        tuning=Tuning(linger_s=settings.linger_s, bookmark_s=settings.bookmark_s),
        owed=deliverer.hint,
    )
    subscriptions = SubscriptionService(
        store,
        watching,
        directory,
        policies,
        usage,
        senders,
        clock,
        sink_changed=deliverer.sink_changed,
        withdrawn=deliverer.withdrawn,
    )
    on_loopback = is_loopback(settings.grpc_listen) and is_loopback(settings.http_listen)
    auth = Authenticator(
        store,
        clock=clock,
        monotonic=monotonic,
        open_allowed=settings.anonymous_access in (("anywhere", "loopback") if on_loopback else ("anywhere",)),
        open_is_admin=on_loopback and open_is_admin,
        tokens=tokens,
        proxies=TrustedProxies.of(settings.trusted_proxies),
    )
    registry = ClientRegistry(
        store,
        clock=clock,
        changed=auth.forget,
        delete=subscriptions.delete_client,
        disabled=watching.end_streams_of,
    )
    use_cases = UseCases(
        auth=auth,
        queries=QueryService(status_service, watching, directory, policies, usage, clock),
        watching=watching,
        subscriptions=subscriptions,
        groups=GroupService(store, directory, policies, clock),
        deliveries=Deliveries(store, clock, policies, hint=deliverer.hint),
        usage=usage,
        administration=Administration(
            store, watcher, registry, wanted_by=watching.wanted_by, clock=clock, doubt=watching.doubt
        ),
    )

    async def client_gone(client_id: str) -> None:
        auth.forget()  # first: or else it would come again at once
        await subscriptions.client_gone(client_id)

    def client_disabled(client_id: str) -> None:
        auth.forget()
        watching.end_streams_of(client_id)

    follower = ClientFollower(store, gone=client_gone, disabled=client_disabled)
    await usage.start()
    try:
        await directory.reload()
        await watching.start()
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
        closing = asyncio.create_task(_close(watching, deliverer, usage), name="closing")
        await asyncio.wait({closing}, timeout=CLOSE_LIMIT_S)
        if not closing.done():
            _log.error("closing_cut_off", after_s=CLOSE_LIMIT_S)
            closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)


async def _close(watching: Engine, deliverer: Deliverer, usage: UsageLog) -> None:
    await watching.aclose()
    await deliverer.aclose()
    await usage.aclose()
