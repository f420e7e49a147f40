"""Authentication over SOAP: HTTP Basic, UsernameToken as text and as digest with its nonce, and certificates, over the
real Authenticator and store."""

import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from starlette.types import ASGIApp, Message

from app.auth.authenticator import Authenticator
from app.auth.clients import ClientRegistry
from app.auth.credentials import hash_secret, parse_key, password_equivalent
from app.auth.failures import FAILURE_BURST
from app.domain.addresses import TerminalAddress
from app.domain.statuses import Source, Status, TerminalStatus
from app.sinks import SINK_CONTRACTS
from app.store import open_store
from soap_compat.authentication import MAX_AGE_S, MAX_AHEAD_S, SoapAuthenticator
from soap_compat.server import create_app
from tests.support.core import new_database
from tests.support.soap import LOCAL, FakeUsage, FakeUseCases, Reply, call, envelope, payload
from tests.support.soap_requests import common_in
from tests.support.soap_security import token

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
REFUSED = "POL0001 UNAUTHENTICATED"


@dataclass
class World:
    """A gateway with one client, and a clock that the test moves."""

    client_id: str
    key: str
    auth: Authenticator
    registry: ClientRegistry
    app: ASGIApp
    use_cases: FakeUseCases
    now: datetime = NOW

    async def ask(self, header: str = "", **options: object) -> Reply:
        return await call(self.app, envelope(payload(), header).encode(), **options)  # type: ignore[arg-type]

    @property
    def caller(self) -> str:
        """The client of the last call."""
        return self.use_cases.asked[-1][0].id

    @property
    def password(self) -> str:
        """The password that a client with digests is configured with."""
        parsed = parse_key(self.key)
        assert parsed
        return password_equivalent(hash_secret(parsed[1]))

    def digest(self, *, nonce: bytes = b"nonce", created: str = "", password: str = "", user: str = "") -> str:
        """A header with a digest; values that are not given are valid."""
        created = created or self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        secret = password or self.password
        digest = base64.b64encode(hashlib.sha1(nonce + created.encode() + secret.encode()).digest()).decode()
        return token(user or self.client_id, digest, "Digest", base64.b64encode(nonce).decode(), created)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async def get_status(address: str, client_id: str = "") -> TerminalStatus:
        return TerminalStatus(
            address=TerminalAddress(address), status=Status.BUSY, observed_at=NOW, source=Source.WATCH
        )

    async with await open_store(await new_database(tmp_path)) as store:
        use_cases = FakeUseCases(get_status_of=get_status)
        made: World

        def clock() -> datetime:
            return made.now

        auth = Authenticator(store, clock=clock, monotonic=lambda: clock().timestamp(), open_allowed=True)
        registry = ClientRegistry(store, contracts=SINK_CONTRACTS, clock=clock, on_changed=auth.forget)
        app = create_app(use_cases, use_cases, auth, clock=clock, usage=FakeUsage())  # type: ignore[arg-type]  # all that it uses
        made = World("", "", auth, registry, app, use_cases)
        client, made.key = await registry.add("app", who="test", client_id="app-1")
        made.client_id = client.id
        yield made


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_http_basic(world: World) -> None:
    """HTTP Basic takes the client's id and an API key; a bearer token takes the key."""
    for authorization in (basic(world.client_id, world.key), f"Bearer {world.key}"):
        assert (await world.ask(authorization=authorization)).status == 200
        assert world.caller == world.client_id


async def test_no_credentials(world: World) -> None:
    """A caller without credentials gets a challenge, with the contract's fault in the body."""
    reply = await world.ask()
    assert (reply.status, reply.fault) == (401, REFUSED)
    assert reply.headers["www-authenticate"].startswith("Basic realm=")


async def test_wrong_credentials(world: World) -> None:
    """Wrong HTTP credentials get a challenge too, with the fault in the body; a wrong UsernameToken gets the fault
    only."""
    for authorization in (basic(world.client_id, "x"), basic("other", world.key), "Bearer x", "Digest x"):
        reply = await world.ask(authorization=authorization)
        assert (reply.status, reply.fault) == (401, REFUSED)
        assert reply.headers["www-authenticate"].startswith("Basic realm=")
    reply = await world.ask(token(world.client_id, "x"))
    assert (reply.status, reply.fault) == (500, REFUSED)
    assert "www-authenticate" not in reply.headers
    assert world.use_cases.asked == []


async def test_certificate(world: World) -> None:
    """A client certificate that TLS has verified names the client."""
    assert (await world.ask(certificate=["app-1"])).status == 200
    assert world.caller == "app-1"
    assert (await world.ask(certificate=["stranger"])).fault == REFUSED


@pytest.mark.parametrize("kind", ["", "Text"])
async def test_username_token_with_text(world: World, kind: str) -> None:
    """A UsernameToken may have the key itself."""
    assert (await world.ask(token(world.client_id, world.key, kind))).status == 200
    assert world.caller == world.client_id
    assert (await world.ask(token(world.client_id, world.key + "x", kind))).fault == REFUSED
    assert (await world.ask(token("other", world.key, kind))).fault == REFUSED


async def test_text_with_a_nonce_is_taken_once(world: World) -> None:
    """A nonce is checked beside a plain-text password too."""
    header = token(world.client_id, world.key, "Text", "bm9uY2U=", "2026-03-04T05:06:07Z")
    assert (await world.ask(header)).status == 200
    assert (await world.ask(header)).fault == REFUSED
    assert (await world.ask(token(world.client_id, world.key, "Text", "bm9uY2Uy"))).fault == REFUSED


async def test_username_token_with_digest(world: World) -> None:
    """The digest is made of nonce, created and the key's password equivalent; any key of the client is accepted."""
    assert (await world.ask(world.digest(nonce=b"1"))).status == 200
    assert world.caller == world.client_id
    _, world.key = await world.registry.rotate(world.client_id, who="test")
    assert (await world.ask(world.digest(nonce=b"2"))).status == 200
    assert (await world.ask(world.digest(nonce=b"3", password=world.key))).fault == REFUSED
    assert (await world.ask(world.digest(nonce=b"4", user="other"))).fault == REFUSED
    await world.registry.set_disabled(world.client_id, True, who="test")
    assert (await world.ask(world.digest(nonce=b"5"))).fault == REFUSED


async def test_replay(world: World) -> None:
    """A token is accepted once, even where its nonce is written differently; another nonce makes another token."""
    header = world.digest(nonce=b"a")
    assert "YQ==" in header
    assert (await world.ask(header)).status == 200
    assert (await world.ask(header)).fault == REFUSED
    assert (await world.ask(header.replace("YQ==", "YR=="))).fault == REFUSED
    assert (await world.ask(world.digest(nonce=b"b"))).status == 200


async def test_refused_tokens_are_not_remembered(world: World) -> None:
    """A refused token does not use up its nonce."""
    assert (await world.ask(world.digest(nonce=b"1", password="wrong"))).fault == REFUSED
    assert (await world.ask(world.digest(nonce=b"1"))).status == 200


@pytest.mark.parametrize(
    ("age_s", "taken"),
    [(0, True), (MAX_AGE_S, True), (MAX_AGE_S + 1, False), (-MAX_AHEAD_S, True), (-MAX_AHEAD_S - 1, False)],
)
async def test_created(world: World, age_s: float, taken: bool) -> None:
    """A Created time that is too old or in the future is refused, in any time zone."""
    created = NOW - timedelta(seconds=age_s)
    texts = [
        created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        created.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        (created + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00"),
        created.strftime("%Y-%m-%dT%H:%M:%S"),
    ]
    for number, text in enumerate(texts):
        reply = await world.ask(world.digest(nonce=b"%d" % number, created=text))
        assert reply.status == (200 if taken else 500), text


async def test_bad_tokens(world: World) -> None:
    """Tokens that cannot be checked are refused, whatever their content."""
    good = world.digest()
    at = "2026-03-04T05:06:07Z"
    for header in (
        token(world.client_id, "x", "Digest"),
        token(world.client_id, "not base64!", "Digest", "bm9uY2U=", at),
        token(world.client_id, "YQ==", "Digest", "not base64!", at),
        token(world.client_id, "YQ==", "Digest", "bm9uY2U=", "yesterday"),
        token(world.client_id, "YQ==", "Digest", "bm9uY2U="),
        token("", world.key, "Text"),
        token(world.client_id, "", "Text"),
        token("a" * 20_000, world.key, "Text"),
        token(world.client_id, "a" * 20_000, "Text"),
        token(world.client_id, world.key, "Text", "a" * 20_000, at),
        token("a\u00e4\U0001f600", world.key, "Text"),
        good.replace("</w:Username>", f"</w:Username><w:Username>{world.client_id}</w:Username>"),
    ):
        reply = await world.ask(header)
        assert (reply.status, reply.fault) == (500, REFUSED), header[:1000]
        world.now += timedelta(seconds=60)  # the number of failures is limited
    assert world.use_cases.asked == []


@pytest.mark.parametrize("version", ["v2_0", "v2_3", "v3_0"])
async def test_refusal_in_the_callers_version(world: World, version: str) -> None:
    """A refused UsernameToken is a fault in the common types of the request's drop (3GPP TS 29.199-1)."""
    body = envelope(payload(local=LOCAL.replace("v2_2", version)), token(world.client_id, "x", "Text"))
    reply = await call(world.app, body.encode())
    assert reply.declared == (f"{{{common_in(version)}}}PolicyException", "POL0001", "UNAUTHENTICATED")


async def test_other_tokens_of_ws_security(world: World) -> None:
    """An unknown kind of token is a fault with mustUnderstand, and ignored otherwise."""
    signature = '<s:Signature xmlns:s="http://www.w3.org/2000/09/xmldsig#"/>'
    header = token(world.client_id, world.key, extra=signature)
    assert (await world.ask(header)).faultcode == "MustUnderstand"
    assert (await world.ask(header.replace('e:mustUnderstand="1"', ""))).status == 200
    assert (await world.ask(token("a", "b").replace("</e:Header>", token("a", "b")[10:]))).faultcode == "Client"


async def test_http_decides(world: World) -> None:
    """Where HTTP has credentials, those in the envelope are ignored."""
    reply = await world.ask(token("nobody", "nothing"), authorization=basic(world.client_id, world.key))
    assert reply.status == 200


async def unread() -> Message:
    raise AssertionError("the body was read")


async def test_bad_http_credentials_are_refused_unread(world: World) -> None:
    """With wrong HTTP credentials the body is not read; the failure counts like any other."""
    for number in range(FAILURE_BURST):
        reply = await call(world.app, receive=unread, authorization=f"Bearer {number}")
        assert (reply.status, reply.fault) == (401, REFUSED)
    reply = await call(world.app, receive=unread, authorization="Bearer x")
    assert reply.fault == "POL0001 RATE_LIMITED"


@pytest.mark.parametrize("header", ["", "<e:Header/>", "<e:Header><a>1</a><b/></e:Header>", "token"])
async def test_bodies_of_strangers_are_not_read(world: World, header: str) -> None:
    """Without HTTP credentials a caller is refused after the soap:Header; the rest is neither awaited nor read."""
    header = token(world.client_id, "x") if header == "token" else header
    start, rest = envelope(payload(), header).encode().split(b"<e:Body>")
    pieces = [start + b"<e:Body>"]

    async def receive() -> Message:
        return {"type": "http.request", "body": pieces.pop(), "more_body": True} if pieces else await unread()

    assert (await call(world.app, receive=receive)).fault == REFUSED
    header = token(world.client_id, world.key)
    start, rest = envelope(payload(), header).encode().split(b"<e:Body>")
    assert (await call(world.app, start, b"<e:Body>", rest)).status == 200


async def test_head_of_strangers_is_bounded(world: World) -> None:
    """A soap:Header is read up to a bound only, unless HTTP credentials identify the caller."""
    header = f"<e:Header>{'<a>x</a>' * 10_000}</e:Header>"
    reply = await world.ask(header)
    assert (reply.status, reply.faultcode) == (500, "Client")
    assert "soap:Header" in reply.reason
    assert (await world.ask(header, authorization=f"Bearer {world.key}")).status == 200


async def test_failures_are_limited(world: World) -> None:
    """A peer that fails repeatedly is refused with the time to wait."""
    for number in range(FAILURE_BURST):
        assert (await world.ask(world.digest(nonce=b"%d" % number, password="wrong"))).fault == REFUSED
    reply = await world.ask(world.digest(nonce=b"x", password="wrong"))
    assert reply.fault == "POL0001 RATE_LIMITED"
    assert int(reply.headers["retry-after"]) > 0


async def test_full_memory_opens_nothing(world: World) -> None:
    """Where no more nonces fit, the oldest is forgotten, and tokens of its client that are as old are no longer
    accepted."""
    authenticator = SoapAuthenticator(world.auth, clock=lambda: world.now, max_nonces=2)
    app = world.app
    app._interfaces["TerminalStatus"]._authenticator = authenticator  # type: ignore[attr-defined]  # noqa: SLF001
    headers = []
    for number in range(4):
        headers.append(world.digest(nonce=b"%d" % number))
        assert (await world.ask(headers[-1])).status == 200
        world.now += timedelta(seconds=1)
    for header in headers:
        assert (await world.ask(header)).fault == REFUSED
    _, key = await world.registry.add("other", who="test", client_id="other")
    early = world.digest(nonce=b"early", created="2026-03-04T05:06:07Z")
    assert (await world.ask(early)).fault == REFUSED
    assert (await world.ask(token("other", key, "Text", "ZWFybHk=", "2026-03-04T05:06:07Z"))).status == 200
    world.now += timedelta(seconds=MAX_AGE_S + 1)
    assert (await world.ask(world.digest(nonce=b"later"))).status == 200
    assert len(authenticator._nonces) == 1  # noqa: SLF001  # those too old to be taken again are forgotten


async def test_without_clients(world: World) -> None:
    """While no client is configured, callers on this machine need no credentials, and any credentials are accepted."""
    await world.registry.delete(world.client_id, who="test")
    assert (await world.ask()).status == 200
    assert world.caller == "anonymous"
    assert (await world.ask(world.digest())).status == 200
