"""Tests of what lists return by their filters, in the store and in the use cases, and of their page tokens."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.administration import Administration
from app.domain.errors import InvalidAddress, InvalidRequest
from app.domain.filters import (
    AuditFilter,
    GroupFilter,
    NotificationFilter,
    SubscriptionFilter,
    SubscriptionState,
    UsageFilter,
    WatchFilter,
)
from app.domain.operations import AuditAction, Face, UsageOperation
from app.domain.outcomes import DeliveryOutcome
from app.domain.records import DeliveryState
from app.domain.statuses import Liveness
from app.domain.watches import WatchState
from app.ports.sip import WatchView
from app.ports.store import Page
from app.store import SqlStore, scans
from tests.support.core import ADMIN, APP, BEGAN, TEAM, Core
from tests.support.records import ALICE, AT, BOB, CAROL, after, end, group, make, owed, paged, subscription, usage

Read = Callable[[Page], Awaitable[tuple[list[Any], str]]]


async def execute(store: SqlStore, statement: str, **parameters: Any) -> None:
    """Executes a statement as another version of the gateway would."""
    if isinstance(store.engine, AsyncEngine):
        async with store.engine.begin() as connection:
            await connection.execute(text(statement), parameters)
    else:
        with store.engine.begin() as connection:
            connection.execute(text(statement), parameters)


async def listed(read: Read, size: int = 2) -> list[Any]:
    """All items of a list, read in pages of this size."""
    return [one for page in await paged(read, size) for one in page]


async def test_subscriptions_are_filtered(store: SqlStore) -> None:
    """Subscriptions are listed by client, by an address of the request, by state and by the time of creation."""
    await make(store, "s0", "s1")
    await make(store, "s2", client_id="c2", addresses=(CAROL, ALICE), created_at=after(5))
    await make(store, "s3", "s4", created_at=after(10))
    await end(store, "s1")
    await end(store, "s3")
    for only, expected in (
        (SubscriptionFilter(), ["s0", "s2", "s4"]),
        (SubscriptionFilter(state=None), ["s0", "s1", "s2", "s3", "s4"]),
        (SubscriptionFilter(state=SubscriptionState.ENDED), ["s1", "s3"]),
        (SubscriptionFilter(state=SubscriptionState.ENDED, client_id="c1", start=after(1)), ["s3"]),
        (SubscriptionFilter(client_id="c2"), ["s2"]),
        (SubscriptionFilter(address=ALICE), ["s0", "s2", "s4"]),
        (SubscriptionFilter(address=BOB, client_id="c1"), ["s0", "s4"]),
        (SubscriptionFilter(address=CAROL), ["s2"]),
        (SubscriptionFilter(address="sip:nobody@example.com"), []),
        (SubscriptionFilter(start=after(5)), ["s2", "s4"]),
        (SubscriptionFilter(end=after(5)), ["s0"]),
        (SubscriptionFilter(start=after(5), end=after(10)), ["s2"]),
    ):
        found = await listed(lambda page, only=only: store.subscriptions(page, only), 1)  # type: ignore[misc]
        assert [one.id for one in found] == expected, only


async def test_notifications_are_filtered(store: SqlStore) -> None:
    """Notifications are listed by client, subscription, state and the time of creation."""
    rows = [owed("n0"), owed("n1", created_at=after(5)), owed("n2", created_at=after(9), state=DeliveryState.DEAD)]
    await store.create_subscription(subscription("s1"), rows, ())
    await store.create_subscription(
        subscription("s2", client_id="c2"), [owed("m0", "s2", client_id="c2", created_at=after(5))], ()
    )
    for only, expected in (
        (NotificationFilter(), ["n0", "n1", "n2", "m0"]),
        (NotificationFilter(client_id="c2"), ["m0"]),
        (NotificationFilter(subscription_id="s1", start=after(5)), ["n1", "n2"]),
        (NotificationFilter(subscription_id="s1", client_id="c2"), []),
        (NotificationFilter(state=DeliveryState.DEAD), ["n2"]),
        (NotificationFilter(state=DeliveryState.PENDING, client_id="c1"), ["n0", "n1"]),
        (NotificationFilter(start=after(5), end=after(9)), ["n1", "m0"]),
    ):
        found = await listed(lambda page, only=only: store.notifications(page, only), 1)  # type: ignore[misc]
        assert [one.id for one in found] == expected, only


async def test_usage_records_are_filtered(store: SqlStore) -> None:
    """Usage records are listed by client, operation, face and time; a record of an earlier time that is written late is
    found too."""
    await store.write_usage([usage("u0", at=after(3)), usage("u1", at=after(7), client_id="c2")])
    await store.write_usage([usage("u2", at=after(5)), usage("u3", at=after(9))])
    for only, expected in (
        (UsageFilter(), ["u0", "u1", "u2", "u3"]),
        (UsageFilter(client_id="c1"), ["u0", "u2", "u3"]),
        (UsageFilter(end=after(7)), ["u0", "u2"]),
        (UsageFilter(start=after(5), end=after(9)), ["u1", "u2"]),
        (UsageFilter(start=after(10)), []),
        (UsageFilter(end=AT), []),
        (UsageFilter(operation=UsageOperation.GET_STATUS, face=Face.REST), ["u0", "u1", "u2", "u3"]),
        (UsageFilter(operation=UsageOperation.END_NOTIFICATION), []),
        (UsageFilter(face=Face.SOAP, start=AT), []),
    ):
        found = await listed(lambda page, only=only: store.usage(page, only), 1)  # type: ignore[misc]
        assert [one.id for one in found] == expected, only


async def test_audit_entries_are_filtered(store: SqlStore) -> None:
    """Entries are listed by actor, action and time."""
    for number, (actor, action) in enumerate(
        [
            ("ops", AuditAction.GROUP_CREATED),
            ("cli:root", AuditAction.CLIENT_ADDED),
            ("ops", AuditAction.CLIENT_ADDED),
            ("ops", AuditAction.GROUP_DELETED),
        ]
    ):
        await store.audit(after(number), actor, action, {"number": str(number)})
    for only, expected in (
        (AuditFilter(), "0123"),
        (AuditFilter(actor="ops"), "023"),
        (AuditFilter(action=AuditAction.CLIENT_ADDED), "12"),
        (AuditFilter(actor="ops", action=AuditAction.CLIENT_ADDED, start=AT), "2"),
        (AuditFilter(start=after(1), end=after(3)), "12"),
        (AuditFilter(actor="nobody"), ""),
    ):
        found = await listed(lambda page, only=only: store.audit_entries(page, only), 1)  # type: ignore[misc]
        assert "".join(one.details["number"] for one in found) == expected, only


async def test_groups_are_filtered(store: SqlStore) -> None:
    """Groups are listed by client and by a direct member."""
    await store.create_group(group(TEAM, members=(ALICE, BOB)))
    await store.create_group(group(TEAM, client_id="c2", members=(CAROL, ALICE)))
    await store.create_group(group(members=(TEAM,)))
    for only, expected in (
        (GroupFilter(member=ALICE), [(TEAM, "c1"), (TEAM, "c2")]),
        (GroupFilter(member=CAROL, client_id="c1"), []),
        (GroupFilter(member=TEAM), [("sip:friends@example.com", "c1")]),
        (GroupFilter(client_id="c2"), [(TEAM, "c2")]),
    ):
        found = await listed(lambda page, only=only: store.groups(page, only), 1)  # type: ignore[misc]
        assert [(one.address, one.client_id) for one in found] == expected, only


async def test_long_list_with_few_matches_is_read_in_short_steps(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page stops after a bounded number of rows that the filter leaves out. The next page continues there, so that
    every match is found."""
    monkeypatch.setattr(scans, "MAX_SCANNED", 5)
    await store.write_usage([usage(f"u{number}", at=after(number)) for number in range(12)])
    await store.write_usage(
        [msgspec.structs.replace(usage(f"s{number}", at=after(20)), face=Face.SOAP) for number in range(3)]
    )
    for only in (UsageFilter(face=Face.SOAP), UsageFilter(face=Face.SOAP, start=after(1), end=after(30))):
        pages = await paged(lambda page, only=only: store.usage(page, only), 2)
        assert [one.id for page in pages for one in page] == ["s0", "s1", "s2"]
        assert pages[0] == []
        assert len(pages) > 3
    rows = [owed(f"n{number}", created_at=after(number)) for number in range(11)]
    await store.create_subscription(subscription("s1"), rows, ())
    pages = await paged(lambda page: store.notifications(page, NotificationFilter(start=after(8))), 2)
    assert [[one.id for one in page] for page in pages] == [[], ["n8", "n9"], ["n10"]]


async def test_page_token_is_bound_to_the_filter(store: SqlStore) -> None:
    """A token of a list is refused with each other filter of that list, with the field's name."""
    await make(store, "s0", "s1")
    await store.create_subscription(subscription("s2"), [owed("n0", "s2"), owed("n1", "s2")], ())
    await store.write_usage([usage("u0"), usage("u1")])
    for number in range(2):
        await store.audit(after(number), "ops", AuditAction.CLIENT_ADDED, {})
        await store.create_group(group(client_id=f"c{number}"))
    lists: list[tuple[Any, Any, list[dict[str, Any]]]] = [
        (
            store.subscriptions,
            SubscriptionFilter(),
            [{"client_id": "c1"}, {"address": ALICE}, {"state": None}, {"start": AT}, {"end": after(5)}],
        ),
        (
            store.notifications,
            NotificationFilter(),
            [{"client_id": "c1"}, {"subscription_id": "s2"}, {"state": DeliveryState.PENDING}, {"start": AT}],
        ),
        (store.groups, GroupFilter(), [{"client_id": "c0"}, {"member": ALICE}]),
        (
            store.usage,
            UsageFilter(),
            [
                {"client_id": "c1"},
                {"operation": UsageOperation.GET_STATUS},
                {"face": Face.REST},
                {"start": AT},
                {"end": after(5)},
            ],
        ),
        (store.audit_entries, AuditFilter(), [{"actor": "ops"}, {"action": AuditAction.CLIENT_ADDED}, {"start": AT}]),
    ]
    for read, only, others in lists:
        _, token = await read(Page(size=1), only)
        assert (await read(Page(size=1, token=token), only))[0]
        for changes in others:
            with pytest.raises(InvalidRequest) as caught:
                await read(Page(size=1, token=token), replace(only, **changes))
            assert caught.value.details["field"] == "page_token", changes
            _, foreign = await read(Page(size=1), replace(only, **changes))
            with pytest.raises(InvalidRequest):
                await read(Page(size=1, token=foreign or "x"), only)


@pytest.mark.parametrize("kind", [SubscriptionFilter, NotificationFilter, UsageFilter, AuditFilter])
def test_period_that_contains_nothing_is_refused(kind: Callable[..., Any]) -> None:
    """A period must end after its start."""
    assert kind(start=AT, end=after(0.001)).end == after(0.001)
    for end_time in (AT, AT - timedelta(seconds=1)):
        with pytest.raises(InvalidRequest) as caught:
            kind(start=AT, end=end_time)
        assert caught.value.details["field"] == ("max_create_time" if kind is SubscriptionFilter else "end_time")


async def test_other_clients_part_of_a_list_is_empty(core: Core) -> None:
    """A client that filters by another client's id gets an empty list, whose page tokens are refused; by its own id,
    what it sees without a filter. An operator's client gets any client's part."""
    await core.subscribe(ALICE)
    await core.groups.create(APP, TEAM, [ALICE])
    lists: list[tuple[Any, Any]] = [
        (core.subscriptions.list, SubscriptionFilter),
        (core.groups.list, GroupFilter),
    ]
    for read, kind in lists:
        mine = await read(APP, Page())
        assert len(mine[0]) == 1
        assert await read(APP, Page(), kind(client_id=APP.id)) == mine
        assert await read(APP, Page(), kind(client_id="another")) == ([], "")
        assert await read(ADMIN, Page(), kind(client_id=APP.id)) == mine
        assert await read(ADMIN, Page(), kind(client_id="another")) == ([], "")
        with pytest.raises(InvalidRequest):
            await read(APP, Page(token="x"), kind(client_id="another"))
    assert await core.usage.page(APP, Page(), UsageFilter(client_id="another", start=BEGAN)) == ([], "")


async def test_addresses_of_filters_are_made_canonical(core: Core) -> None:
    """A filter accepts each spelling of an address; a text that is not an address is refused with the field's name."""
    made = await core.subscribe(ALICE)
    await core.groups.create(APP, TEAM, [ALICE])
    found, _ = await core.subscriptions.list(APP, Page(), SubscriptionFilter(address="SIP:alice@EXAMPLE.com"))
    assert [one.id for one in found] == [made.id]
    groups, _ = await core.groups.list(APP, Page(), GroupFilter(member="sip:alice@EXAMPLE.com"))
    assert [one.address for one in groups] == [TEAM]
    with pytest.raises(InvalidAddress) as caught:
        await core.subscriptions.list(APP, Page(), SubscriptionFilter(address="alice"))
    assert caught.value.details["field"] == "address"
    with pytest.raises(InvalidAddress) as caught:
        await core.groups.list(APP, Page(), GroupFilter(member="alice"))
    assert caught.value.details["field"] == "member"


async def test_watches_are_filtered(core: Core) -> None:
    """Watches are listed by state, by the liveness that is shown, and by address; the total counts what matches."""

    async def watches() -> list[WatchView]:
        values = {"expires_at": None, "code": 200, "reason": "", "next_action": "", "next_at": None, "route": ""}
        return [
            WatchView(address=address, state=state, liveness=liveness, since=BEGAN, **values)  # type: ignore[arg-type]
            for address, state, liveness in (
                (CAROL, WatchState.WAITING, Liveness.STALE),
                (ALICE, WatchState.ACTIVE, Liveness.LIVE),
                (BOB, WatchState.ACTIVE, Liveness.UNKNOWN),
            )
        ]

    core.watcher.watches = watches  # type: ignore[method-assign]
    administration = Administration(
        core.store,
        core.watcher,
        None,  # type: ignore[arg-type]  # nobody asks for clients
        core.live.registry,
        lambda: core.clocks.now,
    )
    for only, expected in (
        (WatchFilter(), [ALICE, BOB, CAROL]),
        (WatchFilter(state=WatchState.ACTIVE), [ALICE, BOB]),
        (WatchFilter(state=WatchState.ACTIVE, liveness=Liveness.UNKNOWN), [BOB]),
        (WatchFilter(address="SIP:carol@EXAMPLE.com"), [CAROL]),
        (WatchFilter(address="sip:nobody@example.com"), []),
    ):
        found, _, total = await administration.watches(ADMIN, Page(), only)
        assert ([one.watch.address for one in found], total) == (expected, len(expected))
    _, token, total = await administration.watches(ADMIN, Page(size=1), WatchFilter(state=WatchState.ACTIVE))
    assert total == 2
    second = Page(size=1, token=token)
    found, last, _ = await administration.watches(ADMIN, second, WatchFilter(state=WatchState.ACTIVE))
    assert ([one.watch.address for one in found], last) == ([BOB], "")
    for only in (WatchFilter(), WatchFilter(state=WatchState.WAITING)):
        with pytest.raises(InvalidRequest) as caught:
            await administration.watches(ADMIN, second, only)
        assert caught.value.details["field"] == "page_token"
    with pytest.raises(InvalidAddress):
        await administration.watches(ADMIN, Page(), WatchFilter(address="alice"))


async def test_rows_of_other_versions_are_read(store: SqlStore) -> None:
    """Outcomes are read as versions before wrote them. A value that this version does not know is shown as UNKNOWN, and
    is not found by a filter."""
    words = ["http-500", "refused-scheme", "delivered", "soap-fault", "timed-out", "refused", "http-", "new-word", ""]
    await store.create_subscription(subscription("s1"), [owed("n1")], ())
    await store.write_usage([usage("u1"), usage("u2")])
    for number in range(2):
        await store.audit(after(number), "ops", AuditAction.CLIENT_ADDED, {})
    attempt = (
        "insert into delivery_attempt (notification_seq, number, at, code, duration_ms, outcome, answer) "
        "select seq, :number, created_at, 500, 1, :word, :answer from owed_notification"
    )
    for number, word in enumerate(words):
        await execute(store, attempt, number=number + 1, word=word, answer=b"")
    await execute(store, "update usage_record set operation = 'payStatus', face = 'mqtt' where id = 'u1'")
    await execute(store, "update audit_log set what = 'moon landed' where at > (select min(at) from audit_log)")
    outcomes = DeliveryOutcome
    assert [one.outcome for one in await store.attempts("n1")] == [
        outcomes.HTTP_ERROR,
        outcomes.SINK_REFUSED,
        outcomes.DELIVERED,
        outcomes.SOAP_FAULT,
        outcomes.TIMED_OUT,
        outcomes.CONNECTION_REFUSED,
        *[outcomes.UNKNOWN] * 3,
    ]
    records, _ = await store.usage(Page())
    assert [(one.operation, one.face) for one in records] == [
        (UsageOperation.UNKNOWN, Face.UNKNOWN),
        (UsageOperation.GET_STATUS, Face.REST),
    ]
    entries, _ = await store.audit_entries(Page())
    assert [one.action for one in entries] == [AuditAction.CLIENT_ADDED, AuditAction.UNKNOWN]
    assert len((await store.usage(Page(), UsageFilter(operation=UsageOperation.GET_STATUS)))[0]) == 1


def test_stored_values_are_those_of_versions_before() -> None:
    """No stored value changes, except outcomes that contained a code or a reason: rows of before keep their meaning."""
    assert UsageOperation("statusNotification_DeliveryAttempted").name == "STATUS_NOTIFICATION_DELIVERY_ATTEMPTED"
    assert UsageOperation("statusEnd_DeliveryResult").name == "STATUS_END_DELIVERY_RESULT"
    assert [Face(word).name for word in ("grpc", "rest", "camara", "soap", "gateway")] == [
        "GRPC",
        "REST",
        "CAMARA",
        "SOAP",
        "GATEWAY",
    ]
    words = ["client key rotated", "old subscription secret dropped", "subscription cancelled", "subscription renewed"]
    assert [AuditAction(word).value for word in words] == words
