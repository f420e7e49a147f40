"""`terminal-status deliveries …`: notifications that are owed or settled, what came of each attempt, and again."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.gateway import PAGE, Gateway, asks_gateway, wrong_use
from app.cli.output import err
from app.cli.tables import Cell, enum_name, print_json, print_list, styled
from app.cli.times import clock, until

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.delivery_pb2 import DeliveryAttempt, Notification

deliveries = typer.Typer(no_args_is_help=True, help="Notifications: owed, delivered or dead, and their attempts.")

_LONGEST_ANSWER = 60


class State(StrEnum):
    """Where a notification stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    WITHDRAWN = "withdrawn"


OfSubscription = Annotated[
    str, typer.Option("--subscription", metavar="ID", help="Only those of this subscription.", show_default=False)
]


@deliveries.command("list")
@asks_gateway
def list_deliveries(
    gateway: Gateway,
    state: Annotated[State | None, typer.Option(help="Only those in this state.", show_default=False)] = None,
    subscription: OfSubscription = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Show so many at most; all otherwise.", show_default=False)
    ] = None,
) -> None:
    """List notifications, oldest first.

    Example: terminal-status deliveries list --state dead
    """
    pages = gateway.pages(_stub(gateway).ListNotifications, _list_request(state, subscription), "notifications", limit)
    now = datetime.now(UTC)
    columns = ("id", "subscription", "no.", "kind", "what", "made", "state", "attempts", "next in")
    print_list(pages, columns, lambda each: _row(each, now), as_json=gateway.as_json, nothing="No notifications.")


@deliveries.command()
@asks_gateway
def attempts(
    gateway: Gateway,
    notification_id: Annotated[str, typer.Argument(metavar="ID", help="The notification's.", show_default=False)],
) -> None:
    """Show the attempts to deliver one notification, with what the endpoint answered.

    Example: terminal-status deliveries attempts 5d1c…
    """
    from app.pb.terminalstatus.v1.delivery_pb2 import ListDeliveryAttemptsRequest

    request = ListDeliveryAttemptsRequest(notification_id=notification_id)
    found = gateway.call(_stub(gateway).ListDeliveryAttempts, request).attempts
    columns = ("no.", "at", "outcome", "HTTP", "ms", "answer")
    print_list([list(found)], columns, _attempt, as_json=gateway.as_json, nothing="No attempt yet.")


@deliveries.command("send-again")
@asks_gateway
def send_again(
    gateway: Gateway,
    notification_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Dead notifications.", show_default=False)
    ] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All that are dead, in place of ids.")] = False,
    subscription: OfSubscription = "",
) -> None:
    """Make dead notifications due at once; others of those named stay as they are.

    Example: terminal-status deliveries send-again --dead --subscription 0f3a…
    """
    from app.pb.terminalstatus.v1.delivery_pb2 import SendNotificationsAgainRequest

    stub = _stub(gateway)
    if bool(notification_ids) == dead:
        wrong_use("Name the notifications by their ids, or all of them by --dead.")
    if subscription and not dead:
        wrong_use("--subscription goes with --dead.")
    ids = list(notification_ids or [])
    if dead:
        pages = gateway.pages(stub.ListNotifications, _list_request(State.DEAD, subscription), "notifications")
        ids = [notification.id for page in pages for notification in page]
    sent = 0
    for start in range(0, len(ids), PAGE):
        request = SendNotificationsAgainRequest(notification_ids=ids[start : start + PAGE])
        sent += gateway.call(stub.SendNotificationsAgain, request).sent_again
    if gateway.as_json:
        print_json({"sent_again": sent})
    else:
        err.print(f"{sent} of {len(ids)} were dead and are due now.")


def _stub(gateway: Gateway) -> Any:
    from app.pb.terminalstatus.v1.delivery_pb2_grpc import DeliveryServiceStub

    return DeliveryServiceStub(gateway.channel)


def _list_request(state: State | None, subscription: str) -> Any:
    from app.pb.terminalstatus.v1 import delivery_pb2 as pb

    wanted = pb.DeliveryState.Value(f"DELIVERY_STATE_{state.name}") if state else pb.DELIVERY_STATE_UNSPECIFIED
    return pb.ListNotificationsRequest(state=wanted, subscription_id=subscription)


def _row(of: "Notification", now: datetime) -> list[Cell]:
    changes = [f"{change.address} {enum_name(change, 'status')}" for change in of.changes]
    what = changes[0] + (f" and {len(changes) - 1} more" if len(changes) > 1 else "") if changes else ""
    return [
        of.id,
        of.subscription_id,
        str(of.sequence),
        enum_name(of, "kind"),
        what or " ".join(filter(None, [of.address, of.code])),
        clock(of.created_at),
        styled(enum_name(of, "state")),
        str(of.attempts),
        until(of.next_attempt_at, now) if of.HasField("next_attempt_at") else "",
    ]


def _attempt(of: "DeliveryAttempt") -> list[Cell]:
    answer = of.answer.decode("utf-8", "replace")
    cut = f"{answer[:_LONGEST_ANSWER]}…" if len(answer) > _LONGEST_ANSWER else answer
    outcome = styled(of.outcome, "green" if of.outcome == "delivered" else "red")
    return [str(of.number), clock(of.at), outcome, str(of.code or ""), str(of.duration.ToMilliseconds()), cut]
