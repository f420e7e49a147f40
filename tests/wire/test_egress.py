"""Tests of `app/egress/client.py`: which endpoints may be connected to, and what hostile endpoints can do to a
request."""

import asyncio
import errno
import gzip
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp.streams import DataQueue
from hypothesis import given
from hypothesis import strategies as st

from app.auth.tls import TlsUnusable
from app.domain.errors import SinkRefused, SinkUnreachable
from app.egress.allowed import Rules, read_endpoint
from app.egress.client import MAX_ANSWER, MAX_INFORMATIONAL, Egress, read_retry_after
from app.egress.tls import SinkTls
from tests.support.receivers import (
    Behaviour,
    answer,
    drip,
    flood,
    gigabyte,
    hang,
    in_turn,
    make_certificate,
    raw,
    receiver,
    reset,
)

PUBLIC = Rules(allow_http=True)
LOOPBACK = Rules.of(["127.0.0.0/8"], allow_http=True)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

FORBIDDEN = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1"),
    *("168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::a83f:8110", "100.100.100.200", "192.0.0.192"),
    *("203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::1", "::", "fe80::1", "fe80::1%lo", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "100::1", "5f00::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1", "3fff::1"),
]
ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "168.63.129.15",
    "168.63.129.17",
    "172.15.0.1",
    "100.63.0.1",
    "100.128.0.1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_only_public_addresses_are_permitted(address: str) -> None:
    """RFC 6890: loopback, private, link-local, shared, multicast, documentation and reserved addresses are refused in
    every notation; so are the addresses at which clouds serve secrets to their machines, public ones too."""
    assert not PUBLIC.permits(address)


@pytest.mark.parametrize("address", [*ALLOWED, "64:ff9b::808:808"])
def test_public_addresses_are_permitted(address: str) -> None:
    """Addresses on the public internet are permitted, through a NAT64 too."""
    assert PUBLIC.permits(address)


def test_named_networks_are_permitted_beside_the_public_ones() -> None:
    """A network that the operator names is permitted, in its IPv6-mapped form too, and no address around it."""
    rules = Rules.of(["10.1.0.0/16", "fd12::/16"], allow_http=False)
    assert [rules.permits(a) for a in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1", "8.8.8.8")] == [True] * 4
    assert [rules.permits(a) for a in ("10.2.0.1", "127.0.0.1", "fd13::1", "::1", "localhost")] == [False] * 5


@given(st.ip_addresses())
def test_what_is_permitted_is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """No address is permitted that Python's own table calls private, multicast or reserved."""
    if PUBLIC.permits(str(address)):
        assert address.is_global
        assert not address.is_multicast


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "scheme"),
        ("ftp://example.com/", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("gopher://example.com/", "scheme"),
        ("javascript:alert(1)", "url"),
        ("//example.com/", "url"),
        ("example.com", "url"),
        ("", "url"),
        ("https://", "host"),
        ("https:///path", "host"),
        ("https://user@example.com/", "credentials"),
        ("https://user:password@example.com/", "credentials"),
        ("https://example.com@127.0.0.1/", "credentials"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com#@127.0.0.1/", "fragment"),
        ("https://example.com:0/", "port"),
        ("https://example.com:22/", "port"),
        ("https://example.com:25/", "port"),
        ("https://example.com:70000/", "port"),
        ("https://example.com:/", "host"),
        ("https://example.com:x/", "host"),
        ("https://example.com\\@127.0.0.1/", "credentials"),
        ("https://example.com\\.evil.example/", "host"),
        ("https://exa mple.com/", "host"),
        ("https://example.com/a b", "url"),
        ("https://example.com/\r\nX: y", "url"),
        ("https://example.com\r\n/", "host"),
        ("https://example..com/", "host"),
        ("https://-example.com/", "host"),
        ("https://%31%32%37.0.0.1/", "host"),
        ("https://example.com/é", "url"),
        ("https://[::1/", "host"),
        ("https://[::g]/", "host"),
        ("https://[fe80::1%25lo]/", "host"),
        ("https://[v1.x]/", "host"),
        ("https://" + "a" * 64 + ".example/", "host"),
        ("https://example.com/" + "x" * 2048, "length"),
        # The forms that the C library takes for 127.0.0.1 and the like.
        ("https://2130706433/", "host"),
        ("https://0x7f000001/", "host"),
        ("https://0x7f.0.0.1/", "host"),
        ("https://0177.0.0.1/", "host"),
        ("https://127.1/", "host"),
        ("https://127.0.0.01/", "host"),
        ("https://017700000001/", "host"),
        ("https://1.1.1.1./", "host"),
        ("https://256.1.1.1/", "host"),
    ],
)
def test_urls_that_are_refused(url: str, reason: str) -> None:
    """Another scheme, credentials, a fragment, an unusual port or host: each is refused with its reason."""
    with pytest.raises(SinkRefused) as caught:
        read_endpoint(url, allow_http=False)
    assert caught.value.details["reason"] == reason


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://Example.COM:443/a?b=c%20d&e", "https://example.com/a?b=c%20d&e"),
        ("https://example.com?x=1", "https://example.com/?x=1"),
        ("https://bücher.example:8443/x", "https://xn--bcher-kva.example:8443/x"),
        ("https://[2606:4700:0::1111]:1024/", "https://[2606:4700::1111]:1024/"),
        ("https://1.1.1.1/x", "https://1.1.1.1/x"),
        ("https://１２７.0.0.1/", "https://127.0.0.1/"),  # noqa: RUF001  # full-width digits, which IDNA maps
        ("https://my_host.example/", "https://my_host.example/"),
    ],
)
def test_urls_are_read_into_one_form(url: str, canonical: str) -> None:
    """An allowed URL is used in canonical ASCII."""
    assert read_endpoint(url, allow_http=False).url == canonical


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Any text is either refused or read into a canonical form, which reads as itself."""
    try:
        endpoint = read_endpoint("https://" + text, allow_http=False)
    except SinkRefused:
        return
    assert read_endpoint(endpoint.url, allow_http=False) == endpoint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("²", None),
        ("9" * 5000, 999999999.0),
        ("Fri, 99 Jan 2026 03:05:05 GMT", None),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    """Retry-After has seconds or a date; other values are ignored."""
    assert read_retry_after(text, NOW) == seconds


class Opened(list[str]):
    """Records the connections that it is asked to open, and opens none."""

    def __call__(self, info: tuple[Any, ...]) -> socket.socket:
        self.append(str(info[4][0]))
        raise ConnectionRefusedError(errno.ECONNREFUSED, "not in a test")


def resolving(*answers: Sequence[str]) -> Callable[[str, int], Any]:
    """A resolver that gives these answers in turn, then the last one for ever."""
    left = list(answers)

    async def lookup(host: str, port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return lookup


@asynccontextmanager
async def egress(rules: Rules = LOOPBACK, **options: Any) -> AsyncIterator[Egress]:
    """A client with short time limits."""
    client = Egress(rules, **{"total_s": 5.0, **options})
    try:
        yield client
    finally:
        await client.aclose()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "[fe80::1]", "0.0.0.0"]
)
async def test_addresses_in_the_url_are_judged(host: str) -> None:
    """A forbidden address in the URL is refused at the check and at each request, without making a socket."""
    opened = Opened()
    async with egress(PUBLIC, open_socket=opened) as client:
        with pytest.raises(SinkRefused, match="not allowed"):
            await client.check(f"https://{host}/")
        reply = await client.request("POST", f"https://{host}/", {}, b"x")
        assert (reply.outcome, opened) == ("forbidden-address", [])


@pytest.mark.parametrize("address", FORBIDDEN)
async def test_names_that_resolve_to_forbidden_addresses(address: str) -> None:
    """A name with a forbidden address is refused, even where it also has a public one; no connection is opened."""
    opened = Opened()
    async with egress(PUBLIC, open_socket=opened, lookup=resolving(["8.8.8.8", address])) as client:
        with pytest.raises(SinkRefused) as caught:
            await client.check("https://rebind.example/")
        assert address not in str(caught.value)
        reply = await client.request("POST", "https://rebind.example/", {}, b"x")
        assert (reply.outcome, opened) == ("forbidden-address", [])


async def test_what_is_opened_is_what_was_judged() -> None:
    """The name is resolved once per connection, and the socket is opened to the address that was judged."""
    opened = Opened()
    lookup = resolving(["8.8.8.8"], ["1.1.1.1"], ["127.0.0.1"])
    async with egress(PUBLIC, open_socket=opened, lookup=lookup) as client:
        await client.check("https://rebind.example/")
        reply = await client.request("POST", "https://rebind.example/", {}, b"x")
        assert (reply.outcome, opened) == ("refused", ["1.1.1.1"])


async def test_rebinding_between_check_and_connection_gains_nothing() -> None:
    """A name that is public at the check and loopback at the connection is refused at the connection."""
    opened = Opened()
    async with egress(PUBLIC, open_socket=opened, lookup=resolving(["8.8.8.8"], ["127.0.0.1"])) as client:
        await client.check("https://rebind.example/")
        reply = await client.request("POST", "https://rebind.example/", {}, b"x")
        assert (reply.outcome, reply.as_sent().delivered, opened) == ("forbidden-address", False, [])


async def test_the_socket_is_judged_by_itself() -> None:
    """Even if the resolver lets a forbidden address through, no socket is made for it."""
    async with egress(PUBLIC) as client:
        with pytest.raises(OSError, match="may not be connected"):
            client._socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80)))  # noqa: SLF001


async def test_localhost_needs_its_network_allowed() -> None:
    """Answers of the system's resolver are judged too: localhost is refused unless loopback is allowed."""
    async with egress(PUBLIC) as client:
        with pytest.raises(SinkRefused):
            await client.check("https://localhost/")
    async with egress(Rules.of(["127.0.0.0/8", "::1/128"], allow_http=False)) as client:
        assert (await client.check("https://localhost/")).host == "localhost"


async def test_names_that_do_not_resolve() -> None:
    """An unknown name, a name without addresses, and a resolver that never answers are unreachable; an attempt fails
    with the reason."""

    async def fails(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    async def hangs(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    for lookup, outcome in ((fails, "dns"), (resolving([]), "dns"), (hangs, "timed-out")):
        async with egress(PUBLIC, lookup=lookup, total_s=0.2) as client:
            with pytest.raises(SinkUnreachable):
                await client.check("https://nowhere.example/")
            assert (await client.request("POST", "https://nowhere.example/", {}, b"")).outcome == outcome


async def test_a_request_arrives_as_it_was_given() -> None:
    """Method, target, headers and body arrive unchanged; connections are reused; no compressed answer is requested."""
    async with egress() as client, receiver(answer(200, {"X-Y": "z"}, b"thanks")) as there:
        for _ in range(3):
            reply = await client.request("POST", there.url + "?a=%2F", {"Content-Type": "text/x"}, b"body")
            assert (reply.outcome, reply.code, reply.body, reply.complete) == ("answered", 200, b"thanks", True)
            assert reply.headers["x-y"] == "z"
            assert reply.as_sent().delivered
        request = there.requests[0]
        assert (request.method, request.target, request.body) == ("POST", "/events?a=%2F", b"body")
        assert request.headers["content-type"] == "text/x"
        assert "accept-encoding" not in request.headers
        assert there.connections == 1


OK_HEAD = b"HTTP/1.1 200 X\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.parametrize(
    ("behaviour", "code", "outcome"),
    [
        (answer(301, {"Location": "http://127.0.0.1:1/"}), 301, "http-301"),
        (answer(307, {"Location": "http://169.254.169.254/"}), 307, "http-307"),
        (answer(404), 404, "http-404"),
        (answer(410), 410, "http-410"),
        (answer(500, {}, b"oops"), 500, "http-500"),
        (hang, 0, "timed-out"),
        (drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), 0, "timed-out"),
        (drip(b"HTTP/1.1 200 ", b"O"), 0, "timed-out"),
        (drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), 0, "malformed"),
        (reset, 0, "reset"),
        (raw(b""), 0, "reset"),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), 0, "malformed"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), 0, "malformed"),
        (raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"), 0, "malformed"),
        (raw(b"HTTP/1.1 200"), 0, "reset"),
    ],
)
async def test_answers_that_are_no_delivery(behaviour: Behaviour, code: int, outcome: str) -> None:
    """A redirect, an error status, silence, dripping, a reset and garbage each fail with their reason; redirects are
    not followed."""
    async with egress(total_s=0.6) as client, receiver(behaviour) as there:
        sent = (await client.request("POST", there.url, {}, b"x")).as_sent()
        assert (sent.delivered, sent.code, sent.outcome, sent.gone) == (False, code, outcome, code == 410)
        assert len(there.requests) == 1


HINT = b"HTTP/1.1 103 E\r\n\r\n"
"""An informational answer."""
NO_CONTENT = b"HTTP/1.1 204 X\r\n\r\n"


@pytest.mark.parametrize("https", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(
    ("first", "endless", "outcome"),
    [
        (b"", HINT * 60_000, "malformed"),
        (b"", b"HTTP/1.1 103 E\r\n" + b"X: y\r\n" * 100 + b"\r\n", "malformed"),
        (b"", b"HTTP/1.1 103 E\r\n" + (b"X: " + b"y" * 8000 + b"\r\n") * 100, "malformed"),
        (NO_CONTENT, HINT * 60_000, "delivered"),
        (b"", NO_CONTENT * 60_000, "delivered"),
    ],
    ids=["hints", "large-hints", "endless-hint", "hints-behind", "answers"],
)
async def test_floods_of_answers(*, first: bytes, endless: bytes, outcome: str, https: bool, tmp_path: Path) -> None:
    """Endless answers are cut at once, before and after the status; the event loop goes on meanwhile."""
    server, authority = make_certificate(tmp_path) if https else (None, None)
    tls = ssl.create_default_context(cafile=authority) if https else None
    async with egress(tls=tls, total_s=20.0) as client, receiver(flood(first, endless), tls=server) as there:
        began = asyncio.get_running_loop().time()
        assert (await client.request("POST", there.url, {}, b"x")).as_sent().outcome == outcome
        assert asyncio.get_running_loop().time() - began < 5
        await there.wait_for(lambda: there.open_connections == 0)
        there.behave = answer(503)
        assert (await client.request("POST", there.url, {}, b"x")).code == 503
        assert there.connections == 2


@pytest.mark.parametrize("first", [b"", NO_CONTENT])
async def test_few_answers_are_queued_of_a_flood(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many answers come at once, no more are queued than the client may read."""
    made = 0
    feed = DataQueue.feed_data

    def count(*args: Any) -> None:
        nonlocal made
        made += 1
        feed(*args)

    monkeypatch.setattr(DataQueue, "feed_data", count)
    async with egress() as client, receiver(flood(first, HINT * 60_000)) as there:
        await client.request("POST", there.url, {}, b"x")
    assert made <= MAX_INFORMATIONAL


@pytest.mark.parametrize("count", [1, MAX_INFORMATIONAL, MAX_INFORMATIONAL + 1])
async def test_informational_answers_before_the_status(count: int) -> None:
    """A few informational answers are accepted for each request of a connection; the status after them counts."""
    hints = b"HTTP/1.1 100 Continue\r\n\r\n" + HINT * (count - 1)
    taken = count <= MAX_INFORMATIONAL
    async with egress() as client, receiver(raw(hints + NO_CONTENT, close=False)) as there:
        for _ in range(3):
            sent = (await client.request("POST", there.url, {}, b"x")).as_sent()
            assert sent.outcome == ("delivered" if taken else "malformed")
        assert there.connections == (1 if taken else 3)


async def test_an_answer_that_nobody_asked_for() -> None:
    """An answer that comes before its request does not count as the request's answer."""

    async def behave(request: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(NO_CONTENT)
        await asyncio.sleep(0.05)
        writer.write(NO_CONTENT)

    async with egress() as client, receiver(in_turn(behave, answer(503))) as there:
        assert (await client.request("POST", there.url, {}, b"1")).code == 204
        await asyncio.sleep(0.2)
        assert (await client.request("POST", there.url, {}, b"2")).code == 503


async def test_the_answer_is_cut() -> None:
    """Of a gigabyte little is read and less is kept; then the connection is closed."""
    async with egress() as client, receiver(gigabyte()) as there:
        reply = await client.request("POST", there.url, {}, b"x")
        assert (reply.code, len(reply.body), reply.complete) == (200, 2048, False)
        await there.wait_for(lambda: there.open_connections == 0)


async def test_as_much_is_kept_as_was_asked_for() -> None:
    """A caller may keep up to MAX_ANSWER bytes."""
    async with egress() as client, receiver(answer(200, {}, b"a" * MAX_ANSWER)) as there:
        reply = await client.request("POST", there.url, {}, b"x", keep=MAX_ANSWER)
        assert len(reply.body) == MAX_ANSWER
        assert not (await client.request("POST", there.url, {}, b"x", keep=10)).complete


async def test_a_compressed_bomb_stays_compressed() -> None:
    """An answer is never unpacked."""
    bomb = gzip.compress(b"0" * 50_000_000)
    async with egress() as client, receiver(answer(200, {"Content-Encoding": "gzip"}, bomb)) as there:
        reply = await client.request("POST", there.url, {}, b"x")
        assert reply.body == bomb[:2048]


@pytest.mark.parametrize("behaviour", [drip(OK_HEAD, b"."), raw(OK_HEAD + b"half")])
async def test_a_status_in_time_counts(behaviour: Behaviour) -> None:
    """A receiver that answered 200 in time has accepted the event, even where the answer's body drips beyond the limit
    or is cut."""
    async with egress(total_s=0.6) as client, receiver(behaviour) as there:
        reply = await client.request("POST", there.url, {}, b"x")
        assert (reply.as_sent().delivered, reply.complete) == (True, False)


async def test_an_answer_after_the_limit_is_none() -> None:
    """200 after the time limit is a time-out, and the connection is not reused."""
    late = asyncio.Event()

    async def behave(request: Any, writer: asyncio.StreamWriter) -> None:
        await late.wait()
        await answer(200)(request, writer)

    async with egress(total_s=0.3) as client, receiver(in_turn(behave, answer(503))) as there:
        assert (await client.request("POST", there.url, {}, b"1")).outcome == "timed-out"
        late.set()
        assert (await client.request("POST", there.url, {}, b"2")).code == 503
        assert there.connections == 2


async def test_retry_after_is_reported() -> None:
    """429 with Retry-After is a failure with the time to wait."""
    async with egress() as client, receiver(answer(429, {"Retry-After": "17"})) as there:
        sent = (await client.request("POST", there.url, {}, b"x")).as_sent()
        assert (sent.delivered, sent.outcome, sent.retry_after_s) == (False, "http-429", 17.0)


async def test_nobody_listens() -> None:
    """A refused connection has its own reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with egress() as client:
        assert (await client.request("POST", f"http://127.0.0.1:{port}/", {}, b"")).outcome == "refused"


async def test_https_is_verified(tmp_path: Path) -> None:
    """Only a certificate of a trusted authority for the right name is accepted."""
    server, authority = make_certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(authority))
    async with receiver(tls=server) as there:
        async with egress(tls=trusting) as client:
            assert (await client.request("POST", there.url, {}, b"x")).code == 204
            other_name = there.url.replace("127.0.0.1", "127.0.0.2")
            assert (await client.request("POST", other_name, {}, b"x")).outcome in {"tls", "refused"}
        async with egress(tls=trusting, lookup=resolving(["127.0.0.1"])) as client:
            named = there.url.replace("127.0.0.1", "other.example")
            assert (await client.request("POST", named, {}, b"x")).outcome == "tls"
        async with egress() as client:
            assert (await client.request("POST", there.url, {}, b"x")).outcome == "tls"
        async with egress() as client:
            plain = there.url.replace("https", "http")
            assert (await client.request("POST", plain, {}, b"x")).outcome in {"reset", "malformed"}


def asking_for_certificates(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A receiver that demands the certificate of `folder`, and the file of its authority."""
    server, authority = make_certificate(folder)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(authority)
    return server, authority


async def test_certificate_of_the_gateway(tmp_path: Path) -> None:
    """A receiver that asks for a client certificate gets the gateway's, at the check and at each request; without one
    it refuses the connection."""
    server, authority = asking_for_certificates(tmp_path)
    pair = authority, tmp_path / "key.pem"
    async with receiver(tls=server) as there:
        async with egress(tls=SinkTls(str(authority), *pair).context) as client:
            await client.connect(there.url)
            assert (await client.request("POST", there.url, {}, b"x")).code == 204
        async with egress(tls=SinkTls(str(authority), None, None).context) as client:
            assert (await client.request("POST", there.url, {}, b"x")).outcome in {"tls", "reset"}


async def test_certificate_of_the_gateway_is_renewed(tmp_path: Path) -> None:
    """SIGHUP reads the certificate again: new connections present the renewed one; a pair that does not match is
    logged, and the one before stays in use."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    make_certificate(tmp_path / "old")
    server, new = asking_for_certificates(tmp_path / "new")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"

    def put(certificate_of: str, key_of: str) -> None:
        certificate.write_bytes((tmp_path / certificate_of / "certificate.pem").read_bytes())
        key.write_bytes((tmp_path / key_of / "key.pem").read_bytes())

    put("old", "old")
    tls = SinkTls(str(new), certificate, key)
    async with receiver(tls=server) as there, egress(tls=tls.context) as client:
        for pair, accepted in ((("old", "new"), False), (("new", "new"), True), (("new", "old"), True)):
            put(*pair)
            tls.read_again()
            reply = await client.request("POST", there.url, {"Connection": "close"}, b"x")
            assert (reply.code == 204) is accepted, pair


@pytest.mark.parametrize("named", ["ca", "certificate", "key"])
def test_files_that_cannot_be_used(tmp_path: Path, named: str) -> None:
    """The error names the setting and the file."""
    _, authority = make_certificate(tmp_path)
    files = {"ca": authority, "certificate": authority, "key": tmp_path / "key.pem"}
    files[named] = tmp_path / "nothing.pem"
    setting = "TS_SINK_CA_FILE" if named == "ca" else "TS_SINK_CERT_FILE, TS_SINK_KEY_FILE"
    with pytest.raises(TlsUnusable, match=rf"{setting}: .*nothing\.pem.*cannot be used"):
        SinkTls(str(files["ca"]), files["certificate"], files["key"])


async def test_http_needs_to_be_allowed() -> None:
    """Where http: is not allowed, each request refuses it too."""
    async with egress(Rules.of(["127.0.0.0/8"], allow_http=False)) as client:
        with pytest.raises(SinkRefused):
            await client.request("POST", "http://127.0.0.1:1/", {}, b"")
