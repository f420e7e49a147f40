"""`terminal-status deliveries …`: notifications, the attempts to deliver them, and sending dead ones again."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.console import err, wrong_use
from app.cli.gateway_connection import PAGE_SIZE, GatewayConnection, gateway_command
from app.cli.options import LimitOption
from app.cli.protobuf_json import enum_name, reason_of
from app.cli.tables import Cell, print_json, print_list, styled
from app.cli.times import clock, until

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.delivery_pb2 import DeliveryAttempt, Notification

deliveries = typer.Typer(
    no_args_is_help=True, help="Show notifications and the attempts to deliver them; send dead ones again."
)

_MAX_ANSWER_CHARS = 60
_GOOD = ("DELIVERED", "LISTED", "NOT_SENT")


class State(StrEnum):
    """The state of a notification, as in the proto's DeliveryState."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    WITHDRAWN = "withdrawn"


SubscriptionOption = Annotated[
    str,
    typer.Option("--subscription", metavar="ID", help="Only notifications of this subscription.", show_default=False),
]


@deliveries.command("list")
@gateway_command
def list_deliveries(
    gateway: GatewayConnection,
    state: Annotated[State | None, typer.Option(help="Only notifications in this state.", show_default=False)] = None,
    subscription: SubscriptionOption = "",
    limit: LimitOption = None,
) -> None:
    """List notifications, oldest first.

    Example: terminal-status deliveries list --state dead
    """
    pages = gateway.pages(_stub(gateway).ListNotifications, _list_request(state, subscription), "notifications", limit)
    now = datetime.now(UTC)
    columns = ("id", "subscription", "no.", "kind", "content", "created", "state", "attempts", "next try in")
    print_list(pages, columns, lambda each: _row(each, now), as_json=gateway.as_json, nothing="No notifications.")


@deliveries.command()
@gateway_command
def attempts(
    gateway: GatewayConnection,
    notification_id: Annotated[str, typer.Argument(metavar="ID", help="The notification's id.", show_default=False)],
) -> None:
    """Show the attempts to deliver one notification, with the sink's answers.

    Example: terminal-status deliveries attempts 5d1c…
    """
    from app.pb.terminalstatus.v1.delivery_pb2 import ListDeliveryAttemptsRequest

    request = ListDeliveryAttemptsRequest(notification_id=notification_id)
    pages = gateway.pages(_stub(gateway).ListDeliveryAttempts, request, "delivery_attempts")
    columns = ("no.", "at", "outcome", "HTTP", "ms", "answer")
    print_list(pages, columns, _attempt, as_json=gateway.as_json, nothing="No attempt so far.")


@deliveries.command("send-again")
@gateway_command
def send_again(
    gateway: GatewayConnection,
    notification_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="The ids of dead notifications.", show_default=False)
    ] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All dead notifications, instead of ids.")] = False,
    subscription: SubscriptionOption = "",
) -> None:
    """Send dead notifications again, now. Other notifications are left unchanged.

    Example: terminal-status deliveries send-again --dead --subscription 0f3a…
    """
    from app.pb.terminalstatus.v1.delivery_pb2 import SendNotificationsAgainRequest

    stub = _stub(gateway)
    if bool(notification_ids) == dead:
        wrong_use("Give either the ids of notifications, or --dead for all dead ones.")
    if subscription and not dead:
        wrong_use("--subscription can be used only with --dead.")
    ids = list(notification_ids or [])
    if dead:
        pages = gateway.pages(stub.ListNotifications, _list_request(State.DEAD, subscription), "notifications")
        ids = [notification.id for page in pages for notification in page]
    sent = 0
    for start in range(0, len(ids), PAGE_SIZE):
        request = SendNotificationsAgainRequest(notification_ids=ids[start : start + PAGE_SIZE])
        sent += gateway.call(stub.SendNotificationsAgain, request).sent_again_count
    if gateway.as_json:
        print_json({"sent_again_count": sent})
    else:
        err.print(f"{sent} of {len(ids)} notifications were dead and are sent again now.")


def _stub(gateway: GatewayConnection) -> Any:
    from app.pb.terminalstatus.v1.delivery_pb2_grpc import DeliveryServiceStub

    return DeliveryServiceStub(gateway.channel)


def _list_request(state: State | None, subscription: str) -> Any:
    from app.pb.terminalstatus.v1 import delivery_pb2 as pb

    wanted = pb.DeliveryState.Value(f"DELIVERY_STATE_{state.name}") if state else pb.DELIVERY_STATE_UNSPECIFIED
    return pb.ListNotificationsRequest(state=wanted, subscription_id=subscription)


def _row(of: "Notification", now: datetime) -> list[Cell]:
    kind = of.WhichOneof("content") or ""
    return [
        of.id,
        of.subscription_id,
        str(of.sequence),
        kind.removeprefix("subscription_").replace("_", " "),
        _content(of),
        clock(of.create_time),
        styled(enum_name(of, "state")),
        str(of.attempt_count),
        until(of.next_attempt_time, now) if of.HasField("next_attempt_time") else "",
    ]


def _content(of: "Notification") -> str:
    match of.WhichOneof("content"):
        case "status_changes":
            changes = [f"{change.address} {enum_name(change, 'status')}" for change in of.status_changes.statuses]
            return changes[0] + (f" and {len(changes) - 1} more" if len(changes) > 1 else "") if changes else ""
        case "subscription_failed":
            failed = of.subscription_failed
            return " ".join(filter(None, [failed.address, reason_of(failed.error)]))
        case "subscription_ended":
            return enum_name(of.subscription_ended, "reason")
    return ""


def _attempt(of: "DeliveryAttempt") -> list[Cell]:
    answer = of.response_body.decode("utf-8", "replace")
    name = enum_name(of, "outcome")
    cut = f"{answer[:_MAX_ANSWER_CHARS]}…" if len(answer) > _MAX_ANSWER_CHARS else answer
    outcome = styled(name, "green" if name in _GOOD else "red")
    return [
        str(of.number),
        clock(of.start_time),
        outcome,
        str(of.http_code or ""),
        str(of.duration.ToMilliseconds()),
        cut,
    ]
