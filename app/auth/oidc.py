"""Access tokens of an OpenID provider (RFC 7519, RFC 9068): what they must say, and the provider's keys (RFC 7517).

Invariants: only EdDSA, ES256 and RS256 are read, never `none` or a shared secret, and RSA keys of 2048 bits or more;
issuer, audience and expiry are checked, with LEEWAY_S for clocks that differ. A token that names a device, lacks the
operator's scope, or (where the operator names none) has a scope of CAMARA's, is confined to CAMARA's APIs. Keys are
fetched when the first token comes, again after REFRESH_S, and for a key id that is not among them, but at most once
each RETRY_S, one fetch at a time. A provider that is away leaves the last keys in use for STALE_S.

Deliberately absent: how keys are fetched (`jwks.py`), remembering tokens (`authenticator.py`), introspection, and
revocation: a token is good until it expires, and its client can be disabled here.
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
"""Keys of the provider that are looked at; further ones are left out."""

MIN_RSA_BITS = 2048

CAMARA_SCOPES = ("device-reachability-status",)
"""What CAMARA's scopes begin with. Its APIs look at them themselves, operation by operation."""

_UNREADABLE = (JoseError, ValueError, RecursionError)
"""What reading a token raises. Python's JSON has no bound on nesting but the stack."""

_KINDS = ("EC", "OKP", "RSA")
_log = structlog.get_logger(__name__)
_Key = RSAKey | ECKey | OKPKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an access token grants beyond naming its client."""

    scopes: frozenset[str]
    device: str
    """The device that it is about; empty for a token without one (CAMARA: two-legged)."""


class _Algorithms(jws.JWSRegistry):
    """Ours and no others. The library's own warns of EdDSA at each token, since RFC 9864 calls it Ed25519."""

    def get_alg(self, name: str) -> Any:
        if name not in ALGORITHMS:
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]


class AccessTokens:
    """Verifies access tokens. `fetch_keys` returns the provider's JWK set as it came, within a time limit of its own,
    and raises OSError where it cannot. `client_claim` is the claim that names the client's id; `scope` (where not
    empty) must be among the token's `scope` (or `scp`), but for CAMARA's APIs, which look for their own. `device_claim`
    is the claim that names the device of a token for CAMARA's APIs; empty for none."""

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
        """The client id that the token names, and when the token ends. Raises Unauthenticated, with `retry_after_s`
        where it is the provider that cannot be asked."""
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
        """What a token grants that `verify` took a moment ago; nothing is checked again. Raises Unauthenticated for
        what is no token."""
        try:
            claims = json.loads(jws.extract_compact(token.encode()).payload)
        except _UNREADABLE:
            raise _refused() from None
        return Grant(scopes=frozenset(_scopes(claims)), device=self._device(claims))

    def confined(self, token: str) -> str:
        """Why a token that `verify` took a moment ago serves CAMARA's APIs only; "" for one that serves everywhere.
        Raises Unauthenticated for what is no token."""
        grant = self.grant(token)
        if grant.device:
            return "The access token is about one device, and serves CAMARA's APIs only."
        if self._scope and self._scope not in grant.scopes:
            return f"The access token lacks the scope {self._scope}."
        if not self._scope and any(scope.startswith(CAMARA_SCOPES) for scope in grant.scopes):
            return "The access token has scopes of CAMARA's, and serves its APIs only."
        return ""

    def _device(self, claims: Mapping[str, Any]) -> str:
        """The device that a token names, "" for none. Raises Unauthenticated where the claim is there and no text: it
        would count as a token for every device."""
        if not self._device_claim or self._device_claim not in claims:
            return ""
        device = claims[self._device_claim]
        if not isinstance(device, str) or not device.strip():
            raise _refused()
        return device

    async def _key(self, kid: object) -> _Key:
        """The provider's key of that id; the only one where the token names none."""
        now = self._monotonic()
        if now >= self._fetched_at + REFRESH_S or self._find(kid) is None:
            async with self._lock:
                stale = self._monotonic() >= self._fetched_at + REFRESH_S or self._find(kid) is None
                if stale and self._monotonic() >= self._tried_at + RETRY_S:
                    await self._fetch()
        if self._monotonic() >= self._fetched_at + STALE_S:
            raise Unauthenticated(
                "Access tokens cannot be checked now: the identity provider's keys are not to be had.",
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
    """The header of a token, of which nothing is checked but its form. Raises Unauthenticated."""
    try:
        header = jws.extract_compact(token.encode()).headers()
    except _UNREADABLE:
        raise _malformed() from None
    # `crit` names what must be understood (RFC 7515 section 4.1.11); nothing of it is here, and joserfc fails on
    # a `crit` that is no list of texts.
    if not isinstance(header, dict) or not isinstance(header.get("typ", ""), str) or "crit" in header:
        raise _malformed()
    return header


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    scopes = claims.get("scope", claims.get("scp", ""))
    if isinstance(scopes, list):
        return [scope for scope in scopes if isinstance(scope, str)]
    return scopes.split() if isinstance(scopes, str) else []


def read_keys(document: bytes) -> dict[str, _Key]:
    """The public keys of a JWK set that can check signatures, by key id. Raises ValueError for what is none, or has
    none of them."""
    try:
        data: Any = json.loads(document)
    except RecursionError:
        raise ValueError("the JWK set is nested too deeply") from None
    entries = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise ValueError("no JWK set")
    keys: dict[str, _Key] = {}
    for entry in entries[:MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") not in _KINDS:
            continue
        if entry["kty"] == "RSA" and len(str(entry.get("n", ""))) < MIN_RSA_BITS / 6:  # the library would warn of it
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
