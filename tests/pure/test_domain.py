"""Tests of `app/domain/`: the address rule, the errors' codes, the values' invariants."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.addresses import MAX_ADDRESS_LENGTH, TerminalAddress, parse_address, with_tel_context
from app.domain.errors import InvalidAddress, PresenceUnavailable, TerminalStatusError, TerminalUnknown
from app.domain.statuses import Source, Status, TerminalStatus

CODES = {
    "INVALID_ADDRESS": False,
    "TERMINAL_UNKNOWN": False,
    "ADDRESS_IS_LIST": False,
    "WATCHER_REFUSED": False,
    "WATCHER_UNAUTHENTICATED": False,
    "FETCH_TIMED_OUT": True,
    "PRESENCE_UNAVAILABLE": True,
    "WATCHER_RESTARTING": True,
    "GATEWAY_OVERLOADED": True,
    "PRESENCE_MISCONFIGURED": False,
    "DOCUMENT_UNREADABLE": False,
}
"""The codes that applications already know, and whether each says that the request may be tried again."""


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("sip:alice@example.com", "sip:alice@example.com"),
        ("SIP:Alice@Example.COM", "sip:Alice@example.com"),
        ("sips:alice@example.com", "sips:alice@example.com"),
        ("sip:example.com", "sip:example.com"),
        ("sip:alice@example.com:5061", "sip:alice@example.com:5061"),
        ("sip:alice@example.com:05061", "sip:alice@example.com:5061"),
        ("sip:alice@192.0.2.1", "sip:alice@192.0.2.1"),
        ("sip:alice@[2001:DB8:0::1]:5060", "sip:alice@[2001:db8::1]:5060"),
        ("sip:[::FFFF:192.0.2.1]", "sip:[::ffff:c000:201]"),
        ("sip:[::ffff:0.0.0.1]", "sip:[::ffff:0:1]"),
        ("sip:alice@a-b.example.com.", "sip:alice@a-b.example.com."),
        ("sip:alice@localhost", "sip:alice@localhost"),
        ("sip:+15551234567@example.com;user=phone", "sip:+15551234567@example.com;user=phone"),
        ("sip:alice@example.com;Transport=TCP;lr", "sip:alice@example.com;lr;transport=tcp"),
        ("sip:alice;day=tuesday@example.com", "sip:alice;day=tuesday@example.com"),
        ("sip:a.b_c~d!e*f'g(h)&i=j+k$l,m;n?o/p@example.com", "sip:a.b_c~d!e*f'g(h)&i=j+k$l,m;n?o/p@example.com"),
        ("sip:%61lice%3ax@example.com", "sip:alice%3Ax@example.com"),
        ("sip:al%20ice@example.com", "sip:al%20ice@example.com"),
        ("sip:alice@example.com;gr=%41%2C", "sip:alice@example.com;gr=a%2c"),
        ("sip:alice@example.com;gr=urn:uuid:F81D4FAE-7dec", "sip:alice@example.com;gr=urn:uuid:f81d4fae-7dec"),
        ("tel:+15551234567", "tel:+15551234567"),
        ("TEL:+1-(555).123-4567", "tel:+15551234567"),
        ("tel:+15551234567;ext=12", "tel:+15551234567;ext=12"),
        ("tel:+15551234567;cic=+1-6789;EXT=12", "tel:+15551234567;ext=12;cic=+1-6789"),
        ("tel:7042;phone-context=Example.COM", "tel:7042;phone-context=example.com"),
        ("tel:7042;cic=1;phone-context=+1-555;isub=9", "tel:7042;isub=9;phone-context=+1555;cic=1"),
        ("tel:+15551234567;ext=(1)2.3-4", "tel:+15551234567;ext=1234"),
        ("tel:7042;phone-context=a-b.example.com.", "tel:7042;phone-context=a-b.example.com."),
        ("tel:+15551234567;npdi;rn=+1-999", "tel:+15551234567;npdi;rn=+1-999"),
        ("tel:*21#;phone-context=+1", "tel:*21#;phone-context=+1"),
        ("tel:B0-0A;phone-context=example.com", "tel:b00a;phone-context=example.com"),
    ],
)
def test_good_addresses(text: str, canonical: str) -> None:
    """An address is returned in its canonical form; the canonical form of that form is itself."""
    assert parse_address(text) == canonical
    assert parse_address(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "empty"),
        (" ", "space"),
        ("sip:alice@example.com ", "space"),
        ("sip:al ice@example.com", "percent-encode"),
        ("sip:alice@example.com\r\nX: y", "control character"),
        ("sip:alice@example.com\0", "control character"),
        ("sip:alice@example.com\x7f", "control character"),
        ("sip:al\u00efce@example.com", "ASCII"),
        ("tel:+\u0661\u0662\u0663", "ASCII"),
        ("sip:\u212aelvin@example.com", "ASCII"),
        ("sip:" + "a" * MAX_ADDRESS_LENGTH + "@example.com", f"at most {MAX_ADDRESS_LENGTH}"),
        ("alice@example.com", "sip:, sips: or tel:"),
        ("+15551234567", "tel:+15551234567"),
        ("http://example.com", "sip:, sips: or tel:"),
        ("mailto:alice@example.com", "sip:, sips: or tel:"),
        ("sip:", "sip:, sips: or tel:"),
        ("sip:@example.com", "sip:, sips: or tel:"),
        ("sip:alice@", "sip:, sips: or tel:"),
        ("<sip:alice@example.com>", "sip:, sips: or tel:"),
        ('"Alice"<sip:alice@example.com>', "sip:, sips: or tel:"),
        ("sip:alice:secret@example.com", "sip:, sips: or tel:"),
        ("sip:alice@example.com?Subject=x", "leave them out"),
        ("sip:50%2541@example.com", "PJSIP would change"),
        ("sip:%2562ob@example.com", "%25 in its user part"),
        ("sip:alice%2Fx@example.com", "write it as a plain /"),
        ("sip:alice%3bx@example.com", "write it as a plain ;"),
        *((f"sip:a%{ord(char):02X}@example.com", f"write it as a plain {char}") for char in "&=+$,;?/"),
        *((f"sip:a@example.com;gr=%{ord(char):02X}", f"write it as a plain {char}") for char in "[]/:&+$"),
        *((f"tel:+1555;cic=%{ord(char):02X}", f"write it as a plain {char}") for char in "[]/:&+$"),
        ("sip:alice@example.com;gr=%22%0D%0AX", "%22 in a parameter"),
        ("sip:alice@example.com;gr=%25", "%25 in a parameter"),
        ("sip:alice@example.com;user=phone%0D%0AX", "user=phone"),
        ("sip:alice@example.com;METHOD=INVITE", "method"),
        ("sip:alice@example.com;m%65thod=INVITE", "method"),
        ("sip:alice@example.com;lr;lr", "'lr' twice"),
        ("sip:alice@example.com;user=ip;USER=phone", "'user' twice"),
        ("tel:+1555;ext=1;ext=2", "'ext' twice"),
        ("tel:+1555;e%78t=1;ext=2", "'ext' twice"),
        ("tel:+1555;ext=a", "not a number"),
        ("tel:+1555;ext=-", "not a number"),
        ("tel:+1555;ext", "not a number"),
        ("tel:+1555;isub", "without a value"),
        ("tel:+1555;c%2cc=1", "letters, digits and hyphens"),
        ("tel:7042;phone-context=+1a", "domain name"),
        ("tel:7042;phone-context=a_b", "domain name"),
        ("tel:7042;phone-context", "domain name"),
        ("sip:alice@bob@example.com", "sip:, sips: or tel:"),
        ("sip:alice@-example.com", "sip:, sips: or tel:"),
        ("sip:alice@example..com", "sip:, sips: or tel:"),
        ("sip:alice@ex_ample.com", "sip:, sips: or tel:"),
        ("sip:alice@" + "a" * 64 + ".com", "sip:, sips: or tel:"),
        ("sip:alice@example.com:", "sip:, sips: or tel:"),
        ("sip:alice@example.com:0", "port 0"),
        ("sip:alice@example.com:65536", "ports are 1 to 65535"),
        ("sip:alice@example.com:123456", "sip:, sips: or tel:"),
        ("sip:alice@example.com;", "sip:, sips: or tel:"),
        ("sip:alice@example.com;=x", "sip:, sips: or tel:"),
        ("sip:alice%4@example.com", "sip:, sips: or tel:"),
        ("sip:alice@2001:db8::1", "sip:, sips: or tel:"),
        ("sip:alice@[2001:db8:::1]", "not an IPv6 address"),
        ("sip:alice@[....]", "not an IPv6 address"),
        ("sip:alice@[fe80::1%eth0]", "sip:, sips: or tel:"),
        ("tel:", "sip:, sips: or tel:"),
        ("tel:+", "sip:, sips: or tel:"),
        ("tel:+-", "not a telephone number"),
        ("tel:-.;phone-context=example.com", "not a telephone number"),
        ("tel:+1555abc", "not a telephone number"),
        ("tel:+1*2", "not a telephone number"),
        ("tel:++15551234567", "sip:, sips: or tel:"),
        ("tel:15551234567", "phone-context"),
        ("tel:7042;ext=1", "phone-context"),
        ("tel:7042;phone-context=", "sip:, sips: or tel:"),
        ("tel:+1 555", "space"),
    ],
)
def test_bad_addresses(text: str, hint: str) -> None:
    """A bad address is refused with a message that helps to correct it."""
    with pytest.raises(InvalidAddress) as caught:
        parse_address(text)
    assert hint in str(caught.value)


def test_longest_address() -> None:
    """An address of exactly the maximum length is accepted."""
    text = f"sip:{'a' * (MAX_ADDRESS_LENGTH - 16)}@example.com"
    assert len(text) == MAX_ADDRESS_LENGTH
    assert parse_address(text) == text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sip:alice@example.com", "sip:Alice@example.com"),
        ("sip:alice@example.com", "sips:alice@example.com"),
        ("sip:alice@example.com", "sip:alice@example.com:5060"),
        ("sip:alice@example.com", "sip:alice@example.com;transport=udp"),
        ("sip:a%3Ab@example.com", "sip:ab@example.com"),
        ("sip:a@example.com;gr=%2C", "sip:a@example.com;gr=%3B"),
        ("sip:+15551234567@example.com", "tel:+15551234567"),
        ("tel:+7042", "tel:7042;phone-context=+7"),
    ],
)
def test_different_addresses_stay_different(one: str, other: str) -> None:
    """Addresses that RFC 3261 section 19.1.4 distinguishes have different canonical forms."""
    assert parse_address(one) != parse_address(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tel:+15551234567;ext=12", "tel:+1-555-1234567;ext=1-2"),
        ("tel:7042;phone-context=+1555", "tel:7042;phone-context=+1.(555)"),
        ("sip:alice@example.com;user=phone;lr", "sip:alice@EXAMPLE.com;lr;User=Phone"),
    ],
)
def test_equal_addresses_become_equal(one: str, other: str) -> None:
    """Addresses that differ only in visual separators (RFC 3966 section 4), case and order have one canonical form."""
    assert parse_address(one) == parse_address(other)


LABEL = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,4}[A-Za-z0-9])?", fullmatch=True)


def chars(plain: str, *, never_escaped: str) -> st.SearchStrategy[str]:
    """A text of these characters, and of escapes of all characters but some."""
    escapes = [f"%{byte:02X}" for byte in range(256) if chr(byte) not in never_escaped]
    each = st.sampled_from([*plain, *escapes, *(escape.lower() for escape in escapes)])
    return st.lists(each, min_size=1, max_size=12).map("".join)


LETTERS = "abcxyzABCXYZ0123456789-_.!~*'()"
USER = chars(LETTERS + "&=+$,;?/", never_escaped="%&=+$,;?/")
NAME = st.from_regex(r"[A-Za-z0-9\-]{1,6}", fullmatch=True).filter(
    lambda name: name.lower() not in ("ext", "isub", "method", "user")
)
PARAM = st.builds(str.__add__, NAME, st.just("") | chars(LETTERS + "+:", never_escaped='%"[]/:&+$').map("={}".format))
PARAMS = st.lists(PARAM, max_size=4, unique_by=lambda param: param.partition("=")[0].lower())
SIP = st.builds(
    lambda scheme, user, labels, port, params: scheme + ":" + user + ".".join(labels) + port + params,
    st.sampled_from(["sip", "sips", "SIP", "sIpS"]),
    st.just("") | USER.map(lambda user: f"{user}@"),
    st.lists(LABEL, min_size=1, max_size=3) | st.ip_addresses(v=6).map(lambda address: [f"[{address}]"]),
    st.just("") | st.integers(1, 65535).map(lambda port: f":{port}"),
    PARAMS.map(lambda params: "".join(f";{param}" for param in params)),
)
TEL = st.builds(
    lambda number, params: f"tel:+{number}" + "".join(f";{param}" for param in params),
    st.from_regex(r"[0-9][0-9\-.()]{0,14}", fullmatch=True),
    PARAMS,
)


@settings(max_examples=150, deadline=None)
@given(SIP | TEL)
def test_any_well_formed_uri(text: str) -> None:
    """Any URI of the grammar is accepted. Its canonical form is not longer, and is its own canonical form."""
    canonical = parse_address(text)
    assert parse_address(canonical) == canonical
    assert canonical.isascii()
    assert len(canonical) <= len(text)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=250) | st.text("sipteladx:@.;=%[]+-019 ", max_size=250).map(lambda text: f"sip:{text}"))
def test_any_text(text: str) -> None:
    """Any text is either accepted or refused with InvalidAddress; no other exception is raised."""
    try:
        canonical = parse_address(text)
    except InvalidAddress:
        return
    assert parse_address(canonical) == canonical


@settings(max_examples=100, deadline=None)
@given(text=SIP | TEL, data=st.data())
def test_order_of_parameters_never_matters(text: str, data: st.DataObject) -> None:
    """Two addresses that differ in the order of their parameters are equal (RFC 3261 section 19.1.4)."""
    before_host, at, rest = text.rpartition("@")
    start, *params = rest.split(";")
    shuffled = data.draw(st.permutations(params))
    assert parse_address(before_host + at + ";".join([start, *shuffled])) == parse_address(text)


def errors(base: type[TerminalStatusError] = TerminalStatusError) -> list[type[TerminalStatusError]]:
    """Every error class of the domain."""
    return [
        error
        for child in base.__subclasses__()
        if child.__module__ == TerminalStatusError.__module__
        for error in (child, *errors(child))
    ]


def test_error_codes_are_unique_and_stable() -> None:
    """Each error has its own code, and codes that applications know do not change."""
    codes = {error.code: error.retryable for error in errors()}
    assert len(codes) == len(errors())
    assert codes.items() >= CODES.items()


def test_errors_carry_what_is_needed() -> None:
    """An error has its message, how long to wait, and its details."""
    error = PresenceUnavailable("Later.", retry_after_s=2.5, sip_code="503")
    assert (str(error), error.retry_after_s, error.details) == ("Later.", 2.5, {"sip_code": "503"})
    assert TerminalUnknown("No.").retry_after_s is None


@pytest.mark.parametrize(
    "observed_at",
    [
        pytest.param(datetime(2026, 1, 2, 3, 4, 5), id="naive"),  # noqa: DTZ001 - the naive one is the test
        pytest.param(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1))), id="not UTC"),
    ],
)
def test_terminal_status_wants_utc(observed_at: datetime) -> None:
    """A terminal status refuses a time that is naive or not in UTC."""
    with pytest.raises(ValueError, match="aware UTC"):
        TerminalStatus(
            address=TerminalAddress("sip:a@b"), status=Status.BUSY, observed_at=observed_at, source=Source.FETCH
        )


def test_terminal_status_is_a_value() -> None:
    """Equal terminal statuses compare equal, and cannot be changed."""
    one, other = (
        TerminalStatus(
            address=parse_address("sip:a@b"),
            status=Status.BUSY,
            observed_at=datetime(2026, 1, 2, tzinfo=UTC),
            source=Source.FETCH,
        )
        for _ in range(2)
    )
    assert one == other
    assert hash(one) == hash(other)
    with pytest.raises(AttributeError):
        one.status = Status.REACHABLE  # type: ignore[misc]


@pytest.mark.parametrize(
    ("context", "text", "expected"),
    [
        ("+", "tel:15551234567", "tel:+15551234567"),
        ("+", "TEL:1-555-123.4567;ext=2", "tel:+1-555-123.4567;ext=2"),
        ("+44", "tel:7700900123", "tel:+447700900123"),
        ("+44", "tel:(770)0900123", "tel:+44(770)0900123"),
        ("+", "tel:+15551234567", None),
        ("+", "tel:112;phone-context=+44", None),
        ("+", "tel:112;PHONE-context=example.com", None),
        ("+", "tel:*100#", None),
        ("+", "tel:12ab", None),
        ("+", "tel:", None),
        ("+", "tel:--", None),
        ("+", "tel:1 2", None),
        ("+", "sip:15551234567@example.com", None),
        ("+", "15551234567", None),
        ("", "tel:15551234567", None),
    ],
)
def test_telephone_context(context: str, text: str, expected: str | None) -> None:
    """A number of digits without a plus and without a phone-context gets the context before it (RFC 3966 section
    5.1.5); all other text is unchanged."""
    completed = with_tel_context(text, context)
    assert completed == (expected or text)
    assert expected is None or parse_address(completed).startswith(f"tel:{context}")
