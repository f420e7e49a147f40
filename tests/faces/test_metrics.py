"""The metrics of watches, as Prometheus scrapes them from a running gateway."""

import asyncio
import os
import re
import signal
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime

import grpc.aio
import httpx2 as httpx
import pytest

from app.auth.clients import ClientRegistry
from app.main import Gateway, run_gateway
from app.pb.terminalstatus.v1 import terminal_status_pb2, terminal_status_pb2_grpc
from app.sandbox import Sandbox
from app.sinks import SINK_CONTRACTS
from app.store import open_store
from tests.support.grpc_streams import until_status
from tests.support.settings import settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT_S = 20.0
ADDRESSES = [f"sip:{user}@example.com" for user in ("alice", "document-big-6000", "answer-503", "document-text")]


async def scrape(gateway: Gateway) -> dict[str, float]:
    """Every sample, by name with labels."""

    def get() -> str:
        with urllib.request.urlopen(f"http://{gateway.http_address}/metrics", timeout=LIMIT_S) as answer:
            return str(answer.read().decode())

    samples = re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", await asyncio.to_thread(get), re.MULTILINE)
    return {name: float(value) for name, value in samples}


async def reach(gateway: Gateway, least: dict[str, float]) -> dict[str, float]:
    """Scrapes until each of the metrics has at least this value."""
    seen: dict[str, float] = {}
    try:
        async with asyncio.timeout(LIMIT_S):
            while not all(seen.get(f"terminal_status_{name}", -1) >= value for name, value in least.items()):
                seen = await scrape(gateway)
    except TimeoutError:
        raise AssertionError({name: seen.get(f"terminal_status_{name}") for name in least}) from None
    return seen


async def test_watches_are_measured() -> None:
    """These are counted, and still are after a worker was replaced: watches by state, SUBSCRIBEs, NOTIFYs, failures by
    reason, cut and unreadable documents, worker restarts, and the lag of events."""
    async with Sandbox("127.0.0.1", 0, scripted=False) as sandbox:
        settings = settings_for(f"{sandbox.uri};transport=udp")
        async with run_gateway(settings) as gateway, grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            stub = terminal_status_pb2_grpc.TerminalStatusServiceStub(channel)
            call = stub.WatchStatuses(terminal_status_pb2.WatchStatusesRequest(addresses=ADDRESSES))
            await call.read()
            before = await reach(
                gateway,
                {
                    'sip_subscriptions{state="active"}': 3,
                    'sip_messages_total{kind="subscribe"}': 5,  # one document is fetched again, over TCP
                    'sip_messages_total{kind="notify"}': 4,
                    'sip_messages_total{kind="cut"}': 1,
                    'sip_failures_total{code="503"}': 1,
                    'unreadable_notifications_total{reason="content-type"}': 1,
                    'route_up{route="1"}': 1,
                    "event_lag_seconds_count": 3,
                    "sip_worker_restarts_total": 0,
                    'core{what="streams"}': 1,
                },
            )
            assert gateway.watcher.worker_pid is not None
            os.kill(gateway.watcher.worker_pid, signal.SIGKILL)
            subscribed = before['terminal_status_sip_messages_total{kind="subscribe"}']
            await reach(
                gateway,
                {
                    "sip_worker_restarts_total": 1,
                    'sip_subscriptions{state="active"}': 3,
                    'sip_messages_total{kind="subscribe"}': subscribed + 4,
                },
            )
            call.cancel()


async def test_a_watch_that_a_fetch_contradicts() -> None:
    """A wrong NOTIFY makes a live watch UNREACHABLE; the first fetch with another status has the watch refreshed, which
    corrects it. A fetch that agrees refreshes nothing."""
    address = "sip:notify-wrong@example.com"
    async with Sandbox("127.0.0.1", 0, scripted=False) as sandbox:
        settings = settings_for(f"{sandbox.uri};transport=udp")
        async with run_gateway(settings) as gateway, grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            stub = terminal_status_pb2_grpc.TerminalStatusServiceStub(channel)
            stream = stub.WatchStatuses(terminal_status_pb2.WatchStatusesRequest(addresses=[address]))
            await until_status(stream, terminal_status_pb2.STATUS_UNREACHABLE)
            for again in (False, True):
                answer = await stub.GetStatus(terminal_status_pb2.GetStatusRequest(address=address), timeout=LIMIT_S)
                assert answer.status.status == terminal_status_pb2.STATUS_REACHABLE
                if not again:
                    await until_status(stream, terminal_status_pb2.STATUS_REACHABLE)
            await reach(gateway, {'sip_subscriptions{state="active"}': 1})
            assert (await scrape(gateway))['terminal_status_watches_contradicted_total{by="fetch"}'] == 1
            assert sandbox.counters.subscribes[address] == 4  # a watch with its refresh, and two fetches


async def answers(address: str, paths: Sequence[str], key: str = "") -> dict[str, int]:
    """The HTTP status of each path."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(trust_env=False, timeout=LIMIT_S, headers=headers) as http:
        return {path: (await http.get(f"http://{address}{path}")).status_code for path in paths}


CONTRACT = ("/docs", "/openapi.json", "/parlayx/TerminalStatus?wsdl")
PROBES = ("/healthz", "/readyz")


@pytest.mark.parametrize("own_address", [False, True])
async def test_who_may_read_what(sandbox: Sandbox, own_address: bool) -> None:
    """Contracts and probes are for everybody. Metrics are for operators' clients and for callers who need no
    credentials. On their own address, metrics and probes are for everybody, and nothing else is there."""
    settings = settings_for(f"{sandbox.uri};transport=udp", metrics_listen="127.0.0.1:0" if own_address else None)
    absent = {"/metrics": 404} if own_address else {}
    async with run_gateway(settings) as gateway, await open_store(settings.database_url) as store:
        opened = await answers(gateway.http_address, [*CONTRACT, *PROBES, "/metrics", "/v1/groups"])
        assert opened == dict.fromkeys(opened, 200) | absent
        registry = ClientRegistry(
            store, contracts=SINK_CONTRACTS, clock=lambda: datetime.now(UTC), on_changed=gateway.use_cases.auth.forget
        )
        _, application = await registry.add("application", who="test")
        _, operator = await registry.add("operator", who="test", admin=True)
        for key, status in (("", 401), (application, 403), (operator, 200)):
            assert await answers(gateway.http_address, [*CONTRACT, *PROBES], key) == dict.fromkeys(
                CONTRACT + PROBES, 200
            )
            assert await answers(gateway.http_address, ["/metrics"], key) == {"/metrics": status} | absent
        if own_address:
            assert await answers(gateway.metrics_address, [*PROBES, "/metrics"]) == dict.fromkeys(
                [*PROBES, "/metrics"], 200
            )
            others = [*CONTRACT, "/", "/v1/groups", "/metrics/", "//metrics", "/device-reachability-status/v1/retrieve"]
            assert await answers(gateway.metrics_address, others, operator) == dict.fromkeys(others, 404)
