"""Terminals of other makers at a real Kamailio, and what the gateway answers for each choice of their users.

The table "What terminals publish" of docs/sip.md gives the choices, in the order in which they are made here.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from app.cli.face_clients import get_status
from app.domain.presence import read_presence, status_of
from app.main import Gateway, run_gateway
from tests.support.kamailio import Kamailio, Publication, require
from tests.support.programs import ROOT
from tests.support.settings import settings_for
from tests.support.sip_terminal import SipClient, unique
from tests.support.terminals.baresip import Baresip
from tests.support.terminals.linphone import Linphone
from tests.support.terminals.pjsip import Pjsip
from tests.support.terminals.process import Account, RealTerminal
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Kind = type[RealTerminal]
KINDS: Sequence[Kind] = (Baresip, Linphone, Pjsip)
SHORT_S = 3
"""A registration that a test waits for the end of."""

HEADING = "| terminal | its user | it publishes | status | with a setting |\n|---|---|---|---|---|\n"
BUSY_WITH = re.compile(r"`TS_BUSY_ACTIVITIES=([\w,-]+)`: `(\w+)`")


@dataclass(frozen=True)
class Row:
    """A row of the table in docs/sip.md."""

    terminal: str
    user: str
    publishes: str
    status: str
    setting: str


def rows() -> list[Row]:
    """The table of docs/sip.md."""
    text = (ROOT / "docs" / "sip.md").read_text("utf-8").partition(HEADING)[2].partition("\n\n")[0]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [Row(who, user, what, status.strip("`"), setting) for who, user, what, status, setting in table]


def said(publication: Publication) -> str:
    """The content of a publication in the words of the table."""
    if not publication.body:
        return "`Expires: 0`" if publication.expires_s == 0 else "a refresh"
    words = re.findall(r"<basic>(\w+)</basic>|<rpid:(\w+) ?/>", publication.body.decode())
    return ", ".join(f"`{basic or activity}`" for basic, activity in words if (basic or activity) != "activities")


@dataclass
class World:
    """A Kamailio, a gateway that watches at it, and another watcher."""

    kamailio: Kamailio
    gateway: Gateway
    watcher: SipClient

    def account(self, **durations_s: int) -> Account:
        """An account of an address that no other test uses."""
        return Account(self.kamailio.port, f"t{unique()}", **durations_s)

    async def settle(self) -> None:
        """Waits until Kamailio has published the registrations that it has answered (see `Terminal` of the raw
        terminals): two requests that queue behind."""
        for _ in range(2):
            await self.watcher.ask("OPTIONS", self.kamailio.uri)

    async def status(self, account: Account) -> str:
        """The gateway's answer to a query, or the error's code."""
        answer = await asyncio.to_thread(get_status, "grpc", self.gateway.grpc_address, account.address, 5)
        return str(answer.get("status") or answer["code"])

    async def becomes(self, account: Account, status: str) -> None:
        """Waits for a status, such as after the end of a terminal."""

        async def reached() -> bool:
            return await self.status(account) == status

        try:
            await until(reached)
        except TimeoutError:
            pytest.fail(f"{account.address} is {await self.status(account)}, not {status}")

    async def document(self, account: Account) -> bytes:
        """The presence document of the account."""
        _, notify = await self.watcher.fetch(account.address)
        assert notify is not None
        return notify.body

    async def published(self, account: Account, what: str, since: int) -> None:
        """Waits until the newest publication is this one, and was made after the first `since`."""

        def newest() -> list[str]:
            return [said(each) for each in self.kamailio.publications(account.user)[since:]][-1:]

        try:
            await until(lambda: newest() == [what])
        except TimeoutError:
            pytest.fail(f"published {newest()}, not {what}")

    def publications(self, account: Account) -> int:
        """How many publications there were."""
        return len(self.kamailio.publications(account.user))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    """One of each for all tests here."""
    require()
    async with (
        Kamailio.running() as kamailio,
        run_gateway(settings_for(f"{kamailio.uri};transport=udp")) as gateway,
        SipClient(kamailio.host, kamailio.port) as watcher,
    ):
        yield World(kamailio, gateway, watcher)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each terminal; skipped where it is not installed."""
    found: Kind = request.param
    found.require()
    return found


async def test_the_table_is_complete() -> None:
    """docs/sip.md has each choice of each terminal, and being registered and in a call."""
    table = rows()
    assert {row.terminal for row in table} == {kind.name for kind in KINDS}
    for kind in KINDS:
        users = [row.user for row in table if row.terminal == kind.name]
        assert sorted(users) == sorted(["registers", "is in a call", *kind.choices])
        assert users[0] == "registers"


async def test_choices(world: World, kind: Kind, tmp_path: Path) -> None:
    """Each row of the table of docs/sip.md: what is published, the status, and the status with another setting."""
    account, other = world.account(), world.account()
    async with kind(account, tmp_path / "a") as terminal, kind(other, tmp_path / "b") as callee:
        await world.settle()
        for row in rows():
            if row.terminal != kind.name:
                continue
            before = 0 if row.user == "registers" else world.publications(account)
            if row.user == "is in a call":
                await terminal.call(callee)
            elif row.user != "registers":
                await terminal.choose(row.user)
            if row.publishes != "nothing":
                await world.published(account, row.publishes, before)
            assert await world.status(account) == row.status, row
            for activities, status in BUSY_WITH.findall(row.setting):
                read = read_presence(await world.document(account), "", at=datetime.now(UTC))
                assert status_of(read, set(activities.split(","))).name == status, row
            if row.user == "is in a call":
                await terminal.hang_up()
                assert await world.status(account) == row.status
            if row.publishes == "nothing":
                assert world.publications(account) == before, row
    assert {said(each) for each in world.kamailio.publications(other.user)} <= {"`open`", "`Expires: 0`"}, "the callee"


BUSIEST = {"baresip": ("offline", "REACHABLE"), "Linphone": ("Busy", "REACHABLE"), "PJSIP": ("busy", "BUSY")}
"""For each terminal: a choice of its user, and the status while it is registered."""


async def chosen(world: World, terminal: RealTerminal, choice: str) -> None:
    """Makes the choice, and waits until it has been published."""
    before = world.publications(terminal.account)
    publishes = next(row.publishes for row in rows() if (row.terminal, row.user) == (terminal.name, choice))
    await terminal.choose(choice)
    await world.published(terminal.account, publishes, before)


async def test_killed(world: World, kind: Kind, tmp_path: Path) -> None:
    """A killed terminal is unreachable when its registration and publication have expired. PJSIP publishes without
    Expires, so that its publication counts for the hour that Kamailio grants (RFC 3903 section 4.1)."""
    account = world.account(register_s=SHORT_S, publish_s=SHORT_S)
    async with kind(account, tmp_path / "terminal") as terminal:
        await world.settle()
        await chosen(world, terminal, BUSIEST[kind.name][0])
        await terminal.kill()
    if kind is not Pjsip:
        await world.becomes(account, "UNREACHABLE")
        return
    assert [each.expires_s for each in world.kamailio.publications(account.user)] == [None]

    async def only_the_publication() -> bool:
        return (await world.document(account)).count(b"<basic>open<") == 1

    await until(only_the_publication)
    assert await world.status(account) == "BUSY"


async def test_roaming(world: World, kind: Kind, tmp_path: Path) -> None:
    """A terminal that is killed keeps its status. The next one of its user, at another Contact, can be called at once;
    it does not replace the publication of the first."""
    account, other = world.account(), world.account()
    choice, status = BUSIEST[kind.name]
    async with kind(account, tmp_path / "first") as first:
        await world.settle()
        await chosen(world, first, choice)
        await first.kill()
    assert await world.status(account) == status
    async with kind(account, tmp_path / "next") as roamed, kind(other, tmp_path / "caller") as caller:
        await world.settle()
        await caller.call(roamed)
        assert await world.status(account) == status


async def test_two_at_once(world: World, kind: Kind, tmp_path: Path) -> None:
    """Of two terminals of one user, any that is busy or open counts, and each that quits takes its part away.

    Not where a publication is lost (docs/sip.md): Linphone withdraws over UDP without Content-Length, which Kamailio
    refuses, and baresip sometimes publishes twice and withdraws the later one only.
    """
    account = world.account()
    choice, status = BUSIEST[kind.name]
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(kind(account, tmp_path / "a"))
        second = await stack.enter_async_context(kind(account, tmp_path / "b"))
        await world.settle()
        await chosen(world, first, choice)
        assert await world.status(account) == status
        await first.quit()
        await world.becomes(account, "REACHABLE")
        await second.quit()
        if kind is Linphone:
            await until(lambda: "no Content-Length header found" in world.kamailio.log)
        started = [each for each in world.kamailio.publications(account.user) if each.body and not each.refreshes]
        if kind is not Baresip or len(started) == 2:  # with more, baresip may withdraw the one that counts or not
            await world.becomes(account, "REACHABLE" if kind is Linphone else "UNREACHABLE")
