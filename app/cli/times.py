"""Times and durations, as people write them in options and read them in tables.

Invariants: times are UTC. Malformed text raises `typer.BadParameter`, which typer prints with exit code 2.
Deliberately absent: months and years as units, whose lengths vary.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SPAN = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)(ms|[smhd]?)")
SPAN_HELP = "such as 500ms, 90s, 15m, 2h, 7d"


def span_ms(text: str) -> int:
    """Milliseconds of a duration such as `90s`; a bare number is seconds."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration {SPAN_HELP}.")
    return round(float(match[1]) * _UNITS_MS[match[2] or "s"])


def since(text: str, now: datetime) -> datetime:
    """The time that `text` names: a day, a time (UTC if without a zone), or a duration before `now`."""
    if _SPAN.fullmatch(text.strip()):
        return now - timedelta(milliseconds=min(span_ms(text), 3_000_000_000_000))
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time such as 2026-11-23, 2026-11-23T08:00Z or 24h.") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)


def since_or_none(text: str, now: datetime) -> "Timestamp | None":
    """As `since`, as a protobuf Timestamp; None for an empty text."""
    if not text:
        return None
    from google.protobuf.timestamp_pb2 import Timestamp

    at = Timestamp()
    at.FromDatetime(since(text, now))
    return at


def duration(ms: int) -> "Duration":
    from google.protobuf.duration_pb2 import Duration

    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def short(seconds: float) -> str:
    """A duration in its two largest units: `3d 4h`, `5m 12s`, `8s`."""
    left = max(0, int(seconds))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2]) or "0s"


def ago(at: "Timestamp", now: datetime) -> str:
    """The time since `at`, as by `short`."""
    return short(now.timestamp() - at.seconds - at.nanos / 1e9)


def until(at: "Timestamp", now: datetime) -> str:
    """The time left until `at`, as by `short`."""
    return short(at.seconds + at.nanos / 1e9 - now.timestamp())


def clock(at: "Timestamp") -> str:
    """RFC 3339 in UTC with milliseconds, such as 2026-11-23T08:00:00.000Z."""
    return at.ToDatetime(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
