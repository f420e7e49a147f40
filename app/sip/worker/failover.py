"""Which presence server is asked: the first of the ordered routes that is up.

Invariants: pure; `now_s` is of any clock. A route is up until something says that it is not: a request that could not
be sent to it or was not answered, or a probe (OPTIONS) without an answer in PROBE_LIMIT_S where earlier ones had one.
A server that has never answered OPTIONS is tried by a fetch in its place. It is up again as soon as anything comes back
from it, whatever that says. With all routes down the first one is tried.

Deliberately absent: sockets, and names with several addresses (PJSIP resolves and tries those).
"""

import math
from collections.abc import Sequence

PROBE_LIMIT_S = 3.0
"""So long an answer to OPTIONS, or to the fetch in its place, may take."""

SUSPECT_S = 0.5
DOWN_EVERY_S = 2.0
"""A server that is down is asked at least so often whether it is back."""

_NOT_SENT = frozenset({502, 503})
"""PJSIP's own codes for a name that has no address and for a transport that fails."""


class Routes:
    """The state of `count` routes, 0 being the preferred one. `probe_every_s` 0 is never; `up` is what is known of them
    (empty: nothing, which counts as up)."""

    def __init__(self, count: int, probe_every_s: float, up: Sequence[bool] = ()) -> None:
        self.up = list(up) or [True] * count
        self.turns: list[tuple[int, bool]] = []
        """Routes that went down or came up; the owner empties it."""
        self.trials: list[int] = []
        """Routes whose server is to be tried by a fetch; the owner empties it."""
        self.omits = [False] * count
        """Whether the server was seen to send no NOTIFY after a refresh, since it came up last."""
        self.omitted_counts = [0] * count
        self._looked_s = math.inf  # when `due` was asked last
        self._every_s = probe_every_s
        self._next_s = [0.0 if probe_every_s else math.inf] * count
        self._asked_s: list[float | None] = [None] * count
        self._answers = [False] * count  # whether it ever answered a probe
        self._heard = [False] * count  # whether anything came back since the last probe
        self._tried_s: list[float | None] = [None] * count

    def choose(self, attempt: int = 0) -> int:
        """The route for the next request; `attempt` counts the failures in a row before it, each of which moves on."""
        up = [route for route, is_up in enumerate(self.up) if is_up] or list(range(len(self.up)))
        return up[attempt % len(up)]

    def answered(self, route: int, *, probe: bool = False) -> None:
        """Something came back from it."""
        if probe:
            self._answers[route] = True
            self._asked_s[route] = None
        self._heard[route], self._tried_s[route] = True, None
        if not self.up[route]:
            self._turn(route, up=True)

    def failed(self, route: int, code: int, now_s: float) -> None:
        """PJSIP gave up a request to it by its own `code`: that it could not be sent is certain, silence is not."""
        if code in _NOT_SENT and self.up[route]:
            self._turn(route, up=False)
        self.suspect(route, now_s)

    def omitted(self, route: int) -> None:
        """Its server accepted a refresh and sent no NOTIFY."""
        self.omits[route] = True
        self.omitted_counts[route] += 1

    def suspect(self, route: int, now_s: float) -> None:
        """Something was not answered: a probe shall soon tell more."""
        if self._every_s and self._asked_s[route] is None:
            self._next_s[route] = min(self._next_s[route], now_s + SUSPECT_S)

    def due(self, now_s: float) -> list[int]:
        """The routes to probe now, which count as probed; one whose probe has had no answer turns down. Where nobody
        asked for as long as an answer may take, we ourselves were stopped, and the answer has its time again."""
        if now_s - self._looked_s > PROBE_LIMIT_S:
            self._asked_s, self._tried_s = (
                [at_s if at_s is None else now_s for at_s in each] for each in (self._asked_s, self._tried_s)
            )
        self._looked_s = now_s
        for route, up in enumerate(self.up):
            if _late(self._tried_s[route], now_s):
                self._tried_s[route] = None
                if up:
                    self._turn(route, up=False)
            if _late(self._asked_s[route], now_s):
                self._asked_s[route] = None
                if self._answers[route]:
                    if self.up[route]:
                        self._turn(route, up=False)
                elif not self._heard[route]:
                    self._tried_s[route] = now_s
                    self.trials.append(route)
        probe = [route for route, next_s in enumerate(self._next_s) if now_s >= next_s]
        for route in probe:
            self._next_s[route] = now_s + (self._every_s if self.up[route] else min(self._every_s, DOWN_EVERY_S))
            if self._asked_s[route] is None:
                self._asked_s[route], self._heard[route] = now_s, False
        return probe

    def _turn(self, route: int, *, up: bool) -> None:
        self.up[route] = up
        self.omits[route] = False  # it may be another server from now on
        self.turns.append((route, up))

    def wake_s(self) -> float:
        """When `due` is to be asked next."""
        waits = (at_s + PROBE_LIMIT_S for at_s in (*self._asked_s, *self._tried_s) if at_s is not None)
        return min(*self._next_s, *waits, math.inf)


def _late(asked_s: float | None, now_s: float) -> bool:
    return asked_s is not None and now_s - asked_s >= PROBE_LIMIT_S
