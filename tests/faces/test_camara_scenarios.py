"""CAMARA's test definitions of r1.2, by steps of our own.

The definitions are read from a folder beside the checkout, or from the one that CAMARA_REFERENCE names. `EXCEPTIONS`
has what does not pass, with its reason; each must fail. Our own tests of the same rules: `test_camara.py` and
`test_camara_creation.py`.
"""

import asyncio
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest
from pytest_bdd import parsers, scenarios, step
from pytest_bdd.parser import ScenarioTemplate
from pytest_bdd.scenario import scenario_wrapper_template_registry

from app.domain.errors import PresenceUnavailable, TerminalUnknown, WatcherRefused
from app.rest.camara.cloud_events import SUBSCRIPTIONS_PATH
from app.rest.camara.event_types import REACHABILITY_DATA, REACHABILITY_DISCONNECTED
from tests.support.camara import SINK, TOKEN_CREDENTIAL
from tests.support.camara_reference import FEATURES, REFERENCE, require
from tests.support.camara_scene import CORRELATOR, MISSING, Scene, Stage, entered, found_at, opened
from tests.support.core import BEGAN, REACHABLE, UNREACHABLE

Given = ParamSpec("Given")
Found = TypeVar("Found")
SCENARIOS = 64

EXCEPTIONS = (
    (r"_0[13]_reachable.*_sms$", "", "SMS is not offered."),
    (r"_sms_usage$", "", "SMS is not offered."),
    (r"_sync_creation_", "reachability-sms", "SMS is not offered."),
    (r"_async_creation$", "", "Subscriptions are created at once: the answer is 201."),
    (
        r"_retrieve_by_id_2legs$",
        "made with 3",
        "Only a user's token named the device: showing the device to a two-legged token would leak it.",
    ),
)
"""What does not pass: a pattern of the scenario's tag, a text in its parameters, and the reason."""

if FEATURES.is_dir():
    scenarios(str(FEATURES))


def scenario_of(function: Any) -> ScenarioTemplate | None:
    """The scenario that a test function runs."""
    return scenario_wrapper_template_registry.get(function) if inspect.isfunction(function) else None


def exception(of: ScenarioTemplate, parameters: str) -> str:
    """Why this scenario does not pass; empty if it must."""
    for tag, text, reason in EXCEPTIONS:
        if text in parameters and any(re.search(tag, each) for each in of.tags):
            return reason
    return ""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Retrieves a subscription that a two-legged token made, and one that a three-legged token made."""
    of = scenario_of(metafunc.function)
    if of is not None and any(each.endswith("_retrieve_by_id_2legs") for each in of.tags):
        metafunc.parametrize("made_with", ["made with 2", "made with 3"], indirect=True)


@pytest.fixture(autouse=True)
def made_with(request: pytest.FixtureRequest) -> int:
    """The legs of the token with which the existing subscription was made."""
    return int(getattr(request, "param", "made with 2")[-1])


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            yield runner.run(opened(stack, runner, tmp_path_factory.mktemp("camara")))
        finally:
            runner.run(stack.aclose())


@pytest.fixture
def scene(request: pytest.FixtureRequest, stage: Stage, made_with: int) -> Scene:
    of = scenario_of(request.node.obj)
    assert of is not None
    if reason := exception(of, request.node.name):
        request.node.add_marker(pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True))
    many = "-subscriptions" in Path(of.feature.filename).stem
    document = "device-reachability-status" + ("-subscriptions" if many else "")
    found = stage.runner.run(entered(stage, REFERENCE / f"{document}.yaml"))
    found.made_with = made_with
    return found


def test_the_definitions_are_here() -> None:
    """Every scenario of r1.2 is run, and every exception is one of them."""
    require(FEATURES)
    tags = [of.tags for each in globals().values() if (of := scenario_of(each)) is not None]
    assert len(tags) == SCENARIOS
    for tag, *_ in EXCEPTIONS:
        assert any(re.search(tag, each) for of in tags for each in of), tag


def on(pattern: str) -> Callable[[Callable[Given, Found]], Callable[Given, Found]]:
    """A step whose text matches the whole pattern; the pattern's names are arguments."""
    return step(parsers.re(pattern))


def read(text: str) -> Any:
    """A value as the features write it."""
    if text.startswith('"'):
        return text.strip('"')
    return {"true": True, "false": False}[text] if text in ("true", "false") else int(text)


# The request.


@on(r"an environment at .*")
@on(r"(that (some types|the service)|a valid (testing|target) device|the device is supported by the service, and).*")
@on(r"the path parameter .*")
@on(r'the subscription property "\$\.sink" is .*')
@on(r'the header "(Content-Type|x-correlator)" .*')
def nothing(scene: Scene) -> None:
    """Holds of every request and subscription here."""


@on(r'the resource "(?P<path>.*)"')
def resource(scene: Scene, path: str) -> None:
    assert path.rpartition("}")[2] in (SUBSCRIPTIONS_PATH, "/device-reachability-status/v1/retrieve")


@on(r'the header "Authorization" is set to a valid access token( which does not identify .*)?')
@on(r"a valid 2- or 3-legged access token")
def two_legged(scene: Scene) -> None:
    scene.authorization = scene.token()


@on(r'the header "Authorization" is set to a valid access token (which identifies|identifying) .*')
def three_legged(scene: Scene) -> None:
    scene.three_legged()


@on(r'the header "Authorization" is set to (an|a previously valid but now) expired access token')
def expired(scene: Scene) -> None:
    scene.authorization = scene.token(age_s=86_400 + 60)


@on(r'the header "Authorization" is set to a malformed token')
def malformed(scene: Scene) -> None:
    scene.authorization = "Bearer a.b.c"


@on(r'the (request )?header "Authorization" is removed')
def removed(scene: Scene) -> None:
    scene.authorization = ""


@on(r'(header "Authorization" set to an|the) access token (does )?not includ(e|ing) scope "(?P<scope>.*)"')
def without_scope(scene: Scene, scope: str) -> None:
    scene.authorization = scene.token(scopes=frozenset({"openid", f"{scope.partition(':')[0]}:delete"}))


@on(r"the access token includes only a single subscription scope")
def single_scope(scene: Scene) -> None:
    scope = f"device-reachability-status-subscriptions:{REACHABILITY_DATA}:create"
    scene.authorization = scene.token(scopes=frozenset({scope}))


@on(r"(the|a) request body (is|that is) (set by default to a request body )?compliant with .*")
@on(r"the request body is set to a valid request body")
def valid_body(scene: Scene) -> None:
    scene.default_body()


@on(r"the request body is not compliant with .*")
def invalid_body(scene: Scene) -> None:
    scene.default_body()
    scene.put("$.types", MISSING)


@on(r'the request body property "\$\.device" is set to: \{\}')
def empty_device(scene: Scene) -> None:
    scene.put("$.device", {})


@on(r'the request body property "\$\.device\.\w+" does not comply with the OAS schema at ".*/(?P<schema>\w+)"')
def invalid_device(scene: Scene, schema: str) -> None:
    """The schema says which identifier is meant; one of the features' names is not a member of a device."""
    member = {
        "PhoneNumber": ("phoneNumber", "123"),
        "DeviceIpv4Addr": ("ipv4Address", {"publicAddress": "84.125.93.10"}),
        "DeviceIpv6Address": ("ipv6Address", "84.125.93.10"),
        "NetworkAccessIdentifier": ("networkAccessIdentifier", 5),
    }
    scene.put("$.device", dict([member[schema]]))


@on(r'the request body property "\$\.device" is compliant with the schema,? but does not identify .*')
def unknown_device(scene: Scene) -> None:
    scene.core.watcher.answer = lambda _: TerminalUnknown("The presence server does not know the terminal.")


@on(r"a valid device, .* for which the service is not applicable")
def device_without_service(scene: Scene) -> None:
    scene.core.watcher.answer = lambda _: WatcherRefused("The presence server refuses to report the terminal.")


@on(r'the request body property "\$\.device" is (also )?set to a valid device, .*')
@on(r'a valid phone number identified by ".*"')
def given_device(scene: Scene) -> None:
    scene.put("$.device", {"phoneNumber": scene.number})


@on(r'(the )?request (body )?property "\$\..*device(\.phoneNumber)?" is not (included|present)')
def no_device(scene: Scene) -> None:
    scene.put("$.device", MISSING)


@on(r'the request body property "\$\.device" only includes device identifiers not supported .*')
def unsupported_device(scene: Scene) -> None:
    scene.put("$.device", {"ipv6Address": "2001:db8::1"})


@on(r'(the )?request (body )?property "\$\.types" is (one of the allowed values|equal to) "(?P<kind>.*)"')
def kind_of_event(scene: Scene, kind: str) -> None:
    scene.put("$.types", [kind])


@on(r'the request body property "\$\.types" is equal to a valid type other than .*')
def other_kind(scene: Scene) -> None:
    scene.put("$.types", [REACHABILITY_DISCONNECTED])


@on(r'the request body property "\$\.types" is set to an invalid value')
def invalid_kind(scene: Scene) -> None:
    scene.put("$.types", ["none"])


@on(r'request property "\$\.types" includes more than one subscription-type')
def many_kinds(scene: Scene) -> None:
    scene.put("$.types", [REACHABILITY_DATA, REACHABILITY_DISCONNECTED])


@on(r'(the )?request property "\$\.(?P<name>protocol|sink)" is (equal|set) to "(?P<value>.*)"')
def sent_member(scene: Scene, name: str, value: str) -> None:
    scene.put(f"$.{name}", value)


@on(r'request property "\$\.sink" is set to a valid callbackUrl')
def valid_sink(scene: Scene) -> None:
    scene.put("$.sink", SINK)


@on(r'the request property "\$\.protocol" is not equal to "HTTP"')
def other_protocol(scene: Scene) -> None:
    scene.put("$.protocol", "MQTT3")


@on(r'the request property "\$\.config\.subscriptionExpireTime" is set to a time in the past')
def past(scene: Scene) -> None:
    scene.put("$.config.subscriptionExpireTime", "2026-03-04T05:06:06Z")


@on(r'the request property "\$\.sinkCredential\.(?P<member>\w+)" is (?P<negated>not )?equal to "(?P<value>\w+)"')
def credential(scene: Scene, member: str, negated: str | None, value: str) -> None:
    """Wrong types are one that r1.2 has, and one that it lacks."""
    wrong = {"credentialType": "PRIVATE_KEY_JWT", "accessTokenType": "mac"}
    scene.body.setdefault("sinkCredential", {**TOKEN_CREDENTIAL})[member] = wrong[member] if negated else value


@on(r'the request "(?P<operation>\w+)" is sent')
def sent(scene: Scene, operation: str) -> None:
    scene.operation = operation


# The device, and the subscription that exists.


@on(r"the device (is connected with sms|has data connectivity|has both data and sms connectivity).*")
@on(r"the device has data and/or sms connectivity .*")
def reachable(scene: Scene) -> None:
    status(scene, REACHABLE)


@on(r"the device (is supported by the service, but is not connected|does not have \w+ connectivity) .*")
def unreachable(scene: Scene) -> None:
    status(scene, UNREACHABLE)


@on(r"the device's \w+ connectivity status changes .*|a single notification .* has been sent .*")
def becomes_reachable(scene: Scene) -> None:
    status(scene, UNREACHABLE)
    status(scene, REACHABLE)


@on(r"the device loses all connectivity .*")
def becomes_unreachable(scene: Scene) -> None:
    status(scene, UNREACHABLE)


@on(r"a network error prevents .*")
def network_error(scene: Scene) -> None:
    scene.core.watcher.answer = lambda _: PresenceUnavailable("The presence server does not answer.")


def status(scene: Scene, of: Any) -> None:
    """The presence server states this status from now on; a subscription that is presupposed exists before."""
    scene.core.watcher.answer = lambda _: of
    if scene.wanted:
        scene.subscription()
        scene.core.clocks.advance(1)
        scene.run(scene.core.play(scene.device, of))


@on(r"at least one subscription is existing .*|a subscription exists .*")
@on(r"the API consumer has (at least one|an) active subscription .*")
def existing(scene: Scene) -> None:
    scene.subscription()


@on(r"a valid subscription for \w+ device exists .*")
def existing_as_wanted(scene: Scene) -> None:
    scene.wanted["initialEvent"] = False


@on(r"(that there is no valid subscription|the API consumer has no active subscriptions) .*")
def no_subscription(scene: Scene) -> None:
    assert scene.made is None


@on(r'the subscription property "\$\.types" contains the element "(?P<kind>.*)"')
def wanted_kind(scene: Scene, kind: str) -> None:
    scene.wanted["kind"] = kind


@on(r'the subscription property "\$\.subscriptionExpireTime" is set to a value in the near future')
def wanted_end(scene: Scene) -> None:
    scene.wanted["subscriptionExpireTime"] = (scene.core.clocks.now + timedelta(seconds=60)).isoformat()


@on(r'the subscription property "\$\.subscriptionMaxEvents" is set to 1')
def wanted_count(scene: Scene) -> None:
    scene.wanted["subscriptionMaxEvents"] = 1


@on(r"the subscriptionExpireTime is reached")
def end_reached(scene: Scene) -> None:
    scene.subscription()
    scene.run(scene.core.advance(61))


# The answer.


@on(r"the response (status )?code is (?P<codes>\d+( or \d+)*)")
def code(scene: Scene, codes: str) -> None:
    if scene.wanted:
        scene.subscription()
    assert scene.answered().status in map(int, codes.split(" or ")), scene.answered().body


@on(r'the response header "Content-Type" is "application/json"')
def content_type(scene: Scene) -> None:
    assert scene.answered().headers["content-type"] == "application/json"


@on(r'the response header "x-correlator" has same value as the request header "x-correlator"')
def correlator(scene: Scene) -> None:
    assert scene.answered().headers["x-correlator"] == CORRELATOR


@on(r'the response body complies with (the|an array of) OAS schema (at|defined at) "(?P<schema>.*)"')
def form(scene: Scene, schema: str) -> None:
    body = scene.answered().json
    for each in body if isinstance(body, list) else [body]:
        scene.complies(each, schema)


@on(r'the response property "(?P<path>\S+)" is (equal to )?(?P<value>true|false|\d+|"\S+")')
def member(scene: Scene, path: str, value: str) -> None:
    assert scene.made is None or value != '"id"' or scene.made["id"] == found_at(scene.answered().json, path)
    assert value == '"id"' or found_at(scene.answered().json, path) == read(value), scene.answered().body


@on(r'the response property "(?P<path>\S+)" includes (both )?(?P<values>"\w+"( and "\w+")?)')
def included(scene: Scene, path: str, values: str) -> None:
    assert {*re.findall(r"\w+", values.replace(" and ", " "))} <= {*found_at(scene.answered().json, path)}


@on(r'the response property "(?P<path>\S+)" is (?P<negated>not )?present( in any of the subscription records)?')
def presence(scene: Scene, path: str, negated: str | None) -> None:
    body = scene.answered().json
    for each in body if isinstance(body, list) else [body]:
        assert (found_at(each, path) is MISSING) is bool(negated)


@on(r'the response property "(?P<path>\S+)" is present and has a valid date-time format for a time in the past')
def past_time(scene: Scene, path: str) -> None:
    assert datetime.fromisoformat(found_at(scene.answered().json, path)) <= scene.core.clocks.now


@on(r'the response property "\$\.message" contains a user[ -]friendly text.*')
def message(scene: Scene) -> None:
    assert 10 < len(scene.answered().json["message"]) <= 512


@on(r'the response properties (?P<paths>"\$.*) are present with the values provided in the request')
def as_requested(scene: Scene, paths: str) -> None:
    for path in re.findall(r"\$[\w.]+", paths):
        assert found_at(scene.answered().json, path) == found_at(scene.body, path) != MISSING


@on(r'the response properties "\$\.startsAt" and "\$\.expiresAt", if present, have a valid value with date-time format')
def times(scene: Scene) -> None:
    for path in ("$.startsAt", "$.expiresAt"):
        if (time := found_at(scene.answered().json, path)) is not MISSING:
            assert datetime.fromisoformat(time) >= BEGAN


@on(r'the response property "\$\.status", if present, has the value (?P<values>.*)')
def states(scene: Scene, values: str) -> None:
    assert scene.answered().json["status"] in re.findall(r'"(\w+)"', values)


@on(r"the response body lists all subscriptions belonging to the API consumer( for the identified device)?")
def listed(scene: Scene) -> None:
    assert [each["id"] for each in scene.answered().json] == [scene.subscription()["id"]]


@on(r"the response body is an empty array")
def empty_list(scene: Scene) -> None:
    assert scene.answered().json == []


@on(r'if the response property "\$\.status" is (?P<code>\d+) then .*')
def bodiless(scene: Scene, code: str) -> None:
    assert int(code) != scene.answered().status or scene.answered().body == b""


# Events.


@on(r'event notification "(?P<kind>.*)" is sent to the specified callback URL')
def event_sent(scene: Scene, kind: str) -> None:
    scene.wanted["event"] = kind
    scene.notified(kind)


@on(r"a subscription termination event notification is sent to the callback URL")
def end_sent(scene: Scene) -> None:
    event_sent(scene, "subscription-ended")


@on(r"the sink credentials specified when the subscription was created are included")
def authorized(scene: Scene) -> None:
    headers, _ = scene.notified(scene.wanted["event"])
    assert headers["authorization"] == f"Bearer {TOKEN_CREDENTIAL['accessToken']}"


@on(r'(the )?notification body complies with the OAS schema at "(?P<schema>.*)"')
def event_form(scene: Scene, schema: str) -> None:
    scene.complies(scene.notified(scene.wanted["event"])[1], schema)


@on(r'the notification (request )?property "(?P<path>\S+)" is (equal to )?"(?P<value>\S+)"')
def event_member(scene: Scene, path: str, value: str) -> None:
    found = found_at(scene.notified(scene.wanted["event"])[1], path)
    assert found == (scene.subscription()["id"] if value == "id" else value)
