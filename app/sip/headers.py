"""Reads the few header fields that the watcher needs from the text of a SIP message (RFC 3261 section 7.3).

PJSIP has parsed the message before, but its structures are out of reach from Python, so the text is parsed again. Pure:
any text gives a result; a missing or unreadable field gives its default.

Deliberately absent: every other header field.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from app.domain.presence import MEDIA_TYPE
from app.sip.redirects import contact_uris


@dataclass(frozen=True, slots=True)
class Notify:
    """A NOTIFY. `state`, `reason`, `retry_after_s` and `expires_s` are those of Subscription-State, in lower case;
    numbers are -1 where absent. `body` is as received.

    Each text, here and in `Final`, is printable ASCII of at most MAX_TEXT characters, whatever the peer sent.
    """

    state: str
    reason: str
    retry_after_s: int
    content_type: str
    content_encoding: str
    declared_bytes: int
    body: bytes
    expires_s: int = -1
    requires_eventlist: bool = False
    """Whether its Require names `eventlist` (RFC 4662 section 4.1)."""

    @property
    def of_list(self) -> bool:
        """Whether it states a list of terminals; one terminal's document counts in spite of Require."""
        media_type = self.content_type.partition(";")[0].strip().lower()
        return self.requires_eventlist and not (self.body and media_type == MEDIA_TYPE)


@dataclass(frozen=True, slots=True)
class Final:
    """A final response to SUBSCRIBE; seconds are -1 where absent.

    `local`: no response came, and code and phrase are PJSIP's own: 503 where the transport failed, 408 after 32 s
    without a response, 0 where the subscription was accepted and no NOTIFY followed.
    """

    code: int
    phrase: str
    retry_after_s: int = -1
    min_expires_s: int = -1
    local: bool = False
    expires_s: int = -1
    """The duration that a 2xx grants."""
    dialog_gone: bool = False
    """Whether PJSIP has dropped the dialog."""
    contacts: tuple[str, ...] = ()
    """The URIs that a 3xx names, the preferred one first."""
    of_list: bool = False
    """Whether a 421 requires `eventlist`, as the server of a list may answer (RFC 4662 section 4.1)."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """PJSIP refused a NOTIFY to the dialog's Contact; `reason` is a key of `app.sip.answers.UNUSABLE`."""

    reason: str


Event = Notify | Final | Unusable

_FIELDS = re.compile(
    r"\n(subscription-state|content-type|c|content-encoding|e|content-length|l|require)[ \t]*:[ \t]*([^\r\n]*)",
    re.IGNORECASE,
)  # starting with \n takes half the time of ^ in multi-line mode, and the first line is not a field
_CONTACT = re.compile(r"(?im)^(?:contact|m)[ \t]*:([^\r\n]*)")
_REQUIRE = re.compile(r"(?im)^require[ \t]*:([^\r\n]*)")
_LONG = {"c": "content-type", "e": "content-encoding", "l": "content-length"}
_FOLD = re.compile(r"\r?\n[ \t]+")
_BLANK = re.compile(r"\r?\n\r?\n")
_MAX_SECONDS = 2**31 - 1
_UNPRINTABLE = re.compile(r"[^ -~]")
MAX_TEXT = 100


def read_notify(text: str) -> Notify:
    """Parses a NOTIFY. `text` holds undecodable bytes as surrogates (Python's `surrogateescape`)."""
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
        requires_eventlist="require" in fields and _names_eventlist(_REQUIRE.findall(head)),
    )


def _names_eventlist(values: Iterable[str]) -> bool:
    return any(tag.strip().lower() == "eventlist" for value in values for tag in value.split(","))


@functools.lru_cache(maxsize=1024)  # a server sends few different values
def _subscription_state(value: str) -> tuple[str, str, int, int]:
    """The state, the reason, and the seconds of retry-after and expires."""
    state, *parameters = value.lower().split(";")
    values = dict(parameter.strip().partition("=")[::2] for parameter in parameters)
    retry_after_s, expires_s = (_seconds(values.get(name, "").strip()) for name in ("retry-after", "expires"))
    return plain(state), plain(values.get("reason", "")), retry_after_s, expires_s


def read_response(text: str) -> Final:
    """Parses a response: its status line, Retry-After (RFC 3261 section 20.33), Min-Expires (20.23), Expires; the
    Contacts of a 3xx."""
    head, _ = _split(text)
    line = re.match(r"SIP/2\.0 (\d{3}) ?([^\r\n]*)", head)
    fields = dict(re.findall(r"(?im)^(retry-after|min-expires|expires)[ \t]*:[ \t]*(\d+)", head))
    values = {name.lower(): value for name, value in fields.items()}
    code = int(line[1]) if line else 0
    return Final(
        code=code,
        phrase=plain(line[2]) if line else "",
        retry_after_s=_seconds(values.get("retry-after", "")),
        min_expires_s=_seconds(values.get("min-expires", "")),
        expires_s=_seconds(values.get("expires", "")),
        contacts=contact_uris(_CONTACT.findall(head)) if 300 <= code < 400 else (),
        of_list=code == 421 and _names_eventlist(_REQUIRE.findall(head)),
    )


def missing_notify_header(packet: bytes) -> str:
    """`no-event` or `no-state` where a NOTIFY lacks Event or Subscription-State; "" where it has both."""
    head = packet.partition(b"\r\n\r\n")[0]
    if not re.search(rb"(?im)^(?:event|o)[ \t]*:", head):
        return "no-event"
    return "" if re.search(rb"(?im)^subscription-state[ \t]*:", head) else "no-state"


def plain(text: str) -> str:
    """The text made safe for logs and messages: at most MAX_TEXT characters, `?` for all but printable ASCII."""
    text = text.strip()[:MAX_TEXT]
    return text if text.isascii() and text.isprintable() else _UNPRINTABLE.sub("?", text)


def _split(text: str) -> tuple[str, str]:
    end = text.find("\r\n\r\n")
    # Tries the usual line ends before the slower search below.
    if end >= 0 and "\n\n" not in text[:end] and "\n\r\n" not in text[:end]:
        head, body = text[:end], text[end + 4 :]
    else:
        blank = _BLANK.search(text)
        head, body = (text[: blank.start()], text[blank.end() :]) if blank else (text, "")
    return (_FOLD.sub(" ", head) if "\n " in head or "\n\t" in head else head), body


def _seconds(digits: str) -> int:
    return min(int(digits), _MAX_SECONDS) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else -1
