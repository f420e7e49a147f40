"""What commands print of protobuf messages: tables for people, JSON for programs.

On a terminal a table is rich's, folded to its width; into a pipe or file it is aligned text, each row one line and
nothing cut. JSON has the names of the proto, every field always (null for what is absent), enum values without their
prefix (null for UNSPECIFIED), times in RFC 3339, durations in milliseconds with `_ms` at the name, bytes as text.
Lists are printed page by page, so that a long one costs no memory.

Invariants: nothing of others reaches the terminal with control characters or markup.
Deliberately absent: what the columns are.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from app.cli.output import err, out, printable

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


def plain(message: "Message") -> dict[str, Any]:
    """The message as JSON to be."""
    return dict([_field(message, field) for field in message.DESCRIPTOR.fields])


def enum_name(message: "Message", field: str) -> str:
    """The name of an enum field's value without its prefix; "" for UNSPECIFIED."""
    return _enum(message.DESCRIPTOR.fields_by_name[field], getattr(message, field)) or ""


def enum_names(message: "Message", field: str) -> list[str]:
    """As `enum_name`, of a repeated field."""
    return [_enum(message.DESCRIPTOR.fields_by_name[field], value) or "" for value in getattr(message, field)]


def styled(word: str, style: str | None = None) -> Text:
    """A word in its colour."""
    return Text(printable(word), STYLES.get(word, "red") if style is None else style)


def print_json(answer: object, *, indent: int | None = 2) -> None:
    """One JSON document on standard output, at once."""
    print(json.dumps(answer, indent=indent), flush=True)  # noqa: T201  # standard output is the command's answer


def print_list(
    pages: Iterable[Sequence[Any]],
    columns: Sequence[str],
    row: Callable[[Any], Sequence[Cell]],
    *,
    as_json: bool,
    nothing: str,
) -> int:
    """Prints the messages of all pages as one table or one JSON array; how many there were. `nothing` is said where
    there were none."""
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
    """One table."""
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
    """One thing, a line for each field that is not empty."""
    told = [(name, cell) for name, cell in fields if len(cell)]
    width = max(len(name) for name, _ in told)
    for name, cell in told:
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


def _field(message: "Message", field: Any) -> tuple[str, Any]:
    value, of = getattr(message, field.name), field.message_type
    name = f"{field.name}_ms" if of and of.full_name == "google.protobuf.Duration" else field.name
    if of and of.GetOptions().map_entry:
        return name, dict(value)
    if field.is_repeated:
        return name, [_value(field, each) for each in value]
    if of and not message.HasField(field.name):
        return name, None
    return name, _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if of := field.message_type:
        if of.full_name == "google.protobuf.Timestamp":
            return value.ToJsonString()
        if of.full_name == "google.protobuf.Duration":
            return value.seconds * 1000 + value.nanos // 1_000_000
        return plain(value)
    if field.enum_type:
        return _enum(field, value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _enum(field: Any, value: int) -> str | None:
    if value == 0:
        return None
    values = field.enum_type.values_by_number
    name: str = values[value].name if value in values else str(value)  # the latter of a newer gateway
    return name.removeprefix(values[0].name.removesuffix("UNSPECIFIED"))
