"""Our dialogs as a NOTIFY names them, and their other side: its tag, its route set and its target.

Each dialog has a Contact user of its own. Tags, Call-IDs and branches are PJSIP's, which derives them from `rand()`:
whoever has seen one can find the next. The Contact user is what only the presence server knows.

By RFC 6665 section 4.4.1 the first NOTIFY makes the dialog, but PJSIP takes it from the 2xx. So the first NOTIFY's tag,
Record-Route and Contact are set here, and once more after a 2xx that came later.

Invariants: PJSIP has no function for these fields; they are reached by their place in its structs. Each place is
checked at the start, on a dialog and a message made for that; another build is refused.

Deliberately absent: which messages PJSIP gets to see (`intake.py`).
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

import pjsua2

from app.sip.endpoint import Endpoint
from app.sip.library import SipStackError

_PREFIX = b"watcher-"
_RANDOM_BYTES, _SEAL_BYTES = 16, 8
CONTACT_USER_LENGTH = len(_PREFIX) + 2 * (_RANDOM_BYTES + _SEAL_BYTES)

_KEPT_COPIES = 8
"""So many of a dialog's last NOTIFYs are remembered, to know a copy that PJSIP has forgotten (over TCP at once)."""

_LEAST_TAG_BYTES = 16
_RECORD_ROUTE = 29  # of enum pjsip_hdr_e


@dataclass(eq=False, slots=True)
class OurDialog:
    """One dialog; `owner` is the caller's. Its other side's tag is empty until PJSIP has taken a NOTIFY."""

    owner: Any
    pointer: Any
    user: bytes
    call_id: bytes
    tag: bytes
    """In lower case, since PJSIP compares tags so."""
    peer_tag: bytes = b""
    cseq: int = -1
    """Of the last NOTIFY that PJSIP has taken."""
    taken: tuple[int, ...] = ()
    """What tells the last NOTIFYs from others, by their hash."""
    routes: Any = None
    """The route set that a NOTIFY has brought."""
    target: tuple[Any, Any] | None = None
    """The dialog's target and the Contact that it stands in, as the first NOTIFY has left them."""
    settled: bool = False
    """Whether a 2xx has come, after which PJSIP changes neither tag nor route set."""


class Dialogs:
    """The dialogs that are in use. Raises SipStackError where PJSIP's structs are other ones than those we know."""

    def __init__(self, endpoint: Endpoint, ua: Any, local: Any) -> None:
        self._endpoint, self._ffi, self._lib = endpoint, endpoint.ffi, endpoint.lib
        self._sealing = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=_SEAL_BYTES)
        self._by_user: dict[bytes, OurDialog] = {}
        self._by_tag: dict[bytes, OurDialog] = {}
        self._check_dialog(ua, local)
        self._check_message()

    def new_contact_user(self) -> bytes:
        """A user part of 128 random bits, with a seal by which it is known later although nothing is kept of it."""
        random = secrets.token_hex(_RANDOM_BYTES).encode()
        return _PREFIX + random + self._seal(random)

    def add(self, owner: Any, pointer: Any, user: bytes) -> OurDialog:
        """Takes up a dialog that PJSIP has made with that Contact user."""
        struct = self._ffi.cast("pjsip_dialog *", pointer)
        call_id, tag = string(self._ffi, struct.call_id.id), string(self._ffi, struct.local_info.tag).lower()
        dialog = OurDialog(owner, struct, user, call_id, tag)
        self._by_user[user] = self._by_tag[tag] = dialog
        return dialog

    def remove(self, dialog: OurDialog) -> None:
        """It is over. A NOTIFY to its Contact gets its 481 from PJSIP."""
        if self._by_user.pop(dialog.user, None) is not None:
            del self._by_tag[dialog.tag]

    def of_user(self, user: bytes) -> OurDialog | None:
        """The dialog with that Contact user."""
        return self._by_user.get(user)

    def was_ours(self, user: bytes) -> bool:
        """Whether this process has made the Contact user, whatever became of its dialog."""
        random, seal = user[len(_PREFIX) : -2 * _SEAL_BYTES], user[-2 * _SEAL_BYTES :]
        return user.startswith(_PREFIX) and secrets.compare_digest(seal, self._seal(random))

    def has_tag(self, tag: bytes) -> bool:
        """Whether that is our tag in a dialog in use."""
        return tag.lower() in self._by_tag

    def adopt(self, dialog: OurDialog, message: Any) -> None:
        """Before PJSIP looks for the dialog of a NOTIFY, the first one: gives the dialog that NOTIFY's other side."""
        ffi, lib = self._ffi, self._lib
        self._set_tag(dialog, getattr(message, "from").tag)
        if message.record_route == ffi.NULL:
            dialog.routes = None
            return
        dialog.routes = ffi.new("pjsip_hdr *")
        dialog.routes.prev = dialog.routes.next = dialog.routes
        header, end = message.msg.hdr.next, ffi.addressof(message.msg.hdr)
        while header != end:
            header = ffi.cast("pjsip_hdr *", header)
            if header.type == _RECORD_ROUTE:  # in the order of the message (RFC 3261 section 12.1.1)
                copy = lib.pjsip_hdr_clone(dialog.pointer.pool, header)
                lib.pjsip_routing_hdr_set_route(copy)
                lib.pj_list_insert_before(dialog.routes, copy)
            header = header.next
        lib.pjsip_dlg_set_route_set(dialog.pointer, dialog.routes)

    def taken(self, dialog: OurDialog, cseq: int, branch: bytes, peer_tag: bytes) -> None:
        """PJSIP has handed a NOTIFY to us."""
        if not dialog.peer_tag:
            dialog.peer_tag = peer_tag
            target, contact = dialog.pointer.target, dialog.pointer.remote_contact
            if contact != self._ffi.NULL and contact.uri == target:
                dialog.target = target, contact
        dialog.cseq = cseq
        dialog.taken = (hash((cseq, branch)), *dialog.taken[: _KEPT_COPIES - 1])

    def answered(self, dialog: OurDialog, code: int) -> None:
        """PJSIP has read an answer to our SUBSCRIBE, and perhaps put that one's other side in the NOTIFY's place."""
        if dialog.settled:
            return
        dialog.settled = 200 <= code < 300
        if not dialog.peer_tag:
            return
        if string(self._ffi, dialog.pointer.remote_info.tag) != dialog.peer_tag:
            tag = self._ffi.new("char[]", dialog.peer_tag)
            self._set_tag(dialog, self._ffi.new("pj_str_t *", (tag, len(dialog.peer_tag)))[0])
            if dialog.target is not None:
                dialog.pointer.target, dialog.pointer.remote_contact = dialog.target
        if dialog.routes is not None:
            self._lib.pjsip_dlg_set_route_set(dialog.pointer, dialog.routes)

    def auth_session(self, dialog: OurDialog) -> Any:
        """The dialog's digest session."""
        return self._ffi.addressof(dialog.pointer, "auth_session")

    def _seal(self, random: bytes) -> bytes:
        sealing = self._sealing.copy()
        sealing.update(random)
        return sealing.hexdigest().encode()

    def _set_tag(self, dialog: OurDialog, tag: Any) -> None:
        remote = dialog.pointer.remote_info
        if string(self._ffi, remote.tag) != string(self._ffi, tag):
            copy = self._ffi.addressof(remote, "tag")
            self._lib.pj_strdup(dialog.pointer.pool, copy, self._ffi.new("pj_str_t *", tag))

    def _check_dialog(self, ua: Any, local: Any) -> None:
        """Makes a dialog that is never used, and looks whether each field stands where we take it to be."""
        ffi, lib, out = self._ffi, self._lib, self._ffi.new("void **")
        texts = [self._endpoint.text(text) for text in ("<sip:contact@x>", "<sip:remote@x>", "sip:target@x")]
        self._endpoint.must(lib.pjsip_dlg_create_uac(ua, local, *texts, out), "create a dialog")
        dialog = ffi.cast("pjsip_dialog *", out[0])
        fields = (
            dialog.auth_session.pool == dialog.pool,
            dialog.auth_session.endpt == self._endpoint.endpt,
            string(ffi, dialog.target.user) == b"target",
            string(ffi, dialog.local_info.hdr.name) == b"From",
            len(string(ffi, dialog.local_info.tag)) >= _LEAST_TAG_BYTES,
            string(ffi, dialog.remote_info.hdr.name) == b"To",
            string(ffi, dialog.remote_info.tag) == b"",
            dialog.remote_contact == ffi.NULL,
            string(ffi, dialog.call_id.hdr.name) == b"Call-ID",
            len(string(ffi, dialog.call_id.id)) >= _LEAST_TAG_BYTES,
        )
        lib.pjsip_dlg_terminate(dialog)
        if not all(fields):
            raise SipStackError(f"this PJSIP build has another dialog layout {fields}; install the locked wheel.")

    def _check_message(self) -> None:
        """Has PJSIP read a NOTIFY, and looks whether we find in it what it holds."""
        ffi = self._ffi
        text = (
            b"NOTIFY sip:x@x SIP/2.0\r\nVia: SIP/2.0/UDP x:5070;branch=z9hG4bKb\r\nRecord-Route: <sip:a>,<sip:b>\r\n"
            b"From: <sip:f@x>;tag=f\r\nTo: <sip:t@x>;tag=t\r\nCall-ID: i\r\nCSeq: 7 NOTIFY\r\nContent-Length: 0\r\n\r\n"
        )
        memory, buffer = ffi.new("char[]", 2 * ffi.sizeof("pjsip_rx_data")), ffi.new("char[]", text)
        rdata = ffi.cast("pjsip_rx_data *", memory)
        rdata.tp_info.pool = self._endpoint.pool
        rdata.msg_info.msg_buf, rdata.msg_info.len = buffer, len(text)
        source = bytes([2, 0, 0x13, 0xCE, 192, 0, 2, 1])
        ffi.buffer(rdata.pkt_info.src_addr, len(source))[:] = source
        message = rdata.msg_info
        found: tuple[object, ...] = ()
        if self._lib.pjsip_parse_rdata(buffer, len(text), rdata) != ffi.NULL and message.cid != ffi.NULL:
            shown = pjsua2.SipRxData()
            self._lib._ZN2pj9SipRxData6fromPjER13pjsip_rx_data(ffi.cast("void *", int(shown.this)), rdata)  # noqa: SLF001
            record_route = message.record_route
            found = (
                string(ffi, message.cid.id),
                string(ffi, getattr(message, "from").tag),
                string(ffi, message.to.tag),
                string(ffi, message.via.branch),
                message.cseq.cseq,
                record_route != ffi.NULL and record_route.type,
                shown.srcAddress,
                shown.wholeMsg,
            )
        known = (b"i", b"f", b"t", b"z9hG4bKb", 7, _RECORD_ROUTE, "192.0.2.1:5070", text.decode())
        if found != known:
            raise SipStackError(f"this PJSIP build has another message layout: {found}; install the locked wheel.")


def string(ffi: Any, value: Any) -> bytes:
    """A `pj_str_t` as bytes."""
    return bytes(ffi.buffer(value.ptr, value.slen)) if value.slen > 0 else b""
