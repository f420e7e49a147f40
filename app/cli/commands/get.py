"""`terminal-status get`: the status of terminals, through any face of the gateway."""

from enum import StrEnum
from typing import Annotated

import typer

from app.cli.configuration import read_settings_without_sip
from app.cli.console import FAILED, OK, check_utf8, wrong_use
from app.cli.gateway_options import (
    ApiKeyOption,
    TimeoutOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    TlsOption,
    credentials_of,
    warn_of_clear_text,
)
from app.cli.options import JsonOption, MaxAgeOption
from app.cli.tables import print_json, print_table, styled
from app.cli.times import span_ms


class Face(StrEnum):
    """A face of the gateway that answers queries."""

    GRPC = "grpc"
    REST = "rest"
    SOAP = "soap"


def get(
    addresses: Annotated[
        list[str],
        typer.Argument(metavar="ADDRESS", help="Terminals: sip:, sips: or tel: URIs.", show_default=False),
    ],
    via: Annotated[list[Face], typer.Option(help="The face to query. Repeatable.")] = [Face.GRPC],  # noqa: B006  # typer copies it
    max_age: MaxAgeOption = "0",
    grpc_server: Annotated[
        str | None,
        typer.Option(
            "--grpc-server",
            "--server",
            metavar="HOST:PORT",
            help="The gateway's gRPC address. Default: TS_GRPC_LISTEN.",
            show_default=False,
        ),
    ] = None,
    http_server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The gateway's address for REST and SOAP. Default: TS_HTTP_LISTEN.",
            show_default=False,
        ),
    ] = None,
    api_key: ApiKeyOption = "",
    tls: TlsOption = None,
    tls_ca_file: TlsCaOption = None,
    tls_cert_file: TlsCertOption = None,
    tls_key_file: TlsKeyOption = None,
    timeout_s: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Get the status of terminals from a running gateway.

    Exit code 1 if any of them has no answer. For many terminals and for groups, use query.
    SOAP accepts no --max-age; there the gateway's setting TS_SOAP_MAX_AGE_S decides.

    Example: terminal-status get sip:alice@example.com tel:+15550001 --via rest
    """
    from app.cli.credentials import CredentialsUnusable
    from app.cli.face_clients import get_status

    check_utf8(addresses)
    max_age_s = span_ms(max_age) / 1000
    if max_age_s and Face.SOAP in via:
        wrong_use("--max-age cannot be sent over SOAP: Parlay X has no such field; the gateway uses TS_SOAP_MAX_AGE_S.")
    settings = read_settings_without_sip(
        None,
        {"grpc_listen": "--grpc-server", "http_listen": "--http-server"},
        grpc_listen=grpc_server,
        http_listen=http_server,
    )
    servers = {Face.GRPC: settings.grpc_listen, Face.REST: settings.http_listen, Face.SOAP: settings.http_listen}
    try:
        credentials = credentials_of(
            settings,
            local=grpc_server is None and http_server is None,
            api_key=api_key,
            tls=tls,
            tls_ca_file=tls_ca_file,
            tls_cert_file=tls_cert_file,
            tls_key_file=tls_key_file,
        )
        for server in {servers[face] for face in via}:
            warn_of_clear_text(credentials, server)
        answers = [
            get_status(face.value, servers[face], address, timeout_s, max_age_s=max_age_s, credentials=credentials)
            for address in addresses
            for face in via
        ]
    except CredentialsUnusable as error:
        wrong_use(str(error))
    any_failed = any("error" in answer for answer in answers)
    if as_json:
        print_json(answers)
    else:
        print_table(
            ("address", "via", "status", "observed at", "ms", *(("error",) if any_failed else ())),
            [
                [
                    answer["address"],
                    answer["via"],
                    styled(answer["status"]) if "status" in answer else styled(answer["code"], "red"),
                    answer.get("observe_time", ""),
                    str(answer["elapsed_ms"]),
                    *([answer.get("error", "")] if any_failed else []),
                ]
                for answer in answers
            ],
        )
    raise typer.Exit(FAILED if any_failed else OK)
