"""OPTIONS to each presence server, to find out whether it is up (RFC 3261 section 11).

Invariants: the C callback only appends to `answered`; the owner acts on it after `poll`.

Deliberately absent: what the answer says (any answer counts), and the choice of a route (`failover.py`).
"""

from collections import deque
from typing import Any

from app.sip.pjsip.endpoint import PJ_SUCCESS, Endpoint
from app.sip.protocol import Configure

_RX_MSG = 3  # of enum pjsip_event_id_e


class OptionsProbe:
    """Sends OPTIONS on the endpoint."""

    def __init__(self, endpoint: Endpoint, configure: Configure) -> None:
        self.answered: deque[int] = deque()
        """Numbers of the routes whose servers answered; the owner empties it after each `poll`."""
        self._endpoint = endpoint
        self._targets = [endpoint.text(route.uri.replace(";lr", "")) for route in configure.routes]
        self._from = endpoint.text(f"<{configure.watcher_identity}>")
        self._options = endpoint.lib.pjsip_get_options_method()
        self._out = endpoint.ffi.new("void **")
        self._on_answer = self._answer_callback()

    def send(self, route: int) -> None:
        """Sends OPTIONS to the route's server."""
        ffi, lib, target = self._endpoint.ffi, self._endpoint.lib, self._targets[route]
        null = ffi.NULL
        status = lib.pjsip_endpt_create_request(
            self._endpoint.endpt, self._options, target, self._from, target, null, null, -1, null, self._out
        )
        if status == PJ_SUCCESS:
            token = ffi.cast("void *", route + 1)
            lib.pjsip_endpt_send_request(self._endpoint.endpt, self._out[0], -1, token, self._on_answer)

    def _answer_callback(self) -> Any:
        ffi = self._endpoint.ffi

        @ffi.callback("void(void *, pjsip_event *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_answer(token: Any, event: Any) -> None:
            if event.tsx_state.type == _RX_MSG:  # otherwise the transport failed or the wait is over
                self.answered.append(int(ffi.cast("uintptr_t", token)) - 1)

        return on_answer
