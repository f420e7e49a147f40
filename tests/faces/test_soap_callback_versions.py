"""The version of callbacks: the one that a client's attribute names, and the other one of the series where an
application's fault says that it does not know the first."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from app.core.subscription_requests import SubscriptionChange
from app.domain.errors import InvalidRequest
from app.domain.operations import Face
from app.domain.records import NotificationKind, Subscription
from app.domain.sinks import SINK_CALLBACK_VERSION, check_callback_version
from app.egress.allowed import Rules
from app.egress.client import Egress
from soap_compat.callback_versions import MAX_ENDPOINTS, TRY_AGAIN_S, CallbackVersions
from soap_compat.callbacks import CallbackSender
from tests.support.core import ALICE, APP, BOB, SOAP, new_database, run_core
from tests.support.outbox import make_owed, subscribed
from tests.support.receivers import Behaviour, Receiver, Request, answer, hang, in_turn, receiver

LOOPBACK = Rules.of(["127.0.0.0/8"], allow_http=True)
_NAMESPACE = re.compile(r'xmlns:tns="([^"]+/notification/(v[0-9_]+)/local)"')
_WRAPPER = re.compile(r"<tns:(status[A-Z][a-z]+)[ >/]")

Fault = Callable[[str, str], tuple[str, str]]
"""The code and the reason of a fault, by the namespace and the wrapper that the application does not know."""


def jax_ws(namespace: str, wrapper: str) -> tuple[str, str]:
    return "S:Client", f"Cannot find dispatch method for {{{namespace}}}{wrapper}"


def cxf(namespace: str, wrapper: str) -> tuple[str, str]:
    return "soap:Client", f"Unexpected wrapper element {{{namespace}}}{wrapper} found.   Expected another."


def gsoap(namespace: str, wrapper: str) -> tuple[str, str]:
    return "SOAP-ENV:Client", f"Method '{wrapper}' not implemented: method name or namespace not recognized"


def axis(namespace: str, wrapper: str) -> tuple[str, str]:
    return (
        "soapenv:Server.userException",
        "org.xml.sax.SAXException: SimpleDeserializer encountered a child element, which is NOT expected, in "
        "something it was trying to deserialize.",
    )


def business(namespace: str, wrapper: str) -> tuple[str, str]:
    return "S:Server", "The database is down."


def version_of(request: Request) -> str:
    found = _NAMESPACE.search(request.body.decode())
    assert found is not None
    return found[2]


def knows(version: str, fault: Fault, code: int = 500) -> Behaviour:
    """An application whose stubs know callbacks in one version only."""

    async def behave(request: Request, writer: object) -> None:
        text = request.body.decode()
        namespace, wrapper = _NAMESPACE.search(text), _WRAPPER.search(text)
        assert namespace is not None
        assert wrapper is not None
        if namespace[2] == version:
            await answer(200)(request, writer)  # type: ignore[arg-type]
            return
        fault_code, reason = fault(namespace[1], wrapper[1])
        body = (
            '<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body><e:Fault>'
            f"<faultcode>{fault_code}</faultcode><faultstring>{reason}</faultstring>"
            f"<detail><trace>at com.example.Receiver.{wrapper[1]}</trace></detail></e:Fault></e:Body></e:Envelope>"
        )
        await answer(code, {"Content-Type": "text/xml"}, body.encode())(request, writer)  # type: ignore[arg-type]

    return behave


@asynccontextmanager
async def called_by(
    behave: Behaviour, versions: CallbackVersions | None = None, *, total_s: float = 5.0
) -> AsyncIterator[tuple[CallbackSender, Receiver]]:
    egress = Egress(LOOPBACK, total_s=total_s)
    try:
        async with receiver(behave) as there:
            yield CallbackSender(egress, versions), there
    finally:
        await egress.aclose()


def sent_versions(there: Receiver) -> list[str]:
    return [version_of(request) for request in there.requests]


@pytest.mark.parametrize("code", [200, 500])
@pytest.mark.parametrize("fault", [jax_ws, cxf, gsoap, axis])
@pytest.mark.parametrize(
    ("profile", "assumed", "other"),
    [("v2_3", "v2_2", "v2_3"), ("v3_1", "v3_0", "v3_1"), ("v2_0", "v2_0", "v2_2"), ("v3_4", "v3_4", "v3_0")],
)
async def test_other_version_of_the_series(profile: str, assumed: str, other: str, fault: Fault, code: int) -> None:
    """3GPP TS 29.199-8, whose drops differ in the version of the callback: a fault that names the element or the
    namespace has the same attempt send the callback in the other version, which later callbacks have at once."""
    async with called_by(knows(other, fault, code)) as (sender, there):
        subscription = subscribed(there.url, profile=profile)
        for kind, reason in ((NotificationKind.STATUS, ""), (NotificationKind.ERROR, "X")):
            sent = await sender.send(subscription, make_owed(subscription, kind=kind, code=reason))
            assert (sent.delivered, sent.code, sent.outcome) == (True, 200, "delivered")
        assert sent_versions(there) == [assumed, other, other]


async def test_application_with_newer_stubs_later() -> None:
    """An endpoint whose application is replaced is found in its new version, and once only."""
    async with called_by(knows("v2_3", jax_ws)) as (sender, there):
        subscription = subscribed(there.url)
        await sender.send(subscription, make_owed(subscription))
        there.behave = knows("v2_2", jax_ws)
        for _ in range(2):
            assert (await sender.send(subscription, make_owed(subscription))).delivered
        assert sent_versions(there) == ["v2_2", "v2_3", "v2_3", "v2_2", "v2_2"]


async def test_faults_of_the_application_itself() -> None:
    """A fault that says nothing of the element or the namespace is a failed attempt of one request, though its stack
    trace names the method."""
    async with called_by(knows("v2_3", business)) as (sender, there):
        subscription = subscribed(there.url)
        sent = await sender.send(subscription, make_owed(subscription))
        assert (sent.delivered, sent.outcome) == (False, "http-500")
        assert sent_versions(there) == ["v2_2"]


def asmx(namespace: str, wrapper: str) -> tuple[str, str]:
    return "soap:Server", "Server was unable to process request."


async def test_unclear_fault_in_the_other_version() -> None:
    """An application that knows v2_2 fails once with a text that names the callback, and answers v2_3 with a fault that
    names nothing. Only a success shows which version is known, so the next attempt is made in v2_2."""
    async with called_by(in_turn(knows("v4_0", gsoap), knows("v2_2", asmx))) as (sender, there):
        subscription = subscribed(there.url)
        sent = await sender.send(subscription, make_owed(subscription))
        assert (sent.delivered, sent.outcome) == (False, "http-500")
        assert (await sender.send(subscription, make_owed(subscription))).delivered
        assert sent_versions(there) == ["v2_2", "v2_3", "v2_2"]


async def test_application_that_knows_neither() -> None:
    """The other version is tried in vain once, and again after some time; the attempt has the first answer."""
    now_s = 0.0
    versions = CallbackVersions(lambda: now_s)
    async with called_by(knows("v4_0", jax_ws), versions) as (sender, there):
        subscription = subscribed(there.url)
        for _ in range(3):
            sent = await sender.send(subscription, make_owed(subscription))
            assert (sent.delivered, sent.outcome) == (False, "http-500")
            assert b"notification/v2_2/local}" in sent.answer
        assert sent_versions(there) == ["v2_2", "v2_3", "v2_2", "v2_2"]
        now_s = TRY_AGAIN_S
        await sender.send(subscription, make_owed(subscription))
        assert sent_versions(there)[4:] == ["v2_2", "v2_3"]


async def test_both_tries_share_the_time_of_one_attempt() -> None:
    """A receiver that hangs at the second try leaves the attempt its first answer, in time."""
    async with called_by(in_turn(knows("v2_3", jax_ws), hang), total_s=0.3) as (sender, there):
        subscription = subscribed(there.url)
        sent = await sender.send(subscription, make_owed(subscription))
        assert (sent.delivered, sent.outcome) == (False, "http-500")
        assert sent_versions(there) == ["v2_2", "v2_3"]


def test_memory_is_bounded() -> None:
    """The endpoints used last are remembered."""
    versions = CallbackVersions()
    for number in range(MAX_ENDPOINTS):
        versions.understood(f"http://{number}.example/", "v2_2", "v2_3")
    assert versions.of("http://0.example/", "v2_2") == "v2_3"
    versions.understood("http://new.example/", "v2_2", "v2_3")
    assert [versions.of(f"http://{host}.example/", "v2_2") for host in ("0", "1", "new")] == ["v2_3", "v2_2", "v2_3"]


# --- the client's attribute


@pytest.mark.parametrize("profile", ["v2_3", "v2_2", "v3_0", ""])
async def test_version_of_the_client(profile: str) -> None:
    """`soap_callback_version` is the version of the callbacks themselves, whatever the version of startNotification."""
    async with called_by(knows("v2_3", jax_ws)) as (sender, there):
        subscription = subscribed(there.url, profile=profile)
        parameters = {**subscription.sink.parameters, SINK_CALLBACK_VERSION: "v2_3"}
        subscription = replace(subscription, sink=replace(subscription.sink, parameters=parameters))
        assert (await sender.send(subscription, make_owed(subscription))).delivered
        assert sent_versions(there) == ["v2_3"]


async def test_version_of_the_client_is_kept_with_its_subscriptions(tmp_path: Path) -> None:
    """A subscription has the version of the client that made it, also after its endpoint has changed; other kinds of
    sinks have none."""
    client = replace(APP, soap_callback_version="v2_3")
    async with run_core(await new_database(tmp_path)) as core:

        def version(subscription: Subscription) -> str | None:
            return subscription.sink.parameters.get(SINK_CALLBACK_VERSION)

        made = await core.subscribe(ALICE, client=client, sink=SOAP)
        assert version(made) == "v2_3"
        assert version(await core.subscribe(BOB, client=client)) is None
        change = SubscriptionChange(sink=replace(SOAP, url="http://example.com/other"))
        moved = await core.subscription_changes.update(client, made.id, change, face=Face.REST)
        assert (moved.sink.url, version(moved)) == ("http://example.com/other", "v2_3")


@pytest.mark.parametrize("text", ["v2", "2_3", "v2_3 ", "v4_0", "v2_333", "V2_3", "v2_2/../x", "v2_٣"])
def test_version_that_is_none(text: str) -> None:
    """Any text but a version of Parlay X 2.x or 3.x is refused by name."""
    with pytest.raises(InvalidRequest) as refused:
        check_callback_version(text)
    assert refused.value.details["field"] == "soap_callback_version"
