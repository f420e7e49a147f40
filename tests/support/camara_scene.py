"""One scenario of CAMARA's test definitions: the request that its steps describe, and what the gateway answers.

CAMARA's steps describe a request also after the step that sends it. So it is sent when the first step asks for its
answer. The face, the access tokens, the sink and the delivery to it are real; the presence server is played. All
scenarios share one gateway. Each has a client and a device of its own, and a minute lies between two of them.
"""

import asyncio
import json
import re
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import jsonschema_rs
import yaml  # type: ignore[import-untyped]

from app.auth.oidc import AccessTokens
from app.domain.addresses import TerminalAddress
from app.domain.records import Client, NotificationKind
from app.domain.sinks import PROFILE_CAMARA
from app.egress.allowed import Rules
from app.egress.client import Egress
from app.egress.webhook import WebhookSender
from app.rest.camara.cloud_events import SUBSCRIPTIONS_PATH, event
from app.rest.camara.event_types import REACHABILITY_DATA
from tests.support.access_tokens import AUDIENCE, ISSUER, key_set, token
from tests.support.camara import ALL, RETRIEVE, SINK, TOKEN_CREDENTIAL
from tests.support.core import BEGAN, REACHABLE, Core, new_database, run_core
from tests.support.http_face import Answer, HttpFace, http_face
from tests.support.receivers import Receiver, receiver

Found = TypeVar("Found")

OPERATIONS: Mapping[str, tuple[str, str]] = {
    "getReachabilityStatus": ("POST", RETRIEVE),
    "createDeviceReachabilityStatusSubscription": ("POST", SUBSCRIPTIONS_PATH),
    "retrieveDeviceReachabilityStatusSubscriptionList": ("GET", SUBSCRIPTIONS_PATH),
    "retrieveDeviceReachabilityStatusSubscription": ("GET", SUBSCRIPTIONS_PATH + "/{id}"),
    "deleteDeviceReachabilityStatusSubscription": ("DELETE", SUBSCRIPTIONS_PATH + "/{id}"),
}
CORRELATOR = "b4333c46-49c0-4f62-80d7-f0ef930f1c46"
MISSING = object()


def parts(path: str) -> list[str]:
    """The members of a path such as `$.config.subscriptionDetail`."""
    return path.removeprefix("$.").split(".")


def found_at(body: Any, path: str) -> Any:
    """The value at the path, or MISSING."""
    for part in parts(path):
        if not isinstance(body, dict) or part not in body:
            return MISSING
        body = body[part]
    return body


@dataclass(frozen=True)
class Stage:
    """The gateway of all scenarios, and the sink of their subscriptions."""

    runner: asyncio.Runner
    core: Core
    face: HttpFace
    sink: Receiver
    sender: WebhookSender
    numbers: Iterator[int] = field(default_factory=count)


@dataclass
class Scene:
    """A request to the gateway. Times are UTC; the gateway's clock stands still until a step moves it."""

    stage: Stage
    document: Path
    """CAMARA's OpenAPI document of the API."""
    client: Client
    number: str
    """The phone number of the scenario's device."""
    authorization: str = ""
    operation: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    wanted: dict[str, Any] = field(default_factory=dict)
    """Members of the config of the subscription that exists already, and its `types`."""
    made_with: int = 2
    """The legs of the token with which that subscription is made."""
    made: dict[str, Any] | None = None
    answer: Answer | None = None
    events: list[tuple[Mapping[str, str], dict[str, Any]]] = field(default_factory=list)
    """What the sink got: headers and body."""

    @property
    def core(self) -> Core:
        return self.stage.core

    @property
    def device(self) -> TerminalAddress:
        """The address of the scenario's device."""
        return TerminalAddress(f"tel:{self.number}")

    def run(self, work: Coroutine[Any, Any, Found]) -> Found:
        return self.stage.runner.run(work)

    # The request.

    def token(self, *, device: bool = False, scopes: frozenset[str] = ALL, age_s: float = 0) -> str:
        """An access token of the client's, issued for a day, `age_s` seconds ago; three-legged with `device`."""
        ends = self.core.clocks.now.timestamp() + 86_400 - age_s
        named = {"phone_number": self.number} if device else {}
        return "Bearer " + token(client_id=self.client.id, exp=int(ends), scope=" ".join(sorted(scopes)), **named)

    def default_body(self) -> None:
        self.body = {}
        if self.document.stem.endswith("subscriptions"):
            self.body = {"protocol": "HTTP", "sink": SINK, "types": [REACHABILITY_DATA]}
            self.body["config"] = {"subscriptionDetail": {}}
        self.put("$.device", {"phoneNumber": self.number})

    def path_of(self, path: str) -> list[str]:
        """The members of a request's path. The features write a subscription's device without its parents."""
        members = parts(path)
        if members[0] == "device" and "config" in self.body:
            members = ["config", "subscriptionDetail", *members]
        return members

    def put(self, path: str, value: object) -> None:
        *parents, last = self.path_of(path)
        at = self.body
        for parent in parents:
            at = at.setdefault(parent, {})
        if value is MISSING:
            at.pop(last, None)
        else:
            at[last] = value

    def three_legged(self) -> None:
        self.authorization = self.token(device=True)
        if self.body:
            self.put("$.device", MISSING)

    def answered(self) -> Answer:
        """The answer to the request, which is sent once."""
        if self.answer is None:
            method, path = OPERATIONS[self.operation]
            path = path.format(id=self.made["id"] if self.made else "unknown")
            headers = {"x-correlator": CORRELATOR}
            if self.authorization:
                headers["authorization"] = self.authorization
            body = self.body if method == "POST" else None
            self.answer = self.run(self.stage.face.call(method, path, body, client="", headers=headers))
        return self.answer

    # The subscription that exists, and its events.

    def subscription(self) -> dict[str, Any]:
        """The subscription that the scenario presupposes; it is made at the first call."""
        if self.made is None:
            of_token = self.made_with == 3
            detail = {} if of_token else {"device": {"phoneNumber": self.number}}
            wanted = {**self.wanted}
            body = {
                "protocol": "HTTP",
                "sink": SINK,
                "types": [wanted.pop("kind", REACHABILITY_DATA)],
                "sinkCredential": TOKEN_CREDENTIAL,
                "config": {"subscriptionDetail": detail, **wanted},
            }
            headers = {"authorization": self.token(device=of_token)}
            answer = self.run(self.stage.face.call("POST", SUBSCRIPTIONS_PATH, body, client="", headers=headers))
            assert answer.status == 201, answer.body
            self.made = answer.json
        return self.made

    def notified(self, kind: str) -> tuple[Mapping[str, str], dict[str, Any]]:
        """Sends what the subscription's sink is owed; returns the headers and the body of the last event of a kind."""
        if not self.events:
            self.run(self._deliver(self.subscription()["id"]))
        found = [one for one in self.events if one[1]["type"].endswith("." + kind)]
        assert found, [body["type"] for _, body in self.events]
        return found[-1]

    async def _deliver(self, subscription_id: str) -> None:
        stored = await self.core.store.subscription(subscription_id)
        there = replace(stored, sink=replace(stored.sink, url=self.stage.sink.url))
        for owed in await self.core.owed(stored):
            if owed.kind is not NotificationKind.ERROR:
                assert (await self.stage.sender.send(there, owed)).delivered
        self.events += [(request.headers, json.loads(request.body)) for request in self.stage.sink.requests]

    def complies(self, body: Any, schema: str) -> None:
        """Asserts that the body has the form of a schema of CAMARA's document. Where the document has no such name, it
        is one with the same beginning (the features write Ends for Ended)."""
        document = read(self.document)
        names = document["components"]["schemas"]
        name = schema.rpartition("/")[2]
        if name not in names:
            (name,) = [each for each in names if each.startswith(re.sub("s$", "", name))]
        whole = {**document, "$ref": f"#/components/schemas/{name}"}
        jsonschema_rs.validator_for(whole, validate_formats=True).validate(body)


@cache
def read(document: Path) -> dict[str, Any]:
    """An OpenAPI document in YAML, as JSON has it (without dates)."""
    found: dict[str, Any] = json.loads(json.dumps(yaml.load(document.read_text(), yaml.CSafeLoader), default=str))
    return found


async def opened(stack: AsyncExitStack, runner: asyncio.Runner, folder: Path) -> Stage:
    """A stage whose gateway runs until the stack is closed."""
    core = await stack.enter_async_context(run_core(await new_database(folder)))

    async def keys() -> bytes:
        return key_set()

    tokens = AccessTokens(
        keys,
        issuer=ISSUER,
        audience=AUDIENCE,
        scope="",
        client_claim="client_id",
        device_claim="phone_number",
        clock=lambda: core.clocks.now,
        monotonic=lambda: core.clocks.now_s,
    )
    face = await stack.enter_async_context(http_face(core, tokens=tokens, grant=tokens.grant))
    there = await stack.enter_async_context(receiver())
    egress = Egress(Rules.of(["127.0.0.0/8"], allow_http=True), total_s=5)
    stack.push_async_callback(egress.aclose)
    sender = WebhookSender(egress, clock=lambda: core.clocks.now, envelopes={PROFILE_CAMARA: event})
    return Stage(runner, core, face, there, sender)


async def entered(stage: Stage, document: Path) -> Scene:
    """A scene on this stage, with a new client and device, of whom nothing is known yet."""
    number = next(stage.numbers)
    client = Client(id=f"client-{number}", name=f"client-{number}", created_at=BEGAN)
    await stage.core.store.put_client(client)
    stage.core.clocks.advance(60)
    stage.core.watcher.answer = lambda _: REACHABLE
    stage.sink.requests.clear()
    scene = Scene(stage, document, client, f"+1555{number:07}")
    scene.authorization = scene.token()
    return scene
