"""The gateway is killed at any moment: the next one delivers everything that was owed, in order.

Everything is real: `terminal-status serve` as a process over SQLite, the sandbox as presence server, and an HTTP
receiver.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from app.domain.statuses import Status
from app.pb.terminalstatus.v1 import (
    subscription_pb2,
    subscription_pb2_grpc,
    terminal_status_pb2,
    terminal_status_pb2_grpc,
)
from app.sandbox import Sandbox
from app.sip.supervisor import HANG_LIMIT_S, PING_EVERY_S
from tests.support.grpc_streams import until_status
from tests.support.receivers import Receiver, Request, answer, receiver

KILLS = 4
SEED = 20261123


AWAY_S = float(os.environ.get("AWAY_S", "1"))
"""How long a receiver is away; `make away` has it longer."""
LIMIT_S = 60.0
PAUSE_S = float(os.environ.get("PAUSE_S", str(HANG_LIMIT_S + PING_EVERY_S)))
FLIP_S = 0.02
USERS = ("frank", "grace", "heidi")


@dataclass
class Process:
    """A gateway process and its addresses."""

    process: asyncio.subprocess.Process
    grpc_address: str


@asynccontextmanager
async def serving(folder: Path, sandbox: Sandbox, port: int) -> AsyncIterator[Process]:
    """A gateway on this gRPC port (0: any); killed at the end if it still runs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TS_")}
    environment |= {
        "TS_PRESENCE_SERVER": sandbox.uri,
        "TS_GRPC_LISTEN": f"127.0.0.1:{port}",
        "TS_HTTP_LISTEN": "127.0.0.1:0",
        "TS_DATABASE_URL": f"sqlite:///{folder}/crash.sqlite3",
        "TS_SINK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "TS_SINK_ALLOW_HTTP": "true",
        "TS_LOG_LEVEL": "warning",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.cli", "serve", "--json", env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            where = json.loads(await process.stdout.readline())
        yield Process(process, where["grpc"])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def subscribe(grpc_address: str, url: str) -> str:
    async with grpc.aio.insecure_channel(grpc_address) as channel:
        answered = await subscription_pb2_grpc.SubscriptionServiceStub(channel).CreateSubscription(
            subscription_pb2.CreateSubscriptionRequest(
                addresses=[f"sip:{user}@example.com" for user in USERS],
                sink=subscription_pb2.Sink(
                    webhook=subscription_pb2.WebhookSink(uri=url, handshake=subscription_pb2.SINK_HANDSHAKE_NONE)
                ),
            ),
            timeout=LIMIT_S,
        )
    return answered.subscription.id


async def flip(sandbox: Sandbox, rng: random.Random, each_s: float = FLIP_S) -> None:
    """Changes statuses without pause."""
    while True:
        sandbox.set_status(rng.choice(USERS), rng.choice(list(Status)))
        await asyncio.sleep(each_s)


def events_of(endpoint: Receiver) -> list[dict[str, object]]:
    """The events, each at its first arrival."""
    seen: dict[str, dict[str, object]] = {}
    for request in endpoint.requests:
        if len(request.body) != int(request.headers.get("content-length", "-1")):
            continue  # its sender was killed while sending
        event = json.loads(request.body)
        seen.setdefault(event["id"], event)
    return list(seen.values())


async def test_kill_at_any_moment(tmp_path: Path) -> None:
    """The gateway is killed again and again amid changes and deliveries: every owed event arrives in order under one
    id, and the last event of each terminal has its current status."""
    rng = random.Random(SEED)
    async with Sandbox("127.0.0.1", 0, scripted=False) as sandbox, receiver(answer(200)) as endpoint:
        for user in USERS:
            sandbox.set_status(user, Status.UNREACHABLE)
        port = 0
        for number in range(KILLS + 1):
            async with serving(tmp_path, sandbox, port) as gateway:
                if not number:
                    await subscribe(gateway.grpc_address, endpoint.url)
                    port = int(gateway.grpc_address.rpartition(":")[2])
                flipping = asyncio.create_task(flip(sandbox, rng))
                await asyncio.sleep(rng.uniform(0.05, 1.0))
                flipping.cancel()
                if number < KILLS:
                    gateway.process.send_signal(signal.SIGKILL)
                    await gateway.process.wait()
                    continue
                for user in USERS:
                    sandbox.set_status(user, Status.BUSY)
                    sandbox.set_status(user, Status.REACHABLE)

                def settled() -> bool:
                    last: dict[str, object] = {}
                    for event in events_of(endpoint):
                        for change in event["data"].get("statuses", []):  # type: ignore[attr-defined]
                            last[change["address"]] = change["status"]
                    return last == {f"sip:{user}@example.com": "REACHABLE" for user in USERS}

                await endpoint.wait_for(settled)
    events = events_of(endpoint)
    assert [int(str(event["sequence"])) for event in events] == list(range(1, len(events) + 1))
    revisions: dict[str, list[int]] = {}
    for event in events:
        for change in event["data"].get("statuses", []):  # type: ignore[attr-defined]
            revisions.setdefault(change["address"], []).append(change["revision"])
    assert all(numbers == sorted(set(numbers)) for numbers in revisions.values())
    assert len(events) > KILLS


async def test_a_receiver_killed_for_a_while(tmp_path: Path) -> None:
    """A receiver that is away for AWAY_S gets every change when it returns: once by id, in order."""
    rng = random.Random(SEED)
    reported = {f"sip:{user}@example.com": "REACHABLE" for user in USERS}
    async with Sandbox("127.0.0.1", 0, scripted=False) as sandbox, serving(tmp_path, sandbox, 0) as gateway:
        for user in USERS:
            sandbox.set_status(user, Status.UNREACHABLE)
        async with receiver(answer(200)) as before:
            ids = [await subscribe(gateway.grpc_address, before.url) for _ in range(3)]
            await before.wait_for(lambda: len(by_subscription(before.requests)) == len(ids))
        flipping = asyncio.create_task(flip(sandbox, rng, min(1.0, AWAY_S / 20)))
        await asyncio.sleep(AWAY_S)
        flipping.cancel()
        for user in USERS:
            sandbox.set_status(user, Status.BUSY)
            sandbox.set_status(user, Status.REACHABLE)
        async with receiver(answer(200), port=before.port) as after:
            came_back = time.monotonic()

            def settled() -> bool:
                all_of_it = by_subscription(after.requests)
                return len(all_of_it) == len(ids) and all(last(events) == reported for events in all_of_it.values())

            async with asyncio.timeout(30 + 2 * AWAY_S):
                while not settled():  # noqa: ASYNC110  # no event to await
                    await asyncio.sleep(0.05)
            took_s = time.monotonic() - came_back
            requests = [*before.requests, *after.requests]
    all_ids = [request.headers["webhook-id"] for request in requests]
    assert len(all_ids) == len(set(all_ids))
    for events in by_subscription(requests).values():
        assert [int(str(event["sequence"])) for event in events] == list(range(1, len(events) + 1))
        for user in USERS:
            revisions = [
                change["revision"] for change in changes(events) if change["address"] == f"sip:{user}@example.com"
            ]
            assert revisions == list(range(revisions[0], revisions[-1] + 1))
    print(f"away {AWAY_S:.0f} s: {len(after.requests)} events within {took_s:.1f} s of its return")  # noqa: T201


def by_subscription(requests: Sequence[Request]) -> dict[str, list[dict[str, Any]]]:
    """The events of each subscription, in the order of their arrival."""
    found: dict[str, list[dict[str, Any]]] = {}
    for request in requests:
        event = json.loads(request.body)
        found.setdefault(event["data"]["subscription_id"], []).append(event)
    return found


def changes(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The changes in these events."""
    return [change for event in events for change in event["data"].get("statuses", [])]


def last(events: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The last status of each terminal in these events."""
    return {change["address"]: change["status"] for change in changes(events)}


@pytest.mark.parametrize("with_workers", [False, True], ids=["gateway", "gateway and workers"])
async def test_a_pause_ends_nothing(tmp_path: Path, with_workers: bool) -> None:
    """The gateway is stopped for longer than a SIP worker may be silent, alone or like a suspended machine with all its
    processes, and continued. The same worker serves on, the stream lives, and changes are sent, one from during the
    pause too."""
    address = "sip:frank@example.com"
    async with Sandbox("127.0.0.1", 0, scripted=False) as sandbox, serving(tmp_path, sandbox, 0) as gateway:
        sandbox.set_status("frank", Status.UNREACHABLE)
        async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            stub = terminal_status_pb2_grpc.TerminalStatusServiceStub(channel)
            stream = stub.WatchStatuses(terminal_status_pb2.WatchStatusesRequest(addresses=[address]))
            await until_status(stream, terminal_status_pb2.STATUS_UNREACHABLE)
            workers = children(gateway.process.pid)
            paused = [gateway.process.pid, *(workers if with_workers else [])]
            for pid in paused:
                os.kill(pid, signal.SIGSTOP)
            if with_workers:  # otherwise the worker's report would arrive at once
                sandbox.set_status("frank", Status.BUSY)
            async with asyncio.timeout(LIMIT_S):
                while not all(state(pid) == "T" for pid in paused):  # noqa: ASYNC110  # no event to await
                    await asyncio.sleep(0.01)
            resume_s = time.monotonic() + PAUSE_S
            while time.monotonic() < resume_s:  # the pause
                assert all(state(pid) == "T" for pid in paused)
                await asyncio.sleep(0.1)
            for pid in reversed(paused):
                os.kill(pid, signal.SIGCONT)
            judged_s = time.monotonic() + 3 * PING_EVERY_S
            while time.monotonic() < judged_s:  # the supervisor has checked the worker by then
                assert children(gateway.process.pid) == workers
                await asyncio.sleep(0.1)
            sandbox.set_status("frank", Status.BUSY)
            await until_status(stream, terminal_status_pb2.STATUS_BUSY)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(") ")[2][0]


async def test_one_gateway_for_one_sqlite_file(tmp_path: Path) -> None:
    """A second gateway on the same SQLite database refuses to start, and says what to do."""
    async with Sandbox("127.0.0.1", 0, scripted=False) as sandbox, serving(tmp_path, sandbox, 0):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TS_")}
        environment |= {
            "TS_PRESENCE_SERVER": sandbox.uri,
            "TS_GRPC_LISTEN": "127.0.0.1:0",
            "TS_HTTP_LISTEN": "127.0.0.1:0",
            "TS_DATABASE_URL": f"sqlite:///{tmp_path}/crash.sqlite3",
        }
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app.cli", "serve", env=environment, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(LIMIT_S):
            _, words = await second.communicate()
        assert second.returncode == 1
        assert b"another gateway serves from this SQLite database; several gateways need PostgreSQL" in b" ".join(
            words.split()
        )
