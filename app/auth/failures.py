"""Credentials that failed: counted by reason, limited by peer, and logged within bounds.

Invariants: peers that are remembered are bounded, and so are log lines, in number and length: a stranger can send as
many bad credentials as he likes. `shown` is the public part of credentials and never a secret; what a terminal might
obey is not logged.

Deliberately absent: which credentials are bad (`authenticator.py`).
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
"""Peers whose failures are counted; the oldest are forgotten first."""

FAILURE_BURST = 20
FAILURE_EVERY_S = 3.0
"""A peer may fail FAILURE_BURST times, and once more each FAILURE_EVERY_S; further failures are RateLimited, neither
counted for it nor logged."""

LOOK_UP_BURST = 100
LOOK_UP_EVERY_S = 0.1
"""So many look-ups of credentials that were never found good may fail for a peer; further ones are RateLimited unseen.
It is more than FAILURE_BURST: good credentials that are new here still get in, if perhaps not at once, while somebody
else behind the same address guesses."""

LOG_BURST = 100
LOG_EVERY_S = 1.0
"""Failures of all peers are logged LOG_BURST times, and once more each LOG_EVERY_S; `left_out` counts the others."""

REASON, SHOWN = "reason", "shown"
"""Details of Unauthenticated on its way to `count`: how it is counted, and what of the credentials is public."""
ABSENT, MALFORMED, REFUSED, LIMITED, UNCHECKED = "absent", "malformed", "refused", "limited", "unchecked"
REASONS: Final = {
    ABSENT: "nothing was shown",
    MALFORMED: "what was shown has the form of no credentials",
    REFUSED: "they are wrong, have ended, or their client is disabled",
    LIMITED: "the peer failed too often",
    UNCHECKED: "the identity provider's keys are not to be had",
}

_log = structlog.get_logger(__name__)


class Failures:
    """The failures of one process. `monotonic` gives seconds that never go back; `proxies` are not limited."""

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
        """Counts what a caller is refused with, and takes what is not for the caller out of it."""
        error.details.pop(SHOWN, None)
        reason = error.details.pop(REASON, REFUSED)
        if isinstance(error, RateLimited):
            reason = LIMITED
        elif error.retry_after_s is not None:
            reason = UNCHECKED
        self.counts[reason] += 1

    def check(self, peer: str) -> None:
        """Raises RateLimited where the peer failed too often."""
        self._check(self._failed, peer)

    def check_look_up(self, peer: str) -> None:
        """Raises RateLimited where too many look-ups for the peer failed."""
        self._check(self._looked_up, peer)

    def add(self, peer: str, shown: str) -> None:
        """A failure of the peer."""
        if self._failed.take(bucket(peer), self._monotonic()):
            self._write(peer, shown)

    def add_look_up(self, peer: str) -> None:
        """A look-up for the peer that found nothing good."""
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
    """For each peer so often at once, and once more each so many seconds, as `limits` says."""

    def __init__(self, limits: Callable[[], tuple[int, float]]) -> None:
        self._limits = limits
        self._peers = BoundedDict[str, tuple[float, float]](MAX_PEERS)  # what was left, and when

    def wait_s(self, peer: str, now_s: float) -> float:
        """How long until the peer has one left; 0 is now."""
        left = self._left(peer, now_s)
        return 0.0 if left >= 1 else (1 - left) * self._limits()[1]

    def take(self, peer: str, now_s: float) -> bool:
        """Takes one, if one is left; whether it was."""
        left = self._left(peer, now_s)
        self._peers[peer] = (max(left - 1, 0.0), now_s)
        return left >= 1

    def _left(self, peer: str, now_s: float) -> float:
        burst, every_s = self._limits()
        left, at_s = self._peers.get(peer, (float(burst), now_s))
        return min(float(burst), left + (now_s - at_s) / every_s)


def unauthenticated(message: str, *, reason: str = REFUSED, shown: str = "") -> Unauthenticated:
    """The error, with how it is counted, and the public part of what was shown, for the log."""
    return Unauthenticated(message, reason=reason, shown=shown)
