"""Rotation of a webhook's signing secret: how later attempts are signed, who may rotate, and what is logged."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app.core.subscription_requests import SubscriptionChange
from app.delivery.hosts import Places
from app.domain.changes import Changes, SubscriptionUpdate
from app.domain.errors import ChangeNotAllowed, InvalidRequest, SinkRefused, StoreUnavailable, SubscriptionUnknown
from app.domain.filters import AuditFilter
from app.domain.operations import Face
from app.domain.records import Subscription
from app.domain.sinks import (
    SINK_OVERLAP_ENDS_AT,
    SINK_SECRETS,
    EndReason,
    Sink,
    SinkKind,
    overlap_ends_at,
    read_secret,
    signing_secret,
    signing_secrets,
)
from app.ports.store import Page
from tests.support.core import ADMIN, ALICE, APP, BEGAN, BUSY, OTHER, REACHABLE, SOAP, Core, new_database, run_core
from tests.support.outbox import OTHER_SECRET, SECRET
from tests.support.receivers import Request, answer
from tests.support.signed_webhooks import Signed, signed

THIRD_SECRET = signing_secret(b"3" * 64)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Signed]:
    async with signed(await new_database(tmp_path)) as running:
        yield running


def signers(request: Request, *of: str) -> list[str]:
    """Those of the secrets with which the reference library verifies the request."""
    found = []
    for secret in of:
        try:
            Webhook(secret).verify(request.body, dict(request.headers))
        except WebhookVerificationError:
            continue
        found.append(secret)
    assert request.headers["webhook-signature"].count("v1,") == len(found)
    return found


async def test_the_next_delivery_is_signed_with_both(database_url: str) -> None:
    """After a rotation the new and the previous secret sign; a second rotation drops the oldest."""
    async with signed(database_url) as gateway:
        subscription = await gateway.subscribe()
        assert signers(await gateway.change(REACHABLE), SECRET, OTHER_SECRET) == [SECRET]
        changed, made = await gateway.rotate(subscription, OTHER_SECRET)
        assert (changed, made) == (await gateway.core.stored(subscription), "")
        assert signers(await gateway.change(BUSY), SECRET, OTHER_SECRET) == [SECRET, OTHER_SECRET]
        changed, made = await gateway.rotate(subscription)
        assert (made, read_secret(made)) == (signing_secret(b"e" * 32), b"e" * 32)
        assert signers(await gateway.change(REACHABLE), SECRET, OTHER_SECRET, made) == [OTHER_SECRET, made]
        assert changed.sink.parameters == {
            SINK_SECRETS: f"{made} {OTHER_SECRET}",
            SINK_OVERLAP_ENDS_AT: (gateway.core.clocks.now + timedelta(days=1)).isoformat(),
            "handshake": "none",
            "token": "t",
        }
        _, nothing = await gateway.rotate(subscription, drop_old=True)
        assert nothing == ""
        assert signers(await gateway.change(BUSY), SECRET, OTHER_SECRET, made) == [made]


async def test_a_secret_that_leaked_is_replaced_at_once(gateway: Signed) -> None:
    """With `drop_old`, only the new secret signs."""
    subscription = await gateway.subscribe(f"{SECRET} {OTHER_SECRET}")
    await gateway.rotate(subscription, THIRD_SECRET, drop_old=True)
    last = await gateway.change(REACHABLE)
    assert signers(last, SECRET, OTHER_SECRET, THIRD_SECRET) == [THIRD_SECRET]


async def test_the_overlap_ends(database_url: str) -> None:
    """After the overlap the previous secret no longer signs, and is deleted from the database."""
    async with signed(database_url) as gateway:
        core, subscription = gateway.core, await gateway.subscribe()
        await gateway.rotate(subscription, OTHER_SECRET, overlap_s=60)
        both = await core.stored(subscription)
        assert overlap_ends_at(both.sink) == core.clocks.now + timedelta(seconds=60)
        core.clocks.advance(59)
        assert signing_secrets(both.sink, core.clocks.now) == [OTHER_SECRET, SECRET]
        assert (await gateway.change(REACHABLE)).headers["webhook-signature"].count("v1,") == 2
        assert await core.store.drop_ended_secrets(core.clocks.now, 10) == 0
        core.clocks.advance(1)
        assert (await gateway.change(BUSY)).headers["webhook-signature"].count("v1,") == 1
        assert await gateway.secrets(subscription) == [OTHER_SECRET, SECRET], "until the next purge"
        assert await core.store.drop_ended_secrets(core.clocks.now, 10) == 1
        after = await core.stored(subscription)
        assert after.sink.parameters[SINK_SECRETS] == OTHER_SECRET
        assert (overlap_ends_at(after.sink), after.etag) == (None, both.etag)
        assert await core.store.drop_ended_secrets(core.clocks.now, 10) == 0


async def test_the_end_of_an_overlap(gateway: Signed) -> None:
    """An overlap is a day where none is named; a repeated call makes it shorter, not longer; a new rotation begins
    another; 0 ends it at once. Another endpoint keeps it."""
    core, subscription = gateway.core, await gateway.subscribe()

    async def left_s() -> float | None:
        ends_at = overlap_ends_at((await core.stored(subscription)).sink)
        return None if ends_at is None else (ends_at - core.clocks.now).total_seconds()

    await gateway.rotate(subscription, OTHER_SECRET)
    assert await left_s() == 86_400
    core.clocks.advance(400)
    await gateway.rotate(subscription, OTHER_SECRET)
    assert await left_s() == 86_000
    await gateway.rotate(subscription, OTHER_SECRET, overlap_s=3600)
    assert await left_s() == 3600
    change = SubscriptionChange(sink=replace(subscription.sink, parameters={"handshake": "none"}))
    await core.subscription_changes.update(APP, subscription.id, change, face=Face.REST)
    assert await left_s() == 3600
    await gateway.rotate(subscription, THIRD_SECRET, overlap_s=7200)
    assert await left_s() == 7200
    core.clocks.advance(7200)
    await gateway.rotate(subscription, OTHER_SECRET)
    assert await gateway.secrets(subscription) == [OTHER_SECRET, THIRD_SECRET], "the newest signs until it is replaced"
    await gateway.rotate(subscription, SECRET, overlap_s=0)
    assert (await gateway.secrets(subscription), await left_s()) == ([SECRET], None)


@pytest.mark.parametrize(
    "asked", [{"overlap_s": -1}, {"overlap_s": 90 * 86_400 + 1}, {"overlap_s": 1, "drop_old": True}]
)
async def test_what_is_no_overlap(gateway: Signed, asked: dict[str, Any]) -> None:
    """An overlap above 90 days, and one with `drop_old`, are refused."""
    subscription = await gateway.subscribe()
    with pytest.raises(InvalidRequest) as caught:
        await gateway.rotate(subscription, **asked)
    assert caught.value.details["field"] == "overlap"
    assert await gateway.secrets(subscription) == [SECRET]


async def test_naming_a_secret_is_safe_to_repeat(gateway: Signed) -> None:
    """Rotating to the newest secret again, in any spelling, drops none; rotating to the previous secret makes it the
    newest."""
    subscription = await gateway.subscribe()
    await gateway.rotate(subscription, OTHER_SECRET)
    bare = OTHER_SECRET.removeprefix("whsec_")
    await gateway.rotate(subscription, bare)
    assert await gateway.secrets(subscription) == [bare, SECRET]
    await gateway.rotate(subscription, SECRET)
    assert await gateway.secrets(subscription) == [SECRET, bare]


async def test_a_secret_that_was_made_with_the_subscription(gateway: Signed) -> None:
    """A subscription without a named secret got one, which `drop_old` keeps as long as it is the only one."""
    subscription = await gateway.subscribe("")
    (first,) = await gateway.secrets(subscription)
    await gateway.rotate(subscription, drop_old=True)
    assert await gateway.secrets(subscription) == [first]
    _, made = await gateway.rotate(subscription)
    assert signers(await gateway.change(REACHABLE), made) == [made]


async def test_waiting_notifications_are_signed_with_the_new_secret(tmp_path: Path) -> None:
    """A notification that was claimed before the rotation, and still waits, is signed with the new secret."""
    places = Places(per_host=1, unproven_host=1)
    async with signed(await new_database(tmp_path), places=places) as gateway:
        subscription = await gateway.subscribe()
        other = await gateway.subscribe()
        released = asyncio.Event()

        async def wait(request: Request, writer: asyncio.StreamWriter) -> None:
            await released.wait()
            await answer()(request, writer)

        gateway.there.behave = wait
        await gateway.change(REACHABLE)  # one of the two owed notifications is being sent
        async with asyncio.timeout(10):
            while gateway.deliverer.held < 2:  # noqa: ASYNC110  # no event to await
                await asyncio.sleep(0.002)
        in_flight = gateway.events()[-1]
        waits = other if subscription.id.encode() in in_flight.body else subscription
        await gateway.rotate(waits, OTHER_SECRET)
        released.set()
        await gateway.there.wait_for(lambda: gateway.events()[-1] is not in_flight)
        assert waits.id.encode() in gateway.events()[-1].body
        assert signers(gateway.events()[-1], SECRET, OTHER_SECRET) == [SECRET, OTHER_SECRET]
        assert signers(in_flight, SECRET, OTHER_SECRET) == [SECRET]


async def test_a_rotation_while_deliveries_are_claimed(gateway: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a claim read the subscription just before the rotation, the attempt is still signed with both secrets."""
    subscription = await gateway.subscribe()
    store = gateway.core.store._store  # noqa: SLF001
    read, has_read, go_on = store.subscriptions_by_id, asyncio.Event(), asyncio.Event()

    async def slow(ids: Any) -> Any:
        found = await read(ids)
        has_read.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(store, "subscriptions_by_id", slow)
    came = len(gateway.events())
    await gateway.core.play(ALICE, BUSY)
    gateway.deliverer.hint()
    async with asyncio.timeout(10):
        await has_read.wait()
    await gateway.rotate(subscription, OTHER_SECRET)
    go_on.set()
    await gateway.there.wait_for(lambda: len(gateway.events()) > came)
    assert signers(gateway.events()[-1], SECRET, OTHER_SECRET) == [SECRET, OTHER_SECRET]


@pytest.mark.parametrize("secret", ["x", "whsec_", "whsec_" + "A" * 28, "whsec_" + "A" * 88, SECRET + "\n", "ü" * 32])
async def test_a_secret_that_is_none(gateway: Signed, secret: str) -> None:
    """A value that is not a secret of 24 to 64 bytes is refused, and nothing changes."""
    subscription = await gateway.subscribe()
    with pytest.raises(SinkRefused) as refused:
        await gateway.rotate(subscription, secret)
    assert refused.value.details == {"reason": "secret", "field": "secret"}
    assert await gateway.secrets(subscription) == [SECRET]
    assert await audit_entries(gateway.core) == []


async def audit_entries(core: Core) -> list[tuple[str, str, dict[str, str]]]:
    """The audit entries about secrets."""
    entries, _ = await core.store.audit_entries(Page(), AuditFilter(start=BEGAN - timedelta(days=1)))
    return [
        (entry.actor, entry.action.value, dict(entry.details)) for entry in entries if "secret" in entry.action.value
    ]


async def test_who_may(gateway: Signed) -> None:
    """Another client's subscription, one that has ended, and one that does not exist are unknown; an operator may
    rotate any."""
    subscription = await gateway.subscribe()
    for client, name in ((OTHER, subscription.id), (APP, "nothing"), (APP, ""), (APP, "x" * 5000)):
        with pytest.raises(SubscriptionUnknown):
            await gateway.core.subscription_changes.rotate_secret(client, name, face=Face.REST)
    await gateway.core.subscription_changes.rotate_secret(ADMIN, subscription.id, secret=OTHER_SECRET, face=Face.REST)
    assert await gateway.secrets(subscription) == [OTHER_SECRET, SECRET]
    await gateway.service.cancel(APP, subscription.id, face=Face.REST)
    with pytest.raises(SubscriptionUnknown):
        await gateway.rotate(subscription)
    assert await gateway.secrets(subscription) == [OTHER_SECRET, SECRET]


async def test_an_end_in_the_middle(gateway: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription that ends while its rotation waits for the lock is unknown, and does not change."""
    subscription = await gateway.subscribe()
    changes = gateway.core.subscription_changes
    own = changes._own_active  # noqa: SLF001

    async def ended_then(*arguments: Any) -> Subscription:
        found = await own(*arguments)
        update = SubscriptionUpdate(subscription_id=found.id, ended_at=BEGAN, end_reason=EndReason.SINK_GONE)
        await gateway.core.store.write(Changes(updates=[update]))
        return found

    monkeypatch.setattr(changes, "_own_active", ended_then)
    with pytest.raises(SubscriptionUnknown):
        await gateway.rotate(subscription)
    assert await gateway.secrets(subscription) == [SECRET]


@pytest.mark.parametrize(
    "sink", [Sink(kind=SinkKind.STREAM), SOAP, Sink(kind=SinkKind.WEBHOOK, url="https://a.example/", profile="camara")]
)
async def test_only_webhooks_of_v1_are_signed(tmp_path: Path, sink: Sink) -> None:
    """Streams, SOAP callbacks and webhooks of other profiles have no signing secret."""
    async with run_core(await new_database(tmp_path)) as core:
        subscription = await core.subscribe(ALICE, sink=sink)
        with pytest.raises(ChangeNotAllowed):
            await core.subscription_changes.rotate_secret(APP, subscription.id, face=Face.REST)
        assert (await core.stored(subscription)).sink == sink


async def test_rotations_are_audited(gateway: Signed) -> None:
    """The audit log says who rotated the secret of which subscription, and has no secret."""
    subscription = await gateway.subscribe()
    await gateway.rotate(subscription, requester="tel:+1")
    await gateway.rotate(subscription, drop_old=True)
    await gateway.rotate(subscription, OTHER_SECRET, drop_old=True)
    details = {"subscription": subscription.id, "face": "rest", "requester": ""}
    assert await audit_entries(gateway.core) == [
        (APP.id, "subscription secret rotated", {**details, "requester": "tel:+1", "overlap_s": "86400"}),
        (APP.id, "old subscription secret dropped", details),
        (APP.id, "subscription secret rotated", {**details, "old": "dropped"}),
    ]


async def test_while_the_store_is_away(gateway: Signed) -> None:
    """Where the database fails in the middle nothing changes, in the audit log neither; the next attempt has the old
    signature."""
    subscription = await gateway.subscribe()

    async def fail(_changes: Any) -> None:
        raise StoreUnavailable("The disk is full.")

    gateway.core.store.before_write = fail
    with pytest.raises(StoreUnavailable):
        await gateway.rotate(subscription, OTHER_SECRET)
    gateway.core.store.before_write = None
    assert await audit_entries(gateway.core) == []
    assert signers(await gateway.change(REACHABLE), SECRET, OTHER_SECRET) == [SECRET]


async def test_two_at_once(gateway: Signed) -> None:
    """Two rotations at the same time are both done: both new secrets sign."""
    subscription = await gateway.subscribe()
    await asyncio.gather(gateway.rotate(subscription, OTHER_SECRET), gateway.rotate(subscription, THIRD_SECRET))
    assert set(await gateway.secrets(subscription)) == {OTHER_SECRET, THIRD_SECRET}


async def test_it_lasts_over_a_restart(tmp_path: Path) -> None:
    """After a restart the rotated secret still signs."""
    url = await new_database(tmp_path)
    async with signed(url) as gateway:
        subscription = await gateway.subscribe()
        changed, _ = await gateway.rotate(subscription, OTHER_SECRET)
    async with run_core(url) as core:
        stored = await core.stored(subscription)
        assert stored.sink == changed.sink
        assert stored.sink.parameters[SINK_SECRETS] == f"{OTHER_SECRET} {SECRET}"
