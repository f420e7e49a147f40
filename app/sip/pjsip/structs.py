"""PJSIP's structs as declared in `library.py`: dialogs, received messages, and requests.

These fields are read directly, because PJSIP's API has no function for them. `check` compares each field with the known
content of a dialog and two messages that it creates at start; another layout is refused.
"""

from collections.abc import Iterator
from typing import Any

import pjsua2

from app.sip.pjsip.endpoint import Endpoint
from app.sip.pjsip.library import SipStackError

CONTACT, RECORD_ROUTE, VIA = 9, 29, 41  # of enum pjsip_hdr_e
ADDRESS_BYTES = 8
"""The part of a socket address that is read: family, port and IPv4 address."""

_SIP = (b"sip", b"sips")
_LEAST_TAG_BYTES = 16
_ADDRESS, _ADDRESS_TEXT = bytes([2, 0, 0x13, 0xCE, 192, 0, 2, 1]), "192.0.2.1:5070"


def string(ffi: Any, value: Any) -> bytes:
    """A `pj_str_t` as bytes."""
    size = value.slen
    return bytes(ffi.buffer(value.ptr, size)) if size > 0 else b""  # faster than `unpack`


def headers_of(ffi: Any, message: Any) -> Iterator[Any]:
    """The header fields of a received message, each as a `pjsip_hdr *`."""
    header, end = message.msg.hdr.next, ffi.addressof(message.msg.hdr)
    while header != end:
        header = ffi.cast("pjsip_hdr *", header)
        yield header
        header = header.next


def sip_uri(ffi: Any, uri: Any) -> Any:
    """The `pjsip_sip_uri *` of a URI, which may stand in a name-addr; NULL for another scheme."""
    uri = ffi.cast("pjsip_uri *", uri)
    uri = ffi.cast("pjsip_uri *", uri.vptr.p_get_uri(uri))
    scheme = b"" if uri == ffi.NULL else string(ffi, uri.vptr.p_get_scheme(uri)[0]).lower()
    return ffi.cast("pjsip_sip_uri *", uri if scheme in _SIP else ffi.NULL)


def check(endpoint: Endpoint, ua: Any, local: Any) -> None:
    """Raises SipStackError where a struct has another layout than declared."""
    for what, found in (
        ("dialogs", _dialog(endpoint, ua, local)),
        ("received messages", _received(endpoint)),
        ("requests", _request(endpoint, ua, local)),
    ):
        if not all(found):
            raise SipStackError(
                f"This PJSIP build has another layout of {what}: {found}; install the locked pjsua2-python."
            )


def _dialog(endpoint: Endpoint, ua: Any, local: Any) -> list[bool]:
    ffi, lib, out = endpoint.ffi, endpoint.lib, endpoint.ffi.new("void **")
    texts = [endpoint.text(text) for text in ("<sip:contact@x>", "<sip:remote@x>", "sip:target@x")]
    endpoint.must(lib.pjsip_dlg_create_uac(ua, local, *texts, out), "create a dialog")
    dialog = ffi.cast("pjsip_dialog *", out[0])
    found = [
        dialog.auth_session.pool == dialog.pool,
        dialog.auth_session.endpt == endpoint.endpt,
        string(ffi, dialog.target.user) == b"target",
        string(ffi, dialog.local_info.hdr.name) == b"From",
        len(string(ffi, dialog.local_info.tag)) >= _LEAST_TAG_BYTES,
        string(ffi, dialog.remote_info.hdr.name) == b"To",
        string(ffi, dialog.remote_info.tag) == b"",
        dialog.remote_contact == ffi.NULL,
        string(ffi, dialog.call_id.hdr.name) == b"Call-ID",
        len(string(ffi, dialog.call_id.id)) >= _LEAST_TAG_BYTES,
    ]
    lib.pjsip_dlg_terminate(dialog)
    return found


def _received(endpoint: Endpoint) -> list[bool]:
    ffi, lib = endpoint.ffi, endpoint.lib
    text = (
        b"NOTIFY sip:x@x SIP/2.0\r\nVia: SIP/2.0/UDP x:5070;branch=z9hG4bKb;maddr=m\r\n"
        b"Record-Route: <sip:a;maddr=r>,<sip:b>\r\nContact: <sip:c;maddr=q>\r\nFrom: <sip:f@x>;tag=f\r\n"
        b"To: <sip:t@x>;tag=t\r\nCall-ID: i\r\nCSeq: 7 NOTIFY\r\nContent-Length: 0\r\n\r\n"
    )
    memory, buffer = ffi.new("char[]", 2 * ffi.sizeof("pjsip_rx_data")), ffi.new("char[]", text)
    rdata = ffi.cast("pjsip_rx_data *", memory)
    rdata.tp_info.pool = endpoint.pool
    rdata.msg_info.msg_buf, rdata.msg_info.len = buffer, len(text)
    ffi.buffer(rdata.pkt_info.src_addr, ADDRESS_BYTES)[:] = _ADDRESS
    message = rdata.msg_info
    if lib.pjsip_parse_rdata(buffer, len(text), rdata) == ffi.NULL or message.cid == ffi.NULL:
        return [False]
    # pjsua2's own readers of messages: hidden from Python but exported, and independent of our struct layouts.
    shown = pjsua2.SipRxData()
    lib._ZN2pj9SipRxData6fromPjER13pjsip_rx_data(ffi.cast("void *", int(shown.this)), rdata)  # noqa: SLF001
    return [
        string(ffi, message.cid.id) == b"i",
        string(ffi, getattr(message, "from").tag) == b"f",
        string(ffi, message.to.tag) == b"t",
        string(ffi, message.via.branch) == b"z9hG4bKb",
        string(ffi, message.via.maddr) == b"m",
        message.cseq.cseq == 7,
        message.record_route != ffi.NULL and message.record_route.type == RECORD_ROUTE,
        _maddr(ffi, ffi.addressof(ffi.cast("pjsip_routing_hdr *", message.record_route).name_addr)) == b"r",
        any(
            header.type == CONTACT and _maddr(ffi, ffi.cast("pjsip_contact_hdr *", header).uri) == b"q"
            for header in headers_of(ffi, message)
        ),
        shown.srcAddress == _ADDRESS_TEXT,
        shown.wholeMsg == text.decode(),
    ]


def _maddr(ffi: Any, uri: Any) -> bytes:
    found = sip_uri(ffi, uri)
    return string(ffi, found.maddr) if found != ffi.NULL else b""


def _request(endpoint: Endpoint, ua: Any, local: Any) -> list[bool]:
    ffi, lib, null = endpoint.ffi, endpoint.lib, endpoint.ffi.NULL
    out, transaction = ffi.new("void **"), ffi.new("void **")
    uri, options = endpoint.text("sip:x@192.0.2.1"), lib.pjsip_get_options_method()
    status = lib.pjsip_endpt_create_request(endpoint.endpt, options, uri, local, uri, null, null, -1, null, out)
    endpoint.must(status, "create a request")
    request, shown = ffi.cast("pjsip_tx_data *", out[0]), pjsua2.SipTxData()
    kept = bytes(ffi.buffer(request.dst_addr, ADDRESS_BYTES))
    ffi.buffer(request.dst_addr, ADDRESS_BYTES)[:] = _ADDRESS
    lib._ZN2pj9SipTxData6fromPjER13pjsip_tx_data(ffi.cast("void *", int(shown.this)), out[0])  # noqa: SLF001
    ffi.buffer(request.dst_addr, ADDRESS_BYTES)[:] = kept
    endpoint.must(lib.pjsip_tsx_create_uac(ua, out[0], transaction), "create a transaction")
    found = [
        shown.dstAddress == _ADDRESS_TEXT,
        ffi.cast("pjsip_hdr *", request.msg.hdr.next).type == VIA,
        ffi.cast("pjsip_transaction *", transaction[0]).last_tx == request,
    ]
    lib.pjsip_tsx_terminate(transaction[0], 487)
    return found
