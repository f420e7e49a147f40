"""Authenticates SOAP callers by HTTP credentials, a WS-Security UsernameToken, or a client certificate.

HTTP Basic and UsernameToken both carry the client's id and an API key. A digest (UsernameToken Profile 1.1.1) is
Base64(SHA-1(nonce + created + password)); its password is the key's password equivalent (section 3.2 there;
`app/auth/credentials.py`), since the keys themselves are not stored.

Invariants: a digest requires a nonce and a creation time; a token with a nonce is accepted once; its creation time is
at most MAX_AGE_S in the past and MAX_AHEAD_S in the future. Beyond MAX_NONCES the oldest nonce is forgotten; from then
on, tokens of its client that are not newer than it are refused. So a full memory refuses more tokens, and never accepts
a replay. Each process remembers its own nonces.

Deliberately absent: WS-Security's signatures, encryption and other tokens (TLS is used instead); which credentials are
valid (`authenticator.py`); and the age of a plain password without nonce, which could be replayed anyway.
"""

import base64
import binascii
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from app.auth.authenticator import Authenticator
from app.auth.credentials import Credentials
from app.auth.failures import MALFORMED, REASON, REFUSED, unauthenticated
from app.domain.errors import Unauthenticated
from app.domain.records import MAX_ID, Client
from soap_compat.request_envelope import Part

MAX_AGE_S: Final = 300.0
MAX_AHEAD_S: Final = 60.0
MAX_NONCES: Final = 100_000
_MAX_NONCE: Final = 256
_MAX_CREATED: Final = 40
_MAX_PASSWORD: Final = 512
_SPACE: Final = " \t\r\n"


class SoapAuthenticator:
    """One per process. `clock` returns the time in UTC."""

    def __init__(
        self, authenticator: Authenticator, *, clock: Callable[[], datetime], max_nonces: int = MAX_NONCES
    ) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._max_nonces = max_nonces
        # In the order of arrival. Not a `BoundedDict`: forgetting a nonce early must raise its client's floor.
        self._nonces: OrderedDict[bytes, tuple[str, datetime]] = OrderedDict()
        self._floors: dict[str, datetime] = {}  # by client id

    def known(self, caller: Credentials) -> Client | None:
        """The client, if its HTTP credentials are known already; None: await `authenticate`."""
        return self._authenticator.known(caller.authorization)

    async def authenticate(self, caller: Credentials, token: Part | None) -> Client:
        """Returns the client, by `token` if there are no HTTP credentials. Raises Unauthenticated, RateLimited,
        StoreUnavailable."""
        if caller.authorization or token is None:
            return await self._authenticator.authenticate(caller)
        try:
            return await self._by_token(token, caller.peer)
        except Unauthenticated as error:
            if REASON in error.details:  # otherwise it was counted where it was raised
                self._authenticator.failures.count(error)
            raise

    async def _by_token(self, token: Part, peer: str) -> Client:
        user = _text(token, "Username", MAX_ID)
        password = _text(token, "Password", _MAX_PASSWORD)
        nonce, created_text = _text(token, "Nonce", _MAX_NONCE), _text(token, "Created", _MAX_CREATED)
        created = self._fresh_time(created_text) if created_text else None
        salt = _decoded(nonce)
        if any(part.kind.endswith("PasswordDigest") for part in token.parts if part.name == "Password"):
            if not salt or created is None:
                raise unauthenticated("A UsernameToken with a digest requires Nonce and Created.", reason=MALFORMED)
            client = await self._by_digest(user, _decoded(password), salt + created_text.encode(), peer)
        else:
            basic = base64.b64encode(f"{user}:{password}".encode()).decode()
            client = await self._authenticator.authenticate(Credentials(authorization=f"Basic {basic}", peer=peer))
        if salt:
            self._use_nonce(client, user, salt, created)
        return client

    async def _by_digest(self, user: str, digest: bytes, salt: bytes, peer: str) -> Client:
        # The profile requires SHA-1; the password equivalent comes from 256 random bits.
        def matches(password: str) -> bool:
            return hmac.compare_digest(hashlib.sha1(salt + password.encode(), usedforsecurity=False).digest(), digest)

        return await self._authenticator.authenticate_with(user, matches, peer=peer)

    def _fresh_time(self, text: str) -> datetime:
        try:
            created = datetime.fromisoformat(text)
            created = created.replace(tzinfo=UTC) if created.tzinfo is None else created.astimezone(UTC)
        except (ValueError, OverflowError):  # the first and last hours of the calendar overflow in other zones
            raise unauthenticated("The UsernameToken's Created is not an xsd:dateTime.", reason=MALFORMED) from None
        age_s = (self._clock() - created).total_seconds()
        if not -MAX_AHEAD_S <= age_s <= MAX_AGE_S:
            raise unauthenticated(
                "The UsernameToken's Created is too old or in the future; check the clock, and send a new token.",
                reason=REFUSED,
            )
        return created

    def _use_nonce(self, client: Client, user: str, nonce: bytes, created: datetime | None) -> None:
        """Raises Unauthenticated for a nonce that was used before. Has no await, so that only one of two concurrent
        calls is the first."""
        if created is None:
            raise unauthenticated("A UsernameToken with a Nonce requires Created.", reason=MALFORMED)
        floor = self._floors.get(client.id)
        if floor is not None and created <= floor:
            raise unauthenticated("The UsernameToken's Created is too old; send a new token.", reason=REFUSED)
        key = hashlib.sha256(f"{user}\0{created.isoformat()}\0".encode() + nonce).digest()
        if key in self._nonces:
            raise unauthenticated("The UsernameToken was used before; send a new token.", reason=REFUSED)
        now = self._clock()
        while self._nonces:
            oldest = next(iter(self._nonces))
            client_id, at = self._nonces[oldest]
            expired = (now - at).total_seconds() > MAX_AGE_S
            if not expired and len(self._nonces) < self._max_nonces:
                break
            del self._nonces[oldest]
            if not expired:
                self._floors[client_id] = max(at, self._floors.get(client_id, at))
        self._nonces[key] = (client.id, created)


def _text(token: Part, name: str, most: int) -> str:
    parts = [part for part in token.parts if part.name == name]
    text = parts[0].text.strip(_SPACE) if parts else ""
    if len(parts) > 1 or len(text) > most:
        raise unauthenticated(f"The UsernameToken's {name} occurs twice, or is too long.", reason=MALFORMED)
    return text


def _decoded(text: str) -> bytes:
    """Nonces are compared by their bytes: base64 can write the same bytes in several ways."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise unauthenticated("The UsernameToken's nonce or digest is not base64.", reason=MALFORMED) from None
