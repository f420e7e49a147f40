"""The open PJSIP endpoint: its transports, its settings, the C memory that it keeps, and `poll`.

pjsua2 creates the endpoint and the transports; everything else is reached by cffi in the same shared object.

Invariants: one thread creates the `Endpoint`, calls it, and ends the process by `leave`; PJSIP aborts otherwise. What
PJSIP keeps a pointer to is kept alive in `kept`.

Deliberately absent: SUBSCRIBE and its answers (`stack.py`), and who may send us requests (`incoming_messages.py`).
"""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import pjsua2

from app.sip.pjsip.library import SipStackError, load_library, measure_limits
from app.sip.protocol import Configure

PJ_SUCCESS = 0
_PJ_EPENDING = 70002
_ALWAYS_ASYNC = 1 << 31
_COMMAND_BUFFER_BYTES = 65536
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024

_TRANSACTION_BUCKETS = 65535
"""The size of PJSIP's hash table of transactions. With PJSIP's default of 1023, searches among tens of thousands of
transactions took most of the time."""

_PORT_TRIES = 8

# The timers of RFC 3261 section 17.1.2.2. T4 is shortened from 5 s: over UDP PJSIP keeps a SUBSCRIBE's transaction and
# the dialog's 45 KB for T4 after the response, to absorb copies of the response, which would do no harm.
_T1_MS, _T2_MS, _T4_MS, _TD_MS = 500, 4000, 100, 32000


class Endpoint:
    """PJSIP with UDP, TCP and, where a route wants it, TLS open. Raises SipStackError where one cannot be opened."""

    def __init__(self, configure: Configure) -> None:
        self.ffi, self.lib, self.build = load_library()
        self.kept: list[Any] = []  # C memory and callbacks that PJSIP keeps pointers to
        self.ports: dict[str, int] = {}
        self.pjsua = self._open(configure)
        self.endpt = self.lib.pjsua_get_pjsip_endpt()
        self.pool = self.lib.pjsip_endpt_create_pool(self.endpt, b"watcher", 4096, 4096)
        self._wait = self.ffi.new("pj_time_val *")
        self._count = self.ffi.new("unsigned *")

    def poll(self, timeout_ms: int) -> bool:
        """Handles one packet or command and due timers, waiting at most `timeout_ms`. Returns whether there were
        any."""
        self._wait.sec, self._wait.msec = divmod(timeout_ms, 1000)
        self.lib.pjsip_endpt_handle_events2(self.endpt, self._wait, self._count)
        return bool(self._count[0])

    def attach(self, sock: socket.socket, on_received: Callable[[bytes], None]) -> None:
        """Makes `poll` read `sock` too; `on_received` gets the bytes, b"" at the end of the stream.

        The socket joins PJSIP's own select, so a command waits neither for a packet nor for a timer.
        """
        ffi = self.ffi
        buffer = ffi.new("char[]", _COMMAND_BUFFER_BYTES)
        length = ffi.new("long *")
        op_key = ffi.new("pj_ioqueue_op_key_t *")
        key = ffi.new("void **")

        def read_again() -> None:
            length[0] = _COMMAND_BUFFER_BYTES
            status = self.lib.pj_ioqueue_recv(key[0], op_key, buffer, length, _ALWAYS_ASYNC)
            if status != _PJ_EPENDING:
                on_received(b"")

        @ffi.callback("void(void *, pj_ioqueue_op_key_t *, long)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_read(_key: Any, _op_key: Any, count: int) -> None:
            on_received(bytes(ffi.buffer(buffer, count)) if count > 0 else b"")
            if count > 0:
                read_again()

        callbacks = ffi.new("pj_ioqueue_callback *", {"on_read_complete": on_read})
        self.kept += [buffer, length, op_key, key, on_read, callbacks]
        ioqueue = self.lib.pjsip_endpt_get_ioqueue(self.endpt)
        status = self.lib.pj_ioqueue_register_sock(self.pool, ioqueue, sock.fileno(), ffi.NULL, callbacks, key)
        self.must(status, "poll the command socket")
        read_again()

    def text(self, value: str) -> Any:
        """A `pj_str_t *` that lives as long as the process."""
        text = self.ffi.new("char[]", value.encode("ascii"))
        pj_str = self.ffi.new("pj_str_t *", (text, len(text) - 1))
        self.kept += [text, pj_str]
        return pj_str

    def headers(self, headers: list[tuple[str, str]]) -> Any:
        """A PJSIP header list. PJSIP clones it into each request; its parser keeps pointers into the text."""
        ffi, lib = self.ffi, self.lib
        head = ffi.new("pj_list *")
        head.prev = head.next = head
        for name, value in headers:
            text = ffi.new("char[]", value.encode("ascii"))
            self.kept.append(text)
            if name == "Route":
                header = lib.pjsip_parse_hdr(self.pool, self.text(name), text, len(text) - 1, ffi.NULL)
            else:
                header = lib.pjsip_generic_string_hdr_create(self.pool, self.text(name), self.text(value))
            if header == ffi.NULL:
                raise SipStackError(f"PJSIP cannot read the header {name}: {value}")
            lib.pj_list_insert_before(head, header)
        self.kept.append(head)
        return head

    def register_module(self, name: str, priority: int, **callbacks: Any) -> None:
        """Adds a PJSIP module whose callbacks, such as `on_rx_request`, get messages at that priority."""
        module = self.ffi.new("pjsip_module *", callbacks)
        module.name = self.text(name)[0]
        module.id, module.priority = -1, priority
        self.kept += [module, *callbacks.values()]
        self.must(self.lib.pjsip_endpt_register_module(self.endpt, module), f"register the module {name}")

    def must(self, status: int, action: str) -> None:
        """Raises SipStackError where PJSIP returned another status than success. `action` completes "could not …"."""
        if status != PJ_SUCCESS:
            raise SipStackError(f"PJSIP could not {action}: {self.error_text(status)}")

    @staticmethod
    def error_text(status: int) -> str:
        """PJSIP's text for a status."""
        return str(pjsua2.Endpoint.instance().utilStrError(status))

    def _open(self, configure: Configure) -> Any:
        lib = self.lib
        endpoint = pjsua2.Endpoint()
        endpoint.libCreate()
        measure_limits(self.ffi, lib, self.build)
        # Otherwise requests of 1300 bytes and more would try TCP first; the operator chooses the transport.
        lib.pjsip_sip_cfg_var.disable_tcp_switch = 1
        # Queries about sips: presentities take the operator's route to the presence server too, whatever its transport.
        lib.pjsip_sip_cfg_var.disable_tls_switch = lib.pjsip_sip_cfg_var.disable_secure_dlg_check = 1
        lib.pjsip_sip_cfg_var.max_transactions = _TRANSACTION_BUCKETS
        config = pjsua2.EpConfig()
        config.uaConfig.threadCnt = 0
        config.uaConfig.mainThreadOnly = True
        config.uaConfig.mwiUnsolicitedEnabled = False
        for nameserver in configure.nameservers:
            config.uaConfig.nameserver.push_back(nameserver.partition(":")[0])
        config.medConfig.threadCnt = 0
        config.medConfig.hasIoqueue = False
        config.logConfig.level = config.logConfig.consoleLevel = configure.sip_log_level
        config.logConfig.msgLogging = 1
        endpoint.libInit(config)
        self._set_nameserver_ports(configure.nameservers)
        lib.pjsip_tsx_set_timers(_T1_MS, _T2_MS, _T4_MS, _TD_MS)
        kinds = {"udp": pjsua2.PJSIP_TRANSPORT_UDP, "tcp": pjsua2.PJSIP_TRANSPORT_TCP}
        if any(route.transport == "tls" for route in configure.routes):
            kinds["tls"] = pjsua2.PJSIP_TRANSPORT_TLS
        port = configure.listen_port or _free_port(configure.listen_host)
        for name, kind in kinds.items():
            transport = pjsua2.TransportConfig()
            transport.boundAddress = configure.listen_host
            # UDP and TCP listen on one port; TLS on the next one, as with 5060 and 5061 in RFC 3261.
            transport.port = port + 1 if name == "tls" and port else port
            if name == "udp":  # NOTIFYs come in bursts; the kernel may grant less
                buffer = pjsua2.SockOpt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
                transport.sockOptParams.sockOpts.push_back(buffer)
            else:  # Nagle's algorithm would hold a SUBSCRIBE back for the peer's delayed ACK, 40 ms
                no_delay = pjsua2.SockOpt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                transport.sockOptParams.sockOpts.push_back(no_delay)
            if name == "tls":
                transport.tlsConfig.CaListFile = configure.tls_ca_file
                transport.tlsConfig.verifyServer = configure.tls_verify
                transport.tlsConfig.verifyClient = False
            self.ports[name] = self._listen(endpoint, kind, transport, name, any_port=not configure.listen_port)
        endpoint.libStart()
        return endpoint

    def _listen(self, endpoint: Any, kind: int, transport: Any, name: str, *, any_port: bool) -> int:
        """Opens a transport, if `any_port` at another port where its own was taken meanwhile. Returns the port."""
        try:
            number = endpoint.transportCreate(kind, transport)
        except pjsua2.Error as error:
            if any_port and transport.port:
                transport.port = 0
                return self._listen(endpoint, kind, transport, name, any_port=False)
            raise SipStackError(
                f"cannot open {name} {transport.boundAddress}:{transport.port} for SIP: {error.reason}"
            ) from None
        return int(endpoint.transportGetInfo(number).localName.rpartition(":")[2])

    def _set_nameserver_ports(self, nameservers: list[str]) -> None:
        """Sets the name servers again, with their ports: pjsua knows only port 53."""
        if nameservers:
            hosts, _, ports = zip(*(nameserver.partition(":") for nameserver in nameservers), strict=True)
            servers = self.ffi.new("pj_str_t[]", [self.text(host)[0] for host in hosts])
            numbers = self.ffi.new("unsigned short[]", [int(port or 53) for port in ports])
            resolver = self.lib.pjsip_endpt_get_resolver(self.lib.pjsua_get_pjsip_endpt())
            status = self.lib.pj_dns_resolver_set_ns(resolver, len(nameservers), servers, numbers)
            self.must(status, "set the name servers")


def _free_port(host: str) -> int:
    """A port that is free for both UDP and TCP: a server may come to our UDP port over TCP (RFC 3261 section 18.1.1). 0
    where none was found."""
    for _ in range(_PORT_TRIES):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            suppress(OSError),
        ):
            udp.bind((host, 0))
            port = int(udp.getsockname()[1])
            tcp.bind((host, port))
            return port
    return 0


def leave(code: int) -> NoReturn:
    """Ends the process without PJSIP's exit handlers, which abort while a thread or object still exists."""
    os._exit(code)
