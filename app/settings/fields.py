"""The settings: one field each, with its default, what is allowed, and what it is.

Invariants: frozen. The table in `docs/settings.md` is generated from these fields; so this file is long.

Deliberately absent: where values come from (`loading.py`).
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
    """Every setting, its default and what is allowed. The name in the environment is the field's with `TS_` before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    presence_server: Annotated[str, AfterValidator(kinds.presence_server)] = Field(
        description="Presence servers to ask, the preferred one first: the topmost Route of every SUBSCRIBE. TCP "
        "unless told otherwise. Needed by `serve`.",
        examples=["sip:HOST[:PORT][;transport=tcp|udp|tls], several with commas between"],
    )
    watcher_identity: Annotated[str, AfterValidator(kinds.sip_identity)] = Field(
        "sip:terminal-status@localhost",
        description="Who asks: the From of every SUBSCRIBE.",
        examples=["a sip: or sips: URI"],
    )
    asserted_identity: Annotated[str, AfterValidator(kinds.identity)] | None = Field(
        None,
        description="Sent as P-Asserted-Identity (RFC 3325), for presence servers that trust the gateway.",
        examples=["a sip:, sips: or tel: URI; not sent if absent"],
    )
    grpc_listen: Listen = Field("127.0.0.1:50051", description="gRPC address.", examples=["HOST:PORT, port 0 for any"])
    http_listen: Listen = Field(
        "127.0.0.1:8080", description="REST and SOAP address.", examples=["HOST:PORT, port 0 for any"]
    )
    metrics_listen: Listen | None = Field(
        None,
        description="Address of its own for /metrics, /healthz and /readyz, in clear and without credentials; the HTTP "
        "address then has no /metrics.",
        examples=["HOST:PORT, port 0 for any; no such address if absent"],
    )
    http_public_url: Annotated[str, AfterValidator(kinds.url)] | None = Field(
        None,
        description="URL under which callers reach the HTTP address; stands in the WSDL. The Host header if absent.",
        examples=["http(s)://HOST[:PORT][/PATH]"],
    )
    anonymous_access: Literal["loopback", "anywhere", "never"] = Field(
        "loopback",
        description="While no client is configured, callers need no credentials, but are no operators; the gateway "
        "then listens on loopback only, or `anywhere` where a proxy in front of it authenticates. With `never` they "
        "always need some: for production, where a lost database must open nothing.",
        examples=["loopback, anywhere or never"],
    )
    trusted_proxies: Annotated[frozenset[str], BeforeValidator(kinds.words), AfterValidator(kinds.networks)] = Field(
        frozenset(),
        description="Proxies in front of the gateway. Limits per address then count the client that the proxy names "
        "(`Forwarded` or `X-Forwarded-For`) and exempt the proxy, and `X-Forwarded-Proto` and `-Host` are honoured. "
        "From others these headers are ignored.",
        examples=["networks such as 10.1.0.0/28 with commas between; only the proxies' own addresses"],
    )
    http_max_unauthenticated: int = Field(
        256,
        ge=1,
        le=10000,
        description="HTTP connections of one address (of IPv6, of one /64 network) that have not brought an "
        "authenticated request; one more closes the oldest of them.",
        examples=["1 to 10000"],
    )
    drain_delay_s: float = Field(
        0,
        ge=0,
        le=600,
        description="How long the gateway still serves after SIGTERM or SIGINT while its probes say that it is not "
        "ready, in seconds, so that load balancers turn away first. A second signal ends it at once.",
        examples=["0 to 600"],
    )
    tls_cert_file: Path | None = Field(
        None,
        description="Certificate chain of the gRPC and HTTP addresses, which then speak TLS only.",
        examples=["a PEM file; no TLS if absent"],
    )
    tls_key_file: Path | None = Field(
        None, validate_default=True, description="The certificate's private key.", examples=["a PEM file"]
    )
    tls_client_ca_file: Path | None = Field(
        None,
        description="Authorities of client certificates. Every caller must then present one, which names its client's "
        "id, unless it also shows credentials.",
        examples=["a PEM file; no client certificates if absent"],
    )
    oidc_issuer: str = Field(
        "",
        max_length=500,
        description="Issuer of access tokens (RFC 9068) that are taken beside API keys; none if empty.",
        examples=["the `iss` of tokens"],
    )
    oidc_audience: Annotated[str, AfterValidator(kinds.with_issuer)] = Field(
        "",
        max_length=500,
        validate_default=True,
        description="Audience that a token must name.",
        examples=["the `aud` of tokens"],
    )
    oidc_jwks_url: Annotated[str, AfterValidator(kinds.jwks_url), AfterValidator(kinds.with_issuer)] = Field(
        "",
        validate_default=True,
        description="Where the issuer's keys (RFC 7517) are fetched; https, or http on this machine.",
        examples=["https://HOST[:PORT]/PATH"],
    )
    oidc_scope: str = Field(
        "",
        pattern=r"^[\x21\x23-\x5b\x5d-\x7e]{0,200}$",
        description="Scope that a token must have, but for CAMARA, which has its own; none if empty: but then a token "
        "with CAMARA's scopes serves CAMARA only.",
        examples=["one scope"],
    )
    oidc_client_claim: str = Field(
        "client_id",
        pattern=r"^[A-Za-z0-9_\-.:/]{1,200}$",
        description="Claim that names the client's id.",
        examples=["a claim, such as azp"],
    )
    oidc_device_claim: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.:/\-]{0,100}$",
        description="Claim that names the device of a three-legged access token, which serves CAMARA only; "
        "none if empty.",
        examples=["a claim, such as phone_number"],
    )
    camara_number_pattern: Annotated[str, AfterValidator(kinds.number_pattern)] = Field(
        "tel:{number}",
        description="Address that CAMARA's phoneNumber stands for; {number} is the number with its plus.",
        examples=["tel:{number}, or such as sip:{number}@ims.example.net;user=phone"],
    )
    grpc_max_connection_age_s: int = Field(
        3600,
        ge=0,
        le=86400,
        description="Age at which a gRPC connection takes no further calls and a stream is ended, in seconds; clients "
        "come anew by themselves, and so spread over gateways. 0 for none.",
        examples=["0 to 86400"],
    )
    grpc_max_unauthenticated_calls: int = Field(
        500,
        ge=1,
        le=100000,
        description="Open gRPC calls of one address whose caller is not known yet, or whose message has not come where "
        "no credentials are needed; it has ten seconds.",
        examples=["1 to 100000"],
    )
    grpc_max_unauthenticated_connections: int = Field(
        256,
        ge=1,
        le=10000,
        description="gRPC connections of one address that have brought no client's call; more are closed (on Linux).",
        examples=["1 to 10000"],
    )
    sip_listen: Annotated[str, AfterValidator(kinds.sip_listen)] = Field(
        "127.0.0.1:0",
        validate_default=True,
        description="SIP address for UDP and TCP; must be one the presence server can reach.",
        examples=["IPv4:PORT, port 0 for any"],
    )
    sip_public_host: str | None = Field(
        None,
        validate_default=True,
        pattern=r"^[A-Za-z0-9.\-]{1,253}$",
        description="Host written into Contact where it differs from the SIP address (NAT, containers).",
        examples=["a host name or IPv4 address"],
    )
    sip_workers: int = Field(
        1,
        ge=1,
        le=32,
        description="Processes that speak SIP; terminals are shared out by a hash. Where the SIP port is fixed, each "
        "has its own, two further on.",
        examples=["1 to 32"],
    )
    sip_username: str | None = Field(
        None,
        pattern=r"^[!-~]{1,128}$",
        description="Answers digest challenges of the presence server (MD5, SHA-256).",
        examples=["printable characters; challenges are not answered if absent"],
    )
    sip_password: Annotated[SecretStr, AfterValidator(kinds.secret)] = Field(
        SecretStr(""), description="The password that belongs to it.", examples=["printable ASCII"]
    )
    sip_realm: str = Field(
        "*",
        pattern=r"^[ -~]{1,128}$",
        description="The realm whose challenges are answered.",
        examples=["a realm; `*` for any"],
    )
    sip_tls_ca_file: Path | None = Field(
        None, description="Certificates that a presence server over TLS must be signed by.", examples=["a PEM file"]
    )
    sip_tls_verify: bool = Field(
        True,
        description="Whether a presence server over TLS must prove who it is. Off is for laboratories.",
        examples=["true, false"],
    )
    sip_nameservers: Annotated[
        tuple[Annotated[str, AfterValidator(kinds.ipv4_port)], ...], BeforeValidator(kinds.words)
    ] = Field(
        (),
        max_length=8,
        description="Nameservers for SIP names, with SRV (RFC 3263); the system's resolver, without SRV, if absent.",
        examples=["IPv4[:PORT], several with commas between"],
    )
    sip_answers_from: Annotated[frozenset[str], BeforeValidator(kinds.words), AfterValidator(kinds.networks)] = Field(
        frozenset(),
        description="Networks whose answers to SIP requests count, beside the address that a request was sent to (over "
        "UDP its port too).",
        examples=["networks such as 10.1.0.0/16 with commas between; only that address if absent"],
    )
    sip_registrar: Annotated[str, AfterValidator(kinds.sip_uri)] | None = Field(
        None,
        description="Where the watcher registers itself, in an IMS that wants that.",
        examples=["sip:HOST[:PORT]; not registered if absent"],
    )
    charging_orig_ioi: Annotated[str, AfterValidator(kinds.ioi)] | None = Field(
        None,
        description="Inter Operator Identifier: SUBSCRIBEs carry it in P-Charging-Vector (RFC 7315) with an icid.",
        examples=["a domain name; not sent if absent"],
    )
    privacy: Annotated[str, AfterValidator(kinds.privacy)] | None = Field(
        None, description="Sent as Privacy (RFC 3323).", examples=["such as id; not sent if absent"]
    )
    watch_expires_s: int = Field(
        3600,
        ge=60,
        le=86400,
        description="How long a standing SIP subscription is asked for, in seconds; it is refreshed before its end.",
        examples=["60 to 86400"],
    )
    setups_per_s: float = Field(
        500,
        ge=0,
        le=100000,
        description="Most new SIP subscriptions a second and worker: a restart must not flood the presence server.",
        examples=["0 to 100000; 0 is no limit"],
    )
    probe_every_s: float = Field(
        5,
        ge=0,
        le=3600,
        description="How often each presence server is asked by OPTIONS whether it is there, in seconds.",
        examples=["0 to 3600; 0 is never"],
    )
    ready_needs_presence: bool = Field(
        False,
        description="Whether `/readyz` is 503 while no presence server answers; else its body says so.",
        examples=["true or false"],
    )
    max_document_bytes: int = Field(
        1048576,
        ge=4000,
        le=4194304,
        description="Largest presence document, in bytes, over TCP and TLS.",
        examples=["4000 to 4194304"],
    )
    sip_log_level: int = Field(
        0,
        ge=0,
        le=5,
        description="PJSIP's own log on standard error: 1 errors, 4 and 5 every message.",
        examples=["0 to 5"],
    )
    fetch_timeout_ms: int = Field(
        1000,
        ge=50,
        le=30000,
        description="Time limit of one question to the presence server, in milliseconds.",
        examples=["50 to 30000"],
    )
    max_fetches: int = Field(
        10000,
        ge=1,
        le=100000,
        description="Most questions in flight; one more is refused as overload. One client alone may "
        "have half of them.",
        examples=["1 to 100000"],
    )
    busy_activities: Annotated[frozenset[str], BeforeValidator(kinds.words), AfterValidator(kinds.activities)] = Field(
        frozenset({"on-the-phone", "busy"}),
        description="RPID activities (RFC 4480) that make an open terminal BUSY.",
        examples=["names with commas between; empty for none"],
    )
    busy_available: bool = Field(
        True,
        description="BusyAvailable: whether BUSY is told at all; where not, a busy terminal is REACHABLE.",
        examples=["true, false"],
    )
    max_notification_addresses: int = Field(
        1000,
        ge=1,
        le=100000,
        description="MaximumNotificationAddresses: terminals of one subscription or stream, groups expanded.",
        examples=["1 to 100000"],
    )
    min_interval_ms: int = Field(
        0,
        ge=0,
        le=31622400000,
        description="MaximumNotificationFrequency: least time between two notifications, in milliseconds.",
        examples=["0 to 31622400000"],
    )
    max_duration_ms: int = Field(
        0,
        ge=0,
        le=31622400000,
        description="MaximumNotificationDuration of a subscription, in milliseconds.",
        examples=["0 to 31622400000; 0 is no limit"],
    )
    default_duration_ms: int = Field(
        86400000,
        ge=0,
        le=31622400000,
        description="Default Notification Duration, where a subscription names none, in milliseconds.",
        examples=["0 to 31622400000; 0 is the longest allowed"],
    )
    max_count: int = Field(
        0,
        ge=0,
        le=2147483647,
        description="MaximumCount: notifications that may be asked for.",
        examples=["0 to 2147483647; 0 is no limit"],
    )
    unlimited_count_allowed: bool = Field(
        True,
        description="UnlimitedCountAllowed: whether a subscription may go without a count.",
        examples=["true, false"],
    )
    group_support: bool = Field(
        True,
        description="GroupSupport: whether groups may be made and asked for.",
        examples=["true, false"],
    )
    nested_group_support: bool = Field(
        True,
        description="NestedGroupSupport: whether groups may be members of groups.",
        examples=["true, false"],
    )
    max_targets: int = Field(
        1000,
        ge=1,
        le=100000,
        description="MaximumTargets: terminals of one group query, groups expanded.",
        examples=["1 to 100000"],
    )
    process_up_to_limit: bool = Field(
        False,
        description="ProcessUpToLimit: whether a group query above that is answered up to it; else it is refused.",
        examples=["true, false"],
    )
    max_group_size: int = Field(
        1000,
        ge=1,
        le=100000,
        description="MaxGroupSize: members of one group.",
        examples=["1 to 100000"],
    )
    max_groups: int = Field(
        10000,
        ge=0,
        le=1000000,
        description="Groups of one client.",
        examples=["0 to 1000000"],
    )
    max_subscriptions: int = Field(
        100000,
        ge=0,
        le=10000000,
        description="Active subscriptions of one client.",
        examples=["0 to 10000000"],
    )
    max_streams: int = Field(
        2500,
        ge=0,
        le=100000,
        description="Open streams of one client; the gateway serves 10,000.",
        examples=["0 to 100000"],
    )
    max_watched_terminals: int = Field(
        50000,
        ge=0,
        le=250000,
        description="Terminals watched for one client's subscriptions and streams, each once; the gateway watches "
        "250,000.",
        examples=["0 to 250000"],
    )
    rate_per_s: int = Field(
        0,
        ge=0,
        le=1000000,
        description="Calls per second of one client, in the long run; a query of many counts each terminal.",
        examples=["0 to 1000000; 0 is no limit"],
    )
    rate_burst: int = Field(
        0,
        ge=0,
        le=1000000,
        description="Calls at once of one client after a rest; a larger query passes, and the next call waits for it.",
        examples=["0 to 1000000; 0 is one second's worth"],
    )
    linger_s: float = Field(
        30,
        ge=0,
        le=86400,
        description="How long a terminal is watched after the last who wanted it, in seconds.",
        examples=["0 to 86400"],
    )
    bookmark_s: float = Field(
        10,
        ge=0.1,
        le=60,
        description="Longest time between two resume tokens of a stream, in seconds.",
        examples=["0.1 to 60"],
    )
    database_url: Annotated[str, AfterValidator(kinds.database)] = Field(
        "sqlite:///terminal-status.sqlite3",
        description="Database of clients, groups, subscriptions, owed notifications and usage records.",
        examples=["sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST[:PORT]/NAME"],
    )
    secret_key_file: Path | None = Field(
        None,
        description="Keys by which secrets of endpoints are encrypted in the database: each the base64 of 32 bytes on "
        "a line; the first one encrypts, a second one still decrypts.",
        examples=["a file that no other account may read; in clear if absent"],
    )
    delivery_retention_days: int = Field(
        30,
        ge=1,
        le=3650,
        description="How long settled notifications with their attempts, and ended subscriptions, are kept, in days.",
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
            description="Networks beside the public internet that webhooks and callbacks may be sent into.",
            examples=["networks such as 10.1.0.0/16 with commas between; 127.0.0.0/8,::1/128 for development"],
        )
    )
    sink_allow_http: bool = Field(
        False, description="Lets webhooks and callbacks go to http: URLs too, in clear.", examples=["true or false"]
    )
    sink_ca_file: str | None = Field(
        None,
        description="Certificate authorities that webhook endpoints are checked against, in place of the system's.",
        examples=["path of a PEM file"],
    )
    soap_max_age_s: float = Field(
        0,
        ge=0,
        le=86400,
        description="How old a status may be that answers Parlay X getStatus and getStatusForGroup, in seconds. With 0 "
        "the presence server is asked each time; above it a live watch answers.",
        examples=["0 to 86400"],
    )
    sink_timeout_ms: int = Field(
        10_000,
        ge=100,
        le=30_000,
        description="Time limit of one delivery, from name to answer, in milliseconds.",
        examples=["100 to 30000"],
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged.", examples=["debug, info, warning or error"]
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto",
        description="Log lines on standard error: readable, or one JSON object each; auto is console on a terminal.",
        examples=["auto, console or json"],
    )

    @field_validator("sip_listen")
    @classmethod
    def _reachable(cls, sip_listen: str, others: ValidationInfo) -> str:
        """A socket on loopback can neither ask another machine nor hear its NOTIFY: every question would time out."""
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
            raise ValueError(f"{PREFIX}TLS_CERT_FILE and {PREFIX}TLS_KEY_FILE go together")
        return key

    @field_validator("sip_public_host")
    @classmethod
    def _named(cls, host: str | None, others: ValidationInfo) -> str | None:
        """0.0.0.0 would stand in Contact, and NOTIFY would go nowhere."""
        if host is None and others.data.get("sip_listen", "").startswith("0.0.0.0:"):
            raise ValueError(f"needed where {PREFIX}SIP_LISTEN is 0.0.0.0, since Contact must name one host")
        return host
