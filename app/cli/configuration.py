"""Reads the gateway's settings for a command; wrong settings end the command with exit code 2."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from app.cli.console import USAGE, print_error

if TYPE_CHECKING:
    from app.settings.loading import Settings


def read_settings(
    config: Path | None, option_names: dict[str, str] | None = None, **overrides: str | None
) -> "Settings":
    """All settings. `overrides` are values of options, by setting; `option_names` are the options' names for messages,
    by setting, where the two names differ."""
    from app.settings.loading import ConfigurationError, load_settings

    try:
        return load_settings(os.environ, config, called=option_names, **overrides)
    except ConfigurationError as error:
        for problem in error.problems:
            print_error(problem)
        raise typer.Exit(USAGE) from None


def read_settings_without_sip(
    config: Path | None, option_names: dict[str, str] | None = None, **overrides: str | None
) -> "Settings":
    """As `read_settings`, for commands that send no SIP and so need no TS_PRESENCE_SERVER."""
    return read_settings(config, option_names, presence_server="sip:127.0.0.1", sip_listen="127.0.0.1:0", **overrides)
