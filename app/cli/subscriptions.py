"""`terminal-status subscriptions …`: standing requests, which outlive connections and restarts."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.gateway import Gateway, asks_gateway, wrong_use
from app.cli.output import err, shown
from app.cli.query import Addresses
from app.cli.tables import Cell, enum_name, enum_names, plain, print_fields, print_json, print_list, styled
from app.cli.times import SPAN_HELP, clock, duration, short, span_ms, until
from app.cli.watch import statuses

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.subscription_pb2 import Subscription

subscriptions = typer.Typer(
    no_args_is_help=True, help="Standing requests: tell this endpoint when one of these terminals changes."
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The subscription's id.", show_default=False)]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Show so many at most; all otherwise.", show_default=False)
]
_COLUMNS = ("id", "addresses", "criteria", "sink", "notified", "expires in", "correlator", "state")


@subscriptions.command("list")
@asks_gateway
def list_subscriptions(gateway: Gateway, limit: Limit = None) -> None:
    """List the active ones, oldest first.

    Example: terminal-status subscriptions list --json | jq -r '.[].id'
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import ListSubscriptionsRequest

    pages = gateway.pages(_stub(gateway).ListSubscriptions, ListSubscriptionsRequest(), "subscriptions", limit)
    now = datetime.now(UTC)
    nothing = "No active subscriptions."
    print_list(pages, _COLUMNS, lambda each: _row(each, now), as_json=gateway.as_json, nothing=nothing)


@subscriptions.command()
@asks_gateway
def show(gateway: Gateway, subscription_id: Id) -> None:
    """Show one, an ended one for as long as the gateway keeps it.

    Example: terminal-status subscriptions show 0f3a…
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import GetSubscriptionRequest

    request = GetSubscriptionRequest(subscription_id=subscription_id)
    _tell(gateway, gateway.call(_stub(gateway).GetSubscription, request).subscription)


@subscriptions.command()
@asks_gateway
def create(
    gateway: Gateway,
    addresses: Addresses,
    criteria: Annotated[
        list[str] | None,
        typer.Option(metavar="STATUS", help="Tell changes to this only: REACHABLE, UNREACHABLE, BUSY; again for more."),
    ] = None,
    immediate: Annotated[
        bool, typer.Option("--immediate", help="Tell at once which terminals meet the criteria now.")
    ] = False,
    min_interval: Annotated[
        str, typer.Option(metavar="DURATION", help=f"Least time between two notifications, {SPAN_HELP}.")
    ] = "0",
    lasts: Annotated[
        str, typer.Option("--duration", metavar="DURATION", help="How long; the operator's default otherwise.")
    ] = "0",
    count: Annotated[int, typer.Option(min=0, help="How many notifications end it; 0 is no limit.")] = 0,
    webhook: Annotated[
        str, typer.Option(metavar="URL", help="Send CloudEvents there by HTTP POST.", show_default=False)
    ] = "",
    soap: Annotated[str, typer.Option(metavar="URL", help="Send Parlay X callbacks there.", show_default=False)] = "",
    profile: Annotated[
        str, typer.Option(help="How the endpoint is spoken to: v1 (webhooks), v2_2, … (callbacks)", show_default=False)
    ] = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="The endpoint's own, such as secrets=@FILE; @ reads the value."),
    ] = None,
    correlator: Annotated[str, typer.Option(help="Your own name for it, unique.", show_default=False)] = "",
    request_id: Annotated[
        str, typer.Option(help="Makes repeating the command safe, such as a UUID.", show_default=False)
    ] = "",
    requester: Annotated[str, typer.Option(help="On whose behalf, for the usage record.", show_default=False)] = "",
) -> None:
    """Make one; its id is printed. Without an endpoint its notifications are only listed (deliveries).

    Example: terminal-status subscriptions create sip:alice@example.com --criteria BUSY --duration 2h
    --webhook https://app.example.com/events --parameter secrets=@secret.txt
    """
    from app.pb.terminalstatus.v1 import subscription_pb2 as pb

    if webhook and soap:
        wrong_use("--webhook and --soap: one endpoint is what a subscription has.")
    kind = pb.SINK_KIND_WEBHOOK if webhook else pb.SINK_KIND_SOAP if soap else pb.SINK_KIND_STREAM
    request = pb.CreateSubscriptionRequest(
        addresses=addresses,
        criteria=statuses(criteria),
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
    made = answer.subscription
    if gateway.as_json:
        print_json({**plain(made), "secret": answer.secret or None})
        return
    if answer.secret:
        err.print(f"Its webhook is signed with this secret, which is shown only now: {answer.secret}")
    expires = f"expires {clock(made.expires_at)}" if made.HasField("expires_at") else "does not expire"
    err.print(f"The subscription to {_addresses(made)} {expires}. Its id:")
    print(made.id)  # noqa: T201  # standard output is this command's answer


@subscriptions.command()
@asks_gateway
def cancel(
    gateway: Gateway,
    subscription_id: Annotated[str, typer.Argument(metavar="ID", help="Its id.", show_default=False)] = "",
    correlator: Annotated[str, typer.Option(help="Its correlator, in place of the id.", show_default=False)] = "",
    requester: Annotated[str, typer.Option(help="On whose behalf, for the usage record.", show_default=False)] = "",
) -> None:
    """End one. What is owed already is still delivered; to a SOAP endpoint it is withdrawn.

    Example: terminal-status subscriptions cancel --correlator door-7
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import CancelSubscriptionRequest

    if bool(subscription_id) == bool(correlator):
        wrong_use("Name the subscription by its id or by --correlator.")
    named: dict[str, Any] = {"subscription_id": subscription_id} if subscription_id else {"correlator": correlator}
    gateway.call(_stub(gateway).CancelSubscription, CancelSubscriptionRequest(**named, requester=requester))
    if gateway.as_json:
        print_json(named)
    else:
        err.print(f"Ended {shown(subscription_id or correlator)}.")


@subscriptions.command()
@asks_gateway
def renew(
    gateway: Gateway,
    subscription_id: Id,
    lasts: Annotated[
        str, typer.Option("--duration", metavar="DURATION", help=f"How long from now, {SPAN_HELP}.", show_default=False)
    ],
) -> None:
    """Let one last for a new duration, counted from now.

    Example: terminal-status subscriptions renew 0f3a… --duration 7d
    """
    from app.pb.terminalstatus.v1.subscription_pb2 import RenewSubscriptionRequest

    request = RenewSubscriptionRequest(subscription_id=subscription_id, duration=duration(span_ms(lasts)))
    _tell(gateway, gateway.call(_stub(gateway).RenewSubscription, request).subscription)


@subscriptions.command("rotate-secret")
@asks_gateway
def rotate_secret(
    gateway: Gateway,
    subscription_id: Id,
    secret_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Has the new secret, whsec_…; one is made otherwise.", show_default=False),
    ] = None,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Sign with the newest only from now on; without a file none is made.")
    ] = False,
    requester: Annotated[str, typer.Option(help="On whose behalf, for the audit log.", show_default=False)] = "",
) -> None:
    """Change what signs a webhook. The old secret signs too until --drop-old; one that is made is printed this once.

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
        err.print("Only its newest secret signs from now on.")
    elif not answer.secret:
        err.print("It is signed with that secret and with the one before from now on.")
    else:
        err.print("It is signed with this secret, which is shown only now, and with the one before from now on:")
        print(answer.secret)  # noqa: T201  # standard output is this command's answer


def _stub(gateway: Gateway) -> Any:
    from app.pb.terminalstatus.v1.subscription_pb2_grpc import SubscriptionServiceStub

    return SubscriptionServiceStub(gateway.channel)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        wrong_use(f"--parameter {name}: not NAME=VALUE.")
    if value.startswith("@"):
        return name, _read(value[1:], f"--parameter {name}")
    return name, value


def _read(path: str, option: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        wrong_use(f"{option}: {path} cannot be read: {getattr(error, 'strerror', None) or error}.")


def _tell(gateway: Gateway, subscription: "Subscription") -> None:
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
            ("made", clock(of.created_at)),
            ("expires", "" if of.HasField("ended_at") else expires),
            (
                "least interval",
                (f"{interval_ms} ms" if interval_ms < 1000 else short(interval_ms / 1000)) * bool(interval_ms),
            ),
            ("notified", notified),
            ("last notified", clock(of.last_notified_at) if of.HasField("last_notified_at") else ""),
            ("suspended", f"its endpoint fails since {clock(of.suspended_at)}" if of.HasField("suspended_at") else ""),
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
