"""Our dialogs as a NOTIFY names them, and their other side: its tag, its route set and its target.

Each dialog has a Contact user of its own. Tags, Call-IDs and branches are PJSIP's, which derives them from `rand()`:
whoever has seen one can find the next. The Contact user is what only the presence server knows.

By RFC 6665 section 4.4.1 the first NOTIFY makes the dialog, but PJSIP takes it from the 2xx. So the first NOTIFY's tag,
Record-Route and Contact are set here, and once more after a 2xx that came later.

Invariants: PJSIP has no function for these fields; they are reached by their place in its structs (`structs.py`).

Deliberately absent: which messages PJSIP gets to see (`incoming.py`).
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from app.sip.pjsip.endpoint import Endpoint
from app.sip.pjsip.structs import RECORD_ROUTE, string

_PREFIX = b"watcher-"
_RANDOM_BYTES, _SEAL_BYTES = 16, 8
CONTACT_USER_LENGTH = len(_PREFIX) + 2 * (_RANDOM_BYTES + _SEAL_BYTES)

_AT_ONCE = 256

_KEPT_COPIES = 8
"""So many of a dialog's last NOTIFYs are remembered, to know a copy that PJSIP has forgotten (over TCP at once)."""


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
    """The dialogs that are in use."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._ffi, self._lib = endpoint.ffi, endpoint.lib
        self._sealing = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=_SEAL_BYTES)
        self._random: list[bytes] = []
        self._by_user: dict[bytes, OurDialog] = {}
        self._by_tag: dict[bytes, OurDialog] = {}

    def new_contact_user(self) -> bytes:
        """A user part of 128 random bits, with a seal by which it is known later although nothing is kept of it."""
        if not self._random:  # one request to the kernel for many
            digits = secrets.token_hex(_RANDOM_BYTES * _AT_ONCE).encode()
            self._random = [digits[at : at + 2 * _RANDOM_BYTES] for at in range(0, len(digits), 2 * _RANDOM_BYTES)]
        random = self._random.pop()
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
            if header.type == RECORD_ROUTE:  # in the order of the message (RFC 3261 section 12.1.1)
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
            if not dialog.settled and contact != self._ffi.NULL and contact.uri == target:
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
