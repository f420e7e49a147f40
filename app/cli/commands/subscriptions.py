"""`terminal-status subscriptions …`: stored requests to send notifications of changes to a sink."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.console import err, shown, wrong_use
from app.cli.gateway_connection import GatewayConnection, gateway_command
from app.cli.options import AddressesArgument, CriteriaOption, LimitOption, RequesterOption, criteria_statuses
from app.cli.protobuf_json import plain
from app.cli.subscription_output import COLUMNS, print_subscription, row, shown_addresses
from app.cli.tables import print_json, print_list
from app.cli.times import SPAN_HELP, clock, duration, span_ms

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.subscription_pb2 import AccessToken

subscriptions = typer.Typer(
    no_args_is_help=True,
    help="Manage subscriptions: the gateway notifies a webhook or SOAP endpoint when terminals change.",
)


class Handshake(StrEnum):
    """How a webhook's endpoint is checked, as in the proto's SinkHandshake."""

    TEST = "test"
    OPTIONS = "options"
    NONE = "none"


IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The subscription's id.", show_default=False)]


@subscriptions.command("list")
@gateway_command
def list_subscriptions(
    gateway: GatewayConnection,
    ended: Annotated[bool, typer.Option("--ended", help="List those that have ended, instead of active ones.")] = False,
    address: Annotated[
        str,
        typer.Option(help="Only subscriptions that name this terminal or group.", show_default=False),
    ] = "",
    client: Annotated[str, typer.Option(help="Only subscriptions of this client, by its id.", show_default=False)] = "",
    limit: LimitOption = None,
) -> None:
    """List the active subscriptions, oldest first.

    Example: terminal-status subscriptions list --address sip:alice@example.com
    """
    from app.pb.terminalstatus.v1 import subscription_pb2 as pb

    state = pb.SUBSCRIPTION_STATE_ENDED if ended else pb.SUBSCRIPTION_STATE_ACTIVE
    request = pb.ListSubscriptionsRequest(state=state, address=address, client_id=client)
    pages = gateway.pages(_stub(gateway).ListSubscriptions, request, "subscriptions", limit)
    now = datetime.now(UTC)
    nothing = "No such subscriptions." if ended or address or client else "No active subscriptions."
    print_list(pages, COLUMNS, lambda each: row(each, now), as_json=gateway.as_json, nothing=nothing)


@subscriptions.command()
@gateway_command
def show(gateway: GatewayConnection, subscription_id: IdArgument) -> None:
    """Show a subscription, active or ended. The gateway deletes ended ones after a while.

    Example: terminal-status subscriptions show 0f3a…
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import GetSubscriptionRequest

    request = GetSubscriptionRequest(subscription_id=subscription_id)
    print_subscription(gateway, gateway.call(_stub(gateway).GetSubscription, request).subscription)


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
    secret_file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="File with a signing secret of the webhook, whsec_…; twice: the newest first. Default: generated.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the access token that the webhook's endpoint expects.", show_default=False
        ),
    ] = None,
    token_expires: Annotated[
        str,
        typer.Option(metavar="DURATION", help=f"Time after which that token expires, {SPAN_HELP}.", show_default=False),
    ] = "",
    handshake: Annotated[
        Handshake | None, typer.Option(help="How the webhook's endpoint is checked now.", show_default=False)
    ] = None,
    soap_version: Annotated[
        str,
        typer.Option(help="Version of the Parlay X callbacks, such as v2_2. Default: the newest.", show_default=False),
    ] = "",
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
    --webhook https://app.example.com/events --secret-file secret.txt
    """
    from app.pb.terminalstatus.v1 import subscription_pb2 as pb

    if webhook and soap:
        wrong_use("--webhook and --soap exclude each other: a subscription has one endpoint.")
    if not webhook and (secret_file or token_file or handshake):
        wrong_use("--secret-file, --token-file and --handshake need --webhook.")
    if soap_version and not soap:
        wrong_use("--soap-version needs --soap.")
    sink = pb.Sink(listed=pb.ListedSink())
    if soap:
        sink = pb.Sink(soap=pb.SoapSink(uri=soap, version=soap_version))
    elif webhook:
        secrets = [_read(path, "--secret-file") for path in secret_file or []]
        token = _access_token(token_file, token_expires)
        check = pb.SinkHandshake.Value(f"SINK_HANDSHAKE_{handshake.name if handshake else 'UNSPECIFIED'}")
        sink = pb.Sink(webhook=pb.WebhookSink(uri=webhook, secrets=secrets, access_token=token, handshake=check))
    request = pb.CreateSubscriptionRequest(
        addresses=addresses,
        criteria=criteria_statuses(criteria),
        check_immediate=immediate,
        min_interval=duration(span_ms(min_interval)),
        duration=duration(span_ms(lasts)),
        max_notification_count=count,
        sink=sink,
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
    expires = f"expires {clock(created.expire_time)}" if created.HasField("expire_time") else "does not expire"
    err.print(f"The subscription to {shown_addresses(created)} {expires}. Its id:")
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
def update(
    gateway: GatewayConnection,
    subscription_id: IdArgument,
    address: Annotated[
        list[str] | None,
        typer.Option(help="The new terminals and groups, all of them. Repeatable.", show_default=False),
    ] = None,
    criteria: CriteriaOption = None,
    every_change: Annotated[
        bool, typer.Option("--every-change", help="Report every change from now on, without criteria.")
    ] = False,
    lasts: Annotated[
        str,
        typer.Option(
            "--duration",
            metavar="DURATION",
            help=f"Time from now after which the subscription ends, {SPAN_HELP}. 0: the operator's default.",
            show_default=False,
        ),
    ] = "",
    webhook: Annotated[
        str, typer.Option(metavar="URL", help="The new endpoint of a webhook. Its secrets stay.", show_default=False)
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the access token of that endpoint. Without it, no token is sent from now on.",
            show_default=False,
        ),
    ] = None,
    token_expires: Annotated[
        str,
        typer.Option(metavar="DURATION", help=f"Time after which that token expires, {SPAN_HELP}.", show_default=False),
    ] = "",
    etag: Annotated[
        str,
        typer.Option(help="Change it only if it still has this etag, as show prints it.", show_default=False),
    ] = "",
    requester: RequesterOption = "",
) -> None:
    """Change an active subscription. What no option names stays as it is.

    Example: terminal-status subscriptions update 0f3a… --duration 7d --address sip:bob@example.com
    """
    from google.protobuf.field_mask_pb2 import FieldMask

    from app.pb.terminalstatus.v1 import subscription_pb2 as pb

    if criteria and every_change:
        wrong_use("--criteria and --every-change exclude each other.")
    if not webhook and (token_file or token_expires):
        wrong_use("--token-file and --token-expires need --webhook.")
    change, paths = pb.SubscriptionChange(), list[str]()
    if address:
        change.addresses.extend(address)
        paths.append("addresses")
    if criteria or every_change:
        change.criteria.extend(criteria_statuses(criteria))
        paths.append("criteria")
    if lasts:
        change.duration.CopyFrom(duration(span_ms(lasts)))
        paths.append("duration")
    if webhook:
        sink = pb.WebhookSink(uri=webhook, access_token=_access_token(token_file, token_expires))
        change.sink.CopyFrom(pb.Sink(webhook=sink))
        paths.append("sink")
    if not paths:
        wrong_use("Nothing to change: give --address, --criteria, --every-change, --duration or --webhook.")
    request = pb.UpdateSubscriptionRequest(
        subscription_id=subscription_id,
        change=change,
        update_mask=FieldMask(paths=paths),
        etag=etag,
        requester=requester,
    )
    print_subscription(gateway, gateway.call(_stub(gateway).UpdateSubscription, request).subscription)


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
    overlap_s: Annotated[
        int | None, typer.Option(help="Seconds for which the old secret signs too. Default: a day.", show_default=False)
    ] = None,
    requester: RequesterOption = "",
) -> None:
    """Change the secret that signs a webhook's notifications; a generated one is printed, and cannot be shown again.

    The old secret signs too, so that receivers can switch, until the overlap ends or the command is run with
    --drop-old.

    Example: terminal-status subscriptions rotate-secret 0f3a… > new-secret.txt
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import RotateSecretRequest

    secret = "" if secret_file is None else _read(secret_file, "--secret-file")
    request = RotateSecretRequest(
        subscription_id=subscription_id, secret=secret, drop_old=drop_old, requester=requester
    )
    if overlap_s is not None:
        request.overlap.FromSeconds(overlap_s)
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


def _access_token(file: Path | None, expires: str) -> "AccessToken | None":
    from app.pb.terminalstatus.v1.subscription_pb2 import AccessToken

    if file is None:
        if expires:
            wrong_use("--token-expires needs --token-file.")
        return None
    token = AccessToken(token=_read(file, "--token-file"))
    if expires:
        token.expire_time.FromDatetime(datetime.now(UTC) + timedelta(milliseconds=span_ms(expires)))
    return token


def _read(path: Path, option: str) -> str:
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        wrong_use(f"{option}: {path} cannot be read: {getattr(error, 'strerror', None) or error}.")
    if not text:
        wrong_use(f"{option}: {path} is empty.")
    return text
