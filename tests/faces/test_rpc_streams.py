"""WatchStatuses over gRPC: a real server and channel, the real use cases, a played presence server."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest

from app.auth.clients import ClientRegistry
from app.domain.addresses import TerminalAddress
from app.domain.errors import TerminalUnknown, WatcherRefused
from app.pb.terminalstatus.v1 import (
    group_pb2,
)
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub
from app.rpc import enum_values
from app.rpc.servicers import terminal_status
from app.sinks import SINK_CONTRACTS
from tests.support.core import (
    ALICE,
    APP,
    BEGAN,
    BOB,
    BUSY,
    CAROL,
    OTHER,
    REACHABLE,
    TEAM,
    new_database,
    run_core,
)
from tests.support.grpc_engines import ON_BOTH_ENGINES
from tests.support.rpc_face import LIMIT_S, Face, details_of, face, face_over, failure_of, quiet, read
from tests.support.waiting import until

pytestmark = ON_BOTH_ENGINES

__all__ = ["face"]  # fixtures


async def test_a_stream_sends_snapshot_changes_and_bookmarks(face: Face) -> None:
    """A stream sends the snapshot, its end, each change, each change of liveness, and a bookmark when nothing
    happens."""
    call = face.watch(ALICE)
    item = await read(call, "snapshot_item")
    assert (item.address, item.HasField("status"), item.liveness) == (ALICE, False, pb.LIVENESS_UNKNOWN)
    complete = await read(call, "snapshot_complete")
    assert complete.resume_token
    assert complete.bookmark_interval.ToTimedelta() == timedelta(seconds=10)
    await face.core.play(ALICE, BUSY)
    change = await read(call, "change")
    assert (change.status.address, change.status.status, change.status.revision) == (ALICE, pb.STATUS_BUSY, 1)
    assert change.status.source == pb.SOURCE_WATCH
    live = await read(call, "liveness_change")
    assert (live.address, live.liveness, live.liveness_time.ToDatetime(UTC)) == (ALICE, pb.LIVENESS_LIVE, BEGAN)
    face.core.watcher.lose(ALICE, "it is gone")
    stale = await read(call, "liveness_change")
    assert (stale.liveness, stale.liveness_reason, stale.HasField("error")) == (pb.LIVENESS_STALE, "it is gone", False)
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
    """An unusable resume token is not an error: the whole snapshot is sent, marked as a reset."""
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
    """Members that join are sent as snapshot items, members that leave as removed, and an error of a terminal with its
    reason."""
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
    assert (failed.address, details_of(failed.error)[0], failed.error.message) == (
        BOB,
        "WATCHER_REFUSED",
        "Not for you.",
    )
    face.core.watcher.fail(CAROL, TerminalUnknown("No such."))
    while (event := await call.read()).WhichOneof("event") != "end":  # a newer event about Carol may replace this one
        pass
    assert event.end.reason == pb.STREAM_END_REASON_NOTHING_TO_WATCH
    assert await call.read() == grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK


async def test_streams_end_with_a_reason_before_the_server(face: Face) -> None:
    """At a stop each stream says so, with a token for resuming elsewhere, and the server does not wait for it."""
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
    """A client that stops reading does not delay others, gets the newest status when it reads on, and can be
    disconnected."""
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
    """A channel with the smallest windows, so that the server soon notices a reader that stops."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{face.port}", options=options) as channel:
        yield channel


async def test_a_streams_deadline_is_honoured(face: Face) -> None:
    """A stream ends at its caller's deadline and leaves nothing behind."""
    call = face.watch(ALICE, timeout_s=0.2)
    assert (await failure_of(call))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not face.core.live.engine.figures()["streams"] and not face.calls)


async def test_a_stream_ends_with_its_credentials(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its client is disabled here a stream ends at once; when another process disables it, at the stream's next
    check."""
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
    """A stream of the maximum age of connections ends with a token for resuming, before its connection ends."""
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
