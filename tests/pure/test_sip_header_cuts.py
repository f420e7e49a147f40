"""Header fields that the SIP stack cannot parse are cut from a message; the rest stays as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sip.unreadable import MOST_FIELDS, shorten

BODY = b"\r\n\r\n<a/>\r\n\r\nY: bad"
START = b"SIP/2.0 401 Unauthorized"
DIGEST = b'Digest realm="r, Basic b", nonce="n"'


def parses(name: bytes, value: bytes) -> bool:
    """A stand-in for PJSIP: Digest challenges and numbers parse, and anything without `bad`."""
    if name.lower() == b"www-authenticate":
        return value.strip().startswith(b"Digest ") and value.endswith(b'n"')
    return value.strip().isdigit() if name == b"Retry-After" else b"bad" not in value


@pytest.mark.parametrize(
    ("fields", "left", "cut"),
    [
        (b"Y: bad\r\nA: 1", b"\r\nA: 1", ("other",)),
        (b"A: 1\r\nY: bad", b"\r\nA: 1", ("other",)),
        (b"A: 1\nY: bad\nB: 2", b"\r\nA: 1\nB: 2", ("other",)),
        (b"A: 1\r\nY: so\r\n\tbad\r\n bad\r\nB: 2", b"\r\nA: 1\r\nB: 2", ("other",)),
        (b"Subject: bad\r\nContact: bad", b"", ("other", "contact")),
        (b"m: <sip:a@b>, bad <c,d>, e", b"\r\nm: <sip:a@b>, e", ("contact",)),
        (b"Retry-After: 60 ; x", b"\r\nRetry-After: 60", ("retry-after",)),
        (b"Retry-After:7(busy)", b"\r\nRetry-After: 7", ("retry-after",)),
        (b"Retry-After: 21 Oct 2026", b"", ("retry-after",)),
        (b"Retry-After: 99999999999999999999 ; x", b"", ("retry-after",)),
        (b"WWW-Authenticate: Bearer x=1, " + DIGEST, b"\r\nWWW-Authenticate: " + DIGEST, ("www-authenticate",)),
        (b"WWW-Authenticate: " + DIGEST + b", NTLM", b"\r\nWWW-Authenticate: " + DIGEST, ("www-authenticate",)),
        (b"WWW-Authenticate: Digest, Basic a=1", b"", ("www-authenticate",)),
        (b"no colon\r\nA: 1\r\n: 1", b"\r\nA: 1", ("other", "other")),
    ],
)
def test_what_is_left(fields: bytes, left: bytes, cut: tuple[str, ...]) -> None:
    """Lines may be folded, and end with CRLF or LF (RFC 3261 section 7.3.1). Of numbers, challenges and Contacts the
    readable part stays."""
    found = shorten(START + b"\r\n" + fields + BODY, parses)
    assert found is not None
    assert (found.packet, found.cut) == (START + left + BODY, cut)


@pytest.mark.parametrize("name", [b"Via", b"v", b"FROM", b"t", b"Call-ID", b"i", b"CSeq"])
def test_fields_that_no_message_can_lack(name: bytes) -> None:
    """Without them the message belongs to nothing (RFC 3261 section 8.1.1)."""
    assert shorten(START + b"\r\n" + name + b": bad\r\nY: bad\r\n\r\n", parses) is None


@pytest.mark.parametrize("name", [b"Event", b"o", b"Subscription-State"])
def test_fields_that_no_notify_can_lack(name: bytes) -> None:
    """Without them a NOTIFY means nothing (RFC 6665 section 4.1.3); a response does."""
    field = b"\r\n" + name + b": bad\r\n\r\n"
    assert shorten(b"NOTIFY sip:a@b SIP/2.0" + field, parses) is None
    assert shorten(START + field, parses) is not None


def test_nothing_to_cut() -> None:
    """Where every field can be parsed, another reading would fail as the first one did."""
    assert shorten(START + b"\r\nA: 1\r\n\r\n", parses) is None


def test_too_many_fields() -> None:
    """The number of fields is bounded."""
    assert shorten(START + b"\r\nY: bad" * (MOST_FIELDS + 1) + b"\r\n\r\n", parses) is None


_LINES = st.one_of(
    st.binary(min_size=1, max_size=30).filter(lambda line: b"\r" not in line and b"\n" not in line),
    st.sampled_from([b"Contact: bad,<a", b'm: "bad', b"www-authenticate: Digest bad", b"Expires: 1;bad", b" fold"]),
)


@given(
    st.lists(_LINES, max_size=30),
    st.sampled_from([b"\r\n", b"\n"]),
    st.binary(max_size=30),
    st.sets(st.integers(0, 9)),
)
def test_any_bytes(lines: list[bytes], end: bytes, body: bytes, unreadable: set[int]) -> None:
    """Whatever comes, the result is shorter, and the blank line and the body are the same."""
    packet = end.join([START, *lines]) + 2 * end + body
    found = shorten(packet, lambda name, value: len(name + value) % 10 not in unreadable)
    if found is not None:
        assert len(found.packet) < len(packet)
        assert found.packet.startswith(START)
        assert found.packet.endswith(2 * end + body)
        assert found.cut
