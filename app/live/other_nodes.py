"""Reads the statuses and groups that other gateways on the same database have written.

Not used yet: a gateway has its database to itself, so `wiring.py` does not make this part. It is here, with its tests,
for several gateways (nodes) on one database. A hint names terminals to read; every `reread_s` all terminals are read,
in case a hint was lost. The tests of the guarantees (`tests/core/test_guarantees.py`) run two gateways on one database.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from app.domain.addresses import TerminalAddress
from app.live.group_directory import GroupDirectory
from app.live.registry import TerminalRegistry
from app.live.writer import StatusWriter
from app.ports.store import Store

_TOGETHER = 500
"""Statuses that are read in one query."""


class OtherNodes:
    """One per process, driven by the engine."""

    def __init__(
        self,
        store: Store,
        registry: TerminalRegistry,
        writer: StatusWriter,
        directory: GroupDirectory,
        *,
        reread_s: float,
        now_s: float,
    ) -> None:
        self.on_work: Callable[[], None] = lambda: None
        """Called when a hint has arrived; may not block or raise."""
        self._store = store
        self._registry = registry
        self._writer = writer
        self._directory = directory
        self._reread_s = reread_s
        self._read_s = now_s
        self._hinted: set[TerminalAddress] = set()

    def on_hint(self, addresses: Iterable[TerminalAddress]) -> None:
        """Another node may have written the statuses of these terminals."""
        self._hinted.update([address for address in addresses if address in self._registry.by_address])
        self.on_work()

    @property
    def waiting(self) -> bool:
        """Whether some hints were not followed yet."""
        return bool(self._hinted)

    @property
    def next_due_s(self) -> float:
        """When all terminals and groups are read again."""
        return self._read_s + self._reread_s

    async def follow(self, now_s: float) -> None:
        """Reads some of the hinted terminals, or everything if that is due. Raises StoreUnavailable."""
        if self._hinted:
            hinted = list(islice(self._hinted, _TOGETHER))
            await self._read(hinted)
            self._hinted.difference_update(hinted)
        if now_s >= self.next_due_s:
            self._read_s = now_s
            await self._directory.reload()
            self._hinted.update(self._registry.by_address)

    async def read(self, addresses: Sequence[TerminalAddress]) -> None:
        """Reads the terminals of a new stream, because its reader may have read newer statuses from another node.
        Raises StoreUnavailable."""
        for start in range(0, len(addresses), _TOGETHER):
            await self._read(addresses[start : start + _TOGETHER])

    def drop(self) -> None:
        """Drops hints if following them fails again and again."""
        self._hinted.clear()

    async def _read(self, addresses: Sequence[TerminalAddress]) -> None:
        async with self._writer.lock:
            self._writer.adopt((await self._store.statuses(addresses)).values())
