"""Makes notifications that are owed to a subscription's sink.

Invariants: pure; the time and new ids are arguments.
"""

import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from app.domain.addresses import TerminalAddress
from app.domain.changes import SubscriptionUpdate
from app.domain.errors import ClientUnknown
from app.domain.records import DeliveryState, NotificationKind, OwedNotification, Subscription
from app.domain.sinks import PROFILE_CAMARA, EndReason, SinkKind
from app.domain.statuses import TerminalStatus

END_TEXTS: Mapping[EndReason, str] = {
    EndReason.EXPIRED: "Its duration is over.",
    EndReason.COUNT_REACHED: "As many notifications as asked for were made.",
    EndReason.CANCELLED: "Its client ended it.",
    EndReason.CLIENT_DELETED: "Its client was deleted.",
    EndReason.FAILED: "None of its terminals can be watched.",
}


class SinkShape(Protocol):
    """What an ending depends on: a sink, or who holds its kind and profile."""

    @property
    def kind(self) -> SinkKind: ...

    @property
    def profile(self) -> str: ...


class OwedWriter:
    """Makes owed notifications of one moment."""

    __slots__ = ("_new_id", "now")

    def __init__(self, now: datetime, new_id: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        self.now = now
        self._new_id = new_id

    def owe(
        self,
        subscription_id: str,
        client_id: str,
        sink: SinkKind,
        kind: NotificationKind,
        changes: tuple[TerminalStatus, ...] = (),
        *,
        address: TerminalAddress | None = None,
        code: str = "",
        text: str = "",
    ) -> OwedNotification:
        """One notification; what goes to no endpoint is delivered by being listed."""
        listed = sink is SinkKind.STREAM
        return OwedNotification(
            id=self._new_id(),
            subscription_id=subscription_id,
            client_id=client_id,
            sequence=0,  # the store's to give
            kind=kind,
            changes=changes,
            address=address,
            code=code,
            text=text,
            created_at=self.now,
            next_attempt_at=self.now,
            state=DeliveryState.DELIVERED if listed else DeliveryState.PENDING,
            settled_at=self.now if listed else None,
        )

    def ending(
        self, subscription_id: str, client_id: str, sink: SinkShape, reason: EndReason
    ) -> list[OwedNotification]:
        """What a subscription that ends for `reason` is owed (TS 29.199-8: statusEnd for duration and count only)."""
        if reason is EndReason.CANCELLED and sink.profile != PROFILE_CAMARA and sink.kind is not SinkKind.STREAM:
            return []
        if sink.kind is SinkKind.SOAP and reason is EndReason.CLIENT_DELETED:
            code, text = ClientUnknown.code, END_TEXTS[reason]
            return [self.owe(subscription_id, client_id, sink.kind, NotificationKind.ERROR, code=code, text=text)]
        if sink.kind is SinkKind.SOAP and reason not in (EndReason.EXPIRED, EndReason.COUNT_REACHED):
            return []
        text = END_TEXTS.get(reason, "")
        return [
            self.owe(subscription_id, client_id, sink.kind, NotificationKind.ENDED, code=reason.name, text=text),
        ]

    def client_deleted(self, subscription: Subscription) -> tuple[SubscriptionUpdate, list[OwedNotification]]:
        """How a subscription ends whose client is deleted, and what it is owed."""
        reason = EndReason.CLIENT_DELETED
        update = SubscriptionUpdate(
            subscription_id=subscription.id, ended_at=self.now, end_reason=reason, end_detail=END_TEXTS[reason]
        )
        return update, self.ending(subscription.id, subscription.client_id, subscription.sink, reason)
