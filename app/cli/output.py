"""What the commands of `terminal-status` share: output, exit codes, options, and how a failure is told.

Deliberately absent: any command (`main.py` and the modules beside this one).
"""

import asyncio
import gc
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from app.settings.loading import Settings

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file with settings; TS_CONFIG_FILE otherwise.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def read_settings(config: Path | None, called: dict[str, str] | None = None, **overrides: str | None) -> "Settings":
    """As `load_settings`; what is wrong with them is told on standard error, and ends the command."""
    from app.settings.loading import ConfigurationError, load_settings

    try:
        return load_settings(os.environ, config, called=called, **overrides)
    except ConfigurationError as error:
        for problem in error.problems:
            err.print(f"[red]error:[/] {shown(problem)}")
        raise typer.Exit(USAGE) from None


@contextmanager
def loading() -> Iterator[None]:
    """Around imports of much: looking for garbage among what stays is a tenth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run_main(main: Coroutine[Any, Any, None]) -> None:
    """Runs `main` on uvloop; what stops a start is one line on standard error and exit code 1."""
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
    except OSError as error:
        fail(str(error))
    except Exception as error:
        from app.servers import CannotStart  # only now: commands that serve nothing need not load servers

        if not isinstance(error, CannotStart):
            raise
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Ends the command: something that was asked for failed."""
    err.print(f"[red]error:[/] {shown(message)}")
    raise typer.Exit(FAILED) from None


def shown(text: str) -> str:
    """Text of others for the terminal: no markup, and what it cannot show or might obey is escaped."""
    return escape(printable(text))


def printable(text: str) -> str:
    """Text of others as plain text for the terminal: what it cannot show or might obey is escaped."""
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])
