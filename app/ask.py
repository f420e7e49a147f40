"""A caller of a running gateway: one question through any of its faces, for the command line and the demo.

It sees what any client sees, and nothing of the gateway's inside. What a server says is shown without control
characters, which a terminal would obey. Answers are plain dicts that print as JSON:
`address`, `via` and `elapsed_ms`, then `status` (and `observed_at` where the face tells it), or `code` and `error`.
"""

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, cast

import grpc
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]  # ships no types
from grpc_status import rpc_status

from app.pb.terminalstatus.v1 import terminal_status_pb2, terminal_status_pb2_grpc
from soap_compat.client import get_status_request, read_get_status

Answer = dict[str, Any]

_MOST_BYTES = 1024 * 1024
# Proxy settings of the environment are for the way out; the gateway is asked directly.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(via: str, server: str, address: str, timeout_s: float) -> Answer:
    """Asks the gateway at `server` (HOST:PORT) through the face `via` (grpc, rest, soap). Raises nothing of its own."""
    started_s = time.monotonic()
    found = _FACES[via](server, address, timeout_s)
    elapsed_ms = round((time.monotonic() - started_s) * 1000, 1)
    shown = {name: printable(str(value)) for name, value in found.items()}
    return {"address": address, "via": via, "elapsed_ms": elapsed_ms, **shown}


def printable(text: str) -> str:
    """The text with U+FFFD for whatever a terminal might obey, or could not be given."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _grpc(server: str, address: str, timeout_s: float) -> Answer:
    with grpc.insecure_channel(server, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = terminal_status_pb2_grpc.TerminalStatusServiceStub(channel)
        request = terminal_status_pb2.GetStatusRequest(address=address)
        try:
            status = stub.GetStatus(request, timeout=timeout_s).status
        except grpc.RpcError as error:
            call = cast(grpc.Call, error)  # what a unary call raises is both
            code = call.code().name
            for detail in getattr(rpc_status.from_call(call), "details", ()):
                info = ErrorInfo()
                if detail.Unpack(info):
                    code = info.reason
            if code == grpc.StatusCode.UNAVAILABLE.name:  # a gateway's own UNAVAILABLE names its reason
                return _unreachable(server, str(call.details()))
            return {"code": code, "error": str(call.details())}
    name = terminal_status_pb2.Status.Name(status.status).removeprefix("STATUS_")
    return {"status": name, "observed_at": status.observed_at.ToJsonString()}


def _rest(server: str, address: str, timeout_s: float) -> Answer:
    code, body = _http(f"http://{server}/v1/terminals/{urllib.parse.quote(address, safe='')}/status", None, timeout_s)
    if code == 0:
        return _unreachable(server, body.decode())
    try:
        found = json.loads(body)
        if code == 200:
            return {"status": found["status"], "observed_at": found["observed_at"]}
        return {"code": found["code"], "error": found["detail"]}
    except (ValueError, KeyError, TypeError):
        return {"code": f"HTTP_{code}", "error": "The server's answer is not this gateway's."}


def _soap(server: str, address: str, timeout_s: float) -> Answer:
    code, body = _http(f"http://{server}/parlayx/TerminalStatus", get_status_request(address), timeout_s)
    if code == 0:
        return _unreachable(server, body.decode())
    try:
        status, fault = read_get_status(body)
    except ValueError:
        return {"code": f"HTTP_{code}", "error": "The server's answer is not this gateway's."}
    return {"status": status.upper()} if status else {"code": fault.message_id, "error": str(fault)}


_FACES: dict[str, Callable[[str, str, float], Answer]] = {"grpc": _grpc, "rest": _rest, "soap": _soap}


def _http(url: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
    """Status and body; status 0 and the reason where there was no answer."""
    headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'} if body else {}
    request = urllib.request.Request(url, body, headers)  # noqa: S310  # the scheme is ours
    try:
        with _opener.open(request, timeout=timeout_s) as response:
            return response.status, response.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        why = str(getattr(error, "reason", error)) or type(error).__name__
        spoke = isinstance(error, http.client.HTTPException)
        return 0, (f"what answers there speaks no HTTP ({why})" if spoke else why).encode("utf-8", "replace")


def _unreachable(server: str, why: str) -> Answer:
    return {
        "code": "NO_ANSWER",
        "error": f"No answer from {server}: {why}. Is the gateway running (terminal-status serve)?",
    }
