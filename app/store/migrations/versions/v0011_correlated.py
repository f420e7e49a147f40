"""The x-correlator of the call that made a subscription, and of a usage record's call. Existing rows have none."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Adds the columns."""
    for table in ("subscription", "usage_record"):
        op.add_column(table, sa.Column("x_correlator", TEXT, nullable=False, server_default=""))
