"""Watches over the wire: a PJSIP worker against the sandbox notifier, over UDP and TCP."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from app.domain.addresses import TerminalAddress
from app.domain.errors import (
    AddressIsList,
    InvalidAddress,
    PresenceMisconfigured,
    PresenceUnavailable,
    TerminalUnknown,
    WatcherRefused,
    WatcherRestarting,
    WatchUnknown,
)
from app.domain.statuses import Liveness, Status
from app.domain.watches import WatchState
from app.sandbox import Sandbox
from app.sip.machine.timing import BURST, GAP_S, LONG_STOP_S, TIMER_N_S
from app.sip.watcher import SipWatcher
from tests.support.sip_watcher import Observer, configuration, started, terminal, until_seen, user_of, view, watching
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE, STALE, UNKNOWN = Liveness.LIVE, Liveness.STALE, Liveness.UNKNOWN
Running = tuple[SipWatcher, Observer]


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["udp", "tcp"])
async def running(sandbox: Sandbox, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """One watcher for all tests; each test uses its own terminals."""
    async with watching(f"{sandbox.uri};transport={request.param}") as both:
        yield both


async def everything_heard(running: Running) -> None:
    """Returns when every earlier message of the worker and of the presence server has arrived."""
    watcher, observer = running
    for _ in range(2):
        await started(watcher, observer, terminal())
    await watcher.watches()


async def test_set_up_change_and_end(sandbox: Sandbox, running: Running) -> None:
    """One SUBSCRIBE; its NOTIFY is an observation and makes the watch LIVE. Each change is reported, and so is the
    end."""
    watcher, observer = running
    address = terminal()
    watcher.watch(address)
    watcher.watch(address)
    await until(lambda: observer.liveness(address) is LIVE)
    assert [type(each) for each in observer.reported[address]] == [bytes, Liveness]
    assert (await view(watcher, address)).expires_at is not None
    for status, word in ((Status.BUSY, b"on-the-phone"), (Status.UNREACHABLE, b"closed"), (Status.REACHABLE, b"open")):
        count = len(observer.bodies(address))
        sandbox.set_status(user_of(address), status)
        await until(lambda count=count: len(observer.bodies(address)) > count)  # type: ignore[misc]  # mypy: lambda
        assert word in observer.bodies(address)[-1]
    assert sandbox.counters.subscribes[address] == 1
    reported = list(observer.reported[address])
    watcher.unwatch(address)
    watcher.unwatch(address)
    await until(lambda: address not in sandbox.subscriptions)
    assert sandbox.counters.subscribes[address] == 2
    sandbox.set_status(user_of(address), Status.BUSY)
    await everything_heard(running)
    assert observer.reported[address] == reported
    assert address not in [each.address for each in await watcher.watches()]


async def test_refresh_comes_before_expiry(sandbox: Sandbox, running: Running) -> None:
    """A subscription of two seconds is refreshed in its dialog again and again, and stays LIVE."""
    watcher, observer = running
    address = terminal("granted-2")
    await started(watcher, observer, address)
    await until(lambda: sandbox.counters.subscribes[address] >= 3)
    await until(lambda: len(observer.bodies(address)) >= 3)
    assert sandbox.subscriptions[address] == 1
    assert [each for each in observer.reported[address] if isinstance(each, Liveness)] == [LIVE]
    watcher.unwatch(address)


async def test_refresh_without_a_notify(sandbox: Sandbox) -> None:
    """After Timer N the watch is STALE, and LIVE again by a new dialog. From then on, watches at this server are
    renewed by new dialogs and stay LIVE. After a 204 no NOTIFY is awaited."""
    async with watching(f"{sandbox.uri};transport=udp") as (watcher, observer):
        brief, *others = (terminal(f"refresh-{what}") for what in ("200-6", "200-60", "202-3600", "204-3600"))
        await started(watcher, observer, *others)
        for address in others:
            watcher.refresh(address)
        *silent, well = others
        await until(
            lambda: all(observer.reported[each][-1:] == [LIVE] and STALE in observer.reported[each] for each in silent),
            40,
        )
        for address in silent:
            assert [each for each in observer.reported[address] if isinstance(each, Liveness)] == [LIVE, STALE, LIVE]
            assert len(observer.bodies(address)) == 2
        await until(lambda: watcher.counts().omitted == [len(silent)])
        await started(watcher, observer, brief)
        for address in (brief, *silent):
            before = len(observer.bodies(address))
            watcher.refresh(address)
            await until(lambda: len(observer.bodies(address)) > before)  # noqa: B023  # awaited here
            sandbox.set_status(user_of(address), Status.BUSY)
            await until(lambda: b"phone" in observer.bodies(address)[-1])  # noqa: B023
        await until(lambda: sandbox.counters.subscribes[brief] >= 3)  # the last one by itself
        assert [each for each in observer.reported[brief] if isinstance(each, Liveness)] == [LIVE]
        assert [each for each in observer.reported[well] if isinstance(each, Liveness)] == [LIVE]
        for address in (brief, *others):
            watcher.unwatch(address)
        await everything_heard((watcher, observer))
        assert watcher.counts().omitted == [len(silent)]


@pytest.mark.parametrize("answer", ["answer-500", "answer-408", "answer-503", "answer-403", "answer-603"])
async def test_failed_refresh_keeps_the_subscription(sandbox: Sandbox, running: Running, answer: str) -> None:
    """A refused refresh keeps the old dialog, in which changes still arrive; the watch stays LIVE."""
    watcher, observer = running
    address = terminal()
    await started(watcher, observer, address)
    sandbox.act_like(user_of(address), answer)
    watcher.refresh(address)
    code = int(answer.removeprefix("answer-"))
    seen = await until_seen(watcher, address, lambda seen: seen.code == code)
    assert (seen.state, seen.liveness, seen.next_action) == (WatchState.ACTIVE, LIVE, "refresh")
    sandbox.set_status(user_of(address), Status.BUSY)
    await until(lambda: len(observer.bodies(address)) == 2)
    sandbox.act_like(user_of(address), None)
    watcher.refresh(address)
    await until(lambda: len(observer.bodies(address)) == 3)
    assert (await view(watcher, address)).code == 200
    assert sandbox.subscriptions[address] == 1
    assert [each for each in observer.reported[address] if isinstance(each, Liveness)] == [LIVE]


async def test_silent_refresh_keeps_the_subscription(sandbox: Sandbox, running: Running) -> None:
    """While a refresh is unanswered, changes still arrive in the dialog."""
    watcher, observer = running
    address = terminal()
    await started(watcher, observer, address)
    sandbox.act_like(user_of(address), "silent")
    watcher.refresh(address)
    await until(lambda: sandbox.counters.subscribes[address] == 2)
    sandbox.set_status(user_of(address), Status.BUSY)
    await until(lambda: len(observer.bodies(address)) == 2)
    seen = await view(watcher, address)
    assert (seen.state, seen.liveness, seen.next_action) == (WatchState.REFRESHING, LIVE, "await answer")


async def test_refresh_481(sandbox: Sandbox, running: Running) -> None:
    """Where the server has lost the subscription, a new dialog is made at once: the watch is STALE, then LIVE again."""
    watcher, observer = running
    address = terminal()
    await started(watcher, observer, address)
    sandbox.terminate(user_of(address), "")
    sandbox.set_status(user_of(address), Status.BUSY)
    watcher.refresh(address)
    await until(lambda: observer.reported[address][-1] is LIVE and len(observer.reported[address]) > 2)
    first, *rest = observer.reported[address]
    assert [each if isinstance(each, Liveness) else b"phone" in each for each in rest] == [LIVE, STALE, True, LIVE]
    assert (sandbox.counters.subscribes[address], sandbox.subscriptions[address]) == (2, 1)  # and one that got the 481
    assert first != rest[2]


@pytest.mark.parametrize("reason", ["deactivated", "timeout", "odd"])
async def test_terminated_comes_back_at_once(sandbox: Sandbox, running: Running, reason: str) -> None:
    """A subscription that the server ends for its own reasons is made again at once; no status is reported in
    between."""
    watcher, observer = running
    address = terminal()
    await started(watcher, observer, address)
    sandbox.terminate(user_of(address), reason)
    await until(lambda: observer.reported[address][-3:-2] == [STALE])
    assert [each if isinstance(each, Liveness) else "status" for each in observer.reported[address]] == [
        *("status", LIVE),
        *(STALE, "status", LIVE),
    ]
    assert len(set(observer.bodies(address))) == 1
    assert sandbox.subscriptions[address] == 1


async def test_terminated_for_a_while(sandbox: Sandbox, running: Running) -> None:
    """After probation or giveup the watch is STALE until the back-off is over; then the gateway subscribes again."""
    watcher, observer = running
    addresses = {reason: terminal() for reason in ("probation", "giveup")}
    await started(watcher, observer, *addresses.values())
    for reason, address in addresses.items():
        sandbox.terminate(user_of(address), reason)
    for reason, address in addresses.items():
        await until(lambda address=address: STALE in observer.reported[address])  # type: ignore[misc]  # mypy: lambda
        assert isinstance(observer.errors[address], PresenceUnavailable)
        seen = await view(watcher, address)
        assert (seen.state, seen.reason, seen.next_action) == (WatchState.WAITING, reason, "subscribe")
    await until(lambda: observer.live(addresses.values()))
    assert {sandbox.subscriptions[address] for address in addresses.values()} == {1}


async def test_terminated_with_retry_after(running: Running) -> None:
    """Probation with a retry-after of twenty seconds is waited out."""
    watcher, observer = running
    address = terminal("terminated-probation-20")
    watcher.watch(address)
    await until(lambda: observer.reasons.get(address) == "probation")
    seen = await view(watcher, address)
    assert seen.next_at is not None
    assert 10 < (seen.next_at - datetime.now(UTC)).total_seconds() <= 22
    assert observer.reported[address] == [UNKNOWN]
    watcher.unwatch(address)


async def test_terminated_rejected(sandbox: Sandbox, running: Running) -> None:
    """After rejected the watch is STALE, and asked again in an hour or when an operator refreshes it."""
    watcher, observer = running
    address = terminal()
    await started(watcher, observer, address)
    sandbox.terminate(user_of(address), "rejected")
    await until(lambda: observer.reported[address][-1] is STALE)
    assert isinstance(observer.errors[address], WatcherRefused)
    seen = await view(watcher, address)
    assert seen.next_at is not None
    assert (seen.next_at - datetime.now(UTC)).total_seconds() > LONG_STOP_S - 60
    watcher.refresh(address)
    await until(lambda: observer.reported[address][-1] is LIVE)


async def test_terminated_noresource_and_invariant(sandbox: Sandbox, running: Running) -> None:
    """Both end the watch, noresource with an error; a later listener starts a new one."""
    watcher, observer = running
    gone, fixed = terminal(), terminal()
    await started(watcher, observer, gone, fixed)
    sandbox.terminate(user_of(gone), "noresource")
    sandbox.terminate(user_of(fixed), "invariant")
    await until(lambda: all(observer.reported[address][-1] == "ended" for address in (gone, fixed)))
    assert isinstance(observer.errors[gone], TerminalUnknown)
    assert (observer.errors[fixed], observer.reasons[fixed]) == (None, "invariant")
    assert {gone, fixed}.isdisjoint(each.address for each in await watcher.watches())
    with pytest.raises(WatchUnknown):
        watcher.refresh(gone)
    await started(watcher, observer, gone)
    assert sandbox.subscriptions[gone] == 1


@pytest.mark.parametrize("user", ["list-empty", "list-rlmi", "list-421"])
async def test_address_of_a_list(running: Running, user: str) -> None:
    """A server of lists marks its NOTIFYs by Require: eventlist (RFC 4662 section 4.1), or answers 421: the fetch and
    the watch fail with an error of their own, never with a status."""
    watcher, observer = running
    address = terminal(user)
    with pytest.raises(AddressIsList):
        await watcher.fetch(address)
    watcher.watch(address)
    await until(lambda: observer.reported.get(address))
    assert observer.reported[address] == ["ended"]
    assert isinstance(observer.errors[address], AddressIsList)


@pytest.mark.parametrize(
    ("user", "error"),
    [
        ("answer-404", TerminalUnknown),
        ("answer-403", WatcherRefused),
        ("answer-489", PresenceMisconfigured),
        ("answer-503", PresenceUnavailable),
        ("answer-480", PresenceUnavailable),
        ("terminated-rejected", WatcherRefused),
        ("pending", WatcherRefused),
    ],
)
async def test_what_is_never_live(running: Running, user: str, error: type[Exception]) -> None:
    """A terminal about which nothing was observed is UNKNOWN, with the reason; no status is reported."""
    watcher, observer = running
    address = terminal(user)
    watcher.watch(address)
    await until(lambda: isinstance(observer.errors.get(address), error))
    assert set(observer.reported[address]) == {UNKNOWN}
    if user in {"answer-503", "answer-480"}:
        seen = await view(watcher, address)
        assert seen.next_at is not None
        assert 3 < (seen.next_at - datetime.now(UTC)).total_seconds() <= 7.7, "Retry-After: 7"
    watcher.unwatch(address)


@pytest.mark.parametrize("code", [302, 402, 405, 406, 415, 420, 484, 494, 501, 600, 604, 606])
async def test_long_stop_and_back_off(running: Running, code: int) -> None:
    """Refusals that time does not mend are tried again in an hour, other failures soon."""
    watcher, _ = running
    address = terminal(f"answer-{code}")
    watcher.watch(address)
    seen = await until_seen(watcher, address, lambda seen: seen.code == code)
    assert seen.next_at is not None
    wait_s = (seen.next_at - datetime.now(UTC)).total_seconds()
    assert (wait_s > LONG_STOP_S - 60) is (code != 501)
    watcher.unwatch(address)


@pytest.mark.parametrize(
    "user",
    [
        "accept-202",
        "notify-first",
        "notify-twice",
        "forked",
        "dead-dialog",
        "notify-late-50",
        "granted-60",
    ],
)
async def test_servers_that_bend_the_rules(sandbox: Sandbox, running: Running, user: str) -> None:
    """Each server gets one live subscription all the same; a NOTIFY outside our dialogs is answered 481."""
    watcher, observer = running
    address = terminal(user)
    strays = sandbox.counters.notify_answers[481]
    await started(watcher, observer, address)
    await everything_heard(running)
    assert observer.reported[address][-1] is LIVE or user == "notify-twice"
    assert set(observer.reported[address]) <= {UNKNOWN, LIVE, *observer.bodies(address)}
    assert sandbox.counters.subscribes[address] == 1
    if user in {"forked", "dead-dialog"}:
        await until(lambda: sandbox.counters.notify_answers[481] > strays)
        assert sandbox.subscriptions[address] == 1
    watcher.unwatch(address)
    await until(lambda: address not in sandbox.subscriptions)


async def test_interval_too_brief(sandbox: Sandbox) -> None:
    """After a 423 the SUBSCRIBE is sent again at once with Min-Expires."""
    async with watching(f"{sandbox.uri};transport=udp", configure={"watch_expires_s": 30}) as (watcher, observer):
        address = terminal("answer-423")
        await started(watcher, observer, address)
        assert sandbox.counters.subscribes[address] == 2
        assert observer.errors[address] is None


@pytest.mark.parametrize(
    ("user", "liveness", "reason"),
    [
        ("cseq-back", STALE, "NOTIFY refused: its CSeq is not higher than the one before"),
        ("no-state", UNKNOWN, "NOTIFY refused: it has no Subscription-State"),
    ],
)
async def test_notifies_that_are_refused(
    sandbox: Sandbox, running: Running, user: str, liveness: Liveness, reason: str
) -> None:
    """The content of a refused NOTIFY is unknown: the watch is not LIVE, and is tried again by its back-off."""
    watcher, observer = running
    address = terminal(user)
    watcher.watch(address)
    await until(lambda: sandbox.counters.subscribes[address] >= 3)
    seen = await until_seen(watcher, address, lambda seen: seen.next_action == "subscribe")
    assert (seen.state, seen.liveness, seen.reason) == (WatchState.WAITING, liveness, reason)
    assert (liveness, reason) == (observer.liveness(address), observer.reasons[address])
    watcher.unwatch(address)


async def test_no_notify(running: Running) -> None:
    """A subscription without a NOTIFY is UNKNOWN, and is given up after Timer N."""
    watcher, observer = running
    address = terminal("notify-never")
    watcher.watch(address)
    seen = await until_seen(watcher, address, lambda seen: seen.code == 200)
    await everything_heard(running)
    assert (seen.state, seen.liveness, seen.next_action) == (WatchState.ACCEPTED, UNKNOWN, "await NOTIFY")
    assert seen.next_at is not None
    assert TIMER_N_S - 10 < (seen.next_at - datetime.now(UTC)).total_seconds() <= TIMER_N_S
    assert address not in observer.reported
    watcher.unwatch(address)


async def test_servers_that_grant_nothing(sandbox: Sandbox, running: Running) -> None:
    """Whatever these servers do, no more SUBSCRIBEs leave than the pace allows; their NOTIFYs are observations, and
    never make the watch LIVE."""
    watcher, observer = running
    addresses = [terminal(user) for user in ("expires-zero-answer", "expires-zero-notify", "granted-0")]
    addresses.append(terminal("terminated-deactivated"))
    begun_s = time.monotonic()
    for address in addresses:
        watcher.watch(address)
    await until(lambda: all(sandbox.counters.subscribes[address] >= 3 for address in addresses))
    await everything_heard(running)
    for address in addresses:
        assert sandbox.counters.subscribes[address] <= BURST + (time.monotonic() - begun_s) / GAP_S
        assert LIVE not in observer.reported[address]
        watcher.unwatch(address)
    for address in addresses[:3]:
        assert observer.liveness(address) is STALE
        assert b"<basic>open</basic>" in observer.bodies(address)[-1]
    assert not observer.bodies(addresses[3])


async def test_document_that_udp_cuts(sandbox: Sandbox) -> None:
    """A cut document is fetched again over TCP, and the terminal's later documents come over TCP too."""
    async with watching(f"{sandbox.uri};transport=udp") as (watcher, observer):
        address = terminal("document-big-6000")
        await started(watcher, observer, address)
        assert [len(body) for body in observer.bodies(address)] == [6000]
        watcher.refresh(address)
        await until(lambda: len(observer.bodies(address)) == 2)
        assert [len(body) for body in observer.bodies(address)] == [6000, 6000]
        await until(lambda: watcher.counts().cut_messages == 1)
        assert sandbox.counters.subscribes[address] == 3


async def test_documents_of_a_megabyte(sandbox: Sandbox) -> None:
    """Over TCP documents of a megabyte arrive whole, among others, at each refresh."""
    async with watching(f"{sandbox.uri};transport=tcp") as (watcher, observer):
        large, small = [terminal(f"document-big-{size}") for size in (1_000_000, 400_000, 4100)], terminal()
        await started(watcher, observer, *large, small)
        for address in (*large, small):
            watcher.refresh(address)
        await until(lambda: all(len(observer.bodies(address)) == 2 for address in (*large, small)))
        for address in large:
            assert {len(body) for body in observer.bodies(address)} == {int(user_of(address).rpartition("-")[2])}
        too_large = terminal("document-big-1100000")
        watcher.watch(too_large)
        await everything_heard((watcher, observer))
        assert not observer.bodies(too_large)


async def test_unwatch_and_watch_race(sandbox: Sandbox, running: Running) -> None:
    """However watching and unwatching alternate, the last request holds, and the server has at most one
    subscription."""
    watcher, observer = running
    wanted, unwanted = terminal(), terminal()
    for _ in range(5):
        watcher.watch(wanted)
        watcher.watch(unwanted)
        watcher.unwatch(wanted)
        await asyncio.sleep(0)
        watcher.watch(wanted)
        watcher.unwatch(unwanted)
        await everything_heard(running)
    await until(lambda: observer.liveness(wanted) is LIVE)
    sandbox.set_status(user_of(wanted), Status.BUSY)  # a subscription that has ended is answered 481
    sandbox.set_status(user_of(unwanted), Status.BUSY)
    await until(lambda: sandbox.subscriptions.get(wanted) == 1 and unwanted not in sandbox.subscriptions)
    await until(lambda: b"phone" in observer.bodies(wanted)[-1])
    assert not any(b"phone" in body for body in observer.bodies(unwanted))


async def test_killed_worker(sandbox: Sandbox) -> None:
    """The watches of a killed worker are STALE at once, and LIVE again by themselves; requests meanwhile are not
    lost."""
    async with watching(f"{sandbox.uri};transport=tcp", workers=2) as (watcher, observer):
        addresses = [terminal() for _ in range(40)]
        await started(watcher, observer, *addresses)
        pids = watcher.worker_pids
        for pid in pids:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        await until(lambda: all(observer.liveness(address) is STALE for address in addresses))
        assert isinstance(observer.errors[addresses[0]], WatcherRestarting)
        late = terminal()
        watcher.watch(late)
        watcher.unwatch(addresses[0])
        sandbox.set_status(user_of(addresses[1]), Status.BUSY)
        assert {each.state.value for each in await watcher.watches()} <= {"waiting", "initial", "accepted", "active"}
        await until(lambda: observer.live([*addresses[1:], late]))
        assert set(pids).isdisjoint(watcher.worker_pids)
        assert observer.liveness(addresses[0]) is STALE, "a terminal that is not wanted gets no report"
        for address in addresses[2:]:
            assert len(set(observer.bodies(address))) == 1, "no change is invented"
        assert b"phone" in observer.bodies(addresses[1])[-1]
        assert len(await watcher.watches()) == 40
        await until(lambda: watcher.counts().states == {"active": 40})


async def test_workers_share_the_terminals(sandbox: Sandbox) -> None:
    """Each terminal belongs to one worker, and each worker has some; the counters of all workers are summed."""
    async with watching(f"{sandbox.uri};transport=udp", workers=3) as (watcher, observer):
        addresses = [terminal() for _ in range(60)]
        await started(watcher, observer, *addresses)
        assert {sandbox.counters.subscribes[address] for address in addresses} == {1}
        by_worker = [len(worker.wanted) for worker in watcher._workers]  # noqa: SLF001  # nobody else wants to know
        assert sum(by_worker) == 60
        assert min(by_worker) > 5
        await until(lambda: watcher.counts().states == {"active": 60})
        counts = watcher.counts()
        assert (counts.subscribes_sent, counts.notifies_received, counts.routes_up) == (60, 60, [True])
        killed = watcher.worker_pids[1]
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await until(lambda: watcher.worker_pids[1] not in {None, killed})
        await until(lambda: watcher.counts().states == {"active": 60})
        assert watcher.counts().subscribes_sent == 60 + by_worker[1], "what a dead worker counted is not lost"


async def test_set_ups_keep_to_their_pace_and_the_newest_is_first(sandbox: Sandbox) -> None:
    """No more set-ups leave than a second allows; the newest request goes first, after a restart too."""
    rate = 60
    async with watching(f"{sandbox.uri};transport=udp", setups_per_s=rate) as (watcher, observer):
        addresses = [terminal() for _ in range(50)]
        begun_s = time.monotonic()
        for address in addresses:
            watcher.watch(address)
        await until(lambda: sandbox.counters.subscribes[addresses[-1]] == 1)
        newest = terminal()
        watcher.watch(newest)
        while not observer.live([*addresses, newest]):
            sent = sum(sandbox.counters.subscribes[address] for address in addresses)
            assert sent <= rate * (time.monotonic() - begun_s) + max(1, rate / 20) + 1
            await asyncio.sleep(0.01)
        order = [address for address in sandbox.counters.subscribes if address in {*addresses, newest}]
        assert [address for address in order if address != newest] == addresses[::-1]
        assert order.index(newest) < 50
        pid = watcher.worker_pid
        assert pid is not None
        sandbox.counters.subscribes.clear()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: all(sandbox.counters.subscribes[address] for address in (newest, *addresses)))
        again = [address for address in sandbox.counters.subscribes if address in {*addresses, newest}]
        assert again == [newest, *addresses[::-1]]


async def test_list_of_a_watch_that_was_just_made(sandbox: Sandbox, running: Running) -> None:
    """A watch is listed as set up from its first moment; that its worker is being replaced is said only while there is
    none."""
    watcher, _ = running
    early, late = terminal("silent"), terminal("silent")
    watcher.watch(early)
    listing = asyncio.ensure_future(watcher.watches())
    await asyncio.sleep(0)  # the worker is asked for its list
    watcher.watch(late)
    seen = {each.address: each for each in await listing}
    assert [(seen[each].state, "replaced" in seen[each].reason) for each in (early, late)] == [
        (WatchState.INITIAL, False)
    ] * 2
    for each in (early, late):
        watcher.unwatch(each)
    unstarted = SipWatcher(configuration(sandbox.uri))
    unstarted.watch(early)
    assert [(each.state, each.reason) for each in await unstarted.watches()] == [
        (WatchState.WAITING, "the SIP worker is being replaced")
    ]


async def test_list_of_watches(sandbox: Sandbox, running: Running) -> None:
    """Operators see each watch by address: state, since when, expiry, last code and reason, next action, and the
    route."""
    watcher, observer = running
    live, refused = terminal(), terminal("answer-603")
    begun = datetime.now(UTC)
    await started(watcher, observer, live)
    watcher.watch(refused)
    await until(lambda: observer.reasons.get(refused) == "603 Decline")
    views = await watcher.watches()
    assert [each.address for each in views] == sorted(each.address for each in views)
    seen = {each.address: each for each in views}
    expires_at = seen[live].expires_at
    assert expires_at is not None
    assert (seen[live].state, seen[live].code, seen[live].reason, seen[live].next_action) == (
        WatchState.ACTIVE,
        200,
        "",
        "refresh",
    )
    assert 3500 < (expires_at - begun).total_seconds() < 3700
    assert abs((seen[live].since - begun).total_seconds()) < 60
    assert (seen[refused].state, seen[refused].code, seen[refused].reason) == (WatchState.WAITING, 603, "603 Decline")
    assert (seen[refused].next_action, seen[refused].expires_at) == ("subscribe", None)
    assert {each.route.partition(";")[0] for each in views} == {sandbox.uri}


async def test_failures_are_counted(sandbox: Sandbox, running: Running) -> None:
    """Failures are counted by SIP status."""
    watcher, observer = running
    before = watcher.counts().failures.get("410", 0)
    for address in (terminal("answer-410"), terminal("answer-410")):
        watcher.watch(address)
        await until(lambda address=address: observer.reasons.get(address, "").startswith("410"))  # type: ignore[misc]
    await until(lambda: watcher.counts().failures.get("410", 0) == before + 2)


async def test_address_that_pjsip_refuses(running: Running) -> None:
    """A watch of an address that PJSIP refuses ends with an error about the address; other watches go on."""
    watcher, observer = running
    address, pid = TerminalAddress("sip:%%%@@"), watcher.worker_pid
    watcher.watch(address)
    await until(lambda: observer.reported.get(address) == ["ended"])
    assert isinstance(observer.errors[address], InvalidAddress)
    await started(watcher, observer, terminal())
    assert watcher.worker_pid == pid


async def test_thousand_at_once(sandbox: Sandbox, running: Running) -> None:
    """A thousand watches are set up, each reports a change, and all are ended, with one SUBSCRIBE at the start and one
    at the end of each."""
    watcher, observer = running
    addresses = [terminal() for _ in range(1000)]
    await started(watcher, observer, *addresses)
    for address in addresses:
        sandbox.set_status(user_of(address), Status.BUSY)
    await until(lambda: all(len(observer.bodies(address)) == 2 for address in addresses))
    for address in addresses:
        watcher.unwatch(address)
    await until(lambda: set(addresses).isdisjoint(sandbox.subscriptions))
    assert {sandbox.counters.subscribes[address] for address in addresses} == {2}
    assert {tuple(type(each) for each in observer.reported[address]) for address in addresses} == {
        (bytes, Liveness, bytes)
    }
