"""What the use cases need of the outside: ports, each with its contract. Adapters implement them; nothing else here.

Invariants: an adapter raises `TerminalStatusError`s only (or lets a defect through). Every method that takes a batch
does all of it or nothing. Times are aware UTC; the caller brings them, so an adapter has no clock of its own.

Deliberately absent: default implementations, and anything with behaviour.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from app.domain.addresses import TerminalAddress
from app.domain.changes import Attempted, Changes, SubscriptionUpdate
from app.domain.errors import DocumentUnreadable, TerminalStatusError
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
from app.domain.sinks import EndReason
from app.domain.statuses import Liveness, TerminalStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedNotify:
    """What one NOTIFY carried: the body as it came, its media type and content coding ("" where absent)."""

    body: bytes
    content_type: str
    content_encoding: str
    observed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchView:
    """One standing SIP subscription as operators see it. Times are None where there is none."""

    address: TerminalAddress
    state: str
    """`initial`, `accepted`, `active`, `pending`, `refreshing`, `waiting`, `ending` or `terminated`."""
    liveness: Liveness
    since: datetime
    expires_at: datetime | None
    code: int
    """The last SIP status; 0 where none came."""
    reason: str
    next_action: str
    next_at: datetime | None
    route: str
    """The presence server it is at, as configured."""


class WatchObserver(Protocol):
    """Who is told what the standing SIP subscriptions find out. Called in the event loop; must not block or raise."""

    def on_notify_received(self, address: TerminalAddress, notify: ReceivedNotify) -> None:
        """A NOTIFY came."""

    def on_notify_unreadable(self, address: TerminalAddress, error: DocumentUnreadable) -> None:
        """A NOTIFY came whose document is not whole: what the terminal is now is not known."""

    def on_liveness_changed(
        self, address: TerminalAddress, liveness: Liveness, reason: str, error: TerminalStatusError | None
    ) -> None:
        """What the last observation is worth has changed, or the reason why it is not LIVE has."""

    def on_watch_ended(self, address: TerminalAddress, reason: str, error: TerminalStatusError | None) -> None:
        """Nothing follows of this watch unless it is asked for again: the presence server knows no such terminal, or
        (`error` is None) what it said last holds for good."""


class Fetcher(Protocol):
    """The SIP side, as one question needs it."""

    @property
    def ready(self) -> bool:
        """Whether a fetch would be sent to the presence server now."""

    @property
    def presence_up(self) -> bool:
        """Whether a presence server answers, as far as is known; whatever it says."""

    async def fetch(self, address: TerminalAddress, client_id: str = "") -> ReceivedNotify:
        """Asks the presence server once (SUBSCRIBE with `Expires: 0`) and returns its NOTIFY. Where many questions
        wait, clients take turns; "" is the gateway itself.

        Raises a TerminalStatusError. Has no time limit: the caller cancels, and the SIP side is cleaned up.
        """


class Watcher(Fetcher, Protocol):
    """The SIP side, as standing requests need it."""

    def set_observer(self, observer: WatchObserver) -> None:
        """Names the one observer; before the first `watch`."""

    def watch(self, address: TerminalAddress, client_id: str = "") -> None:
        """Wants the terminal watched, from now until `unwatch`, whatever happens to workers and servers. Idempotent.
        Where many wait to be set up, clients take turns: one that several clients want waits for the one that was
        served least."""

    def unwatch(self, address: TerminalAddress) -> None:
        """Wants it no longer. No call of the observer follows. Idempotent."""

    def refresh(self, address: TerminalAddress) -> None:
        """Asks the presence server now rather than at the next refresh. Raises WatchUnknown."""

    async def watches(self) -> list[WatchView]:
        """Every watch as it stands, by address."""


class Meter(Protocol):
    """Counts what happened, for the people on call."""

    def fetched(self, outcome: str, seconds: float, error: TerminalStatusError | None) -> None:
        """One SUBSCRIBE's outcome, a Status name or an error's code, and how long it took."""


MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_PAGE_TOKEN = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list: at most `size` (1 to MAX_PAGE) items after the one that `token` names ("" is the start)."""

    size: int = DEFAULT_PAGE
    token: str = ""


GroupVersion = tuple[str, TerminalAddress, int]
"""A group's client, its address and its version."""


class Store(Protocol):
    """The truth. Raises StoreUnavailable where the database is locked, full or gone, having changed nothing."""

    async def write(self, changes: Changes) -> Sequence[TerminalStatus]:
        """Writes all of it in one transaction. Returns the stored statuses that another has written meanwhile,
        whose revision is not smaller: if there are any, nothing at all was written, and the caller takes them for the
        truth and decides again. Nothing is owed any more to a subscription that had ended before."""

    async def statuses(self, addresses: Sequence[TerminalAddress]) -> dict[TerminalAddress, TerminalStatus]:
        """The stored statuses of those that have one."""

    async def create_subscription(
        self,
        subscription: Subscription,
        owed: Sequence[OwedNotification],
        usage: Sequence[UsageRecord],
        audit: Sequence[AuditEntry] = (),
    ) -> Subscription:
        """Stores it with what it owes at once. Where the client has one of the same `request_id`, stores nothing and
        returns that one. Raises DuplicateCorrelator."""

    async def subscription(self, subscription_id: str) -> Subscription | None:
        """One subscription, ended ones for as long as they are kept."""

    async def subscription_by_request_id(self, client_id: str, request_id: str) -> Subscription | None:
        """The client's subscription that was made with this request id, ended ones too; "" is none."""

    async def subscription_by_correlator(self, client_id: str, correlator: str) -> Subscription | None:
        """The client's active subscription with this correlator."""

    async def subscriptions(
        self, client_id: str | None, page: Page, *, active_only: bool = True
    ) -> tuple[list[Subscription], str]:
        """A client's (None: everybody's) subscriptions, oldest first, and the next page's token ("" at the end).
        Raises InvalidRequest for a token that is none of this list's."""

    def active_subscriptions(self) -> AsyncIterator[Sequence[Subscription]]:
        """All of them in portions, for the start."""

    async def encrypt_sinks(self, after: int) -> tuple[int | None, int]:
        """Encrypts what is not encrypted by the first key, of a portion of all subscriptions after the number `after`.
        Returns the number to go on with (None: that was all), and how many were encrypted."""

    async def put_client(self, client: Client) -> None:
        """Creates or replaces it. Raises ClientExists where another has its name."""

    async def client(self, client_id: str) -> Client | None: ...

    async def clients(self) -> list[Client]:
        """All, by name."""

    async def delete_client(
        self, client_id: str, end: Callable[[Subscription], tuple[SubscriptionUpdate, Sequence[OwedNotification]]]
    ) -> list[Subscription]:
        """Deletes it with its keys and groups, and in the same transaction ends its active subscriptions, which are
        returned: each as `end` says of it, and owing what that says. Raises ClientUnknown."""

    async def client_gone(
        self, client_id: str, end: Callable[[Subscription], tuple[SubscriptionUpdate, Sequence[OwedNotification]]]
    ) -> list[Subscription]:
        """As `delete_client`, of what was made while the client was being deleted."""

    async def put_key(self, client_id: str, key_id: str, key_hash: bytes, expires_at: datetime | None) -> None:
        """Stores an API key's hash. Raises ClientUnknown."""

    async def key(self, key_id: str) -> tuple[Client, bytes, datetime | None] | None:
        """The client of a key, the key's hash and its end."""

    async def keys(self, client_id: str) -> list[tuple[str, datetime | None]]:
        """The client's key ids with their ends."""

    async def delete_key(self, key_id: str) -> None:
        """Deletes it, if it is there."""

    async def create_group(self, group: Group) -> None:
        """Raises GroupExists where the client has one of this address."""

    async def group(self, client_id: str, address: TerminalAddress) -> Group | None: ...

    async def groups_of(self, client_id: str, addresses: Sequence[TerminalAddress]) -> dict[TerminalAddress, Group]:
        """Those of the addresses that are groups of this client."""

    async def group_sizes(self, client_id: str, addresses: Sequence[TerminalAddress]) -> dict[TerminalAddress, int]:
        """How many members those of the addresses have that are groups of this client, in the order given. Reads no
        members."""

    def group_versions(self) -> AsyncIterator[Sequence[GroupVersion]]:
        """All groups in portions, for the start. Reads no members."""

    async def groups(self, client_id: str | None, page: Page) -> tuple[list[Group], str]:
        """A client's (None: everybody's) groups by address, and the next page's token. A page has fewer groups where
        their members would be too many for it."""

    async def change_group(
        self,
        client_id: str,
        address: TerminalAddress,
        members: Sequence[TerminalAddress],
        expected_version: int | None,
    ) -> Group:
        """Replaces the members. Raises GroupUnknown, GroupChanged."""

    async def delete_group(self, client_id: str, address: TerminalAddress, expected_version: int | None) -> None:
        """Raises GroupUnknown, GroupChanged."""

    async def delete_groups(self, client_id: str) -> None:
        """Deletes the client's groups, not all at once; `delete_client` does so before it locks anything."""

    async def claim(self, now: datetime, lease_until: datetime, most: int, owner: str) -> list[OwedNotification]:
        """Leases due notifications: of each subscription only the first that is not settled, and none of one that has
        another leased. Oldest first."""

    async def record_attempts(self, attempted: Sequence[Attempted]) -> None:
        """Records attempts, settles or puts off their notifications, gives back the leases, and writes the usage
        records, all in one transaction, in their order; at most one of each notification. What is about a notification
        that is gone is left out."""

    async def give_back(self, owner: str, due: Mapping[str, datetime]) -> None:
        """Gives leases back without an attempt: notification id to when it is due again. Leaves alone what is no
        longer the owner's."""

    async def subscriptions_by_id(self, subscription_ids: Sequence[str]) -> dict[str, Subscription]:
        """Those of them that are there, ended ones too."""

    async def notification(self, notification_id: str) -> OwedNotification | None: ...

    async def notifications(
        self, client_id: str | None, page: Page, *, state: DeliveryState | None = None, subscription_id: str = ""
    ) -> tuple[list[OwedNotification], str]:
        """Owed and settled notifications, oldest first, and the next page's token."""

    async def attempts(self, notification_id: str) -> list[DeliveryAttempt]:
        """Its attempts in order."""

    async def end_leases(self, at: datetime) -> int:
        """Ends every lease at once, whoever has it; how many there were. For the one process that uses the database."""

    async def lease_owner(self, subscription_id: str) -> str | None:
        """Who has one of its notifications leased, or had when it was withdrawn and has not given it back since."""

    async def send_again(self, notification_ids: Sequence[str], at: datetime) -> int:
        """Makes dead ones pending, due at once, but those of a subscription that wants nothing more (`withdraws`); how
        many there were."""

    async def write_usage(self, records: Sequence[UsageRecord]) -> None:
        """Adds usage records."""

    async def usage(self, client_id: str | None, since: datetime, page: Page) -> tuple[list[UsageRecord], str]:
        """Usage records from `since` on in the order they were written, and the next page's token."""

    async def audit(self, at: datetime, who: str, what: str, details: Mapping[str, str]) -> None:
        """Adds a line to the audit log."""

    async def audited(self, since: datetime, page: Page) -> tuple[list[AuditEntry], str]:
        """The audit log from `since` on in the order it was written, and the next page's token."""

    async def purge(self, before: datetime, most: int, *, usage_before: datetime | None = None) -> int:
        """Deletes at most `most` settled notifications with their attempts and ended subscriptions that are older than
        `before`, and usage records and audit lines older than `usage_before` (None: `before`); how many went."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What came of one attempt to deliver."""

    delivered: bool
    code: int = 0
    outcome: str = "delivered"
    answer: bytes = b""
    retry_after_s: float | None = None
    gone: bool = False
    """The endpoint wants nothing more (410)."""
    ends: EndReason | None = None
    """Set where the subscription ends with it for another reason, such as TOKEN_EXPIRED."""
    details: Mapping[str, str] = field(default_factory=dict)


class Sender(Protocol):
    """Delivers to one kind of sink. Never raises for what the endpoint does."""

    async def check(self, subscription: Subscription) -> None:
        """Whether notifications may and can go there, before the subscription is made. Raises SinkRefused,
        SinkUnreachable."""

    async def send(self, subscription: Subscription, notification: OwedNotification) -> Sent:
        """One attempt, within the sender's own time limit."""
