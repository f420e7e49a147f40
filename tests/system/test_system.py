"""The whole system: a real terminal registers at a real Kamailio, and clients query the gateway on every face."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
import zeep
import zeep.exceptions

from app.cli.face_clients import get_status
from app.main import Gateway, run_gateway
from tests.support.kamailio import Kamailio, require
from tests.support.settings import settings_for
from tests.support.sip_terminal import Terminal, unique

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEADLINE_S = 10.0
Ask = Callable[[Gateway, str], Awaitable[str]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kamailio() -> AsyncIterator[Kamailio]:
    """A real registrar and presence server."""
    require()
    async with Kamailio.running() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["udp", "tcp"])
async def gateway(request: pytest.FixtureRequest, kamailio: Kamailio) -> AsyncIterator[Gateway]:
    """A gateway that watches at Kamailio."""
    server = f"sip:{kamailio.host}:{kamailio.port};transport={request.param}"
    async with run_gateway(settings_for(server)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def terminal(kamailio: Kamailio) -> AsyncIterator[Terminal]:
    """A terminal of its own for each test."""
    async with Terminal(kamailio.host, kamailio.port, f"sip:t{unique()}@example.com") as connected:
        yield connected


def through(face: str) -> Ask:
    """Queries through one face; returns the status or the error's code."""

    async def question(gateway: Gateway, address: str) -> str:
        server = gateway.grpc_address if face == "grpc" else gateway.http_address
        answer = await asyncio.to_thread(get_status, face, server, address, 5)
        return str(answer.get("status") or answer["code"])

    return question


async def through_zeep(gateway: Gateway, address: str) -> str:
    """Queries with a client that zeep makes from the gateway's WSDL."""

    def call() -> str:
        wsdl = f"http://{gateway.http_address}/parlayx/TerminalStatus?wsdl"
        with zeep.Client(wsdl) as client:  # type: ignore[no-untyped-call]  # zeep has no types
            try:
                return str(client.service.getStatus(address=address)).upper()
            except zeep.exceptions.Fault as fault:
                return str(fault.detail.findtext(".//messageId"))

    return await asyncio.to_thread(call)


FACES: dict[str, Ask] = {
    "grpc": through("grpc"),
    "rest": through("rest"),
    "soap": through("soap"),
    "zeep": through_zeep,
}


async def becomes(gateway: Gateway, address: str, status: str) -> None:
    """Waits until the first face has this answer (a REGISTER becomes presence after its 200), then queries every other
    face."""
    async with asyncio.timeout(DEADLINE_S):
        while (reported := await FACES["grpc"](gateway, address)) != status:
            assert reported in {"REACHABLE", "BUSY", "UNREACHABLE"}
            await asyncio.sleep(0.02)  # between two queries, so that Kamailio does not hold hundreds of transactions
    assert {name: await face(gateway, address) for name, face in FACES.items()} == dict.fromkeys(FACES, status)


async def test_life_of_a_terminal(gateway: Gateway, terminal: Terminal) -> None:
    """A terminal is unreachable before it registers, then reachable, busy on the phone, reachable, and unreachable
    after it unregisters."""
    await becomes(gateway, terminal.address, "UNREACHABLE")
    await terminal.register()
    await becomes(gateway, terminal.address, "REACHABLE")
    await terminal.publish(activity="on-the-phone")
    await becomes(gateway, terminal.address, "BUSY")
    await terminal.unpublish()
    await becomes(gateway, terminal.address, "REACHABLE")
    await terminal.publish(activity="on-the-phone")
    await becomes(gateway, terminal.address, "BUSY")
    await terminal.unregister()
    await becomes(gateway, terminal.address, "UNREACHABLE")


@pytest.mark.parametrize(
    ("address", "code", "parlayx"),
    [
        ("sip:nobody@example.com", "TERMINAL_UNKNOWN", "SVC0004"),
        ("sip:someone@unknown.example.com", "TERMINAL_UNKNOWN", "SVC0004"),
        ("sip:forbidden@example.com", "WATCHER_REFUSED", "POL0002"),
    ],
)
async def test_refusals(gateway: Gateway, address: str, code: str, parlayx: str) -> None:
    """A terminal that is not provisioned is unknown, and one that refuses is refused, with the right code on every
    face."""
    reported = {name: await face(gateway, address) for name, face in FACES.items()}
    assert reported == {"grpc": code, "rest": code, "soap": parlayx, "zeep": parlayx}


async def test_presence_server_goes_and_returns() -> None:
    """While Kamailio is away queries fail, and never answer unreachable; when it returns, so do answers."""
    require()
    async with Kamailio.running() as first:
        port = first.port
        async with run_gateway(settings_for(f"sip:{first.host}:{port}", fetch_timeout_ms=300)) as gateway:
            assert await FACES["grpc"](gateway, "sip:t@example.com") == "UNREACHABLE"
            await first.stop()
            assert await FACES["grpc"](gateway, "sip:t@example.com") in {"PRESENCE_UNAVAILABLE", "FETCH_TIMED_OUT"}
            async with Kamailio.running(port=port):
                assert await FACES["grpc"](gateway, "sip:t@example.com") == "UNREACHABLE"
