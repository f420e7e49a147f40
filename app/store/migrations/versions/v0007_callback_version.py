"""The version of Parlay X callbacks to each client. Existing clients follow the version of their requests."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Adds the column."""
    op.add_column("client", sa.Column("soap_callback_version", TEXT, nullable=False, server_default=""))
