"""The x-correlator of a call: its name in log lines, usage records and deliveries, by which a report names it.

The caller sends it as `x-correlator`, or as the trace id of a `traceparent`; otherwise the gateway makes one. A face
begins each call with `begin`. Tasks that the call starts inherit the x-correlator; tasks of the gateway itself have
none. A subscription's `correlator` is another thing: the application's name for the subscription.

Invariants: an x-correlator has at most 256 characters of `PATTERN`, so it cannot forge a line of a log or a header.
Text that breaks the pattern is never kept.
"""

import random
import re
from contextvars import ContextVar

HEADER = "x-correlator"
"""The name of the header, and of gRPC's metadata."""
TRACE_HEADER = "traceparent"
MAX_X_CORRELATOR = 256
PATTERN = r"^[a-zA-Z0-9-_:;.\/<>{}]{0,256}$"
"""CAMARA's XCorrelator, used for every API here."""

_CORRELATOR = re.compile(PATTERN[1:-1])
_PARENT = r"-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(rf"00{_PARENT}|(?!00|ff)[0-9a-f]{{2}}{_PARENT}(?:-[!-~]{{0,200}})?")


class XCorrelator:
    """The x-correlator of one call. A made one is random, and made at its first use: most calls do not need it."""

    __slots__ = ("_text", "invalid", "sent")

    def __init__(self, sent: str = "", *, invalid: bool = False) -> None:
        self._text = sent
        self.sent = bool(sent)
        """Whether the caller sent it."""
        self.invalid = invalid
        """Whether the caller sent an invalid `x-correlator`, which was replaced."""

    @property
    def text(self) -> str:
        """The x-correlator, never empty."""
        if not self._text:  # not a secret; `secrets` costs a system call
            self._text = f"{random.getrandbits(128):032x}"
        return self._text


_current: ContextVar[XCorrelator | None] = ContextVar("x_correlator", default=None)

current = _current.get
"""Returns the x-correlator of the call that this task handles; None outside of calls."""
begin = _current.set
"""From now on this task handles a call with this x-correlator."""


def current_text() -> str:
    """Returns the text of the current x-correlator; "" outside of calls."""
    x_correlator = _current.get()
    return x_correlator.text if x_correlator is not None else ""


def read(x_correlator: str, traceparent: str) -> XCorrelator:
    """Returns the x-correlator of a call with these headers; "" for an absent one.

    Several lines of a header are `joined` first, which makes either header invalid. An invalid `traceparent` is ignored
    (W3C Trace Context section 3.2.2.3).
    """
    if x_correlator and _CORRELATOR.fullmatch(x_correlator):
        return XCorrelator(x_correlator)
    return XCorrelator(trace_id(traceparent) if traceparent else "", invalid=bool(x_correlator))


def trace_id(traceparent: str) -> str:
    """Returns the trace id of a `traceparent`; "" if that is invalid (W3C Trace Context section 3.2.2)."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return (match[1] or match[2]) if match else ""


def joined(values: str, value: str) -> str:
    """Returns the value of a header with one more line; "" is an absent header (RFC 9110 section 5.3)."""
    return f"{values},{value}" if values else value
