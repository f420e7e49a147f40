"""Access tokens of a played identity provider, well formed and malformed, and the keys that sign them."""

import base64
import json
import math
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from hypothesis import strategies as st
from joserfc import jwt
from joserfc._rfc7515.registry import default_registry
from joserfc.jwk import ECKey, OKPKey, RSAKey

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ISSUER, AUDIENCE = "https://idp.example", "terminal-status"
RSA, EC, OKP = RSAKey.generate_key(2048), ECKey.generate_key("P-256"), OKPKey.generate_key("Ed25519")
KEYS: dict[str, tuple[str, Any]] = {"RS256": ("r", RSA), "ES256": ("e", EC), "EdDSA": ("o", OKP)}


def key_set(*wanted: str) -> bytes:
    keys = [key.as_dict(private=False, kid=kid) for kid, key in KEYS.values() if not wanted or kid in wanted]
    return json.dumps({"keys": [*keys, {"kty": "ML-DSA", "kid": "x"}, {"kty": "EC"}, 1]}).encode()


def token(algorithm: str = "ES256", key: Any = None, header: Any = None, **claims: Any) -> str:
    kid, own_key = KEYS.get(algorithm, ("e", EC))
    body = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "client_id": "billing",
        "exp": int(START.timestamp()) + 60,
        "scope": "presence read",
        **claims,
    }
    body = {name: value for name, value in body.items() if value is not None}
    used = {"alg": algorithm, "kid": kid, **(header or {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EdDSA
        return jwt.encode(
            {name: value for name, value in used.items() if value is not None},
            body,
            key or own_key,
            algorithms=[algorithm],
        )


def part(value: object) -> str:
    """One part of a token: bytes unchanged, anything else as JSON."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signed(header: object, claims: object) -> str:
    """A token of any parts, with a valid signature."""
    content = f"{part(header)}.{part(claims)}"
    return f"{content}.{part(default_registry.algorithms['ES256'].sign(content.encode(), EC))}"


HEADER = {"alg": "ES256", "kid": "e"}
CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "client_id": "nobody", "exp": int(START.timestamp()) + 60}
ODD_HEADER: dict[str, list[Any]] = {
    "typ": [1, None, True, 1.5, [], ["JWT"], {}],
    "alg": [1, None, [], ["ES256"], {"ES256": 1}],
    "kid": [1, [], {}, {"e": "e"}, ["e"], True],
    "crit": [1, None, [[]], [{}], [1.5], ["b64"], {}],
}
ODD_CLAIMS: dict[str, list[Any]] = {
    "exp": [True, "1", [], 10**300, 1e308, math.nan],
    "aud": [1, {}, [[AUDIENCE]], {AUDIENCE: 1}],
    "client_id": [1, None, [], {}, True],
}
ODD: list[Any] = [1, None, [], "x", [HEADER]]
MALFORMED = {
    **{f"{name} {odd}": signed({**HEADER, name: odd}, CLAIMS) for name, each in ODD_HEADER.items() for odd in each},
    **{f"{name} {odd}": signed(HEADER, {**CLAIMS, name: odd}) for name, each in ODD_CLAIMS.items() for odd in each},
    **{f"header {odd}": signed(odd, CLAIMS) for odd in ODD},
    **{f"claims {odd}": signed(HEADER, odd) for odd in ODD},
    "no JSON": signed(b"\xff{", CLAIMS),
    "half a pair": signed(b'{"alg":"ES256","kid":"\\ud800"}', CLAIMS),
    "nested header": signed(b'{"a":' * 80, CLAIMS),
    "nested claims": signed(HEADER, b"[" * 4000),
    "long number": signed(HEADER, b'{"exp":' + b"9" * 5000 + b"}"),
    "huge header": signed({**HEADER, "x": "x" * 5000}, CLAIMS),
    "parts": "a.b.c.d.e.f",
    "dots": "." * 5000,
}
"""Tokens that no provider makes."""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["ES256", "e"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
HEADERS = st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "x5c", "zip"]), JSON, max_size=4)


@asynccontextmanager
async def serving(answer: Callable[[], Awaitable[web.StreamResponse] | web.StreamResponse]) -> AsyncIterator[str]:
    async def handle(_: web.Request) -> web.StreamResponse:
        result = answer()
        return result if isinstance(result, web.StreamResponse) else await result

    application = web.Application()
    application.router.add_get("/keys", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    finally:
        await runner.cleanup()
