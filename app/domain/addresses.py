"""Addresses of terminals: `sip:`, `sips:` and `tel:` URIs in one canonical form (RFC 3261 section 19.1, RFC 3966)."""

import ipaddress
import re
from typing import NewType

from app.domain.errors import InvalidAddress

MAX_ADDRESS_LENGTH = 200
"""Longest address, in characters. PJSIP has 256 bytes for a URI with its angle brackets and parameters."""

TerminalAddress = NewType("TerminalAddress", str)
"""A canonical `sip:`, `sips:` or `tel:` URI, as `parse_address` returns it. Equal terminals are equal strings."""


_USER = r"(?:[A-Za-z0-9\-_.!~*'()&=+$,;?/]|%[0-9A-Fa-f]{2})+"
_HOST = (
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?)*\.?"
    r"|\[[0-9A-Fa-f:.]{2,45}\])"
)
_PVALUE = r"(?:[A-Za-z0-9\-_.!~*'()\[\]/:&+$]|%[0-9A-Fa-f]{2})+"
_PARAMS = rf"(?:;{_PVALUE}(?:={_PVALUE})?)*"
_SIP = re.compile(rf"(sips?):(?:({_USER})@)?({_HOST})(:[0-9]{{1,5}})?({_PARAMS})", re.IGNORECASE)
_TEL = re.compile(rf"tel:(\+?[0-9A-Fa-f*#\-.()]+)({_PARAMS})", re.IGNORECASE)
_SEPARATORS = str.maketrans("", "", "-.()")
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!~*'()")
_FIRST_PARAMS = ("ext", "isub", "phone-context")
_SENT_PLAIN_IN_USER = frozenset("&=+$,;?/")
_SENT_PLAIN_IN_PARAMS = frozenset("[]/:&+$")
_TEL_NAME = re.compile(r"[A-Za-z0-9\-]+")
_GLOBAL_NUMBER = re.compile(r"\+[0-9]+")
_LOCAL_NUMBER = re.compile(rf"tel:([0-9\-.()]*[0-9][0-9\-.()]*)({_PARAMS})", re.IGNORECASE)
_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9.\-]*[a-z0-9])?\.?")


def _unescape(escape: re.Match[str]) -> str:
    char = chr(int(escape[1], 16))
    return char if char in _UNRESERVED else escape[0].upper()


def _refuse_escapes(part: str, sent_plain: frozenset[str], never: str, where: str) -> None:
    """Refuses the escapes that PJSIP decodes when it writes the URI, because the SUBSCRIBE would name another terminal.
    After an escaped quotation mark at the start of a parameter's value, PJSIP would even write line breaks."""
    for escape in _ESCAPE.finditer(part):
        char = chr(int(escape[1], 16))
        if char in sent_plain:
            raise InvalidAddress(f"The address has {escape[0]} in {where}; write it as a plain {char}")
        if char in never:
            raise InvalidAddress(f"The address has {escape[0]} in {where}, which PJSIP would change; leave it out.")


def _canonical_params(params: str, *, tel: bool) -> str:
    if not params:
        return ""
    _refuse_escapes(params, _SENT_PLAIN_IN_PARAMS, '%"', "a parameter")
    found: dict[str, str] = {}
    for param in _ESCAPE.sub(_unescape, params).lower().split(";")[1:]:
        name, equals, value = param.partition("=")
        if name in found:
            raise InvalidAddress(f"The address names the parameter {name!r} twice; name it once.")
        if tel:
            value = _tel_value(name, value)
        elif name == "method":
            raise InvalidAddress(
                "The address has a method parameter, which does not identify a terminal; leave it out."
            )
        elif name == "user" and "%" in value:
            raise InvalidAddress(
                "The address has an escape in its user parameter; write user=phone or user=ip, or leave it out."
            )
        found[name] = f";{name}{equals}{value}"
    return "".join(found[name] for name in sorted(found, key=lambda name: (name not in _FIRST_PARAMS, name)))


def _tel_value(name: str, value: str) -> str:
    """The value of a parameter of a `tel:` URI, without visual separators where it is a number (RFC 3966)."""
    if not _TEL_NAME.fullmatch(name):
        raise InvalidAddress(
            f"The address has a parameter {name!r}; names in tel: URIs have letters, digits and hyphens (RFC 3966)."
        )
    if name == "ext":
        value = value.translate(_SEPARATORS)
        if not value.isdigit():
            raise InvalidAddress("The address has an ext that is not a number (RFC 3966 section 5.3).")
    if name == "isub" and not value:
        raise InvalidAddress("The address has an isub without a value (RFC 3966 section 5.3).")
    if name == "phone-context":
        if value.startswith("+"):
            value = value.translate(_SEPARATORS)
        if not (_GLOBAL_NUMBER.fullmatch(value) or _DOMAIN.fullmatch(value)):
            raise InvalidAddress(
                "The address has a phone-context that is neither a number such as +1555 nor a domain name "
                "(RFC 3966 section 5.1.5)."
            )
    return value


def parse_address(text: str) -> TerminalAddress:
    """Returns the canonical form of a terminal's address: equal terminals have equal strings.

    `sip:` and `sips:` URIs follow RFC 3261 section 19.1 without password and headers, which have no meaning for a
    presentity; scheme, host and parameters are lower-cased, and unnecessary escapes are decoded (section 19.1.4).
    `tel:` URIs follow RFC 3966; visual separators are removed, in `ext` and a numeric `phone-context` too (sections 3
    and 4), and a local number needs `phone-context`. Parameters are sorted as RFC 3966 section 3 requires; in SIP
    their order has no meaning. URIs that PJSIP would change when it writes them are refused (some escapes, a `method`
    parameter, a repeated parameter).

    Raises InvalidAddress.
    """
    if not text:
        raise InvalidAddress("The address is empty; give a sip:, sips: or tel: URI.")
    if len(text) > MAX_ADDRESS_LENGTH:
        raise InvalidAddress(f"The address has {len(text)} characters; at most {MAX_ADDRESS_LENGTH} are allowed.")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise InvalidAddress(
            "The address contains a space, a control character or a character outside ASCII; percent-encode it."
        )
    if match := _SIP.fullmatch(text):
        scheme, user, host, port, params = match.groups()
        if port and not 0 < int(port[1:]) < 65536:
            raise InvalidAddress(f"The address {text!r} names port {port[1:]}; ports are 1 to 65535.")
        if host.startswith("["):
            try:
                ipv6 = ipaddress.IPv6Address(host[1:-1])
            except ValueError:
                raise InvalidAddress(f"The address {text!r} names {host}, which is not an IPv6 address.") from None
            if ipv6.ipv4_mapped:  # Python 3.13 prints these in a longer form
                mapped = int(ipv6.ipv4_mapped)
                host = f"[::ffff:{mapped >> 16:x}:{mapped & 0xFFFF:x}]"
            else:
                host = f"[{ipv6}]"
        if user and "%" in user:
            _refuse_escapes(user, _SENT_PLAIN_IN_USER, "%", "its user part")
            user = _ESCAPE.sub(_unescape, user)
        user = f"{user}@" if user else ""
        port = f":{int(port[1:])}" if port else ""
        return TerminalAddress(f"{scheme.lower()}:{user}{host.lower()}{port}{_canonical_params(params, tel=False)}")
    if match := _TEL.fullmatch(text):
        number, params = match.groups()
        digits, params = number.translate(_SEPARATORS).lower(), _canonical_params(params, tel=True)
        local = not digits.startswith("+")
        if not digits.strip("+") or (not local and not digits[1:].isdigit()):
            raise InvalidAddress(f"The address {text!r} is not a telephone number (RFC 3966).")
        if local and ";phone-context=" not in params:
            raise InvalidAddress(
                f"The address {text!r} is a local number without ;phone-context= (RFC 3966 section 5.1.5); "
                "write it as tel:+COUNTRY…"
            )
        return TerminalAddress(f"tel:{digits}{params}")
    if "?" in text.rpartition("@")[2] and _SIP.fullmatch(text.rpartition("?")[0]):
        raise InvalidAddress(f"The address {text!r} has headers after a question mark; leave them out.")
    raise InvalidAddress(
        f"The address {text!r} is not a sip:, sips: or tel: URI such as sip:alice@example.com or tel:+15551234567."
    )


def with_tel_context(text: str, context: str) -> str:
    """The address with `context` (`+`, or `+` and the first digits of global numbers) before a telephone number of
    digits that has neither a plus nor a phone-context (RFC 3966 section 5.1.5). Any other text, and with "" every text,
    is returned unchanged."""
    if not context or (match := _LOCAL_NUMBER.fullmatch(text)) is None or ";phone-context=" in match[2].lower():
        return text
    return f"tel:{context}{match[1]}{match[2]}"


def canonical(text: str) -> str:
    """The canonical form of an address; any other text is returned unchanged."""
    try:
        return parse_address(text)
    except InvalidAddress:
        return text
