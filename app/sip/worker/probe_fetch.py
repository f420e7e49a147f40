"""Fetches that check whether a presence server is up, for servers that do not answer OPTIONS.

The fetch asks about the gateway's own identity. Any answer (also 404, 405 or 481) shows that the server is up. At most
one such fetch per server is in progress.

Deliberately absent: when to probe, and what follows (`failover.py`).
"""

import time
from dataclasses import dataclass

from app.sip.headers import Event, Final
from app.sip.pjsip.library import SipStackError
from app.sip.pjsip.stack import Stack
from app.sip.pjsip.subscribe_dialog import SubscribeDialog
from app.sip.worker.failover import Routes


@dataclass(frozen=True, slots=True)
class ProbeFetch:
    """The owner of one such fetch."""

    route: int


class ProbeFetches:
    """The worker's probing fetches. `address` is the gateway's own identity."""

    def __init__(self, stack: Stack, routes: Routes, address: str) -> None:
        self._stack = stack
        self._routes = routes
        self._address = address
        self._dialogs: dict[int, SubscribeDialog] = {}  # by number of the route

    def send(self, route: int) -> None:
        """Sends SUBSCRIBE with `Expires: 0` to the route's server, and drops an earlier one in progress."""
        self._drop(route)
        try:  # with a generation, so that a 2xx is reported too
            self._dialogs[route] = self._stack.subscribe(ProbeFetch(route), self._address, 0, route=route, generation=0)
        except SipStackError:
            self._routes.on_failed(route, 503, time.monotonic())

    def on_event(self, probe: ProbeFetch, dialog: SubscribeDialog, event: Event) -> None:
        """PJSIP reported an answer, a NOTIFY or a failure."""
        if self._dialogs.get(probe.route) is not dialog:
            return
        self._drop(probe.route)
        if isinstance(event, Final) and event.local:
            self._routes.on_failed(probe.route, event.code, time.monotonic())
        else:
            self._routes.on_answered(probe.route)

    def _drop(self, route: int) -> None:
        dialog = self._dialogs.pop(route, None)
        if dialog is not None:
            self._stack.drop(dialog)
