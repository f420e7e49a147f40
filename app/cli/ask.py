"""A caller of a running gateway: one question through any of its faces, for the command line and the demo.

It sees what any client sees, and nothing of the gateway's inside. What a server says is shown without control
characters, which a terminal would obey. Answers are plain dicts that print as JSON:
`address`, `via` and `elapsed_ms`, then `status` (and `observed_at` where the face tells it), or `code` and `error`.
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

from app.cli.access import Access, call_failed, no_answer
from app.pb.terminalstatus.v1 import terminal_status_pb2, terminal_status_pb2_grpc
from soap_compat.client import get_status_request, read_get_status

Answer = dict[str, Any]

_MOST_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    server: str
    address: str
    timeout_s: float
    max_age_s: float
    access: Access


def ask(
    via: str, server: str, address: str, timeout_s: float, *, max_age_s: float = 0, access: Access | None = None
) -> Answer:
    """Asks the gateway at `server` (HOST:PORT) through the face `via` (grpc, rest, soap).

    `max_age_s` is how old the answer may be; SOAP cannot say it. Raises AccessUnusable, and nothing else of its own.
    """
    question = _Question(
        server=server, address=address, timeout_s=timeout_s, max_age_s=max_age_s, access=access or Access()
    )
    started_s = time.monotonic()
    found = _FACES[via](question)
    elapsed_ms = round((time.monotonic() - started_s) * 1000, 1)
    shown = {name: printable(str(value)) for name, value in found.items()}
    return {"address": address, "via": via, "elapsed_ms": elapsed_ms, **shown}


def printable(text: str) -> str:
    """The text with U+FFFD for whatever a terminal might obey, or could not be given."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _grpc(question: _Question) -> Answer:
    access, timeout_s = question.access, question.timeout_s
    max_age = Duration()
    max_age.FromMilliseconds(math.ceil(question.max_age_s * 1000))
    with access.channel(question.server, timeout_s) as channel:
        stub = terminal_status_pb2_grpc.TerminalStatusServiceStub(channel)
        request = terminal_status_pb2.GetStatusRequest(address=question.address, max_age=max_age)
        try:
            status = stub.GetStatus(request, timeout=timeout_s, metadata=tuple(access.headers.items())).status
        except grpc.RpcError as error:
            failed = call_failed(error, question.server, tls=access.tls)
            return {"code": failed.code, "error": str(failed)}
    name = terminal_status_pb2.Status.Name(status.status).removeprefix("STATUS_")
    return {"status": name, "observed_at": status.observed_at.ToJsonString()}


def _rest(question: _Question) -> Answer:
    path = f"/v1/terminals/{urllib.parse.quote(question.address, safe='')}/status"
    if question.max_age_s:
        path += f"?max_age_s={question.max_age_s:g}"
    code, body = _http(question, path, None)
    if code == 0:
        return _unreachable(question, body)
    try:
        found = json.loads(body)
        if code == 200:
            return {"status": found["status"], "observed_at": found["observed_at"]}
        return {"code": found["code"], "error": found["detail"]}
    except (ValueError, KeyError, TypeError):
        return {"code": f"HTTP_{code}", "error": "The server's answer is not this gateway's."}


def _soap(question: _Question) -> Answer:
    code, body = _http(question, "/parlayx/TerminalStatus", get_status_request(question.address))
    if code == 0:
        return _unreachable(question, body)
    try:
        status, fault = read_get_status(body)
    except ValueError:
        return {"code": f"HTTP_{code}", "error": "The server's answer is not this gateway's."}
    return {"status": status.upper()} if status else {"code": fault.message_id, "error": str(fault)}


_FACES: dict[str, Callable[[_Question], Answer]] = {"grpc": _grpc, "rest": _rest, "soap": _soap}


def _http(question: _Question, path: str, body: bytes | None) -> tuple[int, bytes]:
    """Status and body; status 0 and the reason where there was no answer."""
    context = question.access.ssl_context()
    # Proxy settings of the environment are for the way out; the gateway is asked directly.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    url = f"{'http' if context is None else 'https'}://{question.server}{path}"
    headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'} if body else {}
    request = urllib.request.Request(url, body, headers | question.access.headers)  # noqa: S310  # the scheme is ours
    try:
        with opener.open(request, timeout=question.timeout_s) as response:
            return response.status, response.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        why = str(getattr(error, "reason", error)) or type(error).__name__
        spoke = isinstance(error, http.client.HTTPException)
        return 0, (f"what answers there speaks no HTTP ({why})" if spoke else why).encode("utf-8", "replace")


def _unreachable(question: _Question, why: bytes) -> Answer:
    return {"code": "NO_ANSWER", "error": no_answer(question.server, why.decode(), tls=question.access.tls)}
