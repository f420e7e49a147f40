"""The `maddr` of Contact and Record-Route, by which PJSIP would choose the destination of a later request.

PJSIP looks up a name by a call that blocks the worker, so a name counts as hostile; an address does not.

Invariants: the values are read as PJSIP parsed them, since the text may be escaped or folded.
"""

import ipaddress
from collections.abc import Iterator
from typing import Any

from app.sip.pjsip.structs import CONTACT, RECORD_ROUTE, headers_of, sip_uri, string


def may_have_maddr(packet: bytes) -> bool:
    """Whether the text of a message could have a `maddr`; a quick check, for nearly all messages have none."""
    return b"%" in packet or b"maddr" in packet.lower()


def maddr_names(ffi: Any, message: Any) -> Iterator[Any]:
    """The SIP URIs in Contact and Record-Route whose `maddr` is not an IPv4 address."""
    for header in headers_of(ffi, message):
        if header.type == CONTACT:
            uri = ffi.cast("pjsip_contact_hdr *", header).uri
        elif header.type == RECORD_ROUTE:
            uri = ffi.addressof(ffi.cast("pjsip_routing_hdr *", header).name_addr)
        else:
            continue
        found = sip_uri(ffi, uri) if uri != ffi.NULL else ffi.NULL  # `Contact: *` has none
        if found != ffi.NULL and (maddr := string(ffi, found.maddr)) and not _is_address(maddr):
            yield found


def _is_address(text: bytes) -> bool:
    try:
        ipaddress.IPv4Address(text.decode("latin-1"))
    except ValueError:
        return False
    return True
