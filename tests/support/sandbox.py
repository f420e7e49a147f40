"""A watcher's messages to the sandbox: fetches, and watches with their dialog."""

from collections.abc import AsyncIterator

import pytest

from app.sandbox import Sandbox
from tests.support.sip_terminal import EVENT, SipClient, SipMessage, unique

ALICE = "sip:alice@example.com"


OPEN, CLOSED, BUSY = b"<basic>open</basic>", b"<basic>closed</basic>", b"<rpid:on-the-phone/>"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(seed=7, scripted=False, t1_s=0.05) as running:
        yield running
    assert running.counters.other["failed"] == 0


@pytest.fixture(params=["udp", "tcp"])
async def client(sandbox: Sandbox, request: pytest.FixtureRequest) -> AsyncIterator[SipClient]:
    async with SipClient(sandbox.host, sandbox.port, tcp=request.param == "tcp") as connected:
        yield connected


@pytest.fixture
async def udp(sandbox: Sandbox) -> AsyncIterator[SipClient]:
    async with SipClient(sandbox.host, sandbox.port) as connected:
        yield connected


class Watch:
    """A watch of a test, with its dialog."""

    def __init__(self, client: SipClient, uri: str, *headers: str) -> None:
        self.client, self.uri, self.headers = client, uri, headers
        self.call_id, self.from_tag, self.to, self.cseq = unique(), unique(), f"<{uri}>", 0
        self.target = uri

    async def subscribe(self, expires: int, *headers: str) -> SipMessage:
        """Sends a SUBSCRIBE, the first one or one in the dialog; returns the response."""
        self.cseq += 1
        response = await self.client.ask(
            "SUBSCRIBE",
            self.target,
            *(headers or self.headers or EVENT),
            f"Expires: {expires}",
            call_id=self.call_id,
            cseq=self.cseq,
            to=self.to,
            from_tag=self.from_tag,
        )
        if response.code < 300:
            self.to, self.target = response["to"], response.contact_uri
        return response

    async def notify(self) -> SipMessage:
        """Receives the next NOTIFY and answers it."""
        return await self.client.notify_for(self.call_id)


async def fetch(client: SipClient, user: str, domain: str = "example.com") -> SipMessage:
    """Sends a fetch, which must succeed; returns its NOTIFY."""
    response, notify = await client.fetch(f"sip:{user}@{domain}")
    assert response.code == 200
    assert notify is not None
    return notify
