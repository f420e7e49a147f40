"""The durations of a watch, in seconds."""

TIMER_N_S = 32.0
"""Longest wait for a NOTIFY: 64 * T1 (RFC 6665 section 4.1.2.4). Counted from the 2xx, so that a late 2xx does not
shorten it."""

TRANSACTION_S = TIMER_N_S + 3
"""Longest wait for a response. The SIP stack's own Timer F (64 * T1) should have reported 408 before."""

EXPIRES_S = 3600
LONGEST_EXPIRES_S = 86400
"""A 423 with a longer Min-Expires is not followed."""

BURST = 3
GAP_S = 1.0
"""One watch sends at most BURST SUBSCRIBEs at once, and one more every GAP_S."""

MAX_BACKOFF_S = 60.0
MAX_RETRY_AFTER_S = 3600.0
"""A longer Retry-After is cut to this."""

LONG_STOP_S = 3600.0
"""Wait after a refusal or a misconfiguration: only people can mend those."""

STEADY_S = 30.0
"""How long a subscription must last before the back-off restarts from its shortest wait: a subscription that ends at
once is not a success."""


def refresh_delay_s(expires_s: float, jitter: float) -> float:
    """The delay from the grant of a subscription of `expires_s` to its refresh: before the expiry, and spread by
    `jitter` in [0, 1) so that not all watches refresh together."""
    latest_s = min(max(1.0, expires_s - 30, expires_s / 2), expires_s - min(1.0, expires_s / 10))
    return latest_s * (1 - jitter / 10)


def backoff_s(failures: int, jitter: float) -> float:
    """Seconds to wait after a failure that follows `failures` earlier ones in a row: 2^failures, at most MAX_BACKOFF_S,
    less up to half of it by `jitter` in [0, 1)."""
    return float(min(MAX_BACKOFF_S, 2 ** min(failures, 16)) * (1 - jitter / 2))
