"""gRPC and REST refuse the same wrong request with the same code, and name the same field."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from app.domain.errors import SinkRefused
from app.pb.terminalstatus.v1 import admin_pb2, delivery_pb2, group_pb2, subscription_pb2, usage_pb2
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from tests.support.core import ADMIN, ALICE, APP, TEAM, new_database, run_core
from tests.support.http_face import HttpFace, http_face
from tests.support.rpc_face import Face, face_over, failure_of

UNKNOWN: Any = 99
LONG = "x" * 10_000


@dataclass
class Both:
    """Both faces over one core."""

    rpc: Face
    rest: HttpFace


@pytest_asyncio.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    async with run_core(await new_database(tmp_path)) as core, face_over(core) as rpc, http_face(core) as rest:
        yield Both(rpc, rest)


@dataclass
class Case:
    """One wrong request, as a gRPC method of a stub with its message, and as an HTTP request."""

    stub: str
    method: str
    message: Any
    http_method: str
    path: str
    body: Any
    code: str
    field: str = ""
    http_field: str | None = None
    """The field's name in REST, where the two differ."""


def subscribing(
    message: dict[str, Any], body: dict[str, Any], field: str, http_field: str | None = None, **more: Any
) -> Case:
    """A subscription that cannot be created."""
    return Case(
        stub="subscriptions",
        method="CreateSubscription",
        message=subscription_pb2.CreateSubscriptionRequest(**{"addresses": [ALICE], **message}),
        http_method="POST",
        path="/v1/subscriptions",
        body={"addresses": [ALICE], **body},
        code=more.get("code", "INVALID_REQUEST"),
        field=field,
        http_field=http_field,
    )


def webhook(**members: Any) -> dict[str, Any]:
    return {"sink": subscription_pb2.Sink(webhook=subscription_pb2.WebhookSink(**members))}


HOOK = "https://example.com/hook"
CASES = {
    "an address": subscribing(
        {"addresses": [ALICE, "x"]}, {"addresses": [ALICE, "x"]}, "addresses[1]", code="INVALID_ADDRESS"
    ),
    "no address": subscribing({"addresses": []}, {"addresses": []}, "addresses", code="NO_VALID_ADDRESSES"),
    "a status": subscribing({"criteria": [UNKNOWN]}, {"criteria": ["AWAY"]}, "criteria[0]"),
    "a negative count": subscribing(
        {"max_notification_count": -1}, {"max_notification_count": -1}, "max_notification_count"
    ),
    "a long correlator": subscribing({"correlator": LONG}, {"correlator": LONG}, "correlator"),
    "an interval": subscribing(
        {"min_interval": Duration(seconds=400 * 86_400)},
        {"min_interval_ms": 400 * 86_400_000},
        "min_interval",
        "min_interval_ms",
    ),
    "a sink of no kind": subscribing({"sink": subscription_pb2.Sink()}, {"sink": {}}, "sink"),
    "a sink of CAMARA": subscribing(
        {"sink": subscription_pb2.Sink(camara=subscription_pb2.CamaraSink(uri=HOOK))},
        {"sink": {"kind": "CAMARA", "uri": HOOK}},
        "sink.camara",
        "sink",
    ),
    "a secret": subscribing(
        webhook(uri=HOOK, secrets=["x"]),
        {"sink": {"kind": "WEBHOOK", "uri": HOOK, "secrets": ["x"]}},
        "sink.webhook.secrets",
        "sink.secrets",
        code="SINK_REFUSED",
    ),
    "no endpoint": subscribing(webhook(), {"sink": {"kind": "WEBHOOK"}}, "sink.webhook.uri", "sink.uri"),
    "no SOAP endpoint": subscribing(
        {"sink": subscription_pb2.Sink(soap=subscription_pb2.SoapSink())},
        {"sink": {"kind": "SOAP", "uri": ""}},
        "sink.soap.uri",
        "sink.uri",
    ),
    "the expiry of a token": subscribing(
        webhook(uri=HOOK, access_token=subscription_pb2.AccessToken(token="t", expire_time=Timestamp(seconds=1 << 50))),
        {"sink": {"kind": "WEBHOOK", "uri": HOOK, "access_token": {"token": "t", "expire_time": "soon"}}},
        "sink.webhook.access_token.expire_time",
        "sink.access_token.expire_time",
    ),
    "an expired token": subscribing(
        webhook(uri=HOOK, access_token=subscription_pb2.AccessToken(token="t", expire_time=Timestamp(seconds=1))),
        {
            "sink": {
                "kind": "WEBHOOK",
                "uri": HOOK,
                "access_token": {"token": "t", "expire_time": "1970-01-01T00:00:01Z"},
            }
        },
        "sink.webhook.access_token.expire_time",
        "sink.access_token.expire_time",
        code="SINK_REFUSED",
    ),
    "a page token": Case(
        "subscriptions",
        "ListSubscriptions",
        subscription_pb2.ListSubscriptionsRequest(page_token="x"),
        "GET",
        "/v1/subscriptions?page_token=x",
        None,
        "INVALID_REQUEST",
        "page_token",
    ),
    "a page size": Case(
        "groups",
        "ListGroups",
        group_pb2.ListGroupsRequest(page_size=-1),
        "GET",
        "/v1/groups?page_size=-1",
        None,
        "INVALID_REQUEST",
        "page_size",
    ),
    "an unknown subscription": Case(
        "subscriptions",
        "GetSubscription",
        subscription_pb2.GetSubscriptionRequest(subscription_id="x"),
        "GET",
        "/v1/subscriptions/x",
        None,
        "SUBSCRIPTION_UNKNOWN",
    ),
    "a member": Case(
        "groups",
        "CreateGroup",
        group_pb2.CreateGroupRequest(address=TEAM, members=["x"]),
        "POST",
        "/v1/groups",
        {"address": TEAM, "members": ["x"]},
        "INVALID_ADDRESS",
        "members[0]",
    ),
    "a state of deliveries": Case(
        "deliveries",
        "ListNotifications",
        delivery_pb2.ListNotificationsRequest(state=UNKNOWN),
        "GET",
        "/v1/notifications?state=LOST",
        None,
        "INVALID_REQUEST",
        "state",
    ),
    "a replay without a start": Case(
        "deliveries",
        "ReplayNotifications",
        delivery_pb2.ReplayNotificationsRequest(subscription_id="none"),
        "POST",
        "/v1/notifications:replay",
        {"subscription_id": "none"},
        "INVALID_REQUEST",
        "start_time",
    ),
    "a replay of an unknown subscription": Case(
        "deliveries",
        "ReplayNotifications",
        delivery_pb2.ReplayNotificationsRequest(subscription_id="none", start_time=Timestamp(seconds=1)),
        "POST",
        "/v1/notifications:replay",
        {"subscription_id": "none", "start_time": "2026-01-01T00:00:00Z"},
        "SUBSCRIPTION_UNKNOWN",
    ),
    "a long overlap of secrets": Case(
        "subscriptions",
        "RotateSecret",
        subscription_pb2.RotateSecretRequest(subscription_id="none", overlap=Duration(seconds=91 * 86_400)),
        "POST",
        "/v1/subscriptions/none:rotateSecret",
        {"overlap_ms": 91 * 86_400_000},
        "INVALID_REQUEST",
        "overlap",
        "overlap_ms",
    ),
    "an age": Case(
        "terminals",
        "GetStatus",
        pb.GetStatusRequest(address=ALICE, max_age=Duration(seconds=-1)),
        "GET",
        f"/v1/terminals/{ALICE}/status?max_age_s=-1",
        None,
        "INVALID_REQUEST",
        "max_age",
        "max_age_s",
    ),
    "a time": Case(
        "usage",
        "ListUsageRecords",
        usage_pb2.ListUsageRecordsRequest(start_time=Timestamp(seconds=1 << 50)),
        "GET",
        "/v1/usage-records?start_time=soon",
        None,
        "INVALID_REQUEST",
        "start_time",
    ),
    "an empty mask": Case(
        "subscriptions",
        "UpdateSubscription",
        subscription_pb2.UpdateSubscriptionRequest(subscription_id="x"),
        "PATCH",
        "/v1/subscriptions/x",
        {},
        "INVALID_REQUEST",
        "update_mask",
        "body",
    ),
    "a member that cannot be changed": Case(
        "subscriptions",
        "UpdateSubscription",
        subscription_pb2.UpdateSubscriptionRequest(subscription_id="x", update_mask=FieldMask(paths=["correlator"])),
        "PATCH",
        "/v1/subscriptions/x",
        {"correlator": "y"},
        "INVALID_REQUEST",
        "update_mask",
        "correlator",
    ),
    "a state of subscriptions": Case(
        "subscriptions",
        "ListSubscriptions",
        subscription_pb2.ListSubscriptionsRequest(state=UNKNOWN),
        "GET",
        "/v1/subscriptions?state=PAUSED",
        None,
        "INVALID_REQUEST",
        "state",
    ),
    "an address of a filter": Case(
        "groups",
        "ListGroups",
        group_pb2.ListGroupsRequest(member="x"),
        "GET",
        "/v1/groups?member=x",
        None,
        "INVALID_ADDRESS",
        "member",
    ),
    "a period": Case(
        "subscriptions",
        "ListSubscriptions",
        subscription_pb2.ListSubscriptionsRequest(
            min_create_time=Timestamp(seconds=2), max_create_time=Timestamp(seconds=1)
        ),
        "GET",
        "/v1/subscriptions?min_create_time=2026-01-02T00:00:00Z&max_create_time=2026-01-01T00:00:00Z",
        None,
        "INVALID_REQUEST",
        "max_create_time",
    ),
    "an action": Case(
        "operators",
        "ListAuditEntries",
        admin_pb2.ListAuditEntriesRequest(action=UNKNOWN),
        "GET",
        "/v1/audit-entries?action=NOTHING",
        None,
        "INVALID_REQUEST",
        "action",
    ),
    "a client": Case(
        "operators",
        "GetClient",
        admin_pb2.GetClientRequest(client_id="x"),
        "GET",
        "/v1/clients/x",
        None,
        "CLIENT_UNKNOWN",
    ),
    "a limit": Case(
        "operators",
        "CreateClient",
        admin_pb2.CreateClientRequest(name="a", limits=admin_pb2.ClientLimits(max_targets=-1)),
        "POST",
        "/v1/clients",
        {"name": "a", "limits": {"max_targets": -1}},
        "INVALID_REQUEST",
        "limits.max_targets",
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_both_faces_refuse_alike(both: Both, name: str) -> None:
    """The code is that of `ErrorInfo.reason` and of the problem's `code`."""
    case = CASES[name]
    operator = case.stub == "operators"
    call = getattr(getattr(both.rpc, case.stub), case.method)
    _, reason, field = await failure_of(call(case.message, metadata=both.rpc.admin if operator else both.rpc.app))
    client = (ADMIN if operator else APP).id
    answer = await both.rest.call(case.http_method, case.path, case.body, client=client)
    assert answer.headers["content-type"] == "application/problem+json", answer.body
    problem = answer.json
    assert (reason, problem["code"]) == (case.code, case.code)
    assert field == case.field
    if case.field:
        assert problem["details"]["field"] == (case.http_field or case.field)


@pytest.mark.parametrize(
    ("reason", "part"), [("host", "uri"), ("token", "access_token.token"), ("forbidden-address", "uri")]
)
async def test_both_faces_name_the_part_of_a_refused_sink(both: Both, reason: str, part: str) -> None:
    """An endpoint or credential that is refused has a place in the request: when it is created, and when it is
    changed."""
    sink = webhook(uri=HOOK)["sink"]
    made = await both.rpc.subscribe(ALICE, sink=sink)
    sender = both.rpc.core.sender
    sender.error = SinkRefused("No.", reason=reason)
    creating = subscription_pb2.CreateSubscriptionRequest(addresses=[ALICE], sink=sink)
    _, code, field = await failure_of(both.rpc.subscriptions.CreateSubscription(creating, metadata=both.rpc.app))
    assert (code, field) == ("SINK_REFUSED", f"sink.webhook.{part}")
    changing = subscription_pb2.UpdateSubscriptionRequest(
        subscription_id=made.id,
        change=subscription_pb2.SubscriptionChange(sink=sink),
        update_mask=FieldMask(paths=["sink"]),
    )
    sender.error = SinkRefused("No.", reason=reason)
    _, code, field = await failure_of(both.rpc.subscriptions.UpdateSubscription(changing, metadata=both.rpc.app))
    assert (code, field) == ("SINK_REFUSED", f"change.sink.webhook.{part}")
    body = {"sink": {"kind": "WEBHOOK", "uri": HOOK}}
    for method, path, more in (
        ("POST", "/v1/subscriptions", {"addresses": [ALICE]}),
        ("PATCH", f"/v1/subscriptions/{made.id}", {}),
    ):
        sender.error = SinkRefused("No.", reason=reason)
        problem = (await both.rest.call(method, path, {**body, **more})).json
        assert (problem["code"], problem["details"]["field"]) == ("SINK_REFUSED", f"sink.{part}")


async def test_both_faces_check_a_changed_endpoint_alike(both: Both) -> None:
    """A change that does not say how its endpoint is checked leaves that to the gateway, on both faces."""
    sink = webhook(uri=HOOK)["sink"]
    made = await both.rpc.subscribe(ALICE, sink=sink)
    request = subscription_pb2.UpdateSubscriptionRequest(
        subscription_id=made.id,
        change=subscription_pb2.SubscriptionChange(sink=sink),
        update_mask=FieldMask(paths=["sink"]),
    )
    await both.rpc.subscriptions.UpdateSubscription(request, metadata=both.rpc.app)
    over_rpc = both.rpc.core.sender.checked[-1].sink
    body = {"sink": {"kind": "WEBHOOK", "uri": HOOK}}
    assert (await both.rest.call("PATCH", f"/v1/subscriptions/{made.id}", body)).status == 200
    over_rest = both.rpc.core.sender.checked[-1].sink
    assert over_rest == over_rpc
    assert "handshake" not in over_rest.parameters


async def test_both_faces_refuse_a_stale_etag(both: Both) -> None:
    """A change that is based on an earlier state has no effect on either face."""
    made = await both.rpc.subscribe(ALICE)
    for criteria in (pb.STATUS_BUSY, pb.STATUS_REACHABLE):
        request = subscription_pb2.UpdateSubscriptionRequest(
            subscription_id=made.id,
            change=subscription_pb2.SubscriptionChange(criteria=[criteria]),
            update_mask=FieldMask(paths=["criteria"]),
            etag=made.etag,
        )
        call = both.rpc.subscriptions.UpdateSubscription(request, metadata=both.rpc.app)
        if criteria is pb.STATUS_BUSY:
            await call
    code, reason, _ = await failure_of(call)
    headers = {"if-match": f'"{made.etag}"'}
    answer = await both.rest.call("PATCH", f"/v1/subscriptions/{made.id}", {"criteria": []}, headers=headers)
    assert (code, reason) == (grpc.StatusCode.ABORTED, "SUBSCRIPTION_CHANGED")
    assert (answer.status, answer.json["code"]) == (412, reason)
    shown = (await both.rest.call("GET", f"/v1/subscriptions/{made.id}")).json
    assert shown["criteria"] == ["BUSY"]


async def test_both_faces_refuse_a_token_of_another_filter(both: Both) -> None:
    """A page token belongs to the filters with which it was made, on both faces alike."""
    for _ in range(2):
        await both.rpc.subscribe(ALICE)
    first = (await both.rest.call("GET", "/v1/subscriptions?page_size=1")).json["next_page_token"]
    request = subscription_pb2.ListSubscriptionsRequest(page_token=first)
    shared = await both.rpc.subscriptions.ListSubscriptions(request, metadata=both.rpc.app)
    assert len(shared.subscriptions) == 1
    request.address = ALICE
    _, reason, field = await failure_of(both.rpc.subscriptions.ListSubscriptions(request, metadata=both.rpc.app))
    answer = await both.rest.call("GET", f"/v1/subscriptions?page_token={first}&address={ALICE}")
    assert (
        (reason, field) == (answer.json["code"], answer.json["details"]["field"]) == ("INVALID_REQUEST", "page_token")
    )
