"""The watcher with a real PJSIP worker against the sandbox notifier: what goes over the wire, and what it survives."""

import asyncio
import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from app.config import Settings
from app.domain import PresenceUnavailable, TerminalAddress, WatcherRestarting, parse_address
from app.main import sip_configuration
from app.sandbox import Sandbox
from app.sip.client import SipWatcher, WatcherCannotStart
from app.sip.frames import Configure, Fetch, encode
from tests.conftest import settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALICE = parse_address("sip:alice@example.com")
SILENT = parse_address("sip:silent@example.com")
DEADLINE_S = 5.0


def configuration(presence_server: str, **changes: object) -> Configure:
    settings: Settings = settings_for(presence_server, **changes)
    return sip_configuration(settings)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for the condition, at most DEADLINE_S."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in another process or socket
            await asyncio.sleep(0.002)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def watcher(sandbox: Sandbox) -> AsyncIterator[SipWatcher]:
    running = SipWatcher(configuration(sandbox.uri))
    await running.start()
    yield running
    await running.aclose()


async def test_build_is_checked(watcher: SipWatcher) -> None:
    """The worker reports the PJSIP it found and its limits, read off the library itself."""
    assert watcher.build is not None
    assert (watcher.build.version, watcher.build.ipv6, watcher.build.tls) == ("2.15.1", False, "1.2")
    assert (watcher.build.max_message_bytes, watcher.build.max_uri_bytes, watcher.build.max_sockets) == (4000, 256, 64)


async def test_fetch_is_one_subscribe_and_an_answered_notify(sandbox: Sandbox, watcher: SipWatcher) -> None:
    """A fetch is one SUBSCRIBE with Expires 0, whose NOTIFY is answered 200, and leaves no subscription behind."""
    address = parse_address("sip:terminal-1@example.com")
    answered = sandbox.counters.notify_answers[200]
    notification = await watcher.fetch(address)
    await until(lambda: sandbox.counters.notify_answers[200] == answered + 1)
    assert sandbox.counters.subscribes[address] == 1
    assert sandbox.counters.notifies[address] == 1
    assert sandbox.subscriptions.get(address, 0) == 0
    assert notification.content_type == "application/pidf+xml"
    assert b"<basic>open</basic>" in notification.body


async def test_interval_too_brief(sandbox: Sandbox, watcher: SipWatcher) -> None:
    """423 is asked again once with Min-Expires, and the subscription so made is ended."""
    address = parse_address("sip:answer-423@example.com")
    before = sandbox.counters.subscribes[address]
    await watcher.fetch(address)
    await until(lambda: sandbox.counters.subscribes[address] == before + 3)  # refused, granted, ended
    await until(lambda: sandbox.subscriptions.get(address, 0) == 0)


async def test_longest_address(sandbox: Sandbox, watcher: SipWatcher) -> None:
    """An address of the greatest length allowed is carried to the presence server whole."""
    address = parse_address(f"sip:terminal-7@{'a' * 60}.{'b' * 60}.{'c' * 61}.d")
    assert len(address) == 200
    await watcher.fetch(address)
    assert sandbox.counters.subscribes[address] == 1


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_headers_on_the_wire(transport: str) -> None:
    """SUBSCRIBE names the presentity, the watcher, the Route, the asserted identity and a Contact we listen on."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[str] = loop.create_future()

    class Server(asyncio.Protocol, asyncio.DatagramProtocol):
        def data_received(self, data: bytes) -> None:
            if not received.done():
                received.set_result(data.decode())

        def datagram_received(self, data: bytes, _addr: object) -> None:
            self.data_received(data)

    port: int
    closer: asyncio.Server | asyncio.DatagramTransport
    if transport == "udp":
        closer, _ = await loop.create_datagram_endpoint(Server, ("127.0.0.1", 0))
        port = closer.get_extra_info("sockname")[1]
    else:
        closer = await loop.create_server(Server, "127.0.0.1", 0)
        port = closer.sockets[0].getsockname()[1]
    watcher = SipWatcher(
        configuration(
            f"sip:127.0.0.1:{port};transport={transport}",
            watcher_identity="sip:gateway@example.net",
            asserted_identity="tel:+15551234",
        )
    )
    await watcher.start()
    fetch = asyncio.create_task(watcher.fetch(parse_address("tel:+1-555-99")))
    async with asyncio.timeout(DEADLINE_S):
        head = await received
    fetch.cancel()
    await asyncio.gather(fetch, return_exceptions=True)
    await watcher.aclose()
    closer.close()
    suffix = ";transport=tcp" if transport == "tcp" else ""
    lines = head.split("\r\n")
    assert lines[0] == "SUBSCRIBE tel:+155599 SIP/2.0"
    assert f"Route: <sip:127.0.0.1:{port};transport={transport};lr>" in lines
    assert f"Contact: <sip:watcher@127.0.0.1:{watcher.ports[transport]}{suffix}>" in lines
    assert "To: <tel:+155599>" in lines
    assert [line for line in lines if line.startswith("From: <sip:gateway@example.net>;tag=")]
    assert {"Event: presence", "Expires: 0", "P-Asserted-Identity: <tel:+15551234>"} <= set(lines)


async def test_giving_up_is_silent(watcher: SipWatcher) -> None:
    """A cancelled fetch stops retransmitting: nothing of it is left in the worker."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        lonely = SipWatcher(configuration(f"sip:127.0.0.1:{mute.getsockname()[1]}"))
        await lonely.start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await lonely.fetch(ALICE)
        mute.settimeout(1.2)  # T1 is 500 ms: a transaction still alive sends again within that
        assert mute.recv(65536).startswith(b"SUBSCRIBE sip:alice@example.com")
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(mute.recv, 65536)
        await lonely.aclose()


async def test_killed_worker(sandbox: Sandbox, watcher: SipWatcher) -> None:
    """A killed worker is replaced; the query in flight fails retryably, and the next is answered."""
    in_flight = asyncio.create_task(watcher.fetch(SILENT))
    before = sandbox.counters.subscribes[SILENT]
    await until(lambda: sandbox.counters.subscribes[SILENT] == before + 1)
    pid = watcher.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WatcherRestarting) as caught:
        await in_flight
    assert caught.value.retryable
    assert caught.value.retry_after_s == 1
    await until(lambda: watcher.worker_pid not in {pid, None})
    assert (await watcher.fetch(ALICE)).body


async def test_stopped_worker(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that no longer answers is killed and replaced."""
    monkeypatch.setattr("app.sip.client.PING_EVERY_S", 0.05)
    monkeypatch.setattr("app.sip.client.HANG_LIMIT_S", 0.2)
    hanging = SipWatcher(configuration(sandbox.uri))
    await hanging.start()
    pid = hanging.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: hanging.worker_pid not in {pid, None})
    assert (await hanging.fetch(ALICE)).body
    await hanging.aclose()


async def test_thousand_at_once(sandbox: Sandbox, watcher: SipWatcher) -> None:
    """A thousand concurrent fetches are all answered."""
    addresses = [parse_address(f"sip:terminal-{number}@burst.example.com") for number in range(1000)]
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*map(watcher.fetch, addresses))
    assert all(answer.body for answer in answers)
    assert {sandbox.counters.subscribes[address] for address in addresses} == {1}


@pytest.mark.parametrize(
    "method",
    ["OPTIONS", "MESSAGE", "SUBSCRIBE", "INVITE", "REGISTER", "PUBLISH", "NOTIFY", "NONSENSE"],
)
async def test_strangers_are_swallowed(watcher: SipWatcher, method: str) -> None:
    """A request that is no in-dialog NOTIFY gets no answer and does no harm."""
    request = (
        f"{method} sip:watcher@127.0.0.1 SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP 127.0.0.1:{{port}};branch=z9hG4bK{method}\r\n"
        f"From: <sip:x@example.com>;tag=x\r\nTo: <sip:watcher@127.0.0.1>\r\nCall-ID: {method}@x\r\n"
        f"CSeq: 1 {method}\r\nContact: <sip:x@127.0.0.1>\r\nEvent: presence\r\nExpires: 60\r\nMax-Forwards: 70\r\n"
        "Subscription-State: active\r\nContent-Length: 0\r\n\r\n"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.settimeout(0.2)
        message = request.format(port=stranger.getsockname()[1]).encode()
        stranger.sendto(message, ("127.0.0.1", watcher.ports["udp"]))
        assert (await watcher.fetch(ALICE)).body  # it was read before this answer came
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(stranger.recv, 65536)


async def test_presence_server_away() -> None:
    """Where nothing listens, TCP says so at once and the error is retryable."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = SipWatcher(configuration(f"sip:127.0.0.1:{closed.getsockname()[1]};transport=tcp"))
        await nobody.start()
        with pytest.raises(PresenceUnavailable) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await nobody.fetch(ALICE)
        assert caught.value.retryable
        await nobody.aclose()


async def test_taken_sip_port() -> None:
    """A SIP port that is taken stops the start, and the message names it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(WatcherCannotStart, match=f"127.0.0.1:{port}"):
            await SipWatcher(configuration("sip:127.0.0.1", sip_listen=f"127.0.0.1:{port}")).start()


async def test_orphaned_worker_leaves() -> None:
    """A worker whose gateway is gone ends by itself."""
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.sip.worker", str(number), pass_fds=[number]
    )
    theirs.close()
    ours.close()
    async with asyncio.timeout(DEADLINE_S):
        assert await worker.wait() == 0


async def test_high_descriptor(sandbox: Sandbox) -> None:
    """A gateway with thousands of open files still starts a worker, whose select takes descriptors below 1024 only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    ours, theirs = socket.socketpair()
    high = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, 2000)
    theirs.close()
    try:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app.sip.worker", str(high), pass_fds=[high]
        )
        ours.sendall(encode([configuration(sandbox.uri), Fetch(1, ALICE)]))
        ours.settimeout(DEADLINE_S)
        received = b""
        while b"notified" not in received:
            received += await asyncio.to_thread(ours.recv, 65536)
    finally:
        os.close(high)
        ours.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    async with asyncio.timeout(DEADLINE_S):
        assert await worker.wait() == 0


async def test_unknown_address_type_is_no_crash(watcher: SipWatcher) -> None:
    """An address that PJSIP itself refuses is an error of that query, not the worker's end."""
    pid = watcher.worker_pid
    with pytest.raises(PresenceUnavailable):
        await watcher.fetch(TerminalAddress("sip:%%%@@"))
    assert (await watcher.fetch(ALICE)).body
    assert watcher.worker_pid == pid
