"""Results as tables for people, or as JSON for programs.

On a terminal a table is folded to the terminal's width. Into a pipe or file it is aligned text: one line per row,
nothing cut. Lists are printed page by page, so that memory does not grow with their length.

Invariants: text from elsewhere is printed without markup and control characters.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from app.cli.console import err, out, printable
from app.cli.protobuf_json import plain

if TYPE_CHECKING:
    from google.protobuf.message import Message

Cell = str | Text
STYLES = {
    "REACHABLE": "green",
    "BUSY": "yellow",
    "UNREACHABLE": "bright_black",
    "LIVE": "green",
    "STALE": "yellow",
    "DELIVERED": "green",
    "PENDING": "yellow",
    "DEAD": "red",
    "WITHDRAWN": "bright_black",
    "active": "green",
}


def styled(word: str, style: str | None = None) -> Text:
    """The word in `style`; by default in its colour of STYLES, or red."""
    return Text(printable(word), STYLES.get(word.strip(), "red") if style is None else style)


def print_json(answer: object, *, indent: int | None = 2) -> None:
    """Prints one JSON document and flushes."""
    print(json.dumps(answer, indent=indent), flush=True)  # noqa: T201  # standard output is the command's answer


def print_list(
    pages: Iterable[Sequence[Any]],
    columns: Sequence[str],
    row: Callable[[Any], Sequence[Cell]],
    *,
    as_json: bool,
    nothing: str,
) -> int:
    """Prints the messages of all pages as one table or one JSON array, and returns their number. An empty table is
    replaced by the message `nothing` on standard error."""
    if as_json:
        return _print_array(message for page in pages for message in page)
    count = 0
    for page in pages:
        if page:
            print_table(columns, [row(message) for message in page], header=not count)
        count += len(page)
    if not count:
        err.print(nothing)
    return count


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, header: bool = True) -> None:
    if out.is_terminal:
        table = Table(box=None, pad_edge=False, show_header=header)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(_text, row))
        out.print(table, soft_wrap=False)
        return
    lines = [[_text(cell).plain for cell in row] for row in rows]
    lines[:0] = [list(columns)] if header else []
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        print("  ".join([cell.ljust(width) for cell, width in zip(line, widths, strict=True)]).rstrip())  # noqa: T201  # the answer


def print_fields(fields: Iterable[tuple[str, Cell]]) -> None:
    """Prints one object, a line for each field that is not empty."""
    filled = [(name, cell) for name, cell in fields if len(cell)]
    width = max(len(name) for name, _ in filled)
    for name, cell in filled:
        out.print(Text.assemble((name.ljust(width), "bold"), "  ", _text(cell)))


def _print_array(messages: Iterator["Message"]) -> int:
    count = 0
    for message in messages:
        text = json.dumps(plain(message), indent=2).replace("\n", "\n  ")
        print(f"{',' if count else '['}\n  {text}", end="")  # noqa: T201  # standard output is the command's answer
        count += 1
    print("\n]" if count else "[]", flush=True)  # noqa: T201  # standard output is the command's answer
    return count


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(printable(cell))
