"""Where `terminal-status clients …` makes its changes: through the running gateway, or directly in its database.

Through the gateway (AdminService) where the caller has an API key or certificate and the gateway answers, else in the
database that `--database` or a setting names. The default database is used only if its file exists. Its path is
relative to the working directory: in another folder the command would create a second database, with a key that no
gateway accepts.

Invariants: each change is reported on standard error together with its place: the gateway's address, or the database's
absolute path.
"""

import asyncio
import getpass
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

import typer

from app.cli.configuration import read_settings_without_sip
from app.cli.console import check_utf8, err, fail, shown, wrong_use
from app.cli.gateway_connection import GatewayConnection, connected
from app.cli.gateway_options import GATEWAY_OPTIONS, with_options
from app.cli.options import ConfigOption

if TYPE_CHECKING:
    from app.auth.clients import ClientKey, ClientRegistry
    from app.cli.call_failures import CallFailed
    from app.domain.records import Client
    from app.pb.terminalstatus.v1 import admin_pb2
    from app.settings.loading import Settings

P = ParamSpec("P")
_T = TypeVar("_T")

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="Change this database directly, without the gateway; a URL as for TS_DATABASE_URL.",
        show_default=False,
    ),
]


class Registry(Protocol):
    """The clients. `named` is a client's id or name. A method that fails prints why and ends the command."""

    place: str
    """The gateway or the database, for messages."""

    def add(
        self,
        name: str,
        *,
        client_id: str,
        admin: bool,
        limits: Mapping[str, int | bool],
        soap_callback_version: str,
    ) -> "tuple[Client, str]": ...

    def clients(self) -> "list[tuple[Client, list[ClientKey]]]": ...

    def rotate(self, named: str, overlap_s: int) -> "tuple[Client, str]": ...

    def set_disabled(self, named: str, disabled: bool) -> "Client": ...

    def delete(self, named: str) -> "tuple[Client, int]": ...


class _DatabaseRegistry:
    def __init__(self, settings: "Settings") -> None:
        from app.store import shown_url

        self._settings = settings
        path = settings.database_url.removeprefix("sqlite:///")
        is_file = path != settings.database_url
        self.place = f"database {Path(path).absolute() if is_file else shown_url(settings.database_url)}"
        if is_file and not Path(path).exists():
            self.place = f"new {self.place}"

    def add(
        self,
        name: str,
        *,
        client_id: str,
        admin: bool,
        limits: Mapping[str, int | bool],
        soap_callback_version: str,
    ) -> "tuple[Client, str]":
        return self._run(
            lambda registry: registry.add(
                name,
                who=_who(),
                client_id=client_id,
                admin=admin,
                limits=limits,
                soap_callback_version=soap_callback_version,
            )
        )

    def clients(self) -> "list[tuple[Client, list[ClientKey]]]":
        async def read(registry: "ClientRegistry") -> "list[tuple[Client, list[ClientKey]]]":
            return [(client, await registry.keys(client.id)) for client in await registry.clients()]

        return self._run(read)

    def rotate(self, named: str, overlap_s: int) -> "tuple[Client, str]":
        async def change(registry: "ClientRegistry") -> "tuple[Client, str]":
            return await registry.rotate((await registry.find(named)).id, who=_who(), overlap_s=overlap_s)

        return self._run(change)

    def set_disabled(self, named: str, disabled: bool) -> "Client":
        async def change(registry: "ClientRegistry") -> "Client":
            return await registry.set_disabled((await registry.find(named)).id, disabled, who=_who())

        return self._run(change)

    def delete(self, named: str) -> "tuple[Client, int]":
        async def change(registry: "ClientRegistry") -> "tuple[Client, int]":
            client = await registry.find(named)
            return client, await registry.delete(client.id, who=_who())

        return self._run(change)

    def _run(self, work: "Callable[[ClientRegistry], Awaitable[_T]]") -> _T:
        """Runs `work` on the opened database."""
        from app.auth.clients import ClientRegistry
        from app.domain.errors import InvalidRequest, TerminalStatusError
        from app.logs import configure_logging
        from app.sinks import SINK_CONTRACTS
        from app.store import DatabaseUnavailable, open_store, shown_url

        configure_logging("warning", "auto")  # the store logs what it mends, such as file modes

        async def run() -> _T:
            settings = self._settings
            async with await open_store(settings.database_url, secret_key_file=settings.secret_key_file) as store:
                return await work(ClientRegistry(store, contracts=SINK_CONTRACTS, clock=lambda: datetime.now(UTC)))

        try:
            return asyncio.run(run())
        except InvalidRequest as error:
            wrong_use(str(error))
        except DatabaseUnavailable as error:
            fail(f"TS_DATABASE_URL: {shown_url(self._settings.database_url)} cannot be opened: {error}.")
        except TerminalStatusError as error:
            fail(str(error))


class _GatewayRegistry:
    def __init__(self, gateway: GatewayConnection) -> None:
        from app.pb.terminalstatus.v1 import admin_pb2_grpc

        self._gateway = gateway
        self._stub: Any = admin_pb2_grpc.AdminServiceStub(gateway.channel)
        self.place = f"gateway {gateway.server}"

    def probe(self) -> None:
        """Raises CallFailed where no gateway answers, or the caller is not an operator."""
        from app.pb.terminalstatus.v1 import admin_pb2

        self._gateway.call(self._stub.ListClients, admin_pb2.ListClientsRequest(page_size=1))

    def add(
        self,
        name: str,
        *,
        client_id: str,
        admin: bool,
        limits: Mapping[str, int | bool],
        soap_callback_version: str,
    ) -> "tuple[Client, str]":
        from app.pb.terminalstatus.v1 import admin_pb2

        request = admin_pb2.CreateClientRequest(
            name=name,
            client_id=client_id,
            admin=admin,
            limits=_limits(limits) if limits else None,
            soap_callback_version=soap_callback_version,
        )
        created = self._gateway.call(self._stub.CreateClient, request)
        return _client(created.client), created.api_key

    def clients(self) -> "list[tuple[Client, list[ClientKey]]]":
        from app.pb.terminalstatus.v1 import admin_pb2

        pages = self._gateway.pages(self._stub.ListClients, admin_pb2.ListClientsRequest(), "clients")
        return [(_client(each), _keys(each)) for page in pages for each in page]

    def rotate(self, named: str, overlap_s: int) -> "tuple[Client, str]":
        from google.protobuf.duration_pb2 import Duration

        from app.pb.terminalstatus.v1 import admin_pb2

        request = admin_pb2.RotateClientKeyRequest(client_id=self._find(named).id, overlap=Duration(seconds=overlap_s))
        rotated = self._gateway.call(self._stub.RotateClientKey, request)
        return _client(rotated.client), rotated.api_key

    def set_disabled(self, named: str, disabled: bool) -> "Client":
        from app.pb.terminalstatus.v1 import admin_pb2

        client_id = self._find(named).id
        if disabled:
            answer = self._gateway.call(self._stub.DisableClient, admin_pb2.DisableClientRequest(client_id=client_id))
        else:
            answer = self._gateway.call(self._stub.EnableClient, admin_pb2.EnableClientRequest(client_id=client_id))
        return _client(answer.client)

    def delete(self, named: str) -> "tuple[Client, int]":
        from app.pb.terminalstatus.v1 import admin_pb2

        client = self._find(named)
        answer = self._gateway.call(self._stub.DeleteClient, admin_pb2.DeleteClientRequest(client_id=client.id))
        return client, int(answer.ended_subscription_count)

    def _find(self, named: str) -> "Client":
        clients = [client for client, _ in self.clients()]
        by_id = [client for client in clients if client.id == named]
        found = by_id or [client for client in clients if client.name == named]
        if not found:
            fail(f"There is no client with the id or name {named!r}; `terminal-status clients list` shows all.")
        return found[0]


def registry_command(command: Callable[Concatenate[Registry, P], None]) -> Callable[..., None]:
    """Turns a function that takes a Registry first into a command: adds the options and chooses the registry."""

    def run(**options: Any) -> None:
        from app.cli.call_failures import CallFailed

        common = {name: options.pop(name) for name in GATEWAY_OPTIONS}
        config, database = options.pop("config"), options.pop("database")
        server, as_json = common["server"], common["as_json"]
        for value in options.values():
            check_utf8(value)
        if database is not None and server is not None:
            wrong_use("--database and --server exclude each other: the gateway has its own database.")
        settings = read_settings_without_sip(
            config,
            {"grpc_listen": "--server", "database_url": "--database"},
            grpc_listen=server,
            database_url=database,
        )
        has_credentials = bool(common["api_key"] or common["tls_cert_file"])
        if database is None and (server is not None or has_credentials):
            with connected(settings, **common) as gateway:
                registry = _GatewayRegistry(gateway)
                try:
                    registry.probe()
                except CallFailed as failed:
                    if server is not None or failed.code != "NO_ANSWER":
                        _refuse(failed)
                else:
                    command(registry, as_json=as_json, **options)  # type: ignore[call-arg]  # as in `gateway_command`
                    return
            err.print(f"No gateway answers at {shown(settings.grpc_listen)}; changing the database directly.")
        _check_database_named(settings)
        command(_DatabaseRegistry(settings), as_json=as_json, **options)  # type: ignore[call-arg]

    own: dict[str, tuple[Any, object]] = {"config": (ConfigOption, None), "database": (DatabaseOption, None)}
    return with_options(command, run, {**own, **GATEWAY_OPTIONS})


def _refuse(failed: "CallFailed") -> NoReturn:
    from app.cli.call_failures import print_failure

    print_failure(failed)
    if failed.code in ("UNAUTHENTICATED", "NOT_PERMITTED"):
        err.print("To change the gateway's database directly instead, name it with --database.")
    raise typer.Exit(failed.exit_code) from None


def _check_database_named(settings: "Settings") -> None:
    path = settings.database_url.removeprefix("sqlite:///")
    if "database_url" not in settings.model_fields_set and not Path(path).exists():
        wrong_use(
            f"There is no {path} in this folder. Name the gateway's database with --database or TS_DATABASE_URL "
            f"(--database sqlite:///{path} creates it here, before the gateway's first start), or call the running "
            "gateway: put an operator's API key into TS_API_KEY, and its address into --server or TS_GRPC_LISTEN."
        )


def _client(message: "admin_pb2.Client") -> "Client":
    from app.domain.records import Client
    from app.rpc.request_fields import limits

    return Client(
        id=message.id,
        name=message.name,
        created_at=message.create_time.ToDatetime(UTC),
        admin=message.admin,
        limits=limits(message.limits),
        disabled=message.disabled,
        soap_callback_version=message.soap_callback_version,
    )


def _limits(limits: Mapping[str, int | bool]) -> "admin_pb2.ClientLimits":
    from app.pb.terminalstatus.v1 import admin_pb2

    names = admin_pb2.ClientLimits.DESCRIPTOR.fields_by_name
    for name in limits:
        if name not in names:
            wrong_use(f"{name[:40]!r} is not a limit; the limits are {', '.join(names)}.")
    try:
        return admin_pb2.ClientLimits(**limits)  # type: ignore[arg-type]  # each limit has its own type
    except (TypeError, ValueError):
        wrong_use("A limit has the wrong type: write NAME=NUMBER, NAME=yes or NAME=no, as --help says.")


def _keys(message: "admin_pb2.Client") -> "list[ClientKey]":
    from app.auth.clients import ClientKey

    return [
        ClientKey(id=key.id, expires_at=key.expire_time.ToDatetime(UTC) if key.HasField("expire_time") else None)
        for key in message.keys
    ]


def _who() -> str:
    """The account that runs the command, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"[:64]
    except (OSError, KeyError):
        return "cli"
