"""The dialogs whose NOTIFYs count, and the remote side of each: its tag, route set and target.

Each dialog has a random Contact user of its own, which only the presence server learns. Tags, Call-IDs and branches
protect nothing: PJSIP derives them from `rand()`, so seeing one is enough to compute the next.

By RFC 6665 section 4.4.1 the first NOTIFY establishes the dialog, but PJSIP takes the remote side from the 2xx. So the
first NOTIFY's tag, Record-Route and Contact are set here, and set again after a later 2xx.

Invariants: PJSIP has no functions for these fields; they are reached by their offsets in its structs (`structs.py`).

Deliberately absent: which messages PJSIP gets to see (`incoming_messages.py`).
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from app.sip.pjsip.endpoint import Endpoint
from app.sip.pjsip.structs import RECORD_ROUTE, headers_of, string

_PREFIX = b"watcher-"
_RANDOM_BYTES, _SEAL_BYTES = 16, 8
CONTACT_USER_LENGTH = len(_PREFIX) + 2 * (_RANDOM_BYTES + _SEAL_BYTES)

_USERS_AT_ONCE = 256

_KEPT_COPIES = 8
"""How many of a dialog's last NOTIFYs are remembered, to recognise copies after PJSIP has forgotten the original (over
TCP it forgets at once)."""


@dataclass(eq=False, slots=True)
class DialogIdentity:
    """The values by which a NOTIFY names a dialog. `owner` is the caller's object for the dialog."""

    owner: Any
    pointer: Any
    user: bytes
    """Our Contact's user part."""
    call_id: bytes
    tag: bytes
    """Our tag, in lower case, since PJSIP compares tags without regard to case."""
    peer_tag: bytes = b""
    """The server's tag; empty until PJSIP has accepted a NOTIFY."""
    cseq: int = -1
    """The CSeq of the last NOTIFY that PJSIP accepted."""
    accepted: tuple[int, ...] = ()
    """Hashes of CSeq and branch of the last accepted NOTIFYs."""
    routes: Any = None
    """The route set of the first NOTIFY."""
    target: tuple[Any, Any] | None = None
    """The dialog's target and its Contact header, as the first NOTIFY left them."""
    settled: bool = False
    """Whether a 2xx has come, after which PJSIP changes neither tag nor route set."""


class Dialogs:
    """The dialogs in use, by Contact user and by tag."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._ffi, self._lib = endpoint.ffi, endpoint.lib
        self._seal_key = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=_SEAL_BYTES)
        self._random: list[bytes] = []
        self._by_user: dict[bytes, DialogIdentity] = {}
        self._by_tag: dict[bytes, DialogIdentity] = {}

    def new_contact_user(self) -> bytes:
        """A user part of 128 random bits and a keyed hash, by which `issued` recognises it without storing it."""
        if not self._random:  # one system call for many user parts
            digits = secrets.token_hex(_RANDOM_BYTES * _USERS_AT_ONCE).encode()
            self._random = [digits[at : at + 2 * _RANDOM_BYTES] for at in range(0, len(digits), 2 * _RANDOM_BYTES)]
        random = self._random.pop()
        return _PREFIX + random + self._seal(random)

    def add(self, owner: Any, pointer: Any, user: bytes) -> DialogIdentity:
        """Adds a dialog that PJSIP has created with that Contact user."""
        struct = self._ffi.cast("pjsip_dialog *", pointer)
        call_id, tag = string(self._ffi, struct.call_id.id), string(self._ffi, struct.local_info.tag).lower()
        dialog = DialogIdentity(owner, struct, user, call_id, tag)
        self._by_user[user] = self._by_tag[tag] = dialog
        return dialog

    def remove(self, dialog: DialogIdentity) -> None:
        """Removes a dialog that ended. PJSIP answers a later NOTIFY to its Contact by 481."""
        if self._by_user.pop(dialog.user, None) is not None:
            del self._by_tag[dialog.tag]

    def by_user(self, user: bytes) -> DialogIdentity | None:
        """The dialog with that Contact user."""
        return self._by_user.get(user)

    def issued(self, user: bytes) -> bool:
        """Whether this process created the Contact user, even if its dialog has ended."""
        random, seal = user[len(_PREFIX) : -2 * _SEAL_BYTES], user[-2 * _SEAL_BYTES :]
        return user.startswith(_PREFIX) and secrets.compare_digest(seal, self._seal(random))

    def has_tag(self, tag: bytes) -> bool:
        """Whether `tag` is our tag in a dialog in use."""
        return tag.lower() in self._by_tag

    def set_remote_side(self, dialog: DialogIdentity, message: Any) -> None:
        """Takes the remote side from the first NOTIFY, before PJSIP looks for its dialog."""
        ffi, lib = self._ffi, self._lib
        self._set_tag(dialog, getattr(message, "from").tag)
        if message.record_route == ffi.NULL:
            dialog.routes = None
            return
        dialog.routes = ffi.new("pjsip_hdr *")
        dialog.routes.prev = dialog.routes.next = dialog.routes
        for header in headers_of(ffi, message):
            if header.type == RECORD_ROUTE:  # in the order of the message (RFC 3261 section 12.1.1)
                copy = lib.pjsip_hdr_clone(dialog.pointer.pool, header)
                lib.pjsip_routing_hdr_set_route(copy)
                lib.pj_list_insert_before(dialog.routes, copy)
        lib.pjsip_dlg_set_route_set(dialog.pointer, dialog.routes)

    def on_notify_accepted(self, dialog: DialogIdentity, cseq: int, branch: bytes, peer_tag: bytes) -> None:
        """PJSIP has accepted a NOTIFY and passed it to us."""
        if not dialog.peer_tag:
            dialog.peer_tag = peer_tag
            target, contact = dialog.pointer.target, dialog.pointer.remote_contact
            if not dialog.settled and contact != self._ffi.NULL and contact.uri == target:
                dialog.target = target, contact
        dialog.cseq = cseq
        dialog.accepted = (hash((cseq, branch)), *dialog.accepted[: _KEPT_COPIES - 1])

    def on_response(self, dialog: DialogIdentity, code: int) -> None:
        """PJSIP has read a response to our SUBSCRIBE, which may have overwritten the remote side of the NOTIFY."""
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

    def auth_session(self, dialog: DialogIdentity) -> Any:
        """PJSIP's digest session of the dialog."""
        return self._ffi.addressof(dialog.pointer, "auth_session")

    def _seal(self, random: bytes) -> bytes:
        seal = self._seal_key.copy()
        seal.update(random)
        return seal.hexdigest().encode()

    def _set_tag(self, dialog: DialogIdentity, tag: Any) -> None:
        remote = dialog.pointer.remote_info
        if string(self._ffi, remote.tag) != string(self._ffi, tag):
            copy = self._ffi.addressof(remote, "tag")
            self._lib.pj_strdup(dialog.pointer.pool, copy, self._ffi.new("pj_str_t *", tag))
