"""Failed gRPC calls to the gateway: their codes, and the message with which a command reports one.

The code is the gateway's own (`ErrorInfo.reason`) if a gateway answered, NO_ANSWER if no server did, otherwise the name
of gRPC's status code. The message is one line: code, reason, and what to do.
"""

from collections.abc import Mapping
from typing import cast

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo  # type: ignore[import-untyped, unused-ignore]
from grpc_status import rpc_status

from app.cli.console import FAILED, USAGE, err, shown

_TEMPORARY = frozenset(
    {
        "NO_ANSWER",
        "UNKNOWN",
        "INTERNAL",
        "GATEWAY_STOPPING",
        "STORE_UNAVAILABLE",
        "WATCHER_RESTARTING",
        "GATEWAY_OVERLOADED",
        "RATE_LIMITED",
    }
)
_ADVICE: Mapping[str, str] = {
    "UNAUTHENTICATED": "Put a client's API key into TS_API_KEY (terminal-status clients add NAME makes one).",
    "NOT_PERMITTED": "This call needs an operator's API key (terminal-status clients add NAME --admin makes one).",
    "GATEWAY_STOPPING": "Try again in a moment.",
    "STORE_UNAVAILABLE": "Try again; if this persists, check TS_DATABASE_URL and the gateway's log.",
    "UNIMPLEMENTED": "The gateway is older than this command, or the server at this address is not the gateway.",
    "DEADLINE_EXCEEDED": "Allow more time with --timeout-s.",
    "WATCH_UNKNOWN": "terminal-status watches lists the watched terminals.",
    "SUBSCRIPTION_UNKNOWN": "terminal-status subscriptions list shows the active ones.",
    "NOTIFICATION_UNKNOWN": "terminal-status deliveries list shows the stored ones.",
    "DUPLICATE_CORRELATOR": "Choose another one, or end that subscription: "
    "terminal-status subscriptions cancel --correlator …",
    "GROUP_EXISTS": "To change it, use terminal-status groups set, add or remove.",
    "GROUP_UNKNOWN": "terminal-status groups list shows the groups.",
    "GROUP_CHANGED": "See the current members with terminal-status groups show, then try again with its etag.",
    "SUBSCRIPTION_CHANGED": "See it with terminal-status subscriptions show, then try again with its etag.",
}
_SINK_ADVICE = "See TS_SINK_ALLOWED_NETWORKS and TS_SINK_ALLOW_HTTP."
_SINK_REASONS_OF_SETTINGS = {"scheme", "forbidden-address"}
"""Reasons of SINK_REFUSED that depend on the settings in `_SINK_ADVICE`."""


class CallFailed(Exception):
    """A gRPC call failed. The exception's text is for people."""

    def __init__(
        self, code: str, text: str, *, status: grpc.StatusCode, details: Mapping[str, str], retry_after_s: float | None
    ) -> None:
        super().__init__(text)
        self.code = code
        self.status = status
        self.details = details
        """`ErrorInfo.metadata`, and under `field` the name of the request's field that is wrong."""
        self.retry_after_s = retry_after_s

    @property
    def temporary(self) -> bool:
        """Whether the same call may succeed in a moment: the connection was lost, or the gateway is starting."""
        return self.code in _TEMPORARY

    @property
    def exit_code(self) -> int:
        """USAGE where the gateway found the request itself wrong, else FAILED."""
        return USAGE if self.status.name == "INVALID_ARGUMENT" else FAILED


def call_failed(error: grpc.RpcError, server: str, *, tls: bool = False) -> CallFailed:
    """The failure of a call to `server`, with the gateway's error details unpacked."""
    call = cast(grpc.Call, error)  # gRPC raises objects that are both RpcError and Call
    status, text = call.code(), str(call.details())
    code, details, retry_after_s = status.name, dict[str, str](), None
    try:
        packed = getattr(rpc_status.from_call(call), "details", ())
    except ValueError:  # the details contradict the status: not from our gateway, or garbled on the way
        packed = ()
    for detail in packed:
        info, retry, bad = ErrorInfo(), RetryInfo(), BadRequest()
        if detail.Unpack(info):
            code, details = info.reason, {**details, **info.metadata}
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
        elif detail.Unpack(bad) and bad.field_violations:
            details.setdefault("field", bad.field_violations[0].field)
    if code == grpc.StatusCode.UNAVAILABLE.name:  # without ErrorInfo, so gRPC's own: no gateway answered
        code, text = "NO_ANSWER", no_answer(server, text, tls=tls)
    return CallFailed(code, text, status=status, details=details, retry_after_s=retry_after_s)


def no_answer(server: str, why: str, *, tls: bool = False) -> str:
    """The message that no gateway answered at `server`: why, and what to check."""
    if tls and ("CERTIFICATE_VERIFY_FAILED" in why or "Hostname" in why or "Peer name" in why):
        advice = "Does --tls-ca-file name the authority of the gateway's certificate, and is the host in it?"
    elif tls:
        advice = "Is the gateway running (terminal-status serve), and with TLS (TS_TLS_CERT_FILE)?"
    elif "refused" in why:
        advice = "Is the gateway running (terminal-status serve)?"
    else:
        advice = "Is the gateway running (terminal-status serve)? If it requires TLS, add --tls."
    return f"No answer from {server}: {why.rstrip('.')}. {advice}"


def print_failure(failed: CallFailed) -> None:
    """Prints the failure on standard error as one line: the code, the reason, and what to do."""
    wait = f" Try again in {failed.retry_after_s:.0f} s." if failed.retry_after_s else ""
    advised = (
        _SINK_ADVICE if failed.details.get("reason") in _SINK_REASONS_OF_SETTINGS else _ADVICE.get(failed.code, "")
    )
    advice = f" {advised}" if advised else ""
    text = str(failed).rstrip()
    end = "" if text.endswith((".", "?", "!", "…")) else "."
    err.print(f"[red]error:[/] {shown(failed.code)}: {shown(text)}{end}{wait or advice}")
