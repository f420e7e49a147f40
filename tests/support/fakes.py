"""Fakes of ports, for tests of one layer. They use no SIP; `test_system.py` tests the real watcher."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from app.core.fetcher import FetchService
from app.domain.addresses import TerminalAddress
from app.domain.errors import TerminalStatusError
from app.ports.sip import ReceivedNotify

OBSERVED_AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
OPEN = (
    b'<presence xmlns="urn:ietf:params:xml:ns:pidf"><tuple id="t"><status><basic>open</basic></status></tuple>'
    b"</presence>"
)
ON_THE_PHONE = (
    b'<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" '
    b'xmlns:rpid="urn:ietf:params:xml:ns:pidf:rpid"><tuple id="t"><status><basic>open</basic></status></tuple>'
    b'<dm:person id="p"><rpid:activities><rpid:on-the-phone/></rpid:activities></dm:person></presence>'
)


@dataclass
class FakeWatcher:
    """Answers fetches with `answer(address)`: bytes are a PIDF body, an error is raised, None never answers."""

    answer: Callable[[TerminalAddress], bytes | TerminalStatusError | None] = lambda _: OPEN
    ready: bool = True
    presence_up: bool = True
    asked: list[TerminalAddress] = field(default_factory=list)
    cancelled: list[TerminalAddress] = field(default_factory=list)

    async def fetch(self, address: TerminalAddress, client_id: str = "") -> ReceivedNotify:
        self.asked.append(address)
        answer = self.answer(address)
        if answer is None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(address)
                raise
        if isinstance(answer, TerminalStatusError):
            raise answer
        return ReceivedNotify(
            body=answer or b"", content_type="application/pidf+xml", content_encoding="", observed_at=OBSERVED_AT
        )


@dataclass
class FakeMeter:
    """Remembers each fetch's outcome."""

    outcomes: list[str] = field(default_factory=list)

    def fetched(self, outcome: str, seconds: float, error: TerminalStatusError | None) -> None:
        self.outcomes.append(outcome)


def make_service(watcher: FakeWatcher, meter: FakeMeter | None = None, *, fetch_timeout_s: float = 5) -> FetchService:
    """A real FetchService over a fake watcher."""
    return FetchService(
        watcher,
        meter or FakeMeter(),
        busy_activities={"on-the-phone", "busy"},
        busy_when_closed=False,
        fetch_timeout_s=fetch_timeout_s,
        max_fetches=100,
    )
