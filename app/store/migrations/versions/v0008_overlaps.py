"""When the older of a webhook's two secrets is to be deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds the column and its index."""
    op.add_column("subscription", sa.Column("secret_ends_at", sa.DateTime(timezone=True), nullable=True))
    there = sa.text("secret_ends_at IS NOT NULL")
    op.create_index(
        "ix_subscription_secret_ends", "subscription", ["secret_ends_at"], sqlite_where=there, postgresql_where=there
    )
