"""The tables, as SQLModel classes, and the types of their columns. `migrations/` creates them; a test compares the two.

Invariants: no text from an application makes a statement fail: NUL, which PostgreSQL refuses, and lone surrogates,
which both databases refuse, are replaced. Times are aware UTC. Lists and mappings are JSON text. `seq` grows with each
row, is never reused, and orders all lists.

Deliberately absent: relationships and sessions. Statements use the `Table`s below: one object per row made a start with
100,000 subscriptions slow.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeEngine
from sqlmodel import Field, SQLModel

from app.domain.statuses import require_utc


def clean(value: str) -> str:
    """The text, with characters that a database refuses replaced by U+FFFD."""
    if "\0" in value:
        value = value.replace("\0", "\ufffd")
    if value.isascii():
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class CleanText(TypeDecorator[str]):
    """Text of any content, compared byte by byte in both databases."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Without this collation, PostgreSQL sorts by the language of its cluster."""
        return dialect.type_descriptor(Text(collation="C") if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Cleans a value that is written or compared."""
        return None if value is None else clean(value)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime; other datetimes raise ValueError. SQLite stores no zone, PostgreSQL returns the session's
    zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuses times that would be read back as another time."""
        require_utc(value)
        return value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Adds the zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _seq() -> Any:  # SQLModel's own Field() is untyped in the same way
    integer = BigInteger().with_variant(Integer(), "sqlite")  # in SQLite only INTEGER is numbered automatically
    return Field(default=None, sa_column=Column("seq", integer, primary_key=True, autoincrement=True))


def _of_subscription(*, primary_key: bool = False) -> Any:
    return Field(
        sa_column=Column(
            "subscription_seq",
            BigInteger,
            ForeignKey("subscription.seq", ondelete="CASCADE"),
            primary_key=primary_key,
            nullable=False,
            autoincrement=False,
        )
    )


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


_COUNTED = {"sqlite_autoincrement": True}
_BY_KEY = {"sqlite_with_rowid": False}


class ClientRow(SQLModel, table=True):
    """A client."""

    __tablename__ = "client"
    id: str = Field(sa_type=CleanText, primary_key=True)
    name: str = Field(sa_type=CleanText, unique=True)
    created_at: datetime = Field(sa_type=UtcDateTime)
    admin: bool
    limits: str = Field(sa_type=CleanText)
    disabled: bool
    soap_callback_version: str = Field(sa_type=CleanText)


class ClientKeyRow(SQLModel, table=True):
    """An API key; only its hash is stored."""

    __tablename__ = "client_key"
    id: str = Field(sa_type=CleanText, primary_key=True)
    client_id: str = Field(
        sa_column=Column(
            "client_id", CleanText, ForeignKey("client.id", ondelete="CASCADE"), nullable=False, index=True
        )
    )
    hash: bytes = Field(sa_type=LargeBinary)
    expires_at: datetime | None = Field(sa_type=UtcDateTime)


class GroupRow(SQLModel, table=True):
    """A client's group; the client may be `anonymous`, which has no row. `members` is the number of members,
    `characters` the total length of their addresses."""

    __tablename__ = "terminal_group"
    __table_args__ = (Index("ix_terminal_group_address", "address", "client_id"),)
    client_id: str = Field(sa_type=CleanText, primary_key=True)
    address: str = Field(sa_type=CleanText, primary_key=True)
    created_at: datetime = Field(sa_type=UtcDateTime)
    version: int = Field(sa_type=BigInteger)
    members: int = Field(sa_type=BigInteger)
    characters: int = Field(sa_type=BigInteger)


class GroupMemberRow(SQLModel, table=True):
    """A member of a group, in the order of the request."""

    __tablename__ = "group_member"
    __table_args__ = (
        ForeignKeyConstraint(
            ["client_id", "group_address"], ["terminal_group.client_id", "terminal_group.address"], ondelete="CASCADE"
        ),
        Index("ix_group_member_member", "member"),
        _BY_KEY,
    )
    client_id: str = Field(sa_type=CleanText, primary_key=True)
    group_address: str = Field(sa_type=CleanText, primary_key=True)
    position: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    member: str = Field(sa_type=CleanText)


class TerminalStatusRow(SQLModel, table=True):
    """The last known status of a terminal that is or was watched."""

    __tablename__ = "terminal_status"
    __table_args__ = (_BY_KEY,)
    address: str = Field(sa_type=CleanText, primary_key=True)
    status: str = Field(sa_type=CleanText)
    observed_at: datetime = Field(sa_type=UtcDateTime)
    source: str = Field(sa_type=CleanText)
    revision: int = Field(sa_type=BigInteger)


class SubscriptionRow(SQLModel, table=True):
    """A subscription, its progress, and how it ended. `secret_ends_at` is when the older of the sink's two secrets
    is to be deleted."""

    __tablename__ = "subscription"
    __table_args__ = (
        Index("ix_subscription_request_id", "client_id", "request_id", unique=True, **_where("request_id <> ''")),
        Index(
            "ix_subscription_correlator",
            "client_id",
            "correlator",
            unique=True,
            **_where("correlator <> '' AND ended_at IS NULL"),
        ),
        Index("ix_subscription_client", "client_id", "ended_at", "seq"),
        Index("ix_subscription_ended", "ended_at", **_where("ended_at IS NOT NULL")),
        Index("ix_subscription_secret_ends", "secret_ends_at", **_where("secret_ends_at IS NOT NULL")),
        Index("ix_subscription_sink_key", "sink_key", **_where("sink_key <> ''")),
        _COUNTED,
    )
    seq: int | None = _seq()
    id: str = Field(sa_type=CleanText, unique=True)
    client_id: str = Field(sa_type=CleanText)
    criteria: str = Field(sa_type=CleanText)
    check_immediate: bool
    min_interval_ms: int = Field(sa_type=BigInteger)
    max_notifications: int = Field(sa_type=BigInteger)
    created_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime | None = Field(sa_type=UtcDateTime)
    sink_kind: str = Field(sa_type=CleanText)
    sink_url: str = Field(sa_type=CleanText)
    sink_profile: str = Field(sa_type=CleanText)
    sink_parameters: str = Field(sa_type=CleanText)
    sink_key: str = Field(sa_type=CleanText)
    correlator: str = Field(sa_type=CleanText)
    request_id: str = Field(sa_type=CleanText)
    notified: int = Field(sa_type=BigInteger)
    last_notified_at: datetime | None = Field(sa_type=UtcDateTime)
    awaiting: bool
    suspended_at: datetime | None = Field(sa_type=UtcDateTime)
    ended_at: datetime | None = Field(sa_type=UtcDateTime)
    end_reason: str | None = Field(sa_type=CleanText)
    end_detail: str = Field(sa_type=CleanText)
    groups: str = Field(sa_type=CleanText)
    joined: str = Field(sa_type=CleanText)
    held: str = Field(sa_type=CleanText)
    version: int = Field(sa_type=BigInteger)
    secret_ends_at: datetime | None = Field(sa_type=UtcDateTime)
    x_correlator: str = Field(sa_type=CleanText)


class SubscriptionAddressRow(SQLModel, table=True):
    """A terminal or group of a subscription, in the order of the request; changed only by replacing all."""

    __tablename__ = "subscription_address"
    __table_args__ = (Index("ix_subscription_address", "address"), _BY_KEY)
    subscription_seq: int = _of_subscription(primary_key=True)
    position: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    address: str = Field(sa_type=CleanText)


class OutboxRow(SQLModel, table=True):
    """The state of a subscription's deliveries. This row is leased, so that at most one notification is in flight.

    `head` is the `sequence` of the first unsettled notification. `due_at` is the time from which it may be claimed: its
    next attempt, or the end of a lease. Both are NULL if every notification is settled. `leased` is the `sequence` of
    the notification that `lease_owner` claimed. A separate table, so that claims scan and rewrite narrow rows.
    """

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_due", "due_at", **_where("due_at IS NOT NULL")), _BY_KEY)
    subscription_seq: int = _of_subscription(primary_key=True)
    last_sequence: int = Field(sa_type=BigInteger)
    head: int | None = Field(sa_type=BigInteger)
    due_at: datetime | None = Field(sa_type=UtcDateTime)
    lease_owner: str | None = Field(sa_type=CleanText)
    leased: int | None = Field(sa_type=BigInteger)


class OwedNotificationRow(SQLModel, table=True):
    """A notification, owed or settled."""

    __tablename__ = "owed_notification"
    __table_args__ = (
        UniqueConstraint("subscription_seq", "sequence", name="uq_owed_notification_sequence"),
        Index("ix_owed_notification_pending", "subscription_seq", "sequence", **_where("state = 'PENDING'")),
        Index("ix_owed_notification_dead", "client_id", "state", "seq", **_where("state = 'DEAD'")),
        Index("ix_owed_notification_client", "client_id", "seq"),
        Index("ix_owed_notification_settled", "settled_at", **_where("settled_at IS NOT NULL")),
        _COUNTED,
    )
    seq: int | None = _seq()
    id: str = Field(sa_type=CleanText, unique=True)
    subscription_seq: int = _of_subscription()
    client_id: str = Field(sa_type=CleanText)
    sequence: int = Field(sa_type=BigInteger)
    kind: str = Field(sa_type=CleanText)
    changes: str = Field(sa_type=CleanText)
    address: str | None = Field(sa_type=CleanText)
    code: str = Field(sa_type=CleanText)
    text: str = Field(sa_type=CleanText)
    created_at: datetime = Field(sa_type=UtcDateTime)
    next_attempt_at: datetime = Field(sa_type=UtcDateTime)
    attempts: int
    state: str = Field(sa_type=CleanText)
    settled_at: datetime | None = Field(sa_type=UtcDateTime)


class DeliveryAttemptRow(SQLModel, table=True):
    """A delivery attempt."""

    __tablename__ = "delivery_attempt"
    notification_seq: int = Field(
        sa_column=Column(
            "notification_seq",
            BigInteger,
            ForeignKey("owed_notification.seq", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        )
    )
    number: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    at: datetime = Field(sa_type=UtcDateTime)
    code: int
    duration_ms: int = Field(sa_type=BigInteger)
    outcome: str = Field(sa_type=CleanText)
    answer: bytes = Field(sa_type=LargeBinary)


class UsageRow(SQLModel, table=True):
    """A usage record."""

    __tablename__ = "usage_record"
    __table_args__ = (
        Index("ix_usage_record_at", "at", "seq"),
        Index("ix_usage_record_client", "client_id", "seq"),
        _COUNTED,
    )
    seq: int | None = _seq()
    id: str = Field(sa_type=CleanText, unique=True)
    at: datetime = Field(sa_type=UtcDateTime)
    operation: str = Field(sa_type=CleanText)
    client_id: str = Field(sa_type=CleanText)
    face: str = Field(sa_type=CleanText)
    requester: str = Field(sa_type=CleanText)
    targets: str = Field(sa_type=CleanText)
    target_count: int
    expanded_count: int
    correlator: str = Field(sa_type=CleanText)
    subscription_id: str = Field(sa_type=CleanText)
    result: str = Field(sa_type=CleanText)
    root_cause: str = Field(sa_type=CleanText)
    expanded_targets: str = Field(sa_type=CleanText)
    x_correlator: str = Field(sa_type=CleanText)


class StreamTicketRow(SQLModel, table=True):
    """A ticket with which a browser opens a stream; only its hash is stored. `holder` is the stream that uses the
    ticket, or has used it last; "" before the first. No stream extends `expires_at` beyond `ends_at`. The client may be
    `anonymous`, which has no row."""

    __tablename__ = "stream_ticket"
    __table_args__ = (
        Index("ix_stream_ticket_client", "client_id", "expires_at"),
        Index("ix_stream_ticket_expires", "expires_at"),
    )
    hash: bytes = Field(sa_type=LargeBinary, primary_key=True)
    client_id: str = Field(sa_type=CleanText)
    expires_at: datetime = Field(sa_type=UtcDateTime)
    ends_at: datetime = Field(sa_type=UtcDateTime)
    holder: str = Field(sa_type=CleanText)


class AuditRow(SQLModel, table=True):
    """An entry of the audit log."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_at", "at"), _COUNTED)
    seq: int | None = _seq()
    at: datetime = Field(sa_type=UtcDateTime)
    who: str = Field(sa_type=CleanText)
    what: str = Field(sa_type=CleanText)
    details: str = Field(sa_type=CleanText)


METADATA = SQLModel.metadata


def _table(model: type[SQLModel]) -> Table:
    return METADATA.tables[str(model.__tablename__)]


clients = _table(ClientRow)
client_keys = _table(ClientKeyRow)
groups = _table(GroupRow)
group_members = _table(GroupMemberRow)
terminal_statuses = _table(TerminalStatusRow)
subscriptions = _table(SubscriptionRow)
subscription_addresses = _table(SubscriptionAddressRow)
outbox = _table(OutboxRow)
owed_notifications = _table(OwedNotificationRow)
delivery_attempts = _table(DeliveryAttemptRow)
usage_records = _table(UsageRow)
stream_tickets = _table(StreamTicketRow)
audit_log = _table(AuditRow)
