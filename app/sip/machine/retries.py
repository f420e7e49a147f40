"""When a watch that failed tries again: at once, after the back-off, after Retry-After, or after the long stop.

Times are of the driver's clock, in seconds; `jitter` is in [0, 1).
"""

from dataclasses import dataclass

from app.domain.errors import TerminalStatusError
from app.sip.headers import Final, Notify
from app.sip.machine.timing import LONG_STOP_S, LONGEST_EXPIRES_S, MAX_RETRY_AFTER_S, STEADY_S, backoff_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How the next attempt is timed.

    `at_once`: without a wait, but only after the first failure in a row, or if the server has just come `back`:
    otherwise a server could make us loop. `retry_after_s` is the server's Retry-After, -1 where absent or without
    meaning.
    """

    at_once: bool = False
    back: bool = False
    long_stop: bool = False
    retry_after_s: int = -1


AT_ONCE = Retry(at_once=True)
LONG_STOP = Retry(long_stop=True)
FOLLOW = Retry(at_once=True, back=True)
"""The retry after a redirection, which the machine follows once."""


def retry_after_failure(final: Final, error: TerminalStatusError, asked_s: int, *, back: bool) -> Retry:
    """The retry after a failed SUBSCRIBE that asked for `asked_s`. `back`: the server answered after an attempt without
    an answer."""
    if should_ask_longer(final, asked_s):
        return AT_ONCE
    if final.code == 481:
        return Retry(at_once=True, back=back)
    if error.retryable and final.code != 423:
        return Retry(retry_after_s=final.retry_after_s)
    return LONG_STOP


def should_ask_longer(final: Final, asked_s: int) -> bool:
    """Whether the server answered 423 with a Min-Expires that we follow."""
    return final.code == 423 and asked_s < final.min_expires_s <= LONGEST_EXPIRES_S


def retry_after_termination(notify: Notify) -> Retry:
    """The retry after a NOTIFY with `terminated`, by its reason (RFC 6665 section 4.1.3)."""
    match notify.reason:
        case "rejected":
            return LONG_STOP
        case "probation" | "giveup":
            return Retry(retry_after_s=notify.retry_after_s)
        case "deactivated" | "timeout":  # RFC 6665 gives Retry-After no meaning for these
            return AT_ONCE
        case _:  # no reason, an unknown one, or `invariant` before any status was known
            return Retry(at_once=True, retry_after_s=notify.retry_after_s)


class Retries:
    """Counts the failures in a row of one watch, and turns each `Retry` into a wait."""

    __slots__ = ("_good_since_s", "failures")

    def __init__(self) -> None:
        self.failures = 0
        self._good_since_s: float | None = None

    @property
    def good(self) -> bool:
        """Whether the last attempt succeeded."""
        return self._good_since_s is not None

    def on_success(self, now_s: float) -> None:
        """A subscription was granted or renewed."""
        if self._good_since_s is None:
            self._good_since_s = now_s

    def wait_s(self, retry: Retry, now_s: float, jitter: float) -> float:
        """Counts one more failure, and returns the wait until the next attempt."""
        if self._good_since_s is not None and now_s - self._good_since_s >= STEADY_S:
            self.failures = 0
        self._good_since_s = None
        spread = 1 + jitter / 10
        if retry.long_stop:
            wait_s = LONG_STOP_S * spread
        else:
            at_once = retry.at_once and (retry.back or not self.failures)
            wait_s = 0.0 if at_once else backoff_s(self.failures, jitter)
            if retry.retry_after_s > 0:
                wait_s = max(wait_s, min(retry.retry_after_s, MAX_RETRY_AFTER_S) * spread)
        self.failures += 1
        return wait_s
