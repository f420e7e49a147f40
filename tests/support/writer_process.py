"""A process that writes Alice's next status and a notification of it, again and again, until it is killed.

Started as `python -m tests.support.writer_process DATABASE_URL`; prints each revision once it is committed.
"""

import asyncio
import sys

from app.domain.changes import Changes
from app.store import open_store
from tests.support.records import ALICE, owed, status


async def write_for_ever(database_url: str) -> None:
    """Goes on from the revision that is stored."""
    async with await open_store(database_url) as store:
        stored = await store.statuses([ALICE])
        revision = stored[ALICE].revision if stored else 0
        while True:
            revision += 1
            change = status(ALICE, revision)
            assert not await store.write(Changes(statuses=[change], owed=[owed(f"n{revision}", changes=(change,))]))
            sys.stdout.write(f"{revision}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(write_for_ever(sys.argv[1]))
