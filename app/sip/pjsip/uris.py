"""Checks that PJSIP writes an address as it was asked about.

PJSIP parses a URI and prints it again, and what it prints is another URI for some: it undoes escapes, and of repeated
parameters it keeps the last. `parse_address` refuses all cases that are known; this is the proof for each request.

Invariants: the memory that PJSIP parses into is given back after each address.
"""

import re

from app.domain.addresses import parse_address
from app.domain.errors import InvalidAddress
from app.sip.pjsip.endpoint import Endpoint
from app.sip.pjsip.library import AddressRefused

_IN_REQUEST_URI = 0
_MOST_BYTES = 1024
_PLAIN = re.compile(r"sip:[a-z0-9_.-]+@[a-z0-9.-]+")
"""PJSIP has nothing to undo or to leave out here, and is not asked."""


class Uris:
    """PJSIP's reading and writing of URIs."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._ffi, self._lib = endpoint.ffi, endpoint.lib
        self._pool = self._lib.pjsip_endpt_create_pool(endpoint.endpt, b"uris", 4096, 4096)
        self._printed = self._ffi.new("char[]", _MOST_BYTES)

    def written(self, address: str) -> str:
        """The Request-URI that PJSIP writes for an address. Raises AddressRefused where PJSIP cannot read it."""
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
        """Raises AddressRefused where the presence server would be asked about another URI than this canonical one."""
        if _PLAIN.fullmatch(address) or (written := self.written(address)) == address:
            return
        try:
            same = parse_address(written) == address
        except InvalidAddress:
            same = False
        if not same:
            raise AddressRefused(f"PJSIP would ask about {written!r} in its place")
