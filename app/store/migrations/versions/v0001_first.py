"""Every table of the first version with a store."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "audit_log",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("who", TEXT, nullable=False),
        sa.Column("what", TEXT, nullable=False),
        sa.Column("details", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_log_at", "audit_log", ["at"])
    op.create_table(
        "client",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("limits", TEXT, nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "subscription",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("client_id", TEXT, nullable=False),
        sa.Column("criteria", TEXT, nullable=False),
        sa.Column("check_immediate", sa.Boolean(), nullable=False),
        sa.Column("min_interval_ms", sa.BigInteger(), nullable=False),
        sa.Column("max_notifications", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("sink_kind", TEXT, nullable=False),
        sa.Column("sink_url", TEXT, nullable=False),
        sa.Column("sink_profile", TEXT, nullable=False),
        sa.Column("sink_parameters", TEXT, nullable=False),
        sa.Column("correlator", TEXT, nullable=False),
        sa.Column("request_id", TEXT, nullable=False),
        sa.Column("notified", sa.BigInteger(), nullable=False),
        sa.Column("last_notified_at", TIME, nullable=True),
        sa.Column("awaiting", sa.Boolean(), nullable=False),
        sa.Column("suspended_at", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("end_reason", TEXT, nullable=True),
        sa.Column("end_detail", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_subscription_client", "subscription", ["client_id", "ended_at", "seq"])
    op.create_index(
        "ix_subscription_correlator",
        "subscription",
        ["client_id", "correlator"],
        unique=True,
        **_where("correlator <> '' AND ended_at IS NULL"),
    )
    op.create_index("ix_subscription_ended", "subscription", ["ended_at"], **_where("ended_at IS NOT NULL"))
    op.create_index(
        "ix_subscription_request_id",
        "subscription",
        ["client_id", "request_id"],
        unique=True,
        **_where("request_id <> ''"),
    )
    op.create_table(
        "terminal_group",
        sa.Column("client_id", TEXT, nullable=False),
        sa.Column("address", TEXT, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("client_id", "address"),
    )
    op.create_index("ix_terminal_group_address", "terminal_group", ["address", "client_id"])
    op.create_table(
        "terminal_status",
        sa.Column("address", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("observed_at", TIME, nullable=False),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("address"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_record",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("operation", TEXT, nullable=False),
        sa.Column("client_id", TEXT, nullable=False),
        sa.Column("face", TEXT, nullable=False),
        sa.Column("requester", TEXT, nullable=False),
        sa.Column("targets", TEXT, nullable=False),
        sa.Column("target_count", sa.Integer(), nullable=False),
        sa.Column("expanded_count", sa.Integer(), nullable=False),
        sa.Column("correlator", TEXT, nullable=False),
        sa.Column("subscription_id", TEXT, nullable=False),
        sa.Column("result", TEXT, nullable=False),
        sa.Column("root_cause", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_usage_record_at", "usage_record", ["at", "seq"])
    op.create_index("ix_usage_record_client", "usage_record", ["client_id", "seq"])
    op.create_table(
        "client_key",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("client_id", TEXT, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["client_id"], ["client.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_client_key_client_id", "client_key", ["client_id"])
    op.create_table(
        "group_member",
        sa.Column("client_id", TEXT, nullable=False),
        sa.Column("group_address", TEXT, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("member", TEXT, nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id", "group_address"], ["terminal_group.client_id", "terminal_group.address"], ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("client_id", "group_address", "position"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "outbox",
        sa.Column("subscription_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.BigInteger(), nullable=True),
        sa.Column("due_at", TIME, nullable=True),
        sa.Column("lease_owner", TEXT, nullable=True),
        sa.Column("leased", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["subscription_seq"], ["subscription.seq"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("subscription_seq"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_outbox_due", "outbox", ["due_at"], **_where("due_at IS NOT NULL"))
    op.create_table(
        "owed_notification",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("subscription_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("client_id", TEXT, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("changes", TEXT, nullable=False),
        sa.Column("address", TEXT, nullable=True),
        sa.Column("code", TEXT, nullable=False),
        sa.Column("text", TEXT, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("next_attempt_at", TIME, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("settled_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["subscription_seq"], ["subscription.seq"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("subscription_seq", "sequence", name="uq_owed_notification_sequence"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_owed_notification_client", "owed_notification", ["client_id", "seq"])
    op.create_index(
        "ix_owed_notification_dead", "owed_notification", ["client_id", "state", "seq"], **_where("state = 'DEAD'")
    )
    op.create_index(
        "ix_owed_notification_pending",
        "owed_notification",
        ["subscription_seq", "sequence"],
        **_where("state = 'PENDING'"),
    )
    op.create_index(
        "ix_owed_notification_settled", "owed_notification", ["settled_at"], **_where("settled_at IS NOT NULL")
    )
    op.create_table(
        "subscription_address",
        sa.Column("subscription_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("address", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["subscription_seq"], ["subscription.seq"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("subscription_seq", "position"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_subscription_address", "subscription_address", ["address"])
    op.create_table(
        "delivery_attempt",
        sa.Column("notification_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("code", sa.Integer(), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("outcome", TEXT, nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["notification_seq"], ["owed_notification.seq"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("notification_seq", "number"),
    )


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}
