"""The version of each subscription, which its etag is made of. Existing subscriptions have version 1."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds the column."""
    op.add_column("subscription", sa.Column("version", sa.BigInteger(), nullable=False, server_default="1"))
