"""The gRPC face in process: a real server and channel on loopback, the real service and a fake watcher."""

import asyncio
import re
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import structlog.testing
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped, unused-ignore]
    ErrorInfo,
    PreconditionFailure,
    QuotaFailure,
    ResourceInfo,
)

from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    AddressIsList,
    DocumentUnreadable,
    FetchTimedOut,
    GatewayOverloaded,
    PresenceMisconfigured,
    PresenceUnavailable,
    TerminalStatusError,
    TerminalUnknown,
    WatcherRefused,
    WatcherRestarting,
    WatcherUnauthenticated,
)
from app.domain.statuses import Source, Status
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub
from app.ports.sip import ReceivedNotify
from app.rpc import CODES, ERROR_DOMAIN, MAX_REQUEST_BYTES, SERVICE_NAME, create_server
from app.rpc.errors import RESOURCES
from tests.support.domain_errors import all_errors
from tests.support.fakes import OBSERVED_AT, ON_THE_PHONE, OPEN, FakeWatcher, make_service
from tests.support.grpc_engines import ON_BOTH_ENGINES
from tests.support.rpc_get_status import ALICE, channel_to, failed_get_status, failure_of, get_status, use_cases_of
from tests.support.waiting import until

pytestmark = ON_BOTH_ENGINES

LIMIT_S = 5
PROTOS = sorted((Path(__file__).parent.parent.parent / "proto").rglob("*.proto"))


class SilentWatcher(FakeWatcher):
    """Never answers; says when it was asked and when the fetch was given up."""

    def __init__(self) -> None:
        super().__init__()
        self.was_asked = asyncio.Event()
        self.was_given_up = asyncio.Event()

    async def fetch(self, address: TerminalAddress, client_id: str = "") -> ReceivedNotify:
        self.was_asked.set()
        try:
            return await asyncio.Future()
        finally:
            self.was_given_up.set()


async def cancellation_of(call: Any) -> None:
    with pytest.raises(asyncio.CancelledError):
        await call


def call_raw(channel: grpc.aio.Channel, method: str, request: bytes) -> Any:
    call: Any = channel.unary_unary(method)
    return call(request)


@pytest.mark.parametrize(
    ("document", "status"),
    [(OPEN, pb.STATUS_REACHABLE), (ON_THE_PHONE, pb.STATUS_BUSY), (b"", pb.STATUS_UNREACHABLE)],
)
async def test_answers_each_status(document: bytes, status: pb.Status.ValueType) -> None:
    """GetStatus returns the status, the canonical address, the time to the microsecond and the source."""
    answer = await get_status(FakeWatcher(lambda _: document), "SIP:alice@EXAMPLE.com")
    assert status == answer.status
    assert answer.address == ALICE
    assert answer.observe_time.ToDatetime(OBSERVED_AT.tzinfo) == OBSERVED_AT
    assert answer.source == pb.SOURCE_FETCH


def test_every_status_and_source_of_the_domain_has_a_wire_value() -> None:
    """The contract has each domain status and source under the same name."""
    assert {"UNSPECIFIED", *(status.name for status in Status)} == {
        name.removeprefix("STATUS_")
        for name in pb.Status.keys()  # noqa: SIM118 - no mapping
    }
    assert {"UNSPECIFIED", *(source.name for source in Source)} == {
        name.removeprefix("SOURCE_")
        for name in pb.Source.keys()  # noqa: SIM118 - no mapping
    }


def test_the_error_table_is_total() -> None:
    """The table has a gRPC code for every domain error, and nothing else."""
    assert set(CODES) == set(all_errors())


def test_each_missing_or_existing_resource_has_a_type() -> None:
    """ResourceInfo can be made for each error with NOT_FOUND or ALREADY_EXISTS, and for no other."""
    codes = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS)
    assert set(RESOURCES) == {error for error, code in CODES.items() if code in codes}


def test_the_contract_has_the_error_table() -> None:
    """The contract's comments name each domain error with its gRPC code, and with no other."""
    table = {error.code: code.name for error, code in CODES.items()}
    table |= {"GATEWAY_STOPPING": "UNAVAILABLE", "INTERNAL_ERROR": "INTERNAL"}
    text = " ".join([proto.read_text("utf-8").replace("//", " ") for proto in PROTOS])
    codes = "|".join(code.name for code in grpc.StatusCode)
    listed = set(re.findall(rf"\b({codes})\s+({'|'.join(table)})\b", text))
    assert listed == {(code, reason) for reason, code in table.items()}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TerminalUnknown, grpc.StatusCode.NOT_FOUND),
        (AddressIsList, grpc.StatusCode.FAILED_PRECONDITION),
        (WatcherRefused, grpc.StatusCode.FAILED_PRECONDITION),
        (WatcherUnauthenticated, grpc.StatusCode.FAILED_PRECONDITION),
        (FetchTimedOut, grpc.StatusCode.UNAVAILABLE),
        (PresenceUnavailable, grpc.StatusCode.UNAVAILABLE),
        (WatcherRestarting, grpc.StatusCode.UNAVAILABLE),
        (GatewayOverloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (PresenceMisconfigured, grpc.StatusCode.FAILED_PRECONDITION),
        (DocumentUnreadable, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_maps_each_domain_error(error: type[TerminalStatusError], code: grpc.StatusCode) -> None:
    """A domain error becomes its gRPC code, with the error's message, code and details in ErrorInfo."""
    raised = error("It went wrong.", sip_code="499")
    actual_code, message, details = await failed_get_status(FakeWatcher(lambda _: raised))
    assert code == actual_code
    assert message == "It went wrong."
    info = ErrorInfo(reason=error.code, domain=ERROR_DOMAIN, metadata={"sip_code": "499", "address": ALICE})
    assert details.pop("ErrorInfo") == info
    about: dict[str, Any] = {}
    if code is grpc.StatusCode.NOT_FOUND:
        about["ResourceInfo"] = ResourceInfo(resource_type="terminal", resource_name=ALICE, description=message)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        failed = PreconditionFailure.Violation(type=error.code, subject=ALICE, description=message)
        about["PreconditionFailure"] = PreconditionFailure(violations=[failed])
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        limit = QuotaFailure.Violation(subject="gateway", description=message)
        about["QuotaFailure"] = QuotaFailure(violations=[limit])
    assert details == about


async def test_says_when_to_retry() -> None:
    """A known wait becomes RetryInfo."""
    raised = PresenceUnavailable("Later.", retry_after_s=2.5)
    _, _, details = await failed_get_status(FakeWatcher(lambda _: raised))
    assert details["RetryInfo"].retry_delay.ToMilliseconds() == 2500


@pytest.mark.parametrize("address", ["", "alice", "sip:" + "a" * 10_000 + "@example.com", "sip:älice@example.com"])
async def test_refuses_an_invalid_address(address: str) -> None:
    """An invalid address is INVALID_ARGUMENT with the field's name, and the presence server is not asked."""
    watcher = FakeWatcher()
    code, message, details = await failed_get_status(watcher, address)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details["ErrorInfo"].reason == "INVALID_ADDRESS"
    (violation,) = details["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("address", message)
    assert watcher.asked == []


async def test_an_unexpected_exception_becomes_a_reference() -> None:
    """The caller gets a reference that is also in the log, and no detail of the exception."""

    def fail(_: TerminalAddress) -> bytes:
        raise RuntimeError("the secret")

    with structlog.testing.capture_logs() as logs:
        code, message, details = await failed_get_status(FakeWatcher(fail))
    assert code == grpc.StatusCode.INTERNAL
    assert details["ErrorInfo"].reason == "INTERNAL_ERROR"
    reference = details["ErrorInfo"].metadata["reference"]
    assert reference in message
    (entry,) = [log for log in logs if log["event"] == "unexpected_error"]
    assert entry["reference"] == reference
    assert isinstance(entry["exc_info"], RuntimeError)
    for text in (message, str(details)):
        assert "secret" not in text
        assert "Traceback" not in text


async def test_a_cancelled_call_gives_up_its_fetch() -> None:
    """When the only caller cancels, its fetch is given up."""
    watcher = SilentWatcher()
    async with channel_to(make_service(watcher)) as channel, asyncio.timeout(LIMIT_S):
        call = TerminalStatusServiceStub(channel).GetStatus(pb.GetStatusRequest(address=ALICE))
        asking = asyncio.ensure_future(cancellation_of(call))
        await watcher.was_asked.wait()
        call.cancel()
        await watcher.was_given_up.wait()
        await asking


async def test_a_vanished_client_gives_up_its_fetch() -> None:
    """When the only caller's connection breaks, its fetch is given up."""
    watcher = SilentWatcher()
    async with channel_to(make_service(watcher)) as channel, asyncio.timeout(LIMIT_S):
        call = TerminalStatusServiceStub(channel).GetStatus(pb.GetStatusRequest(address=ALICE))
        asking = asyncio.ensure_future(cancellation_of(call))
        await watcher.was_asked.wait()
        await channel.close()
        await watcher.was_given_up.wait()
        await asking


async def test_the_callers_deadline_ends_the_call() -> None:
    """The caller's deadline ends the call and gives up its fetch."""
    watcher = SilentWatcher()
    async with channel_to(make_service(watcher)) as channel, asyncio.timeout(LIMIT_S):
        call = TerminalStatusServiceStub(channel).GetStatus(pb.GetStatusRequest(address=ALICE), timeout=0.5)
        code, _, _ = await failure_of(call)
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        await watcher.was_given_up.wait()


async def test_a_call_given_up_when_stopping_says_so() -> None:
    """A query that is still open at the end of a stop's time limit is UNAVAILABLE, with its own reason."""
    watcher, stopping = SilentWatcher(), asyncio.Event()
    calls: set[asyncio.Task[Any]] = set()
    async with (
        asyncio.timeout(LIMIT_S),
        channel_to(make_service(watcher), stopping=stopping, calls=calls) as channel,
    ):
        failure = asyncio.ensure_future(
            failure_of(TerminalStatusServiceStub(channel).GetStatus(pb.GetStatusRequest(address=ALICE)))
        )
        await watcher.was_asked.wait()
        stopping.set()
        (call,) = calls
        call.cancel()
        code, _, details = await failure
        assert code == grpc.StatusCode.UNAVAILABLE
        assert details["ErrorInfo"] == ErrorInfo(reason="GATEWAY_STOPPING", domain=ERROR_DOMAIN)
        await watcher.was_given_up.wait()
        await until(lambda: not calls)


async def test_a_client_that_leaves_a_stopping_gateway() -> None:
    """A caller that cancels while the gateway stops causes no log line."""
    watcher, stopping = SilentWatcher(), asyncio.Event()
    stopping.set()
    calls: set[asyncio.Task[Any]] = set()
    with structlog.testing.capture_logs() as logs:
        async with (
            asyncio.timeout(LIMIT_S),
            channel_to(make_service(watcher), stopping=stopping, calls=calls) as channel,
        ):
            call = TerminalStatusServiceStub(channel).GetStatus(pb.GetStatusRequest(address=ALICE))
            asking = asyncio.ensure_future(cancellation_of(call))
            await watcher.was_asked.wait()
            (handled,) = calls
            call.cancel()
            await asking
            await asyncio.wait({handled})
    assert logs == []


@pytest.mark.parametrize("size", [MAX_REQUEST_BYTES, 10_000_000])
async def test_refuses_an_oversized_request(size: int) -> None:
    """A request over the bound is refused unread, and the next one on the connection is answered."""
    async with channel_to(make_service(FakeWatcher())) as channel:
        stub = TerminalStatusServiceStub(channel)
        code, _, _ = await failure_of(stub.GetStatus(pb.GetStatusRequest(address="a" * size)))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.GetStatus(pb.GetStatusRequest(address=ALICE))).status.address == ALICE


async def test_refuses_bytes_that_are_no_request() -> None:
    """Bytes that do not parse as a GetStatusRequest are INVALID_ARGUMENT."""
    async with channel_to(make_service(FakeWatcher())) as channel:
        code, message, details = await failure_of(call_raw(channel, f"/{SERVICE_NAME}/GetStatus", b"\xff\xff"))
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert message == "The message does not parse as a GetStatusRequest."


@pytest.mark.parametrize("method", [f"/{SERVICE_NAME}/Nothing", "/terminalstatus.v9.TerminalStatusService/GetStatus"])
async def test_refuses_an_unknown_method(method: str) -> None:
    """An unknown method or service is UNIMPLEMENTED."""
    async with channel_to(make_service(FakeWatcher())) as channel:
        code, _, _ = await failure_of(call_raw(channel, method, b""))
    assert code == grpc.StatusCode.UNIMPLEMENTED


async def test_a_taken_port_is_an_error() -> None:
    """A second server on the same port fails to start."""
    service = make_service(FakeWatcher())
    first = create_server(service, use_cases_of(service))
    port = first.add_insecure_port("127.0.0.1:0")
    await first.start()
    second = create_server(service, use_cases_of(service))
    try:
        with pytest.raises(RuntimeError):
            second.add_insecure_port(f"127.0.0.1:{port}")
    finally:
        await first.stop(None)
        await second.stop(None)
