"""Contract tests: schemathesis sends the running server requests that each OpenAPI document allows, and requests that
it forbids, with all of its checks. CAMARA's answers are checked against CAMARA's own documents too, where these are
installed."""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.domain.policy import Policy
from app.live.engine import Tuning
from app.rest.camara.applications import PREFIXES, STATUS, SUBSCRIPTIONS
from app.rest.openapi import V1
from tests.support.camara_reference import REFERENCE, ROOT, require
from tests.support.core import ADMIN, APP, new_database, run_core
from tests.support.http_face import HttpFace, http_face

SEED = 20260102
LIMIT_S = 120.0

CONFIGURATION = """
# A document cannot say all that holds: that an address is a group's, or that a device must be named.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "400", "401", "403", "404", "409", "412", "422", "429", "5xx"]
"""


@dataclass
class RealClocks:
    """The clocks of a core, running in real time."""

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    @property
    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def advance(self, seconds: float) -> None:
        raise NotImplementedError


@pytest_asyncio.fixture
async def face(tmp_path: Path) -> AsyncIterator[HttpFace]:
    """The server, whose streams end soon by themselves, and which does not limit wrong credentials."""
    clocks: Any = RealClocks()
    tuning = Tuning(bookmark_s=0.02)
    ticks = itertools.count()
    async with (
        run_core(await new_database(tmp_path), clocks=clocks, policy=Policy(max_targets=20), tuning=tuning) as core,
        http_face(core, monotonic=lambda: float(next(ticks)), max_stream_age_s=0.02) as running,
    ):
        yield running


async def ask_all(face: HttpFace, document: Path, base: str, folder: Path, *more: str, client: str = APP.id) -> None:
    """Runs schemathesis on a document; fails with its report."""
    configuration = folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(configuration), "run"),
        *(str(document), "--url", face.url + base, "-H", f"Authorization: Bearer {face.keys[client]}"),
        *("--checks", "all", "--seed", str(SEED), "--generation-database", "none", "--no-color", "--warnings", "off"),
        *("--request-timeout", "10", *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, said.decode()


@pytest.mark.parametrize(("name", "examples"), [(V1, 1), (STATUS, 5), (SUBSCRIPTIONS, 2)])
async def test_the_server_keeps_its_documents(face: HttpFace, tmp_path: Path, name: str, examples: int) -> None:
    """The server answers allowed and forbidden requests as the document says."""
    client = ADMIN.id if name == V1 else APP.id
    document = ROOT / "openapi" / f"{name}.json"
    await ask_all(face, document, PREFIXES.get(name, ""), tmp_path, "-n", str(examples), client=client)


@pytest.mark.parametrize("name", [STATUS, SUBSCRIPTIONS])
async def test_the_server_keeps_camaras_documents(face: HttpFace, tmp_path: Path, name: str) -> None:
    """The server also answers as CAMARA's own documents of release r1.2 say."""
    document = require(REFERENCE / f"{name.rpartition('-')[0]}.yaml")
    await ask_all(face, document, PREFIXES[name], tmp_path, "-n", "2")
