"""NOTIFYs that PJSIP refuses: the watch becomes STALE with the reason, and the gateway subscribes again."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.domain.statuses import Liveness
from app.sip.machine.timing import GAP_S
from tests.support.sip_notifier import BUSY, OPEN, Asked
from tests.support.sip_scene import refresh, scene, until_refused
from tests.support.sip_watcher import terminal, view
from tests.support.waiting import DEADLINE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE, STALE, UNKNOWN = Liveness.LIVE, Liveness.STALE, Liveness.UNKNOWN
Sends = Callable[[Asked], None]

REFUSED: dict[str, tuple[str, Sends]] = {
    "CSeq going back": ("cseq", lambda asked: asked.notify(3, BUSY)),
    "CSeq not rising": ("cseq", lambda asked: asked.notify(5, BUSY)),
    "no Event": ("no-event", lambda asked: asked.notify(6, BUSY, event="")),
    "no Subscription-State": ("no-state", lambda asked: asked.notify(6, BUSY, state="")),
    "CSeq of 2^31": ("unreadable", lambda asked: asked.notify(2**31, BUSY)),
    "CSeq of 2^32": ("unreadable", lambda asked: asked.notify(2**32, BUSY)),
    "To without a tag": ("no-to-tag", lambda asked: asked.notify(6, BUSY, to=asked.request["from"].partition(";")[0])),
    "maddr": ("maddr", lambda asked: asked.notify(6, BUSY, branch="x;maddr=127.0.0.2")),
    "another package": ("refused", lambda asked: asked.notify(6, BUSY, event="dialog")),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_notify_that_is_refused(transport: str, case: str) -> None:
    """The watch is STALE with the reason, which is counted and logged; a SUBSCRIBE in a new dialog replaces the old
    one."""
    reason, send = REFUSED[case]
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer()
        asked.notify(5)
        await until(lambda: observer.live([address]))
        with capture_logs() as logs:
            send(asked)
            afresh = await server.asked(but=asked.request["call-id"])
            await until_refused(watcher, reason)
        assert {"event": "notify_refused", "log_level": "warning", "address": address, "reason": reason} in logs
        assert observer.reported[address] == [OPEN, LIVE, STALE]
        assert observer.reasons[address].startswith("NOTIFY refused: ")
        assert afresh.request.contact_uri != asked.request.contact_uri
        afresh.answer(tag="n")
        afresh.notify(1, BUSY, tag="n")
        await until(lambda: observer.reported[address] == [OPEN, LIVE, STALE, BUSY, LIVE])
        asked.notify(9, OPEN)
        assert await server.notify_answer(9) == 481
        await until(lambda: watcher.counts().notifies_received == 2)
        assert watcher.counts().refused == {reason: 1}


@pytest.mark.parametrize("state", ["active;expires=600", "pending"])
async def test_copies_are_no_loss(transport: str, state: str) -> None:
    """A repeated NOTIFY, the last one or an earlier one, at once or later, changes nothing."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer()
        for cseq in (1, 2, 3):
            asked.notify(cseq, branch=f"b{cseq}", state=state)
        for cseq in (3, 1, 2, 3, 3):
            asked.notify(cseq, branch=f"b{cseq}", state=state)
        asked.notify(4, BUSY)
        await until(lambda: observer.live([address]))
        await refresh(watcher, address)
        await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))
        for cseq in (1, 2, 3):
            asked.notify(cseq, branch=f"b{cseq}", state=state)
        asked.notify(5, OPEN)
        await until(lambda: observer.bodies(address)[-2:] == [BUSY, OPEN])
        assert STALE not in observer.reported[address]
        await until(lambda: watcher.counts().notifies_received == 5)
        assert not watcher.counts().refused


async def test_before_anything_was_observed(transport: str) -> None:
    """A watch whose first NOTIFY is refused, before or after the 2xx, is UNKNOWN, and is tried again."""
    async with scene(transport) as (server, _, observer, address, asked):
        asked.notify(1, state="")
        again = await server.asked(but=asked.request["call-id"])
        again.answer()
        again.notify(1, event="")
        third = await server.asked(but=again.request["call-id"])
        third.answer()
        third.notify(1)
        await until(lambda: observer.live([address]))
        assert observer.reported[address] == [UNKNOWN, UNKNOWN, OPEN, LIVE]


async def test_a_server_that_goes_on_so_meets_the_back_off(transport: str) -> None:
    """Only the first refused NOTIFY in a row is followed by a SUBSCRIBE at once; then the waits grow, as after other
    failures."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        waits_s, loop = [], asyncio.get_running_loop()
        for _ in range(3):
            asked.answer()
            asked.notify(5)
            asked.notify(4)
            refused_s = loop.time()
            asked = await server.asked(but=asked.request["call-id"])
            waits_s.append(loop.time() - refused_s)
        assert waits_s[0] < GAP_S / 2 < waits_s[1] < waits_s[2]
        asked.answer()
        asked.notify(5)
        asked.notify(4)
        await until(lambda: observer.reported[address].count(STALE) == 4)
        assert (await view(watcher, address)).next_action == "subscribe"


async def test_refused_while_a_refresh_is_on_its_way(transport: str) -> None:
    """The refresh in flight is given up with its dialog."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer()
        asked.notify(5)
        await until(lambda: observer.live([address]))
        await refresh(watcher, address)
        late = await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))
        asked.notify(5)
        afresh = await server.asked(but=asked.request["call-id"])
        late.answer()
        afresh.answer()
        afresh.notify(1, BUSY)
        await until(lambda: observer.reported[address] == [OPEN, LIVE, STALE, BUSY, LIVE])


async def test_refused_while_it_ends(transport: str) -> None:
    """A watch that is ending still ends."""
    async with scene(transport) as (server, watcher, observer, address, asked):
        asked.answer()
        asked.notify(5)
        await until(lambda: observer.live([address]))
        watcher.unwatch(address)
        last = await server.asked(cseq_after=int(asked.request["cseq"].split()[0]))
        last.notify(4, state="terminated;reason=timeout")
        last.answer()
        last.notify(6, state="terminated;reason=timeout")
        assert await server.notify_answer(6) == 200
        last.notify(7)
        assert await server.notify_answer(7) == 481
        await until(lambda: watcher.counts().refused == {"cseq": 1})
        assert watcher.counts().subscribes_sent == 2


async def test_fetch_whose_notify_is_refused(transport: str) -> None:
    """The refused NOTIFY is counted, and a usable one may still follow."""
    async with scene(transport) as (server, watcher, _, _, watched):
        fetch: asyncio.Future[Any] = asyncio.ensure_future(watcher.fetch(terminal()))
        asked = await server.asked(but=watched.request["call-id"])
        asked.answer()
        asked.notify(3, state="")
        await until_refused(watcher, "no-state")
        asked.notify(4, BUSY, state="terminated;reason=timeout")
        async with asyncio.timeout(DEADLINE_S):
            assert (await fetch).body == BUSY
