"""Options for reaching a running gateway: its address, credentials, TLS and timeout.

Invariants: commands get these options from `with_options` and do not repeat them, except `get`, which names two
servers.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.console import err, shown
from app.cli.options import JsonOption

if TYPE_CHECKING:
    from app.cli.credentials import Credentials
    from app.settings.loading import Settings

_PANEL = "The gateway to call"

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help="The gateway's gRPC address. Default: TS_GRPC_LISTEN.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
ApiKeyOption = Annotated[
    str,
    typer.Option(
        envvar="TS_API_KEY",
        metavar="KEY",
        help="API key or access token. Prefer the environment variable: other users of this machine see command lines.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TlsOption = Annotated[
    bool | None,
    typer.Option(
        "--tls/--no-tls",
        help="Connect with TLS. Default: if --tls-ca-file or --tls-cert-file is given or, without a server option, "
        "if TS_TLS_CERT_FILE is set.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TlsCaOption = Annotated[
    Path | None,
    typer.Option(
        help="PEM file with the certificate authorities to trust. Default: the system's.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TlsCertOption = Annotated[
    Path | None,
    typer.Option(
        help="PEM file with a client certificate, for a gateway that requires one. Needs --tls-key-file.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TlsKeyOption = Annotated[
    Path | None,
    typer.Option(help="PEM file with the client certificate's key.", show_default=False, rich_help_panel=_PANEL),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout-s",
        "--timeout",
        min=0.1,
        help="Seconds to wait for each answer.",
        rich_help_panel=_PANEL,
    ),
]
GATEWAY_OPTIONS: Mapping[str, tuple[Any, object]] = {
    "server": (ServerOption, None),
    "api_key": (ApiKeyOption, ""),
    "tls": (TlsOption, None),
    "tls_ca_file": (TlsCaOption, None),
    "tls_cert_file": (TlsCertOption, None),
    "tls_key_file": (TlsKeyOption, None),
    "timeout_s": (TimeoutOption, 10.0),
    "as_json": (JsonOption, False),
}
"""Annotation and default by parameter name."""


def with_options(
    command: Callable[..., None], run: Callable[..., None], options: Mapping[str, tuple[Any, object]]
) -> Callable[..., None]:
    """Gives `run` the name, docstring and signature from which typer makes a command.

    The signature is that of `command` without its first parameter, followed by `options`.
    """
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


def credentials_of(
    settings: "Settings",
    *,
    local: bool,
    api_key: str,
    tls: bool | None,
    tls_ca_file: Path | None,
    tls_cert_file: Path | None,
    tls_key_file: Path | None,
) -> "Credentials":
    """The credentials that the options name. `local`: the settings are those of the gateway to call, so they decide
    about TLS. Raises CredentialsUnusable."""
    from app.cli.credentials import Credentials

    implied = tls_ca_file is not None or tls_cert_file is not None or (local and settings.tls_cert_file is not None)
    return Credentials(
        api_key=api_key,
        tls=implied if tls is None else tls,
        tls_ca_file=tls_ca_file,
        tls_cert_file=tls_cert_file,
        tls_key_file=tls_key_file,
    )


def warn_of_clear_text(credentials: "Credentials", server: str) -> None:
    """Prints a warning where an API key is about to cross the network unencrypted."""
    host = server.rpartition(":")[0].strip("[]")
    # As a destination, 0.0.0.0 is this machine.
    loopback = host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")  # noqa: S104
    if credentials.api_key and not credentials.tls and not loopback:
        err.print(f"[yellow]warning:[/] the API key goes to {shown(server)} unencrypted; use --tls.")
