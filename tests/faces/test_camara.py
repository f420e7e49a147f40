"""CAMARA's APIs over real use cases: the rules for tokens, CAMARA's form of failures, events, and ends of
subscriptions. What a creation checks: `test_camara_creation.py`."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.auth.oidc import AccessTokens, Grant
from app.domain.addresses import parse_address
from app.domain.errors import (
    AddressIsList,
    DocumentUnreadable,
    PresenceMisconfigured,
    PresenceUnavailable,
    SinkRefused,
    SinkUnreachable,
    TerminalStatusError,
    TerminalUnknown,
    Unauthenticated,
    WatcherRefused,
    WatcherUnauthenticated,
)
from app.domain.operations import Face
from app.domain.policy import Policy
from app.domain.sinks import PROFILE_CAMARA, SINK_HANDSHAKE, SINK_TOKEN, EndReason, Sink, SinkKind
from app.domain.statuses import Status
from app.rest.camara import cloud_events, event_types, lifetime, sink_parameters
from app.rest.camara.errors import CODES
from tests.support.access_tokens import token
from tests.support.camara import (
    ALL,
    BY_NAME,
    BY_NUMBER,
    NUMBER,
    READ,
    RETRIEVE,
    SINK,
    SUBSCRIPTIONS,
    TEL,
    TOKEN,
    TOKEN_CREDENTIAL,
    Tokens,
    asked,
    core,
    events,
    face,
    failure,
    kinds,
    tokens,
)
from tests.support.core import (
    ALICE,
    APP,
    BEGAN,
    BUSY,
    OTHER,
    REACHABLE,
    TEAM,
    UNREACHABLE,
    Core,
    new_database,
    run_core,
)
from tests.support.domain_errors import all_errors
from tests.support.http_face import Answer, HttpFace, http_face

__all__ = ["core", "face", "tokens"]  # fixtures

# One device.


@pytest.mark.parametrize(("status", "reachable"), [(REACHABLE, True), (BUSY, True), (UNREACHABLE, False)])
async def test_retrieve(face: HttpFace, core: Core, status: Status, reachable: bool) -> None:
    """REACHABLE and BUSY are reachable with DATA; the answer names the device as the request did."""
    core.watcher.answer = lambda _: status
    answer = await face.call("POST", RETRIEVE, BY_NUMBER)
    assert answer.json == {
        **BY_NUMBER,
        "lastStatusTime": "2026-03-04T05:06:07Z",
        "reachable": reachable,
        **({"connectivity": ["DATA"]} if reachable else {}),
    }
    assert core.watcher.fetched == [TEL]
    assert (await core.usage_records())[0].face is Face.CAMARA


async def test_identifiers(face: HttpFace, core: Core, tmp_path: Path) -> None:
    """A phone number is a tel: URI, or the URI that the operator configures; a network access identifier is a SIP URI.
    Of several identifiers the first supported one is used, and it alone is in the answer."""
    assert (await face.call("POST", RETRIEVE, BY_NAME)).json["device"] == BY_NAME["device"]
    both = {"device": {"ipv6Address": "2001:db8::1", **BY_NAME["device"], **BY_NUMBER["device"]}}
    assert (await face.call("POST", RETRIEVE, both)).json["device"] == BY_NUMBER["device"]
    async with http_face(core, number_pattern="sip:{number}@ims.example.net;user=phone") as other:
        assert (await other.call("POST", RETRIEVE, BY_NUMBER)).status == 200
    assert core.watcher.fetched == [ALICE, TEL, parse_address(f"sip:{NUMBER}@ims.example.net;user=phone")]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "MISSING_IDENTIFIER"),
        ({"device": {}}, 400, "INVALID_ARGUMENT"),
        ({"device": None}, 400, "INVALID_ARGUMENT"),
        ({"device": {"phoneNumber": None}}, 400, "INVALID_ARGUMENT"),
        ({"device": {"phoneNumber": "123"}}, 400, "INVALID_ARGUMENT"),
        ({"device": {"phoneNumber": 15551234567}}, 400, "INVALID_ARGUMENT"),
        *[
            ({"device": {"networkAccessIdentifier": name}}, 400, "INVALID_ARGUMENT")
            for name in (
                "a b",
                "bob",
                "@example.com",
                "bob@example.com;maddr=127.0.0.9",
                "b@example.com?x=y",
                "b@c:5060",
            )
        ],
        ({"device": {"ipv4Address": {"publicAddress": "84.125.93.10"}}}, 400, "INVALID_ARGUMENT"),
        (
            {"device": {"ipv4Address": {"publicAddress": "84.125.93.10", "publicPort": 1}}},
            422,
            "UNSUPPORTED_IDENTIFIER",
        ),
        ({"device": {"ipv6Address": "2001:db8::1"}}, 422, "UNSUPPORTED_IDENTIFIER"),
        ({"device": {"colour": "blue"}}, 422, "UNSUPPORTED_IDENTIFIER"),
        ([], 400, "INVALID_ARGUMENT"),
    ],
    ids=str,
)
async def test_refused_queries(face: HttpFace, core: Core, body: Any, status: int, code: str) -> None:
    """A request without a device, or with an unsupported one, is refused with CAMARA's code, and the presence server is
    not asked."""
    failure(await face.call("POST", RETRIEVE, body), status, code)
    assert core.watcher.fetched == []


async def test_what_is_refused_at_once_is_recorded(face: HttpFace, core: Core) -> None:
    """A query, a start and an end that are refused before they reach a use case leave a usage record."""
    await face.call("POST", RETRIEVE, {"device": {"ipv6Address": "2001:db8::1"}})
    await face.call("POST", SUBSCRIPTIONS, asked(device=None))
    await face.call("DELETE", f"{SUBSCRIPTIONS}/none")
    assert [(one.operation.value, one.result) for one in await core.usage_records()] == [
        ("getStatus", "UNSUPPORTED_IDENTIFIER"),
        ("startNotification", "MISSING_IDENTIFIER"),
        ("endNotification", "SUBSCRIPTION_UNKNOWN"),
    ]


def test_the_error_table_is_total() -> None:
    """The table has CAMARA's code for every domain error, and nothing else."""
    assert set(CODES) == set(all_errors())


@pytest.mark.parametrize(
    "error",
    [
        TerminalUnknown,
        AddressIsList,
        WatcherRefused,
        WatcherUnauthenticated,
        PresenceUnavailable,
        PresenceMisconfigured,
        DocumentUnreadable,
    ],
)
async def test_failed_questions(face: HttpFace, core: Core, error: type[TerminalStatusError]) -> None:
    """A refusal by the presence server has CAMARA's code, and Retry-After where known."""
    core.watcher.answer = lambda _: error("No.", retry_after_s=1.5)
    answer = await face.call("POST", RETRIEVE, BY_NUMBER)
    assert failure(answer, *CODES[error]) == "No."
    assert answer.headers["retry-after"] == "2"


async def test_every_failure_has_camaras_form(face: HttpFace) -> None:
    """Failures of the framework, of the credentials and of the gateway itself have CAMARA's form too."""
    failure(await face.call("POST", RETRIEVE, client=""), 401, "UNAUTHENTICATED")
    assert (await face.call("POST", RETRIEVE, client="")).headers["www-authenticate"].startswith("Bearer realm=")
    failure(await face.call("GET", RETRIEVE), 405, "METHOD_NOT_ALLOWED")
    assert (await face.call("PUT", SUBSCRIPTIONS)).headers["allow"] == "GET, HEAD, POST"
    failure(await face.call("GET", "/device-reachability-status/v1/nowhere"), 404, "NOT_FOUND")
    failure(await face.call("POST", RETRIEVE, raw=b"{"), 400, "INVALID_ARGUMENT")
    failure(await face.call("POST", RETRIEVE, raw=b"[" * 100_000), 400, "INVALID_ARGUMENT")
    failure(await face.call("POST", RETRIEVE, raw=b" " * 2_000_000), 413, "PAYLOAD_TOO_LARGE")
    text = {"content-type": "text/plain"}
    failure(await face.call("POST", RETRIEVE, BY_NUMBER, headers=text), 415, "UNSUPPORTED_MEDIA_TYPE")
    failure(await face.call("POST", RETRIEVE, BY_NUMBER, headers={"x-correlator": "a b"}), 400, "INVALID_ARGUMENT")
    answer = await face.call("POST", RETRIEVE, {}, headers={"x-correlator": "b4333c46-49c0"})
    assert answer.headers["x-correlator"] == "b4333c46-49c0"
    other_version = await face.call("POST", "/device-reachability-status/v2/retrieve", BY_NUMBER)
    assert (other_version.status, other_version.headers["content-type"]) == (404, "application/problem+json")


async def test_the_rate_of_calls(tmp_path: Path) -> None:
    """Calls above the policy's rate are TOO_MANY_REQUESTS."""
    policy = Policy(rate_per_s=1, rate_burst=1)
    async with run_core(await new_database(tmp_path), policy=policy) as core, http_face(core) as face:
        await face.call("POST", RETRIEVE, BY_NUMBER)
        failure(await face.call("POST", RETRIEVE, BY_NUMBER), 429, "TOO_MANY_REQUESTS")


# Access tokens.


async def test_a_two_legged_token_names_no_device(face: HttpFace, tokens: Tokens) -> None:
    """With an access token without a device, as with an API key, the request must name the device."""
    assert (await face.call("POST", RETRIEVE, BY_NUMBER, headers=TOKEN)).json["device"] == BY_NUMBER["device"]
    failure(await face.call("POST", RETRIEVE, {}, headers=TOKEN), 422, "MISSING_IDENTIFIER")


@pytest.mark.parametrize(
    ("device", "address"),
    [(NUMBER, TEL), ("alice@example.com", ALICE), ("sip:alice@example.com", ALICE), (f"tel:{NUMBER}", TEL)],
)
async def test_a_three_legged_token_names_the_device(
    face: HttpFace, core: Core, tokens: Tokens, device: str, address: str
) -> None:
    """With an access token that names the device, the request must not name one; nor does the answer."""
    tokens.granted = Grant(scopes=ALL, device=device)
    answer = await face.call("POST", RETRIEVE, {}, headers=TOKEN)
    assert (answer.status, "device" in answer.json, core.watcher.fetched) == (200, False, [address])
    failure(await face.call("POST", RETRIEVE, BY_NUMBER, headers=TOKEN), 422, "UNNECESSARY_IDENTIFIER")


LACKS = 'Bearer realm="terminal-status", error="insufficient_scope", scope="{}"'


async def test_head_location_and_refusals_of_http(face: HttpFace) -> None:
    """RFC 9110: HEAD is answered as GET (section 9.3.2), a 201 names what it made (15.3.2), a compressed body is 415
    (15.5.16), and two Authorization lines are 400 (5.3)."""
    made = await face.call("POST", SUBSCRIPTIONS, asked())
    for path in (made.headers["location"], SUBSCRIPTIONS):
        got, head = await face.call("GET", path), await face.call("HEAD", path)
        assert (got.status, head.status, head.body) == (200, 200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
    assert (await face.call("GET", made.headers["location"])).json["id"] == made.json["id"]
    packed = await face.call("POST", RETRIEVE, BY_NUMBER, headers={"content-encoding": "gzip"})
    failure(packed, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert packed.headers["accept-encoding"] == "identity"
    lines = [("authorization", f"Bearer {face.keys[APP.id]}")] * 2
    response = await face.http.get(face.url + SUBSCRIPTIONS, headers=lines)
    failure(Answer(response.status_code, response.headers, response.content), 400, "INVALID_ARGUMENT")


async def test_scopes(face: HttpFace, tokens: Tokens) -> None:
    """An access token needs the operation's scope or the whole API's; to subscribe, the scope of the event type.
    The challenge names the scope that is lacking (RFC 6750 section 3)."""
    created = f"device-reachability-status-subscriptions:{event_types.REACHABILITY_DATA}:create"
    for scopes, status in (({READ}, 200), ({"device-reachability-status"}, 200), ({"openid"}, 403), (set(), 403)):
        tokens.granted = Grant(scopes=frozenset(scopes), device="")
        assert (await face.call("POST", RETRIEVE, BY_NUMBER, headers=TOKEN)).status == status
    refused = await face.call("POST", RETRIEVE, BY_NUMBER, headers=TOKEN)
    failure(refused, 403, "PERMISSION_DENIED")
    assert refused.headers["www-authenticate"] == LACKS.format(READ)
    tokens.granted = Grant(scopes=frozenset({created}), device="")
    made = await face.call("POST", SUBSCRIPTIONS, asked(), headers=TOKEN)
    assert made.status == 201
    other = asked(event_types.REACHABILITY_DISCONNECTED)
    refused = await face.call("POST", SUBSCRIPTIONS, other, headers=TOKEN)
    failure(refused, 403, "SUBSCRIPTION_MISMATCH")
    lacking = f"device-reachability-status-subscriptions:{event_types.REACHABILITY_DISCONNECTED}:create"
    assert refused.headers["www-authenticate"] == LACKS.format(lacking)
    tokens.granted = Grant(scopes=frozenset({"device-reachability-status-subscriptions:read"}), device="")
    failure(await face.call("POST", SUBSCRIPTIONS, asked(), headers=TOKEN), 403, "PERMISSION_DENIED")
    tokens.granted = Grant(scopes=frozenset({created}), device="")
    path = f"{SUBSCRIPTIONS}/{made.json['id']}"
    for method, where in (("GET", SUBSCRIPTIONS), ("GET", path), ("DELETE", path)):
        failure(await face.call(method, where, headers=TOKEN), 403, "PERMISSION_DENIED")


async def test_a_three_legged_token_sees_its_device_only(face: HttpFace, tokens: Tokens) -> None:
    """With an access token that names a device, only that device's subscriptions exist."""
    others = (await face.call("POST", SUBSCRIPTIONS, asked())).json["id"]
    tokens.granted = Grant(scopes=ALL, device=NUMBER)
    made = (await face.call("POST", SUBSCRIPTIONS, asked(device=None), headers=TOKEN)).json
    assert made["config"]["subscriptionDetail"] == {}
    assert [one["id"] for one in (await face.call("GET", SUBSCRIPTIONS, headers=TOKEN)).json] == [made["id"]]
    for method in ("GET", "DELETE"):
        failure(await face.call(method, f"{SUBSCRIPTIONS}/{others}", headers=TOKEN), 404, "NOT_FOUND")
    assert (await face.call("DELETE", f"{SUBSCRIPTIONS}/{made['id']}", headers=TOKEN)).status == 204


async def test_a_three_legged_token_is_shown_no_identifier(face: HttpFace, tokens: Tokens) -> None:
    """Of a subscription that a two-legged token made for its device, a three-legged token sees everything but the
    device's identifier; the two-legged token still sees that."""
    made = (await face.call("POST", SUBSCRIPTIONS, asked(device=BY_NUMBER), headers=TOKEN)).json
    path = f"{SUBSCRIPTIONS}/{made['id']}"
    assert made["config"]["subscriptionDetail"] == BY_NUMBER
    tokens.granted = Grant(scopes=ALL, device=NUMBER)
    for answer in (await face.call("GET", path, headers=TOKEN), await face.call("GET", SUBSCRIPTIONS, headers=TOKEN)):
        seen = answer.json[0] if isinstance(answer.json, list) else answer.json
        assert seen == {**made, "config": {**made["config"], "subscriptionDetail": {}}}
        assert NUMBER not in answer.body.decode()
    tokens.granted = Grant(scopes=ALL, device="")
    assert (await face.call("GET", path, headers=TOKEN)).json == made
    assert (await face.call("GET", SUBSCRIPTIONS, headers=TOKEN)).json == [made]


async def test_failures_quote_no_device_of_a_token(face: HttpFace, core: Core, tokens: Tokens) -> None:
    """Where an access token's device is a group or not an address, the refusal does not name the device."""
    await core.groups.create(APP, TEAM, [ALICE])
    for device, status, code in ((TEAM, 422, "SERVICE_NOT_APPLICABLE"), ("tel:no-number", 400, "INVALID_ARGUMENT")):
        tokens.granted = Grant(scopes=ALL, device=device)
        for answer in (
            await face.call("POST", RETRIEVE, {}, headers=TOKEN),
            await face.call("POST", SUBSCRIPTIONS, asked(device=None), headers=TOKEN),
        ):
            assert device.partition(":")[2] not in failure(answer, status, code)


async def test_a_three_legged_token_is_good_nowhere_else(face: HttpFace, core: Core, tokens: Tokens) -> None:
    """An access token that names a device cannot query or subscribe by REST API v1."""
    tokens.granted = Grant(scopes=ALL, device=NUMBER)
    assert (await face.call("POST", RETRIEVE, {}, headers=TOKEN)).status == 200
    for method, path, body in (
        ("GET", f"/v1/terminals/{ALICE}/status", None),
        ("GET", f"/v1/terminals:watch?address={ALICE}", None),
        ("GET", "/v1/subscriptions", None),
        ("POST", "/v1/subscriptions", {"addresses": [ALICE]}),
        ("POST", "/v1/subscriptions:cancel", {"correlator": "c"}),
    ):
        answer = await face.call(method, path, body, headers=TOKEN)
        assert (answer.status, answer.json["code"]) == (403, "NOT_PERMITTED"), path
    assert core.watcher.fetched == [TEL]


@pytest.mark.parametrize(
    ("claims", "granted"),
    [
        ({"phone_number": NUMBER}, Grant(scopes=frozenset({"presence", "read"}), device=NUMBER)),
        ({"scope": None, "scp": ["a", 1]}, Grant(scopes=frozenset({"a"}), device="")),
    ],
)
def test_what_a_token_grants(claims: dict[str, Any], granted: Grant) -> None:
    """An access token grants its scopes, and names a device in the configured claim, as text."""
    reader: dict[str, Any] = {"issuer": "", "audience": "", "scope": "", "client_claim": "", "fetch_keys": None}
    reader |= {"clock": lambda: BEGAN, "monotonic": lambda: 0.0}
    assert AccessTokens(**reader, device_claim="phone_number").grant(token(**claims)) == granted
    assert AccessTokens(**reader).grant(token(**claims)).device == ""
    with pytest.raises(Unauthenticated):
        AccessTokens(**reader).grant("x")
    with pytest.raises(Unauthenticated):
        AccessTokens(**reader, device_claim="phone_number").grant(token(phone_number=5))


# Subscriptions.


async def test_subscription(face: HttpFace, core: Core) -> None:
    """A subscription is made, shown, listed and deleted as CAMARA specifies; its credential is never returned."""
    credential = {
        "credentialType": "ACCESSTOKEN",
        "accessToken": "the-token",
        "accessTokenExpiresUtc": "2026-04-04T07:06:07+02:00",
        "accessTokenType": "bearer",
    }
    body = asked(
        device=BY_NUMBER,
        sinkCredential=credential,
        subscriptionExpireTime="2026-03-05T07:06:07.5+02:00",
        subscriptionMaxEvents=5,
        initialEvent=True,
    )
    answer = await face.call("POST", SUBSCRIPTIONS, body)
    made = answer.json
    assert answer.status == 201
    assert made == {
        "id": made["id"],
        "protocol": "HTTP",
        "sink": SINK,
        "types": [event_types.REACHABILITY_DATA],
        "config": {
            "subscriptionDetail": BY_NUMBER,
            "subscriptionExpireTime": "2026-03-05T05:06:07.500000Z",
            "subscriptionMaxEvents": 5,
            "initialEvent": True,
        },
        "startsAt": "2026-03-04T05:06:07Z",
        "expiresAt": "2026-03-05T05:06:07.500000Z",
        "status": "ACTIVE",
    }
    (checked,) = core.sender.checked
    assert (checked.sink.parameters[SINK_TOKEN], checked.sink.parameters[SINK_HANDSHAKE]) == ("the-token", "none")
    path = f"{SUBSCRIPTIONS}/{made['id']}"
    assert (await face.call("GET", path)).json == made
    assert (await face.call("GET", SUBSCRIPTIONS)).json == [made]
    assert (await face.call("GET", SUBSCRIPTIONS, client=OTHER.id)).json == []
    failure(await face.call("GET", path, client=OTHER.id), 404, "NOT_FOUND")
    failure(await face.call("DELETE", path, client=OTHER.id), 404, "NOT_FOUND")
    assert "the-token" not in (await face.call("GET", f"/v1/subscriptions/{made['id']}")).body.decode()
    assert (await face.call("DELETE", path)).status == 204
    failure(await face.call("GET", path), 404, "NOT_FOUND")
    failure(await face.call("DELETE", path), 404, "NOT_FOUND")
    assert (await face.call("GET", SUBSCRIPTIONS)).json == []


async def test_other_apis_subscriptions_are_not_camaras(face: HttpFace) -> None:
    """A subscription of REST API v1 does not exist on CAMARA's paths."""
    made = (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE]})).json["id"]
    assert (await face.call("GET", SUBSCRIPTIONS)).json == []
    failure(await face.call("GET", f"{SUBSCRIPTIONS}/{made}"), 404, "NOT_FOUND")


async def test_a_long_list_is_whole(face: HttpFace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that is read in several portions is one JSON array with every subscription once."""
    monkeypatch.setattr("app.rest.camara.subscriptions.PAGE", 2)
    made = set()
    for _ in range(3):
        made.add((await face.call("POST", SUBSCRIPTIONS, asked())).json["id"])
        await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE]})
    listed = (await face.call("GET", SUBSCRIPTIONS)).json
    assert (len(listed), {one["id"] for one in listed}) == (3, made)


async def test_a_long_list_is_one_call(tmp_path: Path, tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list in several portions counts as one call of the client's rate, and is complete."""
    monkeypatch.setattr("app.rest.camara.subscriptions.PAGE", 1)
    policy = Policy(rate_per_s=1, rate_burst=1)
    async with run_core(await new_database(tmp_path), policy=policy) as core, http_face(core) as face:
        made = []
        for _ in range(3):
            made.append((await face.call("POST", SUBSCRIPTIONS, asked())).json["id"])
            core.clocks.advance(1)
        assert {one["id"] for one in (await face.call("GET", SUBSCRIPTIONS)).json} == set(made)
        failure(await face.call("GET", SUBSCRIPTIONS), 429, "TOO_MANY_REQUESTS")


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {sink_parameters.TYPE: "x"},
        {sink_parameters.TYPE: event_types.REACHABILITY_DATA, sink_parameters.DEVICE: "{"},
        {sink_parameters.TYPE: event_types.REACHABILITY_DATA, sink_parameters.DEVICE: "[" * 8000},
        {sink_parameters.TYPE: event_types.REACHABILITY_DATA, sink_parameters.DEVICE: '["a"]'},
        {sink_parameters.TYPE: event_types.REACHABILITY_DATA, sink_parameters.DEVICE: '{"phoneNumber": 5}'},
        {sink_parameters.TYPE: event_types.REACHABILITY_DATA, sink_parameters.DEVICE: '{"phoneNumber": "\\ud800"}'},
        {sink_parameters.TYPE: event_types.REACHABILITY_DATA, sink_parameters.EXPIRE_TIME: "soon"},
    ],
)
async def test_a_subscription_that_lacks_what_camara_needs_is_not_there(
    face: HttpFace, core: Core, parameters: dict[str, str]
) -> None:
    """A subscription that another API made with CAMARA's profile is not listed here, and hides no other."""
    sink = Sink(kind=SinkKind.WEBHOOK, url=SINK, profile=PROFILE_CAMARA, parameters=parameters)
    broken = await core.subscribe(ALICE, sink=sink)
    made = (await face.call("POST", SUBSCRIPTIONS, asked())).json
    assert (await face.call("GET", SUBSCRIPTIONS)).json == [made]
    for method in ("GET", "DELETE"):
        failure(await face.call(method, f"{SUBSCRIPTIONS}/{broken.id}"), 404, "NOT_FOUND")


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59Z", "2027-03-05T05:06:08Z"])
async def test_an_end_that_is_too_far_ahead(face: HttpFace, time: str) -> None:
    """An end too far in the future is out of range, and the message names the member; the last
    possible end is accepted."""
    answer = await face.call("POST", SUBSCRIPTIONS, asked(subscriptionExpireTime=time))
    assert "subscriptionExpireTime" in failure(answer, 400, "OUT_OF_RANGE")
    farthest = asked(subscriptionExpireTime="2027-03-05T05:06:07Z")
    assert (await face.call("POST", SUBSCRIPTIONS, farthest)).status == 201


async def test_a_token_may_outlive_every_duration(tmp_path: Path) -> None:
    """Where the policy sets no maximum duration, a subscription ends with its token, however late."""
    policy = Policy(default_duration_ms=0, max_duration_ms=0)
    async with run_core(await new_database(tmp_path), policy=policy) as core, http_face(core) as face:
        credential = {**TOKEN_CREDENTIAL, "accessTokenExpiresUtc": "2036-04-04T05:06:07Z"}
        answer = await face.call("POST", SUBSCRIPTIONS, asked(sinkCredential=credential))
        assert (answer.status, answer.json.get("expiresAt")) == (201, "2036-04-04T05:06:02Z"), answer.body


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"protocol": "MQTT3"}, 400, "INVALID_PROTOCOL"),
        ({"protocol": "http"}, 400, "INVALID_PROTOCOL"),
        ({"sink": "http://example.com"}, 400, "INVALID_SINK"),
        ({"sink": "https://example.com/" + "a" * 2000}, 400, "INVALID_SINK"),
        ({"sink": 5}, 400, "INVALID_SINK"),
        ({"types": []}, 400, "INVALID_ARGUMENT"),
        ({"types": ["x"]}, 400, "INVALID_ARGUMENT"),
        ({"types": [event_types.REACHABILITY_DATA] * 2}, 422, "MULTIEVENT_SUBSCRIPTION_NOT_SUPPORTED"),
        ({"types": [event_types.REACHABILITY_SMS]}, 422, "SERVICE_NOT_APPLICABLE"),
        ({"config": {}}, 400, "INVALID_ARGUMENT"),
        ({"config": {"subscriptionDetail": {}}}, 422, "MISSING_IDENTIFIER"),
        ({"config": {"subscriptionDetail": {"device": {"ipv6Address": "::1"}}}}, 422, "UNSUPPORTED_IDENTIFIER"),
        ({"subscriptionMaxEvents": 0}, 400, "OUT_OF_RANGE"),
        ({"subscriptionMaxEvents": True}, 400, "INVALID_ARGUMENT"),
        ({"subscriptionMaxEvents": "5"}, 400, "INVALID_ARGUMENT"),
        ({"subscriptionMaxEvents": 1 << 31}, 400, "OUT_OF_RANGE"),
        ({"subscriptionExpireTime": "2026-03-04T05:06:07Z"}, 400, "INVALID_ARGUMENT"),
        ({"subscriptionExpireTime": "2026-03-05"}, 400, "INVALID_ARGUMENT"),
        ({"subscriptionExpireTime": None}, 400, "INVALID_ARGUMENT"),
        ({"initialEvent": "yes"}, 400, "INVALID_ARGUMENT"),
        ({"sinkCredential": {"credentialType": "PLAIN", "identifier": "a", "secret": "b"}}, 400, "INVALID_CREDENTIAL"),
        ({"sinkCredential": {"credentialType": "PLAIN"}}, 400, "INVALID_CREDENTIAL"),
        ({"sinkCredential": {"credentialType": "REFRESHTOKEN", "accessToken": 5}}, 400, "INVALID_CREDENTIAL"),
        ({"sinkCredential": {"credentialType": "SECRET"}}, 400, "INVALID_CREDENTIAL"),
        ({"sinkCredential": {**TOKEN_CREDENTIAL, "accessToken": ""}}, 400, "INVALID_TOKEN"),
        ({"sinkCredential": {**TOKEN_CREDENTIAL, "accessTokenType": "mac"}}, 400, "INVALID_TOKEN"),
        ({"sinkCredential": {"credentialType": "ACCESSTOKEN"}}, 400, "INVALID_ARGUMENT"),
    ],
    ids=str,
)
async def test_what_cannot_be_subscribed(
    face: HttpFace, core: Core, change: dict[str, Any], status: int, code: str
) -> None:
    """Each wrong request has CAMARA's code for it, and nothing is made."""
    failure(await face.call("POST", SUBSCRIPTIONS, asked(**change)), status, code)
    assert core.sender.checked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SinkRefused("No.", reason="forbidden-address"), "INVALID_SINK"),
        (SinkUnreachable("No.", reason="dns"), "INVALID_SINK"),
        (SinkRefused("No.", reason="token-expired"), "INVALID_TOKEN"),
    ],
    ids=lambda value: str(value),
)
async def test_refused_sinks(face: HttpFace, core: Core, error: TerminalStatusError, code: str) -> None:
    """A sink that is not allowed or cannot be used is INVALID_SINK; an expired token is INVALID_TOKEN."""
    core.sender.error = error
    failure(await face.call("POST", SUBSCRIPTIONS, asked()), 400, code)


async def test_a_group_is_no_device(face: HttpFace) -> None:
    """The address of a group is not a device."""
    await face.call("POST", "/v1/groups", {"address": TEAM, "members": [ALICE]})
    name = {"device": {"networkAccessIdentifier": TEAM.removeprefix("sip:")}}
    failure(await face.call("POST", SUBSCRIPTIONS, asked(device=name)), 422, "SERVICE_NOT_APPLICABLE")
    failure(await face.call("POST", RETRIEVE, name), 422, "SERVICE_NOT_APPLICABLE")


async def test_too_many_subscriptions(tmp_path: Path) -> None:
    """A client at its limit of subscriptions gets QUOTA_EXCEEDED."""
    policy = Policy(max_subscriptions=1, busy_available=False)
    async with run_core(await new_database(tmp_path), policy=policy) as core, http_face(core) as face:
        assert (await face.call("POST", SUBSCRIPTIONS, asked())).status == 201
        failure(await face.call("POST", SUBSCRIPTIONS, asked()), 429, "QUOTA_EXCEEDED")


# Events.


async def test_events_are_changes_of_reachability(face: HttpFace, core: Core) -> None:
    """Only becoming reachable (REACHABLE or BUSY) is an event; a change between these two is not, and does not
    count."""
    made = (await face.call("POST", SUBSCRIPTIONS, asked(subscriptionMaxEvents=2))).json["id"]
    for status in (REACHABLE, BUSY, REACHABLE, UNREACHABLE, BUSY, REACHABLE, UNREACHABLE):
        core.clocks.advance(1)
        await core.play(ALICE, status)
    assert await kinds(core, made) == ["subscription-started", "reachability-data"]
    core.clocks.advance(1)
    await core.play(ALICE, REACHABLE)
    assert await kinds(core, made) == ["subscription-started", *["reachability-data"] * 2, "subscription-ended"]
    started, reachable, _, ended = await events(core, made)
    assert started["data"] == {
        "subscriptionId": made,
        "device": BY_NAME["device"],
        "initiationReason": "SUBSCRIPTION_CREATED",
    }
    assert reachable == {
        "id": reachable["id"],
        "source": f"https://gateway{SUBSCRIPTIONS}/{made}",
        "specversion": "1.0",
        "type": event_types.REACHABILITY_DATA,
        "datacontenttype": "application/json",
        "time": BEGAN + timedelta(seconds=5),
        "data": {"subscriptionId": made, "device": BY_NAME["device"]},
    }
    assert ended["data"]["terminationReason"] == "MAX_EVENTS_REACHED"
    assert (await face.call("GET", f"{SUBSCRIPTIONS}/{made}")).json["status"] == "DELETED"


async def test_events_of_disconnection(face: HttpFace, core: Core) -> None:
    """Only becoming unreachable is an event."""
    made = (await face.call("POST", SUBSCRIPTIONS, asked(event_types.REACHABILITY_DISCONNECTED))).json["id"]
    for status in (REACHABLE, BUSY, UNREACHABLE, BUSY, UNREACHABLE):
        await core.play(ALICE, status)
    assert await kinds(core, made) == ["subscription-started", *["reachability-disconnected"] * 2]


@pytest.mark.parametrize(
    ("kind", "status", "sent"),
    [
        (event_types.REACHABILITY_DATA, REACHABLE, True),
        (event_types.REACHABILITY_DATA, BUSY, True),
        (event_types.REACHABILITY_DATA, UNREACHABLE, False),
        (event_types.REACHABILITY_DISCONNECTED, UNREACHABLE, True),
        (event_types.REACHABILITY_DISCONNECTED, BUSY, False),
    ],
)
@pytest.mark.parametrize("known", [True, False])
async def test_initial_event(face: HttpFace, core: Core, kind: str, status: Status, sent: bool, known: bool) -> None:
    """With `initialEvent` an event is sent at once where the device already has the status of the event type, and it
    counts."""
    if known:
        await core.subscribe(ALICE)
        await core.play(ALICE, status)
    body = asked(kind, initialEvent=True, subscriptionMaxEvents=1)
    made = (await face.call("POST", SUBSCRIPTIONS, body)).json["id"]
    if not known:
        await core.play(ALICE, status)
    expected = ["subscription-started"]
    if sent:
        expected += [kind.removeprefix(event_types.EVENT_PREFIX), "subscription-ended"]
    assert await kinds(core, made) == expected


async def test_busy_is_not_reported_after_a_restart(tmp_path: Path) -> None:
    """After a restart a subscription still reports BUSY as reachable."""
    url = await new_database(tmp_path)
    async with run_core(url) as core, http_face(core) as face:
        made = (await face.call("POST", SUBSCRIPTIONS, asked())).json["id"]
        await core.play(ALICE, UNREACHABLE)
        await core.play(ALICE, BUSY)
    async with run_core(url) as core:
        await core.play(ALICE, REACHABLE)
        await core.play(ALICE, BUSY)
        assert await kinds(core, made) == ["subscription-started", "reachability-data"]


async def test_the_end_by_time(face: HttpFace, core: Core) -> None:
    """At `subscriptionExpireTime` a subscription ends with SUBSCRIPTION_EXPIRED, and is shown as EXPIRED."""
    body = asked(subscriptionExpireTime="2026-03-04T05:07:07Z")
    made = (await face.call("POST", SUBSCRIPTIONS, body)).json["id"]
    await core.advance(61)
    assert (await events(core, made))[-1]["data"]["terminationReason"] == "SUBSCRIPTION_EXPIRED"
    assert (await face.call("GET", f"{SUBSCRIPTIONS}/{made}")).json["status"] == "EXPIRED"


async def test_the_end_of_the_access_token(face: HttpFace, core: Core) -> None:
    """A subscription ends a little before its sink's access token, so that the last event can still use the token."""
    credential = {**TOKEN_CREDENTIAL, "accessTokenExpiresUtc": "2026-03-04T05:07:07Z"}
    made = (await face.call("POST", SUBSCRIPTIONS, asked(sinkCredential=credential))).json
    assert made["expiresAt"] == "2026-03-04T05:07:02Z"
    await core.advance(56)
    (*_, ended) = await events(core, made["id"])
    assert ended["data"]["terminationReason"] == "ACCESS_TOKEN_EXPIRED"


async def test_the_end_by_deletion(face: HttpFace, core: Core) -> None:
    """Deleting a subscription sends an event with SUBSCRIPTION_DELETED."""
    made = (await face.call("POST", SUBSCRIPTIONS, asked())).json["id"]
    await face.call("DELETE", f"{SUBSCRIPTIONS}/{made}")
    assert (await events(core, made))[-1]["data"]["terminationReason"] == "SUBSCRIPTION_DELETED"


async def test_the_end_of_a_device(face: HttpFace, core: Core) -> None:
    """A device that the network does not know ends its subscription with NETWORK_TERMINATED, without an error event
    before."""
    made = (await face.call("POST", SUBSCRIPTIONS, asked())).json["id"]
    core.watcher.fail(ALICE, TerminalUnknown("No such terminal."))
    await core.settled()
    assert await kinds(core, made) == ["subscription-started", "subscription-ended"]
    assert (await events(core, made))[-1]["data"]["terminationReason"] == "NETWORK_TERMINATED"


def test_every_end_has_a_termination_reason() -> None:
    """Each reason for the end of a subscription has a termination reason of CAMARA."""
    assert set(cloud_events.TERMINATION_REASONS) == set(EndReason)


def test_durations() -> None:
    """A subscription lasts as requested, else as the policy says, and ends before its access token expires."""
    hour = timedelta(hours=1)
    assert lifetime.duration(BEGAN, None, None, None) == (None, False)
    assert lifetime.duration(BEGAN, None, None, 5000) == (5000, False)
    assert lifetime.duration(BEGAN, BEGAN + hour, None, 5000) == (3_600_000, False)
    assert lifetime.duration(BEGAN, BEGAN + hour, BEGAN + 2 * hour, 5000) == (3_600_000, False)
    assert lifetime.duration(BEGAN, None, BEGAN + hour, None) == (3_595_000, True)
    assert lifetime.duration(BEGAN, BEGAN + 2 * hour, BEGAN + hour, None) == (3_595_000, True)
    assert lifetime.duration(BEGAN, None, BEGAN - hour, None) == (1, True)
