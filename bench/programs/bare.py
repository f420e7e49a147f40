"""The baseline for SIP: presence fetches, or lasting dialogs, by PJSIP with as little Python as possible.

Run as `python -m bench.programs.bare PORT …` against a notifier on 127.0.0.1:PORT; prints one line of JSON, as
`load.py` does. A closed loop keeps a number of fetches in flight. A fetch ends when the body of its NOTIFY was read and
says that the terminal is open. A SUBSCRIBE has the same identity, route and header fields as the gateway's.

Invariants: it shares no code with the gateway, so that a change of the gateway cannot change the baseline. It exits by
`os._exit`, because PJSIP aborts in an ordinary exit.

Deliberately absent: what a gateway adds: other processes, handling of failures, time limits, reading of documents.
"""

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import cffi
import pjsua2
from pjsua2 import _pjsua2

_CDEF = """
typedef struct pj_str_t { const char *ptr; long slen; } pj_str_t;
typedef struct pj_time_val { long sec; long msec; } pj_time_val;
typedef struct pj_list { void *prev; void *next; } pj_list;
typedef struct pjsip_evsub_user {
    void (*on_evsub_state)(void *sub, void *event);
    void *on_tsx_state, *on_rx_refresh;
    void (*on_rx_notify)(void *sub, void *rdata, int *code, void **text, void *headers, void **body);
    void *on_client_refresh, *on_server_timeout;
} pjsip_evsub_user;

void pj_log_set_level(int level);
void *pjsip_ua_instance(void);
void *pjsua_get_pjsip_endpt(void);
void *pjsip_endpt_create_pool(void *endpt, const char *name, size_t size, size_t increment);
void pjsip_tsx_set_timers(unsigned t1_ms, unsigned t2_ms, unsigned t4_ms, unsigned td_ms);
unsigned pjsip_tsx_layer_get_tsx_count(void);
int pjsip_endpt_handle_events2(void *endpt, const pj_time_val *timeout, unsigned *count);
void *pjsip_parse_hdr(void *pool, const pj_str_t *name, char *text, size_t size, int *parsed);
void *pjsip_generic_string_hdr_create(void *pool, const pj_str_t *name, const pj_str_t *value);
void pj_list_insert_before(void *position, void *node);
int pjsip_dlg_create_uac(void *ua, const pj_str_t *local, const pj_str_t *contact, const pj_str_t *remote,
                         const pj_str_t *target, void **dialog);
void pjsip_dlg_inc_lock(void *dialog);
void pjsip_dlg_dec_lock(void *dialog);
int pjsip_dlg_set_route_set(void *dialog, void *routes);
int pjsip_evsub_create_uac(void *dialog, const pjsip_evsub_user *user, const pj_str_t *event, unsigned option,
                           void **sub);
int pjsip_evsub_add_header(void *sub, void *headers);
int pjsip_evsub_initiate(void *sub, void *method, int expires, void **tdata);
int pjsip_evsub_send_request(void *sub, void *tdata);
int pjsip_evsub_get_state(void *sub);
void _ZN2pj9SipRxData6fromPjER13pjsip_rx_data(void *self, void *rdata);
void _ZN2pj8SipEvent6fromPjERK11pjsip_event(void *self, void *event);
"""

_NO_EVENT_ID = 1
_TERMINATED = 5
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
_LIMIT_S = 60
_KEPT_MS = (100, 1000)
"""How long PJSIP keeps the transactions of a SUBSCRIBE and of a NOTIFY after their response. With PJSIP's own 5 s and
32 s, the bare loop would end before PJSIP freed the first fetch."""

_KEPT_DIALOGS_MS = (100, 32_000)
"""The same for lasting dialogs: a NOTIFY's transaction is kept as long as RFC 3261 says."""

_SETTLE_S = 3.0
_OPEN = "<basic>open</basic>"


class BareLoop:
    """PJSIP's endpoint and a closed loop of fetches on it, in one thread."""

    def __init__(self, port: int, kept_ms: tuple[int, int] = _KEPT_MS) -> None:
        ffi: Any = cffi.FFI()
        self._ffi = ffi
        ffi.cdef(_CDEF)
        lib: Any = ffi.dlopen(_pjsua2.__file__)
        self._lib = lib
        self._kept: list[Any] = []  # C memory that PJSIP keeps pointers to
        self._asked_s: dict[int, float] = {}  # by subscription: when its SUBSCRIBE was sent
        self._took_s: list[float] = []
        self._free = 0
        self._expires_s = 0
        self._endpoint, own_port = self._open(kept_ms)
        self._endpt = lib.pjsua_get_pjsip_endpt()
        self._ua = lib.pjsip_ua_instance()
        pool = lib.pjsip_endpt_create_pool(self._endpt, b"bare", 4096, 4096)
        self._local = self._text("<sip:terminal-status@localhost>")
        self._contact = self._text(f"<sip:watcher@127.0.0.1:{own_port}>")
        self._event = self._text("presence")
        route = ffi.new("char[]", f"<sip:127.0.0.1:{port};lr>".encode())
        self._kept.append(route)
        self._routes = self._list(lib.pjsip_parse_hdr(pool, self._text("Route"), route, len(route) - 1, ffi.NULL))
        agent = lib.pjsip_generic_string_hdr_create(pool, self._text("User-Agent"), self._text("bench-bare-loop"))
        self._headers = self._list(agent)
        self._user = self._callbacks()
        self._out = ffi.new("void **")
        self._wait = ffi.new("pj_time_val *", (1, 0))

    def run(self, count: int, concurrency: int) -> list[float]:
        """Makes `count` fetches, `concurrency` at once; returns the seconds that each took."""
        lib, endpt, wait, null = self._lib, self._endpt, self._wait, self._ffi.NULL
        took_s = self._took_s = list[float]()
        self._free = concurrency
        limit_s = time.monotonic() + _LIMIT_S
        sent = 0
        while len(took_s) < count:
            while self._free and sent < count:
                self._free -= 1
                sent += 1
                self._fetch(sent)
            lib.pjsip_endpt_handle_events2(endpt, wait, null)
            if time.monotonic() > limit_s:
                _give_up(f"{count - len(took_s)} of {count} fetches had no answer after {_LIMIT_S} s")
        return took_s

    def set_up_dialogs(self, count: int, concurrency: int) -> float:
        """Sets up `count` subscriptions of an hour, `concurrency` at once; returns the seconds that it took."""
        self._expires_s, started_s = 3600, time.perf_counter()
        self.run(count, concurrency)
        return time.perf_counter() - started_s

    def settle(self, seconds: float) -> None:
        """Lets PJSIP work for this long."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self._lib.pjsip_endpt_handle_events2(self._endpt, self._wait, self._ffi.NULL)

    def let_go(self) -> None:
        """Waits until PJSIP has freed the last transaction, and with it the last dialog, of the fetches so far.

        Freeing is part of the cost of a fetch; a gateway, which keeps running, pays it during its run.
        """
        lib, limit_s = self._lib, time.monotonic() + _LIMIT_S
        while lib.pjsip_tsx_layer_get_tsx_count():
            lib.pjsip_endpt_handle_events2(self._endpt, self._wait, self._ffi.NULL)
            if time.monotonic() > limit_s:
                _give_up(f"PJSIP still held transactions after {_LIMIT_S} s")

    def _fetch(self, number: int) -> None:
        ffi, lib, out = self._ffi, self._lib, self._out
        target = ffi.new("char[]", b"sip:terminal-%d@bench.example.com" % number)
        remote = ffi.new("char[]", b"<sip:terminal-%d@bench.example.com>" % number)
        uri = ffi.new("pj_str_t *", (target, len(target) - 1))
        to = ffi.new("pj_str_t *", (remote, len(remote) - 1))
        asked_s = time.perf_counter()
        _must(lib.pjsip_dlg_create_uac(self._ua, self._local, self._contact, to, uri, out))
        dialog = out[0]
        lib.pjsip_dlg_inc_lock(dialog)
        _must(lib.pjsip_dlg_set_route_set(dialog, self._routes))
        _must(lib.pjsip_evsub_create_uac(dialog, self._user, self._event, _NO_EVENT_ID, out))
        sub = out[0]
        self._asked_s[int(ffi.cast("uintptr_t", sub))] = asked_s
        _must(lib.pjsip_evsub_add_header(sub, self._headers))
        _must(lib.pjsip_evsub_initiate(sub, ffi.NULL, self._expires_s, out))
        _must(lib.pjsip_evsub_send_request(sub, out[0]))
        lib.pjsip_dlg_dec_lock(dialog)

    def _callbacks(self) -> Any:
        ffi, asked_s, clock = self._ffi, self._asked_s, time.perf_counter
        read_packet = self._lib._ZN2pj9SipRxData6fromPjER13pjsip_rx_data  # noqa: SLF001  # a C++ symbol
        read_event = self._lib._ZN2pj8SipEvent6fromPjERK11pjsip_event  # noqa: SLF001  # likewise
        get_state = self._lib.pjsip_evsub_get_state

        @ffi.callback("void(void *, void *, int *, void **, void *, void **)")  # type: ignore[untyped-decorator]
        def on_rx_notify(sub: Any, rdata: Any, _code: Any, _text: Any, _headers: Any, _body: Any) -> None:
            packet = pjsua2.SipRxData()
            read_packet(ffi.cast("void *", int(packet.this)), rdata)
            body = packet.wholeMsg.partition("\r\n\r\n")[2]
            if _OPEN not in body:
                _give_up(f"a NOTIFY that does not say open: {body!r}")
            at_s = asked_s.pop(int(ffi.cast("uintptr_t", sub)), None)
            if at_s is not None:
                self._took_s.append(clock() - at_s)
                self._free += 1

        @ffi.callback("void(void *, void *)")  # type: ignore[untyped-decorator]  # cffi decorator
        def on_evsub_state(sub: Any, event: Any) -> None:
            if get_state(sub) == _TERMINATED and int(ffi.cast("uintptr_t", sub)) in asked_s:
                seen = pjsua2.SipEvent()
                read_event(ffi.cast("void *", int(seen.this)), event)
                end = seen.body.tsxState.tsx
                _give_up(f"a fetch ended without a NOTIFY: {end.method} {end.statusCode} {end.statusText}")

        self._kept += [on_rx_notify, on_evsub_state]
        return ffi.new("pjsip_evsub_user *", {"on_rx_notify": on_rx_notify, "on_evsub_state": on_evsub_state})

    def _open(self, kept_ms: tuple[int, int]) -> tuple[Any, int]:
        self._lib.pj_log_set_level(0)
        endpoint = pjsua2.Endpoint()
        endpoint.libCreate()
        config = pjsua2.EpConfig()
        config.uaConfig.threadCnt = 0
        config.uaConfig.mainThreadOnly = True
        config.uaConfig.mwiUnsolicitedEnabled = False
        config.medConfig.threadCnt = 0
        config.medConfig.hasIoqueue = False
        config.logConfig.level = config.logConfig.consoleLevel = 0
        endpoint.libInit(config)
        self._lib.pjsip_tsx_set_timers(500, 4000, *kept_ms)
        transport = pjsua2.TransportConfig()
        transport.boundAddress = "127.0.0.1"
        buffer = pjsua2.SockOpt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        transport.sockOptParams.sockOpts.push_back(buffer)
        number = endpoint.transportCreate(pjsua2.PJSIP_TRANSPORT_UDP, transport)
        endpoint.libStart()
        return endpoint, int(endpoint.transportGetInfo(number).localName.rpartition(":")[2])

    def _list(self, header: Any) -> Any:
        head = self._ffi.new("pj_list *")
        head.prev = head.next = head
        self._lib.pj_list_insert_before(head, header)
        self._kept.append(head)
        return head

    def _text(self, value: str) -> Any:
        text = self._ffi.new("char[]", value.encode("ascii"))
        pj_str = self._ffi.new("pj_str_t *", (text, len(text) - 1))
        self._kept += [text, pj_str]
        return pj_str


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _must(status: int) -> None:
    if status != 0:
        _give_up(f"PJSIP refused a call: {pjsua2.Endpoint.instance().utilStrError(status)}")


def _give_up(why: str) -> NoReturn:
    print(f"bare loop: {why}", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    """Warms up, measures, prints."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.programs.bare", description="Fetches by PJSIP, without a gateway."
    )
    parser.add_argument("port", type=int, help="the notifier's port on 127.0.0.1")
    parser.add_argument("--count", type=int, default=3000, help="fetches of the loaded part")
    parser.add_argument("--concurrency", type=int, default=32, help="fetches in flight in the loaded part")
    parser.add_argument("--single", type=int, default=400, help="fetches one after the other")
    parser.add_argument("--dialogs", type=int, default=0, help="instead: set up this number of lasting dialogs")
    arguments = parser.parse_args()
    loop = BareLoop(arguments.port, _KEPT_MS if not arguments.dialogs else _KEPT_DIALOGS_MS)
    if arguments.dialogs:
        loop.run(64, 8)
        before_bytes = _resident_bytes()
        seconds = loop.set_up_dialogs(arguments.dialogs, arguments.concurrency)
        loop.settle(_SETTLE_S)
        grown = _resident_bytes() - before_bytes
        print(json.dumps({"count": arguments.dialogs, "setup_s": seconds, "bytes": grown}), flush=True)
        os._exit(0)
    loop.run(max(arguments.count // 2, 1), arguments.concurrency)
    loop.let_go()
    cpu_s, started_s = time.process_time(), time.perf_counter()
    loop.run(arguments.count, arguments.concurrency)
    seconds = time.perf_counter() - started_s
    loop.let_go()
    loaded = {"count": arguments.count, "seconds": seconds, "cpu_seconds": time.process_time() - cpu_s}
    print(json.dumps({**loaded, "single_s": loop.run(arguments.single, 1)}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
