"""Checks, for each request, that PJSIP writes the requested address unchanged.

PJSIP parses a URI and prints it again, and sometimes prints another URI: it undoes escapes, and keeps only the last of
repeated parameters. `parse_address` refuses all known cases; this check covers the unknown ones.

Invariants: PJSIP's parser memory is released after each address.
"""

import re

from app.domain.addresses import parse_address
from app.domain.errors import InvalidAddress
from app.sip.pjsip.endpoint import Endpoint
from app.sip.pjsip.library import AddressRefused

_IN_REQUEST_URI = 0
_MOST_BYTES = 1024
_PLAIN = re.compile(r"sip:[a-z0-9_.-]+@[a-z0-9.-]+")
"""Addresses without anything that PJSIP could change; these skip the check."""


class UriCheck:
    """Compares addresses with what PJSIP writes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._ffi, self._lib = endpoint.ffi, endpoint.lib
        self._pool = self._lib.pjsip_endpt_create_pool(endpoint.endpt, b"uris", 4096, 4096)
        self._printed = self._ffi.new("char[]", _MOST_BYTES)

    def written(self, address: str) -> str:
        """The Request-URI that PJSIP writes for an address. Raises AddressRefused where PJSIP cannot parse it."""
        text = self._ffi.new("char[]", address.encode("ascii"))
        try:
            uri = self._lib.pjsip_parse_uri(self._pool, text, len(text) - 1, 0)
            if uri == self._ffi.NULL:
                raise AddressRefused("PJSIP cannot read it")
            count = uri.vptr.p_print(_IN_REQUEST_URI, uri, self._printed, _MOST_BYTES)
            if count < 0:
                raise AddressRefused("PJSIP cannot write it")
            return bytes(self._ffi.buffer(self._printed, count)).decode("latin-1")
        finally:
            self._lib.pj_pool_reset(self._pool)

    def check(self, address: str) -> None:
        """Raises AddressRefused where the request would be about another URI than this canonical address."""
        if _PLAIN.fullmatch(address) or (written := self.written(address)) == address:
            return
        try:
            same = parse_address(written) == address
        except InvalidAddress:
            same = False
        if not same:
            raise AddressRefused(f"PJSIP would query {written!r} instead")
