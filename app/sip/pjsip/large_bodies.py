"""Takes the bodies of SIP messages larger than PJSIP's buffer out of TCP and TLS connections.

PJSIP buffers 4000 bytes of a connection, and loses the connection's next messages where one does not fit. But it shows
each read before it parses, and lets us change what it sees. So a large message's header stays in PJSIP's buffer while
its body is gathered here; then the header goes on with `Content-Length: 0`, and `LargeBodies.take` returns the body to
the handler of the message.

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

_LENGTH = re.compile(rb"^(?:content-length|l)[ \t]*:[ \t]*(\d{1,10})", re.IGNORECASE | re.MULTILINE)
_CALL_ID = re.compile(rb"^(?:call-id|i)[ \t]*:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)
_CSEQ = re.compile(rb"^cseq[ \t]*:[ \t]*(\d+)", re.IGNORECASE | re.MULTILINE)

Key = tuple[bytes, bytes, bytes]


def key_of(head: bytes) -> Key | None:
    """What identifies a message: its first line (with our Contact user, which cannot be guessed), its Call-ID and its
    CSeq number. None where one of them is missing."""
    call_id, cseq = _CALL_ID.search(head), _CSEQ.search(head)
    return (head.partition(b"\r\n")[0], call_id[1], cseq[1]) if call_id and cseq else None


class LargeBodies:
    """The bodies taken out, by message, until `take`. When full, the oldest is dropped."""

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.max_body_bytes = max_body_bytes
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
        at = 0
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
            if shown.startswith(b"\r\n", at):  # a keep-alive
                seen += b"\r\n"
                at += 2
                continue
            end = shown.find(b"\r\n\r\n", at) + 4
            length = _LENGTH.search(shown, at, end) if end > 3 else None
            if length is None:
                break
            size = int(length[1])
            if end + size <= len(shown):
                seen += shown[at : end + size]
                at = end + size
                continue
            if end - at + size <= MAX_MESSAGE_BYTES or end - at > MAX_MESSAGE_BYTES:
                break
            self._head, self._declared_bytes, self._missing_bytes = shown[at:end], size, size
            self._gather(shown, end)
            return bytes(seen + self._head)
        seen += shown[at:]
        return None if len(seen) == len(shown) else bytes(seen)

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
