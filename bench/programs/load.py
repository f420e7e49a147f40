"""The callers: sends queries to a running gateway through one face in a closed loop, and measures the gateway's cost.

Run as `python -m bench.programs.load FACE HOST:PORT PID …` with the gateway's PID; prints one line of JSON. The face
`floor` is grpc.health.v1's Check on the gRPC server, a call that does nothing; `noop` is the FastAPI handler of
`noop.py`. Each query is for another terminal, so that no two share a fetch, and every answer must be REACHABLE. With
`--watched`, queries go in turn to that number of watched terminals, and must be answered from the watch. With
`--beside`, two servers get blocks of queries in turn, so that a change of the machine's speed affects both.

Invariants: this process is not measured, so its clients are lean: a gRPC stub on one channel, or `../h2.py` for watched
terminals, where the stub would cost more than the server; for REST and SOAP a few lines of HTTP/1.1 on kept-alive
connections. The gateway's CPU is read right before and after the loaded part, after a warm-up.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, cast

import grpc.aio
import uvloop
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1 import terminal_status_pb2_grpc as pb_grpc
from bench import h2
from bench.h2 import LostError
from bench.processes import NOOP_PATH, cpu_seconds, resident_bytes

_LIMIT_S = 60
_BURST_EVERY_S = 1.0
_BLOCKS = 10
MAX_AGE_S = 60
_GET_STATUS = "/terminalstatus.v1.TerminalStatusService/GetStatus"


class Caller(Protocol):
    """Sends one query at a time."""

    async def ask(self, number: int) -> None:
        """Queries terminal `number`. Raises LostError if the answer is not REACHABLE."""

    async def aclose(self) -> None:
        """Ends the connection."""


class GrpcCaller:
    """The generated stub; all callers share the channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._get_status = pb_grpc.TerminalStatusServiceStub(channel).GetStatus

    async def ask(self, number: int) -> None:
        """See `Caller`."""
        try:
            answer = await self._get_status(pb.GetStatusRequest(address=_address(number)), timeout=_LIMIT_S)
        except grpc.aio.AioRpcError as error:
            raise LostError(f"{error.code().name}: {error.details()}") from None
        if answer.status.status != pb.STATUS_REACHABLE:
            raise LostError(str(answer))

    async def aclose(self) -> None:
        """See `Caller`."""


class WatchedCaller:
    """Frames of a few bytes; all callers share the connection."""

    def __init__(self, connection: h2.Connection, watched: int) -> None:
        self._connection = connection
        self._requests = [
            pb.GetStatusRequest(address=_address(number), max_age=Duration(seconds=MAX_AGE_S)).SerializeToString()
            for number in range(watched)
        ]

    async def ask(self, number: int) -> None:
        """See `Caller`."""
        data = await self._connection.ask(_GET_STATUS, self._requests[number % len(self._requests)])
        status = pb.GetStatusResponse.FromString(data).status
        if status.status != pb.STATUS_REACHABLE or status.source != pb.SOURCE_WATCH:
            raise LostError(str(status))

    async def aclose(self) -> None:
        """See `Caller`."""
        self._connection.close()


class FloorCaller:
    """Calls that need no terminal and no SIP."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # set when the stub is made

    async def ask(self, number: int) -> None:
        """See `Caller`."""
        await self._check(health_pb2.HealthCheckRequest(), timeout=_LIMIT_S)

    async def aclose(self) -> None:
        """See `Caller`."""


class HttpCaller(asyncio.Protocol):
    """One kept-alive connection; `request` makes the bytes of a request; the wanted answer contains `reachable`."""

    def __init__(self, request: Callable[[int], bytes], reachable: bytes) -> None:
        self._request = request
        self._reachable = reachable
        self._buffer = b""
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    async def ask(self, number: int) -> None:
        """See `Caller`."""
        assert self._transport is not None
        self._buffer = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(self._request(number))
        answer = await self._answer
        if not answer.startswith(b"HTTP/1.1 200 ") or self._reachable not in answer:
            raise LostError(answer.decode(errors="replace"))

    async def aclose(self) -> None:
        """See `Caller`."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class only has the same methods

    def data_received(self, data: bytes) -> None:
        """Collects an answer; both faces send Content-Length."""
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if blank:
            length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
            if len(body) >= length and not self._answer.done():
                self._answer.set_result(self._buffer)

    def connection_lost(self, exc: Exception | None) -> None:
        """The gateway closed the connection."""
        if not self._answer.done():
            self._answer.set_exception(LostError(f"the connection was closed: {exc}"))
            with suppress(LostError):
                self._answer.exception()  # nobody may be waiting


def _address(number: int) -> str:
    return f"sip:terminal-{number}@bench.example.com"


def _rest_request(host: str, watched: int) -> Callable[[int], bytes]:
    query = f"?max_age_s={MAX_AGE_S}" if watched else ""

    def request(number: int) -> bytes:
        terminal = _address(number % watched if watched else number)
        return f"GET /v1/terminals/{terminal}/status{query} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    return request


def _noop_request(host: str) -> Callable[[int], bytes]:
    data = f"GET {NOOP_PATH} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    return lambda _: data


def _soap_request(host: str, watched: int) -> Callable[[int], bytes]:
    envelope = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
        ' xmlns:loc="http://www.csapi.org/schema/parlayx/terminal_status/v2_2/local"><soapenv:Header/><soapenv:Body>'
        "<loc:getStatus><loc:address>{}</loc:address></loc:getStatus></soapenv:Body></soapenv:Envelope>"
    )

    def request(number: int) -> bytes:
        body = envelope.format(_address(number % watched if watched else number))
        return (
            f"POST /parlayx/TerminalStatus HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/xml; charset=utf-8\r\n"
            f'SOAPAction: ""\r\nContent-Length: {len(body)}\r\n\r\n{body}'
        ).encode()

    return request


_DIRECT = [("grpc.enable_http_proxy", 0)]
_GRPC_CALLERS: dict[str, Callable[[grpc.aio.Channel], Caller]] = {"grpc": GrpcCaller, "floor": FloorCaller}


class Load:
    """The callers of one face."""

    def __init__(self, face: str, server: str, pid: int, watched: int = 0) -> None:
        self._face = face
        self._server = server
        self._pid = pid
        self._watched = watched
        self._channel: grpc.aio.Channel | None = None
        self._callers: list[Caller] = []
        self._asked = 0

    async def open(self, concurrency: int) -> None:
        """Opens the callers' connections."""
        loop = asyncio.get_running_loop()
        host, _, port = self._server.rpartition(":")
        if self._face == "grpc" and self._watched:
            connection = await h2.Connection.open(self._server)
            self._callers = [WatchedCaller(connection, self._watched) for _ in range(concurrency)]
            return
        if self._face in _GRPC_CALLERS:
            self._channel = channel = grpc.aio.insecure_channel(self._server, options=_DIRECT)
            await channel.channel_ready()
            self._callers = [_GRPC_CALLERS[self._face](channel) for _ in range(concurrency)]
            return
        request, reachable = {
            "rest": (_rest_request(self._server, self._watched), b'"WATCH"' if self._watched else b'"REACHABLE"'),
            "noop": (_noop_request(self._server), b'"REACHABLE"'),
            "soap": (_soap_request(self._server, self._watched), b">Reachable<"),
        }[self._face]
        for _ in range(concurrency):
            _, caller = await loop.create_connection(lambda: HttpCaller(request, reachable), host, int(port))
            self._callers.append(caller)

    async def aclose(self) -> None:
        """Closes the callers' connections."""
        for caller in self._callers:
            await caller.aclose()
        if self._channel is not None:
            await self._channel.close()

    async def run(self, count: int, concurrency: int) -> list[float]:
        """Sends `count` queries, `concurrency` at once; returns the seconds that each took."""
        last = self._asked + count
        took_s: list[float] = []

        async def ask_on(caller: Caller) -> None:
            while self._asked < last:
                self._asked += 1
                asked_s = time.perf_counter()
                await caller.ask(self._asked)
                took_s.append(time.perf_counter() - asked_s)

        async with asyncio.TaskGroup() as group:
            for caller in self._callers[:concurrency]:
                group.create_task(ask_on(caller))
        return took_s

    async def one_by_one(self, count: int) -> list[float]:
        """The seconds that each of `count` queries took, one after the other. gRPC uses the blocking stub, because
        grpc.aio's client would add half a millisecond of its own."""
        if self._face not in _GRPC_CALLERS or self._watched:
            return await self.run(count, 1)
        took_s: list[float] = []
        with grpc.insecure_channel(self._server, options=_DIRECT) as channel:
            get_status = pb_grpc.TerminalStatusServiceStub(channel).GetStatus
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # set when the stub is made
            for number in range(self._asked, self._asked + count):
                request = pb.GetStatusRequest(address=_address(number))
                asked_s = time.perf_counter()
                if self._face == "floor":
                    check(health_pb2.HealthCheckRequest(), timeout=_LIMIT_S)
                elif get_status(request, timeout=_LIMIT_S).status.status != pb.STATUS_REACHABLE:
                    raise LostError(str(number))
                took_s.append(time.perf_counter() - asked_s)
        return took_s

    async def warm(self, count: int, concurrency: int) -> None:
        """Opens the callers, and sends half of `count` queries."""
        await self.open(concurrency)
        await self.run(max(count // 2, 1), concurrency)

    async def loaded(self, count: int, concurrency: int) -> dict[str, float]:
        """The time that the closed loop took, and its CPU cost to the server."""
        cpu_s, started_s = cpu_seconds(self._pid), time.perf_counter()
        await self.run(count, concurrency)
        seconds, cpu_s = time.perf_counter() - started_s, cpu_seconds(self._pid) - cpu_s
        return {"count": count, "seconds": seconds, "cpu_seconds": cpu_s}

    async def measure(self, count: int, concurrency: int, single: int) -> dict[str, Any]:
        """The figures of the closed loop, and of single queries."""
        await self.warm(count, concurrency)
        return {**await self.loaded(count, concurrency), "single_s": await self.one_by_one(single)}

    async def beside(self, other: "Load", count: int, concurrency: int) -> dict[str, list[dict[str, float]]]:
        """The figures of the closed loop in blocks, alternately with this server (`own`) and with the other."""
        for load in (self, other):
            await load.warm(count, concurrency)
        blocks: dict[str, list[dict[str, float]]] = {"own": [], "other": []}
        for number in range(_BLOCKS):
            pair = [("own", self), ("other", other)]
            for name, load in pair if number % 2 else reversed(pair):
                blocks[name].append(await load.loaded(max(count // _BLOCKS, 1), concurrency))
        return blocks

    async def burst(self, size: int, times: int) -> dict[str, Any]:
        """Sends `size` queries at once, `times` times; counts answers, and the gateway's memory after each burst."""
        await self.open(size)
        answered: list[int] = []
        resident: list[int] = []
        seconds: list[float] = []
        lost = ""
        for _ in range(times):
            if seconds and seconds[-1] < _BURST_EVERY_S:
                await asyncio.sleep(_BURST_EVERY_S - seconds[-1])
            started_s = time.perf_counter()
            answers = await asyncio.gather(
                *(caller.ask(self._asked + number) for number, caller in enumerate(self._callers)),
                return_exceptions=True,
            )
            seconds.append(time.perf_counter() - started_s)
            self._asked += size
            failed = [answer for answer in answers if answer is not None]
            lost = lost or (str(failed[0]) if failed else "")
            answered.append(size - len(failed))
            resident.append(resident_bytes(self._pid))
        return {"answered": answered, "resident_bytes": resident, "seconds": seconds, "lost": lost}


async def _main(arguments: argparse.Namespace) -> dict[str, Any]:
    load = Load(arguments.face, arguments.server, arguments.pid, arguments.watched)
    other: Load | None = None
    if arguments.beside:
        face, server, pid = arguments.beside
        other = Load(face, server, int(pid), arguments.watched)
    try:
        async with asyncio.timeout(_LIMIT_S):
            if other is not None:
                return await load.beside(other, arguments.count, arguments.concurrency)
            if arguments.bursts:
                return await load.burst(arguments.count, arguments.bursts)
            return await load.measure(arguments.count, arguments.concurrency, arguments.single)
    finally:
        await load.aclose()
        if other is not None:
            await other.aclose()


def main() -> None:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.programs.load", description="Queries a gateway in a closed loop."
    )
    parser.add_argument("face", choices=["grpc", "rest", "soap", "floor", "noop"])
    parser.add_argument("server", help="HOST:PORT of the face")
    parser.add_argument("pid", type=int, help="the gateway's process")
    parser.add_argument("--count", type=int, default=3000, help="fetches of the loaded part, or of a burst")
    parser.add_argument("--concurrency", type=int, default=32, help="queries at once in the loaded part")
    parser.add_argument("--single", type=int, default=400, help="fetches one after the other")
    parser.add_argument("--watched", type=int, default=0, help="query this number of terminals, which are watched")
    parser.add_argument("--bursts", type=int, default=0, help="instead: this number of bursts of COUNT queries")
    parser.add_argument(
        "--beside",
        nargs=3,
        metavar=("FACE", "SERVER", "PID"),
        help="query this server too, alternately; without --single",
    )
    arguments = parser.parse_args()
    try:
        found = uvloop.run(_main(arguments))
    except* (LostError, OSError) as errors:
        sys.exit(f"{arguments.face}: {errors.exceptions[0]}")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
