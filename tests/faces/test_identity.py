"""Credentials of one kind are never accepted as another kind: every kind is tried as every other, on every face of a
real gateway with client certificates and access tokens."""

import base64
import hashlib
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx2 as httpx
import hypothesis
import pytest
import pytest_asyncio
import structlog.testing
from aiohttp import web
from cryptography import x509
from hypothesis import strategies as st

from app.auth import failures
from app.auth.clients import ClientRegistry
from app.auth.credentials import hash_secret, parse_key, password_equivalent
from app.main import Gateway, run_gateway
from app.pb.terminalstatus.v1 import group_pb2, group_pb2_grpc
from app.sandbox import Sandbox
from app.sinks import SINK_CONTRACTS
from app.store import open_store
from tests.support import soap
from tests.support.access_tokens import AUDIENCE, HEADERS, ISSUER, JSON, MALFORMED, key_set, serving, signed, token
from tests.support.certificates import NOW, Party, grpc_credentials, http_context, sign
from tests.support.settings import settings_for
from tests.support.soap_security import token as username_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

FACES = ("grpc", "rest", "camara", "soap")
REFUSED = {"grpc": "UNAUTHENTICATED", "rest": 401, "camara": 401, "soap": "POL0001 UNAUTHENTICATED"}
OPS = "ops.example"
LIST = "/device-reachability-status-subscriptions/v0.8/subscriptions"


@dataclass
class Caller:
    """A caller with a certificate, who calls every face."""

    gateway: Gateway
    http: httpx.AsyncClient
    channel: grpc.aio.Channel

    async def grpc(self, authorization: str) -> object:
        stub: Any = group_pb2_grpc.GroupServiceStub(self.channel)
        metadata = (("authorization", authorization),) if authorization else None
        try:
            await stub.ListGroups(group_pb2.ListGroupsRequest(), timeout=10, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "good"

    async def rest(self, authorization: str) -> object:
        return await self._get("/v1/groups", authorization)

    async def camara(self, authorization: str) -> object:
        return await self._get(LIST, authorization)

    async def soap(self, authorization: str, header: str = "") -> object:
        body = soap.envelope(soap.payload(), header).encode()
        headers = {"content-type": "text/xml", **({"authorization": authorization} if authorization else {})}
        answer = await self.http.post(f"{self.url}/parlayx/TerminalStatus", content=body, headers=headers)
        return "good" if answer.status_code == 200 else soap.Reply(answer.status_code, {}, answer.content).fault

    async def _get(self, path: str, authorization: str) -> object:
        headers = {"authorization": authorization} if authorization else None
        answer = await self.http.get(self.url + path, headers=headers)
        return "good" if answer.status_code == 200 else answer.status_code

    @property
    def url(self) -> str:
        return f"https://localhost:{self.gateway.http_address.rpartition(':')[2]}"

    async def call(self, face: str, authorization: str) -> object:
        """Calls the face; returns `good`, or the reason of the refusal."""
        calls: dict[str, Callable[[str], Awaitable[object]]] = {
            "grpc": self.grpc,
            "rest": self.rest,
            "camara": self.camara,
            "soap": self.soap,
        }
        return await calls[face](authorization)


@dataclass
class Place:
    """A gateway with an operator's client OPS, which has an API key, an access token and a certificate."""

    folder: Path
    party: Party
    gateway: Gateway
    database_url: str
    key: str
    token: str

    @asynccontextmanager
    async def caller(self, *names: x509.GeneralName, common_name: str = "intruder") -> AsyncIterator[Caller]:
        """A caller whose certificate has these names."""
        shown = sign(self.folder, common_name, self.party.authority, names)
        options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.enable_http_proxy", 0)]
        context, trusted = http_context(self.party, shown), grpc_credentials(self.party, shown)
        async with (
            httpx.AsyncClient(verify=context, trust_env=False, timeout=10) as http,
            grpc.aio.secure_channel(self.gateway.grpc_address, trusted, options=options) as channel,
        ):
            yield Caller(self.gateway, http, channel)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("identity")
    authority = sign(folder, "authority")
    server = sign(folder, "server", authority)
    party = Party(authority, server, client=authority, stranger=authority)
    async with AsyncExitStack() as stack:
        keys = await stack.enter_async_context(serving(lambda: web.Response(body=key_set())))
        settings = settings_for(
            f"{sandbox.uri};transport=udp",
            database_url=f"sqlite:///{folder}/store.sqlite3",
            tls_cert_file=server.cert_file,
            tls_key_file=server.key_file,
            tls_client_ca_file=authority.cert_file,
            oidc_issuer=ISSUER,
            oidc_audience=AUDIENCE,
            oidc_jwks_url=keys,
        )
        async with await open_store(settings.database_url) as store:
            _, key = await ClientRegistry(store, contracts=SINK_CONTRACTS, clock=lambda: NOW).add(
                "ops", who="test", client_id=OPS, admin=True
            )
        gateway = await stack.enter_async_context(run_gateway(settings))
        exp = int(time.time()) + 3600
        shown = token(client_id=OPS, exp=exp, scope="device-reachability-status-subscriptions:read")
        yield Place(folder, party, gateway, settings.database_url, key, shown)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises the limits of failed log-ins, which these tests would exceed."""
    monkeypatch.setattr(failures, "FAILURE_BURST", 100_000)
    monkeypatch.setattr(failures, "LOOK_UP_BURST", 100_000)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def presentations(value: str) -> dict[str, str]:
    """The Authorization headers in which a person who has this value may send it."""
    encoded = base64.b64encode(value.encode()).decode()
    return {
        "bare": value,
        "bearer": f"Bearer {value}",
        "basic": basic(OPS, value),
        "basic as user": basic(value, ""),
        "basic twice": basic(value, value),
        "basic of the value": f"Basic {encoded}",
        "names": f"('{value}',)",
        "kind": f"certificate:('{value}',)",
    }


async def good_ones(place: Place, caller: Caller, face: str) -> None:
    """Every kind of credentials of OPS, used correctly, so that each is remembered."""
    assert await caller.call(face, "") == "good"
    shown = [f"Bearer {place.key}", basic(OPS, place.key)]
    if face == "camara":
        shown.append(f"Bearer {place.token}")
    for authorization in shown:
        assert await caller.call(face, authorization) == "good"
    if face == "soap":
        assert await caller.soap("", username_token(OPS, place.key)) == "good"


@pytest.mark.parametrize("face", FACES)
async def test_no_kind_of_credentials_passes_for_another(place: Place, face: str) -> None:
    """Credentials are good only as their own kind: while all credentials of OPS are remembered, none of them, nor a
    value derived from them, is accepted in another place of a header, with any certificate."""
    parsed = parse_key(place.key)
    assert parsed is not None
    key_id, secret = parsed
    values = {
        "id": OPS,
        "key": place.key,
        "key id": key_id,
        "secret": secret,
        "password equivalent": password_equivalent(hash_secret(secret)),
        "token": place.token,
        "hash": hashlib.sha256(place.key.encode()).hexdigest(),
    }
    good = {("key", "bearer"), ("key", "basic"), *({("token", "bearer")} if face == "camara" else ())}
    async with place.caller(common_name=OPS) as ops, place.caller() as intruder:
        await good_ones(place, ops, face)
        assert await intruder.call(face, "") == REFUSED[face]
        answers = {
            (name, how): await intruder.call(face, authorization)
            for name, value in values.items()
            for how, authorization in presentations(value).items()
        }
    confined = {("token", "bearer"): {"grpc": "PERMISSION_DENIED", "rest": 403}.get(face, "POL0001 NOT_PERMITTED")}
    expected = dict.fromkeys(answers, REFUSED[face]) | dict.fromkeys(good, "good")
    assert answers == expected | ({} if face == "camara" else confined)


async def test_no_kind_of_credentials_passes_for_a_username_token(place: Place) -> None:
    """A UsernameToken accepts the key as text, or its password equivalent in a digest, and no other credentials of
    OPS."""
    parsed = parse_key(place.key)
    assert parsed is not None
    equivalent = password_equivalent(hash_secret(parsed[1]))

    def digest(password: str) -> str:
        nonce, created = hashlib.sha256(password.encode()).digest(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        made = base64.b64encode(hashlib.sha1(nonce + created.encode() + password.encode()).digest()).decode()
        return username_token(OPS, made, "Digest", base64.b64encode(nonce).decode(), created)

    async with place.caller(common_name=OPS) as ops, place.caller() as intruder:
        await good_ones(place, ops, "soap")
        for header in (username_token(OPS, place.key), digest(equivalent)):
            assert await intruder.soap("", header) == "good"
        for value in (OPS, *parsed, place.token, equivalent, hashlib.sha256(place.key.encode()).hexdigest(), ""):
            assert await intruder.soap("", username_token(OPS, value)) == REFUSED["soap"]
            assert await intruder.soap("", username_token(value, place.key)) == (
                "good" if value == OPS else REFUSED["soap"]
            )
            if value != equivalent:
                assert await intruder.soap("", digest(value)) == REFUSED["soap"]
        assert await intruder.soap("", digest(place.key)) == REFUSED["soap"]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("common_name", "names", "counts"),
    [
        (OPS, (), True),
        ("intruder", (x509.DNSName(OPS),), True),
        ("intruder", (x509.UniformResourceIdentifier(OPS),), True),
        ("intruder", (x509.RFC822Name("ops@example.com"),), False),
        ("intruder", (x509.IPAddress(ipaddress.ip_address("192.0.2.7")),), False),
        ("ops\0.example", (), False),
    ],
)
async def test_names_in_certificates(
    place: Place, face: str, common_name: str, names: Sequence[x509.GeneralName], counts: bool
) -> None:
    """A client's id may be the common name, a DNS name or a URI of a certificate, and no other name, on each face
    alike."""
    async with await open_store(place.database_url) as store:
        registry = ClientRegistry(store, contracts=SINK_CONTRACTS, clock=lambda: NOW)
        for client_id in ("ops@example.com", "192.0.2.7"):
            if await store.client(client_id) is None:
                await registry.add(f"named {client_id}"[:64], who="test", client_id=client_id)
    async with place.caller(*names, common_name=common_name) as caller:
        assert await caller.call(face, "") == ("good" if counts else REFUSED[face])


async def test_two_lists_of_names_are_two(place: Place) -> None:
    """A name that contains a NUL is not taken for the two names around the NUL, which were good a moment ago."""
    async with place.caller(x509.DNSName("second.example"), common_name=OPS) as ops:
        assert await ops.rest("") == "good"
    async with place.caller(common_name=f"{OPS}\0second.example") as intruder:
        assert await intruder.rest("") == REFUSED["rest"]


def encoded(scheme: str, value: bytes) -> str:
    return f"{scheme} {base64.b64encode(value).decode()}"


BLANK = st.text(alphabet=" ", max_size=2)
PRINTABLE = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)
AUTHORIZATIONS = (
    st.one_of(
        st.builds(lambda header, claims: f"Bearer {signed(header, claims)}", HEADERS, JSON),
        st.builds(
            "{}{} {}".format, BLANK, st.sampled_from(["Bearer", "bearer", "Basic", "Digest", "tsk_", ""]), PRINTABLE
        ),
        st.builds(encoded, st.sampled_from(["Basic", "Bearer"]), st.binary(max_size=60)),
        st.builds("Basic {}".format, st.text(max_size=20).map(lambda text: base64.b64encode(text.encode()).decode())),
        st.builds("Bearer tsk_{}_{}".format, PRINTABLE, PRINTABLE),
        st.integers(1, 5000).map(lambda size: "Bearer " + "x" * size),
        st.sampled_from([f"Bearer {each}" for each in MALFORMED.values()]),
    )
    .map(str.strip)
    .filter(bool)
)
"""What a stranger may put into the header; gRPC's has printable ASCII."""


@hypothesis.given(AUTHORIZATIONS)
@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
async def test_malformed_credentials_are_refused_on_each_face(place: Place, authorization: str) -> None:
    """For any malformed header each face answers UNAUTHENTICATED, and counts the failure."""
    counts = place.gateway.use_cases.auth.failures.counts
    async with place.caller() as caller:
        before = sum(counts.values())
        for face in FACES:
            assert await caller.call(face, authorization) == REFUSED[face]
        assert sum(counts.values()) == before + len(FACES)


@pytest.mark.parametrize(
    "created", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "x", "2026-13-01", "\u0661"]
)
async def test_malformed_username_tokens_are_refused(place: Place, created: str) -> None:
    """A Created that is not a time, or not in our calendar, is refused like any bad token."""
    counts = place.gateway.use_cases.auth.failures.counts
    async with place.caller() as caller:
        before = counts["malformed"]
        assert await caller.soap("", username_token(OPS, place.key, "", "", created)) == REFUSED["soap"]
        assert counts["malformed"] == before + 1


async def test_failures_are_measured(place: Place) -> None:
    """Failed credentials are counted by reason in the metrics."""
    async with place.caller() as caller, place.caller(common_name=OPS) as ops:
        assert await caller.call("rest", "Bearer 1") == REFUSED["rest"]
        text = (await ops.http.get(f"{ops.url}/metrics")).text
    assert 'terminal_status_authentication_failures_total{reason="malformed"}' in text


async def test_failures_are_logged_within_bounds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log lines about failures are few and short, for every peer and cause; they contain no control characters."""
    monkeypatch.setattr(failures, "LOG_EVERY_S", 1e9)
    monkeypatch.setattr(place.gateway.use_cases.auth.failures, "_lines", 3.0)
    with structlog.testing.capture_logs() as logs:
        async with place.caller() as caller:
            for number in range(6):
                key = f"tsk_\x1b[2J\n{number}{'x' * 100}_secret"
                assert await caller.call("rest", basic("a", key)) == REFUSED["rest"]
            monkeypatch.setattr(place.gateway.use_cases.auth.failures, "_lines", 1.0)
            assert await caller.call("rest", basic("a", "tsk_last_one")) == REFUSED["rest"]
    assert [line["event"] for line in logs] == ["authentication_failed"] * 4
    assert all(line["shown"].isprintable() and len(line["shown"]) <= 64 for line in logs)
    assert (logs[-1]["shown"], logs[-1]["left_out"]) == ("last", 3)
