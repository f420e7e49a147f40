"""Small clients of the gateway's three faces, gRPC, REST and SOAP: each queries the status of one terminal.

They know only the public APIs, as any application. An answer is a dict that prints as JSON: `address`, `via` and
`elapsed_ms`, then `status` (and `observe_time`, which SOAP does not report), or `code` and `error`. Control characters
in a server's answer are replaced, because a terminal would obey them.
"""

import http.client
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from app.cli.call_failures import call_failed, no_answer
from app.cli.credentials import Credentials
from app.pb.terminalstatus.v1 import terminal_status_pb2, terminal_status_pb2_grpc
from soap_compat.client import get_status_request, read_get_status

Answer = dict[str, Any]

_MAX_BODY_BYTES = 1024 * 1024
_NOT_THE_GATEWAY = "The server's answer is not one of this gateway's; is the address right?"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Query:
    server: str
    address: str
    timeout_s: float
    max_age_s: float
    credentials: Credentials


def get_status(
    face: str,
    server: str,
    address: str,
    timeout_s: float,
    *,
    max_age_s: float = 0,
    credentials: Credentials | None = None,
) -> Answer:
    """Queries the gateway at `server` (HOST:PORT) through `face` (grpc, rest or soap).

    `max_age_s` is the accepted age of a stored status; SOAP has no such field and ignores it. A failed call is an
    answer with `code` and `error`. Raises CredentialsUnusable.
    """
    query = _Query(
        server=server,
        address=address,
        timeout_s=timeout_s,
        max_age_s=max_age_s,
        credentials=credentials or Credentials(),
    )
    started_s = time.monotonic()
    found = _FACES[face](query)
    elapsed_ms = round((time.monotonic() - started_s) * 1000, 1)
    shown = {name: _printable(str(value)) for name, value in found.items()}
    return {"address": address, "via": face, "elapsed_ms": elapsed_ms, **shown}


def _printable(text: str) -> str:
    """The text with U+FFFD for each non-printable character, and for each that UTF-8 cannot encode."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _grpc(query: _Query) -> Answer:
    credentials, timeout_s = query.credentials, query.timeout_s
    max_age = Duration()
    max_age.FromMilliseconds(math.ceil(query.max_age_s * 1000))
    with credentials.channel(query.server, timeout_s) as channel:
        stub = terminal_status_pb2_grpc.TerminalStatusServiceStub(channel)
        request = terminal_status_pb2.GetStatusRequest(address=query.address, max_age=max_age)
        try:
            status = stub.GetStatus(request, timeout=timeout_s, metadata=tuple(credentials.headers.items())).status
        except grpc.RpcError as error:
            failed = call_failed(error, query.server, tls=credentials.tls)
            return {"code": failed.code, "error": str(failed)}
    name = terminal_status_pb2.Status.Name(status.status).removeprefix("STATUS_")
    return {"status": name, "observe_time": status.observe_time.ToJsonString()}


def _rest(query: _Query) -> Answer:
    path = f"/v1/terminals/{urllib.parse.quote(query.address, safe='')}/status"
    if query.max_age_s:
        path += f"?max_age_s={query.max_age_s:g}"
    code, body = _http(query, path, None)
    if code == 0:
        return _unanswered(query, body)
    try:
        found = json.loads(body)
        if code == 200:
            return {"status": found["status"], "observe_time": found["observe_time"]}
        return {"code": found["code"], "error": found["detail"]}
    except (ValueError, KeyError, TypeError):
        return {"code": f"HTTP_{code}", "error": _NOT_THE_GATEWAY}


def _soap(query: _Query) -> Answer:
    code, body = _http(query, "/parlayx/TerminalStatus", get_status_request(query.address))
    if code == 0:
        return _unanswered(query, body)
    try:
        status, fault = read_get_status(body)
    except ValueError:
        return {"code": f"HTTP_{code}", "error": _NOT_THE_GATEWAY}
    return {"status": status.upper()} if status else {"code": fault.message_id, "error": str(fault)}


_FACES: dict[str, Callable[[_Query], Answer]] = {"grpc": _grpc, "rest": _rest, "soap": _soap}


def _http(query: _Query, path: str, body: bytes | None) -> tuple[int, bytes]:
    """HTTP status and body; without an answer, status 0 and the reason as body."""
    context = query.credentials.ssl_context()
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    url = f"{'http' if context is None else 'https'}://{query.server}{path}"
    headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'} if body else {}
    request = urllib.request.Request(url, body, headers | query.credentials.headers)  # noqa: S310  # the scheme is ours
    try:
        with opener.open(request, timeout=query.timeout_s) as response:
            return response.status, response.read(_MAX_BODY_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MAX_BODY_BYTES)
    except (OSError, http.client.HTTPException) as error:
        why = str(getattr(error, "reason", error)) or type(error).__name__
        if isinstance(error, http.client.HTTPException):
            why = f"the server at this address does not speak HTTP ({why})"
        return 0, why.encode("utf-8", "replace")


def _unanswered(query: _Query, why: bytes) -> Answer:
    return {"code": "NO_ANSWER", "error": no_answer(query.server, why.decode(), tls=query.credentials.tls)}
