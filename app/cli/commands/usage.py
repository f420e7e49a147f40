"""`terminal-status usage …`: usage records for billing, listed or exported as JSON Lines or CSV.

Invariants: an export streams, so its memory does not grow with its length. A file is written under a temporary name and
renamed when complete. JSON Lines hold the records exactly; CSV marks cells that a spreadsheet would compute.

Deliberately absent: prices and sums.
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

from app.cli.console import err, fail, shown, wrong_use
from app.cli.gateway_connection import GatewayConnection, gateway_command
from app.cli.options import LimitOption, SinceOption
from app.cli.protobuf_json import enum_name, plain
from app.cli.tables import Cell, print_list, styled
from app.cli.times import clock, since_or_none

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.usage_pb2 import UsageRecord

usage = typer.Typer(
    no_args_is_help=True, help="Show and export usage records: the calls and notifications of clients, for billing."
)

XCorrelatorOption = Annotated[
    str, typer.Option("--x-correlator", help="Only records of the call with this x-correlator.", show_default=False)
]

PROGRESS_S = 2.0
"""Interval of an export's messages about its progress."""


class Format(StrEnum):
    """The format of an export."""

    JSONL = "jsonl"
    CSV = "csv"


@usage.command("list")
@gateway_command
def list_usage(
    gateway: GatewayConnection,
    from_time: SinceOption = "",
    x_correlator: XCorrelatorOption = "",
    limit: LimitOption = None,
) -> None:
    """List usage records, oldest first.

    Example: terminal-status usage list --since 1h
    """
    from app.pb.terminalstatus.v1.usage_pb2 import ListUsageRecordsRequest
    from app.pb.terminalstatus.v1.usage_pb2_grpc import UsageServiceStub

    request = ListUsageRecordsRequest(start_time=since_or_none(from_time, datetime.now(UTC)), x_correlator=x_correlator)
    pages = gateway.pages(UsageServiceStub(gateway.channel).ListUsageRecords, request, "usage_records", limit)
    columns = ("at", "operation", "client", "face", "targets", "result", "subscription", "x-correlator")
    print_list(pages, columns, _row, as_json=gateway.as_json, nothing="No usage records.")


@usage.command()
@gateway_command
def export(
    gateway: GatewayConnection,
    from_time: SinceOption = "",
    x_correlator: XCorrelatorOption = "",
    form: Annotated[
        Format, typer.Option("--format", help="jsonl: one JSON object per line; csv: with a header line.")
    ] = Format.JSONL,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. Default: standard output.", show_default=False),
    ] = None,
) -> None:
    """Export usage records as JSON Lines or CSV.

    A record has the same id in every export. In CSV, several targets are separated by spaces.

    Example: terminal-status usage export --since 2026-11-01 --format csv --output november.csv
    """
    from app.pb.terminalstatus.v1.usage_pb2 import ExportUsageRecordsRequest
    from app.pb.terminalstatus.v1.usage_pb2_grpc import UsageServiceStub

    if gateway.as_json and form is Format.CSV:
        wrong_use("--json and --format csv exclude each other; give one of them.")
    request = ExportUsageRecordsRequest(
        start_time=since_or_none(from_time, datetime.now(UTC)), x_correlator=x_correlator
    )
    batches = gateway.stream(UsageServiceStub(gateway.channel).ExportUsageRecords, request)
    count, progress = 0, _Progress()
    try:
        with _opened(output) as file:
            write = _writer(file, form)
            for batch in batches:
                for record in batch.usage_records:
                    write(plain(record))
                count += len(batch.usage_records)
                progress.print(count)
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
        # A spreadsheet would compute text that a client chose, such as a requester, if it looked like a formula.
        yield f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """The open file; it is renamed to `output` when complete. Raises OSError."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
    elif output.exists() and not output.is_file():  # a device or a pipe
        with output.open("w", encoding="utf-8", newline="") as file:
            yield file
    else:
        part = output.with_name(f"{output.name}.{os.getpid()}.part")
        try:
            private = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)  # the records are personal data
            with os.fdopen(private, "w", encoding="utf-8", newline="") as file:
                yield file
            if output.exists():
                part.chmod(0o600 | output.stat().st_mode & 0o060)
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)


class _Progress:
    """Prints the number of records so far on standard error, every PROGRESS_S."""

    def __init__(self) -> None:
        self._next_s = time.monotonic() + PROGRESS_S
        self._printed = False

    def print(self, count: int) -> None:
        if (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + PROGRESS_S
            self._printed = True
            err.print(f"{count:,} usage records …", end="\r" if err.is_terminal else "\n")

    def end(self) -> None:
        if self._printed and err.is_terminal:
            err.print(" " * 40, end="\r")


def _row(record: "UsageRecord") -> list[Cell]:
    more = f" and {record.target_count - 1} more" if record.target_count > 1 else ""
    return [
        clock(record.create_time),
        enum_name(record, "operation"),
        record.client_id,
        enum_name(record, "face"),
        (record.targets[0] if record.targets else "") + more,
        styled(record.result, "red" if record.root_cause else "green"),
        record.subscription_id,
        record.x_correlator,
    ]
