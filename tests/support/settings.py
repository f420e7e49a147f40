"""The settings of gateways under test."""

import secrets
import tempfile

from app.settings.loading import Settings

_DATABASES = tempfile.TemporaryDirectory(prefix="terminal-status-")


def settings_for(presence_server: str, **changes: object) -> Settings:
    """Settings of a gateway on free loopback ports, with a database of its own."""
    values: dict[str, object] = {
        "presence_server": presence_server,
        "grpc_listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "database_url": f"sqlite:///{_DATABASES.name}/{secrets.token_hex(8)}.sqlite3",
        **changes,
    }
    return Settings(**values)  # type: ignore[arg-type]  # pydantic validates them
