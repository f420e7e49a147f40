"""The watcher with a real PJSIP worker against the sandbox notifier: what it sends, and what it survives."""

import asyncio
import errno
import fcntl
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import NoReturn, cast

import pytest
import pytest_asyncio

from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import (
    DocumentUnreadable,
    InvalidAddress,
    PresenceUnavailable,
    TerminalUnknown,
    WatcherRefused,
    WatcherRestarting,
)
from app.sandbox import Sandbox
from app.sip.protocol import Command, StartFetch, encode
from app.sip.watcher import SipWatcher, WatcherCannotStart
from tests.support.sip_watcher import configuration
from tests.support.waiting import DEADLINE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALICE = parse_address("sip:alice@example.com")
SILENT = parse_address("sip:silent@example.com")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def watcher(sandbox: Sandbox) -> AsyncIterator[SipWatcher]:
    running = SipWatcher(configuration(sandbox.uri))
    await running.start()
    yield running
    await running.aclose()


async def test_build_is_checked(watcher: SipWatcher) -> None:
    """The worker reports the version of PJSIP and its limits, as read from the library."""
    assert watcher.build is not None
    assert (watcher.build.version, watcher.build.ipv6, watcher.build.tls) == ("2.15.1", False, "1.2")
    assert (watcher.build.max_message_bytes, watcher.build.max_uri_bytes, watcher.build.max_sockets) == (4000, 256, 64)


async def test_fetch_is_one_subscribe_and_an_answered_notify(sandbox: Sandbox, watcher: SipWatcher) -> None:
    """A fetch is one SUBSCRIBE with Expires 0; its NOTIFY is answered 200, and no subscription stays."""
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
    """After a 423 the fetch is sent once more with Min-Expires, and the resulting subscription is ended."""
    address = parse_address("sip:answer-423@example.com")
    before = sandbox.counters.subscribes[address]
    await watcher.fetch(address)
    await until(lambda: sandbox.counters.subscribes[address] == before + 3)  # refused, granted, ended
    await until(lambda: sandbox.subscriptions.get(address, 0) == 0)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_server_that_refuses_fetches(sandbox: Sandbox, transport: str) -> None:
    """A server built on belle-sip answers 481 to a fetch, which RFC 6665 section 4.4.3 allows. The fetch is sent once
    more with 60, and the subscription is ended; the next fetch asks with 60 at once."""
    one, other = (parse_address(f"sip:fetch-481@{transport}{number}.example.com") for number in (1, 2))
    watcher = SipWatcher(configuration(f"{sandbox.uri};transport={transport}"))
    await watcher.start()
    assert b"<basic>open</basic>" in (await watcher.fetch(one)).body
    await until(lambda: sandbox.counters.subscribes[one] == 3)  # refused, granted, ended
    assert b"<basic>open</basic>" in (await watcher.fetch(other)).body
    await until(lambda: sandbox.counters.subscribes[other] == 2)  # granted, ended
    await until(lambda: not {one, other} & sandbox.subscriptions.keys())
    await watcher.aclose()


async def test_server_that_answers_481_for_ever(sandbox: Sandbox) -> None:
    """A fetch is repeated once after a 481; the second one is its answer."""
    address = parse_address("sip:answer-481@example.com")
    watcher = SipWatcher(configuration(sandbox.uri))
    await watcher.start()
    for asked in (2, 3):
        with pytest.raises(PresenceUnavailable, match="481"):
            await watcher.fetch(address)
        assert sandbox.counters.subscribes[address] == asked
    await watcher.aclose()


async def test_longest_address(sandbox: Sandbox, watcher: SipWatcher) -> None:
    """An address of the maximum length reaches the presence server whole."""
    address = parse_address(f"sip:terminal-7@{'a' * 60}.{'b' * 60}.{'c' * 61}.d")
    assert len(address) == 200
    await watcher.fetch(address)
    assert sandbox.counters.subscribes[address] == 1


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_headers_on_the_wire(transport: str) -> None:
    """A SUBSCRIBE has the presentity, the watcher, the Route, the asserted identity, and a Contact that the worker
    listens on."""
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
    fetch = asyncio.ensure_future(watcher.fetch(parse_address("tel:+1-555-99")))
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
    contact = rf"Contact: <sip:watcher-[0-9a-f]{{48}}@127\.0\.0\.1:{watcher.ports[transport]}{suffix}>"
    assert [line for line in lines if re.fullmatch(contact, line)]
    assert "To: <tel:+155599>" in lines
    assert [line for line in lines if line.startswith("From: <sip:gateway@example.net>;tag=")]
    assert {"Event: presence", "Expires: 0", "P-Asserted-Identity: <tel:+15551234>"} <= set(lines)


async def test_giving_up_is_silent(watcher: SipWatcher) -> None:
    """A cancelled fetch is not retransmitted, and leaves nothing in the worker."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        lonely = SipWatcher(configuration(f"sip:127.0.0.1:{mute.getsockname()[1]}"))
        await lonely.start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await lonely.fetch(ALICE)
        mute.settimeout(1.2)  # T1 is 500 ms: a live transaction would send again within that time
        assert mute.recv(65536).startswith(b"SUBSCRIBE sip:alice@example.com")
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(mute.recv, 65536)
        await lonely.aclose()


async def test_killed_worker(sandbox: Sandbox, watcher: SipWatcher) -> None:
    """A killed worker is replaced; the query in flight fails retryably, and the next is answered."""
    in_flight = asyncio.ensure_future(watcher.fetch(SILENT))
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
    monkeypatch.setattr("app.sip.supervisor.PING_EVERY_S", 0.05)
    monkeypatch.setattr("app.sip.supervisor.HANG_LIMIT_S", 0.2)
    hanging = SipWatcher(configuration(sandbox.uri))
    await hanging.start()
    pid = hanging.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: hanging.worker_pid not in {pid, None})
    assert (await hanging.fetch(ALICE)).body
    await hanging.aclose()


async def test_worker_has_its_time_after_a_pause_of_ours(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause of the gateway that is longer than a worker may be silent, the gateway asks its worker before it
    replaces it."""
    monkeypatch.setattr("app.sip.supervisor.PING_EVERY_S", 0.05)
    monkeypatch.setattr("app.sip.supervisor.HANG_LIMIT_S", 0.2)
    watcher, restarts = (
        SipWatcher(configuration(sandbox.uri), on_worker_replaced=lambda: restarts.append(1)),
        list[int](),
    )
    await watcher.start()
    pid = watcher.worker_pid
    for _ in range(5):
        time.sleep(0.5)  # noqa: ASYNC251  # as SIGSTOP stops the loop, and not the worker
        assert (await watcher.fetch(ALICE)).body
    assert (watcher.worker_pid, restarts) == (pid, [])
    await watcher.aclose()


async def test_thousand_at_once(sandbox: Sandbox, watcher: SipWatcher) -> None:
    """A thousand concurrent fetches are all answered."""
    addresses = [parse_address(f"sip:terminal-{number}@burst.example.com") for number in range(1000)]
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*map(watcher.fetch, addresses))
    assert all(answer.body for answer in answers)
    assert {sandbox.counters.subscribes[address] for address in addresses} == {1}


@pytest.mark.parametrize("to", ["", ";tag=strange"])
@pytest.mark.parametrize("via", ["127.0.0.1:{port}", "x;maddr=127.0.0.1;rport"])
@pytest.mark.parametrize(
    "method", ["OPTIONS", "MESSAGE", "SUBSCRIBE", "INVITE", "REGISTER", "PUBLISH", "NOTIFY", "NONSENSE"]
)
async def test_strangers_are_swallowed(watcher: SipWatcher, method: str, via: str, to: str) -> None:
    """A request that is not a NOTIFY to our Contact gets no answer and has no effect."""
    request = (
        f"{method} sip:watcher@127.0.0.1 SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP {via};branch=z9hG4bK{method}\r\n"
        f"From: <sip:x@example.com>;tag=x\r\nTo: <sip:watcher@127.0.0.1>{to}\r\nCall-ID: {method}@x\r\n"
        f"CSeq: 1 {method}\r\nContact: <sip:x@127.0.0.1>\r\nEvent: presence\r\nExpires: 60\r\nMax-Forwards: 70\r\n"
        "Subscription-State: active\r\nContent-Length: 0\r\n\r\n"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.settimeout(0.1)
        message = request.replace("{port}", str(stranger.getsockname()[1])).encode()
        stranger.sendto(message, ("127.0.0.1", watcher.ports["udp"]))
        assert (await watcher.fetch(ALICE)).body  # the stranger's request was read before this answer came
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(stranger.recv, 65536)


async def test_slow_name_in_a_strangers_via(sandbox: Sandbox, watcher: SipWatcher) -> None:
    """A name in a NOTIFY's Via is never looked up: a slow look-up would block the worker."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(
            b"NOTIFY sip:watcher@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP x;maddr=slow.invalid;branch=z9hG4bK1\r\n"
            b"From: <sip:x@e>;tag=x\r\nTo: <sip:w@127.0.0.1>;tag=z\r\nCall-ID: slow\r\nCSeq: 1 NOTIFY\r\n"
            b"Event: presence\r\nSubscription-State: active\r\nContent-Length: 0\r\n\r\n",
            ("127.0.0.1", watcher.ports["udp"]),
        )
    async with asyncio.timeout(1):
        assert (await watcher.fetch(ALICE)).body


class HostileServer(asyncio.DatagramProtocol):
    """Answers each SUBSCRIBE with these bytes; `@` stands for the header fields that a response repeats."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        repeated = [
            line for line in data.split(b"\r\n") if line.startswith((b"Via", b"From", b"To", b"Call-ID", b"CSeq"))
        ]
        if data.startswith(b"SUBSCRIBE"):
            self.transport.sendto(self._answer.replace(b"@", b"\r\n".join(repeated)), addr)


@pytest.mark.parametrize(
    ("answer", "reported"),
    [
        (b"SIP/2.0 404 Nicht gefunden \xfc\r\n@\r\nContent-Length: 0\r\n\r\n", "404 Nicht gefunden ?"),
        (b"SIP/2.0 404 \x1b[31mred\x1b[0m\r\n@\r\nContent-Length: 0\r\n\r\n", "404 ?[31mred?[0m"),
        (b"SIP/2.0 404 " + b"x" * 2000 + b"\r\n@\r\nContent-Length: 0\r\n\r\n", "404 " + "x" * 100 + "."),
    ],
    ids=["latin-1", "escape", "long"],
)
async def test_hostile_phrase(answer: bytes, reported: str) -> None:
    """Whatever bytes a reason phrase has, the worker lives and the caller gets printable ASCII."""
    server, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: HostileServer(answer), ("127.0.0.1", 0)
    )
    watcher = SipWatcher(configuration(f"sip:127.0.0.1:{server.get_extra_info('sockname')[1]}"))
    await watcher.start()
    pid = watcher.worker_pid
    for _ in range(2):
        with pytest.raises(TerminalUnknown) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await watcher.fetch(ALICE)
        assert reported in str(caught.value)
    assert watcher.worker_pid == pid
    await watcher.aclose()
    server.close()


@pytest.mark.parametrize("field", ["content_type", "content_encoding"])
async def test_hostile_header_fields(sandbox: Sandbox, watcher: SipWatcher, field: str) -> None:
    """Bytes that are not UTF-8 in a NOTIFY's header fields arrive as question marks, and the worker lives."""
    pid = watcher.worker_pid
    sandbox.set_document("hostile", b"<x/>", **{field: 'application/x;p="\xff"'})
    notification = await watcher.fetch(parse_address("sip:hostile@example.com"))
    assert 'p="?' in getattr(notification, field)
    assert watcher.worker_pid == pid


async def test_large_documents_over_tcp(sandbox: Sandbox) -> None:
    """Documents of up to a megabyte arrive whole over TCP, among small ones on the same connection."""
    streaming = SipWatcher(configuration(f"{sandbox.uri};transport=tcp"))
    await streaming.start()
    sizes = [3700, 500, 4100, 400_000, 2500, 1_000_000, 9000, 500] * 4
    addresses = [parse_address(f"sip:document-big-{size}@{number}.example.com") for number, size in enumerate(sizes)]
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*map(streaming.fetch, addresses))
    assert [len(answer.body) for answer in answers] == sizes
    assert all(answer.body.endswith(b"</presence>") for answer in answers)
    with pytest.raises(DocumentUnreadable, match="of 1100000 bytes"):
        await streaming.fetch(parse_address("sip:document-big-1100000@example.com"))
    assert (await streaming.fetch(ALICE)).body
    await streaming.aclose()


async def test_active_answer_to_a_fetch(sandbox: Sandbox) -> None:
    """Where the server calls a fetched subscription active, nothing stays in the worker."""
    keeping = SipWatcher(configuration(sandbox.uri))
    await keeping.start()
    for _ in range(3):
        with pytest.raises(WatcherRefused):
            await keeping.fetch(parse_address("sip:pending@example.com"))
    await keeping.aclose()


async def test_no_descriptors_left(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that cannot start a worker for lack of file descriptors tries again until it can."""
    poor = SipWatcher(configuration(sandbox.uri))
    await poor.start()
    pid = poor.worker_pid
    assert pid is not None
    refused = asyncio.Event()

    def none_left(*_: object, **__: object) -> NoReturn:
        refused.set()
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("app.sip.worker_process.subprocess.Popen", none_left)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE_S):
            await refused.wait()
        with pytest.raises(WatcherRestarting):
            await poor.fetch(ALICE)
    await until(lambda: poor.worker_pid not in {pid, None})
    assert (await poor.fetch(ALICE)).body
    await poor.aclose()


async def test_sigterm_leaves_the_worker(watcher: SipWatcher) -> None:
    """A signal to the whole process group, as service managers send it, does not end the worker before its gateway."""
    pid = watcher.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert (await watcher.fetch(ALICE)).body
    assert watcher.worker_pid == pid


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ("library.SUPPORTED_VERSION = '2.14'", "PJSIP 2.15.1 was found; this gateway supports 2.14 only"),
        ("library._CDEF += 'int pjsip_no_such_call(void);'", "lacks the symbols pjsip_no_such_call"),
    ],
)
async def test_other_builds_are_refused(patch: str, said: str) -> None:
    """A PJSIP of another version, or without a required function, is refused with the reason."""
    code = f"from app.sip.pjsip import library; {patch}; library.load_library()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE)
    _, error = await process.communicate()
    assert process.returncode == 1
    assert said in error.decode()


async def test_presence_server_away() -> None:
    """Where no server listens, TCP fails at once with a retryable error."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = SipWatcher(configuration(f"sip:127.0.0.1:{closed.getsockname()[1]};transport=tcp"))
        await nobody.start()
        with pytest.raises(PresenceUnavailable) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await nobody.fetch(ALICE)
        assert caught.value.retryable
        await nobody.aclose()


async def test_one_port_for_udp_and_tcp(sandbox: Sandbox) -> None:
    """Where the operator names no port, UDP and TCP share one, as RFC 3261 section 18.1.1 expects of a UDP port."""
    watcher = SipWatcher(configuration(sandbox.uri), workers=2)
    await watcher.start()
    assert watcher.ports["udp"] == watcher.ports["tcp"]
    assert (await watcher.fetch(ALICE)).body
    await watcher.aclose()


async def test_taken_sip_port() -> None:
    """A SIP port that is in use stops the start, with the port in the message."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(WatcherCannotStart, match=f"127.0.0.1:{port}"):
            await SipWatcher(configuration("sip:127.0.0.1", sip_listen=f"127.0.0.1:{port}")).start()


async def test_orphaned_worker_leaves() -> None:
    """A worker whose gateway has died ends by itself."""
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "app.sip.worker.main", str(number), pass_fds=[number]
    )
    theirs.close()
    ours.close()
    async with asyncio.timeout(DEADLINE_S):
        assert await worker.wait() == 0


async def test_high_descriptor(sandbox: Sandbox) -> None:
    """A gateway with thousands of open files can still start a worker, whose select needs descriptors below 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    ours, theirs = socket.socketpair()
    high = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, 2000)
    theirs.close()
    try:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "app.sip.worker.main", str(high), pass_fds=[high]
        )
        commands: list[Command] = [configuration(sandbox.uri), StartFetch(1, ALICE)]
        ours.sendall(encode(commands))
        ours.settimeout(DEADLINE_S)
        received = b""
        while b"fetch-answered" not in received:
            received += await asyncio.to_thread(ours.recv, 65536)
    finally:
        os.close(high)
        ours.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    async with asyncio.timeout(DEADLINE_S):
        assert await worker.wait() == 0


@pytest.mark.parametrize(
    "address",
    [
        "sip:%%%@@",
        "sip:a@h;ttl=phone",
        # `parse_address` refuses these too, but an old database may have one.
        "sip:%2562ob@example.com",
        "sip:alice%2Fx@example.com",
        "sip:alice@example.com;method=invite",
        "sip:alice@example.com;transport=tcp;transport=udp",
        "sip:alice@example.com;x=%22%0d%0aevil:%201",
        "sip:alice@example.com;user=phone%0d%0aevil:%201",
        "tel:+1555;x%0d%0aevil=1",
    ],
)
async def test_address_that_pjsip_refuses(watcher: SipWatcher, address: str) -> None:
    """An address that PJSIP cannot read, or would write differently, is an error for its caller, and the worker
    lives."""
    pid = watcher.worker_pid
    with pytest.raises(InvalidAddress):
        await watcher.fetch(TerminalAddress(address))
    assert (await watcher.fetch(ALICE)).body
    assert watcher.worker_pid == pid
