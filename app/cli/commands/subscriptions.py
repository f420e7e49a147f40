"""`terminal-status subscriptions …`: stored requests to send notifications of changes to a sink."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.console import err, shown, wrong_use
from app.cli.gateway_connection import GatewayConnection, gateway_command
from app.cli.options import AddressesArgument, CriteriaOption, LimitOption, RequesterOption, criteria_statuses
from app.cli.protobuf_json import enum_name, enum_names, plain
from app.cli.tables import Cell, print_fields, print_json, print_list, styled
from app.cli.times import SPAN_HELP, clock, duration, short, span_ms, until

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.subscription_pb2 import Subscription

subscriptions = typer.Typer(
    no_args_is_help=True,
    help="Manage subscriptions: the gateway notifies a webhook or SOAP endpoint when terminals change.",
)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The subscription's id.", show_default=False)]
_COLUMNS = ("id", "addresses", "criteria", "sink", "notified", "expires in", "correlator", "state")


@subscriptions.command("list")
@gateway_command
def list_subscriptions(gateway: GatewayConnection, limit: LimitOption = None) -> None:
    """List the active subscriptions, oldest first.

    Example: terminal-status subscriptions list --json | jq -r '.[].id'
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import ListSubscriptionsRequest

    pages = gateway.pages(_stub(gateway).ListSubscriptions, ListSubscriptionsRequest(), "subscriptions", limit)
    now = datetime.now(UTC)
    nothing = "No active subscriptions."
    print_list(pages, _COLUMNS, lambda each: _row(each, now), as_json=gateway.as_json, nothing=nothing)


@subscriptions.command()
@gateway_command
def show(gateway: GatewayConnection, subscription_id: IdArgument) -> None:
    """Show a subscription, active or ended. The gateway deletes ended ones after a while.

    Example: terminal-status subscriptions show 0f3a…
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import GetSubscriptionRequest

    request = GetSubscriptionRequest(subscription_id=subscription_id)
    _print_subscription(gateway, gateway.call(_stub(gateway).GetSubscription, request).subscription)


@subscriptions.command()
@gateway_command
def create(
    gateway: GatewayConnection,
    addresses: AddressesArgument,
    criteria: CriteriaOption = None,
    immediate: Annotated[
        bool, typer.Option("--immediate", help="Also notify at once of the terminals that meet the criteria now.")
    ] = False,
    min_interval: Annotated[
        str, typer.Option(metavar="DURATION", help=f"Minimum time between two notifications, {SPAN_HELP}.")
    ] = "0",
    lasts: Annotated[
        str,
        typer.Option(
            "--duration",
            metavar="DURATION",
            help=f"Time after which the subscription ends, {SPAN_HELP}. Default: the operator's.",
            show_default=False,
        ),
    ] = "0",
    count: Annotated[
        int, typer.Option(min=0, help="Number of notifications after which the subscription ends; 0 means no limit.")
    ] = 0,
    webhook: Annotated[
        str, typer.Option(metavar="URL", help="Send notifications as CloudEvents to this URL.", show_default=False)
    ] = "",
    soap: Annotated[
        str,
        typer.Option(metavar="URL", help="Send notifications as Parlay X callbacks to this URL.", show_default=False),
    ] = "",
    profile: Annotated[
        str,
        typer.Option(
            help="Version of the notifications: v1 for webhooks; v2_2 and others for SOAP.", show_default=False
        ),
    ] = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A parameter of the webhook or SOAP endpoint, such as secrets=@FILE; @ reads the value from a file. "
            "Repeatable.",
        ),
    ] = None,
    correlator: Annotated[
        str, typer.Option(help="Your own name for the subscription; unique among active ones.", show_default=False)
    ] = "",
    request_id: Annotated[
        str,
        typer.Option(
            help="Your unique id of this request, such as a UUID; repeating the command with it creates nothing twice.",
            show_default=False,
        ),
    ] = "",
    requester: RequesterOption = "",
) -> None:
    """Create a subscription, and print its id.

    Without --webhook and --soap, notifications are only stored; terminal-status deliveries list shows them.

    Example: terminal-status subscriptions create sip:alice@example.com --criteria BUSY --duration 2h
    --webhook https://app.example.com/events --parameter secrets=@secret.txt
    """
    from app.pb.terminalstatus.v1 import subscription_pb2 as pb

    if webhook and soap:
        wrong_use("--webhook and --soap exclude each other: a subscription has one endpoint.")
    kind = pb.SINK_KIND_WEBHOOK if webhook else pb.SINK_KIND_SOAP if soap else pb.SINK_KIND_STREAM
    request = pb.CreateSubscriptionRequest(
        addresses=addresses,
        criteria=criteria_statuses(criteria),
        check_immediate=immediate,
        min_interval=duration(span_ms(min_interval)),
        duration=duration(span_ms(lasts)),
        max_notifications=count,
        sink=pb.Sink(
            kind=kind,
            url=webhook or soap,
            profile=profile,
            parameters=dict([_parameter(text) for text in parameter or []]),
        ),
        correlator=correlator,
        request_id=request_id,
        requester=requester,
    )
    answer = gateway.call(_stub(gateway).CreateSubscription, request)
    created = answer.subscription
    if gateway.as_json:
        print_json({**plain(created), "secret": answer.secret or None})
        return
    if answer.secret:
        err.print(f"Notifications are signed with this secret, which is shown only now: {answer.secret}")
    expires = f"expires {clock(created.expires_at)}" if created.HasField("expires_at") else "does not expire"
    err.print(f"The subscription to {_addresses(created)} {expires}. Its id:")
    print(created.id)  # noqa: T201  # standard output is this command's answer


@subscriptions.command()
@gateway_command
def cancel(
    gateway: GatewayConnection,
    subscription_id: Annotated[
        str, typer.Argument(metavar="ID", help="The subscription's id.", show_default=False)
    ] = "",
    correlator: Annotated[
        str, typer.Option(help="The subscription's correlator, instead of its id.", show_default=False)
    ] = "",
    requester: RequesterOption = "",
) -> None:
    """End a subscription.

    Notifications that are due already are still sent to a webhook, but no longer to a SOAP endpoint.

    Example: terminal-status subscriptions cancel --correlator door-7
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import CancelSubscriptionRequest

    if bool(subscription_id) == bool(correlator):
        wrong_use("Give either the subscription's id or --correlator.")
    named: dict[str, Any] = {"subscription_id": subscription_id} if subscription_id else {"correlator": correlator}
    gateway.call(_stub(gateway).CancelSubscription, CancelSubscriptionRequest(**named, requester=requester))
    if gateway.as_json:
        print_json(named)
    else:
        err.print(f"Ended {shown(subscription_id or correlator)}.")


@subscriptions.command()
@gateway_command
def renew(
    gateway: GatewayConnection,
    subscription_id: IdArgument,
    lasts: Annotated[
        str,
        typer.Option(
            "--duration",
            metavar="DURATION",
            help=f"Time from now after which the subscription ends, {SPAN_HELP}.",
            show_default=False,
        ),
    ],
) -> None:
    """Set a new duration for a subscription, counted from now.

    Example: terminal-status subscriptions renew 0f3a… --duration 7d
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import RenewSubscriptionRequest

    request = RenewSubscriptionRequest(subscription_id=subscription_id, duration=duration(span_ms(lasts)))
    _print_subscription(gateway, gateway.call(_stub(gateway).RenewSubscription, request).subscription)


@subscriptions.command("rotate-secret")
@gateway_command
def rotate_secret(
    gateway: GatewayConnection,
    subscription_id: IdArgument,
    secret_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the new secret, whsec_…. Default: generated.", show_default=False),
    ] = None,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Stop signing with the old secret; generates no new one.")
    ] = False,
    requester: RequesterOption = "",
) -> None:
    """Change the secret that signs a webhook's notifications; a generated one is printed, and cannot be shown again.

    The old secret signs too, so that receivers can switch, until the command is run with --drop-old.

    Example: terminal-status subscriptions rotate-secret 0f3a… > new-secret.txt
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import RotateSecretRequest

    secret = "" if secret_file is None else _read(str(secret_file), "--secret-file")
    if secret_file is not None and not secret:
        wrong_use(f"--secret-file: {secret_file} is empty.")
    request = RotateSecretRequest(
        subscription_id=subscription_id, secret=secret, drop_old=drop_old, requester=requester
    )
    answer = gateway.call(_stub(gateway).RotateSecret, request)
    if gateway.as_json:
        print_json({**plain(answer.subscription), "secret": answer.secret or None})
        return
    if drop_old:
        err.print("From now on notifications are signed only with the newest secret.")
    elif not answer.secret:
        err.print("From now on notifications are signed with the new secret and the previous one.")
    else:
        err.print(
            "From now on notifications are signed with the previous secret and this new one, which is shown only now:"
        )
        print(answer.secret)  # noqa: T201  # standard output is this command's answer


def _stub(gateway: GatewayConnection) -> Any:
    from app.pb.terminalstatus.v1.subscription_pb2_grpc import SubscriptionServiceStub

    return SubscriptionServiceStub(gateway.channel)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        wrong_use(f"--parameter {name}: write NAME=VALUE.")
    if value.startswith("@"):
        return name, _read(value[1:], f"--parameter {name}")
    return name, value


def _read(path: str, option: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        wrong_use(f"{option}: {path} cannot be read: {getattr(error, 'strerror', None) or error}.")


def _print_subscription(gateway: GatewayConnection, subscription: "Subscription") -> None:
    if gateway.as_json:
        print_json(plain(subscription))
        return
    of, now = subscription, datetime.now(UTC)
    interval_ms = of.min_interval.ToMilliseconds()
    expires = f"{clock(of.expires_at)}, in {until(of.expires_at, now)}" if of.HasField("expires_at") else "never"
    notified = f"{of.notified}{f' of {of.max_notifications}' if of.max_notifications else ''}"
    print_fields(
        [
            ("id", of.id),
            ("state", _state(of)),
            ("addresses", ", ".join(of.addresses)),
            ("criteria", ", ".join(enum_names(of, "criteria")) or "every change"),
            ("sink", _sink(of)),
            ("profile", of.sink.profile),
            ("correlator", of.correlator),
            ("client", of.client_id),
            ("created", clock(of.created_at)),
            ("expires", "" if of.HasField("ended_at") else expires),
            (
                "min interval",
                (f"{interval_ms} ms" if interval_ms < 1000 else short(interval_ms / 1000)) * bool(interval_ms),
            ),
            ("notified", notified),
            ("last notified", clock(of.last_notified_at) if of.HasField("last_notified_at") else ""),
            (
                "suspended",
                f"deliveries have failed since {clock(of.suspended_at)}" if of.HasField("suspended_at") else "",
            ),
            ("ended", f"{clock(of.ended_at)} {of.end_detail}".strip() if of.HasField("ended_at") else ""),
            ("request id", of.request_id),
        ]
    )


def _row(of: "Subscription", now: datetime) -> list[Cell]:
    return [
        of.id,
        _addresses(of),
        ", ".join(enum_names(of, "criteria")),
        _sink(of),
        str(of.notified),
        until(of.expires_at, now) if of.HasField("expires_at") else "never",
        of.correlator,
        _state(of),
    ]


def _state(of: "Subscription") -> Cell:
    if of.HasField("ended_at"):
        return styled(enum_name(of, "end_reason") or "ended", "bright_black")
    return styled("suspended", "yellow") if of.HasField("suspended_at") else styled("active")


def _sink(of: "Subscription") -> str:
    return f"{enum_name(of.sink, 'kind')} {of.sink.url}".strip()


def _addresses(of: "Subscription") -> str:
    return of.addresses[0] + (f" and {len(of.addresses) - 1} more" if len(of.addresses) > 1 else "")
