"""Which of the operator's presence servers a redirection names (RFC 3261 section 8.1.3.4), as pure functions.

Deliberately absent: name lookups. A Contact names a server only where its host is written as in `TS_PRESENCE_SERVER`.
"""

import re
from collections.abc import Sequence

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_ENTRY = re.compile(r"<([^<>]*)>([^,]*)|([^,<>]+)")
_URI = re.compile(r"sips?:(?:[^@]*@)?(\[[^\]]*\]|[^:;?@\s\[]+)(?::(\d{1,5}))?((?:[;?].*)?)", re.IGNORECASE)
_MADDR = re.compile(r"[;?&]maddr=", re.IGNORECASE)
_WEIGHT = re.compile(r";\s*q\s*=\s*([01](?:\.\d{0,3})?)", re.IGNORECASE)
_DEFAULT_PORTS = frozenset({"", "5060", "5061"})
MAX_CONTACTS = 10
"""A redirection's further Contacts are not looked at."""


def contact_uris(values: Sequence[str]) -> tuple[str, ...]:
    """The URIs of Contact header fields, the preferred one first: by `q`, then as they stand (RFC 3261, 20.10)."""
    found: list[tuple[float, str]] = []
    for value in values:
        for bracketed, parameters, bare in _ENTRY.findall(_QUOTED.sub("", value)):
            uri, _, more = (bracketed, "", parameters) if bracketed else bare.partition(";")
            if ":" in uri:
                weight = _WEIGHT.search(f";{more}")
                found.append((float(weight[1]) if weight else 1.0, uri.strip()))
    found.sort(key=lambda each: -each[0])
    return tuple(uri for _, uri in found[:MAX_CONTACTS])


def redirected_route(contacts: Sequence[str], servers: Sequence[str]) -> int | None:
    """The number of the server that the first fitting Contact names, or None. `servers`: the URIs of the routes.

    Host and port must be those of a server. The Contact's user part and transport are ignored: the terminal's address
    stays the Request-URI, and the server is asked in the operator's way.
    """
    for contact in contacts:
        wanted = _host_and_port(contact)
        for number, server in enumerate(servers):
            if wanted is not None and wanted == _host_and_port(server):
                return number
    return None


def _host_and_port(uri: str) -> tuple[str, str] | None:
    """Host and port; the port is empty for a default one. None for another scheme, and where maddr names the host."""
    found = _URI.fullmatch(uri)
    if found is None or _MADDR.search(found[3]):
        return None
    port = (found[2] or "").lstrip("0")
    return found[1].lower().rstrip("."), "" if port in _DEFAULT_PORTS else port
