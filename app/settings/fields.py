"""The settings: a field for each, with its default, the allowed values (`examples`) and its description.

The table in `docs/settings.md` is generated from these fields: descriptions are written for operators. The file is long
because it is one list. Where values come from: `loading.py`.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from app.settings import kinds as kinds
from app.settings.kinds import PREFIX, is_loopback

Listen = Annotated[str, AfterValidator(kinds.listen)]


class Settings(BaseModel):
    """All settings, immutable. The name in the environment is `TS_` and the field's name in upper case."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    presence_server: Annotated[str, AfterValidator(kinds.presence_server)] = Field(
        description="Presence servers, the preferred one first. Each SUBSCRIBE has one of them as its topmost "
        "Route. The transport is TCP where the URI names none. Required by `serve`.",
        examples=["sip:HOST[:PORT][;transport=tcp|udp|tls], separated by commas"],
    )
    watcher_identity: Annotated[str, AfterValidator(kinds.sip_identity)] = Field(
        "sip:terminal-status@localhost",
        description="The From of every SUBSCRIBE: who the gateway is towards presence servers.",
        examples=["a sip: or sips: URI"],
    )
    asserted_identity: Annotated[str, AfterValidator(kinds.identity)] | None = Field(
        None,
        description="Sent as P-Asserted-Identity (RFC 3325), to presence servers that trust the gateway.",
        examples=["a sip:, sips: or tel: URI; not sent if absent"],
    )
    grpc_listen: Listen = Field(
        "127.0.0.1:50051",
        description="Address on which gRPC is served.",
        examples=["HOST:PORT; port 0 takes any free port"],
    )
    http_listen: Listen = Field(
        "127.0.0.1:8080",
        description="Address on which REST, server-sent events, CAMARA and SOAP are served.",
        examples=["HOST:PORT; port 0 takes any free port"],
    )
    metrics_listen: Listen | None = Field(
        None,
        description="Separate address for /metrics, /healthz and /readyz, without TLS and without credentials. "
        "Where it is set, the HTTP address does not serve /metrics.",
        examples=["HOST:PORT; port 0 takes any free port; not served separately if absent"],
    )
    http_public_url: Annotated[str, AfterValidator(kinds.url)] | None = Field(
        None,
        description="URL by which callers reach the HTTP address. The WSDL and the OpenAPI documents name it, and "
        "the `source` of webhook events begins with it. If absent, the documents name the host of the "
        "request.",
        examples=["http(s)://HOST[:PORT][/PATH]"],
    )
    anonymous_access: Literal["loopback", "anywhere", "never"] = Field(
        "loopback",
        description="Who may call while no client is configured. `loopback`: callers need no credentials, and the "
        "gateway listens on loopback addresses only. `anywhere`: callers need no credentials on any "
        "address, for a gateway behind a proxy that authenticates. `never`: every call needs "
        "credentials, for production, where a lost database must not open the gateway. Callers without "
        "credentials are never operators.",
        examples=["loopback, anywhere or never"],
    )
    trusted_proxies: Annotated[frozenset[str], BeforeValidator(kinds.words), AfterValidator(kinds.networks)] = Field(
        frozenset(),
        description="Reverse proxies in front of the gateway. For requests from these addresses, limits per address"
        " count the client that the proxy names (`Forwarded` or `X-Forwarded-For`), not the proxy, and "
        "`X-Forwarded-Proto` and `X-Forwarded-Host` are used. Requests from other addresses have these "
        "headers ignored.",
        examples=["networks such as 10.1.0.0/28, separated by commas; list the proxies' own addresses only"],
    )
    cors_origins: Annotated[frozenset[str], BeforeValidator(kinds.words), AfterValidator(kinds.origins)] = Field(
        frozenset(),
        description="Web sites whose scripts may call REST and CAMARA from a browser (CORS). A script authenticates by "
        "a key or token that it sends itself, never by what the browser keeps.",
        examples=["origins such as https://console.example.com, separated by commas; no site if absent"],
    )
    http_max_unauthenticated: int = Field(
        256,
        ge=1,
        le=10000,
        description="Largest number of HTTP connections per client address (IPv6: per /64 network) that have not "
        "yet carried an authenticated request. A further connection closes the oldest of them.",
        examples=["1 to 10000"],
    )
    drain_delay_s: float = Field(
        0,
        ge=0,
        le=600,
        description="How long the gateway keeps serving after SIGTERM or SIGINT while `/readyz` and gRPC health "
        "report that it is not ready, in seconds, so that load balancers stop sending calls first. A "
        "second signal stops the gateway at once.",
        examples=["0 to 600"],
    )
    tls_cert_file: Path | None = Field(
        None,
        description="Certificate chain for the gRPC and HTTP addresses. Where it is set, both accept TLS only.",
        examples=["a PEM file; no TLS if absent"],
    )
    tls_key_file: Path | None = Field(
        None, validate_default=True, description="Private key of the certificate.", examples=["a PEM file"]
    )
    tls_client_ca_file: Path | None = Field(
        None,
        description="Certificate authorities that sign client certificates. Where it is set, every caller must "
        "present a client certificate. A name in it (the common name, a DNS name or a URI) is the "
        "client's id, unless the caller also sends credentials.",
        examples=["a PEM file; no client certificates if absent"],
    )
    oidc_issuer: str = Field(
        "",
        max_length=500,
        description="Issuer of access tokens (RFC 9068), which are then accepted beside API keys. Access tokens are"
        " not accepted if empty.",
        examples=["the value of `iss`"],
    )
    oidc_audience: Annotated[str, AfterValidator(kinds.with_issuer)] = Field(
        "",
        max_length=500,
        validate_default=True,
        description="Audience that an access token must name.",
        examples=["the value of `aud`"],
    )
    oidc_jwks_url: Annotated[str, AfterValidator(kinds.jwks_url), AfterValidator(kinds.with_issuer)] = Field(
        "",
        validate_default=True,
        description="URL of the issuer's public keys (RFC 7517). Must be https, or http on this machine.",
        examples=["https://HOST[:PORT]/PATH"],
    )
    oidc_scope: str = Field(
        "",
        pattern=r"^[\x21\x23-\x5b\x5d-\x7e]{0,200}$",
        description="Scope that an access token must have. CAMARA has scopes of its own and does not need this one."
        " If empty, no scope is required, and tokens with one of CAMARA's scopes are accepted by CAMARA"
        " only.",
        examples=["one scope"],
    )
    oidc_client_claim: str = Field(
        "client_id",
        pattern=r"^[A-Za-z0-9_\-.:/]{1,200}$",
        description="Claim of an access token that names the client's id.",
        examples=["a claim, such as azp"],
    )
    oidc_device_claim: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.:/\-]{0,100}$",
        description="Claim that names the device of a three-legged access token. Such tokens are accepted by CAMARA"
        " only. If empty, no claim is read for this.",
        examples=["a claim, such as phone_number"],
    )
    camara_number_pattern: Annotated[str, AfterValidator(kinds.number_pattern)] = Field(
        "tel:{number}",
        description="Terminal address for CAMARA's `phoneNumber`; `{number}` is replaced by the number with its "
        "plus sign.",
        examples=["tel:{number}, or such as sip:{number}@ims.example.net;user=phone"],
    )
    grpc_engine: Literal["queue", "aio"] = Field(
        "queue",
        description="What serves gRPC: `queue` answers from grpcio's completion queue, at a third of the CPU; `aio` is "
        "`grpc.aio`. With a grpcio that lacks what `queue` needs, the gateway logs `grpc_engine_unavailable` and uses "
        "`aio`.",
        examples=["queue or aio"],
    )
    grpc_max_connection_age_s: int = Field(
        3600,
        ge=0,
        le=86400,
        description="Age at which a gRPC connection accepts no more calls, and at which every stream (gRPC and "
        "server-sent events) is ended, in seconds. Clients reconnect by themselves, which spreads them "
        "over the gateways.",
        examples=["0 to 86400; 0 for no limit"],
    )
    grpc_max_unauthenticated_calls: int = Field(
        500,
        ge=1,
        le=100000,
        description="Largest number of open gRPC calls per client address whose caller is not known yet (where no "
        "credentials are needed: whose message has not arrived). Such a call is ended after ten "
        "seconds.",
        examples=["1 to 100000"],
    )
    grpc_max_unauthenticated_connections: int = Field(
        256,
        ge=1,
        le=10000,
        description="Largest number of gRPC connections per client address that have not yet carried an "
        "authenticated call. More are closed (Linux only).",
        examples=["1 to 10000"],
    )
    sip_listen: Annotated[str, AfterValidator(kinds.sip_listen)] = Field(
        "127.0.0.1:0",
        validate_default=True,
        description="Local SIP address, for UDP and TCP. The presence server must be able to reach it.",
        examples=["IPv4:PORT; port 0 takes any free port"],
    )
    sip_public_host: str | None = Field(
        None,
        validate_default=True,
        pattern=r"^[A-Za-z0-9.\-]{1,253}$",
        description="Host in the Contact header, where it differs from the SIP address (NAT, containers).",
        examples=["a host name or IPv4 address"],
    )
    sip_workers: int = Field(
        1,
        ge=1,
        le=32,
        description="Number of processes that speak SIP. Terminals are divided among them by a hash. With a fixed "
        "SIP port, each process listens two ports above the one before.",
        examples=["1 to 32"],
    )
    sip_username: str | None = Field(
        None,
        pattern=r"^[!-~]{1,128}$",
        description="User name for digest challenges of the presence server (MD5, SHA-256).",
        examples=["printable ASCII; challenges are not answered if absent"],
    )
    sip_password: Annotated[SecretStr, AfterValidator(kinds.secret)] = Field(
        SecretStr(""), description="Password for TS_SIP_USERNAME.", examples=["printable ASCII"]
    )
    sip_realm: str = Field(
        "*",
        pattern=r"^[ -~]{1,128}$",
        description="Realm whose digest challenges are answered.",
        examples=["a realm; `*` for every realm"],
    )
    sip_tls_ca_file: Path | None = Field(
        None,
        description="Certificate authorities that sign the certificate of a presence server over TLS.",
        examples=["a PEM file"],
    )
    sip_tls_verify: bool = Field(
        True,
        description="Whether the certificate of a presence server over TLS is verified. Switch it off in "
        "laboratories only.",
        examples=["true or false"],
    )
    sip_nameservers: Annotated[
        tuple[Annotated[str, AfterValidator(kinds.ipv4_port)], ...], BeforeValidator(kinds.words)
    ] = Field(
        (),
        max_length=8,
        description="DNS servers for SIP host names; with them, SRV records are used (RFC 3263). If absent, the "
        "system's resolver is used, without SRV records.",
        examples=["IPv4[:PORT], separated by commas"],
    )
    sip_answers_from: Annotated[frozenset[str], BeforeValidator(kinds.words), AfterValidator(kinds.networks)] = Field(
        frozenset(),
        description="Networks from which responses to SIP requests are accepted, in addition to the address that "
        "the request was sent to (over UDP: address and port).",
        examples=["networks such as 10.1.0.0/16, separated by commas; no other address if absent"],
    )
    sip_registrar: Annotated[str, AfterValidator(kinds.sip_uri)] | None = Field(
        None,
        description="SIP registrar at which the gateway registers itself, for an IMS that requires registration.",
        examples=["sip:HOST[:PORT]; not registered if absent"],
    )
    charging_orig_ioi: Annotated[str, AfterValidator(kinds.ioi)] | None = Field(
        None,
        description="The operator's Inter Operator Identifier. SUBSCRIBEs carry it as `orig-ioi` in "
        "P-Charging-Vector (RFC 7315), together with an `icid-value`.",
        examples=["a domain name; not sent if absent"],
    )
    privacy: Annotated[str, AfterValidator(kinds.privacy)] | None = Field(
        None,
        description="Value of the Privacy header (RFC 3323) of every SUBSCRIBE.",
        examples=["Privacy values such as id; not sent if absent"],
    )
    watch_expires_s: int = Field(
        3600,
        ge=60,
        le=86400,
        description="Lifetime that the gateway requests for a watch (its long-lived SIP subscription to one "
        "terminal), in seconds. The watch is refreshed before this time is over.",
        examples=["60 to 86400"],
    )
    setups_per_s: float = Field(
        500,
        ge=0,
        le=100000,
        description="Largest number of new SIP subscriptions per second and SIP worker, so that a restart does not "
        "flood the presence server.",
        examples=["0 to 100000; 0 for no limit"],
    )
    probe_every_s: float = Field(
        5,
        ge=0,
        le=3600,
        description="How often each presence server is probed with OPTIONS, in seconds.",
        examples=["0 to 3600; 0 for never"],
    )
    ready_needs_presence: bool = Field(
        False,
        description="Whether `/readyz` answers 503 while no presence server answers. If false, only the body of "
        "`/readyz` reports it.",
        examples=["true or false"],
    )
    max_document_bytes: int = Field(
        1048576,
        ge=4000,
        le=4194304,
        description="Largest presence document that is accepted over TCP and TLS, in bytes.",
        examples=["4000 to 4194304"],
    )
    sip_log_level: int = Field(
        0,
        ge=0,
        le=5,
        description="Level of PJSIP's own log on standard error. 1: errors; 4 and 5: every SIP message too.",
        examples=["0 to 5"],
    )
    fetch_timeout_ms: int = Field(
        1000,
        ge=50,
        le=30000,
        description="Time limit for one fetch (one query to the presence server), in milliseconds.",
        examples=["50 to 30000"],
    )
    max_fetches: int = Field(
        10000,
        ge=1,
        le=100000,
        description="Largest number of fetches in flight. More are refused as overload. A single client may have "
        "half of them.",
        examples=["1 to 100000"],
    )
    busy_activities: Annotated[frozenset[str], BeforeValidator(kinds.words), AfterValidator(kinds.activities)] = Field(
        frozenset({"on-the-phone", "busy"}),
        description="RPID activities (RFC 4480) for which a reachable terminal is reported as BUSY.",
        examples=["activity names, separated by commas; empty for none"],
    )
    busy_when_closed: bool = Field(
        False,
        description="Whether a busy activity means BUSY also without an open tuple, for PBXs that close the tuple of "
        "an extension in a call, such as Asterisk with PJSIP. If false, such a terminal is UNREACHABLE.",
        examples=["true or false"],
    )
    busy_available: bool = Field(
        True,
        description="BusyAvailable: whether BUSY is reported. If false, a busy terminal is reported as REACHABLE.",
        examples=["true or false"],
    )
    max_notification_addresses: int = Field(
        1000,
        ge=1,
        le=100000,
        description="MaximumNotificationAddresses: largest number of terminals in one subscription or stream; "
        "members of groups count.",
        examples=["1 to 100000"],
    )
    min_interval_ms: int = Field(
        0,
        ge=0,
        le=31622400000,
        description="MaximumNotificationFrequency: shortest interval between two notifications that a subscription "
        "may request, in milliseconds.",
        examples=["0 to 31622400000"],
    )
    max_duration_ms: int = Field(
        0,
        ge=0,
        le=31622400000,
        description="MaximumNotificationDuration: longest duration of a subscription, in milliseconds.",
        examples=["0 to 31622400000; 0 for no limit"],
    )
    default_duration_ms: int = Field(
        86400000,
        ge=0,
        le=31622400000,
        description="Default Notification Duration: duration of a subscription that requests none, in milliseconds.",
        examples=["0 to 31622400000; 0 for the longest allowed"],
    )
    max_count: int = Field(
        0,
        ge=0,
        le=2147483647,
        description="MaximumCount: largest number of notifications that a subscription may request.",
        examples=["0 to 2147483647; 0 for no limit"],
    )
    unlimited_count_allowed: bool = Field(
        True,
        description="UnlimitedCountAllowed: whether a subscription may leave its number of notifications unlimited.",
        examples=["true or false"],
    )
    group_support: bool = Field(
        True,
        description="GroupSupport: whether groups may be created and queried.",
        examples=["true or false"],
    )
    nested_group_support: bool = Field(
        True,
        description="NestedGroupSupport: whether a group may contain groups.",
        examples=["true or false"],
    )
    max_targets: int = Field(
        1000,
        ge=1,
        le=100000,
        description="MaximumTargets: largest number of terminals in one group query; members of groups count.",
        examples=["1 to 100000"],
    )
    process_up_to_limit: bool = Field(
        False,
        description="ProcessUpToLimit: whether a group query with more terminals than TS_MAX_TARGETS is answered "
        "for the first TS_MAX_TARGETS. If false, it is refused.",
        examples=["true or false"],
    )
    max_group_size: int = Field(
        1000,
        ge=1,
        le=100000,
        description="MaxGroupSize: largest number of members of one group.",
        examples=["1 to 100000"],
    )
    max_groups: int = Field(
        10000,
        ge=0,
        le=1000000,
        description="Largest number of groups of one client.",
        examples=["0 to 1000000"],
    )
    max_subscriptions: int = Field(
        100000,
        ge=0,
        le=10000000,
        description="Largest number of active subscriptions of one client.",
        examples=["0 to 10000000"],
    )
    max_streams: int = Field(
        2500,
        ge=0,
        le=100000,
        description="Largest number of open streams of one client. The gateway serves 10,000 streams in all.",
        examples=["0 to 100000"],
    )
    max_watched_terminals: int = Field(
        50000,
        ge=0,
        le=250000,
        description="Largest number of terminals watched for one client's subscriptions and streams; a terminal "
        "counts once. The gateway watches 250,000 terminals in all.",
        examples=["0 to 250000"],
    )
    rate_per_s: int = Field(
        0,
        ge=0,
        le=1000000,
        description="Calls per second allowed for one client on average. A query for many terminals counts once per"
        " terminal.",
        examples=["0 to 1000000; 0 for no limit"],
    )
    rate_burst: int = Field(
        0,
        ge=0,
        le=1000000,
        description="Calls that one client may make at once after a pause. A larger query is accepted, and the next"
        " call must wait longer.",
        examples=["0 to 1000000; 0 for as many as in one second"],
    )
    linger_s: float = Field(
        30,
        ge=0,
        le=86400,
        description="How long a watch continues after the last subscription or stream for its terminal has ended, "
        "in seconds.",
        examples=["0 to 86400"],
    )
    bookmark_s: float = Field(
        10,
        ge=0.1,
        le=60,
        description="Longest time between two resume tokens on a stream, in seconds.",
        examples=["0.1 to 60"],
    )
    database_url: Annotated[str, AfterValidator(kinds.database)] = Field(
        "sqlite:///terminal-status.sqlite3",
        description="Database for clients, groups, subscriptions, notifications, usage records and the audit log.",
        examples=["sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST[:PORT]/NAME"],
    )
    secret_key_file: Path | None = Field(
        None,
        description="Keys that encrypt the sinks' secrets in the database. Each line is the base64 of 32 bytes. The"
        " first key encrypts; a second one, the previous key, is used for decryption only.",
        examples=["a file that only this account can read; secrets are stored unencrypted if absent"],
    )
    delivery_retention_days: int = Field(
        30,
        ge=1,
        le=3650,
        description="How long settled notifications, their delivery attempts, and ended subscriptions are kept, in "
        "days.",
        examples=["1 to 3650"],
    )
    usage_retention_days: int = Field(
        400,
        ge=1,
        le=3650,
        description="How long usage records and the audit log are kept, in days.",
        examples=["1 to 3650"],
    )
    sink_allowed_networks: Annotated[frozenset[str], BeforeValidator(kinds.words), AfterValidator(kinds.networks)] = (
        Field(
            frozenset(),
            description="Networks into which webhooks and SOAP callbacks may be sent, in addition to the public "
            "internet.",
            examples=["networks such as 10.1.0.0/16, separated by commas; 127.0.0.0/8,::1/128 for development"],
        )
    )
    sink_allow_http: bool = Field(
        False,
        description="Whether webhooks and SOAP callbacks may be sent to http: URLs, without TLS.",
        examples=["true or false"],
    )
    sink_ca_file: str | None = Field(
        None,
        description="Certificate authorities for the certificates of webhook and SOAP callback endpoints, instead "
        "of the system's.",
        examples=["path of a PEM file"],
    )
    sink_cert_file: Path | None = Field(
        None,
        description="The gateway's certificate, which is presented to webhook and SOAP callback endpoints that ask for "
        "one.",
        examples=["a PEM file"],
    )
    sink_key_file: Path | None = Field(
        None,
        validate_default=True,
        description="Private key of the certificate in `TS_SINK_CERT_FILE`.",
        examples=["a PEM file, not encrypted"],
    )
    soap_max_age_s: float = Field(
        0,
        ge=0,
        le=86400,
        description="Largest age of a status with which Parlay X getStatus and getStatusForGroup are answered, in "
        "seconds. With 0 the presence server is asked for every call; with more, a live watch answers.",
        examples=["0 to 86400"],
    )
    tel_default_context: Annotated[str, AfterValidator(kinds.tel_context)] | None = Field(
        None,
        description="What Parlay X puts before a `tel:` number that has neither a plus nor a phone-context: `+` where "
        "applications send whole international numbers, `+44` where they send British ones without the trunk zero. "
        "If absent, such numbers are invalid.",
        examples=["+, or + and up to 15 digits"],
    )
    sink_timeout_ms: int = Field(
        10_000,
        ge=100,
        le=30_000,
        description="Time limit for one delivery attempt, from the name lookup to the response, in milliseconds.",
        examples=["100 to 30000"],
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged.", examples=["debug, info, warning or error"]
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto",
        description="Format of log lines on standard error. `console`: readable text; `json`: one JSON object per "
        "line; `auto`: `console` on a terminal, else `json`.",
        examples=["auto, console or json"],
    )

    @field_validator("sip_listen")
    @classmethod
    def _reachable(cls, sip_listen: str, others: ValidationInfo) -> str:
        """From a loopback address no other machine is reached, and no NOTIFY arrives: every fetch would time out."""
        for route in others.data.get("presence_server", "sip:localhost").split(","):
            server = re.split("[:;]", route)[1]
            if is_loopback(sip_listen.rpartition(":")[0]) and not is_loopback(server):
                raise ValueError(
                    f"{PREFIX}SIP_LISTEN must be an address the presence server can reach, "
                    f"and {server} cannot reach {sip_listen}"
                )
        return sip_listen

    @field_validator("tls_key_file")
    @classmethod
    def _with_certificate(cls, key: Path | None, others: ValidationInfo) -> Path | None:
        if (key is None) != (others.data.get("tls_cert_file") is None):
            raise ValueError(f"{PREFIX}TLS_CERT_FILE and {PREFIX}TLS_KEY_FILE must be set together")
        return key

    @field_validator("sink_key_file")
    @classmethod
    def _with_sink_certificate(cls, key: Path | None, others: ValidationInfo) -> Path | None:
        if (key is None) != (others.data.get("sink_cert_file") is None):
            raise ValueError(f"{PREFIX}SINK_CERT_FILE and {PREFIX}SINK_KEY_FILE must be set together")
        return key

    @field_validator("sip_public_host")
    @classmethod
    def _named(cls, host: str | None, others: ValidationInfo) -> str | None:
        """Contact would name 0.0.0.0, and no NOTIFY would arrive."""
        if host is None and others.data.get("sip_listen", "").startswith("0.0.0.0:"):
            raise ValueError(
                f"needed where {PREFIX}SIP_LISTEN is 0.0.0.0, because the Contact header must name a reachable host"
            )
        return host
