"""Reads the few header fields the watcher needs off the text of a SIP message (RFC 3261 section 7.3).

PJSIP has parsed and accepted the message before; here its text is read again, because PJSIP's own structures are
out of reach from Python. Pure; any text gives an answer, a missing or unreadable field its default.

Deliberately absent: everything else of SIP.
"""

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notify:
    """A NOTIFY: `state` and `reason` of Subscription-State in lower case, seconds or -1, and the body as it came.

    Every text, here and in `Final`, is printable ASCII of at most MAX_TEXT characters, whatever the peer sent.
    """

    state: str
    reason: str
    retry_after_s: int
    content_type: str
    content_encoding: str
    declared_bytes: int
    body: bytes
    expires_s: int = -1


@dataclass(frozen=True, slots=True)
class Final:
    """A final response to SUBSCRIBE; seconds are -1 where absent.

    `local` means that none came: the code and phrase are PJSIP's own (503 for a transport that fails, 408 for no
    answer in 32 s), and code 0 is a subscription that was accepted and then got no NOTIFY.
    """

    code: int
    phrase: str
    retry_after_s: int = -1
    min_expires_s: int = -1
    local: bool = False
    expires_s: int = -1
    """Of a 2xx: how long the subscription is granted."""
    dialog_gone: bool = False
    """Whether PJSIP has let go of the dialog with this answer."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A NOTIFY came to the dialog's Contact and was refused by PJSIP; `reason` is a word of `incoming.py`."""

    reason: str


Event = Notify | Final | Unusable

_FIELDS = re.compile(
    r"\n(subscription-state|content-type|c|content-encoding|e|content-length|l)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE
)  # the first line is no field; a search for \n takes half the time of one for the starts of lines
_LONG = {"c": "content-type", "e": "content-encoding", "l": "content-length"}
_FOLD = re.compile(r"\r?\n[ \t]+")
_BLANK = re.compile(r"\r?\n\r?\n")
_MAX_SECONDS = 2**31 - 1
_UNPRINTABLE = re.compile(r"[^ -~]")
MAX_TEXT = 100


def read_notify(text: str) -> Notify:
    """Reads a NOTIFY. `text` holds undecodable bytes as surrogates, as Python's `surrogateescape` makes them."""
    head, body = _split(text)
    fields = {_LONG.get(name := found[0].lower(), name): found[1].strip() for found in _FIELDS.findall(head)}
    state, reason, retry_after_s, expires_s = _subscription_state(fields.get("subscription-state", ""))
    return Notify(
        state=state,
        reason=reason,
        retry_after_s=retry_after_s,
        content_type=plain(fields.get("content-type", "")),
        content_encoding=plain(fields.get("content-encoding", "")),
        declared_bytes=_seconds(fields.get("content-length", "")),
        body=body.encode("utf-8", "surrogateescape"),
        expires_s=expires_s,
    )


@functools.lru_cache(maxsize=1024)  # a server writes few
def _subscription_state(value: str) -> tuple[str, str, int, int]:
    """The state, its reason, and Retry-After and Expires in seconds."""
    state, *parameters = value.lower().split(";")
    values = dict(parameter.strip().partition("=")[::2] for parameter in parameters)
    retry_after_s, expires_s = (_seconds(values.get(name, "").strip()) for name in ("retry-after", "expires"))
    return plain(state), plain(values.get("reason", "")), retry_after_s, expires_s


def read_response(text: str) -> Final:
    """Reads a response: its status line, Retry-After (RFC 3261 section 20.33), Min-Expires (20.23), Expires."""
    head, _ = _split(text)
    line = re.match(r"SIP/2\.0 (\d{3}) ?([^\r\n]*)", head)
    fields = dict(re.findall(r"(?im)^(retry-after|min-expires|expires)[ \t]*:[ \t]*(\d+)", head))
    values = {name.lower(): value for name, value in fields.items()}
    return Final(
        code=int(line[1]) if line else 0,
        phrase=plain(line[2]) if line else "",
        retry_after_s=_seconds(values.get("retry-after", "")),
        min_expires_s=_seconds(values.get("min-expires", "")),
        expires_s=_seconds(values.get("expires", "")),
    )


def lacking(packet: bytes) -> str:
    """Which of its two own header fields a NOTIFY lacks, as a reason; "" where it has both."""
    head = packet.partition(b"\r\n\r\n")[0]
    if not re.search(rb"(?im)^(?:event|o)[ \t]*:", head):
        return "no-event"
    return "" if re.search(rb"(?im)^subscription-state[ \t]*:", head) else "no-state"


def plain(text: str) -> str:
    """The text as it may be logged, shown and sent on: printable ASCII, with `?` for anything else, and short."""
    text = text.strip()[:MAX_TEXT]
    return text if text.isascii() and text.isprintable() else _UNPRINTABLE.sub("?", text)


def _split(text: str) -> tuple[str, str]:
    end = text.find("\r\n\r\n")
    if (
        end >= 0 and "\n\n" not in text[:end] and "\n\r\n" not in text[:end]
    ):  # as everybody writes it; the search below takes longer
        head, body = text[:end], text[end + 4 :]
    else:
        blank = _BLANK.search(text)
        head, body = (text[: blank.start()], text[blank.end() :]) if blank else (text, "")
    return (_FOLD.sub(" ", head) if "\n " in head or "\n\t" in head else head), body


def _seconds(digits: str) -> int:
    return min(int(digits), _MAX_SECONDS) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else -1
