"""Credentials as a caller presents them: API keys, names in client certificates, HTTP's Authorization header.

Whether they are accepted: `authenticator.py`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from app.domain.errors import InvalidRequest

KEY_PREFIX = "tsk_"
AUTHORIZATION = "Authorization"

MAX_NAMES = 16
"""How many names of a certificate are tried; further ones are ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a caller presented. If `authorization` is not empty, the certificate is ignored."""

    authorization: str = ""
    """HTTP's Authorization header, or gRPC's metadata `authorization`."""
    certificate_names: tuple[str, ...] = ()
    """Names in a client certificate that TLS has verified, in the order of `client_names`."""
    peer: str = ""
    """The caller's network address without a port (`TrustedProxies.origin`), for limits and the log."""


def hash_secret(secret: str) -> bytes:
    """What the store holds of an API key's secret."""
    return hashlib.sha256(secret.encode()).digest()


def parse_key(key: str) -> tuple[str, str] | None:
    """Key id and secret of an API key; None if the text has another form."""
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    if f"{prefix}_" != KEY_PREFIX or not key_id or not secret or len(key) > 200 or not key.isascii():
        return None
    return key_id, secret


def password_equivalent(key_hash: bytes) -> str:
    """The password of a caller that sends a digest instead of its key (WS-Security UsernameToken Profile 1.1.1 section
    3.2): the SHA-256 of the key's secret in lower-case hexadecimal digits."""
    return key_hash.hex()


def client_names(common_names: Sequence[str], dns_names: Sequence[str], uris: Sequence[str]) -> tuple[str, ...]:
    """The names in a certificate that may be a client's id, in the order in which they are tried: the common name, DNS
    names, URIs. E-mail and IP names are ignored: authorities verify them less strictly, or not at all."""
    return (*common_names[:1], *dns_names, *uris)[:MAX_NAMES]


def certificate_names(peercert: Mapping[str, object] | None) -> tuple[str, ...]:
    """The `client_names` of the result of `ssl.SSLSocket.getpeercert`."""
    subject, alternatives = ((peercert or {}).get(part, ()) for part in ("subject", "subjectAltName"))
    parts = [pair for part in subject for pair in part] if isinstance(subject, tuple) else []
    others = alternatives if isinstance(alternatives, tuple) else ()
    common, dns, uris = (
        [value for key, value in pairs if key == wanted]
        for pairs, wanted in ((parts, "commonName"), (others, "DNS"), (others, "URI"))
    )
    return client_names(common, dns, uris)


def asgi_authorization(scope: Mapping[str, Any]) -> str:
    """The Authorization header of an HTTP request, from its ASGI scope; "" if absent.

    Raises InvalidRequest if there are several: proxies and servers would differ in which one counts (RFC 9110 section
    5.3 permits one)."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) > 1:
        raise InvalidRequest("The request has several Authorization headers; send one.", field=AUTHORIZATION)
    return cast("str", found[0].decode("latin-1")) if found else ""


def asgi_credentials(scope: Mapping[str, Any]) -> Credentials:
    """The credentials of an HTTP request, from its ASGI scope (`rest/connection.py` adds the certificate's names).
    Raises InvalidRequest, as `asgi_authorization`."""
    client = scope.get("client")
    tls = scope.get("extensions", {}).get("tls", {})
    return Credentials(
        authorization=asgi_authorization(scope),
        certificate_names=tls.get("client_cert_names", ()),
        peer=client[0] if client else "",
    )
