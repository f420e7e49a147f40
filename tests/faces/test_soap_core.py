"""The SOAP face over the real use cases and SQLite: policies, groups, usage records, and delivered callbacks."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from lxml import etree
from starlette.types import ASGIApp

from app.delivery.deliverer import Deliverer
from app.domain.addresses import TerminalAddress
from app.domain.errors import FetchTimedOut, TerminalUnknown, WatcherRefused
from app.domain.filters import NotificationFilter, SubscriptionFilter
from app.domain.policy import Policy
from app.domain.records import MAX_USAGE_TARGETS, DeliveryState, OwedNotification, Subscription
from app.domain.sinks import SinkKind
from app.domain.statuses import Status
from app.egress.allowed import Rules
from app.egress.client import Egress
from app.ports.store import Page
from app.rest import to_json
from app.rpc import response_messages
from app.servers import bound, serve_http
from soap_compat.address_spelling import any_uri
from soap_compat.callbacks import CallbackSender
from soap_compat.server import create_app
from tests.support.core import ALICE, ALL, APP, BOB, CAROL, OTHER, TEAM, Clocks, Core, new_database, run_core
from tests.support.receivers import Receiver, Request, answer, hang, in_turn, receiver, reset
from tests.support.soap import MANAGER, Reply, call, content_of, envelope, payload, valid
from tests.support.soap_requests import end, group, start
from tests.support.waiting import DEADLINE_S, until

BUSY, REACHABLE, UNREACHABLE = Status.BUSY, Status.REACHABLE, Status.UNREACHABLE
FAULT = b'<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body><e:Fault/></e:Body></e:Envelope>'


class Known:
    """An authenticator that identifies callers by the text of the Authorization header."""

    def known(self, authorization: str) -> Any:
        return OTHER if authorization == "other" else APP


class World:
    """A gateway whose applications listen at `there`; notifications are due by the test's clock."""

    def __init__(self, core: Core, app: ASGIApp, deliverer: Deliverer, there: Receiver) -> None:
        self.core = core
        self.app = app
        self.deliverer = deliverer
        self.there = there

    async def ask(self, body: bytes, *, authorization: str = "") -> Reply:
        manager = b"startNotification" in body or b"endNotification" in body
        path = "/TerminalStatusNotificationManager" if manager else "/TerminalStatus"
        return await call(self.app, body, path=path, authorization=authorization)

    async def start(self, *addresses: str, correlator: str = "c-1", namespace: str = MANAGER, **parts: str) -> Reply:
        reference = (
            f"<l:reference><endpoint>{self.there.url}</endpoint><interfaceName>TerminalStatusNotification</interfaceName>"
            f"<correlator>{correlator}</correlator></l:reference>"
        )
        listed = "".join(f"<l:addresses>{address}</l:addresses>" for address in addresses)
        defaults = {"criteria": "", "duration": "", "count": "", "frequency": zero_frequency()}
        values = {"reference": reference, "addresses": listed} | defaults | parts
        return await self.ask(start(namespace, **values))

    async def calls(self, count: int) -> list[str]:
        """The callbacks that the application received, in short, once this number has come."""
        self.deliverer.hint()
        await self.there.wait_for_requests(count)
        return [in_short(request.body) for request in self.there.requests]


def zero_frequency() -> str:
    return "<l:frequency><metric>Second</metric><units>0</units></l:frequency>"


def in_short(body: bytes) -> str:
    """For example `statusNotification c-1 alice Busy`, after validation."""
    content = content_of(body)
    valid(content)
    return " ".join([etree.QName(content).localname, *leaves(content)])


def leaves(element: etree._Element) -> list[str]:
    """The values in the callback, except texts of messages."""
    return [leaf.text or "" for leaf in element.iter() if not len(leaf) and leaf.tag != "text"]


@asynccontextmanager
async def world_of(
    tmp_path: Path,
    policy: Policy | None = None,
    behave: Any = None,
    clocks: Clocks | None = None,
    url: str = "",
    total_s: float = 5,
    tel_context: str = "",
) -> AsyncIterator[World]:
    egress = Egress(Rules.of(["127.0.0.0/8"], allow_http=True), total_s=total_s)
    senders: Mapping[SinkKind, CallbackSender] = {SinkKind.SOAP: CallbackSender(egress)}
    url = url or await new_database(tmp_path)

    def withdrawn(subscription: Subscription) -> Callable[[], Awaitable[None]]:
        return deliverer.withdrawn(subscription)

    async with (
        receiver(behave) as there,
        run_core(url, policy=policy, senders=senders, clocks=clocks, withdrawn=withdrawn) as core,
    ):
        clock: Callable[[], Any] = lambda: core.clocks.now  # noqa: E731
        deliverer = Deliverer(core.store, senders, owner="test", clock=clock, jitter=lambda: 0.5)
        deliverer.start()
        known: Any = Known()
        app = create_app(
            core.queries,
            core.subscriptions,
            known,
            usage=core.usage,
            clock=clock,
            max_age_s=60,
            tel_context=tel_context,
        )
        try:
            yield World(core, app, deliverer, there)
        finally:
            await deliverer.aclose()
            await egress.aclose()


# --- queries


async def test_questions(tmp_path: Path) -> None:
    """Terminals and members of groups are asked once each; a group in getStatus is POL0006; a private, unknown or late
    terminal is an error for that terminal alone."""
    async with world_of(tmp_path) as world:
        await world.core.groups.create(APP, TEAM, [BOB, CAROL])
        answers: dict[str, Any] = {
            BOB: WatcherRefused("No.", address=BOB),
            CAROL: TerminalUnknown("Who?"),
            "sip:late@example.com": FetchTimedOut("Late."),
        }
        world.core.watcher.answer = lambda address: answers.get(address, BUSY)
        assert (await world.ask(envelope(payload()).encode())).result == "getStatusResponse:Busy"
        assert (await world.ask(envelope(payload(f"<address>{TEAM}</address>")).encode())).fault == "POL0006 address"
        assert (await world.ask(envelope(payload(f"<address>{BOB}</address>")).encode())).fault == f"POL0002 {BOB}"
        reply = await world.ask(group("sip:late@example.com", TEAM, "sip:alice@Example.COM"))
        reported = [
            " ".join(leaf.text or "" for leaf in one.iter() if not len(leaf) and leaf.tag != "text")
            for one in reply.content
        ]
        assert reported[:2] == ["sip:late@example.com NotRetrieved", "sip:alice@Example.COM Retrieved Busy"]
        assert sorted(reported[2:]) == [f"{BOB} Error POL0002 {BOB}", f"{CAROL} Error SVC0004 addresses"]


async def test_a_live_watch_answers(tmp_path: Path) -> None:
    """Where the operator allows an age, a watched terminal is answered without a fetch."""
    async with world_of(tmp_path) as world:
        await world.start(ALICE)
        await world.core.play(ALICE, BUSY)
        assert (await world.ask(envelope(payload()).encode())).result == "getStatusResponse:Busy"
        assert world.core.watcher.fetched == []


async def test_policies(tmp_path: Path) -> None:
    """Each policy has the contract's fault, in the operation that the policy limits."""
    policy = Policy(
        busy_available=False,
        max_notification_addresses=2,
        max_targets=2,
        min_interval_ms=5000,
        max_duration_ms=3_600_000,
        max_count=10,
        unlimited_count_allowed=False,
        nested_group_support=False,
        max_subscriptions=1,
    )
    seldom = {"frequency": zero_frequency().replace("0", "5")}
    count = {"count": "<l:count>1</l:count>", **seldom}
    async with world_of(tmp_path, policy) as world:
        hour = "<l:duration><metric>{}</metric><units>{}</units></l:duration>"
        for fault, parts in [
            ("POL0200", {**count, "criteria": "<l:criteria>Busy</l:criteria>"}),
            ("POL0004", seldom),
            ("POL0005", {**seldom, "count": "<l:count>11</l:count>"}),
            ("POL0009", {**count, "frequency": zero_frequency().replace("0", "4")}),
            ("POL0009", {**count, "frequency": zero_frequency()}),
            ("POL0001 DURATION_TOO_LONG", {**count, "duration": hour.format("Minute", 61)}),
            ("SVC0002 duration.units", {**count, "duration": hour.format("Minute", 0)}),
            ("SVC0002 frequency", {**count, "frequency": zero_frequency().replace("0", "-1")}),
            ("SVC0002 count", {**seldom, "count": "<l:count>-1</l:count>"}),
        ]:
            assert (await world.start(ALICE, **parts)).fault == fault
        assert (
            await world.start(ALICE, duration=hour.format("Year", 2_000_000_000), **count)
        ).fault == "POL0001 DURATION_TOO_LONG"
        assert (await world.start(ALICE, BOB, CAROL, **count)).fault == "POL0003 addresses"
        assert (await world.start("alice", **count)).fault == "SVC0004 addresses"
        assert (await world.ask(group(ALICE, BOB, CAROL))).fault == "POL0003 addresses"
        assert (await world.start(ALICE, **count)).status == 200
        assert (await world.start(BOB, correlator="c-2", **count)).fault == "POL0001 TOO_MANY_SUBSCRIPTIONS"


async def test_nested_groups(tmp_path: Path) -> None:
    """A nested group that was allowed once and is no longer is POL0007."""
    clocks, url = Clocks(), await new_database(tmp_path)
    async with world_of(tmp_path, clocks=clocks, url=url) as world:
        await world.core.groups.create(APP, TEAM, [BOB])
        await world.core.groups.create(APP, ALL, [TEAM])
    async with world_of(tmp_path, Policy(nested_group_support=False), clocks=clocks, url=url) as world:
        assert (await world.start(ALL)).fault == "POL0007 addresses"
        assert (await world.ask(group(ALL))).fault == "POL0007 addresses"


async def test_endpoint_is_checked_at_the_start(tmp_path: Path) -> None:
    """An endpoint that is not allowed, does not resolve or refuses the connection is SVC0002 in startNotification, and
    nothing is started."""
    async with world_of(tmp_path) as world:
        for endpoint in (
            "http://10.1.2.3/",
            "http://nobody.invalid/",
            "http://127.0.0.1:1024/",
            "mailto:a@b",
            "",
            "x" * 9999,
        ):
            reference = (
                f"<l:reference><endpoint>{endpoint}</endpoint><interfaceName/><correlator>c</correlator></l:reference>"
            )
            assert (await world.start(ALICE, reference=reference)).fault == "SVC0002 reference.endpoint"
        assert world.core.live.engine.figures()["subscriptions"] == 0


async def test_endpoint_with_credentials(tmp_path: Path) -> None:
    """User info in `reference.endpoint` (RFC 3986 section 3.2.1) is sent as HTTP Basic (RFC 7617), and neither shown
    nor stored in the URL."""
    async with world_of(tmp_path) as world:
        endpoint = world.there.url.replace("://", "://u%40x:s%3Acret@")
        reference = (
            f"<l:reference><endpoint>{endpoint}</endpoint><interfaceName/><correlator>c-1</correlator></l:reference>"
        )
        with structlog.testing.capture_logs() as logs:
            assert (await world.start(ALICE, reference=reference)).status == 200
            await world.core.play(ALICE, BUSY)
            await world.calls(1)
            await until(lambda: not world.deliverer.held)
        basic = base64.b64encode(b"u@x:s:cret").decode()
        assert world.there.requests[0].headers["authorization"] == f"Basic {basic}"
        (kept,), _ = await world.core.store.subscriptions(Page(), SubscriptionFilter(client_id=APP.id))
        assert kept.sink.url == world.there.url
        shown = [
            kept,
            logs,
            await world.core.usage_records(),
            response_messages.subscription(kept),
            to_json.sink(kept.sink),
        ]
        assert not [each for each in shown if "cret" in str(each) or basic in str(each)]


@pytest.mark.parametrize("user_info", ["", ":secret", "a%3Ab:secret", "a%00:secret", "%ff:secret", "a" * 600])
async def test_credentials_that_http_cannot_carry(tmp_path: Path, user_info: str) -> None:
    """RFC 7617 section 2: a user without a colon; no control characters. The fault does not repeat them."""
    async with world_of(tmp_path) as world:
        endpoint = world.there.url.replace("://", f"://{user_info}@")
        reference = (
            f"<l:reference><endpoint>{endpoint}</endpoint><interfaceName/><correlator>c</correlator></l:reference>"
        )
        reply = await world.start(ALICE, reference=reference)
        assert reply.fault == "SVC0002 reference.endpoint"
        assert b"secret" not in reply.body


async def test_correlators(tmp_path: Path) -> None:
    """A correlator is unique among a client's active notifications, and unknown to others."""
    async with world_of(tmp_path) as world:
        assert (await world.start(ALICE)).status == 200
        assert (await world.start(BOB)).fault == "SVC0005 c-1 reference.correlator"
        assert (await world.ask(end(), authorization="other")).fault == "SVC0002 correlator"
        assert (await world.ask(end())).status == 200
        assert (await world.ask(end())).fault == "SVC0002 correlator"
        assert (await world.start(ALICE)).status == 200


async def test_faults_over_http(tmp_path: Path) -> None:
    """Over HTTP too: a forbidden nested group, and an unexpected exception with the reference that is in the log.
    Another client's group is not a group here, so it is not SVC0006; a group that was just deleted is."""
    clocks, url = Clocks(), await new_database(tmp_path)
    async with world_of(tmp_path, clocks=clocks, url=url) as world:
        await world.core.groups.create(APP, TEAM, [BOB])
        await world.core.groups.create(APP, ALL, [TEAM])
    async with (
        world_of(tmp_path, Policy(nested_group_support=False), clocks=clocks, url=url) as world,
        httpx2.AsyncClient(timeout=DEADLINE_S, trust_env=False) as http,
    ):
        with bound("127.0.0.1:0") as sock:
            async with serve_http(world.app, sock, None):
                base = f"http://127.0.0.1:{sock.getsockname()[1]}"

                async def ask(name: str, body: bytes) -> str:
                    response = await http.post(
                        f"{base}/{name}", content=body, headers={"Content-Type": "text/xml; charset=utf-8"}
                    )
                    return Reply(response.status_code, dict(response.headers), response.content).fault

                nobody = "sip:nobody@groups.example.com"
                await world.core.groups.create(OTHER, TerminalAddress(nobody), [BOB])
                assert await ask("TerminalStatus", group(ALL)) == "POL0007 addresses"
                started = start(addresses=f"<l:addresses>{ALL}</l:addresses>")
                assert await ask("TerminalStatusNotificationManager", started) == "POL0007 addresses"
                gone = TerminalAddress("sip:gone@groups.example.com")
                await world.core.groups.create(APP, gone, [BOB])
                await world.core.store.delete_group(APP.id, gone, None)  # as if another process did it
                assert await ask("TerminalStatus", group(gone)) == f"SVC0006 {gone} addresses"
                world.core.watcher.answer = lambda _: TerminalUnknown("Who?")
                asked = envelope(payload(f"<address>{nobody}</address>")).encode()
                assert await ask("TerminalStatus", asked) == "SVC0004 address"
                world.core.watcher.answer = defective
                with structlog.testing.capture_logs() as logs:
                    fault = await ask("TerminalStatus", envelope(payload()).encode())
                (entry,) = [one for one in logs if one["event"] == "soap_call_failed"]
                assert fault == f"SVC0001 {entry['reference']}"


def defective(_: TerminalAddress) -> Status:
    raise RuntimeError("a secret")


# --- callbacks


async def test_callbacks(tmp_path: Path) -> None:
    """A whole subscription: the immediate statuses, several changes in one callback, and the end; in order, in the
    version of the start."""
    async with world_of(tmp_path) as world:
        manager = MANAGER.replace("v2_3", "v3_1")
        frequency = zero_frequency().replace("0", "5")
        reply = await world.start(
            ALICE, "sip:bob@Example.com", namespace=manager, frequency=frequency, count="<l:count>3</l:count>"
        )
        assert reply.status == 200
        world.core.watcher.play(ALICE, REACHABLE)
        await world.core.settled()
        assert await world.calls(1) == [f"statusNotification c-1 {ALICE} Reachable"]
        await world.core.play(BOB, UNREACHABLE)
        await world.core.play(ALICE, BUSY)
        await world.core.advance(5)
        assert (await world.calls(2))[1:] == [f"statusNotification c-1 sip:bob@Example.com Unreachable {ALICE} Busy"]
        await world.core.advance(5)
        await world.core.play(ALICE, UNREACHABLE)
        assert (await world.calls(4))[2:] == [f"statusNotification c-1 {ALICE} Unreachable", "statusEnd c-1"]
        assert all(b"notification/v3_0/local" in request.body for request in world.there.requests)


async def test_no_callback_begins_after_end_notification(tmp_path: Path) -> None:
    """Callbacks that are owed when endNotification returns are withdrawn, listed as such, and never sent; the first
    attempt of one is billed to the end."""
    async with world_of(tmp_path, behave=answer(500)) as world:
        await world.start(ALICE)
        await world.core.play(ALICE, BUSY)
        await world.calls(1)
        await world.core.play(ALICE, UNREACHABLE)
        assert (await world.ask(end())).status == 200
        await world.core.play(ALICE, REACHABLE)
        world.core.clocks.advance(86_400)
        world.there.behave = answer(200, body=FAULT)
        await world.start(BOB, correlator="c-2")
        await world.core.play(BOB, BUSY)
        assert (await world.calls(2))[1:] == [f"statusNotification c-2 {BOB} Busy"]  # after everything that was due
        ended = await listed(world, DeliveryState.WITHDRAWN)
        assert [(one.sequence, one.attempts) for one in ended] == [(1, 1), (2, 0)]
        about = [
            one for one in await world.core.usage_records() if one.operation.value.startswith("statusNotification_")
        ]
        first = [(one.operation.value, one.root_cause) for one in about if one.correlator == "c-1"]
        assert first == [
            ("statusNotification_DeliveryAttempted", ""),
            ("statusNotification_DeliveryResult", "withdrawn"),
        ]


@pytest.mark.parametrize(("code", "state"), [(200, "DELIVERED"), (500, "WITHDRAWN")])
async def test_end_notification_waits_for_the_callback_in_flight(tmp_path: Path, code: int, state: str) -> None:
    """endNotification returns after the callback in flight has ended; its result counts."""
    happened, answered = list[str](), asyncio.Event()

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await answered.wait()
        happened.append("callback answered")
        await answer(code)(request, writer)

    async with world_of(tmp_path, behave=slow) as world:
        await world.start(ALICE)
        await world.core.play(ALICE, BUSY)
        await world.calls(1)
        await world.core.play(ALICE, UNREACHABLE)
        ending = asyncio.create_task(world.ask(end()))
        ending.add_done_callback(lambda _: happened.append("endNotification returned"))
        await until(lambda: not world.core.live.engine.figures()["subscriptions"])
        await world.core.play(ALICE, REACHABLE)  # other calls are answered meanwhile
        answered.set()
        assert (await ending).status == 200
        assert happened == ["callback answered", "endNotification returned"]
        await world.deliverer.aclose()
        states = [one.state.value for one in await listed(world)]
        assert (states, len(world.there.requests)) == ([state, "WITHDRAWN"], 1)


async def test_end_notification_waits_no_longer_than_an_attempt(tmp_path: Path) -> None:
    """For an application that never answers its callback, endNotification waits no longer than the attempt's time
    limit."""
    async with world_of(tmp_path, behave=hang, total_s=0.3) as world:
        await world.start(ALICE)
        await world.core.play(ALICE, BUSY)
        await world.calls(1)
        assert (await world.ask(end())).status == 200
        await world.deliverer.aclose()
        (one,) = await listed(world)
        assert (one.state, one.attempts) == (DeliveryState.WITHDRAWN, 1)


async def listed(world: World, state: DeliveryState | None = None) -> list[OwedNotification]:
    """The notifications in this state."""
    found, _ = await world.core.store.notifications(Page(), NotificationFilter(state=state))
    return list(found)


async def test_end_by_duration(tmp_path: Path) -> None:
    """When the duration is over, statusEnd is the last callback."""
    async with world_of(tmp_path) as world:
        await world.start(ALICE, duration="<l:duration><metric>Minute</metric><units>1</units></l:duration>")
        await world.core.advance(60)
        assert await world.calls(1) == ["statusEnd c-1"]


async def test_errors(tmp_path: Path) -> None:
    """Each terminal that fails is reported with its address; the last one ends the subscription, without statusEnd."""
    async with world_of(tmp_path) as world:
        await world.start(ALICE, BOB)
        world.core.watcher.fail(ALICE, TerminalUnknown("Who?"))
        await world.core.settled()
        assert await world.calls(1) == [f"statusError c-1 {ALICE} SVC0004 addresses"]
        world.core.watcher.fail(BOB, WatcherRefused("No."))
        await world.core.settled()
        assert (await world.calls(2))[1:] == ["statusError c-1 POL0001 WATCHER_REFUSED"]
        assert (await world.ask(end())).fault == "SVC0002 correlator"


async def test_failed_attempts_are_repeated_in_order(tmp_path: Path) -> None:
    """A fault, an HTTP error or a lost connection delays the later callbacks and loses none."""
    behave = in_turn(answer(500, body=FAULT), answer(200, body=FAULT), reset, answer(200))
    async with world_of(tmp_path, behave=behave) as world:
        await world.start(ALICE)
        await world.core.play(ALICE, REACHABLE)
        await world.core.play(ALICE, BUSY)
        first = f"statusNotification c-1 {ALICE} Reachable"
        for count in range(1, 4):
            assert await world.calls(count) == [first] * count
            await until(lambda: not world.deliverer.held)
            world.core.clocks.advance(60)
        assert (await world.calls(5))[3:] == [first, f"statusNotification c-1 {ALICE} Busy"]


async def test_usage(tmp_path: Path) -> None:
    """Every operation and every callback leaves usage records under the contract's names, with face and requester."""
    async with world_of(tmp_path) as world:
        await world.start(
            ALICE, requester="<l:requester>sip:app@example.com</l:requester>", count="<l:count>1</l:count>"
        )
        await world.core.play(ALICE, REACHABLE)
        await world.calls(2)
        await until(lambda: not world.deliverer.held)
        await world.ask(envelope(payload()).encode())
        await world.ask(group(BOB))
        await world.ask(end())
        records = await world.core.usage_records()
        calls = [(one.operation.value, one.face.value, one.requester, one.result, one.correlator) for one in records]
        assert sorted(calls) == sorted(
            [
                ("startNotification", "soap", "sip:app@example.com", "OK", "c-1"),
                ("getStatus", "soap", "", "REACHABLE", ""),
                ("getStatusForGroup", "soap", "", "OK", ""),
                ("endNotification", "soap", "", "SUBSCRIPTION_UNKNOWN", "c-1"),
                *[
                    (f"{name}_Delivery{part}", "gateway", "", "OK", "c-1")
                    for name in ("statusNotification", "statusChanged", "statusEnd")
                    for part in ("Attempted", "Result")
                ],
            ]
        )
        kept, _ = await world.core.store.subscriptions(Page(), SubscriptionFilter(client_id=APP.id, state=None))
        assert [one.sink.profile for one in kept] == ["v2_3"]


async def test_usage_of_what_is_refused(tmp_path: Path) -> None:
    """A request that is refused before a use case leaves one usage record, with those parts that could be read."""
    async with world_of(tmp_path) as world:
        for body, fault in [
            (start(frequency="", requester="<l:requester>sip:r@example.com</l:requester>"), "SVC0002 frequency"),
            (start(duration="<l:duration><metric>Day</metric><units>0</units></l:duration>"), "SVC0002 duration.units"),
            (end("<l:correlator> </l:correlator>"), "SVC0002 correlator"),
            (end(f"<l:correlator>{'c' * 10_000}</l:correlator>"), "SVC0002 correlator"),
            (group(ALICE, "<x/>", BOB), "SVC0002 addresses"),
            (group(*["a"] * 25_000), "POL0003 addresses"),
            (envelope(payload("<l:requester/>" + "<l:address>a</l:address>" * 3)).encode(), "SVC0002 address"),
            (envelope(payload("<l:address>nobody</l:address>")).encode(), "SVC0002 address"),
        ]:
            assert (await world.ask(body, authorization="other")).fault == fault
        assert (await world.ask(b"<a/>")).faultcode == "Client"
        records = await world.core.usage_records()
        assert [(one.operation.value, one.correlator[:5], list(one.targets), one.requester) for one in records] == [
            ("startNotification", "c-1", [ALICE, "tel:+15550002"], "sip:r@example.com"),
            ("startNotification", "c-1", [ALICE, "tel:+15550002"], ""),
            ("endNotification", "", [], ""),
            ("endNotification", "ccccc", [], ""),
            ("getStatusForGroup", "", [ALICE, BOB], ""),
            ("getStatusForGroup", "", ["a"] * MAX_USAGE_TARGETS, ""),
            ("getStatus", "", ["a", "a", "a"], ""),
            ("getStatus", "", ["nobody"], ""),
        ]
        refused = ["INVALID_REQUEST"] * 5 + ["TOO_MANY_ADDRESSES", "INVALID_REQUEST", "INVALID_ADDRESS"]
        assert [one.result for one in records] == refused
        assert {(one.client_id, one.face.value) for one in records} == {(OTHER.id, "soap")}
        assert (
            records[0].root_cause
            == "SVC0002: Invalid input value for message part frequency. The part is missing; send it."
        )


@pytest.mark.parametrize("address", ["sip:alice@EXAMPLE.com", "SIP:alice@example.com", "sip:%61lice@example.com"])
async def test_own_spelling(tmp_path: Path, address: str) -> None:
    """In callbacks, terminals have the spelling that the application used."""
    async with world_of(tmp_path) as world:
        await world.start(address)
        await world.core.play(TerminalAddress(ALICE), BUSY)
        assert await world.calls(1) == [f"statusNotification c-1 {address} Busy"]
        world.core.watcher.fail(ALICE, WatcherRefused("No."))
        await world.core.settled()
        assert (await world.calls(2))[1:] == [f"statusError c-1 POL0002 {address}"]


# --- addresses as field applications send them


def results_of(reply: Reply) -> list[str]:
    """The results in short, such as `sip:a@b Retrieved Busy`."""
    assert reply.status == 200, reply.reason
    return [" ".join(leaves(one)) for one in reply.content]


MALFORMED = {
    "no scheme": "alice",
    "local number": "tel:15550003",
    "blank": "sip:al ice@example.com",
    "outside ASCII": "sip:jörg@example.com",
    "no URI": "50% &lt;x&gt;",
    "bracket": "sip:a@[::1",
    "no scheme either": "1:2#3#4",
    "empty": "",
    "long": "sip:" + "a" * 300 + "@example.com",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
async def test_one_malformed_address_of_many_in_a_query(tmp_path: Path, text: str) -> None:
    """getStatusForGroup answers a malformed address with Error and SVC0002, under its text, and the others with their
    status (3GPP TS 29.199-8, StatusData: `errorInformation` belongs to one address)."""
    async with world_of(tmp_path) as world:
        world.core.watcher.answer = lambda address: BUSY
        shown = any_uri(text.replace("&lt;", "<").replace("&gt;", ">"))
        reply = await world.ask(group(ALICE, text, BOB, text))
        found = results_of(reply)
        assert found == [
            f"{ALICE} Retrieved Busy",
            f"{BOB} Retrieved Busy",
            f"{shown} Error SVC0002 addresses",
        ]
        (record,) = await world.core.usage_records()
        assert (record.result, record.expanded_count) == ("OK", 2)


@pytest.mark.parametrize("texts", [["alice"], ["alice", "tel:1"], ["", " "]])
async def test_no_valid_address(tmp_path: Path, texts: list[str]) -> None:
    """SVC0004 where no address is valid, in both operations with lists (3GPP TS 29.199-1); nothing is started."""
    async with world_of(tmp_path) as world:
        assert (await world.ask(group(*texts))).fault == "SVC0004 addresses"
        assert (await world.start(*texts)).fault == "SVC0004 addresses"
        assert world.core.live.engine.figures()["subscriptions"] == 0
        assert [one.result for one in await world.core.usage_records()] == ["NO_VALID_ADDRESSES"] * 2


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
async def test_one_malformed_address_of_many_in_a_subscription(tmp_path: Path, text: str) -> None:
    """startNotification starts the valid addresses, and reports each malformed one by a statusError with that address,
    which ends nothing for the others (3GPP TS 29.199-8, statusError: `address` is the terminal that it concerns)."""
    async with world_of(tmp_path) as world:
        assert (await world.start(ALICE, text, BOB)).status == 200
        shown = any_uri(text.replace("&lt;", "<").replace("&gt;", ">")[:200])
        assert await world.calls(1) == [f"statusError c-1 {shown} SVC0002 addresses"]
        assert b"<tns:address" in world.there.requests[0].body
        await world.core.play(ALICE, BUSY)
        assert (await world.calls(2))[1:] == [f"statusNotification c-1 {ALICE} Busy"]
        kept, _ = await world.core.store.subscriptions(Page(), SubscriptionFilter(client_id=APP.id))
        assert [one.addresses for one in kept] == [(ALICE, BOB)]


async def test_several_malformed_addresses(tmp_path: Path) -> None:
    """There is one statusError for each malformed address, before the first status, also where a count ends the
    notification at once."""
    async with world_of(tmp_path) as world:
        await world.start(ALICE)
        await world.core.play(ALICE, BUSY)
        assert await world.calls(1) == [f"statusNotification c-1 {ALICE} Busy"]
        count = "<l:count>1</l:count>"
        assert (await world.start("x", ALICE, "y", "x", correlator="c-2", count=count)).status == 200
        assert (await world.calls(5))[1:] == [
            "statusError c-2 x SVC0002 addresses",
            "statusError c-2 y SVC0002 addresses",
            f"statusNotification c-2 {ALICE} Busy",
            "statusEnd c-2",
        ]


@pytest.mark.parametrize(
    ("context", "text", "terminal"),
    [
        ("+", "tel:15550002", "tel:+15550002"),
        ("+", "TEL:1-555-0002", "tel:+15550002"),
        ("+44", "tel:7700900123", "tel:+447700900123"),
        ("+44", "tel:+15550002", "tel:+15550002"),
    ],
)
async def test_telephone_numbers_without_a_plus(tmp_path: Path, context: str, text: str, terminal: str) -> None:
    """With TS_TEL_DEFAULT_CONTEXT a number without a plus (RFC 3966 section 5.1.5) means the global number, in every
    operation; answers and callbacks have the application's own text."""
    async with world_of(tmp_path, tel_context=context) as world:
        world.core.watcher.answer = lambda address: BUSY
        assert (await world.ask(envelope(payload(f"<l:address>{text}</l:address>")).encode())).result.endswith("Busy")
        assert results_of(await world.ask(group(ALICE, text))) == [
            f"{ALICE} Retrieved Busy",
            f"{text} Retrieved Busy",
        ]
        assert (await world.start(text)).status == 200
        await world.core.play(TerminalAddress(terminal), BUSY)
        assert await world.calls(1) == [f"statusNotification c-1 {text} Busy"]
        assert set(world.core.watcher.fetched) == {ALICE, terminal}


async def test_telephone_numbers_without_a_plus_are_invalid_by_default(tmp_path: Path) -> None:
    """Without the setting a local number needs a phone-context (RFC 3966 section 5.1.5)."""
    async with world_of(tmp_path) as world:
        body = envelope(payload("<l:address>tel:15550002</l:address>")).encode()
        assert (await world.ask(body)).fault == "SVC0002 address"
        assert (await world.start("tel:15550002")).fault == "SVC0004 addresses"
