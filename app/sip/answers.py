"""The meaning of a presence server's answers to SUBSCRIBE (RFC 6665, RFC 3856), as pure functions.

Invariants: every answer means one of three things: a status, one domain error, or that the request is repeated in
another way.
"""

from app.domain.errors import (
    AddressIsList,
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
"""The longest Min-Expires of a 423 with which a fetch is repeated."""

ASKED_AGAIN_S = 60
"""The Expires with which a fetch is repeated after a 481."""

BAD_ADDRESS = 416
"""The code of a local failure: PJSIP refused an address that `parse_address` had accepted."""

CUT = 513
"""The code of a local failure: a document did not fit a datagram (513 is SIP's Message Too Large)."""

UNUSABLE = {
    "cseq": "its CSeq is not higher than the one before",
    "no-event": "it has no Event",
    "no-state": "it has no Subscription-State",
    "no-to-tag": "its To has no tag",
    "unreadable": "it cannot be parsed, for example because its CSeq is 2^31 or more",
    "maddr": "its Via has maddr, or its Contact or Record-Route has a name as maddr, which the gateway does not follow",
    "refused": "the SIP stack refused it",
}
"""By reason: why PJSIP or the gateway refused a NOTIFY to one of our Contacts, in words for people."""

_LIST = "The address is a list of terminals at the presence server; ask about each terminal, or make a group."

_UNKNOWN = frozenset({404, 410, 484, 604})
_TEMPORARY = frozenset({408, 423, 430, 480, 481, 486, 487, 491})
"""Responses of class 4xx after which the same request may succeed; every other one counts as 400."""


def retry_expires_s(final: Final, asked_s: int) -> int | None:
    """The Expires in seconds with which to repeat a fetch after `final`; None: do not repeat it.

    423 names the shortest subscription that the server grants (RFC 6665 section 4.1.2.1). A server built on belle-sip
    answers 481 to `Expires: 0` outside a dialog. The fetch then becomes a subscription that we end at its first NOTIFY.
    It is repeated once after each of the two: otherwise a server could make us loop.
    """
    if final.code == 481 and asked_s == 0 and not final.local:
        return ASKED_AGAIN_S
    if final.code == 423 and asked_s in (0, ASKED_AGAIN_S) and asked_s < final.min_expires_s <= MAX_MIN_EXPIRES_S:
        return final.min_expires_s
    return None


def error_of_response(code: int, phrase: str, retry_after_s: int, *, of_list: bool = False) -> TerminalStatusError:
    """The error for a final response to SUBSCRIBE; `retry_after_s` is -1 where absent.

    A code without a meaning here counts as x00 of its class (RFC 3261 section 8.1.3.2): 4xx is a misconfiguration, 5xx
    passes, 6xx is a refusal everywhere. A 3xx that reaches this function names none of the operator's servers.
    `of_list`: a 421 requires the extension of lists.
    """
    if of_list:
        return AddressIsList(_LIST, sip_code=str(code))
    answer = f"The presence server answered {code} {phrase}".rstrip() + "."
    sip_code = str(code)
    if code in _UNKNOWN:
        return TerminalUnknown(answer, sip_code=sip_code)
    if code == 403 or 600 <= code < 700:
        return WatcherRefused(answer, sip_code=sip_code)
    if code in {401, 407}:
        return WatcherUnauthenticated(f"{answer} The gateway's credentials are missing or wrong.", sip_code=sip_code)
    if 300 <= code < 400:
        why = "It redirects to a server that `TS_PRESENCE_SERVER` does not name, or redirects again."
        return PresenceMisconfigured(f"{answer} {why}", sip_code=sip_code)
    # 413 says by Retry-After that the condition is temporary (RFC 3261 section 21.4.11).
    if 400 <= code < 500 and code not in _TEMPORARY and not (code == 413 and retry_after_s >= 0):
        return PresenceMisconfigured(answer, sip_code=sip_code)
    wait = float(retry_after_s) if retry_after_s >= 0 else None
    return PresenceUnavailable(answer, retry_after_s=wait, sip_code=sip_code)


def error_of_list() -> AddressIsList:
    """The error for the address of a list (RFC 4662)."""
    return AddressIsList(_LIST)


def error_of_local_failure(code: int, phrase: str) -> TerminalStatusError:
    """The error where PJSIP itself ended a fetch or watch, without an answer of the presence server."""
    if code == BAD_ADDRESS:
        return InvalidAddress(f"The address cannot be queried: {phrase}.")
    if code == CUT:
        return DocumentUnreadable("UDP cut the presence document; the gateway asks again over TCP.", reason="cut")
    if code == 0:
        return FetchTimedOut("The presence server accepted the SUBSCRIBE and sent no NOTIFY.")
    return PresenceUnavailable(f"The presence server could not be queried: {phrase}.")


def error_of_notify(
    state: str, reason: str, retry_after_s: int, declared_bytes: int, received_bytes: int, *, of_list: bool = False
) -> TerminalStatusError | None:
    """The error for a NOTIFY; None where its body (which may be empty) gives the status.

    `state` and `reason` are those of Subscription-State (RFC 6665 section 4.1.3). A pending subscription says nothing
    about the terminal, only that the gateway is not authorised yet. A body shorter than its Content-Length was cut on
    the way: PJSIP cuts what exceeds its buffer. `declared_bytes` is -1 where there is no Content-Length. `of_list`: the
    NOTIFY states a list of terminals.
    """
    if state == "pending" or reason == "rejected":
        return WatcherRefused(
            "The presence server has not authorised the gateway to watch this terminal yet (pending)."
            if state == "pending"
            else "The presence server does not authorise the gateway to watch this terminal.",
            reason=reason or state,
        )
    if reason == "noresource":
        return TerminalUnknown("The presence server does not know this terminal (noresource).", reason=reason)
    if of_list:
        return error_of_list()
    if reason in {"deactivated", "probation", "giveup"} and not received_bytes:
        wait = float(retry_after_s) if retry_after_s >= 0 else None
        return PresenceUnavailable(
            f"The presence server ended the subscription ({reason}) without a status.",
            retry_after_s=wait,
            reason=reason,
        )
    if declared_bytes not in (-1, received_bytes):
        return DocumentUnreadable(
            f"The presence document was cut short: {received_bytes} of {declared_bytes} bytes arrived.", reason="cut"
        )
    return None
