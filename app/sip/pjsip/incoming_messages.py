"""Which incoming messages PJSIP gets to see, and the NOTIFY that it is handling, read from its text.

Only NOTIFYs in our dialogs pass; every other request is dropped unanswered. Before the transaction layer (priority 12)
a request is dropped if it is not sent to a Contact of ours or names another dialog; after the dialog layer (priority
40), if PJSIP did not take it. Responses from elsewhere are dropped too (`response_sources.py`). Large bodies are taken
out of TCP and TLS connections on the way (`large_bodies.py`), and put back here.

PJSIP does not report the NOTIFYs that it refuses. A NOTIFY counts as refused if it passed priority 12, is not a copy,
and was not handed to us before the next message or the end of the poll.

Invariants: a packet of an unknown sender costs one look at its start, is never answered, and causes no name lookup.
Callbacks only append to `unusable` and count.

Deliberately absent: what a NOTIFY means.
"""

import dataclasses
import re
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from app.domain.bounded import BoundedDict
from app.sip.headers import Notify, missing_notify_header, read_notify
from app.sip.pjsip.dialogs import CONTACT_USER_LENGTH, DialogIdentity, Dialogs
from app.sip.pjsip.endpoint import PJ_SUCCESS, Endpoint
from app.sip.pjsip.large_bodies import MOST_CONNECTIONS, ConnectionBuffer, LargeBodies
from app.sip.pjsip.maddr import maddr_names, may_have_maddr
from app.sip.pjsip.response_sources import ResponseSources
from app.sip.pjsip.structs import ADDRESS_BYTES, string
from app.sip.pjsip.unreadable_messages import UnreadableMessages

_BEFORE_TRANSACTIONS, _AFTER_DIALOGS = 12, 40
_NOTIFY = b"NOTIFY sip:"
_USER = slice(len(_NOTIFY), len(_NOTIFY) + CONTACT_USER_LENGTH)
_AT = slice(_USER.stop, _USER.stop + 1)
_ODD_USER = re.compile(rb"NOTIFY (?i:sips?):([^@:;\s]{1,200})(?::[^@\s]{0,50})?@")
"""Our Contact as some proxies and servers rewrite it: with `SIP:`, `sips:`, escapes or a password."""

_ROLE_UAC = 0  # of enum pjsip_role_e
_TRANSPORT_BYTES = 3
"""PJSIP names a transport by its kind and its place in memory, as in `tcpc0x7f…`."""

_THIRD_TAG = "third-tag"
_STATUS_2XX = b"SIP/2.0 2"


class _PassedNotify(NamedTuple):
    """A NOTIFY to a Contact of ours that PJSIP has not handed to us yet."""

    dialog: DialogIdentity
    cseq: int
    branch: bytes
    peer_tag: bytes
    our_tag: bytes


def contact_user(start: bytes) -> bytes:
    """The user part of a NOTIFY's Request-URI, however that is written; empty where there is none."""
    if start.startswith(_NOTIFY) and start[_AT] == b"@":
        return start[_USER]
    odd = _ODD_USER.match(start)
    return unquote_to_bytes(odd[1]) if odd else b""


class IncomingMessages:
    """Filters the endpoint's messages. `answers_from`: networks that may answer in place of the servers asked."""

    def __init__(self, endpoint: Endpoint, dialogs: Dialogs, max_body_bytes: int, answers_from: Iterable[str]) -> None:
        self.unusable: deque[tuple[DialogIdentity, str]] = deque()
        """NOTIFYs to our Contacts that PJSIP refused, and why; the owner empties it after each `poll`."""
        self.refused = Counter[str]()
        """The number of dropped messages, by reason."""
        self._endpoint, self._dialogs = endpoint, dialogs
        self._packet = b""  # the NOTIFY being handled
        self._passed: _PassedNotify | None = None
        self._bodies = LargeBodies(max_body_bytes)
        self._sources = ResponseSources(answers_from)
        self._drop_other_requests()
        self._drop_responses_from_elsewhere()
        self.unreadable = UnreadableMessages(endpoint, dialogs, contact_user, self._on_unreadable)
        """What PJSIP could not parse."""
        self._take_large_bodies()

    def take_notify(self) -> Notify:
        """The NOTIFY that PJSIP hands to us, with the body that was taken out of it on the way."""
        if self._passed is not None:
            dialog, cseq, branch, peer_tag, _ = self._passed
            self._dialogs.on_notify_accepted(dialog, cseq, branch, peer_tag)
            self._passed = None
        notify = read_notify(self._packet.decode("utf-8", "surrogateescape"))
        taken = self._bodies.take(self._packet) if self._bodies else None
        if taken is None:
            return notify
        declared_bytes, body = taken
        return dataclasses.replace(notify, declared_bytes=declared_bytes, body=body)

    def finish_message(self) -> None:
        """PJSIP has finished the last message: if that was a NOTIFY and was not handed to us, PJSIP refused it."""
        self.unreadable.finish_message()
        if self._passed is not None:
            passed, self._passed = self._passed, None
            self._refuse(passed.dialog, self._reason(passed))

    def _drop_other_requests(self) -> None:
        ffi, dialogs = self._endpoint.ffi, self._dialogs

        @ffi.callback("int(pjsip_rx_data *)", error=1)  # type: ignore[untyped-decorator]  # cffi decorator
        def on_request(rdata: Any) -> int:
            # Returns 1 to drop a request. Even a refusal would go to where its Via says, after a blocking lookup of
            # the name in maddr.
            self.finish_message()
            message = rdata.msg_info
            packet = self._packet = bytes(ffi.buffer(message.msg_buf, message.len))
            user = contact_user(packet)
            dialog = dialogs.by_user(user)
            if dialog is None and not dialogs.issued(user):
                return 1
            maddr = message.via.maddr.slen > 0  # the topmost Via's, as PJSIP parsed it: the text may be escaped
            our_tag = string(ffi, message.to.tag)
            if (
                dialog is None
                or string(ffi, message.cid.id) != dialog.call_id
                or (our_tag and our_tag.lower() != dialog.tag)
            ):
                # With our tag of a dialog in use it is forged. Otherwise it is late, and PJSIP's 481 ends the
                # subscription at the server (RFC 6665 section 4.1.3).
                in_use = dialogs.has_tag(our_tag)
                if in_use or dialog is not None:
                    self.refused["another-dialog"] += 1
                return in_use or maddr
            if maddr or (may_have_maddr(packet) and any(maddr_names(ffi, message))):
                self._refuse(dialog, "maddr")
                return 1
            cseq, branch = message.cseq.cseq, string(ffi, message.via.branch)
            if hash((cseq, branch)) in dialog.accepted:
                return 0  # a copy
            peer_tag = string(ffi, getattr(message, "from").tag)
            self._passed = _PassedNotify(dialog, cseq, branch, peer_tag, our_tag)
            if not dialog.peer_tag and peer_tag and our_tag:
                dialogs.set_remote_side(dialog, message)
            return 0

        @ffi.callback("int(pjsip_rx_data *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_stray_request(_rdata: Any) -> int:
            return 1

        self._endpoint.register_module("only-notify", _BEFORE_TRANSACTIONS, on_rx_request=on_request)
        self._endpoint.register_module("no-strays", _AFTER_DIALOGS, on_rx_request=on_stray_request)

    def _drop_responses_from_elsewhere(self) -> None:
        ffi, lib, sources = self._endpoint.ffi, self._endpoint.lib, self._sources
        key, a_transaction, a_via = (
            ffi.new("pj_str_t *"),
            ffi.typeof("pjsip_transaction *"),
            ffi.typeof("pjsip_via_hdr *"),
        )

        def drop_maddr_names(message: Any) -> None:
            # A 2xx sets the dialog's target and routes. A name in their `maddr` is ignored.
            packet = bytes(ffi.buffer(message.msg_buf, message.len))
            if packet.startswith(_STATUS_2XX) and may_have_maddr(packet):
                for uri in maddr_names(ffi, message):
                    uri.maddr.slen = 0

        @ffi.callback("int(pjsip_rx_data *)", error=1)  # type: ignore[untyped-decorator]  # cffi decorator
        def on_response(rdata: Any) -> int:
            lib.pjsip_tsx_create_key(rdata.tp_info.pool, key, _ROLE_UAC, rdata.msg_info.cseq.method, rdata)
            transaction = lib.pjsip_tsx_layer_find_tsx(key, 0)
            request = ffi.cast(a_transaction, transaction).last_tx if transaction else ffi.NULL
            if not request:
                return 1  # late, or a copy: no transaction waits for it
            source = bytes(ffi.buffer(rdata.pkt_info.src_addr, ADDRESS_BYTES))
            destination = bytes(ffi.buffer(request.dst_addr, ADDRESS_BYTES))
            via = ffi.cast(a_via, request.msg.hdr.next)  # PJSIP puts Via first
            came_over = bytes(ffi.buffer(rdata.tp_info.transport.name, _TRANSPORT_BYTES)).upper()
            if sources.accepts(source, destination, came_over=came_over, sent_over=string(ffi, via.transport)):
                drop_maddr_names(rdata.msg_info)
                return 0
            self.refused["answer-from-elsewhere"] += 1
            return 1

        self._endpoint.register_module("only-awaited", _BEFORE_TRANSACTIONS, on_rx_response=on_response)

    def _on_unreadable(self, dialog: DialogIdentity | None) -> None:
        if dialog is None:
            self.refused["unreadable"] += 1
        else:
            self._refuse(dialog, "unreadable")

    def _refuse(self, dialog: DialogIdentity, reason: str) -> None:
        self.refused[reason] += 1
        if reason != _THIRD_TAG:  # a fork's NOTIFY gets 481, and our dialog goes on
            self.unusable.append((dialog, reason))

    def _reason(self, passed: _PassedNotify) -> str:
        dialog = passed.dialog
        if not passed.our_tag:
            return "no-to-tag"
        if dialog.peer_tag and passed.peer_tag.lower() != dialog.peer_tag.lower():
            return _THIRD_TAG
        if passed.cseq <= dialog.cseq:
            return "cseq"
        return missing_notify_header(self._packet) or "refused"

    def _take_large_bodies(self) -> None:
        ffi, lib = self._endpoint.ffi, self._endpoint.lib
        bodies, buffers = self._bodies, BoundedDict[int, ConnectionBuffer](MOST_CONNECTIONS)

        @ffi.callback("int(pjsip_tp_rx_data *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_received(shown: Any) -> int:
            key = int(ffi.cast("uintptr_t", shown.tp))
            buffer = buffers.get(key)
            if buffer is None:
                buffer = buffers[key] = ConnectionBuffer(bodies)
            instead = buffer.replace(ffi.buffer(shown.data, shown.len)[:])
            if bodies.lengths_mended:
                self.unreadable.cut["content-length"] += bodies.lengths_mended
                bodies.lengths_mended = 0
            if instead is not None:  # PJSIP drops bytes from the front only, so what remains is put at the end
                ffi.memmove(shown.data + (shown.len - len(instead)), instead, len(instead))
                shown.len = len(instead)
            return PJ_SUCCESS

        self._endpoint.kept.append(on_received)
        manager = lib.pjsip_endpt_get_tpmgr(self._endpoint.endpt)
        self._endpoint.must(lib.pjsip_tpmgr_set_recv_data_cb(manager, on_received), "show received data")
