"""Large messages over a stream: they arrive whole and in order, whatever their size and however the stream is cut."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sip.pjsip.large_bodies import MAX_BODY_BYTES, MOST_BODIES, ConnectionBuffer, LargeBodies, key_of

BUFFER_BYTES = 4000


def message(number: int, size: int, name: str = "Content-Length", ends: tuple[str, str] = ("\r\n", "\r\n")) -> bytes:
    """A NOTIFY whose body identifies it. `ends`: the ends of its lines and of the blank line."""
    end, blank = ends
    head = f"NOTIFY sip:w SIP/2.0{end}Call-ID: {number}@x{end}CSeq: {number} NOTIFY{end}{name}: {size}{end}{blank}"
    return head.encode() + body(number, size)


def body(number: int, size: int) -> bytes:
    """A body of that size."""
    return (b"%d." % number * size)[:size]


class ModelOfPjsip:
    """A model of PJSIP's side, as measured: it shows the callback its buffer, and again after each change and each
    handled message. It discards from the front the bytes that the callback removed, and keeps part of a message for
    the next read."""

    def __init__(self) -> None:
        self.bodies = LargeBodies()
        self.stream = ConnectionBuffer(self.bodies)
        self.handled: list[tuple[bytes, bytes]] = []
        self._buffer = b""

    @property
    def room(self) -> int:
        return BUFFER_BYTES - len(self._buffer)

    def read(self, data: bytes) -> None:
        assert len(data) <= self.room
        self._buffer += data
        while self._buffer:
            if (instead := self.stream.replace(self._buffer)) is not None:
                assert len(instead) <= len(self._buffer)
                self._buffer = instead
                continue
            head, blank, rest = self._buffer.partition(b"\n\r\n")
            length = re.search(rb"(?i)\n(?:content-length|l) *: *(\d+) *\r?$", head, re.MULTILINE)
            size = int(length[1]) if length else 0
            if not blank or len(rest) < size:
                assert self.room > 0, "the buffer is full, and PJSIP would give up"
                return
            taken = self.bodies.take(head)
            self.handled.append(
                (head.split(b"\n")[1].rstrip(b"\r").replace(b" ", b""), taken[1] if taken else rest[:size])
            )
            self._buffer = rest[size:]


sizes = st.lists(
    st.one_of(st.integers(0, 3000), st.integers(3000, 4500), st.integers(4500, 40000)), min_size=1, max_size=8
)
cuts = st.lists(st.integers(1, BUFFER_BYTES), min_size=1, max_size=20)


line_ends = st.tuples(*[st.sampled_from(["\r\n", "\n"])] * 2)


@given(sizes, cuts, st.sampled_from(["Content-Length", "content-length ", "l"]), st.lists(line_ends, min_size=1))
def test_all_arrive_whole_and_in_order(
    sizes: list[int], cuts: list[int], name: str, ends: list[tuple[str, str]]
) -> None:
    """Messages of any size, in reads of any size, whose lines end with CRLF or LF, arrive whole, in the order in which
    they were sent."""
    messages = [message(number, size, name, ends[number % len(ends)]) for number, size in enumerate(sizes)]
    stream, pjsip, turn = b"".join(messages), ModelOfPjsip(), 0
    while stream:
        size = min(cuts[turn % len(cuts)], pjsip.room)
        pjsip.read(stream[:size])
        stream, turn = stream[size:], turn + 1
    expected = [(b"Call-ID:%d@x" % number, body(number, size)) for number, size in enumerate(sizes)]
    assert pjsip.handled == expected


@given(st.binary(max_size=6000), st.binary(max_size=3000))
def test_any_bytes_do_no_harm(first: bytes, second: bytes) -> None:
    """Whatever a stream brings, the callback answers, and never with more bytes than it was shown."""
    stream = ConnectionBuffer(LargeBodies())
    for shown in (first, second, first + second):
        instead = stream.replace(shown)
        assert instead is None or len(instead) <= len(shown)


def test_too_large_a_body() -> None:
    """A body above the bound is skipped; its message arrives without the body, with the declared length."""
    bodies = LargeBodies()
    stream = ConnectionBuffer(bodies)
    raw = message(1, MAX_BODY_BYTES + 1)
    head = raw[: raw.index(b"\r\n\r\n") + 4]
    assert stream.replace(raw[:2000] + b"." * 2000) == head
    rest = len(raw) - 4000
    while rest:
        size = min(rest, 3000)
        instead = stream.replace(head + b"." * size)
        rest -= size
    assert instead is not None
    assert bodies.take(instead) == (MAX_BODY_BYTES + 1, b"")


def test_bodies_are_bounded() -> None:
    """Bodies that are never collected make room for new ones."""
    bodies = LargeBodies()
    for number in range(MOST_BODIES + 1):
        bodies.keep(message(number, 0), 1, b"x")
    assert bodies.take(message(0, 0)) is None
    assert bodies.take(message(MOST_BODIES, 0)) == (1, b"x")


def test_another_connection_at_the_same_place() -> None:
    """State that a closed connection left is dropped where the new connection's bytes do not continue it."""
    stream = ConnectionBuffer(LargeBodies())
    assert stream.replace(message(1, 9000)[:3000]) is not None
    assert stream.replace(message(2, 10)) is None
    assert stream.replace(message(3, 10)) is None


@pytest.mark.parametrize("length", ["", "Content-Length: -1\r\n", "l : x\r\n y\r\n", "Content-Length: 1 ; x\r\n"])
def test_response_without_a_usable_length(length: str) -> None:
    """Such a response has no body (RFC 3261 section 20.14); spaces make room for the field. A NOTIFY could have one."""
    bodies, head = LargeBodies(), "SIP/2.0 404 Not Found\r\nCall-ID: a\r\nCSeq: 1 X\r\nTo: x\r\nFrom: x\r\nVia: x\r\n"
    instead = ConnectionBuffer(bodies).replace(f"{head}{length}\r\n".encode())
    assert instead is not None
    assert instead.replace(b" ", b"") == f"{head}l:0\r\n\r\n".replace(" ", "").encode()
    assert bodies.lengths_mended == 1
    for other in (head.replace("SIP/2.0 404", "NOTIFY sip:w"), "SIP/2.0 200 OK\r\nA: 1\r\n"):
        assert ConnectionBuffer(bodies).replace(f"{other}\r\n".encode()) is None


def test_blank_line_without_a_byte_to_spare() -> None:
    """A header that ends with LF alone and has no space to lack is left as it is."""
    raw = b"NOTIFY sip:w SIP/2.0\nl:0\n\n"
    assert ConnectionBuffer(LargeBodies()).replace(raw) == raw


@pytest.mark.parametrize("head", [b"", b"Call-ID: x\r\n", b"CSeq: 1 NOTIFY\r\n"])
def test_no_key(head: bytes) -> None:
    """A message without Call-ID or CSeq has no key."""
    assert key_of(head) is None
