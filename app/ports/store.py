"""The use cases' access to the database: a protocol for each kind of record. Adapters implement `Store`, which has all.

Invariants: a method that takes a batch writes the whole batch or nothing.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from app.domain.addresses import TerminalAddress
from app.domain.changes import Attempted, Changes, SubscriptionUpdate
from app.domain.filters import AuditFilter, GroupFilter, NotificationFilter, SubscriptionFilter, UsageFilter
from app.domain.operations import AuditAction
from app.domain.records import (
    AuditEntry,
    Client,
    DeliveryAttempt,
    DeliveryState,
    Group,
    OwedNotification,
    Subscription,
    UsageRecord,
)
from app.domain.sink_contracts import SinkContracts
from app.domain.sinks import EndReason, SinkKind
from app.domain.statuses import TerminalStatus

MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_PAGE_TOKEN = 4096

ALL_ACTIVE = SubscriptionFilter()
ALL_NOTIFICATIONS = NotificationFilter()
ALL_GROUPS = GroupFilter()
ALL_USAGE = UsageFilter()
ALL_ENTRIES = AuditFilter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a list: at most `size` items (1 to MAX_PAGE) after the item that `token` names ("": from the start).

    A method that takes a page returns its items and the token of the next page, "" after the last page. A page may be
    shorter than its size, and even empty, before the last: a method stops after a bounded number of rows that the
    filter leaves out. It raises InvalidRequest for a token of another list or another filter.
    """

    size: int = DEFAULT_PAGE
    token: str = ""


GroupVersion = tuple[str, TerminalAddress, int]
"""A group's client, address and version."""

EndSubscription = Callable[[Subscription], tuple[SubscriptionUpdate, Sequence[OwedNotification]]]
"""Returns, for an active subscription, the update that ends it and its last notifications."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """Of a claimed notification's subscription."""

    kind: SinkKind
    profile: str
    correlator: str
    x_correlator: str
    end_reason: EndReason | None
    readable: bool
    """Whether the key is there that its sink's parameters are encrypted with."""


Billed = Callable[[OwedNotification, Recipient], Sequence[UsageRecord]]
"""Returns the usage records of a claimed notification, the same ids each time. Called in a thread."""


class StatusStore(Protocol):
    """The last status of each terminal, and everything that is written with a changed status."""

    async def write(self, changes: Changes) -> Sequence[TerminalStatus]:
        """Writes all of `changes` in one transaction, and returns ().

        If another process has stored one of the statuses with the same or a higher revision, writes nothing and returns
        the stored statuses: the caller decides again from these. Notifications for a subscription that ended before
        are left out. Raises SubscriptionUnknown for notifications of an unknown subscription.
        """

    async def statuses(self, addresses: Sequence[TerminalAddress]) -> dict[TerminalAddress, TerminalStatus]:
        """The stored statuses of these terminals. Terminals without a stored status are left out."""


class SubscriptionStore(Protocol):
    """Subscriptions. Ended ones stay readable until `RetentionStore.purge` deletes them."""

    async def create_subscription(
        self,
        subscription: Subscription,
        owed: Sequence[OwedNotification],
        usage: Sequence[UsageRecord],
        audit: Sequence[AuditEntry] = (),
    ) -> Subscription:
        """Stores the subscription, its first notifications and the records in one transaction, and returns it.

        If the client has a subscription with the same `request_id`, stores nothing and returns that subscription.
        Raises DuplicateCorrelator.
        """

    async def subscription(self, subscription_id: str) -> Subscription | None:
        """The subscription, active or ended."""

    async def subscriptions_by_id(self, subscription_ids: Sequence[str]) -> dict[str, Subscription]:
        """The subscriptions, active or ended. Unknown ids are left out."""

    async def subscription_by_request_id(self, client_id: str, request_id: str) -> Subscription | None:
        """The client's subscription, active or ended, that was created with this request id; None for ""."""

    async def subscription_by_correlator(self, client_id: str, correlator: str) -> Subscription | None:
        """The client's active subscription with this correlator; None for ""."""

    async def subscriptions(self, page: Page, only: SubscriptionFilter = ALL_ACTIVE) -> tuple[list[Subscription], str]:
        """Subscriptions, oldest first."""

    def active_subscriptions(self) -> AsyncIterator[Sequence[Subscription]]:
        """All active subscriptions in portions, for the start."""

    async def encrypt_sinks(self, after: int) -> tuple[int | None, int]:
        """Encrypts sinks with the first key of the key file, in one portion of the subscriptions after number `after`.

        Returns the number for the next call (None after the last portion), and how many sinks were encrypted.
        """


class ClientStore(Protocol):
    """Clients and their API keys."""

    async def put_client(self, client: Client) -> None:
        """Creates or replaces the client. Raises ClientExists if another client has its name."""

    async def client(self, client_id: str) -> Client | None: ...

    async def clients(self) -> list[Client]:
        """All clients, by name."""

    async def delete_client(self, client_id: str, end: EndSubscription) -> list[Subscription]:
        """Deletes the client, its keys and its groups, and ends its active subscriptions, in one transaction; most
        groups are deleted before it. Returns the subscriptions that it ended. Raises ClientUnknown."""

    async def finish_client_deletion(self, client_id: str, end: EndSubscription) -> list[Subscription]:
        """Deletes the groups and ends the subscriptions that were created while `delete_client` ran. Returns the
        subscriptions that it ended."""

    async def put_key(self, client_id: str, key_id: str, key_hash: bytes, expires_at: datetime | None) -> None:
        """Creates or replaces an API key of the client. Only the key's hash is stored. Raises ClientUnknown."""

    async def key(self, key_id: str) -> tuple[Client, bytes, datetime | None] | None:
        """The key's client, hash and expiry."""

    async def keys(self, client_id: str) -> list[tuple[str, datetime | None]]:
        """The ids of the client's keys, with their expiry."""

    async def delete_key(self, key_id: str) -> None:
        """Deletes the key, if there is one."""


class GroupStore(Protocol):
    """Groups. An address may be a group of several clients, each with its own members."""

    async def create_group(self, group: Group) -> None:
        """Raises GroupExists if the client has a group of this address."""

    async def group(self, client_id: str, address: TerminalAddress) -> Group | None: ...

    async def groups_of(self, client_id: str, addresses: Sequence[TerminalAddress]) -> dict[TerminalAddress, Group]:
        """The client's groups among these addresses."""

    async def group_sizes(self, client_id: str, addresses: Sequence[TerminalAddress]) -> dict[TerminalAddress, int]:
        """The number of members of the client's groups among these addresses, in the given order. Reads no members."""

    def group_versions(self) -> AsyncIterator[Sequence[GroupVersion]]:
        """All groups in portions, for the start. Reads no members."""

    async def groups(self, page: Page, only: GroupFilter = ALL_GROUPS) -> tuple[list[Group], str]:
        """Groups by address. A page is shorter than its size also where its groups have too many members together."""

    async def change_group(
        self,
        client_id: str,
        address: TerminalAddress,
        members: Sequence[TerminalAddress],
        expected_version: int | None,
    ) -> Group:
        """Replaces the members. Raises GroupUnknown, or GroupChanged if the version is not the expected one."""

    async def delete_group(self, client_id: str, address: TerminalAddress, expected_version: int | None) -> None:
        """Raises GroupUnknown, or GroupChanged if the version is not the expected one."""

    async def delete_groups(self, client_id: str) -> None:
        """Deletes the client's groups in several transactions, so that no lock is held for long."""


class OutboxStore(Protocol):
    """Owed notifications, their delivery attempts, and the leases of the processes that deliver them.

    At most one notification of a subscription is leased at a time: the first that is not settled. A notification is
    settled when it is DELIVERED, DEAD or WITHDRAWN.
    """

    async def claim(
        self, now: datetime, lease_until: datetime, most: int, owner: str, billed: Billed | None = None
    ) -> list[OwedNotification]:
        """Leases to `owner` at most `most` notifications that are due, oldest first. In the same transaction writes the
        usage records that `billed` returns for each."""

    async def record_attempts(self, attempted: Sequence[Attempted]) -> None:
        """Records attempts in the given order in one transaction: settles or postpones their notifications, releases
        the leases and writes the usage records. Takes at most one attempt of each notification. Attempts of deleted
        notifications are left out."""

    async def release_leases(self, owner: str, due: Mapping[str, datetime]) -> None:
        """Releases leases of `owner` without an attempt; `due` has the next attempt's time by notification id. Leases
        that `owner` has lost are left alone."""

    async def end_leases(self, at: datetime) -> int:
        """Ends all leases of all owners, and returns how many there were. Only for a process that has the database to
        itself."""

    async def lease_owner(self, subscription_id: str) -> str | None:
        """The owner of the lease on one of the subscription's notifications, also if the notification was withdrawn
        and the owner has not released its lease yet."""

    async def notification(self, notification_id: str) -> OwedNotification | None: ...

    async def notifications(
        self, page: Page, only: NotificationFilter = ALL_NOTIFICATIONS
    ) -> tuple[list[OwedNotification], str]:
        """Notifications, oldest first."""

    async def attempts(self, notification_id: str) -> list[DeliveryAttempt]:
        """The delivery attempts of the notification, oldest first."""

    async def send_again(
        self,
        notification_ids: Sequence[str],
        at: datetime,
        contracts: SinkContracts,
        *,
        state: DeliveryState = DeliveryState.DEAD,
    ) -> int:
        """Makes those of the notifications that are in this state PENDING and due at once, and returns how many.
        Notifications of a subscription whose end withdrew its notifications (`SinkContract.withdrawn_at`) stay as they
        are."""


class UsageStore(Protocol):
    """Usage records."""

    async def write_usage(self, records: Sequence[UsageRecord]) -> None:
        """Adds usage records. Records whose id is stored already are left out."""

    async def usage(self, page: Page, only: UsageFilter = ALL_USAGE) -> tuple[list[UsageRecord], str]:
        """Usage records, in the order in which they were written."""


class AuditStore(Protocol):
    """The audit log."""

    async def audit(self, at: datetime, actor: str, action: AuditAction, details: Mapping[str, str]) -> None:
        """Adds an entry."""

    async def audit_entries(self, page: Page, only: AuditFilter = ALL_ENTRIES) -> tuple[list[AuditEntry], str]:
        """Entries, in the order in which they were written."""


class TicketStore(Protocol):
    """Tickets by their hash. A ticket is valid until a time that its stream extends, but not beyond its end."""

    async def add_ticket(
        self, ticket_hash: bytes, client_id: str, now: datetime, expires_at: datetime, ends_at: datetime, most: int
    ) -> bool:
        """Adds a ticket, unless the client has `most` tickets that are valid at `now`. Returns whether it did. Deletes
        the client's tickets that are no longer valid."""

    async def hold_ticket(
        self, ticket_hash: bytes, holder: str, now: datetime, until: datetime, *, again: bool
    ) -> tuple[str, datetime] | None:
        """Gives the ticket to the stream `holder` until the time `until`, if the ticket is valid, and unused or (with
        `again`) used before. Returns the ticket's client and end; None if the ticket is not valid."""

    async def ticket_held(self, ticket_hash: bytes, holder: str) -> tuple[datetime, datetime] | None:
        """When the ticket expires if nothing extends it, and its end; None if `holder` does not hold it."""

    async def extend_ticket(self, ticket_hash: bytes, holder: str, until: datetime) -> None:
        """Makes the ticket that `holder` holds valid until this time, but not beyond its end."""

    async def delete_ticket(self, ticket_hash: bytes, holder: str) -> None:
        """Deletes the ticket that `holder` holds."""

    async def end_tickets(self, client_id: str, ends_at: datetime) -> None:
        """Lets no ticket of the client be valid after this time."""


class RetentionStore(Protocol):
    """Deletes rows that are older than their retention time."""

    async def purge(self, before: datetime, most: int, *, usage_before: datetime | None = None) -> int:
        """Deletes settled notifications (with their attempts) and ended subscriptions older than `before`, and usage
        records and audit entries older than `usage_before` (None: `before`). Deletes at most `most` in all, and returns
        how many."""

    async def delete_ended_tickets(self, now: datetime, most: int) -> int:
        """Deletes at most `most` tickets that are no longer valid, and returns how many."""

    async def drop_ended_secrets(self, now: datetime, most: int) -> int:
        """Deletes the older secret of at most `most` sinks whose overlap has ended, and returns how many."""


class Store(
    StatusStore,
    SubscriptionStore,
    ClientStore,
    GroupStore,
    OutboxStore,
    UsageStore,
    AuditStore,
    TicketStore,
    RetentionStore,
    Protocol,
):
    """Everything the gateway stores.

    Every method raises StoreUnavailable, with nothing changed, if the database is locked, full or unreachable.
    """
