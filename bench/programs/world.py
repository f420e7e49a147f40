"""Everything around a gateway in one process, so that one clock measures: presence server, applications and readers.

Run as `python -m bench.programs.world`. It prints a line of JSON with its ports. Then it runs each command of its
standard input, `{"do": NAME, …}`, and prints the result as a line; it ends when its input ends. The presence server is
the sandbox, which has a `terminal-N` for every N; `../receiver.py` receives webhooks; `../h2.py` reads streams.

Invariants: every wait has a deadline; a deadline that passes ends the program with an error. A change is made right
after its time is taken, so the sandbox's own work is part of a measured delay.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, cast

import grpc
import uvloop

from app.domain.statuses import Status
from app.logs import configure_logging
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1 import terminal_status_pb2_grpc as pb_grpc
from app.sandbox import Sandbox
from bench import h2
from bench.h2 import LostError
from bench.processes import PUBLISH
from bench.receiver import receive

WAIT_S = 30.0
DOMAIN = "bench.example.com"
WATCH = "/terminalstatus.v1.TerminalStatusService/WatchStatuses"
_CHANGE_TAG = 0x1A
"""The first byte of a WatchStatusesResponse that is a change."""

_SSE_CHANGE = b"event: change\n"


def user(number: int) -> str:
    """The user part of terminal `number`."""
    return f"terminal-{number}"


def address(number: int) -> str:
    """The address of terminal `number`."""
    return f"sip:{user(number)}@{DOMAIN}"


class Count:
    """A counter with which one task can wait for a number."""

    def __init__(self) -> None:
        self.value = 0
        self._wanted = 0
        self._reached: asyncio.Future[None] | None = None

    def add(self) -> None:
        self.value += 1
        if self._reached is not None and self.value >= self._wanted and not self._reached.done():
            self._reached.set_result(None)

    async def reaches(self, number: int, what: str) -> None:
        """Waits until the counter is at `number`. Raises LostError after WAIT_S, naming `what` is missing."""
        self._wanted, self._reached = number, asyncio.get_running_loop().create_future()
        try:
            if self.value < number:
                async with asyncio.timeout(WAIT_S):
                    await self._reached
        except TimeoutError:
            raise LostError(f"{self.value} of {number} {what} came within {WAIT_S:.0f} s") from None


class Lags:
    """How long the changes of each terminal take to arrive."""

    def __init__(self) -> None:
        self.lags_s: list[float] = []
        self._sent_s: dict[str, float] = {}

    def sent(self, address_: str) -> None:
        """A change is made. If the terminal's previous change has not arrived, the delay counts from that change."""
        self._sent_s.setdefault(address_, time.perf_counter())

    def arrived(self, address_: str) -> None:
        """A change arrived. Changes that were not sent here are ignored."""
        at_s = time.perf_counter()
        if (sent_s := self._sent_s.pop(address_, None)) is not None:
            self.lags_s.append(at_s - sent_s)

    async def all_arrived(self) -> None:
        """Waits for all changes that were sent. Raises LostError."""
        limit_s = time.monotonic() + WAIT_S
        while self._sent_s:
            if time.monotonic() > limit_s:
                raise LostError(f"{len(self._sent_s)} changes did not arrive, such as of {next(iter(self._sent_s))}")
            await asyncio.sleep(0.005)


class Reader(threading.Thread):
    """One WatchStatuses stream, read with the blocking stub: grpc.aio's client would add half a millisecond."""

    def __init__(self, server: str, count: int, changed: Callable[[str], None]) -> None:
        super().__init__(name="reader", daemon=True)
        self.live: set[str] = set()
        self.failed = ""
        self._server = server
        self._addresses = [address(number) for number in range(count)]
        self._changed = changed
        self._call: Any = None

    def run(self) -> None:
        """Reads until `close`."""
        with grpc.insecure_channel(self._server, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = pb_grpc.TerminalStatusServiceStub(channel)
            self._call = stub.WatchStatuses(pb.WatchStatusesRequest(addresses=self._addresses))
            try:
                for message in self._call:
                    event = message.WhichOneof("event")
                    if event == "change":
                        self._changed(message.change.status.address)
                    elif event in ("snapshot_item", "liveness_change"):
                        of = getattr(message, event)
                        (self.live.add if of.liveness == pb.LIVENESS_LIVE else self.live.discard)(of.address)
                self.failed = "the stream ended"
            except grpc.RpcError as error:
                self.failed = str(error)

    async def all_live(self) -> None:
        """Waits until all terminals are LIVE. Raises LostError."""
        limit_s = time.monotonic() + WAIT_S
        while len(self.live) < len(self._addresses):
            if self.failed or time.monotonic() > limit_s:
                raise LostError(self.failed or f"{len(self.live)} of {len(self._addresses)} terminals are live")
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Ends the stream."""
        if self._call is not None:
            self._call.cancel()
        self.join(WAIT_S)


class EventSource(asyncio.Protocol):
    """One stream of server-sent events; counts its changes."""

    def __init__(self, request: bytes, complete: Callable[[], None], changed: Callable[[], None]) -> None:
        self.changes = 0
        self.closed = False
        self._request = request
        self._complete: Callable[[], None] | None = complete
        self._changed = changed
        self._tail = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the request."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's class only has the same methods
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Counts the changes in the data."""
        data = self._tail + data
        if self._complete is not None and b"event: snapshot-complete\n" in data:
            self._complete()
            self._complete = None
        for _ in range(data.count(_SSE_CHANGE)):
            self.changes += 1
            self._changed()
        self._tail = data[data.rfind(b"\n") + 1 :] if self._complete is None else data

    def connection_lost(self, exc: Exception | None) -> None:
        """The gateway closed the stream."""
        self.closed = True


class World:
    """The commands; their arguments and results are JSON."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._notified = Count()
        self._received_by_path: dict[str, int] = {}
        self._lags: Lags | None = None
        self._changes = Count()
        self._connections: list[h2.Connection] = []
        self._calls: list[tuple[h2.Connection, h2.Call]] = []
        self._ended = 0
        self._sources: list[EventSource] = []
        self._readers: list[Reader] = []

    def on_request(self, path: str, body: bytes) -> None:
        """A webhook or callback arrived."""
        if path.startswith(("/count", "/soap")):
            self._notified.add()
        elif self._lags is not None and path.startswith("/lag"):
            self._lags.arrived(json.loads(body)["subject"])
        kind = path.split("/")[1]
        self._received_by_path[kind] = self._received_by_path.get(kind, 0) + 1

    def _toggle(self, number: int) -> None:
        name = user(number)
        reachable = self._sandbox.statuses.get(name, Status.REACHABLE) is Status.REACHABLE
        self._sandbox.set_status(name, Status.UNREACHABLE if reachable else Status.REACHABLE)

    async def subscribed(self, numbers: Iterable[int]) -> dict[str, Any]:
        """Waits until the gateway watches these terminals, and has answered every NOTIFY."""
        wanted = {address(number) for number in numbers}
        limit_s = time.monotonic() + WAIT_S
        while missing := wanted.difference(self._sandbox.subscriptions):
            if time.monotonic() > limit_s:
                raise LostError(f"{len(missing)} of {len(wanted)} terminals are not watched")
            await asyncio.sleep(0.05)
        while self._sandbox.counters.notify_answers[200] < self._sandbox.counters.notifies.total():
            if time.monotonic() > limit_s:
                raise LostError("NOTIFYs are not answered")
            await asyncio.sleep(0.05)
        return {}

    async def _drive(self, lags: Lags, numbers: list[int], rate: float, seconds: float) -> dict[str, Any]:
        """Changes one terminal after the other at this rate, without waiting for the changes to arrive."""
        started_s = time.perf_counter()
        for change in range(max(1, round(rate * seconds))):
            wait_s = started_s + change / rate - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            elif change % 16 == 0:
                await asyncio.sleep(0)
            number = numbers[change % len(numbers)]
            lags.sent(address(number))
            self._toggle(number)
        took_s = time.perf_counter() - started_s
        await lags.all_arrived()
        return {"lag_s": lags.lags_s, "seconds": took_s}

    async def events(self, grpc: str, count: int, rate: float, seconds: float) -> dict[str, Any]:
        """Measures the time from a NOTIFY to the event of one stream about `count` terminals."""
        lags = Lags()
        reader = Reader(grpc, count, lags.arrived)
        reader.start()
        try:
            await reader.all_live()
            return await self._drive(lags, list(range(count)), rate, seconds)
        finally:
            await asyncio.to_thread(reader.close)

    async def hold(self, grpc: str, count: int) -> dict[str, Any]:
        """Opens a stream about `count` terminals until `close`, and returns when all of them are LIVE."""
        reader = Reader(grpc, count, lambda _: None)
        self._readers.append(reader)
        reader.start()
        await reader.all_live()
        return {}

    async def webhooks(self, numbers: list[int], rate: float, seconds: float) -> dict[str, Any]:
        """Measures the time from a NOTIFY to the webhook at /lag, for subscriptions to one terminal each."""
        self._lags = lags = Lags()
        return await self._drive(lags, numbers, rate, seconds)

    async def waves(self, number: int, size: int, waves: int) -> dict[str, Any]:
        """Measures, `waves` times, how long one change takes to reach `size` subscriptions at /count or /soap."""
        seconds: list[float] = []
        for _ in range(waves):
            before, started_s = self._notified.value, time.perf_counter()
            self._toggle(number)
            await self._notified.reaches(before + size, "notifications")
            seconds.append(time.perf_counter() - started_s)
        return {"seconds": seconds}

    async def change(self, numbers: list[int]) -> dict[str, Any]:
        """Changes each of these terminals once."""
        for number in numbers:
            self._toggle(number)
        return {}

    async def received(self) -> dict[str, Any]:
        """The number of requests received, by the first part of their path."""
        return dict(self._received_by_path)

    async def open(self, server: str, count: int, terminals: int, connections: int) -> dict[str, Any]:
        """Opens `count` more streams about the same terminals, and waits for their snapshots."""
        while len(self._connections) < connections:
            self._connections.append(await h2.Connection.open(server))
        request = pb.WatchStatusesRequest(addresses=[address(number) for number in range(terminals)])
        data, complete = request.SerializeToString(), Count()

        def received(message: bytes) -> None:
            if message[0] == _CHANGE_TAG:
                self._changes.add()
            elif pb.WatchStatusesResponse.FromString(message).HasField("snapshot_complete"):
                complete.add()

        for number in range(count):
            connection = self._connections[number % connections]
            self._calls.append((connection, connection.begin(WATCH, data, received, self._end)))
            if number % 64 == 63:
                await asyncio.sleep(0)
        await complete.reaches(count, "snapshots")
        return {"open": len(self._calls)}

    def _end(self) -> None:
        self._ended += 1

    async def fan_out(self, changes: int, publish: bool) -> dict[str, Any]:
        """Measures, `changes` times, how long a change takes to reach all streams; `publish` is for `noop.py`."""
        seconds: list[float] = []
        streams = len(self._calls)
        for _ in range(changes):
            seen, started_s = self._changes.value, time.perf_counter()
            if publish:
                await self._connections[0].ask(PUBLISH, b"")
            else:
                self._toggle(0)
            await self._changes.reaches(seen + streams, "events")
            seconds.append(time.perf_counter() - started_s)
            if self._ended:
                raise LostError(f"{self._ended} streams ended")
        return {"seconds": seconds}

    async def close(self) -> dict[str, Any]:
        """Ends all streams."""
        for connection in self._connections:
            connection.close()
        for source in self._sources:
            if source.transport is not None:
                source.transport.close()
        for reader in self._readers:
            await asyncio.to_thread(reader.close)
        self._connections, self._calls, self._sources, self._readers, self._ended = [], [], [], [], 0
        return {}

    async def open_sse(self, server: str, count: int, terminals: int) -> dict[str, Any]:
        """Opens `count` streams of server-sent events about the same terminals."""
        loop, complete = asyncio.get_running_loop(), Count()
        host, _, port = server.rpartition(":")
        query = "&".join(f"address={address(number)}" for number in range(terminals))
        request = f"GET /v1/terminals:watch?{query} HTTP/1.1\r\nHost: {server}\r\n\r\n".encode()
        for _ in range(count):
            _, source = await loop.create_connection(
                lambda: EventSource(request, complete.add, self._changes.add), host, int(port)
            )
            self._sources.append(source)
        await complete.reaches(count, "snapshots")
        return {"open": len(self._sources)}

    async def change_sse(self, changes: int, terminals: int) -> dict[str, Any]:
        """Changes one terminal after the other, each after the last change reached all streams; counts lost events."""
        before = [source.changes for source in self._sources]
        started_s = time.perf_counter()
        for change in range(changes):
            seen = self._changes.value
            self._toggle(change % terminals)
            await self._changes.reaches(seen + len(self._sources), "events")
        lost = sum(changes - source.changes + count for source, count in zip(self._sources, before, strict=True))
        closed = sum(source.closed for source in self._sources)
        return {"lost": lost, "closed": closed, "seconds": time.perf_counter() - started_s}


async def _run() -> None:
    async with Sandbox(scripted=False) as sandbox:
        world = World(sandbox)
        servers = [await receive(world.on_request), await receive(world.on_request)]
        commands: dict[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]] = {
            method.__name__: method
            for method in (
                *(
                    world.subscribed,
                    world.events,
                    world.hold,
                    world.webhooks,
                    world.waves,
                    world.change,
                    world.received,
                ),
                *(world.open, world.fan_out, world.close, world.open_sse, world.change_sse),
            )
        }
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        print(json.dumps({"sip": sandbox.port, "http": ports[0], "other": ports[1]}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            arguments = json.loads(line)
            print(json.dumps(await commands[arguments.pop("do")](**arguments)), flush=True)


def main() -> None:
    """Runs the commands of standard input."""
    configure_logging("error", "console")
    try:
        uvloop.run(_run())
    except LostError as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    main()
