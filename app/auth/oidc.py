"""Verifies access tokens of an OpenID provider (RFC 7519, RFC 9068) with the provider's keys (RFC 7517).

Invariants: only EdDSA, ES256 and RS256 are accepted, never `none` or a shared secret, and RSA keys from 2048 bits.
Issuer, audience and expiry are checked, with LEEWAY_S for different clocks. A token is confined to CAMARA's APIs if it
names a device, lacks the operator's scope, or (if the operator requires no scope) has one of CAMARA's scopes. Keys are
fetched for the first token, after REFRESH_S, and for an unknown key id, but at most once every RETRY_S. While the
provider is away, the last keys are used for STALE_S.

Deliberately absent: introspection and revocation. A token is valid until it expires; its client can be disabled here.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from joserfc import jws, jwt
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from app.auth.failures import MALFORMED, unauthenticated
from app.domain.errors import Unauthenticated

ALGORITHMS = ("ES256", "EdDSA", "Ed25519", "RS256")
LEEWAY_S = 30
REFRESH_S = 600.0
RETRY_S = 30.0
STALE_S = 86_400.0
MAX_KEYS = 100
"""How many keys of the provider are read; further ones are ignored."""

MIN_RSA_BITS = 2048

CAMARA_SCOPES = ("device-reachability-status",)
"""Prefixes of CAMARA's scopes. CAMARA's face checks them for each operation."""

_UNREADABLE = (JoseError, ValueError, RecursionError)
"""What reading a token may raise. RecursionError: only the stack limits nesting in Python's JSON."""

_KINDS = ("EC", "OKP", "RSA")
_log = structlog.get_logger(__name__)
_Key = RSAKey | ECKey | OKPKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an access token grants to its client."""

    scopes: frozenset[str]
    device: str
    """The device for which the token was issued; empty for a token without a device (CAMARA: two-legged)."""


class _Algorithms(jws.JWSRegistry):
    """Accepts ALGORITHMS only. The library's own registry would warn for each token that RFC 9864 renames EdDSA to
    Ed25519."""

    def get_alg(self, name: str) -> Any:
        if name not in ALGORITHMS:
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]


class AccessTokens:
    """Verifies access tokens.

    `fetch_keys` returns the provider's JWK set within a time limit of its own, or raises OSError. `client_claim` names
    the claim with the client's id. `scope`, if not empty, must be in the token's `scope` (or `scp`); CAMARA's face
    checks scopes of its own. `device_claim` names the claim with the device of a token for CAMARA's APIs; empty: not
    read.
    """

    def __init__(
        self,
        fetch_keys: Callable[[], Awaitable[bytes]],
        *,
        issuer: str,
        audience: str,
        scope: str,
        client_claim: str,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float],
        device_claim: str = "",
    ) -> None:
        self._fetch_keys = fetch_keys
        self._scope = scope
        self._device_claim = device_claim
        self._client_claim = client_claim
        self._clock = clock
        self._monotonic = monotonic
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(clock().timestamp()),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
        )
        self._keys: dict[str, _Key] = {}
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._lock = asyncio.Lock()

    async def verify(self, token: str) -> tuple[str, datetime]:
        """The client id in the token, and when the token expires. Raises Unauthenticated, with `retry_after_s` if the
        provider's keys cannot be fetched."""
        header = _header(token)
        if header.get("alg") not in ALGORITHMS or header.get("typ", "JWT").lower() not in ("jwt", "at+jwt"):
            raise _refused()
        key = await self._key(header.get("kid"))
        try:
            claims = jwt.decode(token, key, registry=_Algorithms()).claims
            self._claims.validate(claims)
        except _UNREADABLE:
            raise _refused() from None
        client_id = claims.get(self._client_claim)
        if not isinstance(client_id, str) or not client_id:
            raise _refused()
        self._device(claims)
        try:
            return client_id, datetime.fromtimestamp(claims["exp"], UTC)
        except (OverflowError, ValueError, OSError):
            raise _refused(client_id) from None

    def grant(self, token: str) -> Grant:
        """What a token grants. `verify` must have just accepted the token; nothing is checked again. Raises
        Unauthenticated for a malformed token."""
        try:
            claims = json.loads(jws.extract_compact(token.encode()).payload)
        except _UNREADABLE:
            raise _refused() from None
        return Grant(scopes=frozenset(_scopes(claims)), device=self._device(claims))

    def confined(self, token: str) -> str:
        """Why a token is for CAMARA's APIs only; "" if it is valid for all faces. `verify` must have just accepted the
        token. Raises Unauthenticated for a malformed token."""
        grant = self.grant(token)
        if grant.device:
            return "The access token is for one device, and valid for CAMARA's APIs only."
        if self._scope and self._scope not in grant.scopes:
            return f"The access token lacks the scope {self._scope}."
        if not self._scope and any(scope.startswith(CAMARA_SCOPES) for scope in grant.scopes):
            return "The access token has scopes of CAMARA, and is valid for CAMARA's APIs only."
        return ""

    def _device(self, claims: Mapping[str, Any]) -> str:
        """The device in a token; "" if it names none. Raises Unauthenticated if the claim is not a text, because the
        token would then be valid for every device."""
        if not self._device_claim or self._device_claim not in claims:
            return ""
        device = claims[self._device_claim]
        if not isinstance(device, str) or not device.strip():
            raise _refused()
        return device

    async def _key(self, kid: object) -> _Key:
        """The provider's key of that id; without an id, the provider's only key."""
        now = self._monotonic()
        if now >= self._fetched_at + REFRESH_S or self._find(kid) is None:
            async with self._lock:
                stale = self._monotonic() >= self._fetched_at + REFRESH_S or self._find(kid) is None
                if stale and self._monotonic() >= self._tried_at + RETRY_S:
                    await self._fetch()
        if self._monotonic() >= self._fetched_at + STALE_S:
            raise Unauthenticated(
                "Access tokens cannot be checked now: the identity provider's keys cannot be fetched.",
                retry_after_s=RETRY_S,
            )
        if (key := self._find(kid)) is None:
            raise _refused()
        return key

    def _find(self, kid: object) -> _Key | None:
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid) if isinstance(kid, str) else None

    async def _fetch(self) -> None:
        self._tried_at = self._monotonic()
        try:
            self._keys = read_keys(await self._fetch_keys())
        except (OSError, ValueError) as error:
            _log.error("identity_provider_keys_unavailable", why=str(error))
        else:
            self._fetched_at = self._monotonic()


def _header(token: str) -> Mapping[str, Any]:
    """The header of a token; only its form is checked. Raises Unauthenticated."""
    try:
        header = jws.extract_compact(token.encode()).headers()
    except _UNREADABLE:
        raise _malformed() from None
    # `crit` lists extensions that must be understood (RFC 7515 section 4.1.11). We have none, and joserfc fails if
    # `crit` is not a list of texts.
    if not isinstance(header, dict) or not isinstance(header.get("typ", ""), str) or "crit" in header:
        raise _malformed()
    return header


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    scopes = claims.get("scope", claims.get("scp", ""))
    if isinstance(scopes, list):
        return [scope for scope in scopes if isinstance(scope, str)]
    return scopes.split() if isinstance(scopes, str) else []


def read_keys(document: bytes) -> dict[str, _Key]:
    """The keys of a JWK set that can verify signatures, by key id. Raises ValueError if there are none, or the document
    is not a JWK set."""
    try:
        data: Any = json.loads(document)
    except RecursionError:
        raise ValueError("the JWK set is nested too deeply") from None
    entries = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise ValueError("the document is not a JWK set")
    keys: dict[str, _Key] = {}
    for entry in entries[:MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") not in _KINDS:
            continue
        if entry["kty"] == "RSA" and len(str(entry.get("n", ""))) < MIN_RSA_BITS / 6:  # the library would warn about it
            continue
        try:
            key = JWKRegistry.import_key(entry)
            weak = isinstance(key, RSAKey) and key.public_key.key_size < MIN_RSA_BITS
        except Exception:  # noqa: S112  # RFC 7517 section 5: what is not understood is ignored
            continue
        if isinstance(key, RSAKey | ECKey | OKPKey) and not weak:
            keys[str(entry.get("kid", key.thumbprint()))] = key
    if not keys:
        raise ValueError("no usable key in the JWK set")
    return keys


def _refused(client_id: str = "") -> Unauthenticated:
    return unauthenticated("The access token is not accepted.", shown=client_id)


def _malformed() -> Unauthenticated:
    return unauthenticated("The access token is not accepted.", reason=MALFORMED)
