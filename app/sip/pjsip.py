"""The C calls: PJSIP's event-subscription API, reached by cffi in the shared object that `pjsua2` has loaded.

pjsua2 itself gives the endpoint and its transports; its `Buddy` is not used, for it cannot fetch and aborts on
malformed documents. `pjsip_evsub_create_uac` hands us every NOTIFY body untouched.

Invariants: one thread makes a `Stack`, calls it and leaves the process by `os._exit`; PJSIP aborts otherwise. A C
callback runs with its dialog's lock held, so it only appends to `Stack.events`; work is done after `poll` returns.
Pointers to a subscription are dropped at its first TERMINATED and never used again. Every request that is not an
in-dialog NOTIFY is swallowed: before the transaction layer (priority 12) what is not sent to our Contact, whose user
part only the presence server has been told, and after the dialog layer (priority 40) what that left alone.

Deliberately absent: what an answer means (`dialog.py`), and any parsing of bodies.
"""

import dataclasses
import os
import secrets
import socket
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import pjsua2

from app.sip.frames import Configure
from app.sip.library import AddressRefused, SipStackError, load_library, measure_limits
from app.sip.message import Event, Final, Notify, plain, read_notify, read_response
from app.sip.stream import MOST_STREAMS, Bodies, Stream

_PJ_SUCCESS = 0
_PJ_EPENDING = 70002
_PJSIP_EINVALIDURI = 171039
_NO_EVENT_ID = 1
_ACCEPTED, _TERMINATED = 2, 5  # of enum pjsip_evsub_state; between them PENDING and ACTIVE
_ALWAYS_ASYNC = 1 << 31
_COMMAND_BUFFER_BYTES = 65536
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024

_TRANSACTION_BUCKETS = 65535
"""Of PJSIP's hash table of transactions, 1023 by default; with tens of thousands alive the searches take most time."""

# RFC 3261 section 17.1.2.2's timers, of which T4 is shortened from 5 s: over UDP PJSIP keeps a SUBSCRIBE's transaction,
# and with it the dialog's 45 KB, so long after its answer, to absorb further copies of that, which would do no harm.
_T1_MS, _T2_MS, _T4_MS, _TD_MS = 500, 4000, 100, 32000


@dataclass(eq=False, slots=True)
class Subscription:
    """One SUBSCRIBE usage in PJSIP. `owner` is the caller's; `pointer` is None once PJSIP has let go of it."""

    owner: Any
    pointer: Any
    dialog: Any
    transaction: Any = None
    """The SUBSCRIBE transaction in progress, so that giving up also ends its retransmissions."""
    notified: bool = False
    """Whether a NOTIFY has come."""


class Stack:
    """One PJSIP endpoint with its transports, owned by the calling thread.

    Raises SipStackError where the build is unknown or a transport cannot be opened.
    """

    def __init__(self, configure: Configure) -> None:
        self.events: deque[tuple[Subscription, Event]] = deque()
        """What the callbacks saw, in order; the owner empties it after each `poll`."""
        self._ffi, self._lib, self.build = load_library()
        # pjsua2's own readers of a packet and an event: hidden from Python, but exported, and free of struct offsets.
        self._read_packet = self._lib._ZN2pj9SipRxData6fromPjER13pjsip_rx_data  # noqa: SLF001  # a C++ symbol
        self._read_event = self._lib._ZN2pj8SipEvent6fromPjERK11pjsip_event  # noqa: SLF001  # likewise
        self._kept: list[Any] = []  # C memory and callbacks that PJSIP keeps pointers to
        self._live: dict[Any, Subscription] = {}  # by pointer
        self._sending: Subscription | None = None
        self._answered: list[tuple[Subscription, Any]] = []  # NOTIFY transactions of this poll
        self._endpoint = self._open(configure)
        self._endpt = self._lib.pjsua_get_pjsip_endpt()
        self._ua = self._lib.pjsip_ua_instance()
        self._pool = self._lib.pjsip_endpt_create_pool(self._endpt, b"watcher", 4096, 4096)
        self._user = self._event_subscription_user()
        self._secret = f"watcher-{secrets.token_hex(8)}"
        self._packet = ""  # the request being handled
        self._swallow_strangers()
        self._bodies = Bodies()
        self._take_large_bodies()
        host, port = configure.listen_host, self.ports[configure.transport]
        contact_host = configure.public_host or host
        parameter = ";transport=tcp" if configure.transport == "tcp" else ""
        self._local = self._text(f"<{configure.watcher_identity}>")
        self._contact = self._text(f"<sip:{self._secret}@{contact_host}:{port}{parameter}>")
        self._event = self._text("presence")
        self._routes = self._header_list([("Route", configure.route)])
        self._headers = self._header_list(configure.headers)
        self._out = self._ffi.new("void **")
        self._timeout = self._ffi.new("pj_time_val *")
        self._count = self._ffi.new("unsigned *")

    def subscribe(self, owner: Any, address: str, expires_s: int) -> Subscription:
        """Sends a SUBSCRIBE for the presentity `address` outside any dialog; 0 seconds is a fetch.

        Raises SipStackError where PJSIP cannot take the address or cannot send. A failure found out while sending
        may instead be reported as a `Final` event before this returns.
        """
        target = self._ffi.new("char[]", address.encode("ascii"))
        remote = self._ffi.new("char[]", f"<{address}>".encode("ascii"))
        uri = self._ffi.new("pj_str_t *", (target, len(target) - 1))
        to = self._ffi.new("pj_str_t *", (remote, len(remote) - 1))
        lib, out = self._lib, self._out
        status = lib.pjsip_dlg_create_uac(self._ua, self._local, self._contact, to, uri, out)
        if status == _PJSIP_EINVALIDURI:
            raise AddressRefused("PJSIP cannot read it")
        self._must(status, "create a dialog")
        subscription = Subscription(owner, None, out[0])
        lib.pjsip_dlg_inc_lock(subscription.dialog)
        try:
            status = lib.pjsip_dlg_set_route_set(subscription.dialog, self._routes)
            if status == _PJ_SUCCESS:
                status = lib.pjsip_evsub_create_uac(subscription.dialog, self._user, self._event, _NO_EVENT_ID, out)
            if status != _PJ_SUCCESS:
                lib.pjsip_dlg_terminate(subscription.dialog)
                self._must(status, "create a subscription")
            subscription.pointer = out[0]
            self._live[subscription.pointer] = subscription
            if self._headers is not None:
                lib.pjsip_evsub_add_header(subscription.pointer, self._headers)
            self._send(subscription, expires_s)
        finally:
            lib.pjsip_dlg_dec_lock(subscription.dialog)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Sends SUBSCRIBE with `Expires: 0` in the dialog (RFC 6665 section 4.1.2.3); PJSIP awaits the last NOTIFY."""
        if subscription.pointer is not None:
            self._send(subscription, 0)

    def forget(self, subscription: Subscription) -> None:
        """Ends the subscription and its transaction here and now, sending nothing; a late NOTIFY is answered 481."""
        if subscription.pointer is None:
            return
        pointer, subscription.pointer = subscription.pointer, None
        del self._live[pointer]
        transaction, subscription.transaction = subscription.transaction, None
        self._lib.pjsip_evsub_terminate(pointer, 0)
        if transaction is not None:
            self._lib.pjsip_tsx_terminate(transaction, 487)

    def poll(self, timeout_ms: int) -> bool:
        """Handles one packet or command and due timers, waiting at most `timeout_ms`; whether there was any."""
        # The NOTIFY that ended a subscription was answered 200. Its transaction would live on for 32 s in case that was
        # lost, and the dialog's memory with it; without it a copy of the NOTIFY is answered 481, and nothing is lost.
        # It is still there: a transaction that is over is destroyed by a timer, so not before the poll that follows.
        for subscription, transaction in self._answered:
            if subscription.pointer is None:
                self._lib.pjsip_tsx_terminate(transaction, 200)
        self._answered.clear()
        self._timeout.sec, self._timeout.msec = divmod(timeout_ms, 1000)
        self._lib.pjsip_endpt_handle_events2(self._endpt, self._timeout, self._count)
        return bool(self._count[0])

    def attach(self, sock: socket.socket, received: Callable[[bytes], None]) -> None:
        """Makes `poll` wake for `sock` too, calling `received` with what was read; b"" is the end of the stream.

        The socket joins PJSIP's own select, so that a command waits neither for a packet nor for a timer.
        """
        ffi = self._ffi
        buffer = ffi.new("char[]", _COMMAND_BUFFER_BYTES)
        length = ffi.new("long *")
        op_key = ffi.new("pj_ioqueue_op_key_t *")
        key = ffi.new("void **")

        def read_again() -> None:
            length[0] = _COMMAND_BUFFER_BYTES
            status = self._lib.pj_ioqueue_recv(key[0], op_key, buffer, length, _ALWAYS_ASYNC)
            if status != _PJ_EPENDING:
                received(b"")

        @ffi.callback("void(void *, pj_ioqueue_op_key_t *, long)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_read(_key: Any, _op_key: Any, count: int) -> None:
            received(bytes(ffi.buffer(buffer, count)) if count > 0 else b"")
            if count > 0:
                read_again()

        callbacks = ffi.new("pj_ioqueue_callback *", {"on_read_complete": on_read})
        self._kept += [buffer, length, op_key, key, on_read, callbacks]
        ioqueue = self._lib.pjsip_endpt_get_ioqueue(self._endpt)
        status = self._lib.pj_ioqueue_register_sock(self._pool, ioqueue, sock.fileno(), ffi.NULL, callbacks, key)
        self._must(status, "watch the command socket")
        read_again()

    def _send(self, subscription: Subscription, expires_s: int) -> None:
        lib, out = self._lib, self._out
        status = lib.pjsip_evsub_initiate(subscription.pointer, self._ffi.NULL, expires_s, out)
        if status == _PJ_SUCCESS and subscription.pointer is not None:
            self._sending = subscription
            status = lib.pjsip_evsub_send_request(subscription.pointer, out[0])
            self._sending = None
        if status != _PJ_SUCCESS and subscription.pointer is not None:
            self.forget(subscription)
            self._must(status, "send SUBSCRIBE")

    def _open(self, configure: Configure) -> Any:
        lib = self._lib
        endpoint = pjsua2.Endpoint()
        endpoint.libCreate()
        measure_limits(self._ffi, lib, self.build)
        # Requests of 1300 bytes and more would otherwise try TCP first; the transport is the operator's choice.
        lib.pjsip_sip_cfg_var.disable_tcp_switch = 1
        # A sips: presentity is asked about over the operator's own leg to the presence server, whatever that is.
        lib.pjsip_sip_cfg_var.disable_tls_switch = lib.pjsip_sip_cfg_var.disable_secure_dlg_check = 1
        lib.pjsip_sip_cfg_var.max_transactions = _TRANSACTION_BUCKETS
        config = pjsua2.EpConfig()
        config.uaConfig.threadCnt = 0
        config.uaConfig.mainThreadOnly = True
        config.uaConfig.mwiUnsolicitedEnabled = False
        config.medConfig.threadCnt = 0
        config.medConfig.hasIoqueue = False
        config.logConfig.level = config.logConfig.consoleLevel = configure.sip_log_level
        config.logConfig.msgLogging = 1
        endpoint.libInit(config)
        lib.pjsip_tsx_set_timers(_T1_MS, _T2_MS, _T4_MS, _TD_MS)
        self.ports: dict[str, int] = {}
        for name, kind in (("udp", pjsua2.PJSIP_TRANSPORT_UDP), ("tcp", pjsua2.PJSIP_TRANSPORT_TCP)):
            transport = pjsua2.TransportConfig()
            transport.boundAddress = configure.listen_host
            transport.port = configure.listen_port
            if name == "udp":  # what the kernel grants of it; NOTIFYs come in bursts
                buffer = pjsua2.SockOpt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
                transport.sockOptParams.sockOpts.push_back(buffer)
            else:  # Nagle's algorithm would hold a SUBSCRIBE back for the peer's delayed ACK, 40 ms
                no_delay = pjsua2.SockOpt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                transport.sockOptParams.sockOpts.push_back(no_delay)
            try:
                number = endpoint.transportCreate(kind, transport)
            except pjsua2.Error as error:
                raise SipStackError(
                    f"cannot open {name} {configure.listen_host}:{configure.listen_port} for SIP: {error.reason}"
                ) from None
            local = endpoint.transportGetInfo(number).localName
            self.ports[name] = int(local.rpartition(":")[2])
        endpoint.libStart()
        return endpoint

    def _event_subscription_user(self) -> Any:
        ffi, lib, live, events = self._ffi, self._lib, self._live, self.events

        @ffi.callback("void(void *, void *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_evsub_state(sub: Any, event: Any) -> None:
            state = lib.pjsip_evsub_get_state(sub)
            if state < _ACCEPTED:
                return
            subscription = live.get(sub)
            if subscription is None:
                return  # TERMINATED may come twice
            subscription.transaction = None  # it has its answer, and will be destroyed by itself
            if state == _TERMINATED:
                del live[sub]
                subscription.pointer = None
                if not subscription.notified:  # else the NOTIFY has told the end
                    events.append((subscription, self._final(event)))

        @ffi.callback("void(void *, void *, void *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_tsx_state(_sub: Any, transaction: Any, _event: Any) -> None:
            if self._sending is not None:  # the first state of a transaction is reported while it is sent
                self._sending.transaction = transaction

        @ffi.callback("void(void *, void *, int *, void **, void *, void **)")  # type: ignore[untyped-decorator]
        def on_rx_notify(sub: Any, rdata: Any, _code: Any, _text: Any, _headers: Any, _body: Any) -> None:
            subscription = live.get(sub)
            if subscription is not None:
                subscription.notified = True
                self._answered.append((subscription, lib.pjsip_rdata_get_tsx(rdata)))
                events.append((subscription, self._notify()))

        @ffi.callback("void(void *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_client_refresh(_sub: Any) -> None:
            """Present so that PJSIP does not refresh by itself; a fetch never is."""

        user = ffi.new(
            "pjsip_evsub_user *",
            {
                "on_evsub_state": on_evsub_state,
                "on_tsx_state": on_tsx_state,
                "on_rx_notify": on_rx_notify,
                "on_client_refresh": on_client_refresh,
            },
        )
        self._kept += [on_evsub_state, on_tsx_state, on_rx_notify, on_client_refresh]
        return user

    def _swallow_strangers(self) -> None:
        ffi, lib = self._ffi, self._lib

        ours = f"NOTIFY sip:{self._secret}@"

        @ffi.callback("int(void *)", error=1)  # type: ignore[untyped-decorator]  # cffi decorator
        def only_notify(rdata: Any) -> int:
            # Even a refusal would be sent to where its Via says, after a blocking look-up of the name in maddr.
            text = self._packet = self._read(rdata)
            return not text.startswith(ours) or "maddr" in text.partition("\r\n\r\n")[0].lower()

        @ffi.callback("int(void *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def nothing(_rdata: Any) -> int:
            return 1

        for name, priority, callback in (("only-notify", 12, only_notify), ("no-strays", 40, nothing)):
            module = ffi.new("pjsip_module *")
            module.name = self._text(name)[0]
            module.id, module.priority, module.on_rx_request = -1, priority, callback
            self._kept += [module, callback]
            self._must(lib.pjsip_endpt_register_module(self._endpt, module), f"register the module {name}")

    def _take_large_bodies(self) -> None:
        ffi, streams = self._ffi, OrderedDict[int, Stream]()

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
            return _PJ_SUCCESS

        self._kept.append(received)
        manager = self._lib.pjsip_endpt_get_tpmgr(self._endpt)
        self._must(self._lib.pjsip_tpmgr_set_recv_data_cb(manager, received), "see what streams bring")

    def _notify(self) -> Notify:
        """The NOTIFY being handled, with the body that was taken out of it on the way."""
        notify = read_notify(self._packet)
        taken = self._bodies.take(self._packet.encode("utf-8", "surrogateescape")) if self._bodies else None
        if taken is None:
            return notify
        declared_bytes, body = taken
        return dataclasses.replace(notify, declared_bytes=declared_bytes, body=body)

    def _read(self, rdata: Any) -> str:
        received = pjsua2.SipRxData()
        self._read_packet(self._ffi.cast("void *", int(received.this)), rdata)
        return str(received.wholeMsg)

    def _final(self, event: Any) -> Final:
        if event == self._ffi.NULL:
            return Final(code=0, phrase="", local=True)
        seen = pjsua2.SipEvent()
        self._read_event(self._ffi.cast("void *", int(seen.this)), event)
        if seen.type != pjsua2.PJSIP_EVENT_TSX_STATE:
            return Final(code=0, phrase="", local=True)
        state = seen.body.tsxState
        if state.type == pjsua2.PJSIP_EVENT_RX_MSG and state.src.rdata.wholeMsg.startswith("SIP/2.0 "):
            return read_response(state.src.rdata.wholeMsg)
        return Final(code=state.tsx.statusCode, phrase=plain(state.tsx.statusText), local=True)

    def _header_list(self, headers: list[tuple[str, str]]) -> Any:
        """A pjsip header list; PJSIP clones it into each request, and its parser keeps pointers into the text."""
        ffi, lib = self._ffi, self._lib
        head = ffi.new("pj_list *")
        head.prev = head.next = head
        for name, value in headers:
            text = ffi.new("char[]", value.encode("ascii"))
            self._kept.append(text)
            if name == "Route":
                header = lib.pjsip_parse_hdr(self._pool, self._text(name), text, len(text) - 1, ffi.NULL)
            else:
                header = lib.pjsip_generic_string_hdr_create(self._pool, self._text(name), self._text(value))
            if header == ffi.NULL:
                raise SipStackError(f"PJSIP cannot read the header {name}: {value}")
            lib.pj_list_insert_before(head, header)
        self._kept.append(head)
        return head

    def _text(self, value: str) -> Any:
        text = self._ffi.new("char[]", value.encode("ascii"))
        pj_str = self._ffi.new("pj_str_t *", (text, len(text) - 1))
        self._kept += [text, pj_str]
        return pj_str

    def _must(self, status: int, what: str) -> None:
        if status != _PJ_SUCCESS:
            raise SipStackError(f"PJSIP could not {what}: {pjsua2.Endpoint.instance().utilStrError(status)}")


def leave(code: int) -> NoReturn:
    """Ends the process without PJSIP's exit handlers, which abort where a thread or object is still about."""
    os._exit(code)
