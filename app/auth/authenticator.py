"""Who calls: credentials of any transport -> `Client`.

Three kinds are taken: an API key `tsk_KEYID_SECRET` (as bearer token, or with the client's id by HTTP Basic), an access
token of an OpenID provider (`oidc.py`), and a client certificate that TLS has verified, which names the client's id.

Invariants: a secret is kept nowhere: the store has the SHA-256 of secrets, which are 256 random bits and so need no
slow hash, and the cache has the SHA-256 of whole headers; comparisons take constant time; no message or log line says
which part of credentials was wrong, or has any of a secret. Credentials of one kind are never taken for another kind.
What was found good holds for CACHE_S, in which a change by another process is not seen, and for STALE_S where the store
cannot be asked. Failures of one peer are limited, and so are look-ups of what was never found good here: a stranger's
wrong keys cost the store little, and what was found good before is looked up again whatever others of that peer fail.
An access token that is confined to CAMARA's APIs is taken by nobody who does not say that it looks at its grant.

Deliberately absent: what a client may do (`policy.py` and the use cases), the making of clients (`clients.py`), and
any transport. WS-Security's digest is compared by its transport: see `authenticate_with`.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, cast

import structlog

from app.auth.failures import ABSENT, MALFORMED, REASON, REFUSED, SHOWN, Failures, unauthenticated
from app.auth.proxies import TrustedProxies
from app.domain.bounded import BoundedDict
from app.domain.errors import NotPermitted, RateLimited, StoreUnavailable, Unauthenticated
from app.domain.records import ANONYMOUS, MAX_ID, Client
from app.ports import Store

KEY_PREFIX = "tsk_"
MAX_AUTHORIZATION = 8192
"""Longest Authorization value looked at, in characters; access tokens are long."""

CACHE_S = 10.0
"""How long credentials that were found good, or bad, are not looked up again."""

STALE_S = 300.0
"""How long good ones are still taken while the store cannot be asked."""

MAX_CACHED = 10_000
"""Credentials remembered; the oldest are forgotten first, and cost a look-up."""

MAX_NAMES = 16
"""Names of a certificate that are looked at."""

_HEADER, _CERTIFICATE = b"header:", b"certificate:"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a caller shows, as its transport found it. `authorization` decides where it is not empty."""

    authorization: str = ""
    """HTTP's Authorization header, or gRPC's metadata of that name."""
    certificate_names: tuple[str, ...] = ()
    """Names in a client certificate that TLS has verified, as `client_names` chooses them."""
    peer: str = ""
    """The caller's network address without port (`TrustedProxies.origin`), for limits and the log."""


class OpenToAll(Exception):
    """Nobody would need credentials on an address that others reach; the message says what to do."""


class TokenVerifier(Protocol):
    """Reads access tokens (`oidc.AccessTokens`)."""

    async def verify(self, token: str) -> tuple[str, datetime]:
        """The client id that a good token names, and when the token ends. Raises Unauthenticated."""

    def confined(self, token: str) -> str:
        """Why a token that `verify` took serves CAMARA's APIs only; "" for one that serves everywhere."""


@dataclass(slots=True)
class _Known:
    """Credentials that were found good. They stay known when their time is over, to be looked up again."""

    client: Client
    until: float
    ends: float
    """When the credentials themselves end."""
    confirmed_at: float
    confined: str


@dataclass(slots=True)
class _Keys:
    """A client's password equivalents with their ends, as they were until lately."""

    client: Client
    until: float
    passwords: list[tuple[str, datetime | None]]


_Found = tuple[Client, datetime | None, str]
"""A client, when the credentials that named it end, and why they serve CAMARA only ("": they do not)."""


def hash_secret(secret: str) -> bytes:
    """What is stored of an API key's secret."""
    return hashlib.sha256(secret.encode()).digest()


def parse_key(key: str) -> tuple[str, str] | None:
    """Key id and secret of an API key; None for what is none."""
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    if f"{prefix}_" != KEY_PREFIX or not key_id or not secret or len(key) > 200 or not key.isascii():
        return None
    return key_id, secret


def password_equivalent(key_hash: bytes) -> str:
    """What a caller that cannot send its key itself uses as password (WS-Security UsernameToken Profile 1.1.1 section
    3.2): the SHA-256 of the key's secret in lower-case hexadecimal digits."""
    return key_hash.hex()


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach HOST:PORT."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def client_names(common_names: Sequence[str], dns_names: Sequence[str], uris: Sequence[str]) -> tuple[str, ...]:
    """The names in a certificate that may be a client's id, in the order in which they are tried: the common name, DNS
    names, URIs. E-mail and IP names count for nothing: authorities check them by weaker means, or not at all."""
    return (*common_names[:1], *dns_names, *uris)[:MAX_NAMES]


def certificate_names(peercert: Mapping[str, object] | None) -> tuple[str, ...]:
    """The names in what `ssl.SSLSocket.getpeercert` returns."""
    subject, alternatives = ((peercert or {}).get(part, ()) for part in ("subject", "subjectAltName"))
    parts = [pair for part in subject for pair in part] if isinstance(subject, tuple) else []
    others = alternatives if isinstance(alternatives, tuple) else ()
    common, dns, uris = (
        [value for key, value in pairs if key == wanted]
        for pairs, wanted in ((parts, "commonName"), (others, "DNS"), (others, "URI"))
    )
    return client_names(common, dns, uris)


def asgi_authorization(scope: Mapping[str, Any]) -> str:
    """An HTTP request's Authorization, from its ASGI scope; "" where absent."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            return cast("str", value.decode("latin-1"))
    return ""


def asgi_credentials(scope: Mapping[str, Any]) -> Credentials:
    """What an HTTP request shows, from its ASGI scope (the certificate as `rest.connection` puts it there)."""
    client = scope.get("client")
    tls = scope.get("extensions", {}).get("tls", {})
    return Credentials(
        authorization=asgi_authorization(scope),
        certificate_names=tls.get("client_cert_names", ()),
        peer=client[0] if client else "",
    )


class Authenticator:
    """Tells who calls. One instance per process, used from one event loop.

    `open_allowed` is whether callers need no credentials as long as no client is configured; only for addresses that
    just this machine reaches, or behind a proxy that authenticates. Once a client was seen they need some until the
    process ends: a database that was lost, or a last client that was deleted, opens nothing. `open_is_admin` makes such
    callers operators, which is for `terminal-status demo` alone. `tokens` reads access tokens, where the operator takes
    them. `clock` gives the time (aware UTC), `monotonic` seconds that never go back. Failures of `proxies` are not
    limited.
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
        self._bad = BoundedDict[bytes, tuple[float, str]](MAX_CACHED)  # until when no look-up is needed; the reason
        self._keys = BoundedDict[str, _Keys](MAX_CACHED)  # by client id
        self.failures = Failures(monotonic, proxies)
        self._open = False
        self._open_until = -math.inf
        self.anonymous = Client(
            id=ANONYMOUS, name=ANONYMOUS, created_at=datetime(1970, 1, 1, tzinfo=UTC), admin=open_is_admin
        )
        """Who calls while no client is configured."""

    async def start(self, listens: Mapping[str, str], *, closed_is_meant: bool = False) -> bool:
        """Whether callers need no credentials now; without a client, what is open to whom is logged. `listens` has
        HOST:PORT by the setting's name; `closed_is_meant` is whether a gateway that takes nobody may start.

        Raises OpenToAll where others reach a gateway that has no client, and StoreUnavailable.
        """
        self._open = self._open_allowed and not await self.configured()
        if await self._store.clients():
            return False
        exposed = {setting: listen for setting, listen in listens.items() if not is_loopback(listen)}
        reached = " and ".join([f"{setting} ({listen})" for setting, listen in (exposed or listens).items()])
        if exposed and not self._open and not closed_is_meant and self._tokens is None:
            raise OpenToAll(
                f"No client is configured, so the gateway listens on this machine only, but others reach {reached}. "
                "Add a client with `terminal-status clients add NAME`, listen on 127.0.0.1, or set TS_ANONYMOUS_ACCESS "
                "to never (every call is refused until there is a client) or anywhere (a proxy in front authenticates)."
            )
        whom = "everybody who reaches" if exposed else "everybody on this machine, and whom a proxy on it lets in:"
        what = "every operation, operators' too" if self.anonymous.admin else "every operation but operators'"
        _log.warning(
            "no_client_configured",
            open=what if self._open else "nothing",
            to=f"{whom} {reached}" if self._open else "nobody: every call is refused",
            hint="add a client with `terminal-status clients add NAME`; see TS_ANONYMOUS_ACCESS",
        )
        return self._open

    async def configured(self) -> bool:
        """Whether callers must show credentials: a client is configured, or access tokens are taken. Raises
        StoreUnavailable."""
        if self._tokens is not None:
            return True
        return bool(await self._store.clients())

    def forget(self) -> None:
        """Looks everybody up anew: clients or keys have changed."""
        for known in self._known.values():  # not forgotten: who was good may be looked up, whatever others have failed
            known.until = known.confirmed_at = -math.inf
        for keys in self._keys.values():
            keys.until = -math.inf
        self._bad.clear()
        self._open_until = -math.inf

    def known(self, authorization: str, *, confined: bool = False) -> Client | None:
        """Who shows this, if that is known without asking anybody; None does not mean that it is bad. `confined` as
        `authenticate` has it."""
        now = self._monotonic()
        if self._open and now < self._open_until:
            return self.anonymous
        if authorization:
            known = self._known.get(_cache_key(_HEADER, authorization))
            if known is not None and now < known.until and (confined or not known.confined):
                return known.client
        return None

    async def authenticate(self, credentials: Credentials, *, confined: bool = False) -> Client:
        """Returns the client that calls. `confined` is whether an access token is taken too that is about one device,
        or was given for CAMARA's APIs: only by those, which look at what it grants.

        Raises NotPermitted (such a token elsewhere), Unauthenticated, RateLimited or StoreUnavailable.
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
        raise unauthenticated("Credentials are needed: an API key as bearer token.", reason=ABSENT)

    async def authenticate_with(self, client_id: str, matches: Callable[[str], bool], *, peer: str = "") -> Client:
        """As `authenticate`, for a transport that compares by itself: `matches` is asked with the password equivalent
        of each key of the client that holds now, and must compare in constant time. The keys are remembered for
        CACHE_S, whether they match is not."""
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
                known.until = min(now + 1, known.ends)  # others who show the same meanwhile need not ask too
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
        """Nobody could be asked: the next one asks again."""
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
    """`shown` is the public part of what was shown, for the log only."""
    return unauthenticated("The credentials are not accepted.", reason=reason, shown=shown)


def _cache_key(kind: bytes, shown: str) -> bytes:
    """The kind stands in the key, so that no credentials of one kind are found as those of another."""
    return hashlib.sha256(kind + shown.encode("utf-8", "surrogatepass")).digest()


def _is_id(text: str) -> bool:
    return 0 < len(text) <= MAX_ID and text.isascii() and text.isprintable()


def _basic(value: str) -> tuple[str, str] | None:
    """User and password of HTTP Basic (RFC 7617); None for what is none."""
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (user, password) if colon else None
