"""Every version of the contract, checked against its own schemas: those of `wsdl/` with its digits in their
namespaces."""

import asyncio
import re
from pathlib import Path

import pytest
from lxml import etree

from app.domain.errors import (
    DuplicateCorrelator,
    IntervalTooShort,
    PresenceUnavailable,
    TerminalStatusError,
    WatcherRefused,
)
from app.domain.records import NotificationKind
from app.domain.sinks import EndReason
from app.domain.statuses import Status
from soap_compat.callbacks import callback
from tests.support.outbox import ALICE, BOB, change, make_owed, subscribed
from tests.support.soap import COMMON, LOCAL, MANAGER, NOTIFICATION, WSDL, FakeUseCases, Reply, call, content_of, face
from tests.support.soap_requests import REQUESTS, common_in, end, result, start, status_of

CALLED_BACK = {"v2_0": "v2_0", "v2_2": "v2_2", "v2_3": "v2_2", "v3_0": "v3_0", "v3_1": "v3_0"}
"""The callbacks' version, by the manager's."""


class Schemas:
    """The schemas of one version, by the namespace of their global elements."""

    def __init__(self, version: str, folder: Path) -> None:
        self.common = common_in(version)
        changed = {
            COMMON: self.common,
            NOTIFICATION.removesuffix("/local"): NOTIFICATION.replace("v2_2", CALLED_BACK[version]).removesuffix(
                "/local"
            ),
            MANAGER.removesuffix("/local"): MANAGER.replace("v2_3", version).removesuffix("/local"),
            LOCAL.removesuffix("/local"): LOCAL.replace("v2_2", version).removesuffix("/local"),
        }
        namespace = re.compile("|".join(re.escape(one) for one in changed))
        for file in WSDL.iterdir():
            (folder / file.name).write_text(namespace.sub(lambda found: changed[found[0]], file.read_text()))
        self._by_namespace = {}
        for path in [*folder.glob("*_interface_*.wsdl"), *folder.glob("*common_types*.xsd")]:
            (schema,) = etree.parse(path).iter("{http://www.w3.org/2001/XMLSchema}schema")
            parsed = etree.fromstring(etree.tostring(schema), base_url=f"{folder}/")
            self._by_namespace[schema.get("targetNamespace")] = etree.XMLSchema(parsed)

    def valid(self, element: etree._Element) -> None:
        """Asserts that the element is valid, in a document of its own."""
        schema = self._by_namespace[str(etree.QName(element).namespace)]
        schema.assertValid(etree.fromstring(etree.tostring(element)))


@pytest.fixture(params=CALLED_BACK)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def schemas(version: str, tmp_path: Path) -> Schemas:
    return Schemas(version, tmp_path)


def in_version(body: bytes, version: str) -> bytes:
    return body.replace(b"terminal_status/v2_2", b"terminal_status/" + version.encode()).replace(
        b"v2_3", version.encode()
    )


async def answered(use_cases: FakeUseCases, operation: str, version: str) -> Reply:
    path = "/TerminalStatusNotificationManager" if "Notification" in operation else "/TerminalStatus"
    return await call(face(use_cases), in_version(REQUESTS[operation], version), path=path)


async def test_answers(version: str, schemas: Schemas) -> None:
    """Requests and answers of all operations, with errors in results, are valid in the version of the request."""
    use_cases = FakeUseCases(
        get_status_of=lambda address: asyncio.sleep(0, status_of(address)),
        results=[result(ALICE, Status.BUSY), result(BOB, error=WatcherRefused("No.", address=BOB))],
    )
    for operation in REQUESTS:
        schemas.valid(content_of(in_version(REQUESTS[operation], version)))
        reply = await answered(use_cases, operation, version)
        assert reply.content.tag.endswith(f"/{version}/local}}{operation}Response")
        schemas.valid(reply.content)


@pytest.mark.parametrize(
    ("error", "element", "variables"),
    [
        (IntervalTooShort("No."), "PolicyException", 0),
        (PresenceUnavailable("No."), "ServiceException", 1),
        (DuplicateCorrelator("No.", correlator="c"), "ServiceException", 2),
    ],
)
async def test_faults(version: str, schemas: Schemas, error: TerminalStatusError, element: str, variables: int) -> None:
    """Fault details are valid by the common types of the version of the request."""
    reply = await answered(FakeUseCases(raises=error), "startNotification", version)
    (exception,) = reply.content.iterfind("detail/*")
    assert exception.tag == f"{{{schemas.common}}}{element}"
    assert len(exception.findall("variables")) == variables
    schemas.valid(exception)


COMMONS = {
    "none": ("v2_2", "", "v2_1"),
    "JAX-WS with the usual one": ("v2_2", "v2_1", "v2_1"),
    "a drop with the older one": ("v2_3", "v2_0", "v2_0"),
    "a drop with a newer one": ("v2_0", "v2_1", "v2_1"),
    "two, with the usual one": ("v2_3", "v2_0 v2_1", "v2_1"),
    "two others": ("v2_3", "v2_0 v2_2", "v2_1"),
    "of the other series": ("v2_2", "v3_1", "v2_1"),
    "3.0 with the newer one": ("v3_0", "v3_1", "v3_1"),
    "3.1 with the older one": ("v3_1", "v3_0", "v3_0"),
    "no version": ("v3_1", "v3_x v3_ v4_0 v3_100", "v3_1"),
}


@pytest.mark.parametrize(("asked", "declared", "expected"), COMMONS.values(), ids=COMMONS.keys())
async def test_common_types_that_a_request_declares(asked: str, declared: str, expected: str) -> None:
    """Faults belong to the common types of the request's drop (3GPP TS 29.199-1): those that it declares, where they
    are one of its series, or else those that its version was published with. Only then a stub makes its typed
    exception of the fault."""
    names = declared.split()
    namespaces = "".join(f' xmlns:c{i}="{COMMON.replace("v2_1", name)}"' for i, name in enumerate(names))
    body = in_version(start(), asked).replace(b"<l:startNotification", f"<l:startNotification{namespaces}".encode())
    reply = await call(
        face(FakeUseCases(raises=IntervalTooShort("No."))), body, path="/TerminalStatusNotificationManager"
    )
    assert reply.declared == (f"{{{COMMON.replace('v2_1', expected)}}}PolicyException", "POL0009")


@pytest.mark.parametrize("asked", ["v2_0", "v2_3", "v3_0", "v3_1"])
async def test_refusals_before_an_operation(asked: str) -> None:
    """A fault about a part, and one for a call that the stopping gateway cancels, belong to the request's drop too."""
    parts = await answered(FakeUseCases(), "endNotification", asked)
    assert parts.status == 200
    body = in_version(end("<l:correlator/>"), asked)
    refused = await call(face(FakeUseCases()), body, path="/TerminalStatusNotificationManager")
    stopped = await answered(FakeUseCases(raises=asyncio.CancelledError()), "endNotification", asked)
    expected = f"{{{common_in(asked)}}}ServiceException"
    assert refused.declared == (expected, "SVC0002", "correlator")
    assert stopped.declared == (expected, "SVC0001", "GATEWAY_STOPPING")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (NotificationKind.STATUS, ""),
        (NotificationKind.ERROR, "WATCHER_REFUSED"),
        (NotificationKind.ENDED, EndReason.EXPIRED.name),
    ],
)
def test_callbacks(version: str, schemas: Schemas, kind: NotificationKind, code: str) -> None:
    """Callbacks are valid in the version that belongs to that of startNotification."""
    subscription = subscribed(profile=version)
    changes = [change(ALICE, Status.BUSY)] if kind is NotificationKind.STATUS else []
    body = callback(subscription, make_owed(subscription, kind=kind, address=ALICE, code=code, changes=changes))
    assert body is not None
    assert f"notification/{CALLED_BACK[version]}/local".encode() in body
    schemas.valid(content_of(body))
