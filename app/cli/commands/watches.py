"""`terminal-status watches`: the gateway's own SIP subscriptions at the presence server, for operators.

`watches` lists them, `watches refresh` refreshes one. The group therefore has options of its own, those of `_list`.
"""

import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import err, shown, wrong_use
from app.cli.gateway_connection import GatewayConnection, gateway_command
from app.cli.options import LimitOption
from app.cli.protobuf_json import enum_name
from app.cli.tables import Cell, print_json, print_list, styled
from app.cli.times import ago, until

if TYPE_CHECKING:
    from app.pb.terminalstatus.v1.admin_pb2 import Watch

watches = typer.Typer()

_COLUMNS = ("address", "state", "liveness", "since", "expires in", "last", "next", "wanted by", "route")


def _list(
    gateway: GatewayConnection,
    limit: LimitOption = None,
) -> None:
    """List the watches: the gateway's SIP subscriptions, one per watched terminal. Operators only.

    Columns: last has the last SIP status code with its reason, next the next action with its time.
    wanted by has the ids of subscriptions, and stream:CLIENT for streams.

    Example: terminal-status watches --limit 20
    """
    from app.pb.terminalstatus.v1.admin_pb2 import ListWatchesRequest
    from app.pb.terminalstatus.v1.admin_pb2_grpc import AdminServiceStub

    method = AdminServiceStub(gateway.channel).ListWatches
    pages = gateway.pages(method, ListWatchesRequest(), "watches", limit)
    now = datetime.now(UTC)
    print_list(
        pages, _COLUMNS, lambda watch: _row(watch, now), as_json=gateway.as_json, nothing="No terminal is watched."
    )


_LIST = gateway_command(_list)


def _watches(context: typer.Context, **options: object) -> None:
    if context.invoked_subcommand is None:
        _LIST(**options)
    elif any(getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE" for name in options):
        wrong_use(f"Put options after the command: terminal-status watches {context.invoked_subcommand} …")


_watches.__doc__ = _LIST.__doc__
_CONTEXT = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
_SIGNATURE = inspect.signature(_LIST)
_watches.__signature__ = _SIGNATURE.replace(  # type: ignore[attr-defined]  # typer reads it
    parameters=[_CONTEXT, *_SIGNATURE.parameters.values()]
)
_watches.__annotations__ = {"context": typer.Context, **_LIST.__annotations__}
watches.callback(invoke_without_command=True)(_watches)


@watches.command()
@gateway_command
def refresh(
    gateway: GatewayConnection,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A watched terminal.", show_default=False)],
) -> None:
    """Refresh a watch now, rather than when it is due: the presence server sends the status again.

    Example: terminal-status watches refresh sip:alice@example.com
    """
    from app.pb.terminalstatus.v1.admin_pb2 import RefreshWatchRequest
    from app.pb.terminalstatus.v1.admin_pb2_grpc import AdminServiceStub

    gateway.call(AdminServiceStub(gateway.channel).RefreshWatch, RefreshWatchRequest(address=address))
    if gateway.as_json:
        print_json({"address": address})
    else:
        err.print(f"Refreshing the watch of {shown(address)}; terminal-status watches shows the result.")


def _row(watch: "Watch", now: datetime) -> list[Cell]:
    last = " ".join([str(watch.sip_code or ""), watch.reason]).strip()
    next_in = f" in {until(watch.next_action_time, now)}" if watch.HasField("next_action_time") else ""
    names = [*watch.subscription_ids, *[f"stream:{client}" for client in watch.stream_client_ids]]
    wanted = ", ".join(names[:3]) + (f" +{len(names) - 3}" if len(names) > 3 else "")
    return [
        watch.address,
        enum_name(watch, "state"),
        styled(enum_name(watch, "liveness")),
        f"{ago(watch.state_time, now)} ago",
        until(watch.expire_time, now) if watch.HasField("expire_time") else "",
        last,
        f"{watch.next_action}{next_in}",
        wanted,
        watch.route,
    ]
