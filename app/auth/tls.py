"""TLS for the gRPC and HTTP addresses: one certificate, and the authorities of client certificates.

Invariants: the files are read, and key and certificate match, before a port is opened. With authorities, every caller
must present a certificate. The lowest version is TLS 1.2. Renewed files are used for new connections once they match;
until then the previous ones are used. They are checked every RELOAD_S, and at once by `read_again` (SIGHUP).

Deliberately absent: closing connections whose certificate was renewed or revoked.
"""

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import structlog

RELOAD_S = 10.0
"""How often the files are checked for a renewal."""

_log = structlog.get_logger(__name__)


class TlsUnusable(Exception):
    """The files cannot be used; the message names the setting."""


class Tls:
    """Checked files in PEM format. Made by `load`; thread-safe."""

    def __init__(self, cert_file: Path, key_file: Path, client_ca_file: Path | None) -> None:
        """Raises TlsUnusable."""
        self._files = cert_file, key_file, client_ca_file
        self._lock = threading.Lock()
        self._stamp = _stamp(*self._files)
        _check(*self._files)
        self._look_at_s = time.monotonic() + RELOAD_S
        self._renewals = 0
        """The number of times that renewed files were found, or that `read_again` read the files."""
        self._appliers: list[Callable[[], None]] = []

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For `grpc.aio.Server.add_secure_port`."""
        cert_file, key_file, client_ca_file = self._files

        def configuration() -> grpc.ServerCertificateConfiguration:
            authorities = client_ca_file.read_bytes() if client_ca_file else None
            pair = (key_file.read_bytes(), cert_file.read_bytes())
            return grpc.ssl_server_certificate_configuration([pair], root_certificates=authorities)

        applied = self._renewals

        def fetch() -> Any:  # called for each connection on a gRPC thread; None: as before
            nonlocal applied
            self._look()
            if (found := self._renewals) == applied:
                return None
            try:
                renewed = configuration()
            except OSError:  # a file was removed just now
                return None
            applied = found
            return renewed

        return grpc.dynamic_ssl_server_credentials(configuration(), fetch, client_ca_file is not None)

    def uvicorn_options(self) -> dict[str, Any]:
        """For `uvicorn.Config`."""
        cert_file, key_file, client_ca_file = self._files
        return {
            "ssl_certfile": cert_file,
            "ssl_keyfile": key_file,
            "ssl_ca_certs": client_ca_file,
            "ssl_cert_reqs": ssl.CERT_REQUIRED if client_ca_file else ssl.CERT_NONE,
        }

    async def keep_up_to_date(self, context: ssl.SSLContext) -> None:
        """Loads renewed files into the context, until cancelled. Previous authorities stay trusted."""
        cert_file, key_file, client_ca_file = self._files
        applied = self._renewals

        def apply() -> None:
            nonlocal applied
            if (found := self._renewals) == applied:
                return
            with contextlib.suppress(OSError, ValueError):  # a file was removed or written just now
                context.load_cert_chain(cert_file, key_file, password=lambda: "")
                if client_ca_file is not None:
                    context.load_verify_locations(client_ca_file)
                applied = found

        self._appliers.append(apply)
        try:
            while True:
                await asyncio.sleep(RELOAD_S)
                self._look()
                apply()
        finally:
            self._appliers.remove(apply)

    def read_again(self) -> None:
        """Reads the files now, even if they look unchanged, and logs the result. To be called in the event loop."""
        self._look(at_once=True)
        for apply in self._appliers:
            apply()

    def _look(self, *, at_once: bool = False) -> None:
        """Checks the files for a renewal, if RELOAD_S have passed since the last check or `at_once`."""
        with self._lock:
            if (now_s := time.monotonic()) < self._look_at_s and not at_once:
                return
            self._look_at_s = now_s + RELOAD_S
            before, self._stamp = self._stamp, _stamp(*self._files)
            if self._stamp == before and not at_once:
                return
            try:
                _check(*self._files)
            except TlsUnusable as error:
                _log.warning("tls_files_unusable", why=str(error), hint="the files that were read before stay in use")
                return
            self._renewals += 1
            _log.info("tls_files_renewed" if self._stamp != before else "tls_files_unchanged")


def load(cert_file: Path | None, key_file: Path | None, client_ca_file: Path | None) -> Tls | None:
    """TLS by the settings; None: without TLS. Raises TlsUnusable."""
    if cert_file is not None and key_file is not None:
        return Tls(cert_file, key_file, client_ca_file)
    if client_ca_file is not None:
        raise TlsUnusable("TS_TLS_CLIENT_CA_FILE needs TS_TLS_CERT_FILE and TS_TLS_KEY_FILE.")
    return None


def _check(cert_file: Path, key_file: Path, client_ca_file: Path | None) -> None:
    """Raises TlsUnusable."""
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
