"""What each kind of sink promises its receiver: which statuses are reported, and what is sent when a subscription ends.

The face that offers a kind of sink defines its contract (`SOAP_CONTRACT` in soap_compat/, `CAMARA_CONTRACT` in
rest/camara/); `app/sinks.py` has them all.
Invariants: pure data. `live/rules.py`, which decides what a subscriber is sent, uses contracts and names no face.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.domain.records import NotificationKind
from app.domain.sinks import EndReason, SinkKind

ALL_ENDS: Mapping[EndReason, NotificationKind] = dict.fromkeys(EndReason, NotificationKind.ENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkContract:
    """The promises of one kind of sink, or of one of its profiles."""

    posts: bool = True
    """Whether notifications are sent. If not, the application lists them, and they count as delivered."""
    shows_busy: bool = True
    """Whether BUSY is reported. If not, a busy terminal is reported as REACHABLE."""
    announces_start: bool = False
    """Whether a STARTED notification is sent first."""
    ends: Mapping[EndReason, NotificationKind] = field(default_factory=lambda: ALL_ENDS)
    """The kind of a subscription's last notification, ENDED or ERROR, by the reason of the end. Without an entry, no
    last notification is sent."""
    withdrawn_at: frozenset[EndReason] = frozenset()
    """Reasons of ends after which nothing more is sent, not even notifications that are owed already."""
    last_error_ends: bool = False
    """Whether the failure of the last terminal is sent as an error of the whole subscription, without an address."""
    changeable: bool = True
    """Whether a client can change an active subscription: its addresses, criteria, duration and sink."""


class SinkContracts:
    """The contracts of every kind of sink, by kind and profile."""

    def __init__(
        self,
        by_kind: Mapping[SinkKind, SinkContract],
        by_profile: Mapping[tuple[SinkKind, str], SinkContract] | None = None,
    ) -> None:
        """`by_profile` takes precedence over `by_kind`, which has every kind."""
        self._by_kind = dict(by_kind)
        self._by_profile = dict(by_profile or {})

    def of(self, kind: SinkKind, profile: str) -> SinkContract:
        """The contract of a sink."""
        return self._by_profile.get((kind, profile)) or self._by_kind[kind]


STREAM_CONTRACT = SinkContract(posts=False)
WEBHOOK_CONTRACT = SinkContract(
    announces_start=True,
    ends={reason: NotificationKind.ENDED for reason in EndReason if reason is not EndReason.CANCELLED},
)
