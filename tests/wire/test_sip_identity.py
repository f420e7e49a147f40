"""Which messages count: NOTIFYs to their dialog's own Contact, and answers from the address of their request. And which
dialog the first NOTIFY makes (RFC 6665 section 4.4.1). A scripted presence server over UDP and TCP."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from app.domain.addresses import TerminalAddress, parse_address
from app.domain.statuses import Liveness
from app.sip.watcher import SipWatcher
from tests.support.sip_notifier import BUSY, OPEN, Asked, ScriptedNotifier
from tests.support.sip_scene import refresh, scene, until_refused
from tests.support.sip_watcher import terminal, watching
from tests.support.waiting import DEADLINE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE, STALE = Liveness.LIVE, Liveness.STALE


def datagrams(watcher: SipWatcher, sock: socket.socket) -> Callable[[bytes], None]:
    """Sends datagrams to the watcher's UDP port from another port."""

    def send(data: bytes) -> None:
        sock.sendto(data, ("127.0.0.1", watcher.ports["udp"]))

    return send


# The Contact of each dialog


async def test_each_dialog_has_a_contact_of_its_own(transport: str) -> None:
    """Dialogs of watches and of fetches each have a Contact with 128 random bits; a refresh keeps its dialog's."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        users = [asked.request.contact_uri.partition("@")[0]]
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        await refresh(watcher, address)
        again = await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))
        assert again.request.contact_uri == asked.request.contact_uri
        again.answer()
        for _ in range(3):
            fetch = asyncio.ensure_future(watcher.fetch(address))
            once = await server.asked()
            users.append(once.request.contact_uri.partition("@")[0])
            once.answer()
            once.notify(1, state="terminated;reason=timeout")
            assert (await fetch).body == OPEN
        assert len(set(users)) == 4
        assert all(len(user.removeprefix("sip:watcher-")) >= 32 for user in users)
        assert len({user.removeprefix("sip:watcher-")[:8] for user in users}) == 4, "random from its start"


WRITTEN: dict[str, Callable[[str, str], str]] = {
    "another host": lambda user, _: f"sip:{user}@proxy.example.net:5999",
    "parameters": lambda user, host: f"sip:{user}@{host};alias=192.0.2.1~5060~1;x",
    "scheme in capitals": lambda user, host: f"SIP:{user}@{host}",
    "sips": lambda user, host: f"sips:{user}@{host}",
    "escapes": lambda user, host: f"sip:{user.replace('-', '%2D').replace('a', '%61')}@{host}",
    "a password": lambda user, host: f"sip:{user}:x@{host}",
}


@pytest.mark.parametrize("written", WRITTEN)
async def test_contact_as_proxies_write_it(transport: str, written: str) -> None:
    """The user part decides, however the Request-URI is written: NOTIFYs count, and refused ones are noticed."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        uri = WRITTEN[written](*asked.request.contact_uri.removeprefix("sip:").split("@"))
        asked.answer()
        asked.notify(1, uri=uri)
        await until(lambda: observer.live([address]))
        asked.notify(2**31, uri=uri)
        await until_refused(watcher, "unreadable")
        await server.asked(but=asked.request["call-id"])


async def test_fetch_is_answered_to_a_contact_in_capitals(transport: str) -> None:
    """A scheme has no case (RFC 3261 section 19.1.4): a NOTIFY to `SIP:` answers a fetch, and is 481 once the fetch is
    over."""
    async with ScriptedNotifier(transport) as server, watching(server.uri) as (watcher, _):
        fetch = asyncio.ensure_future(watcher.fetch(terminal()))
        asked = await server.asked()
        uri = asked.request.contact_uri.replace("sip:", "SIP:")
        asked.answer()
        asked.notify(1, uri=uri, state="terminated;reason=timeout")
        assert (await fetch).body == OPEN
        assert await server.notify_answer(1) == 200
        asked.notify(2, uri=uri)
        assert await server.notify_answer(2) == 481


async def test_notify_to_another_dialogs_contact(transport: str) -> None:
    """A NOTIFY to one dialog's Contact with another dialog's tags and Call-ID changes neither: it is ignored and
    counted."""
    async with scene(transport) as (server, watcher, observer, one, asked):
        asked.answer()
        asked.notify(1)
        other = terminal()
        watcher.watch(other)
        another = await server.asked(but=asked.request["call-id"])
        another.answer()
        another.notify(1)
        await until(lambda: observer.live([one, other]))
        known = asked.request.contact_uri
        another.notify(50, BUSY, uri=known)
        another.notify(51, BUSY, uri=known, call_id=asked.request["call-id"])
        another.notify(52, BUSY, call_id=asked.request["call-id"])
        await until_refused(watcher, "another-dialog", 3)
        asked.notify(2, BUSY)
        another.notify(2, OPEN)
        await until(lambda: len(observer.bodies(one)) == len(observer.bodies(other)) == 2)
        assert (observer.bodies(one)[-1], observer.bodies(other)[-1]) == (BUSY, OPEN)
        assert [await server.notify_answer(2) for _ in "12"] == [200, 200]
        for cseq in (50, 51, 52):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.notify_answer(cseq), 0.05)


async def test_contact_of_a_dialog_that_is_over(transport: str) -> None:
    """The Contact of an ended dialog reaches no dialog in use; a late NOTIFY of its own dialog is answered 481, which
    ends the subscription at the server."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        fetch = asyncio.ensure_future(watcher.fetch(address))
        once = await server.asked(but=asked.request["call-id"])
        once.answer()
        once.notify(1, state="terminated;reason=timeout")
        await fetch
        asked.notify(70, BUSY, uri=once.request.contact_uri)
        await until_refused(watcher, "another-dialog")
        once.notify(71)
        assert await server.notify_answer(71) == 481
        asked.notify(2)
        await until(lambda: len(observer.bodies(address)) == 2)
        assert observer.bodies(address) == [OPEN, OPEN]


async def test_late_notify_that_names_another_host_for_its_answer(transport: str) -> None:
    """However Via's `maddr` is written, nothing is sent to it or looked up for it."""
    async with scene(transport) as (server, watcher, _, _, asked):
        asked.answer()
        asked.notify(1, state="terminated;reason=noresource")
        await until(lambda: watcher.counts().notifies_received == 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim, socket.socket(type=socket.SOCK_DGRAM) as other:
            victim.bind(("127.0.0.1", 0))
            victim.setblocking(False)
            other.bind(("127.0.0.2", 0))

            def redirect(data: bytes) -> None:
                for name in ("maddr", "MADDR", "%6Daddr"):
                    via = f"x:{victim.getsockname()[1]};{name}=127.0.0.1".encode()
                    moved = data.replace(f"{server.host};rport".encode(), via).replace(b"/TCP", b"/UDP")
                    datagrams(watcher, other)(moved)

            asked.notify(9, send=redirect)
            asked.notify(10)
            assert await server.notify_answer(10) == 481
            with pytest.raises(BlockingIOError):
                victim.recv(65536)


async def test_maddr_in_a_name(transport: str) -> None:
    """A terminal with `maddr` in its name, and a server with `maddr` in its Contact, are watched as usual."""
    async with scene(transport) as (server, watcher, observer, _, watched):
        address = parse_address(f"sip:maddrox-{transport}@example.com")
        watcher.watch(address)
        asked = await server.asked(but=watched.request["call-id"])
        asked.answer()
        asked.notify(1, OPEN, f"Contact: <sip:a@{server.host};maddr=127.0.0.1>")
        await until(lambda: observer.live([address]))
        assert observer.reported[address] == [OPEN, LIVE]


@pytest.mark.parametrize("seal", ["", "0" * 48, "kept"])
async def test_contact_that_was_made_up(transport: str, seal: str) -> None:
    """Who has seen one SUBSCRIBE cannot construct a valid Contact: a NOTIFY to it gets no answer, and the watch does
    not change."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        user = asked.request.contact_uri.removeprefix("sip:").partition("@")[0]
        made_up = seal if seal != "kept" else "f" * 32 + user.removeprefix("watcher-")[32:]
        uri = asked.request.contact_uri.replace(user, f"watcher-{made_up}")
        asked.notify(60, BUSY, uri=uri)
        asked.notify(61, BUSY, uri=uri, event="")
        asked.notify(2**31, BUSY, uri=uri)
        asked.notify(62, BUSY, uri=uri, to=asked.request["from"].partition(";")[0])
        asked.notify(2)
        await until(lambda: len(observer.bodies(address)) == 2)
        assert await server.notify_answer(2) == 200
        assert observer.reported[address] == [OPEN, LIVE, OPEN]
        await until(lambda: watcher.counts().notifies_received == 2)
        assert not watcher.counts().refused


async def test_large_body_of_a_stranger() -> None:
    """A stranger's body with the Call-ID and CSeq of an expected NOTIFY does not become that NOTIFY's document."""
    async with scene("tcp") as (_, watcher, observer, address, asked):
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        _, writer = await asyncio.open_connection("127.0.0.1", watcher.ports["tcp"])
        forged = BUSY.replace(b"?>", b"?><!--" + b"x" * 6000 + b"-->", 1)
        asked.notify(2, forged, uri=asked.request.contact_uri.replace("sip:", "sip:x"), send=writer.write)
        asked.notify(3, call_id="strange", send=writer.write)  # is counted; the stray NOTIFY was read before
        await until_refused(watcher, "another-dialog")
        asked.notify(2)
        await until(lambda: len(observer.bodies(address)) == 2)
        assert observer.bodies(address) == [OPEN, OPEN]
        writer.close()


# The source of answers


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "401 Unauthorized", "183 Session Progress"])
async def test_answer_from_elsewhere(status: str) -> None:
    """An answer from another address, with the right branch, tags and Call-ID, ends no transaction; the server's own
    answer does."""
    async with scene("udp") as (_, watcher, observer, address, asked):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            asked.answer(status, tag="forged", send=datagrams(watcher, stranger))
            await until_refused(watcher, "answer-from-elsewhere")
        assert address not in observer.reported
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        assert observer.reported[address] == [OPEN, LIVE]


@pytest.mark.parametrize("networks", ["", "127.0.0.0/8"])
async def test_answer_over_another_transport(transport: str, networks: str) -> None:
    """A request over UDP is not answered over TCP, nor the other way round: a party that can forge the server's address
    in a datagram cannot send on a connection of the server."""
    async with scene(transport, sip_answers_from=networks) as (_, watcher, observer, address, asked):
        _, writer = await asyncio.open_connection("127.0.0.1", watcher.ports["tcp"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            asked.answer("404 Not Found", send=writer.write if transport == "udp" else datagrams(watcher, stranger))
            await until_refused(watcher, "answer-from-elsewhere")
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        assert observer.reported[address] == [OPEN, LIVE]
        writer.close()


@pytest.mark.parametrize(("networks", "counts"), [("127.0.0.0/8,10.0.0.0/8", True), ("10.0.0.0/8", False)])
async def test_answers_from_named_networks(networks: str, counts: bool) -> None:
    """Answers from networks that the operator names count too."""
    async with scene("udp", sip_answers_from=networks) as (_, watcher, observer, address, asked):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.2", 0))
            asked.answer("404 Not Found", send=datagrams(watcher, other))
            if counts:
                await until(lambda: observer.reasons.get(address) == "404 Not Found")
            else:
                await until_refused(watcher, "answer-from-elsewhere")
                assert address not in observer.reported


async def test_late_and_repeated_answers_are_not_counted() -> None:
    """A repeated answer, and an answer that is no longer awaited, do not count as refused."""
    async with scene("udp") as (server, watcher, observer, address, asked):
        for _ in range(3):
            asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        await refresh(watcher, address)
        (await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))).answer()
        asked.answer()
        asked.notify(2, call_id="strange")
        await until_refused(watcher, "another-dialog")
        assert watcher.counts().refused == {"another-dialog": 1}


async def test_registration_and_public_host(transport: str) -> None:
    """Where the watcher registers and has a public host, NOTIFYs still reach the dialogs' own Contacts."""
    async with ScriptedNotifier(transport) as server:
        settings: dict[str, Any] = {
            "sip_registrar": f"sip:{server.host};transport={transport}",
            "sip_public_host": "localhost",
            "watcher_identity": "sip:gateway@home.example",
        }
        async with watching(server.uri, **settings) as (watcher, observer):
            register, send = await server.receive(lambda message: message.method == "REGISTER")
            Asked(register, send, server.host, transport.upper()).answer("200 OK", f"Contact: {register['contact']}")
            await until(lambda: watcher.counts().registered)
            address = terminal()
            watcher.watch(address)
            asked = await server.asked()
            assert f"@localhost:{watcher.ports[transport]}" in asked.request.contact_uri
            assert asked.request.contact_uri.partition("@")[0] != register.contact_uri.partition("@")[0]
            asked.answer()
            asked.notify(1)
            await until(lambda: observer.live([address]))


# The NOTIFY makes the dialog


def routed(message: Any) -> list[str]:
    return [value for line in message.all("route") for value in line.split(",")]


async def refreshed(server: ScriptedNotifier, watcher: SipWatcher, address: TerminalAddress, before: Asked) -> Asked:
    """Forces a refresh, and answers it in its dialog."""
    await refresh(watcher, address)
    again = await server.asked(cseq_after=int(before.request["cseq"].split()[0]))
    assert again.request["call-id"] == before.request["call-id"]
    again.answer(tag=again.request.to_tag)
    return again


@pytest.mark.parametrize("first", ["200", "NOTIFY"])
async def test_notify_with_another_tag_than_the_200(transport: str, first: str) -> None:
    """Behind a forking proxy or a B2BUA the NOTIFY's tag makes the dialog, whichever message comes first. Changes and
    refreshes belong to this dialog, and refreshes go to the NOTIFY's Contact."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        if first == "200":
            asked.answer(tag="b")
        asked.notify(1, tag="a")
        await until(lambda: len(observer.bodies(address)) == 1)
        if first != "200":
            asked.answer(tag="b")
        asked.notify(2, BUSY, tag="a")
        await until(lambda: observer.bodies(address) == [OPEN, BUSY])
        assert [await server.notify_answer(cseq) for cseq in (1, 2)] == [200, 200]
        await until(lambda: observer.live([address]))
        for _ in range(2):
            asked = await refreshed(server, watcher, address, asked)
            assert asked.request.to_tag == "a"
            assert asked.request.start == f"SUBSCRIBE sip:a@{server.host} SIP/2.0"
        asked.notify(3, OPEN, tag="a")
        await until(lambda: observer.bodies(address) == [OPEN, BUSY, OPEN])
        assert STALE not in observer.reported[address]
        watcher.unwatch(address)
        last = await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))
        assert (last.request.to_tag, last.request["expires"]) == ("a", "0")


@pytest.mark.parametrize("first", ["200", "NOTIFY"])
async def test_third_tag(transport: str, first: str) -> None:
    """Once a NOTIFY has made the dialog, a NOTIFY with another tag is from a fork: it is answered 481 and counted, and
    the watch does not change."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        if first == "200":
            asked.answer(tag="b")
        asked.notify(1, tag="a")
        await until(lambda: len(observer.bodies(address)) == 1)
        if first != "200":
            asked.answer(tag="b")
        for number, tag in enumerate(("b", "c"), start=10):
            asked.notify(number, BUSY, tag=tag)
            assert await server.notify_answer(number) == 481
        await until_refused(watcher, "third-tag", 2)
        asked.notify(2, tag="a")
        await until(lambda: len(observer.bodies(address)) == 2)
        assert observer.reported[address] == [OPEN, LIVE, OPEN]
        assert watcher.counts().subscribes_sent == 1


@pytest.mark.parametrize("first", ["200", "NOTIFY"])
@pytest.mark.parametrize("tag", ["a", "b"])
async def test_record_route_only_in_the_notify(transport: str, first: str, tag: str) -> None:
    """The route set is the NOTIFY's Record-Route in its order; refreshes and the unsubscribe use it."""
    async with scene(transport) as (_, watcher, observer, address, asked), ScriptedNotifier(transport) as proxy:
        one, two = f"<{proxy.uri};lr>", "<sip:inner.example;lr>"
        contact = "Contact: <sip:a@192.0.2.1:9>"
        if first == "200":
            asked.answer("200 OK", contact, tag=tag)
        asked.notify(1, OPEN, f"Record-Route: {one}, {two}", contact, tag="a")
        await until(lambda: len(observer.bodies(address)) == 1)
        if first != "200":
            asked.answer("200 OK", contact, tag=tag)
        await until(lambda: observer.live([address]))
        cseq = int(asked.request["cseq"].split()[0])
        for count in (1, 2):
            await refresh(watcher, address)
            again = await proxy.asked(cseq_after=cseq)
            cseq = int(again.request["cseq"].split()[0])
            assert routed(again.request) == [one, two]
            assert again.request.start == "SUBSCRIBE sip:a@192.0.2.1:9 SIP/2.0"
            again.answer("200 OK", contact, tag="a")
            again.notify(1 + count, OPEN, contact, tag="a")
            await until(lambda count=count: len(observer.bodies(address)) == 1 + count)  # type: ignore[misc]  # mypy: lambda
        watcher.unwatch(address)
        assert routed((await proxy.asked(cseq_after=cseq)).request) == [one, two]


async def test_record_route_only_in_the_200(transport: str) -> None:
    """Where the NOTIFY has no Record-Route, the 200's is used in reverse order, whether it comes before or after the
    NOTIFY."""
    for first in ("200", "NOTIFY"):
        async with scene(transport) as (server, watcher, observer, address, asked):
            record = f"Record-Route: <sip:inner.example;lr>, <{server.uri};lr>"
            if first == "200":
                asked.answer("200 OK", record)
            asked.notify(1)
            await until(lambda: len(observer.bodies(address)) == 1)
            if first != "200":
                asked.answer("200 OK", record)
            asked.notify(2)
            await until(lambda: len(observer.bodies(address)) == 2)
            again = await refreshed(server, watcher, address, asked)
            assert routed(again.request) == [f"<{server.uri};lr>", "<sip:inner.example;lr>"]


async def test_record_route_in_both(transport: str) -> None:
    """The NOTIFY's Record-Route is used."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.notify(1, OPEN, f"Record-Route: <{server.uri};lr>", "Record-Route: <sip:notify.example;lr>")
        await until(lambda: len(observer.bodies(address)) == 1)
        asked.answer("200 OK", f"Record-Route: <sip:answer.example;lr>, <{server.uri};lr>")
        asked.notify(2)
        await until(lambda: len(observer.bodies(address)) == 2)
        again = await refreshed(server, watcher, address, asked)
        assert routed(again.request) == [f"<{server.uri};lr>", "<sip:notify.example;lr>"]


@pytest.mark.parametrize("first", ["200", "NOTIFY", "183"])
async def test_fetch_behind_a_fork(transport: str, first: str) -> None:
    """A fetch is answered by the NOTIFY, whatever tag an earlier response had."""
    async with ScriptedNotifier(transport) as server, watching(server.uri) as (watcher, _):
        fetch = asyncio.ensure_future(watcher.fetch(terminal()))
        asked = await server.asked()
        if first != "NOTIFY":
            asked.answer("200 OK" if first == "200" else "183 Session Progress", tag="b")
        asked.notify(1, BUSY, tag="a", state="terminated;reason=timeout")
        async with asyncio.timeout(DEADLINE_S):
            assert (await fetch).body == BUSY
        assert await server.notify_answer(1) == 200


async def test_notify_without_a_2xx_then_refresh(transport: str) -> None:
    """Where the first 2xx answers a refresh, with a third tag, it does not change the dialog that the NOTIFY made."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer("183 Session Progress", tag="c")
        asked.notify(1, OPEN, f"Record-Route: <{server.uri};lr>", tag="a")
        await until(lambda: len(observer.bodies(address)) == 1)
        asked.answer("182 Queued", tag="d")
        asked.answer("500 Server Error", tag="e")
        await until(lambda: watcher.counts().failures.get("500") == 1)
        again = await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))
        assert (again.request.to_tag, routed(again.request)) == ("a", [f"<{server.uri};lr>"])
        again.answer(tag="a")
        asked.notify(2, BUSY, tag="a")
        await until(lambda: observer.bodies(address) == [OPEN, BUSY])
