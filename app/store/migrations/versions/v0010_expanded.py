"""The terminals of usage records whose targets are groups. Records that exist list none."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Adds the column."""
    op.add_column("usage_record", sa.Column("expanded_targets", TEXT, nullable=False, server_default="[]"))
