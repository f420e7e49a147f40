"""A caller's credentials for the gateway (API key, TLS files), and connections made with them.

Invariants: an API key never appears in a message, log line or representation. Proxy settings of the environment are
ignored: they are for outgoing traffic, and the gateway is called directly.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

KEEPALIVE_MS = 20_000
"""Interval of gRPC keepalive pings on a quiet connection, by which a stream notices that its gateway is gone."""


class CredentialsUnusable(Exception):
    """The API key or a TLS file cannot be used; the message names which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Files are in PEM format. Raises CredentialsUnusable."""

    api_key: str = field(default="", repr=False)
    tls: bool = False
    tls_ca_file: Path | None = None
    """Certificate authorities to trust for the gateway's certificate, in place of the system's."""
    tls_cert_file: Path | None = None
    """The client's own certificate; requires `tls_key_file`."""
    tls_key_file: Path | None = None

    def __post_init__(self) -> None:
        if not (self.api_key.isascii() and self.api_key.isprintable()) or " " in self.api_key:
            raise CredentialsUnusable(
                "The API key contains characters that are never part of a key; was it truncated or quoted?"
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise CredentialsUnusable("--tls-cert-file and --tls-key-file need each other; give both or neither.")

    @property
    def headers(self) -> dict[str, str]:
        """The `authorization` header, for HTTP and as gRPC metadata; empty without an API key."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @contextmanager
    def channel(self, server: str, connect_s: float) -> Iterator[grpc.Channel]:
        """A gRPC channel to HOST:PORT; an attempt to connect ends after `connect_s`. Raises CredentialsUnusable."""
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            # Despite its name, gRPC uses the minimum backoff as the time limit of an attempt to connect.
            ("grpc.min_reconnect_backoff_ms", max(1, int(connect_s * 1000))),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),  # a page of a thousand large subscriptions
        ]
        if self.tls:
            credentials = grpc.ssl_channel_credentials(
                root_certificates=_read(self.tls_ca_file),
                private_key=_read(self.tls_key_file),
                certificate_chain=_read(self.tls_cert_file),
            )
            channel = grpc.secure_channel(server, credentials, options=options)
        else:
            channel = grpc.insecure_channel(server, options=options)
        with channel:
            yield channel

    def ssl_context(self) -> ssl.SSLContext | None:
        """The context for HTTPS, or None for plain HTTP. Raises CredentialsUnusable."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca_file)
            if self.tls_cert_file is not None:
                # An empty password: OpenSSL would ask for one on the terminal.
                context.load_cert_chain(self.tls_cert_file, self.tls_key_file, password=lambda: "")
        except (OSError, ValueError) as error:
            raise CredentialsUnusable(f"The TLS files cannot be used: {error}.") from None
        return context


def _read(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise CredentialsUnusable(f"{file}: cannot be read: {error.strerror}.") from None
