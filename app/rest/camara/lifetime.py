"""How long a CAMARA subscription lasts."""

from datetime import datetime, timedelta

from app.domain.policy import MAX_INTERVAL_MS
from app.domain.sinks import TOKEN_LEAD


def duration(
    now: datetime, expire_time: datetime | None, token_expires_at: datetime | None, default_ms: int | None
) -> tuple[int | None, bool]:
    """Returns a subscription's duration in milliseconds (None: unlimited), and whether its sink's access token ends it.

    `default_ms` is the duration of a request without `expire_time`. If an unlimited subscription has a token that
    outlives the longest possible duration, its duration stays unlimited; it still ends with the token.
    """
    requested_ms = default_ms if expire_time is None else _ms(expire_time - now)
    if token_expires_at is not None:
        token_ms = max(1, _ms(token_expires_at - TOKEN_LEAD - now))
        if requested_ms is None or token_ms < requested_ms:
            return (None if requested_ms is None and token_ms > MAX_INTERVAL_MS else token_ms), True
    return requested_ms, False


def _ms(of: timedelta) -> int:
    return -(-of // timedelta(milliseconds=1))
