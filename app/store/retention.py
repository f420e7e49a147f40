"""Reads usage records in the order of writing, and purges old rows and secrets."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Column, ColumnElement, bindparam, delete, exists, null, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.filters import UsageFilter
from app.domain.operations import Face, UsageOperation
from app.domain.records import UsageRecord
from app.domain.sinks import signing_secrets, with_secrets
from app.ports.store import ALL_USAGE, Page
from app.store import tables as t
from app.store.changes import USAGE_LOCK, SinkRow, Writing
from app.store.database import AnyRow
from app.store.scans import scan_period

_usage = t.usage_records.c


class Retention(Writing):
    """As `ports.store.Store` says."""

    async def usage(self, page: Page, only: UsageFilter = ALL_USAGE) -> tuple[list[UsageRecord], str]:
        """A page of usage records, in the order of writing, and the next page's token.

        A reader who continues from the last token later misses no record: on PostgreSQL, this waits for running writes.
        """
        names = ("usage", only)
        which, rest = [], []
        if only.client_id:
            which.append(_usage.client_id == only.client_id)
        if only.operation is not None:
            rest.append(_usage.operation == only.operation.value)
        if only.face is not None:
            rest.append(_usage.face == only.face.value)
        if only.x_correlator:
            rest.append(_usage.x_correlator == only.x_correlator)

        async def work(c: AsyncConnection) -> tuple[Sequence[AnyRow], str]:
            if not self.sqlite:
                await c.execute(text("select pg_advisory_xact_lock(:key)"), {"key": USAGE_LOCK})
            return await scan_period(c, t.usage_records, only, which, rest, page, names)

        rows, following = await self._read(work)
        return [_usage_record(row) for row in rows], following

    async def purge(self, before: datetime, most: int, *, usage_before: datetime | None = None) -> int:
        """Deletes up to `most` rows: settled notifications (with their attempts) and ended subscriptions without
        notifications, older than `before`; usage records and audit entries older than `usage_before` (None: `before`).
        Returns how many were deleted, without attempts; call it again until that is less than `most`."""
        billing = before if usage_before is None else usage_before
        owed, sub, log = t.owed_notifications.c, t.subscriptions.c, t.audit_log.c
        nothing_kept = ~exists().where(owed.subscription_seq == sub.seq)

        async def work(c: AsyncConnection) -> int:
            gone = await _delete(c, owed.settled_at, before, most)
            gone += await _delete(c, _usage.at, billing, most - gone)
            gone += await _delete(c, log.at, billing, most - gone)
            gone += await _delete(c, sub.ended_at, before, most - gone, nothing_kept)
            return gone

        return await self._write(work)

    async def drop_ended_secrets(self, now: datetime, most: int) -> int:
        """Deletes the older secret of up to `most` sinks whose overlap has ended, and returns how many sinks that were.
        A sink that cannot be decrypted, or is changed meanwhile, keeps its secrets until another call."""
        sub = t.subscriptions.c
        columns = (sub.sink_kind, sub.sink_url, sub.sink_profile, sub.sink_parameters, sub.sink_key)
        ended = select(sub.seq, sub.id, *columns).where(sub.secret_ends_at <= now).order_by(sub.secret_ends_at)
        new = []
        for seq, subscription_id, *stored in await self._all(ended.limit(most)):
            if (clear := SinkRow(*stored).decrypted(subscription_id, self._keys)) is not None:
                sink = clear.sink()
                values = self._sink_values(subscription_id, with_secrets(sink, signing_secrets(sink, now), None))
                text, key = values["sink_parameters"], values["sink_key"]
                new.append({"which": seq, "before": stored[3], "text": text, "key": key})
        if new:
            change = (
                update(t.subscriptions)
                .where(sub.seq == bindparam("which"), sub.sink_parameters == bindparam("before"))
                .values(sink_parameters=bindparam("text"), sink_key=bindparam("key"), secret_ends_at=null())
            )
            await self._write(lambda c: c.execute(change, new))
        return len(new)


async def _delete(
    c: AsyncConnection, time: Column[Any], before: datetime, most: int, *conditions: ColumnElement[bool]
) -> int:
    """Deletes the oldest rows of the table of the column `time`."""
    if most <= 0:
        return 0
    table = time.table
    old = select(table.c.seq).where(time < before, *conditions).order_by(time).limit(most)
    # Rows that are locked now are deleted the next time.
    old = old.with_for_update(skip_locked=True, of=table)
    return (await c.execute(delete(table).where(table.c.seq.in_(old.scalar_subquery())))).rowcount


def _usage_record(row: AnyRow) -> UsageRecord:
    return UsageRecord(
        id=row.id,
        at=row.at,
        operation=UsageOperation(row.operation),
        client_id=row.client_id,
        face=Face(row.face),
        requester=row.requester,
        targets=tuple(msgspec.json.decode(row.targets)),
        target_count=row.target_count,
        expanded_count=row.expanded_count,
        correlator=row.correlator,
        subscription_id=row.subscription_id,
        result=row.result,
        root_cause=row.root_cause,
        expanded_targets=tuple(msgspec.json.decode(row.expanded_targets)),
        x_correlator=row.x_correlator,
    )
