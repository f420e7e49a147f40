"""`terminal-status watch`: the status of terminals live, as a table on a terminal, otherwise one line per event.

After a lost connection the command reconnects, for as long as that takes, and resumes the stream; the gateway then
sends the terminals that changed meanwhile. The command fails only where the first connection fails, or where waiting
does not help: credentials refused, no address that can be watched.

Deliberately absent: history; of several changes during a lost connection only the last status is shown.
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

from app.cli.console import OK, fail, out, printable
from app.cli.gateway_connection import GatewayConnection, gateway_command
from app.cli.options import AddressesArgument, CriteriaOption, criteria_statuses
from app.cli.protobuf_json import enum_name, plain
from app.cli.tables import print_json, styled
from app.cli.times import SPAN_HELP, clock, duration, span_ms

if TYPE_CHECKING:
    from app.cli.call_failures import CallFailed
    from app.pb.terminalstatus.v1.terminal_status_pb2 import WatchStatusesRequest

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
"""The wait before reconnecting: doubled after each attempt, then shortened by up to half at random."""

OnEvent = Callable[[str, Any], None]
"""Called with an event's name in the proto's oneof and its message, or with `lost` and the reason as text."""


@gateway_command
def watch(
    gateway: GatewayConnection,
    addresses: AddressesArgument,
    criteria: CriteriaOption = None,
    min_interval: Annotated[
        str,
        typer.Option(metavar="DURATION", help=f"Minimum time between two changes of one terminal, {SPAN_HELP}."),
    ] = "0",
    resume_token: Annotated[
        str,
        typer.Option(
            metavar="TOKEN",
            help="Start with the terminals that changed since this token, or are not LIVE. "
            "An earlier --json run printed it.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Show the status of terminals, and of the members of groups, live until Ctrl-C.

    Prints a table on a terminal, and one line per event into a pipe or file.
    With --json each event is one line of JSON, including bookmarks with resume tokens.
    After a lost connection, reconnects and resumes by itself.

    Example: terminal-status watch sip:alice@example.com sip:bob@example.com

    Example: terminal-status watch sip:sales@example.com --criteria BUSY --json | jq .
    """
    from app.pb.terminalstatus.v1.terminal_status_pb2 import WatchStatusesRequest

    request = WatchStatusesRequest(
        addresses=addresses,
        criteria=criteria_statuses(criteria),
        min_interval=duration(span_ms(min_interval)),
        resume_token=resume_token,
    )
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        if gateway.as_json:
            _follow(gateway, request, _print_json_event)
        elif out.is_terminal:
            with _live_table(gateway.server) as on_event:
                _follow(gateway, request, on_event)
        else:
            _follow(gateway, request, _print_line)
    except KeyboardInterrupt:
        raise typer.Exit(OK) from None


def _follow(gateway: GatewayConnection, request: "WatchStatusesRequest", on_event: OnEvent) -> None:
    """Never returns. Raises CallFailed where reconnecting does not help."""
    from app.cli.call_failures import CallFailed
    from app.pb.terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub

    method = TerminalStatusServiceStub(gateway.channel).WatchStatuses
    connected, wait_s = False, FIRST_WAIT_S
    while True:
        lost = "The gateway ended the stream."
        try:
            for message in gateway.stream(method, request):
                connected, wait_s = True, FIRST_WAIT_S
                kind = message.WhichOneof("event")
                if kind is None:  # an event that only newer versions know
                    continue
                event: Any = getattr(message, kind)
                request.resume_token = getattr(event, "resume_token", "") or request.resume_token
                on_event(kind, event)
                if kind == "end":
                    reason, lost = enum_name(event, "reason"), event.message or lost
                    if reason in ("NOTHING_TO_WATCH", "CREDENTIALS_EXPIRED"):
                        fail(f"{reason}: {event.message}")
                    if reason == "MAX_AGE":
                        wait_s = 0.0
        except CallFailed as failed:
            if not _may_reconnect(failed, connected, request):
                raise
            lost = str(failed)
            wait_s = max(wait_s, failed.retry_after_s or 0)
        on_event("lost", lost)
        time.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311  # not a secret
        wait_s = min(max(2 * wait_s, FIRST_WAIT_S), LONGEST_WAIT_S)


def _may_reconnect(failed: "CallFailed", connected: bool, request: "WatchStatusesRequest") -> bool:
    if connected and request.resume_token and failed.details.get("field") == "resume_token":
        request.resume_token = ""  # older gateways refuse a token that they cannot use
        return True
    return connected and failed.temporary


def _print_json_event(kind: str, event: Any) -> None:
    print_json({"event": kind, **({"reason": event} if kind == "lost" else plain(event))}, indent=None)


def _print_line(kind: str, event: Any) -> None:
    if kind == "bookmark":
        return
    at, words = _now(), [_KINDS[kind]]
    match kind:
        case "snapshot_item":
            at = clock(event.liveness_time)
            words += [event.address, enum_name(event.status, "status") or "-", *_liveness(event, event.liveness_reason)]
            if event.HasField("status"):
                at = clock(event.status.observe_time)
        case "change":
            at = clock(event.status.observe_time)
            words += [event.status.address, enum_name(event.status, "status")]
        case "liveness_change":
            at = clock(event.liveness_time)
            words += [event.address, *_liveness(event, event.liveness_reason)]
        case "terminal_removed":
            words.append(event.address)
        case "snapshot_complete" if event.reset:
            words.append("reset: the resume token could not be used; every terminal was sent")
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
    """The live table: a row for each terminal; if they do not fit, those that changed last."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._rows: dict[str, dict[str, Any]] = {}
        self._shown: set[str] = set()  # addresses in the current snapshot
        self._changes = 0
        self._note = Text("connecting …", "bright_black")

    def on_event(self, kind: str, event: Any) -> None:
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
                self._set(event.address, liveness=enum_name(event, "liveness"), why=event.liveness_reason)
            case "terminal_removed":
                self._rows.pop(event.address, None)
        if kind == "lost":
            self._note = Text(f"connection lost, reconnecting: {printable(event)}", "yellow")
        else:
            self._note = Text(f"watching at {self._server}; Ctrl-C ends it", "bright_black")

    def _set(self, address: str, **values: Any) -> None:
        row = self._rows.pop(address, {"status": "", "liveness": "UNKNOWN", "why": "", "at": ""})
        self._rows[address] = row | values  # moved to the end: rows are ordered by last change

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
        more = f"{hidden} more with older changes not shown; " if hidden > 0 else ""
        return Group(table, Text(f"{more}{self._changes} changes; ", "bright_black") + self._note)


def _at(event: Any) -> str:
    if not event.HasField("status"):
        return ""
    at: datetime = event.status.observe_time.ToDatetime(UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}"


@contextmanager
def _live_table(server: str) -> Iterator[OnEvent]:
    terminals = _Terminals(server)
    with Live(terminals, console=out, refresh_per_second=4):
        yield terminals.on_event
