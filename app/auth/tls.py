"""TLS of the gRPC and HTTP addresses: one certificate, and the authorities of client certificates.

Invariants: the files are read and fit each other before a port is opened. With authorities given, every caller must
present a certificate of theirs. TLS 1.2 is the least.
Deliberately absent: reading the files again while the gateway runs: a renewed certificate needs a restart.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc


class TlsUnusable(Exception):
    """The files cannot be used; the message names the setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM format that were checked. Made by `load`."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For `grpc.aio.Server.add_secure_port`."""
        authorities = self.client_ca_file.read_bytes() if self.client_ca_file else None
        return grpc.ssl_server_credentials(
            [(self.key_file.read_bytes(), self.cert_file.read_bytes())],
            root_certificates=authorities,
            require_client_auth=authorities is not None,
        )

    def uvicorn_options(self) -> dict[str, Any]:
        """For `uvicorn.Config`."""
        return {
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
            "ssl_ca_certs": self.client_ca_file,
            "ssl_cert_reqs": ssl.CERT_REQUIRED if self.client_ca_file else ssl.CERT_NONE,
        }


def load(cert_file: Path | None, key_file: Path | None, client_ca_file: Path | None) -> Tls | None:
    """TLS as the settings want it; None is none. Raises TlsUnusable."""
    if cert_file is None or key_file is None:
        if client_ca_file is not None:
            raise TlsUnusable("TS_TLS_CLIENT_CA_FILE needs TS_TLS_CERT_FILE and TS_TLS_KEY_FILE.")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    except (OSError, ValueError) as error:
        raise TlsUnusable(
            f"TS_TLS_CERT_FILE, TS_TLS_KEY_FILE: {cert_file} and {key_file} cannot be used: {_why(error)}."
        ) from None
    if client_ca_file is not None:
        try:
            context.load_verify_locations(client_ca_file)
        except (OSError, ValueError) as error:
            raise TlsUnusable(f"TS_TLS_CLIENT_CA_FILE: {client_ca_file} cannot be used: {_why(error)}.") from None
    return Tls(cert_file=cert_file, key_file=key_file, client_ca_file=client_ca_file)


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
