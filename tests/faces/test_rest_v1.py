"""REST API v1 over real use cases, a real store and a real server: each noun, and who may see it."""

import csv
import enum
import gzip
import io
import json
from collections.abc import AsyncIterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.domain import operations, outcomes
from app.domain.policy import Policy
from app.domain.sinks import PROFILE_CAMARA, SINK_SECRETS, SINK_TOKEN, SINK_TOKEN_EXPIRES_AT, Sink, SinkKind
from app.rest import audit, deliveries, middleware, terminals, to_json, usage
from app.rest.client_limits import ClientLimits
from app.rest.watches import WatchState
from app.sip.machine.states import State
from tests.support.core import (
    ADMIN,
    ALICE,
    APP,
    BOB,
    BUSY,
    OTHER,
    REACHABLE,
    TEAM,
    new_database,
    run_core,
)
from tests.support.http_face import STATUS, Answer, HttpFace, face, http_face, problem

__all__ = ["face"]  # fixtures


WEBHOOK = {"kind": "WEBHOOK", "uri": "https://example.com/hook"}


# Who calls.


async def test_credentials_are_needed(face: HttpFace) -> None:
    """Every operation without credentials, or with bad ones, is 401 with a challenge, before its body is read."""
    for method, path in (("GET", STATUS), ("POST", "/v1/terminals:query"), ("GET", "/v1/watches"), ("GET", "/v1/x")):
        answer = await face.call(method, path, client="", raw=b"{" if method == "POST" else None)
        if path == "/v1/x":
            problem(answer, 404, "NOT_FOUND")
            continue
        problem(answer, 401, "UNAUTHENTICATED")
        assert answer.headers["www-authenticate"] == 'Bearer realm="terminal-status"'


@pytest.mark.parametrize("shown", ["Bearer tsk_x_y", "bearer x", "Basic eDp5", "Digest x"])
async def test_challenge_of_wrong_credentials(face: HttpFace, shown: str) -> None:
    """RFC 6750 section 3.1: the challenge for a wrong token has `error`; that for other credentials has none."""
    answer = await face.call("GET", STATUS, client="", headers={"authorization": shown})
    problem(answer, 401, "UNAUTHENTICATED")
    more = ', error="invalid_token"' if shown.lower().startswith("bearer") else ""
    assert answer.headers["www-authenticate"] == f'Bearer realm="terminal-status"{more}'


class OneDevice:
    """Access tokens of APP that are for CAMARA's APIs only."""

    async def verify(self, _token: str) -> tuple[str, datetime]:
        return APP.id, datetime(2100, 1, 1, tzinfo=UTC)

    def confined(self, _token: str) -> str:
        return "The access token lacks the scope terminal-status."


async def test_challenge_of_a_token_without_the_scope(tmp_path: Path) -> None:
    """RFC 6750 section 3.1: a token that does not suffice is `insufficient_scope`, and `scope` says what is needed. An
    API key has no scopes, so its 403 has no challenge."""
    async with (
        run_core(await new_database(tmp_path)) as core,
        http_face(core, tokens=OneDevice(), token_scope="terminal-status") as face,
    ):
        refused = await face.call("GET", STATUS, headers={"authorization": "Bearer token"})
        problem(refused, 403, "NOT_PERMITTED")
        needed = 'Bearer realm="terminal-status", error="insufficient_scope", scope="terminal-status"'
        assert refused.headers["www-authenticate"] == needed
        missing = await face.call("GET", STATUS, client="")
        assert missing.headers["www-authenticate"] == 'Bearer realm="terminal-status", scope="terminal-status"'
        by_key = await face.call("GET", "/v1/clients")
        problem(by_key, 403, "NOT_PERMITTED")
        assert "www-authenticate" not in by_key.headers


@pytest.mark.parametrize("path", [STATUS, "/v1/subscriptions", f"/v1/terminals:watch?address={ALICE}"])
async def test_two_authorization_lines(face: HttpFace, path: str) -> None:
    """RFC 9110 section 5.3 and RFC 6750 section 3.1: credentials are sent once; two lines are 400, also if one is good
    or both are the same."""
    good = f"Bearer {face.keys[APP.id]}"
    for second in (good, "Bearer x"):
        lines = [("authorization", good), ("authorization", second)]
        response = await face.http.get(face.url + path, headers=lines)
        body = problem(Answer(response.status_code, response.headers, response.content), 400, "INVALID_REQUEST")
        assert body["details"]["field"] == "Authorization"
        assert response.headers["www-authenticate"] == 'Bearer realm="terminal-status", error="invalid_request"'


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "gzip, identity", "zstd"])
@pytest.mark.parametrize("path", ["/v1/terminals:query", "/v1/groups"])
async def test_compressed_body(face: HttpFace, path: str, coding: str) -> None:
    """RFC 9110 sections 8.4 and 15.5.16: a content coding is 415, with the codings that are accepted."""
    body = gzip.compress(json.dumps({"addresses": [ALICE]}).encode())
    answer = await face.call("POST", path, raw=body, headers={"content-encoding": coding})
    problem(answer, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert answer.headers["accept-encoding"] == "identity"


async def test_codings_on_several_lines(face: HttpFace) -> None:
    """RFC 9110 section 5.3: several lines are one list. The last line alone may say `identity`."""
    lines = [
        ("authorization", f"Bearer {face.keys[APP.id]}"),
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
        ("content-encoding", "identity"),
    ]
    response = await face.http.post(f"{face.url}/v1/groups", headers=lines, content=gzip.compress(b"{}"))
    problem(Answer(response.status_code, response.headers, response.content), 415, "UNSUPPORTED_MEDIA_TYPE")


async def test_identity_is_no_compression(face: HttpFace) -> None:
    """RFC 9110 section 12.5.3: `identity` means that the body is not encoded."""
    asked = {"addresses": [ALICE]}
    answer = await face.call("POST", "/v1/terminals:query", asked, headers={"content-encoding": "Identity"})
    assert answer.status == 200


async def test_location_of_what_was_made(face: HttpFace) -> None:
    """RFC 9110 section 15.3.2: every 201 names what it made, and GET of that returns it."""
    odd = "sip:te/am?+1;a=b@example.com"
    for path, asked, client in (
        ("/v1/subscriptions", {"addresses": [ALICE], "sink": WEBHOOK}, APP.id),
        ("/v1/groups", {"address": TEAM, "members": [ALICE]}, APP.id),
        ("/v1/groups", {"address": odd, "members": [ALICE]}, APP.id),
        ("/v1/clients", {"name": "New one", "client_id": "new@example.com"}, ADMIN.id),
    ):
        made = await face.call("POST", path, asked, client=client)
        assert made.status == 201, made.json
        got = await face.call("GET", made.headers["location"], client=client)
        assert got.status == 200
        shown = made.json.get("client", made.json)
        assert {name: got.json[name] for name in ("create_time", "etag") if name in got.json}.items() <= shown.items()


async def test_head_of_every_list(face: HttpFace) -> None:
    """RFC 9110 section 9.3.2: HEAD of a list has the header fields of GET, and the connection serves on."""
    for noun in ("subscriptions", "groups", "notifications", "usage-records", "watches", "clients", "audit-entries"):
        got = await face.call("GET", f"/v1/{noun}", client=ADMIN.id)
        head = await face.call("HEAD", f"/v1/{noun}", client=ADMIN.id)
        assert (head.status, head.body, head.headers["content-type"]) == (got.status, b"", got.headers["content-type"])


async def test_rate(tmp_path: Path) -> None:
    """Calls above the policy's rate are 429 with Retry-After."""
    policy = Policy(rate_per_s=1, rate_burst=1)
    async with run_core(await new_database(tmp_path), policy=policy) as core, http_face(core) as face:
        assert (await face.call("GET", STATUS)).status == 200
        answer = await face.call("GET", STATUS)
        problem(answer, 429, "RATE_LIMITED")
        assert answer.headers["retry-after"] == "1"


def rates(answer: Answer) -> tuple[str | None, str | None]:
    return answer.headers.get("ratelimit-policy"), answer.headers.get("ratelimit")


async def test_rate_headers(tmp_path: Path) -> None:
    """draft-ietf-httpapi-ratelimit-headers-10: answers name the limit and what is left, in every API, also refusals,
    streams, and where a query counts several times. Strangers learn nothing."""
    policy, retrieve = Policy(rate_per_s=2, rate_burst=5), "/device-reachability-status/v1/retrieve"
    async with run_core(await new_database(tmp_path), policy=policy) as core, http_face(core) as face:
        limit = '"calls";q=5;w=3'
        assert rates(await face.call("GET", STATUS)) == (limit, '"calls";r=4;t=1')
        async with face.events(f"/v1/terminals:watch?address={ALICE}") as stream:
            assert stream.response.headers["ratelimit"] == '"calls";r=3;t=1'
        answer = await face.call("POST", "/v1/terminals:query", {"addresses": [ALICE, BOB]})
        assert rates(answer) == (limit, '"calls";r=1;t=2')
        device = {"device": {"networkAccessIdentifier": "alice@example.com"}}
        assert rates(await face.call("POST", retrieve, device)) == (limit, '"calls";r=0;t=3')
        refused = await face.call("HEAD", STATUS)
        assert (refused.status, rates(refused)) == (429, (limit, '"calls";r=0;t=3'))
        core.clocks.advance(1)
        assert rates(await face.call("GET", "/v1/subscriptions/none")) == (limit, '"calls";r=1;t=2')
        assert rates(await face.call("GET", STATUS, client="")) == (None, None)


async def test_no_rate_no_headers(face: HttpFace) -> None:
    """A client whose calls are not limited gets no headers about a limit."""
    assert rates(await face.call("GET", STATUS)) == (None, None)


async def test_a_client_sees_and_ends_only_its_own(face: HttpFace) -> None:
    """Another client's subscriptions, notifications and groups are 404, and are in no list."""
    made = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "sink": WEBHOOK})).json
    await face.call("POST", "/v1/groups", {"address": TEAM, "members": [ALICE]})
    (owed, *_) = (await face.call("GET", "/v1/notifications")).json["notifications"]
    for method, path, body, code in (
        ("GET", f"/v1/subscriptions/{made['id']}", None, "SUBSCRIPTION_UNKNOWN"),
        ("DELETE", f"/v1/subscriptions/{made['id']}", None, "SUBSCRIPTION_UNKNOWN"),
        ("PATCH", f"/v1/subscriptions/{made['id']}", {"duration_ms": 1000}, "SUBSCRIPTION_UNKNOWN"),
        ("POST", f"/v1/subscriptions/{made['id']}:rotateSecret", None, "SUBSCRIPTION_UNKNOWN"),
        ("GET", f"/v1/notifications/{owed['id']}", None, "NOTIFICATION_UNKNOWN"),
        ("GET", f"/v1/notifications/{owed['id']}/attempts", None, "NOTIFICATION_UNKNOWN"),
        ("POST", "/v1/notifications:sendAgain", {"notification_ids": [owed["id"]]}, "NOTIFICATION_UNKNOWN"),
        ("GET", f"/v1/groups/{TEAM}", None, "GROUP_UNKNOWN"),
        ("DELETE", f"/v1/groups/{TEAM}", None, "GROUP_UNKNOWN"),
        ("PUT", f"/v1/groups/{TEAM}/members", {"members": []}, "GROUP_UNKNOWN"),
    ):
        problem(await face.call(method, path, body, client=OTHER.id), 404, code)
    for noun in ("subscriptions", "notifications", "groups"):
        assert (await face.call("GET", f"/v1/{noun}", client=OTHER.id)).json[noun] == []
        assert (await face.call("GET", f"/v1/{noun}", client=ADMIN.id)).json[noun] != []


# Headers and bodies of any request.


@pytest.mark.parametrize("path", [STATUS, "/healthz", "/nowhere", "/v1/terminals/x/status", "/metrics"])
async def test_correlation_comes_back(face: HttpFace, path: str) -> None:
    """x-correlator and traceparent are in every answer as in the request; an invalid traceparent is left out. Without
    an x-correlator the gateway makes one."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = {"x-correlator": "b4333c46:49c0", "traceparent": trace}
    answer = await face.call("GET", path, headers=sent)
    assert (answer.headers["x-correlator"], answer.headers["traceparent"]) == ("b4333c46:49c0", trace)
    assert "traceparent" not in (await face.call("GET", path, headers={"traceparent": trace.upper()})).headers
    assert len((await face.call("GET", path)).headers["x-correlator"]) == 32


@pytest.mark.parametrize("value", ["a" * 257, "a b", "ä", "a,b"])
async def test_a_correlator_is_bounded(face: HttpFace, value: str) -> None:
    """An x-correlator that is too long or has other characters is replaced, and not sent back."""
    answer = await face.call("GET", STATUS, headers={"x-correlator": value.encode("latin-1")})
    assert answer.status == (await face.call("GET", STATUS)).status
    assert len(answer.headers["x-correlator"]) == 32


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "INVALID_REQUEST"),
        (b"{", 400, "INVALID_REQUEST"),
        (b"[]", 400, "INVALID_REQUEST"),
        (b"null", 400, "INVALID_REQUEST"),
        (b"\xff\xfe", 400, "INVALID_REQUEST"),
        (b"[" * 100_000, 400, "INVALID_REQUEST"),
        (b'{"a":' * 100_000, 400, "INVALID_REQUEST"),
        (b'{"addresses":' + b"[" * 900 + b"]" * 900 + b"}", 400, "INVALID_REQUEST"),
        (b'{"addresses":["sip:a@b"],"max_age_s":' + b"9" * 100_000 + b"}", 400, "INVALID_REQUEST"),
        (b'{"addresses":["sip:a@b"],"max_age_s":1e999}', 400, "INVALID_REQUEST"),
        (b'{"addresses":["sip:a@b"],"max_age_s":NaN}', 400, "INVALID_REQUEST"),
        (b'{"addresses":["sip:a@b"],"max_age_s":"1"}', 400, "INVALID_REQUEST"),
        (b'{"addresses":["sip:a@b"],"max_age":1}', 400, "INVALID_REQUEST"),
        (b'{"addresses":["sip:a@b\\ud800"]}', 400, "INVALID_REQUEST"),
        (b'{"addresses":["sip:a@b"],"\\ud800":1}', 400, "INVALID_REQUEST"),
        (b'{"addresses":["sip:a@b"],"requester":"\\udfff"}', 400, "INVALID_REQUEST"),
        (
            b'{"addresses":["sip:a@b"],' + b",".join(b'"x%d":1' % n for n in range(50_000)) + b"}",
            400,
            "INVALID_REQUEST",
        ),
        (b'{"addresses":[]}', 400, "NO_VALID_ADDRESSES"),
        (b'{"addresses":["alice"]}', 400, "INVALID_ADDRESS"),
        (b" " * (middleware.MAX_BODY_BYTES + 1), 413, "BODY_TOO_LARGE"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_bodies(face: HttpFace, body: bytes, status: int, code: str) -> None:
    """Each invalid body is refused with a clear and short answer, and the next request is answered."""
    answer = await face.call("POST", "/v1/terminals:query", raw=body)
    problem(answer, status, code)
    assert len(answer.body) < 20_000
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", "application/xml"):
        other = await face.call("POST", "/v1/terminals:query", raw=body[:100], headers={"content-type": media_type})
        problem(other, 415, "UNSUPPORTED_MEDIA_TYPE")
    key = {"authorization": f"Bearer {face.keys[APP.id]}"}
    unnamed = await face.http.request("POST", f"{face.url}/v1/terminals:query", content=b"{}", headers=key)
    problem(Answer(unnamed.status_code, unnamed.headers, unnamed.content), 415, "UNSUPPORTED_MEDIA_TYPE")
    assert (await face.call("GET", STATUS)).status == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{" + b",".join(b'"x%d":1' % n for n in range(1_001)) + b"}", "more than 1000 members"),
        (b'{"a":{' + b",".join(b'"x%d":1' % n for n in range(1_000)) + b"}}", "more than 1000 members"),
        (b'{"addresses":[' + b",".join([b"[]"] * 10_000) + b"]}", "more than 10000 objects and lists"),
        (b"[" + b",".join([b"{}"] * 10_000) + b"]", "more than 10000 objects and lists"),
        (b'{"addresses":[' + b",".join([b"1"] * 100_000) + b"]}", "body.addresses.0"),
    ],
    ids=["members", "inner members", "lists", "objects", "faults"],
)
async def test_expensive_bodies(face: HttpFace, body: bytes, said: str) -> None:
    """Bodies that would cost Python much time to parse or to validate are refused before that."""
    refused = problem(await face.call("POST", "/v1/terminals:query", raw=body), 400, "INVALID_REQUEST")
    assert said in str(refused)
    assert len(refused["details"]) <= 2
    many = {"addresses": ["sip:[::1]"] * 9_000 + ["sip:a@[::1]"] * 9_000}
    problem(await face.call("POST", "/v1/terminals:query", many), 422, "TOO_MANY_ADDRESSES")


async def test_a_body_without_a_length_is_bounded(face: HttpFace) -> None:
    """An endless body in pieces is cut off at the bound."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(middleware.MAX_BODY_BYTES // 65536 + 1):
            yield b" " * 65536

    headers = {"authorization": f"Bearer {face.keys[APP.id]}", "content-type": "application/json"}
    response = await face.http.post(f"{face.url}/v1/terminals:query", content=endless(), headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "BODY_TOO_LARGE")


# Queries.


async def test_status(face: HttpFace) -> None:
    """A query is answered by the presence server; a query that accepts an age, by a live stream's watch."""
    assert (await face.call("GET", STATUS)).json["source"] == "FETCH"
    async with face.events(f"/v1/terminals:watch?address={ALICE}") as stream:
        await stream.until("snapshot-complete")
        await face.core.play(ALICE, BUSY)
        answer = (await face.call("GET", f"{STATUS}?max_age_s=30&requester=me&colour=blue")).json
        assert (answer["status"], answer["source"], answer["revision"]) == ("BUSY", "WATCH", 1)
    records = await face.core.usage_records()
    assert [(one.operation.value, one.face.value, one.requester) for one in records][-1] == ("getStatus", "rest", "me")


@pytest.mark.parametrize(
    "query",
    ["max_age_s=-1", "max_age_s=86401", "max_age_s=nan", "max_age_s=", "max_age_s=1_0", "requester=" + "a" * 201],
)
async def test_status_refuses(face: HttpFace, query: str) -> None:
    """An unusable query parameter is 400."""
    problem(await face.call("GET", f"{STATUS}?{query}"), 400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (f"{STATUS}?max_age_s=5&max_age_s=5", "max_age_s"),
        (f"{STATUS}?max_age_s=5&requester=a&max%5Fage_s=6", "max_age_s"),
        (f"/v1/terminals:watch?address={ALICE}&resume_token=a&resume_token=b", "resume_token"),
        ("/v1/subscriptions?page_size=1&page_size=2", "page_size"),
        ("/v1/notifications?state=DEAD&state=PENDING", "state"),
        ("/v1/notifications?start_time=2026-01-02T00:00:00Z&start_time=", "start_time"),
    ],
)
async def test_doubled_query_parameter(face: HttpFace, path: str, field: str) -> None:
    """RFC 3986 section 3.4 gives several values of one name no meaning, and proxies and servers differ in which one
    counts: a parameter that is not a list is refused by its name, also if both values are the same."""
    body = problem(await face.call("GET", path), 400, "INVALID_REQUEST")
    assert body["details"]["field"] == field


async def test_doubled_query_parameters_that_are_lists(face: HttpFace) -> None:
    """A list is repeated; unknown parameters are ignored."""
    async with face.events(f"/v1/terminals:watch?address={ALICE}&address={BOB}&x=1&x=2") as stream:
        assert [(await stream.next())[0] for _ in range(3)] == ["snapshot-item", "snapshot-item", "snapshot-complete"]


ASKED: tuple[tuple[str, str, str], ...] = (
    ("GET", STATUS, "app"),
    ("GET", f"{STATUS}?max_age_s=10&requester=me&unknown=1&unknown=2", "app"),
    ("HEAD", STATUS, "app"),
    ("GET", STATUS, ""),
    ("GET", f"{STATUS}?max_age_s=ten", "app"),
    ("GET", f"{STATUS}?max_age_s=-1", "app"),
    ("GET", f"{STATUS}?max_age_s=nan", "app"),
    ("GET", f"{STATUS}?max_age_s=1&max_age_s=1", "app"),
    ("GET", f"{STATUS}?requester={'x' * 5000}", "app"),
    ("GET", "/v1/terminals/not-an-address/status", "app"),
    ("GET", "/v1/terminals/sip:a%2Fb@c/status", "app"),
    ("GET", "/v1/terminals/status/status", "app"),
    ("GET", "/v1/terminals/status", "app"),
    ("GET", f"{STATUS}/", "app"),
    ("POST", STATUS, "app"),
    ("OPTIONS", STATUS, "app"),
)


@pytest.mark.parametrize(("method", "path", "client"), ASKED)
async def test_the_shortcut_answers_as_fastapi_does(
    face: HttpFace, monkeypatch: pytest.MonkeyPatch, method: str, path: str, client: str
) -> None:
    """The document of `getTerminalStatus` is FastAPI's, so its own answers must be the same: status, headers, code, the
    field at fault, and the whole body of a success. Two things differ: FastAPI would take `1_0` for a number, and an
    address that is empty or too long is INVALID_REQUEST there."""
    shortcut = await face.call(method, path, client=client)
    with monkeypatch.context() as patch:
        patch.setattr(terminals.StatusShortcut, "_BEGIN", "/none/")
        whole = await face.call(method, path, client=client)
    own_headers = {"date", "content-length", "x-correlator", "ratelimit"}
    assert shortcut.status == whole.status
    assert {k: v for k, v in shortcut.headers.items() if k.lower() not in own_headers} == {
        k: v for k, v in whole.headers.items() if k.lower() not in own_headers
    }
    if method != "HEAD" and shortcut.status == 200:
        assert shortcut.json == whole.json
    elif method != "HEAD":
        assert [(each["code"], each["details"].get("field")) for each in (shortcut.json, whole.json)] == [
            (whole.json["code"], whole.json["details"].get("field"))
        ] * 2


async def test_query(face: HttpFace) -> None:
    """A query of groups and terminals has one result for each terminal, failed ones included."""
    from app.domain.addresses import TerminalAddress
    from app.domain.errors import FetchTimedOut, TerminalStatusError, TerminalUnknown
    from app.domain.statuses import Status

    def answer(address: TerminalAddress) -> Status | TerminalStatusError | None:
        return {BOB: TerminalUnknown("No."), "sip:slow@b": FetchTimedOut("Late.")}.get(address, REACHABLE)

    face.core.watcher.answer = answer
    await face.call("POST", "/v1/groups", {"address": TEAM, "members": [ALICE, BOB]})
    body = {"addresses": [TEAM, ALICE, "sip:slow@b"], "requester": "me"}
    answered = await face.call("POST", "/v1/terminals:query", body)
    results = {one["address"]: one for one in answered.json["results"]}
    assert {address: one["retrieval_status"] for address, one in results.items()} == {
        ALICE: "RETRIEVED",
        BOB: "ERROR",
        "sip:slow@b": "NOT_RETRIEVED",
    }
    assert results[ALICE]["status"]["status"] == "REACHABLE"
    assert (results[BOB]["status"], results[BOB]["error"]["code"]) == (None, "TERMINAL_UNKNOWN")
    lines = await face.call("POST", "/v1/terminals:query", body, headers={"accept": "application/jsonl"})
    assert lines.headers["content-type"] == "application/jsonl"
    assert {json.loads(line)["address"] for line in lines.body.splitlines()} == set(results)
    problem(
        await face.call("POST", "/v1/terminals:query", {"addresses": ["x"]}, headers={"accept": "application/jsonl"}),
        400,
        "INVALID_ADDRESS",
    )


# Subscriptions and their notifications.


async def test_subscription(face: HttpFace) -> None:
    """A subscription is made, shown, listed and ended; its secret is shown once, its token never."""
    body = {
        "addresses": [ALICE],
        "criteria": ["BUSY"],
        "check_immediate": True,
        "min_interval_ms": 10,
        "duration_ms": 60_000,
        "max_notification_count": 3,
        "correlator": "mine",
        "sink": {**WEBHOOK, "access_token": {"token": "hidden-token", "expire_time": "2027-01-01T00:00:00+01:00"}},
    }
    answer = await face.call("POST", "/v1/subscriptions", body)
    made = answer.json
    assert (answer.status, answer.headers["location"]) == (201, f"/v1/subscriptions/{made['id']}")
    assert made["secret"].startswith("whsec_")
    shown = (await face.call("GET", answer.headers["location"])).json
    assert shown == {name: value for name, value in made.items() if name != "secret"}
    assert "hidden-token" not in json.dumps([made, shown])
    assert shown["sink"] == {
        **WEBHOOK,
        "access_token": {"expire_time": "2026-12-31T23:00:00Z"},
        "handshake": "NONE",  # a test event would be signed with a secret that the receiver does not know yet
        "previous_secret_expire_time": None,
    }
    (checked,) = face.core.sender.checked
    assert (checked.sink.parameters[SINK_SECRETS], checked.sink.parameters[SINK_TOKEN]) == (
        made["secret"],
        "hidden-token",
    )
    assert (await face.call("GET", "/v1/subscriptions")).json == {"subscriptions": [shown], "next_page_token": ""}
    assert (await face.call("DELETE", f"/v1/subscriptions/{made['id']}")).status == 204
    problem(await face.call("DELETE", f"/v1/subscriptions/{made['id']}"), 404, "SUBSCRIPTION_UNKNOWN")
    assert (await face.call("GET", "/v1/subscriptions")).json["subscriptions"] == []
    (ended,) = (await face.call("GET", "/v1/subscriptions?state=ENDED")).json["subscriptions"]
    assert (ended["end_reason"], ended["end_time"] is None) == ("CANCELLED", False)


async def test_subscription_is_changed(face: HttpFace) -> None:
    """PATCH changes the members that its body has, and returns the subscription with another ETag; If-Match guards
    it."""
    body = {"addresses": [ALICE], "criteria": ["BUSY"], "duration_ms": 60_000, "sink": WEBHOOK}
    answer = await face.call("POST", "/v1/subscriptions", body)
    path, etag = answer.headers["location"], answer.headers["etag"]
    before = (await face.call("GET", path)).json
    assert etag == f'"{before["etag"]}"'
    changed = await face.call("PATCH", path, {"addresses": [ALICE, BOB]}, headers={"if-match": etag})
    assert changed.headers["etag"] == f'"{changed.json["etag"]}"' != etag
    assert changed.json == {**before, "addresses": [ALICE, BOB], "etag": changed.json["etag"]}
    for stale in (etag, f"{etag}, W/{changed.headers['etag']}", "", "v2", '"'):
        answer = await face.call("PATCH", path, {"criteria": []}, headers={"if-match": stale})
        problem(answer, 412, "SUBSCRIPTION_CHANGED")
    assert (await face.call("GET", path)).json == changed.json
    either = f'"v0", {changed.headers["etag"]}'
    sink = {**WEBHOOK, "uri": "https://example.com/other", "access_token": {"token": "hidden-token"}}
    everything = {"criteria": [], "duration_ms": 120_000, "sink": sink, "requester": "tel:+15551234567"}
    last = await face.call("PATCH", path, everything, headers={"if-match": either})
    assert (last.status, last.json["criteria"], last.json["sink"]["uri"]) == (200, [], sink["uri"])
    assert last.json["expire_time"] > before["expire_time"]
    assert last.json["sink"]["access_token"] == {"expire_time": None}
    assert b"hidden-token" not in last.body
    rotated = await face.call("POST", f"{path}:rotateSecret", headers={"if-match": "*"})
    assert rotated.headers["etag"] not in (etag, last.headers["etag"])


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "field"),
        ({"requester": "me"}, "field"),
        *[({name: None}, f"body.{name}") for name in ("addresses", "criteria", "duration_ms", "sink")],
        ({"duration_ms": -1}, "body.duration_ms"),
        ({"correlator": "mine"}, "body.correlator"),
        ({"sink": {}}, "body.sink"),
        ({"sink": {"kind": "CAMARA", "uri": "https://example.com/"}}, "body.sink"),
    ],
)
async def test_what_is_no_change(face: HttpFace, body: dict[str, Any], place: str) -> None:
    """A change of nothing, null, and members that do not exist or cannot be changed are refused by name."""
    made = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "sink": WEBHOOK})).json
    answer = await face.call("PATCH", f"/v1/subscriptions/{made['id']}", body)
    problem(answer, 400, "INVALID_REQUEST")
    assert place in answer.json["details"]
    if None in body.values():
        assert "leave the member out" in answer.json["details"][place]
    assert (await face.call("GET", f"/v1/subscriptions/{made['id']}")).json["etag"] == made["etag"]


async def test_creating_is_idempotent(face: HttpFace) -> None:
    """A repeated Idempotency-Key, quoted or not, returns the first answer with its secret; with another request it is
    422."""
    body = {"addresses": [ALICE], "sink": WEBHOOK}
    first = await face.call("POST", "/v1/subscriptions", body, headers={"idempotency-key": "k-1"})
    again = await face.call("POST", "/v1/subscriptions", body, headers={"idempotency-key": '"k-1"'})
    assert (again.status, again.json) == (201, first.json)
    other = await face.call(
        "POST", "/v1/subscriptions", {**body, "addresses": [BOB]}, headers={"idempotency-key": "k-1"}
    )
    problem(other, 422, "REQUEST_ID_REUSED")
    for bad in ("a b", "a" * 65, '"'):
        problem(
            await face.call("POST", "/v1/subscriptions", body, headers={"idempotency-key": bad}), 400, "INVALID_REQUEST"
        )


@pytest.mark.parametrize(
    "more",
    [
        {"uri": WEBHOOK["uri"]},
        {"secrets": ["whsec_" + "A" * 32]},
        {"access_token": {"token": "t"}},
        {"handshake": "NONE"},
        {"version": "v2_2"},
    ],
)
async def test_a_listed_sink_has_no_endpoint(face: HttpFace, more: dict[str, Any]) -> None:
    """A sink of kind LISTED with another kind's members is refused."""
    body = {"addresses": [ALICE], "sink": {"kind": "LISTED", **more}}
    problem(await face.call("POST", "/v1/subscriptions", body), 400, "INVALID_REQUEST")
    assert (await face.call("GET", "/v1/subscriptions")).json["subscriptions"] == []


@pytest.mark.parametrize("secrets", [[""], ["A" * 32 + " " + "A" * 32], ["A" * 32, ""], ["whsec_"], ["x"]])
async def test_what_is_no_secret(face: HttpFace, secrets: list[str]) -> None:
    """Where one signing secret is invalid, nothing is made: every webhook is signed."""
    body = {"addresses": [ALICE], "sink": {**WEBHOOK, "secrets": secrets}}
    problem(await face.call("POST", "/v1/subscriptions", body), 400, "SINK_REFUSED")
    assert (await face.call("GET", "/v1/subscriptions")).json["subscriptions"] == []


async def test_own_secrets_are_not_echoed_to_who_repeats(face: HttpFace) -> None:
    """A repeated creation does not return secrets that the first request named itself."""
    own = "whsec_" + "A" * 32
    body = {"addresses": [ALICE], "sink": {**WEBHOOK, "secrets": [own]}}
    key = {"idempotency-key": "k"}
    first = await face.call("POST", "/v1/subscriptions", body, headers=key)
    assert (await face.call("POST", "/v1/subscriptions", body, headers=key)).json == first.json
    without = await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "sink": WEBHOOK}, headers=key)
    problem(without, 422, "REQUEST_ID_REUSED")
    assert own not in without.body.decode()


async def test_own_secrets_and_streams(face: HttpFace) -> None:
    """A client's own secrets are accepted and not shown; a subscription without a sink has none."""
    own = "whsec_" + "A" * 32
    made = await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "sink": {**WEBHOOK, "secrets": [own]}})
    assert (made.json["secret"], own in made.body.decode()) == (None, False)
    made = await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "correlator": "c"})
    assert (made.json["secret"], made.json["sink"]["kind"]) == (None, "LISTED")
    problem(
        await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "correlator": "c"}),
        409,
        "DUPLICATE_CORRELATOR",
    )
    assert (await face.call("POST", "/v1/subscriptions:cancel", {"correlator": "c"})).status == 204
    problem(await face.call("POST", "/v1/subscriptions:cancel", {"correlator": "c"}), 404, "SUBSCRIPTION_UNKNOWN")


async def test_the_overlap_of_a_secret(face: HttpFace) -> None:
    """A rotation ends the overlap of a webhook's secrets after a day, or as requested; the sink shows the end."""
    sink = {"kind": "WEBHOOK", "uri": "https://example.com/hook"}
    made = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "sink": sink})).json
    assert made["sink"]["previous_secret_expire_time"] is None
    path = f"/v1/subscriptions/{made['id']}:rotateSecret"
    assert (await face.call("POST", path)).json["sink"]["previous_secret_expire_time"] == "2026-03-05T05:06:07Z"
    answer = await face.call("POST", path, {"overlap_ms": 59_001})
    assert answer.json["sink"]["previous_secret_expire_time"] == "2026-03-04T05:07:07Z"
    assert (await face.call("POST", path, {"overlap_ms": 0})).json["sink"]["previous_secret_expire_time"] is None
    refused = problem(await face.call("POST", path, {"overlap_ms": 1, "drop_old": True}), 400, "INVALID_REQUEST")
    assert refused["details"]["field"] == "overlap_ms"


async def test_rotating_a_secret(face: HttpFace) -> None:
    """A webhook gets a new secret, shown only once; a secret that the client names is not shown; `drop_old` ends the
    previous one."""
    made = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "sink": WEBHOOK})).json
    path, own = f"/v1/subscriptions/{made['id']}:rotateSecret", "whsec_" + "A" * 32

    async def secrets() -> list[str]:
        found = await face.core.store.subscription(made["id"])
        return str(found.sink.parameters[SINK_SECRETS]).split()

    first = await face.call("POST", path)
    assert (first.status, await secrets()) == (200, [first.json["secret"], made["secret"]])
    sink = {**made["sink"], "previous_secret_expire_time": first.json["sink"]["previous_secret_expire_time"]}
    assert first.json == {**made, "etag": first.json["etag"], "secret": first.json["secret"], "sink": sink}
    second = (await face.call("POST", path, {"secret": own})).json
    assert (second["secret"], await secrets()) == (None, [own, first.json["secret"]])
    third = (await face.call("POST", path, {"drop_old": True, "requester": "tel:+1"})).json
    assert (third["secret"], await secrets()) == (None, [own])
    refused = await face.call("POST", path, {"secret": "x"})
    problem(refused, 400, "SINK_REFUSED")
    assert refused.json["details"]["field"] == "secret"
    for bad in ({"secret": "x" * 101}, {"drop_old": 1}, {"secrets": [own]}):
        problem(await face.call("POST", path, bad), 400, "INVALID_REQUEST")
    problem(await face.call("POST", path, raw=b"null"), 400, "INVALID_REQUEST")
    stream = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE]})).json
    problem(await face.call("POST", f"/v1/subscriptions/{stream['id']}:rotateSecret"), 409, "CHANGE_NOT_ALLOWED")


@pytest.mark.parametrize(
    "sink",
    [
        {},
        {"uri": "https://example.com"},
        {"kind": "STREAM"},
        {"kind": "CAMARA", "uri": "https://example.com"},
        {"kind": "SOAP"},
        {"kind": "SOAP", "uri": "https://example.com", "version": "v" * 65},
        {"kind": "SOAP", "uri": "https://example.com", "secrets": []},
        {"kind": "WEBHOOK"},
        {"kind": "WEBHOOK", "uri": ""},
        {**WEBHOOK, "profile": "camara"},
        {**WEBHOOK, "uri": "https://example.com/" + "a" * 2000},
        {**WEBHOOK, "secrets": ["a", "b", "c"]},
        {**WEBHOOK, "access_token": "t"},
        {**WEBHOOK, "access_token": {"token": ""}},
        {**WEBHOOK, "access_token": {"expire_time": "2027-01-01T00:00:00Z"}},
        {**WEBHOOK, "access_token": {"token": "t", "expire_time": 5}},
        {**WEBHOOK, "access_token": {"token": "t", "expire_time": "2027-01-01T00:00:00"}},
        {**WEBHOOK, "handshake": "hello"},
        {**WEBHOOK, "handshake": "none"},
    ],
)
async def test_bad_sinks(face: HttpFace, sink: dict[str, Any]) -> None:
    """A sink that REST does not accept is 400, and nothing is made."""
    answer = await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "sink": sink})
    problem(answer, 400, "INVALID_REQUEST")
    assert "factory" not in answer.body.decode()  # a default that could not be made is no fault of the request
    assert face.core.sender.checked == []


async def test_a_soap_sink(face: HttpFace) -> None:
    """A subscription can have a Parlay X endpoint as sink."""
    soap = {"kind": "SOAP", "uri": "https://example.com/callbacks", "version": "v2_2"}
    made = await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "sink": soap})
    assert (made.status, made.json["sink"], made.json["secret"]) == (201, soap, None)


@pytest.mark.parametrize("token", [None, {"expire_time": "2027-01-01T00:00:00Z"}, {"expire_time": None}])
def test_a_camara_sink(token: dict[str, Any] | None) -> None:
    """A sink that the CAMARA API made is shown with the expiry of its token."""
    parameters = {} if token is None else {SINK_TOKEN: "hidden"}
    if token is not None and token["expire_time"] is not None:
        parameters[SINK_TOKEN_EXPIRES_AT] = token["expire_time"]
    sink = Sink(kind=SinkKind.WEBHOOK, url="https://example.com", profile=PROFILE_CAMARA, parameters=parameters)
    shown = json.loads(msgspec.json.encode(to_json.sink(sink)))
    assert shown == {"kind": "CAMARA", "uri": "https://example.com", "access_token": token}


async def test_faults_name_the_fields_of_rest(face: HttpFace) -> None:
    """Faults use REST's names of fields where gRPC's differ."""
    for field in ("duration_ms", "min_interval_ms"):
        refused = await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], field: 2**40})
        assert refused.json["details"]["field"] == field


async def test_pages(face: HttpFace) -> None:
    """Lists come in pages, with each item once; a token of another list, or an invalid one, is 400."""
    made = [(await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE]})).json["id"] for _ in range(5)]
    seen, token = [], ""
    while True:
        page = (await face.call("GET", f"/v1/subscriptions?page_size=2&page_token={token}")).json
        seen += [one["id"] for one in page["subscriptions"]]
        if not (token := page["next_page_token"]):
            break
    assert sorted(seen) == sorted(made)
    for query in ("page_token=x", "page_size=0", "page_size=-1", "page_token=" + "a" * 5000):
        problem(await face.call("GET", f"/v1/subscriptions?{query}"), 400, "INVALID_REQUEST")


async def test_notifications(face: HttpFace) -> None:
    """A subscription's notifications are listed with their content; a dead one can be sent again."""
    made = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "check_immediate": True})).json
    await face.core.play(ALICE, BUSY)
    listed = (await face.call("GET", f"/v1/notifications?subscription_id={made['id']}&state=DELIVERED")).json
    (notification,) = listed["notifications"]
    assert [(one["address"], one["status"]) for one in notification["content"]["statuses"]] == [(ALICE, "BUSY")]
    assert (await face.call("GET", f"/v1/notifications/{notification['id']}")).json == notification
    assert (await face.call("GET", f"/v1/notifications/{notification['id']}/attempts")).json == {
        "delivery_attempts": [],
        "next_page_token": "",
    }
    assert (await face.call("GET", "/v1/notifications?state=DEAD")).json["notifications"] == []
    again = await face.call("POST", "/v1/notifications:sendAgain", {"notification_ids": [notification["id"]]})
    assert again.json == {"sent_again_count": 0}
    problem(await face.call("GET", "/v1/notifications/none"), 404, "NOTIFICATION_UNKNOWN")


async def test_replay(face: HttpFace) -> None:
    """Notifications of a span of time are replayed for a subscription that is sent something; the span is checked."""
    sink = {"kind": "WEBHOOK", "uri": "https://example.com/hook"}
    made = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "sink": sink})).json
    listed = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE]})).json
    path, span = "/v1/notifications:replay", {"start_time": "2026-01-01T00:00:00Z"}
    asked = {"subscription_id": made["id"], **span}
    assert (await face.call("POST", path, asked)).json == {"replayed_count": 0, "next_page_token": ""}
    problem(await face.call("POST", path, asked, client=OTHER.id), 404, "SUBSCRIPTION_UNKNOWN")
    problem(await face.call("POST", path, {**asked, "subscription_id": listed["id"]}), 409, "CHANGE_NOT_ALLOWED")
    for bad in ({"end_time": span["start_time"]}, {"page_token": "x"}, {"start_time": None}):
        problem(await face.call("POST", path, {**asked, **bad}), 400, "INVALID_REQUEST")


# Groups.


async def test_groups(face: HttpFace) -> None:
    """A group is made, shown, listed, changed and deleted; its ETag guards against changes that were not seen."""
    made = await face.call("POST", "/v1/groups", {"address": TEAM, "members": [ALICE]})
    path, tag = f"/v1/groups/{TEAM}", made.headers["etag"]
    assert (made.status, made.json["members"], f'"{made.json["etag"]}"') == (201, [ALICE], tag)
    assert (await face.call("GET", path)).json == made.json
    unchanged = await face.call("GET", path, headers={"if-none-match": tag})
    assert (unchanged.status, unchanged.headers["etag"], unchanged.body) == (304, tag, b"")
    assert (await face.call("GET", path, headers={"if-none-match": "*"})).status == 304
    assert (await face.call("GET", "/v1/groups")).json["groups"] == [made.json]
    changed = await face.call("PUT", f"{path}/members", {"members": [BOB]}, headers={"if-match": f'"x", {tag}'})
    assert (changed.json["members"], changed.json["etag"] == made.json["etag"]) == ([BOB], False)
    for stale in (tag, f"W/{changed.headers['etag']}", '"2"', "x"):
        problem(
            await face.call("PUT", f"{path}/members", {"members": []}, headers={"if-match": stale}),
            412,
            "GROUP_CHANGED",
        )
    assert (await face.call("PUT", f"{path}/members", {"members": [BOB]}, headers={"if-match": "*"})).status == 200
    assert (await face.call("POST", f"{path}/members:add", {"members": [ALICE]})).json["members"] == [BOB, ALICE]
    assert (await face.call("POST", f"{path}/members:remove", {"members": [BOB]})).json["members"] == [ALICE]
    stale = {"if-match": tag}
    for method, where, body in (
        ("POST", f"{path}/members:add", {"members": [BOB]}),
        ("POST", f"{path}/members:remove", {"members": [ALICE]}),
        ("DELETE", path, None),
    ):
        refused = await face.call(method, where, body, headers=stale)
        problem(refused, 412, "GROUP_CHANGED")
        assert refused.json["details"]["field"] == "If-Match"
    fresh = (await face.call("GET", path)).headers["etag"]
    for verb, left in (("add", [ALICE, BOB]), ("remove", [ALICE])):
        done = await face.call("POST", f"{path}/members:{verb}", {"members": [BOB]}, headers={"if-match": fresh})
        assert done.json["members"] == left
        fresh = done.headers["etag"]
    problem(await face.call("POST", f"{path}/members:add", {"members": []}), 400, "INVALID_REQUEST")
    problem(await face.call("POST", "/v1/groups", {"address": TEAM, "members": []}), 409, "GROUP_EXISTS")
    problem(await face.call("GET", STATUS.replace(ALICE, TEAM)), 422, "GROUP_NOT_ALLOWED")
    assert (await face.call("DELETE", path, headers={"if-match": fresh})).status == 204
    problem(await face.call("GET", path), 404, "GROUP_UNKNOWN")


# Filters.


async def test_lists_are_filtered(face: HttpFace) -> None:
    """Each list takes the contract's filters; a part of another client's is empty."""
    made = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE], "check_immediate": True})).json
    other = (await face.call("POST", "/v1/subscriptions", {"addresses": [BOB]})).json
    await face.call("DELETE", f"/v1/subscriptions/{other['id']}")
    await face.call("POST", "/v1/groups", {"address": TEAM, "members": [ALICE]})
    await face.core.play(ALICE, BUSY)
    await face.core.usage_records()
    mine, later = made["client_id"], "2099-01-01T00:00:00Z"
    for noun, query, number in (
        ("subscriptions", "", 1),
        ("subscriptions", "state=ENDED", 1),
        ("subscriptions", f"address={BOB}", 0),
        ("subscriptions", f"state=ENDED&address=sip:bob@EXAMPLE.com&client_id={mine}&max_create_time={later}", 1),
        ("subscriptions", f"min_create_time={later}", 0),
        ("subscriptions", "client_id=another", 0),
        ("subscriptions", "page_size=1001", 1),
        ("notifications", f"end_time={later}&state=DELIVERED", 2),
        ("notifications", f"start_time={later}", 0),
        ("notifications", "client_id=another", 0),
        ("groups", f"member={ALICE}&client_id={mine}", 1),
        ("groups", f"member={BOB}", 0),
        ("groups", "client_id=another", 0),
        ("usage-records", "operation=START_NOTIFICATION&face=REST", 2),
        ("usage-records", f"operation=END_NOTIFICATION&client_id={mine}&end_time={later}", 1),
        ("usage-records", "face=SOAP", 0),
        ("usage-records", "client_id=another", 0),
    ):
        answer = await face.call("GET", f"/v1/{noun}?{query}")
        assert answer.status == 200, answer.json
        assert len(answer.json[noun.replace("-", "_")]) == number, (noun, query)
    assert (await face.call("GET", "/v1/usage-records:export?operation=END_NOTIFICATION")).body.count(b"\n") == 1
    own = ["SUBSCRIPTION_CREATED", "SUBSCRIPTION_CREATED", "SUBSCRIPTION_CANCELLED", "GROUP_CREATED"]
    for query, actions in (
        ("action=GROUP_CREATED", ["GROUP_CREATED"]),
        (f"actor={mine}", own),
        (f"actor={mine}&end_time={later}", own),
        (f"actor={mine}&start_time={later}", []),
        ("actor=x", []),
    ):
        log = (await face.call("GET", f"/v1/audit-entries?{query}", client=ADMIN.id)).json["audit_entries"]
        assert [one["action"] for one in log] == actions, query
    assert len((await face.call("GET", "/v1/audit-entries", client=ADMIN.id)).json["audit_entries"]) > len(own)
    (entry,) = (await face.call("GET", "/v1/audit-entries?action=GROUP_CREATED", client=ADMIN.id)).json["audit_entries"]
    assert (entry["actor"], entry["action"], entry["details"]) == (
        mine,
        "GROUP_CREATED",
        {"group": TEAM, "members": "1"},
    )


async def test_filters_that_cannot_be_read(face: HttpFace) -> None:
    """A filter with an unknown value, an address that is none, or a period without time is refused by its name."""
    backwards = "start_time=2026-01-02T00:00:00Z&end_time=2026-01-02T00:00:00Z"
    created_backwards = "min_create_time=2026-01-02T00:00:00Z&max_create_time=2026-01-02T00:00:00Z"
    for path, code, field in (
        ("subscriptions?state=NO", "INVALID_REQUEST", "state"),
        ("subscriptions?address=alice", "INVALID_ADDRESS", "address"),
        (f"subscriptions?{created_backwards}", "INVALID_REQUEST", "max_create_time"),
        (f"notifications?{backwards}", "INVALID_REQUEST", "end_time"),
        ("groups?member=alice", "INVALID_ADDRESS", "member"),
        ("usage-records?operation=getStatus", "INVALID_REQUEST", "operation"),
        ("usage-records?face=rest", "INVALID_REQUEST", "face"),
        (f"usage-records:export?{backwards}", "INVALID_REQUEST", "end_time"),
        ("watches?state=active", "INVALID_REQUEST", "state"),
        ("watches?address=alice", "INVALID_ADDRESS", "address"),
        ("audit-entries?action=x", "INVALID_REQUEST", "action"),
        (f"audit-entries?{backwards}", "INVALID_REQUEST", "end_time"),
    ):
        found = problem(await face.call("GET", f"/v1/{path}", client=ADMIN.id), 400, code)
        assert field in str(found), path
    first = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE]})).json
    await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE]})
    token = (await face.call("GET", "/v1/subscriptions?page_size=1")).json["next_page_token"]
    query = f"page_token={token}&address={ALICE}&client_id={first['client_id']}"
    problem(await face.call("GET", f"/v1/subscriptions?{query}"), 400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("ours", "shown"),
    [
        (operations.UsageOperation, usage.UsageOperation),
        (operations.Face, usage.Face),
        (operations.AuditAction, audit.AuditAction),
        (outcomes.DeliveryOutcome, deliveries.DeliveryOutcome),
    ],
)
def test_values_of_enums(ours: type[enum.Enum], shown: type[enum.Enum]) -> None:
    """REST has the domain's values under the domain's names."""
    assert [each.value for each in shown] == [each.name for each in ours]


# Usage.


async def test_usage(face: HttpFace) -> None:
    """Usage records are listed, and exported as JSON Lines and CSV, where no cell is a formula."""
    await face.call("GET", f"{STATUS}?requester==cmd()")
    await face.call("GET", f"{STATUS}?requester=a,%22b")
    await face.core.usage_records()
    listed = (await face.call("GET", "/v1/usage-records")).json["usage_records"]
    assert [one["requester"] for one in listed] == ["=cmd()", 'a,"b']
    lines = await face.call("GET", "/v1/usage-records:export")
    assert lines.headers["content-type"] == "application/jsonl"
    assert [json.loads(line) for line in lines.body.splitlines()] == listed
    table = await face.call("GET", "/v1/usage-records:export?format=csv")
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(table.body.decode(), newline="")))
    assert [row["requester"] for row in rows] == ["'=cmd()", 'a,"b']
    assert list(rows[0]) == list(listed[0])
    later = "2099-01-01T00:00:00Z"
    assert (await face.call("GET", f"/v1/usage-records?start_time={later}")).json["usage_records"] == []
    assert (await face.call("GET", f"/v1/usage-records:export?start_time={later}&format=csv")).body.count(b"\n") == 1
    for bad in ("5", "yesterday", "2026-01-01T00:00:00", "0001-01-01T00:00:00%2B14:00"):
        problem(await face.call("GET", f"/v1/usage-records?start_time={bad}"), 400, "INVALID_REQUEST")


# Operators.


async def test_only_operators_administer(face: HttpFace) -> None:
    """Operations of operators are 403 for others."""
    for method, path, body in (
        ("GET", "/v1/watches", None),
        ("GET", "/v1/audit-entries", None),
        ("POST", f"/v1/watches/{ALICE}:refresh", None),
        ("GET", "/v1/clients", None),
        ("POST", "/v1/clients", {"name": "Mine"}),
        ("POST", f"/v1/clients/{OTHER.id}:rotateKey", {}),
        ("POST", f"/v1/clients/{OTHER.id}:disable", None),
        ("DELETE", f"/v1/clients/{OTHER.id}", None),
    ):
        problem(await face.call(method, path, body), 403, "NOT_PERMITTED")


async def test_clients(face: HttpFace) -> None:
    """A client is made with a key, listed, given another key, and deleted with everything that belongs to it."""
    limits = {"max_subscriptions": 1, "busy_available": False}
    body = {"name": "Call centre", "limits": limits, "soap_callback_version": "v2_3"}
    made = await face.call("POST", "/v1/clients", body, client=ADMIN.id)
    assert (made.status, made.json["client"]["limits"]) == (201, limits)
    assert made.json["client"]["soap_callback_version"] == "v2_3"
    face.keys["new"] = made.json["api_key"]
    new = made.json["client"]["id"]
    assert (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE]}, client="new")).status == 201
    problem(
        await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE]}, client="new"),
        429,
        "TOO_MANY_SUBSCRIPTIONS",
    )
    rotated = await face.call("POST", f"/v1/clients/{new}:rotateKey", {"overlap_s": 0}, client=ADMIN.id)
    problem(await face.call("GET", STATUS, client="new"), 401, "UNAUTHENTICATED")
    face.keys["new"] = rotated.json["api_key"]
    assert (await face.call("GET", STATUS, client="new")).status == 200
    listed = (await face.call("GET", "/v1/clients", client=ADMIN.id)).json["clients"]
    assert "Call centre" in [one["name"] for one in listed]
    assert face.keys["new"] not in json.dumps(listed)
    problem(await face.call("POST", "/v1/clients", body, client=ADMIN.id), 409, "CLIENT_EXISTS")
    problem(
        await face.call("POST", "/v1/clients", {"name": "x", "limits": {"x": 1}}, client=ADMIN.id),
        400,
        "INVALID_REQUEST",
    )
    wrong = await face.call("POST", "/v1/clients", {"name": "x", "soap_callback_version": "2.3"}, client=ADMIN.id)
    assert problem(wrong, 400, "INVALID_REQUEST")["details"]["field"] == "soap_callback_version"
    assert (await face.call("DELETE", f"/v1/clients/{new}", client=ADMIN.id)).json == {"ended_subscription_count": 1}
    problem(await face.call("DELETE", f"/v1/clients/{new}", client=ADMIN.id), 404, "CLIENT_UNKNOWN")


async def test_watches(face: HttpFace) -> None:
    """An operator sees the watches, and can refresh one."""
    answer = await face.call("GET", "/v1/watches", client=ADMIN.id)
    assert answer.json == {"watches": [], "next_page_token": "", "total_size": 0}
    assert (await face.call("POST", f"/v1/watches/{ALICE}:refresh", client=ADMIN.id)).status == 204
    assert f"refresh {ALICE}" in face.core.watcher.asked


async def test_a_store_that_is_away(face: HttpFace) -> None:
    """While the database is away, calls that need it are 503 and retryable."""
    assert (await face.call("GET", STATUS)).status == 200  # the credentials are remembered now
    face.core.store.away = True
    found = problem(await face.call("GET", "/v1/subscriptions"), 503, "STORE_UNAVAILABLE")
    assert found["retryable"] is True


def test_the_limits_of_a_client() -> None:
    """REST's limits of a client are those of a policy, with their types."""
    limits = {name: field.annotation for name, field in ClientLimits.model_fields.items()}
    assert limits == {field.name: type(field.default) | None for field in fields(Policy)}


def test_the_states_of_a_watch() -> None:
    """Each state of a watch in the SIP worker has its name in REST."""
    assert {state.value for state in WatchState} == {state.value.upper() for state in State}
