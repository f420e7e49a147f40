"""Finds the `Client` to which credentials belong, for every face.

Three kinds are accepted: an API key `tsk_KEYID_SECRET` (as bearer token, or with the client's id by HTTP Basic), an
access token of an OpenID provider (`oidc.py`), and a client certificate that TLS has verified, with the client's id.

Invariants: no secret is kept: the store has the SHA-256 of secrets (256 random bits, which need no slow hash), and the
cache the SHA-256 of whole headers. Comparisons take constant time. No message or log line contains part of a secret, or
says which part was wrong. Credentials of one kind are never accepted as another kind.
A result is remembered for CACHE_S, during which a change by another process has no effect, and for STALE_S while the
store is away. Failures are limited per peer, and look-ups of unknown credentials too: wrong keys cost the store little,
and a peer's failures never block credentials that were accepted before.
A token for CAMARA's APIs only is accepted if the caller of `authenticate` says that it checks the token's grant.

Deliberately absent: what a client may do (`domain/policy.py`, `core/`). For WS-Security's digest, the face compares:
see `authenticate_with`.
"""

import base64
import binascii
import hashlib
import hmac
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import structlog

from app.auth.credentials import (
    KEY_PREFIX,
    MAX_NAMES,
    Credentials,
    hash_secret,
    parse_key,
    password_equivalent,
)
from app.auth.failures import ABSENT, MALFORMED, REASON, REFUSED, SHOWN, Failures, unauthenticated
from app.auth.proxies import TrustedProxies
from app.domain.bounded import BoundedDict
from app.domain.errors import NotPermitted, RateLimited, StoreUnavailable, Unauthenticated
from app.domain.records import ANONYMOUS, MAX_ID, Client
from app.ports.store import Store
from app.settings.kinds import is_loopback

MAX_AUTHORIZATION = 8192
"""Longest Authorization header that is read, in characters; access tokens are long."""

CACHE_S = 10.0
"""How long the result of a look-up is used, for accepted and refused credentials."""

STALE_S = 300.0
"""How long accepted credentials remain accepted while the store is away."""

MAX_CACHED = 10_000
"""How many credentials are remembered; forgotten ones cost a look-up."""

_HEADER, _CERTIFICATE = b"header:", b"certificate:"

_log = structlog.get_logger(__name__)


class OpenToAll(Exception):
    """The gateway would serve other machines without credentials. The message says what to do."""


class TokenVerifier(Protocol):
    """Verifies access tokens (`oidc.AccessTokens`)."""

    async def verify(self, token: str) -> tuple[str, datetime]:
        """The client id in a valid token, and when the token expires. Raises Unauthenticated."""

    def confined(self, token: str) -> str:
        """Why a verified token is accepted by CAMARA's APIs only; "" if all faces accept it."""


@dataclass(slots=True)
class _Known:
    """Accepted credentials. After `until` they stay known, and are looked up again."""

    client: Client
    until: float
    ends: float
    """When the credentials expire."""
    confirmed_at: float
    confined: str


@dataclass(slots=True)
class _Keys:
    """A client's password equivalents with their expiry, as last read."""

    client: Client
    until: float
    passwords: list[tuple[str, datetime | None]]


_Found = tuple[Client, datetime | None, str]
"""A client, when its credentials expire, and why only CAMARA accepts them ("": all faces do)."""


def listens_on_loopback(listen: str) -> bool:
    """Whether only this machine can reach HOST:PORT."""
    return is_loopback(listen.rpartition(":")[0])


class Authenticator:
    """Authenticates callers. One instance per process, used from one event loop.

    `open_allowed`: callers need no credentials while no client is configured. Only for loopback addresses, or behind a
    proxy that authenticates. Once a client was seen, credentials are needed until the process ends: a lost database, or
    deleting the last client, does not open the gateway. `open_is_admin` makes such callers operators, for
    `terminal-status demo` only. `tokens` verifies access tokens; None: they are not accepted. `clock` returns aware
    UTC, `monotonic` seconds. Failures of `proxies` are not limited.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float],
        open_allowed: bool,
        tokens: TokenVerifier | None = None,
        open_is_admin: bool = False,
        proxies: TrustedProxies = TrustedProxies(),  # noqa: B008  # frozen
    ) -> None:
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._open_allowed = open_allowed
        self._tokens = tokens
        self._known = BoundedDict[bytes, _Known](MAX_CACHED)
        self._bad = BoundedDict[bytes, tuple[float, str]](MAX_CACHED)  # when to look up again; the reason
        self._keys = BoundedDict[str, _Keys](MAX_CACHED)  # by client id
        self.failures = Failures(monotonic, proxies)
        self._open = False
        self._open_until = -math.inf
        self.anonymous = Client(
            id=ANONYMOUS, name=ANONYMOUS, created_at=datetime(1970, 1, 1, tzinfo=UTC), admin=open_is_admin
        )
        """The client of every caller while no client is configured."""

    async def start(self, listens: Mapping[str, str], *, closed_is_meant: bool = False) -> bool:
        """Returns whether callers need no credentials now. Without a client, logs which operations are open to whom.

        `listens` has HOST:PORT by the setting's name. `closed_is_meant`: the gateway may start even if it accepts no
        caller. Raises OpenToAll if other machines reach a gateway without a client, and StoreUnavailable.
        """
        self._open = self._open_allowed and not await self.configured()
        if await self._store.clients():
            return False
        exposed = {setting: listen for setting, listen in listens.items() if not listens_on_loopback(listen)}
        reached = " and ".join([f"{setting} ({listen})" for setting, listen in (exposed or listens).items()])
        if exposed and not self._open and not closed_is_meant and self._tokens is None:
            raise OpenToAll(
                f"No client is configured, and other machines can reach {reached}. "
                "Add a client with `terminal-status clients add NAME`, listen on 127.0.0.1, or set TS_ANONYMOUS_ACCESS "
                "to never (every call is refused until there is a client) or anywhere (a proxy in front authenticates)."
            )
        whom = "everybody who reaches" if exposed else "everybody on this machine or behind a proxy on it:"
        what = "every operation, operators' too" if self.anonymous.admin else "every operation but operators'"
        _log.warning(
            "no_client_configured",
            open=what if self._open else "nothing",
            to=f"{whom} {reached}" if self._open else "nobody: every call is refused",
            hint="add a client with `terminal-status clients add NAME`; see TS_ANONYMOUS_ACCESS",
        )
        return self._open

    async def configured(self) -> bool:
        """Whether callers need credentials: a client is configured, or access tokens are accepted. Raises
        StoreUnavailable."""
        if self._tokens is not None:
            return True
        return bool(await self._store.clients())

    def forget(self) -> None:
        """Looks up all credentials again when they are used next: clients or keys have changed."""
        for known in self._known.values():  # kept: look-ups of known credentials are not limited
            known.until = known.confirmed_at = -math.inf
        for keys in self._keys.values():
            keys.until = -math.inf
        self._bad.clear()
        self._open_until = -math.inf

    def known(self, authorization: str, *, confined: bool = False) -> Client | None:
        """The client of this Authorization header, if it is remembered; None: call `authenticate`. `confined` is as in
        `authenticate`."""
        now = self._monotonic()
        if self._open and now < self._open_until:
            return self.anonymous
        if authorization:
            known = self._known.get(_cache_key(_HEADER, authorization))
            if known is not None and now < known.until and (confined or not known.confined):
                return known.client
        return None

    async def expire_time(self, authorization: str) -> datetime | None:
        """When the credentials in this Authorization header expire; None if they do not. Looks them up, since another
        process may have ended those that are remembered. Raises StoreUnavailable, Unauthenticated."""
        try:
            return (await self._by_header(authorization))[1]
        except Unauthenticated as error:
            self.failures.count(error)
            raise

    async def authenticate(self, credentials: Credentials, *, confined: bool = False) -> Client:
        """Returns the client that calls.

        `confined`: also accept access tokens for CAMARA's APIs only. CAMARA's face sets it, and checks the token's
        grant. Raises NotPermitted (such a token at another face), Unauthenticated, RateLimited or StoreUnavailable.
        """
        if client := self.known(credentials.authorization, confined=confined):
            return client
        try:
            client, why_confined = await self._authenticate(credentials)
        except (Unauthenticated, RateLimited) as error:
            self.failures.count(error)
            raise
        if why_confined and not confined:
            raise NotPermitted(why_confined)
        return client

    async def _authenticate(self, shown: Credentials) -> tuple[Client, str]:
        if await self._is_open():
            return self.anonymous, ""
        if shown.authorization:
            key = _cache_key(_HEADER, shown.authorization)
            return await self._remembered(key, shown.peer, lambda: self._by_header(shown.authorization))
        if names := shown.certificate_names:
            key = _cache_key(_CERTIFICATE, repr(names))
            return await self._remembered(key, shown.peer, lambda: self._by_certificate(names))
        raise unauthenticated(
            "Credentials are missing; send an API key as a bearer token (`Authorization: Bearer tsk_…`).", reason=ABSENT
        )

    async def authenticate_with(self, client_id: str, matches: Callable[[str], bool], *, peer: str = "") -> Client:
        """As `authenticate`, for a face that compares the secret itself. `matches` is called with the
        `password_equivalent` of each current key of the client, and must compare in constant time. The keys are
        remembered for CACHE_S."""
        if await self._is_open():
            return self.anonymous
        try:
            keys = await self._keys_of(client_id, peer)
            if keys is None:
                self.failures.add_look_up(peer)
            else:
                for password, ends_at in keys.passwords:
                    if not self._ended(ends_at) and matches(password):
                        return keys.client
            self.failures.check(peer)
            self.failures.add(peer, client_id)
            raise _refused(client_id)
        except (Unauthenticated, RateLimited) as error:
            self.failures.count(error)
            raise

    async def _keys_of(self, client_id: str, peer: str) -> _Keys | None:
        now, known = self._monotonic(), self._keys.get(client_id)
        if known is not None and now < known.until:
            return known
        if known is None:
            self.failures.check_look_up(peer)
        client = await self._store.client(client_id) if _is_id(client_id) else None
        if client is None or client.disabled:
            self._keys.pop(client_id, None)
            return None
        found = [await self._store.key(key_id) for key_id, _ in await self._store.keys(client.id)]
        keys = _Keys(client, now + CACHE_S, [(password_equivalent(one[1]), one[2]) for one in found if one])
        self._keys[client_id] = keys
        return keys

    async def _is_open(self) -> bool:
        if not self._open_allowed:
            return False
        now = self._monotonic()
        if now >= self._open_until:
            try:
                self._open = self._open_allowed = not await self.configured()
            except StoreUnavailable:
                if now >= self._open_until + STALE_S:
                    raise
            else:
                self._open_until = now + CACHE_S
        return self._open

    async def _remembered(self, key: bytes, peer: str, look_up: Callable[[], Awaitable[_Found]]) -> tuple[Client, str]:
        now = self._monotonic()
        known = self._known.get(key)
        bad = self._bad.get(key)
        if known is not None:
            if now < known.until:
                return known.client, known.confined
            if known.confirmed_at > -math.inf:
                known.until = min(now + 1, known.ends)  # meanwhile other callers use the remembered result
        elif bad is not None:
            if now < bad[0]:
                raise _refused("", bad[1])
            self._bad[key] = now + 1, bad[1]
        else:
            self.failures.check_look_up(peer)
        try:
            client, ends_at, confined = await look_up()
        except StoreUnavailable:
            stale_until = -math.inf if known is None else min(known.confirmed_at + STALE_S, known.ends)
            if known is not None and now < stale_until:
                return known.client, known.confined
            self._unsure(key)
            raise
        except Unauthenticated as error:
            if error.retry_after_s is None:
                self._known.pop(key, None)
                if bad is None:
                    self.failures.add_look_up(peer)
                    if known is None:
                        self.failures.check(peer)
                self._bad[key] = self._monotonic() + CACHE_S, error.details.get(REASON, REFUSED)
                self.failures.add(peer, error.details.get(SHOWN, ""))
            else:
                self._unsure(key)
            raise
        lasts_s = math.inf if ends_at is None else (ends_at - self._clock()).total_seconds()
        now = self._monotonic()
        self._bad.pop(key, None)
        self._known[key] = _Known(client, now + min(lasts_s, CACHE_S), now + lasts_s, now, confined)
        return client, confined

    def _unsure(self, key: bytes) -> None:
        """The look-up failed without a result: the next caller looks up again."""
        self._bad.pop(key, None)
        if (known := self._known.get(key)) is not None:
            known.until = -math.inf

    async def _by_header(self, authorization: str) -> _Found:
        scheme, _, value = authorization.partition(" ")
        value = value.strip()
        if len(authorization) <= MAX_AUTHORIZATION:
            if scheme.lower() == "bearer":
                if value.startswith(KEY_PREFIX):
                    return await self._by_key(value)
                if self._tokens is not None:
                    client_id, ends_at = await self._tokens.verify(value)
                    return await self._by_id(client_id), ends_at, self._tokens.confined(value)
            elif scheme.lower() == "basic" and (pair := _basic(value)):
                found = await self._by_key(pair[1])
                if hmac.compare_digest(found[0].id.encode(), pair[0].encode()):
                    return found
                raise _refused("basic")
        raise _refused(scheme if scheme.lower() in ("basic", "bearer") else "", MALFORMED)

    async def _by_key(self, key: str) -> _Found:
        if (parsed := parse_key(key)) is None:
            raise _refused("", MALFORMED)
        key_id, secret = parsed
        found = await self._store.key(key_id) if _is_id(key_id) else None
        expected = found[1] if found else b"\0" * 32
        good = hmac.compare_digest(hash_secret(secret), expected)
        if found is None or not good or found[0].disabled or self._ended(found[2]):
            raise _refused(key_id)
        return found[0], found[2], ""

    async def _by_certificate(self, names: tuple[str, ...]) -> _Found:
        for name in names[:MAX_NAMES]:
            if _is_id(name) and (client := await self._store.client(name)) and not client.disabled:
                return client, None, ""
        raise _refused(names[0])

    async def _by_id(self, client_id: str) -> Client:
        client = await self._store.client(client_id) if _is_id(client_id) else None
        if client is None or client.disabled:
            raise _refused(client_id)
        return client

    def _ended(self, expires_at: datetime | None) -> bool:
        return expires_at is not None and expires_at <= self._clock()


def _refused(shown: str, reason: str = REFUSED) -> Unauthenticated:
    """`shown` is the public part of the credentials, for the log only."""
    return unauthenticated("The credentials are not accepted.", reason=reason, shown=shown)


def _cache_key(kind: bytes, shown: str) -> bytes:
    """The kind is part of the key, so that credentials of one kind are never found as those of another."""
    return hashlib.sha256(kind + shown.encode("utf-8", "surrogatepass")).digest()


def _is_id(text: str) -> bool:
    return 0 < len(text) <= MAX_ID and text.isascii() and text.isprintable()


def _basic(value: str) -> tuple[str, str] | None:
    """User and password of HTTP Basic (RFC 7617); None if malformed."""
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (user, password) if colon else None
