"""A store with a registry of clients and an authenticator, and a clock that the test moves."""

import base64
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from app.auth.authenticator import Authenticator
from app.auth.clients import ClientRegistry
from app.auth.credentials import Credentials
from app.auth.oidc import AccessTokens
from app.domain.errors import (
    Unauthenticated,
)
from app.domain.records import Client
from app.sinks import SINK_CONTRACTS
from app.store import SqlStore
from tests.support.access_tokens import (
    START,
)


@dataclass
class Clock:
    """Wall clock and monotonic clock of a test, moved by hand."""

    now: datetime = START
    seconds: float = 1000.0

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.seconds

    def pass_s(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.seconds += seconds


@dataclass
class World:
    """A store with a registry and an authenticator."""

    store: SqlStore
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.auth = self.authenticator()
        self.registry = ClientRegistry(
            self.store, contracts=SINK_CONTRACTS, clock=self.clock, on_changed=self.auth.forget
        )

    def authenticator(self, *, open_allowed: bool = True, tokens: AccessTokens | None = None) -> Authenticator:
        return Authenticator(
            self.store, clock=self.clock, monotonic=self.clock.monotonic, open_allowed=open_allowed, tokens=tokens
        )

    async def add(self, name: str = "billing", **options: Any) -> tuple[Client, str]:
        return await self.registry.add(name, who="test", **options)

    async def refused(self, credentials: Credentials) -> str:
        with pytest.raises(Unauthenticated) as caught:
            await self.auth.authenticate(credentials)
        assert caught.value.details == {}
        return str(caught.value)


def bearer(key: str, peer: str = "192.0.2.1") -> Credentials:
    return Credentials(authorization=f"Bearer {key}", peer=peer)


def basic(user: str, password: str) -> Credentials:
    return Credentials(authorization="Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
