"""What a list returns: one frozen filter for each list. Page tokens are bound to them by their `repr`.

Invariants: an absent value ("" or None) filters nothing. `start` is inclusive, `end` exclusive; a period that can
contain nothing raises InvalidRequest. Addresses are as the caller wrote them until the use case makes them canonical.
"""

import enum
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, TypeVar

from app.domain.errors import InvalidRequest
from app.domain.operations import AuditAction, Face, UsageOperation
from app.domain.records import Client, DeliveryState
from app.domain.statuses import Liveness, require_utc
from app.domain.watches import WatchState


class SubscriptionState(enum.Enum):
    """Whether a subscription has ended."""

    ACTIVE = "ACTIVE"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A period of time. Raises InvalidRequest unless it ends after its start."""

    START: ClassVar = "start_time"
    END: ClassVar = "end_time"
    """The names of `start` and `end` in requests."""

    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        require_utc(self.start, self.end)
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise InvalidRequest(f"`{self.END}` must be later than `{self.START}`.", field=self.END)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionFilter(Period):
    """The period is that of the creation. `address` is one of the request's, a terminal or a group."""

    START: ClassVar = "min_create_time"  # a subscription's own `end_time` is when it ended
    END: ClassVar = "max_create_time"

    client_id: str = ""
    address: str = ""
    state: SubscriptionState | None = SubscriptionState.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationFilter(Period):
    """The period is that of the creation."""

    client_id: str = ""
    subscription_id: str = ""
    state: DeliveryState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter(Period):
    """Usage records."""

    client_id: str = ""
    operation: UsageOperation | None = None
    face: Face | None = None
    x_correlator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter(Period):
    """Entries of the audit log."""

    actor: str = ""
    action: AuditAction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFilter:
    """`member` is a direct member, a terminal or a group."""

    client_id: str = ""
    member: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchFilter:
    """Watches."""

    state: WatchState | None = None
    liveness: Liveness | None = None
    address: str = ""


_OfClient = TypeVar("_OfClient", SubscriptionFilter, NotificationFilter, UsageFilter, GroupFilter)


def seen_by(client: Client, only: _OfClient) -> _OfClient | None:
    """The filter for what the client may see of the list; None: nothing, since another client's part was requested."""
    if client.admin or only.client_id == client.id:
        return only
    return None if only.client_id else replace(only, client_id=client.id)
