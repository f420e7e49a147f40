"""`terminal-status clients …`: the clients (applications and operators' tools) and their API keys.

A change in the database reaches a running gateway within ten seconds. Deleting a client stores the final notifications
of its subscriptions; the running gateway, or the next one to start, delivers them.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client_registry import Registry, registry_command
from app.cli.console import err, shown, wrong_use
from app.cli.tables import Cell, print_json, print_table

if TYPE_CHECKING:
    from app.auth.clients import ClientKey
    from app.domain.records import Client

clients = typer.Typer(no_args_is_help=True, help="Manage clients and their API keys.")

ClientArgument = Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id or name.", show_default=False)]


@clients.command()
@registry_command
def add(
    registry: Registry,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A unique name, for people.", show_default=False)],
    client_id: Annotated[
        str,
        typer.Option(
            "--id",
            help="The client's id; set it where certificates or access tokens carry one. Default: generated.",
            show_default=False,
        ),
    ] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="Make an operator, who may see and end every client's subscriptions.")
    ] = False,
    limit: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=VALUE",
            help="A limit for this client, stricter than the gateway's setting of that name, such as "
            "busy_available=no. Repeatable.",
        ),
    ] = [],  # noqa: B006  # typer copies it
    soap_callback_version: Annotated[
        str,
        typer.Option(
            metavar="VERSION",
            help="The version of Parlay X callbacks to this client, such as v2_3. Default: it follows the version of "
            "startNotification.",
            show_default=False,
        ),
    ] = "",
    as_json: bool = False,
) -> None:
    """Add a client, and print its API key. The key cannot be shown again.

    Example: terminal-status clients add billing
    """
    limits = dict([_limit(text) for text in limit])
    client, key = registry.add(
        name, client_id=client_id, admin=admin, limits=limits, soap_callback_version=soap_callback_version
    )
    _print_key(registry, client, key, as_json)


@clients.command("list")
@registry_command
def list_clients(registry: Registry, as_json: bool = False) -> None:
    """List the clients and the ids of their keys.

    Example: terminal-status clients list
    """
    found = registry.clients()
    if as_json:
        print_json([_client(client) | {"keys": list(map(_key, keys))} for client, keys in found])
        return
    rows: list[list[Cell]] = []
    for client, keys in found:
        key_cells = [f"{key.id} until {key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else key.id for key in keys]
        kind, state = "operator" if client.admin else "application", "disabled" if client.disabled else "active"
        created = f"{client.created_at:%Y-%m-%d %H:%M}"
        rows.append([client.id, client.name, kind, state, created, ", ".join(key_cells)])
    print_table(["id", "name", "kind", "state", "created", "keys"], rows)


@clients.command()
@registry_command
def rotate(
    registry: Registry,
    named: ClientArgument,
    overlap_s: Annotated[int, typer.Option(help="Seconds for which the earlier keys stay valid.")] = 86_400,
    as_json: bool = False,
) -> None:
    """Give a client a new API key, and print it. The earlier keys expire after the overlap.

    Example: terminal-status clients rotate billing --overlap-s 3600
    """
    client, key = registry.rotate(named, overlap_s)
    _print_key(registry, client, key, as_json)


@clients.command()
@registry_command
def disable(registry: Registry, named: ClientArgument, as_json: bool = False) -> None:
    """Refuse a client's credentials from now on. Its subscriptions continue."""
    _print_state(registry, "Disabled", registry.set_disabled(named, True), as_json)


@clients.command()
@registry_command
def enable(registry: Registry, named: ClientArgument, as_json: bool = False) -> None:
    """Accept a disabled client's credentials again."""
    _print_state(registry, "Enabled", registry.set_disabled(named, False), as_json)


@clients.command()
@registry_command
def delete(
    registry: Registry,
    named: ClientArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: bool = False,
) -> None:
    """Delete a client with its keys and groups, and end its subscriptions."""
    if not yes:
        typer.confirm(f"Delete {shown(named)} with its keys, groups and subscriptions?", abort=True, err=True)
    client, ended = registry.delete(named)
    _print_change(registry, f"Deleted {shown(client.name)}; {ended} subscriptions ended with it.")
    if as_json:
        print_json({"id": client.id, "ended_subscriptions": ended})


def _print_change(registry: Registry, change: str) -> None:
    err.print(f"{change} ({shown(registry.place)})")


def _print_state(registry: Registry, done: str, client: "Client", as_json: bool) -> None:
    _print_change(registry, f"{done} {shown(client.name)}.")
    if as_json:
        print_json(_client(client))


def _print_key(registry: Registry, client: "Client", key: str, as_json: bool) -> None:
    notice = f"{shown(client.name)} has the id {shown(client.id)} and an API key, which is shown only now."
    _print_change(registry, notice)
    if as_json:
        print_json(_client(client) | {"api_key": key})
    else:
        print(key)  # noqa: T201  # standard output is this command's answer


def _limit(text: str) -> tuple[str, int | bool]:
    name, _, value = text.partition("=")
    words: dict[str, bool] = {"yes": True, "true": True, "no": False, "false": False}
    if value.lower() in words:
        return name, words[value.lower()]
    if not (value.isascii() and value.isdigit()):
        wrong_use(f"--limit {text}: write NAME=NUMBER, NAME=yes or NAME=no.")
    return name, int(value[:20])


def _client(client: "Client") -> dict[str, Any]:
    return {
        "id": client.id,
        "name": client.name,
        "admin": client.admin,
        "limits": dict(client.limits),
        "disabled": client.disabled,
        "soap_callback_version": client.soap_callback_version,
        "created_at": client.created_at.isoformat(),
    }


def _key(key: "ClientKey") -> dict[str, Any]:
    return {"id": key.id, "expires_at": key.expires_at.isoformat() if key.expires_at else None}
