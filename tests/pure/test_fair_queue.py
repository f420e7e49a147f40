"""Tests of `app/sip/worker/fair_queue.py`: the order in which clients are served."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from app.sip.worker.fair_queue import FairQueue


@dataclass(eq=False)
class Entry:
    name: int
    clients: tuple[int, ...]


CLIENTS = st.lists(st.integers(1, 5), max_size=3, unique=True).map(tuple)


def taken(turns: FairQueue[Entry]) -> list[Entry]:
    """All waiting entries, in order."""
    return [turns.pop() for _ in range(len(turns))]


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=200))
def test_clients_take_turns(wanted: list[tuple[int, bool]]) -> None:
    """Two clients that both wait have been served equally often, give or take one; each client's entries keep their
    order."""
    turns, own = FairQueue[Entry](), dict[int, list[int]]()
    for number, (client, first) in enumerate(wanted):
        turns.add(Entry(number, (client,)), first=first)
        own.setdefault(client, []).insert(0 if first else len(wanted), number)
    left, served = {client: len(numbers) for client, numbers in own.items()}, Counter[int]()
    for entry in (order := taken(turns)):
        (client,) = entry.clients
        served[client] += 1
        left[client] -= 1
        waiting = [served[each] for each, count in left.items() if count]
        assert not waiting or max(waiting) - min(waiting) <= 1
    for client, numbers in own.items():
        assert [entry.name for entry in order if entry.clients == (client,)] == numbers
    assert not turns


@given(st.lists(CLIENTS, max_size=60), st.integers(1, 5))
def test_an_entry_waits_for_the_client_that_is_served_least(wanted: list[tuple[int, ...]], client: int) -> None:
    """A client's first entry leaves within one round, whatever else waits, even where other clients want the same
    entry."""
    turns = FairQueue[Entry]()
    for number, clients in enumerate(wanted):
        turns.add(Entry(number, clients))
    shared = Entry(-1, (6, client))
    turns.add(shared, first=True)
    order = taken(turns)
    assert len(order) == len(wanted) + 1 == len({entry.name for entry in order})
    assert order.index(shared) <= 6, "six others may have had a turn, nobody's queue among them"


@given(st.lists(st.tuples(st.sampled_from(["add", "first", "pop", "discard"]), st.integers(0, 9)), max_size=200))
def test_nothing_is_lost_or_served_twice(steps: list[tuple[str, int]]) -> None:
    """Entries are added, removed and added again; the queue holds exactly those that were added and not removed."""
    entries = [Entry(number, tuple(range(1, 1 + number % 4))) for number in range(10)]
    turns, waiting = FairQueue[Entry](), set[Entry]()
    for step, number in steps:
        entry = entries[number]
        if step in ("add", "first"):
            if entry not in waiting:
                turns.add(entry, first=step == "first")
                waiting.add(entry)
        elif step == "discard":
            turns.discard(entry)
            waiting.discard(entry)
        elif waiting:
            waiting.remove(turns.pop())
        assert len(turns) == len(waiting)
    assert set(taken(turns)) == waiting


def test_who_comes_back_waits_for_a_round() -> None:
    """A client that adds one entry at a time alternates with a client that has many."""
    turns = FairQueue[Entry]()
    for number in range(10):
        turns.add(Entry(number, (1,)))
    served = []
    for number in range(5):
        turns.add(Entry(100 + number, (2,)))
        served += [turns.pop().clients, turns.pop().clients]
    assert served == [(1,), (2,)] * 5
