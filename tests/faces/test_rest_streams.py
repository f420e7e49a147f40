"""Streams of server-sent events over REST: snapshot, changes, resume, bookmarks, and how streams end."""

import asyncio
from pathlib import Path

import pytest

from app.live.engine import Tuning
from app.rest import streams
from tests.support.core import (
    ADMIN,
    ALICE,
    APP,
    BOB,
    BUSY,
    REACHABLE,
    SOAP,
    UNREACHABLE,
    new_database,
    run_core,
)
from tests.support.http_face import STATUS, HttpFace, face, http_face, problem
from tests.support.waiting import until

__all__ = ["face"]  # fixtures


async def test_watch(face: HttpFace) -> None:
    """A stream sends the snapshot, its end with a token as id, changes and liveness."""
    async with face.events(f"/v1/terminals:watch?address={ALICE}&address={BOB}") as stream:
        assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.response.headers["cache-control"] == "no-store"
        first, second = await stream.next(), await stream.next()
        assert {first[2]["address"], second[2]["address"]} == {ALICE, BOB}
        assert (first[0], first[2]["status"], first[2]["liveness"]) == ("snapshot-item", None, "UNKNOWN")
        name, token, data = await stream.next()
        assert (name, token) == ("snapshot-complete", data["resume_token"])
        assert token
        assert data["bookmark_interval_ms"] == 10_000
        await face.core.play(ALICE, BUSY)
        _, change = await stream.until("change")
        assert (change["address"], change["status"], change["revision"]) == (ALICE, "BUSY", 1)
        _, liveness = await stream.until("liveness-change")
        assert (liveness["address"], liveness["liveness"]) == (ALICE, "LIVE")


@pytest.mark.parametrize(("drawn", "retry_ms"), [(0.0, 1000), (0.5, 2000), (0.999, 2998)])
async def test_time_to_reconnect(tmp_path: Path, drawn: float, retry_ms: int) -> None:
    """HTML standard section 9.2.6: a stream begins with `retry:` in whole milliseconds; each stream has its own time,
    so that browsers do not all come again at one moment."""
    async with (
        run_core(await new_database(tmp_path)) as core,
        http_face(core, jitter=lambda: drawn) as face,
        face.events(f"/v1/terminals:watch?address={ALICE}") as stream,
    ):
        first = await anext(stream.response.aiter_lines())
    assert first == f"retry: {retry_ms}"


async def test_head_ends_at_once(face: HttpFace) -> None:
    """RFC 9110 section 9.3.2: HEAD of a stream has its header fields, ends at once, and leaves no stream open; an error
    of the request is the same as with GET."""
    head = await face.call("HEAD", f"/v1/terminals:watch?address={ALICE}")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
    await until(lambda: not list(face.core.live.streams))
    assert (await face.call("HEAD", "/v1/terminals:watch?address=x")).status == 400


async def test_watch_resumes(face: HttpFace) -> None:
    """With the last event id only differences are sent; Last-Event-ID takes precedence over the query's token."""
    path = f"/v1/terminals:watch?address={ALICE}&address={BOB}"
    async with face.events(path) as stream:
        await stream.until("snapshot-complete")
        await face.core.play(ALICE, BUSY)
        await face.core.play(BOB, REACHABLE)
        async with face.events(path) as other:
            token, _ = await other.until("snapshot-complete")
        await face.core.play(BOB, UNREACHABLE)
        async with face.events(f"{path}&resume_token=AQ", **{"last-event-id": token}) as resumed:
            name, _, data = await resumed.next()
            assert (name, data["address"], data["status"]["status"]) == ("snapshot-item", BOB, "UNREACHABLE")
            name, _, data = await resumed.next()
            assert (name, data["reset"]) == ("snapshot-complete", False)


@pytest.mark.parametrize("token", ["%21", "%0A%0Aevent:%20end%0A%0A", "%00", "AQAA", "x" * 40_000], ids=range(5))
async def test_token_that_cannot_be_used_is_a_reset(face: HttpFace, token: str) -> None:
    """An unusable token or last event id is not an error: the whole snapshot is sent, marked as a reset."""
    path = f"/v1/terminals:watch?address={ALICE}"
    async with face.events(path) as keeping:
        await keeping.until("snapshot-complete")
        await face.core.play(ALICE, BUSY)
        ids = [{}, {"last-event-id": token}]
        for query, headers in zip((f"{path}&resume_token={token}", path), ids, strict=True):
            async with face.events(query, **headers) as stream:
                name, _, data = await stream.next()
                assert (name, data["status"]["status"]) == ("snapshot-item", "BUSY")
                name, _, data = await stream.next()
                assert (name, data["reset"], data["resume_token"] == token) == ("snapshot-complete", True, False)


async def test_watch_filters(face: HttpFace) -> None:
    """Criteria name the statuses whose changes are sent."""
    async with face.events(f"/v1/terminals:watch?address={ALICE}&criteria=BUSY") as stream:
        await stream.until("snapshot-complete")
        await face.core.play(ALICE, REACHABLE)
        await face.core.play(ALICE, BUSY)
        _, change = await stream.until("change")
        assert change["status"] == "BUSY"


async def test_what_is_withdrawn_is_listed(face: HttpFace) -> None:
    """A notification to a SOAP subscription that its client has ended is listed as withdrawn."""
    made = await face.core.subscribe(ALICE, sink=SOAP, check_immediate=True)
    await face.core.play(ALICE, BUSY)
    assert (await face.call("DELETE", f"/v1/subscriptions/{made.id}")).status == 204
    (shown,) = (await face.call("GET", "/v1/notifications?state=WITHDRAWN")).json["notifications"]
    assert (shown["subscription_id"], shown["state"], shown["next_attempt_time"]) == (made.id, "WITHDRAWN", None)
    assert shown["settle_time"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "INVALID_REQUEST"),
        ("address=alice", "INVALID_ADDRESS"),
        (f"address={ALICE}&criteria=AWAY", "INVALID_REQUEST"),
        (f"address={ALICE}&min_interval_ms=-1", "INVALID_REQUEST"),
    ],
)
async def test_watch_refuses(face: HttpFace, query: str, code: str) -> None:
    """A wrong request is a problem, not a stream."""
    problem(await face.call("GET", f"/v1/terminals:watch?{query}"), 400, code)


async def test_watch_ends_when_the_gateway_stops(face: HttpFace) -> None:
    """A stream that the gateway ends says why, with the token for resuming."""
    async with face.events(f"/v1/terminals:watch?address={ALICE}") as stream:
        await stream.until("snapshot-complete")
        face.core.streams.end_all()
        token, end = await stream.until("end")
        assert end["reason"] == "GATEWAY_STOPPING"
        assert token == end["resume_token"] != ""
        assert await stream.rest() == []


async def test_watch_ends_with_the_credentials(face: HttpFace, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the credentials are no longer valid the stream ends with that reason; until then comments keep it open."""
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.02)
    async with face.events(f"/v1/terminals:watch?address={ALICE}") as stream:
        await stream.until("snapshot-complete")
        reading = asyncio.create_task(stream.until("end"))
        await until(lambda: stream.comments)
        (key,) = await face.registry.keys(APP.id)
        await face.core.store.delete_key(key.id)
        face.auth.forget()
        token, end = await reading
        assert (token, end["reason"]) == ("", "CREDENTIALS_EXPIRED")
        assert await stream.rest() == []


async def test_an_old_watch_ends(tmp_path: Path) -> None:
    """A stream that reaches the maximum age ends with that reason and a token for resuming."""
    async with (
        run_core(await new_database(tmp_path)) as core,
        http_face(core, max_stream_age_s=0.05) as face,
        face.events(f"/v1/terminals:watch?address={ALICE}") as stream,
    ):
        last, _ = await stream.until("snapshot-complete")
        token, end = await stream.until("end")
        assert (end["reason"], token) == ("MAX_AGE", last)
        assert await stream.rest() == []


async def test_watch_of_a_client_that_is_disabled(face: HttpFace) -> None:
    """A disabled client's streams end at once."""
    async with face.events(f"/v1/terminals:watch?address={ALICE}") as stream:
        await stream.until("snapshot-complete")
        assert (await face.call("POST", f"/v1/clients/{APP.id}:disable", client=ADMIN.id)).json["disabled"] is True
        assert (await stream.until("end"))[1]["reason"] == "CREDENTIALS_EXPIRED"
    problem(await face.call("GET", STATUS), 401, "UNAUTHENTICATED")
    assert (await face.call("POST", f"/v1/clients/{APP.id}:enable", client=ADMIN.id)).json["disabled"] is False
    assert (await face.call("GET", STATUS)).status == 200


async def test_a_reader_that_leaves_costs_nothing(face: HttpFace) -> None:
    """When the client leaves, its stream is closed, and terminals without other listeners are no longer watched."""
    async with face.events(f"/v1/terminals:watch?address={ALICE}") as stream:
        await stream.until("snapshot-complete")
        assert face.core.live.engine.figures()["streams"] == 1
    await until(lambda: face.core.live.engine.figures()["streams"] == 0)


async def test_a_slow_reader_gets_the_newest(face: HttpFace) -> None:
    """A reader that pauses misses the changes in between, and gets the newest when it reads on."""
    async with face.events(f"/v1/terminals:watch?address={ALICE}") as stream:
        await stream.until("snapshot-complete")
        for number in range(200):
            await face.core.play(ALICE, (REACHABLE, BUSY)[number % 2])
        await face.core.play(ALICE, UNREACHABLE)
        while (await stream.until("change"))[1]["status"] != "UNREACHABLE":
            pass


async def test_bookmarks(tmp_path: Path) -> None:
    """While nothing changes, bookmarks with a token are sent."""
    tuning = Tuning(bookmark_s=1)
    async with (
        run_core(await new_database(tmp_path), tuning=tuning) as core,
        http_face(core) as face,
        face.events(f"/v1/terminals:watch?address={ALICE}") as stream,
    ):
        await stream.until("snapshot-complete")
        for _ in range(12):
            await core.advance(0.25)
        token, data = await stream.until("bookmark")
        assert token == data["resume_token"] != ""
