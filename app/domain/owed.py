"""Makes the notifications that are owed to a subscription's sink.

Invariants: pure; the time and new ids are arguments.
"""

import secrets
from collections.abc import Callable, Mapping
from datetime import datetime

from app.domain.addresses import TerminalAddress
from app.domain.changes import SubscriptionUpdate
from app.domain.errors import ClientUnknown
from app.domain.records import DeliveryState, NotificationKind, OwedNotification, Subscription
from app.domain.sink_contracts import SinkContract, SinkContracts
from app.domain.sinks import EndReason
from app.domain.statuses import TerminalStatus

END_TEXTS: Mapping[EndReason, str] = {
    EndReason.EXPIRED: "The subscription's duration is over.",
    EndReason.COUNT_REACHED: "The requested number of notifications was sent.",
    EndReason.CANCELLED: "The client ended the subscription.",
    EndReason.CLIENT_DELETED: "The client was deleted.",
    EndReason.FAILED: "None of the terminals can be watched.",
}
"""The text of `end_detail`, and of the last notification."""

_ERROR_OF_END = {EndReason.CLIENT_DELETED: ClientUnknown.code}


class OwedWriter:
    """Makes the owed notifications of one moment. The store gives them their sequence numbers."""

    __slots__ = ("_new_id", "now")

    def __init__(self, now: datetime, new_id: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        self.now = now
        self._new_id = new_id

    def owe(
        self,
        subscription_id: str,
        client_id: str,
        contract: SinkContract,
        kind: NotificationKind,
        changes: tuple[TerminalStatus, ...] = (),
        *,
        address: TerminalAddress | None = None,
        code: str = "",
        text: str = "",
    ) -> OwedNotification:
        """One notification. If the contract does not send notifications (`posts`), it counts as delivered."""
        return OwedNotification(
            id=self._new_id(),
            subscription_id=subscription_id,
            client_id=client_id,
            sequence=0,
            kind=kind,
            changes=changes,
            address=address,
            code=code,
            text=text,
            created_at=self.now,
            next_attempt_at=self.now,
            state=DeliveryState.PENDING if contract.posts else DeliveryState.DELIVERED,
            settled_at=None if contract.posts else self.now,
        )

    def owe_end(
        self, subscription_id: str, client_id: str, contract: SinkContract, reason: EndReason
    ) -> list[OwedNotification]:
        """The notification that the sink's contract sends when a subscription ends for `reason`, if any."""
        kind = contract.ends.get(reason)
        if kind is None:
            return []
        code = _ERROR_OF_END[reason] if kind is NotificationKind.ERROR else reason.name
        text = END_TEXTS.get(reason, "")
        return [self.owe(subscription_id, client_id, contract, kind, code=code, text=text)]


class ClientDeletion:
    """Ends the subscriptions of a deleted client, for `Store.delete_client`."""

    def __init__(self, contracts: SinkContracts, now: datetime) -> None:
        self._contracts = contracts
        self._writer = OwedWriter(now)

    def __call__(self, subscription: Subscription) -> tuple[SubscriptionUpdate, list[OwedNotification]]:
        """The update that ends the subscription, and the last notifications to its sink."""
        reason = EndReason.CLIENT_DELETED
        update = SubscriptionUpdate(
            subscription_id=subscription.id,
            ended_at=self._writer.now,
            end_reason=reason,
            end_detail=END_TEXTS[reason],
        )
        contract = self._contracts.of(subscription.sink.kind, subscription.sink.profile)
        return update, self._writer.owe_end(subscription.id, subscription.client_id, contract, reason)
