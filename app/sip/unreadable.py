"""What is left of a SIP message when the header fields that the SIP stack cannot parse are cut, as pure functions.

PJSIP drops a message for one such field. A field without which the message means nothing is never cut. Before a field
is cut, its readable part is looked for: the number before a parameter that does not belong there, the Digest challenge
among others, the readable ones of several Contacts. An unknown challenge is ignored (RFC 3261 section 22.1).

Invariants: the result is shorter than the message, and the body does not change.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

MOST_FIELDS = 200
"""A message with more header fields is not read again."""

OTHER = "other"
KNOWN = frozenset({
    "accept", "allow", "authorization", "contact", "content-length", "content-type", "expires", "max-forwards",
    "min-expires", "min-se", "proxy-authenticate", "record-route", "replaces", "require", "retry-after", "route",
    "session-expires", "supported", "unsupported", "www-authenticate",
})  # fmt: skip
"""The fields that are counted by their own name: those that PJSIP parses. The others count as OTHER."""

_LONG = {
    b"v": b"via", b"f": b"from", b"t": b"to", b"i": b"call-id", b"m": b"contact", b"c": b"content-type",
    b"l": b"content-length", b"k": b"supported", b"o": b"event", b"x": b"session-expires",
}  # fmt: skip
_ESSENTIAL = frozenset({b"via", b"from", b"to", b"call-id", b"cseq"})
_ESSENTIAL_IN_REQUESTS = _ESSENTIAL | {b"event", b"subscription-state"}
_CHALLENGES = frozenset({b"www-authenticate", b"proxy-authenticate"})
_NUMBERS = frozenset({b"expires", b"min-expires", b"retry-after"})

_HEAD = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(rb"[^\n]*(?:\n[ \t][^\n]*)*(?:\n|\Z)")
_NAME = re.compile(rb"([!%'*+.`~\w-]+)[ \t]*:", re.ASCII)
_NUMBER = re.compile(rb"[ \t]*(\d{1,10})[ \t]*(?:[;(,]|\Z)")
_PART = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|<[^<>]*>|[^,"<])+', re.DOTALL)
_SCHEME = re.compile(rb"\s*([!%'*+.`~\w-]+)(?:\s+[^\s=]|\s*\Z)", re.ASCII)

CanParse = Callable[[bytes, bytes], bool]
"""Whether the SIP stack can parse a header field, by its name and value."""


@dataclass(frozen=True, slots=True)
class Shortened:
    """A message without its unreadable fields."""

    packet: bytes
    cut: tuple[str, ...]
    """The names of the fields that were cut or shortened: of KNOWN, or OTHER."""


def shorten(packet: bytes, can_parse: CanParse) -> Shortened | None:
    """The message without what cannot be parsed; None where nothing is to be cut, or a field that it cannot lack."""
    blank = _HEAD.search(packet)
    end = blank.start() if blank else len(packet)
    head, rest = packet[:end], packet[end:]
    fields = [found for found in _FIELD.findall(head) if found]
    if not 0 < len(fields) <= MOST_FIELDS:
        return None
    start, *fields = fields
    essential = _ESSENTIAL if start.startswith(b"SIP/") else _ESSENTIAL_IN_REQUESTS
    kept, cut = [start], []
    for field in fields:
        line = field.rstrip(b"\r\n")
        named = _NAME.match(line)
        name, value = (named[1], line[named.end() :]) if named else (b"", b"")
        if named and can_parse(name, value):
            kept.append(field)
            continue
        long = _LONG.get(name.lower(), name.lower())
        if long in essential:
            return None
        cut.append(known if (known := long.decode("ascii")) in KNOWN else OTHER)
        if named and (part := _readable_part(long, name, value, can_parse)):
            kept.append(named[0] + b" " + part.strip() + field[len(line) :])
    shorter = b"".join(kept)
    if blank and shorter.endswith(b"\n"):  # the last field was cut; the line end before it is left over
        shorter = shorter.removesuffix(b"\n").removesuffix(b"\r")
    shorter += rest
    return Shortened(shorter, tuple(cut)) if cut and len(shorter) < len(packet) else None


def _readable_part(long: bytes, name: bytes, value: bytes, can_parse: CanParse) -> bytes:
    """The part of an unreadable field's value that can be parsed; empty where there is none."""
    if long in _NUMBERS:
        number = _NUMBER.match(value)
        return number[1] if number and can_parse(name, number[1]) else b""
    if long in _CHALLENGES:
        return next((each for each in _digests(value) if can_parse(name, each)), b"")
    if long == b"contact":
        return b",".join(part for part in _PART.findall(value) if part.strip() and can_parse(name, part))
    return b""


def _digests(value: bytes) -> list[bytes]:
    """The Digest challenges of a field with several challenges (RFC 7235 section 4.1)."""
    starts = [
        (part.start(), scheme[1].lower())
        for part in _PART.finditer(value)
        if (scheme := _SCHEME.match(part[0])) is not None
    ]
    return [
        value[start:end].strip(b", \t\r\n")
        for (start, scheme), (end, _) in itertools.pairwise([*starts, (len(value), b"")])
        if scheme == b"digest"
    ]
