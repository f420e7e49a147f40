"""How the command line prints subscriptions: one with all its fields, many as a table."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from app.cli.gateway_connection import GatewayConnection
from app.cli.protobuf_json import enum_name, enum_names, plain
from app.cli.tables import Cell, print_fields, print_json, styled
from app.cli.times import clock, short, until

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.subscription_pb2 import Subscription

COLUMNS = ("id", "addresses", "criteria", "sink", "notified", "expires in", "correlator", "state")


def print_subscription(gateway: GatewayConnection, subscription: "Subscription") -> None:
    """Prints all fields, or JSON."""
    if gateway.as_json:
        print_json(plain(subscription))
        return
    of, now = subscription, datetime.now(UTC)
    interval_ms = of.min_interval.ToMilliseconds()
    expires = f"{clock(of.expire_time)}, in {until(of.expire_time, now)}" if of.HasField("expire_time") else "never"
    notified = f"{of.notification_count}{f' of {of.max_notification_count}' if of.max_notification_count else ''}"
    print_fields(
        [
            ("id", of.id),
            ("state", _state(of)),
            ("addresses", ", ".join(of.addresses)),
            ("criteria", ", ".join(enum_names(of, "criteria")) or "every change"),
            ("sink", _sink(of)),
            ("version", of.sink.soap.version),
            ("correlator", of.correlator),
            ("client", of.client_id),
            ("etag", of.etag),
            ("x-correlator", of.x_correlator),
            ("created", clock(of.create_time)),
            ("expires", "" if of.HasField("end_time") else expires),
            (
                "min interval",
                (f"{interval_ms} ms" if interval_ms < 1000 else short(interval_ms / 1000)) * bool(interval_ms),
            ),
            ("notified", notified),
            ("last notified", clock(of.last_notification_time) if of.HasField("last_notification_time") else ""),
            (
                "suspended",
                f"deliveries have failed since {clock(of.suspend_time)}" if of.HasField("suspend_time") else "",
            ),
            ("ended", f"{clock(of.end_time)} {of.end_detail}".strip() if of.HasField("end_time") else ""),
        ]
    )


def row(of: "Subscription", now: datetime) -> list[Cell]:
    """The cells of COLUMNS."""
    return [
        of.id,
        shown_addresses(of),
        ", ".join(enum_names(of, "criteria")),
        _sink(of),
        str(of.notification_count),
        until(of.expire_time, now) if of.HasField("expire_time") else "never",
        of.correlator,
        _state(of),
    ]


def _state(of: "Subscription") -> Cell:
    if of.HasField("end_time"):
        return styled(enum_name(of, "end_reason") or "ended", "bright_black")
    return styled("suspended", "yellow") if of.HasField("suspend_time") else styled("active")


def _sink(of: "Subscription") -> str:
    kind = of.sink.WhichOneof("kind") or "unknown"
    return f"{kind} {getattr(getattr(of.sink, kind, None), 'uri', '')}".strip()


def shown_addresses(of: "Subscription") -> str:
    """The first address, and how many more there are."""
    return of.addresses[0] + (f" and {len(of.addresses) - 1} more" if len(of.addresses) > 1 else "")
