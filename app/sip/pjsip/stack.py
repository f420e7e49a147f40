"""The C calls: PJSIP's event-subscription API, reached by cffi in the shared object that `pjsua2` has loaded.

pjsua2's `Buddy` is not used, for it cannot fetch and aborts on malformed documents. `pjsip_evsub_create_uac` hands us
every NOTIFY body untouched.

Invariants: a C callback runs with its dialog's lock held, so it only appends to `Stack.events`; work is done after
`poll` returns. Pointers to a subscription are dropped at its first TERMINATED and never used again. PJSIP never
refreshes by itself; a refresh that failed leaves the dialog in place wherever PJSIP can be kept from ending it.

Deliberately absent: what an answer means (`answers.py`), when to ask (`machine.py`), and any parsing of bodies.
"""

import dataclasses
import secrets
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import pjsua2

from app.sip.headers import Event, Final, Unusable, plain, read_response
from app.sip.pjsip.connecting import Doors
from app.sip.pjsip.dialogs import CONTACT_USER_LENGTH, Dialogs, OurDialog
from app.sip.pjsip.endpoint import PJ_SUCCESS, Endpoint
from app.sip.pjsip.incoming import Intake
from app.sip.pjsip.library import AddressRefused, SipStackError
from app.sip.pjsip.structs import check
from app.sip.pjsip.uris import Uris
from app.sip.protocol import Configure, Credentials

_PJSIP_EINVALIDURI = 171039
_NO_EVENT_ID = 1
_ACCEPTED, _TERMINATED = 2, 5  # of enum pjsip_evsub_state; between them PENDING and ACTIVE
_TX_MSG, _RX_MSG = 2, 3  # of enum pjsip_event_id_e
_TSX_COMPLETED, _TSX_TERMINATED = pjsua2.PJSIP_TSX_STATE_COMPLETED, pjsua2.PJSIP_TSX_STATE_TERMINATED
_CHALLENGES = (401, 407)
_NOT_SENT = (502, 503)  # PJSIP's own codes for a name that has no address and for a transport that fails

_TSX_STATUS = 176
"""Offset in this build's `pjsip_transaction` (library.py accepts no other), checked where it is used."""

_REQUEST_UPDATED = 490
"""By this code PJSIP's evsub takes a failed refresh for one that another has replaced, and keeps the subscription."""


GRANTED = -2
"""`Final.expires_s` of a 2xx that was not read for it: `Stack.granted_s` knows."""

_MOST_S = 2**31 - 1


@dataclass(eq=False, slots=True)
class Subscription:
    """One SUBSCRIBE usage in PJSIP. `owner` is the caller's; `pointer` is None once PJSIP has let go of it."""

    owner: Any
    pointer: Any
    dialog: Any
    standing: bool
    """Whether every answer is reported; of a fetch only what ends it is."""
    transaction: Any = None
    """The SUBSCRIBE transaction in progress, so that giving up also ends its retransmissions."""
    over: bool = False
    """Whether a NOTIFY has told the end."""
    challenged: bool = False
    """Whether the request in progress answers a challenge."""
    generation: int = 0
    """The owner's number of this dialog."""
    door: tuple[int, bool] | None = None
    """Over a stream: by which way it leaves."""
    route: int = 0
    """The number of the presence server that was asked."""
    ours: OurDialog | None = None
    """The dialog as NOTIFYs name it."""


@dataclass(frozen=True, slots=True)
class _Leg:
    """One way to a presence server: its Route header, and our Contact on that transport with room for its user part."""

    route: Any
    contact: Any
    user: Any
    stream: bool


class Stack:
    """Presence subscriptions on one PJSIP endpoint, owned by the calling thread.

    Raises SipStackError where the build is unknown or a transport cannot be opened.
    """

    def __init__(self, configure: Configure) -> None:
        self.events: deque[tuple[Subscription, Event]] = deque()
        """What the callbacks saw, in order; the owner empties it after each `poll`."""
        self.endpoint = endpoint = Endpoint(configure)
        self._ffi, self._lib = endpoint.ffi, endpoint.lib
        # pjsua2's own reader of an event: hidden from Python, but exported, and free of struct offsets.
        self._read_event = self._lib._ZN2pj8SipEvent6fromPjERK11pjsip_event  # noqa: SLF001  # a C++ symbol
        self._live: dict[Any, Subscription] = {}  # by pointer
        self.doors: Doors[tuple[Subscription, int]] = Doors()
        self._answered: list[tuple[Subscription, Any]] = []  # NOTIFY transactions of this poll
        self._ua = self._lib.pjsip_ua_instance()
        self._user = self._event_subscription_user()
        self._uris = Uris(endpoint)
        self._local = endpoint.text(f"<{configure.watcher_identity}>")
        check(endpoint, self._ua, self._local)
        self._dialogs = Dialogs(endpoint)
        self._intake = Intake(endpoint, self._dialogs, configure.max_body_bytes, configure.answers_from)
        self._event = endpoint.text("presence")
        self._legs: dict[tuple[int, bool], _Leg] = {}  # by number of the route, and whether over TCP in place of UDP
        host = configure.public_host or configure.listen_host
        for number, route in enumerate(configure.routes):
            self._legs[number, False] = self._leg(route.uri, route.transport, host)
            if route.transport == "udp":
                uri = route.uri.replace(";transport=udp", "").replace(";lr", ";transport=tcp;lr")
                self._legs[number, True] = self._leg(uri, "tcp", host)
        self._headers = self._header_list(configure)
        self._out = self._ffi.new("void **")
        self._credentials = self._credential(configure.credentials) if configure.credentials else None

    def subscribe(
        self, owner: Any, address: str, expires_s: int, *, route: int = 0, over_tcp: bool = False, generation: int = -1
    ) -> Subscription:
        """Sends a SUBSCRIBE for the presentity `address` outside any dialog; 0 seconds is a fetch.

        `generation` from 0 on makes it a standing one. `over_tcp` goes to a UDP route's server by TCP.
        Raises AddressRefused where PJSIP cannot take the address, and SipStackError where it cannot send. A failure
        found out while sending may instead be reported as a `Final` event before this returns.
        """
        self._uris.check(address)
        target = self._ffi.new("char[]", address.encode("ascii"))
        remote = self._ffi.new("char[]", f"<{address}>".encode("ascii"))
        uri = self._ffi.new("pj_str_t *", (target, len(target) - 1))
        to = self._ffi.new("pj_str_t *", (remote, len(remote) - 1))
        lib, out = self._lib, self._out
        way = (route, over_tcp and (route, True) in self._legs)
        leg, user = self._legs[way], self._dialogs.new_contact_user()
        self._ffi.memmove(leg.user, user, len(user))
        status = lib.pjsip_dlg_create_uac(self._ua, self._local, leg.contact, to, uri, out)
        if status == _PJSIP_EINVALIDURI:
            raise AddressRefused("PJSIP cannot read it")
        self.endpoint.must(status, "create a dialog")
        subscription = Subscription(owner, None, out[0], generation >= 0, generation=generation)
        subscription.door, subscription.route = way if leg.stream else None, route
        lib.pjsip_dlg_inc_lock(subscription.dialog)
        try:
            status = lib.pjsip_dlg_set_route_set(subscription.dialog, leg.route)
            if status == PJ_SUCCESS:
                status = lib.pjsip_evsub_create_uac(subscription.dialog, self._user, self._event, _NO_EVENT_ID, out)
            if status != PJ_SUCCESS:
                lib.pjsip_dlg_terminate(subscription.dialog)
                self.endpoint.must(status, "create a subscription")
            subscription.pointer = out[0]
            self._live[subscription.pointer] = subscription
            subscription.ours = self._dialogs.add(subscription, subscription.dialog, user)
            if self._credentials is not None:
                session = self._dialogs.auth_session(subscription.ours)
                lib.pjsip_auth_clt_set_credentials(session, 1, self._credentials)
            if self._icid is not None:
                self._ffi.memmove(self._icid, secrets.token_hex(16).encode(), 32)
            lib.pjsip_evsub_add_header(subscription.pointer, self._headers)
            self._send(subscription, expires_s)
        finally:
            lib.pjsip_dlg_dec_lock(subscription.dialog)
        return subscription

    def can_use_tcp(self, route: int) -> bool:
        """Whether the route is one of UDP, whose server may be asked over TCP too."""
        return (route, True) in self._legs

    def refresh(self, subscription: Subscription, expires_s: int) -> None:
        """Sends SUBSCRIBE in the dialog; 0 seconds ends it, and PJSIP awaits the last NOTIFY (RFC 6665 4.1.2.3).

        Raises SipStackError, the dialog being gone then.
        """
        if subscription.pointer is not None:
            self._send(subscription, expires_s)

    @property
    def refused(self) -> dict[str, int]:
        """Messages that did not count, by reason."""
        return dict(self._intake.refused)

    def granted_s(self, subscription: Subscription) -> int:
        """How long the last 2xx grants the subscription, or what was asked where it does not say; -1 if it is over."""
        if subscription.pointer is None:
            return -1
        return min(int(self._lib.pjsip_evsub_get_expires(subscription.pointer)), _MOST_S)

    def forget(self, subscription: Subscription) -> None:
        """Ends the subscription and its transaction here and now, sending nothing; a late NOTIFY is answered 481."""
        if subscription.pointer is None:
            return
        pointer = subscription.pointer
        self._let_go(subscription)
        transaction, subscription.transaction = subscription.transaction, None
        self._lib.pjsip_evsub_terminate(pointer, 0)
        if transaction is not None:
            self._lib.pjsip_tsx_terminate(transaction, 487)

    def _let_go(self, subscription: Subscription) -> None:
        del self._live[subscription.pointer]
        subscription.pointer = None
        if subscription.ours is not None:
            self._dialogs.remove(subscription.ours)
            subscription.ours = None  # each refers to the other, and is left to the collector otherwise

    def take(self) -> tuple[Subscription, Event]:
        """The next of `events`. Raises IndexError where there is none."""
        subscription, event = self.events.popleft()
        if subscription.door is not None:
            self._learn(subscription.door, event)
        return subscription, event

    def _learn(self, door: tuple[int, bool], event: Event) -> None:
        if not (isinstance(event, Final) and event.local):
            self.doors.answered(door)
        elif event.code in _NOT_SENT:
            for waiting, _ in self.doors.refused(door):
                if waiting.pointer is not None:
                    established = self._lib.pjsip_evsub_get_state(waiting.pointer) >= _ACCEPTED
                    if not established:
                        self.forget(waiting)
                    self.events.append((waiting, dataclasses.replace(event, dialog_gone=not established)))

    def poll(self, timeout_ms: int) -> bool:
        """Handles one packet or command and due timers, waiting at most `timeout_ms`; whether there was any."""
        if self.doors.waiting:
            for subscription, expires_s in self.doors.due(time.monotonic()):
                try:
                    if subscription.pointer is not None:
                        self._send_now(subscription, expires_s)
                except SipStackError as error:
                    self.events.append((subscription, Final(503, plain(str(error)), local=True, dialog_gone=True)))
        # The NOTIFY that ended a subscription was answered 200. Its transaction would live on for 32 s in case that was
        # lost, and the dialog's memory with it; without it a copy of the NOTIFY is answered 481, and nothing is lost.
        # It is still there: a transaction that is over is destroyed by a timer, so not before the poll that follows.
        for subscription, transaction in self._answered:
            if subscription.pointer is None:
                self._lib.pjsip_tsx_terminate(transaction, 200)
        self._answered.clear()
        busy = self.endpoint.poll(timeout_ms)
        self._intake.conclude()
        while self._intake.unusable:
            dialog, reason = self._intake.unusable.popleft()
            if dialog.owner.pointer is not None:
                self.events.append((dialog.owner, Unusable(reason)))
        return busy

    def _send(self, subscription: Subscription, expires_s: int) -> None:
        door = subscription.door
        if door is None or self.doors.enter(door, (subscription, expires_s), time.monotonic()):
            self._send_now(subscription, expires_s)

    def _send_now(self, subscription: Subscription, expires_s: int) -> None:
        lib, out = self._lib, self._out
        subscription.challenged = False
        status = lib.pjsip_evsub_initiate(subscription.pointer, self._ffi.NULL, expires_s, out)
        if status == PJ_SUCCESS and subscription.pointer is not None:
            status = lib.pjsip_evsub_send_request(subscription.pointer, out[0])
        if status != PJ_SUCCESS and subscription.pointer is not None:
            self.forget(subscription)
            self.endpoint.must(status, "send SUBSCRIBE")

    def _event_subscription_user(self) -> Any:
        ffi, lib, live, events = self._ffi, self._lib, self._live, self.events

        @ffi.callback("void(void *, pjsip_event *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_evsub_state(sub: Any, event: Any) -> None:
            state = lib.pjsip_evsub_get_state(sub)
            if state < _ACCEPTED:
                return
            subscription = live.get(sub)
            if subscription is None:
                return  # TERMINATED may come twice
            if state == _TERMINATED:
                self._let_go(subscription)
                subscription.transaction = None
                if not subscription.over:
                    final = self._final(event)
                    events.append((subscription, dataclasses.replace(final, dialog_gone=True)))

        @ffi.callback("void(void *, void *, pjsip_event *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_tsx_state(sub: Any, transaction: Any, event: Any) -> None:
            subscription = live.get(sub)
            if subscription is None:
                return
            if event.tsx_state.type == _TX_MSG and not event.tsx_state.previous_state:
                subscription.transaction = transaction  # it leaves; or it is PJSIP's own answer to a challenge
            elif subscription.transaction == transaction:
                code, received = self._status(transaction)[0], event.tsx_state.type == _RX_MSG
                if received and subscription.ours is not None:
                    self._dialogs.answered(subscription.ours, code)
                if not subscription.standing:
                    if code >= 200:
                        subscription.transaction = None  # it has its answer, and will be destroyed by itself
                elif received and 100 < code < 300:  # nearly always; the rest is read with less haste and more care
                    if code >= 200:
                        subscription.transaction = None
                        events.append((subscription, Final(code, "", expires_s=GRANTED)))
                else:
                    self._answer(subscription, transaction, event)

        @ffi.callback("void(void *, void *, int *, void **, void *, void **)")  # type: ignore[untyped-decorator]
        def on_rx_notify(sub: Any, rdata: Any, _code: Any, _text: Any, _headers: Any, _body: Any) -> None:
            subscription = live.get(sub)
            if subscription is not None:
                notify = self._intake.notify()
                if not subscription.standing or notify.state == "terminated":
                    subscription.over = True
                    self._answered.append((subscription, lib.pjsip_rdata_get_tsx(rdata)))
                events.append((subscription, notify))

        @ffi.callback("void(void *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_client_refresh(_sub: Any) -> None:
            """Present so that PJSIP does not refresh by itself."""

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

    def _answer(self, subscription: Subscription, transaction: Any, event: Any) -> None:
        """Reports what a standing subscription's SUBSCRIBE was answered, where nothing else will."""
        seen = self._seen(event)
        state = seen.body.tsxState
        if state.tsx.state not in (_TSX_COMPLETED, _TSX_TERMINATED):
            return
        subscription.transaction = None
        code = state.tsx.statusCode
        answerable = self._credentials is not None and not subscription.challenged
        if code in _CHALLENGES and answerable and state.tsx.state == _TSX_COMPLETED:
            subscription.challenged = True
            return  # PJSIP answers it, or ends the subscription where it cannot
        if self._lib.pjsip_evsub_get_state(subscription.pointer) >= _ACCEPTED:
            status = self._status(transaction)
            if status[0] == code:  # else PJSIP ends the subscription, and that is told
                status[0] = _REQUEST_UPDATED
                self.events.append((subscription, self._final_of(state)))

    def _status(self, transaction: Any) -> Any:
        """An `int *` to the status code that the transaction has so far."""
        return self._ffi.cast("int *", self._ffi.cast("char *", transaction) + _TSX_STATUS)

    def _final(self, event: Any) -> Final:
        seen = None if event == self._ffi.NULL else self._seen(event)
        if seen is None or seen.type != pjsua2.PJSIP_EVENT_TSX_STATE:
            return Final(code=0, phrase="", local=True)
        return self._final_of(seen.body.tsxState)

    @staticmethod
    def _final_of(state: Any) -> Final:
        if state.type == pjsua2.PJSIP_EVENT_RX_MSG and state.src.rdata.wholeMsg.startswith("SIP/2.0 "):
            return read_response(state.src.rdata.wholeMsg)
        return Final(code=state.tsx.statusCode, phrase=plain(state.tsx.statusText), local=True)

    def _seen(self, event: Any) -> Any:
        seen = pjsua2.SipEvent()
        self._read_event(self._ffi.cast("void *", int(seen.this)), event)
        return seen

    def _leg(self, uri: str, transport: str, host: str) -> _Leg:
        parameter = "" if transport == "udp" else f";transport={transport}"
        start, room = "<sip:", "x" * CONTACT_USER_LENGTH
        contact = self.endpoint.text(f"{start}{room}@{host}:{self.endpoint.ports[transport]}{parameter}>")
        route = self.endpoint.headers([("Route", f"<{uri}>")])
        return _Leg(route, contact, self._ffi.cast("char *", contact.ptr) + len(start), transport != "udp")

    def _header_list(self, configure: Configure) -> Any:
        """The operator's header fields; of P-Charging-Vector each dialog's own icid is written into its text."""
        headers, self._icid = self.endpoint.headers(configure.headers), None
        if configure.charging_orig_ioi:
            prefix = 'icid-value="'
            value = self.endpoint.text(f'{prefix}{"0" * 32}";orig-ioi={configure.charging_orig_ioi}')
            self._icid = value.ptr + len(prefix)
            name, header = self.endpoint.text("P-Charging-Vector"), self._ffi.new("char[256]")
            self.endpoint.kept.append(header)
            self._lib.pjsip_generic_string_hdr_init2(header, name, value)
            self._lib.pj_list_insert_before(headers, header)
        return headers

    def _credential(self, credentials: Credentials) -> Any:
        credential = self._ffi.new("pjsip_cred_info *")
        credential.realm = self.endpoint.text(credentials.realm)[0]
        credential.scheme = self.endpoint.text("digest")[0]
        credential.username = self.endpoint.text(credentials.username)[0]
        credential.data = self.endpoint.text(credentials.password)[0]
        self.endpoint.kept.append(credential)
        return credential
