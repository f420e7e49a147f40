"""Standing watches of terminals. (Signatures first; the body follows within the hour.)"""

from collections.abc import AsyncGenerator, Sequence

from app.domain import Status, TerminalAddress, TerminalStatus
from app.records import Client
from app.streams import WatchEvent


class Watching:
    """What is known of watched terminals, and who is told. One per process, in one event loop."""

    def live(self, address: TerminalAddress) -> TerminalStatus | None:
        """What a live watch says of the terminal now; a dictionary look-up."""
        raise NotImplementedError

    def last(self, address: TerminalAddress) -> TerminalStatus | None:
        """What was observed last of a terminal that is or was watched lately, whatever it is worth."""
        raise NotImplementedError

    def wanted_by(self, address: TerminalAddress) -> list[str]:
        """Who wants the terminal watched: ids of subscriptions, and `stream:` with a client's id; at most 20."""
        raise NotImplementedError

    def stream(
        self,
        client: Client,
        addresses: Sequence[str],
        *,
        criteria: frozenset[Status] = frozenset(),
        min_interval_ms: int = 0,
        resume_token: str = "",
    ) -> AsyncGenerator[WatchEvent, None]:
        """How the terminals (and groups' members) stand now, and each change from then on.

        Close it (`contextlib.aclosing`) where it is left early. Snapshots, SnapshotComplete, then Changes,
        LivenessChanges, Removed, and Bookmarks where nothing else was for a while; End is last where the gateway ends
        it. `criteria` (empty: any) are the statuses whose Changes are told; `min_interval_ms` is the least time between
        two Changes told of one terminal (0: as the policy allows).

        Before the first event it raises BusyNotSupported, GroupNotAllowed, GroupUnknown, IntervalTooShort,
        InvalidAddress, InvalidRequest (the token), NestedGroupNotAllowed, NoValidAddresses, RateLimited,
        StoreUnavailable, TooManyAddresses, TooManySubscriptions; thereafter nothing.
        """
        raise NotImplementedError

    def end_streams_of(self, client_id: str) -> None:
        """Ends the client's streams (CREDENTIALS_EXPIRED)."""
        raise NotImplementedError

    def end_streams(self) -> None:
        """Ends every stream, now and to come (GATEWAY_STOPPING)."""
        raise NotImplementedError
