"""`terminal-status clients …`: applications and operators' tools with their API keys.

They work at the running gateway, or on its database whether it runs or not (`client_registry.py`); a gateway takes
notice of what happened in its database within ten seconds. What a deleted client's subscriptions are owed is written
with the deletion: a gateway that runs, or the next to start, delivers it.
"""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client_registry import Registry, administers
from app.cli.output import USAGE, err, shown
from app.cli.tables import Cell, print_table

if TYPE_CHECKING:
    from app.auth.clients import ClientKey
    from app.domain.records import Client

clients = typer.Typer(no_args_is_help=True, help="Who may call: clients and their API keys.")

Named = Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id or name.", show_default=False)]


@clients.command()
@administers
def add(
    registry: Registry,
    name: Annotated[str, typer.Argument(help="Name for people, unique.", show_default=False)],
    client_id: Annotated[
        str, typer.Option("--id", help="Its id, where certificates or access tokens name it; made up otherwise.")
    ] = "",
    admin: Annotated[bool, typer.Option("--admin", help="An operator's: sees and ends what is others'.")] = False,
    limit: Annotated[
        list[str], typer.Option(help="A policy of its own, stricter than the operator's: NAME=VALUE; may be repeated.")
    ] = [],  # noqa: B006  # typer copies it
    as_json: bool = False,
) -> None:
    """Make a client. Its API key is shown this once."""
    limits = dict([_limit(text) for text in limit])
    client, key = registry.add(name, client_id=client_id, admin=admin, limits=limits)
    _tell_key(registry, client, key, as_json)


@clients.command("list")
@administers
def list_clients(registry: Registry, as_json: bool = False) -> None:
    """Show the clients with their keys, without secrets."""
    found = registry.clients()
    if as_json:
        _print_json([_client(client) | {"keys": list(map(_key, keys))} for client, keys in found])
        return
    rows: list[list[Cell]] = []
    for client, keys in found:
        ends = [f"{key.id} until {key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else key.id for key in keys]
        kind, state = "operator" if client.admin else "application", "disabled" if client.disabled else "active"
        made = f"{client.created_at:%Y-%m-%d %H:%M}"
        rows.append([client.id, client.name, kind, state, made, ", ".join(ends)])
    print_table(["id", "name", "kind", "state", "made", "keys"], rows)


@clients.command()
@administers
def rotate(
    registry: Registry,
    named: Named,
    overlap_s: Annotated[int, typer.Option(help="How long the keys before still hold, in seconds.")] = 86_400,
    as_json: bool = False,
) -> None:
    """Give a client a new API key, shown this once; those before end after the overlap."""
    client, key = registry.rotate(named, overlap_s)
    _tell_key(registry, client, key, as_json)


@clients.command()
@administers
def disable(registry: Registry, named: Named, as_json: bool = False) -> None:
    """Refuse a client's credentials from now on. Its subscriptions go on."""
    _tell_state(registry, "Disabled", registry.set_disabled(named, True), as_json)


@clients.command()
@administers
def enable(registry: Registry, named: Named, as_json: bool = False) -> None:
    """Take a disabled client's credentials again."""
    _tell_state(registry, "Enabled", registry.set_disabled(named, False), as_json)


@clients.command()
@administers
def delete(
    registry: Registry,
    named: Named,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: bool = False,
) -> None:
    """Delete a client with its keys, groups and subscriptions."""
    if not yes:
        typer.confirm(f"Delete {shown(named)} with its keys, groups and subscriptions?", abort=True, err=True)
    client, ended = registry.delete(named)
    _tell(registry, f"Deleted {shown(client.name)}; {ended} subscriptions ended with it.")
    if as_json:
        _print_json({"id": client.id, "ended_subscriptions": ended})


def _tell(registry: Registry, what: str) -> None:
    """Says what was changed and where, on standard error."""
    err.print(f"{what} ({shown(registry.where)})")


def _tell_state(registry: Registry, done: str, client: "Client", as_json: bool) -> None:
    _tell(registry, f"{done} {shown(client.name)}.")
    if as_json:
        _print_json(_client(client))


def _limit(text: str) -> tuple[str, int | bool]:
    name, _, value = text.partition("=")
    words: dict[str, bool] = {"yes": True, "true": True, "no": False, "false": False}
    if value.lower() in words:
        return name, words[value.lower()]
    if not (value.isascii() and value.isdigit()):
        err.print(f"[red]error:[/] --limit {shown(text)}: not NAME=NUMBER, NAME=yes or NAME=no.")
        raise typer.Exit(USAGE)
    return name, int(value[:20])


def _tell_key(registry: Registry, client: "Client", key: str, as_json: bool) -> None:
    only_now = f"{shown(client.name)} has the id {shown(client.id)} and an API key that is shown only now."
    _tell(registry, only_now)
    if as_json:
        _print_json(_client(client) | {"api_key": key})
    else:
        print(key)  # noqa: T201  # standard output is this command's answer


def _client(client: "Client") -> dict[str, Any]:
    return {
        "id": client.id,
        "name": client.name,
        "admin": client.admin,
        "limits": dict(client.limits),
        "disabled": client.disabled,
        "created_at": client.created_at.isoformat(),
    }


def _key(key: "ClientKey") -> dict[str, Any]:
    return {"id": key.id, "expires_at": key.expires_at.isoformat() if key.expires_at else None}


def _print_json(answer: object) -> None:
    print(json.dumps(answer, indent=2))  # noqa: T201  # standard output is this command's answer
