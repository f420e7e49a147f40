"""Lets SIP messages larger than PJSIP's buffer through a TCP or TLS stream: their bodies are taken out on the way.

PJSIP holds 4000 bytes of a stream and gives up the connection's next messages where one does not fit. It shows each
read before it parses, and what is shown may be changed. So the body of a large message is gathered here, its header
waits in PJSIP's buffer meanwhile, and goes on with `Content-Length: 0` once the body is whole; whoever handles the
message asks `Bodies` for what belongs to it.

Invariants: pure. No more than `max_body_bytes` of a body is kept, nor more than MOST_BODIES bodies. However the stream
is cut, what PJSIP sees is whole messages in their order. What is no SIP is left to PJSIP as it is.

Deliberately absent: UDP, where a message that does not fit is cut before anybody sees it.
"""

import re

from app.domain.bounded import BoundedDict

MAX_MESSAGE_BYTES = 3500
"""A message that exceeds this goes by parts. PJSIP's buffer has 4000; 3761 were the most that passed."""

MAX_BODY_BYTES = 1024 * 1024
MOST_BODIES = 64
MOST_STREAMS = 64
"""As many sockets as this PJSIP can have."""

_LENGTH = re.compile(rb"^(?:content-length|l)[ \t]*:[ \t]*(\d{1,10})", re.IGNORECASE | re.MULTILINE)
_CALL_ID = re.compile(rb"^(?:call-id|i)[ \t]*:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)
_CSEQ = re.compile(rb"^cseq[ \t]*:[ \t]*(\d+)", re.IGNORECASE | re.MULTILINE)

Key = tuple[bytes, bytes, bytes]


def key_of(head: bytes) -> Key | None:
    """By what a message is found again: its first line, with the Contact user that no stranger can guess, Call-ID and
    CSeq number; None where one is missing."""
    call_id, cseq = _CALL_ID.search(head), _CSEQ.search(head)
    return (head.partition(b"\r\n")[0], call_id[1], cseq[1]) if call_id and cseq else None


class Bodies:
    """Bodies that were taken out, by message, until they are asked for; the oldest makes room for one too many."""

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.max_body_bytes = max_body_bytes
        self._kept = BoundedDict[Key, tuple[int, bytes]](MOST_BODIES)

    def __bool__(self) -> bool:
        return bool(self._kept)

    def keep(self, head: bytes, declared_bytes: int, body: bytes) -> None:
        """Keeps a body, which is empty if it was too large to be gathered."""
        if (key := key_of(head)) is not None:
            self._kept[key] = (declared_bytes, body)

    def take(self, head: bytes) -> tuple[int, bytes] | None:
        """The Content-Length that was declared, and the body; None where nothing was taken out of this message."""
        key = key_of(head)
        return self._kept.pop(key, None) if key is not None else None


class Stream:
    """One connection's incoming bytes."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._head = b""  # of the message whose body is being gathered
        self._declared_bytes = 0
        self._missing_bytes = 0
        self._body = bytearray()

    def absorb(self, shown: bytes) -> bytes | None:
        """Takes what PJSIP has in its buffer, from the start of a message; returns what it is to have instead.

        None means that nothing is to change. PJSIP asks again after each change, and after each message it has handled.
        """
        seen = bytearray()
        at = 0
        if self._head:
            start = shown.find(self._head)  # after whole messages that PJSIP has yet to handle
            if start < 0:
                self._forget()  # not what we left there: another connection at the same place
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
        """Takes the body's bytes from `at` on; returns where they end."""
        end = min(at + self._missing_bytes, len(shown))
        if self._declared_bytes <= self._bodies.max_body_bytes:
            self._body += shown[at:end]
        self._missing_bytes -= end - at
        return end

    def _finish(self) -> bytes:
        """Keeps the body that is whole now; returns the header that goes on without it, as long as it was."""
        head = self._head
        self._bodies.keep(head, self._declared_bytes, bytes(self._body))
        self._forget()
        length = _LENGTH.search(head)
        assert length is not None  # noqa: S101  # by it the body was known
        start, end = length.span(1)
        return head[:start] + b"0".ljust(end - start) + head[end:]
