"""Tickets, with which a browser's EventSource opens a stream of server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from sqlalchemy import select

from app.auth.clients import ClientRegistry
from app.core import tickets
from app.domain.policy import Policy
from app.rest import streams
from app.sinks import SINK_CONTRACTS
from app.store.tables import stream_tickets
from tests.support.core import ADMIN, ALICE, APP, new_database, run_core
from tests.support.http_face import STATUS, Answer, EventSource, HttpFace, face, http_face, problem
from tests.support.waiting import until

__all__ = ["face"]  # fixtures

WATCH = f"/v1/terminals:watch?address={ALICE}"


async def make(face: HttpFace, **more: Any) -> str:
    answer = await face.call("POST", "/v1/tickets", **more)
    assert answer.status == 200, answer.body
    return str(answer.json["ticket"])


@asynccontextmanager
async def opened(face: HttpFace, ticket: str, **headers: str) -> AsyncIterator[EventSource]:
    """Opens a stream as an EventSource does: without an Authorization header."""
    async with face.http.stream("GET", f"{face.url}{WATCH}&ticket={ticket}", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        yield EventSource(response)


async def lasts_s(face: HttpFace, left_s: float) -> bool:
    """Whether the only ticket expires in this time."""
    (row,) = await face.core.store._all(select(stream_tickets.c.expires_at))  # noqa: SLF001
    return bool(row.expires_at == face.core.clocks.now + timedelta(seconds=left_s))


async def refused(face: HttpFace, ticket: str, **headers: str) -> Answer:
    answer = await face.call("GET", f"{WATCH}&ticket={ticket}", client="", headers=headers)
    problem(answer, 401, "UNAUTHENTICATED")
    return answer


async def test_it_opens_one_stream(face: HttpFace) -> None:
    """A ticket is random, is shown once, is not to be stored, and opens one stream with the rights of its client."""
    answer = await face.call("POST", "/v1/tickets")
    ticket = answer.json["ticket"]
    assert (ticket[:4], len(ticket)) == ("tst_", 47)
    assert answer.json["expire_time"] == "2026-03-04T05:07:07Z"
    assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert await make(face) != ticket
    async with opened(face, ticket) as stream:
        assert (await stream.next())[0] == "snapshot-item"
        assert stream.response.headers["referrer-policy"] == "no-referrer"
        assert stream.response.headers["cache-control"] == "no-store"
        await refused(face, ticket)
    await refused(face, ticket)


async def test_of_many_that_come_at_once_one_gets_it(face: HttpFace) -> None:
    """Of twenty requests at the same time with one ticket, one gets a stream."""
    ticket = await make(face)

    async def status() -> int:
        async with face.http.stream("GET", f"{face.url}{WATCH}&ticket={ticket}") as response:
            return response.status_code

    assert sorted(await asyncio.gather(*[status() for _ in range(20)])) == [200] + [401] * 19


@pytest.mark.parametrize("path", [STATUS, "/v1/subscriptions", "/v1/tickets", "/v1/watches"])
async def test_no_other_operation_takes_it(face: HttpFace, path: str) -> None:
    """Elsewhere a ticket counts as no credentials, in the query and in the header."""
    ticket = await make(face)
    method = "POST" if path == "/v1/tickets" else "GET"
    problem(await face.call(method, f"{path}?ticket={ticket}", client=""), 401, "UNAUTHENTICATED")
    header = {"authorization": f"Bearer {ticket}"}
    problem(await face.call(method, path, client="", headers=header), 401, "UNAUTHENTICATED")
    problem(await face.call("GET", WATCH, client="", headers=header), 401, "UNAUTHENTICATED")
    async with opened(face, ticket):
        pass


async def test_it_must_be_used_soon(face: HttpFace) -> None:
    """An unused ticket is valid for a minute."""
    early, late = await make(face), await make(face)
    face.core.clocks.advance(tickets.OPEN_S - 1)
    async with opened(face, early) as stream:
        await stream.next()
    face.core.clocks.advance(1)
    await refused(face, late)


async def test_it_resumes_for_ten_minutes(face: HttpFace) -> None:
    """HTML standard section 9.2.3: an EventSource comes again with its URL and Last-Event-ID. It may until ten minutes
    after the stream broke."""
    ticket = await make(face)
    async with opened(face, ticket) as stream:
        token, _ = await stream.until("snapshot-complete")
    for wait_s, good in ((tickets.RESUME_S - 1, True), (tickets.RESUME_S - 1, True), (tickets.RESUME_S, False)):
        await until(lambda: lasts_s(face, tickets.RESUME_S))
        face.core.clocks.advance(wait_s)
        if not good:
            await refused(face, ticket, **{"last-event-id": token})
            break
        await refused(face, ticket)
        async with opened(face, ticket, **{"last-event-id": token}) as stream:
            token, complete = await stream.until("snapshot-complete")
            assert not complete["reset"]


async def test_a_long_stream_keeps_it(face: HttpFace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream extends its ticket, so that it can resume even where the gateway could not see it break. The ticket is
    that of the newest stream, and ends after a day."""
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.01)
    ticket = await make(face)
    async with opened(face, ticket) as first:
        token, _ = await first.until("snapshot-complete")
        for _ in range(3):
            face.core.clocks.advance(tickets.EXTEND_S + 1)
            await until(lambda: lasts_s(face, tickets.RESUME_S + tickets.EXTEND_S))
        async with opened(face, ticket, **{"last-event-id": token}) as second:
            await second.next()
            assert (await first.until("end"))[1]["reason"] == "CREDENTIALS_EXPIRED"
            face.core.clocks.advance(86_400)
            assert (await second.until("end"))[1]["reason"] == "CREDENTIALS_EXPIRED"
    await refused(face, ticket, **{"last-event-id": token})


async def test_it_ends_with_its_client(face: HttpFace) -> None:
    """A client that is disabled loses its stream and its tickets."""
    ticket, unused = await make(face), await make(face)
    async with opened(face, ticket) as stream:
        token, _ = await stream.until("snapshot-complete")
        await face.registry.set_disabled(APP.id, True, who="test")
        assert (await stream.until("end"))[1]["reason"] == "CREDENTIALS_EXPIRED"
    await refused(face, ticket, **{"last-event-id": token})
    await refused(face, unused)


async def test_it_ends_with_its_key(face: HttpFace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation of the client's key ends the tickets that were made with earlier keys, when these keys end."""
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.01)
    ticket, unused = await make(face), await make(face)
    async with opened(face, ticket) as stream:
        await stream.until("snapshot-complete")
        _, face.keys[APP.id] = await face.registry.rotate(APP.id, who="test", overlap_s=10)
        newer = await make(face)
        face.core.clocks.advance(10)
        assert (await stream.until("end"))[1]["reason"] == "CREDENTIALS_EXPIRED"
    await refused(face, unused)
    async with opened(face, newer) as stream:
        await stream.next()


async def test_a_revoked_key_makes_none(face: HttpFace) -> None:
    """A key that another process has ended makes no ticket, which would last for a day, although it is remembered for
    some seconds more. A client that is deleted and added again under its id has none of its earlier tickets."""
    unused = await make(face)
    elsewhere = ClientRegistry(face.core.store, clock=lambda: face.core.clocks.now, contracts=SINK_CONTRACTS)
    _, newer = await elsewhere.rotate(APP.id, who="test", overlap_s=0)
    assert (await face.call("GET", "/v1/subscriptions")).status == 200, "remembered"
    problem(await face.call("POST", "/v1/tickets"), 401, "UNAUTHENTICATED")
    await refused(face, unused)
    face.keys[APP.id] = newer
    ticket = await make(face)
    await elsewhere.delete(APP.id, who="test")
    await elsewhere.add("app", who="test", client_id=APP.id)
    await refused(face, ticket)


async def test_it_does_not_outlive_a_rotation_that_overtakes_it(
    face: HttpFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ticket that is stored after a rotation has ended the tickets is not given to the holder of the old key."""
    elsewhere = ClientRegistry(face.core.store, clock=lambda: face.core.clocks.now, contracts=SINK_CONTRACTS)
    add_ticket = face.core.store.add_ticket

    async def rotated_first(*values: Any) -> Any:
        await elsewhere.rotate(APP.id, who="test", overlap_s=10)
        return await add_ticket(*values)

    monkeypatch.setattr(face.core.store, "add_ticket", rotated_first, raising=False)
    problem(await face.call("POST", "/v1/tickets"), 401, "UNAUTHENTICATED")


class Expiring:
    """Access tokens of APP that expire in half a minute."""

    def __init__(self) -> None:
        self.ends_at = datetime.max.replace(tzinfo=UTC)

    async def verify(self, _token: str) -> tuple[str, datetime]:
        return APP.id, self.ends_at

    def confined(self, _token: str) -> str:
        return ""


async def test_it_ends_with_the_access_token(tmp_path: Path) -> None:
    """A ticket lasts no longer than the access token that made it."""
    tokens = Expiring()
    async with run_core(await new_database(tmp_path)) as core, http_face(core, tokens=tokens) as face:
        tokens.ends_at = core.clocks.now + timedelta(seconds=30)
        answer = await face.call("POST", "/v1/tickets", headers={"authorization": "Bearer token"})
        assert answer.json["expire_time"] == "2026-03-04T05:06:37Z"
        core.clocks.advance(30)
        await refused(face, answer.json["ticket"])


async def test_their_number_is_bounded(tmp_path: Path) -> None:
    """A client has at most two valid tickets for each stream that it may have open."""
    async with run_core(await new_database(tmp_path), policy=Policy(max_streams=1)) as core, http_face(core) as face:
        for _ in range(2):
            await make(face)
        problem(await face.call("POST", "/v1/tickets"), 429, "TOO_MANY_STREAMS")
        await make(face, client=ADMIN.id)
        core.clocks.advance(tickets.OPEN_S)
        await make(face)


async def test_two_kinds_of_credentials(face: HttpFace) -> None:
    """Two tickets, and a ticket beside an Authorization header, are refused by name; the ticket stays good."""
    ticket = await make(face)
    for query, client in ((f"&ticket={ticket}", APP.id), (f"&ticket={ticket}&ticket={ticket}", "")):
        body = problem(await face.call("GET", WATCH + query, client=client), 400, "INVALID_REQUEST")
        assert body["details"]["field"] == "ticket"
    async with opened(face, ticket) as stream:
        await stream.next()


@pytest.mark.parametrize("ticket", ["", "tst_", "x", "tst_" + "a" * 43, "tst_" + "a" * 10_000, "tst_%00", "tst_%ff"])
async def test_what_is_no_ticket(face: HttpFace, ticket: str) -> None:
    """Any other text is 401."""
    await refused(face, ticket)
    await refused(face, ticket, **{"last-event-id": "x"})


async def test_guesses_are_limited(face: HttpFace) -> None:
    """Wrong tickets count as wrong keys do: an address that sends many is not looked up any more."""
    for _ in range(200):
        answer = await face.call("GET", f"{WATCH}&ticket=tst_{'a' * 43}", client="")
        if answer.status == 429:
            break
    problem(answer, 429, "RATE_LIMITED")
    assert int(answer.headers["retry-after"]) >= 1


async def test_it_is_used_up_by_a_request_that_fails(face: HttpFace) -> None:
    """A request that is refused for another reason uses the ticket up; nothing of it stays."""
    ticket = await make(face)
    problem(await face.call("GET", f"/v1/terminals:watch?address=x&ticket={ticket}", client=""), 400, "INVALID_ADDRESS")
    await refused(face, ticket, **{"last-event-id": "x"})


async def test_it_is_nowhere_else(face: HttpFace, capfd: pytest.CaptureFixture[str]) -> None:
    """No log line and no message has a ticket: not of good ones, of wrong ones, nor of requests that fail."""
    ticket = await make(face)
    secret = ticket[4:]
    with structlog.testing.capture_logs() as logs:
        async with opened(face, ticket) as stream:
            await stream.next()
        answers = [
            await refused(face, ticket),
            await refused(face, ticket + "x"),
            await face.call("GET", f"{WATCH}&ticket={ticket}&min_interval_ms=x", client=""),
            await face.call("GET", f"{STATUS}?ticket={ticket}", client=""),
            await face.call("GET", f"/v1/nothing?ticket={ticket}"),
            await face.call("PUT", f"{WATCH}&ticket={ticket}"),
        ]
    assert any(line["event"] == "authentication_failed" for line in logs)
    assert secret not in str(logs)
    assert all(secret not in answer.body.decode() and secret not in str(answer.headers) for answer in answers)
    assert secret not in "".join(capfd.readouterr())
