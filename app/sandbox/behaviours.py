"""The sandbox's terminals that misbehave, and how the sandbox handles a SUBSCRIBE for each (`BEHAVIOURS`).

To add a behaviour, write its function and add a row. A behaviour is called once for each new SUBSCRIBE, in a dialog or
not, and never for retransmissions. It acts only through the `Exchange`.

Deliberately absent: the terminals that behave well (`terminals.py`).
"""

import hashlib
import re
from collections.abc import Callable

from app.sandbox.documents import NOTHING, bad_document, big_document
from app.sandbox.exchange import Exchange
from app.sandbox.notifies import NO_STATE

DIGEST_REALM, DIGEST_USER, DIGEST_PASSWORD = "sandbox", "watcher", "secret"
_DIGEST_PARAMETER = re.compile(r"(\w+)=([^\s,]+)")

Behaviour = Callable[[Exchange, str], None]
"""Handles a SUBSCRIBE. The text is the match of the group in the row's pattern, "" for a pattern without a group."""

MAX_DELAY_MS = 60_000
MAX_DOCUMENT_BYTES = 4_000_000


def honest(exchange: Exchange, _: str = "") -> None:
    """Behaves as RFC 6665 and RFC 3856 require: 200, and at once a NOTIFY with the terminal's document."""
    exchange.accept()
    exchange.notify()


def _answer(exchange: Exchange, code_text: str) -> None:
    code = int(code_text)
    if 200 <= code < 300:
        exchange.accept(code)
        exchange.notify()
    elif code == 423:
        if exchange.in_dialog or exchange.expires_s >= 60:
            honest(exchange)
        else:
            exchange.answer(423, "Min-Expires: 60")
    elif code in (401, 407):
        name = "WWW-Authenticate" if code == 401 else "Proxy-Authenticate"
        exchange.answer(code, f'{name}: Digest realm="sandbox", nonce="{exchange.tag}", algorithm=MD5, qop="auth"')
    elif code in (480, 503):
        exchange.answer(code, "Retry-After: 7")
    else:
        exchange.answer(code)


def _silent(exchange: Exchange, _: str) -> None:
    pass


def _fetch_481(exchange: Exchange, _: str) -> None:
    if exchange.in_dialog or exchange.expires_s:
        honest(exchange)
    else:
        exchange.answer(481)


def _notify_first(exchange: Exchange, _: str) -> None:
    exchange.open()
    exchange.notify()
    exchange.later(20, exchange.accept)


def _notify_twice(exchange: Exchange, _: str) -> None:
    honest(exchange)
    exchange.notify()


def _notify_never(exchange: Exchange, _: str) -> None:
    exchange.accept()


def _notify_late(exchange: Exchange, delay_ms: str) -> None:
    exchange.accept()
    exchange.later(min(int(delay_ms), MAX_DELAY_MS), exchange.notify)


def _pending(exchange: Exchange, _: str) -> None:
    exchange.accept()
    if exchange.in_dialog and not exchange.expires_s:
        exchange.notify(NOTHING)
    else:
        exchange.notify(NOTHING, state=f"pending;expires={exchange.expires_s}" if exchange.expires_s else "pending")


def _terminated(exchange: Exchange, reason: str) -> None:
    exchange.accept()
    exchange.notify(NOTHING, state=f"terminated;reason={reason}")


def _terminated_for(exchange: Exchange, reason_and_s: str) -> None:
    reason, _, retry_after_s = reason_and_s.partition("-")
    exchange.accept()
    exchange.notify(NOTHING, state=f"terminated;reason={reason};retry-after={retry_after_s}")


def _granted(exchange: Exchange, expires_s: str) -> None:
    exchange.expires_s = min(exchange.expires_s, int(expires_s))
    honest(exchange)


def _notify_wrong(exchange: Exchange, _: str) -> None:
    honest(exchange)
    if exchange.expires_s and not exchange.in_dialog:
        exchange.notify(NOTHING)


def _quiet_refresh(exchange: Exchange, code_and_s: str) -> None:
    code, expires_s = code_and_s.split("-")
    exchange.expires_s = min(exchange.expires_s, int(expires_s))
    if exchange.in_dialog and exchange.expires_s:
        exchange.accept(int(code))
    else:
        honest(exchange)


def _expires_zero(exchange: Exchange, where: str) -> None:
    if not exchange.expires_s:
        honest(exchange)
    elif where == "answer":
        exchange.expires_s = 0
        exchange.accept()
        exchange.notify(state="active")
    else:
        exchange.accept()
        exchange.notify(state="active;expires=0")


def _forked(exchange: Exchange, _: str) -> None:
    honest(exchange)
    exchange.notify_stray(tag=f"{exchange.tag}-fork")


def _dead_dialog(exchange: Exchange, _: str) -> None:
    honest(exchange)
    exchange.notify_stray(call_id=f"dead-{exchange.tag}")


def _cseq_back(exchange: Exchange, _: str) -> None:
    exchange.accept()
    dialog = exchange.open()
    dialog.cseq += 10
    exchange.notify()
    dialog.cseq -= 5
    exchange.notify()


def _no_state(exchange: Exchange, _: str) -> None:
    exchange.accept()
    exchange.notify(state=NO_STATE)


def _nonce(exchange: Exchange, cseq: int) -> str:
    """The nonce sent in answer to the SUBSCRIBE with this CSeq; valid only in the SUBSCRIBE with the next CSeq."""
    return hashlib.sha256(f"{exchange.request.first('call-id')} {cseq}".encode()).hexdigest()


def _digest(exchange: Exchange, algorithm: str) -> None:
    cseq = exchange.request.cseq[0]
    if _digest_is_right(exchange, "MD5" if algorithm == "md5" else "SHA-256", _nonce(exchange, cseq - 1)):
        honest(exchange)
        return
    algorithms = {"md5": ["MD5"], "sha256": ["SHA-256"], "both": ["SHA-256", "MD5"]}[algorithm]
    exchange.answer(
        401,
        *(
            f'WWW-Authenticate: Digest realm="{DIGEST_REALM}", nonce="{_nonce(exchange, cseq)}", '
            f'algorithm={name}, qop="auth"'
            for name in algorithms
        ),
    )


def _digest_is_right(exchange: Exchange, algorithm: str, nonce: str) -> bool:
    """Whether the SUBSCRIBE carries the right digest for this nonce (RFC 7616 section 3.4, qop auth)."""
    values = dict(_DIGEST_PARAMETER.findall(exchange.request.first("authorization").replace('"', "")))
    digest = hashlib.md5 if algorithm == "MD5" else hashlib.sha256

    def hashed(*parts: str) -> str:
        return digest(":".join(parts).encode("utf-8", "surrogateescape")).hexdigest()

    whose = hashed(DIGEST_USER, DIGEST_REALM, DIGEST_PASSWORD)
    what = hashed("SUBSCRIBE", values.get("uri", ""))
    counted = (values.get(name, "") for name in ("nc", "cnonce", "qop"))
    expected = {"algorithm": algorithm, "nonce": nonce, "response": hashed(whose, nonce, *counted, what)}
    return all(values.get(name) == value for name, value in expected.items())


def _accept_202(exchange: Exchange, _: str) -> None:
    exchange.accept(202)
    exchange.notify()


def _list(exchange: Exchange, how: str) -> None:
    require = "Require: eventlist"
    if how == "421":
        exchange.answer(421, require)
    else:
        exchange.accept()
        exchange.notify(NOTHING if how == "empty" else bad_document(how, exchange.address), require)


def _document(exchange: Exchange, name: str) -> None:
    exchange.accept()
    exchange.notify(bad_document(name, exchange.address))


def _document_big(exchange: Exchange, size: str) -> None:
    exchange.accept()
    exchange.notify(big_document(exchange.address, min(int(size), MAX_DOCUMENT_BYTES)))


def _length_lies(exchange: Exchange, _: str) -> None:
    exchange.accept()
    exchange.notify(unsent_bytes=100)


BEHAVIOURS: dict[str, tuple[Behaviour, str]] = {
    r"answer-([1-6]\d\d)": (
        _answer,
        "this status to each SUBSCRIBE; 401, 407 with a challenge, 480 and 503 with Retry-After: 7, 2xx with a NOTIFY; "
        "423 with Min-Expires: 60, and honest if Expires is 60 or more",
    ),
    "silent": (_silent, "no answer at all"),
    "fetch-481": (
        _fetch_481,
        "honest, with 481 to Expires: 0 outside a dialog, as servers built on belle-sip (Linphone, Flexisip)",
    ),
    "notify-first": (_notify_first, "the NOTIFY, and 20 ms later the 200"),
    "notify-twice": (_notify_twice, "200 and the same NOTIFY twice, the second with the next CSeq"),
    "notify-wrong": (
        _notify_wrong,
        "honest, but a subscription's first NOTIFY is followed by another, wrongly without a document",
    ),
    "notify-never": (_notify_never, "200 and no NOTIFY"),
    r"notify-late-(\d{1,9})": (
        _notify_late,
        "200 at once, the NOTIFY after this many milliseconds (at most 60000)",
    ),
    "pending": (_pending, "200, and a NOTIFY in state pending without body: the presentity has not decided yet"),
    r"terminated-([a-z]{1,32})": (
        _terminated,
        "200, and a NOTIFY terminated with this reason without body: rejected, noresource, deactivated, probation, …",
    ),
    r"terminated-([a-z]{1,32}-\d{1,9})": (_terminated_for, "the same with retry-after, in seconds"),
    r"granted-(\d{1,9})": (_granted, "honest, but grants at most this number of seconds"),
    r"refresh-(20[024]-\d{1,9})": (
        _quiet_refresh,
        "honest, grants at most this number of seconds, and answers a refresh with this status and no NOTIFY",
    ),
    "expires-zero-(answer|notify)": (
        _expires_zero,
        "200 and a NOTIFY in state active; the 200 (answer) or the NOTIFY (notify) says that it expires in 0 seconds",
    ),
    "forked": (
        _forked,
        "honest, and a NOTIFY with another tag, as from a second server reached by forking",
    ),
    "dead-dialog": (_dead_dialog, "honest, and a NOTIFY with another Call-ID"),
    "cseq-back": (_cseq_back, "200 and two NOTIFYs, the second with a lower CSeq"),
    "no-state": (_no_state, "200 and a NOTIFY without Subscription-State"),
    "digest-(md5|sha256|both)": (
        _digest,
        f"401 with a new nonce until the digest is right (user {DIGEST_USER}, password {DIGEST_PASSWORD}), then honest",
    ),
    "accept-202": (_accept_202, "honest, with 202 instead of 200 (RFC 3265)"),
    "list-(empty|rlmi|421)": (
        _list,
        "a list (RFC 4662): 200, and a NOTIFY with Require: eventlist, without a body or with RLMI; or 421",
    ),
    "document-(no-id)": (_document, "Reachable; its tuple has no id, which the schema requires"),
    "document-(comment)": (_document, "Reachable; comments and a processing instruction between and inside elements"),
    "document-(prefix)": (_document, "Busy; every namespace under an unusual prefix"),
    "document-(ten-tuples)": (_document, "Reachable; ten tuples, of which only the seventh is open"),
    "document-(latin1)": (_document, "unreadable; declares UTF-8 and holds ISO 8859-1"),
    "document-(cut)": (_document, "unreadable; ends after two thirds, and Content-Length agrees"),
    "document-(gzip)": (_document, "Reachable; with Content-Encoding: gzip"),
    "document-(rlmi)": (_document, "Reachable; in a multipart/related body, after an RLMI part (RFC 4662)"),
    "document-(bomb)": (_document, "a billion bytes once its nested entities are expanded"),
    "document-(dtd)": (_document, "Reachable; with a document type declaration"),
    "document-(empty)": (_document, "no body: nothing is published"),
    "document-(text)": (_document, "text/plain"),
    r"document-big-(\d{1,9})": (_document_big, "Reachable; this number of bytes long (at most 4000000)"),
    "length-lies": (
        _length_lies,
        "over UDP, Content-Length is 100 bytes more than is sent; over TCP it is right",
    ),
}
"""By a pattern for the whole user part: the behaviour, and one line about it. *Honest* means as RFC 6665 requires."""

_COMPILED = [(re.compile(pattern), behaviour) for pattern, (behaviour, _) in BEHAVIOURS.items()]


def behaviour_of(user: str) -> tuple[Behaviour, str] | None:
    """The behaviour of a terminal by its user part, and the text that the pattern's group matched."""
    for pattern, behaviour in _COMPILED:
        if match := pattern.fullmatch(user):
            return behaviour, match[1] if pattern.groups else ""
    return None
