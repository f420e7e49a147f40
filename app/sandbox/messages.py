"""SIP messages: parsing bytes, cutting messages from a TCP stream, and building the response to a request.

Invariants: pure. For any bytes, `parse` and `cut` return or raise `Malformed`. A header value never contains a line
break, so it may be copied into a response. Sizes and counts are bounded.

Deliberately absent: SIP features that a presence notifier does not need (multicast, maddr, IPv6, S/MIME, …).
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

MAX_MESSAGE_BYTES = 65_535
"""Longest message that is read, with its body."""
MAX_HEADERS = 100

REASONS = {
    100: "Trying",
    200: "OK",
    202: "Accepted",
    302: "Moved Temporarily",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    407: "Proxy Authentication Required",
    408: "Request Timeout",
    416: "Unsupported URI Scheme",
    420: "Bad Extension",
    421: "Extension Required",
    423: "Interval Too Brief",
    480: "Temporarily Unavailable",
    481: "Subscription Does Not Exist",
    489: "Bad Event",
    500: "Server Internal Error",
    503: "Service Unavailable",
    600: "Busy Everywhere",
    603: "Decline",
    604: "Does Not Exist Anywhere",
}
_COMPACT = {
    "b": "referred-by",
    "c": "content-type",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
}
_LISTS = {"via", "route", "record-route", "contact", "require", "accept"}
_REQUEST_LINE = re.compile(r"([A-Za-z0-9.!%*_+`'~-]{1,32}) ([^ \t]{1,1000}) SIP/2\.0", re.IGNORECASE)
_STATUS_LINE = re.compile(r"SIP/2\.0 ([1-6][0-9]{2}) ?[^\r\n]*", re.IGNORECASE)
_FOLD = re.compile(r"[ \t]*\r\n[ \t]+")
_NAME = re.compile(r"[A-Za-z0-9.!%*_+`'~-]{1,64}")
_LENGTH = re.compile(rb"\r\n(?:content-length|l)[ \t]*:\s*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_NAME_ADDR = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^"<])*<([^<>]*)>(.*)')
_SIP_URI = re.compile(r"(sips?):(?:([^@]*)@)?([A-Za-z0-9.-]+)(?::([0-9]{1,5}))?((?:;[^?]*)?)(?:\?.*)?", re.IGNORECASE)
_SEPARATORS = str.maketrans("", "", "-.()")
_TEL_URI = re.compile(r"(tel):([^;?]+)((?:;.*)?)", re.IGNORECASE)
_CSEQ = re.compile(r"([0-9]{1,10})[ \t]+([^ \t]+)")
_VIA = re.compile(r"SIP\s*/\s*2\.0\s*/\s*\w+\s+([^\s:;]+)(?::([0-9]{1,5}))?\s*(;.*)?", re.IGNORECASE)
_RPORT = re.compile(r";\s*rport(?![\w=])", re.IGNORECASE)


class Malformed(ValueError):
    """The bytes are not a SIP message that can be answered."""


@dataclass(slots=True, kw_only=True)
class Message:
    """A request (`method` and `uri`) or a response (`code`). Headers are named by their long name in lower case."""

    method: str = ""
    uri: str = ""
    code: int = 0
    headers: dict[str, list[str]]
    body: bytes

    def first(self, name: str) -> str:
        """The first value of a header, "" where absent."""
        values = self.headers.get(name)
        return values[0] if values else ""

    @property
    def cseq(self) -> tuple[int, str]:
        """Number and method; (-1, "") if the header is unreadable."""
        match = _CSEQ.fullmatch(self.first("cseq"))
        return (int(match[1]), match[2]) if match and int(match[1]) < 2**31 else (-1, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Uri:
    """The parts of a URI; `port` is 0 and `transport` "" where absent. The user is unescaped and has no password."""

    scheme: str
    user: str
    host: str
    port: int
    transport: str

    @property
    def address(self) -> str:
        """The address of the terminal: the URI without port and parameters."""
        return f"tel:{self.user}" if self.scheme == "tel" else f"{self.scheme}:{self.user}@{self.host}"


def parse(data: bytes) -> Message:
    """Reads one message. Raises Malformed."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise Malformed(f"the message has {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    head, blank, body = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    if not blank:
        raise Malformed("no empty line after the headers")
    text = head.decode("utf-8", "surrogateescape")
    if "\r\n " in text or "\r\n\t" in text:
        text = _FOLD.sub(" ", text)
    start, *lines = text.split("\r\n")
    if len(lines) > MAX_HEADERS:
        raise Malformed(f"the message has {len(lines)} header lines; at most {MAX_HEADERS} are read")
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = _long_name(name)
        if not colon or not name or "\r" in value or "\n" in value or "\0" in value:
            raise Malformed("a line that is not a header")
        values = headers.setdefault(name, [])
        if name in _LISTS and "," in value:
            values += _split(value)
        else:
            values.append(value.strip())
    if match := _REQUEST_LINE.fullmatch(start):
        return Message(method=match[1], uri=match[2], headers=headers, body=body)
    if match := _STATUS_LINE.fullmatch(start):
        return Message(code=int(match[1]), headers=headers, body=body)
    raise Malformed("neither a request line nor a status line of SIP/2.0")


def fault(message: Message) -> str:
    """The reason for a 400 response to a request, "" for a correct request. Raises Malformed if the request cannot be
    answered."""
    for name in ("via", "from", "to", "call-id", "cseq"):
        if len(message.headers.get(name, ())) != 1 and name != "via":
            raise Malformed(f"not exactly one {name} header")
    if not _VIA.fullmatch(message.first("via")):
        raise Malformed("no readable Via header")
    number, method = message.cseq
    if number < 0 or method != message.method:
        return "CSeq is unreadable, or has another method than the request"
    if not param(message.first("from"), "tag"):
        return "From has no tag"
    lengths = set(message.headers.get("content-length", ()))
    if len(lengths) > 1 or (lengths and not next(iter(lengths)).isdecimal()):
        return "Content-Length is unreadable"
    if lengths:
        length = int(next(iter(lengths))[:9])
        if length > len(message.body):
            return "The body is shorter than Content-Length"
        message.body = message.body[:length]
    return ""


def cut(buffer: bytearray) -> bytes | None:
    """Removes the first message from a stream's buffer and returns it; None if the message is incomplete.
    Raises Malformed."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > MAX_MESSAGE_BYTES:
            raise Malformed("a head without end")
        return None
    match = _LENGTH.search(buffer, 0, end + 2)
    total = end + 4 + (int(match[1]) if match else 0)
    if total > MAX_MESSAGE_BYTES:
        raise Malformed(f"the message has {total} bytes; at most {MAX_MESSAGE_BYTES} are read")
    if len(buffer) < total:
        return None
    data = bytes(buffer[:total])
    del buffer[:total]
    return data


def param(value: str, name: str) -> str:
    """A header parameter's value, "" where absent. Parameters of a URI in angle brackets are not header parameters."""
    match = _NAME_ADDR.fullmatch(value)
    for part in (match[2] if match else value).split(";")[1:]:
        key, _, text = part.partition("=")
        if key.strip().lower() == name:
            return text.strip()
    return ""


@lru_cache(maxsize=4096)
def parse_uri(text: str) -> Uri | None:
    """Reads a sip:, sips: or tel: URI, alone or in a header value (`"A" <sip:a@b>;tag=1`); None for anything else."""
    if match := _NAME_ADDR.fullmatch(text):
        text = match[1]
    if match := _SIP_URI.fullmatch(text.strip()):
        scheme, user, host, port, params = match.groups()
        user = unquote((user or "").partition(":")[0])
        transport = next((p[10:] for p in params.lower().split(";") if p.startswith("transport=")), "")
        return Uri(scheme=scheme.lower(), user=user, host=host.lower(), port=int(port or 0), transport=transport)
    if match := _TEL_URI.fullmatch(text.strip()):
        return Uri(scheme="tel", user=match[2].translate(_SEPARATORS), host="", port=0, transport="")
    return None


def uri_text(value: str) -> str:
    """The URI in a header value such as Contact, unparsed."""
    match = _NAME_ADDR.fullmatch(value)
    return match[1] if match else value.partition(";")[0].strip()


def reply_port(request: Message, source_port: int) -> int:
    """The port for a UDP response: the source's port with rport (RFC 3581), else the port in Via (RFC 3261, 18.2.2)."""
    via = _VIA.fullmatch(request.first("via"))
    if via is None or _RPORT.search(via[3] or ""):
        return source_port
    return int(via[2] or 5060)


def respond(request: Message, code: int, source: tuple[str, int], tag: str, *more: str) -> bytes:
    """The bytes of the response. `tag` is added to To if the request has no tag there; `more` are header lines."""
    top, *others = request.headers["via"]
    if _RPORT.search(top):
        top = _RPORT.sub(f";rport={source[1]}", top, count=1)
    top += f";received={source[0]}"
    to = request.first("to")
    if code > 100 and not param(to, "tag"):
        to += f";tag={tag}"
    lines = [
        f"SIP/2.0 {code} {REASONS.get(code, 'Sandbox')}",
        *(f"Via: {via}" for via in (top, *others)),
        f"From: {request.first('from')}",
        f"To: {to}",
        f"Call-ID: {request.first('call-id')}",
        f"CSeq: {request.first('cseq')}",
        *more,
        "Content-Length: 0\r\n\r\n",
    ]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1024)
def _long_name(name: str) -> str:
    """The long name of a header in lower case, "" if `name` cannot be a header's name."""
    name = name.rstrip(" \t").lower()
    return _COMPACT.get(name, name) if _NAME.fullmatch(name) else ""


def _split(value: str) -> list[str]:
    """Splits a header value at its commas, except commas in quotes and angle brackets."""
    parts, start, quoted, bracketed, escaped = [], 0, False, False, False
    for at, character in enumerate(value):
        if escaped:
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"' and not bracketed:
            quoted = not quoted
        elif not quoted and character in "<>":
            bracketed = character == "<"
        elif character == "," and not quoted and not bracketed:
            parts.append(value[start:at].strip())
            start = at + 1
    parts.append(value[start:].strip())
    return [part for part in parts if part]
