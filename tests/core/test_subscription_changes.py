"""Changes of active subscriptions: addresses, criteria, duration and sink; who may make them, and restarts."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.sink_secrets import made_secret
from app.core.subscription_requests import SubscriptionChange
from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes, SubscriptionUpdate
from app.domain.errors import (
    BusyNotSupported,
    ChangeNotAllowed,
    DurationTooLong,
    InvalidAddress,
    InvalidRequest,
    NoValidAddresses,
    SinkRefused,
    SinkUnreachable,
    StoreUnavailable,
    SubscriptionChanged,
    SubscriptionUnknown,
    TerminalStatusError,
    TerminalUnknown,
    TooManyAddresses,
    TooManyWatchedTerminals,
)
from app.domain.operations import AuditAction, Face
from app.domain.policy import Policy
from app.domain.records import Client, DeliveryState, Subscription
from app.domain.sinks import SINK_BASIC, TOKEN_LEAD, EndReason, Sink, SinkKind, same_endpoint
from app.domain.statuses import Status
from tests.support.core import (
    ADMIN,
    ALICE,
    APP,
    BEGAN,
    BOB,
    BUSY,
    CAROL,
    OTHER,
    REACHABLE,
    SOAP,
    TEAM,
    UNREACHABLE,
    WEBHOOK,
    Clocks,
    Core,
    new_database,
    run_core,
)
from tests.support.waiting import until

LISTED = Sink(kind=SinkKind.STREAM)


async def change(core: Core, subscription: Subscription, *, client: Client = APP, **values: Any) -> Subscription:
    """Changes a subscription over REST."""
    etag = values.pop("etag", "")
    asked = SubscriptionChange(**values)
    return await core.subscription_changes.update(
        client, subscription.id, asked, etag=etag, face=Face.REST, requester="bob"
    )


# Addresses


async def test_terminals_that_join_and_leave(core: Core) -> None:
    """A terminal that is added is notified from then on, its first observation being no change; one that is removed is
    no longer watched; the others keep what was reported of them."""
    made = await core.subscribe(ALICE, BOB)
    await core.play(ALICE, REACHABLE)
    await core.play(BOB, REACHABLE)
    changed = await change(core, made, addresses=[BOB, "SIP:carol@EXAMPLE.com"])
    assert changed.addresses == (BOB, CAROL)
    assert changed == await core.stored(made)
    for status in (REACHABLE, BUSY):
        for address in (ALICE, BOB, CAROL):
            await core.play(address, status)
    assert await core.owed_in_short(made) == ["bob BUSY", "carol BUSY"]
    await core.advance(31)
    assert set(core.watcher.wanted) == {BOB, CAROL}


async def test_live_terminal_that_joins(core: Core) -> None:
    """A terminal that is live when it joins is notified at once with `check_immediate`; without, its next change is."""
    watcher = await core.subscribe(BOB)
    await core.play(BOB, BUSY)
    at_once = await core.subscribe(ALICE, check_immediate=True)
    later = await core.subscribe(ALICE)
    for each in (at_once, later):
        await change(core, each, addresses=[ALICE, BOB])
    await core.settled()
    assert await core.owed_in_short(at_once) == ["bob BUSY"]
    assert await core.owed_in_short(later) == []
    await core.play(BOB, REACHABLE)
    for each, before in ((at_once, ["bob BUSY"]), (later, []), (watcher, [])):
        assert await core.owed_in_short(each) == [*before, "bob REACHABLE"]


async def test_terminal_that_failed_is_tried_again(core: Core) -> None:
    """A change that names a failed terminal watches it again; a removed terminal's failure is not reported."""
    made = await core.subscribe(ALICE, BOB)
    core.watcher.fail(BOB, TerminalUnknown("No.", address=BOB))
    await core.settled()
    await change(core, made, addresses=[ALICE, BOB])
    assert BOB in core.watcher.wanted
    await core.play(BOB, REACHABLE)
    await core.play(BOB, BUSY)
    await change(core, made, addresses=[BOB])
    core.watcher.fail(ALICE, TerminalUnknown("No.", address=ALICE))
    await core.settled()
    assert await core.owed_in_short(made) == ["ERROR bob TERMINAL_UNKNOWN", "bob BUSY"]


async def test_groups_that_join_and_leave(core: Core) -> None:
    """A group that is added is followed; one that is removed is not."""
    await core.groups.create(APP, TEAM, [BOB])
    made = await core.subscribe(ALICE)
    changed = await change(core, made, addresses=[TEAM])
    assert (changed.addresses, changed.groups) == ((TEAM,), (TEAM,))
    await core.groups.set_members(APP, TEAM, [CAROL])
    await until(lambda: core.live.registry.wanted_by(CAROL).subscription_ids == [made.id])
    await core.play(CAROL, REACHABLE)
    await core.play(CAROL, BUSY)
    changed = await change(core, made, addresses=[ALICE])
    assert changed.groups == ()
    assert not core.live.index.by_group
    await core.groups.set_members(APP, TEAM, [BOB])
    await core.play(ALICE, REACHABLE)
    await core.play(ALICE, BUSY)
    assert await core.owed_in_short(made) == ["carol BUSY", "alice BUSY"]
    assert not core.live.registry.wanted_by(BOB)


async def test_limits_of_terminals(url: str) -> None:
    """A change keeps to the policy of the subscription's client, an operator's change too. Terminals that leave make
    room for those that join. A refused change leaves no watch behind."""
    async with run_core(url, policy=Policy(max_notification_addresses=3, max_watched_terminals=2)) as core:
        made = await core.subscribe(ALICE, BOB)
        other = await core.subscribe(BOB)
        for client in (APP, ADMIN):
            with pytest.raises(TooManyWatchedTerminals):
                await change(core, made, client=client, addresses=[ALICE, BOB, CAROL])
            with pytest.raises(TooManyWatchedTerminals):
                await change(core, other, client=client, addresses=[CAROL])
            with pytest.raises(TooManyAddresses):
                await change(core, made, client=client, addresses=[f"sip:{number}@example.com" for number in range(4)])
            for refused, error in (([], NoValidAddresses), (["x"], InvalidAddress)):
                with pytest.raises(error):
                    await change(core, made, client=client, addresses=refused)
        assert await core.stored(made) == made
        assert set(core.watcher.wanted) == {ALICE, BOB}
        assert (await change(core, made, addresses=[CAROL, BOB])).addresses == (CAROL, BOB)
        assert not core.live.registry.wanted_by(ALICE)


async def test_an_operator_names_the_groups_of_the_owner(core: Core) -> None:
    """In an operator's change an address is a group if it is one of the subscription's client."""
    await core.groups.create(APP, TEAM, [BOB])
    made = await core.subscribe(ALICE)
    assert (await change(core, made, client=ADMIN, addresses=[TEAM])).groups == (TEAM,)
    assert core.live.registry.wanted_by(BOB).subscription_ids == [made.id]


STEP = st.one_of(
    st.sets(st.sampled_from([ALICE, BOB, CAROL]), min_size=1),
    st.tuples(st.sampled_from([ALICE, BOB, CAROL]), st.sampled_from(Status)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=12), restart_at=st.integers(0, 12))
async def test_every_change_of_the_present_terminals_is_notified(
    tmp_path: Path, steps: Sequence[Any], restart_at: int
) -> None:
    """Whatever joins and leaves, and wherever the gateway is killed, exactly the changes of terminals that belonged to
    the subscription at that time are notified."""
    url, clocks = await new_database(tmp_path), Clocks()
    known: dict[TerminalAddress, Status] = {}
    present: set[TerminalAddress] = {ALICE}
    expected: list[str] = []
    made: Subscription | None = None
    for part in (steps[:restart_at], steps[restart_at:]):
        async with run_core(url, clocks=clocks, crash=True) as core:
            everything = await core.subscribe(ALICE, BOB, CAROL, client=OTHER)  # so that each terminal is always live
            made = made or await core.subscribe(ALICE)
            for address in (ALICE, BOB, CAROL):
                known.setdefault(address, REACHABLE)
                await core.play(address, known[address])
            for step in part:
                clocks.advance(1)
                if isinstance(step, set):
                    present = step
                    await change(core, made, addresses=sorted(step))
                    continue
                address, status = step
                if address in present and known[address] is not status:
                    expected.append(f"{address[4:].partition('@')[0]} {status.name}")
                known[address] = status
                await core.play(address, status)
            assert await core.owed_in_short(made) == expected
            await core.subscriptions.cancel(OTHER, everything.id, face=Face.REST)


# Criteria, duration


async def test_criteria(url: str) -> None:
    """New criteria apply to later changes, and to what waits for the interval; all other values stay."""
    async with run_core(url, policy=Policy(busy_available=False)) as core:
        made = await core.subscribe(ALICE, min_interval_ms=10_000)
        for status in (REACHABLE, UNREACHABLE, REACHABLE):  # the last one waits
            await core.play(ALICE, status)
        changed = await change(core, made, criteria=frozenset({UNREACHABLE}))
        assert changed.criteria == {UNREACHABLE}
        assert replace(changed, criteria=made.criteria) == replace(await core.stored(made), criteria=made.criteria)
        assert (await core.stored(made)).held == ()
        await core.advance(11)
        await core.play(ALICE, UNREACHABLE)
        assert await core.owed_in_short(made) == ["alice UNREACHABLE", "alice UNREACHABLE"]
        await change(core, made, criteria=frozenset())
        await core.play(ALICE, REACHABLE)
        await core.advance(11)
        assert (await core.owed_in_short(made))[2:] == ["alice REACHABLE"]
        with pytest.raises(BusyNotSupported):
            await change(core, made, criteria=frozenset({BUSY}))


async def test_duration_counts_from_now(core: Core) -> None:
    """A new duration counts from now, longer or shorter; 0 is the policy's default. An ended subscription, and another
    client's, cannot be changed."""
    made = await core.subscribe(ALICE, duration_ms=60_000)
    await core.advance(50)
    changed = await change(core, made, duration_ms=120_000)
    assert changed.expires_at == core.clocks.now + timedelta(seconds=120)
    assert (await core.stored(made)).expires_at == changed.expires_at
    await core.advance(100)
    assert (await core.stored(made)).active
    assert (await change(core, made, duration_ms=0)).expires_at == core.clocks.now + timedelta(days=1)
    await change(core, made, duration_ms=5_000)
    await core.advance(5.1)
    assert (await core.stored(made)).end_reason is EndReason.EXPIRED
    for client in (APP, OTHER):
        with pytest.raises(SubscriptionUnknown):
            await change(core, made, client=client, duration_ms=1000)


async def test_duration_keeps_to_the_policy(url: str) -> None:
    """A duration above the policy's maximum is refused; without default and maximum, 0 is without end."""
    async with run_core(url, policy=Policy(max_duration_ms=60_000)) as core:
        made = await core.subscribe(ALICE, duration_ms=1000)
        with pytest.raises(DurationTooLong):
            await change(core, made, duration_ms=60_001)
        with pytest.raises(InvalidRequest):
            await change(core, made, duration_ms=-1)
    async with run_core(url, policy=Policy(default_duration_ms=0)) as core:
        assert (await change(core, made, duration_ms=0)).expires_at is None
        await core.advance(10_000_000)
        assert (await core.stored(made)).expires_at is None
        await change(core, made, duration_ms=1000)
        await core.advance(1.1)
        assert (await core.stored(made)).end_reason is EndReason.EXPIRED


async def test_subscription_ends_before_its_token(core: Core) -> None:
    """Neither a new duration nor a new sink lets it outlive its access token; a token that is about to expire is
    refused."""
    ends_at = BEGAN + timedelta(seconds=60)
    sink = replace(WEBHOOK, parameters={"token": "t", "token_expires_at": ends_at.isoformat()})
    made = await core.subscribe(ALICE, sink=sink)
    assert (await change(core, made, duration_ms=3_600_000)).expires_at == ends_at - TOKEN_LEAD
    later = replace(sink, parameters={"token": "u", "token_expires_at": (ends_at + timedelta(hours=1)).isoformat()})
    changed = await change(core, made, sink=later)
    assert changed.expires_at == ends_at - TOKEN_LEAD
    assert (await change(core, made, duration_ms=120_000)).expires_at == BEGAN + timedelta(seconds=120)
    assert (await change(core, made, sink=sink)).expires_at == ends_at - TOKEN_LEAD
    soon = replace(sink, parameters={"token": "t", "token_expires_at": (BEGAN + TOKEN_LEAD).isoformat()})
    with pytest.raises(SinkRefused):
        await change(core, made, sink=soon)
    assert len(core.sender.checked) == 3  # the last one is refused without a look at its endpoint


# Sink


async def test_sink(core: Core) -> None:
    """A new sink is checked with the subscription's own secrets, which it keeps; a creation that is repeated returns
    the changed subscription."""
    made = await core.subscribe(ALICE, sink=WEBHOOK, request_id="once")
    there = replace(WEBHOOK, url="https://example.com/other", parameters={"token": "t", "handshake": "test"})
    changed: list[Subscription] = []
    core.subscription_changes.on_sink_changed = changed.append
    after = await change(core, made, sink=there)
    assert changed == [after] == [await core.stored(made)]
    assert (after.sink.url, made_secret(after)) == (there.url, made_secret(made))
    assert after.sink.parameters == {**made.sink.parameters, **there.parameters}
    checked = core.sender.checked[-1].sink
    assert checked.url == there.url
    assert checked.parameters["secrets"] == made_secret(made)
    assert "made" not in checked.parameters  # the client knows the secret by now
    assert (await change(core, made, sink=WEBHOOK)).sink == made.sink
    assert (await core.subscribe(ALICE, sink=WEBHOOK, request_id="once")).id == made.id
    listed = await core.subscribe(ALICE)
    assert (await change(core, listed, sink=LISTED)).sink == LISTED


@pytest.mark.parametrize(
    ("before", "sink", "reason"),
    [
        (WEBHOOK, LISTED, "kind"),
        (WEBHOOK, SOAP, "kind"),
        (LISTED, WEBHOOK, "kind"),
        (WEBHOOK, replace(WEBHOOK, profile="camara"), "kind"),
        (WEBHOOK, replace(WEBHOOK, parameters={"secrets": "whsec_" + "A" * 32}), "secret"),
        (WEBHOOK, replace(WEBHOOK, parameters={"made": "x"}), "parameter"),
        (LISTED, replace(LISTED, url="https://example.com/"), "kind"),
    ],
)
async def test_sinks_that_are_refused(core: Core, before: Sink, sink: Sink, reason: str) -> None:
    """A sink of another kind, one with secrets, and one with parameters of the gateway are refused."""
    made = await core.subscribe(ALICE, sink=before)
    with pytest.raises(SinkRefused) as refused:
        await change(core, made, sink=sink)
    assert refused.value.details["reason"] == reason
    assert await core.stored(made) == made


async def test_endpoint_that_fails_its_check(core: Core) -> None:
    """A sink whose endpoint fails its check changes nothing, not even the other values."""
    made = await core.subscribe(ALICE, sink=WEBHOOK)
    core.sender.error = SinkUnreachable("No.", reason="http-500")
    with pytest.raises(SinkUnreachable):
        await change(core, made, sink=replace(WEBHOOK, url="https://example.com/other"), addresses=[BOB])
    assert await core.stored(made) == made
    assert (await change(core, made, addresses=[BOB])).addresses == (BOB,)


# Who, when


@pytest.mark.parametrize("values", [{"duration_ms": 1000}, {"addresses": [BOB]}, {"criteria": frozenset({BUSY})}])
async def test_api_without_changes(core: Core, values: dict[str, Any]) -> None:
    """CAMARA's subscriptions cannot be changed."""
    made = await core.subscribe(ALICE, sink=replace(WEBHOOK, profile="camara", parameters={"type": "t"}))
    with pytest.raises(ChangeNotAllowed):
        await change(core, made, **values)
    assert await core.stored(made) == made


async def test_credentials_of_a_soap_sink(core: Core) -> None:
    """The user info of an endpoint is kept as secrets are, and replaced with it; the spelling of addresses stays."""
    first = replace(SOAP, url="http://u:one@example.com/soap", parameters={"written": "{}"})
    made = await core.subscribe(ALICE, sink=first)
    assert (made.sink.url, made.sink.parameters) == (SOAP.url, {"written": "{}", SINK_BASIC: "u:one"})
    changed = await change(core, made, sink=replace(SOAP, url="http://u:t%77o@example.com/soap"))
    assert (changed.sink.url, changed.sink.parameters) == (SOAP.url, {"written": "{}", SINK_BASIC: "u:two"})
    assert not same_endpoint(made.sink, changed.sink)
    bare = await change(core, made, sink=SOAP)
    assert (await core.stored(made)).sink == bare.sink == replace(SOAP, parameters={"written": "{}"})


async def test_changes_of_a_soap_sink(core: Core) -> None:
    """A subscription with Parlay X callbacks can be changed over gRPC and REST, its endpoint too, but not its version;
    its callbacks stay those of its contract."""
    made = await core.subscribe(ALICE, sink=SOAP)
    other = replace(SOAP, url="http://example.com/other")
    changed = await change(core, made, addresses=[BOB], duration_ms=1000, sink=other)
    assert (changed.addresses, changed.sink.url, changed.sink.profile) == ((BOB,), other.url, SOAP.profile)
    assert changed.expires_at == core.clocks.now + timedelta(seconds=1)
    with pytest.raises(SinkRefused):
        await change(core, made, sink=replace(SOAP, profile="v3_1"))
    await core.play(BOB, REACHABLE)
    await core.play(BOB, BUSY)
    await core.subscriptions.cancel(APP, made.id, face=Face.REST)
    assert {one.state for one in await core.owed(made)} == {DeliveryState.WITHDRAWN}


async def test_a_change_of_nothing(core: Core) -> None:
    """A change without a value is refused, and an unknown subscription is unknown."""
    made = await core.subscribe(ALICE)
    with pytest.raises(InvalidRequest):
        await change(core, made)
    for client, name in ((OTHER, made.id), (APP, "nothing"), (APP, ""), (APP, "x" * 5000)):
        with pytest.raises(SubscriptionUnknown):
            await core.subscription_changes.update(client, name, SubscriptionChange(duration_ms=1), face=Face.REST)
    assert await core.stored(made) == made


async def test_etag(core: Core) -> None:
    """Each change and each rotation makes another etag; a change with an older one is refused, also where the other
    change came while the endpoint was checked."""
    made = await core.subscribe(ALICE, sink=WEBHOOK)
    seen = [made.etag]
    seen.append((await change(core, made, etag=made.etag, addresses=[BOB])).etag)
    rotated, _ = await core.subscription_changes.rotate_secret(APP, made.id, face=Face.REST)
    seen.append(rotated.etag)
    assert len(set(seen)) == 3
    for stale in (*seen[:2], "v", "1", "v999"):
        with pytest.raises(SubscriptionChanged):
            await change(core, made, etag=stale, addresses=[ALICE])
    assert await core.stored(made) == rotated
    check = core.sender.check

    async def meanwhile(subscription: Subscription) -> None:
        await check(subscription)
        await change(core, made, criteria=frozenset({BUSY}))

    core.sender.check = meanwhile  # type: ignore[method-assign]
    with pytest.raises(SubscriptionChanged):
        await change(core, made, etag=rotated.etag, sink=WEBHOOK)
    assert (await core.stored(made)).criteria == {BUSY}
    await change(core, made, sink=WEBHOOK)  # without an etag, both changes hold
    stored = await core.stored(made)
    assert (set(stored.criteria), stored.version) == ({BUSY}, 6)


async def test_changes_at_once_all_hold(core: Core) -> None:
    """Changes of different values that come at once do not undo each other."""
    made = await core.subscribe(ALICE, sink=WEBHOOK)
    there = replace(WEBHOOK, url="https://example.com/other")
    await asyncio.gather(
        change(core, made, addresses=[BOB]),
        change(core, made, criteria=frozenset({BUSY})),
        change(core, made, duration_ms=1_000_000),
        change(core, made, sink=there),
        core.subscription_changes.rotate_secret(APP, made.id, secret="whsec_" + "A" * 32, face=Face.REST),
    )
    stored = await core.stored(made)
    assert (set(stored.addresses), set(stored.criteria), stored.sink.url) == ({BOB}, {BUSY}, there.url)
    assert stored.expires_at == BEGAN + timedelta(seconds=1000)
    assert stored.sink.parameters["secrets"].split()[0] == "whsec_" + "A" * 32
    assert stored.version == 6


async def test_an_end_at_once_with_a_change(core: Core) -> None:
    """Of an end and a change that come at once, in both orders, nothing is left behind: no watch, no subscription."""
    for first in (True, False):
        made = await core.subscribe(ALICE)
        ending = core.subscriptions.cancel(APP, made.id, face=Face.REST)
        changing = change(core, made, addresses=[BOB])
        calls = [ending, changing] if first else [changing, ending]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(result is None or isinstance(result, Subscription | SubscriptionUnknown) for result in results)
        assert (await core.stored(made)).end_reason is EndReason.CANCELLED
        assert not core.live.index.by_id
    assert not core.live.registry.wanted_by(ALICE)
    assert not core.live.registry.wanted_by(BOB)
    await core.advance(31)
    assert not core.watcher.wanted


async def test_an_end_by_the_endpoint_during_the_write(core: Core) -> None:
    """A subscription whose endpoint answers 410 Gone while its change is written stays ended and unchanged."""
    made = await core.subscribe(ALICE, sink=WEBHOOK)

    async def gone(changes: Changes) -> None:
        core.store.before_write = None
        update = SubscriptionUpdate(subscription_id=made.id, ended_at=BEGAN, end_reason=EndReason.SINK_GONE)
        await core.store.write(Changes(updates=[update]))
        core.live.lifecycle.on_ended_in_store(made.id)

    core.store.before_write = gone
    with pytest.raises(SubscriptionUnknown):
        await change(core, made, addresses=[BOB])
    assert (await core.stored(made)).addresses == (ALICE,)
    assert not core.live.registry.wanted_by(BOB)


async def test_change_that_cannot_be_written(core: Core) -> None:
    """While the database is away a change fails, and changes nothing in memory."""
    made = await core.subscribe(ALICE)
    await core.play(ALICE, REACHABLE)

    async def away(changes: Changes) -> None:
        raise StoreUnavailable("The test has taken the database away.")

    core.store.before_write = away
    with pytest.raises(StoreUnavailable):
        await change(core, made, addresses=[BOB], criteria=frozenset({UNREACHABLE}), duration_ms=1000)
    core.store.before_write = None
    await core.play(ALICE, BUSY)
    await core.advance(2)
    assert await core.owed_in_short(made) == ["alice BUSY"]
    assert await core.stored(made) == replace(made, awaiting=False, notified=1, last_notified_at=BEGAN)


async def test_a_change_is_audited(core: Core) -> None:
    """The audit log says who changed which values of which subscription, in the transaction of the change."""
    made = await core.subscribe(ALICE)
    await change(core, made, client=ADMIN, addresses=[BOB], duration_ms=1000)
    (written,) = [changes for changes in core.store.writes if changes.edits]
    (entry,) = written.audit
    assert (entry.actor, entry.action) == (ADMIN.id, AuditAction.SUBSCRIPTION_CHANGED)
    assert entry.details == {
        "subscription": made.id,
        "face": "rest",
        "requester": "bob",
        "changed": "addresses, duration_ms",
    }


async def test_restart_keeps_the_change(url: str) -> None:
    """After a restart the changed values apply; terminals that were added and not observed yet are still awaited."""
    clocks = Clocks()
    async with run_core(url, clocks=clocks, crash=True) as core:
        made = await core.subscribe(ALICE, sink=WEBHOOK)
        await core.play(ALICE, REACHABLE)
        there = replace(WEBHOOK, url="https://example.com/other")
        changed = await change(
            core, made, addresses=[BOB, CAROL], criteria=frozenset({BUSY}), duration_ms=60_000, sink=there
        )
    async with run_core(url, clocks=clocks) as core:
        assert await core.stored(made) == changed
        assert set(core.watcher.wanted) == {BOB, CAROL}
        for status in (BUSY, REACHABLE, BUSY):
            await core.play(BOB, status)
        await core.advance(61)
        assert await core.owed_in_short(made) == ["STARTED", "bob BUSY", "ENDED EXPIRED"]


@pytest.mark.parametrize("error", [TerminalUnknown("No."), None])
async def test_failure_while_the_change_waits(core: Core, error: TerminalStatusError | None) -> None:
    """A terminal that fails while its subscription's change is written is reported."""
    made = await core.subscribe(ALICE)

    async def fails(changes: Changes) -> None:
        if changes.edits and error is not None:
            core.watcher.fail(BOB, error)

    core.store.before_write = fails
    await change(core, made, addresses=[ALICE, BOB])
    await core.settled()
    assert await core.owed_in_short(made) == (["ERROR bob TERMINAL_UNKNOWN"] if error else [])
