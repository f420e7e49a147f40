"""Baselines: the gateway's libraries alone, as servers that do nothing and as loops.

Run as `python -m bench.programs.noop WHAT …`. `grpc` and `rest` are servers on free loopback ports; they print one line
of JSON (`address`) and serve until they are terminated. `grpc` is a grpc.aio server: GetStatus returns a constant,
WatchStatuses is an idle stream, and Publish sends one message to all streams. `rest` is a FastAPI app on the gateway's
own uvicorn settings, which returns constant bytes. `spyne` and `http` are loops, which print how long they took
(`seconds`): in-process calls of a Spyne no-op, and POSTs by the gateway's HTTP client, one after the other on one
connection.

Invariants: answers and messages have the gateway's types and sizes. The event loop is the gateway's (uvloop).
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import grpc.aio
import uvloop
from fastapi import FastAPI, Response

import soap_compat  # noqa: F401  # Python 3.12 imports Spyne only after it

# isort: split
from spyne import Application, MethodContext, Service, Unicode, rpc
from spyne.protocol.soap import Soap11
from spyne.server import ServerBase

from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1 import terminal_status_pb2_grpc as pb_grpc
from app.servers import bound, serve_http
from bench.processes import NOOP_PATH, PUBLISH

ADDRESS = "sip:terminal-1@bench.example.com"
JSON = (
    b'{"address":"sip:terminal-1@bench.example.com","status":"REACHABLE",'
    b'"observe_time":"2026-01-02T03:04:05.678901Z","source":"WATCH","revision":1}'
)
EVENT = b"x" * 500
"""As long as the gateway's webhook for one change."""

NAMESPACE = "http://www.csapi.org/schema/parlayx/terminal_status/v2_2/local"
ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    f' xmlns:loc="{NAMESPACE}"><soapenv:Header/><soapenv:Body>'
    f"<loc:getStatus><loc:address>{ADDRESS}</loc:address></loc:getStatus></soapenv:Body></soapenv:Envelope>"
).encode()


def a_status(revision: int = 1) -> pb.TerminalStatus:
    """A terminal status as the gateway sends it."""
    status = pb.TerminalStatus(address=ADDRESS, status=pb.STATUS_REACHABLE, source=pb.SOURCE_WATCH, revision=revision)
    status.observe_time.FromNanoseconds(1_767_323_045_678_901_000)
    return status


class NoopServicer(pb_grpc.TerminalStatusServiceServicer):
    """Answers at once; keeps streams open, and sends published messages to all of them."""

    def __init__(self) -> None:
        self._answer = pb.GetStatusResponse(status=a_status())
        self._first = pb.WatchStatusesResponse(snapshot_complete=pb.SnapshotComplete(resume_token="token"))
        self._mailboxes: list[asyncio.Queue[pb.WatchStatusesResponse]] = []
        self._published = 0

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:  # noqa: N802
        return self._answer

    async def WatchStatuses(self, request: pb.WatchStatusesRequest, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        mailbox: asyncio.Queue[pb.WatchStatusesResponse] = asyncio.Queue()
        self._mailboxes.append(mailbox)
        await context.write(self._first)
        while True:
            await context.write(await mailbox.get())

    async def QueryStatuses(self, request: pb.QueryStatusesRequest, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        return None

    async def FollowStatuses(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        return None

    async def publish(self, request: bytes, context: Any) -> bytes:
        """Sends one message to all streams; grpc.aio serialises it for each."""
        self._published += 1
        message = pb.WatchStatusesResponse(change=pb.StatusChange(status=a_status(self._published)))
        for mailbox in self._mailboxes:
            mailbox.put_nowait(message)
        return b""


async def serve_grpc() -> None:
    """Runs the grpc.aio server until it is terminated."""
    server, servicer = grpc.aio.server(), NoopServicer()
    pb_grpc.add_TerminalStatusServiceServicer_to_server(servicer, server)
    service, _, method = PUBLISH[1:].partition("/")
    handler: Any = grpc.unary_unary_rpc_method_handler(servicer.publish)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
    await server.wait_for_termination()


async def serve_rest() -> None:
    """Runs the FastAPI app until it is terminated."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get(NOOP_PATH)
    async def noop() -> Response:
        return Response(JSON, media_type="application/json")

    with bound("127.0.0.1:0") as sock:
        async with serve_http(app, sock, None):
            print(json.dumps({"address": f"127.0.0.1:{sock.getsockname()[1]}"}), flush=True)
            await asyncio.Event().wait()


class _Noop(Service):  # type: ignore[misc]  # Spyne has no types
    @rpc(Unicode, _returns=Unicode)  # type: ignore[untyped-decorator]  # likewise
    def getStatus(ctx: Any, address: str) -> str:  # noqa: N802, N805  # the contract's name; Spyne passes the context
        return "Reachable"


def loop_spyne(count: int) -> float:
    """The seconds that `count` in-process calls take, from bytes to bytes."""
    server = ServerBase(Application([_Noop], NAMESPACE, in_protocol=Soap11(), out_protocol=Soap11()))

    def call() -> bytes:
        initial = MethodContext(server, MethodContext.SERVER)
        initial.in_string = [ENVELOPE]
        (ctx,) = server.generate_contexts(initial)
        server.get_in_object(ctx)
        server.get_out_object(ctx)
        server.get_out_string(ctx)
        return b"".join(ctx.out_string)

    assert b">Reachable<" in call()
    return _timed(call, count)


def _timed(call: Callable[[], object], count: int) -> float:
    for _ in range(count // 2):
        call()
    started_s = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - started_s


async def loop_http(url: str, count: int) -> float:
    """The seconds that `count` POSTs take, one after the other."""
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def post() -> None:
            async with session.post(url, data=EVENT, headers={"Content-Type": "application/json"}) as response:
                await response.read()
                response.raise_for_status()

        for _ in range(count // 2):
            await post()
        started_s = time.perf_counter()
        for _ in range(count):
            await post()
        return time.perf_counter() - started_s


def main() -> None:
    """Serves, or measures and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.programs.noop", description="Baselines: the gateway's libraries alone."
    )
    kinds = parser.add_subparsers(dest="what", required=True)
    kinds.add_parser("grpc")
    kinds.add_parser("rest")
    kinds.add_parser("spyne").add_argument("count", type=int, help="calls")
    http = kinds.add_parser("http")
    http.add_argument("url", help="the receiver's URL")
    http.add_argument("count", type=int, help="POSTs")
    arguments = parser.parse_args()
    servers: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {"grpc": serve_grpc, "rest": serve_rest}
    if serve := servers.get(arguments.what):
        uvloop.run(serve())
    else:
        loop = uvloop.run(loop_http(arguments.url, arguments.count)) if arguments.what == "http" else None
        seconds = loop_spyne(arguments.count) if loop is None else loop
        print(json.dumps({"count": arguments.count, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
