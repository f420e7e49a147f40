"""Failed authentications: counted by reason, limited per peer, and logged.

Invariants: the peers that are remembered, and the number and length of log lines, are bounded: attackers may send any
number of wrong credentials. `shown` is the public part of credentials and never a secret; control characters, which a
text terminal might obey, are not logged.
"""

import math
from collections.abc import Callable
from typing import Final

import structlog

from app.auth.proxies import TrustedProxies, bucket
from app.domain.bounded import BoundedDict
from app.domain.errors import RateLimited, TerminalStatusError, Unauthenticated
from app.domain.records import MAX_ID

MAX_PEERS = 4096
"""How many peers' failures are counted."""

FAILURE_BURST = 20
FAILURE_EVERY_S = 3.0
"""A peer may fail FAILURE_BURST times, and once more every FAILURE_EVERY_S. Further failures are RateLimited and not
logged."""

LOOK_UP_BURST = 100
LOOK_UP_EVERY_S = 0.1
"""A peer may cause LOOK_UP_BURST failing look-ups of unknown credentials, and one more every LOOK_UP_EVERY_S. Further
unknown credentials are RateLimited without a look-up. This is more than FAILURE_BURST, so that new valid credentials
are accepted, perhaps after a wait, while somebody else behind the same address guesses."""

LOG_BURST = 100
LOG_EVERY_S = 1.0
"""LOG_BURST failures of all peers are logged, and one more every LOG_EVERY_S; `left_out` counts the others."""

REASON, SHOWN = "reason", "shown"
"""Details of Unauthenticated until `count` removes them: the reason, and the public part of the credentials."""
ABSENT, MALFORMED, REFUSED, LIMITED, UNCHECKED = "absent", "malformed", "refused", "limited", "unchecked"
REASONS: Final = {
    ABSENT: "no credentials were sent",
    MALFORMED: "the credentials are malformed",
    REFUSED: "the credentials are wrong or expired, or their client is disabled",
    LIMITED: "the peer failed too often",
    UNCHECKED: "the identity provider's keys cannot be fetched",
}

_log = structlog.get_logger(__name__)


class Failures:
    """The failures in one process. `monotonic` returns seconds; `proxies` are not limited."""

    def __init__(self, monotonic: Callable[[], float], proxies: TrustedProxies) -> None:
        self._monotonic = monotonic
        self._proxies = proxies
        self._failed = _Allowance(lambda: (FAILURE_BURST, FAILURE_EVERY_S))
        self._looked_up = _Allowance(lambda: (LOOK_UP_BURST, LOOK_UP_EVERY_S))
        self._lines = float(LOG_BURST)
        self._lines_at = -math.inf
        self._left_out = 0
        self.counts = dict.fromkeys(REASONS, 0)
        """Failures since the start, by reason."""

    def count(self, error: TerminalStatusError) -> None:
        """Counts an error that is about to be returned, and removes the details that the caller must not see."""
        error.details.pop(SHOWN, None)
        reason = error.details.pop(REASON, REFUSED)
        if isinstance(error, RateLimited):
            reason = LIMITED
        elif error.retry_after_s is not None:
            reason = UNCHECKED
        self.counts[reason] += 1

    def check(self, peer: str) -> None:
        """Raises RateLimited if the peer failed too often."""
        self._check(self._failed, peer)

    def check_look_up(self, peer: str) -> None:
        """Raises RateLimited if too many look-ups for the peer failed."""
        self._check(self._looked_up, peer)

    def add(self, peer: str, shown: str) -> None:
        """Counts and logs a failure of the peer."""
        if self._failed.take(bucket(peer), self._monotonic()):
            self._write(peer, shown)

    def add_look_up(self, peer: str) -> None:
        """Counts a failed look-up for the peer."""
        self._looked_up.take(bucket(peer), self._monotonic())

    def _check(self, allowance: "_Allowance", peer: str) -> None:
        wait_s = allowance.wait_s(bucket(peer), self._monotonic())
        if wait_s and not self._proxies.trusts(peer):
            raise RateLimited("Too many failed attempts; try again later.", retry_after_s=wait_s) from None

    def _write(self, peer: str, shown: str) -> None:
        now = self._monotonic()
        self._lines = min(float(LOG_BURST), self._lines + (now - self._lines_at) / LOG_EVERY_S)
        self._lines_at = now
        if self._lines < 1:
            self._left_out += 1
            return
        self._lines -= 1
        left_out, self._left_out = self._left_out, 0
        plain = "".join([c if c.isprintable() else "?" for c in shown[:MAX_ID]])
        more = {"left_out": left_out} if left_out else {}
        _log.warning("authentication_failed", peer=peer[:MAX_ID], shown=plain, **more)


class _Allowance:
    """A token bucket per peer. `limits` returns its size and the seconds until one more token."""

    def __init__(self, limits: Callable[[], tuple[int, float]]) -> None:
        self._limits = limits
        self._peers = BoundedDict[str, tuple[float, float]](MAX_PEERS)  # tokens left, and when

    def wait_s(self, peer: str, now_s: float) -> float:
        """Seconds until the peer has a token; 0: now."""
        left = self._left(peer, now_s)
        return 0.0 if left >= 1 else (1 - left) * self._limits()[1]

    def take(self, peer: str, now_s: float) -> bool:
        """Takes a token, if there is one. Returns whether there was."""
        left = self._left(peer, now_s)
        self._peers[peer] = (max(left - 1, 0.0), now_s)
        return left >= 1

    def _left(self, peer: str, now_s: float) -> float:
        burst, every_s = self._limits()
        left, at_s = self._peers.get(peer, (float(burst), now_s))
        return min(float(burst), left + (now_s - at_s) / every_s)


def unauthenticated(message: str, *, reason: str = REFUSED, shown: str = "") -> Unauthenticated:
    """The error, with the reason for the counter, and the public part of the credentials for the log."""
    return Unauthenticated(message, reason=reason, shown=shown)
