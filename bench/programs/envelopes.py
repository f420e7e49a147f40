"""The CPU of one SOAP call in process: the gateway's own reader and writer, or Spyne's Soap11 on the same model.

Run as `python -m bench.programs.envelopes own|soap11 TERMINALS COUNT`; prints one line of JSON: `seconds` of CPU for
COUNT calls, from the request's bytes to the answer's. With TERMINALS 0 each call is getStatus, otherwise
getStatusForGroup of that number of terminals. The use cases answer at once, and every caller is known, so nearly all of
the time is that of reading and writing XML.

Invariants: both read and write the same messages, of the models in `soap_compat/contract_types.py`, and check the
values of the parts (Soap11 by its validator `soft`).
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import soap_compat  # noqa: F401  # Python 3.12 imports Spyne only after it

# isort: split
from spyne import Application, MethodContext, Service, rpc
from spyne.protocol.soap import Soap11
from spyne.server import ServerBase

from app.auth.credentials import Credentials
from app.core.queries import RetrievalStatus, TerminalResult
from app.domain.addresses import parse_address
from app.domain.records import Client
from app.domain.statuses import Source, Status, TerminalStatus
from soap_compat.contract_types import ONCE, Addresses, StatusData, StatusWord, Uri
from soap_compat.interface import Interface
from soap_compat.operations import INTERFACES, UseCases
from soap_compat.versions import TERMINAL_STATUS

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CLIENT = Client(id="bench", name="bench", created_at=NOW)
WARM_UP = 20

Call = Callable[[], Awaitable[bytes]]


def request(terminals: int) -> bytes:
    """The request's envelope."""
    name, part = ("getStatusForGroup", "addresses") if terminals else ("getStatus", "address")
    parts = "".join([f"<loc:{part}>{_address(number)}</loc:{part}>" for number in range(max(1, terminals))])
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
        f' xmlns:loc="{TERMINAL_STATUS}"><soapenv:Header/><soapenv:Body>'
        f"<loc:{name}>{parts}</loc:{name}></soapenv:Body></soapenv:Envelope>"
    ).encode()


def _address(number: int) -> str:
    return f"sip:terminal-{number}@bench.example.com"


class _Queries:
    """Answers every query at once."""

    async def get_status(self, client: Client, address: str, **_: object) -> TerminalStatus:
        return _status(address)

    async def query(self, client: Client, addresses: list[str], **_: object) -> AsyncIterator[TerminalResult]:
        for address in addresses:
            status = _status(address)
            yield TerminalResult(address=status.address, retrieval=RetrievalStatus.RETRIEVED, status=status)


def _status(address: str) -> TerminalStatus:
    return TerminalStatus(
        address=parse_address(address), status=Status.REACHABLE, observed_at=NOW, source=Source.WATCH, revision=1
    )


class _Everybody:
    def known(self, caller: Credentials) -> Client:
        return CLIENT


def own(body: bytes) -> Call:
    """A call through the gateway's own reader and writer."""
    nothing: Any = None
    queries: Any = _Queries()
    everybody: Any = _Everybody()
    interface = Interface(
        *INTERFACES["TerminalStatus"], UseCases(queries=queries, subscriptions=nothing, usage=nothing), everybody
    )

    async def read() -> tuple[bytes, bool]:
        return body, False

    async def call() -> bytes:
        return (await interface.answer(read, "utf-8", Credentials())).envelope

    return call


def _get_status(_: Any, address: str) -> str:
    parse_address(address)
    return "Reachable"


def _get_status_for_group(_: Any, addresses: list[str]) -> list[Any]:
    return [
        StatusData(address=str(parse_address(address)), reportStatus="Retrieved", currentStatus="Reachable")
        for address in addresses
    ]


class _TerminalStatus(Service):  # type: ignore[misc]  # Spyne has no types
    getStatus = rpc(Uri, _args=["address"], _returns=StatusWord(**ONCE), _out_variable_name="result")(  # noqa: N815
        _get_status
    )
    getStatusForGroup = rpc(  # noqa: N815
        Addresses,
        _args=["addresses"],
        _returns=StatusData.customize(max_occurs="unbounded"),
        _out_variable_name="result",
    )(_get_status_for_group)


def soap11(body: bytes) -> Call:
    """A call through Spyne's Soap11."""
    protocols = {"in_protocol": Soap11(validator="soft"), "out_protocol": Soap11()}
    server = ServerBase(Application([_TerminalStatus], TERMINAL_STATUS, "TerminalStatus", **protocols))

    async def call() -> bytes:
        context = MethodContext(server, MethodContext.SERVER)
        context.in_string = [body]
        (context,) = server.generate_contexts(context)
        server.get_in_object(context)
        server.get_out_object(context)
        server.get_out_string(context)
        return b"".join(context.out_string)

    return call


async def measure(call: Call, terminals: int, count: int) -> float:
    """The CPU of `count` calls, in seconds."""
    for _ in range(WARM_UP if not terminals else 1):
        answer = await call()
        found = answer.count(b"Reachable")
        if found != max(1, terminals):
            raise SystemExit(f"envelopes: {found} statuses in the answer, not {max(1, terminals)}")
    began_s = time.process_time()
    for _ in range(count):
        await call()
    return time.process_time() - began_s


def main() -> None:
    """Measures, and prints the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("own", "soap11"))
    parser.add_argument("terminals", type=int)
    parser.add_argument("count", type=int)
    asked = parser.parse_args()
    body = request(asked.terminals)
    call = own(body) if asked.what == "own" else soap11(body)
    print(json.dumps({"seconds": asyncio.run(measure(call, asked.terminals, asked.count))}))


if __name__ == "__main__":
    main()
