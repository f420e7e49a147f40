"""`terminal-status doctor`: checks what the gateway needs, and says what to mend."""

import asyncio

import typer
from rich.markup import escape

from app.cli.console import FAILED, OK, USAGE, out
from app.cli.options import ConfigOption, JsonOption
from app.cli.tables import print_json


def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check the settings, PJSIP and its limits, the presence server and the database.

    Exit code 1 if a check fails, 2 if the settings are wrong.
    """
    from app.cli.doctor_checks import check_everything
    from app.logs import configure_logging

    configure_logging("error", "auto")
    checks = asyncio.run(check_everything(config))
    if as_json:
        print_json(checks)
    else:
        for check in checks:
            verdict = "[green]ok  [/]" if check["ok"] else "[red]FAIL[/]"
            out.print(f"{verdict} {check['check']}: {escape(check['found'])}")
            for note in check.get("notes", []):
                out.print(f"     note: {escape(note)}")
    settings_wrong = not checks[0]["ok"]
    raise typer.Exit(USAGE if settings_wrong else OK if all(check["ok"] for check in checks) else FAILED)
