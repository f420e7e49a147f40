"""Whether a presence server that does not answer OPTIONS is there: one fetch, about the gateway's own identity.

Invariants: whatever the server answers (404, 405, 481 too) says that it is there. One trial for each server at a time.

Deliberately absent: when a server is tried, and what follows (`failover.py`).
"""

import time
from dataclasses import dataclass

from app.sip.headers import Event, Final
from app.sip.pjsip.library import SipStackError
from app.sip.pjsip.stack import Stack, Subscription
from app.sip.worker.failover import Routes


@dataclass(frozen=True, slots=True)
class Trial:
    """The owner of one such fetch."""

    route: int


class Trials:
    """The worker's trials, which ask about `address`."""

    def __init__(self, stack: Stack, routes: Routes, address: str) -> None:
        self._stack = stack
        self._routes = routes
        self._address = address
        self._asked: dict[int, Subscription] = {}

    def ask(self, route: int) -> None:
        """Sends one SUBSCRIBE with `Expires: 0` to the route's server; an earlier one is given up."""
        self._give_up(route)
        try:  # as a standing one, of which a 2xx is reported too
            self._asked[route] = self._stack.subscribe(Trial(route), self._address, 0, route=route, generation=0)
        except SipStackError:
            self._routes.failed(route, 503, time.monotonic())

    def handle(self, trial: Trial, subscription: Subscription, event: Event) -> None:
        """What PJSIP saw of one."""
        if self._asked.get(trial.route) is not subscription:
            return
        self._give_up(trial.route)
        if isinstance(event, Final) and event.local:
            self._routes.failed(trial.route, event.code, time.monotonic())
        else:
            self._routes.answered(trial.route)

    def _give_up(self, route: int) -> None:
        asked = self._asked.pop(route, None)
        if asked is not None:
            self._stack.forget(asked)
