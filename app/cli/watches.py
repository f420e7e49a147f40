"""`terminal-status watches`: the gateway's standing SIP subscriptions at the presence server, for operators."""

import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.gateway import Gateway, asks_gateway, wrong_use
from app.cli.output import err, shown
from app.cli.tables import Cell, enum_name, print_json, print_list, styled
from app.cli.times import ago, until

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.admin_pb2 import Watch

watches = typer.Typer()

_COLUMNS = ("address", "state", "liveness", "since", "expires in", "last", "next", "wanted by", "route")


def _list(
    gateway: Gateway,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Show so many at most; all otherwise.", show_default=False)
    ] = None,
) -> None:
    """List the gateway's watches, its standing SIP subscriptions, and how each stands.

    `last` is the last SIP status with its reason, `next` what happens next and when; `wanted by` names subscriptions by
    id and live streams as stream:CLIENT.

    Example: terminal-status watches --limit 20
    """
    from app.pb.terminalstatus.v1.admin_pb2 import ListWatchesRequest
    from app.pb.terminalstatus.v1.admin_pb2_grpc import AdminServiceStub

    method = AdminServiceStub(gateway.channel).ListWatches
    pages = gateway.pages(method, ListWatchesRequest(), "watches", limit)
    now = datetime.now(UTC)
    print_list(pages, _COLUMNS, lambda watch: _row(watch, now), as_json=gateway.as_json, nothing="Nothing is watched.")


_LIST = asks_gateway(_list)


def _watches(context: typer.Context, **options: object) -> None:
    if context.invoked_subcommand is None:
        _LIST(**options)
    elif any(getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE" for name in options):
        wrong_use(f"Options stand after the command: terminal-status watches {context.invoked_subcommand} …")


_watches.__doc__ = _LIST.__doc__
_CONTEXT = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
_SIGNATURE = inspect.signature(_LIST)
_watches.__signature__ = _SIGNATURE.replace(  # type: ignore[attr-defined]  # typer reads it
    parameters=[_CONTEXT, *_SIGNATURE.parameters.values()]
)
_watches.__annotations__ = {"context": typer.Context, **_LIST.__annotations__}
watches.callback(invoke_without_command=True)(_watches)


@watches.command()
@asks_gateway
def refresh(
    gateway: Gateway,
    address: Annotated[str, typer.Argument(help="A watched terminal.", show_default=False)],
) -> None:
    """Ask the presence server about a watched terminal now, rather than at the next refresh.

    Example: terminal-status watches refresh sip:alice@example.com
    """
    from app.pb.terminalstatus.v1.admin_pb2 import RefreshWatchRequest
    from app.pb.terminalstatus.v1.admin_pb2_grpc import AdminServiceStub

    gateway.call(AdminServiceStub(gateway.channel).RefreshWatch, RefreshWatchRequest(address=address))
    if gateway.as_json:
        print_json({"address": address})
    else:
        err.print(f"Asking about {shown(address)}; terminal-status watches shows what comes of it.")


def _row(watch: "Watch", now: datetime) -> list[Cell]:
    last = " ".join([str(watch.sip_code or ""), watch.reason]).strip()
    next_in = f" in {until(watch.next_at, now)}" if watch.HasField("next_at") else ""
    wanted = ", ".join(watch.wanted_by[:3]) + (f" +{len(watch.wanted_by) - 3}" if len(watch.wanted_by) > 3 else "")
    return [
        watch.address,
        watch.state,
        styled(enum_name(watch, "liveness")),
        f"{ago(watch.since, now)} ago",
        until(watch.expires_at, now) if watch.HasField("expires_at") else "",
        last,
        f"{watch.next_action}{next_in}",
        wanted,
        watch.route,
    ]
