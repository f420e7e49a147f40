"""The services over gRPC in process: a real server and channel, the real use cases, a played presence server."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ResourceInfo  # type: ignore[import-untyped, unused-ignore]
from grpc_status import rpc_status

from app.core.queries import RetrievalStatus
from app.domain import operations, records, statuses
from app.domain.bounded import BoundedDict
from app.domain.changes import Attempted
from app.domain.errors import PresenceUnavailable, TerminalUnknown
from app.domain.outcomes import DeliveryOutcome
from app.domain.records import DeliveryAttempt, DeliveryState
from app.domain.sinks import EndReason, Handshake, read_secret
from app.domain.statuses import Source, Status
from app.domain.watches import WatchState
from app.live import events
from app.pb.terminalstatus.v1 import (
    admin_pb2,
    delivery_pb2,
    group_pb2,
    subscription_pb2,
    usage_pb2,
)
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.rpc import enum_values
from app.rpc.servicers.cached_requests import MAX_CACHED_BYTES, MAX_CACHED_REQUESTS, CachedRequest, cached_request
from tests.support.core import (
    ADMIN,
    ALICE,
    APP,
    BEGAN,
    BOB,
    BUSY,
    CAROL,
    OTHER,
    REACHABLE,
    SOAP,
    TEAM,
    new_database,
    run_core,
)
from tests.support.grpc_engines import ON_BOTH_ENGINES
from tests.support.rpc_face import LIMIT_S, NEVER, Face, Metadata, details_of, face, face_over, failure_of
from tests.support.waiting import until

pytestmark = ON_BOTH_ENGINES

__all__ = ["face"]  # fixtures

MODULES = (pb, subscription_pb2, group_pb2, delivery_pb2, usage_pb2, admin_pb2)
METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def call_method(face: Face, path: str, method: Any, metadata: Metadata | None) -> Any:
    """Calls a method with an empty request."""
    make = face.channel.unary_stream if method.server_streaming else face.channel.unary_unary
    answer = GetMessageClass(method.output_type)
    return make(path, lambda request: request, answer.FromString)(b"", metadata=metadata, timeout=LIMIT_S)


# Who may call.


@pytest.mark.parametrize(("path", "method"), METHODS, ids=[path for path, _ in METHODS])
async def test_every_method_wants_credentials(face: Face, path: str, method: Any) -> None:
    """No method of any service does anything without valid credentials."""
    refused = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "")
    bad = (None, (("authorization", "Bearer tsk_a_b"),), (("authorization", "Basic Og=="),))
    assert [await failure_of(call_method(face, path, method, metadata)) for metadata in bad] == [refused] * 3


@pytest.mark.parametrize(
    ("path", "method"), [each for each in METHODS if "/terminalstatus.v1.AdminService/" in each[0]]
)
async def test_administration_is_for_operators(face: Face, path: str, method: Any) -> None:
    """Every method of AdminService refuses a client that is not an operator's."""
    refused = (grpc.StatusCode.PERMISSION_DENIED, "NOT_PERMITTED", "")
    assert await failure_of(call_method(face, path, method, face.app)) == refused


async def test_what_is_anothers_is_not_found(face: Face) -> None:
    """Another client's subscription, correlator, group and notification are NOT_FOUND."""
    made = await face.subscribe(ALICE, correlator="mine", check_immediate=True)
    await face.core.play(ALICE, REACHABLE)
    (owed,) = await face.core.owed(cast("Any", made))
    group = group_pb2.CreateGroupRequest(address=TEAM, members=[ALICE])
    await face.groups.CreateGroup(group, metadata=face.app)
    calls: list[tuple[str, Any, Any]] = [
        ("SUBSCRIPTION", face.subscriptions.GetSubscription, subscription_pb2.GetSubscriptionRequest),
        ("SUBSCRIPTION", face.subscriptions.CancelSubscription, subscription_pb2.CancelSubscriptionRequest),
        (
            "SUBSCRIPTION",
            face.subscriptions.UpdateSubscription,
            lambda subscription_id: new_duration(subscription_id, 1),
        ),
        ("SUBSCRIPTION", face.subscriptions.RotateSecret, subscription_pb2.RotateSecretRequest),
    ]
    for what, call, make in calls:
        for subscription_id in (made.id, "nothing", ""):
            code, reason, _ = await failure_of(call(make(subscription_id=subscription_id), metadata=face.other))
            expected = (grpc.StatusCode.NOT_FOUND, f"{what}_UNKNOWN")
            if not subscription_id and call is face.subscriptions.CancelSubscription:
                expected = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
            assert (code, reason) == expected
    by_correlator = subscription_pb2.CancelSubscriptionRequest(correlator="mine")
    code, reason, _ = await failure_of(face.subscriptions.CancelSubscription(by_correlator, metadata=face.other))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "SUBSCRIPTION_UNKNOWN")
    groups: list[tuple[Any, Any]] = [
        (face.groups.GetGroup, group_pb2.GetGroupRequest(address=TEAM)),
        (face.groups.SetGroupMembers, group_pb2.SetGroupMembersRequest(address=TEAM)),
        (face.groups.AddGroupMembers, group_pb2.AddGroupMembersRequest(address=TEAM, members=[BOB])),
        (face.groups.RemoveGroupMembers, group_pb2.RemoveGroupMembersRequest(address=TEAM, members=[BOB])),
        (face.groups.DeleteGroup, group_pb2.DeleteGroupRequest(address=TEAM)),
    ]
    for call, request in groups:
        code, reason, _ = await failure_of(call(request, metadata=face.other))
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "GROUP_UNKNOWN")
    notifications: list[tuple[Any, Any]] = [
        (
            face.deliveries.ListDeliveryAttempts,
            delivery_pb2.ListDeliveryAttemptsRequest(notification_id=owed.id),
        ),
        (
            face.deliveries.SendNotificationsAgain,
            delivery_pb2.SendNotificationsAgainRequest(notification_ids=[owed.id]),
        ),
    ]
    for call, request in notifications:
        code, reason, _ = await failure_of(call(request, metadata=face.other))
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NOTIFICATION_UNKNOWN")
    assert await lists(face, face.other) == ([], [], [])
    assert await lists(face, face.app) == await lists(face, face.admin) == ([made.id], [TEAM], [owed.id])


async def lists(face: Face, metadata: Metadata) -> tuple[list[str], list[str], list[str]]:
    subscriptions = await face.subscriptions.ListSubscriptions(
        subscription_pb2.ListSubscriptionsRequest(), metadata=metadata
    )
    groups = await face.groups.ListGroups(group_pb2.ListGroupsRequest(), metadata=metadata)
    owed = await face.deliveries.ListNotifications(delivery_pb2.ListNotificationsRequest(), metadata=metadata)
    return (
        [each.id for each in subscriptions.subscriptions],
        [each.address for each in groups.groups],
        [each.id for each in owed.notifications],
    )


async def test_without_clients_everybody_may(tmp_path: Path) -> None:
    """While no client is configured, calls need no credentials, except an operator's calls."""
    async with run_core(await new_database(tmp_path)) as core, face_over(core) as face:
        for client in (APP, OTHER, ADMIN):
            await face.registry.delete(client.id, who="test")
        answer = await face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE))
        assert answer.status.status == pb.STATUS_REACHABLE
        refused = await failure_of(face.operators.ListClients(admin_pb2.ListClientsRequest()))
        assert refused == (grpc.StatusCode.PERMISSION_DENIED, "NOT_PERMITTED", "")


# Queries.


async def test_an_accepted_age_is_answered_from_a_watch(face: Face) -> None:
    """With `max_age` a live watch answers; without it the presence server does."""
    await face.subscribe(ALICE)
    await face.core.play(ALICE, BUSY)
    for max_age, source in (
        (Duration(nanos=1), pb.SOURCE_WATCH),
        (Duration(), pb.SOURCE_FETCH),
        (None, pb.SOURCE_FETCH),
    ):
        request = pb.GetStatusRequest(address=ALICE, max_age=max_age)
        assert (await face.terminals.GetStatus(request, metadata=face.app)).status.source == source
    assert face.core.watcher.fetched == [ALICE] * 2


async def test_the_same_query_shows_each_change(face: Face) -> None:
    """One request is repeated: each answer is the watch's current status, as the client may see it."""
    await face.subscribe(ALICE)
    _, key = await face.registry.add("Sees no BUSY", who="test", limits={"busy_available": False})
    confined = (("authorization", f"Bearer {key}"),)
    request = pb.GetStatusRequest(address=ALICE, max_age=Duration(seconds=60))
    for document, shown in ((BUSY, pb.STATUS_BUSY), (REACHABLE, pb.STATUS_REACHABLE), (BUSY, pb.STATUS_BUSY)):
        await face.core.play(ALICE, document)
        for metadata, expected in ((face.app, shown), (confined, pb.STATUS_REACHABLE), (face.app, shown)):
            answer = await face.terminals.GetStatus(request, metadata=metadata)
            assert (answer.status.status, answer.status.source) == (expected, pb.SOURCE_WATCH)
    assert not face.core.watcher.fetched


def test_the_cache_of_requests_is_bounded() -> None:
    """The cache holds at most MAX_CACHED_REQUESTS requests, and no long ones."""
    cache = BoundedDict[bytes, CachedRequest](MAX_CACHED_REQUESTS)

    def ask(address: str) -> CachedRequest:
        return cached_request(cache, pb.GetStatusRequest(address=address).SerializeToString())

    assert ask(ALICE) is ask(ALICE)
    assert ask("x" * MAX_CACHED_BYTES).address
    assert [each.address for each in cache.values()] == [ALICE]
    most = 0
    for number in range(MAX_CACHED_REQUESTS + 10):
        ask(str(number))
        most = max(most, len(cache))
    assert most == MAX_CACHED_REQUESTS


async def test_a_query_gives_each_terminal_its_result(face: Face) -> None:
    """Terminals and members of groups each have one result: a status, or the reason for its absence."""
    await face.groups.CreateGroup(group_pb2.CreateGroupRequest(address=TEAM, members=[ALICE, BOB]), metadata=face.app)
    errors = {
        BOB: PresenceUnavailable("Later.", retry_after_s=2.5),
        CAROL: TerminalUnknown("No such terminal."),
    }
    face.core.watcher.answer = lambda address: errors.get(address, BUSY)
    request = pb.QueryStatusesRequest(addresses=[TEAM, ALICE, CAROL], requester="sip:boss@example.com")
    results = {
        answer.result.address: answer.result
        async for answer in face.terminals.QueryStatuses(request, metadata=face.app)
    }
    assert set(results) == {ALICE, BOB, CAROL}
    assert results[ALICE].retrieval_status == pb.RETRIEVAL_STATUS_RETRIEVED
    assert results[ALICE].status.status == pb.STATUS_BUSY
    assert results[BOB].retrieval_status == pb.RETRIEVAL_STATUS_NOT_RETRIEVED
    assert details_of(results[BOB].error) == ("PRESENCE_UNAVAILABLE", 2500)
    assert results[CAROL].retrieval_status == pb.RETRIEVAL_STATUS_ERROR
    assert (details_of(results[CAROL].error), results[CAROL].error.message) == (
        ("TERMINAL_UNKNOWN", 0),
        "No such terminal.",
    )
    (record,) = [each for each in await face.core.usage_records() if each.operation.value == "getStatusForGroup"]
    assert (record.face, record.requester, record.expanded_count) == (operations.Face.GRPC, "sip:boss@example.com", 3)


async def test_a_query_that_is_left_is_given_up(face: Face) -> None:
    """A caller that cancels, or whose deadline passes, keeps the results so far; the rest is given up."""
    face.core.watcher.answer = lambda address: None if address == BOB else REACHABLE
    request = pb.QueryStatusesRequest(addresses=[ALICE, BOB])
    for end in ("cancel", "deadline"):
        call = face.terminals.QueryStatuses(request, metadata=face.app, timeout=0.15 if end == "deadline" else LIMIT_S)
        assert (await call.read()).result.address == ALICE
        if end == "cancel":
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call.read()
        else:
            assert (await failure_of(call))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not face.core.watcher.in_flight and not face.calls)


# Subscriptions, groups, deliveries, usage.


def new_duration(subscription_id: str, seconds: int) -> subscription_pb2.UpdateSubscriptionRequest:
    return subscription_pb2.UpdateSubscriptionRequest(
        subscription_id=subscription_id,
        change=subscription_pb2.SubscriptionChange(duration=Duration(seconds=seconds)),
        update_mask=FieldMask(paths=["duration"]),
    )


async def test_a_subscription_is_made_shown_renewed_and_ended(face: Face) -> None:
    """A subscription is shown as it was requested, without the secrets of its sink."""
    request = subscription_pb2.CreateSubscriptionRequest(
        addresses=[ALICE, "SIP:bob@EXAMPLE.com"],
        criteria=[pb.STATUS_BUSY, pb.STATUS_REACHABLE],
        check_immediate=True,
        min_interval=Duration(seconds=1, nanos=500_000_001),
        duration=Duration(seconds=60),
        max_notification_count=7,
        sink=subscription_pb2.Sink(
            webhook=subscription_pb2.WebhookSink(
                uri="https://example.com/hook",
                access_token=subscription_pb2.AccessToken(token="the secret", expire_time=Timestamp(seconds=1 << 34)),
                handshake=subscription_pb2.SINK_HANDSHAKE_NONE,
            )
        ),
        correlator="mine",
        request_id="once",
        requester="boss",
    )
    answer = await face.subscriptions.CreateSubscription(request, metadata=face.app)
    made, stored = answer.subscription, await face.core.store.subscription(answer.subscription.id)
    assert len(read_secret(answer.secret)) == 32
    assert stored.sink.parameters["secrets"] == answer.secret
    assert (made.client_id, list(made.addresses)) == (APP.id, [ALICE, BOB])
    assert set(made.criteria) == {pb.STATUS_BUSY, pb.STATUS_REACHABLE}
    assert (made.check_immediate, made.max_notification_count, made.min_interval.ToMilliseconds()) == (True, 7, 1501)
    shown = subscription_pb2.WebhookSink()
    shown.CopyFrom(request.sink.webhook)
    shown.access_token.token = ""
    assert made.sink.webhook == shown
    assert (made.correlator, made.state) == ("mine", subscription_pb2.SUBSCRIPTION_STATE_ACTIVE)
    assert (made.create_time.ToDatetime(UTC), made.expire_time.ToDatetime(UTC)) == (
        BEGAN,
        BEGAN + timedelta(seconds=60),
    )
    assert await face.subscriptions.CreateSubscription(request, metadata=face.app) == answer
    renew = new_duration(made.id, 120)
    renewed = (await face.subscriptions.UpdateSubscription(renew, metadata=face.app)).subscription
    assert renewed.expire_time.ToDatetime(UTC) == BEGAN + timedelta(seconds=120)
    cancel = subscription_pb2.CancelSubscriptionRequest(correlator="mine")
    await face.subscriptions.CancelSubscription(cancel, metadata=face.app)
    get = subscription_pb2.GetSubscriptionRequest(subscription_id=made.id)
    ended = (await face.subscriptions.GetSubscription(get, metadata=face.app)).subscription
    assert (ended.end_reason, ended.end_time.ToDatetime(UTC)) == (subscription_pb2.END_REASON_CANCELLED, BEGAN)
    code, reason, _ = await failure_of(face.subscriptions.UpdateSubscription(renew, metadata=face.app))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "SUBSCRIPTION_UNKNOWN")


async def test_a_subscription_is_changed_by_its_mask(face: Face) -> None:
    """Only the fields that the mask names are changed; a stale etag is refused."""
    made = await face.subscribe(ALICE, criteria=[pb.STATUS_BUSY], sink=a_webhook())
    change = subscription_pb2.SubscriptionChange(addresses=[BOB], criteria=[pb.STATUS_REACHABLE])

    async def update(*paths: str, etag: str = "") -> subscription_pb2.Subscription:
        request = subscription_pb2.UpdateSubscriptionRequest(
            subscription_id=made.id, change=change, update_mask=FieldMask(paths=paths), etag=etag
        )
        answer = await face.subscriptions.UpdateSubscription(request, metadata=face.app)
        return cast("subscription_pb2.Subscription", answer.subscription)

    moved = await update("addresses", etag=made.etag)
    assert (list(moved.addresses), list(moved.criteria)) == ([BOB], [pb.STATUS_BUSY])
    code, reason, _ = await failure_of(update("criteria", etag=made.etag))
    assert (code, reason) == (grpc.StatusCode.ABORTED, "SUBSCRIPTION_CHANGED")
    change.sink.CopyFrom(a_webhook("https://example.com/other"))
    both = await update("criteria", "sink", etag=moved.etag)
    assert (list(both.addresses), list(both.criteria)) == ([BOB], [pb.STATUS_REACHABLE])
    assert (both.sink.webhook.uri, both.expire_time) == ("https://example.com/other", made.expire_time)
    await face.core.play(BOB, REACHABLE)
    assert len(await face.core.owed(cast("Any", made))) == 1


async def test_the_missing_subscription_is_named(face: Face) -> None:
    """ResourceInfo has the type and the id, as ErrorInfo's metadata."""
    get = subscription_pb2.GetSubscriptionRequest(subscription_id="nothing")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await face.subscriptions.GetSubscription(get, metadata=face.app)
    resource = ResourceInfo()
    status: Any = rpc_status.from_call(cast("grpc.Call", caught.value))
    assert [packed.Unpack(resource) for packed in status.details].count(True) == 1
    assert (resource.resource_type, resource.resource_name) == ("subscription", "nothing")


async def test_only_a_webhook_has_a_secret(face: Face) -> None:
    """The secret of another kind of sink cannot be changed."""
    made = await face.subscribe(ALICE)
    request = subscription_pb2.RotateSecretRequest(subscription_id=made.id)
    code, reason, _ = await failure_of(face.subscriptions.RotateSecret(request, metadata=face.app))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CHANGE_NOT_ALLOWED")


async def test_delivery_attempts_come_in_pages(face: Face) -> None:
    """Each attempt is on exactly one page; the notification itself can be read."""
    made = await face.subscribe(ALICE, sink=a_webhook(), check_immediate=True)
    await face.core.play(ALICE, BUSY)
    *_, owed = await face.core.owed(cast("Any", made))
    for number in (1, 2, 3):
        attempt = DeliveryAttempt(
            notification_id=owed.id, number=number, at=BEGAN, code=0, duration_ms=1, outcome=DeliveryOutcome.TIMED_OUT
        )
        await face.core.store.claim(BEGAN, BEGAN + timedelta(seconds=60), 10, "test")
        written = Attempted(attempt=attempt, owner="test", state=DeliveryState.PENDING, next_attempt_at=BEGAN)
        await face.core.store.record_attempts([written])
    request, found = delivery_pb2.ListDeliveryAttemptsRequest(notification_id=owed.id, page_size=2), list[int]()
    while not found or request.page_token:
        page = await face.deliveries.ListDeliveryAttempts(request, metadata=face.app)
        found += [one.number for one in page.delivery_attempts]
        request.page_token = page.next_page_token
    assert found == [1, 2, 3]
    get = delivery_pb2.GetNotificationRequest(notification_id=owed.id)
    shown = (await face.deliveries.GetNotification(get, metadata=face.app)).notification
    assert (shown.id, shown.attempt_count) == (owed.id, 3)
    assert (await failure_of(face.deliveries.GetNotification(get, metadata=face.other)))[1] == "NOTIFICATION_UNKNOWN"


async def test_a_webhooks_secret_is_rotated(face: Face) -> None:
    """A secret that the gateway makes is returned once; a secret that the client names is not returned. The previous
    secret stays until it is dropped."""
    own = "whsec_" + "A" * 32
    sink = subscription_pb2.Sink(webhook=subscription_pb2.WebhookSink(uri="https://example.com/", secrets=[own]))
    made = await face.subscribe(ALICE, sink=sink)

    async def rotate(**more: Any) -> tuple[str, list[str]]:
        request = subscription_pb2.RotateSecretRequest(subscription_id=made.id, requester="boss", **more)
        changed = await face.subscriptions.RotateSecret(request, metadata=face.app)
        made.etag = changed.subscription.etag
        made.sink.CopyFrom(changed.subscription.sink)
        assert changed.subscription == made
        stored = await face.core.store.subscription(made.id)
        return changed.secret, stored.sink.parameters["secrets"].split()

    secret, stored = await rotate()
    assert (stored, len(read_secret(secret))) == ([secret, own], 32)
    assert await rotate(drop_old=True) == ("", [secret])
    assert await rotate(secret=own) == ("", [own, secret])
    bad = subscription_pb2.RotateSecretRequest(subscription_id=made.id, secret="x")
    failure = await failure_of(face.subscriptions.RotateSecret(bad, metadata=face.app))
    assert failure == (grpc.StatusCode.INVALID_ARGUMENT, "SINK_REFUSED", "secret")


async def test_lists_come_in_pages(face: Face) -> None:
    """Each item of a list is on exactly one page; a token of another list is refused."""
    made = [(await face.subscribe(ALICE)).id for _ in range(5)]
    found: list[str] = []
    token = ""
    while True:
        request = subscription_pb2.ListSubscriptionsRequest(page_size=2, page_token=token)
        page = await face.subscriptions.ListSubscriptions(request, metadata=face.app)
        found += [each.id for each in page.subscriptions]
        last, token = token, page.next_page_token
        if not token:
            break
    assert found == made
    for foreign in (last, "x", "x" * 5000):
        expected = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "page_token")
        call = face.groups.ListGroups(group_pb2.ListGroupsRequest(page_token=foreign), metadata=face.app)
        assert await failure_of(call) == expected


async def test_groups_are_changed_by_version(face: Face) -> None:
    """Members are added, removed and replaced; a change that names an old version is refused."""
    create = group_pb2.CreateGroupRequest(address=TEAM, members=[ALICE])
    made = (await face.groups.CreateGroup(create, metadata=face.app)).group
    assert (made.address, made.client_id, list(made.members)) == (TEAM, APP.id, [ALICE])
    add = group_pb2.AddGroupMembersRequest(address=TEAM, members=[ALICE, BOB])
    assert list((await face.groups.AddGroupMembers(add, metadata=face.app)).group.members) == [ALICE, BOB]
    remove = group_pb2.RemoveGroupMembersRequest(address=TEAM, members=[ALICE, CAROL])
    assert list((await face.groups.RemoveGroupMembers(remove, metadata=face.app)).group.members) == [BOB]
    get = group_pb2.GetGroupRequest(address=TEAM)
    for call, request in (
        (face.groups.SetGroupMembers, group_pb2.SetGroupMembersRequest(address=TEAM, members=[CAROL])),
        (face.groups.AddGroupMembers, group_pb2.AddGroupMembersRequest(address=TEAM, members=[CAROL])),
        (face.groups.RemoveGroupMembers, group_pb2.RemoveGroupMembersRequest(address=TEAM, members=[CAROL])),
        (face.groups.DeleteGroup, group_pb2.DeleteGroupRequest(address=TEAM)),
    ):
        request.etag = made.etag
        code, reason, _ = await failure_of(call(request, metadata=face.app))
        assert (code, reason) == (grpc.StatusCode.ABORTED, "GROUP_CHANGED")
    etag = ""
    for members in ([CAROL, BOB], [CAROL]):
        change = group_pb2.SetGroupMembersRequest(address=TEAM, members=members, etag=etag)
        changed = (await face.groups.SetGroupMembers(change, metadata=face.app)).group
        assert (list(changed.members), changed.etag == etag) == (members, False)
        etag = (await face.groups.GetGroup(get, metadata=face.app)).group.etag
    code, reason, _ = await failure_of(face.groups.CreateGroup(create, metadata=face.app))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "GROUP_EXISTS")
    await face.groups.DeleteGroup(group_pb2.DeleteGroupRequest(address=TEAM), metadata=face.app)
    assert (await failure_of(face.groups.GetGroup(get, metadata=face.app)))[1] == "GROUP_UNKNOWN"


async def test_deliveries_are_shown_and_sent_again(face: Face) -> None:
    """A notification is shown with its attempts, filtered by state and subscription; a dead one can be sent again."""
    made = await face.subscribe(
        ALICE, BOB, sink=subscription_pb2.Sink(webhook=subscription_pb2.WebhookSink(uri="https://example.com/hook"))
    )
    await face.core.play(ALICE, REACHABLE)
    await face.core.play(ALICE, BUSY)
    started, owed = await face.core.owed(cast("Any", made))
    for notification, state in ((started, DeliveryState.DELIVERED), (owed, DeliveryState.DEAD)):
        await face.core.store.claim(BEGAN, BEGAN + timedelta(seconds=60), 10, "test")
        attempt = DeliveryAttempt(
            notification_id=notification.id,
            number=1,
            at=BEGAN,
            code=500,
            duration_ms=1234,
            outcome=DeliveryOutcome.HTTP_ERROR,
            answer=b"\xff",
        )
        await face.core.store.record_attempts([Attempted(attempt=attempt, owner="test", state=state)])
    dead = delivery_pb2.ListNotificationsRequest(state=delivery_pb2.DELIVERY_STATE_DEAD, subscription_id=made.id)
    (shown,) = (await face.deliveries.ListNotifications(dead, metadata=face.app)).notifications
    assert (shown.id, shown.WhichOneof("content"), shown.attempt_count) == (owed.id, "status_changes", 1)
    assert [(change.address, change.status) for change in shown.status_changes.statuses] == [(ALICE, pb.STATUS_BUSY)]
    assert not shown.HasField("next_attempt_time")
    asked = delivery_pb2.ListDeliveryAttemptsRequest(notification_id=owed.id)
    (tried,) = (await face.deliveries.ListDeliveryAttempts(asked, metadata=face.app)).delivery_attempts
    assert (tried.number, tried.http_code, tried.duration.ToMilliseconds(), tried.outcome, tried.response_body) == (
        1,
        500,
        1234,
        delivery_pb2.DELIVERY_OUTCOME_HTTP_ERROR,
        b"\xff",
    )
    replay = delivery_pb2.ReplayNotificationsRequest(subscription_id=made.id)
    replay.start_time.FromDatetime(BEGAN)
    assert await face.deliveries.ReplayNotifications(replay, metadata=face.app) == (
        delivery_pb2.ReplayNotificationsResponse(replayed_count=1)
    )
    owing = delivery_pb2.ListNotificationsRequest(state=delivery_pb2.DELIVERY_STATE_PENDING)
    (pending,) = (await face.deliveries.ListNotifications(owing, metadata=face.app)).notifications
    assert pending.id == started.id
    again = delivery_pb2.SendNotificationsAgainRequest(notification_ids=[owed.id])
    assert [
        (await face.deliveries.SendNotificationsAgain(again, metadata=face.app)).sent_again_count for _ in range(2)
    ] == [
        1,
        0,
    ]
    assert "again" in face.core.hints
    assert not (await face.deliveries.ListNotifications(dead, metadata=face.app)).notifications


async def test_what_is_withdrawn_is_listed(face: Face) -> None:
    """A notification to a SOAP subscription that its client has ended is listed as withdrawn, and not sent again."""
    made = await face.core.subscribe(ALICE, sink=SOAP, check_immediate=True)
    await face.core.play(ALICE, BUSY)
    ended = subscription_pb2.CancelSubscriptionRequest(subscription_id=made.id)
    await face.subscriptions.CancelSubscription(ended, metadata=face.app)
    asked = delivery_pb2.ListNotificationsRequest(state=delivery_pb2.DELIVERY_STATE_WITHDRAWN)
    (shown,) = (await face.deliveries.ListNotifications(asked, metadata=face.app)).notifications
    assert (shown.subscription_id, shown.state) == (made.id, delivery_pb2.DELIVERY_STATE_WITHDRAWN)
    assert (shown.HasField("next_attempt_time"), shown.HasField("settle_time")) == (False, True)
    again = delivery_pb2.SendNotificationsAgainRequest(notification_ids=[shown.id])
    assert (await face.deliveries.SendNotificationsAgain(again, metadata=face.app)).sent_again_count == 0


async def test_usage_is_listed_and_exported(face: Face) -> None:
    """A client sees its own usage records, an operator all; an export returns all of them in portions."""
    for metadata in (face.app, face.app, face.other):
        await face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE, requester="boss"), metadata=metadata)
    await face.core.usage_records()
    counts = {}
    for name, metadata in (("app", face.app), ("other", face.other), ("admin", face.admin)):
        request = usage_pb2.ListUsageRecordsRequest()
        counts[name] = len((await face.usage.ListUsageRecords(request, metadata=metadata)).usage_records)
        export = usage_pb2.ExportUsageRecordsRequest()
        portions = [part async for part in face.usage.ExportUsageRecords(export, metadata=metadata)]
        assert [len(part.usage_records) for part in portions] == [counts[name]]
    assert counts == {"app": 2, "other": 1, "admin": 3}
    later = Timestamp()
    later.FromDatetime(BEGAN + timedelta(seconds=1))
    request = usage_pb2.ListUsageRecordsRequest(start_time=later)
    assert not (await face.usage.ListUsageRecords(request, metadata=face.app)).usage_records
    (record, _) = (
        await face.usage.ListUsageRecords(usage_pb2.ListUsageRecordsRequest(), metadata=face.app)
    ).usage_records
    assert (record.operation, record.face, record.requester, record.result) == (
        usage_pb2.USAGE_OPERATION_GET_STATUS,
        usage_pb2.FACE_GRPC,
        "boss",
        "REACHABLE",
    )
    assert list(record.targets) == [ALICE]


# Bad input.

DAYS = Duration(seconds=400 * 86_400)
MINUS = Duration(seconds=-1)
ODD = Duration(seconds=1 << 62, nanos=-5)


MANY = [f"sip:{number}@example.com" for number in range(10_000)]
LONG = "x" * 70_000
UNKNOWN: Any = 99
CREATE = subscription_pb2.CreateSubscriptionRequest
SINK = subscription_pb2.Sink
CAMARA = SINK(camara=subscription_pb2.CamaraSink(uri="https://example.com/"))


def a_webhook(uri: str = "https://example.com/", **more: Any) -> subscription_pb2.Sink:
    return SINK(webhook=subscription_pb2.WebhookSink(uri=uri, **more))


def a_soap_sink(uri: str = "https://example.com/", version: str = "") -> subscription_pb2.Sink:
    return SINK(soap=subscription_pb2.SoapSink(uri=uri, version=version))


@pytest.mark.parametrize("max_age", [MINUS, DAYS, ODD])
async def test_an_age_that_cannot_be_is_recorded(face: Face, max_age: Duration) -> None:
    """A query that is refused for its age is recorded like any other."""
    request = pb.GetStatusRequest(address=ALICE, max_age=max_age)
    await failure_of(face.terminals.GetStatus(request, metadata=face.app))
    (record,) = await face.core.usage_records()
    assert (record.operation.value, record.result) == ("getStatus", "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("service", "method", "request_", "field"),
    [
        ("terminals", "GetStatus", pb.GetStatusRequest(address=ALICE, max_age=MINUS), "max_age"),
        ("terminals", "GetStatus", pb.GetStatusRequest(address=ALICE, max_age=DAYS), "max_age"),
        ("terminals", "GetStatus", pb.GetStatusRequest(address=ALICE, max_age=ODD), "max_age"),
        ("terminals", "GetStatus", pb.GetStatusRequest(address=ALICE, requester="x" * 201), "requester"),
        ("terminals", "QueryStatuses", pb.QueryStatusesRequest(), "addresses"),
        ("terminals", "QueryStatuses", pb.QueryStatusesRequest(addresses=[ALICE, "x"]), "addresses[1]"),
        (
            "terminals",
            "QueryStatuses",
            pb.QueryStatusesRequest(addresses=MANY),
            "addresses",
        ),
        ("terminals", "QueryStatuses", pb.QueryStatusesRequest(addresses=[ALICE], max_age=MINUS), "max_age"),
        ("terminals", "WatchStatuses", pb.WatchStatusesRequest(), "addresses"),
        (
            "terminals",
            "WatchStatuses",
            pb.WatchStatusesRequest(addresses=MANY),
            "addresses",
        ),
        (
            "terminals",
            "WatchStatuses",
            pb.WatchStatusesRequest(addresses=[ALICE], criteria=[pb.STATUS_UNSPECIFIED]),
            "criteria[0]",
        ),
        (
            "terminals",
            "WatchStatuses",
            pb.WatchStatusesRequest(addresses=[ALICE], criteria=[UNKNOWN]),
            "criteria[0]",
        ),
        ("terminals", "WatchStatuses", pb.WatchStatusesRequest(addresses=[ALICE], min_interval=DAYS), "min_interval"),
        ("subscriptions", "CreateSubscription", CREATE(), "addresses"),
        (
            "subscriptions",
            "CreateSubscription",
            CREATE(addresses=[ALICE], max_notification_count=-1),
            "max_notification_count",
        ),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], duration=MINUS), "duration"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], duration=DAYS), "duration"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], min_interval=MINUS), "min_interval"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], correlator="x" * 256), "correlator"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], request_id="x" * 65), "request_id"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], sink=SINK()), "sink"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], sink=CAMARA), "sink.camara"),
        *[
            ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], sink=webhook), f"sink.webhook.{field}")
            for webhook, field in (
                (a_webhook(uri=LONG), "uri"),
                (a_webhook(secrets=["whsec_x"] * 3), "secrets"),
                (a_webhook(access_token=subscription_pb2.AccessToken()), "access_token.token"),
                (a_webhook(access_token=subscription_pb2.AccessToken(token=LONG)), "access_token.token"),
                (a_webhook(handshake=UNKNOWN), "handshake"),
            )
        ],
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], sink=a_soap_sink(uri=LONG)), "sink.soap.uri"),
        (
            "subscriptions",
            "CreateSubscription",
            CREATE(addresses=[ALICE], sink=a_soap_sink(version=LONG)),
            "sink.soap.version",
        ),
        ("subscriptions", "ListSubscriptions", subscription_pb2.ListSubscriptionsRequest(page_size=-1), "page_size"),
        ("subscriptions", "CancelSubscription", subscription_pb2.CancelSubscriptionRequest(), "subscription_id"),
        (
            "subscriptions",
            "UpdateSubscription",
            subscription_pb2.UpdateSubscriptionRequest(),
            "update_mask",
        ),
        *[
            (
                "subscriptions",
                "UpdateSubscription",
                subscription_pb2.UpdateSubscriptionRequest(change=change, update_mask=FieldMask(paths=paths)),
                field,
            )
            for change, paths, field in (
                (None, ["*"], "update_mask"),
                (None, ["correlator"], "update_mask"),
                (None, ["sink.webhook.uri"], "update_mask"),
                (None, ["sink"], "change.sink"),
                (subscription_pb2.SubscriptionChange(criteria=[UNKNOWN]), ["criteria"], "change.criteria[0]"),
                (subscription_pb2.SubscriptionChange(duration=MINUS), ["duration"], "change.duration"),
                (
                    subscription_pb2.SubscriptionChange(sink=a_webhook(uri=LONG)),
                    ["criteria", "sink"],
                    "change.sink.webhook.uri",
                ),
            )
        ],
        ("subscriptions", "RotateSecret", subscription_pb2.RotateSecretRequest(secret="x" * 8001), "secret"),
        ("subscriptions", "RotateSecret", subscription_pb2.RotateSecretRequest(requester="x" * 201), "requester"),
        ("groups", "CreateGroup", group_pb2.CreateGroupRequest(), "address"),
        ("groups", "CreateGroup", group_pb2.CreateGroupRequest(address=TEAM, members=[ALICE, BOB, "x"]), "members[2]"),
        ("groups", "AddGroupMembers", group_pb2.AddGroupMembersRequest(address=TEAM), "members"),
        ("groups", "RemoveGroupMembers", group_pb2.RemoveGroupMembersRequest(address=TEAM), "members"),
        ("deliveries", "ListNotifications", delivery_pb2.ListNotificationsRequest(state=UNKNOWN), "state"),
        ("deliveries", "ListNotifications", delivery_pb2.ListNotificationsRequest(page_token="x"), "page_token"),
        ("deliveries", "ListNotifications", delivery_pb2.ListNotificationsRequest(client_id=LONG), "client_id"),
        ("deliveries", "ListNotifications", delivery_pb2.ListNotificationsRequest(end_time=NEVER), "end_time"),
        ("subscriptions", "ListSubscriptions", subscription_pb2.ListSubscriptionsRequest(state=UNKNOWN), "state"),
        ("subscriptions", "ListSubscriptions", subscription_pb2.ListSubscriptionsRequest(address="x"), "address"),
        (
            "subscriptions",
            "ListSubscriptions",
            subscription_pb2.ListSubscriptionsRequest(
                min_create_time=Timestamp(seconds=2), max_create_time=Timestamp(seconds=2)
            ),
            "max_create_time",
        ),
        ("groups", "ListGroups", group_pb2.ListGroupsRequest(member="x"), "member"),
        ("usage", "ListUsageRecords", usage_pb2.ListUsageRecordsRequest(operation=UNKNOWN), "operation"),
        ("usage", "ExportUsageRecords", usage_pb2.ExportUsageRecordsRequest(face=UNKNOWN), "face"),
        ("operators", "ListWatches", admin_pb2.ListWatchesRequest(state=UNKNOWN), "state"),
        ("operators", "ListWatches", admin_pb2.ListWatchesRequest(liveness=UNKNOWN), "liveness"),
        ("operators", "ListAuditEntries", admin_pb2.ListAuditEntriesRequest(action=UNKNOWN), "action"),
        ("deliveries", "SendNotificationsAgain", delivery_pb2.SendNotificationsAgainRequest(), "notification_ids"),
        ("usage", "ListUsageRecords", usage_pb2.ListUsageRecordsRequest(start_time=NEVER), "start_time"),
        (
            "usage",
            "ExportUsageRecords",
            usage_pb2.ExportUsageRecordsRequest(start_time=NEVER),
            "start_time",
        ),
        ("operators", "ListWatches", admin_pb2.ListWatchesRequest(page_token="c:x"), "page_token"),
        ("operators", "CreateClient", admin_pb2.CreateClientRequest(), "name"),
        ("operators", "CreateClient", admin_pb2.CreateClientRequest(name="a", client_id="anonymous"), "client_id"),
        (
            "operators",
            "CreateClient",
            admin_pb2.CreateClientRequest(name="a", limits=admin_pb2.ClientLimits(max_targets=-1)),
            "limits.max_targets",
        ),
    ],
)
async def test_what_cannot_be_used_is_named(face: Face, service: str, method: str, request_: Any, field: str) -> None:
    """An unusable part of a request is INVALID_ARGUMENT with its name."""
    metadata = face.admin if service == "operators" else face.app
    code, _, named = await failure_of(getattr(getattr(face, service), method)(request_, metadata=metadata))
    assert (code, named) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_a_large_page_is_cut(face: Face) -> None:
    """A page size above the greatest is no error (AIP-158)."""
    await face.subscribe(ALICE)
    request = subscription_pb2.ListSubscriptionsRequest(page_size=1 << 30)
    assert len((await face.subscriptions.ListSubscriptions(request, metadata=face.app)).subscriptions) == 1


async def test_lists_are_filtered(face: Face) -> None:
    """Each filter of a list is applied; a page token of other filters is refused."""
    first, second, ended = [(await face.subscribe(address)).id for address in (ALICE, BOB, ALICE)]
    cancel = subscription_pb2.CancelSubscriptionRequest(subscription_id=ended)
    await face.subscriptions.CancelSubscription(cancel, metadata=face.app)

    async def listed(metadata: Metadata, **only: Any) -> list[str]:
        request = subscription_pb2.ListSubscriptionsRequest(**only)
        answer = await face.subscriptions.ListSubscriptions(request, metadata=metadata)
        return [one.id for one in answer.subscriptions]

    later = Timestamp()
    later.FromDatetime(BEGAN + timedelta(seconds=1))
    assert await listed(face.app, address=ALICE) == [first]
    assert await listed(face.app, state=subscription_pb2.SUBSCRIPTION_STATE_ENDED) == [ended]
    assert await listed(face.admin, client_id=APP.id) == [first, second]
    assert await listed(face.admin, client_id=OTHER.id) == await listed(face.other, client_id=APP.id) == []
    assert (await listed(face.app, min_create_time=later), await listed(face.app, max_create_time=later)) == (
        [],
        [first, second],
    )
    request = subscription_pb2.ListSubscriptionsRequest(page_size=1)
    token = (await face.subscriptions.ListSubscriptions(request, metadata=face.app)).next_page_token
    foreign = subscription_pb2.ListSubscriptionsRequest(page_token=token, address=ALICE)
    failure = await failure_of(face.subscriptions.ListSubscriptions(foreign, metadata=face.app))
    assert failure == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "page_token")
    records = usage_pb2.ListUsageRecordsRequest(operation=usage_pb2.USAGE_OPERATION_END_NOTIFICATION)
    await face.core.usage_records()
    (record,) = (await face.usage.ListUsageRecords(records, metadata=face.app)).usage_records
    assert record.subscription_id == ended
    changes = admin_pb2.ListAuditEntriesRequest(actor=APP.id, action=admin_pb2.AUDIT_ACTION_SUBSCRIPTION_CANCELLED)
    (entry,) = (await face.operators.ListAuditEntries(changes, metadata=face.admin)).audit_entries
    assert entry.details["subscription"] == ended


async def test_each_kind_of_sink_is_shown_as_requested(face: Face) -> None:
    """Also the sink of a request that names none."""
    for sink in (a_soap_sink(version="v2_2"), SINK(listed=subscription_pb2.ListedSink()), a_webhook()):
        assert (await face.subscribe(ALICE, sink=sink)).sink == sink
    listed = await face.subscriptions.CreateSubscription(CREATE(addresses=[ALICE]), metadata=face.app)
    assert listed.subscription.sink.WhichOneof("kind") == "listed"


async def test_a_long_overlap_is_refused(face: Face) -> None:
    """An endless overlap of keys is refused."""
    request = admin_pb2.RotateClientKeyRequest(client_id=APP.id, overlap=Duration(seconds=91 * 86_400))
    failure = await failure_of(face.operators.RotateClientKey(request, metadata=face.admin))
    assert failure == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "overlap")


async def test_the_overlap_of_a_secret(face: Face) -> None:
    """RotateSecret ends the overlap of a webhook's secrets after a day, or as requested; the sink shows the end."""
    sink = subscription_pb2.Sink(webhook=subscription_pb2.WebhookSink(uri="https://example.com/"))
    made = await face.subscribe(ALICE, sink=sink)
    assert not made.sink.webhook.HasField("previous_secret_expire_time")
    for overlap, expected_s in ((None, 86_400), (Duration(seconds=59, nanos=1), 60), (Duration(), None)):
        rotate = subscription_pb2.RotateSecretRequest(subscription_id=made.id, overlap=overlap)
        webhook = (await face.subscriptions.RotateSecret(rotate, metadata=face.app)).subscription.sink.webhook
        if expected_s is None:
            assert not webhook.HasField("previous_secret_expire_time")
        else:
            ends_at = face.core.clocks.now + timedelta(seconds=expected_s)
            assert webhook.previous_secret_expire_time.ToDatetime(UTC) == ends_at


async def test_two_authorization_entries(face: Face) -> None:
    """As over REST (RFC 9110 section 5.3): several credentials are refused, also if the first ones are good."""
    await face.groups.ListGroups(
        group_pb2.ListGroupsRequest(), metadata=face.app
    )  # the credentials are known from here on
    for metadata in (face.app + face.app, face.app + face.other, (*face.app, ("authorization", "Bearer x"))):
        failure = await failure_of(face.groups.ListGroups(group_pb2.ListGroupsRequest(), metadata=metadata))
        assert failure == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "authorization")


async def test_a_store_that_is_away_is_unavailable(face: Face) -> None:
    """While the database is away, calls that need it are UNAVAILABLE, and queries of recently accepted clients still
    work."""
    await face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE), metadata=face.app)
    face.core.store.away = True
    expected = (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "")
    assert await failure_of(face.groups.ListGroups(group_pb2.ListGroupsRequest(), metadata=face.app)) == expected
    face.core.clocks.advance(60)
    await face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE), metadata=face.app)


# Tables.


@pytest.mark.parametrize(
    ("table", "ours", "theirs", "prefix"),
    [
        (enum_values.STATUS, Status, pb.Status, "STATUS_"),
        (enum_values.SOURCE, Source, pb.Source, "SOURCE_"),
        (enum_values.LIVENESS, statuses.Liveness, pb.Liveness, "LIVENESS_"),
        (enum_values.RETRIEVAL, RetrievalStatus, pb.RetrievalStatus, "RETRIEVAL_STATUS_"),
        (enum_values.STREAM_END, events.StreamEnd, pb.StreamEndReason, "STREAM_END_REASON_"),
        (enum_values.HANDSHAKE, Handshake, subscription_pb2.SinkHandshake, "SINK_HANDSHAKE_"),
        (enum_values.END_REASON, EndReason, subscription_pb2.EndReason, "END_REASON_"),
        (enum_values.WATCH_STATE, WatchState, admin_pb2.WatchState, "WATCH_STATE_"),
        (enum_values.FACE, operations.Face, usage_pb2.Face, "FACE_"),
        (enum_values.USAGE_OPERATION, operations.UsageOperation, usage_pb2.UsageOperation, "USAGE_OPERATION_"),
        (enum_values.AUDIT_ACTION, operations.AuditAction, admin_pb2.AuditAction, "AUDIT_ACTION_"),
        (enum_values.DELIVERY_OUTCOME, DeliveryOutcome, delivery_pb2.DeliveryOutcome, "DELIVERY_OUTCOME_"),
        (enum_values.DELIVERY_STATE, records.DeliveryState, delivery_pb2.DeliveryState, "DELIVERY_STATE_"),
    ],
)
def test_every_value_has_its_wire_value(
    table: Mapping[Any, int], ours: Any, theirs: EnumTypeWrapper, prefix: str
) -> None:
    """The contract has each enum's values under the same names, and otherwise only values that the face itself
    makes."""
    assert {f"{prefix}{each.name}": value for each, value in table.items() if value} == {
        name: value for name, value in theirs.items() if value and name != "STREAM_END_REASON_MAX_AGE"
    }
    assert set(table) == set(ours)
    assert [each.name for each, value in table.items() if not value] in ([], ["UNKNOWN"])
