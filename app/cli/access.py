"""How a command reaches a gateway: where, with what credentials, and what its failures say.

Invariants: an API key is in no message, log line or representation. A failure is a code and a sentence: the gateway's
own (`ErrorInfo.reason`) where it gave one, else gRPC's. Proxies of the environment are for the way out, and not used.

Deliberately absent: commands and their output (`commands/`), the questions themselves (`ask.py`).
"""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo  # type: ignore[import-untyped, unused-ignore]
from grpc_status import rpc_status

KEEPALIVE_MS = 20_000
"""How often a quiet connection is tried, so that a stream whose gateway vanished is noticed."""

_PASSING = ("GATEWAY_STOPPING", "STORE_UNAVAILABLE", "WATCHER_RESTARTING", "GATEWAY_OVERLOADED", "RATE_LIMITED")


class AccessUnusable(Exception):
    """What was given cannot be used to reach a gateway; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a caller has for reaching a gateway. Files are in PEM format. Raises AccessUnusable."""

    api_key: str = field(default="", repr=False)
    tls: bool = False
    tls_ca_file: Path | None = None
    """Authorities that the gateway's certificate is checked against, in place of the usual ones."""
    tls_cert_file: Path | None = None
    """The client's own certificate, with `tls_key_file`."""
    tls_key_file: Path | None = None

    def __post_init__(self) -> None:
        if not (self.api_key.isascii() and self.api_key.isprintable()) or " " in self.api_key:
            raise AccessUnusable("The API key has characters that no key has.")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise AccessUnusable("--tls-cert-file and --tls-key-file go together.")

    @property
    def headers(self) -> dict[str, str]:
        """The credentials, as HTTP wants them."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @contextmanager
    def channel(self, server: str, connect_s: float) -> Iterator[grpc.Channel]:
        """A channel to HOST:PORT; a connection that is not there after `connect_s` is none. Raises AccessUnusable."""
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.min_reconnect_backoff_ms", max(1, int(connect_s * 1000))),  # the time limit to connect, in truth
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
        """For HTTP; None is without TLS. Raises AccessUnusable."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca_file)
            if self.tls_cert_file is not None:
                context.load_cert_chain(self.tls_cert_file, self.tls_key_file, password=lambda: "")
        except (OSError, ValueError) as error:
            raise AccessUnusable(f"The files for TLS cannot be used: {error}.") from None
        return context


class CallFailed(Exception):
    """A call that failed. The text is for people."""

    def __init__(
        self, code: str, text: str, *, status: grpc.StatusCode, details: Mapping[str, str], retry_after_s: float | None
    ) -> None:
        super().__init__(text)
        self.code = code
        """`ErrorInfo.reason`; NO_ANSWER where no gateway answered; else the name of gRPC's code."""
        self.status = status
        self.details = details
        """`ErrorInfo.metadata`, and as `field` the part of the request that is at fault."""
        self.retry_after_s = retry_after_s

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed in a moment: the connection was lost, or the gateway is starting."""
        return self.code in ("NO_ANSWER", "UNKNOWN", "INTERNAL", *_PASSING)


def call_failed(error: grpc.RpcError, server: str, *, tls: bool = False) -> CallFailed:
    """What a call to `server` failed with."""
    call = cast(grpc.Call, error)  # what calls raise is both
    status, text = call.code(), str(call.details())
    code, details, retry_after_s = status.name, dict[str, str](), None
    try:
        packed = getattr(rpc_status.from_call(call), "details", ())
    except ValueError:  # what answers there is no gateway, or something between garbled it
        packed = ()
    for detail in packed:
        info, retry, bad = ErrorInfo(), RetryInfo(), BadRequest()
        if detail.Unpack(info):
            code, details = info.reason, {**details, **info.metadata}
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
        elif detail.Unpack(bad) and bad.field_violations:
            details.setdefault("field", bad.field_violations[0].field)
    if code == grpc.StatusCode.UNAVAILABLE.name:  # a gateway's own UNAVAILABLE names its reason
        code, text = "NO_ANSWER", no_answer(server, text, tls=tls)
    return CallFailed(code, text, status=status, details=details, retry_after_s=retry_after_s)


def no_answer(server: str, why: str, *, tls: bool = False) -> str:
    """Says that no gateway answered at `server`, why, and what to look at."""
    if tls and ("CERTIFICATE_VERIFY_FAILED" in why or "Hostname" in why or "Peer name" in why):
        advice = "Is --tls-ca-file the authority of the gateway's certificate, and the host one of its names?"
    elif tls:
        advice = "Is the gateway running (terminal-status serve), and with TLS (TS_TLS_CERT_FILE)?"
    elif "refused" in why:
        advice = "Is the gateway running (terminal-status serve)?"
    else:
        advice = "Is the gateway running (terminal-status serve)? If it wants TLS, add --tls."
    return f"No answer from {server}: {why.rstrip('.')}. {advice}"


def _read(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise AccessUnusable(f"{file}: cannot be read: {error.strerror}.") from None
