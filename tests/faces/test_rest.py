"""The REST face in process: the ASGI application over the real service and a fake watcher."""

import asyncio
from urllib.parse import quote

import grpc.aio
import httpx2
import pytest
import structlog.testing
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped, unused-ignore]
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from app.domain.addresses import TerminalAddress, parse_address
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
from app.rest.error_examples import EXAMPLES
from app.rest.problem import MEDIA_TYPE, STATUSES
from app.rpc import CODES
from tests.support.domain_errors import all_errors
from tests.support.fakes import ON_THE_PHONE, OPEN, FakeWatcher, make_service
from tests.support.rest_app import app_over, client_of
from tests.support.rpc_get_status import failed_get_status

ALICE = "sip:alice@example.com"
ALICE_STATUS = f"/v1/terminals/{ALICE}/status"


async def ask(watcher: FakeWatcher, path: str = ALICE_STATUS, method: str = "GET") -> httpx2.Response:
    async with client_of(app_over(make_service(watcher))) as client:
        return await client.request(method, path)


def problem_in(response: httpx2.Response) -> dict[str, object]:
    """The problem document of a response, after a check of its form."""
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.headers["cache-control"] == "no-store"
    problem: dict[str, object] = response.json()
    assert problem["status"] == response.status_code
    assert set(problem) == {"type", "title", "status", "detail", "code", "retryable", "details"}
    slug = str(problem["code"]).lower().replace("_", "-")
    assert problem["type"] == f"urn:problem-type:terminalstatus:{slug}"
    return problem


@pytest.mark.parametrize(("document", "status"), [(OPEN, "REACHABLE"), (ON_THE_PHONE, "BUSY"), (b"", "UNREACHABLE")])
async def test_answers_each_status(document: bytes, status: str) -> None:
    """The status arrives with the canonical address, an RFC 3339 time in UTC and the source, not to be cached."""
    response = await ask(FakeWatcher(lambda _: document), "/v1/terminals/SIP:alice@EXAMPLE.com/status")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "address": ALICE,
        "status": status,
        "observe_time": "2026-01-02T03:04:05.678000Z",
        "source": "FETCH",
        "revision": 0,
    }


@pytest.mark.parametrize("safe", ["", ":@+;=/"])
@pytest.mark.parametrize(
    "address",
    [
        ALICE,
        "tel:+15551234567",
        "tel:7042;phone-context=example.com",
        "sip:alice@example.com;transport=tcp",
        "sip:a/b/status@example.com",
        "sip:what?@example.com",
        "sip:al%23ice@example.com",
        "sip:alice@[2001:db8::1]:5060",
    ],
)
async def test_takes_every_address_in_the_path(address: str, safe: str) -> None:
    """An address arrives unchanged, however much of it is percent-encoded; a plus stays a plus."""
    watcher = FakeWatcher()
    response = await ask(watcher, f"/v1/terminals/{quote(address, safe=safe)}/status")
    assert response.status_code == 200
    assert watcher.asked == [parse_address(address)]


async def test_ignores_query_and_body() -> None:
    """Unknown query parameters and a body have no effect."""
    async with client_of(app_over(make_service(FakeWatcher()))) as client:
        response = await client.request("GET", f"{ALICE_STATUS}?colour=blue", content=b"{" * 100_000)
    assert response.status_code == 200


def test_the_error_table_is_total() -> None:
    """The table has an HTTP status for every domain error, and nothing else, with an example in the OpenAPI
    document."""
    assert set(STATUSES) == set(all_errors())
    assert {each.code for each in EXAMPLES.values()} == {each.code for each in STATUSES}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TerminalUnknown, 404),
        (AddressIsList, 422),
        (WatcherRefused, 424),
        (WatcherUnauthenticated, 502),
        (FetchTimedOut, 504),
        (PresenceUnavailable, 503),
        (WatcherRestarting, 503),
        (GatewayOverloaded, 503),
        (PresenceMisconfigured, 502),
        (DocumentUnreadable, 502),
    ],
)
async def test_maps_each_domain_error(error: type[TerminalStatusError], status: int) -> None:
    """A domain error becomes a problem with its status, message, code and details."""
    raised = error("It went wrong.", sip_code="499")
    response = await ask(FakeWatcher(lambda _: raised))
    problem = problem_in(response)
    assert response.status_code == status
    assert "retry-after" not in response.headers
    assert problem["code"] == error.code
    assert problem["detail"] == "It went wrong."
    assert problem["retryable"] is error.retryable
    assert problem["details"] == {"sip_code": "499", "address": ALICE}


@pytest.mark.parametrize("error", CODES)
async def test_grpc_and_rest_answer_alike(error: type[TerminalStatusError]) -> None:
    """Both faces give the same code, message and details for the same error."""
    code, message, details = await failed_get_status(FakeWatcher(lambda _: error("It went wrong.", sip_code="499")))
    problem = problem_in(await ask(FakeWatcher(lambda _: error("It went wrong.", sip_code="499"))))
    info: ErrorInfo = details["ErrorInfo"]
    assert code == CODES[error]
    assert (info.reason, message, dict(info.metadata)) == (problem["code"], problem["detail"], problem["details"])


async def test_grpc_and_rest_report_bugs_alike() -> None:
    """Both faces give the same code for an unexpected exception."""

    def fail(_: TerminalAddress) -> bytes:
        raise RuntimeError("the secret")

    code, _, details = await failed_get_status(FakeWatcher(fail))
    problem = problem_in(await ask(FakeWatcher(fail)))
    assert code == grpc.StatusCode.INTERNAL
    assert details["ErrorInfo"].reason == problem["code"]


async def test_says_when_to_retry() -> None:
    """A known wait becomes Retry-After in whole seconds, rounded up."""
    raised = PresenceUnavailable("Later.", retry_after_s=2.1)
    response = await ask(FakeWatcher(lambda _: raised))
    assert response.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "alice",
        "sip:" + "a" * 10_000 + "@example.com",
        "sip:%C3%A4@",
        "sip:%FF",
        f"{ALICE}%0d%0aX:%20y",
        "%0A",
        "%00",
    ],
)
async def test_refuses_an_invalid_address(address: str) -> None:
    """An invalid address is a 400, and the presence server is not asked."""
    watcher = FakeWatcher()
    problem = problem_in(await ask(watcher, f"/v1/terminals/{address}/status"))
    assert (problem["status"], problem["code"]) == (400, "INVALID_ADDRESS")
    assert watcher.asked == []


async def test_an_unexpected_exception_becomes_a_reference() -> None:
    """The caller gets a reference that is also in the log, and no detail of the exception."""

    def fail(_: TerminalAddress) -> bytes:
        raise RuntimeError("the secret")

    with structlog.testing.capture_logs() as logs:
        response = await ask(FakeWatcher(fail))
    problem = problem_in(response)
    assert (problem["status"], problem["code"]) == (500, "INTERNAL_ERROR")
    (entry,) = [log for log in logs if log["event"] == "unexpected_error"]
    assert problem["details"] == {"reference": entry["reference"]}
    assert entry["reference"] in str(problem["detail"])
    assert isinstance(entry["exc_info"], RuntimeError)
    assert "secret" not in response.text
    assert "Traceback" not in response.text


async def test_an_exception_after_the_answer_began_is_the_servers() -> None:
    """An exception after the answer has begun goes on to the server, which ends the connection."""

    async def half_an_answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    app = app_over(make_service(FakeWatcher()))
    app.mount("/half", half_an_answer)
    async with client_of(app) as client:
        with pytest.raises(RuntimeError, match="too late"):
            await client.get("/half/")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/terminals", f"/v1/terminals/{ALICE}", f"{ALICE_STATUS}/", "/docs/v2"]
)
async def test_an_unknown_path_is_a_problem(path: str) -> None:
    """An unknown path is a 404 problem, and never a redirect."""
    problem = problem_in(await ask(FakeWatcher(), path))
    assert (problem["status"], problem["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("path", [ALICE_STATUS, "/healthz", "/readyz"])
async def test_a_wrong_method_is_a_problem(path: str) -> None:
    """A method that the path does not support is a 405 problem that names the supported ones."""
    response = await ask(FakeWatcher(), path, "POST")
    problem = problem_in(response)
    assert (problem["status"], problem["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_an_invalid_request_is_a_problem() -> None:
    """A request that the framework refuses is a 400 problem that names each fault."""
    app = app_over(make_service(FakeWatcher()))

    @app.get("/typed")
    async def typed(count: int) -> int:
        return count

    async with client_of(app) as client:
        problem = problem_in(await client.get("/typed?count=many"))
    assert (problem["status"], problem["code"]) == (400, "INVALID_REQUEST")
    assert problem["details"] == {
        "field": "count",
        "query.count": "Input should be a valid integer, unable to parse string as an integer",
    }


async def test_readiness_is_whether_the_presence_server_could_be_queried() -> None:
    """Readiness follows the watcher's readiness; liveness does not."""
    ready = await ask(FakeWatcher(), "/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "presence": "up"})
    problem = problem_in(await ask(FakeWatcher(ready=False), "/readyz"))
    assert (problem["status"], problem["code"], problem["retryable"]) == (503, "NOT_READY", True)
    alive = await ask(FakeWatcher(ready=False), "/healthz")
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})


@pytest.mark.parametrize("needs_presence", [False, True])
async def test_readiness_says_whether_a_presence_server_answers(needs_presence: bool) -> None:
    """The body says whether a presence server answers; where the operator wants that, an absent one makes the gateway
    not ready."""
    watcher = FakeWatcher(presence_up=False)
    async with client_of(app_over(make_service(watcher), ready_needs_presence=needs_presence)) as client:
        away = await client.get("/readyz")
        if needs_presence:
            assert (problem_in(away)["code"], away.json()["details"]) == ("NOT_READY", {"presence": "down"})
        else:
            assert (away.status_code, away.json()) == (200, {"status": "ready", "presence": "down"})
        watcher.presence_up = True
        assert (await client.get("/readyz")).json() == {"status": "ready", "presence": "up"}


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/docs", "/openapi.json", ALICE_STATUS, "/nowhere", "/v1/terminals:query"]
)
async def test_head(path: str) -> None:
    """RFC 9110 section 9.3.2: HEAD is answered as GET, without the body; where there is no GET, it is 405."""
    got, head = await ask(FakeWatcher(), path), await ask(FakeWatcher(), path, "HEAD")
    assert (head.status_code, head.content) == (got.status_code, b"")
    for name in ("content-type", "cache-control", "allow"):
        assert head.headers.get(name) == got.headers.get(name)
    if got.status_code == 200:
        assert head.headers["content-length"] == str(len(got.content))


async def test_a_stopping_gateway_is_not_ready() -> None:
    """After a stop signal the gateway is not ready at once, but still alive."""
    stopping = asyncio.Event()
    async with client_of(app_over(make_service(FakeWatcher()), stopping=stopping)) as client:
        assert (await client.get("/readyz")).status_code == 200
        stopping.set()
        assert problem_in(await client.get("/readyz"))["code"] == "NOT_READY"
        assert (await client.get("/healthz")).status_code == 200


async def test_a_question_that_the_server_gives_up_is_a_problem() -> None:
    """A query that the stopping server cancels is a 503 that may be retried, not a bare 500."""

    def cancelled(_: TerminalAddress) -> bytes:
        raise asyncio.CancelledError

    with structlog.testing.capture_logs() as logs:
        problem = problem_in(await ask(FakeWatcher(cancelled)))
    assert (problem["status"], problem["code"], problem["retryable"]) == (503, "GATEWAY_STOPPING", True)
    assert logs == []


async def test_a_client_that_leaves_is_no_failure() -> None:
    """Where the client leaves while its request is read, nothing is logged and nothing sent."""
    sent: list[Message] = []

    async def leaves(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ClientDisconnect

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    app = app_over(make_service(FakeWatcher()))
    app.mount("/read", leaves)
    scope = {"type": "http", "method": "POST", "path": "/read/", "headers": [], "query_string": b""}
    with structlog.testing.capture_logs() as logs:
        await app(scope, receive, send)
    assert (logs, sent) == ([], [])
