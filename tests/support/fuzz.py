"""A hostile presence server: mutated responses and NOTIFYs over UDP and TCP against SIP workers, for a given time.

Run it by `python -m tests.support.fuzz SECONDS [SEED]` or `make fuzz SECONDS=600`. Two workers, one over UDP and one
over TCP, start and end watches and fetches. The server answers their messages, and sends more messages into their
dialogs and to their ports.

The run fails where a worker died or hung, its memory grew, or a normal terminal was no longer answered. The seed
determines the messages; timing determines their dialogs. So the last packets before a death are kept in a file.

Invariants: everything stays on loopback. Dialogs, connections and kept packets are bounded.

Deliberately absent: TLS, and a hostile parent.
"""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import DocumentUnreadable, TerminalStatusError
from app.domain.statuses import Liveness
from app.ports.sip import ReceivedNotify
from app.sip.watcher import SipWatcher
from tests.support.sip_terminal import SipMessage, read, unique
from tests.support.sip_watcher import configuration

TICK_S = 0.005
DIALOGS, WATCHED, FETCHING = 300, 40, 20
MESSAGES_PER_CONNECTION = 100
SETTLED_S = 75.0
"""PJSIP keeps the transaction of a NOTIFY for 32 s and freed memory longer: so long memory may grow."""

_NUMBERS = ["0", "1", "-1", "2147483647", "2147483648", "4294967295", "4294967296", "18446744073709551616", "9" * 40]
_NUMBERS += ["000000000000000000000001", "1e9", "0x10", "1.5", "+", "NaN", ""]
_TEXTS = [
    "",
    " ",
    ";",
    ";;;;",
    ",",
    ",,,",
    "<",
    "<>",
    '"',
    '"unclosed',
    "%s%n%x",
    "\0",
    "\xff\xfe",
    "=",
    "a=",
    "()",
    "*",
]
_TEXTS += [
    "(" * 200,
    "A" * 300,
    "A" * 3000,
    "<sip:" + "a" * 400 + "@x>",
    "sip:@",
    "<sip:[::1]:5060>",
    "<sip:a@b:99999>",
]
_TEXTS += ["<tel:>", "<:>", "\r\n folded", "presence;id=7", "presence;id=" + "9" * 300, "dialog", "a;tag=" + "t" * 500]
_TEXTS += ["a" + ";p=1" * 200]
_STATES = ["active", "active", "active;expires=600", "active;expires=0", "active;expires=1", "pending", "terminated"]
_STATES += ["ACTIVE ; Expires=600", "init", "bogus", "active;expires", ";", "active;" + "x=1;" * 300]
_STATES += ["terminated;reason=" + "r" * 900, "active, terminated"]
_STATES += [f"active;expires={number}" for number in _NUMBERS]
_STATES += [f"terminated;reason=probation;retry-after={number}" for number in _NUMBERS]
_STATES += [
    f"terminated;reason={reason}" for reason in ("deactivated", "rejected", "timeout", "noresource", "invariant")
]
_BODIES = [b"", b"<presence/>", b"\0\xff" * 40, b"<?xml version='1.0'?>" + b"<a>" * 300, b"\r\n\r\n" * 10, b"x" * 2000]
_BODIES += [b"NOTIFY sip:a@b SIP/2.0\r\n\r\n", b"SIP/2.0 200 OK\r\n\r\n", b"y" * 3500, b"z" * 30_000]
_NAMES = ["Via", "From", "To", "Call-ID", "CSeq", "Contact", "Event", "Subscription-State", "Expires", "Min-Expires"]
_NAMES += ["Retry-After", "Content-Length", "Content-Type", "Content-Encoding", "Record-Route", "Route", "Max-Forwards"]
_NAMES += ["Require", "Supported", "Allow-Events", "WWW-Authenticate", "Proxy-Authenticate", "Warning", "Date", "X-Odd"]
_SHORT = {"via": "v", "from": "f", "to": "t", "call-id": "i", "contact": "m", "content-length": "l", "event": "o"}
_CODES = [200, 200, 200, 202, 204, 299, 300, 302, 400, 401, 401, 403, 404, 407, 408, 410, 413, 420, 423, 480, 481, 481]
_CODES += [482, 489, 491, 494, 500, 503, 503, 504, 513, 600, 603, 604, 606, 699, 100, 180, 199]
_CHALLENGES = [
    'Digest realm="fuzz", nonce="n", algorithm=MD5, qop="auth"',
    'Digest realm="fuzz", nonce="n", algorithm=SHA-256, stale=true',
    'Digest realm="", nonce="", qop="auth-int,auth"',
    'Digest realm="fuzz", nonce="' + "n" * 1000 + '", opaque="' + "o" * 1000 + '"',
    "Digest",
    "Basic realm=x",
    'Bearer realm="x", Digest realm="fuzz", nonce="n"',
    "NTLM",
    'Digest realm="fuzz", nonce="n", algorithm=AKAv1-MD5',
    'Digest realm="fuzz", nonce="n", algorithm=' + "Z" * 300,
    'Digest nonce="n", stale=TRUE, qop=' + "a," * 100,
]


@dataclass(eq=False)
class Dialog:
    """One received SUBSCRIBE: what its NOTIFYs need, and the connection that they are sent over."""

    subscribe: SipMessage
    tag: str
    send: Callable[[bytes], None]
    cseq: int = 0


@dataclass(kw_only=True)
class Outcome:
    """The result of a run."""

    seconds: float
    seed: int
    sent: Counter[str] = field(default_factory=Counter)
    """Packets by kind; over TCP, messages."""
    received: Counter[str] = field(default_factory=Counter)
    fetches: Counter[str] = field(default_factory=Counter)
    observed: int = 0
    faults: list[str] = field(default_factory=list)
    memory_mb: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """Median of the worker's memory in each third of the run."""

    def __str__(self) -> str:
        memory = {name: [round(part) for part in parts] for name, parts in self.memory_mb.items()}
        return "\n".join(
            (
                f"{sum(self.sent.values())} packets in {self.seconds:.0f} s, seed {self.seed}: {dict(self.sent)}",
                f"received {dict(self.received)}; {self.observed} observations; fetches {dict(self.fetches)}",
                f"memory by thirds in MB {memory}",
                f"FAULTS: {'; '.join(self.faults)}" if self.faults else "no fault",
            )
        )


class Mutator:
    """Makes messages and mutates them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def response(self, request: SipMessage, tag: str) -> bytes:
        """A response to a SUBSCRIBE or OPTIONS, valid or not."""
        rng = self.rng
        code = rng.choice(_CODES)
        lines = [
            f"SIP/2.0 {code} Fuzz",
            *_copied(request, tag),
            f"Contact: <sip:127.0.0.1:{request['x-port'] or 5060}>",
        ]
        lines.append(f"Expires: {rng.choice([*_NUMBERS, '3600', '2'])}")
        if code in (401, 407):
            name = "WWW-Authenticate" if code == 401 else "Proxy-Authenticate"
            lines += [f"{name}: {rng.choice(_CHALLENGES)}" for _ in range(rng.choice([1, 1, 2, 20]))]
        if code == 423:
            lines.append(f"Min-Expires: {rng.choice([*_NUMBERS, '60', '3601'])}")
        if code >= 480:
            lines.append(f"Retry-After: {rng.choice([*_NUMBERS, '1', '5 (soon);duration=1'])}")
        return self._spoiled(lines, rng.choice(_BODIES) if rng.random() < 0.1 else b"")

    def notify(self, dialog: Dialog, host: str) -> bytes:
        """A NOTIFY in the dialog, valid or not."""
        rng, subscribe = self.rng, dialog.subscribe
        dialog.cseq += 1
        contact = subscribe.contact_uri
        lines = [
            f"NOTIFY {contact} SIP/2.0",
            f"Via: SIP/2.0/{'TCP' if 'tcp' in contact else 'UDP'} {host};rport;branch=z9hG4bK{unique()}",
            "Max-Forwards: 70",
            f"From: {_tagged(subscribe['to'], dialog.tag)}",
            f"To: {subscribe['from']}",
            f"Call-ID: {subscribe['call-id']}",
            f"CSeq: {dialog.cseq} NOTIFY",
            f"Contact: <sip:{host}>",
            "Event: presence",
            f"Subscription-State: {rng.choice(_STATES)}",
            "Content-Type: application/pidf+xml",
        ]
        return self._spoiled(lines, rng.choice(_BODIES))

    def garbage(self) -> bytes:
        """Bytes that are almost never SIP."""
        rng = self.rng
        kind = rng.randrange(4)
        if kind == 0:
            return rng.randbytes(rng.randrange(1, 1500))
        if kind == 1:
            return b"\r\n" * rng.randrange(1, 400)
        if kind == 2:
            return b"SIP/2.0 200 OK\r\n" + b"Via: SIP/2.0/UDP 127.0.0.1:1\r\n" * rng.randrange(1, 100) + b"\r\n"
        return b"NOTIFY " + b"sip:" + b"a" * rng.randrange(1, 4000) + b" SIP/2.0\r\n\r\n"

    def _spoiled(self, lines: list[str], body: bytes) -> bytes:
        rng = self.rng
        lines = [*lines, f"Content-Length: {len(body)}"]
        times = rng.choice([0, 0, 1, 1, 2, 5])
        for _ in range(times):
            self._spoil(lines)
        end = "\n" if times and rng.random() < 0.05 else "\r\n"
        data = (end.join(lines) + end * 2).encode("latin-1", "replace") + body
        if times and rng.random() < 0.1:
            spoiled = bytearray(data)
            for _ in range(rng.randrange(1, 12)):
                spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
            data = bytes(spoiled)
        if times and rng.random() < 0.05:
            data = data[: rng.randrange(1, len(data))]
        return data

    def _spoil(self, lines: list[str]) -> None:
        rng = self.rng
        at = rng.randrange(1, len(lines)) if len(lines) > 1 else 0
        name, _, value = lines[at].partition(":")
        match rng.randrange(12):
            case 0:
                lines.pop(at)
            case 1:
                lines.insert(rng.randrange(1, len(lines) + 1), lines[at])
            case 2:
                lines[at] = f"{name}: {rng.choice(_TEXTS)}"
            case 3:
                lines[at] = f"{name}: {rng.choice(_NUMBERS)}"
            case 4:
                lines.insert(at, f"{rng.choice(_NAMES)}: {rng.choice(_TEXTS + _NUMBERS + _STATES)}")
            case 5:
                lines[at] = f"{_SHORT.get(name.lower(), name)} :{value}"
            case 6:
                lines[1:1] = [
                    f"Via: SIP/2.0/UDP 127.0.0.1:{n};branch=z9hG4bK{n}" for n in range(rng.choice([1, 20, 60]))
                ]
            case 7:
                lines[at] = lines[at].replace(" ", rng.choice(["\r\n ", "\r\n\t", "  ", "\t"]))
            case 8:
                number = rng.choice(_NUMBERS)
                lines[:] = [f"CSeq: {number} NOTIFY" if line.startswith("CSeq") else line for line in lines]
            case 9:
                lines[:] = [
                    line.replace(";tag=", rng.choice([";", ";tag=", ";tag=x", ";TAG=", ";tag=a;tag="]))
                    for line in lines
                ]
            case 10:
                lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
            case 11:
                lines[0] = rng.choice(
                    [
                        lines[0].replace("SIP/2.0", "SIP/3.0"),
                        lines[0] + " x",
                        lines[0].lower(),
                        "SIP/2.0 999",
                        "SIP/2.0 20 x",
                    ]
                )


class HostileServer(asyncio.Protocol, asyncio.DatagramProtocol):
    """Answers terminals whose name says `honest` as RFC 6665 requires, and all others at random."""

    def __init__(self, mutator: Mutator, outcome: Outcome) -> None:
        self.mutator, self.outcome = mutator, outcome
        self.dialogs: deque[Dialog] = deque(maxlen=DIALOGS)
        self.last: deque[bytes] = deque(maxlen=400)
        self.quiet = False
        self.port = 0
        self.connections: set[asyncio.StreamWriter] = set()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens on UDP and TCP."""
        loop = asyncio.get_running_loop()
        self._tcp = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._tcp.sockets[0].getsockname()[1]
        self._udp, _ = await loop.create_datagram_endpoint(lambda: self, ("127.0.0.1", self.port))

    def stop(self) -> None:
        """Closes everything."""
        self.hang_up()
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()

    def hang_up(self) -> None:
        """Breaks every connection."""
        for writer in list(self.connections):
            writer.transport.abort()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._udp is not None:
            self._received(data, lambda answer: self.datagram(answer, addr))

    def error_received(self, _: Exception) -> None:
        """The operating system refused a datagram that was too long."""

    def datagram(self, data: bytes, addr: tuple[str, int]) -> None:
        """Sends one datagram."""
        if self._udp is not None and len(data) < 65_000:
            self._keep("UDP", data)
            self._udp.sendto(data, addr)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        left = MESSAGES_PER_CONNECTION

        def send(data: bytes) -> None:
            nonlocal left
            left -= 1
            self.stream(writer, data)
            if not left and not self.quiet:
                writer.transport.abort()

        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head == b"\r\n\r\n":
                    continue
                head = head.lstrip(b"\r\n")
                body = await reader.readexactly(int(read(head.decode("latin-1").encode())["content-length"] or 0))
                self._received(head + body, send)
        self.connections.discard(writer)
        writer.close()

    def stream(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Writes a message in several pieces, sometimes with other bytes in between."""
        if writer.transport.is_closing() or writer.transport.get_write_buffer_size() > 1_000_000:
            return
        self._keep("TCP", data)
        rng = self.mutator.rng
        if rng.random() < 0.3:
            at = rng.randrange(len(data) + 1)
            writer.write(data[:at])
            asyncio.get_running_loop().call_later(0.001, _write, writer, data[at:])
        else:
            writer.write(data)
        if rng.random() < 0.02 and not self.quiet:
            _write(writer, rng.choice([b"\r\n\r\n", b"\r\n", b"\0" * 9, self.mutator.garbage()]))

    def _keep(self, kind: str, data: bytes) -> None:
        self.outcome.sent[kind] += 1
        self.last.append(data)

    def _received(self, data: bytes, send: Callable[[bytes], None]) -> None:
        if not data.strip():
            return
        message = read(data.decode("latin-1").encode())
        self.outcome.received[message.method or str(message.code)] += 1
        if message.method not in ("SUBSCRIBE", "OPTIONS"):
            return
        tag = message.to_tag or unique()
        if "honest" in message.start or message.method == "OPTIONS":
            lines = ["SIP/2.0 200 OK", *_copied(message, tag), f"Contact: <sip:127.0.0.1:{self.port}>"]
            send(_whole([*lines, f"Expires: {message['expires'] or 0}"], b""))
            if message.method == "SUBSCRIBE":
                send(_honest_notify(Dialog(message, tag, send), self._host))
            return
        if self.quiet:
            return
        dialog = Dialog(message, tag, send)
        self.dialogs.append(dialog)
        rng = self.mutator.rng
        what = ["response", *rng.choices(["response", "notify", "silence"], [1, 4, 1], k=rng.randrange(4))]
        rng.shuffle(what)
        for each in what:
            if each == "response":
                send(self.mutator.response(message, tag))
            elif each == "notify":
                send(self.mutator.notify(dialog, self._host))

    @property
    def _host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def trouble(self, ports: dict[str, int]) -> None:
        """Sends one packet that answers nothing: into a dialog, or to a port of the worker."""
        rng = self.mutator.rng
        if self.dialogs and rng.random() < 0.9:
            dialog = rng.choice(self.dialogs)
            make = self.mutator.notify if rng.random() < 0.8 else self._late_response
            dialog.send(make(dialog, self._host))
        else:
            self.datagram(self.mutator.garbage(), ("127.0.0.1", ports["udp"]))

    def _late_response(self, dialog: Dialog, _host: str) -> bytes:
        return self.mutator.response(dialog.subscribe, dialog.tag)

    async def knock(self, port: int) -> None:
        """Connects to a worker's port as a stranger, who may know a dialog."""
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(5):
                known = self.dialogs and self.mutator.rng.random() < 0.5
                dialog = self.mutator.rng.choice(self.dialogs) if known else None
                self.stream(writer, self.mutator.notify(dialog, self._host) if dialog else self.mutator.garbage())
            await asyncio.sleep(0.02)
            writer.transport.abort()
            await reader.read()


class _Observer:
    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def on_notify_received(self, _address: TerminalAddress, _notify: ReceivedNotify) -> None:
        self.outcome.observed += 1

    def on_notify_unreadable(self, _address: TerminalAddress, _error: DocumentUnreadable) -> None:
        pass

    def on_liveness_changed(
        self, address: TerminalAddress, liveness: Liveness, reason: str, error: TerminalStatusError | None
    ) -> None:
        pass

    def on_watch_ended(self, address: TerminalAddress, reason: str, error: TerminalStatusError | None) -> None:
        pass


async def fuzz(seconds: float, seed: int, transports: Sequence[str] = ("udp", "tcp")) -> Outcome:
    """Runs for this many seconds; `faults` of the result lists what went wrong."""
    outcome = Outcome(seconds=seconds, seed=seed)
    await asyncio.gather(*(_fuzz_one(transport, seconds, seed, outcome) for transport in transports))
    return outcome


async def _fuzz_one(transport: str, seconds: float, seed: int, outcome: Outcome) -> None:
    server = HostileServer(Mutator(seed * 2 + (transport == "tcp")), outcome)
    await server.start()
    settings = configuration(
        f"sip:127.0.0.1:{server.port};transport={transport}",
        probe_every_s=1,
        watch_expires_s=60,
        sip_username="fuzz",
        sip_password="fuzz",
    )
    watcher = SipWatcher(settings)
    watcher.set_observer(_Observer(outcome))
    await watcher.start()
    pid = watcher.worker_pid
    samples: list[float] = []
    playing = asyncio.create_task(_play(watcher, server, outcome))
    try:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and watcher.worker_pid == pid:
            samples.append(_memory_mb(pid))
            for _ in range(4):
                server.trouble(watcher.ports)
            if transport == "tcp" and server.mutator.rng.random() < 0.02:
                await server.knock(watcher.ports["tcp"])
            await asyncio.sleep(TICK_S)
        server.quiet = True
        server.hang_up()
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        await _judge(transport, watcher, server, pid, samples, outcome)
    finally:
        playing.cancel()
        await watcher.aclose()
        server.stop()


async def _play(watcher: SipWatcher, server: HostileServer, outcome: Outcome) -> None:
    """Starts and ends watches and fetches."""
    rng, watched, number = server.mutator.rng, deque[TerminalAddress](), 0
    limit = asyncio.Semaphore(FETCHING)

    async def fetch(address: TerminalAddress) -> None:
        try:
            async with limit, asyncio.timeout(0.3):
                await watcher.fetch(address)
            outcome.fetches["answered"] += 1
        except TerminalStatusError as error:
            outcome.fetches[error.code] += 1
        except TimeoutError:
            outcome.fetches["timed out"] += 1

    async with asyncio.TaskGroup() as tasks:
        while True:
            number += 1
            watched.append(parse_address(f"sip:watched-{number}@example.com"))
            watcher.watch(watched[-1])
            if len(watched) > WATCHED:
                watcher.unwatch(watched.popleft())
            with suppress(TerminalStatusError):  # the watch has ended
                watcher.refresh(rng.choice(watched))
            if not limit.locked():
                user = "honest" if number % 10 == 0 else "fetched"
                tasks.create_task(fetch(parse_address(f"sip:{user}-{number}@example.com")))
            if number % 100 == 0:
                await watcher.watches()
            await asyncio.sleep(4 * TICK_S)


async def _judge(
    transport: str, watcher: SipWatcher, server: HostileServer, pid: int | None, samples: list[float], outcome: Outcome
) -> None:
    """Checks that the worker lives, answers, and has not grown."""
    answered = False
    deadline_s = time.monotonic() + 15
    while not answered and time.monotonic() < deadline_s:
        with suppress(TerminalStatusError, TimeoutError):
            async with asyncio.timeout(2):
                answered = bool((await watcher.fetch(parse_address("sip:honest@example.com"))).body)
    if watcher.worker_pid != pid:
        kept = Path(tempfile.gettempdir()) / f"fuzz-{transport}-{outcome.seed}.bin"
        kept.write_bytes(b"\n=====\n".join(server.last))
        outcome.faults.append(f"the {transport} worker died; the last packets are in {kept}")
    elif not answered:
        outcome.faults.append(f"the {transport} worker no longer answers for a normal terminal")
    third = max(1, len(samples) // 3)
    parts = tuple(statistics.median(samples[start : start + third]) for start in (0, third, 2 * third - 1))
    outcome.memory_mb[transport] = cast("tuple[float, float, float]", parts)
    settled = outcome.seconds / 3 >= SETTLED_S
    if parts[2] > (parts[1] * 1.1 if settled else parts[0] + 250):
        outcome.faults.append(f"the {transport} worker grew: {parts} MB")


def _memory_mb(pid: int | None) -> float:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
    return 0.0


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.transport.is_closing():
        writer.write(data)


def _copied(request: SipMessage, tag: str) -> list[str]:
    via = [f"Via: {value}" for value in request.all("via")]
    same = [f"{name}: {request[name.lower()]}" for name in ("From", "Call-ID", "CSeq")]
    return [*via, *same, f"To: {_tagged(request['to'], tag)}"]


def _tagged(to: str, tag: str) -> str:
    return to if ";tag=" in to else f"{to};tag={tag}"


def _honest_notify(dialog: Dialog, host: str) -> bytes:
    subscribe = dialog.subscribe
    contact = subscribe.contact_uri
    ended = subscribe["expires"] == "0"
    lines = [
        f"NOTIFY {contact} SIP/2.0",
        f"Via: SIP/2.0/{'TCP' if 'tcp' in contact else 'UDP'} {host};rport;branch=z9hG4bK{unique()}",
        f"From: {_tagged(subscribe['to'], dialog.tag)}",
        f"To: {subscribe['from']}",
        f"Call-ID: {subscribe['call-id']}",
        "CSeq: 1 NOTIFY",
        f"Contact: <sip:{host}>",
        "Event: presence",
        f"Subscription-State: {'terminated;reason=timeout' if ended else 'active;expires=600'}",
    ]
    return _whole(lines, b"<presence/>")


def _whole(lines: list[str], body: bytes) -> bytes:
    return "\r\n".join([*lines, f"Content-Length: {len(body)}\r\n\r\n"]).encode() + body


def main() -> None:
    """Fuzzes for as many seconds as the first argument says; the second is the seed, others are transports."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**6)
    outcome = asyncio.run(fuzz(seconds, seed, sys.argv[3:] or ("udp", "tcp")))
    print(outcome)  # noqa: T201  # the result
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
