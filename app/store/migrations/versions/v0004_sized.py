"""The size of each group, so that a list of groups can be cut, and a query refused, before members are read."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the columns, and counts the members of existing groups."""
    for name in ("members", "characters"):
        op.add_column("terminal_group", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    its = "from group_member m where m.client_id = g.client_id and m.group_address = g.address"
    op.execute(
        f"update terminal_group as g set members = (select count(*) {its}), "  # noqa: S608  # text of ours
        f"characters = (select coalesce(sum(length(m.member)), 0) {its})"
    )
