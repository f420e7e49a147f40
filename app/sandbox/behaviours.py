"""The sandbox's terminals that misbehave: what a SUBSCRIBE for them meets, by user part. One table, `BEHAVIOURS`.

Invariants: a behaviour is called once for each new SUBSCRIBE (retransmissions never reach it), in or out of a dialog,
and acts through the `Exchange` alone. To add one: write the function, and give it a row.

Deliberately absent: the honest terminals' statuses, which stand in `terminals.py`.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from app.sandbox.terminals import NOTHING, bad_document, big_document

if TYPE_CHECKING:
    from app.sandbox.notifier import Exchange

Behaviour = Callable[["Exchange", str], None]
"""What to do with a SUBSCRIBE; the text is what the row's pattern has in its group, "" without one."""

MAX_DELAY_MS = 60_000
MAX_DOCUMENT_BYTES = 4_000_000


def honest(exchange: "Exchange", _: str = "") -> None:
    """What RFC 6665 and 3856 say: 200, and a NOTIFY at once with the terminal's document."""
    exchange.accept()
    exchange.notify()


def _answer(exchange: "Exchange", code_text: str) -> None:
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


def _silent(exchange: "Exchange", _: str) -> None:
    pass


def _notify_first(exchange: "Exchange", _: str) -> None:
    exchange.open()
    exchange.notify()
    exchange.later(20, exchange.accept)


def _notify_twice(exchange: "Exchange", _: str) -> None:
    honest(exchange)
    exchange.notify()


def _notify_never(exchange: "Exchange", _: str) -> None:
    exchange.accept()


def _notify_late(exchange: "Exchange", delay_ms: str) -> None:
    exchange.accept()
    exchange.later(min(int(delay_ms), MAX_DELAY_MS), exchange.notify)


def _pending(exchange: "Exchange", _: str) -> None:
    exchange.accept()
    if exchange.in_dialog and not exchange.expires_s:
        exchange.notify(NOTHING)
    else:
        exchange.notify(NOTHING, state=f"pending;expires={exchange.expires_s}" if exchange.expires_s else "pending")


def _terminated(exchange: "Exchange", reason: str) -> None:
    exchange.accept()
    exchange.notify(NOTHING, state=f"terminated;reason={reason}")


def _accept_202(exchange: "Exchange", _: str) -> None:
    exchange.accept(202)
    exchange.notify()


def _document(exchange: "Exchange", name: str) -> None:
    exchange.accept()
    exchange.notify(bad_document(name, exchange.address))


def _document_big(exchange: "Exchange", size: str) -> None:
    exchange.accept()
    exchange.notify(big_document(exchange.address, min(int(size), MAX_DOCUMENT_BYTES)))


def _length_lies(exchange: "Exchange", _: str) -> None:
    exchange.accept()
    exchange.notify(unsent_bytes=100)


BEHAVIOURS: dict[str, tuple[Behaviour, str]] = {
    r"answer-([1-6]\d\d)": (
        _answer,
        "this status to each SUBSCRIBE; 401, 407 with a challenge, 480 and 503 with Retry-After: 7, 2xx with a NOTIFY; "
        "423 with Min-Expires: 60, and honest from Expires: 60 on",
    ),
    "silent": (_silent, "no answer at all"),
    "notify-first": (_notify_first, "the NOTIFY, and 20 ms later the 200"),
    "notify-twice": (_notify_twice, "200 and the same NOTIFY twice, the second with the next CSeq"),
    "notify-never": (_notify_never, "200 and no NOTIFY"),
    r"notify-late-(\d{1,9})": (_notify_late, "200 at once, the NOTIFY after so many milliseconds (at most 60000)"),
    "pending": (_pending, "200, and a NOTIFY in state pending without body: the presentity hasn't decided yet"),
    r"terminated-([a-z]{1,32})": (
        _terminated,
        "200, and a NOTIFY terminated with this reason without body: rejected, noresource, deactivated, probation, …",
    ),
    "accept-202": (_accept_202, "honest, but 202 in place of 200 (RFC 3265)"),
    "document-(no-id)": (_document, "Reachable; its tuple has no id, which the schema requires"),
    "document-(comment)": (_document, "Reachable; comments and a processing instruction between and inside elements"),
    "document-(prefix)": (_document, "Busy; every namespace under an unusual prefix"),
    "document-(ten-tuples)": (_document, "Reachable; ten tuples, the seventh is the open one"),
    "document-(latin1)": (_document, "unreadable; declares UTF-8 and holds ISO 8859-1"),
    "document-(cut)": (_document, "unreadable; ends after two thirds, Content-Length fits"),
    "document-(gzip)": (_document, "Reachable; with Content-Encoding: gzip"),
    "document-(rlmi)": (_document, "Reachable; inside multipart/related behind an RLMI part (RFC 4662)"),
    "document-(bomb)": (_document, "a billion bytes once its nested entities are expanded"),
    "document-(dtd)": (_document, "Reachable; with a document type declaration"),
    "document-(empty)": (_document, "no body: nothing is published"),
    "document-(text)": (_document, "text/plain"),
    r"document-big-(\d{1,9})": (_document_big, "Reachable; so many bytes long (at most 4000000)"),
    "length-lies": (
        _length_lies,
        "Content-Length 100 bytes above what is sent over UDP; over TCP it tells the truth",
    ),
}
"""Pattern of the whole user part -> what happens, and one line on it."""

_COMPILED = [(re.compile(pattern), behaviour) for pattern, (behaviour, _) in BEHAVIOURS.items()]


def behaviour_of(user: str) -> tuple[Behaviour, str] | None:
    """The behaviour for a user part and the text in its pattern's group; None if it is in no row."""
    for pattern, behaviour in _COMPILED:
        if match := pattern.fullmatch(user):
            return behaviour, match[1] if pattern.groups else ""
    return None
