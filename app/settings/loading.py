"""Reads the settings once, at start: from the command's options, else the environment (`TS_…`), else a TOML file.

An unknown or wrong setting stops the start. The message has its name, where it was set, its value (except secrets) and
what is allowed.

Deliberately absent: settings that change while the gateway runs.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from app.settings.fields import Settings
from app.settings.kinds import PREFIX

__all__ = ["API_KEY", "CONFIG_FILE", "PREFIX", "ConfigurationError", "Settings", "load_settings", "settings_table"]

CONFIG_FILE = "TS_CONFIG_FILE"
API_KEY = "TS_API_KEY"
"""The API key of commands that call a gateway. Not a setting: a gateway may run with it in its environment."""


class ConfigurationError(Exception):
    """The settings cannot be used; `problems` has one message for each wrong setting."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load_settings(
    environ: Mapping[str, str] = os.environ,
    config_file: Path | None = None,
    *,
    called: Mapping[str, str] | None = None,
    **overrides: str | None,
) -> Settings:
    """The settings. Options take precedence over the environment, the environment over the file.

    `overrides` are the command's options by field name; None stands for an option that was not given. `called` maps a
    field to its option's name for messages, if the two names differ. The file is `config_file`, or else the one that
    TS_CONFIG_FILE names; its keys are the field names. Raises ConfigurationError.
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
    """The table of `docs/settings.md`, in Markdown."""
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
        raise ConfigurationError([f"{path}: is not a TOML file: {error}."]) from None


def _problem(name: str, item: Any, values: dict[str, Any], origin: dict[str, str]) -> str:
    field = Settings.model_fields.get(name)
    if field is None:
        known = ", ".join(PREFIX + known.upper() for known in Settings.model_fields)
        return f"{origin[name]} is not a setting of this gateway. The settings are: {known}, {CONFIG_FILE}."
    allowed = field.examples[0] if field.examples else ""
    if item["type"] == "missing":
        return f"{PREFIX}{name.upper()} is not set. {field.description} Allowed: {allowed}."
    why = str(item["msg"]).removeprefix("Value error, ").rstrip(".")
    if values.get(name) is None:  # the default contradicts another setting
        return f"{PREFIX}{name.upper()} is not set: {why}. Allowed: {allowed}."
    given = "(hidden)" if isinstance(field.default, SecretStr) else re.sub(r":[^:@/]*@", ":***@", repr(values[name]))
    return f"{origin[name]} = {given}: {why}. Allowed: {allowed}."


def _plain(value: object) -> str:
    if value is None or isinstance(value, SecretStr):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(sorted(value, reverse=True)) if isinstance(value, frozenset | tuple) else str(value)
