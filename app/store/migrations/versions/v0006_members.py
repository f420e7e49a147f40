"""An index by which the groups of a member are found."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds the index."""
    op.create_index("ix_group_member_member", "group_member", ["member"])
