"""TLS of the gRPC and HTTP addresses: one certificate, and the authorities of client certificates.

Invariants: the files are read and fit each other before a port is opened. With authorities given, every caller must
present a certificate of theirs. TLS 1.2 is the least. Files that were renewed count for connections from then on, as
soon as they fit each other; until then those before do.

Deliberately absent: ending connections whose certificate was renewed or taken back.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

RELOAD_S = 10.0
"""How often to look whether the files were renewed."""

_log = structlog.get_logger(__name__)


class TlsUnusable(Exception):
    """The files cannot be used; the message names the setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM format that were checked. Made by `load`."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None
    stamp: tuple[object, ...]
    """What the files were when they were checked."""

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For `grpc.aio.Server.add_secure_port`."""

        def configuration() -> grpc.ServerCertificateConfiguration:
            authorities = self.client_ca_file.read_bytes() if self.client_ca_file else None
            pair = (self.key_file.read_bytes(), self.cert_file.read_bytes())
            return grpc.ssl_server_certificate_configuration([pair], root_certificates=authorities)

        renewed = self._renewals()

        def fetch() -> Any:  # for each connection; None is the configuration of the one before
            try:
                return configuration() if renewed() else None
            except OSError:  # taken away this very moment
                return None

        return grpc.dynamic_ssl_server_credentials(configuration(), fetch, self.client_ca_file is not None)

    def uvicorn_options(self) -> dict[str, Any]:
        """For `uvicorn.Config`."""
        return {
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
            "ssl_ca_certs": self.client_ca_file,
            "ssl_cert_reqs": ssl.CERT_REQUIRED if self.client_ca_file else ssl.CERT_NONE,
        }

    async def keep_up_to_date(self, context: ssl.SSLContext) -> None:
        """Gives the context what is renewed, until it is cancelled. It also keeps trusting the authorities before."""
        renewed = self._renewals()
        while True:
            await asyncio.sleep(RELOAD_S)
            if renewed():
                with contextlib.suppress(OSError, ValueError):  # taken away, or written again, this very moment
                    context.load_cert_chain(self.cert_file, self.key_file, password=lambda: "")
                    if self.client_ca_file is not None:
                        context.load_verify_locations(self.client_ca_file)

    def _renewals(self) -> Callable[[], bool]:
        """Whether the files are others than when that was asked before, and can be used; looks each RELOAD_S."""
        seen, look_at_s = self.stamp, time.monotonic() + RELOAD_S

        def renewed() -> bool:
            nonlocal seen, look_at_s
            if (now_s := time.monotonic()) < look_at_s:
                return False
            look_at_s = now_s + RELOAD_S
            before, seen = seen, _stamp(self.cert_file, self.key_file, self.client_ca_file)
            if seen == before:
                return False
            try:
                load(self.cert_file, self.key_file, self.client_ca_file)
            except TlsUnusable as error:
                _log.warning("tls_files_unusable", why=str(error))
                return False
            _log.info("tls_files_renewed")
            return True

        return renewed


def load(cert_file: Path | None, key_file: Path | None, client_ca_file: Path | None) -> Tls | None:
    """TLS as the settings want it; None is none. Raises TlsUnusable."""
    if cert_file is None or key_file is None:
        if client_ca_file is not None:
            raise TlsUnusable("TS_TLS_CLIENT_CA_FILE needs TS_TLS_CERT_FILE and TS_TLS_KEY_FILE.")
        return None
    stamp = _stamp(cert_file, key_file, client_ca_file)
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
    return Tls(cert_file=cert_file, key_file=key_file, client_ca_file=client_ca_file, stamp=stamp)


def _stamp(*files: Path | None) -> tuple[object, ...]:
    found: list[object] = []
    for file in files:
        try:
            about = file.stat() if file else None
        except OSError:
            about = None
        found.append(about and (about.st_ino, about.st_mtime_ns, about.st_size))
    return tuple(found)


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
