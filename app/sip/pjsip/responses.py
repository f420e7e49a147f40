"""Reads the response, or PJSIP's own failure, out of a PJSIP event."""

from typing import Any

import pjsua2

from app.sip.headers import Final, plain, read_response
from app.sip.pjsip.endpoint import Endpoint

_TSX_STATUS = 176
"""Offset of the status code in this build's `pjsip_transaction` (`library.py` accepts no other build). Each use checks
the value found there."""


class ResponseReader:
    """Reads events of the endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._ffi = endpoint.ffi
        # pjsua2's own reader of an event: hidden from Python but exported, and it spares us struct offsets.
        self._read = endpoint.lib._ZN2pj8SipEvent6fromPjERK11pjsip_event  # noqa: SLF001  # a C++ symbol

    def status(self, transaction: Any) -> Any:
        """An `int *` to the status code that the transaction has so far."""
        return self._ffi.cast("int *", self._ffi.cast("char *", transaction) + _TSX_STATUS)

    def event(self, event: Any) -> Any:
        """Converts a `pjsip_event *` to pjsua2's SipEvent."""
        seen = pjsua2.SipEvent()
        self._read(self._ffi.cast("void *", int(seen.this)), event)
        return seen

    def final(self, event: Any) -> Final:
        """The response that ended a subscription; local code 0 where PJSIP ended it after a 2xx without a NOTIFY."""
        seen = None if event == self._ffi.NULL else self.event(event)
        if seen is None or seen.type != pjsua2.PJSIP_EVENT_TSX_STATE:
            return Final(code=0, phrase="", local=True)
        return final_of(seen.body.tsxState)


def final_of(state: Any) -> Final:
    """The response of a transaction's state, or PJSIP's own code where none came."""
    if state.type == pjsua2.PJSIP_EVENT_RX_MSG and state.src.rdata.wholeMsg.startswith("SIP/2.0 "):
        return read_response(state.src.rdata.wholeMsg)
    return Final(code=state.tsx.statusCode, phrase=plain(state.tsx.statusText), local=True)
