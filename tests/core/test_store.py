"""What `ports.store.Store` promises about statuses, subscriptions, clients, groups and lists, on both databases."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes, SubscriptionUpdate
from app.domain.errors import (
    ClientExists,
    ClientUnknown,
    DuplicateCorrelator,
    GroupChanged,
    GroupExists,
    GroupUnknown,
    InvalidRequest,
    SubscriptionUnknown,
)
from app.domain.filters import (
    AuditFilter,
    GroupFilter,
    NotificationFilter,
    SubscriptionFilter,
    SubscriptionState,
    UsageFilter,
)
from app.domain.operations import AuditAction
from app.domain.owed import ClientDeletion
from app.domain.records import (
    AuditEntry,
    Client,
    DeliveryState,
    Group,
    NotificationKind,
)
from app.domain.sinks import EndReason, Sink, SinkKind
from app.domain.statuses import Status
from app.ports.pages import token as make_token
from app.ports.store import Page
from app.sinks import SINK_CONTRACTS
from app.store import SqlStore, open_store
from tests.support.records import (
    ALICE,
    AT,
    BOB,
    CAROL,
    FRIENDS,
    WEBHOOK,
    after,
    edit_of,
    end,
    group,
    make,
    owed,
    paged,
    sequences,
    status,
    subscription,
    usage,
)

# Statuses


async def test_statuses_are_read_as_written(store: SqlStore) -> None:
    """A status is read back equal, with an aware UTC time; a terminal without a status is left out."""
    written = [status(ALICE), status(BOB, value=Status.BUSY)]
    assert await store.write(Changes(statuses=written)) == ()
    found = await store.statuses([ALICE, BOB, CAROL])
    assert found == {ALICE: written[0], BOB: written[1]}
    assert found[ALICE].observed_at.tzinfo is UTC
    assert await store.statuses([]) == {}


async def test_ten_thousand_addresses_are_one_question(store: SqlStore) -> None:
    """A long list is one call; the database's limit of parameters does not show."""
    addresses = [TerminalAddress(f"sip:u{number}@example.com") for number in range(10_000)]
    await store.write(Changes(statuses=[status(address) for address in addresses]))
    assert len(await store.statuses(addresses)) == 10_000


async def test_revision_that_was_passed_writes_nothing_at_all(store: SqlStore) -> None:
    """One status with a wrong revision prevents the whole write: statuses, updates, owed notifications and usage
    records."""
    await make(store, "s1")
    await store.write(Changes(statuses=[status(ALICE, 1), status(BOB, 1)]))
    await store.write(Changes(statuses=[status(ALICE, 2, Status.BUSY)]))
    conflicts = await store.write(
        Changes(
            statuses=[status(CAROL, 1), status(BOB, 2), status(ALICE, 2, Status.UNREACHABLE)],
            updates=[SubscriptionUpdate(subscription_id="s1", notified=7)],
            owed=[owed("n1")],
            usage=[usage("u1")],
        )
    )
    assert list(conflicts) == [status(ALICE, 2, Status.BUSY)]
    assert await store.statuses([ALICE, BOB, CAROL]) == {ALICE: status(ALICE, 2, Status.BUSY), BOB: status(BOB, 1)}
    assert await store.subscription("s1") == subscription("s1")
    assert await sequences(store, "s1") == []
    assert await store.usage(Page(), UsageFilter(start=AT)) == ([], "")


async def test_revisions_of_one_terminal_that_follow_each_other_are_one_write(store: SqlStore) -> None:
    """One write may have several changes of a terminal; the first is compared, the last is stored."""
    await store.write(Changes(statuses=[status(ALICE, 1), status(BOB, 1), status(ALICE, 2), status(ALICE, 3)]))
    assert (await store.statuses([ALICE]))[ALICE] == status(ALICE, 3)
    assert await store.write(Changes(statuses=[status(ALICE, 3), status(ALICE, 4)])) == [status(ALICE, 3)]
    with pytest.raises(ValueError, match="revision 6"):
        await store.write(Changes(statuses=[status(ALICE, 4), status(ALICE, 6)]))
    with pytest.raises(ValueError, match="revision 0"):
        await store.write(Changes(statuses=[status(ALICE, 0)]))


async def test_of_writers_of_one_revision_one_wins(store: SqlStore) -> None:
    """Of concurrent writers of the same next revision one writes; each other one gets the stored status."""
    for revision in (1, 2):
        texts = [Status.REACHABLE, Status.BUSY] * 4
        answers = await asyncio.gather(
            *(store.write(Changes(statuses=[status(BOB, revision, text), status(ALICE, revision)])) for text in texts)
        )
        stored = await store.statuses([ALICE, BOB])
        assert [answer for answer in answers if not answer] == [()]
        for answer in answers:
            assert not answer or {one.address: one for one in answer} == stored


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(
        st.dictionaries(
            st.sampled_from([ALICE, BOB, CAROL]),
            st.tuples(st.integers(1, 4), st.sampled_from(list(Status))),
            min_size=1,
        ),
        min_size=1,
        max_size=8,
    )
)
async def test_compare_and_set_is_a_dictionary(store: SqlStore, groups: list[dict[TerminalAddress, Any]]) -> None:
    """For any groups of revisions the store does the same as a dictionary with the same rule."""
    model = await store.statuses([ALICE, BOB, CAROL])
    base = {address: one.revision for address, one in model.items()}
    for batch in groups:
        written = [
            status(address, base.get(address, 0) + step, value) for address, (step, value) in sorted(batch.items())
        ]
        conflicts = {
            model[one.address]
            for one in written
            if one.address in model and model[one.address].revision >= one.revision
        }
        assert set(await store.write(Changes(statuses=written))) == conflicts
        if not conflicts:
            model |= {one.address: one for one in written}
        assert await store.statuses([ALICE, BOB, CAROL]) == model


# Owed notifications


async def test_sequence_has_no_gaps(store: SqlStore) -> None:
    """Numbers grow by one within each subscription, in the given order, even where writes in between fail or are
    refused."""
    await make(store, "s1", "s2")
    await store.write(Changes(owed=[owed("a1"), owed("b1", "s2"), owed("a2")]))
    await store.write(Changes(statuses=[status(ALICE, 1)]))
    assert await store.write(Changes(statuses=[status(ALICE, 1)], owed=[owed("a3")]))  # refused
    with pytest.raises(SubscriptionUnknown):
        await store.write(Changes(owed=[owed("a3"), owed("x", "nobody")]))
    await store.write(Changes(owed=[owed("a4"), owed("b2", "s2")]))
    assert await sequences(store, "s1") == [("a1", 1), ("a2", 2), ("a4", 3)]
    assert await sequences(store, "s2") == [("b1", 1), ("b2", 2)]


async def test_sequence_has_no_gaps_under_concurrency(database_url: str) -> None:
    """Many writers to the same subscriptions, named in different orders, cause no conflict and no deadlock."""
    names = [f"s{number}" for number in range(5)]
    async with await open_store(database_url, busy_timeout_ms=10_000) as store:  # a slow writer is not wrong
        await make(store, *names)
        await asyncio.gather(
            *(
                store.write(Changes(owed=[owed(f"{writer}-{name}", name) for name in (names, names[::-1])[writer % 2]]))
                for writer in range(20)
            )
        )
        for name in names:
            assert [number for _, number in await sequences(store, name)] == list(range(1, 21))


async def test_owed_notification_is_read_as_written(store: SqlStore) -> None:
    """Every part is read back equal; only the sequence is new."""
    await make(store, "s1")
    reported = owed("n1", changes=(status(ALICE, 3), status(BOB, 1, Status.BUSY)))
    failed = owed(
        "n2", kind=NotificationKind.ERROR, changes=(), address=BOB, code="TERMINAL_UNKNOWN", text="Not Found \0 \ud800"
    )
    await store.write(Changes(owed=[reported, failed]))
    assert await store.notification("n1") == replace(reported, sequence=1)
    assert await store.notification("n2") == replace(failed, sequence=2, text="Not Found \ufffd \ufffd")
    assert await store.notification("n3") is None


async def test_write_that_is_repeated_owes_nothing_twice(store: SqlStore) -> None:
    """A caller that did not learn whether its write was done may repeat the write."""
    await make(store, "s1")
    changes = Changes(owed=[owed("n1"), owed("n2")], usage=[usage("u1")])
    await store.write(changes)
    await store.write(replace(changes, owed=[*changes.owed, owed("n3")]))
    assert await sequences(store, "s1") == [("n1", 1), ("n2", 2), ("n3", 3)]
    assert len((await store.usage(Page(), UsageFilter(start=AT)))[0]) == 1


# Subscriptions


async def test_subscription_is_read_as_written(store: SqlStore) -> None:
    """Every part is read back equal, with the addresses in their order."""
    full = subscription(
        "s1",
        addresses=(BOB, CAROL, ALICE),
        correlator="corr",
        request_id="r1",
        notified=3,
        last_notified_at=after(1),
        awaiting=True,
        suspended_at=after(2),
    )
    bare = subscription("s2", criteria=frozenset(), expires_at=None, sink=Sink(kind=SinkKind.STREAM), addresses=())
    assert await store.create_subscription(full, [owed("n1")], [usage("u1")]) == full
    await store.create_subscription(bare, (), ())
    assert await store.subscription("s1") == full
    assert await store.subscription("s2") == bare
    assert await store.subscription("s3") is None
    assert await store.subscriptions_by_id(["s2", "s3", "s1"]) == {"s1": full, "s2": bare}
    assert await sequences(store, "s1") == [("n1", 1)]
    assert (await store.usage(Page(), UsageFilter(start=AT)))[0] == [usage("u1")]


async def test_times_that_are_not_utc_are_refused(store: SqlStore) -> None:
    """A time in another zone is refused before it is written."""
    zone = timezone(timedelta(hours=2))
    with pytest.raises(ValueError, match="not an aware UTC"):
        subscription("s1", created_at=AT.astimezone(zone))
    with pytest.raises(Exception, match="not an aware UTC"):
        await store.audit(AT.astimezone(zone), "me", AuditAction.CLIENT_ADDED, {})


async def test_same_request_id_is_the_same_subscription(store: SqlStore) -> None:
    """Of many simultaneous calls with one request id one makes the subscription, and all get it; another client with
    this id gets its own."""
    made = await asyncio.gather(
        *(
            store.create_subscription(
                subscription(f"s{number}", request_id="r", correlator="c"), [owed(f"n{number}", f"s{number}")], ()
            )
            for number in range(8)
        )
    )
    assert len({one.id for one in made}) == 1
    assert len((await store.subscriptions(Page(), SubscriptionFilter(client_id="c1")))[0]) == 1
    assert len((await store.notifications(Page(), NotificationFilter(client_id="c1")))[0]) == 1
    other = subscription("other", client_id="c2", request_id="r", correlator="c")
    assert await store.create_subscription(other, (), ()) == other


async def test_ended_subscription_still_answers_its_request_id(store: SqlStore) -> None:
    """A late repetition of the request gets the subscription of the first request, active or ended."""
    await make(store, "s1", request_id="r")
    await end(store, "s1")
    assert (await store.create_subscription(subscription("s2", request_id="r"), (), ())).id == "s1"


async def test_correlator_is_unique_among_the_active(store: SqlStore) -> None:
    """Of many simultaneous calls with one correlator one makes a subscription; after its end the correlator is free."""
    made = await asyncio.gather(
        *(
            store.create_subscription(subscription(f"s{number}", correlator="c", request_id=f"r{number}"), (), ())
            for number in range(8)
        ),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in made) == ["DuplicateCorrelator"] * 7 + ["Subscription"]
    found = await store.subscription_by_correlator("c1", "c")
    assert found is not None
    await end(store, found.id)
    assert await store.subscription_by_correlator("c1", "c") is None
    again = subscription("again", correlator="c")
    assert await store.create_subscription(again, (), ()) == again
    assert await store.subscription_by_correlator("c2", "c") is None
    with pytest.raises(DuplicateCorrelator):
        await store.create_subscription(subscription("third", correlator="c"), (), ())


async def test_no_correlator_is_not_a_correlator(store: SqlStore) -> None:
    """Any number of subscriptions may have no correlator; an empty correlator finds none of them."""
    await make(store, "s1", "s2")
    assert await store.subscription_by_correlator("c1", "") is None


async def test_update_changes_what_it_names(store: SqlStore) -> None:
    """None leaves a value unchanged; a second end does not replace the first."""
    await make(store, "s1", "s2")
    first = SubscriptionUpdate(subscription_id="s1", notified=2, last_notified_at=after(5))
    await store.write(Changes(updates=[first, SubscriptionUpdate(subscription_id="s2", joined=(ALICE,))]))
    expected = subscription("s1", notified=2, last_notified_at=after(5))
    assert await store.subscription("s1") == expected
    assert await store.subscription("s2") == subscription("s2", joined=(ALICE,))
    await end(store, "s1", EndReason.CANCELLED, "by its client")
    await end(store, "s1", EndReason.EXPIRED, "too late", at=after(99))
    assert await store.subscription("s1") == replace(
        expected, ended_at=after(10), end_reason=EndReason.CANCELLED, end_detail="by its client"
    )


async def test_an_edit_replaces_what_its_client_may_change(store: SqlStore) -> None:
    """An edit replaces version, criteria and expiry (by none, too), and addresses and sink if it has them; written
    again, as after a lost answer, it changes nothing. An ended subscription is not edited."""
    await make(store, "s1", "s2", expires_at=after(60))
    made = subscription("s1", expires_at=after(60))
    sink = replace(WEBHOOK, url="https://other.example/hook")
    changed = replace(made, addresses=(BOB, ALICE), criteria=frozenset({Status.BUSY}), expires_at=None, sink=sink)
    edit = edit_of(made, addresses=(BOB, ALICE), criteria=changed.criteria, expires_at=None, sink=sink)
    for _ in range(2):
        await store.write(Changes(edits=[edit], updates=[SubscriptionUpdate(subscription_id="s1", joined=(BOB,))]))
        assert await store.subscription("s1") == replace(changed, version=2, joined=(BOB,))
    await store.write(Changes(edits=[edit_of(replace(made, version=2), addresses=())]))
    assert await store.subscription("s1") == replace(made, addresses=(), sink=sink, version=3, joined=(BOB,))
    assert await store.subscription("s2") == replace(made, id="s2")
    await end(store, "s1")
    with pytest.raises(SubscriptionUnknown):
        await store.write(Changes(edits=[edit]))
    found = await store.subscription("s1")
    assert found is not None
    assert (found.version, found.addresses) == (3, ())


async def test_active_subscriptions_are_all_of_them(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Active subscriptions are read in portions, oldest first, without ended ones."""
    monkeypatch.setattr("app.store.subscriptions.PORTION", 2)
    names = [f"s{number}" for number in range(7)]
    await make(store, *names)
    await end(store, "s3")
    portions = [portion async for portion in store.active_subscriptions()]
    assert [[one.id for one in portion] for portion in portions] == [["s0", "s1"], ["s2", "s4"], ["s5", "s6"]]
    assert portions[0][0] == subscription("s0")


# Clients, keys, audit


def client(id_: str = "c1", **changes: Any) -> Client:
    """A client with the id `id_`."""
    return Client(**{"id": id_, "name": f"name of {id_}", "created_at": AT, **changes})


async def test_client_is_read_as_written_and_replaced(store: SqlStore) -> None:
    """Every part is read back equal; a name belongs to one client only."""
    full = client(
        "c2",
        name="a",
        admin=True,
        limits={"max_count": 5, "group_support": False},
        disabled=True,
        soap_callback_version="v2_3",
    )
    await store.put_client(client("c1"))
    await store.put_client(full)
    assert await store.clients() == [full, client("c1")]
    assert await store.client("c2") == full
    await store.put_client(client("c2", name="b"))
    assert await store.client("c2") == client("c2", name="b")
    with pytest.raises(ClientExists):
        await store.put_client(client("c3", name="b"))
    with pytest.raises(ClientExists):
        await store.put_client(client("c1", name="b"))
    assert await store.client("c3") is None


async def test_keys(store: SqlStore) -> None:
    """A key leads to its client; a key can be replaced for its client, and deleted."""
    await store.put_client(client("c1"))
    await store.put_client(client("c2"))
    await store.put_key("c1", "k1", b"\x00hash", None)
    await store.put_key("c1", "k2", b"other", after(60))
    assert await store.key("k1") == (client("c1"), b"\x00hash", None)
    assert await store.keys("c1") == [("k1", None), ("k2", after(60))]
    await store.put_key("c1", "k1", b"hash", after(1))
    assert await store.key("k1") == (client("c1"), b"hash", after(1))
    await store.put_key("c2", "k1", b"stolen", None)
    assert await store.key("k1") == (client("c1"), b"hash", after(1))
    await store.delete_key("k1")
    await store.delete_key("k1")
    assert await store.key("k1") is None
    with pytest.raises(ClientUnknown):
        await store.put_key("nobody", "k3", b"", None)


async def test_deleted_client_leaves_nothing_that_works(store: SqlStore) -> None:
    """A deletion removes the client's keys and groups, and ends and returns its active subscriptions; other clients
    keep theirs."""
    for name in ("c1", "c2"):
        await store.put_client(client(name))
        await store.put_key(name, f"k-{name}", b"", None)
        address = TerminalAddress(f"sip:{name}@example.com")
        await store.create_group(Group(address=address, client_id=name, members=(ALICE,), created_at=AT))
        await make(store, f"s1-{name}", f"s2-{name}", f"s3-{name}", client_id=name)
        await end(store, f"s2-{name}")
    ended = await store.delete_client("c1", deletion := ClientDeletion(SINK_CONTRACTS, after(5)))
    text = "The client was deleted."
    expected = [
        subscription(name, client_id="c1", ended_at=after(5), end_reason=EndReason.CLIENT_DELETED, end_detail=text)
        for name in ("s1-c1", "s3-c1")
    ]
    assert ended == expected
    assert [await store.subscription(one.id) for one in ended] == expected
    await store.write(Changes(owed=[owed("late", "s1-c1"), owed("late too", "s2-c1")]))  # unaware of the deletion
    pending = DeliveryState.PENDING
    found, _ = await store.notifications(Page(), NotificationFilter(client_id="c1"))
    assert [(one.subscription_id, one.kind, one.code, one.state) for one in found] == [
        (name, NotificationKind.ENDED, "CLIENT_DELETED", pending) for name in ("s1-c1", "s3-c1")
    ]
    claimed = await store.claim(after(5), after(60), 10, "n1")
    assert [one.id for one in claimed] == [one.id for one in found]
    assert await store.client("c1") is None
    assert await store.key("k-c1") is None
    assert [group.client_id for group in (await store.groups(Page()))[0]] == ["c2"]
    assert await store.key("k-c2") is not None
    assert len((await store.subscriptions(Page(), SubscriptionFilter(client_id="c2")))[0]) == 2
    with pytest.raises(ClientUnknown):
        await store.delete_client("c1", deletion)


async def test_audit_log_is_read_in_the_order_written(store: SqlStore) -> None:
    """Entries are read back in the order of writing, page by page, from a given time."""
    for number in range(4):
        await store.audit(after(number), "operator", AuditAction.CLIENT_ADDED, {"client": f"c{number}\0"})
    first, token = await store.audit_entries(Page(size=2), AuditFilter(start=after(1)))
    second, end_token = await store.audit_entries(Page(size=2, token=token), AuditFilter(start=after(1)))
    assert first + second == [
        AuditEntry(at=after(n), actor="operator", action=AuditAction.CLIENT_ADDED, details={"client": f"c{n}\ufffd"})
        for n in (1, 2, 3)
    ]
    assert end_token == ""


# Groups


async def test_group_is_read_as_written(store: SqlStore) -> None:
    """Members keep their order; an empty group exists."""
    empty = group(TerminalAddress("sip:empty@example.com"), members=())
    await store.create_group(group())
    await store.create_group(empty)
    assert await store.group("c1", FRIENDS) == group()
    assert await store.groups_of("c1", [ALICE, FRIENDS, empty.address]) == {FRIENDS: group(), empty.address: empty}
    assert await store.group("c1", ALICE) is None
    with pytest.raises(GroupExists):
        await store.create_group(group())
    await store.delete_group("c1", FRIENDS, None)
    assert await store.group("c1", FRIENDS) is None
    with pytest.raises(GroupUnknown):
        await store.delete_group("c1", FRIENDS, None)


async def test_address_is_a_group_of_each_client_by_itself(store: SqlStore) -> None:
    """Two clients' groups with one address share nothing; the list of all groups has both, on every page size."""
    theirs = group(client_id="c2", members=(CAROL,))
    await store.create_group(group())
    await store.create_group(theirs)
    assert (await store.group("c1", FRIENDS), await store.group("c2", FRIENDS)) == (group(), theirs)
    assert await store.groups_of("c3", [FRIENDS]) == {}
    everybody = [page for (page,) in await paged(lambda page: store.groups(page), 1)]
    assert everybody == [group(), theirs]
    changed = await store.change_group("c1", FRIENDS, (ALICE,), 1)
    assert (await store.group("c1", FRIENDS), await store.group("c2", FRIENDS)) == (changed, theirs)
    await store.delete_group("c1", FRIENDS, None)
    assert (await store.group("c1", FRIENDS), await store.group("c2", FRIENDS)) == (None, theirs)


async def test_group_of_another_version_is_not_changed(store: SqlStore) -> None:
    """Of many writers of one version one changes the group; the others get an error."""
    await store.create_group(group())
    changed = await asyncio.gather(
        *(store.change_group("c1", FRIENDS, (ALICE,) * (number > 0), 1) for number in range(6)), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in changed) == ["Group"] + ["GroupChanged"] * 5
    assert await store.group("c1", FRIENDS) == next(one for one in changed if isinstance(one, Group))
    unconditional = await store.change_group("c1", FRIENDS, (CAROL, BOB, ALICE), None)
    assert unconditional == group(members=(CAROL, BOB, ALICE), version=3) == await store.group("c1", FRIENDS)
    with pytest.raises(GroupChanged):
        await store.change_group("c1", FRIENDS, (), 2)
    with pytest.raises(GroupUnknown):
        await store.change_group("c1", ALICE, (), None)


# Lists


async def test_lists_are_read_page_by_page(store: SqlStore) -> None:
    """Each item is on exactly one page, in order; a full last page has no token; filters hold."""
    await make(store, *(f"s{number}" for number in range(6)))
    await make(store, "foreign", client_id="c2")
    await end(store, "s1")
    await store.write(Changes(owed=[owed(f"n{number}", "s0") for number in range(4)]))
    for name in "dacb":
        await store.create_group(group(TerminalAddress(f"sip:{name}@example.com")))

    def ids(pages: Sequence[Sequence[Any]]) -> list[list[str]]:
        return [[one.id for one in page] for page in pages]

    assert ids(await paged(lambda page: store.subscriptions(page, SubscriptionFilter(client_id="c1")), 2)) == [
        ["s0", "s2"],
        ["s3", "s4"],
        ["s5"],
    ]
    everybody = await paged(lambda page: store.subscriptions(page, SubscriptionFilter(state=None)), 7)
    assert ids(everybody) == [["s0", "s1", "s2", "s3", "s4", "s5", "foreign"]]
    assert ids(await paged(lambda page: store.notifications(page, NotificationFilter(client_id="c1")), 3)) == [
        ["n0", "n1", "n2"],
        ["n3"],
    ]
    assert ids(await paged(lambda page: store.notifications(page, NotificationFilter(client_id="c2")), 3)) == [[]]
    groups = await paged(lambda page: store.groups(page, GroupFilter(client_id="c1")), 3)
    assert [[one.address[4] for one in page] for page in groups] == [["a", "b", "c"], ["d"]]


async def test_page_token_from_elsewhere_is_refused(store: SqlStore) -> None:
    """A token of another list, of another client, changed or invented is an InvalidRequest with the field's name."""
    await make(store, "s0", "s1", "s2")
    await store.write_usage([usage("u1"), usage("u2")])
    _, good = await store.subscriptions(Page(size=1), SubscriptionFilter(client_id="c1"))
    _, foreign = await store.usage(Page(size=1), UsageFilter(start=AT))
    assert (await store.subscriptions(Page(size=1, token=good), SubscriptionFilter(client_id="c1")))[0] == [
        subscription("s1")
    ]
    forged = [make_token(last, "subscriptions", SubscriptionFilter(client_id="c1")) for last in ("abc", "-1", "9" * 30)]
    bad = [
        *forged,
        "x",
        "é",
        "AAAA",
        "=",
        good[:-4],
        good[:-4] + "AAAA",
        good + "AAAA",
        foreign,
        "0",
        "\0",
        "A" * 10_000,
    ]
    for token in bad:
        with pytest.raises(InvalidRequest) as caught:
            await store.subscriptions(Page(token=token), SubscriptionFilter(client_id="c1"))
        assert caught.value.details["field"] == "page_token"
    for other in (
        SubscriptionFilter(client_id="c2"),
        SubscriptionFilter(),
        SubscriptionFilter(client_id="c1", state=SubscriptionState.ENDED),
        SubscriptionFilter(client_id="c1", address=ALICE),
        SubscriptionFilter(client_id="c1", start=AT),
    ):
        with pytest.raises(InvalidRequest):
            await store.subscriptions(Page(token=good), other)
    for size in (0, -1, 1001):
        with pytest.raises(InvalidRequest):
            await store.groups(Page(size=size), GroupFilter(client_id="c1"))
