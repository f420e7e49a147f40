"""What our SIP messages say that the gateway can do: Accept, Allow, Allow-Events, Supported.

PJSIP names what all its modules can do, such as calls and REFER. A server may act on a name: send another document
type, or expect a provisional response to be acknowledged. So each header names what the gateway does, and no more.

Invariants: runs once, before the first message. Each header is checked before it is changed; another build is refused.
"""

from collections.abc import Sequence
from typing import Any

from app.domain.presence import MEDIA_TYPE
from app.sip.pjsip.endpoint import Endpoint
from app.sip.pjsip.library import SipStackError
from app.sip.pjsip.structs import string

EVENT = "presence"
"""The event package of every SUBSCRIBE."""

METHODS = ("NOTIFY",)
"""The requests that the gateway serves."""

_ACCEPT, _ALLOW, _SUPPORTED = 0, 4, 36  # of enum pjsip_hdr_e
_MOST_VALUES, _MOST_PACKAGES = 32, 16


def limit_capabilities(endpoint: Endpoint) -> None:
    """Makes Accept, Allow and Allow-Events name what the gateway does, and removes Supported: the gateway uses no
    extension that has an option tag (RFC 3261 section 20.37). Raises SipStackError where PJSIP has other headers."""
    ffi, lib = endpoint.ffi, endpoint.lib
    allow, supported = (
        ffi.cast("pjsip_array_hdr *", lib.pjsip_endpt_get_capability(endpoint.endpt, kind, ffi.NULL))
        for kind in (_ALLOW, _SUPPORTED)
    )
    module = ffi.cast("pjsip_evsub_module *", lib.pjsip_evsub_instance())
    if module.endpt != endpoint.endpt or module.allow_events != lib.pjsip_evsub_get_allow_events_hdr(ffi.NULL):
        raise _other_layout("its event module")
    for header, name, kind, first, values in (
        (allow, b"Allow", _ALLOW, None, METHODS),
        (supported, b"Supported", _SUPPORTED, None, ()),
        (module.allow_events, b"Allow-Events", None, EVENT, (EVENT,)),
        (_package(endpoint, module).accept, b"Accept", _ACCEPT, MEDIA_TYPE, (MEDIA_TYPE,)),
    ):
        if (
            header == ffi.NULL
            or string(ffi, header.hdr.name) != name
            or (kind is not None and header.hdr.type != kind)
            or not 0 < header.count <= _MOST_VALUES
            or (first is not None and string(ffi, header.values[0]) != first.encode())
        ):
            raise _other_layout(f"the header {name.decode()}")
        _set_values(endpoint, header, values)
    lib.pj_list_erase(supported)


def _package(endpoint: Endpoint, module: Any) -> Any:
    """PJSIP's registration of the event package."""
    package = module.packages.next
    for _ in range(_MOST_PACKAGES):
        if package == endpoint.ffi.addressof(module.packages):
            break
        if string(endpoint.ffi, package.name) == EVENT.encode():
            return package
        package = package.next
    raise _other_layout(f"the event package {EVENT}")


def _set_values(endpoint: Endpoint, header: Any, values: Sequence[str]) -> None:
    for number, value in enumerate(values):
        header.values[number] = endpoint.text(value)[0]
    header.count = len(values)


def _other_layout(what: str) -> SipStackError:
    return SipStackError(f"This PJSIP build has another layout of {what}; install the locked pjsua2-python.")
