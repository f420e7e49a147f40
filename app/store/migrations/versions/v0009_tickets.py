"""Tickets, with which browsers open streams."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Adds the table."""
    op.create_table(
        "stream_ticket",
        sa.Column("hash", sa.LargeBinary(), primary_key=True, nullable=False),
        sa.Column("client_id", TEXT, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("ends_at", TIME, nullable=False),
        sa.Column("holder", TEXT, nullable=False),
    )
    op.create_index("ix_stream_ticket_client", "stream_ticket", ["client_id", "expires_at"])
    op.create_index("ix_stream_ticket_expires", "stream_ticket", ["expires_at"])
