"""SUBSCRIBE dialogs on PJSIP's event-subscription API, reached by cffi in the shared object that `pjsua2` has loaded.

pjsua2's `Buddy` is not used: it cannot fetch, and it aborts on malformed documents. `pjsip_evsub_create_uac` hands us
each NOTIFY body untouched.

Invariants: a C callback runs with its dialog's lock held, so it only appends to `Stack.events`; the work is done after
`poll` returns. A pointer to an event subscription is dropped at its first TERMINATED and never used again. PJSIP never
refreshes by itself. After a failed refresh the dialog stays, wherever PJSIP can be kept from ending it.

Deliberately absent: the meaning of an answer (`answers.py`), when to ask (`watch_machine.py`), and parsing of bodies.
"""

import dataclasses
import time
from collections import deque
from typing import Any

import pjsua2

from app.sip.headers import Event, Final, Unusable, plain
from app.sip.pjsip.capabilities import EVENT, limit_capabilities
from app.sip.pjsip.connection_queue import ConnectionQueue
from app.sip.pjsip.dialogs import Dialogs
from app.sip.pjsip.endpoint import PJ_SUCCESS, Endpoint
from app.sip.pjsip.incoming_messages import IncomingMessages
from app.sip.pjsip.library import AddressRefused, SipStackError
from app.sip.pjsip.request_parts import RequestParts
from app.sip.pjsip.responses import ResponseReader, final_of
from app.sip.pjsip.structs import check
from app.sip.pjsip.subscribe_dialog import SubscribeDialog
from app.sip.pjsip.unreadable_messages import UnreadableMessages
from app.sip.pjsip.uri_check import UriCheck
from app.sip.protocol import Configure

_PJSIP_EINVALIDURI = 171039
_NO_EVENT_ID = 1
_ACCEPTED, _TERMINATED = 2, 5  # of enum pjsip_evsub_state; between them PENDING and ACTIVE
_TX_MSG, _RX_MSG = 2, 3  # of enum pjsip_event_id_e
_TSX_COMPLETED, _TSX_TERMINATED = pjsua2.PJSIP_TSX_STATE_COMPLETED, pjsua2.PJSIP_TSX_STATE_TERMINATED
_CHALLENGES = (401, 407)
_NOT_SENT = (502, 503)  # PJSIP's own codes for a name that has no address and for a transport that fails

_REQUEST_UPDATED = 490
"""For this code PJSIP's evsub assumes that another refresh has replaced the failed one, and keeps the subscription."""

GRANTED = -2
"""`Final.expires_s` of a 2xx whose text was not read: `Stack.granted_s` returns the duration."""

_MOST_S = 2**31 - 1


class Stack:
    """The SUBSCRIBE dialogs of one PJSIP endpoint, used by one thread only.

    Raises SipStackError where the build is unknown or a transport cannot be opened.
    """

    def __init__(self, configure: Configure) -> None:
        self.events: deque[tuple[SubscribeDialog, Event]] = deque()
        """What the callbacks saw, in order; the owner empties it by `next_event` after each `poll`."""
        self.endpoint = endpoint = Endpoint(configure)
        self._ffi, self._lib = endpoint.ffi, endpoint.lib
        self._responses = ResponseReader(endpoint)
        self._live: dict[Any, SubscribeDialog] = {}  # by pointer
        self.connection_queue: ConnectionQueue[tuple[SubscribeDialog, int]] = ConnectionQueue()
        self._answered: list[tuple[SubscribeDialog, Any]] = []  # NOTIFY transactions of this poll
        self._ua = self._lib.pjsip_ua_instance()
        self._user = self._event_subscription_user()
        self._uri_check = UriCheck(endpoint)
        self._local = endpoint.text(f"<{configure.watcher_identity}>")
        check(endpoint, self._ua, self._local)
        limit_capabilities(endpoint)
        self._dialogs = Dialogs(endpoint)
        self._incoming = IncomingMessages(endpoint, self._dialogs, configure.max_body_bytes, configure.answers_from)
        self._event = endpoint.text(EVENT)
        self._parts = RequestParts(endpoint, configure)
        self._out = self._ffi.new("void **")

    def subscribe(
        self, owner: Any, address: str, expires_s: int, *, route: int = 0, over_tcp: bool = False, generation: int = -1
    ) -> SubscribeDialog:
        """Sends a SUBSCRIBE for the presentity `address` in a new dialog; 0 seconds is a fetch.

        If `generation` is not negative, every answer is reported. `over_tcp` asks a UDP route's server over TCP. Raises
        AddressRefused where PJSIP cannot take the address, and SipStackError where it cannot send. A failure found
        while sending may instead be reported as a `Final` event before this method returns.
        """
        self._uri_check.check(address)
        target = self._ffi.new("char[]", address.encode("ascii"))
        remote = self._ffi.new("char[]", f"<{address}>".encode("ascii"))
        uri = self._ffi.new("pj_str_t *", (target, len(target) - 1))
        to = self._ffi.new("pj_str_t *", (remote, len(remote) - 1))
        lib, out, parts = self._lib, self._out, self._parts
        key = (route, over_tcp and (route, True) in parts.ways)
        way, user = parts.ways[key], self._dialogs.new_contact_user()
        self._ffi.memmove(way.user, user, len(user))
        status = lib.pjsip_dlg_create_uac(self._ua, self._local, way.contact, to, uri, out)
        if status == _PJSIP_EINVALIDURI:
            raise AddressRefused("PJSIP cannot read it")
        self.endpoint.must(status, "create a dialog")
        dialog = SubscribeDialog(owner, None, out[0], generation >= 0, generation=generation)
        dialog.destination, dialog.route = key if way.stream else None, route
        lib.pjsip_dlg_inc_lock(dialog.dialog)
        try:
            status = lib.pjsip_dlg_set_route_set(dialog.dialog, way.route)
            if status == PJ_SUCCESS:
                status = lib.pjsip_evsub_create_uac(dialog.dialog, self._user, self._event, _NO_EVENT_ID, out)
            if status != PJ_SUCCESS:
                lib.pjsip_dlg_terminate(dialog.dialog)
                self.endpoint.must(status, "create a subscription")
            dialog.pointer = out[0]
            self._live[dialog.pointer] = dialog
            dialog.identity = self._dialogs.add(dialog, dialog.dialog, user)
            if parts.credentials is not None:
                session = self._dialogs.auth_session(dialog.identity)
                lib.pjsip_auth_clt_set_credentials(session, 1, parts.credentials)
            parts.write_new_icid()
            lib.pjsip_evsub_add_header(dialog.pointer, parts.headers)
            self._send(dialog, expires_s)
        finally:
            lib.pjsip_dlg_dec_lock(dialog.dialog)
        return dialog

    def can_use_tcp(self, route: int) -> bool:
        """Whether the route is over UDP, so that its server may be asked over TCP too."""
        return (route, True) in self._parts.ways

    def refresh(self, dialog: SubscribeDialog, expires_s: int) -> None:
        """Sends SUBSCRIBE in the dialog; 0 seconds ends it, and PJSIP waits for the last NOTIFY (RFC 6665 4.1.2.3).

        Raises SipStackError; the dialog is then gone.
        """
        if dialog.pointer is not None:
            self._send(dialog, expires_s)

    @property
    def refused(self) -> dict[str, int]:
        """The number of dropped messages, by reason."""
        return dict(self._incoming.refused)

    @property
    def unreadable(self) -> UnreadableMessages:
        """The messages that PJSIP cannot parse."""
        return self._incoming.unreadable

    def granted_s(self, dialog: SubscribeDialog) -> int:
        """The duration that the last 2xx granted, or the requested one if the 2xx names none; -1 after the end."""
        if dialog.pointer is None:
            return -1
        return min(int(self._lib.pjsip_evsub_get_expires(dialog.pointer)), _MOST_S)

    def drop(self, dialog: SubscribeDialog) -> None:
        """Ends the dialog and its transaction locally, sending nothing; a late NOTIFY is answered 481."""
        if dialog.pointer is None:
            return
        pointer = dialog.pointer
        self._remove(dialog)
        transaction, dialog.transaction = dialog.transaction, None
        self._lib.pjsip_evsub_terminate(pointer, 0)
        if transaction is not None:
            self._lib.pjsip_tsx_terminate(transaction, 487)

    def _remove(self, dialog: SubscribeDialog) -> None:
        del self._live[dialog.pointer]
        dialog.pointer = None
        if dialog.identity is not None:
            self._dialogs.remove(dialog.identity)
            dialog.identity = None  # breaks the reference cycle, which only the collector would free

    def next_event(self) -> tuple[SubscribeDialog, Event]:
        """Removes and returns the first of `events`. Raises IndexError where there is none."""
        dialog, event = self.events.popleft()
        if dialog.destination is not None:
            self._update_connection_queue(dialog.destination, event)
        return dialog, event

    def _update_connection_queue(self, destination: tuple[int, bool], event: Event) -> None:
        if not (isinstance(event, Final) and event.local):
            self.connection_queue.on_answered(destination)
        elif event.code in _NOT_SENT:
            for waiting, _ in self.connection_queue.on_refused(destination):
                if waiting.pointer is not None:
                    established = self._lib.pjsip_evsub_get_state(waiting.pointer) >= _ACCEPTED
                    if not established:
                        self.drop(waiting)
                    self.events.append((waiting, dataclasses.replace(event, dialog_gone=not established)))

    def poll(self, timeout_ms: int) -> bool:
        """Handles one packet or command and due timers, waiting at most `timeout_ms`. Returns whether there were
        any."""
        if self.connection_queue.queued:
            for dialog, expires_s in self.connection_queue.due(time.monotonic()):
                try:
                    if dialog.pointer is not None:
                        self._send_now(dialog, expires_s)
                except SipStackError as error:
                    self.events.append((dialog, Final(503, plain(str(error)), local=True, dialog_gone=True)))
        # The NOTIFY that ended a subscription was answered 200. Its transaction would keep the dialog's memory for 32 s
        # to repeat a lost 200; without it a copy of the NOTIFY is answered 481, which does no harm. The transaction
        # still exists here: PJSIP destroys a finished one by a timer, so not before the poll that follows.
        for dialog, transaction in self._answered:
            if dialog.pointer is None:
                self._lib.pjsip_tsx_terminate(transaction, 200)
        self._answered.clear()
        busy = self.endpoint.poll(timeout_ms)
        self._incoming.finish_message()
        while self._incoming.unusable:
            identity, reason = self._incoming.unusable.popleft()
            if identity.owner.pointer is not None:
                self.events.append((identity.owner, Unusable(reason)))
        return busy

    def _send(self, dialog: SubscribeDialog, expires_s: int) -> None:
        name = dialog.destination
        if name is None or self.connection_queue.may_send(name, (dialog, expires_s), time.monotonic()):
            self._send_now(dialog, expires_s)

    def _send_now(self, dialog: SubscribeDialog, expires_s: int) -> None:
        lib, out = self._lib, self._out
        dialog.challenged = False
        status = lib.pjsip_evsub_initiate(dialog.pointer, self._ffi.NULL, expires_s, out)
        if status == PJ_SUCCESS and dialog.pointer is not None:
            status = lib.pjsip_evsub_send_request(dialog.pointer, out[0])
        if status != PJ_SUCCESS and dialog.pointer is not None:
            self.drop(dialog)
            self.endpoint.must(status, "send SUBSCRIBE")

    def _event_subscription_user(self) -> Any:
        ffi, lib, live, events = self._ffi, self._lib, self._live, self.events
        status_of = self._responses.status

        @ffi.callback("void(void *, pjsip_event *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_evsub_state(sub: Any, event: Any) -> None:
            state = lib.pjsip_evsub_get_state(sub)
            if state < _ACCEPTED:
                return
            dialog = live.get(sub)
            if dialog is None:
                return  # TERMINATED may come twice
            if state == _TERMINATED:
                self._remove(dialog)
                dialog.transaction = None
                if not dialog.over:
                    final = self._responses.final(event)
                    events.append((dialog, dataclasses.replace(final, dialog_gone=True)))

        @ffi.callback("void(void *, void *, pjsip_event *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_tsx_state(sub: Any, transaction: Any, event: Any) -> None:
            dialog = live.get(sub)
            if dialog is None:
                return
            if event.tsx_state.type == _TX_MSG and not event.tsx_state.previous_state:
                dialog.transaction = transaction  # a request leaves: ours, or PJSIP's own answer to a challenge
            elif dialog.transaction == transaction:
                code, received = status_of(transaction)[0], event.tsx_state.type == _RX_MSG
                if received and dialog.identity is not None:
                    self._dialogs.on_response(dialog.identity, code)
                if not dialog.reports_answers:
                    if code >= 200:
                        dialog.transaction = None  # it has its answer; PJSIP destroys it
                elif received and 100 < code < 300:  # the usual case: its text need not be read
                    if code >= 200:
                        dialog.transaction = None
                        events.append((dialog, Final(code, "", expires_s=GRANTED)))
                else:
                    self._on_answer(dialog, transaction, event)

        @ffi.callback("void(void *, void *, int *, void **, void *, void **)")  # type: ignore[untyped-decorator]
        def on_rx_notify(sub: Any, rdata: Any, _code: Any, _text: Any, _headers: Any, _body: Any) -> None:
            dialog = live.get(sub)
            if dialog is not None:
                notify = self._incoming.take_notify()
                if not dialog.reports_answers or notify.state == "terminated":
                    dialog.over = True
                    self._answered.append((dialog, lib.pjsip_rdata_get_tsx(rdata)))
                events.append((dialog, notify))

        @ffi.callback("void(void *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_client_refresh(_sub: Any) -> None:
            """Defined so that PJSIP does not refresh by itself."""

        user = ffi.new(
            "pjsip_evsub_user *",
            {
                "on_evsub_state": on_evsub_state,
                "on_tsx_state": on_tsx_state,
                "on_rx_notify": on_rx_notify,
                "on_client_refresh": on_client_refresh,
            },
        )
        self.endpoint.kept += [on_evsub_state, on_tsx_state, on_rx_notify, on_client_refresh]
        return user

    def _on_answer(self, dialog: SubscribeDialog, transaction: Any, event: Any) -> None:
        """Reports the answer to a SUBSCRIBE, unless another callback will report it."""
        seen = self._responses.event(event)
        state = seen.body.tsxState
        if state.tsx.state not in (_TSX_COMPLETED, _TSX_TERMINATED):
            return
        dialog.transaction = None
        code = state.tsx.statusCode
        can_authenticate = self._parts.credentials is not None and not dialog.challenged
        if code in _CHALLENGES and can_authenticate and state.tsx.state == _TSX_COMPLETED:
            dialog.challenged = True
            return  # PJSIP answers the challenge, or ends the subscription where it cannot
        if self._lib.pjsip_evsub_get_state(dialog.pointer) >= _ACCEPTED:
            status = self._responses.status(transaction)
            if status[0] == code:  # otherwise PJSIP ends the subscription, and `on_evsub_state` reports that
                status[0] = _REQUEST_UPDATED
                self.events.append((dialog, final_of(state)))
