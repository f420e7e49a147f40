"""A small SIP presence server (a notifier) for development and tests without an IMS core. Never for production.

A terminal is known by its user part, at any domain: `alice` is always Reachable, `bob` always Busy (on the phone),
`carol` always Unreachable, and `dave` unknown (404). `erin`, `frank`, `grace` and others change by a script, which
depends on its seed alone. Telephone numbers, as `tel:` or `sip:+…`: +15550001 is Reachable, +15550002 Busy, +15550003
Unreachable; +15550005 and +15550006 change. `terminal-N` exists for every number N and is Reachable. The table of
terminals that misbehave is in `behaviours.py`. Every other terminal is unknown (404).

Invariants: no input makes the sandbox fail; its memory is bounded; it starts no thread and no process.

Deliberately absent: PJSIP (the sandbox tests the watcher, and must not share its bugs), TLS, IPv6.
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
from app.sandbox.counters import Counters
from app.sandbox.documents import Document, document
from app.sandbox.exchange import Exchange
from app.sandbox.notifier import Notifier
from app.sandbox.terminals import FIXED, SCRIPTED, Change, initial_statuses, script

__all__ = ["FIXED", "SCRIPTED", "Change", "Counters", "Document", "Sandbox", "document", "script"]

_log = structlog.get_logger()
_TERMINAL = re.compile(r"terminal-[0-9]{1,9}")


class Sandbox:
    """A presence server on UDP and TCP at `host:port`; port 0 takes a free port.

    `on_change(address, old, new)` is called at every change of status, by the script or by `set_status`; `address` is
    the terminal at `domain`. The script makes a change about every `every_s` seconds; `scripted=False` switches it off.
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
        """Listens, and starts the script. Raises OSError, which names host and port, if the port is in use."""
        await self._notifier.transport.start()
        if self._scripted:
            self._task = asyncio.create_task(self._run_script(), name="sandbox script")
        _log.info("sandbox_started", host=self.host, port=self.port, seed=self._seed)

    async def stop(self) -> None:
        """Stops at once and sends nothing: watchers see a presence server that disappears."""
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
        """The port, after `start`."""
        return self._notifier.transport.port

    @property
    def uri(self) -> str:
        """The SIP URI for SUBSCRIBEs; add `;transport=tcp` for TCP."""
        return f"sip:{self.host}:{self.port}"

    @property
    def counters(self) -> Counters:
        """What was received and sent since the start."""
        return self._notifier.counters

    @property
    def subscriptions(self) -> dict[str, int]:
        """How many subscriptions are live, by address."""
        return dict(self._notifier.dialogs.by_address())

    @property
    def statuses(self) -> dict[str, Status]:
        """The present status of every terminal that has one, by user part."""
        return dict(self._statuses)

    def set_status(self, user: str, status: Status) -> None:
        """Sets the status of a terminal, known or new, and sends it to the terminal's live subscriptions."""
        old = self._statuses.get(user, Status.UNREACHABLE)
        self._statuses[user] = status
        self._documents.pop(user, None)
        self._notifier.on_document_changed(user)
        if self._on_change is not None and old is not status:
            address = f"tel:{user}" if user.startswith("+") else f"sip:{user}@{self._domain}"
            self._on_change(address, old, status)

    def set_document(
        self, user: str, body: bytes, content_type: str = "application/pidf+xml", content_encoding: str = ""
    ) -> None:
        """Sets a terminal's document until the next `set_status`, and sends it to the terminal's live subscriptions."""
        self._statuses.setdefault(user, Status.UNREACHABLE)
        self._documents[user] = Document(body=body, content_type=content_type, content_encoding=content_encoding)
        self._notifier.on_document_changed(user)

    def act_like(self, user: str, other: str | None) -> None:
        """From now on SUBSCRIBEs for `user`, and refreshes, are handled like SUBSCRIBEs for `other`. None ends this
        behaviour."""
        if other is None:
            self._acting.pop(user, None)
        else:
            self._acting[user] = other

    def terminate(self, user: str, reason: str) -> None:
        """Ends the terminal's live subscriptions with a NOTIFY that has this reason; "" sends no NOTIFY."""
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
