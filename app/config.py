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
    ValidationError,
    ValidationInfo,
    field_validator,
)

from app.domain import InvalidAddress, parse_address

PREFIX = "TS_"
CONFIG_FILE = "TS_CONFIG_FILE"


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


def _presence_server(text: str) -> str:
    match = re.fullmatch(r"sip:([A-Za-z0-9.\-]+)(:[0-9]{1,5})?(;transport=(udp|tcp))?(;lr)?", text, re.IGNORECASE)
    if match is None or (match[2] and not 0 < int(match[2][1:]) < 65536):
        raise ValueError("not sip:HOST[:PORT][;transport=udp|tcp]")
    return text.lower()


def _identity(text: str) -> str:
    try:
        return parse_address(text)
    except InvalidAddress as error:
        raise ValueError(str(error)) from None


def _sip_identity(text: str) -> str:
    if not re.match("sips?:", identity := _identity(text)):
        raise ValueError("a telephone number cannot be the From of a SUBSCRIBE")
    return identity


def _words(value: object) -> object:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _activities(words: frozenset[str]) -> frozenset[str]:
    if bad := [word for word in words if not re.fullmatch(r"[A-Za-z0-9_\-]{1,64}", word)]:
        raise ValueError(f"{bad[0]!r} is no activity name")
    return words


def _database(text: str) -> str:
    if not text.startswith("sqlite+aiosqlite:///"):
        raise ValueError("no such kind of database")
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


Listen = Annotated[str, AfterValidator(_listen)]


class Settings(BaseModel):
    """Every setting, its default and what is allowed. The name in the environment is the field's with `TS_` before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    presence_server: Annotated[str, AfterValidator(_presence_server)] = Field(
        description="Presence server to ask, the topmost Route of every SUBSCRIBE. UDP unless `;transport=tcp`. "
        "Needed by `serve`.",
        examples=["sip:HOST[:PORT][;transport=udp|tcp]"],
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
    database_url: Annotated[str, AfterValidator(_database)] = Field(
        "sqlite+aiosqlite:///terminal-status.sqlite3",
        description="Database. Nothing is stored yet; `doctor` checks that it opens.",
        examples=["sqlite+aiosqlite:///PATH"],
    )
    sink_allowed_networks: Annotated[frozenset[str], BeforeValidator(_words), AfterValidator(_networks)] = Field(
        frozenset(),
        description="Networks beside the public internet that webhooks and callbacks may be sent into.",
        examples=["networks such as 10.1.0.0/16 with commas between; 127.0.0.0/8 for development"],
    )
    sink_allow_http: bool = Field(
        False, description="Lets webhooks and callbacks go to http: URLs too, in clear.", examples=["true or false"]
    )
    sink_ca_file: str | None = Field(
        None,
        description="Certificate authorities that webhook endpoints are checked against, in place of the system's.",
        examples=["path of a PEM file"],
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
        server = re.split("[:;]", others.data.get("presence_server", "sip:localhost"))[1]
        if _is_loopback(sip_listen.rpartition(":")[0]) and not _is_loopback(server):
            raise ValueError(
                f"{PREFIX}SIP_LISTEN must be an address the presence server can reach, "
                f"and {server} cannot reach {sip_listen}"
            )
        return sip_listen

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
        if variable.startswith(PREFIX) and variable != CONFIG_FILE:
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
        default = "—" if field.is_required() or field.default in (None, frozenset()) else f"`{_plain(field.default)}`"
        allowed = field.examples[0] if field.examples else ""
        rows.append(
            f"| `{PREFIX}{name.upper()}` | {default} | {allowed} | {field.description} |".replace("|tcp", "\\|tcp")
        )
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
    return f"{origin[name]} = {values[name]!r}: {why}. Allowed: {allowed}."


def _plain(value: object) -> str:
    return ",".join(sorted(value, reverse=True)) if isinstance(value, frozenset) else str(value)
