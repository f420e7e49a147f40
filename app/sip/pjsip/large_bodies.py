"""Takes the bodies of SIP messages larger than PJSIP's buffer out of TCP and TLS connections.

PJSIP buffers 4000 bytes of a connection, and loses the connection's next messages where one does not fit. But it shows
each read before it parses, and lets us change what it sees. So a large message's header stays in PJSIP's buffer while
its body is gathered here; then the header goes on with `Content-Length: 0`, and `LargeBodies.take` returns the body to
the handler of the message.

PJSIP also finds the end of a header only by a blank line that ends with CRLF, and waits for one in the next message
otherwise. It drops a message without a usable Content-Length, which is given to a response that ends a read: no body
of a response counts. A blank line that ends with LF alone gets its CR, in place of a space elsewhere in the header.

Invariants: pure. At most `max_body_bytes` of a body are kept, and at most MOST_BODIES bodies. However the bytes are
split into reads, PJSIP sees whole messages in their order. Bytes that are not SIP are left unchanged.

Deliberately absent: UDP, where the socket read cuts a message that does not fit.
"""

import re

from app.domain.bounded import BoundedDict

MAX_MESSAGE_BYTES = 3500
"""The body is taken out of a longer message. PJSIP's buffer has 4000 bytes; the longest message that passed had
3761."""

MAX_BODY_BYTES = 1024 * 1024
MOST_BODIES = 64
MOST_CONNECTIONS = 64
"""The number of sockets that this PJSIP can have."""

_LENGTH = re.compile(rb"^(?:content-length|l)[ \t]*:[ \t]*(\d{1,10})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_LENGTH_FIELD = re.compile(rb"^(?:content-length|l)[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*", re.IGNORECASE | re.MULTILINE)
_RESPONSE, _NO_BODY = b"SIP/2.0 ", b"l:0\r\n"
_BLANK = b"\n\r\n"
_SPARE = re.compile(rb"\n[\w-]+:[ \t]", re.ASCII)
"""A header field with a space that it can lack (RFC 3261 section 7.3.1)."""
_CALL_ID = re.compile(rb"^(?:call-id|i)[ \t]*:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)
_CSEQ = re.compile(rb"^cseq[ \t]*:[ \t]*(\d+)", re.IGNORECASE | re.MULTILINE)

Key = tuple[bytes, bytes, bytes]


def key_of(head: bytes) -> Key | None:
    """What identifies a message: its first line (with our Contact user, which cannot be guessed), its Call-ID and its
    CSeq number. None where one of them is missing."""
    call_id, cseq = _CALL_ID.search(head), _CSEQ.search(head)
    return (head.partition(b"\n")[0].rstrip(b"\r"), call_id[1], cseq[1]) if call_id and cseq else None


def head_end(data: bytes, at: int) -> int:
    """Where the header that starts at `at` ends, behind its blank line; 0 where no blank line has come."""
    end = data.find(_BLANK, at) + 3
    bare = data.find(b"\n\n", at, end if end > 2 else len(data)) + 2
    return bare if bare > 1 else end if end > 2 else 0


def with_blank_crlf(head: bytes) -> bytes:
    """A header that ends with a blank line, as PJSIP finds its end: of the same length, and ending with LF, CR, LF.
    Without change where it ends so already, or has no byte to spare."""
    if head.endswith(_BLANK):
        return head
    if head.endswith(b"\r\n\n"):
        return head[:-3] + _BLANK
    spare = _SPARE.search(head)
    return head[: spare.end() - 1] + head[spare.end() : -1] + b"\r\n" if spare else head


def with_no_body(head: bytes) -> bytes | None:
    """The header of a response without a usable Content-Length, with one of 0; None where there is no room for it."""
    head_only = _LENGTH_FIELD.sub(b"", head)
    missing = len(head_only) + len(_NO_BODY) - len(head)
    if missing > 0:
        head_only = _SPARE.sub(lambda field: field[0][:-1], head_only, count=missing)
    mended = head_only.removesuffix(b"\n").removesuffix(b"\r") + _NO_BODY + b"\r\n"
    return mended if len(mended) <= len(head) else None


class LargeBodies:
    """The bodies taken out, by message, until `take`. When full, the oldest is dropped."""

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.max_body_bytes = max_body_bytes
        self.lengths_mended = 0
        """Responses that came without a usable Content-Length."""
        self._kept = BoundedDict[Key, tuple[int, bytes]](MOST_BODIES)

    def __bool__(self) -> bool:
        return bool(self._kept)

    def keep(self, head: bytes, declared_bytes: int, body: bytes) -> None:
        """Keeps a body; empty where it was too large."""
        if (key := key_of(head)) is not None:
            self._kept[key] = (declared_bytes, body)

    def take(self, head: bytes) -> tuple[int, bytes] | None:
        """The declared Content-Length and the body, once; None where no body was taken out of this message."""
        key = key_of(head)
        return self._kept.pop(key, None) if key is not None else None


class ConnectionBuffer:
    """The incoming bytes of one connection."""

    def __init__(self, bodies: LargeBodies) -> None:
        self._bodies = bodies
        self._head = b""  # of the message whose body is being gathered
        self._declared_bytes = 0
        self._missing_bytes = 0
        self._body = bytearray()

    def replace(self, shown: bytes) -> bytes | None:
        """Takes the content of PJSIP's buffer, which starts with a message, and returns its replacement; None: no
        change.

        PJSIP calls again after each change, and after each message that it has handled.
        """
        seen = bytearray()
        at, changed = 0, False
        if self._head:
            start = shown.find(self._head)  # behind whole messages that PJSIP has not handled yet
            if start < 0:
                self._forget()  # not our header: another connection at the same address
                return None
            seen += shown[:start]
            at = self._gather(shown, start + len(self._head))
            if self._missing_bytes:
                return bytes(seen + self._head) if at > start + len(self._head) else None
            seen += self._finish()
        while at < len(shown):
            if shown[at] in b"\r\n":  # a keep-alive
                seen.append(shown[at])
                at += 1
                continue
            end = head_end(shown, at)
            length = _LENGTH.search(shown, at, end) if end else None
            if length is None:
                mended = with_no_body(shown[at:end]) if shown.startswith(_RESPONSE, at) and end == len(shown) else None
                if mended is not None:
                    self._bodies.lengths_mended += 1
                    seen += mended
                    at, changed = end, True
                break
            size = int(length[1])
            whole = end + size <= len(shown)
            if not whole and end - at <= MAX_MESSAGE_BYTES < end - at + size:
                self._head, self._declared_bytes, self._missing_bytes = with_blank_crlf(shown[at:end]), size, size
                self._gather(shown, end)
                return bytes(seen + self._head)
            until = end + size if whole else len(shown)
            if shown.startswith(_BLANK, end - len(_BLANK)):
                seen += shown[at:until]
            else:
                seen += with_blank_crlf(shown[at:end]) + shown[end:until]
                changed = True
            at = until
        seen += shown[at:]
        return bytes(seen) if changed or len(seen) != len(shown) else None

    def _forget(self) -> None:
        self._head = b""
        self._body.clear()

    def _gather(self, shown: bytes, at: int) -> int:
        """Gathers the body's bytes from `at` on; returns where they end."""
        end = min(at + self._missing_bytes, len(shown))
        if self._declared_bytes <= self._bodies.max_body_bytes:
            self._body += shown[at:end]
        self._missing_bytes -= end - at
        return end

    def _finish(self) -> bytes:
        """Keeps the body, which is now whole; returns the header with `Content-Length: 0`, padded to its old length."""
        head = self._head
        self._bodies.keep(head, self._declared_bytes, bytes(self._body))
        self._forget()
        length = _LENGTH.search(head)
        assert length is not None  # noqa: S101  # the body was found by it
        start, end = length.span(1)
        return head[:start] + b"0".ljust(end - start) + head[end:]
