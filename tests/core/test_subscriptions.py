"""Tests of `app/core/subscriptions.py` and `lifecycle.py`: making, listing and ending subscriptions."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.core.sink_secrets import made_secret
from app.domain.errors import (
    BusyNotSupported,
    CountTooLarge,
    DurationTooLong,
    IntervalTooShort,
    InvalidAddress,
    InvalidRequest,
    NoValidAddresses,
    RateLimited,
    RequestIdReused,
    SinkRefused,
    SinkUnreachable,
    StoreUnavailable,
    SubscriptionUnknown,
    TerminalStatusError,
    TooManyAddresses,
    TooManySubscriptions,
    TooManyWatchedTerminals,
    UnlimitedCountNotAllowed,
)
from app.domain.operations import Face
from app.domain.policy import Policy
from app.domain.records import DeliveryState
from app.domain.sinks import SECRET_BYTES, TOKEN_LEAD, EndReason, Sink, SinkKind, read_secret
from app.ports.store import Page
from tests.support.core import (
    ADMIN,
    ALICE,
    APP,
    BEGAN,
    BOB,
    BUSY,
    OTHER,
    SOAP,
    TEAM,
    WEBHOOK,
    Core,
    new_database,
    run_core,
)
from tests.support.waiting import until

# Making, showing


async def test_creation_is_idempotent_by_request_id(core: Core) -> None:
    """A repeated request returns the first request's subscription; another request with the same id is refused."""
    first = await core.subscribe(ALICE, sink=WEBHOOK, request_id="r1", duration_ms=1000)
    again = await core.subscribe("SIP:alice@EXAMPLE.com", sink=WEBHOOK, request_id="r1", duration_ms=1000)
    assert again.id == first.id
    assert await core.owed_in_short(first) == ["STARTED"]
    with pytest.raises(RequestIdReused):
        await core.subscribe(BOB, sink=WEBHOOK, request_id="r1")
    others = await core.subscribe(BOB, sink=WEBHOOK, request_id="r1", client=OTHER)
    assert others.id != first.id
    assert core.live.engine.figures()["subscriptions"] == 2
    await core.advance(31)
    again = await core.subscribe(ALICE, sink=WEBHOOK, request_id="r1", duration_ms=1000)
    assert again.end_reason is EndReason.EXPIRED


@pytest.mark.parametrize("profile", ["", "v1"])
@pytest.mark.parametrize("expiry", ["", "2100-01-01T00:00:00Z", "2100-01-01T00:00:00+00:00"])
async def test_request_ids_of_before_typed_sinks(core: Core, profile: str, expiry: str) -> None:
    """Versions before typed sinks stored a digest of the client's own texts; the same request still finds its
    subscription, and another one does not."""
    token = {"token": "t", "token_expires_at": expiry} if expiry else {}
    first = await core.subscribe(ALICE, sink=replace(WEBHOOK, profile=profile, parameters=token), request_id="r")
    typed = {**token, "token_expires_at": "2100-01-01T00:00:00+00:00"} if expiry else {}
    assert (await core.subscribe(ALICE, sink=replace(WEBHOOK, parameters=typed), request_id="r")).id == first.id
    with pytest.raises(RequestIdReused) as reused:
        await core.subscribe(ALICE, sink=replace(WEBHOOK, parameters={**typed, "token": "u"}), request_id="r")
    assert reused.value.details["request_id"] == "r"


async def test_a_repeated_creation_looks_at_nothing_again(tmp_path: Path) -> None:
    """A repeated request checks no endpoint and no limit; a request that differs in any part is refused."""
    async with run_core(await new_database(tmp_path), policy=Policy(max_subscriptions=1)) as core:
        sink = replace(WEBHOOK, parameters={"token": "t", "handshake": "test"})
        first = await core.subscribe(ALICE, sink=sink, request_id="r1")
        core.sender.error = SinkRefused("No.", reason="host")
        assert await core.subscribe(ALICE, sink=sink, request_id="r1") == first
        assert len(core.sender.checked) == 1
        for other in (
            {"duration_ms": 1000},
            {"count": 1},
            {"criteria": frozenset({BUSY})},
            {"correlator": "c"},
            {"check_immediate": True},
            {"sink": replace(sink, url=f"{sink.url}/x")},
            {"sink": replace(sink, parameters={**sink.parameters, "token": "u"})},
            {"sink": replace(sink, parameters={**sink.parameters, "handshake": "none"})},
            {"sink": replace(sink, parameters={**sink.parameters, "secrets": "whsec_" + "A" * 32})},
        ):
            with pytest.raises(RequestIdReused):
                await core.subscribe(ALICE, **{"sink": sink, **other}, request_id="r1")  # type: ignore[arg-type]
        assert len(core.sender.checked) == 1


async def test_every_webhook_of_v1_is_signed(core: Core) -> None:
    """A webhook without a signing secret gets one, which is marked as made by the gateway; other sinks get none."""
    made = await core.subscribe(ALICE, sink=WEBHOOK)
    assert len(read_secret(made_secret(made))) == SECRET_BYTES
    own = await core.subscribe(ALICE, sink=replace(WEBHOOK, parameters={"secrets": "whsec_" + "A" * 32}))
    assert made_secret(own) == ""
    for other in (replace(WEBHOOK, profile="camara", parameters={"type": "t"}), Sink(kind=SinkKind.STREAM)):
        assert (await core.subscribe(ALICE, sink=other)).sink == other


async def test_a_subscription_ends_with_its_token(core: Core) -> None:
    """It ends early enough to send its end with the access token; a token that is about to expire is refused."""
    ends_at = BEGAN + timedelta(seconds=60)
    sink = replace(WEBHOOK, parameters={"token": "t", "token_expires_at": ends_at.isoformat()})
    made = await core.subscribe(ALICE, sink=sink)
    assert made.expires_at == ends_at - TOKEN_LEAD
    assert (await core.subscribe(ALICE, sink=sink, duration_ms=1000)).expires_at == BEGAN + timedelta(seconds=1)
    soon = replace(sink, parameters={"token": "t", "token_expires_at": (BEGAN + TOKEN_LEAD).isoformat()})
    with pytest.raises(SinkRefused):
        await core.subscribe(ALICE, sink=soon)


@pytest.mark.parametrize(
    ("error", "policy", "request_"),
    [
        (InvalidAddress, {}, {"addresses": ["mailto:x@example.com"]}),
        (NoValidAddresses, {}, {"addresses": []}),
        (TooManyAddresses, {"max_notification_addresses": 1}, {"addresses": [ALICE, BOB]}),
        (BusyNotSupported, {"busy_available": False}, {"criteria": frozenset({BUSY})}),
        (IntervalTooShort, {"min_interval_ms": 1000}, {"min_interval_ms": 999}),
        (InvalidRequest, {}, {"min_interval_ms": -1}),
        (DurationTooLong, {"max_duration_ms": 1000}, {"duration_ms": 1001}),
        (InvalidRequest, {}, {"duration_ms": -1}),
        (InvalidRequest, {}, {"duration_ms": 1 << 70}),
        (UnlimitedCountNotAllowed, {"unlimited_count_allowed": False}, {"count": 0}),
        (CountTooLarge, {"max_count": 10}, {"count": 11}),
        (InvalidRequest, {}, {"count": -1}),
        (InvalidRequest, {}, {"correlator": "x" * 10_000}),
        (InvalidRequest, {}, {"request_id": "x" * 65}),
        (TooManySubscriptions, {"max_subscriptions": 0}, {}),
        (TooManyWatchedTerminals, {"max_watched_terminals": 0}, {}),
    ],
)
async def test_request_that_the_policy_refuses(
    url: str, error: type[TerminalStatusError], policy: dict[str, Any], request_: dict[str, Any]
) -> None:
    """Each violation of the policy has its own error and leaves a usage record, and nothing else."""
    async with run_core(url, policy=Policy(**policy)) as core:
        with pytest.raises(error):
            await core.subscribe(*request_.pop("addresses", [ALICE]), **request_)
        (record,) = await core.usage_records()
        assert (record.operation.value, record.result) == ("startNotification", error.code)
        assert core.live.engine.figures()["terminals"] == 0


async def test_defaults_of_the_policy_fill_what_is_not_asked(url: str) -> None:
    """A request without interval or duration gets the policy's minimum interval and default duration."""
    policy = Policy(min_interval_ms=500, default_duration_ms=0, max_duration_ms=7000)
    async with run_core(url, policy=policy) as core:
        made = await core.subscribe(ALICE)
        assert (made.min_interval_ms, made.expires_at) == (500, core.clocks.now + timedelta(seconds=7))
        assert made.sink.kind is SinkKind.STREAM
    async with run_core(url, policy=Policy(default_duration_ms=0)) as core:
        assert (await core.subscribe(ALICE)).expires_at is None


async def test_sink_is_checked_when_the_subscription_is_made(core: Core) -> None:
    """An endpoint that is not allowed or cannot be used is refused at once; so is a kind of sink without a sender."""
    core.sender.error = SinkUnreachable("The endpoint refuses the connection.")
    with pytest.raises(SinkUnreachable):
        await core.subscribe(ALICE, sink=WEBHOOK)
    await core.subscribe(ALICE)
    assert [one.sink.url for one in core.sender.checked] == [WEBHOOK.url]
    core.subscriptions._senders = {}  # noqa: SLF001
    with pytest.raises(SinkRefused):
        await core.subscribe(ALICE, sink=SOAP)


@pytest.mark.parametrize(
    ("sink", "why"),
    [
        (Sink(kind=SinkKind.STREAM, url=WEBHOOK.url), "kind"),
        (Sink(kind=SinkKind.STREAM, profile="v1"), "kind"),
        (Sink(kind=SinkKind.STREAM, parameters={"token": "t"}), "kind"),
        (replace(WEBHOOK, parameters={"made": "0" * 64}), "parameter"),
        (replace(WEBHOOK, parameters={"request": "0" * 64}), "parameter"),
    ],
)
async def test_nothing_of_a_sink_is_dropped_in_silence(core: Core, sink: Sink, why: str) -> None:
    """Parameters that would have no effect, or that the gateway itself sets, are refused, and nothing is made."""
    with pytest.raises(SinkRefused) as caught:
        await core.subscribe(ALICE, sink=sink)
    assert caught.value.details == {"field": "sink", "reason": why}
    assert not core.sender.checked


async def test_client_sees_its_own_only(core: Core) -> None:
    """Another client's subscription is unknown; an operator's client sees all."""
    mine = await core.subscribe(ALICE)
    theirs = await core.subscribe(ALICE, client=OTHER)
    assert (await core.subscriptions.get(APP, mine.id)).id == mine.id
    for unknown in (theirs.id, "", "x" * 5000):
        with pytest.raises(SubscriptionUnknown):
            await core.subscriptions.get(APP, unknown)
        with pytest.raises(SubscriptionUnknown):
            await core.subscriptions.cancel(APP, unknown, face=Face.REST)
    assert [one.id for one in (await core.subscriptions.list(APP, Page()))[0]] == [mine.id]
    assert len((await core.subscriptions.list(ADMIN, Page()))[0]) == 2
    assert (await core.subscriptions.get(ADMIN, theirs.id)).id == theirs.id
    with pytest.raises(InvalidRequest):
        await core.subscriptions.list(APP, Page(token="elsewhere"))


async def test_all_pages_are_one_call(url: str) -> None:
    """All pages of a client's subscriptions count as one call of its rate, which may be refused before the first
    page."""
    async with run_core(url, policy=Policy(rate_per_s=1, rate_burst=1)) as core:
        made = []
        for _ in range(3):
            made.append((await core.subscribe(ALICE)).id)
            core.clocks.advance(1)
        pages = [[one.id for one in page] async for page in core.subscriptions.pages(APP, 2)]
        assert pages == [made[:2], made[2:]]
        with pytest.raises(RateLimited):
            await anext(core.subscriptions.pages(APP, 2))
        assert [page async for page in core.subscriptions.pages(OTHER, 2)] == [[]]


async def test_stream_sink_is_delivered_by_being_listed(core: Core) -> None:
    """Notifications without an endpoint are listed as delivered, and do not wake the deliverer."""
    subscription = await core.subscribe(ALICE, check_immediate=True)
    await core.play(ALICE, BUSY)
    assert [one.state for one in await core.owed(subscription)] == [DeliveryState.DELIVERED]
    assert core.hints == []


async def test_starts_and_ends_leave_usage_records(core: Core) -> None:
    """Each start and end is recorded under the contract's name, in its own transaction where it succeeds."""
    await core.groups.create(APP, TEAM, [ALICE, BOB])
    made = await core.subscribe(TEAM, correlator="c")
    await core.subscriptions.cancel(APP, made.id, face=Face.REST, requester="tel:+1")
    with pytest.raises(SubscriptionUnknown):
        await core.subscriptions.cancel(APP, made.id, face=Face.REST)
    start, end, failed = await core.usage_records()
    assert (start.operation.value, start.targets, start.target_count, start.expanded_count) == (
        "startNotification",
        (TEAM,),
        1,
        2,
    )
    assert (start.correlator, start.subscription_id, start.face.value, start.result) == ("c", made.id, "grpc", "OK")
    assert (end.operation.value, end.requester, end.correlator, end.face.value) == (
        "endNotification",
        "tel:+1",
        "c",
        "rest",
    )
    for record in (start, end):
        assert (record.expanded_count, record.expanded_targets) == (2, (ALICE, BOB))
    assert failed.result == "SUBSCRIPTION_UNKNOWN"


async def test_creation_fails_clearly_while_the_store_is_away(core: Core) -> None:
    """Nothing is made and nothing stays in memory; the same request succeeds once the store is back."""
    core.store.away = True
    with pytest.raises(StoreUnavailable):
        await core.subscribe(ALICE)
    assert core.live.engine.figures()["subscriptions"] == 0
    core.store.away = False
    await core.subscribe(ALICE)


async def test_caller_that_leaves_does_not_tear_creation(core: Core) -> None:
    """A creation whose caller is cancelled completes: the stored subscription is in memory too."""
    creating = asyncio.ensure_future(core.subscribe(ALICE, request_id="r"))
    await until(lambda: ALICE in core.watcher.wanted)
    creating.cancel()
    await asyncio.gather(creating, return_exceptions=True)
    await until(lambda: core.live.engine.figures()["subscriptions"] == 1)
    await core.subscribe(ALICE, request_id="r")
    assert core.live.engine.figures()["subscriptions"] == 1
