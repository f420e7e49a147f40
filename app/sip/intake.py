"""What comes in: which requests PJSIP gets to see, and the NOTIFY it is handling at the moment, read from its text.

Every request that is not an in-dialog NOTIFY is swallowed: before the transaction layer (priority 12) what is not sent
to our Contact, whose user part only the presence server has been told, and after the dialog layer (priority 40) what
that left alone. Large bodies are taken out of streams on the way (`stream.py`) and put back here.

Invariants: a stranger's packet costs one reading of its text, and is never answered nor looked up.

Deliberately absent: what a NOTIFY means.
"""

import dataclasses
import secrets
from collections import OrderedDict
from typing import Any

import pjsua2

from app.sip.endpoint import PJ_SUCCESS, Endpoint
from app.sip.message import Notify, read_notify
from app.sip.stream import MOST_STREAMS, Bodies, Stream

_BEFORE_TRANSACTIONS, _AFTER_DIALOGS = 12, 40


class Intake:
    """Filters the endpoint's requests. `contact_user` is what a NOTIFY must be sent to."""

    def __init__(self, endpoint: Endpoint, max_body_bytes: int) -> None:
        self.contact_user = f"watcher-{secrets.token_hex(8)}"
        self._endpoint = endpoint
        # pjsua2's own reader of a packet: hidden from Python, but exported, and free of struct offsets.
        self._read_packet = endpoint.lib._ZN2pj9SipRxData6fromPjER13pjsip_rx_data  # noqa: SLF001  # a C++ symbol
        self._packet = ""  # the request being handled
        self._bodies = Bodies(max_body_bytes)
        self._swallow_strangers()
        self._take_large_bodies()

    def notify(self) -> Notify:
        """The NOTIFY being handled, with the body that was taken out of it on the way."""
        notify = read_notify(self._packet)
        taken = self._bodies.take(self._packet.encode("utf-8", "surrogateescape")) if self._bodies else None
        if taken is None:
            return notify
        declared_bytes, body = taken
        return dataclasses.replace(notify, declared_bytes=declared_bytes, body=body)

    def _swallow_strangers(self) -> None:
        ffi = self._endpoint.ffi
        ours = f"NOTIFY sip:{self.contact_user}@"

        @ffi.callback("int(void *)", error=1)  # type: ignore[untyped-decorator]  # cffi decorator
        def only_notify(rdata: Any) -> int:
            # Even a refusal would be sent to where its Via says, after a blocking look-up of the name in maddr.
            text = self._packet = self.read(rdata)
            return not text.startswith(ours) or "maddr" in text.partition("\r\n\r\n")[0].lower()

        @ffi.callback("int(void *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def nothing(_rdata: Any) -> int:
            return 1

        self._endpoint.register_module("only-notify", _BEFORE_TRANSACTIONS, only_notify)
        self._endpoint.register_module("no-strays", _AFTER_DIALOGS, nothing)

    def _take_large_bodies(self) -> None:
        ffi, lib, streams = self._endpoint.ffi, self._endpoint.lib, OrderedDict[int, Stream]()

        @ffi.callback("int(pjsip_tp_rx_data *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def received(shown: Any) -> int:
            key = int(ffi.cast("uintptr_t", shown.tp))
            stream = streams.get(key)
            if stream is None:
                stream = streams[key] = Stream(self._bodies)
                if len(streams) > MOST_STREAMS:
                    streams.popitem(last=False)
            instead = stream.absorb(ffi.buffer(shown.data, shown.len)[:])
            if instead is not None:  # what is left out leaves from the front
                ffi.memmove(shown.data + (shown.len - len(instead)), instead, len(instead))
                shown.len = len(instead)
            return PJ_SUCCESS

        self._endpoint.kept.append(received)
        manager = lib.pjsip_endpt_get_tpmgr(self._endpoint.endpt)
        self._endpoint.must(lib.pjsip_tpmgr_set_recv_data_cb(manager, received), "see what streams bring")

    def read(self, rdata: Any) -> str:
        """The text of a message that PJSIP is handling."""
        received = pjsua2.SipRxData()
        self._read_packet(self._endpoint.ffi.cast("void *", int(received.this)), rdata)
        return str(received.wholeMsg)
