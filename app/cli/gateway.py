"""The options of every command that asks a running gateway over gRPC, its calls, and how a failure of one is told.

Invariants: the options stand here and nowhere else (`asks_gateway` adds them to a command). A failed call is one line
on standard error with its code and what to do; exit code 2 where the gateway finds the request itself wrong, else 1.

Deliberately absent: commands, and output (`output.py`, `tables.py`).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, NoReturn, ParamSpec, TypeVar

import typer

from app.cli.output import FAILED, USAGE, JsonOption, err, read_settings, shown

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

    from app.cli.access import Access, CallFailed
    from app.settings.loading import Settings

P = ParamSpec("P")
_Request = TypeVar("_Request", bound="Message")
_Answer = TypeVar("_Answer")
_Many = TypeVar("_Many")

PAGE = 1000
_PANEL = "The gateway"

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help="Its gRPC address; TS_GRPC_LISTEN otherwise.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
ApiKeyOption = Annotated[
    str,
    typer.Option(
        envvar="TS_API_KEY",
        metavar="KEY",
        help="API key or access token. In the environment it is safer, since others see command lines.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TlsOption = Annotated[
    bool | None,
    typer.Option(
        "--tls/--no-tls",
        help="Whether it wants TLS; it does if --tls-ca-file is given, or without --server if TS_TLS_CERT_FILE is set.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TlsCaOption = Annotated[
    Path | None,
    typer.Option(
        help="Authorities of its certificate, a PEM file; the usual ones otherwise.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TlsCertOption = Annotated[
    Path | None,
    typer.Option(
        help="The client's own certificate, a PEM file, where it wants one; with --tls-key-file.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TlsKeyOption = Annotated[
    Path | None,
    typer.Option(help="That certificate's key, a PEM file.", show_default=False, rich_help_panel=_PANEL),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout-s",
        "--timeout",
        min=0.1,
        help="How long to wait for each answer, in seconds.",
        rich_help_panel=_PANEL,
    ),
]
OPTIONS: Mapping[str, tuple[Any, object]] = {
    "server": (ServerOption, None),
    "api_key": (ApiKeyOption, ""),
    "tls": (TlsOption, None),
    "tls_ca_file": (TlsCaOption, None),
    "tls_cert_file": (TlsCertOption, None),
    "tls_key_file": (TlsKeyOption, None),
    "timeout_s": (TimeoutOption, 10.0),
    "as_json": (JsonOption, False),
}

_ADVICE: Mapping[str, str] = {
    "UNAUTHENTICATED": "Put a client's API key into TS_API_KEY (terminal-status clients add NAME makes one).",
    "NOT_PERMITTED": "What is the operator's needs the API key of a client made with --admin.",
    "GATEWAY_STOPPING": "Try again in a moment.",
    "STORE_UNAVAILABLE": "Try again; if it stays, see TS_DATABASE_URL and the gateway's log.",
    "UNIMPLEMENTED": "The gateway is older than this command, or something else answers there.",
    "DEADLINE_EXCEEDED": "Give it more time with --timeout-s.",
    "WATCH_UNKNOWN": "terminal-status watches lists what is watched.",
    "SUBSCRIPTION_UNKNOWN": "terminal-status subscriptions list shows the active ones.",
    "NOTIFICATION_UNKNOWN": "terminal-status deliveries list shows those that are kept.",
    "DUPLICATE_CORRELATOR": "Choose another, or end that one: terminal-status subscriptions cancel --correlator …",
    "GROUP_EXISTS": "Change it with groups set, add or remove.",
    "GROUP_UNKNOWN": "terminal-status groups list shows them.",
    "GROUP_CHANGED": "See what it is now with groups show, then decide.",
}
_SINK_ADVICE = "See TS_SINK_ALLOWED_NETWORKS and TS_SINK_ALLOW_HTTP."
_SETTINGS_SAY = {"scheme", "forbidden-address"}
"""Reasons of SINK_REFUSED that these settings decide."""


class Gateway:
    """A running gateway, for a command. `as_json` is whether the command shall print JSON."""

    def __init__(
        self, channel: "grpc.Channel", access: "Access", *, server: str, timeout_s: float, as_json: bool
    ) -> None:
        self.channel = channel
        self.server = server
        self.as_json = as_json
        self._access = access
        self._timeout_s = timeout_s

    def call(self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Answer]", request: _Request) -> _Answer:
        """The answer. Raises CallFailed."""
        import grpc

        try:
            return method(request, timeout=self._timeout_s, metadata=tuple(self._access.headers.items()))
        except grpc.RpcError as error:
            raise self._failed(error) from None

    def stream(
        self,
        method: "grpc.UnaryStreamMultiCallable[_Request, _Many]",
        request: _Request,
        *,
        timeout_s: float | None = None,
    ) -> "Iterator[_Many]":
        """The answers as they come; the call ends with the iteration. Raises CallFailed."""
        import grpc

        answers = method(request, timeout=timeout_s, metadata=tuple(self._access.headers.items()))
        try:
            yield from answers
        except grpc.RpcError as error:
            raise self._failed(error) from None
        finally:
            answers.cancel()

    def pages(
        self, method: "grpc.UnaryUnaryMultiCallable[Any, Any]", request: Any, items: str, most: int | None = None
    ) -> Iterator[list[Any]]:
        """The pages of a list, `most` items in all; `items` is the answer's field that has them. Raises CallFailed."""
        left = PAGE if most is None else most
        while left:
            request.page_size = min(left, PAGE)
            answer = self.call(method, request)
            yield list(getattr(answer, items))
            request.page_token = answer.next_page_token
            if not request.page_token:
                return
            left = PAGE if most is None else left - len(getattr(answer, items))

    def _failed(self, error: "grpc.RpcError") -> "CallFailed":
        from app.cli.access import call_failed

        return call_failed(error, self.server, tls=self._access.tls)


def asks_gateway(command: Callable[Concatenate[Gateway, P], None]) -> Callable[..., None]:
    """Makes a command of a function whose first argument is the gateway: adds the options, connects, tells failures."""

    def run(**options: Any) -> None:
        common = {name: options.pop(name) for name in OPTIONS}
        for value in options.values():
            check_text(value)
        with connected(gateway_settings(common["server"]), **common) as gateway:
            command(gateway, **options)  # type: ignore[call-arg]  # the signature is the command's

    return with_options(command, run, OPTIONS)


@contextmanager
def connected(
    settings: "Settings", *, server: str | None, timeout_s: float, as_json: bool, **common: Any
) -> Iterator[Gateway]:
    """The gateway at the settings' address, by OPTIONS. What fails within is told, and ends the command."""
    from app.cli.access import AccessUnusable, CallFailed

    try:
        access = access_of(settings, local=server is None, **common)
        warn_of_clear_text(access, settings.grpc_listen)
        with access.channel(settings.grpc_listen, timeout_s) as channel:
            yield Gateway(channel, access, server=settings.grpc_listen, timeout_s=timeout_s, as_json=as_json)
    except AccessUnusable as error:
        wrong_use(str(error))
    except CallFailed as failed:
        tell_failure(failed)
        raise typer.Exit(exit_code(failed)) from None


def with_options(
    command: Callable[..., None], run: Callable[..., None], options: Mapping[str, tuple[Any, object]]
) -> Callable[..., None]:
    """`run` with the name, the text and the arguments of `command`, but its first, and the options behind them."""
    own = list(inspect.signature(command).parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=keyword) for parameter in own if parameter.name not in options] + [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def gateway_settings(
    server: str | None, http_server: str | None = None, called: dict[str, str] | None = None
) -> "Settings":
    """The settings, for the addresses in them; `server` and `http_server` are what the options say. Ends the command
    where they cannot be used."""
    return read_settings(
        None,
        called or {"grpc_listen": "--server"},
        presence_server="sip:127.0.0.1",  # nobody asks one here
        sip_listen="127.0.0.1:0",
        grpc_listen=server,
        http_listen=http_server,
    )


def access_of(
    settings: "Settings",
    *,
    local: bool,
    api_key: str,
    tls: bool | None,
    tls_ca_file: Path | None,
    tls_cert_file: Path | None,
    tls_key_file: Path | None,
) -> "Access":
    """What the options say; `local` is whether the gateway is the one that the settings are for. Raises
    AccessUnusable."""
    from app.cli.access import Access

    wanted = tls_ca_file is not None or tls_cert_file is not None or (local and settings.tls_cert_file is not None)
    return Access(
        api_key=api_key,
        tls=wanted if tls is None else tls,
        tls_ca_file=tls_ca_file,
        tls_cert_file=tls_cert_file,
        tls_key_file=tls_key_file,
    )


def warn_of_clear_text(access: "Access", server: str) -> None:
    """Says so where an API key goes over a network that others may read."""
    host = server.rpartition(":")[0].strip("[]")
    if access.api_key and not access.tls and not (host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")):  # noqa: S104  # as a destination it is this machine
        err.print(f"[yellow]warning:[/] the API key goes to {shown(server)} in clear; use --tls.")


def tell_failure(failed: "CallFailed") -> None:
    """One line: the code, what failed, and what to do."""
    wait = f" Try again in {failed.retry_after_s:.0f} s." if failed.retry_after_s else ""
    advised = _SINK_ADVICE if failed.details.get("reason") in _SETTINGS_SAY else _ADVICE.get(failed.code, "")
    advice = f" {advised}" if advised else ""
    text = str(failed).rstrip()
    end = "" if text.endswith((".", "?", "!", "…")) else "."
    err.print(f"[red]error:[/] {shown(failed.code)}: {shown(text)}{end}{wait or advice}")


def exit_code(failed: "CallFailed") -> int:
    """USAGE where the gateway finds the request itself wrong, else FAILED."""
    return USAGE if failed.status.name == "INVALID_ARGUMENT" else FAILED


def wrong_use(message: str) -> NoReturn:
    """Ends the command: it was not used as it can be."""
    err.print(f"[red]error:[/] {shown(message)}")
    raise typer.Exit(USAGE) from None


def check_text(value: object) -> None:
    """Python hands on bytes that are no UTF-8 as lone surrogates, which nothing else takes."""
    for text in value if isinstance(value, list | tuple) else [value]:
        if isinstance(text, str) and not is_utf8(text):
            wrong_use(f"{text} is not UTF-8.")


def is_utf8(text: str) -> bool:
    """Whether an argument was UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
