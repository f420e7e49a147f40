"""A gateway that delivers signed webhooks to a receiver of the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from app.core.subscriptions import SubscriptionService
from app.delivery.deliverer import Deliverer
from app.domain.operations import Face
from app.domain.records import Subscription
from app.domain.sinks import SINK_SECRETS, Sink, SinkKind
from app.domain.statuses import Status
from app.egress.allowed import Rules
from app.egress.client import Egress
from app.egress.webhook import WebhookSender, v1_event
from app.wiring import connect_delivery
from tests.support.core import ALICE, APP, Clocks, Core, run_core
from tests.support.outbox import SECRET
from tests.support.receivers import Receiver, Request, receiver


@dataclass
class Signed:
    """A gateway that really delivers, and its receiver."""

    core: Core
    deliverer: Deliverer
    service: SubscriptionService
    there: Receiver

    async def subscribe(self, secrets: str = SECRET) -> Subscription:
        """Makes a webhook subscription of APP, and waits until its start has been sent."""
        parameters = {SINK_SECRETS: secrets, "handshake": "none", "token": "t"}
        sink = Sink(kind=SinkKind.WEBHOOK, url=self.there.url, profile="v1", parameters=parameters)
        came = len(self.events())
        made = await self.core.subscribe(ALICE, sink=sink, check_immediate=True)
        self.deliverer.hint()
        await self.there.wait_for(lambda: len(self.events()) == came + 1)
        return made

    async def change(self, status: Status) -> Request:
        """Changes the terminal's status, and returns the request that reports the change."""
        came = len(self.events())
        await self.core.play(ALICE, status)
        self.deliverer.hint()
        await self.there.wait_for(lambda: len(self.events()) > came)
        return self.events()[-1]

    async def rotate(self, subscription: Subscription, secret: str = "", **more: Any) -> tuple[Subscription, str]:
        return await self.core.subscription_changes.rotate_secret(
            APP, subscription.id, secret=secret, face=Face.REST, **more
        )

    async def secrets(self, subscription: Subscription) -> list[str]:
        """The subscription's signing secrets, as stored."""
        return (await self.core.stored(subscription)).sink.parameters.get(SINK_SECRETS, "").split()

    def events(self) -> list[Request]:
        return [request for request in self.there.requests if request.method == "POST"]


@asynccontextmanager
async def signed(url: str, *, secret_key_file: Path | None = None, **options: Any) -> AsyncIterator[Signed]:
    """The use cases with real deliveries, wired as in the gateway."""
    egress = Egress(Rules.of(["127.0.0.0/8"], allow_http=True))
    clocks: list[Clocks] = []
    # Receivers compare the time of the signature with their own clock.
    sender = WebhookSender(
        egress, clock=lambda: clocks[0].now if clocks else datetime.now(UTC), envelopes={"v1": v1_event}
    )
    async with (
        receiver() as there,
        run_core(
            url,
            secret_key_file=secret_key_file,
            senders={SinkKind.WEBHOOK: sender},
            entropy=lambda size: b"e" * size,
        ) as core,
    ):
        core.clocks.advance((datetime.now(UTC) - core.clocks.now).total_seconds())
        clocks.append(core.clocks)
        deliverer = Deliverer(
            cast("Any", core.store),
            {SinkKind.WEBHOOK: sender},
            owner="node-1",
            clock=lambda: core.clocks.now,
            **options,
        )
        connect_delivery(core.live, core.use_cases, deliverer)
        deliverer.start()
        try:
            yield Signed(core, deliverer, core.subscriptions, there)
        finally:
            await deliverer.aclose()
            await egress.aclose()
