"""Kinds of values of settings: one function each, which returns the value in its normal form or raises ValueError.

The message of a ValueError is shown to the operator after the setting's name and value (`loading.py`).
"""

import ipaddress
import re

from pydantic import SecretStr, ValidationInfo

from app.domain.addresses import parse_address
from app.domain.errors import InvalidAddress

PREFIX = "TS_"
"""Prefix of settings in the environment."""

MAX_ROUTES = 8
"""Most presence servers in one setting."""


def listen(text: str) -> str:
    """HOST:PORT."""
    host, _, port = text.rpartition(":")
    is_port = re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535
    if not re.fullmatch(r"[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:]+\]", host) or not is_port:
        raise ValueError("not HOST:PORT")
    return text


def sip_listen(text: str) -> str:
    """IPv4:PORT. Our build of PJSIP has no IPv6."""
    try:
        ipaddress.IPv4Address(listen(text).rpartition(":")[0])
    except ipaddress.AddressValueError:
        raise ValueError("not an IPv4 address and a port") from None
    return text


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


_ROUTE = re.compile(r"sip:([A-Za-z0-9.\-]+)(:[0-9]{1,5})?(;transport=(udp|tcp|tls))?(;lr)?", re.IGNORECASE)


def presence_server(text: str) -> str:
    """SIP URIs of presence servers, separated by commas."""
    routes = [route.strip() for route in text.split(",")]
    for route in routes:
        match = _ROUTE.fullmatch(route)
        if match is None or (match[2] and not 0 < int(match[2][1:]) < 65536):
            raise ValueError("not sip:HOST[:PORT][;transport=tcp|udp|tls], or several of them separated by commas")
    if len(routes) > MAX_ROUTES:
        raise ValueError(f"more than {MAX_ROUTES} servers")
    return ",".join(routes).lower()


def sip_uri(text: str) -> str:
    """One SIP URI."""
    if not _ROUTE.fullmatch(text):
        raise ValueError("not sip:HOST[:PORT][;transport=tcp|udp|tls]")
    return text.lower()


def ioi(text: str) -> str:
    """An operator's domain name (RFC 7315)."""
    if not re.fullmatch(r"[A-Za-z0-9.\-]{1,64}", text):
        raise ValueError("not a domain name of at most 64 characters")
    return text


def privacy(text: str) -> str:
    """Values of Privacy (RFC 3323)."""
    if not re.fullmatch(
        r"(header|session|user|none|critical|id|history)(;(header|session|user|critical|id|history))*", text
    ):
        raise ValueError("not a Privacy value (RFC 3323)")
    return text


def ipv4_port(value: str) -> str:
    """IPv4[:PORT]."""
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}(:[0-9]{1,5})?", value):
        raise ValueError(f"{value!r} is not an IPv4 address, with or without a port")
    return value


def identity(text: str) -> str:
    """A terminal address, as `parse_address` returns it."""
    try:
        return parse_address(text)
    except InvalidAddress as error:
        raise ValueError(str(error)) from None


def sip_identity(text: str) -> str:
    """A `sip:` or `sips:` URI."""
    if not re.match("sips?:", found := identity(text)):
        raise ValueError("a telephone number cannot be the From of a SUBSCRIBE")
    return found


def number_pattern(text: str) -> str:
    """An address with `{number}` in it."""
    if text.count("{number}") != 1 or set(text.replace("{number}", "")) & set("{}"):
        raise ValueError("{number} must occur in it exactly once")
    try:
        parse_address(text.replace("{number}", "+15551234567"))
    except InvalidAddress as error:
        raise ValueError(str(error)) from None
    return text


def tel_context(text: str) -> str:
    """A plus, and the first digits of global numbers."""
    if not re.fullmatch(r"\+[0-9]{0,15}", text):
        raise ValueError(f"{text!r} is not a plus with at most 15 digits, such as + or +44")
    return text


def words(value: object) -> object:
    """Splits a text at its commas; returns any other value unchanged."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def activities(words: frozenset[str]) -> frozenset[str]:
    """Names of RPID activities."""
    if bad := [word for word in words if not re.fullmatch(r"[A-Za-z0-9_\-]{1,64}", word)]:
        raise ValueError(f"{bad[0]!r} is not an activity name")
    return words


def database(text: str) -> str:
    """An SQLAlchemy URL of SQLite or PostgreSQL."""
    if re.fullmatch(r"postgresql\+psycopg://[^\s/]+(/[^\s/]+)", text):
        return text
    if not re.fullmatch(r"sqlite:///[^?]+", text):
        raise ValueError("not a sqlite:/// or postgresql+psycopg:// URL")
    if ":memory:" in text:
        raise ValueError("a database in memory is lost when the gateway stops; name a file")
    return text


def url(text: str) -> str:
    """An http(s) URL without query."""
    if not re.fullmatch(r"https?://[A-Za-z0-9.\-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~\-/]*)?", text):
        raise ValueError("not an http:// or https:// URL without a query")
    return text.rstrip("/")


def networks(words: frozenset[str]) -> frozenset[str]:
    """IP networks."""
    for word in words:
        try:
            ipaddress.ip_network(word)
        except ValueError as error:
            raise ValueError(f"{word!r} is not a network: {error}") from None
    return words


def origins(words: frozenset[str]) -> frozenset[str]:
    """Origins of web sites, as browsers send them (RFC 6454 section 6.2): in lower case, without the default port."""
    for word in words:
        match = re.fullmatch(r"(https?)://([a-z0-9.\-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?", word)
        if match is None or (match[1], match[3]) in (("https", ":443"), ("http", ":80")):
            raise ValueError(
                f"{word!r} is not an origin: scheme, host in lower case, and port unless it is the default"
            )
    return words


def jwks_url(text: str) -> str:
    """An https URL, or an http URL of this machine."""
    match = re.fullmatch(r"(https?)://([A-Za-z0-9.\-]+)(:[0-9]{1,5})?(/[\x21-\x7e]{0,500})?", text)
    if text and (match is None or (match[1] == "http" and not is_loopback(match[2]))):
        raise ValueError("not an https URL")
    return text


def with_issuer(text: str, others: ValidationInfo) -> str:
    """Refuses a setting of access tokens without the issuer, and the issuer without the setting."""
    if bool(text) != bool(others.data.get("oidc_issuer")):
        raise ValueError(f"{PREFIX}OIDC_ISSUER, {PREFIX}OIDC_AUDIENCE and {PREFIX}OIDC_JWKS_URL must be set together")
    return text


def secret(value: SecretStr) -> SecretStr:
    """Printable ASCII: PJSIP accepts nothing else."""
    if not re.fullmatch(r"[ -~]{0,256}", value.get_secret_value()):
        raise ValueError("not printable ASCII of at most 256 characters")
    return value
