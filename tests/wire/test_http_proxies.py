"""Proxies in front of the HTTP address: headers of a trusted proxy count, headers of others do not."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio
import structlog

from app.auth.failures import FAILURE_BURST
from app.domain.records import Client
from app.main import Gateway, run_gateway
from app.sandbox import Sandbox
from tests.support.settings import settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROXY, STRANGER = "127.0.0.2", "127.0.0.3"
OPERATOR = Client(id="operator", name="operator", created_at=datetime(2026, 1, 2, tzinfo=UTC), admin=True)
CLAIMS = "X-Forwarded-For: 192.0.2.{0}\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: api.example\r\n"
FORWARDED = "Forwarded: for=192.0.2.{0};proto=https;host=api.example\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied(sandbox: Sandbox) -> AsyncIterator[Gateway]:
    """A gateway with a client, that trusts PROXY."""
    async with run_gateway(settings_for(sandbox.uri, trusted_proxies=PROXY)) as running:
        await running.use_cases.administration.create_client(OPERATOR, "app", client_id="app", admin=False, limits={})
        yield running


async def ask(gateway: Gateway, path: str, headers: str = "", *, by: str = STRANGER, body: str = "") -> str:
    """Sends one request from this address; returns all bytes that come back."""
    host, _, port = gateway.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(by, 0))
    method = "POST" if body else "GET"
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: inner:1\r\n{headers}Connection: close\r\n\r\n{body}".encode())
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer.decode()


async def guess(gateway: Gateway, headers: str = "", *, by: str) -> int:
    """The status of a request with a wrong key, a new one each time."""
    key = f"Authorization: Bearer tsk_a_{secrets.token_hex(8)}\r\n"
    answer = await ask(gateway, "/v1/terminals/sip:a@h/status", key + headers, by=by)
    return int(answer.split()[1])


@pytest.mark.parametrize("claims", [CLAIMS, FORWARDED], ids=["x-forwarded", "forwarded"])
async def test_addresses_in_documents(proxied: Gateway, claims: str) -> None:
    """WSDL and OpenAPI have the server's address as the trusted proxy's clients know it; a stranger's headers are
    ignored."""
    for path in ("/parlayx/TerminalStatus?wsdl", "/openapi.json", "/openapi/device-reachability-status-v1.json"):
        behind = await ask(proxied, path, claims.format(1), by=PROXY)
        assert "https://api.example" in behind
        assert "inner:1" not in behind
        direct = await ask(proxied, path, claims.format(1), by=STRANGER)
        assert "http://inner:1" in direct
        assert "api.example" not in direct


@pytest.mark.parametrize("claims", [CLAIMS, FORWARDED], ids=["x-forwarded", "forwarded"])
async def test_wrong_keys_count_for_the_client_behind_the_proxy(proxied: Gateway, claims: str) -> None:
    """One client's wrong keys limit neither another client behind the same proxy nor the proxy itself."""
    number = len(claims)
    said = [await guess(proxied, claims.format(number), by=PROXY) for _ in range(FAILURE_BURST + 1)]
    assert said == [401] * FAILURE_BURST + [429]
    assert await guess(proxied, claims.format(number + 1), by=PROXY) == 401
    assert [await guess(proxied, by=PROXY) for _ in range(FAILURE_BURST + 1)] == [401] * (FAILURE_BURST + 1)


async def test_a_stranger_is_nobody_else(proxied: Gateway) -> None:
    """A stranger that claims another address with each guess is limited by its own address."""
    said = [await guess(proxied, CLAIMS.format(n), by=STRANGER) for n in range(FAILURE_BURST + 1)]
    assert said[-1] == 429


@pytest.mark.parametrize(
    ("proxies", "headers", "lines"),
    [
        ("", CLAIMS, 1),
        ("", "X-Forwarded-Proto: https\r\n", 1),
        ("", FORWARDED, 1),
        ("", "", 0),
        (PROXY, CLAIMS, 0),
    ],
    ids=["x-forwarded", "only the scheme", "forwarded", "none", "trusted"],
)
async def test_a_forgotten_setting_is_logged_once(sandbox: Sandbox, proxies: str, headers: str, lines: int) -> None:
    """A proxy's header that comes while no proxy is trusted is ignored, and one log line says which setting is missing,
    however many requests and peers send the header."""
    async with run_gateway(settings_for(sandbox.uri, trusted_proxies=proxies)) as running:
        with structlog.testing.capture_logs() as logs:
            for peer in (PROXY, STRANGER, PROXY):
                await ask(running, "/parlayx/TerminalStatus?wsdl", headers.format(1), by=peer)
    warned = [entry for entry in logs if entry["event"] == "forwarded_header_ignored"]
    assert len(warned) == lines
    for entry in warned:
        assert (entry["peer"], entry["log_level"]) == (PROXY, "warning")
        assert entry["header"] in headers.lower()
        assert "TS_TRUSTED_PROXIES" in entry["hint"]
