"""Whether the presence servers are there: OPTIONS to each (RFC 3261 section 11), and streams that come and go.

Invariants: a callback only appends to `answers` or counts `broken`; what follows is done after `poll`. A connection
that we opened is kept open for as long as its peer does, so that its end is noticed; PJSIP would close it after 33 s.

Deliberately absent: what an answer says beyond that somebody is there, and the choice of a route (`failover.py`).
"""

import time
from collections import deque
from typing import Any

from app.sip.pjsip.accepting import Gate
from app.sip.pjsip.endpoint import PJ_SUCCESS, Endpoint
from app.sip.protocol import Configure

_RX_MSG = 3  # of enum pjsip_event_id_e
_CONNECTED, _DISCONNECTED, _DESTROYED = 0, 1, 3  # of enum pjsip_transport_state
_NAME_BYTES = 4
_OURS = (b"tcpc", b"tlsc")
"""How PJSIP names a connection that it opened; those of others are `tcps…` and `tlss…`."""


class Probe:
    """Asks and listens on the endpoint."""

    def __init__(self, endpoint: Endpoint, configure: Configure) -> None:
        self.answers: deque[tuple[int, bool]] = deque()
        """Number of a route, and whether its server answered; the owner empties it after each `poll`."""
        self.broken = self.connected = 0
        """Connections of ours that ended, and that were made."""
        self.gate = Gate({endpoint.ports["tcp"]}, shut={endpoint.ports.get("tls", 0)})
        self._endpoint = endpoint
        self._held: dict[int, Any] = {}  # connections of ours, by address
        self._ended: list[Any] = []
        self._targets = [endpoint.text(route.uri.replace(";lr", "")) for route in configure.routes]
        self._from = endpoint.text(f"<{configure.watcher_identity}>")
        self._options = endpoint.lib.pjsip_get_options_method()
        self._out = endpoint.ffi.new("void **")
        self._on_answer = self._answer_callback()
        self._watch_streams()

    def ask(self, route: int) -> None:
        """Sends OPTIONS to the route's server; the answer, or that there is none, stands in `answers` later."""
        ffi, lib, target = self._endpoint.ffi, self._endpoint.lib, self._targets[route]
        null = ffi.NULL
        status = lib.pjsip_endpt_create_request(
            self._endpoint.endpt, self._options, target, self._from, target, null, null, -1, null, self._out
        )
        if status == PJ_SUCCESS:
            token = ffi.cast("void *", route + 1)
            status = lib.pjsip_endpt_send_request(self._endpoint.endpt, self._out[0], -1, token, self._on_answer)
        if status != PJ_SUCCESS:
            self.answers.append((route, False))

    def release(self) -> None:
        """Lets go of connections that ended; outside callbacks."""
        while self._ended:
            self._endpoint.lib.pjsip_transport_dec_ref(self._ended.pop())
        self.gate.reopen(time.monotonic())

    def _answer_callback(self) -> Any:
        ffi = self._endpoint.ffi

        @ffi.callback("void(void *, pjsip_event *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def answered(token: Any, event: Any) -> None:
            self.answers.append((int(ffi.cast("uintptr_t", token)) - 1, event.tsx_state.type == _RX_MSG))

        return answered

    def _watch_streams(self) -> None:
        ffi, lib = self._endpoint.ffi, self._endpoint.lib
        manager = lib.pjsip_endpt_get_tpmgr(self._endpoint.endpt)
        before = ffi.cast("void(*)(void *, int, const void *)", lib.pjsip_tpmgr_get_state_cb(manager))

        @ffi.callback("void(void *, int, const void *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def changed(transport: Any, state: int, info: Any) -> None:
            key = int(ffi.cast("uintptr_t", transport))
            if state == _CONNECTED and ffi.buffer(transport, _NAME_BYTES)[:] not in _OURS:
                self.gate.arrived(key, time.monotonic())
            elif state == _CONNECTED and key not in self._held:
                lib.pjsip_transport_add_ref(transport)
                self._held[key] = transport
                self.connected += 1
            elif state == _DISCONNECTED and key in self._held:
                self._ended.append(self._held.pop(key))
                self.broken += 1
            elif state in (_DISCONNECTED, _DESTROYED):
                self.gate.left(key)
            if before != ffi.NULL:
                before(transport, state, info)

        self._endpoint.kept.append(changed)
        self._endpoint.must(lib.pjsip_tpmgr_set_state_cb(manager, changed), "see what becomes of connections")
