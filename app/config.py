"""Settings: from the environment (`TS_…`), then a TOML file, then defaults; read once, at start.

Invariants: an unknown or wrong setting stops the start with its name, what was given and what is allowed. The
README's table is made from these fields (`settings_table`) and a test holds it to them.

Deliberately absent: reading anything at import, and settings that change while the gateway runs.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from app.domain import InvalidAddress, parse_address

PREFIX = "TS_"
CONFIG_FILE = "TS_CONFIG_FILE"
API_KEY = "TS_API_KEY"
"""What commands that ask a gateway show it; no setting, so that it may stand in the environment of one that serves."""
MAX_ROUTES = 8


class ConfigurationError(Exception):
    """The settings cannot be used; `problems` has one sentence for each that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _listen(text: str) -> str:
    host, _, port = text.rpartition(":")
    is_port = re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535
    if not re.fullmatch(r"[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:]+\]", host) or not is_port:
        raise ValueError("not HOST:PORT")
    return text


def _sip_listen(text: str) -> str:
    try:
        ipaddress.IPv4Address(_listen(text).rpartition(":")[0])
    except ipaddress.AddressValueError:
        raise ValueError("not an IPv4 address and a port") from None
    return text


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ipaddress.AddressValueError:
        return host == "localhost"


_ROUTE = re.compile(r"sip:([A-Za-z0-9.\-]+)(:[0-9]{1,5})?(;transport=(udp|tcp|tls))?(;lr)?", re.IGNORECASE)


def _presence_server(text: str) -> str:
    routes = [route.strip() for route in text.split(",")]
    for route in routes:
        match = _ROUTE.fullmatch(route)
        if match is None or (match[2] and not 0 < int(match[2][1:]) < 65536):
            raise ValueError("not sip:HOST[:PORT][;transport=tcp|udp|tls], or several with commas between")
    if len(routes) > MAX_ROUTES:
        raise ValueError(f"more than {MAX_ROUTES} servers")
    return ",".join(routes).lower()


def _sip_uri(text: str) -> str:
    if not _ROUTE.fullmatch(text):
        raise ValueError("not sip:HOST[:PORT][;transport=tcp|udp|tls]")
    return text.lower()


def _ioi(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.\-]{1,64}", text):
        raise ValueError("no operator's domain name")
    return text


def _privacy(text: str) -> str:
    if not re.fullmatch(
        r"(header|session|user|none|critical|id|history)(;(header|session|user|critical|id|history))*", text
    ):
        raise ValueError("no Privacy value (RFC 3323)")
    return text


def _ipv4_port(value: str) -> str:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}(:[0-9]{1,5})?", value):
        raise ValueError(f"{value!r} is no IPv4 address")
    return value


def _identity(text: str) -> str:
    try:
        return parse_address(text)
    except InvalidAddress as error:
        raise ValueError(str(error)) from None


def _sip_identity(text: str) -> str:
    if not re.match("sips?:", identity := _identity(text)):
        raise ValueError("a telephone number cannot be the From of a SUBSCRIBE")
    return identity


def _number_pattern(text: str) -> str:
    if text.count("{number}") != 1 or set(text.replace("{number}", "")) & set("{}"):
        raise ValueError("{number} must stand in it once")
    try:
        parse_address(text.replace("{number}", "+15551234567"))
    except InvalidAddress as error:
        raise ValueError(str(error)) from None
    return text


def _words(value: object) -> object:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _activities(words: frozenset[str]) -> frozenset[str]:
    if bad := [word for word in words if not re.fullmatch(r"[A-Za-z0-9_\-]{1,64}", word)]:
        raise ValueError(f"{bad[0]!r} is no activity name")
    return words


def _database(text: str) -> str:
    if re.fullmatch(r"postgresql\+psycopg://[^\s/]+(/[^\s/]+)", text):
        return text
    if not re.fullmatch(r"sqlite\+aiosqlite:///[^?]+", text):
        raise ValueError("no such kind of database")
    if ":memory:" in text:
        raise ValueError("a database in memory keeps nothing")
    return text


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.\-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~\-/]*)?", text):
        raise ValueError("no such URL")
    return text.rstrip("/")


def _networks(words: frozenset[str]) -> frozenset[str]:
    for word in words:
        try:
            ipaddress.ip_network(word)
        except ValueError as error:
            raise ValueError(f"{word!r} is no network: {error}") from None
    return words


def _jwks_url(text: str) -> str:
    match = re.fullmatch(r"(https?)://([A-Za-z0-9.\-]+)(:[0-9]{1,5})?(/[\x21-\x7e]{0,500})?", text)
    if text and (match is None or (match[1] == "http" and not _is_loopback(match[2]))):
        raise ValueError("no https URL")
    return text


def _with_issuer(text: str, others: ValidationInfo) -> str:
    if bool(text) != bool(others.data.get("oidc_issuer")):
        raise ValueError(f"{PREFIX}OIDC_ISSUER, {PREFIX}OIDC_AUDIENCE and {PREFIX}OIDC_JWKS_URL go together")
    return text


Listen = Annotated[str, AfterValidator(_listen)]


class Settings(BaseModel):
    """Every setting, its default and what is allowed. The name in the environment is the field's with `TS_` before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    presence_server: Annotated[str, AfterValidator(_presence_server)] = Field(
        description="Presence servers to ask, the preferred one first: the topmost Route of every SUBSCRIBE. TCP "
        "unless told otherwise. Needed by `serve`.",
        examples=["sip:HOST[:PORT][;transport=tcp|udp|tls], several with commas between"],
    )
    watcher_identity: Annotated[str, AfterValidator(_sip_identity)] = Field(
        "sip:terminal-status@localhost",
        description="Who asks: the From of every SUBSCRIBE.",
        examples=["a sip: or sips: URI"],
    )
    asserted_identity: Annotated[str, AfterValidator(_identity)] | None = Field(
        None,
        description="Sent as P-Asserted-Identity (RFC 3325), for presence servers that trust the gateway.",
        examples=["a sip:, sips: or tel: URI; not sent if absent"],
    )
    grpc_listen: Listen = Field("127.0.0.1:50051", description="gRPC address.", examples=["HOST:PORT, port 0 for any"])
    http_listen: Listen = Field(
        "127.0.0.1:8080", description="REST and SOAP address.", examples=["HOST:PORT, port 0 for any"]
    )
    http_public_url: Annotated[str, AfterValidator(_url)] | None = Field(
        None,
        description="URL under which callers reach the HTTP address; stands in the WSDL. The Host header if absent.",
        examples=["http(s)://HOST[:PORT][/PATH]"],
    )
    anonymous_access: Literal["loopback", "anywhere"] = Field(
        "loopback",
        description="While no client is configured, callers need no credentials; the gateway then listens on loopback "
        "only, or `anywhere` where a proxy in front of it authenticates.",
        examples=["loopback or anywhere"],
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
    oidc_audience: Annotated[str, AfterValidator(_with_issuer)] = Field(
        "",
        max_length=500,
        validate_default=True,
        description="Audience that a token must name.",
        examples=["the `aud` of tokens"],
    )
    oidc_jwks_url: Annotated[str, AfterValidator(_jwks_url), AfterValidator(_with_issuer)] = Field(
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
    camara_number_pattern: Annotated[str, AfterValidator(_number_pattern)] = Field(
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
    sip_listen: Annotated[str, AfterValidator(_sip_listen)] = Field(
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
    sip_password: SecretStr = Field(
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
    sip_nameservers: Annotated[tuple[Annotated[str, AfterValidator(_ipv4_port)], ...], BeforeValidator(_words)] = Field(
        (),
        max_length=8,
        description="Nameservers for SIP names, with SRV (RFC 3263); the system's resolver, without SRV, if absent.",
        examples=["IPv4[:PORT], several with commas between"],
    )
    sip_registrar: Annotated[str, AfterValidator(_sip_uri)] | None = Field(
        None,
        description="Where the watcher registers itself, in an IMS that wants that.",
        examples=["sip:HOST[:PORT]; not registered if absent"],
    )
    charging_orig_ioi: Annotated[str, AfterValidator(_ioi)] | None = Field(
        None,
        description="Inter Operator Identifier: SUBSCRIBEs carry it in P-Charging-Vector (RFC 7315) with an icid.",
        examples=["a domain name; not sent if absent"],
    )
    privacy: Annotated[str, AfterValidator(_privacy)] | None = Field(
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
        description="Most questions in flight; one more is refused as overload.",
        examples=["1 to 100000"],
    )
    busy_activities: Annotated[frozenset[str], BeforeValidator(_words), AfterValidator(_activities)] = Field(
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
        10000,
        ge=0,
        le=100000,
        description="Open streams of one client.",
        examples=["0 to 100000"],
    )
    rate_per_s: int = Field(
        0,
        ge=0,
        le=1000000,
        description="Calls per second of one client, in the long run.",
        examples=["0 to 1000000; 0 is no limit"],
    )
    rate_burst: int = Field(
        0,
        ge=0,
        le=1000000,
        description="Calls at once of one client after a rest.",
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
        description="How long a stream is quiet before it gets a bookmark, in seconds.",
        examples=["0.1 to 60"],
    )
    database_url: Annotated[str, AfterValidator(_database)] = Field(
        "sqlite+aiosqlite:///terminal-status.sqlite3",
        description="Database of clients, groups, subscriptions, owed notifications and usage records.",
        examples=["sqlite+aiosqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST[:PORT]/NAME"],
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
    sink_allowed_networks: Annotated[frozenset[str], BeforeValidator(_words), AfterValidator(_networks)] = Field(
        frozenset(),
        description="Networks beside the public internet that webhooks and callbacks may be sent into.",
        examples=["networks such as 10.1.0.0/16 with commas between; 127.0.0.0/8,::1/128 for development"],
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
            if _is_loopback(sip_listen.rpartition(":")[0]) and not _is_loopback(server):
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


def load_settings(
    environ: Mapping[str, str] = os.environ,
    config_file: Path | None = None,
    *,
    called: Mapping[str, str] | None = None,
    **overrides: str | None,
) -> Settings:
    """Settings from `overrides` (a command's options; None is not given), the environment, a TOML file and defaults.

    `called` has the name of an option that is not called as its setting is, by field, for messages.
    The file is `config_file`, or TS_CONFIG_FILE where that is set; its keys are the field names.
    Raises ConfigurationError.
    """
    path = config_file or (Path(environ[CONFIG_FILE]) if environ.get(CONFIG_FILE) else None)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in _read_file(path).items():
        values[name], origin[name] = value, f"{name} in {path}"
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and variable not in (CONFIG_FILE, API_KEY):
            name = variable.removeprefix(PREFIX).lower()
            values[name], origin[name] = text, variable
    for name, option in overrides.items():
        if option is not None:
            values[name], origin[name] = option, (called or {}).get(name, f"--{name.replace('_', '-')}")
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ConfigurationError(
            [_problem(str(item["loc"][0]), item, values, origin) for item in error.errors(include_url=False)]
        ) from None


def settings_table() -> str:
    """The README's table of settings, in Markdown."""
    rows = ["| setting | default | allowed | what it is |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        secret = isinstance(field.default, SecretStr)
        default = "—" if field.is_required() or not _plain(field.default) or secret else f"`{_plain(field.default)}`"
        allowed = (field.examples[0] if field.examples else "").replace("|", "\\|")
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {allowed} | {field.description} |")
    return "\n".join(rows)


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError([f"{path}: cannot be read: {error.strerror}."]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path}: is no TOML file: {error}."]) from None


def _problem(name: str, item: Any, values: dict[str, Any], origin: dict[str, str]) -> str:
    field = Settings.model_fields.get(name)
    if field is None:
        known = ", ".join(PREFIX + known.upper() for known in Settings.model_fields)
        return f"{origin[name]} is no setting of this gateway. Allowed are: {known}, {CONFIG_FILE}."
    allowed = field.examples[0] if field.examples else ""
    if item["type"] == "missing":
        return f"{PREFIX}{name.upper()} is not set. {field.description} Allowed: {allowed}."
    why = str(item["msg"]).removeprefix("Value error, ").rstrip(".")
    if values.get(name) is None:  # the default does not go with the other settings
        return f"{PREFIX}{name.upper()} is not set: {why}. Allowed: {allowed}."
    given = "(hidden)" if isinstance(field.default, SecretStr) else re.sub(r":[^:@/]*@", ":***@", repr(values[name]))
    return f"{origin[name]} = {given}: {why}. Allowed: {allowed}."


def _plain(value: object) -> str:
    if value is None or isinstance(value, SecretStr):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(sorted(value, reverse=True)) if isinstance(value, frozenset | tuple) else str(value)
