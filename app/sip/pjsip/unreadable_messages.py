"""Messages that PJSIP cannot parse: their unreadable header fields are cut, and PJSIP reads the rest once more.

PJSIP reports what it drops before it leaves the receive buffer, and a report may name fewer bytes than were dropped:
PJSIP then goes on to parse behind them. So the shortened message is written to the end of the dropped one's place, and
PJSIP finds it there, with the same source and the same transport. Everything that checks messages checks this one too.

Invariants: a message is read once more at most. That is done only for a NOTIFY to a Contact of ours, and for a response
that a transaction waits for. Callbacks only count and report.

Deliberately absent: what is cut (`app/sip/unreadable.py`).
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from app.sip.pjsip.dialogs import DialogIdentity, Dialogs
from app.sip.pjsip.endpoint import Endpoint
from app.sip.unreadable import shorten

_SYNTAX = 171020  # PJSIP_EINVALIDMSG
_START = 300
_RESPONSE = b"SIP/2.0 "
_BRANCH = re.compile(rb"\n(?:via|v)[ \t]*:[^\n]*?;[ \t]*branch[ \t]*=[ \t]*([^\s;,]+)", re.IGNORECASE)
_METHOD = re.compile(rb"\ncseq[ \t]*:\s*\d+\s+(\w+)", re.IGNORECASE)


class UnreadableMessages:
    """Handles what PJSIP drops. `on_refused` gets the dialog of a NOTIFY that stays unreadable, or None for a response;
    `user_of` finds the Contact user in the start of a request."""

    def __init__(
        self,
        endpoint: Endpoint,
        dialogs: Dialogs,
        user_of: Callable[[bytes], bytes],
        on_refused: Callable[[DialogIdentity | None], None],
    ) -> None:
        self.cut = Counter[str]()
        """The number of header fields that were cut, by name."""
        self.peer = ""
        """The sender of the last unreadable message, as host and port; empty where unknown: of a stream's messages that
        come together only the first one's sender is known."""
        self._endpoint, self._ffi, self._lib = endpoint, endpoint.ffi, endpoint.lib
        self._dialogs, self._user_of, self._on_refused = dialogs, user_of, on_refused
        self._pool = self._lib.pjsip_endpt_create_pool(endpoint.endpt, b"unreadable", 4096, 4096)
        self._fed_at = 0  # where the message lies that is read once more
        self._packet_at = self._ffi.offsetof("pjsip_rx_data", "pkt_info", "packet")
        self._key = self._ffi.new("pj_str_t *")
        self._install_callback()

    def finish_message(self) -> None:
        """The message that was read once more has been handled."""
        self._fed_at = 0

    def _install_callback(self) -> None:
        ffi, lib = self._ffi, self._lib

        @ffi.callback("void(pjsip_tp_dropped_data *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_dropped(dropped: Any) -> None:
            start = bytes(ffi.buffer(dropped.data, min(dropped.len, _START)))
            is_response = start.startswith(_RESPONSE)
            if is_response:
                if not self._is_awaited(bytes(ffi.buffer(dropped.data, dropped.len))):
                    return
                dialog = None
            else:
                user = self._user_of(start)
                dialog = self._dialogs.by_user(user)
                if dialog is None and not self._dialogs.issued(user):
                    return
            at = int(ffi.cast("uintptr_t", dropped.data))
            fed, self._fed_at = self._fed_at == at, 0
            if not fed:
                self.peer = self._peer(dropped)
            if not fed and dropped.status == _SYNTAX and self._feed(dropped, at):
                return
            if is_response or dialog is not None:
                self._on_refused(dialog)

        self._endpoint.kept.append(on_dropped)
        manager = lib.pjsip_endpt_get_tpmgr(self._endpoint.endpt)
        self._endpoint.must(lib.pjsip_tpmgr_set_drop_data_cb(manager, on_dropped), "report packets it cannot parse")

    def _feed(self, dropped: Any, at: int) -> bool:
        """Leaves the shortened message where PJSIP reads next. Returns whether there is one."""
        try:
            shorter = shorten(bytes(self._ffi.buffer(dropped.data, dropped.len)), self._can_parse)
        finally:
            self._lib.pj_pool_reset(self._pool)
        if shorter is None:
            return False
        skipped = dropped.len - len(shorter.packet)
        self._ffi.memmove(dropped.data + skipped, shorter.packet, len(shorter.packet))
        dropped.len = skipped
        self._fed_at = at + skipped
        self.cut.update(shorter.cut)
        return True

    def _can_parse(self, name: bytes, value: bytes) -> bool:
        ffi = self._ffi
        name_text, text = ffi.new("char[]", name), ffi.new("char[]", value)
        pj_name = ffi.new("pj_str_t *", (name_text, len(name)))
        return bool(self._lib.pjsip_parse_hdr(self._pool, pj_name, text, len(value), ffi.NULL) != ffi.NULL)

    def _is_awaited(self, packet: bytes) -> bool:
        """Whether a transaction of ours waits for this response; whether the sender may answer is checked later."""
        branch, method = _BRANCH.search(packet), _METHOD.search(packet)
        if branch is None or method is None:
            return False
        key = b"c$%b$%b" % (method[1], branch[1])  # as PJSIP's `pjsip_tsx_create_key` writes it
        text = self._ffi.new("char[]", key)
        self._key.ptr, self._key.slen = text, len(key)
        return bool(self._lib.pjsip_tsx_layer_find_tsx(self._key, 0) != self._ffi.NULL)

    def _peer(self, dropped: Any) -> str:
        ffi = self._ffi
        rdata = ffi.cast("pjsip_rx_data *", ffi.cast("char *", dropped.data) - self._packet_at)
        if ffi.cast("void *", rdata.tp_info.transport) != dropped.tp:
            return ""  # an earlier message came with it
        name: str = ffi.string(rdata.pkt_info.src_name).decode("ascii", "replace")
        return f"{name}:{rdata.pkt_info.src_port}"
