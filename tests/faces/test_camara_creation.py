"""What the creation of a CAMARA subscription checks: the device, its end, and the type of the sink's credential. Also
the length of messages, and what the documents say of scopes."""

import json
from dataclasses import replace
from typing import Any

import pytest

from app.auth.oidc import Grant
from app.domain.errors import (
    DocumentUnreadable,
    PresenceMisconfigured,
    PresenceUnavailable,
    SinkUnreachable,
    TerminalStatusError,
    TerminalUnknown,
    WatcherRefused,
    WatcherUnauthenticated,
)
from app.domain.statuses import Status
from app.rest.application import export_openapi
from app.rest.camara import event_types
from app.rest.camara.applications import STATUS
from app.rest.camara.applications import SUBSCRIPTIONS as SUBSCRIPTIONS_DOCUMENT
from app.rest.camara.cloud_events import event
from app.rest.camara.errors import MAX_MESSAGE
from tests.support.camara import (
    ALL,
    NUMBER,
    READ,
    SUBSCRIPTIONS,
    TEL,
    TOKEN,
    Tokens,
    asked,
    core,
    face,
    failure,
    tokens,
)
from tests.support.core import ALICE, REACHABLE, Core
from tests.support.http_face import HttpFace, http_face

__all__ = ["core", "face", "tokens"]  # fixtures

UNKNOWN = TerminalUnknown("The presence server does not know the terminal.")
REFUSED = WatcherRefused("The presence server refuses the subscription.")


@pytest.mark.parametrize(
    ("error", "status", "code"), [(UNKNOWN, 404, "IDENTIFIER_NOT_FOUND"), (REFUSED, 422, "SERVICE_NOT_APPLICABLE")]
)
async def test_a_device_that_cannot_be_watched(
    face: HttpFace, core: Core, error: TerminalStatusError, status: int, code: str
) -> None:
    """A device that the presence server does not know, or refuses to report, gets no subscription (CAMARA r1.2, test
    definition of createDeviceReachabilityStatusSubscription, C01.03 and C01.07). The refusal has a usage record."""
    core.watcher.answer = lambda _: error
    failure(await face.call("POST", SUBSCRIPTIONS, asked()), status, code)
    assert core.watcher.fetched == [ALICE]
    assert (await face.call("GET", SUBSCRIPTIONS)).json == []
    assert [(one.operation.value, one.result) for one in await core.usage_records()] == [
        ("startNotification", error.code)
    ]


async def test_the_device_of_a_token_that_cannot_be_watched(face: HttpFace, core: Core, tokens: Tokens) -> None:
    """The device of a three-legged token is checked in the same way; the answer does not name the device (CAMARA
    Commonalities 0.6, Event Subscription and Notification Guide, section 2.2.2)."""
    tokens.granted = Grant(scopes=ALL, device=NUMBER)
    core.watcher.answer = lambda _: UNKNOWN
    refused = await face.call("POST", SUBSCRIPTIONS, asked(device=None), headers=TOKEN)
    assert NUMBER not in failure(refused, 404, "IDENTIFIER_NOT_FOUND")
    assert core.watcher.fetched == [TEL]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        PresenceUnavailable("No."),
        PresenceMisconfigured("No."),
        WatcherUnauthenticated("No."),
        DocumentUnreadable("No."),
        *Status,
    ],
    ids=str,
)
async def test_other_answers_do_not_matter(
    face: HttpFace, core: Core, answer: Status | TerminalStatusError | None
) -> None:
    """A presence server that is silent (None), fails, or reports any status says nothing against the device: the
    subscription is made, and the watch asks again (CAMARA r1.2, test definition of
    createDeviceReachabilityStatusSubscription, 01.1)."""
    core.watcher.answer = lambda _: answer
    assert (await face.call("POST", SUBSCRIPTIONS, asked())).status == 201
    assert core.watcher.fetched == [ALICE]


async def test_a_watched_device_is_not_asked_again(face: HttpFace, core: Core) -> None:
    """A device with a live watch is known: its next subscription costs no fetch. Once the watch is lost, it does."""
    await core.subscribe(ALICE)
    await core.play(ALICE, REACHABLE)
    core.watcher.answer = lambda _: UNKNOWN
    assert (await face.call("POST", SUBSCRIPTIONS, asked())).status == 201
    assert core.watcher.fetched == []
    core.watcher.lose(ALICE)
    await core.settled()
    failure(await face.call("POST", SUBSCRIPTIONS, asked()), 404, "IDENTIFIER_NOT_FOUND")


async def test_a_request_that_fails_otherwise_asks_nobody(face: HttpFace, core: Core) -> None:
    """The presence server is asked last, and only by CAMARA: a refused sink and REST API v1 cause no fetch."""
    core.sender.error = SinkUnreachable("No.", reason="dns")
    failure(await face.call("POST", SUBSCRIPTIONS, asked()), 400, "INVALID_SINK")
    core.sender.error = None
    core.watcher.answer = lambda _: UNKNOWN
    assert (await face.call("POST", "/v1/subscriptions", {"addresses": [ALICE]})).status == 201
    assert core.watcher.fetched == []


@pytest.mark.parametrize("time", ["2026-03-04T05:06:07Z", "2023-01-17T13:18:23.682Z", "0001-01-01T00:00:00+14:00"])
async def test_an_end_in_the_past(face: HttpFace, core: Core, time: str) -> None:
    """A subscriptionExpireTime that has passed is an invalid argument (CAMARA r1.2, test definition of
    createDeviceReachabilityStatusSubscription, 400.2)."""
    answer = await face.call("POST", SUBSCRIPTIONS, asked(subscriptionExpireTime=time))
    assert "subscriptionExpireTime" in failure(answer, 400, "INVALID_ARGUMENT")
    assert core.watcher.fetched == []


@pytest.mark.parametrize("kind", ["PRIVATE_KEY_JWT", "PLAIN", "REFRESHTOKEN", "accesstoken", ""])
@pytest.mark.parametrize("members", [{}, {"accessTokenType": "bearer"}, {"accessToken": 5, "identifier": []}], ids=str)
async def test_credentials_that_are_not_offered(face: HttpFace, kind: str, members: dict[str, Any]) -> None:
    """Each credentialType but ACCESSTOKEN is refused as such, whatever its members are, also the one that Commonalities
    0.7 adds (CAMARA r1.2, test definition of createDeviceReachabilityStatusSubscription, 400.5)."""
    body = asked(sinkCredential={"credentialType": kind, **members})
    message = failure(await face.call("POST", SUBSCRIPTIONS, body), 400, "INVALID_CREDENTIAL")
    assert message == "sinkCredential.credentialType must be ACCESSTOKEN; other types are not offered."


async def test_messages_are_bounded(face: HttpFace, core: Core) -> None:
    """A message has at most 512 characters, and so has the text of a subscription's end (CAMARA Commonalities 0.7,
    ErrorInfo and SubscriptionEnded); a longer text is cut."""
    core.watcher.answer = lambda _: TerminalUnknown("The presence server said: " + "no " * 300)
    message = failure(await face.call("POST", SUBSCRIPTIONS, asked()), 404, "IDENTIFIER_NOT_FOUND")
    assert (len(message), message[:25], message[-1]) == (MAX_MESSAGE, "The presence server said:", "…")
    core.watcher.answer = lambda _: REACHABLE
    made = (await face.call("POST", SUBSCRIPTIONS, asked())).json
    core.watcher.fail(ALICE, UNKNOWN)
    await core.settled()
    stored = await core.store.subscription(made["id"])
    last = event(stored, replace((await core.owed(stored))[-1], text="no " * 300), "https://gateway")
    assert last is not None
    data: Any = last["data"]
    assert len(data["terminationDescription"]) == MAX_MESSAGE


def test_documents_name_the_scopes() -> None:
    """Each operation can be called with an access token of OpenID Connect, and names the scopes that it needs, as in
    CAMARA's documents (r1.2, securitySchemes and each operation's security), or with an API key."""
    documents = {name: json.loads(text) for name, text in export_openapi().items()}
    api = "device-reachability-status-subscriptions"
    creating = [f"{api}:{event_types.EVENT_PREFIX}reachability-{of}:create" for of in ("data", "sms", "disconnected")]
    one, many = "/subscriptions/{subscriptionId}", "/subscriptions"
    for name, scopes in (
        (STATUS, {("/retrieve", "post"): [READ]}),
        (
            SUBSCRIPTIONS_DOCUMENT,
            {
                (many, "post"): creating,
                (many, "get"): [f"{api}:read"],
                (one, "get"): [f"{api}:read"],
                (one, "delete"): [f"{api}:delete"],
            },
        ),
    ):
        document = documents[name]
        assert {
            (path, method): operation["security"]
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        } == {where: [{"openId": needed}, {"bearer": []}] for where, needed in scopes.items()}
        assert document["components"]["securitySchemes"]["openId"]["type"] == "openIdConnect"


async def test_documents_name_the_operators_provider(core: Core) -> None:
    """Where the operator accepts access tokens, the served documents have the provider's address (OpenID Connect
    Discovery 1.0 section 4)."""
    async with http_face(core, token_issuer="https://login.example.net/realms/a/") as face:
        for name in (STATUS, SUBSCRIPTIONS_DOCUMENT):
            schemes = (await face.call("GET", f"/openapi/{name}.json")).json["components"]["securitySchemes"]
            found = schemes["openId"]["openIdConnectUrl"]
            assert found == "https://login.example.net/realms/a/.well-known/openid-configuration"
