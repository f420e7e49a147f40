"""Tests of `app/live/rules.py`, over histories that Hypothesis draws: what a subscription is sent, and when."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count, pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.domain.addresses import TerminalAddress
from app.domain.owed import OwedWriter
from app.domain.policy import visible_status
from app.domain.records import NotificationKind, OwedNotification, Subscription
from app.domain.sink_contracts import SinkContract
from app.domain.sinks import EndReason
from app.domain.statuses import Source, Status, TerminalStatus
from app.live.index import SubscriptionIndex
from app.live.rules import decide
from app.live.subscription import LiveSubscription, Progress, begun, restored
from app.sinks import SINK_CONTRACTS
from tests.support.core import ALICE, BEGAN, BOB, BUSY, CAROL, REACHABLE, SOAP

TERMINALS = (ALICE, BOB, CAROL)


def contract(subscription: Subscription) -> SinkContract:
    return SINK_CONTRACTS.of(subscription.sink.kind, subscription.sink.profile)


@dataclass
class History:
    """One subscription over time, with the rows that a store would have."""

    subscription: Subscription
    busy: bool = True
    now_s: float = 0.0
    stored: dict[TerminalAddress, TerminalStatus] = field(default_factory=dict)
    owed: list[tuple[float, OwedNotification]] = field(default_factory=list)
    first: dict[TerminalAddress, Status] = field(default_factory=dict)
    live: LiveSubscription = field(init=False)

    def __post_init__(self) -> None:
        self.ids = count()
        self.live = begun(
            self.subscription,
            contract(self.subscription),
            terminals=TERMINALS,
            groups=(),
            live={},
            busy_allowed=self.busy,
            now_s=self.now_s,
        )
        self.subscription = replace(self.subscription, awaiting=True)

    @property
    def now(self) -> datetime:
        return BEGAN + timedelta(seconds=self.now_s)

    def advance(self, seconds: float) -> None:
        """Lets time pass, and calls the rule whenever something is due."""
        end_s = self.now_s + seconds
        while not self.live.ended and self.live.due_s <= end_s:
            self.now_s = max(self.now_s, self.live.due_s)
            self.look([])
        self.now_s = end_s

    def observe(self, changes: dict[TerminalAddress, Status]) -> None:
        """These observations are written together."""
        self.now_s += 0.001
        news = []
        for address, status in changes.items():
            before = self.stored.get(address)
            self.first.setdefault(address, status)
            if before is None or before.status is not status:
                self.stored[address] = TerminalStatus(
                    address=address,
                    status=status,
                    observed_at=self.now,
                    source=Source.WATCH,
                    revision=before.revision + 1 if before else 1,
                )
            news.append((self.stored[address], before.status if before else None))
        self.look(news)

    def look(self, news: list[tuple[TerminalStatus, Status | None]]) -> None:
        if self.live.ended:
            return
        decision = decide(self.live, news, {}, self.now_s, OwedWriter(self.now, lambda: str(next(self.ids))))
        if decision is None:
            return
        self.live.progress = decision.progress
        self.live.ended = decision.progress.end_reason is not None
        self.owed += [(self.now_s, one) for one in decision.owed]
        if (update := decision.update) is not None:
            changed = {
                name: value
                for name in ("notified", "last_notified_at", "awaiting", "joined", "held", "ended_at", "end_reason")
                if (value := getattr(update, name)) is not None
            }
            self.subscription = replace(self.subscription, **changed)

    def restart(self) -> None:
        """Drops everything that is not stored. The monotonic clock goes on, which makes no difference."""
        if self.live.ended:
            return
        self.live = restored(
            self.subscription,
            contract(self.subscription),
            terminals=TERMINALS,
            groups=(),
            stored=self.stored,
            busy_allowed=self.busy,
            now=self.now,
            now_s=self.now_s,
        )

    @property
    def sent(self) -> list[tuple[float, OwedNotification]]:
        return [(at_s, one) for at_s, one in self.owed if one.kind is NotificationKind.STATUS]

    def last_sent(self) -> dict[TerminalAddress, TerminalStatus]:
        return {change.address: change for _, one in self.sent for change in one.changes}


statuses = st.sampled_from(list(Status))
steps = st.one_of(
    st.tuples(st.just("advance"), st.floats(0, 30, allow_nan=False)),
    st.tuples(st.just("observe"), st.dictionaries(st.sampled_from(TERMINALS), statuses, min_size=1)),
)
with_restarts = st.one_of(steps, st.tuples(st.just("restart"), st.none()))
requests = st.builds(
    lambda criteria, check_immediate, interval_ms, most: Subscription(
        id="s",
        client_id="c",
        addresses=TERMINALS,
        criteria=criteria,
        check_immediate=check_immediate,
        min_interval_ms=interval_ms,
        max_notifications=most,
        created_at=BEGAN,
        expires_at=None,
        sink=SOAP,
    ),
    st.frozensets(statuses),
    st.booleans(),
    st.sampled_from([0, 0, 1000, 10_000]),
    st.sampled_from([0, 0, 1, 3]),
)


def play(history: History, script: list[tuple[str, object]]) -> None:
    for step, value in script:
        getattr(history, step)(*([] if value is None else [value]))


@given(subscription=requests, script=st.lists(with_restarts, max_size=40), busy=st.booleans())
def test_never_closer_together_than_the_interval(
    subscription: Subscription, script: list[tuple[str, object]], busy: bool
) -> None:
    """Two status notifications are at least the interval apart, over restarts too. One notification has a terminal
    once, and only statuses among the criteria."""
    history = History(subscription, busy)
    play(history, script)
    history.advance(60)
    interval_s = subscription.min_interval_ms / 1000
    for (before_s, _), (after_s, _) in pairwise(history.sent):
        assert after_s - before_s >= interval_s - 1e-5
    for _, one in history.sent:
        assert one.changes
        assert len({change.address for change in one.changes}) == len(one.changes)
        for change in one.changes:
            assert not subscription.criteria or change.status in subscription.criteria
            assert busy or change.status is not BUSY


@given(subscription=requests, script=st.lists(with_restarts, max_size=40), busy=st.booleans())
def test_last_state_is_always_sent_in_the_end(
    subscription: Subscription, script: list[tuple[str, object]], busy: bool
) -> None:
    """Once the interval has passed, the newest status of a terminal that changed and meets the criteria has been sent,
    and no older status after a newer one."""
    history = History(replace(subscription, max_notifications=0), busy)
    play(history, script)
    history.advance(60)
    last = history.last_sent()
    for address, status in history.stored.items():
        shown = visible_status(busy, status.status)
        changed = subscription.check_immediate or shown is not visible_status(busy, history.first[address])
        if changed and history.live.meets_criteria(shown):
            assert last[address].status is shown
    seen: dict[TerminalAddress, int] = {}
    for _, one in history.sent:
        for change in one.changes:
            assert change.revision >= seen.get(change.address, 0)
            seen[change.address] = change.revision


@given(subscription=requests, script=st.lists(steps, max_size=40))
def test_without_an_interval_each_change_is_sent_once(
    subscription: Subscription, script: list[tuple[str, object]]
) -> None:
    """Without interval and count, exactly the changes that meet the criteria are sent, each once, in order."""
    history = History(replace(subscription, min_interval_ms=0, max_notifications=0))
    expected: list[tuple[TerminalAddress, int]] = []
    known: dict[TerminalAddress, Status] = {}
    for step, value in script:
        if step == "observe":
            assert isinstance(value, dict)
            for address, status in value.items():
                new = subscription.check_immediate if address not in known else known[address] is not status
                known[address] = status
                if new and (not subscription.criteria or status in subscription.criteria):
                    before = history.stored.get(address)
                    expected.append((address, before.revision + 1 if before else 1))
        play(history, [(step, value)])
    sent = [(change.address, change.revision) for _, one in history.sent for change in one.changes]
    assert sent == expected


@given(subscription=requests, script=st.lists(with_restarts, max_size=60), most=st.integers(1, 4))
def test_count_is_never_exceeded_and_ends_it(
    subscription: Subscription, script: list[tuple[str, object]], most: int
) -> None:
    """At most the requested number of status notifications is sent. The last one is followed by the end, once, and by
    nothing after it."""
    history = History(replace(subscription, max_notifications=most))
    play(history, script)
    history.advance(60)
    assert len(history.sent) == history.subscription.notified <= most
    ended = [one for _, one in history.owed if one.kind is NotificationKind.ENDED]
    assert len(ended) == (len(history.sent) == most)
    if ended:
        assert history.owed[-1][1].code == EndReason.COUNT_REACHED.name
        assert history.subscription.end_reason is EndReason.COUNT_REACHED


def live_subscription(number: int, expires_s: float) -> LiveSubscription:
    subscription = Subscription(
        id=str(number),
        client_id="c",
        addresses=(ALICE,),
        criteria=frozenset(),
        check_immediate=False,
        min_interval_ms=0,
        max_notifications=0,
        created_at=BEGAN,
        expires_at=None,
        sink=SOAP,
    )
    return LiveSubscription(subscription, contract(subscription), Progress((ALICE,)), expires_s=expires_s)


def test_heap_of_ends_does_not_grow_with_what_is_over() -> None:
    """Subscriptions that come and go, or are renewed again and again, leave no entries behind."""
    index = SubscriptionIndex()
    kept = live_subscription(0, 1e6)
    index.add(kept)
    for number in range(1, 20_000):
        one = live_subscription(number, 1e9)
        index.add(one)
        index.remove(one)
        index.renew(kept, BEGAN, kept.expires_s + 1)
    assert len(index._heap) < 2000  # noqa: SLF001
    assert index.pop_due(2e6) == [kept]
    assert index.pop_due(2e9) == []
    assert index.count("c") == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 100)), max_size=50))
def test_due_ones_are_found_in_time_however_they_were_prolonged(moves: list[tuple[int, float]]) -> None:
    """Subscriptions that are due are found; those that were renewed beyond that time are not."""
    index = SubscriptionIndex()
    all_ = [live_subscription(number, 50.0) for number in range(10)]
    for one in all_:
        index.add(one)
    for number, at_s in moves:
        index.renew(all_[number], BEGAN, at_s)
    for now_s in range(0, 101, 10):
        due = set(index.pop_due(now_s))
        assert due == {one for one in all_ if not one.ended and one.expires_s <= now_s}
        for one in due:
            index.remove(one)


def test_status_that_is_sent_is_the_one_observed() -> None:
    """A change that is sent has the revision and the time of its observation."""
    history = History(
        Subscription(
            id="s",
            client_id="c",
            addresses=TERMINALS,
            criteria=frozenset(),
            check_immediate=True,
            min_interval_ms=0,
            max_notifications=0,
            created_at=BEGAN,
            expires_at=None,
            sink=SOAP,
        )
    )
    history.observe({ALICE: REACHABLE})
    ((_, one),) = history.sent
    assert one.changes == (history.stored[ALICE],)
    assert one.created_at == history.subscription.last_notified_at == history.now
