"""Which proxy headers are trusted, and which address a request is counted for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.auth.proxies import MAX_LIST, Origin, TrustedProxies, bucket

PROXIES = TrustedProxies.of(["10.0.0.0/24", "2001:db8:1::/64"])
PROXY = "10.0.0.1"
BEHIND = f"behind {PROXY}"


@pytest.mark.parametrize("peer", ["192.0.2.1", "10.0.1.1", "::1", "", "testclient", "10.0.0"])
def test_strangers_headers_are_ignored(peer: str) -> None:
    headers = [
        ("forwarded", "for=192.0.2.9;proto=https;host=evil"),
        ("x-forwarded-for", "192.0.2.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil"),
    ]
    assert PROXIES.origin(peer, headers) == Origin(peer)
    assert TrustedProxies().origin(PROXY, headers) == Origin(PROXY)


@pytest.mark.parametrize(
    ("given_list", "client"),
    [
        ("192.0.2.9", "192.0.2.9"),
        ("198.51.100.1, 192.0.2.9", "192.0.2.9"),
        ("198.51.100.1, 192.0.2.9, 10.0.0.7", "192.0.2.9"),
        ("garbage, 192.0.2.9", "192.0.2.9"),
        ("192.0.2.9:4711", "192.0.2.9"),
        ("[2001:db8::0:9]:4711", "2001:db8::9"),
        ("2001:db8::9", "2001:db8::9"),
        ("192.0.2.9, 2001:db8:1::5", "192.0.2.9"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("10.0.0.7", "10.0.0.7"),
        ("_hidden", "_hidden"),
        ("unknown", PROXY),
        ("", PROXY),
        ("192.0.2.9,", BEHIND),
        ("192.0.2.9, garbage", BEHIND),
        ("192.0.2.9" * MAX_LIST, BEHIND),
    ],
)
def test_who_x_forwarded_for_names(given_list: str, client: str) -> None:
    assert PROXIES.origin(PROXY, [("x-forwarded-for", given_list)]).address == client


@pytest.mark.parametrize(
    ("given_list", "client"),
    [
        ("for=192.0.2.9", "192.0.2.9"),
        ('For="[2001:db8::9]:4711"', "2001:db8::9"),
        ("for=198.51.100.1, for=192.0.2.9;by=_x", "192.0.2.9"),
        ('for="a,\\"b", for=192.0.2.9 , proto=https;for=10.0.0.7', "192.0.2.9"),
        ("for=_hidden", "_hidden"),
        ("for=unknown", PROXY),
        ("proto=https", PROXY),
        ("", PROXY),
        ('for="', BEHIND),
        ('for=", for=192.0.2.9', BEHIND),
        ("for=192.0.2.9;for=198.51.100.1", BEHIND),
        ("for=192.0.2.9 for=198.51.100.1", BEHIND),
        ("for=garbage", BEHIND),
        ("for=192.0.2.9," * MAX_LIST, BEHIND),
    ],
)
def test_who_forwarded_names(given_list: str, client: str) -> None:
    assert PROXIES.origin(PROXY, [(b"forwarded", given_list.encode())]).address == client


def test_lines_of_a_list_are_one_list() -> None:
    lines = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "192.0.2.9")]
    assert PROXIES.origin(PROXY, lines).address == "192.0.2.9"


def test_two_lists_must_agree() -> None:
    """A proxy may write one list and pass on the other; a caller could name any address in the one passed on."""
    written = ("x-forwarded-for", "192.0.2.9")
    assert PROXIES.origin(PROXY, [written, ("forwarded", "for=192.0.2.9")]).address == "192.0.2.9"
    for forged in ("for=198.51.100.1", "for=unknown", "proto=https", "for=10.0.0.7", 'for="'):
        assert PROXIES.origin(PROXY, [written, ("forwarded", forged)]).address == BEHIND


def test_a_proxy_is_exempt_and_a_malformed_list_is_not() -> None:
    assert PROXIES.trusts(PROXY)
    assert PROXIES.trusts("::ffff:10.0.0.9")
    assert PROXIES.trusts("2001:db8:1::9%eth0")
    assert not PROXIES.trusts(BEHIND)


@pytest.mark.parametrize(
    ("headers", "scheme", "host"),
    [
        ({"x-forwarded-proto": "https", "x-forwarded-host": "api.example.com:8443"}, "https", "api.example.com:8443"),
        ({"forwarded": 'for=192.0.2.9;proto=HTTPS;host="[2001:db8::1]:8443"'}, "https", "[2001:db8::1]:8443"),
        ({"x-forwarded-for": "192.0.2.9, 10.0.0.2", "x-forwarded-proto": "https, http"}, "https", ""),
        ({"x-forwarded-for": "192.0.2.9", "x-forwarded-proto": "http, https"}, "https", ""),
        ({"x-forwarded-proto": "gopher", "x-forwarded-host": 'evil"><x'}, "", ""),
        ({"forwarded": "proto=https", "x-forwarded-proto": "http"}, "", ""),
        ({"forwarded": "for=198.51.100.1;host=evil", "x-forwarded-for": "192.0.2.9"}, "", ""),
    ],
)
def test_scheme_and_host(headers: dict[str, str], scheme: str, host: str) -> None:
    found = PROXIES.origin(PROXY, headers.items())
    assert (found.scheme, found.host) == (scheme, host)


def test_buckets() -> None:
    """One IPv6 host has 2^64 addresses."""
    assert bucket("192.0.2.9") == "192.0.2.9" == bucket("::ffff:192.0.2.9")
    assert bucket("2001:db8::1") == bucket("2001:db8::ffff:1") == "2001:db8::/64" != bucket("2001:db8:0:1::1")
    assert bucket(BEHIND) == BEHIND
    assert bucket("") == ""


@given(st.lists(st.tuples(st.sampled_from(["forwarded", "x-forwarded-for", "x-forwarded-host"]), st.text())))
def test_whatever_comes_there_is_an_answer(headers: list[tuple[str, str]]) -> None:
    found = PROXIES.origin(PROXY, headers)
    assert found.address
    assert PROXIES.origin("192.0.2.1", headers) == Origin("192.0.2.1")
