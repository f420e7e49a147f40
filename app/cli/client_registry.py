"""Where `terminal-status clients …` works: at the running gateway, by AdminService, or straight on its database.

The gateway, where there is a key for it (or a certificate) and it answers; else the database that `--database` or a
setting names. The default database is relative to the working directory, so it counts only where it exists already: in
another folder a second one would be made, and a key printed that no gateway knows.

Invariants: what was changed is said on standard error with where: the gateway's address, or the database's whole path.

Deliberately absent: what the commands print (`clients.py`).
"""

import asyncio
import getpass
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

import typer

from app.cli.gateway import OPTIONS, Gateway, check_text, connected, exit_code, tell_failure, with_options, wrong_use
from app.cli.output import ConfigOption, err, fail, read_settings, shown

if TYPE_CHECKING:
    from app.auth.clients import ClientKey, ClientRegistry
    from app.cli.access import CallFailed
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
        help="Work on this database itself, as TS_DATABASE_URL, and ask no gateway.",
        show_default=False,
    ),
]


class Registry(Protocol):
    """The clients. `named` is an id or a name. Every method ends the command where it fails."""

    where: str
    """What the operator is told."""

    def add(
        self, name: str, *, client_id: str, admin: bool, limits: Mapping[str, int | bool]
    ) -> "tuple[Client, str]": ...

    def clients(self) -> "list[tuple[Client, list[ClientKey]]]": ...

    def rotate(self, named: str, overlap_s: int) -> "tuple[Client, str]": ...

    def set_disabled(self, named: str, disabled: bool) -> "Client": ...

    def delete(self, named: str) -> "tuple[Client, int]": ...


class _OfDatabase:
    def __init__(self, settings: "Settings") -> None:
        from app.store import shown_url

        self._settings = settings
        path = settings.database_url.removeprefix("sqlite:///")
        of_file = path != settings.database_url
        self.where = f"database {Path(path).absolute() if of_file else shown_url(settings.database_url)}"
        if of_file and not Path(path).exists():
            self.where = f"new {self.where}"

    def add(self, name: str, *, client_id: str, admin: bool, limits: Mapping[str, int | bool]) -> "tuple[Client, str]":
        return self._do(lambda all_: all_.add(name, who=_who(), client_id=client_id, admin=admin, limits=limits))

    def clients(self) -> "list[tuple[Client, list[ClientKey]]]":
        async def read(registry: "ClientRegistry") -> "list[tuple[Client, list[ClientKey]]]":
            return [(client, await registry.keys(client.id)) for client in await registry.clients()]

        return self._do(read)

    def rotate(self, named: str, overlap_s: int) -> "tuple[Client, str]":
        async def change(registry: "ClientRegistry") -> "tuple[Client, str]":
            return await registry.rotate((await registry.find(named)).id, who=_who(), overlap_s=overlap_s)

        return self._do(change)

    def set_disabled(self, named: str, disabled: bool) -> "Client":
        async def change(registry: "ClientRegistry") -> "Client":
            return await registry.set_disabled((await registry.find(named)).id, disabled, who=_who())

        return self._do(change)

    def delete(self, named: str) -> "tuple[Client, int]":
        async def change(registry: "ClientRegistry") -> "tuple[Client, int]":
            client = await registry.find(named)
            return client, await registry.delete(client.id, who=_who())

        return self._do(change)

    def _do(self, work: "Callable[[ClientRegistry], Awaitable[_T]]") -> _T:
        from app.auth.clients import ClientRegistry
        from app.domain.errors import InvalidRequest, TerminalStatusError
        from app.logs import configure_logging
        from app.store import DatabaseUnavailable, open_store, shown_url

        configure_logging("warning", "auto")  # on standard error, where the database is in need of a word

        async def run() -> _T:
            settings = self._settings
            async with await open_store(settings.database_url, secret_key_file=settings.secret_key_file) as store:
                return await work(ClientRegistry(store, clock=lambda: datetime.now(UTC)))

        try:
            return asyncio.run(run())
        except InvalidRequest as error:
            wrong_use(str(error))
        except DatabaseUnavailable as error:
            fail(f"TS_DATABASE_URL: {shown_url(self._settings.database_url)} does not open: {error}.")
        except TerminalStatusError as error:
            fail(str(error))


class _OfGateway:
    def __init__(self, gateway: Gateway) -> None:
        from app.pb.terminalstatus.v1 import admin_pb2_grpc

        self._gateway = gateway
        self._stub: Any = admin_pb2_grpc.AdminServiceStub(gateway.channel)
        self.where = f"gateway {gateway.server}"

    def probe(self) -> None:
        """Raises CallFailed where no gateway answers, or it does not take the caller for an operator."""
        from app.pb.terminalstatus.v1 import admin_pb2

        self._gateway.call(self._stub.ListClients, admin_pb2.ListClientsRequest(page_size=1))

    def add(self, name: str, *, client_id: str, admin: bool, limits: Mapping[str, int | bool]) -> "tuple[Client, str]":
        from app.pb.terminalstatus.v1 import admin_pb2

        whole = {each: int(value) for each, value in limits.items()}
        request = admin_pb2.CreateClientRequest(name=name, client_id=client_id, admin=admin, limits=whole)
        made = self._gateway.call(self._stub.CreateClient, request)
        return _client(made.client), made.api_key

    def clients(self) -> "list[tuple[Client, list[ClientKey]]]":
        from app.pb.terminalstatus.v1 import admin_pb2

        pages = self._gateway.pages(self._stub.ListClients, admin_pb2.ListClientsRequest(), "clients")
        return [(_client(each), _keys(each)) for page in pages for each in page]

    def rotate(self, named: str, overlap_s: int) -> "tuple[Client, str]":
        from google.protobuf.duration_pb2 import Duration

        from app.pb.terminalstatus.v1 import admin_pb2

        request = admin_pb2.RotateClientKeyRequest(client_id=self._id(named), overlap=Duration(seconds=overlap_s))
        rotated = self._gateway.call(self._stub.RotateClientKey, request)
        return _client(rotated.client), rotated.api_key

    def set_disabled(self, named: str, disabled: bool) -> "Client":
        from app.pb.terminalstatus.v1 import admin_pb2

        request = admin_pb2.SetClientDisabledRequest(client_id=self._id(named), disabled=disabled)
        return _client(self._gateway.call(self._stub.SetClientDisabled, request).client)

    def delete(self, named: str) -> "tuple[Client, int]":
        from app.pb.terminalstatus.v1 import admin_pb2

        client = self._find(named)
        if client is None:
            fail("There is no such client.")
        answer = self._gateway.call(self._stub.DeleteClient, admin_pb2.DeleteClientRequest(client_id=client.id))
        return client, int(answer.ended_subscriptions)

    def _find(self, named: str) -> "Client | None":
        clients = [client for client, _ in self.clients()]
        by_id = [client for client in clients if client.id == named]
        return next(iter(by_id or [client for client in clients if client.name == named]), None)

    def _id(self, named: str) -> str:
        if (client := self._find(named)) is None:
            fail("There is no such client.")
        return client.id


def administers(command: Callable[Concatenate[Registry, P], None]) -> Callable[..., None]:
    """Makes a command of a function whose first argument is the registry: adds the options, and chooses the place."""

    def run(**options: Any) -> None:
        from app.cli.access import CallFailed

        common = {name: options.pop(name) for name in OPTIONS}
        config, database = options.pop("config"), options.pop("database")
        server, as_json = common["server"], common["as_json"]
        for value in options.values():
            check_text(value)
        if database is not None and server is not None:
            wrong_use("--database and --server do not go together: the gateway has its own database.")
        settings = read_settings(
            config,
            {"grpc_listen": "--server", "database_url": "--database"},
            presence_server="sip:127.0.0.1",  # nobody asks one here
            sip_listen="127.0.0.1:0",
            grpc_listen=server,
            database_url=database,
        )
        has_key = bool(common["api_key"] or common["tls_cert_file"])
        if database is None and (server is not None or has_key):
            with connected(settings, **common) as gateway:
                registry = _OfGateway(gateway)
                try:
                    registry.probe()
                except CallFailed as failed:
                    if server is not None or failed.code != "NO_ANSWER":
                        _refuse(failed)
                else:
                    command(registry, as_json=as_json, **options)  # type: ignore[call-arg]  # the signature is the command's
                    return
            err.print(f"No gateway answers at {shown(settings.grpc_listen)}, so the command works on the database.")
        _check_named(settings)
        command(_OfDatabase(settings), as_json=as_json, **options)  # type: ignore[call-arg]

    extra = {"config": (ConfigOption, None), "database": (DatabaseOption, None)}
    return with_options(command, run, {**extra, **OPTIONS})


def _refuse(failed: "CallFailed") -> NoReturn:
    tell_failure(failed)
    if failed.code in ("UNAUTHENTICATED", "NOT_PERMITTED"):
        err.print("With --database the command works on the gateway's database itself.")
    raise typer.Exit(exit_code(failed)) from None


def _check_named(settings: "Settings") -> None:
    path = settings.database_url.removeprefix("sqlite:///")
    if "database_url" not in settings.model_fields_set and not Path(path).exists():
        wrong_use(
            f"There is no {path} in this folder. Name the gateway's database by --database or TS_DATABASE_URL "
            f"(--database sqlite:///{path} makes it here, before the first start), or have the running gateway do it: "
            "put an operator's key into TS_API_KEY, and name its address by --server where TS_GRPC_LISTEN does not."
        )


def _client(of: "admin_pb2.Client") -> "Client":
    from app.domain.records import Client
    from app.rpc.wire import limits

    return Client(
        id=of.id,
        name=of.name,
        created_at=of.created_at.ToDatetime(UTC),
        admin=of.admin,
        limits=limits(of.limits),
        disabled=of.disabled,
    )


def _keys(of: "admin_pb2.Client") -> "list[ClientKey]":
    from app.auth.clients import ClientKey

    return [
        ClientKey(id=key.id, expires_at=key.expires_at.ToDatetime(UTC) if key.HasField("expires_at") else None)
        for key in of.keys
    ]


def _who() -> str:
    """Who is at the terminal, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"[:64]
    except (OSError, KeyError):
        return "cli"
