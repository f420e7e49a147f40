"""Who calls over SOAP: HTTP's credentials, a WS-Security UsernameToken, or a client certificate -> `Client`.

HTTP Basic and UsernameToken both take the client's id and an API key. A digest (UsernameToken Profile 1.1.1) is
Base64(SHA-1(nonce + created + password)), where the password is the key's password equivalent (section 3.2 there;
`authenticator.password_equivalent`), since keys themselves are not stored.
Invariants: a digest has nonce and created; a token with a nonce is taken once; created is not older than MAX_AGE_S, nor
MAX_AHEAD_S ahead. Of MAX_NONCES remembered the oldest is forgotten, and from then on its client's tokens that are no
newer than it are refused: full memory narrows the window, and opens nothing. Each process remembers its own.

Deliberately absent: signatures, encryption and other tokens of WS-Security: TLS does that. Which credentials are
good (`authenticator.py`). How old a plain password without nonce is: it can be replayed whatever is checked.
"""

import base64
import binascii
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from app.auth.authenticator import Authenticator, Credentials
from app.auth.failures import MALFORMED, REASON, REFUSED, unauthenticated
from app.domain.errors import Unauthenticated
from app.domain.records import MAX_ID, Client
from soap_compat.envelope import Part

MAX_AGE_S: Final = 300.0
MAX_AHEAD_S: Final = 60.0
MAX_NONCES: Final = 100_000
_MAX_NONCE: Final = 256
_MAX_CREATED: Final = 40
_MAX_PASSWORD: Final = 512
_SPACE: Final = " \t\r\n"


class Gatekeeper:
    """Recognises callers. One per process. `clock` gives the time in UTC."""

    def __init__(
        self, authenticator: Authenticator, *, clock: Callable[[], datetime], max_nonces: int = MAX_NONCES
    ) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._max_nonces = max_nonces
        # By when they were shown. Not a `BoundedDict`: one that goes early raises its client's floor.
        self._nonces: OrderedDict[bytes, tuple[str, datetime]] = OrderedDict()
        self._floors: dict[str, datetime] = {}  # by client id

    def known(self, caller: Credentials) -> Client | None:
        """Who calls, if that is known by HTTP's credentials without asking anybody; None means that `admit` must be
        awaited."""
        return self._authenticator.known(caller.authorization)

    async def admit(self, caller: Credentials, token: Part | None) -> Client:
        """Who calls. Raises Unauthenticated, RateLimited, StoreUnavailable."""
        if caller.authorization or token is None:
            return await self._authenticator.authenticate(caller)
        try:
            return await self._by_token(token, caller.peer)
        except Unauthenticated as error:
            if REASON in error.details:  # else it was counted where it was raised
                self._authenticator.failures.count(error)
            raise

    async def _by_token(self, token: Part, peer: str) -> Client:
        user = _text(token, "Username", MAX_ID)
        password = _text(token, "Password", _MAX_PASSWORD)
        nonce, created_text = _text(token, "Nonce", _MAX_NONCE), _text(token, "Created", _MAX_CREATED)
        created = self._fresh(created_text) if created_text else None
        salt = _decoded(nonce)
        if any(part.kind.endswith("PasswordDigest") for part in token.parts if part.name == "Password"):
            if not salt or created is None:
                raise unauthenticated(
                    "A UsernameToken with a digest needs a nonce and when it was created.", reason=MALFORMED
                )
            client = await self._by_digest(user, _decoded(password), salt + created_text.encode(), peer)
        else:
            basic = base64.b64encode(f"{user}:{password}".encode()).decode()
            client = await self._authenticator.authenticate(Credentials(authorization=f"Basic {basic}", peer=peer))
        if salt:
            self._once(client, user, salt, created)
        return client

    async def _by_digest(self, user: str, digest: bytes, salt: bytes, peer: str) -> Client:
        # SHA-1 is what the profile names; 256 random bits are behind it.
        def matches(password: str) -> bool:
            return hmac.compare_digest(hashlib.sha1(salt + password.encode(), usedforsecurity=False).digest(), digest)

        return await self._authenticator.authenticate_with(user, matches, peer=peer)

    def _fresh(self, text: str) -> datetime:
        try:
            created = datetime.fromisoformat(text)
            created = created.replace(tzinfo=UTC) if created.tzinfo is None else created.astimezone(UTC)
        except (ValueError, OverflowError):  # the first and last hours of the calendar overflow in other zones
            raise unauthenticated("The UsernameToken's Created is no xsd:dateTime.", reason=MALFORMED) from None
        age_s = (self._clock() - created).total_seconds()
        if not -MAX_AHEAD_S <= age_s <= MAX_AGE_S:
            raise unauthenticated(
                "The UsernameToken is too old, or its clock is ahead; send a new one.", reason=REFUSED
            )
        return created

    def _once(self, client: Client, user: str, nonce: bytes, created: datetime | None) -> None:
        """Without an await: of two that come together only one is the first."""
        if created is None:
            raise unauthenticated("A UsernameToken with a nonce needs when it was created.", reason=MALFORMED)
        floor = self._floors.get(client.id)
        if floor is not None and created <= floor:
            raise unauthenticated("The UsernameToken is too old; send a new one.", reason=REFUSED)
        key = hashlib.sha256(f"{user}\0{created.isoformat()}\0".encode() + nonce).digest()
        if key in self._nonces:
            raise unauthenticated("The UsernameToken was used before; send a new one.", reason=REFUSED)
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
        raise unauthenticated(f"The UsernameToken's {name} is there twice, or too long.", reason=MALFORMED)
    return text


def _decoded(text: str) -> bytes:
    """By value: the same bytes may be written in several ways, and are the same nonce."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise unauthenticated("The UsernameToken's nonce or digest is no base64.", reason=MALFORMED) from None
