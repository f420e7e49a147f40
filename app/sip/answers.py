"""What a presence server's answers to SUBSCRIBE mean (RFC 6665, RFC 3856), as pure functions.

Invariants: no PJSIP, no I/O, no clock. Every answer has a meaning: a status may be read from it, the request is
made again in another way, or it is one domain error.
"""

from app.domain.errors import (
    DocumentUnreadable,
    FetchTimedOut,
    InvalidAddress,
    PresenceMisconfigured,
    PresenceUnavailable,
    TerminalStatusError,
    TerminalUnknown,
    WatcherRefused,
    WatcherUnauthenticated,
)
from app.sip.headers import Final

MAX_MIN_EXPIRES_S = 3600
"""A fetch that is answered 423 asks again with the Min-Expires it is told, up to this."""

BAD_ADDRESS = 416
"""The code of a local failure by which PJSIP's parser refuses an address that `parse_address` took."""

CUT = 513
"""The code of a local failure by which a document did not fit a datagram (513 is SIP's Message Too Large)."""

UNUSABLE = {
    "cseq": "its CSeq went back or stood still",
    "no-event": "it has no Event",
    "no-state": "it has no Subscription-State",
    "no-to-tag": "its To has no tag",
    "unreadable": "it cannot be parsed, as with a CSeq of 2^31 or more",
    "maddr": "its Via names an maddr, which is never looked up",
    "refused": "the SIP stack refused it",
}
"""Why a NOTIFY that was sent to a Contact of ours brought nothing."""

_MISCONFIGURED = frozenset({400, 405, 406, 414, 415, 416, 420, 421, 482, 483, 485, 488, 489, 493})
_UNKNOWN = frozenset({404, 410, 484, 604})
_REFUSED = frozenset({403, 603})


def retry_expires_s(final: Final, asked_s: int) -> int | None:
    """The Expires to ask with again after `final`, in seconds, or None.

    423 names the shortest subscription the server grants (RFC 6665 section 4.1.2.1); a fetch then becomes a
    subscription that is ended at its first NOTIFY. Only once, so that a server cannot keep us asking.
    """
    if final.code == 423 and asked_s == 0 and 0 < final.min_expires_s <= MAX_MIN_EXPIRES_S:
        return final.min_expires_s
    return None


def error_of_response(code: int, phrase: str, retry_after_s: int) -> TerminalStatusError:
    """The error that a final response to SUBSCRIBE stands for; `retry_after_s` is -1 where absent."""
    told = f"The presence server answered {code} {phrase}".rstrip() + "."
    sip_code = str(code)
    if code in _UNKNOWN:
        return TerminalUnknown(told, sip_code=sip_code)
    if code in _REFUSED:
        return WatcherRefused(told, sip_code=sip_code)
    if code in {401, 407}:
        return WatcherUnauthenticated(f"{told} The gateway has no credentials it accepts.", sip_code=sip_code)
    if code in _MISCONFIGURED:
        return PresenceMisconfigured(told, sip_code=sip_code)
    wait = float(retry_after_s) if retry_after_s >= 0 else None
    return PresenceUnavailable(told, retry_after_s=wait, sip_code=sip_code)


def error_of_local_failure(code: int, phrase: str) -> TerminalStatusError:
    """The error that PJSIP's own end of a fetch stands for, where the presence server has not answered."""
    if code == BAD_ADDRESS:
        return InvalidAddress(f"The address cannot be asked about: {phrase}.")
    if code == CUT:
        return DocumentUnreadable("The presence document was cut by UDP; it is asked for over TCP.", reason="cut")
    if code == 0:
        return FetchTimedOut("The presence server accepted the question and then sent no NOTIFY.")
    return PresenceUnavailable(f"The presence server could not be asked: {phrase}.")


def error_of_notify(
    state: str, reason: str, retry_after_s: int, declared_bytes: int, received_bytes: int
) -> TerminalStatusError | None:
    """The error that a NOTIFY stands for, or None where its body (which may be empty) tells the status.

    `state` and `reason` are Subscription-State's (RFC 6665 section 4.1.3). A pending subscription tells nothing
    about the terminal, only that nobody has let us watch it yet. A body whose length differs from Content-Length
    was cut on the way (PJSIP does that to what exceeds its buffer); `declared_bytes` is -1 where not declared.
    """
    if state == "pending" or reason == "rejected":
        return WatcherRefused(
            "The presentity has not let this gateway watch it"
            + (" yet: the subscription is pending." if state == "pending" else "."),
            reason=reason or state,
        )
    if reason == "noresource":
        return TerminalUnknown("The presence server has no such resource.", reason=reason)
    if reason in {"deactivated", "probation", "giveup"} and not received_bytes:
        wait = float(retry_after_s) if retry_after_s >= 0 else None
        return PresenceUnavailable(
            f"The presence server ended the subscription ({reason}) without saying the status.",
            retry_after_s=wait,
            reason=reason,
        )
    if declared_bytes not in (-1, received_bytes):
        return DocumentUnreadable(
            f"The presence document was cut short: {received_bytes} of {declared_bytes} bytes arrived.", reason="cut"
        )
    return None
