"""Fixtures that start the real things: the sandbox notifier, Kamailio, and the gateway against either."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import hypothesis
import pytest_asyncio

from app.config import Settings
from app.sandbox import Sandbox

if TYPE_CHECKING:
    from app.main import Gateway


# A busy machine makes no example wrong.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def settings_for(presence_server: str, **changes: object) -> Settings:
    """Settings of a gateway on free loopback ports."""
    values: dict[str, object] = {
        "presence_server": presence_server,
        "grpc_listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        **changes,
    }
    return Settings(**values)  # type: ignore[arg-type]  # pydantic validates them


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    """The sandbox notifier on a free port, without its script."""
    async with Sandbox("127.0.0.1", 0, scripted=False) as notifier:
        yield notifier


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["udp", "tcp"])
async def gateway(request: object, sandbox: Sandbox) -> AsyncIterator["Gateway"]:
    """A gateway against the sandbox, over UDP and then over TCP; fetches give up after 400 ms."""
    transport: str = request.param  # type: ignore[attr-defined]  # pytest's request
    settings = settings_for(f"{sandbox.uri};transport={transport}", fetch_timeout_ms=400)
    from app.main import run_gateway

    async with run_gateway(settings) as running:
        yield running
