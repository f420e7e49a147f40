"""Records for tests of the store: each function returns a valid record, with the changes that the test names."""

from datetime import UTC, datetime, timedelta
from typing import Any

from app.domain.addresses import TerminalAddress
from app.domain.changes import Changes, SubscriptionEdit, SubscriptionUpdate
from app.domain.filters import NotificationFilter
from app.domain.operations import Face, UsageOperation
from app.domain.records import (
    Group,
    NotificationKind,
    OwedNotification,
    Subscription,
    UsageRecord,
)
from app.domain.sinks import EndReason, Sink, SinkKind
from app.domain.statuses import Source, Status, TerminalStatus
from app.ports.store import Page, Store

AT = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)
ALICE, BOB, CAROL = (TerminalAddress(f"sip:{name}@example.com") for name in ("alice", "bob", "carol"))
WEBHOOK = Sink(kind=SinkKind.WEBHOOK, url="https://app.example/hook", profile="v1", parameters={"secrets": "whsec_x"})


def after(seconds: float) -> datetime:
    """AT plus this many seconds."""
    return AT + timedelta(seconds=seconds)


def status(address: TerminalAddress = ALICE, revision: int = 1, value: Status = Status.REACHABLE) -> TerminalStatus:
    """A status observed `revision` seconds after AT."""
    return TerminalStatus(
        address=address, status=value, observed_at=after(revision), source=Source.WATCH, revision=revision
    )


def subscription(name: str = "s1", **changes: Any) -> Subscription:
    """An active subscription with the id `name`."""
    values: dict[str, Any] = {
        "id": name,
        "client_id": "c1",
        "addresses": (ALICE, BOB),
        "criteria": frozenset({Status.BUSY, Status.REACHABLE}),
        "check_immediate": True,
        "min_interval_ms": 1500,
        "max_notifications": 0,
        "created_at": AT,
        "expires_at": after(3600),
        "sink": WEBHOOK,
        **changes,
    }
    return Subscription(**values)


def owed(name: str, of: str = "s1", **changes: Any) -> OwedNotification:
    """A notification owed to the subscription `of` and due at AT; the store gives its `sequence`."""
    values: dict[str, Any] = {
        "id": name,
        "subscription_id": of,
        "client_id": "c1",
        "sequence": 0,
        "kind": NotificationKind.STATUS,
        "changes": (status(),),
        "created_at": AT,
        "next_attempt_at": AT,
        **changes,
    }
    return OwedNotification(**values)


def usage(name: str, at: datetime = AT, client_id: str = "c1") -> UsageRecord:
    """A usage record."""
    return UsageRecord(
        id=name,
        at=at,
        operation=UsageOperation.GET_STATUS,
        client_id=client_id,
        face=Face.REST,
        requester="tel:+15551234567",
        targets=(ALICE,),
        target_count=1,
        expanded_count=1,
        correlator="c",
        subscription_id="s1",
        root_cause="none",
    )


async def make(store: Store, *names: str, **changes: Any) -> None:
    """Creates subscriptions of these ids that owe nothing."""
    for name in names:
        await store.create_subscription(subscription(name, **changes), (), ())


def edit_of(before: Subscription, **changes: Any) -> SubscriptionEdit:
    """The edit that makes these changes, with the next version."""
    values: dict[str, Any] = {"criteria": before.criteria, "expires_at": before.expires_at, **changes}
    return SubscriptionEdit(subscription_id=before.id, version=before.version + 1, **values)


async def sequences(store: Store, subscription_id: str) -> list[tuple[str, int]]:
    """Ids and sequence numbers of a subscription's notifications, in the order of the list."""
    found, _ = await store.notifications(Page(size=1000), NotificationFilter(subscription_id=subscription_id))
    return [(one.id, one.sequence) for one in found]


async def end(
    store: Store, name: str, reason: EndReason = EndReason.EXPIRED, detail: str = "", at: datetime | None = None
) -> None:
    """Ends a subscription."""
    ended_at = at or after(10)
    update = SubscriptionUpdate(subscription_id=name, ended_at=ended_at, end_reason=reason, end_detail=detail)
    await store.write(Changes(updates=[update]))


FRIENDS = TerminalAddress("sip:friends@example.com")


def group(address: TerminalAddress = FRIENDS, **changes: Any) -> Group:
    """A group with two members."""
    return Group(**{"address": address, "client_id": "c1", "members": (BOB, ALICE), "created_at": AT, **changes})


async def paged(read: Any, size: int) -> list[list[Any]]:
    """The items of all pages of a list."""
    pages, token = [], ""
    while True:
        items, token = await read(Page(size=size, token=token))
        pages.append(items)
        if not token:
            return pages
