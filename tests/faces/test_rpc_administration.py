"""AdminService over gRPC: watches, clients and the audit log."""

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from app.auth.clients import ClientRegistry
from app.domain.addresses import TerminalAddress
from app.domain.errors import WatchUnknown
from app.domain.sinks import EndReason
from app.domain.statuses import Liveness
from app.domain.watches import WatchState
from app.pb.terminalstatus.v1 import (
    admin_pb2,
    subscription_pb2,
)
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.ports.sip import WatchView
from app.sinks import SINK_CONTRACTS
from tests.support.core import (
    ADMIN,
    ALICE,
    APP,
    BEGAN,
    OTHER,
    new_database,
    run_core,
)
from tests.support.grpc_engines import ON_BOTH_ENGINES
from tests.support.rpc_face import NEVER, Face, Metadata, face, failure_of, read

pytestmark = ON_BOTH_ENGINES

__all__ = ["face"]  # fixtures


def view(number: int) -> WatchView:
    return WatchView(
        address=TerminalAddress(f"sip:t{number}@example.com"),
        state=WatchState.ACTIVE,
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
    """Watches are listed by address in pages, with their state and listeners."""

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
    get = admin_pb2.GetWatchRequest(address="SIP:t1@Example.com")
    assert (await face.operators.GetWatch(get, metadata=face.admin)).watch == shown
    missing = admin_pb2.GetWatchRequest(address="sip:t9@example.com")
    assert (await failure_of(face.operators.GetWatch(missing, metadata=face.admin)))[1] == "WATCH_UNKNOWN"
    assert (shown.state, shown.liveness, shown.sip_code, shown.route) == (
        admin_pb2.WATCH_STATE_ACTIVE,
        pb.LIVENESS_LIVE,
        200,
        "sip:127.0.0.1",
    )
    assert (list(shown.subscription_ids), shown.HasField("next_action_time")) == ([made.id], False)
    rest = admin_pb2.ListWatchesRequest(page_size=2, page_token=first.next_page_token)
    second = await face.operators.ListWatches(rest, metadata=face.admin)
    assert ([each.address for each in second.watches], second.next_page_token) == (["sip:t3@example.com"], "")
    foreign = admin_pb2.ListClientsRequest(page_token=first.next_page_token)
    assert (await failure_of(face.operators.ListClients(foreign, metadata=face.admin)))[2] == "page_token"


async def test_a_watch_is_refreshed(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """RefreshWatch asks the presence server now and is in the audit log; an unwatched terminal is NOT_FOUND."""
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
    limits = admin_pb2.ClientLimits(max_targets=5, busy_available=False)
    create = admin_pb2.CreateClientRequest(name="billing", client_id="b", limits=limits, soap_callback_version="v2_3")
    made = await face.operators.CreateClient(create, metadata=face.admin)
    assert (made.client.id, made.client.limits, made.client.soap_callback_version) == ("b", limits, "v2_3")
    own: Metadata = (("authorization", f"Bearer {made.api_key}"),)
    too_many = pb.QueryStatusesRequest(addresses=[f"sip:{number}@example.com" for number in range(6)])
    failure = await failure_of(face.terminals.QueryStatuses(too_many, metadata=own))
    assert failure == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_ADDRESSES", "addresses")
    rotate = admin_pb2.RotateClientKeyRequest(client_id="b", overlap=Duration())
    rotated = await face.operators.RotateClientKey(rotate, metadata=face.admin)
    refused = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "")
    assert await failure_of(face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE), metadata=own)) == refused
    own = (("authorization", f"Bearer {rotated.api_key}"),)
    changes: list[tuple[bool, Any, Any]] = [
        (True, face.operators.DisableClient, admin_pb2.DisableClientRequest),
        (False, face.operators.EnableClient, admin_pb2.EnableClientRequest),
    ]
    for disabled, change, request in changes:
        assert (await change(request(client_id="b"), metadata=face.admin)).client.disabled is disabled
        call = face.terminals.GetStatus(pb.GetStatusRequest(address=ALICE), metadata=own)
        if disabled:
            assert await failure_of(call) == refused
        else:
            await call
    listed = (await face.operators.ListClients(admin_pb2.ListClientsRequest(), metadata=face.admin)).clients
    assert [each.name for each in listed] == sorted([APP.name, OTHER.name, ADMIN.name, "billing"])
    assert [len(each.keys) for each in listed if each.id == "b"] == [1]
    get = admin_pb2.GetClientRequest(client_id="b")
    assert [(await face.operators.GetClient(get, metadata=face.admin)).client] == [
        one for one in listed if one.id == "b"
    ]
    create_subscription = subscription_pb2.CreateSubscriptionRequest(addresses=[ALICE])
    await face.subscriptions.CreateSubscription(create_subscription, metadata=own)
    stream = face.watch(ALICE, metadata=own)
    await read(stream, "snapshot_item")
    await read(stream, "snapshot_complete")
    delete = admin_pb2.DeleteClientRequest(client_id="b")
    assert (await face.operators.DeleteClient(delete, metadata=face.admin)).ended_subscription_count == 1
    assert (await read(stream, "end")).reason == pb.STREAM_END_REASON_CREDENTIALS_EXPIRED
    failure = await failure_of(face.operators.DeleteClient(delete, metadata=face.admin))
    assert failure[:2] == (grpc.StatusCode.NOT_FOUND, "CLIENT_UNKNOWN")


async def test_the_audit_log_is_read_by_operators(face: Face) -> None:
    """ListAuditEntries shows to operators' clients only who changed what, from a given time, page by page."""
    create = admin_pb2.CreateClientRequest(name="billing", client_id="b")
    await face.operators.CreateClient(create, metadata=face.admin)
    await face.operators.DeleteClient(admin_pb2.DeleteClientRequest(client_id="b"), metadata=face.admin)
    request, found = admin_pb2.ListAuditEntriesRequest(page_size=1), list[tuple[str, int]]()
    while not found or request.page_token:
        answer = await face.operators.ListAuditEntries(request, metadata=face.admin)
        found += [(one.actor, one.action) for one in answer.audit_entries if one.details.get("client") == "b"]
        request.page_token = answer.next_page_token
    assert found == [
        (ADMIN.id, admin_pb2.AUDIT_ACTION_CLIENT_ADDED),
        (ADMIN.id, admin_pb2.AUDIT_ACTION_CLIENT_DELETED),
    ]
    later = admin_pb2.ListAuditEntriesRequest(start_time=Timestamp(seconds=1 << 36))
    assert not (await face.operators.ListAuditEntries(later, metadata=face.admin)).audit_entries
    for bad, code in ((NEVER, "INVALID_REQUEST"), (None, "NOT_PERMITTED")):
        call = face.operators.ListAuditEntries(
            admin_pb2.ListAuditEntriesRequest(start_time=bad), metadata=face.admin if bad else face.app
        )
        assert (await failure_of(call))[1] == code


async def test_a_client_that_another_process_deletes_is_let_go(face: Face) -> None:
    """After the command line has deleted a client its streams end, and its sinks are sent the end once."""
    sink = subscription_pb2.Sink(webhook=subscription_pb2.WebhookSink(uri="https://example.com/hook"))
    made = await face.subscribe(ALICE, sink=sink)
    stream = face.watch(ALICE)
    await read(stream, "snapshot_item")
    await read(stream, "snapshot_complete")
    await ClientRegistry(cast("Any", face.core.store), contracts=SINK_CONTRACTS, clock=lambda: BEGAN).delete(
        APP.id, who="cli"
    )
    for _ in range(2):
        await face.core.live.lifecycle.on_client_deleted(APP.id)
        assert await face.core.owed_in_short(cast("Any", made)) == ["STARTED", "ENDED CLIENT_DELETED"]
    assert (await read(stream, "end")).reason == pb.STREAM_END_REASON_CREDENTIALS_EXPIRED
    assert face.core.live.engine.figures()["subscriptions"] == 0


async def test_a_client_that_is_deleted_meanwhile_gets_no_subscription(face: Face) -> None:
    """A call that began with valid credentials makes nothing once the client is deleted, by this or another process."""
    elsewhere = ClientRegistry(cast("Any", face.core.store), contracts=SINK_CONTRACTS, clock=lambda: BEGAN)
    sink = subscription_pb2.Sink(webhook=subscription_pb2.WebhookSink(uri="https://example.com/hook"))
    for client, metadata, delete in ((APP, face.app, face.registry.delete), (OTHER, face.other, elsewhere.delete)):

        async def check(_: Any, client: Any = client, delete: Any = delete) -> None:
            await delete(client.id, who="test")

        face.core.sender.check = check  # type: ignore[assignment]
        request = subscription_pb2.CreateSubscriptionRequest(addresses=[ALICE], sink=sink)
        failure = await failure_of(face.subscriptions.CreateSubscription(request, metadata=metadata))
        assert failure[:2] == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert face.core.live.engine.figures()["subscriptions"] == 0


async def test_what_a_deleted_client_left_is_ended(tmp_path: Path) -> None:
    """A subscription that was made while another process deleted its client ends when the deletion is noticed, or at
    the next start."""
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
