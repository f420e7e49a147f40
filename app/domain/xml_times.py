"""Reads the times of presence documents: xs:dateTime, and RFC 3339 in its looser forms."""

import re
from datetime import UTC, datetime, timedelta

_FORM = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d):(\d\d):(\d\d)(\.\d{1,20})?(Z|[+-]\d\d:\d\d)?", re.ASCII | re.IGNORECASE)
_MAX_CHARACTERS = 80


def read_time(text: str) -> tuple[datetime, bool] | None:
    """The time, and whether its offset from UTC is stated; without one the time is read as UTC. None where the text is
    not a time. `24:00:00` is the end of the day (xs:dateTime), and a leap second the second before (RFC 3339)."""
    found = _FORM.fullmatch(text.strip()) if len(text) <= _MAX_CHARACTERS else None
    if found is None:
        return None
    day, hours, minutes, seconds, fraction, offset = found.groups()
    end_of_day = (hours, minutes, seconds) == ("24", "00", "00")
    clock = f"{'00' if end_of_day else hours}:{minutes}:{'59' if seconds == '60' else seconds}{(fraction or '')[:7]}"
    zone = "+00:00" if offset in (None, "Z", "z") else offset
    try:
        time = datetime.fromisoformat(f"{day}T{clock}{zone}")
        if end_of_day:
            time += timedelta(days=1)
        return time.astimezone(UTC), offset is not None
    except (ValueError, OverflowError):
        return None
