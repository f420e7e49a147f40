"""`terminal-status clients …`: applications and operators' tools with their API keys, in the gateway's database.

They work on the database that the settings name, whether the gateway runs or not; a running one takes notice within
ten seconds. What a deleted client's subscriptions are owed is written with the deletion: a gateway that runs, or the
next to start, delivers it.
"""

import asyncio
import getpass
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.commands.console import USAGE, ConfigOption, JsonOption, err, fail, read_settings, shown
from app.commands.tables import Cell, print_table

if TYPE_CHECKING:
    from app.auth.clients import ClientKey, ClientRegistry
    from app.records import Client

_T = TypeVar("_T")

clients = typer.Typer(no_args_is_help=True, help="Who may call: clients and their API keys.")

Named = Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id or name.", show_default=False)]


@clients.command()
def add(
    name: Annotated[str, typer.Argument(help="Name for people, unique.", show_default=False)],
    client_id: Annotated[
        str, typer.Option("--id", help="Its id, where certificates or access tokens name it; made up otherwise.")
    ] = "",
    admin: Annotated[bool, typer.Option("--admin", help="An operator's: sees and ends what is others'.")] = False,
    limit: Annotated[
        list[str], typer.Option(help="A policy of its own, stricter than the operator's: NAME=VALUE; may be repeated.")
    ] = [],  # noqa: B006  # typer copies it
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a client. Its API key is shown this once."""
    limits = dict([_limit(text) for text in limit])

    async def make(registry: "ClientRegistry") -> "tuple[Client, str]":
        return await registry.add(name, who=_who(), client_id=client_id, admin=admin, limits=limits)

    client, key = _with_registry(config, make)
    _tell_key(client, key, as_json)


@clients.command("list")
def list_clients(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the clients with their keys, without secrets."""

    async def read(registry: "ClientRegistry") -> "list[tuple[Client, list[ClientKey]]]":
        return [(client, await registry.keys(client.id)) for client in await registry.clients()]

    found = _with_registry(config, read)
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
def rotate(
    named: Named,
    overlap_s: Annotated[int, typer.Option(help="How long the keys before still hold, in seconds.")] = 86_400,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a client a new API key, shown this once; those before end after the overlap."""

    async def change(registry: "ClientRegistry") -> "tuple[Client, str]":
        return await registry.rotate((await registry.find(named)).id, who=_who(), overlap_s=overlap_s)

    client, key = _with_registry(config, change)
    _tell_key(client, key, as_json)


@clients.command()
def disable(named: Named, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Refuse a client's credentials from now on. Its subscriptions go on."""
    _set_disabled(named, True, config, as_json)


@clients.command()
def enable(named: Named, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Take a disabled client's credentials again."""
    _set_disabled(named, False, config, as_json)


@clients.command()
def delete(
    named: Named,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a client with its keys, groups and subscriptions."""
    if not yes:
        typer.confirm(f"Delete {shown(named)} with its keys, groups and subscriptions?", abort=True, err=True)

    async def change(registry: "ClientRegistry") -> "tuple[Client, int]":
        client = await registry.find(named)
        return client, await registry.delete(client.id, who=_who())

    client, ended = _with_registry(config, change)
    if as_json:
        _print_json({"id": client.id, "ended_subscriptions": ended})
    else:
        err.print(f"Deleted {shown(client.name)}; {ended} subscriptions ended with it.")


def _set_disabled(named: str, disabled: bool, config: Path | None, as_json: bool) -> None:
    async def change(registry: "ClientRegistry") -> "Client":
        return await registry.set_disabled((await registry.find(named)).id, disabled, who=_who())

    client = _with_registry(config, change)
    if as_json:
        _print_json(_client(client))
    else:
        err.print(f"{'Disabled' if disabled else 'Enabled'} {shown(client.name)}.")


def _with_registry(config: Path | None, work: "Callable[[ClientRegistry], Awaitable[_T]]") -> _T:
    """Does the work on the settings' database."""
    from app.auth.clients import ClientRegistry
    from app.domain import InvalidRequest, TerminalStatusError
    from app.store import DatabaseUnavailable, open_store, shown_url

    settings = read_settings(config, presence_server="sip:127.0.0.1", sip_listen="127.0.0.1:0")  # nobody is asked here

    async def run() -> _T:
        async with await open_store(settings.database_url, secret_key_file=settings.secret_key_file) as store:
            return await work(ClientRegistry(store, clock=lambda: datetime.now(UTC)))

    try:
        return asyncio.run(run())
    except InvalidRequest as error:
        err.print(f"[red]error:[/] {shown(str(error))}")
        raise typer.Exit(USAGE) from None
    except DatabaseUnavailable as error:
        fail(f"TS_DATABASE_URL: {shown_url(settings.database_url)} does not open: {error}.")
    except TerminalStatusError as error:
        fail(str(error))


def _limit(text: str) -> tuple[str, int | bool]:
    name, _, value = text.partition("=")
    words: dict[str, bool] = {"yes": True, "true": True, "no": False, "false": False}
    if value.lower() in words:
        return name, words[value.lower()]
    if not (value.isascii() and value.isdigit()):
        err.print(f"[red]error:[/] --limit {shown(text)}: not NAME=NUMBER, NAME=yes or NAME=no.")
        raise typer.Exit(USAGE)
    return name, int(value[:20])


def _tell_key(client: "Client", key: str, as_json: bool) -> None:
    if as_json:
        _print_json(_client(client) | {"api_key": key})
    else:
        err.print(f"{shown(client.name)} has the id {shown(client.id)} and this API key, which is shown only now:")
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


def _who() -> str:
    """Who is at the terminal, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"[:64]
    except (OSError, KeyError):
        return "cli"
