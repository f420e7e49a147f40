"""The sources of settings, and the messages about wrong ones."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from app.domain.policy import Policy
from app.settings.loading import ConfigurationError, load_settings, settings_table

SERVER = {"TS_PRESENCE_SERVER": "sip:127.0.0.1:5060;transport=tcp"}
AWAY = {"TS_PRESENCE_SERVER": "sip:192.0.2.1:5060"}
SETTINGS = Path(__file__).parent.parent.parent / "docs" / "settings.md"


def test_defaults() -> None:
    """Only the presence server must be set."""
    settings = load_settings(SERVER)
    assert settings.presence_server == "sip:127.0.0.1:5060;transport=tcp"
    assert (settings.grpc_listen, settings.http_listen) == ("127.0.0.1:50051", "127.0.0.1:8080")
    assert settings.fetch_timeout_ms == 1000
    assert settings.busy_activities == {"on-the-phone", "busy"}


def test_options_win_over_environment_over_file(tmp_path: Path) -> None:
    """A command's option wins over the environment, which wins over the file."""
    file = tmp_path / "gateway.toml"
    file.write_text(
        'presence_server = "sip:file"\nfetch_timeout_ms = 100\nbusy_activities = ["meeting"]\ngrpc_listen = "h:1"\n'
        'sip_listen = "192.0.2.2:0"\n'
    )
    environ = {"TS_CONFIG_FILE": str(file), "TS_FETCH_TIMEOUT_MS": "200", "TS_GRPC_LISTEN": "h:2"}
    settings = load_settings(environ, grpc_listen="h:3", http_listen=None)
    assert settings.presence_server == "sip:file"
    assert settings.fetch_timeout_ms == 200
    assert settings.busy_activities == {"meeting"}
    assert settings.grpc_listen == "h:3"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "TS_PRESENCE_SERVER is not set.*sip:HOST"),
        ({"TS_PRESENCE_SERVER": "192.0.2.1"}, r"TS_PRESENCE_SERVER = '192.0.2.1': not sip:HOST.*Allowed: sip:HOST"),
        ({"TS_PRESENCE_SERVER": "sip:h:70000"}, "not sip:HOST"),
        ({"TS_PRESENCE_SERVER": "sip:h>,<sip:evil"}, "not sip:HOST"),
        ({"TS_PRESENCE_SERVER": "sip:h;transport=sctp"}, "udp|tcp"),
        (SERVER | {"TS_FETCH_TIMEOUT": "1"}, "TS_FETCH_TIMEOUT is not a setting.*TS_FETCH_TIMEOUT_MS"),
        (SERVER | {"TS_FETCH_TIMEOUT_MS": "soon"}, "TS_FETCH_TIMEOUT_MS = 'soon'.*Allowed: 50 to 30000"),
        (SERVER | {"TS_FETCH_TIMEOUT_MS": "0"}, "Allowed: 50 to 30000"),
        (SERVER | {"TS_GRPC_LISTEN": "8080"}, "TS_GRPC_LISTEN = '8080': not HOST:PORT"),
        (SERVER | {"TS_HTTP_LISTEN": "h:99999"}, "TS_HTTP_LISTEN"),
        (SERVER | {"TS_WATCHER_IDENTITY": "gateway"}, "TS_WATCHER_IDENTITY.*sip:"),
        (SERVER | {"TS_WATCHER_IDENTITY": "tel:+15551234567"}, "TS_WATCHER_IDENTITY = .*Allowed: a sip: or sips: URI"),
        (SERVER | {"TS_TEL_DEFAULT_CONTEXT": "44"}, r"TS_TEL_DEFAULT_CONTEXT = '44'.*Allowed: \+, or \+ and up to"),
        (SERVER | {"TS_TEL_DEFAULT_CONTEXT": "+1-555"}, "TS_TEL_DEFAULT_CONTEXT = .*not a plus"),
        (SERVER | {"TS_GRPC_LISTEN": "h:\u00b2"}, "TS_GRPC_LISTEN = .*not HOST:PORT"),
        (SERVER | {"TS_SIP_LISTEN": "localhost:0"}, "TS_SIP_LISTEN = 'localhost:0': not an IPv4.*Allowed: IPv4:PORT"),
        (SERVER | {"TS_SIP_LISTEN": "[::1]:0"}, "TS_SIP_LISTEN = .*not an IPv4 address"),
        (SERVER | {"TS_SIP_LISTEN": "0.0.0.0:0"}, "TS_SIP_PUBLIC_HOST is not set: needed where TS_SIP_LISTEN is 0"),
        (AWAY, "TS_SIP_LISTEN is not set: TS_SIP_LISTEN must be an address the presence server can reach"),
        (AWAY | {"TS_SIP_LISTEN": "127.9.9.9:5060"}, "TS_SIP_LISTEN = '127.9.9.9:5060': TS_SIP_LISTEN must be"),
        ({"TS_PRESENCE_SERVER": "sip:pres.example;transport=tcp"}, "pres.example cannot reach 127.0.0.1:0"),
        (SERVER | {"TS_BUSY_ACTIVITIES": "on the phone"}, "is not an activity name"),
        (SERVER | {"TS_DATABASE_URL": "oracle://x"}, "TS_DATABASE_URL.*sqlite"),
        (SERVER | {"TS_LOG_LEVEL": "loud"}, "TS_LOG_LEVEL.*debug"),
        (SERVER | {"TS_SIP_PUBLIC_HOST": "a b"}, "TS_SIP_PUBLIC_HOST"),
        (SERVER | {"TS_HTTP_PUBLIC_URL": "ftp://x"}, "TS_HTTP_PUBLIC_URL"),
        (SERVER | {"TS_CORS_ORIGINS": "*"}, r"TS_CORS_ORIGINS = .*'\*' is not an origin"),
        (SERVER | {"TS_CORS_ORIGINS": "null"}, "is not an origin"),
        (
            SERVER | {"TS_CORS_ORIGINS": "https://x.example, https://y.example/"},
            "'https://y.example/' is not an origin",
        ),
        (SERVER | {"TS_CORS_ORIGINS": "https://X.example"}, "lower case"),
        (SERVER | {"TS_CORS_ORIGINS": "https://x.example:443"}, "unless it is the default"),
        (
            SERVER | {"TS_TLS_CERT_FILE": "/c.pem"},
            "TS_TLS_KEY_FILE is not set: TS_TLS_CERT_FILE and TS_TLS_KEY_FILE must",
        ),
        (SERVER | {"TS_TLS_KEY_FILE": "/k.pem"}, "TS_TLS_KEY_FILE = .*must be set together"),
        (SERVER | {"TS_SINK_CERT_FILE": "/c.pem"}, "TS_SINK_KEY_FILE is not set: .*must be set together"),
        (SERVER | {"TS_OIDC_ISSUER": "https://idp"}, "TS_OIDC_AUDIENCE.*must be set together"),
        (SERVER | {"TS_OIDC_JWKS_URL": "http://idp.example/keys"}, "TS_OIDC_JWKS_URL = .*not an https URL"),
        (SERVER | {"TS_ANONYMOUS_ACCESS": "yes"}, "TS_ANONYMOUS_ACCESS = 'yes'.*loopback, anywhere or never"),
        (SERVER | {"TS_GRPC_MAX_CONNECTION_AGE_S": "-1"}, "Allowed: 0 to 86400"),
        (SERVER | {"TS_CONFIG_FILE": "/nowhere.toml"}, "/nowhere.toml: cannot be read"),
    ],
)
def test_wrong_settings_are_named(environ: dict[str, str], said: str) -> None:
    """A wrong setting stops the start; the message has the setting's name, the given value and the allowed values."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ)
    assert re.search(said, str(caught.value))


@pytest.mark.parametrize(
    "environ",
    [
        AWAY | {"TS_SIP_LISTEN": "192.0.2.2:5060"},
        AWAY | {"TS_SIP_LISTEN": "0.0.0.0:5060", "TS_SIP_PUBLIC_HOST": "gateway.example"},
        {"TS_PRESENCE_SERVER": "sip:localhost:5060"},
        {"TS_PRESENCE_SERVER": "sip:127.0.0.2", "TS_SIP_LISTEN": "127.0.0.3:0"},
        SERVER | {"TS_SIP_LISTEN": "192.0.2.2:0"},
        SERVER | {"TS_WATCHER_IDENTITY": "sips:gateway@example.com", "TS_ASSERTED_IDENTITY": "tel:+15551234567"},
    ],
)
def test_settings_that_go_together(environ: dict[str, str]) -> None:
    """Loopback addresses go with loopback, public ones with public; either kind of identity is allowed where it
    fits."""
    load_settings(environ)


def test_an_option_is_called_as_it_was_given() -> None:
    """Where an option and its setting differ in name, the message has the option's name."""
    with pytest.raises(ConfigurationError, match="--grpc-server = 'x': not HOST:PORT"):
        load_settings(SERVER, called={"grpc_listen": "--grpc-server"}, grpc_listen="x")


def test_wrong_file(tmp_path: Path) -> None:
    """Errors about a file that is not TOML, and about an unknown key, have the file's name."""
    file = tmp_path / "gateway.toml"
    file.write_text("presence_server = ")
    with pytest.raises(ConfigurationError, match=r"gateway\.toml: is not a TOML file"):
        load_settings({}, file)
    file.write_text('presence_server = "sip:h"\nspeed = "high"\n')
    with pytest.raises(ConfigurationError, match=r"speed in .*gateway\.toml is not a setting"):
        load_settings({}, file)


def test_all_problems_are_reported_at_once() -> None:
    """Two wrong settings are two problems."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"TS_FETCH_TIMEOUT_MS": "x"})
    assert len(caught.value.problems) == 2


def test_table_is_fresh() -> None:
    """The table in docs/settings.md agrees with the generated one; if not, copy the table from this test's output."""
    assert settings_table() in SETTINGS.read_text("utf-8"), settings_table()


def test_policies_default_to_their_own() -> None:
    """Each policy's default is written in two places; both agree."""
    settings = load_settings(SERVER)
    assert Policy() == Policy(**{each.name: getattr(settings, each.name) for each in fields(Policy)})


def test_password_that_sip_cannot_carry_is_refused_and_not_shown() -> None:
    """A password beyond printable ASCII stops the start, and no message contains it."""
    with pytest.raises(ConfigurationError) as refused:
        load_settings({**SERVER, "TS_SIP_PASSWORD": "geheim-\u00fc"})
    assert refused.value.problems == [
        "TS_SIP_PASSWORD = (hidden): not printable ASCII of at most 256 characters. Allowed: printable ASCII."
    ]
