"""The routes to the presence servers: several servers, SRV records, TLS, credentials, and the registration."""

import asyncio
import datetime
import hashlib
import ipaddress
import os
import re
import signal
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.domain.errors import PresenceMisconfigured, PresenceUnavailable, WatcherUnauthenticated
from app.domain.statuses import Liveness, Status
from app.domain.watches import WatchState
from app.sandbox import Sandbox
from app.sandbox.behaviours import DIGEST_PASSWORD, DIGEST_USER
from app.sandbox.exchange import Exchange
from app.sandbox.messages import Message
from app.sip.machine.timing import LONG_STOP_S
from app.sip.protocol import Route
from app.sip.watcher import SipWatcher
from tests.support.sip_notifier import ScriptedNotifier
from tests.support.sip_scene import refresh
from tests.support.sip_terminal import read
from tests.support.sip_watcher import Observer, started, terminal, until_seen, user_of, view, watching
from tests.support.waiting import DEADLINE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE, STALE, UNKNOWN = Liveness.LIVE, Liveness.STALE, Liveness.UNKNOWN
FAILOVER_S = 15.0


async def until_then(condition: Callable[[], bool]) -> None:
    """Waits, for as long as a failover may take."""
    async with asyncio.timeout(FAILOVER_S):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in another process or socket
            await asyncio.sleep(0.01)


def two() -> tuple[Sandbox, Sandbox]:
    return Sandbox(scripted=False), Sandbox(scripted=False)


# Several presence servers


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_failover_and_return(transport: str) -> None:
    """When the first server fails, fetches and watches move to the second, and back when the first returns; no change
    is reported.

    Over TCP the failure shows by the broken connection, over UDP by unanswered probes.
    """
    first, second = two()
    await first.start()
    async with second:
        servers = ",".join(f"{server.uri};transport={transport}" for server in (first, second))
        async with watching(servers, probe_every_s=1) as (watcher, observer):
            addresses = [terminal() for _ in range(20)]
            await started(watcher, observer, *addresses)
            assert set(first.subscriptions) == set(addresses)
            assert not second.subscriptions
            await until(lambda: first.counters.other["OPTIONS"] > 0 and second.counters.other["OPTIONS"] > 0)
            await first.stop()
            await until_then(lambda: set(second.subscriptions) == set(addresses) and observer.live(addresses))
            assert (await watcher.fetch(terminal())).body
            assert all(STALE in observer.reported[address] for address in addresses)
            await until(lambda: watcher.counts().routes_up == [False, True])
            assert {each.route.partition(";")[0] for each in await watcher.watches()} == {second.uri}
            async with Sandbox(port=first.port, scripted=False) as back:
                await until_then(lambda: set(back.subscriptions) == set(addresses) and observer.live(addresses))
                await until(lambda: watcher.counts().routes_up == [True, True])
                asked = terminal()
                assert (await watcher.fetch(asked)).body
                assert (back.counters.subscribes[asked], second.counters.subscribes[asked]) == (1, 0)
                back.set_status(user_of(addresses[0]), Status.BUSY)
                await until(lambda: b"phone" in observer.bodies(addresses[0])[-1])
            for address in addresses[1:]:
                assert len(set(observer.bodies(address))) == 1


async def test_only_server_comes_back(sandbox: Sandbox) -> None:
    """Where the only server is down, watches are STALE until it answers again, and then LIVE without any request from
    outside."""
    only = Sandbox(scripted=False)
    await only.start()
    async with watching(f"{only.uri};transport=tcp", probe_every_s=1) as (watcher, observer):
        addresses = [terminal() for _ in range(20)]
        await started(watcher, observer, *addresses)
        await only.stop()
        await until_then(lambda: all(observer.liveness(address) is STALE for address in addresses))
        with pytest.raises(PresenceUnavailable):
            await watcher.fetch(terminal())
        async with Sandbox(port=only.port, scripted=False) as back:
            await until_then(lambda: observer.live(addresses))
            await until(lambda: set(back.subscriptions) == set(addresses))
        assert {len(set(observer.bodies(address))) for address in addresses} == {1}


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_server_that_is_away_is_reported(transport: str) -> None:
    """A server that goes down or comes up causes one log line and is counted, even where it was never asked and never
    answered. A replaced worker does not report it again."""
    with socket.socket(type=socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    uri = f"sip:127.0.0.1:{port};transport={transport}"
    with structlog.testing.capture_logs() as logs:
        async with watching(uri, probe_every_s=1) as (watcher, _):
            assert watcher.presence_up
            await until_then(lambda: not watcher.presence_up)
            assert watcher.worker_pid is not None
            os.kill(watcher.worker_pid, signal.SIGKILL)
            await until_then(lambda: sum(each["event"] == "sip_worker_started" for each in logs) == 2)
            async with Sandbox(port=port, scripted=False) as back:
                await until_then(lambda: watcher.presence_up)
                assert back.counters.other["OPTIONS"] > 0
                assert watcher.counts().routes_up == [True]
            await until_then(lambda: not watcher.presence_up)
            assert watcher.route_changes == [3]
    lines = [each for each in logs if each["event"].startswith("presence_server_")]
    assert [each["event"].removeprefix("presence_server_") for each in lines] == ["down", "up", "down"]
    assert {each["route"].partition(";")[0] for each in lines} == {uri.partition(";")[0]}


@pytest.mark.parametrize("status", ["405 Method Not Allowed", "481 Subscription Does Not Exist", "200 OK"])
async def test_server_that_ignores_options_is_tried_by_a_fetch(status: str) -> None:
    """Any answer to the fetch means that the server is up; without an answer it is down, and up again at its next
    message."""

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
            self.transport, self.tried, self.options, self.speaks = transport, set[str](), 0, True

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.options += data.startswith(b"OPTIONS")
            if data.startswith(b"SUBSCRIBE"):
                message = read(data)
                assert message["expires"] == "0"
                self.tried.add(message["call-id"])
                if self.speaks:
                    self.transport.sendto(answered(data, status, "Expires: 0"), addr)

    closer, server = await asyncio.get_running_loop().create_datagram_endpoint(Server, ("127.0.0.1", 0))
    uri = f"sip:127.0.0.1:{closer.get_extra_info('sockname')[1]};transport=udp"
    async with watching(uri, probe_every_s=1) as (watcher, _):
        await until_then(lambda: len(server.tried) >= 2)
        assert (watcher.presence_up, watcher.route_changes) == (True, [0])
        server.speaks = False
        await until_then(lambda: not watcher.presence_up)
        server.speaks = True
        await until_then(lambda: watcher.presence_up)
        assert watcher.route_changes == [2]
        assert server.options > len(server.tried)
    closer.close()


async def test_connection_that_breaks(sandbox: Sandbox) -> None:
    """Where a server closes its connections and keeps its subscriptions, it is asked again; the watches stay LIVE."""
    async with watching(f"{sandbox.uri};transport=tcp", probe_every_s=0) as (watcher, observer):
        addresses = [terminal() for _ in range(10)]
        await started(watcher, observer, *addresses)
        for connection in list(sandbox._notifier.transport._connections):  # noqa: SLF001  # none other than ours
            connection.close()
        await until(lambda: all(sandbox.counters.subscribes[address] >= 2 for address in addresses))
        for address in addresses:
            sandbox.set_status(user_of(address), Status.BUSY)
        await until(lambda: all(b"phone" in observer.bodies(address)[-1] for address in addresses))
        assert {sandbox.subscriptions[address] for address in addresses} == {1}
        assert not any(STALE in observer.reported[address] for address in addresses)


async def test_server_that_answers_503_is_left() -> None:
    """Where the first server is overloaded, a watch and a fetch are tried at the next one."""
    first, second = two()
    async with first, second:
        servers = ",".join(f"{server.uri};transport=udp" for server in (first, second))
        async with watching(servers) as (watcher, observer):
            address = terminal()
            first.act_like(user_of(address), "answer-500")
            await started(watcher, observer, address)
            assert (await view(watcher, address)).route.startswith(second.uri)
            first.act_like(user_of(address), "answer-503")
            assert (await watcher.fetch(address)).body
            assert second.counters.subscribes[address] == 2


async def test_redirection_to_a_server_of_the_operator(transport: str) -> None:
    """A 3xx whose Contact names another server of `TS_PRESENCE_SERVER` is followed (RFC 3261 section 8.1.3.4), by a
    fetch and by a watch, and its refresh without a gap; the Request-URI stays the terminal's address."""
    async with (
        ScriptedNotifier(transport) as first,
        ScriptedNotifier(transport) as second,
        watching(f"{first.uri},{second.uri}") as (watcher, observer),
    ):
        address, moved = terminal(), f"Contact: <sip:alice@{second.host}>;q=0.9"
        fetch = asyncio.ensure_future(watcher.fetch(address))
        (await first.asked()).answer("302 Moved Temporarily", "Contact: <sip:192.0.2.1>", moved)
        asked = await second.asked()
        assert asked.request.start.split()[1] == address
        asked.answer()
        asked.notify(1, state="terminated;reason=timeout")
        assert (await fetch).body
        watcher.watch(address)
        (await first.asked()).answer("301 Moved Permanently", moved)
        asked = await second.asked(but=asked.request["call-id"])
        asked.answer()
        asked.notify(1)
        await until(lambda: observer.live([address]))
        assert (await view(watcher, address)).route.startswith(f"sip:{second.host}")
        await refresh(watcher, address)
        back = f"Contact: <sip:{first.host}>"
        refreshed = await second.asked(cseq_after=int(asked.request["cseq"].split()[0]))
        assert refreshed.request["call-id"] == asked.request["call-id"]
        refreshed.answer("302 Moved Temporarily", back)
        asked = await first.asked()
        assert observer.live([address])
        asked.answer()
        asked.notify(1)
        await until(lambda: len(observer.bodies(address)) == 2)
        assert (await view(watcher, address)).route.startswith(f"sip:{first.host}")
        assert STALE not in observer.reported[address]


async def test_redirection_that_is_not_followed(transport: str) -> None:
    """A 3xx to a foreign server and the second 3xx in a row are PRESENCE_MISCONFIGURED: no loop, and no SUBSCRIBE to a
    host that only the answer names (RFC 3261 section 8.1.3.4)."""
    async with (
        ScriptedNotifier(transport) as first,
        ScriptedNotifier(transport) as second,
        ScriptedNotifier(transport) as foreign,
        watching(f"{first.uri},{second.uri}") as (watcher, observer),
    ):
        fetch = asyncio.ensure_future(watcher.fetch(terminal()))
        (await first.asked()).answer("302 Moved Temporarily", f"Contact: <sip:{foreign.host}>")
        with pytest.raises(PresenceMisconfigured, match="302"):
            await fetch
        fetch = asyncio.ensure_future(watcher.fetch(terminal()))
        (await first.asked()).answer("302 Moved Temporarily", f"Contact: <sip:{second.host}>")
        (await second.asked()).answer("302 Moved Temporarily", f"Contact: <sip:{first.host}>")
        with pytest.raises(PresenceMisconfigured, match="302"):
            await fetch
        address = terminal()
        watcher.watch(address)
        (await first.asked()).answer("302 Moved Temporarily", f"Contact: <sip:{second.host}>")
        (await second.asked()).answer("305 Use Proxy", f"Contact: <sip:{first.host}>")
        await until(lambda: isinstance(observer.errors.get(address), PresenceMisconfigured))
        assert (await view(watcher, address)).code == 305
        with pytest.raises(TimeoutError):
            await foreign.receive(lambda _: True, 0.05)
        await until(lambda: watcher.counts().subscribes_sent == 5)


async def test_route_of_the_older_dialog_goes_down() -> None:
    """A second dialog at the next server is to replace one at the first server. If the first server fails meanwhile,
    the status is STALE as soon as that is noticed, and not only after the second dialog's vain wait for its NOTIFY
    (32 s)."""
    first, second = two()
    await first.start()
    async with second:
        servers = ",".join(f"{server.uri};transport=udp" for server in (first, second))
        async with watching(servers, probe_every_s=1) as (watcher, observer):
            omitting, address = terminal("refresh-200-3600"), terminal()
            await started(watcher, observer, omitting, address)
            watcher.refresh(omitting)  # so the gateway learns that the first server omits the NOTIFY
            await until(lambda: watcher.counts().omitted == [1, 0], 40)
            first.act_like(user_of(address), "answer-500")
            second.act_like(user_of(address), "notify-never")
            watcher.refresh(address)
            seen = await until_seen(watcher, address, lambda seen: seen.state is WatchState.ACCEPTED)
            assert seen.route.startswith(second.uri)
            assert seen.liveness is LIVE, "the dialog at the first server still serves"
            await first.stop()
            await until_then(lambda: observer.liveness(address) is STALE)
            assert isinstance(observer.errors[address], PresenceUnavailable)


# PJSIP's 64 sockets


async def test_many_questions_to_a_dead_server(sandbox: Sandbox) -> None:
    """Hundreds of fetches and watches at a server that refuses connections fail soon, and the worker lives."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = f"sip:127.0.0.1:{closed.getsockname()[1]};transport=tcp"
        async with watching(server, probe_every_s=1, setups_per_s=0) as (watcher, observer):
            pid = watcher.worker_pid
            addresses = [terminal() for _ in range(500)]
            for address in addresses:
                watcher.watch(address)
            for _ in range(4):
                answers = await asyncio.gather(*(watcher.fetch(terminal()) for _ in range(50)), return_exceptions=True)
                assert all(isinstance(answer, PresenceUnavailable) for answer in answers)
            await until(lambda: all(observer.liveness(address) is UNKNOWN for address in addresses))
            assert watcher.worker_pid == pid
            closed.close()
            async with Sandbox(port=int(server.split(":")[2].partition(";")[0]), scripted=False):
                await until_then(lambda: observer.live(addresses))
            assert watcher.worker_pid == pid


async def test_strangers_that_connect(sandbox: Sandbox) -> None:
    """However many strangers connect to the SIP port and stay or leave, the worker lives, and the server's connections
    are accepted later."""
    async with watching(f"{sandbox.uri};transport=tcp") as (watcher, observer):
        address, pid, port = terminal(), watcher.worker_pid, watcher.ports["tcp"]
        await started(watcher, observer, address)
        staying: list[asyncio.StreamWriter] = []

        async def knock(stay: bool) -> None:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.2):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    if stay:
                        staying.append(writer)
                    else:
                        writer.transport.abort()

        for _ in range(4):
            await asyncio.gather(*(knock(stay) for stay in [False] * 100 + [True] * 20))
            assert (await watcher.fetch(terminal())).body
        for writer in staying:
            writer.transport.abort()
        for connection in list(sandbox._notifier.transport._connections):  # noqa: SLF001  # none other than ours
            connection.close()
        sandbox.set_status(user_of(address), Status.BUSY)
        await until_then(lambda: b"phone" in observer.bodies(address)[-1])
        assert watcher.worker_pid == pid


# Names


class Names(asyncio.DatagramProtocol):
    """A name server for SRV and A records; it answers every other query with an empty answer."""

    def __init__(self, records: dict[tuple[str, int], list[bytes]]) -> None:
        self.records, self.asked = records, list[tuple[str, int]]()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        at, labels = 12, list[str]()
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode().lower())
            at += 1 + data[at]
        kind = int.from_bytes(data[at + 1 : at + 3], "big")
        self.asked.append((".".join(labels), kind))
        found = self.records.get((".".join(labels), kind), [])
        answers = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 1, len(each)) + each for each in found)
        header = data[:2] + struct.pack(">HHHHH", 0x8580, 1, len(found), 0, 0)
        self.transport.sendto(header + data[12 : at + 5] + answers, addr)


A, SRV = 1, 33


def srv(priority: int, port: int, target: str) -> bytes:
    name = b"".join(bytes([len(label)]) + label.encode() for label in target.split(".")) + b"\0"
    return struct.pack(">HHH", priority, 0, port) + name


@asynccontextmanager
async def looking_up(names: Names, routes: list[Route]) -> AsyncIterator[tuple[SipWatcher, Observer]]:
    """A watcher that looks up its servers' names; the settings require such a watcher to listen beyond loopback."""
    closer, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: names, ("127.0.0.1", 0))
    nameserver = f"127.0.0.1:{closer.get_extra_info('sockname')[1]}"
    try:
        async with watching("sip:127.0.0.1", sip_nameservers=nameserver, configure={"routes": routes}) as both:
            yield both
    finally:
        closer.close()


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_srv_record_leads_to_the_server(sandbox: Sandbox, transport: str) -> None:
    """A server without a port is looked up at the configured name server, by SRV and then A."""
    names = Names(
        {
            (f"_sip._{transport}.presence.test", SRV): [srv(1, sandbox.port, "node.presence.test")],
            ("node.presence.test", A): [bytes([127, 0, 0, 1])],
        }
    )
    routes = [Route(f"sip:presence.test;transport={transport};lr", transport)]
    async with looking_up(names, routes) as (watcher, observer):
        addresses = [terminal() for _ in range(5)]
        await started(watcher, observer, *addresses)
        assert (await watcher.fetch(terminal())).body
        assert {sandbox.subscriptions[address] for address in addresses} == {1}
        assert (f"_sip._{transport}.presence.test", SRV) in names.asked


async def test_name_that_is_unknown(sandbox: Sandbox) -> None:
    """A server whose name has no address counts as down: the next one is asked."""
    routes = [Route(f"{uri};transport=tcp;lr", "tcp") for uri in ("sip:nobody.test", sandbox.uri)]
    async with looking_up(Names({}), routes) as (watcher, observer):
        address = terminal()
        async with asyncio.timeout(DEADLINE_S):
            assert (await watcher.fetch(address)).body
        await started(watcher, observer, address)


# TLS


class Authority:
    """A certificate authority, and the certificates it signs."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign(name, self._key.public_key(), None)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, name: str, key: ec.EllipticCurvePublicKey, host: x509.GeneralName | None) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([host]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def server(self, host: str) -> ssl.SSLContext:
        """A TLS server context with a certificate for this host."""
        key = ec.generate_private_key(ec.SECP256R1())
        general: x509.GeneralName = x509.DNSName(host)
        with suppress(ValueError):
            general = x509.IPAddress(ipaddress.ip_address(host))
        chain = self.directory / f"{self.name}-{host}.pem"
        private = serialization.PrivateFormat.PKCS8
        chain.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
            + self._sign(host, key.public_key(), general).public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context


@asynccontextmanager
async def tls_edge(sandbox: Sandbox, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Ends TLS in front of the sandbox's TCP port, and stays in the dialogs by Record-Route; yields its port."""
    pumps = set[asyncio.Task[None]]()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inserted: bytes) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                if inserted:  # messages from the watcher have no body
                    data = await reader.readuntil(b"\r\n\r\n")
                    if data.startswith(b"SUBSCRIBE"):
                        data = data.replace(b"\r\n", inserted, 1)
                else:
                    data = await reader.read(65536)
                    if not data:
                        break
                writer.write(data)
        writer.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inward, outward = await asyncio.open_connection(sandbox.host, sandbox.port)
        inserted = f"\r\nRecord-Route: <sip:127.0.0.1:{port};transport=tls;lr>\r\n".encode()
        for task in (pump(reader, outward, inserted), pump(inward, writer, b"")):
            pumps.add(asyncio.create_task(task))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def test_tls(sandbox: Sandbox, tmp_path: Path) -> None:
    """With the right CA file fetches and watches work over TLS: set-up, change, refresh, a large document, the end."""
    authority = Authority(tmp_path, "ours")
    async with tls_edge(sandbox, authority.server("127.0.0.1")) as port:
        server = f"sip:127.0.0.1:{port};transport=tls"
        async with watching(server, sip_tls_ca_file=str(authority.file)) as (watcher, observer):
            address, large = terminal(), terminal("document-big-300000")
            assert (await watcher.fetch(address)).body
            await started(watcher, observer, address, large)
            assert len(observer.bodies(large)[0]) == 300_000
            sandbox.set_status(user_of(address), Status.BUSY)
            await until(lambda: b"phone" in observer.bodies(address)[-1])
            watcher.refresh(address)
            await until(lambda: len(observer.bodies(address)) == 3)
            watcher.unwatch(address)
            await until(lambda: address not in sandbox.subscriptions)


@pytest.mark.parametrize("wrong", ["no CA file", "another authority", "another name"])
async def test_tls_verifies(sandbox: Sandbox, tmp_path: Path, wrong: str) -> None:
    """By default nothing is sent to a server with an unknown authority or another name."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    name = "presence.test" if wrong == "another name" else "127.0.0.1"
    async with tls_edge(sandbox, ours.server(name)) as port:
        settings: dict[str, Any] = {}
        if wrong != "no CA file":
            settings["sip_tls_ca_file"] = str(theirs.file if wrong == "another authority" else ours.file)
        server = f"sip:127.0.0.1:{port};transport=tls"
        async with watching(server, **settings) as (watcher, observer):
            address = terminal()
            with pytest.raises(PresenceUnavailable):
                async with asyncio.timeout(DEADLINE_S):
                    await watcher.fetch(address)
            watcher.watch(address)
            await until(lambda: observer.liveness(address) is UNKNOWN)
            assert isinstance(observer.errors[address], PresenceUnavailable)
            assert sandbox.counters.subscribes[address] == 0
        async with watching(server, sip_tls_verify=False) as (watcher, observer):
            assert (await watcher.fetch(address)).body, "an operator may turn it off"


async def test_nobody_connects_over_tls(sandbox: Sandbox) -> None:
    """The worker has no TLS certificate, so it accepts no TLS connection; attempts do not end it."""
    async with watching("sip:127.0.0.1:1;transport=tls") as (watcher, _):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", watcher.ports["tls"])
        assert watcher.ready


# Credentials


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_digest(sandbox: Sandbox, transport: str) -> None:
    """A challenge to the first SUBSCRIBE, a refresh, the unsubscribe and a fetch is answered."""
    credentials: dict[str, Any] = {"sip_username": DIGEST_USER, "sip_password": DIGEST_PASSWORD}
    async with watching(f"{sandbox.uri};transport={transport}", **credentials) as (watcher, observer):
        addresses = [terminal(user) for user in ("digest-md5", "digest-sha256", "digest-both")]
        for address in addresses:
            assert (await watcher.fetch(address)).body
        await started(watcher, observer, *addresses)
        for address in addresses:
            watcher.refresh(address)
        await until(lambda: all(len(observer.bodies(address)) == 2 for address in addresses))
        assert {(sandbox.subscriptions[each], observer.reported[each].count(LIVE)) for each in addresses} == {(1, 1)}
        for address in addresses:
            watcher.unwatch(address)
        await until(lambda: set(addresses).isdisjoint(sandbox.subscriptions))


@pytest.mark.parametrize("password", ["", "wrong"])
async def test_digest_that_is_not_accepted(sandbox: Sandbox, password: str) -> None:
    """With a wrong password, or at a server that challenges for ever, few SUBSCRIBEs leave, and the reason is
    reported."""
    credentials: dict[str, Any] = {"sip_username": DIGEST_USER, "sip_password": password} if password else {}
    async with watching(f"{sandbox.uri};transport=udp", **credentials) as (watcher, observer):
        addresses = [terminal(user) for user in ("digest-md5", "digest-sha256", "answer-401", "answer-407")]
        for address in addresses:
            with pytest.raises(WatcherUnauthenticated):
                await watcher.fetch(address)
            watcher.watch(address)
            await until(lambda address=address: address in observer.errors)  # type: ignore[misc]
            assert isinstance(observer.errors[address], WatcherUnauthenticated)
            seen = await view(watcher, address)
            assert seen.next_at is not None
            assert (seen.next_at - datetime.datetime.now(datetime.UTC)).total_seconds() > LONG_STOP_S - 60
        await started(watcher, observer, terminal())
        for address in addresses:
            assert sandbox.counters.subscribes[address] <= 8
            assert observer.reported[address] == [UNKNOWN]


@pytest.mark.parametrize("user", ["", DIGEST_USER], ids=["without credentials", "with credentials"])
async def test_refresh_that_is_challenged_for_ever(sandbox: Sandbox, user: str) -> None:
    """The granted subscription is used to its end; few SUBSCRIBEs leave."""
    credentials: dict[str, Any] = {"sip_username": user, "sip_password": "wrong"} if user else {}
    async with watching(f"{sandbox.uri};transport=tcp", **credentials) as (watcher, observer):
        address = terminal()
        await started(watcher, observer, address)
        sandbox.act_like(user_of(address), "answer-401")
        watcher.refresh(address)
        seen = await until_seen(watcher, address, lambda seen: seen.code == 401)
        assert (seen.state, seen.liveness) == (WatchState.ACTIVE, LIVE)
        sandbox.set_status(user_of(address), Status.BUSY)
        await until(lambda: b"phone" in observer.bodies(address)[-1])
        assert sandbox.counters.subscribes[address] <= 3


async def test_answer_to_a_challenge_that_is_given_up() -> None:
    """A fetch that is given up after its answer to a challenge leaves nothing in the worker."""
    loop = asyncio.get_running_loop()

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
            self.transport, self.challenged = transport, 0

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if data.startswith(b"SUBSCRIBE") and b"\r\nAuthorization" not in data:
                self.challenged += 1
                challenge = 'WWW-Authenticate: Digest realm="x", nonce="n", qop="auth"'
                self.transport.sendto(answered(data, "401 No", challenge), addr)

    closer, server = await loop.create_datagram_endpoint(Server, ("127.0.0.1", 0))
    uri = f"sip:127.0.0.1:{closer.get_extra_info('sockname')[1]};transport=udp"
    async with watching(uri, sip_username="x", sip_password="x") as (watcher, _):
        pid = watcher.worker_pid

        async def give_up() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.4):  # PJSIP forgets a transaction 100 ms after its answer
                    await watcher.fetch(terminal())

        for _ in range(3):
            await asyncio.gather(*(give_up() for _ in range(50)))
        assert server.challenged >= 150
        await watcher.watches()
        assert watcher.worker_pid == pid
    closer.close()


# Headers, and the registration


def answered(request: bytes, status: str, *lines: str) -> bytes:
    """A response to the request in these bytes."""
    message = read(request)
    same = [f"{name}: {value}" for name, value in message.headers if name in {"via", "from", "call-id", "cseq"}]
    to = message["to"] if ";tag=" in message["to"] else f"{message['to']};tag=server"
    return "\r\n".join([f"SIP/2.0 {status}", *same, f"To: {to}", *lines, "Content-Length: 0\r\n\r\n"]).encode()


async def test_operators_headers(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker sends P-Asserted-Identity, Privacy, and P-Charging-Vector with an icid for each dialog; refreshes keep
    the icid."""
    seen: list[Message] = []
    decide = sandbox._notifier._decide  # noqa: SLF001  # to see requests that no behaviour reports

    def recorded(exchange: Exchange) -> None:
        seen.append(exchange.request)
        decide(exchange)

    monkeypatch.setattr(sandbox._notifier, "_decide", recorded)  # noqa: SLF001
    headers: dict[str, Any] = {
        "asserted_identity": "tel:+15551234",
        "privacy": "id",
        "charging_orig_ioi": "home1.example",
    }
    async with watching(f"{sandbox.uri};transport=udp", **headers) as (watcher, observer):
        one, other = terminal(), terminal()
        await started(watcher, observer, one, other)
        watcher.refresh(one)
        await until(lambda: len(observer.bodies(one)) == 2)
        await watcher.fetch(one)
        icids: dict[str, set[str]] = {}
        for message in seen:
            assert message.first("p-asserted-identity") == "<tel:+15551234>"
            assert message.first("privacy") == "id"
            vector = re.fullmatch(
                r'icid-value="([0-9a-f]{32})";orig-ioi=home1\.example', message.first("p-charging-vector")
            )
            assert vector
            icids.setdefault(message.first("call-id"), set()).add(vector[1])
        assert len(seen) == 4
        assert len(icids) == 3
        assert all(len(each) == 1 for each in icids.values())
        assert len(set.union(*icids.values())) == 3


@pytest.mark.parametrize("password", ["secret", "wrong"])
async def test_registration_of_the_watcher(password: str) -> None:
    """The watcher registers its identity with its credentials, and reports whether the registrar accepted it."""
    refused = asyncio.Event()

    class Registrar(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
            self.transport = transport
            self.registered = list[bytes]()

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if not data.startswith(b"REGISTER"):
                return
            message = read(data)
            values = dict(re.findall(r'(\w+)="?([^",]+)', message["authorization"]))
            if values and self.right(values):
                self.registered.append(data)
                self.transport.sendto(answered(data, "200 OK", f"Contact: {message['contact']};expires=600"), addr)
                return
            if values:
                refused.set()
            challenge = 'WWW-Authenticate: Digest realm="home", nonce="n1", algorithm=MD5, qop="auth"'
            self.transport.sendto(answered(data, "401 Unauthorized", challenge), addr)

        @staticmethod
        def right(values: dict[str, str]) -> bool:
            def md5(text: str) -> str:
                return hashlib.md5(text.encode()).hexdigest()

            whose, what = md5("gateway:home:secret"), md5(f"REGISTER:{values['uri']}")
            counted = f"{values['nc']}:{values['cnonce']}:{values['qop']}"
            return md5(f"{whose}:n1:{counted}:{what}") == values["response"]

    closer, registrar = await asyncio.get_running_loop().create_datagram_endpoint(Registrar, ("127.0.0.1", 0))
    uri = f"sip:127.0.0.1:{closer.get_extra_info('sockname')[1]}"
    settings: dict[str, Any] = {
        "sip_registrar": uri,
        "watcher_identity": "sip:gateway@home.example",
        "sip_username": "gateway",
        "sip_password": password,
    }
    async with watching(f"{uri};transport=udp", **settings) as (watcher, _):
        if password == "wrong":
            async with asyncio.timeout(DEADLINE_S):
                await refused.wait()
            assert not watcher.counts().registered
        else:
            await until(lambda: watcher.counts().registered)
            message = read(registrar.registered[0])
            assert message["to"] == "<sip:gateway@home.example>"
            assert message["from"].startswith("<sip:gateway@home.example>;tag=")
    closer.close()


async def test_presence_server_that_is_named_twice() -> None:
    """Naming a dead server twice gives no second route: the error is reported, and nothing hangs."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"sip:127.0.0.1:{closed.getsockname()[1]};transport=tcp"
        async with watching(f"{uri},{uri}") as (watcher, observer):
            address = terminal()
            with pytest.raises(PresenceUnavailable):
                async with asyncio.timeout(DEADLINE_S):
                    await watcher.fetch(address)
            watcher.watch(address)
            await until(lambda: observer.liveness(address) is UNKNOWN)
