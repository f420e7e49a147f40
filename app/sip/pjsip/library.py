"""The shared object of PJSIP: the functions called in it, and the limits of the build found.

The Python module `pjsua2` has loaded the object already, and cffi opens the same one. Only one version is accepted: its
struct layouts, timers and limits were checked.

Deliberately absent: calls that send or receive (`stack.py`).
"""

import re
from typing import Any

import cffi
from pjsua2 import _pjsua2

from app.sip.protocol import Build

SUPPORTED_VERSION = "2.15.1"
"""The only PJSIP that is accepted."""

_CDEF = """
typedef struct pj_str_t { const char *ptr; long slen; } pj_str_t;
typedef struct pj_time_val { long sec; long msec; } pj_time_val;
typedef struct pj_list { void *prev; void *next; } pj_list;
typedef struct pjsip_event {
    void *prev, *next; int type;
    struct { void *source; void *tsx; int previous_state; int type; } tsx_state;
} pjsip_event;
typedef struct pjsip_cred_info {
    pj_str_t realm, scheme, username; int data_type; pj_str_t data; char extension[128];
} pjsip_cred_info;
typedef struct pj_ioqueue_op_key_t { void *internal[32]; void *activesock_data; void *user_data; } pj_ioqueue_op_key_t;
typedef struct pjsip_hdr { void *prev, *next; int type; pj_str_t name, sname; void *vptr; } pjsip_hdr;
typedef struct pjsip_array_hdr { pjsip_hdr hdr; unsigned count; pj_str_t values[32]; } pjsip_array_hdr;
typedef struct pjsip_fromto_hdr { pjsip_hdr hdr; void *uri; pj_str_t tag; } pjsip_fromto_hdr;
typedef struct pjsip_cid_hdr { pjsip_hdr hdr; pj_str_t id; } pjsip_cid_hdr;
typedef struct pjsip_method { int id; pj_str_t name; } pjsip_method;
typedef struct pjsip_cseq_hdr { pjsip_hdr hdr; int cseq; pjsip_method method[1]; } pjsip_cseq_hdr;
typedef struct pjsip_via_hdr {
    pjsip_hdr hdr; pj_str_t transport, host; int port, ttl, rport; pj_str_t maddr, received, branch;
} pjsip_via_hdr;
typedef struct pjsip_contact_hdr { pjsip_hdr hdr; int star; void *uri; } pjsip_contact_hdr;
typedef struct pjsip_sip_uri {
    void *vptr; pj_str_t user, password, host; int port; pj_str_t user_param, method, transport; int ttl, lr;
    pj_str_t maddr;
} pjsip_sip_uri;
typedef struct pjsip_name_addr { void *vptr; pj_str_t display; void *uri; } pjsip_name_addr;
typedef struct pjsip_routing_hdr { pjsip_hdr hdr; pjsip_name_addr name_addr; } pjsip_routing_hdr;
typedef struct pjsip_dialog {
    char other_1[48]; void *pool; char other_2[40]; pjsip_sip_uri *target; char other_3[120];
    pjsip_fromto_hdr *local_info; char other_4[40]; pjsip_fromto_hdr *remote_info; char other_5[24];
    pjsip_contact_hdr *remote_contact; char other_6[96]; pjsip_cid_hdr *call_id; char other_7[152];
    struct { void *pool, *endpt; } auth_session;
} pjsip_dialog;
typedef struct pjsip_msg { int type; struct { pjsip_method method; void *uri; } line; pjsip_hdr hdr; } pjsip_msg;
typedef struct pjsip_transport { char name[32]; } pjsip_transport;
typedef struct pjsip_rx_data {
    struct { void *pool; pjsip_transport *transport; void *tp_data; pj_ioqueue_op_key_t op_key; void *rdata; } tp_info;
    struct {
        pj_time_val timestamp; char packet[4000]; unsigned zero; long len;
        char src_addr[28]; int src_addr_len; char src_name[46]; int src_port;
    } pkt_info;
    struct {
        char *msg_buf; int len; pjsip_msg *msg; char *info; pjsip_cid_hdr *cid; pjsip_fromto_hdr *from, *to;
        pjsip_via_hdr *via; pjsip_cseq_hdr *cseq; void *max_fwd, *route; pjsip_hdr *record_route;
    } msg_info;
} pjsip_rx_data;
typedef struct pjsip_tx_data {
    char other_1[392]; pjsip_msg *msg; char other_2[800]; char dst_addr[28];
} pjsip_tx_data;
typedef struct pjsip_transaction { char other_1[384]; pjsip_tx_data *last_tx; } pjsip_transaction;
typedef struct pjsip_module {
    void *prev, *next; pj_str_t name; int id; int priority;
    void *load, *start, *stop, *unload;
    int (*on_rx_request)(pjsip_rx_data *rdata);
    int (*on_rx_response)(pjsip_rx_data *rdata);
    void *on_tx_request, *on_tx_response, *on_tsx_state;
} pjsip_module;
typedef struct pjsip_event_package {
    struct pjsip_event_package *prev, *next; pj_str_t name; void *module; unsigned expires; pjsip_array_hdr *accept;
} pjsip_event_package;
typedef struct pjsip_evsub_module {
    pjsip_module module; void *pool, *endpt; pjsip_event_package packages; pjsip_array_hdr *allow_events;
} pjsip_evsub_module;
typedef struct pjsip_evsub_user {
    void (*on_evsub_state)(void *sub, pjsip_event *event);
    void (*on_tsx_state)(void *sub, void *tsx, pjsip_event *event);
    void (*on_rx_refresh)(void *sub, void *rdata, int *code, void **text, void *headers, void **body);
    void (*on_rx_notify)(void *sub, void *rdata, int *code, void **text, void *headers, void **body);
    void (*on_client_refresh)(void *sub);
    void (*on_server_timeout)(void *sub);
} pjsip_evsub_user;
typedef struct pj_ioqueue_callback {
    void (*on_read_complete)(void *key, pj_ioqueue_op_key_t *op_key, long bytes_read);
    void *on_write_complete, *on_accept_complete, *on_connect_complete;
} pj_ioqueue_callback;

typedef struct pjsip_tp_rx_data { void *tp; char *data; size_t len; } pjsip_tp_rx_data;
typedef struct pjsip_tp_dropped_data { void *tp; char *data; size_t len; int status; } pjsip_tp_dropped_data;

const char *pj_get_version(void);
void pj_log_set_log_func(void (*write)(int level, const char *text, int length));
void pj_log_set_level(int level);
void pj_dump_config(void);
void pjsip_dump_config(void);
int pj_ssl_cipher_is_supported(int cipher);
const char *SSLeay_version(int what);
typedef struct pjsip_cfg_head {
    int allow_port_in_fromto_hdr, accept_replace_in_early_state, allow_tx_hash_in_uri, disable_rport,
        disable_tcp_switch, disable_tls_switch, follow_early_media_fork, req_has_via_alias,
        resolve_hostname_to_get_interface, disable_secure_dlg_check, use_compact_form, accept_multiple_sdp_answers,
        keep_inv_after_tsx_timeout;
    unsigned max_transactions;
} pjsip_cfg_head;
extern pjsip_cfg_head pjsip_sip_cfg_var;

typedef struct pjsip_uri_vptr {
    const pj_str_t *(*p_get_scheme)(const void *uri);
    void *(*p_get_uri)(const void *uri);
    long (*p_print)(int context, const void *uri, char *buffer, size_t size);
    void *p_compare, *p_clone;
} pjsip_uri_vptr;
typedef struct pjsip_uri { pjsip_uri_vptr *vptr; } pjsip_uri;
pjsip_uri *pjsip_parse_uri(void *pool, char *text, size_t size, unsigned options);
void pj_pool_reset(void *pool);

void *pjsip_ua_instance(void);
void *pjsua_get_pjsip_endpt(void);
void *pjsip_endpt_create_pool(void *endpt, const char *name, size_t size, size_t increment);
void *pjsip_endpt_get_ioqueue(void *endpt);
void *pjsip_endpt_get_tpmgr(void *endpt);
void *pjsip_endpt_get_resolver(void *endpt);
int pj_dns_resolver_set_ns(void *resolver, unsigned count, const pj_str_t *servers, const unsigned short *ports);
int pjsip_tpmgr_set_recv_data_cb(void *manager, int (*received)(pjsip_tp_rx_data *shown));
int pjsip_tpmgr_set_drop_data_cb(void *manager, void (*dropped)(pjsip_tp_dropped_data *data));
int pjsip_endpt_register_module(void *endpt, pjsip_module *module);
int pjsip_endpt_handle_events2(void *endpt, const pj_time_val *timeout, unsigned *count);
void *pj_strdup(void *pool, pj_str_t *copy, const pj_str_t *text);
void *pjsip_hdr_clone(void *pool, const void *header);
void *pjsip_routing_hdr_set_route(void *header);
void *pjsip_parse_rdata(char *text, size_t size, pjsip_rx_data *rdata);
void *pjsip_parse_hdr(void *pool, const pj_str_t *name, char *text, size_t size, int *parsed);
void pj_list_insert_before(void *position, void *node);
void pj_list_erase(void *node);
const void *pjsip_endpt_get_capability(void *endpt, int kind, const pj_str_t *name);
void *pjsip_evsub_instance(void);
const void *pjsip_evsub_get_allow_events_hdr(void *module);
void *pjsip_generic_string_hdr_create(void *pool, const pj_str_t *name, const pj_str_t *value);
void *pjsip_generic_string_hdr_init2(void *header, const pj_str_t *name, const pj_str_t *value);

void *pjsip_tpmgr_get_state_cb(const void *manager);
int pjsip_tpmgr_set_state_cb(void *manager, void (*changed)(void *transport, int state, const void *info));
int pjsip_transport_add_ref(void *transport);
int pjsip_transport_dec_ref(void *transport);
void *pjsip_get_options_method(void);
int pjsip_endpt_create_request(void *endpt, const void *method, const pj_str_t *target, const pj_str_t *from,
                               const pj_str_t *to, const pj_str_t *contact, const pj_str_t *call_id, int cseq,
                               const pj_str_t *text, void **tdata);
int pjsip_endpt_send_request(void *endpt, void *tdata, int timeout_ms, void *token,
                             void (*answered)(void *token, pjsip_event *event));
int pjsip_auth_clt_set_credentials(void *session, int count, const pjsip_cred_info *credentials);

int pjsip_dlg_create_uac(void *ua, const pj_str_t *local, const pj_str_t *contact, const pj_str_t *remote,
                         const pj_str_t *target, void **dialog);
void pjsip_dlg_inc_lock(void *dialog);
void pjsip_dlg_dec_lock(void *dialog);
int pjsip_dlg_set_route_set(void *dialog, void *routes);
int pjsip_dlg_terminate(void *dialog);
int pjsip_evsub_create_uac(void *dialog, const pjsip_evsub_user *user, const pj_str_t *event, unsigned option,
                           void **sub);
int pjsip_evsub_add_header(void *sub, void *headers);
int pjsip_evsub_initiate(void *sub, void *method, int expires, void **tdata);
int pjsip_evsub_send_request(void *sub, void *tdata);
int pjsip_evsub_get_state(void *sub);
unsigned pjsip_evsub_get_expires(void *sub);
int pjsip_evsub_terminate(void *sub, int notify);
int pjsip_tsx_terminate(void *tsx, int code);
int pjsip_tsx_create_uac(void *user, void *tdata, void **tsx);
int pjsip_tsx_create_key(void *pool, pj_str_t *key, int role, const pjsip_method *method, pjsip_rx_data *rdata);
void *pjsip_tsx_layer_find_tsx(const pj_str_t *key, int lock);
void *pjsip_rdata_get_tsx(void *rdata);
void pjsip_tsx_set_timers(unsigned t1_ms, unsigned t2_ms, unsigned t4_ms, unsigned td_ms);

int pj_ioqueue_register_sock(void *pool, void *ioqueue, long sock, void *user_data, const pj_ioqueue_callback *callback,
                             void **key);
int pj_ioqueue_recv(void *key, pj_ioqueue_op_key_t *op_key, void *buffer, long *length, unsigned flags);

void _ZN2pj9SipRxData6fromPjER13pjsip_rx_data(void *self, void *rdata);
void _ZN2pj9SipTxData6fromPjER13pjsip_tx_data(void *self, void *tdata);
void _ZN2pj8SipEvent6fromPjERK11pjsip_event(void *self, void *event);
"""


class SipStackError(Exception):
    """PJSIP is not the supported build, a transport cannot be opened, or a call failed."""


class AddressRefused(SipStackError):
    """PJSIP cannot parse or print the address, or its request would be about another URI."""


def load_library() -> tuple[Any, Any, Build]:
    """Returns cffi's handle, the library and its build, and silences the library's log. Raises SipStackError for an
    unsupported build."""
    ffi: Any = cffi.FFI()
    ffi.cdef(_CDEF)
    lib: Any = ffi.dlopen(_pjsua2.__file__)
    version = ffi.string(lib.pj_get_version()).decode()
    if version != SUPPORTED_VERSION:
        raise SipStackError(
            f"PJSIP {version} was found; this gateway supports {SUPPORTED_VERSION} only: install the locked "
            f"pjsua2-python."
        )
    names = re.findall(r"\b(\w+)\(", re.sub(r"typedef struct.*?\} \w+;", "", _CDEF, flags=re.DOTALL))
    missing = [name for name in names if name.startswith(("pj", "_ZN2pj")) and not hasattr(lib, name)]
    if missing:
        raise SipStackError(f"PJSIP {version} lacks the symbols {', '.join(missing)}; install the locked wheel.")
    lib.pj_log_set_level(0)
    return ffi, lib, Build(version=version, symbols=len(names))


def measure_limits(ffi: Any, lib: Any, build: Build) -> None:
    """Sets the build's limits, read from PJSIP's dump of its configuration. Call after `libCreate`."""
    lines: list[str] = []

    @ffi.callback("void(int, const char *, int)")  # type: ignore[untyped-decorator]  # cffi has no types
    def keep(_level: int, text: Any, length: int) -> None:
        lines.append(ffi.string(text, length).decode("ascii", "replace"))

    lib.pj_log_set_log_func(keep)
    lib.pj_log_set_level(3)
    lib.pj_dump_config()
    lib.pjsip_dump_config()
    lib.pj_log_set_level(0)
    lib.pj_log_set_log_func(ffi.NULL)
    found = dict(re.findall(r"(PJ\w+)\s*:\s*(\d+)", "".join(lines)))
    build.ipv6 = found.get("PJ_HAS_IPV6") == "1"
    build.tls = "1.3" if lib.pj_ssl_cipher_is_supported(0x1301) else "1.2"
    # The version of the OpenSSL in the wheel, which may differ from Python's.
    build.openssl = ffi.string(lib.SSLeay_version(0)).decode() if hasattr(lib, "SSLeay_version") else ""
    build.max_message_bytes = int(found.get("PJSIP_MAX_PKT_LEN", 0))
    build.max_uri_bytes = int(found.get("PJSIP_MAX_URL_SIZE", 0))
    build.max_sockets = int(found.get("PJ_IOQUEUE_MAX_HANDLES", 0))
