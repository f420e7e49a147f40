"""The real presence server of the system tests, checked by raw SIP: the form of its documents, and when it sends
them."""

import asyncio
import hashlib
import re
import socket
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from lxml import etree

from tests.support import kamailio as kamailio_module
from tests.support.kamailio import Kamailio, KamailioFailed, require
from tests.support.sip_terminal import EVENT, SipClient, SipMessage, Terminal, pidf, unique

pytestmark = pytest.mark.asyncio(loop_scope="module")

PIDF = "{urn:ietf:params:xml:ns:pidf}"
RPID = "{urn:ietf:params:xml:ns:pidf:rpid}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kamailio() -> AsyncIterator[Kamailio]:
    """One Kamailio for all tests here; each test uses its own addresses."""
    require()
    async with Kamailio.running() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", params=["udp", "tcp"])
async def client(kamailio: Kamailio, request: pytest.FixtureRequest) -> AsyncIterator[SipClient]:
    """A SIP client as watcher."""
    async with SipClient(kamailio.host, kamailio.port, tcp=request.param == "tcp") as connected:
        yield connected


@pytest_asyncio.fixture(loop_scope="module")
async def terminal(kamailio: Kamailio, request: pytest.FixtureRequest) -> AsyncIterator[Terminal]:
    """A terminal that no other test uses, over UDP."""
    async with Terminal(kamailio.host, kamailio.port, f"sip:t{unique()}@example.com") as connected:
        yield connected


def basics(notify: SipMessage) -> list[str]:
    """The `basic` values of the document's tuples; [] for an empty body."""
    if not notify.body:
        return []
    return [element.text or "" for element in etree.fromstring(notify.body).iter(f"{PIDF}basic")]


def activities(notify: SipMessage) -> set[str]:
    """The names of all activities in the document."""
    found = etree.fromstring(notify.body).iter(f"{RPID}activities")
    return {etree.QName(activity).localname for element in found for activity in element}


async def fetched(client: SipClient, address: str, expected: list[str], deadline_s: float = 5) -> SipMessage:
    """Fetches until the tuples have these values, since expiries take a while."""
    deadline = time.monotonic() + deadline_s
    while True:
        response, notify = await client.fetch(address)
        assert response.code == 200
        assert notify is not None
        if basics(notify) == expected:
            return notify
        assert time.monotonic() < deadline, f"still {basics(notify)} after {deadline_s} s"
        await asyncio.sleep(0.02)  # between two fetches: Kamailio keeps each transaction for 5 s


async def test_nothing_published_is_an_empty_body(client: SipClient) -> None:
    """A fetch of a terminal that never registered is answered 200 and a terminated NOTIFY without body."""
    response, notify = await client.fetch("sip:never@example.com")
    assert notify is not None
    assert (response.code, response["expires"]) == (200, "0")
    assert notify["subscription-state"] == "terminated;reason=timeout"
    assert (notify.body, notify["content-length"]) == (b"", "0")


async def test_register_opens_and_unregister_closes(client: SipClient, terminal: Terminal) -> None:
    """REGISTER makes one open tuple, whose entity lacks `sip:`; unregistering leaves an empty body."""
    await terminal.register()
    notify = await fetched(client, terminal.address, ["open"])
    assert notify["content-type"] == "application/pidf+xml"
    assert etree.fromstring(notify.body).get("entity") == terminal.address.removeprefix("sip:")
    await terminal.unregister()
    assert (await fetched(client, terminal.address, [])).body == b""


async def test_publication_joins_the_registration(client: SipClient, terminal: Terminal) -> None:
    """A PUBLISH adds its tuple and person to those of the registration; the next PUBLISH replaces them."""
    await terminal.register()
    await fetched(client, terminal.address, ["open"])
    await terminal.publish("on-the-phone")
    assert activities(await fetched(client, terminal.address, ["open", "open"])) == {"on-the-phone"}
    await terminal.publish("away")
    assert activities(await fetched(client, terminal.address, ["open", "open"])) == {"away"}
    await terminal.unpublish()
    assert activities(await fetched(client, terminal.address, ["open"])) == set()
    await terminal.unregister()


async def test_publication_is_refreshed_without_a_body(client: SipClient, terminal: Terminal) -> None:
    """A refresh has SIP-If-Match and no body, and keeps the document as it was (RFC 3903 section 4.3)."""
    await terminal.publish("on-the-phone")
    for _ in range(2):
        await terminal.refresh()
        assert activities(await fetched(client, terminal.address, ["open"])) == {"on-the-phone"}
    await terminal.unpublish()


async def test_publication_without_expires_is_granted_an_hour(client: SipClient, terminal: Terminal) -> None:
    """The server chooses the duration of a publication without Expires (RFC 3903 section 4.1): here an hour."""
    headers = ("Event: presence", "Content-Type: application/pidf+xml")
    response = await client.ask("PUBLISH", terminal.address, *headers, body=pidf(terminal.address, "t", "busy"))
    assert (response.code, response["expires"]) == (200, "3600")


async def test_unregister_withdraws_the_publication(client: SipClient, terminal: Terminal) -> None:
    """A terminal that unregisters while on the phone leaves an empty body."""
    await terminal.register()
    await terminal.publish("on-the-phone")
    await fetched(client, terminal.address, ["open", "open"])
    await terminal.unregister()
    assert (await fetched(client, terminal.address, [])).body == b""


async def test_publication_outlives_the_registration(client: SipClient, terminal: Terminal) -> None:
    """A publication that is not withdrawn stays open and busy after unregistering, until it expires."""
    await terminal.register()
    await terminal.publish("on-the-phone", expires_s=2)
    await fetched(client, terminal.address, ["open", "open"])
    await terminal.unregister(withdraw=False)
    assert activities(await fetched(client, terminal.address, ["open"])) == {"on-the-phone"}
    await fetched(client, terminal.address, [])


async def test_publication_without_a_tuple_opens_nothing(client: SipClient, terminal: Terminal) -> None:
    """With a publication that has only a person, the registration alone decides whether the terminal is open."""
    body = (
        b'<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" '
        b'xmlns:rpid="urn:ietf:params:xml:ns:pidf:rpid" entity="sip:x@example.com"><dm:person id="p">'
        b"<rpid:activities><rpid:on-the-phone/></rpid:activities></dm:person></presence>"
    )
    await terminal.register()
    await terminal.publish(body=body)
    assert activities(await fetched(client, terminal.address, ["open"])) == {"on-the-phone"}
    await terminal.unregister(withdraw=False)
    assert activities(await fetched(client, terminal.address, [])) == {"on-the-phone"}


async def test_registration_expires(client: SipClient, terminal: Terminal) -> None:
    """A terminal that falls silent is closed within about a second of its registration's expiry."""
    await terminal.register(1)
    await fetched(client, terminal.address, ["open"])
    await fetched(client, terminal.address, [])


async def test_two_terminals_of_one_address(client: SipClient, kamailio: Kamailio, terminal: Terminal) -> None:
    """The address is open until its last registration ends.

    The number of tuples is not checked: `pua` names a tuple by a memory address, so that two registrations often share
    one tuple. A live subscription then even gets "closed" when the first of them ends.
    """
    async with Terminal(kamailio.host, kamailio.port, terminal.address) as second:
        await terminal.register()
        await second.register()
        await terminal.unregister()
        await fetched(client, terminal.address, ["open"])
        await second.unregister()
        await fetched(client, terminal.address, [])


async def test_subscription_is_reported_of_each_change(client: SipClient, terminal: Terminal) -> None:
    """A subscription gets a NOTIFY at once and at each change, in which an ended registration is closed."""
    call_id, tag = unique(), unique()
    response = await client.ask(
        "SUBSCRIBE", terminal.address, *EVENT, "Expires: 60", call_id=call_id, from_tag=tag, cseq=1
    )
    first = await client.notify_for(call_id)
    assert (response.code, basics(first)) == (200, [])
    assert re.fullmatch(r"active;expires=(59|60)", first["subscription-state"])
    await terminal.register()
    assert basics(await client.notify_for(call_id)) == ["open"]
    await terminal.publish("on-the-phone")
    assert activities(await client.notify_for(call_id)) == {"on-the-phone"}
    await terminal.unpublish()
    withdrawn = await client.notify_for(call_id)
    assert (sorted(basics(withdrawn)), activities(withdrawn)) == (["closed", "open"], set())
    await terminal.unregister()
    assert basics(await client.notify_for(call_id)) == ["closed"]
    await fetched(client, terminal.address, [])
    await client.ask(
        "SUBSCRIBE",
        response.contact_uri,
        *EVENT,
        "Expires: 0",
        call_id=call_id,
        from_tag=tag,
        cseq=2,
        to=response["to"],
    )
    assert (await client.notify_for(call_id))["subscription-state"] == "terminated;reason=timeout"


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("sip:nobody@example.com", 404),
        ("sip:anyone@unknown.example.com", 404),
        ("sip:forbidden@example.com", 403),
        ("sip:anyone@forbidden.example.com", 403),
        ("sip:private@example.com", 401),
        ("sip:anyone@private.example.com", 401),
    ],
)
async def test_refusals(client: SipClient, uri: str, code: int) -> None:
    """Terminals that are not provisioned, forbidden or private are refused, by their names."""
    response, _ = await client.fetch(uri)
    assert response.code == code


async def test_private_terminal_with_credentials(client: SipClient) -> None:
    """A private terminal is shown to user `watcher` with password `secret` (MD5 digest, qop auth)."""
    uri = "sip:private@example.com"
    challenge = (await client.fetch(uri))[0]["www-authenticate"]
    nonce = challenge.partition('nonce="')[2].partition('"')[0]

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    answer = md5(f"{md5('watcher:example.com:secret')}:{nonce}:00000001:c:auth:{md5(f'SUBSCRIBE:{uri}')}")
    credentials = (
        f'Authorization: Digest username="watcher", realm="example.com", nonce="{nonce}", uri="{uri}", '
        f'response="{answer}", algorithm=MD5, qop=auth, nc=00000001, cnonce="c"'
    )
    call_id = unique()
    response = await client.ask("SUBSCRIBE", uri, *EVENT, "Expires: 0", credentials, call_id=call_id)
    assert response.code == 200
    assert (await client.notify_for(call_id))["subscription-state"] == "terminated;reason=timeout"


async def test_other_methods_and_events(client: SipClient) -> None:
    """OPTIONS is answered 200, MESSAGE 405, a SUBSCRIBE for another event 489."""
    assert (await client.ask("OPTIONS", "sip:example.com")).code == 200
    assert (await client.ask("MESSAGE", "sip:never@example.com")).code == 405
    assert (await client.ask("SUBSCRIBE", "sip:never@example.com", "Event: nonsense", "Expires: 0")).code == 489


async def test_a_registration_shows_at_once(kamailio: Kamailio, client: SipClient) -> None:
    """When `register` or `unregister` returns, over UDP or TCP, the next fetch shows the result, each time."""
    for _ in range(10):
        address = f"sip:t{unique()}@example.com"
        async with Terminal(kamailio.host, kamailio.port, address, tcp=client.tcp) as terminal:
            await terminal.register()
            await fetched(client, address, ["open"], deadline_s=0)
            await terminal.unregister()
            await fetched(client, address, [], deadline_s=0)


async def test_it_starts_in_time(kamailio: Kamailio) -> None:
    """Kamailio starts within its time limit, and its start time is known."""
    assert 0 < kamailio.started_in_s < kamailio_module.START_DEADLINE_S


async def test_it_leaves_nothing_behind() -> None:
    """After Kamailio's end the port is free and its directory is deleted."""
    require()
    async with Kamailio.running() as kamailio:
        directory, port = kamailio.directory, kamailio.port
    assert not await asyncio.to_thread(directory.exists)
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("127.0.0.1", port))
        udp.bind(("127.0.0.1", port))


async def test_a_failed_start_shows_the_log() -> None:
    """Where Kamailio cannot listen, the error ends with the last lines of its log."""
    require()
    with socket.socket(type=socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        with pytest.raises(KamailioFailed, match="Address already in use"):
            async with Kamailio.running(holder.getsockname()[1]):
                pass


async def test_missing_kamailio_is_a_skip_and_in_ci_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages the test is skipped and names the missing one; in CI it fails."""
    monkeypatch.setattr(kamailio_module, "_binary", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Debian package kamailio"):
        require()
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="Debian package kamailio"):
        require()
