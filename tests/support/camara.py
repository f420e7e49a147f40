"""CAMARA's APIs over real use cases, for tests: the served face, access tokens, requests, failures and events."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.auth.oidc import Grant
from app.domain.addresses import parse_address
from app.rest.camara import cloud_events, event_types
from tests.support.core import APP, BEGAN, Core, new_database, run_core
from tests.support.http_face import Answer, HttpFace, http_face

RETRIEVE = "/device-reachability-status/v1/retrieve"
SUBSCRIPTIONS = cloud_events.SUBSCRIPTIONS_PATH
NUMBER = "+15551234567"
BY_NUMBER = {"device": {"phoneNumber": NUMBER}}
BY_NAME = {"device": {"networkAccessIdentifier": "alice@example.com"}}
TEL = parse_address(f"tel:{NUMBER}")
SINK = "https://endpoint.example.com/sink"
READ = "device-reachability-status:read"
ALL = frozenset({"device-reachability-status", "device-reachability-status-subscriptions"})
TOKEN = {"authorization": "Bearer a.b.c"}


TOKEN_CREDENTIAL = {
    "credentialType": "ACCESSTOKEN",
    "accessToken": "x",
    "accessTokenExpiresUtc": "2026-04-04T05:06:07Z",
    "accessTokenType": "bearer",
}


class Tokens:
    """Access tokens with grants that the test sets; every token is APP's."""

    def __init__(self) -> None:
        self.granted = Grant(scopes=ALL, device="")

    async def verify(self, token: str) -> tuple[str, datetime]:
        return APP.id, BEGAN + timedelta(days=1)

    def confined(self, token: str) -> str:
        return "It serves CAMARA only." if self.granted.device else ""

    def grant(self, token: str) -> Grant:
        assert token == "a.b.c"
        return self.granted


@pytest_asyncio.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with run_core(await new_database(tmp_path)) as running:
        yield running


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest_asyncio.fixture
async def face(core: Core, tokens: Tokens) -> AsyncIterator[HttpFace]:
    async with http_face(core, tokens=tokens, grant=tokens.grant) as running:
        yield running


def asked(
    kind: str = event_types.REACHABILITY_DATA, device: dict[str, Any] | None = BY_NAME, **more: Any
) -> dict[str, Any]:
    """The request for a subscription; `more` is added to its config, or replaces its members."""
    body = {"protocol": "HTTP", "sink": SINK, "types": [kind], "config": {"subscriptionDetail": device or {}}}
    for name, value in more.items():
        (body["config"] if name in ("subscriptionExpireTime", "subscriptionMaxEvents", "initialEvent") else body)[  # type: ignore[index]
            name
        ] = value
    return body


def failure(answer: Answer, status: int, code: str) -> str:
    """Asserts that the answer is this failure in CAMARA's form; returns the message."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), answer.body
    assert set(answer.json) == {"status", "code", "message"}
    assert (answer.json["status"], answer.json["code"]) == (status, code), answer.body
    return str(answer.json["message"])


async def events(core: Core, subscription_id: str) -> list[dict[str, Any]]:
    """The CloudEvents owed to a subscription's sink, except those that are never sent."""
    stored = await core.store.subscription(subscription_id)
    made = [cloud_events.event(stored, one, "https://gateway") for one in await core.owed(stored)]
    return [dict(one) for one in made if one is not None]


async def kinds(core: Core, subscription_id: str) -> list[str]:
    return [str(one["type"]).removeprefix(event_types.EVENT_PREFIX) for one in await events(core, subscription_id)]
