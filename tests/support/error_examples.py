"""Provokes each error over HTTP, for the error examples of the OpenAPI documents.

`python -m tests.support.error_examples` (in `make generate`) writes the answers to the files that `recorded` names. So
each example is a real answer of the gateway. REST API v1's examples are named by domain error, CAMARA's by CAMARA's
code.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import pytest
import structlog

from app.auth.oidc import Grant
from app.core.fetcher import FetchService
from app.domain.addresses import TerminalAddress
from app.domain.errors import GatewayOverloaded, TerminalStatusError
from app.domain.policy import Policy
from app.domain.sinks import PROFILE_CAMARA, PROFILE_V1, Sink, SinkKind
from app.egress.allowed import Rules
from app.egress.client import Egress
from app.egress.webhook import WebhookSender, v1_event
from app.rest.camara.cloud_events import SUBSCRIPTIONS_PATH, event
from app.rest.camara.errors import RECORDED as RECORDED_CAMARA
from app.rest.camara.event_types import REACHABILITY_DATA, REACHABILITY_DISCONNECTED
from app.rest.error_examples import RECORDED
from app.rest.problem import STATUSES
from app.sip.answers import error_of_notify, error_of_response
from app.sip.settings import sip_configuration
from app.sip.watcher import SipWatcher
from tests.support.core import ADMIN, APP, new_database, run_core
from tests.support.fakes import FakeMeter, FakeWatcher
from tests.support.http_face import Answer, HttpFace, http_face
from tests.support.receivers import answer, receiver
from tests.support.settings import settings_for
from tests.support.waiting import until

ALICE, BOB, CAROL = (f"sip:{name}@example.com" for name in ("alice", "bob", "carol"))
TEAM, ALL = "sip:team@example.com", "sip:all@example.com"
STATUS = f"/v1/terminals/{ALICE}/status"
GROUP = f"/v1/groups/{TEAM}"

Provoke = Callable[[HttpFace], Awaitable[Answer]]
Provocations = list[tuple[Policy, dict[str, Provoke]]]

LIMITED = Policy(
    busy_available=False,
    max_notification_addresses=2,
    min_interval_ms=1000,
    max_duration_ms=86_400_000,
    max_count=100,
    unlimited_count_allowed=False,
    nested_group_support=False,
    max_targets=2,
    max_group_size=2,
    max_groups=2,
    max_subscriptions=2,
    max_streams=2,
    max_watched_terminals=2,
)


def get(path: str, client: str = "app") -> Provoke:
    return lambda face: face.call("GET", path, client=client)


def post(path: str, body: Any = None, client: str = "app", **headers: str) -> Provoke:
    return lambda face: face.call("POST", path, body, client=client, headers=headers)


def subscribe(*addresses: str, **more: Any) -> Provoke:
    return post("/v1/subscriptions", {"addresses": addresses or [ALICE], **more})


def group(address: str, *members: str) -> Provoke:
    return post("/v1/groups", {"address": address, "members": members})


def then(*steps: Provoke) -> Provoke:
    """Sends the calls one after the other; returns the last answer."""

    async def call(face: HttpFace) -> Answer:
        *before, last = steps
        for step in before:
            assert (answered := await step(face)).status < 300, answered.body
        return await last(face)

    return call


def change(subscription_id: str, **headers: str) -> Provoke:
    path = f"/v1/subscriptions/{subscription_id}"
    return lambda face: face.call("PATCH", path, {"criteria": ["BUSY"]}, headers=headers)


async def stale_change(face: HttpFace) -> Answer:
    made = await subscribe()(face)
    return await change(made.json["id"], **{"if-match": '"v2"'})(face)


async def change_of_camaras(face: HttpFace) -> Answer:
    """A change of a subscription that CAMARA's API made."""
    async with receiver(answer(204)) as endpoint:
        sink = Sink(kind=SinkKind.WEBHOOK, url=endpoint.url, profile=PROFILE_CAMARA, parameters={"handshake": "none"})
        made = await face.core.subscribe(TerminalAddress(ALICE), sink=sink)
        return await change(made.id)(face)


async def one_client_too_many(face: HttpFace) -> Answer:
    registry, most = face.registry, face.registry.max_clients
    registry.max_clients = len(await registry.clients())
    try:
        return await post("/v1/clients", {"name": "One more"}, client=ADMIN.id)(face)
    finally:
        registry.max_clients = most


def presence_answers(error: TerminalStatusError | None) -> Provoke:
    """A query for a terminal that the presence server answers in this way (None: not at all)."""

    async def call(face: HttpFace) -> Answer:
        face.core.watcher.answer = lambda _: error
        return await face.call("GET", STATUS)

    return call


async def too_many_fetches(face: HttpFace) -> Answer:
    watcher = FakeWatcher(lambda _: None)
    service = FetchService(
        watcher, FakeMeter(), busy_activities=set(), busy_when_closed=False, fetch_timeout_s=60, max_fetches=2
    )
    fetches = [asyncio.create_task(service.fetch(TerminalAddress(ALICE), client)) for client in ("first", "second")]
    await until(lambda: len(watcher.asked) == len(fetches))
    with pytest.raises(GatewayOverloaded) as overloaded:
        await service.fetch(TerminalAddress(ALICE), "third")
    for fetch in fetches:
        fetch.cancel()
    await asyncio.gather(*fetches, return_exceptions=True)
    return await presence_answers(overloaded.value)(face)


async def without_workers(face: HttpFace) -> Answer:
    face.core.watcher.fetch = stopped_watcher().fetch  # type: ignore[method-assign, assignment]
    return await face.call("GET", STATUS)


async def refresh_unwatched(face: HttpFace) -> Answer:
    face.core.watcher.refresh = stopped_watcher().refresh  # type: ignore[method-assign]
    return await face.call("POST", f"/v1/watches/{ALICE}:refresh", client=ADMIN.id)


def stopped_watcher() -> SipWatcher:
    return SipWatcher(sip_configuration(settings_for("sip:127.0.0.1"), "test"))


async def third_stream(face: HttpFace) -> Answer:
    path = f"/v1/terminals:watch?address={ALICE}&min_interval_ms=1000"
    async with face.events(path) as first, face.events(path) as second:
        await first.next()
        await second.next()
        return await face.call("GET", path)


async def failing_endpoint(face: HttpFace) -> Answer:
    async with receiver(answer(500)) as endpoint:
        return await subscribe(sink=webhook(endpoint.url, handshake="TEST"))(face)


def webhook(url: str, **more: Any) -> dict[str, Any]:
    return {"kind": "WEBHOOK", "uri": url, **more}


def provocations(directory: Path) -> Provocations:
    """For each domain error, by its code: the call of REST API v1 that provokes it, and the policy that it needs."""

    async def remove_database(face: HttpFace) -> Answer:
        for file in [*directory.rglob("core.sqlite3*")]:  # noqa: ASYNC240  # a directory of a few files
            file.unlink()
        return await face.call("GET", "/v1/groups")

    unlimited = {
        "INVALID_ADDRESS": get("/v1/terminals/alice/status"),
        "TERMINAL_UNKNOWN": presence_answers(error_of_response(404, "Not Found", -1)),
        "ADDRESS_IS_LIST": presence_answers(error_of_notify("active", "", -1, 0, 0, of_list=True)),
        "WATCHER_REFUSED": presence_answers(error_of_response(403, "Forbidden", -1)),
        "WATCHER_UNAUTHENTICATED": presence_answers(error_of_response(401, "Unauthorized", -1)),
        "FETCH_TIMED_OUT": presence_answers(None),
        "PRESENCE_UNAVAILABLE": presence_answers(error_of_response(503, "Service Unavailable", 30)),
        "PRESENCE_MISCONFIGURED": presence_answers(error_of_response(489, "Bad Event", -1)),
        "DOCUMENT_UNREADABLE": presence_answers(error_of_notify("active", "", -1, 4500, 3000)),
        "GATEWAY_OVERLOADED": too_many_fetches,
        "WATCHER_RESTARTING": without_workers,  # the watcher stays away until the test ends
        "INVALID_REQUEST": get(STATUS + "?max_age_s=-1"),
        "NO_VALID_ADDRESSES": then(group(TEAM), post("/v1/terminals:query", {"addresses": [TEAM]})),
        "GROUP_UNKNOWN": get("/v1/groups/sip:nobody@example.com"),
        "GROUP_EXISTS": group(TEAM),
        "GROUP_NOT_ALLOWED": get(f"/v1/terminals/{TEAM}/status"),
        "GROUP_CHANGED": lambda face: face.call("DELETE", GROUP, headers={"if-match": '"1-0.5"'}),
        "DUPLICATE_CORRELATOR": then(*[subscribe(correlator="order-4711")] * 2),
        "REQUEST_ID_REUSED": then(
            *[post("/v1/subscriptions", {"addresses": [each]}, **{"idempotency-key": "k-1"}) for each in (ALICE, BOB)]
        ),
        "SUBSCRIPTION_UNKNOWN": get("/v1/subscriptions/s-1"),
        "SUBSCRIPTION_CHANGED": stale_change,
        "CHANGE_NOT_ALLOWED": change_of_camaras,
        "NOTIFICATION_UNKNOWN": get("/v1/notifications/n-1"),
        "SINK_REFUSED": subscribe(sink=webhook("https://10.0.0.1/events")),
        "SINK_UNREACHABLE": failing_endpoint,
        "CLIENT_UNKNOWN": post("/v1/clients/c-1:disable", client=ADMIN.id),
        "TOO_MANY_CLIENTS": one_client_too_many,
        "CLIENT_EXISTS": then(*[post("/v1/clients", {"name": "Call centre"}, client=ADMIN.id)] * 2),
        "UNAUTHENTICATED": lambda face: face.call(
            "GET", STATUS, client="", headers={"authorization": "Bearer tsk_0123456789abcdef_wrong"}
        ),
        "NOT_PERMITTED": get("/v1/watches"),
        "WATCH_UNKNOWN": refresh_unwatched,
        "STORE_UNAVAILABLE": remove_database,
    }
    limited = {
        "TOO_MANY_ADDRESSES": post("/v1/terminals:query", {"addresses": [ALICE, BOB, CAROL]}),
        "GROUP_TOO_LARGE": group(TEAM, ALICE, BOB, CAROL),
        "NESTED_GROUP_NOT_ALLOWED": then(group(TEAM, ALICE), group(ALL, TEAM)),
        "TOO_MANY_GROUPS": then(group(ALL, BOB), group("sip:third@example.com", CAROL)),
        "UNLIMITED_COUNT_NOT_ALLOWED": subscribe(min_interval_ms=1000),
        "COUNT_TOO_LARGE": subscribe(max_notification_count=101, min_interval_ms=1000),
        "INTERVAL_TOO_SHORT": subscribe(max_notification_count=1, min_interval_ms=1),
        "DURATION_TOO_LONG": subscribe(max_notification_count=1, min_interval_ms=1000, duration_ms=86_400_001),
        "BUSY_NOT_SUPPORTED": subscribe(criteria=["BUSY"]),
        "TOO_MANY_STREAMS": third_stream,
        "TOO_MANY_SUBSCRIPTIONS": then(*[subscribe(max_notification_count=1, min_interval_ms=1000)] * 3),
        "TOO_MANY_WATCHED_TERMINALS": get(f"/v1/terminals:watch?address={BOB}&address={CAROL}&min_interval_ms=1000"),
    }
    return [
        (Policy(), unlimited),
        (LIMITED, limited),
        (Policy(rate_per_s=50, rate_burst=1), {"RATE_LIMITED": then(get("/v1/groups"), get("/v1/groups"))}),
    ]


async def recorded(directory: Path) -> dict[Path, str]:
    """Returns the text of each file of examples."""
    problems = await provoked(directory, provocations(directory))
    assert set(problems) == {error.code for error in STATUSES}
    in_order = {error.code: problems[error.code] for error in STATUSES}
    camara = await provoked(directory, camara_provocations())
    return {
        RECORDED: json.dumps(in_order, indent=2, ensure_ascii=False) + "\n",
        RECORDED_CAMARA: json.dumps(camara, indent=2, ensure_ascii=False) + "\n",
    }


async def provoked(directory: Path, provocations: Provocations) -> dict[str, Any]:
    """Returns the body of each answer by its code."""
    found: dict[str, Any] = {}
    for policy, calls in provocations:
        database = Path(mkdtemp(dir=directory))
        async with (
            webhooks() as sender,
            run_core(await new_database(database), policy=policy, senders={SinkKind.WEBHOOK: sender}) as core,
            http_face(core, tokens=Tokens(), grant=granted) as face,
        ):
            for code, call in calls.items():
                answered = await call(face)
                assert answered.json["code"] == code, (code, answered.status, answered.body)
                found[code] = answered.json
    return found


class Tokens:
    """An authenticator whose access tokens list their scopes, separated by `+`; the prefix `device+` means alice."""

    async def verify(self, token: str) -> tuple[str, datetime]:
        return APP.id, datetime.now(UTC) + timedelta(days=1)

    def confined(self, token: str) -> str:
        return ""


def granted(token: str) -> Grant:
    scopes = token.split("+")
    return Grant(scopes=frozenset(scopes), device="alice@example.com" if "device" in scopes else "")


def camara_provocations() -> Provocations:
    """A call of a CAMARA API for each code that the documents show, except INTERNAL."""
    status, scope = "/device-reachability-status/v1/retrieve", "device-reachability-status-subscriptions"
    alice = {"device": {"networkAccessIdentifier": "alice@example.com"}}

    def retrieve(body: Any, token: str = "") -> Provoke:
        return post(status, body, **({"authorization": f"Bearer {token}"} if token else {}))

    def create(token: str = "", sink: str = "https://example.com/sink", **changed: Any) -> Provoke:
        body = {"protocol": "HTTP", "sink": sink, "types": [REACHABILITY_DATA], "config": {"subscriptionDetail": alice}}
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return post(SUBSCRIPTIONS_PATH, {**body, **changed}, **headers)

    def answered(code: int, phrase: str) -> Provoke:
        async def call(face: HttpFace) -> Answer:
            face.core.watcher.answer = lambda _: error_of_response(code, phrase, -1)
            return await retrieve(alice)(face)

        return call

    too_long = {"subscriptionDetail": alice, "subscriptionExpireTime": "9999-01-01T00:00:00Z"}
    return [
        (
            Policy(),
            {
                "INVALID_ARGUMENT": retrieve({"device": {"phoneNumber": "123"}}),
                "INVALID_PROTOCOL": create(protocol="MQTT3"),
                "INVALID_CREDENTIAL": create(
                    sinkCredential={"credentialType": "PLAIN", "identifier": "app", "secret": "s"}
                ),
                "INVALID_TOKEN": create(
                    sinkCredential={
                        "credentialType": "ACCESSTOKEN",
                        "accessToken": "token",
                        "accessTokenExpiresUtc": "2020-01-01T00:00:00Z",
                        "accessTokenType": "bearer",
                    }
                ),
                "INVALID_SINK": create(sink="https://10.0.0.1/sink"),
                "OUT_OF_RANGE": create(config=too_long),
                "UNAUTHENTICATED": lambda face: face.call(
                    "POST", status, alice, client="", headers={"authorization": "Bearer tsk_0123456789abcdef_wrong"}
                ),
                "PERMISSION_DENIED": retrieve(alice, "other:read"),
                "SUBSCRIPTION_MISMATCH": create(f"{scope}:{REACHABILITY_DISCONNECTED}:create"),
                "NOT_FOUND": get(f"{SUBSCRIPTIONS_PATH}/s-1"),
                "IDENTIFIER_NOT_FOUND": answered(404, "Not Found"),
                "SERVICE_NOT_APPLICABLE": answered(403, "Forbidden"),
                "UNAVAILABLE": answered(503, "Service Unavailable"),
                "MISSING_IDENTIFIER": retrieve({}),
                "UNSUPPORTED_IDENTIFIER": retrieve({"device": {"ipv6Address": "2001:db8::1"}}),
                "UNNECESSARY_IDENTIFIER": retrieve(alice, "device+device-reachability-status:read"),
                "MULTIEVENT_SUBSCRIPTION_NOT_SUPPORTED": create(types=[REACHABILITY_DATA, REACHABILITY_DISCONNECTED]),
            },
        ),
        (Policy(max_subscriptions=0), {"QUOTA_EXCEEDED": create()}),
        (Policy(rate_per_s=50, rate_burst=1), {"TOO_MANY_REQUESTS": then(get("/v1/groups"), retrieve(alice))}),
    ]


@asynccontextmanager
async def webhooks() -> AsyncIterator[WebhookSender]:
    egress = Egress(Rules.of(["127.0.0.0/8"], allow_http=True))
    try:
        yield WebhookSender(
            egress, clock=lambda: datetime.now(UTC), envelopes={PROFILE_V1: v1_event, PROFILE_CAMARA: event}
        )
    finally:
        await egress.aclose()


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with TemporaryDirectory() as directory:
        for file, text in asyncio.run(recorded(Path(directory))).items():
            file.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
