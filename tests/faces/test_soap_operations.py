"""The four operations of the SOAP face: the calls of the use cases, the answers, and every fault."""

import asyncio
from dataclasses import replace

import pytest
import structlog
from lxml import etree

from app.core.subscription_requests import SubscriptionRequest
from app.domain.errors import (
    BusyNotSupported,
    CountTooLarge,
    DuplicateCorrelator,
    DurationTooLong,
    FetchTimedOut,
    GroupNotAllowed,
    GroupUnknown,
    IntervalTooShort,
    InvalidAddress,
    InvalidRequest,
    NestedGroupNotAllowed,
    NoValidAddresses,
    RateLimited,
    SinkRefused,
    SinkUnreachable,
    SubscriptionUnknown,
    TerminalStatusError,
    TerminalUnknown,
    TooManyAddresses,
    UnlimitedCountNotAllowed,
    WatcherRefused,
)
from app.domain.operations import Face
from app.domain.records import MAX_CORRELATOR
from app.domain.sinks import Sink, SinkKind
from app.domain.statuses import Status, TerminalStatus
from soap_compat.address_spelling import MAX_SPELLINGS, spelling_of
from soap_compat.contract_types import MILLISECONDS
from soap_compat.faults import FAULTS, OPERATIONS, TEXTS
from soap_compat.request_envelope import MAX_ELEMENTS
from tests.support.soap import (
    ALICE,
    COMMON,
    LOCAL,
    MANAGER,
    OWNER,
    TYPES,
    FakeUseCases,
    Reply,
    call,
    envelope,
    face,
    payload,
    valid,
)
from tests.support.soap_requests import (
    BOB,
    CAROL,
    ENDPOINT,
    FREQUENCY,
    REFERENCE,
    REQUESTS,
    START,
    common_in,
    end,
    group,
    result,
    start,
    status_of,
)

STARTED = SubscriptionRequest(
    skip_invalid=True,
    addresses=[ALICE, BOB],
    criteria=frozenset({Status.BUSY, Status.REACHABLE}),
    check_immediate=True,
    min_interval_ms=5000,
    interval_named=True,
    duration_ms=7_200_000,
    count=3,
    correlator="c-1",
    sink=Sink(kind=SinkKind.SOAP, url="http://app.example/callback?a=1&b=2", profile="v2_3"),
)


async def ask(use_cases: FakeUseCases, body: bytes) -> Reply:
    """Calls the interface that the body belongs to."""
    manager = b"startNotification" in body or b"endNotification" in body
    path = "/TerminalStatusNotificationManager" if manager else "/TerminalStatus"
    return await call(face(use_cases), body, path=path)


# --- calls and answers


@pytest.mark.parametrize("body", REQUESTS.values(), ids=REQUESTS.keys())
def test_requests_of_these_tests_are_valid(body: bytes) -> None:
    """The requests of these tests are valid by the served WSDL."""
    valid(etree.fromstring(body)[0][0])


async def test_get_status_for_group() -> None:
    """Each terminal has its own result: retrieved, not retrieved, or an error with its information."""
    refused = WatcherRefused("No.", address=CAROL)
    use_cases = FakeUseCases(
        results=[
            result(CAROL, error=refused),
            result("sip:member@example.com", Status.UNREACHABLE),
            result(BOB, error=FetchTimedOut("Late.")),
            result("sip:unknown@example.com", error=TerminalUnknown("Who?")),
            result(ALICE, Status.BUSY),
        ]
    )
    carol = CAROL.replace("&", "&amp;").replace("<", "&lt;")
    reply = await ask(use_cases, group(ALICE, "tel:+1-555-0002", carol, "sip:team@example.com"))
    assert [[(part.tag, part.text) for part in one.iter() if part.text] for one in reply.content] == [
        [("address", ALICE), ("reportStatus", "Retrieved"), ("currentStatus", "Busy")],
        [("address", "tel:+1-555-0002"), ("reportStatus", "NotRetrieved")],
        [
            ("address", CAROL),
            ("reportStatus", "Error"),
            ("messageId", "POL0002"),
            ("text", TEXTS["POL0002"]),
            ("variables", CAROL),
        ],
        [("address", "sip:member@example.com"), ("reportStatus", "Retrieved"), ("currentStatus", "Unreachable")],
        [
            ("address", "sip:unknown@example.com"),
            ("reportStatus", "Error"),
            ("messageId", "SVC0004"),
            ("text", TEXTS["SVC0004"]),
            ("variables", "addresses"),
        ],
    ]
    assert {one.tag for one in reply.content} == {f"{{{LOCAL}}}result"}
    assert use_cases.asked == [(OWNER, [ALICE, "tel:+1-555-0002", CAROL, "sip:team@example.com"], 0, Face.SOAP, "")]


async def test_get_status_for_group_of_nobody() -> None:
    """Without results the response is empty."""
    reply = await ask(FakeUseCases(), group("sip:empty@example.com"))
    assert (reply.content.tag, len(reply.content)) == (f"{{{LOCAL}}}getStatusForGroupResponse", 0)


async def test_start_notification() -> None:
    """Every part of the request reaches the use case; the response is empty."""
    use_cases = FakeUseCases()
    reply = await ask(use_cases, start())
    assert (reply.content.tag, len(reply.content), reply.content.text) == (
        f"{{{MANAGER}}}startNotificationResponse",
        0,
        None,
    )
    assert use_cases.created == [(OWNER, STARTED, Face.SOAP, "")]


async def test_start_notification_with_defaults() -> None:
    """Optional parts may be missing: without criteria any change counts, without duration the policy's default holds,
    without count the number is unlimited."""
    use_cases = FakeUseCases()
    await ask(use_cases, start(criteria="", duration="", count=""))
    (_, request, *_) = use_cases.created[0]
    assert request == replace(STARTED, criteria=frozenset(), duration_ms=None, count=0)


async def test_own_spelling() -> None:
    """Addresses whose canonical form differs are kept with the sink as the application wrote them, up to a bound."""
    use_cases = FakeUseCases()
    spellings = ["sip:a@Example.com", "tel:+1-555", *[f"sip:{n}@Example.com" for n in range(MAX_SPELLINGS - 2)]]
    for extra in ([], ["sip:x@Example.com"]):
        parts = "".join(f"<l:addresses>{text}</l:addresses>" for text in [*spellings, *extra])
        assert (await ask(use_cases, start(addresses=parts + START["addresses"]))).status == 200
    kept, none = [request.sink.parameters for _, request, *_ in use_cases.created]
    assert len(spelling_of(kept)) == MAX_SPELLINGS
    assert spelling_of(kept)["sip:a@example.com"] == "sip:a@Example.com"
    assert none == {}


async def test_end_notification() -> None:
    """The correlator reaches the use case unchanged, with its blanks; the response is empty."""
    use_cases = FakeUseCases()
    reply = await ask(use_cases, end("<l:correlator> c &lt;1&gt;\n</l:correlator>"))
    assert (reply.content.tag, len(reply.content)) == (f"{{{MANAGER}}}endNotificationResponse", 0)
    assert use_cases.ended == [(OWNER, " c <1>\n", Face.SOAP, "")]


@pytest.mark.parametrize("version", ["v2_0", "v2_2", "v2_3", "v2_10", "v3_0", "v3_1"])
async def test_version(version: str) -> None:
    """Any 2.x and 3.x is answered in its own namespace, faults too; the version is kept for the callbacks."""
    manager, local = MANAGER.replace("v2_3", version), LOCAL.replace("v2_2", version)
    use_cases = FakeUseCases(results=[result(ALICE, Status.BUSY)])
    assert (await ask(use_cases, start(manager))).content.tag == f"{{{manager}}}startNotificationResponse"
    assert use_cases.created[0][1].sink.profile == version
    assert (await ask(use_cases, end(namespace=manager))).content.tag == f"{{{manager}}}endNotificationResponse"
    answered = (await ask(use_cases, group(ALICE, namespace=local))).content
    assert (answered.tag, answered[0].tag) == (f"{{{local}}}getStatusForGroupResponse", f"{{{local}}}result")
    refused = await ask(FakeUseCases(raises=IntervalTooShort("No.")), start(manager))
    assert refused.declared == (f"{{{common_in(version)}}}PolicyException", "POL0009")


@pytest.mark.parametrize("operation", REQUESTS)
async def test_requester(operation: str) -> None:
    """The requester of 3.x reaches the use case in each operation; a requester that is too long is refused by name."""
    use_cases = FakeUseCases(get_status_of=lambda address: asyncio.sleep(0, status_of(address)))
    body = REQUESTS[operation].replace(b"<l:add", b"<l:requester>%s</l:requester><l:add", 1)
    body = body.replace(b"<l:correlator>", b"<l:requester>%s</l:requester><l:correlator>", 1)
    reply = await ask(use_cases, body % b" sip:app@example.com ")
    assert reply.status == 200
    (requester,) = [one[-1] for one in (*use_cases.asked, *use_cases.created, *use_cases.ended)]
    assert requester == "sip:app@example.com"
    assert (await ask(use_cases, body % (b"a" * 201))).fault == "SVC0002 requester"


async def test_age() -> None:
    """Queries accept statuses of the age that the operator has set."""
    use_cases = FakeUseCases(get_status_of=lambda address: asyncio.sleep(0, status_of(address)))
    app = face(use_cases, max_age_s=60)
    await call(app, REQUESTS["getStatus"])
    await call(app, REQUESTS["getStatusForGroup"])
    assert [asked[2] for asked in use_cases.asked] == [60, 60]


LENIENT = {
    "unqualified parts": start()
    .replace(b"<l:", b"<")
    .replace(b"</l:", b"</")
    .replace(b"startNotification", b"l:startNotification"),
    "qualified members": start(
        reference=REFERENCE.replace("<endpoint", "<l:endpoint")
        .replace("</endpoint", "</l:endpoint")
        .replace("<correlator", f'<c:correlator xmlns:c="{COMMON}"')
        .replace("</correlator", "</c:correlator"),
        frequency=FREQUENCY.replace("<metric", f'<metric xmlns="{COMMON}"'),
    ),
    "another order": start(addresses="", reference=START["addresses"] + REFERENCE),
    "default namespace": start().replace(b"<l:", b"<").replace(b"</l:", b"</").replace(b"xmlns:l", b"xmlns"),
    "no namespace": start().replace(b"<l:", b"<").replace(b"</l:", b"</"),
    "types' namespace": start(TYPES),
    "wrappers of TerminalStatus": start(LOCAL),
    "numbers and blanks": start(
        checkImmediate="<l:checkImmediate> 1 </l:checkImmediate>",
        count="<l:count>\n+03</l:count>",
        criteria="<l:criteria> Busy</l:criteria><l:criteria>Reachable\n</l:criteria>",
    ),
    "what is not known": start(requester="<l:future><x>1</x></l:future>"),
}


@pytest.mark.parametrize("body", LENIENT.values(), ids=LENIENT.keys())
async def test_lenient(body: bytes) -> None:
    """Requests with other qualification, order or spacing mean the same."""
    use_cases = FakeUseCases()
    reply = await ask(use_cases, body)
    assert reply.status == 200, reply.reason
    profile = use_cases.created[0][1].sink.profile
    expected = replace(STARTED, sink=replace(STARTED.sink, profile=profile), addresses=[ALICE, BOB])
    assert use_cases.created == [(OWNER, expected, Face.SOAP, "")]


async def test_nil() -> None:
    """Optional parts that are nil count as missing; clients with nullable types send them so."""
    nil = 'xmlns:i="http://www.w3.org/2001/XMLSchema-instance" i:nil="true"'
    use_cases = FakeUseCases()
    parts = {name: f"<l:{name} {nil}/>" for name in ("requester", "criteria", "duration", "count")}
    assert (await ask(use_cases, start(**parts))).status == 200
    assert use_cases.created[0][1] == replace(STARTED, criteria=frozenset(), duration_ms=None, count=0)
    reply = await ask(use_cases, start(frequency=f"<l:frequency {nil}/>"))
    assert reply.fault == "SVC0002 frequency.metric"


@pytest.mark.parametrize(("metric", "milliseconds"), MILLISECONDS.items())
async def test_time_metrics(metric: str, milliseconds: int) -> None:
    """Every TimeMetrics unit is converted to milliseconds; a month is 30 days and a year 365."""
    use_cases = FakeUseCases()
    await ask(use_cases, start(frequency=FREQUENCY.replace("Second", metric)))
    assert use_cases.created[0][1].min_interval_ms == 5 * milliseconds


# --- bad input


def without(name: str) -> bytes:
    return start(**{name: ""})


def twice(name: str) -> bytes:
    return start(**{name: START[name].replace(f"<l:{name}>", f"<l:{name}>", 1) * 2})


def with_units(name: str, units: str) -> bytes:
    return start(**{name: f"<l:{name}><metric>Year</metric><units>{units}</units></l:{name}>"})


BAD = {
    **{f"no {name}": (without(name), f"SVC0002 {name}") for name in ("reference", "checkImmediate", "frequency")},
    "no addresses": (start(addresses=""), "SVC0002 addresses"),
    **{
        f"two {name}": (twice(name), f"SVC0002 {name}")
        for name in ("reference", "checkImmediate", "frequency", "duration", "count")
    },
    "no endpoint": (
        start(reference=REFERENCE.replace(f"<endpoint>{ENDPOINT}</endpoint>", "")),
        "SVC0002 reference.endpoint",
    ),
    "two correlators": (
        start(reference=REFERENCE.replace("<correlator>", "<correlator>x</correlator><correlator>")),
        "SVC0002 reference.correlator",
    ),
    "no correlator": (
        start(reference=REFERENCE.replace("<correlator>c-1</correlator>", "")),
        "SVC0002 reference.correlator",
    ),
    "empty correlator": (start(reference=REFERENCE.replace("c-1", " ")), "SVC0002 reference.correlator"),
    "long correlator": (start(reference=REFERENCE.replace("c-1", "c" * 10_000)), "SVC0002 reference.correlator"),
    "criteria in lower case": (start(criteria="<l:criteria>busy</l:criteria>"), "SVC0002 criteria"),
    "criteria in upper case": (start(criteria="<l:criteria>BUSY</l:criteria>"), "SVC0002 criteria"),
    "empty criteria": (start(criteria="<l:criteria/>"), "SVC0002 criteria"),
    "metric in lower case": (start(frequency=FREQUENCY.replace("Second", "second")), "SVC0002 frequency.metric"),
    "no units": (start(duration="<l:duration><metric>Day</metric></l:duration>"), "SVC0002 duration.units"),
    "empty duration": (start(duration="<l:duration/>"), "SVC0002 duration.metric"),
    "units of words": (with_units("duration", "two"), "SVC0002 duration.units"),
    "units of 33 bits": (with_units("duration", "2147483648"), "SVC0002 duration.units"),
    "units of a million digits": (with_units("duration", "9" * 900_000), "SVC0002 duration.units"),
    "a duration of nothing": (with_units("duration", "0"), "SVC0002 duration.units"),
    "a negative duration": (with_units("duration", "-1"), "SVC0002 duration.units"),
    "units with a point": (with_units("frequency", "1.0"), "SVC0002 frequency.units"),
    "count of 33 bits": (start(count="<l:count>-2147483649</l:count>"), "SVC0002 count"),
    "count of words": (start(count="<l:count>many</l:count>"), "SVC0002 count"),
    "empty count": (start(count="<l:count/>"), "SVC0002 count"),
    "yes": (start(checkImmediate="<l:checkImmediate>yes</l:checkImmediate>"), "SVC0002 checkImmediate"),
    "True": (start(checkImmediate="<l:checkImmediate>True</l:checkImmediate>"), "SVC0002 checkImmediate"),
    "text for a reference": (start(reference="<l:reference>c-1</l:reference>"), "SVC0002 reference.endpoint"),
    "an element for text": (
        start(addresses="<l:addresses><l:address>sip:a@b</l:address></l:addresses>"),
        "SVC0002 addresses",
    ),
    "end without correlator": (end(""), "SVC0002 correlator"),
    "end with two correlators": (end("<l:correlator>a</l:correlator>" * 2), "SVC0002 correlator"),
    "end with an empty correlator": (end("<l:correlator/>"), "SVC0002 correlator"),
    "end with a long correlator": (end(f"<l:correlator>{'c' * 10_000}</l:correlator>"), "SVC0002 correlator"),
    "group of nobody": (group(), "SVC0002 addresses"),
}


@pytest.mark.parametrize(("body", "fault"), BAD.values(), ids=BAD.keys())
async def test_bad_input(body: bytes, fault: str) -> None:
    """A part that is missing, repeated or of the wrong form is SVC0002 with its name; no use case is called; the next
    request is answered."""
    use_cases = FakeUseCases(results=[result(ALICE, Status.BUSY)])
    reply = await ask(use_cases, body)
    assert reply.fault == fault
    assert len(reply.body) < 2000
    assert (use_cases.asked, use_cases.created, use_cases.ended) == ([], [], [])
    assert (await ask(use_cases, start())).status == 200


@pytest.mark.parametrize(
    ("metric", "units", "fault"),
    [
        ("Day", 366, None),
        ("Day", 367, "POL0001 DURATION_TOO_LONG"),
        ("Millisecond", (1 << 31) - 1, None),
        ("Second", (1 << 31) - 1, "POL0001 DURATION_TOO_LONG"),
        ("Year", 2, "POL0001 DURATION_TOO_LONG"),
        ("Year", (1 << 31) - 1, "POL0001 DURATION_TOO_LONG"),
    ],
)
async def test_longest_duration(metric: str, units: int, fault: str | None) -> None:
    """A duration above the maximum is POL0001 also where the maximum is the gateway's own (3GPP TS 29.199-8,
    startNotification)."""
    use_cases = FakeUseCases()
    duration = f"<l:duration><metric>{metric}</metric><units>{units}</units></l:duration>"
    reply = await ask(use_cases, start(duration=duration))
    assert (None if reply.status == 200 else reply.fault) == fault
    assert len(use_cases.created) == (fault is None)


REFERRED = {
    "a text": (envelope(payload('<l:address href="#id0"/>')), "SVC0002 address"),
    "with blanks": (envelope(payload('<l:address href="#id0"> \n </l:address>')), "SVC0002 address"),
    "one of several": (
        group(ALICE).decode().replace("</l:get", '<l:addresses href="#1"/></l:get'),
        "SVC0002 addresses",
    ),
    "a struct": (start(reference='<l:reference href="#id1"/>').decode(), "SVC0002 reference"),
    "a member": (
        start(frequency='<l:frequency><metric href="#m"/><units>5</units></l:frequency>').decode(),
        "SVC0002 frequency.metric",
    ),
    "an optional part": (start(duration='<l:duration href="cid:1"/>').decode(), "SVC0002 duration"),
    "the operation": (envelope(payload("").replace("<l:getStatus ", '<l:getStatus href="#o" ')), None),
    "multiRef": (
        envelope(payload('<l:address href="#id0"/>') + f'<multiRef id="id0">{ALICE}</multiRef>'),
        None,
    ),
    "another name": (envelope(payload('<l:address href="#a"/>') + f'<x id="a">{ALICE}</x>'), None),
}


@pytest.mark.parametrize(("body", "fault"), REFERRED.values(), ids=REFERRED.keys())
async def test_href(body: str, fault: str | None) -> None:
    """A value that the client wrote elsewhere (SOAP 1.1 section 5.4.1) is called SOAP encoding, whether the other
    element is there or not; `fault` is the declared fault, None for soap:Client."""
    use_cases = FakeUseCases()
    reply = await ask(use_cases, body.encode())
    assert "SOAP encoding" in reply.reason
    assert "document/literal" in reply.reason
    assert "`href`" in reply.reason
    if fault is None:
        assert (reply.status, reply.faultcode, reply.content.find("detail")) == (500, "Client", None)
    else:
        assert reply.fault == fault
    assert (use_cases.asked, use_cases.created) == ([], [])


async def test_href_beside_a_value() -> None:
    """An element with `href` and content has its content as value, and two operations without `href` are not called
    SOAP encoding."""
    use_cases = FakeUseCases(get_status_of=lambda address: asyncio.sleep(0, status_of(address)))
    body = envelope(payload(f'<l:address href="#id0">{ALICE}</l:address><l:future href="#id1"/>'))
    assert (await ask(use_cases, body.encode())).status == 200
    assert "href" not in (await ask(use_cases, envelope(payload() * 2).encode())).reason


async def test_a_million_addresses() -> None:
    """More addresses than a request may have elements are POL0003 in operations for several terminals; a larger request
    than allowed is a client fault, unread."""
    use_cases = FakeUseCases()
    many = "<l:addresses>a</l:addresses>" * 25_000
    assert (await ask(use_cases, group(*["a"] * 25_000))).fault == "POL0003 addresses"
    assert (await ask(use_cases, start(addresses=many))).fault == "POL0003 addresses"
    for body in (envelope(payload(many)).encode(), end(many), group("<a/>" * MAX_ELEMENTS)):
        reply = await ask(use_cases, body)
        assert (reply.status, reply.faultcode, reply.content.find("detail")) == (500, "Client", None)
    too_large = await ask(use_cases, group(*["sip:a@example.com"] * 1_000_000))
    assert (too_large.status, too_large.faultcode) == (413, "Client")
    assert (use_cases.asked, use_cases.created, use_cases.ended) == ([], [], [])


async def test_longest_correlator() -> None:
    """A correlator of exactly the maximum length is accepted."""
    use_cases = FakeUseCases()
    assert (await ask(use_cases, end(f"<l:correlator>{'c' * MAX_CORRELATOR}</l:correlator>"))).status == 200


# --- faults


ERRORS = [(operation, error) for operation in REQUESTS for error in FAULTS]


@pytest.mark.parametrize(("operation", "error"), ERRORS, ids=lambda value: getattr(value, "code", str(value)))
async def test_operation_raises_its_own_faults(operation: str, error: type[TerminalStatusError]) -> None:
    """An operation raises only faults of its own list in the contract; any other error is the general fault of the same
    kind, with the error's code."""
    raised = error("Said plainly.", address=ALICE, group="sip:team@example.com", correlator="c-1")

    async def get_status(_: str, client_id: str = "") -> TerminalStatus:
        raise raised

    reply = await ask(FakeUseCases(get_status_of=get_status, raises=raised), REQUESTS[operation])
    _, message_id, *variables = reply.declared
    meant = FAULTS[error][0]
    assert message_id in OPERATIONS[operation].messages
    if meant in OPERATIONS[operation].messages:
        assert message_id == meant
    else:
        assert (message_id, variables) == (f"{meant[:3]}0001", [error.code])
    assert TEXTS[message_id].count("%") == len(variables)
    assert reply.reason.startswith(f"{message_id}: ")
    assert reply.reason.endswith(" Said plainly.")


VARIABLES = {
    "endNotification of an unknown correlator": (
        "endNotification",
        SubscriptionUnknown("No.", field="subscription_id"),
        "SVC0002 correlator",
    ),
    "duplicate": (
        "startNotification",
        DuplicateCorrelator("No.", correlator="c"),
        "SVC0005 c reference.correlator",
    ),
    "unreachable endpoint": ("startNotification", SinkUnreachable("No."), "SVC0002 reference.endpoint"),
    "refused endpoint": ("startNotification", SinkRefused("No."), "SVC0002 reference.endpoint"),
    "negative count": ("startNotification", InvalidRequest("No.", field="max_notification_count"), "SVC0002 count"),
    "negative frequency": (
        "startNotification",
        InvalidRequest("No.", field="min_interval"),
        "SVC0002 frequency",
    ),
    "long duration": ("startNotification", InvalidRequest("No.", field="duration"), "SVC0002 duration"),
    "above the policy": ("startNotification", DurationTooLong("No."), "POL0001 DURATION_TOO_LONG"),
    "unlimited": ("startNotification", UnlimitedCountNotAllowed("No."), "POL0004"),
    "too many": ("startNotification", CountTooLarge("No."), "POL0005"),
    "busy": ("startNotification", BusyNotSupported("No.", field="criteria"), "POL0200"),
    "too many addresses": ("startNotification", TooManyAddresses("No.", field="addresses"), "POL0003 addresses"),
    "nested": ("getStatusForGroup", NestedGroupNotAllowed("No.", field="addresses"), "POL0007 addresses"),
    "no group": (
        "getStatusForGroup",
        GroupUnknown("No.", group="sip:g@x", field="addresses"),
        "SVC0006 sip:g@x addresses",
    ),
    "no addresses": ("getStatusForGroup", NoValidAddresses("No."), "SVC0004 addresses"),
    "bad address of a group": ("getStatusForGroup", InvalidAddress("No."), "SVC0002 addresses"),
    "group": ("getStatus", GroupNotAllowed("No.", field="address"), "POL0006 address"),
    "rate": ("getStatus", RateLimited("No.", retry_after_s=2), "POL0001 RATE_LIMITED"),
}


@pytest.mark.parametrize(("operation", "error", "fault"), VARIABLES.values(), ids=VARIABLES.keys())
async def test_variables(operation: str, error: TerminalStatusError, fault: str) -> None:
    """Variables are those of the contract, and parts have the contract's names."""

    async def get_status(_: str, client_id: str = "") -> TerminalStatus:
        raise error

    reply = await ask(FakeUseCases(get_status_of=get_status, raises=error), REQUESTS[operation])
    assert reply.fault == fault


@pytest.mark.parametrize("operation", [name for name in REQUESTS if name != "getStatus"])
async def test_unexpected_error(operation: str) -> None:
    """An unexpected exception in any operation is SVC0001 with a reference that is also in the log."""
    with structlog.testing.capture_logs() as logs:
        reply = await ask(FakeUseCases(raises=RuntimeError("a secret")), REQUESTS[operation])
    (entry,) = logs
    assert reply.fault == f"SVC0001 {entry['reference']}"
    assert b"secret" not in reply.body
