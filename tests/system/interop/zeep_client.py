"""zeep as a Parlay X client, and as the application that receives callbacks. Arguments and output: see
`test_interop.py`."""

import json
import queue
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import zeep as untyped_zeep
from lxml import etree
from zeep.wsse import username as untyped_username

zeep: Any = untyped_zeep
username: Any = untyped_username
BASE, USER, SECRET, NAME = sys.argv[1:5]
WAIT_S = 20
calls: queue.Queue[tuple[str, Any]] = queue.Queue()


def say(what: str, value: Any) -> None:
    print(json.dumps([what, value]), flush=True)  # noqa: T201  # what the test reads


def read_callback(body: bytes) -> tuple[str, Any]:
    """The operation and its parts, as zeep reads them by the WSDL; zeep itself has no server."""
    envelope = etree.fromstring(body)
    name = etree.QName(envelope[-1][0]).localname
    binding = next(iter(callback.wsdl.services.values())).ports["TerminalStatusNotification"].binding
    operation = binding.get(name)
    found = operation.input.deserialize(envelope)
    value: Any
    if name == "statusNotification":
        value = [found.correlator, [[one.address, one.currentStatus] for one in found.terminalStatus]]
    elif name == "statusError":
        reason = found.reason
        value = [found.correlator, found.address, reason.messageId, reason.text, reason.variables]
    else:
        value = found if isinstance(found, str) else found.correlator  # zeep unwraps a single part
    return name, value


class Application(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # http.server requires this name
        name, value = read_callback(self.rfile.read(int(self.headers["Content-Length"])))
        binding = next(iter(callback.wsdl.services.values())).ports["TerminalStatusNotification"].binding
        response = etree.tostring(binding.get(name).output.serialize().content)
        self.send_response(200)
        self.send_header("Content-Type", "text/xml; charset=utf-8")
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)
        calls.put((name, value))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
        """Suppresses http.server's log on standard error."""


def fault_of(client: Any, what: str, call: Any) -> None:
    try:
        call()
    except zeep.exceptions.Fault as fault:
        (detail,) = fault.detail
        found = client.wsdl.types.deserialize(detail)
        say(what, [etree.QName(detail).localname, found.messageId, found.text, found.variables])


def next_call() -> None:
    say(*calls.get(timeout=WAIT_S))


security = username.UsernameToken(USER, SECRET, use_digest=True)
status = zeep.Client(f"{BASE}/TerminalStatus?wsdl", wsse=security)
manager = zeep.Client(f"{BASE}/TerminalStatusNotificationManager?wsdl", wsse=security)
callback = zeep.Client(f"{BASE}/TerminalStatusNotification?wsdl")
server = ThreadingHTTPServer(("127.0.0.1", 0), Application)
threading.Thread(target=server.serve_forever, daemon=True).start()


def start(number: int, address: str, *, check: bool, count: int | None) -> None:
    manager.service.startNotification(
        reference={
            "endpoint": f"http://127.0.0.1:{server.server_port}/callback",
            "interfaceName": "TerminalStatusNotification",
            "correlator": f"{NAME}-{number}",
        },
        addresses=[address],
        criteria=["Reachable", "Busy"],
        checkImmediate=check,
        frequency={"metric": "Second", "units": 0},
        duration={"metric": "Hour", "units": 1},
        count=count,
    )


say("getStatus", status.service.getStatus("sip:alice@example.com"))
results = status.service.getStatusForGroup(
    ["sip:alice@example.com", "sip:bob@example.com", "sip:answer-403@example.com", "sip:silent@example.com"]
)
say(
    "getStatusForGroup",
    [
        [one.address, one.reportStatus, one.currentStatus]
        + ([one.errorInformation.messageId, one.errorInformation.variables] if one.errorInformation else [None, []])
        for one in results
    ],
)
fault_of(status, "fault of getStatus", lambda: status.service.getStatus("sip:answer-403@example.com"))
fault_of(status, "fault of getStatusForGroup", lambda: status.service.getStatusForGroup(["alice"]))
start(1, "sip:alice@example.com", check=True, count=1)
say("startNotification", None)
next_call()
next_call()
start(2, "sip:terminated-noresource@example.com", check=True, count=None)
next_call()
start(3, "sip:carol@example.com", check=False, count=None)
fault_of(manager, "fault of startNotification", lambda: start(3, "sip:carol@example.com", check=False, count=None))
manager.service.endNotification(f"{NAME}-3")
say("endNotification", None)
fault_of(manager, "fault of endNotification", lambda: manager.service.endNotification(f"{NAME}-3"))
server.shutdown()
