"""Adds up what the workers counted, including workers that have died."""

from collections import Counter
from collections.abc import Sequence

from app.sip.protocol import Counts


class WorkerCounts:
    """The counts of one worker and its predecessors. `routes_up` outlives a worker."""

    def __init__(self) -> None:
        self.current = Counts(0, 0, 0, {}, {}, [], registered=False)
        self._earlier = Counter[str]()  # of workers that have died

    def on_worker_died(self) -> None:
        """Keeps what the dead worker counted."""
        self._earlier.update(_flat(self.current))
        self.current = Counts(0, 0, 0, {}, {}, self.current.routes_up, registered=False)

    @property
    def total(self) -> Counter[str]:
        """Everything counted, by flat names."""
        return self._earlier + Counter(_flat(self.current))


def sum_of(workers: Sequence[WorkerCounts], routes: int) -> Counts:
    """The counts of all workers; states, routes and registration are the present ones."""
    total, states = Counter[str](), Counter[str]()
    for worker in workers:
        total.update(worker.total)
        states.update(worker.current.states)
    return Counts(
        subscribes_sent=total["sent"],
        notifies_received=total["notified"],
        cut_messages=total["cut"],
        failures=_named(total, "failure "),
        states=dict(states),
        routes_up=routes_up(workers),
        registered=all(worker.current.registered for worker in workers),
        omitted=[total[f"omitted {route}"] for route in range(routes)],
        refused=_named(total, "refused "),
        cut_headers=_named(total, "header "),
    )


def routes_up(workers: Sequence[WorkerCounts]) -> list[bool]:
    """Whether each route is up for every worker; empty until all have reported."""
    return [all(answers) for answers in zip(*(worker.current.routes_up for worker in workers), strict=False)]


def _named(total: Counter[str], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): count for name, count in total.items() if name.startswith(prefix)}


def _flat(counts: Counts) -> dict[str, int]:
    return {
        "sent": counts.subscribes_sent,
        "notified": counts.notifies_received,
        "cut": counts.cut_messages,
        **{f"failure {name}": count for name, count in counts.failures.items()},
        **{f"omitted {route}": count for route, count in enumerate(counts.omitted)},
        **{f"refused {reason}": count for reason, count in counts.refused.items()},
        **{f"header {name}": count for name, count in counts.cut_headers.items()},
    }
