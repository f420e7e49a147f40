"""SOAP requests, and results that the played use cases answer with."""

from datetime import UTC, datetime

from app.core.queries import RetrievalStatus, TerminalResult
from app.domain.addresses import TerminalAddress
from app.domain.errors import TerminalStatusError
from app.domain.statuses import Source, Status, TerminalStatus
from tests.support.soap import (
    ALICE,
    COMMON,
    LOCAL,
    MANAGER,
    envelope,
    payload,
    wrapped,
)

BOB, CAROL = "tel:+15550002", "sip:carol@example.com?a=1&b=<2>"
ENDPOINT = "http://app.example/callback?a=1&amp;b=2"
REFERENCE = (
    f"<l:reference><endpoint>{ENDPOINT}</endpoint><interfaceName>TerminalStatusNotification</interfaceName>"
    "<correlator>c-1</correlator></l:reference>"
)
FREQUENCY = "<l:frequency><metric>Second</metric><units>5</units></l:frequency>"
DURATION = "<l:duration><metric>Hour</metric><units>2</units></l:duration>"
START = {
    "reference": REFERENCE,
    "requester": "",
    "addresses": f"<l:addresses>{ALICE}</l:addresses><l:addresses>{BOB}</l:addresses>",
    "criteria": "<l:criteria>Busy</l:criteria><l:criteria>Reachable</l:criteria>",
    "checkImmediate": "<l:checkImmediate>true</l:checkImmediate>",
    "frequency": FREQUENCY,
    "duration": DURATION,
    "count": "<l:count>3</l:count>",
}


def start(namespace: str = MANAGER, **parts: str) -> bytes:
    """A startNotification in which some parts have other text."""
    return envelope(wrapped("startNotification", "".join((START | parts).values()), namespace)).encode()


def end(correlator: str = "<l:correlator>c-1</l:correlator>", namespace: str = MANAGER) -> bytes:
    return envelope(wrapped("endNotification", correlator, namespace)).encode()


def group(*addresses: str, namespace: str = LOCAL) -> bytes:
    parts = "".join(f"<l:addresses>{address}</l:addresses>" for address in addresses)
    return envelope(wrapped("getStatusForGroup", parts, namespace)).encode()


REQUESTS = {
    "getStatus": envelope(payload()).encode(),
    "getStatusForGroup": group(ALICE),
    "startNotification": start(),
    "endNotification": end(),
}


def common_in(version: str) -> str:
    """The common types of a version of the contract, as its stubs were published."""
    return COMMON.replace("v2_1", version if version[3:] == "0" else f"v{version[1]}_1")


def status_of(address: str, status: Status = Status.REACHABLE) -> TerminalStatus:
    return TerminalStatus(
        address=TerminalAddress(address), status=status, observed_at=datetime.now(UTC), source=Source.WATCH
    )


def result(address: str, status: Status | None = None, error: TerminalStatusError | None = None) -> TerminalResult:
    if status is not None:
        found = status_of(address, status)
        return TerminalResult(address=found.address, retrieval=RetrievalStatus.RETRIEVED, status=found)
    assert error is not None
    retrieval = RetrievalStatus.NOT_RETRIEVED if error.retryable else RetrievalStatus.ERROR
    return TerminalResult(address=TerminalAddress(address), retrieval=retrieval, error=error)
