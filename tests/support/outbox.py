"""Subscriptions and notifications owed to them, for tests of deliveries."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from app.domain.addresses import TerminalAddress
from app.domain.records import Client, NotificationKind, OwedNotification, Subscription
from app.domain.sinks import SINK_HANDSHAKE, Sink, SinkKind
from app.domain.statuses import Source, Status, TerminalStatus

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
ALICE = TerminalAddress("sip:alice@example.com")
BOB = TerminalAddress("tel:+15551234567")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
OWNER = Client(id="owner", name="Owner", created_at=NOW)
STRANGER = Client(id="stranger", name="Stranger", created_at=NOW)


def make_subscription(
    url: str = "https://example.com/events",
    *,
    subscription_id: str = "sub-1",
    kind: SinkKind = SinkKind.WEBHOOK,
    profile: str = "v1",
    parameters: Mapping[str, str] | None = None,
    client_id: str = OWNER.id,
) -> Subscription:
    """An active subscription to ALICE and BOB; its sink's check is a connection only, unless the test sets another."""
    return Subscription(
        id=subscription_id,
        client_id=client_id,
        addresses=(ALICE, BOB),
        criteria=frozenset(),
        check_immediate=False,
        min_interval_ms=0,
        max_notifications=0,
        created_at=NOW,
        expires_at=NOW + timedelta(days=30),
        sink=Sink(kind=kind, url=url, profile=profile, parameters=parameters or {SINK_HANDSHAKE: "none"}),
        correlator=f"correlator of {subscription_id}",
    )


def change(address: TerminalAddress = ALICE, status: Status = Status.BUSY, revision: int = 7) -> TerminalStatus:
    """One change of a terminal's status."""
    return TerminalStatus(address=address, status=status, observed_at=NOW, source=Source.WATCH, revision=revision)


def make_owed(
    subscription: Subscription,
    notification_id: str = "n-1",
    *,
    kind: NotificationKind = NotificationKind.STATUS,
    changes: Sequence[TerminalStatus] | None = None,
    address: TerminalAddress | None = None,
    code: str = "",
    text: str = "",
    at: datetime = NOW,
    attempts: int = 0,
    sequence: int = 1,
) -> OwedNotification:
    """A notification that is due now; of kind STATUS, with one change, unless the test sets otherwise."""
    if changes is None:
        changes = (change(),) if kind is NotificationKind.STATUS else ()
    return OwedNotification(
        id=notification_id,
        subscription_id=subscription.id,
        client_id=subscription.client_id,
        sequence=sequence,
        kind=kind,
        changes=tuple(changes),
        address=address,
        code=code,
        text=text,
        created_at=at,
        next_attempt_at=at,
        attempts=attempts,
    )


def subscribed(url: str = "https://app.example/callback", profile: str = "v2_3") -> Subscription:
    return make_subscription(url, kind=SinkKind.SOAP, profile=profile, parameters={"": ""})
