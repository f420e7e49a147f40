"""The TCP and TLS connections that come and go on the endpoint.

Invariants: C callbacks only count, and keep references; the owner acts after `poll`. A connection that we opened stays
open as long as its peer keeps it, so that its end is noticed; PJSIP alone would close it after 33 s.
"""

import time
from typing import Any

from app.sip.pjsip.endpoint import Endpoint
from app.sip.pjsip.incoming_connections import IncomingConnectionLimit

_CONNECTED, _DISCONNECTED, _DESTROYED = 0, 1, 3  # of enum pjsip_transport_state
_NAME_BYTES = 4
_OURS = (b"tcpc", b"tlsc")
"""PJSIP's names for a connection that it opened; those that it accepted are `tcps…` and `tlss…`."""


class OpenConnections:
    """Keeps our own connections open, and limits the number of connections that others open."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.broken = self.connected = 0
        """How many of our own connections ended, and how many were made."""
        self._limit = IncomingConnectionLimit({endpoint.ports["tcp"]}, {endpoint.ports.get("tls", 0)})
        self._endpoint = endpoint
        self._ours: dict[int, Any] = {}  # by address of the PJSIP transport
        self._ended: list[Any] = []
        self._install_callback()

    def release_ended(self) -> None:
        """Releases connections that ended, and accepts others where the limit allows. Not from a callback."""
        while self._ended:
            self._endpoint.lib.pjsip_transport_dec_ref(self._ended.pop())
        self._limit.resume(time.monotonic())

    def _install_callback(self) -> None:
        ffi, lib = self._endpoint.ffi, self._endpoint.lib
        manager = lib.pjsip_endpt_get_tpmgr(self._endpoint.endpt)
        before = ffi.cast("void(*)(void *, int, const void *)", lib.pjsip_tpmgr_get_state_cb(manager))

        @ffi.callback("void(void *, int, const void *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_state_changed(transport: Any, state: int, info: Any) -> None:
            key = int(ffi.cast("uintptr_t", transport))
            if state == _CONNECTED and ffi.buffer(transport, _NAME_BYTES)[:] not in _OURS:
                self._limit.on_accepted(key, time.monotonic())
            elif state == _CONNECTED and key not in self._ours:
                lib.pjsip_transport_add_ref(transport)
                self._ours[key] = transport
                self.connected += 1
            elif state == _DISCONNECTED and key in self._ours:
                self._ended.append(self._ours.pop(key))
                self.broken += 1
            elif state in (_DISCONNECTED, _DESTROYED):
                self._limit.on_closed(key)
            if before != ffi.NULL:
                before(transport, state, info)

        self._endpoint.kept.append(on_state_changed)
        self._endpoint.must(lib.pjsip_tpmgr_set_state_cb(manager, on_state_changed), "observe connections")
