"""What every SUBSCRIBE is made of: the way to each presence server, the operator's header fields, the credentials."""

import secrets
from dataclasses import dataclass
from typing import Any

from app.sip.pjsip.dialogs import CONTACT_USER_LENGTH
from app.sip.pjsip.endpoint import Endpoint
from app.sip.protocol import Configure, Credentials

_ICID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a presence server: its Route header, and our Contact on that transport."""

    route: Any
    contact: Any
    user: Any
    """C pointer to the place of the user part in `contact`."""
    stream: bool
    """Whether over TCP or TLS."""


class RequestParts:
    """The parts, made once in PJSIP's memory."""

    def __init__(self, endpoint: Endpoint, configure: Configure) -> None:
        self._endpoint = endpoint
        self._ffi, self._lib = endpoint.ffi, endpoint.lib
        self.ways: dict[tuple[int, bool], Way] = {}
        """By number of the route, and whether over TCP instead of UDP."""
        host = configure.public_host or configure.listen_host
        for number, route in enumerate(configure.routes):
            self.ways[number, False] = self._way(route.uri, route.transport, host)
            if route.transport == "udp":
                uri = route.uri.replace(";transport=udp", "").replace(";lr", ";transport=tcp;lr")
                self.ways[number, True] = self._way(uri, "tcp", host)
        self.headers = self._header_list(configure)
        """The operator's header fields, as a PJSIP header list."""
        self.credentials = self._credential(configure.credentials) if configure.credentials else None
        """PJSIP's credentials for digest, or None."""

    def write_new_icid(self) -> None:
        """Writes a new charging identifier into `headers`, where the operator wants P-Charging-Vector."""
        if self._icid is not None:
            self._ffi.memmove(self._icid, secrets.token_hex(_ICID_BYTES).encode(), 2 * _ICID_BYTES)

    def _way(self, uri: str, transport: str, host: str) -> Way:
        parameter = "" if transport == "udp" else f";transport={transport}"
        start, room = "<sip:", "x" * CONTACT_USER_LENGTH
        contact = self._endpoint.text(f"{start}{room}@{host}:{self._endpoint.ports[transport]}{parameter}>")
        route = self._endpoint.headers([("Route", f"<{uri}>")])
        return Way(route, contact, self._ffi.cast("char *", contact.ptr) + len(start), transport != "udp")

    def _header_list(self, configure: Configure) -> Any:
        headers, self._icid = self._endpoint.headers(configure.headers), None
        if configure.charging_orig_ioi:
            prefix = 'icid-value="'
            value = self._endpoint.text(f'{prefix}{"0" * 2 * _ICID_BYTES}";orig-ioi={configure.charging_orig_ioi}')
            self._icid = value.ptr + len(prefix)
            name, header = self._endpoint.text("P-Charging-Vector"), self._ffi.new("char[256]")
            self._endpoint.kept.append(header)
            self._lib.pjsip_generic_string_hdr_init2(header, name, value)
            self._lib.pj_list_insert_before(headers, header)
        return headers

    def _credential(self, credentials: Credentials) -> Any:
        credential = self._ffi.new("pjsip_cred_info *")
        credential.realm = self._endpoint.text(credentials.realm)[0]
        credential.scheme = self._endpoint.text("digest")[0]
        credential.username = self._endpoint.text(credentials.username)[0]
        credential.data = self._endpoint.text(credentials.password)[0]
        self._endpoint.kept.append(credential)
        return credential
