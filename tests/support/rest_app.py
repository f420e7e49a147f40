"""The REST application in process, over a fetcher with a fake watcher: all callers may query one terminal."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import httpx2
from fastapi import FastAPI

from app.auth.policies import Policies
from app.core.fetcher import FetchService
from app.core.use_cases import UseCases
from app.domain.addresses import parse_address
from app.domain.policy import Policy
from app.domain.records import ANONYMOUS, Client
from app.domain.statuses import TerminalStatus
from app.rest.application import create_app


def app_over(
    service: FetchService, stopping: asyncio.Event | None = None, *, ready_needs_presence: bool = False
) -> FastAPI:
    """The application, in which every caller may query one terminal's status and call nothing else."""
    anonymous = Client(id=ANONYMOUS, name=ANONYMOUS, created_at=datetime(1970, 1, 1, tzinfo=UTC))

    class Open:
        def known(self, authorization: str, *, confined: bool = False) -> Client:
            return anonymous

    class Questions:
        async def get_status(self, client: Client, address: str, **how: Any) -> TerminalStatus:
            return await service.fetch(parse_address(address))

    absent: dict[str, Any] = dict.fromkeys([each.name for each in fields(UseCases)])
    use_cases = UseCases(
        **{**absent, "auth": Open(), "queries": Questions(), "policies": Policies(Policy(), time.monotonic)}
    )
    return create_app(service, use_cases, stopping=stopping, ready_needs_presence=ready_needs_presence)


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://gateway") as client:
        yield client
