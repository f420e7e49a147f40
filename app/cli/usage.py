"""`terminal-status usage …`: usage records, for billing: shown, and exported as JSON Lines or CSV.

Invariants: an export streams: its memory does not grow with it. A file is written beside its name and renamed when it
is complete, so a name never holds half an export. The records are exact: nothing is escaped for spreadsheets.

Deliberately absent: prices, sums.
"""

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from app.cli.gateway import Gateway, asks_gateway, wrong_use
from app.cli.output import err, fail, shown
from app.cli.tables import Cell, plain, print_list, styled
from app.cli.times import clock, since_or_none

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.usage_pb2 import UsageRecord

usage = typer.Typer(no_args_is_help=True, help="Usage records: what clients did and were sent, for billing.")

PROGRESS_S = 2.0
"""How long an export is quiet."""


class Format(StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    CSV = "csv"


Since = Annotated[
    str,
    typer.Option(
        "--since",
        metavar="TIME",
        help="From then on: 2026-11-23, 2026-11-23T08:00Z (UTC without a zone) or 24h ago as 24h; all otherwise.",
        show_default=False,
    ),
]


@usage.command("list")
@asks_gateway
def list_usage(
    gateway: Gateway,
    from_time: Since = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Show so many at most; all otherwise.", show_default=False)
    ] = None,
) -> None:
    """List usage records in the order in which they were written.

    Example: terminal-status usage list --since 1h
    """
    from app.pb.terminalstatus.v1.usage_pb2 import ListUsageRecordsRequest
    from app.pb.terminalstatus.v1.usage_pb2_grpc import UsageServiceStub

    request = ListUsageRecordsRequest(since=since_or_none(from_time, datetime.now(UTC)))
    pages = gateway.pages(UsageServiceStub(gateway.channel).ListUsageRecords, request, "usage_records", limit)
    columns = ("at", "operation", "client", "face", "targets", "result", "subscription")
    print_list(pages, columns, _row, as_json=gateway.as_json, nothing="No usage records.")


@usage.command()
@asks_gateway
def export(
    gateway: Gateway,
    from_time: Since = "",
    form: Annotated[Format, typer.Option("--format", help="JSON Lines or CSV.")] = Format.JSONL,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; standard output otherwise.", show_default=False),
    ] = None,
) -> None:
    """Export all usage records from a time until now, streaming.

    One JSON object a line, or CSV with a header, targets with blanks between. A record's id is the same in each export.

    Example: terminal-status usage export --since 2026-11-01 --format csv --output november.csv
    """
    from app.pb.terminalstatus.v1.usage_pb2 import ExportUsageRecordsRequest
    from app.pb.terminalstatus.v1.usage_pb2_grpc import UsageServiceStub

    if gateway.as_json and form is Format.CSV:
        wrong_use("--json and --format csv: one of them.")
    request = ExportUsageRecordsRequest(since=since_or_none(from_time, datetime.now(UTC)))
    portions = gateway.stream(UsageServiceStub(gateway.channel).ExportUsageRecords, request)
    count, progress = 0, _Progress()
    try:
        with _opened(output) as file:
            write = _writer(file, form)
            for portion in portions:
                for record in portion.usage_records:
                    write(plain(record))
                count += len(portion.usage_records)
                progress.tell(count)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{output or 'standard output'}: cannot be written: {error.strerror}.")
    finally:
        progress.end()
    if output is not None:
        err.print(f"Wrote {count:,} usage records to {shown(str(output))}.")


def _writer(file: TextIO, form: Format) -> Callable[[dict[str, Any]], object]:
    if form is Format.JSONL:
        return lambda record: file.write(json.dumps(record, separators=(",", ":")) + "\n")
    from app.pb.terminalstatus.v1.usage_pb2 import UsageRecord

    columns = [field.name for field in UsageRecord.DESCRIPTOR.fields]
    rows = csv.writer(file)
    rows.writerow(columns)
    return lambda record: rows.writerow([*_flat(record, columns)])


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _flat(record: dict[str, Any], columns: list[str]) -> Iterator[Any]:
    for column in columns:
        cell = " ".join(record[column]) if isinstance(record[column], list) else record[column]
        # What a caller wrote may begin like a formula, which spreadsheets would compute.
        yield f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """The file to write to, which gets its name when it is complete. Raises OSError."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
    elif output.exists() and not output.is_file():  # a device or a pipe
        with output.open("w", encoding="utf-8", newline="") as file:
            yield file
    else:
        part = output.with_name(f"{output.name}.{os.getpid()}.part")
        try:
            private = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)  # it says who asked about whom
            with os.fdopen(private, "w", encoding="utf-8", newline="") as file:
                yield file
            if output.exists():
                part.chmod(0o600 | output.stat().st_mode & 0o060)
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)


class _Progress:
    """How many records there are so far, on standard error, once it takes longer than PROGRESS_S."""

    def __init__(self) -> None:
        self._next_s = time.monotonic() + PROGRESS_S
        self._told = False

    def tell(self, count: int) -> None:
        if (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + PROGRESS_S
            self._told = True
            err.print(f"{count:,} usage records …", end="\r" if err.is_terminal else "\n")

    def end(self) -> None:
        if self._told and err.is_terminal:
            err.print(" " * 40, end="\r")


def _row(record: "UsageRecord") -> list[Cell]:
    more = f" and {record.target_count - 1} more" if record.target_count > 1 else ""
    return [
        clock(record.at),
        record.operation,
        record.client_id,
        record.face,
        (record.targets[0] if record.targets else "") + more,
        styled(record.result, "green" if record.result == "OK" else "red"),
        record.subscription_id,
    ]
