"""Each face names a call by its x-correlator: in the answer, in usage records, and in the deliveries of a subscription
that the call creates."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
import pytest_asyncio

from app.egress.allowed import Rules
from app.egress.client import Egress
from app.egress.webhook import WebhookSender, v1_event
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1 import usage_pb2
from soap_compat.callbacks import CallbackSender
from tests.support.core import ADMIN, ALICE, new_database, run_core
from tests.support.http_face import STATUS, HttpFace, http_face
from tests.support.outbox import make_owed, make_subscription, subscribed
from tests.support.receivers import receiver
from tests.support.rpc_face import Face, face_over
from tests.support.soap import app_for
from tests.support.waiting import until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
MADE = re.compile("[0-9a-f]{32}")
HOSTILE = ["a" * 257, "a b", "a,a"]
CAMARA = "/device-reachability-status/v1/retrieve"

Answered = tuple[int | grpc.StatusCode, str]
"""Status, and the x-correlator of the answer; "" without one."""


@dataclass
class Faces:
    """Every face; those over one core have the usage records of their calls."""

    rpc: Face
    rest: HttpFace

    async def grpc(self, headers: Mapping[str, str], address: str = "x") -> Answered:
        metadata = (*self.rpc.app, *headers.items())
        call = self.rpc.terminals.GetStatus(pb.GetStatusRequest(address=address), metadata=metadata)
        trailing = dict(await call.trailing_metadata())
        return await call.code(), trailing.get("x-correlator", "")

    async def http(self, headers: Mapping[str, str], path: str = STATUS, method: str = "GET") -> Answered:
        body: dict[str, str] | None = {} if method == "POST" else None
        answer = await self.rest.call(method, path, body, headers=headers)
        return answer.status, answer.headers.get("x-correlator", "")

    async def camara(self, headers: Mapping[str, str]) -> Answered:
        return await self.http(headers, CAMARA, "POST")

    async def soap(self, headers: Mapping[str, str]) -> Answered:
        transport = httpx2.ASGITransport(app=app_for())
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            answer = await http.post("/TerminalStatus", headers=headers, content=b"<a/>")
        return answer.status_code, answer.headers.get("x-correlator", "")

    def all(self) -> list[Callable[[Mapping[str, str]], Awaitable[Answered]]]:
        return [self.grpc, self.http, self.camara, self.soap]


@pytest_asyncio.fixture
async def faces(tmp_path: Path) -> AsyncIterator[Faces]:
    async with run_core(await new_database(tmp_path)) as core, face_over(core) as rpc, http_face(core) as rest:
        yield Faces(rpc, rest)


async def test_every_face_returns_the_same(faces: Faces) -> None:
    """The caller's x-correlator, else the trace id of traceparent (W3C Trace Context section 3.2.2.3), else one that
    the gateway makes; here for answers that are errors, except REST's."""
    for call in faces.all():
        assert (await call({"x-correlator": "order-4711", "traceparent": TRACEPARENT}))[1] == "order-4711"
        assert (await call({"traceparent": TRACEPARENT}))[1] == TRACE_ID
        assert (await call({"traceparent": TRACEPARENT, "x-correlator": ""}))[1] == TRACE_ID
        first, second = (await call({}))[1], (await call({}))[1]
        assert MADE.fullmatch(first)
        assert MADE.fullmatch(second)
        assert first != second


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_an_invalid_one_is_replaced(faces: Faces, hostile: str) -> None:
    """CAMARA's XCorrelator has a pattern, so CAMARA answers 400; no other face refuses a call because of it."""
    for call in faces.all():
        status, returned = await call({"x-correlator": hostile})
        assert MADE.fullmatch(returned)
        usual, _ = await call({})
        assert status == (400 if call == faces.camara else usual)


async def test_two_lines_are_an_invalid_one(faces: Faces) -> None:
    """RFC 9110 section 5.3: two lines are one value with a comma."""
    metadata = (*faces.rpc.app, ("x-correlator", "a"), ("x-correlator", "a"))
    call = faces.rpc.terminals.GetStatus(pb.GetStatusRequest(address="x"), metadata=metadata)
    assert MADE.fullmatch(str(dict(await call.trailing_metadata())["x-correlator"]))
    answer = await faces.rest.http.get(faces.rest.url + "/healthz", headers=[("x-correlator", "a")] * 2)
    assert MADE.fullmatch(answer.headers["x-correlator"])


async def test_success_over_grpc_returns_what_was_sent(faces: Faces) -> None:
    """Trailing metadata of a success has no x-correlator that the gateway made."""
    request = usage_pb2.ListUsageRecordsRequest()
    call = faces.rpc.usage.ListUsageRecords(request, metadata=(*faces.rpc.app, ("x-correlator", "c-1")))
    assert dict(await call.trailing_metadata())["x-correlator"] == "c-1"
    call = faces.rpc.usage.ListUsageRecords(request, metadata=faces.rpc.app)
    assert "x-correlator" not in dict(await call.trailing_metadata())


async def test_usage_records_have_it(faces: Faces) -> None:
    """Records of calls are found by the x-correlator over gRPC and REST; a call without one has a made one."""
    await faces.grpc({"x-correlator": "over-grpc"})
    await faces.grpc({"x-correlator": "over-grpc"}, "sip:another@example.com")
    await faces.http({"x-correlator": "over-rest"}, "/v1/terminals/x/status")
    await faces.http({}, "/v1/terminals/x/status")

    async def records(**only: Any) -> list[Any]:
        request = usage_pb2.ListUsageRecordsRequest(**only)
        answer = await faces.rpc.usage.ListUsageRecords(request, metadata=faces.rpc.admin)
        return list(answer.usage_records)

    async def written() -> bool:
        return len(await records()) == 4

    await until(written)
    assert [each.x_correlator for each in await records(x_correlator="over-grpc")] == ["over-grpc"] * 2
    (made,) = [each for each in await records() if not each.x_correlator.startswith("over-")]
    assert MADE.fullmatch(made.x_correlator)
    path = "/v1/usage-records?x_correlator=over-rest"
    found = (await faces.rest.call("GET", path, client=ADMIN.id)).json["usage_records"]
    assert [each["x_correlator"] for each in found] == ["over-rest"]


async def test_a_subscription_keeps_that_of_its_creation(faces: Faces) -> None:
    """gRPC and REST show it, whichever of them created the subscription."""
    created = await faces.rest.call(
        "POST", "/v1/subscriptions", {"addresses": [ALICE]}, headers={"x-correlator": "made-by-rest"}
    )
    assert created.json["x_correlator"] == "made-by-rest"
    path = f"/v1/subscriptions/{created.json['id']}"
    shown = await faces.rest.call("GET", path, headers={"x-correlator": "another"})
    assert (shown.json["x_correlator"], shown.headers["x-correlator"]) == ("made-by-rest", "another")


async def test_deliveries_have_it() -> None:
    """Webhooks, handshakes and SOAP callbacks have the subscription's x-correlator, and the notification's id."""
    egress = Egress(Rules.of(["127.0.0.0/8"], allow_http=True), total_s=5.0, connect_s=5.0)
    webhooks = WebhookSender(egress, clock=lambda: datetime.now(UTC), envelopes={"v1": v1_event})
    try:
        async with receiver() as there:
            webhook = replace(make_subscription(f"http://127.0.0.1:{there.port}/"), x_correlator="c-1")
            await webhooks.send(webhook, make_owed(webhook, "n-1"))
            callback = replace(subscribed(f"http://127.0.0.1:{there.port}/"), x_correlator="c-2")
            await CallbackSender(egress).send(callback, make_owed(callback, "n-2"))
            older = replace(webhook, x_correlator="")
            await webhooks.send(older, make_owed(older, "n-3"))
    finally:
        await egress.aclose()
    sent = [(each.headers.get("x-correlator"), each.headers["webhook-id"]) for each in there.requests]
    assert sent == [("c-1", "n-1"), ("c-2", "n-2"), (None, "n-3")]
