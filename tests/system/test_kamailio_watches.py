"""Kamailio is stopped and restarted under watches: no watch is lost, and no change is invented.

`make outage WATCHES=2000 STOP_S=120` does the same for longer.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from app.domain.addresses import parse_address
from app.domain.statuses import Liveness
from tests.support.kamailio import Kamailio, require
from tests.support.sip_terminal import Terminal, unique
from tests.support.sip_watcher import started, watching

pytestmark = pytest.mark.asyncio(loop_scope="module")

WATCHES = int(os.environ.get("WATCHES") or 100)
STOP_S = float(os.environ.get("STOP_S") or 0)
DEADLINE_S = 30 + WATCHES / 50


async def until(condition: Callable[[], bool]) -> float:
    """Waits for the condition; returns the seconds that it took."""
    started_s = time.monotonic()
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in other processes
            await asyncio.sleep(0.02)
    return time.monotonic() - started_s


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kamailio() -> AsyncIterator[Kamailio]:
    """A Kamailio that the test stops and restarts."""
    require()
    async with Kamailio.running() as running:
        yield running


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_outage(kamailio: Kamailio, transport: str) -> None:
    """While Kamailio is away all watches are STALE; afterwards they are LIVE by themselves, and later changes are
    reported."""
    server = f"{kamailio.uri};transport={transport}"
    async with (
        watching(server, probe_every_s=1, setups_per_s=500) as (watcher, observer),
        Terminal(kamailio.host, kamailio.port, f"sip:t{unique()}@example.com") as terminal,
    ):
        addresses = [parse_address(f"sip:{unique()}@example.com") for _ in range(WATCHES)]
        changing = parse_address(terminal.address)
        for address in (*addresses, changing):
            watcher.watch(address)
        set_up_s = await until(lambda: observer.live([*addresses, changing]))
        await until(lambda: watcher.counts().routes_up == [True] and watcher.counts().states == {"active": WATCHES + 1})
        pid = watcher.worker_pid
        await kamailio.stop()
        stale_s = await until(lambda: all(observer.liveness(each) is Liveness.STALE for each in addresses))
        stopped_s = time.monotonic()
        while time.monotonic() < stopped_s + STOP_S:
            await asyncio.sleep(1)
            assert all(observer.liveness(each) is Liveness.STALE for each in addresses)
        await kamailio.start_again()
        live_s = await until(lambda: observer.live([*addresses, changing]))
        for address in addresses:
            assert set(observer.bodies(address)) == {b""}, "nobody registered there"
        assert (len(await watcher.watches()), watcher.worker_pid) == (WATCHES + 1, pid)
        before = len(observer.bodies(changing))
        await terminal.register()
        await until(lambda: len(observer.bodies(changing)) > before and b"open" in observer.bodies(changing)[-1])
        print(  # noqa: T201  # for a run by hand
            f"{transport}: {WATCHES} watches set up in {set_up_s:.1f} s; STALE {stale_s:.1f} s after the stop, "
            f"LIVE {live_s:.1f} s after the start {STOP_S:.0f} s later; {watcher.counts().subscribes_sent} SUBSCRIBEs"
        )


async def test_registration_at_kamailio(kamailio: Kamailio) -> None:
    """The watcher registers at Kamailio where settings say so, and watches as before."""
    server = f"{kamailio.uri};transport=udp"
    registrar, identity = kamailio.uri, "sip:gateway@example.com"
    async with watching(server, sip_registrar=registrar, watcher_identity=identity) as (watcher, observer):
        await until(lambda: watcher.counts().registered)
        await started(watcher, observer, parse_address(f"sip:{unique()}@example.com"))


async def test_credentials_at_kamailio(kamailio: Kamailio) -> None:
    """The watcher answers the digest challenge of a real server."""
    settings = {"sip_username": "watcher", "sip_password": "secret"}
    async with watching(f"{kamailio.uri};transport=tcp", **settings) as (watcher, observer):  # type: ignore[arg-type]
        address = parse_address("sip:private@example.com")
        assert (await watcher.fetch(address)).body == b""
        await started(watcher, observer, address)
        watcher.refresh(address)
        await until(lambda: len(observer.bodies(address)) == 2)
