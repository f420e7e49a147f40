"""Fixtures that start the real things: the sandbox notifier, Kamailio, and the gateway against either."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import pytest_asyncio

from app.sandbox import Sandbox
from app.store import SqlStore, open_store
from tests.support import postgres as postgresql
from tests.support.grpc_engines import chosen_engine
from tests.support.settings import settings_for

if TYPE_CHECKING:
    from app.main import Gateway


# An example that is slow on a busy machine is not wrong.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


RINGS = ("repository", "pure", "core", "wire", "faces", "system")


LONGEST_FIRST = (
    "test_sip_routes",
    "test_bench",
    "test_sip_refused",
    "test_commands",
    "test_sip_watches",
    "test_cli",
    "test_crash",
    "test_contract",
    "test_sip_identity",
    "test_delivery",
    "test_documentation",
    "test_store_faults",
    "test_client_registry",
    "test_camara",
    "test_call_limits",
)
"""The files that take longest, files that wait beside files that compute. `make test` gives each file to one of its
processes, in the order of collection: a long file at the end would keep one process busy and leave the others idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with its ring, the folder it is in (`make test ARGS='-m pure'`), and sorts the longest files
    to the front."""
    for item in items:
        ring = item.path.relative_to(Path(__file__).parent).parts[0]
        item.add_marker(getattr(pytest.mark, ring))
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture
def grpc_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine of the gRPC servers that the test starts (`grpc_engines.ON_BOTH_ENGINES`)."""
    with chosen_engine(request.param) as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    """The sandbox notifier on a free port, without its script."""
    async with Sandbox("127.0.0.1", 0, scripted=False) as notifier:
        yield notifier


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["udp", "tcp"])
async def gateway(request: object, sandbox: Sandbox) -> AsyncIterator["Gateway"]:
    """A gateway against the sandbox, once over UDP and once over TCP; fetches time out after a second."""
    transport: str = request.param  # type: ignore[attr-defined]  # pytest's request
    settings = settings_for(f"{sandbox.uri};transport={transport}", fetch_timeout_ms=1000)
    from app.main import run_gateway

    async with run_gateway(settings) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgresql.Postgres]:
    """One PostgreSQL server for all tests; each test has its own database in it."""
    postgresql.require()
    with postgresql.Postgres.running() as server:
        yield server


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A new database: once SQLite, once PostgreSQL. A test that leaves a PostgreSQL connection open fails."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ts.sqlite3"
        return
    server: postgresql.Postgres = request.getfixturevalue("postgres")
    name = await server.new_database()
    yield server.url(name)
    server.drop_database(name)


@pytest_asyncio.fixture
async def store(database_url: str) -> AsyncIterator[SqlStore]:
    """A store over each kind of database. A test that leaves a transaction open fails. Statements wait 300 ms for
    locks."""
    async with await open_store(database_url, busy_timeout_ms=300) as opened:
        yield opened
        assert opened.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # both kinds have a queue of them
