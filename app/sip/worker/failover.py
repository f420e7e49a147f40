"""Which presence server is asked: the first of the ordered routes that is up.

A route goes down when a request to it cannot be sent, or when a probe gets no answer in PROBE_LIMIT_S. The probe is
OPTIONS, or a fetch if the server has never answered OPTIONS. A request without an answer only brings the next probe
forward. Any message from the server puts its route up again. If all routes are down, all are tried as if they were up.

Invariants: pure; `now_s` is of any monotonic clock.

Deliberately absent: sockets, and names with several addresses (PJSIP resolves and tries those).
"""

import math
from collections.abc import Sequence

from app.sip.answers import ASKED_AGAIN_S
from app.sip.headers import Final
from app.sip.redirects import redirected_route

PROBE_LIMIT_S = 3.0
"""Longest wait for the answer to a probe."""

SUSPECT_S = 0.5
"""A route with an unanswered request is probed within this time."""

DOWN_EVERY_S = 2.0
"""A server that is down is probed at least this often."""

LONGER_FETCHES_S = 600.0
"""How long a server that refused `Expires: 0` is asked with a longer Expires at once."""

_NOT_SENT = frozenset({502, 503})
"""PJSIP's own codes for a name without an address and for a transport that fails."""


class Routes:
    """The state of `count` routes; 0 is the preferred one.

    `probe_every_s` 0 switches probing off. `up` is the known state of each route; empty: unknown, which counts as up.
    `servers`: the URI of each route, by which a redirection may name it.
    """

    def __init__(
        self, count: int, probe_every_s: float, up: Sequence[bool] = (), *, servers: Sequence[str] = ()
    ) -> None:
        self._servers = servers
        self.up = list(up) or [True] * count
        self.changes: list[tuple[int, bool]] = []
        """Routes that went down (False) or up (True); the owner empties the list."""
        self.fetch_probes: list[int] = []
        """Routes to probe by a fetch; the owner empties the list."""
        self.omits_notify = [False] * count
        """Whether the server omitted the NOTIFY after a refresh since it last came up."""
        self.omitted_counts = [0] * count
        self._longer_until_s = [-math.inf] * count  # until when a fetch asks with a longer Expires
        self._checked_s = math.inf  # when `due` was called last
        self._every_s = probe_every_s
        self._next_s = [0.0 if probe_every_s else math.inf] * count
        self._probed_s: list[float | None] = [None] * count  # when the unanswered OPTIONS was sent
        self._answers_options = [False] * count  # whether the server ever answered OPTIONS
        self._heard = [False] * count  # whether any message came since the last OPTIONS
        self._fetched_s: list[float | None] = [None] * count  # when the unanswered fetch was sent

    def choose(self, attempt: int = 0) -> int:
        """The route for the next request. `attempt` is the number of failures in a row; each failure moves on by one
        route."""
        up = [route for route, is_up in enumerate(self.up) if is_up] or list(range(len(self.up)))
        return up[attempt % len(up)]

    def named_by(self, final: Final) -> int | None:
        """The route to which a response redirects, or None."""
        return redirected_route(final.contacts, self._servers) if final.contacts else None

    def on_answered(self, route: int, *, options: bool = False) -> None:
        """A message came from the route's server; `options`: the answer to OPTIONS."""
        if options:
            self._answers_options[route] = True
            self._probed_s[route] = None
        self._heard[route], self._fetched_s[route] = True, None
        if not self.up[route]:
            self._set_up(route, up=True)

    def on_failed(self, route: int, code: int, now_s: float) -> None:
        """PJSIP gave up a request with its own `code`. A request that could not be sent puts the route down; one
        without an answer makes it suspect only."""
        if code in _NOT_SENT and self.up[route]:
            self._set_up(route, up=False)
        self.suspect(route, now_s)

    def on_notify_omitted(self, route: int) -> None:
        """The route's server accepted a refresh and sent no NOTIFY."""
        self.omits_notify[route] = True
        self.omitted_counts[route] += 1

    def on_fetch_refused(self, route: int, now_s: float) -> None:
        """The route's server answered 481 to a fetch, as if `Expires: 0` were only for ending a subscription."""
        self._longer_until_s[route] = now_s + LONGER_FETCHES_S

    def fetch_expires_s(self, route: int, now_s: float) -> int:
        """The Expires, in seconds, with which to ask the route's server once."""
        return ASKED_AGAIN_S if now_s < self._longer_until_s[route] else 0

    def suspect(self, route: int, now_s: float) -> None:
        """A request got no answer: brings the next probe forward."""
        if self._every_s and self._probed_s[route] is None:
            self._next_s[route] = min(self._next_s[route], now_s + SUSPECT_S)

    def due(self, now_s: float) -> list[int]:
        """The routes to probe by OPTIONS now; they count as probed. Takes routes down whose probe got no answer.

        A gap between calls longer than PROBE_LIMIT_S means that this process was stopped: every wait then starts again.
        """
        if now_s - self._checked_s > PROBE_LIMIT_S:
            self._probed_s, self._fetched_s = (
                [at_s if at_s is None else now_s for at_s in each] for each in (self._probed_s, self._fetched_s)
            )
        self._checked_s = now_s
        for route, up in enumerate(self.up):
            if _late(self._fetched_s[route], now_s):
                self._fetched_s[route] = None
                if up:
                    self._set_up(route, up=False)
            if _late(self._probed_s[route], now_s):
                self._probed_s[route] = None
                if self._answers_options[route]:
                    if self.up[route]:
                        self._set_up(route, up=False)
                elif not self._heard[route]:
                    self._fetched_s[route] = now_s
                    self.fetch_probes.append(route)
        probe = [route for route, next_s in enumerate(self._next_s) if now_s >= next_s]
        for route in probe:
            self._next_s[route] = now_s + (self._every_s if self.up[route] else min(self._every_s, DOWN_EVERY_S))
            if self._probed_s[route] is None:
                self._probed_s[route], self._heard[route] = now_s, False
        return probe

    def _set_up(self, route: int, *, up: bool) -> None:
        self.up[route] = up
        # Another server may answer from now on.
        self.omits_notify[route], self._longer_until_s[route] = False, -math.inf
        self.changes.append((route, up))

    def wake_s(self) -> float:
        """When to call `due` next."""
        waits = (at_s + PROBE_LIMIT_S for at_s in (*self._probed_s, *self._fetched_s) if at_s is not None)
        return min(*self._next_s, *waits, math.inf)


def _late(asked_s: float | None, now_s: float) -> bool:
    return asked_s is not None and now_s - asked_s >= PROBE_LIMIT_S
