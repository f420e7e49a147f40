"""The times of a standing subscription: how long each thing is waited for, and when it is tried again.

Invariants: pure; seconds; `jitter` is in [0, 1) and the caller's.

Deliberately absent: what is waited for (`machine.py`).
"""

TIMER_N_S = 32.0
"""64 * T1: how long a NOTIFY may take (RFC 6665 section 4.1.2.4); from the 2xx, so that a late one costs nothing."""

TRANSACTION_S = TIMER_N_S + 3
"""After so long without an answer we give up ourselves; the stack's own Timer F (64 * T1) should have said 408."""

EXPIRES_S = 3600
LONGEST_EXPIRES_S = 86400
"""A Min-Expires (423) above this is not followed."""

BURST = 3
GAP_S = 1.0
MAX_BACKOFF_S = 60.0
MAX_RETRY_AFTER_S = 3600.0
"""A server that asks for more silence than this is asked again nevertheless."""

LONG_STOP_S = 3600.0
"""After a refusal or a misconfiguration, which time does not mend and people may."""

STEADY_S = 30.0
"""A subscription must have held so long for the back-off to begin anew: one that falls at once is no success."""


def refresh_delay_s(expires_s: float, jitter: float) -> float:
    """How long after a subscription of `expires_s` was granted it is refreshed: before its end, and not all at once."""
    latest_s = min(max(1.0, expires_s - 30, expires_s / 2), expires_s - min(1.0, expires_s / 10))
    return latest_s * (1 - jitter / 10)


def backoff_s(failures: int, jitter: float) -> float:
    """How long to wait after so many failures in a row, 0 being none before this one."""
    return float(min(MAX_BACKOFF_S, 2 ** min(failures, 16)) * (1 - jitter / 2))
