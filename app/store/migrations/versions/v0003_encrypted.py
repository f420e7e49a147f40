"""The key with which a sink's parameters are encrypted."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Adds the column, and an index that finds the keys in use without reading every row."""
    op.add_column("subscription", sa.Column("sink_key", TEXT, nullable=False, server_default=""))
    where = sa.text("sink_key <> ''")
    op.create_index(
        "ix_subscription_sink_key", "subscription", ["sink_key"], sqlite_where=where, postgresql_where=where
    )
