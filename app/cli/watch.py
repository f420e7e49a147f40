"""`terminal-status watch`: terminals live, as a table on a terminal, else a line for each event.

A connection that is lost is made again, for as long as it takes, and the stream resumed where it was; what changed
meanwhile comes then. Only the first connection may fail the command, and what no waiting mends: credentials that are
refused, terminals that nobody can watch.

Deliberately absent: history; what a stream missed is only told by its newest state.
"""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.cli.gateway import Gateway, asks_gateway
from app.cli.output import OK, fail, out, printable
from app.cli.query import Addresses
from app.cli.tables import enum_name, plain, print_json, styled
from app.cli.times import SPAN_HELP, clock, duration, span_ms

if TYPE_CHECKING:
    from app.cli.access import CallFailed
    from app.pb.terminalstatus.v1.terminal_status_pb2 import WatchStatusesRequest

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
"""Between attempts to connect again; doubled each time, half of it by chance."""

Tell = Callable[[str, Any], None]
"""Told each event: its name in the proto's oneof and its message; `lost` with the reason where the connection is."""


@asks_gateway
def watch(
    gateway: Gateway,
    addresses: Addresses,
    criteria: Annotated[
        list[str] | None,
        typer.Option(metavar="STATUS", help="Tell changes to this only: REACHABLE, UNREACHABLE, BUSY; again for more."),
    ] = None,
    min_interval: Annotated[
        str,
        typer.Option(metavar="DURATION", help=f"Least time between two changes of one terminal, {SPAN_HELP}."),
    ] = "0",
    resume_token: Annotated[
        str, typer.Option(metavar="TOKEN", help="Tell only what differs from what this token's stream told.")
    ] = "",
) -> None:
    """Show terminals live, and the members of groups, until Ctrl-C.

    On a terminal as a table; into a pipe one line for each event; with --json one JSON object a line, bookmarks with
    resume tokens too. Resumes by itself after a lost connection.

    Example: terminal-status watch sip:alice@example.com sip:bob@example.com

    Example: terminal-status watch sip:sales@example.com --criteria BUSY --json | jq .
    """
    from app.pb.terminalstatus.v1.terminal_status_pb2 import WatchStatusesRequest

    request = WatchStatusesRequest(
        addresses=addresses,
        criteria=statuses(criteria),
        min_interval=duration(span_ms(min_interval)),
        resume_token=resume_token,
    )
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        if gateway.as_json:
            _follow(gateway, request, _tell_json)
        elif out.is_terminal:
            with _live_table(gateway.server) as tell:
                _follow(gateway, request, tell)
        else:
            _follow(gateway, request, _tell_line)
    except KeyboardInterrupt:
        raise typer.Exit(OK) from None


def statuses(names: list[str] | None) -> list[Any]:
    """Criteria, for a request."""
    from app.pb.terminalstatus.v1.terminal_status_pb2 import Status

    found = [f"STATUS_{name.upper()}" for name in names or []]
    for name in found:
        if name not in Status.keys() or name == "STATUS_UNSPECIFIED":  # noqa: SIM118  # it is no mapping
            raise typer.BadParameter(f"{name.removeprefix('STATUS_')!r} is none of REACHABLE, UNREACHABLE, BUSY.")
    return [Status.Value(name) for name in found]


def _follow(gateway: Gateway, request: "WatchStatusesRequest", tell: Tell) -> None:
    """Tells the events for ever. Raises CallFailed."""
    from app.cli.access import CallFailed
    from app.pb.terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub

    method = TerminalStatusServiceStub(gateway.channel).WatchStatuses
    connected, wait_s = False, FIRST_WAIT_S
    while True:
        lost = "The gateway ended the stream."
        try:
            for message in gateway.stream(method, request):
                connected, wait_s = True, FIRST_WAIT_S
                kind = message.WhichOneof("event")
                if kind is None:  # of a newer gateway
                    continue
                event: Any = getattr(message, kind)
                request.resume_token = getattr(event, "resume_token", "") or request.resume_token
                tell(kind, event)
                if kind == "end":
                    reason, lost = enum_name(event, "reason"), event.message or lost
                    if reason in ("NOTHING_TO_WATCH", "CREDENTIALS_EXPIRED"):
                        fail(f"{reason}: {event.message}")
                    if reason == "MAX_AGE":
                        wait_s = 0.0
        except CallFailed as failed:
            if not _resumes(failed, connected, request):
                raise
            lost = str(failed)
            wait_s = max(wait_s, failed.retry_after_s or 0)
        tell("lost", lost)
        time.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311  # no secret
        wait_s = min(max(2 * wait_s, FIRST_WAIT_S), LONGEST_WAIT_S)


def _resumes(failed: "CallFailed", connected: bool, request: "WatchStatusesRequest") -> bool:
    if connected and request.resume_token and failed.details.get("field") == "resume_token":
        request.resume_token = ""  # an older gateway refuses a token that it cannot use
        return True
    return connected and failed.passing


def _tell_json(kind: str, event: Any) -> None:
    print_json({"event": kind, **({"reason": event} if kind == "lost" else plain(event))}, indent=None)


def _tell_line(kind: str, event: Any) -> None:
    if kind == "bookmark":
        return
    at, words = _now(), [_KINDS[kind]]
    match kind:
        case "snapshot_item":
            at = clock(event.liveness_since)
            words += [event.address, enum_name(event.status, "status") or "-", *_liveness(event, event.liveness_reason)]
            if event.HasField("status"):
                at = clock(event.status.observed_at)
        case "change":
            at = clock(event.status.observed_at)
            words += [event.status.address, enum_name(event.status, "status")]
        case "liveness_change":
            at = clock(event.since)
            words += [event.address, *_liveness(event, event.reason)]
        case "terminal_removed":
            words.append(event.address)
        case "snapshot_complete" if event.reset:
            words.append("reset: the resume token could not be used, these are all terminals")
        case "end":
            words += [enum_name(event, "reason"), event.message]
        case "lost":
            words.append(event)
    print(f"{at}  {'  '.join([printable(word) for word in words if word])}", flush=True)  # noqa: T201  # the answer


_KINDS = {
    "snapshot_item": "now     ",
    "snapshot_complete": "complete",
    "change": "change  ",
    "liveness_change": "liveness",
    "terminal_removed": "removed ",
    "end": "end     ",
    "lost": "lost    ",
}


def _liveness(event: Any, reason: str) -> list[str]:
    return [enum_name(event, "liveness"), reason]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


class _Terminals:
    """What the live table shows: a row for each terminal, those that changed last where not all have room."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._rows: dict[str, dict[str, Any]] = {}
        self._shown: set[str] = set()  # in this stream's snapshot
        self._changes = 0
        self._note = Text("connecting …", "bright_black")

    def tell(self, kind: str, event: Any) -> None:
        match kind:
            case "snapshot_item":
                self._shown.add(event.address)
                self._set(
                    event.address, status=enum_name(event.status, "status"), liveness=enum_name(event, "liveness")
                )
                self._set(event.address, why=event.liveness_reason, at=_at(event))
            case "snapshot_complete":
                if event.reset:
                    self._rows = {address: row for address, row in self._rows.items() if address in self._shown}
                self._shown.clear()
            case "lost":
                self._shown.clear()
            case "change":
                self._changes += 1
                self._set(event.status.address, status=enum_name(event.status, "status"), at=_at(event))
            case "liveness_change":
                self._set(event.address, liveness=enum_name(event, "liveness"), why=event.reason)
            case "terminal_removed":
                self._rows.pop(event.address, None)
        if kind == "lost":
            self._note = Text(f"connection lost, trying again: {printable(event)}", "yellow")
        else:
            self._note = Text(f"watching at {self._server}; Ctrl-C ends it", "bright_black")

    def _set(self, address: str, **values: Any) -> None:
        row = self._rows.pop(address, {"status": "", "liveness": "UNKNOWN", "why": "", "at": ""})
        self._rows[address] = row | values  # at the end: it changed last

    def __rich__(self) -> Group:
        rows, room = list(self._rows.items()), max(3, out.height - 4)
        hidden = len(rows) - room
        table = Table("address", "status", "since (UTC)", "liveness", "", box=None, pad_edge=False)
        for address, row in sorted(rows[-room:] if hidden > 0 else rows):
            table.add_row(
                printable(address),
                styled(row["status"] or "-", None if row["status"] else "bright_black"),
                row["at"],
                styled(row["liveness"]),
                Text(printable(row["why"]), "bright_black"),
            )
        more = f"{hidden} more, which changed longer ago; " if hidden > 0 else ""
        return Group(table, Text(f"{more}{self._changes} changes; ", "bright_black") + self._note)


def _at(event: Any) -> str:
    if not event.HasField("status"):
        return ""
    at: datetime = event.status.observed_at.ToDatetime(UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}"


@contextmanager
def _live_table(server: str) -> Iterator[Tell]:
    terminals = _Terminals(server)
    with Live(terminals, console=out, refresh_per_second=4):
        yield terminals.tell
