"""The use cases over a new SQLite database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from app.store import open_store
from tests.support.authentication import World
from tests.support.core import Core, new_database, run_core


@pytest_asyncio.fixture
async def url(tmp_path: Path) -> str:
    """The URL of the database."""
    return await new_database(tmp_path)


@pytest_asyncio.fixture
async def core(url: str) -> AsyncIterator[Core]:
    """One gateway's use cases."""
    async with run_core(url) as running:
        yield running


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with await open_store(f"sqlite:///{tmp_path}/store.sqlite3") as store:
        yield World(store)
