"""Clients share the gateway fairly: one client's many requests leave the others their share. A gateway with its
workers; the sandbox notifier records the order in which terminals were asked about."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from app.core.subscription_requests import SubscriptionRequest
from app.domain.addresses import TerminalAddress
from app.domain.errors import TerminalStatusError
from app.domain.operations import Face
from app.domain.records import Client
from app.domain.statuses import Status
from app.main import Gateway, run_gateway
from app.sandbox import Sandbox
from app.store import open_store
from tests.support.core import APP, OTHER
from tests.support.settings import settings_for
from tests.support.sip_watcher import terminal
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE = 200
SLACK = 20
"""Set-ups that may have been under way already: the burst of the pace, and what a frame holds."""


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(sandbox: Sandbox) -> AsyncIterator[Gateway]:
    """A gateway that sets up watches slowly, and has no room for more than a storm of fetches."""
    settings = settings_for(
        f"{sandbox.uri};transport=udp", setups_per_s=RATE, max_fetches=3000, fetch_timeout_ms=3000, probe_every_s=0
    )
    async with run_gateway(settings) as running:
        yield running


@asynccontextmanager
async def streaming(gateway: Gateway, client: Client, addresses: Sequence[TerminalAddress]) -> AsyncIterator[None]:
    """A stream of the client over the terminals, with a reader."""

    async def read() -> None:
        async for _ in gateway.use_cases.streams.stream(client, addresses):
            pass

    task = asyncio.create_task(read())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def asked(sandbox: Sandbox, *groups: Sequence[TerminalAddress]) -> list[int]:
    """For each terminal, in the order of its first SUBSCRIBE: the number of its group."""
    whose = {address: number for number, group in enumerate(groups) for address in group}
    return [whose[TerminalAddress(address)] for address in sandbox.counters.subscribes if address in whose]


def before_the_last(order: list[int], few: int, many: int) -> int:
    """How many of `many` came before the last of `few`."""
    last = max(place for place, each in enumerate(order) if each == few)
    return order[:last].count(many)


async def test_new_terminals_of_one_client_leave_another_its_set_ups(sandbox: Sandbox, gateway: Gateway) -> None:
    """While one client wants ever more terminals, another's 200 are set up alternately with them."""
    few, many = [terminal() for _ in range(200)], list[TerminalAddress]()

    def enough(number: int) -> bool:
        return len(asked(sandbox, few, many)) >= number

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(streaming(gateway, APP, few))
        while not all(sandbox.counters.subscribes[address] for address in few):
            more = [terminal() for _ in range(100)]
            many.extend(more)
            await stack.enter_async_context(streaming(gateway, OTHER, more))
            last = len(asked(sandbox, few, many)) + 100
            await until(partial(enough, last))
            assert len(many) <= 10 * len(few), "the other client got nothing"
        assert before_the_last(asked(sandbox, few, many), 0, 1) <= len(few) + SLACK


async def test_terminal_of_two_clients_waits_for_the_one_that_was_served_least(
    sandbox: Sandbox, gateway: Gateway
) -> None:
    """A terminal at the end of one client's long queue is set up at once when another client wants it too."""
    many = [terminal() for _ in range(300)]
    async with streaming(gateway, OTHER, many):
        await until(lambda: asked(sandbox, many))
        shared = many[0]  # the newest is first in a client's own queue
        assert not sandbox.counters.subscribes[shared]
        before = len(asked(sandbox, many))
        async with streaming(gateway, APP, [shared]):
            await until(lambda: sandbox.counters.subscribes[shared])
        assert len(asked(sandbox, many)) <= before + SLACK


async def test_worker_that_is_replaced_sets_up_in_turn(sandbox: Sandbox, gateway: Gateway) -> None:
    """After a worker's replacement, one client's few terminals do not wait for another's many."""
    few, many = [terminal() for _ in range(20)], [terminal() for _ in range(200)]
    async with streaming(gateway, APP, few), streaming(gateway, OTHER, many):
        await until(lambda: len(asked(sandbox, few, many)) == 220)
        sandbox.counters.subscribes.clear()
        pid = gateway.watcher.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: len(asked(sandbox, few, many)) == 220)
        assert before_the_last(asked(sandbox, few, many), 0, 1) <= len(few) + SLACK


async def test_gateway_that_is_started_again_sets_up_in_turn(sandbox: Sandbox, tmp_path: Path) -> None:
    """After a restart, stored subscriptions of clients are set up alternately too, whichever are older."""
    few, many = [terminal() for _ in range(20)], [terminal() for _ in range(200)]
    url = f"sqlite:///{tmp_path}/shares.sqlite3"
    async with await open_store(url) as store:
        for client in (APP, OTHER):
            await store.put_client(client)
    settings = settings_for(f"{sandbox.uri};transport=udp", setups_per_s=0, probe_every_s=0, database_url=url)
    async with run_gateway(settings) as before:
        for client, its in ((APP, few), (OTHER, many)):
            for part in (its[: len(its) // 2], its[len(its) // 2 :]):
                await before.use_cases.subscriptions.create(client, SubscriptionRequest(addresses=part), face=Face.GRPC)
        await until(lambda: len(asked(sandbox, few, many)) == 220)
    sandbox.counters.subscribes.clear()
    async with run_gateway(settings.model_copy(update={"setups_per_s": RATE})):
        await until(lambda: len(asked(sandbox, few, many)) == 220)
        assert before_the_last(asked(sandbox, few, many), 0, 1) <= len(few) + SLACK


async def test_storm_of_silent_fetches_leaves_another_client_its_answers(sandbox: Sandbox, gateway: Gateway) -> None:
    """However many fetches of one client wait, six queries of another are answered, and new watches are set up."""
    stop, outcomes = asyncio.Event(), list[str]()

    async def ask_for_ever() -> None:
        while not stop.is_set():
            try:
                await gateway.use_cases.queries.get_status(OTHER, terminal("silent"), face=Face.GRPC)
            except TerminalStatusError as error:
                outcomes.append(error.code)
                await asyncio.sleep(0.5 if error.code == "GATEWAY_OVERLOADED" else 0)

    storm = [asyncio.create_task(ask_for_ever()) for _ in range(3000)]
    try:
        await until(lambda: "FETCH_TIMED_OUT" in outcomes)
        answers = await asyncio.gather(
            *(gateway.use_cases.queries.get_status(APP, terminal(), face=Face.GRPC) for _ in range(6))
        )
        assert [answer.status for answer in answers] == [Status.REACHABLE] * 6
        watched = [terminal() for _ in range(20)]
        async with streaming(gateway, APP, watched):
            await until(lambda: all(sandbox.counters.subscribes[address] for address in watched))
    finally:
        stop.set()
        for task in storm:
            task.cancel()
        await asyncio.gather(*storm, return_exceptions=True)
    assert set(outcomes) == {"FETCH_TIMED_OUT", "GATEWAY_OVERLOADED"}
