"""The services over gRPC in process: a real server and channel, the real use cases, a played presence server."""

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from app.auth.clients import ClientRegistry
from app.core.queries import RetrievalStatus
from app.domain import records, statuses
from app.domain.addresses import TerminalAddress
from app.domain.bounded import BoundedDict
from app.domain.changes import Attempted
from app.domain.errors import PresenceUnavailable, TerminalUnknown, WatcherRefused, WatchUnknown
from app.domain.records import DeliveryAttempt, DeliveryState, NotificationKind
from app.domain.sinks import EndReason, SinkKind, read_secret
from app.domain.statuses import Liveness, Source, Status
from app.live import events
from app.pb.terminalstatus.v1 import (
    admin_pb2,
    delivery_pb2,
    group_pb2,
    subscription_pb2,
    usage_pb2,
)
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub
from app.ports import WatchView
from app.rpc import enum_values
from app.rpc.servicers import terminal_status
from app.rpc.servicers.cached_requests import MAX_CACHED_BYTES, MAX_CACHED_REQUESTS, CachedRequest, cached_request
from app.sinks import SINK_CONTRACTS
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
from tests.support.rpc_face import LIMIT_S, Face, Metadata, face_over, failure_of, quiet, read
from tests.support.waiting import until

MODULES = (pb, subscription_pb2, group_pb2, delivery_pb2, usage_pb2, admin_pb2)
METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest_asyncio.fixture
async def face(tmp_path: Path) -> AsyncIterator[Face]:
    async with run_core(await new_database(tmp_path)) as core, face_over(core) as running:
        yield running


def call_method(face: Face, path: str, method: Any, metadata: Metadata | None) -> Any:
    """Calls a method with an empty request."""
    make = face.channel.unary_stream if method.server_streaming else face.channel.unary_unary
    answer = GetMessageClass(method.output_type)
    return make(path, lambda request: request, answer.FromString)(b"", metadata=metadata, timeout=LIMIT_S)


# Who may call.


@pytest.mark.parametrize(("path", "method"), METHODS, ids=[path for path, _ in METHODS])
async def test_every_method_wants_credentials(face: Face, path: str, method: Any) -> None:
    """Without credentials, or with bad ones, no method of any service does anything."""
    refused = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "")
    bad = (None, (("authorization", "Bearer tsk_a_b"),), (("authorization", "Basic Og=="),))
    assert [await failure_of(call_method(face, path, method, metadata)) for metadata in bad] == [refused] * 3


@pytest.mark.parametrize(
    ("path", "method"), [each for each in METHODS if "/terminalstatus.v1.AdminService/" in each[0]]
)
async def test_administration_is_for_operators(face: Face, path: str, method: Any) -> None:
    """No method of AdminService is for an application."""
    refused = (grpc.StatusCode.PERMISSION_DENIED, "NOT_PERMITTED", "")
    assert await failure_of(call_method(face, path, method, face.app)) == refused


async def test_what_is_anothers_is_not_found(face: Face) -> None:
    """Another client's subscription, correlator, group and notification are as if they were not there."""
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
            face.subscriptions.RenewSubscription,
            lambda subscription_id: subscription_pb2.RenewSubscriptionRequest(
                subscription_id=subscription_id, duration=Duration(seconds=1)
            ),
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
    """While no client is configured, calls need no credentials; an operator's calls do."""
    async with run_core(await new_database(tmp_path)) as core, face_over(core) as face:
        for client in (APP, OTHER, ADMIN):
            await face.registry.delete(client.id, who="test")
        answer = await face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE))
        assert answer.status.status == pb.STATUS_REACHABLE
        refused = await failure_of(face.operators.ListClients(admin_pb2.ListClientsRequest()))
        assert refused == (grpc.StatusCode.PERMISSION_DENIED, "NOT_PERMITTED", "")


# Questions.


async def test_an_accepted_age_is_answered_from_a_watch(face: Face) -> None:
    """With `max_age` a live watch answers, without it the presence server."""
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


async def test_the_same_question_tells_each_change(face: Face) -> None:
    """One request, asked again and again: each answer is what the watch says then, to each client as it may see it."""
    await face.subscribe(ALICE)
    _, key = await face.registry.add("Sees no BUSY", who="test", limits={"busy_available": False})
    confined = (("authorization", f"Bearer {key}"),)
    request = pb.GetStatusRequest(address=ALICE, max_age=Duration(seconds=60))
    for document, told in ((BUSY, pb.STATUS_BUSY), (REACHABLE, pb.STATUS_REACHABLE), (BUSY, pb.STATUS_BUSY)):
        await face.core.play(ALICE, document)
        for metadata, expected in ((face.app, told), (confined, pb.STATUS_REACHABLE), (face.app, told)):
            answer = await face.terminals.GetStatus(request, metadata=metadata)
            assert (answer.status.status, answer.status.source) == (expected, pb.SOURCE_WATCH)
    assert not face.core.watcher.fetched


def test_the_cache_of_requests_is_bounded() -> None:
    """The cache holds MAX_CACHED_REQUESTS requests, and no long ones."""
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
    """Terminals and members of groups, each once: a status, or why there is none."""
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
    assert (results[BOB].failure.reason, results[BOB].failure.retry_delay.ToMilliseconds()) == (
        "PRESENCE_UNAVAILABLE",
        2500,
    )
    assert results[CAROL].retrieval_status == pb.RETRIEVAL_STATUS_ERROR
    assert (results[CAROL].failure.reason, results[CAROL].failure.message) == ("TERMINAL_UNKNOWN", "No such terminal.")
    (record,) = [each for each in await face.core.usage_records() if each.operation == "getStatusForGroup"]
    assert (record.face, record.requester, record.expanded_count) == ("grpc", "sip:boss@example.com", 3)


async def test_a_query_that_is_left_is_given_up(face: Face) -> None:
    """A caller who cancels, or whose deadline passes, keeps what came; the rest is given up."""
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


# Streams.


async def test_a_stream_tells_snapshot_changes_and_bookmarks(face: Face) -> None:
    """Snapshot, its end, each change, what becomes of the watch, and a bookmark when nothing happens."""
    call = face.watch(ALICE)
    item = await read(call, "snapshot_item")
    assert (item.address, item.HasField("status"), item.liveness) == (ALICE, False, pb.LIVENESS_UNKNOWN)
    assert (await read(call, "snapshot_complete")).resume_token
    await face.core.play(ALICE, BUSY)
    change = await read(call, "change")
    assert (change.status.address, change.status.status, change.status.revision) == (ALICE, pb.STATUS_BUSY, 1)
    assert change.status.source == pb.SOURCE_WATCH
    live = await read(call, "liveness_change")
    assert (live.address, live.liveness, live.since.ToDatetime(UTC)) == (ALICE, pb.LIVENESS_LIVE, BEGAN)
    face.core.watcher.lose(ALICE, "it is gone")
    stale = await read(call, "liveness_change")
    assert (stale.liveness, stale.reason, stale.HasField("failure")) == (pb.LIVENESS_STALE, "it is gone", False)
    face.core.watcher.play(ALICE, BUSY)
    assert (await read(call, "liveness_change")).liveness == pb.LIVENESS_LIVE
    await quiet(face)
    token = (await read(call, "bookmark")).resume_token
    call.cancel()
    again = face.watch(ALICE, resume_token=token)
    assert not (await read(again, "snapshot_complete")).reset
    again.cancel()


@pytest.mark.parametrize("token", ["x", "AQAA", "é\n\0", "A" * 1_000_000], ids=range(4))
async def test_token_that_cannot_be_used_is_a_reset(face: Face, token: str) -> None:
    """A resume token that cannot be used is no error: the snapshot is whole, and says that the client begins again."""
    keeping = face.watch(ALICE)
    await read(keeping, "snapshot_item")
    await read(keeping, "snapshot_complete")
    await face.core.play(ALICE, BUSY)
    call = face.watch(ALICE, resume_token=token)
    assert (await read(call, "snapshot_item")).status.status == pb.STATUS_BUSY
    assert (await read(call, "snapshot_complete")).reset
    call.cancel()
    keeping.cancel()


async def test_a_stream_follows_its_group_and_failures(face: Face) -> None:
    """Members that join come as snapshot, those that leave as removed, and an error of a terminal with its reason."""
    await face.groups.CreateGroup(group_pb2.CreateGroupRequest(address=TEAM, members=[ALICE]), metadata=face.app)
    call = face.watch(TEAM)
    await read(call, "snapshot_item")
    await read(call, "snapshot_complete")
    members = group_pb2.SetGroupMembersRequest(address=TEAM, members=[BOB, CAROL])
    await face.groups.SetGroupMembers(members, metadata=face.app)
    events = [await call.read() for _ in range(3)]
    assert {event.WhichOneof("event") for event in events} == {"snapshot_item", "terminal_removed"}
    assert [event.terminal_removed.address for event in events if event.HasField("terminal_removed")] == [ALICE]
    face.core.watcher.fail(BOB, WatcherRefused("Not for you."))
    failed = await read(call, "liveness_change")
    assert (failed.address, failed.failure.reason, failed.failure.message) == (BOB, "WATCHER_REFUSED", "Not for you.")
    face.core.watcher.fail(CAROL, TerminalUnknown("No such."))
    while (event := await call.read()).WhichOneof("event") != "end":  # what is said of Carol may be overtaken
        pass
    assert event.end.reason == pb.STREAM_END_REASON_NOTHING_TO_WATCH
    assert await call.read() == grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK


async def test_streams_end_with_a_reason_before_the_server(face: Face) -> None:
    """Told to stop, each stream says so and resumes elsewhere, and the server does not wait for it."""
    calls = [face.watch(ALICE), face.watch(BOB, metadata=face.other)]
    for call in calls:
        await read(call, "snapshot_item")
        await read(call, "snapshot_complete")
    face.stopping.set()
    face.core.streams.end_all()
    for call in calls:
        end = await read(call, "end")
        assert (end.reason, bool(end.resume_token)) == (pb.STREAM_END_REASON_GATEWAY_STOPPING, True)
        assert await call.read() == grpc.aio.EOF
    async with asyncio.timeout(LIMIT_S):
        await face.server.stop(LIMIT_S * 10)


async def test_a_reader_that_is_stuck_holds_up_nobody(tmp_path: Path) -> None:
    """A client that does not read any more costs others nothing, gets the newest when it reads, and can be cut off."""
    url = await new_database(tmp_path)
    terminals = [TerminalAddress(f"sip:{'x' * 150}{number}@example.com") for number in range(600)]
    async with run_core(url) as core, face_over(core) as face, stuck_channel(face) as channel:
        stub: Any = TerminalStatusServiceStub(channel)
        stuck = stub.WatchStatuses(pb.WatchStatusesRequest(addresses=terminals), metadata=face.app)
        reading = face.watch(terminals[0])
        await read(reading, "snapshot_item")
        await read(reading, "snapshot_complete")
        for status in itertools.islice(itertools.cycle((BUSY, REACHABLE)), 11):
            for terminal in terminals:
                core.watcher.play(terminal, status)
            await core.settled()
            while (event := await reading.read()).WhichOneof("event") != "change":
                pass
            assert event.change.status.status == enum_values.STATUS[status]
        face.stopping.set()
        core.streams.end_all()
        for call in list(face.calls):
            call.cancel()
        async with asyncio.timeout(LIMIT_S):
            await face.server.stop(0.2)
        await until(lambda: not face.calls)
        stuck.cancel()


@asynccontextmanager
async def stuck_channel(face: Face) -> AsyncIterator[grpc.aio.Channel]:
    """A channel with the smallest windows, so that a reader that stops is noticed soon."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{face.port}", options=options) as channel:
        yield channel


async def test_a_streams_deadline_is_honoured(face: Face) -> None:
    """A stream ends at its caller's deadline, and nothing of it is left."""
    call = face.watch(ALICE, timeout_s=0.2)
    assert (await failure_of(call))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not face.core.live.engine.figures()["streams"] and not face.calls)


async def test_a_stream_ends_with_its_credentials(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of a client that is disabled here ends at once; by another process, when the stream next looks."""
    monkeypatch.setattr(terminal_status, "RECHECK_S", 0)
    here, elsewhere = face.watch(ALICE), face.watch(ALICE, metadata=face.other)
    for call in (here, elsewhere):
        await read(call, "snapshot_item")
        await read(call, "snapshot_complete")
    await face.registry.set_disabled(APP.id, True, who="test")
    assert (await read(here, "end")).reason == pb.STREAM_END_REASON_CREDENTIALS_EXPIRED
    await ClientRegistry(cast("Any", face.core.store), contracts=SINK_CONTRACTS, clock=lambda: BEGAN).set_disabled(
        OTHER.id, True, who="cli"
    )
    await quiet(face)
    await read(elsewhere, "bookmark")
    end = await read(elsewhere, "end")
    assert (end.reason, end.resume_token) == (pb.STREAM_END_REASON_CREDENTIALS_EXPIRED, "")
    assert await elsewhere.read() == grpc.aio.EOF


async def test_an_old_stream_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream as old as connections may get is ended with a token to resume, before its connection is."""
    monkeypatch.setattr(terminal_status, "RECHECK_S", 0)
    async with run_core(await new_database(tmp_path)) as core, face_over(core, max_connection_age_s=1) as face:
        call = face.watch(ALICE)
        await read(call, "snapshot_item")
        token = (await read(call, "snapshot_complete")).resume_token
        for status in itertools.cycle((BUSY, REACHABLE)):
            await core.play(ALICE, status)
            event = await call.read()
            if event.WhichOneof("event") == "end":
                break
            await asyncio.sleep(0.01)
        assert (event.end.reason, event.end.resume_token) == (pb.STREAM_END_REASON_MAX_AGE, token)


# Subscriptions, groups, deliveries, usage.


async def test_a_subscription_is_made_shown_renewed_and_ended(face: Face) -> None:
    """What was asked for is what is shown; secrets of the sink are not."""
    request = subscription_pb2.CreateSubscriptionRequest(
        addresses=[ALICE, "SIP:bob@EXAMPLE.com"],
        criteria=[pb.STATUS_BUSY, pb.STATUS_REACHABLE],
        check_immediate=True,
        min_interval=Duration(seconds=1, nanos=500_000_001),
        duration=Duration(seconds=60),
        max_notifications=7,
        sink=subscription_pb2.Sink(
            kind=subscription_pb2.SINK_KIND_WEBHOOK,
            url="https://example.com/hook",
            profile="v1",
            parameters={"token": "the secret"},
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
    assert (made.check_immediate, made.max_notifications, made.min_interval.ToMilliseconds()) == (True, 7, 1501)
    assert (made.sink.url, made.sink.profile, dict(made.sink.parameters)) == (
        "https://example.com/hook",
        "v1",
        {"token": "", "secrets": ""},  # one is made where none is named
    )
    assert (made.correlator, made.request_id) == ("mine", "once")
    assert (made.created_at.ToDatetime(UTC), made.expires_at.ToDatetime(UTC)) == (BEGAN, BEGAN + timedelta(seconds=60))
    assert await face.subscriptions.CreateSubscription(request, metadata=face.app) == answer
    renew = subscription_pb2.RenewSubscriptionRequest(subscription_id=made.id, duration=Duration(seconds=120))
    renewed = (await face.subscriptions.RenewSubscription(renew, metadata=face.app)).subscription
    assert renewed.expires_at.ToDatetime(UTC) == BEGAN + timedelta(seconds=120)
    cancel = subscription_pb2.CancelSubscriptionRequest(correlator="mine")
    await face.subscriptions.CancelSubscription(cancel, metadata=face.app)
    get = subscription_pb2.GetSubscriptionRequest(subscription_id=made.id)
    ended = (await face.subscriptions.GetSubscription(get, metadata=face.app)).subscription
    assert (ended.end_reason, ended.ended_at.ToDatetime(UTC)) == (subscription_pb2.END_REASON_CANCELLED, BEGAN)
    code, reason, _ = await failure_of(face.subscriptions.RenewSubscription(renew, metadata=face.app))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "SUBSCRIPTION_UNKNOWN")


async def test_a_webhooks_secret_is_rotated(face: Face) -> None:
    """A new secret is returned this once, one's own is not; the one before stays until it is dropped."""
    own = "whsec_" + "A" * 32
    sink = subscription_pb2.Sink(kind=subscription_pb2.SINK_KIND_WEBHOOK, url="https://example.com/", profile="v1")
    sink.parameters["secrets"] = own
    made = await face.subscribe(ALICE, sink=sink)

    async def rotate(**more: Any) -> tuple[str, list[str]]:
        request = subscription_pb2.RotateSecretRequest(subscription_id=made.id, requester="boss", **more)
        changed = await face.subscriptions.RotateSecret(request, metadata=face.app)
        assert changed.subscription == made
        stored = await face.core.store.subscription(made.id)
        return changed.secret, stored.sink.parameters["secrets"].split()

    secret, stored = await rotate()
    assert (stored, len(read_secret(secret))) == ([secret, own], 32)
    assert await rotate(drop_old=True) == ("", [secret])
    assert await rotate(secret=own) == ("", [own, secret])
    bad = subscription_pb2.RotateSecretRequest(subscription_id=made.id, secret="x")
    failure = await failure_of(face.subscriptions.RotateSecret(bad, metadata=face.app))
    assert failure[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "SINK_REFUSED")


async def test_lists_come_in_pages(face: Face) -> None:
    """Each item of a list is on exactly one page; a token of elsewhere is refused."""
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
    """Members are added, removed and replaced, and a change of an old version is refused."""
    create = group_pb2.CreateGroupRequest(address=TEAM, members=[ALICE])
    made = (await face.groups.CreateGroup(create, metadata=face.app)).group
    assert (made.address, made.client_id, list(made.members), made.version) == (TEAM, APP.id, [ALICE], 1)
    add = group_pb2.AddGroupMembersRequest(address=TEAM, members=[ALICE, BOB])
    assert list((await face.groups.AddGroupMembers(add, metadata=face.app)).group.members) == [ALICE, BOB]
    remove = group_pb2.RemoveGroupMembersRequest(address=TEAM, members=[ALICE, CAROL])
    assert list((await face.groups.RemoveGroupMembers(remove, metadata=face.app)).group.members) == [BOB]
    for version, expected in ((1, "GROUP_CHANGED"), (0, ""), (4, "")):
        change = group_pb2.SetGroupMembersRequest(address=TEAM, members=[CAROL], expected_version=version)
        call = face.groups.SetGroupMembers(change, metadata=face.app)
        if expected:
            assert (await failure_of(call))[:2] == (grpc.StatusCode.ABORTED, expected)
        else:
            assert list((await call).group.members) == [CAROL]
    get = group_pb2.GetGroupRequest(address=TEAM)
    assert (await face.groups.GetGroup(get, metadata=face.app)).group.version == 5
    code, reason, _ = await failure_of(face.groups.CreateGroup(create, metadata=face.app))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "GROUP_EXISTS")
    await face.groups.DeleteGroup(group_pb2.DeleteGroupRequest(address=TEAM), metadata=face.app)
    assert (await failure_of(face.groups.GetGroup(get, metadata=face.app)))[1] == "GROUP_UNKNOWN"


async def test_deliveries_are_shown_and_sent_again(face: Face) -> None:
    """A notification is shown with its attempts, filtered by state and subscription, and a dead one sent again."""
    made = await face.subscribe(
        ALICE, BOB, sink=subscription_pb2.Sink(kind=subscription_pb2.SINK_KIND_WEBHOOK, url="https://example.com/hook")
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
            outcome="http-500",
            answer=b"\xff",
        )
        await face.core.store.record_attempts([Attempted(attempt=attempt, owner="test", state=state)])
    dead = delivery_pb2.ListNotificationsRequest(state=delivery_pb2.DELIVERY_STATE_DEAD, subscription_id=made.id)
    (shown,) = (await face.deliveries.ListNotifications(dead, metadata=face.app)).notifications
    assert (shown.id, shown.kind, shown.attempts) == (owed.id, delivery_pb2.NOTIFICATION_KIND_STATUS, 1)
    assert [(change.address, change.status) for change in shown.changes] == [(ALICE, pb.STATUS_BUSY)]
    assert not shown.HasField("next_attempt_at")
    asked = delivery_pb2.ListDeliveryAttemptsRequest(notification_id=owed.id)
    (tried,) = (await face.deliveries.ListDeliveryAttempts(asked, metadata=face.app)).attempts
    assert (tried.number, tried.code, tried.duration.ToMilliseconds(), tried.outcome, tried.answer) == (
        1,
        500,
        1234,
        "http-500",
        b"\xff",
    )
    again = delivery_pb2.SendNotificationsAgainRequest(notification_ids=[owed.id])
    assert [(await face.deliveries.SendNotificationsAgain(again, metadata=face.app)).sent_again for _ in range(2)] == [
        1,
        0,
    ]
    assert "again" in face.core.hints
    assert not (await face.deliveries.ListNotifications(dead, metadata=face.app)).notifications


async def test_what_is_withdrawn_is_listed(face: Face) -> None:
    """What was owed to a SOAP subscription that its client has ended is listed as withdrawn, and not sent again."""
    made = await face.core.subscribe(ALICE, sink=SOAP, check_immediate=True)
    await face.core.play(ALICE, BUSY)
    ended = subscription_pb2.CancelSubscriptionRequest(subscription_id=made.id)
    await face.subscriptions.CancelSubscription(ended, metadata=face.app)
    asked = delivery_pb2.ListNotificationsRequest(state=delivery_pb2.DELIVERY_STATE_WITHDRAWN)
    (shown,) = (await face.deliveries.ListNotifications(asked, metadata=face.app)).notifications
    assert (shown.subscription_id, shown.state) == (made.id, delivery_pb2.DELIVERY_STATE_WITHDRAWN)
    assert (shown.HasField("next_attempt_at"), shown.HasField("settled_at")) == (False, True)
    again = delivery_pb2.SendNotificationsAgainRequest(notification_ids=[shown.id])
    assert (await face.deliveries.SendNotificationsAgain(again, metadata=face.app)).sent_again == 0


async def test_usage_is_listed_and_exported(face: Face) -> None:
    """A client sees its own usage, an operator everybody's; an export is all of it in portions."""
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
    request = usage_pb2.ListUsageRecordsRequest(since=later)
    assert not (await face.usage.ListUsageRecords(request, metadata=face.app)).usage_records
    (record, _) = (
        await face.usage.ListUsageRecords(usage_pb2.ListUsageRecordsRequest(), metadata=face.app)
    ).usage_records
    assert (record.operation, record.face, record.requester, record.result) == ("getStatus", "grpc", "boss", "OK")
    assert list(record.targets) == [ALICE]


# Administration.


def view(number: int) -> WatchView:
    return WatchView(
        address=TerminalAddress(f"sip:t{number}@example.com"),
        state="active",
        liveness=Liveness.LIVE,
        since=BEGAN,
        expires_at=BEGAN + timedelta(seconds=60),
        code=200,
        reason="fine",
        next_action="refresh",
        next_at=None,
        route="sip:127.0.0.1",
    )


async def test_watches_are_listed_with_who_wants_them(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches come by address in pages, with their state and who wants them."""

    async def watches() -> list[WatchView]:
        return [view(number) for number in (3, 1, 2)]

    monkeypatch.setattr(face.core.watcher, "watches", watches)
    made = await face.subscribe("sip:t1@example.com")
    first = await face.operators.ListWatches(admin_pb2.ListWatchesRequest(page_size=2), metadata=face.admin)
    assert ([each.address for each in first.watches], first.total_size) == (
        ["sip:t1@example.com", "sip:t2@example.com"],
        3,
    )
    shown = first.watches[0]
    assert (shown.state, shown.liveness, shown.sip_code, shown.route) == (
        "active",
        pb.LIVENESS_LIVE,
        200,
        "sip:127.0.0.1",
    )
    assert (list(shown.wanted_by), shown.HasField("next_at")) == ([made.id], False)
    rest = admin_pb2.ListWatchesRequest(page_size=2, page_token=first.next_page_token)
    second = await face.operators.ListWatches(rest, metadata=face.admin)
    assert ([each.address for each in second.watches], second.next_page_token) == (["sip:t3@example.com"], "")
    foreign = admin_pb2.ListClientsRequest(page_token=first.next_page_token)
    assert (await failure_of(face.operators.ListClients(foreign, metadata=face.admin)))[2] == "page_token"


async def test_a_watch_is_refreshed(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """RefreshWatch asks the presence server now and stands in the audit log; what is not watched is NOT_FOUND."""
    request = admin_pb2.RefreshWatchRequest(address="SIP:alice@EXAMPLE.com")
    await face.operators.RefreshWatch(request, metadata=face.admin)
    assert face.core.watcher.asked == [f"refresh {ALICE}"]

    def refuse(address: TerminalAddress) -> None:
        raise WatchUnknown("It is not watched.")

    monkeypatch.setattr(face.core.watcher, "refresh", refuse)
    failure = await failure_of(face.operators.RefreshWatch(request, metadata=face.admin))
    assert failure[:2] == (grpc.StatusCode.NOT_FOUND, "WATCH_UNKNOWN")
    bad = admin_pb2.RefreshWatchRequest(address="alice")
    failure = await failure_of(face.operators.RefreshWatch(bad, metadata=face.admin))
    assert failure == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ADDRESS", "address")


async def test_a_client_lives_and_dies_over_grpc(face: Face) -> None:
    """A client is made, calls, is rotated, disabled, enabled, deleted; its streams and subscriptions end with it."""
    create = admin_pb2.CreateClientRequest(
        name="billing", client_id="b", limits={"max_targets": 5, "busy_available": 0}
    )
    made = await face.operators.CreateClient(create, metadata=face.admin)
    assert (made.client.id, dict(made.client.limits)) == ("b", {"max_targets": 5, "busy_available": 0})
    own: Metadata = (("authorization", f"Bearer {made.api_key}"),)
    too_many = pb.QueryStatusesRequest(addresses=[f"sip:{number}@example.com" for number in range(6)])
    failure = await failure_of(face.terminals.QueryStatuses(too_many, metadata=own))
    assert failure == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_ADDRESSES", "addresses")
    rotate = admin_pb2.RotateClientKeyRequest(client_id="b", overlap=Duration())
    rotated = await face.operators.RotateClientKey(rotate, metadata=face.admin)
    refused = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "")
    assert await failure_of(face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE), metadata=own)) == refused
    own = (("authorization", f"Bearer {rotated.api_key}"),)
    for disabled in (True, False):
        change = admin_pb2.SetClientDisabledRequest(client_id="b", disabled=disabled)
        assert (await face.operators.SetClientDisabled(change, metadata=face.admin)).client.disabled is disabled
        call = face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE), metadata=own)
        if disabled:
            assert await failure_of(call) == refused
        else:
            await call
    listed = (await face.operators.ListClients(admin_pb2.ListClientsRequest(), metadata=face.admin)).clients
    assert [each.name for each in listed] == sorted([APP.name, OTHER.name, ADMIN.name, "billing"])
    assert [len(each.keys) for each in listed if each.id == "b"] == [1]
    create_subscription = subscription_pb2.CreateSubscriptionRequest(addresses=[ALICE])
    await face.subscriptions.CreateSubscription(create_subscription, metadata=own)
    stream = face.watch(ALICE, metadata=own)
    await read(stream, "snapshot_item")
    await read(stream, "snapshot_complete")
    delete = admin_pb2.DeleteClientRequest(client_id="b")
    assert (await face.operators.DeleteClient(delete, metadata=face.admin)).ended_subscriptions == 1
    assert (await read(stream, "end")).reason == pb.STREAM_END_REASON_CREDENTIALS_EXPIRED
    failure = await failure_of(face.operators.DeleteClient(delete, metadata=face.admin))
    assert failure[:2] == (grpc.StatusCode.NOT_FOUND, "CLIENT_UNKNOWN")


async def test_the_audit_log_is_read_by_operators(face: Face) -> None:
    """ListAuditEntries shows who changed what from a time on, page by page, to an operator's client alone."""
    create = admin_pb2.CreateClientRequest(name="billing", client_id="b")
    await face.operators.CreateClient(create, metadata=face.admin)
    await face.operators.DeleteClient(admin_pb2.DeleteClientRequest(client_id="b"), metadata=face.admin)
    request, told = admin_pb2.ListAuditEntriesRequest(page_size=1), list[tuple[str, str]]()
    while not told or request.page_token:
        answer = await face.operators.ListAuditEntries(request, metadata=face.admin)
        told += [(one.who, one.what) for one in answer.audit_entries if one.details.get("client") == "b"]
        request.page_token = answer.next_page_token
    assert told == [(ADMIN.id, "client added"), (ADMIN.id, "client deleted")]
    later = admin_pb2.ListAuditEntriesRequest(since=Timestamp(seconds=1 << 36))
    assert not (await face.operators.ListAuditEntries(later, metadata=face.admin)).audit_entries
    for bad, code in ((NEVER, "INVALID_REQUEST"), (None, "NOT_PERMITTED")):
        call = face.operators.ListAuditEntries(
            admin_pb2.ListAuditEntriesRequest(since=bad), metadata=face.admin if bad else face.app
        )
        assert (await failure_of(call))[1] == code


async def test_a_client_that_another_process_deletes_is_let_go(face: Face) -> None:
    """Streams of a client that the command line has deleted end, and its sinks are told, once."""
    sink = subscription_pb2.Sink(kind=subscription_pb2.SINK_KIND_WEBHOOK, url="https://example.com/hook")
    made = await face.subscribe(ALICE, sink=sink)
    stream = face.watch(ALICE)
    await read(stream, "snapshot_item")
    await read(stream, "snapshot_complete")
    await ClientRegistry(cast("Any", face.core.store), contracts=SINK_CONTRACTS, clock=lambda: BEGAN).delete(
        APP.id, who="cli"
    )
    for _ in range(2):
        await face.core.live.lifecycle.on_client_deleted(APP.id)
        assert await face.core.told(cast("Any", made)) == ["STARTED", "ENDED CLIENT_DELETED"]
    assert (await read(stream, "end")).reason == pb.STREAM_END_REASON_CREDENTIALS_EXPIRED
    assert face.core.live.engine.figures()["subscriptions"] == 0


async def test_a_client_that_is_deleted_meanwhile_gets_no_subscription(face: Face) -> None:
    """A call that began with good credentials makes nothing once the client is deleted, here or by another process."""
    elsewhere = ClientRegistry(cast("Any", face.core.store), contracts=SINK_CONTRACTS, clock=lambda: BEGAN)
    sink = subscription_pb2.Sink(kind=subscription_pb2.SINK_KIND_WEBHOOK, url="https://example.com/hook")
    for client, metadata, delete in ((APP, face.app, face.registry.delete), (OTHER, face.other, elsewhere.delete)):

        async def check(_: Any, client: Any = client, delete: Any = delete) -> None:
            await delete(client.id, who="test")

        face.core.sender.check = check  # type: ignore[assignment]
        request = subscription_pb2.CreateSubscriptionRequest(addresses=[ALICE], sink=sink)
        failure = await failure_of(face.subscriptions.CreateSubscription(request, metadata=metadata))
        assert failure[:2] == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert face.core.live.engine.figures()["subscriptions"] == 0


async def test_what_a_deleted_client_left_is_ended(tmp_path: Path) -> None:
    """A subscription that another process's deletion has missed ends when that is followed, or at the next start."""
    database = await new_database(tmp_path)
    late = {}
    async with run_core(database) as core:
        elsewhere = ClientRegistry(cast("Any", core.store), contracts=SINK_CONTRACTS, clock=lambda: BEGAN)
        third, _ = await elsewhere.add("Third", who="cli")
        for client in (APP, third):
            made = await core.stored(await core.subscribe(ALICE, client=client))
            await elsewhere.delete(client.id, who="cli")
            late[client.id] = dataclasses.replace(made, id=f"late-{client.id}")
            await core.store.create_subscription(late[client.id], [], [])
        await core.live.lifecycle.on_client_deleted(APP.id)
        assert (await core.stored(late[APP.id])).end_reason is EndReason.CLIENT_DELETED
        assert (await core.stored(late[third.id])).active
    async with run_core(database) as core:
        assert (await core.stored(late[third.id])).end_reason is EndReason.CLIENT_DELETED
        assert core.live.engine.figures()["subscriptions"] == 0


# Bad input.

DAYS = Duration(seconds=400 * 86_400)
MINUS = Duration(seconds=-1)
ODD = Duration(seconds=1 << 62, nanos=-5)
NEVER = Timestamp(seconds=1 << 60)
MANY = [f"sip:{number}@example.com" for number in range(10_000)]
LONG = "x" * 70_000
UNKNOWN: Any = 99
CREATE = subscription_pb2.CreateSubscriptionRequest
SINK = subscription_pb2.Sink


@pytest.mark.parametrize("max_age", [MINUS, DAYS, ODD])
async def test_an_age_that_cannot_be_is_recorded(face: Face, max_age: Duration) -> None:
    """A call that is refused for its age counts like any other."""
    request = pb.GetStatusRequest(address=ALICE, max_age=max_age)
    await failure_of(face.terminals.GetStatus(request, metadata=face.app))
    (record,) = await face.core.usage_records()
    assert (record.operation, record.result) == ("getStatus", "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("service", "method", "request_", "field"),
    [
        ("terminals", "GetStatus", pb.GetStatusRequest(address=ALICE, max_age=MINUS), "max_age"),
        ("terminals", "GetStatus", pb.GetStatusRequest(address=ALICE, max_age=DAYS), "max_age"),
        ("terminals", "GetStatus", pb.GetStatusRequest(address=ALICE, max_age=ODD), "max_age"),
        ("terminals", "GetStatus", pb.GetStatusRequest(address=ALICE, requester="x" * 201), "requester"),
        ("terminals", "QueryStatuses", pb.QueryStatusesRequest(), "addresses"),
        ("terminals", "QueryStatuses", pb.QueryStatusesRequest(addresses=[ALICE, "x"]), "addresses"),
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
            "criteria",
        ),
        (
            "terminals",
            "WatchStatuses",
            pb.WatchStatusesRequest(addresses=[ALICE], criteria=[UNKNOWN]),
            "criteria",
        ),
        ("terminals", "WatchStatuses", pb.WatchStatusesRequest(addresses=[ALICE], min_interval=DAYS), "min_interval"),
        ("subscriptions", "CreateSubscription", CREATE(), "addresses"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], max_notifications=-1), "max_notifications"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], duration=MINUS), "duration"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], duration=DAYS), "duration"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], min_interval=MINUS), "min_interval"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], correlator="x" * 256), "correlator"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], request_id="x" * 65), "request_id"),
        ("subscriptions", "CreateSubscription", CREATE(addresses=[ALICE], sink=SINK(kind=UNKNOWN)), "sink.kind"),
        (
            "subscriptions",
            "CreateSubscription",
            CREATE(addresses=[ALICE], sink=SINK(url=LONG)),
            "sink.url",
        ),
        (
            "subscriptions",
            "CreateSubscription",
            CREATE(addresses=[ALICE], sink=SINK(parameters={str(i): "" for i in range(21)})),
            "sink.parameters",
        ),
        ("subscriptions", "ListSubscriptions", subscription_pb2.ListSubscriptionsRequest(page_size=-1), "page_size"),
        ("subscriptions", "ListSubscriptions", subscription_pb2.ListSubscriptionsRequest(page_size=1001), "page_size"),
        ("subscriptions", "CancelSubscription", subscription_pb2.CancelSubscriptionRequest(), "subscription_id"),
        (
            "subscriptions",
            "RenewSubscription",
            subscription_pb2.RenewSubscriptionRequest(),
            "duration",
        ),
        ("subscriptions", "RotateSecret", subscription_pb2.RotateSecretRequest(secret="x" * 8001), "secret"),
        ("subscriptions", "RotateSecret", subscription_pb2.RotateSecretRequest(requester="x" * 201), "requester"),
        ("groups", "CreateGroup", group_pb2.CreateGroupRequest(), "address"),
        ("groups", "CreateGroup", group_pb2.CreateGroupRequest(address=TEAM, members=["x"]), "members"),
        ("groups", "AddGroupMembers", group_pb2.AddGroupMembersRequest(address=TEAM), "members"),
        ("groups", "RemoveGroupMembers", group_pb2.RemoveGroupMembersRequest(address=TEAM), "members"),
        ("deliveries", "ListNotifications", delivery_pb2.ListNotificationsRequest(state=UNKNOWN), "state"),
        ("deliveries", "ListNotifications", delivery_pb2.ListNotificationsRequest(page_token="x"), "page_token"),
        ("deliveries", "SendNotificationsAgain", delivery_pb2.SendNotificationsAgainRequest(), "notification_ids"),
        ("usage", "ListUsageRecords", usage_pb2.ListUsageRecordsRequest(since=NEVER), "since"),
        (
            "usage",
            "ExportUsageRecords",
            usage_pb2.ExportUsageRecordsRequest(since=NEVER),
            "since",
        ),
        ("operators", "ListWatches", admin_pb2.ListWatchesRequest(page_token="c:x"), "page_token"),
        ("operators", "CreateClient", admin_pb2.CreateClientRequest(), "name"),
        ("operators", "CreateClient", admin_pb2.CreateClientRequest(name="a", client_id="anonymous"), "client_id"),
        ("operators", "CreateClient", admin_pb2.CreateClientRequest(name="a", limits={"x": 1}), "limits"),
        ("operators", "CreateClient", admin_pb2.CreateClientRequest(name="a", limits={"busy_available": 2}), "limits"),
    ],
)
async def test_what_cannot_be_used_is_named(face: Face, service: str, method: str, request_: Any, field: str) -> None:
    """A part of a request that cannot be used is INVALID_ARGUMENT with its name."""
    metadata = face.admin if service == "operators" else face.app
    code, _, named = await failure_of(getattr(getattr(face, service), method)(request_, metadata=metadata))
    assert (code, named) == (grpc.StatusCode.INVALID_ARGUMENT, field)


@pytest.mark.parametrize("profile", ["camara", "v2", "v2_2"])
async def test_only_profile_v1_of_webhooks_is_made(face: Face, profile: str) -> None:
    """CAMARA's profile needs what only its own API takes, and others are none; SOAP's are left to its sender."""
    sink = SINK(kind=subscription_pb2.SINK_KIND_WEBHOOK, url="https://example.com/", profile=profile)
    call = face.subscriptions.CreateSubscription(CREATE(addresses=[ALICE], sink=sink), metadata=face.app)
    assert await failure_of(call) == (grpc.StatusCode.INVALID_ARGUMENT, "SINK_REFUSED", "sink.profile")
    for kind, allowed in (
        (subscription_pb2.SINK_KIND_WEBHOOK, ""),
        (subscription_pb2.SINK_KIND_WEBHOOK, "v1"),
        (subscription_pb2.SINK_KIND_SOAP, profile),
    ):
        made = await face.subscribe(ALICE, sink=SINK(kind=kind, url="https://example.com/", profile=allowed))
        assert made.sink.profile == allowed


async def test_a_long_overlap_is_refused(face: Face) -> None:
    """An overlap of keys that would last for ever is refused."""
    request = admin_pb2.RotateClientKeyRequest(client_id=APP.id, overlap=Duration(seconds=91 * 86_400))
    failure = await failure_of(face.operators.RotateClientKey(request, metadata=face.admin))
    assert failure == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "overlap")


async def test_a_store_that_is_away_is_told(face: Face) -> None:
    """While the database is away, what needs it is UNAVAILABLE, and clients known a moment ago still ask."""
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
        (enum_values.SINK_KIND, SinkKind, subscription_pb2.SinkKind, "SINK_KIND_"),
        (enum_values.END_REASON, EndReason, subscription_pb2.EndReason, "END_REASON_"),
        (enum_values.NOTIFICATION_KIND, NotificationKind, delivery_pb2.NotificationKind, "NOTIFICATION_KIND_"),
        (enum_values.DELIVERY_STATE, records.DeliveryState, delivery_pb2.DeliveryState, "DELIVERY_STATE_"),
    ],
)
def test_every_value_has_its_wire_value(
    table: Mapping[Any, int], ours: Any, theirs: EnumTypeWrapper, prefix: str
) -> None:
    """Each enum's values stand in the contract under their own names, and no others but those the face itself makes."""
    assert {f"{prefix}{each.name}": value for each, value in table.items()} == {
        name: value for name, value in theirs.items() if value and name != "STREAM_END_REASON_MAX_AGE"
    }
    assert set(table) == set(ours)
