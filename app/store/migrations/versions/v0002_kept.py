"""Columns of a subscription that are needed after a restart: its groups, joined terminals, and held statuses."""

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Adds the columns. Fills `groups` of active subscriptions with the addresses that are their client's groups now,
    and `held` with the terminals that were observed after the last notification."""
    for name in ("groups", "joined", "held"):
        op.add_column("subscription", sa.Column(name, TEXT, nullable=False, server_default="[]"))
    of_active = "join subscription s on s.seq = a.subscription_seq and s.ended_at is null"
    for name, condition in (
        ("groups", "join terminal_group g on g.client_id = s.client_id and g.address = a.address"),
        (
            "held",
            "join terminal_status t on t.address = a.address and s.min_interval_ms > 0 "
            "and t.observed_at > s.last_notified_at",
        ),
    ):
        _fill(
            name,
            op.get_bind().execute(
                sa.text(
                    f"select a.subscription_seq, a.address from subscription_address a {of_active} {condition} "  # noqa: S608
                    "order by a.subscription_seq, a.position"
                )
            ),
        )


def _fill(name: str, rows: Iterable[Any]) -> None:
    lists: dict[int, list[str]] = {}
    for seq, address in rows:
        lists.setdefault(seq, []).append(address)
    if lists:
        op.get_bind().execute(
            sa.text(f"update subscription set {name} = :list where seq = :seq"),  # noqa: S608  # a column of ours
            [{"seq": seq, "list": json.dumps(addresses)} for seq, addresses in lists.items()],
        )
