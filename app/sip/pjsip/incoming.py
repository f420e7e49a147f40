"""What comes in: which messages PJSIP gets to see, and the NOTIFY it is handling at the moment, read from its text.

Every request that is not an in-dialog NOTIFY is swallowed: before the transaction layer (priority 12) what is not sent
to a Contact of ours, whose user part only the presence server knows, or names another dialog than that Contact's; and
after the dialog layer (priority 40) what that left alone. Answers from elsewhere are swallowed too
(`response_sources.py`). Large bodies are taken out of streams on the way (`large_bodies.py`) and put back here.

A NOTIFY that was sent to a Contact of ours and that PJSIP refuses is found out: it was seen at priority 12, is no copy,
and was not handed to us before the next message, or the end of the poll, came.

Invariants: a stranger's packet costs one reading of its start, and is never answered nor looked up. Callbacks only
append to `unusable` and count.

Deliberately absent: what a NOTIFY means.
"""

import dataclasses
import re
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from app.domain.bounded import BoundedDict
from app.sip.headers import Notify, lacking, read_notify
from app.sip.pjsip.dialogs import CONTACT_USER_LENGTH, Dialogs, OurDialog
from app.sip.pjsip.endpoint import PJ_SUCCESS, Endpoint
from app.sip.pjsip.large_bodies import MOST_STREAMS, Bodies, Stream
from app.sip.pjsip.response_sources import Answers
from app.sip.pjsip.structs import ADDRESS_BYTES, string

_BEFORE_TRANSACTIONS, _AFTER_DIALOGS = 12, 40
_NOTIFY = b"NOTIFY sip:"
_USER = slice(len(_NOTIFY), len(_NOTIFY) + CONTACT_USER_LENGTH)
_AT = slice(_USER.stop, _USER.stop + 1)
_START = 300
_ODD_USER = re.compile(rb"NOTIFY (?i:sips?):([^@:;\s]{1,200})(?::[^@\s]{0,50})?@")
"""As some proxies and servers write our Contact: `SIP:`, `sips:`, with escapes, with a password."""

_ROLE_UAC = 0  # of enum pjsip_role_e
_TRANSPORT_BYTES = 3
"""PJSIP names a transport by its kind and its place in memory, as in `tcpc0x7f…`."""

_THIRD_TAG = "third-tag"


class _Seen(NamedTuple):
    """A NOTIFY to a Contact of ours that PJSIP has yet to hand on."""

    dialog: OurDialog
    cseq: int
    branch: bytes
    peer_tag: bytes
    our_tag: bytes


def contact_user(start: bytes) -> bytes:
    """The user part to which a NOTIFY is sent, however the Request-URI is written; empty where there is none."""
    if start.startswith(_NOTIFY) and start[_AT] == b"@":
        return start[_USER]
    odd = _ODD_USER.match(start)
    return unquote_to_bytes(odd[1]) if odd else b""


class Intake:
    """Filters the endpoint's messages."""

    def __init__(self, endpoint: Endpoint, dialogs: Dialogs, max_body_bytes: int, answers_from: Iterable[str]) -> None:
        self.unusable: deque[tuple[OurDialog, str]] = deque()
        """NOTIFYs to our Contacts that brought nothing, and why; the owner empties it after each `poll`."""
        self.refused = Counter[str]()
        """Messages that did not count, by reason."""
        self._endpoint, self._dialogs = endpoint, dialogs
        self._packet = b""  # the NOTIFY being handled
        self._seen: _Seen | None = None
        self._bodies = Bodies(max_body_bytes)
        self._answers = Answers(answers_from)
        self._swallow_strangers()
        self._swallow_answers_from_elsewhere()
        self._see_what_is_dropped()
        self._take_large_bodies()

    def notify(self) -> Notify:
        """The NOTIFY being handled, with the body that was taken out of it on the way."""
        if self._seen is not None:
            dialog, cseq, branch, peer_tag, _ = self._seen
            self._dialogs.taken(dialog, cseq, branch, peer_tag)
            self._seen = None
        notify = read_notify(self._packet.decode("utf-8", "surrogateescape"))
        taken = self._bodies.take(self._packet) if self._bodies else None
        if taken is None:
            return notify
        declared_bytes, body = taken
        return dataclasses.replace(notify, declared_bytes=declared_bytes, body=body)

    def conclude(self) -> None:
        """PJSIP is done with the last message: a NOTIFY that it has not handed on was refused."""
        if self._seen is not None:
            seen, self._seen = self._seen, None
            self._unusable(seen.dialog, self._why(seen))

    def _swallow_strangers(self) -> None:
        ffi, dialogs = self._endpoint.ffi, self._dialogs

        @ffi.callback("int(pjsip_rx_data *)", error=1)  # type: ignore[untyped-decorator]  # cffi decorator
        def only_notify(rdata: Any) -> int:
            # Even a refusal would be sent to where its Via says, after a blocking look-up of the name in maddr.
            self.conclude()
            message = rdata.msg_info
            packet = self._packet = bytes(ffi.buffer(message.msg_buf, message.len))
            user = contact_user(packet)
            dialog = dialogs.of_user(user)
            if dialog is None and not dialogs.was_ours(user):
                return 1
            maddr = message.via.maddr.slen > 0  # as PJSIP has read it: the name may be escaped, or stand elsewhere
            our_tag = string(ffi, message.to.tag)
            if (
                dialog is None
                or string(ffi, message.cid.id) != dialog.call_id
                or (our_tag and our_tag.lower() != dialog.tag)
            ):
                # For a dialog in use it is forged; else it is late, and PJSIP's 481 ends it (RFC 6665 section 4.1.3).
                in_use = dialogs.has_tag(our_tag)
                if in_use or dialog is not None:
                    self.refused["another-dialog"] += 1
                return in_use or maddr
            if maddr:
                self._unusable(dialog, "maddr")
                return 1
            cseq, branch = message.cseq.cseq, string(ffi, message.via.branch)
            if hash((cseq, branch)) in dialog.taken:
                return 0  # a copy
            peer_tag = string(ffi, getattr(message, "from").tag)
            self._seen = _Seen(dialog, cseq, branch, peer_tag, our_tag)
            if not dialog.peer_tag and peer_tag and our_tag:
                dialogs.adopt(dialog, message)
            return 0

        @ffi.callback("int(pjsip_rx_data *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def nothing(_rdata: Any) -> int:
            return 1

        self._endpoint.register_module("only-notify", _BEFORE_TRANSACTIONS, on_rx_request=only_notify)
        self._endpoint.register_module("no-strays", _AFTER_DIALOGS, on_rx_request=nothing)

    def _swallow_answers_from_elsewhere(self) -> None:
        ffi, lib, answers = self._endpoint.ffi, self._endpoint.lib, self._answers
        key, a_transaction, a_via = (
            ffi.new("pj_str_t *"),
            ffi.typeof("pjsip_transaction *"),
            ffi.typeof("pjsip_via_hdr *"),
        )

        @ffi.callback("int(pjsip_rx_data *)", error=1)  # type: ignore[untyped-decorator]  # cffi decorator
        def only_awaited(rdata: Any) -> int:
            lib.pjsip_tsx_create_key(rdata.tp_info.pool, key, _ROLE_UAC, rdata.msg_info.cseq.method, rdata)
            transaction = lib.pjsip_tsx_layer_find_tsx(key, 0)
            request = ffi.cast(a_transaction, transaction).last_tx if transaction else ffi.NULL
            if not request:
                return 1  # late, or a copy: nothing awaits it
            source = bytes(ffi.buffer(rdata.pkt_info.src_addr, ADDRESS_BYTES))
            destination = bytes(ffi.buffer(request.dst_addr, ADDRESS_BYTES))
            via = ffi.cast(a_via, request.msg.hdr.next)  # the first, as PJSIP makes it
            came = bytes(ffi.buffer(rdata.tp_info.transport.name, _TRANSPORT_BYTES)).upper()
            if answers.counts(source, destination, came=came, sent=string(ffi, via.transport)):
                return 0
            self.refused["answer-from-elsewhere"] += 1
            return 1

        self._endpoint.register_module("only-awaited", _BEFORE_TRANSACTIONS, on_rx_response=only_awaited)

    def _see_what_is_dropped(self) -> None:
        ffi, lib = self._endpoint.ffi, self._endpoint.lib

        @ffi.callback("void(pjsip_tp_dropped_data *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def dropped(shown: Any) -> None:
            dialog = self._dialogs.of_user(contact_user(bytes(ffi.buffer(shown.data, min(shown.len, _START)))))
            if dialog is not None:
                self._unusable(dialog, "unreadable")

        self._endpoint.kept.append(dropped)
        manager = lib.pjsip_endpt_get_tpmgr(self._endpoint.endpt)
        self._endpoint.must(lib.pjsip_tpmgr_set_drop_data_cb(manager, dropped), "see what its parser refuses")

    def _unusable(self, dialog: OurDialog, reason: str) -> None:
        self.refused[reason] += 1
        if reason != _THIRD_TAG:  # of a fork: it gets its 481, and the dialog goes on
            self.unusable.append((dialog, reason))

    def _why(self, seen: _Seen) -> str:
        dialog = seen.dialog
        if not seen.our_tag:
            return "no-to-tag"
        if dialog.peer_tag and seen.peer_tag.lower() != dialog.peer_tag.lower():
            return _THIRD_TAG
        if seen.cseq <= dialog.cseq:
            return "cseq"
        return lacking(self._packet) or "refused"

    def _take_large_bodies(self) -> None:
        ffi, lib, streams = self._endpoint.ffi, self._endpoint.lib, BoundedDict[int, Stream](MOST_STREAMS)

        @ffi.callback("int(pjsip_tp_rx_data *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def received(shown: Any) -> int:
            key = int(ffi.cast("uintptr_t", shown.tp))
            stream = streams.get(key)
            if stream is None:
                stream = streams[key] = Stream(self._bodies)
            instead = stream.absorb(ffi.buffer(shown.data, shown.len)[:])
            if instead is not None:  # what is left out leaves from the front
                ffi.memmove(shown.data + (shown.len - len(instead)), instead, len(instead))
                shown.len = len(instead)
            return PJ_SUCCESS

        self._endpoint.kept.append(received)
        manager = lib.pjsip_endpt_get_tpmgr(self._endpoint.endpt)
        self._endpoint.must(lib.pjsip_tpmgr_set_recv_data_cb(manager, received), "see what streams bring")
