"""FollowStatuses over gRPC: a real server and channel, the real use cases, a played presence server."""

import asyncio
import itertools
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo  # type: ignore[import-untyped, unused-ignore]

from app.auth.clients import ClientRegistry
from app.domain.policy import Policy
from app.pb.terminalstatus.v1 import group_pb2
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.rpc import call_admission
from app.rpc.servicers import terminal_status
from app.sinks import SINK_CONTRACTS
from tests.support.core import ALICE, APP, BEGAN, BOB, BUSY, CAROL, REACHABLE, TEAM, new_database, run_core
from tests.support.grpc_engines import ON_BOTH_ENGINES
from tests.support.rpc_face import LIMIT_S, Face, face, face_over, failure_of, quiet
from tests.support.waiting import until

pytestmark = ON_BOTH_ENGINES

__all__ = ["face"]  # fixtures


def opening(*addresses: str, **more: Any) -> pb.FollowStatusesRequest:
    return pb.FollowStatusesRequest(open=pb.WatchStatusesRequest(addresses=addresses, **more))


def change(name: str, add: tuple[str, ...] = (), remove: tuple[str, ...] = ()) -> pb.FollowStatusesRequest:
    """A request that adds and removes these addresses."""
    return pb.FollowStatusesRequest(change=pb.AddressChange(change_id=name, add_addresses=add, remove_addresses=remove))


def follow(face: Face, metadata: Any = None) -> Any:
    """A call without a request yet."""
    return face.terminals.FollowStatuses(metadata=face.app if metadata is None else metadata, timeout=3 * LIMIT_S)


async def opened(face: Face, *addresses: str, **more: Any) -> Any:
    """A call whose snapshot was read."""
    call = follow(face)
    await call.write(opening(*addresses, **more))
    for _ in addresses:
        await status_event(call, "snapshot_item")
    await status_event(call, "snapshot_complete")
    return call


async def status_event(call: Any, kind: str) -> Any:
    """The next message, which must be an event as WatchStatuses sends it, and of this kind."""
    async with asyncio.timeout(LIMIT_S):
        message = await call.read()
    assert message.WhichOneof("event") == "status_event", message
    assert message.status_event.WhichOneof("event") == kind, message
    return getattr(message.status_event, kind)


async def applied(call: Any) -> Any:
    """The next message, which must be the answer to a change."""
    async with asyncio.timeout(LIMIT_S):
        message = await call.read()
    assert message.WhichOneof("event") == "change_applied", message
    return message.change_applied


async def nothing_is_left(face: Face) -> None:
    """Waits until no call, stream or wanted terminal is left."""
    await until(lambda: not face.calls and not len(face.core.live.streams))
    assert not [one for one in (ALICE, BOB, CAROL) if face.core.live.registry.wanted_by(one)]


async def test_addresses_are_added_and_removed(face: Face) -> None:
    """A change is answered after the events that it causes, and its token resumes the new addresses. A group can be
    added, too."""
    await face.groups.CreateGroup(group_pb2.CreateGroupRequest(address=TEAM, members=[CAROL]), metadata=face.app)
    call = await opened(face, ALICE)
    await call.write(change("one", add=(BOB, TEAM), remove=(ALICE,)))
    assert {(await status_event(call, "snapshot_item")).address for _ in range(2)} == {BOB, CAROL}
    assert (await status_event(call, "terminal_removed")).address == ALICE
    answer = await applied(call)
    assert (answer.change_id, answer.HasField("error")) == ("one", False)
    await face.core.play(BOB, BUSY)
    assert (await status_event(call, "change")).status.address == BOB
    resumed = follow(face)
    await resumed.write(opening(BOB, TEAM, resume_token=answer.resume_token))
    assert (await status_event(resumed, "snapshot_item")).address == BOB
    await status_event(resumed, "snapshot_item")
    assert not (await status_event(resumed, "snapshot_complete")).reset
    for each in (call, resumed):
        each.cancel()
    await nothing_is_left(face)


async def test_refused_changes_are_answered_in_order(face: Face) -> None:
    """A refused change has the error that an opening has, with the field at fault; the changes after it are made."""
    call = await opened(face, ALICE)
    await call.write(change("bad", add=(BOB, "bob")))
    await call.write(change("x" * 65, add=(BOB,)))
    await call.write(change("", remove=(ALICE,)))
    await call.write(change("good", add=(BOB,)))
    found = []
    for _ in range(3):
        answer = await applied(call)
        assert (answer.error.code, answer.resume_token) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "")
        found.append((answer.change_id, *reason_and_field(answer.error)))
    assert found == [
        ("bad", "INVALID_ADDRESS", "change.add_addresses[1]"),
        ("x" * 65, "INVALID_REQUEST", "change.change_id"),
        ("", "NO_VALID_ADDRESSES", "change.remove_addresses"),
    ]
    await status_event(call, "snapshot_item")
    assert (await applied(call)).change_id == "good"
    call.cancel()
    await nothing_is_left(face)


def reason_and_field(error: Any) -> tuple[str, str]:
    """ErrorInfo's reason and BadRequest's field."""
    reason = field = ""
    for packed in error.details:
        info, bad = ErrorInfo(), BadRequest()
        if packed.Unpack(info):
            reason = info.reason
        if packed.Unpack(bad):
            field = bad.field_violations[0].field
    return reason, field


INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
WRONG_REQUESTS: dict[str, tuple[list[Any], tuple[grpc.StatusCode, str, str]]] = {
    "a change first": ([change("", add=(ALICE,))], (*INVALID, "open")),
    "nothing in it": ([pb.FollowStatusesRequest()], (*INVALID, "open")),
    "no request": ([], (*INVALID, "")),
    "opened twice": ([opening(ALICE), opening(BOB)], (*INVALID, "change")),
    "no address": ([opening("alice")], (INVALID[0], "INVALID_ADDRESS", "open.addresses")),
    "criteria": ([opening(ALICE, criteria=[99])], (*INVALID, "open.criteria")),
    "nobody": ([opening()], (INVALID[0], "NO_VALID_ADDRESSES", "open.addresses")),
}


@pytest.mark.parametrize("what", WRONG_REQUESTS)
async def test_wrong_requests_end_the_call(face: Face, what: str) -> None:
    """A first request that is not `open`, or that WatchStatuses would refuse, ends the call with that error. So does a
    later one that is not `change`."""
    requests, expected = WRONG_REQUESTS[what]
    call = follow(face)
    for request in requests:
        await call.write(request)
    await call.done_writing()
    code, reason, field = await failure_of(call)
    assert (code, reason, field.partition("[")[0]) == expected
    await nothing_is_left(face)


async def test_bytes_that_do_not_parse_end_the_call(face: Face) -> None:
    """Bytes that are not a FollowStatusesRequest are INVALID_REQUEST, first or later."""
    method = "/terminalstatus.v1.TerminalStatusService/FollowStatuses"
    for good in ([], [opening(ALICE).SerializeToString()]):
        call: Any = face.channel.stream_stream(method)(metadata=face.app, timeout=LIMIT_S)
        for data in (*good, b"\xff"):
            await call.write(data)
        assert await failure_of(call) == (*INVALID, "")
    await nothing_is_left(face)


@pytest.mark.parametrize("anonymous", [False, True], ids=["client", "anonymous"])
async def test_first_request_must_come_in_time(face: Face, monkeypatch: pytest.MonkeyPatch, anonymous: bool) -> None:
    """A call without a request is ended, whoever makes it."""
    monkeypatch.setattr(call_admission, "PENDING_LIMIT_S", 0.2)
    monkeypatch.setattr("app.rpc.call_limits.PENDING_LIMIT_S", 0.2)
    call = follow(face, metadata=() if anonymous else None)
    code, reason, _ = await failure_of(call)
    assert (code, reason) == ((grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED") if anonymous else INVALID)
    await nothing_is_left(face)


async def test_half_close_goes_on(face: Face) -> None:
    """A client that sends no more requests still receives events, and the gateway's end."""
    call = await opened(face, ALICE)
    await call.write(change("last", add=(BOB,)))
    await call.done_writing()
    await status_event(call, "snapshot_item")
    assert (await applied(call)).change_id == "last"
    await face.core.play(BOB, BUSY)
    assert (await status_event(call, "change")).status.address == BOB
    await status_event(call, "liveness_change")
    await quiet(face)
    assert (await status_event(call, "bookmark")).resume_token
    call.cancel()
    await nothing_is_left(face)


async def test_calls_end_with_a_reason_before_the_server(face: Face) -> None:
    """At a stop the stream says so and the call ends well; the server does not wait for the client's half-close."""
    call = await opened(face, ALICE)
    face.stopping.set()
    face.core.streams.end_all()
    end = await status_event(call, "end")
    assert (end.reason, bool(end.resume_token)) == (pb.STREAM_END_REASON_GATEWAY_STOPPING, True)
    assert await call.read() == grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK
    async with asyncio.timeout(LIMIT_S):
        await face.server.stop(LIMIT_S * 10)
    await until(lambda: not face.calls)


async def test_call_that_waits_for_its_first_request_is_stopped(face: Face) -> None:
    """At a stop a call without a request is answered UNAVAILABLE."""
    call = follow(face)
    await until(lambda: face.calls)
    face.stopping.set()
    for task in list(face.calls):
        task.cancel()
    code, reason, _ = await failure_of(call)
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "GATEWAY_STOPPING")


@pytest.mark.parametrize("at_change", [False, True], ids=["at an event", "at a change"])
async def test_credentials_are_checked_again(face: Face, monkeypatch: pytest.MonkeyPatch, at_change: bool) -> None:
    """When another process disables the client, its stream ends: at an event some time later, and at once at a change,
    which then has no effect."""
    monkeypatch.setattr(terminal_status, "RECHECK_S", 3600.0 if at_change else 0.0)
    call = await opened(face, ALICE)
    elsewhere = ClientRegistry(cast("Any", face.core.store), contracts=SINK_CONTRACTS, clock=lambda: BEGAN)
    await elsewhere.set_disabled(APP.id, True, who="cli")
    await quiet(face)
    await status_event(call, "bookmark")
    if at_change:
        await call.write(change("late", add=(BOB,)))
    end = await status_event(call, "end")
    assert (end.reason, end.resume_token) == (pb.STREAM_END_REASON_CREDENTIALS_EXPIRED, "")
    assert await call.read() == grpc.aio.EOF
    assert BOB not in face.core.watcher.wanted


async def test_call_ends_at_its_greatest_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of the maximum age of connections ends with the last token, that of a change as well."""
    monkeypatch.setattr(terminal_status, "RECHECK_S", 0.0)
    async with run_core(await new_database(tmp_path)) as core, face_over(core, max_connection_age_s=1) as face:
        call = await opened(face, ALICE)
        await call.write(change("", add=(BOB,)))
        await status_event(call, "snapshot_item")
        token = (await applied(call)).resume_token
        for status in itertools.cycle((BUSY, REACHABLE)):
            await core.play(ALICE, status)
            event = (await call.read()).status_event
            if event.WhichOneof("event") == "end":
                break
            await asyncio.sleep(0.01)
        assert (event.end.reason, event.end.resume_token) == (pb.STREAM_END_REASON_MAX_AGE, token)


async def test_limits_of_streams_hold(tmp_path: Path) -> None:
    """A call counts as one of the client's streams."""
    async with (
        run_core(await new_database(tmp_path), policy=Policy(max_streams=1)) as core,
        face_over(core) as face,
    ):
        first = await opened(face, ALICE)
        second = follow(face)
        await second.write(opening(BOB))
        code, reason, _ = await failure_of(second)
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
        first.cancel()
        await nothing_is_left(face)


async def test_client_that_sends_changes_and_does_not_read_is_slowed_down(face: Face) -> None:
    """Changes are read one by one, as their answers are taken: a client that only sends them is held up by flow
    control."""
    long = tuple(f"sip:{'x' * 150}{number}@example.com" for number in range(900))
    call = await opened(face, ALICE)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for number in range(400):
            await call.write(change(f"{number}", add=long) if number % 2 == 0 else change(f"{number}", remove=long))
            sent += 1

    flooding = asyncio.create_task(flood())
    before = -1
    while sent != before:  # until the connection's window is full
        before = sent
        for _ in range(20):
            await face.core.advance(0.1)
    assert sent < 400
    other = await opened(face, BOB)
    other.cancel()
    flooding.cancel()
    call.cancel()
    await nothing_is_left(face)


async def test_cancel_during_changes_leaves_nothing(face: Face) -> None:
    """A client that leaves in the middle of its changes leaves no watch, stream or call behind."""
    call = await opened(face, ALICE)
    for number in range(20):
        await call.write(change(str(number), add=(BOB,)))
        await call.write(change(str(number), add=(CAROL,), remove=(BOB,)))
    call.cancel()
    await nothing_is_left(face)
    again = await opened(face, ALICE)
    again.cancel()
    await nothing_is_left(face)
