"""A small SIP presence notifier for people without an IMS core: for development and tests, never production.

Terminals go by their user part, at any domain: `alice` is always Reachable, `bob` always Busy (on the phone), `carol`
always Unreachable, `dave` unknown (404). `erin`, `frank`, `grace`, … change by a script that its seed alone determines.
Telephone numbers, as `tel:` or `sip:+…`: +15550001 Reachable, +15550002 Busy, +15550003 Unreachable, +15550005 and
+15550006 change; any other is unknown. `terminal-N` exists for every N and is Reachable. The misbehaving ones stand in
the table in `behaviours.py`. Whoever is in none of these is unknown (404).

Invariants: no input ends it, everything in it is bounded, and it starts no thread and no process.

Deliberately absent: PJSIP (what tests the watcher must not share its bugs), authentication, TLS, IPv6.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from app.domain.statuses import Status
from app.sandbox.behaviours import behaviour_of, honest
from app.sandbox.notifier import Counters, Exchange, Notifier
from app.sandbox.terminals import FIXED, SCRIPTED, Change, Document, document, initial_statuses, script

__all__ = ["FIXED", "SCRIPTED", "Change", "Counters", "Document", "Sandbox", "document", "script"]

_log = structlog.get_logger()
_TERMINAL = re.compile(r"terminal-[0-9]{1,9}")


class Sandbox:
    """The notifier on UDP and TCP `host:port`; port 0 takes a free one. Belongs to the event loop it is started in.

    `on_change(address, old, new)` is called at every change of status, scripted or by `set_status`; `address` is
    the terminal's at `domain`. `every_s` is the script's pace; `scripted=False` leaves it out.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        seed: int = 1,
        on_change: Callable[[str, Status, Status], None] | None = None,
        domain: str = "example.com",
        scripted: bool = True,
        every_s: float = 3.0,
        max_subscriptions: int = 100_000,
        t1_s: float = 0.5,
    ) -> None:
        self.host = host
        self._seed = seed
        self._on_change = on_change
        self._domain = domain
        self._scripted = scripted
        self._every_s = every_s
        self._statuses = initial_statuses(seed)
        self._documents: dict[str, Document] = {}
        self._acting: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._notifier = Notifier(
            host,
            port,
            decide=self._decide,
            document_of=self._document_of,
            max_subscriptions=max_subscriptions,
            t1_s=t1_s,
        )

    async def start(self) -> None:
        """Listens, and starts the script. Raises OSError, naming host and port, if the port is taken."""
        await self._notifier.transport.start()
        if self._scripted:
            self._task = asyncio.create_task(self._run_script(), name="sandbox script")
        _log.info("sandbox_started", host=self.host, port=self.port, seed=self._seed)

    async def stop(self) -> None:
        """Ends at once. Subscribers aren't told: to them it is a presence server that went away."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._notifier.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def port(self) -> int:
        """The port, once started."""
        return self._notifier.transport.port

    @property
    def uri(self) -> str:
        """Where to send SUBSCRIBEs; add `;transport=tcp` for TCP."""
        return f"sip:{self.host}:{self.port}"

    @property
    def counters(self) -> Counters:
        """What was received and sent so far."""
        return self._notifier.counters

    @property
    def subscriptions(self) -> dict[str, int]:
        """Live subscriptions by address, now."""
        return dict(self._notifier.subscriptions())

    @property
    def statuses(self) -> dict[str, Status]:
        """Every known terminal's status by user part, now."""
        return dict(self._statuses)

    def set_status(self, user: str, status: Status) -> None:
        """Gives a terminal a status, making it known if it wasn't, and tells its live subscriptions."""
        old = self._statuses.get(user, Status.UNREACHABLE)
        self._statuses[user] = status
        self._documents.pop(user, None)
        self._notifier.changed(user)
        if self._on_change is not None and old is not status:
            address = f"tel:{user}" if user.startswith("+") else f"sip:{user}@{self._domain}"
            self._on_change(address, old, status)

    def set_document(
        self, user: str, body: bytes, content_type: str = "application/pidf+xml", content_encoding: str = ""
    ) -> None:
        """Gives a terminal a document as it stands, until the next `set_status`, and tells its live subscriptions."""
        self._statuses.setdefault(user, Status.UNREACHABLE)
        self._documents[user] = Document(body=body, content_type=content_type, content_encoding=content_encoding)
        self._notifier.changed(user)

    def act_like(self, user: str, other: str | None) -> None:
        """From now on SUBSCRIBEs for `user`, refreshes too, meet what `other` in the table does; None ends it."""
        if other is None:
            self._acting.pop(user, None)
        else:
            self._acting[user] = other

    def terminate(self, user: str, reason: str) -> None:
        """Ends the terminal's live subscriptions by a NOTIFY with this reason; "" forgets them without a word."""
        self._notifier.terminate(user, reason)

    def _decide(self, exchange: Exchange) -> None:
        user = self._acting.get(exchange.user, exchange.user)
        if user in self._statuses:
            honest(exchange)
        elif found := behaviour_of(user):
            behaviour, argument = found
            behaviour(exchange, argument)
        elif _TERMINAL.fullmatch(user):
            honest(exchange)
        else:
            exchange.answer(404)

    def _document_of(self, user: str, address: str) -> Document:
        return self._documents.get(user) or document(address, self._statuses.get(user, Status.REACHABLE))

    async def _run_script(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for change in script(self._seed, self._every_s):
            await asyncio.sleep(start + change.at_s - loop.time())
            self.set_status(change.user, change.new)
