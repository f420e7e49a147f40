"""Access tokens of an identity provider (RFC 9068): which tokens are accepted, and how the provider's keys are
fetched."""

import asyncio
import base64
import contextlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import hypothesis
import pytest
from aiohttp import web
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey

from app.auth import oidc
from app.auth.credentials import Credentials
from app.auth.oidc import AccessTokens, read_keys
from app.domain.errors import (
    NotPermitted,
    Unauthenticated,
)
from app.egress import jwks
from tests.support.access_tokens import (
    AUDIENCE,
    CLAIMS,
    EC,
    HEADER,
    HEADERS,
    ISSUER,
    JSON,
    KEYS,
    MALFORMED,
    START,
    key_set,
    serving,
    signed,
    token,
)
from tests.support.authentication import Clock, World, bearer


@dataclass
class Provider:
    """An identity provider's keys; counts how often they are fetched."""

    clock: Clock
    document: bytes = field(default_factory=key_set)
    away: bool = False
    fetched: int = 0

    async def fetch(self) -> bytes:
        self.fetched += 1
        if self.away:
            raise OSError("connection refused")
        return self.document

    def tokens(self, scope: str = "", device_claim: str = "") -> AccessTokens:
        return AccessTokens(
            self.fetch,
            issuer=ISSUER,
            audience=AUDIENCE,
            scope=scope,
            client_claim="client_id",
            device_claim=device_claim,
            clock=self.clock,
            monotonic=self.clock.monotonic,
        )


@pytest.mark.parametrize("algorithm", [*KEYS])
async def test_access_tokens_name_their_client(algorithm: str) -> None:
    """A token of the issuer, for this audience, names a client and its expiry; each allowed algorithm is accepted."""
    provider = Provider(Clock())
    named = await provider.tokens("read").verify(token(algorithm))
    assert named == ("billing", START + timedelta(seconds=60))
    assert provider.fetched == 1


def unsigned() -> str:
    parts = [{"alg": "none", "kid": "e"}, {"iss": ISSUER, "aud": AUDIENCE, "client_id": "billing", "exp": 1 << 40}]
    return ".".join([base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]) + "."


def confused() -> str:
    """A token signed with the public key as if it were a shared secret."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shared = OctKey.import_key(base64.b64encode(EC.as_pem(private=False)))
    return token("HS256", shared, {"kid": "e"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: "",
        lambda: "a.b.c",
        lambda: "é.é.é",
        lambda: "x" * 8000,
        unsigned,
        confused,
        lambda: token(key=ECKey.generate_key("P-256")),
        lambda: token(iss="https://other.example"),
        lambda: token(iss=None),
        lambda: token(aud="other"),
        lambda: token(aud=None),
        lambda: token(exp=None),
        lambda: token(exp="soon"),
        lambda: token(exp=int(START.timestamp()) - 31),
        lambda: token(nbf=int(START.timestamp()) + 31),
        lambda: token(client_id=None),
        lambda: token(client_id=["billing"]),
        lambda: token(phone_number=15551234567),
        lambda: token(phone_number=["+15551234567"]),
        lambda: token(phone_number=" "),
        lambda: token(phone_number=""),
        lambda: token(header={"kid": "nobody's"}),
        lambda: token(header={"kid": None}),
        lambda: token(header={"typ": "logout+jwt"}),
        lambda: token("RS256", header={"kid": "e"}),
        lambda: token()[:-4] + "AAAA",
    ],
)
async def test_other_tokens_are_refused(make: Callable[[], str]) -> None:
    """A token with a wrong algorithm, key, issuer, audience, time, device or form is refused; the message does not say
    which."""
    with pytest.raises(Unauthenticated) as caught:
        await Provider(Clock()).tokens("read", "phone_number").verify(make())
    assert str(caught.value) == "The access token is not accepted."


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_tokens_are_refused(name: str) -> None:
    """A token with malformed parts is refused like any bad token."""
    with pytest.raises(Unauthenticated):
        await Provider(Clock()).tokens().verify(MALFORMED[name])


NAMES = st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "jti", "client_id", "scope", "scp", "phone_number"])


@hypothesis.given(
    header=HEADERS.map(lambda some: {**HEADER, **some}) | JSON,
    claims=st.dictionaries(NAMES, JSON, max_size=4).map(lambda some: {**CLAIMS, **some}) | JSON,
)
def test_any_token_is_taken_or_refused(header: object, claims: object) -> None:
    """A token with a valid signature over any JSON names a client or raises Unauthenticated."""
    tokens = Provider(Clock()).tokens("", "phone_number")
    shown = signed(header, claims)
    try:
        client_id, _ = asyncio.run(tokens.verify(shown))
        tokens.confined(shown)
    except Unauthenticated:
        return
    assert isinstance(claims, dict)
    assert client_id == claims["client_id"]


@hypothesis.given(st.lists(st.dictionaries(st.sampled_from(["kty", "kid", "n", "e", "x", "y", "crv", "use"]), JSON)))
def test_any_key_set_is_read_or_none(entries: list[dict[str, Any]]) -> None:
    """Any JSON from the identity provider is read as keys or raises ValueError; good keys beside bad ones are read."""
    for kty in ("RSA", "EC", "OKP"):
        odd = [{**entry, "kty": kty} for entry in entries]
        with contextlib.suppress(ValueError):
            read_keys(json.dumps({"keys": odd}).encode())
        assert "e" in read_keys(json.dumps({"keys": [EC.as_dict(private=False, kid="e"), *odd[:99]]}).encode())
    with pytest.raises(ValueError, match="nested"):
        read_keys(b"[" * 100_000)


async def test_tokens_in_other_words() -> None:
    """A list of audiences, `scp` as a list, `at+jwt`, and a clock that is slightly off are accepted."""
    tokens = Provider(Clock()).tokens("read")
    shown = token(
        aud=["x", AUDIENCE], scope=None, scp=["read"], header={"typ": "at+jwt"}, exp=int(START.timestamp()) - 5
    )
    assert (await tokens.verify(shown))[0] == "billing"


async def test_keys_of_the_provider_are_fetched_when_needed() -> None:
    """Keys are fetched once for many tokens, again for a new key and after REFRESH_S, but not for each unknown key."""
    clock = Clock()
    provider = Provider(clock, key_set("r"))
    tokens = provider.tokens()
    await tokens.verify(token("RS256"))
    await tokens.verify(token("RS256"))
    assert provider.fetched == 1
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await tokens.verify(token())
    assert provider.fetched == 1
    provider.document = key_set()
    clock.pass_s(oidc.RETRY_S)
    await tokens.verify(token())
    assert provider.fetched == 2
    clock.pass_s(oidc.REFRESH_S)
    with pytest.raises(Unauthenticated):
        await tokens.verify(token())  # the token has expired
    assert provider.fetched == 3


async def test_a_provider_that_is_away() -> None:
    """Without keys, callers are asked to try again; with old keys, tokens are still accepted for STALE_S."""
    clock = Clock()
    provider = Provider(clock, away=True)
    tokens = provider.tokens()
    with pytest.raises(Unauthenticated) as caught:
        await tokens.verify(token())
    assert caught.value.retry_after_s == oidc.RETRY_S
    provider.away = False
    clock.pass_s(oidc.RETRY_S)
    await tokens.verify(token())
    provider.away = True
    clock.pass_s(oidc.STALE_S - 1)
    await tokens.verify(token(exp=int(clock.now.timestamp()) + 60))
    clock.pass_s(1)
    with pytest.raises(Unauthenticated):
        await tokens.verify(token(exp=int(clock.now.timestamp()) + 60))


def test_weak_and_foreign_keys_are_left_out() -> None:
    """Short RSA keys, shared secrets and encryption keys are ignored; a key set without a usable key is an error."""
    short = {"kty": "RSA", "kid": "w", "n": base64.urlsafe_b64encode(b"\xff" * 128).decode().rstrip("="), "e": "AQAB"}
    others = [short, {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}, EC.as_dict(private=False, kid="enc", use="enc")]
    for document in (b"", b"[]", b"{}", b'{"keys": 1}', b"\xff", json.dumps({"keys": others}).encode()):
        with pytest.raises(ValueError):  # noqa: PT011  # of whatever kind
            read_keys(document)
    assert set(read_keys(key_set())) == {"r", "e", "o"}


async def test_a_token_authenticates_a_client(world: World) -> None:
    """A token's claim is a client's id; a disabled client's token and an expired token are refused."""
    provider = Provider(world.clock)
    world.auth = world.authenticator(tokens=provider.tokens())
    await world.refused(Credentials())  # with OIDC configured, credentials are required even without clients
    client, _ = await world.add(client_id="billing")
    world.auth.forget()
    assert await world.auth.authenticate(bearer(token())) == client
    assert world.auth.known(f"Bearer {token(client_id='nobody')}") is None
    await world.refused(bearer(token(client_id="nobody")))
    world.clock.pass_s(60 + oidc.LEEWAY_S)
    await world.refused(bearer(token()))


@pytest.mark.parametrize(
    ("scope", "claims", "confined"),
    [
        ("", {}, False),
        ("", {"phone_number": "+15551234567"}, True),
        ("", {"scope": "openid device-reachability-status:read"}, True),
        ("read", {}, False),
        ("read", {"scope": "read device-reachability-status:read"}, False),
        ("read", {"scope": "device-reachability-status:read"}, True),
        ("read", {"scope": None}, True),
        ("read", {"scope": {"read": 1}}, True),
        ("read", {"phone_number": "+15551234567"}, True),
    ],
)
async def test_confined_tokens(world: World, scope: str, claims: dict[str, Any], confined: bool) -> None:
    """A token that names a device, lacks the required scope, or has a CAMARA scope where none is expected, is accepted
    only by callers that check the grant themselves. This holds for remembered tokens too, and in either order of the
    two kinds of callers."""
    client, _ = await world.add(client_id="billing")
    shown = bearer(token(**claims))
    for order in ((False, True, False), (True, False, True)):
        world.auth = world.authenticator(tokens=Provider(world.clock).tokens(scope, "phone_number"))
        for looks in order:
            if confined and not looks:
                assert world.auth.known(shown.authorization) is None
                with pytest.raises(NotPermitted):
                    await world.auth.authenticate(shown)
                assert world.auth.known(shown.authorization) is None
            else:
                assert await world.auth.authenticate(shown, confined=looks) == client
                assert world.auth.known(shown.authorization, confined=looks) == client


async def test_fetching_keys() -> None:
    """The provider's document is fetched unchanged; errors, redirects and endless answers raise OSError."""
    async with serving(lambda: web.Response(body=key_set())) as url:
        assert await jwks.fetch_keys(url) == key_set()
    for answer in (
        web.Response(status=500),
        web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
        web.Response(body=b"x" * (jwks.MAX_BYTES + 1)),
    ):
        async with serving(lambda answer=answer: answer) as url:  # type: ignore[misc]
            with pytest.raises(OSError, match="keys"):
                await jwks.fetch_keys(url)
    with pytest.raises(OSError, match="cannot be fetched"):
        await jwks.fetch_keys(url)
