"""For operators: watches, clients, and the audit log.

Invariants: every method raises NotPermitted unless the caller is an operator's client. Every change is audited; changes
of clients by `auth/clients.py`.

Deliberately absent: settings, and stopping the gateway.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from app.auth.clients import DEFAULT_OVERLAP_S, ClientKey, ClientRegistry
from app.domain.addresses import parse_address
from app.domain.errors import NotPermitted, WatchUnknown
from app.domain.filters import AuditFilter, WatchFilter
from app.domain.operations import AuditAction
from app.domain.records import AuditEntry, Client
from app.live.group_directory import parse_field
from app.live.registry import TerminalRegistry, WantedBy
from app.ports.pages import position, token
from app.ports.sip import Watcher, WatchView
from app.ports.store import ALL_ENTRIES, Page, Store

ALL_WATCHES = WatchFilter()

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedWatch:
    """A watch, and who wants it."""

    watch: WatchView
    wanted_by: WantedBy


class Administration:
    """One per process."""

    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        clients: ClientRegistry,
        terminals: TerminalRegistry,
        clock: Callable[[], datetime],
    ) -> None:
        """`clock` gives the time in UTC."""
        self._store = store
        self._watcher = watcher
        self._clients = clients
        self._terminals = terminals
        self._clock = clock

    async def watches(
        self, client: Client, page: Page, only: WatchFilter = ALL_WATCHES
    ) -> tuple[list[WantedWatch], str, int]:
        """The watches by address, the next page's token, and how many match in all. Raises InvalidAddress,
        InvalidRequest."""
        _require_admin(client)
        if only.address:
            only = replace(only, address=parse_field(only.address, "address"))
        views = [self._with_terminal_liveness(view) for view in await self._watcher.watches()]
        found = sorted((view for view in views if _matches(view, only)), key=lambda view: view.address)
        shown, token = _paged(found, page, ("watches", only), lambda view: view.address)
        watches = [WantedWatch(watch=view, wanted_by=self._terminals.wanted_by(view.address)) for view in shown]
        return watches, token, len(found)

    def _with_terminal_liveness(self, view: WatchView) -> WatchView:
        """The watch with the terminal's liveness. The SIP side does not read documents: its own liveness is LIVE even
        if the last document is unreadable."""
        terminal = self._terminals.unreadable_view(view.address)
        if terminal is None:
            return view
        return replace(view, liveness=terminal.liveness, reason=terminal.reason)

    async def watch(self, client: Client, address: str) -> WantedWatch:
        """The watch of one terminal. Raises InvalidAddress, WatchUnknown."""
        only = WatchFilter(address=address)
        found, _, _ = await self.watches(client, Page(size=1), only)
        if not found:
            raise WatchUnknown("This terminal is not watched.", address=parse_address(address))
        return found[0]

    async def client(self, client: Client, client_id: str) -> tuple[Client, Sequence[ClientKey]]:
        """One client with its keys. Raises ClientUnknown, StoreUnavailable."""
        _require_admin(client)
        return await self._clients.client(client_id), await self._clients.keys(client_id)

    async def refresh_watch(self, client: Client, address: str) -> None:
        """Asks the presence server about a watched terminal now. Raises InvalidAddress, StoreUnavailable,
        WatchUnknown."""
        _require_admin(client)
        terminal = parse_address(address)
        self._watcher.refresh(terminal)
        await self._store.audit(self._clock(), client.id, AuditAction.WATCH_REFRESHED, {"address": terminal})

    async def clients(self, client: Client, page: Page) -> tuple[list[tuple[Client, Sequence[ClientKey]]], str]:
        """Clients by name with their keys, and the next page's token. Raises InvalidRequest, StoreUnavailable."""
        _require_admin(client)
        shown, token = _paged(await self._clients.clients(), page, ("clients",), lambda each: each.name)
        return [(each, await self._clients.keys(each.id)) for each in shown], token

    async def keys(self, client: Client, client_id: str) -> Sequence[ClientKey]:
        """A client's keys. Raises StoreUnavailable."""
        _require_admin(client)
        return await self._clients.keys(client_id)

    async def create_client(
        self,
        client: Client,
        name: str,
        *,
        client_id: str,
        admin: bool,
        limits: Mapping[str, int | bool],
        soap_callback_version: str = "",
    ) -> tuple[Client, str]:
        """As `ClientRegistry.add`."""
        _require_admin(client)
        return await self._clients.add(
            name,
            who=client.id,
            client_id=client_id,
            admin=admin,
            limits=limits,
            soap_callback_version=soap_callback_version,
        )

    async def rotate_key(
        self, client: Client, client_id: str, overlap_s: int = DEFAULT_OVERLAP_S
    ) -> tuple[Client, str]:
        """As `ClientRegistry.rotate`."""
        _require_admin(client)
        return await self._clients.rotate(client_id, who=client.id, overlap_s=overlap_s)

    async def set_disabled(self, client: Client, client_id: str, disabled: bool) -> Client:
        """As `ClientRegistry.set_disabled`."""
        _require_admin(client)
        return await self._clients.set_disabled(client_id, disabled, who=client.id)

    async def delete_client(self, client: Client, client_id: str) -> int:
        """As `ClientRegistry.delete`."""
        _require_admin(client)
        return await self._clients.delete(client_id, who=client.id)

    async def audit_log(
        self, client: Client, page: Page, only: AuditFilter = ALL_ENTRIES
    ) -> tuple[list[AuditEntry], str]:
        """The audit log in the order it was written, and the next page's token. Raises InvalidRequest,
        StoreUnavailable."""
        _require_admin(client)
        return await self._store.audit_entries(page, only)


def _require_admin(client: Client) -> None:
    if not client.admin:
        raise NotPermitted("Only an operator's client may do this; use its API key or certificate.")


def _matches(view: WatchView, only: WatchFilter) -> bool:
    return (
        (only.state is None or view.state is only.state)
        and (only.liveness is None or view.liveness is only.liveness)
        and (not only.address or view.address == only.address)
    )


def _paged(
    items: Sequence[_Item], page: Page, names: Sequence[object], name: Callable[[_Item], str]
) -> tuple[list[_Item], str]:
    """One page of `items` (sorted by name), and the next page's token. `names` are the list's name and its filter."""
    after = position(page, *names)
    left = [item for item in items if name(item) > after] if after else items
    shown = list(left[: page.size])
    return shown, token(name(shown[-1]), *names) if len(left) > len(shown) else ""
