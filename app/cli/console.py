"""Standard output and standard error of the commands, exit codes, and safe printing of text from elsewhere.

Deliberately absent: tables (`tables.py`), JSON of protobuf messages (`protobuf_json.py`).
"""

from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Prints the message and ends the command with exit code 1: the operation failed."""
    print_error(message)
    raise typer.Exit(FAILED) from None


def wrong_use(message: str) -> NoReturn:
    """Prints the message and ends the command with exit code 2: its arguments are wrong."""
    print_error(message)
    raise typer.Exit(USAGE) from None


def print_error(message: str) -> None:
    err.print(f"[red]error:[/] {shown(message)}")


def shown(text: str) -> str:
    """Text from elsewhere, for `out` and `err`: markup and non-printable characters are escaped."""
    return escape(printable(text))


def printable(text: str) -> str:
    """The text with non-printable characters escaped, since a terminal would obey control characters."""
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])


def check_utf8(value: object) -> None:
    """Ends the command where an argument, or one of a list of arguments, is not UTF-8.

    Python passes such bytes on as lone surrogates, which neither protobuf nor JSON can encode.
    """
    for text in value if isinstance(value, list | tuple) else [value]:
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError:
                wrong_use(f"{text} is not UTF-8.")
