"""Signals to a serving gateway process: SIGHUP reads TLS files again, SIGTERM may wait before it drains."""

import json
import os
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from app.cli.credentials import Credentials
from app.cli.face_clients import get_status
from tests.support.certificates import Signed, sign
from tests.support.command_line import DEADLINE_S, Running, running

ALICE = "sip:alice@example.com"
LISTEN = ("--json", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")


@pytest.fixture(scope="module")
def sandbox_uri() -> Iterator[str]:
    with running("sandbox", "--listen", "127.0.0.1:0", deadline_s=600) as sandbox:
        yield sandbox.line_with("Sandbox notifier on ").split()[3].rstrip(",")


def serving(sandbox_uri: str, **environ: str) -> "Running":
    """A gateway whose log is JSON."""
    settings = {"TS_PRESENCE_SERVER": sandbox_uri, "TS_LOG_FORMAT": "json", **environ}
    return Running("serve", *LISTEN, deadline_s=3 * DEADLINE_S, **settings)


def event(command: Running, name: str) -> dict[str, str]:
    """The next event of that name in the log."""
    found: dict[str, str] = json.loads(command.line_with(f'"{name}"'))
    return found


def addresses(command: Running) -> dict[str, str]:
    found: dict[str, str] = json.loads(command.line_with('{"grpc"'))
    return found


def ready(http: str) -> int:
    """The HTTP status of the probe."""
    try:
        with urllib.request.urlopen(f"http://{http}/readyz", timeout=DEADLINE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def health(server: str) -> int:
    with Credentials().channel(server, DEADLINE_S) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S).status)


def replace(old: Signed, new: Signed) -> None:
    """Replaces the files of `old` by those of `new`."""
    old.cert_file.write_bytes(new.cert_file.read_bytes())
    old.key_file.write_bytes(new.key_file.read_bytes())


def shown(address: str) -> str:
    """The certificate that a server presents."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=DEADLINE_S).strip()


def test_hang_up_reads_tls_files_again(sandbox_uri: str, tmp_path: Path) -> None:
    """SIGHUP reads the files at once and logs the result: both addresses use renewed files from then on, and keep the
    last files if the new ones are unusable. The gateway goes on serving."""
    authority = sign(tmp_path, "authority")
    server, other = sign(tmp_path, "server", authority), sign(tmp_path, "other", authority)
    before, after = (each.cert_file.read_text().strip() for each in (server, other))
    files = {"TS_TLS_CERT_FILE": str(server.cert_file), "TS_TLS_KEY_FILE": str(server.key_file)}
    command = serving(sandbox_uri, **files)
    try:
        where = addresses(command)
        command.process.send_signal(signal.SIGHUP)
        event(command, "tls_files_unchanged")
        server.key_file.write_text("no key")
        command.process.send_signal(signal.SIGHUP)
        assert "TS_TLS_KEY_FILE" in event(command, "tls_files_unusable")["why"]
        assert {shown(where["grpc"]), shown(where["http"])} == {before}
        replace(server, other)
        command.process.send_signal(signal.SIGHUP)
        event(command, "tls_files_renewed")
        assert {shown(where["grpc"]), shown(where["http"])} == {after}
        assert command.stop() == 0
    finally:
        command.close()


def test_hang_up_without_tls_files(sandbox_uri: str) -> None:
    """Without TLS files SIGHUP logs that there are none, and ends neither the gateway nor its SIP worker."""
    command = serving(sandbox_uri)
    try:
        worker = int(event(command, "sip_worker_started")["pid"])
        where = addresses(command)
        os.kill(worker, signal.SIGHUP)
        command.process.send_signal(signal.SIGHUP)
        event(command, "no_tls_files")
        assert get_status("grpc", where["grpc"], ALICE, DEADLINE_S)["status"] == "REACHABLE"
        assert command.stop() == 0
        assert "sip_worker_died" not in "".join(command.seen)
    finally:
        command.close()


def test_a_hang_up_before_it_serves(sandbox_uri: str) -> None:
    """SIGHUP while the gateway starts does not end it."""
    command = serving(sandbox_uri)
    try:
        event(command, "sip_worker_started")
        command.process.send_signal(signal.SIGHUP)
        addresses(command)
        assert command.stop() == 0
    finally:
        command.close()


def test_it_serves_on_before_it_drains(sandbox_uri: str) -> None:
    """With TS_DRAIN_DELAY_S the gateway is not ready after SIGTERM, but goes on serving, on new connections too; a
    second signal ends it at once."""
    command = serving(sandbox_uri, TS_DRAIN_DELAY_S="600")
    try:
        where = addresses(command)
        assert (ready(where["http"]), health(where["grpc"])) == (200, health_pb2.HealthCheckResponse.SERVING)
        command.process.send_signal(signal.SIGTERM)
        event(command, "gateway_leaving")
        assert (ready(where["http"]), health(where["grpc"])) == (503, health_pb2.HealthCheckResponse.NOT_SERVING)
        for face in ("grpc", "rest", "soap"):
            address = where["grpc" if face == "grpc" else "http"]
            assert get_status(face, address, ALICE, DEADLINE_S)["status"] == "REACHABLE"
        assert command.stop() == 1
        assert "gateway_stopping" not in "".join(command.seen)
    finally:
        command.close()


def test_it_drains_after_the_delay(sandbox_uri: str) -> None:
    """After TS_DRAIN_DELAY_S the gateway ends as it does without a delay."""
    command = serving(sandbox_uri, TS_DRAIN_DELAY_S="0.2")
    try:
        addresses(command)
        assert command.stop() == 0
        log = "".join(command.seen)
        assert 0 < log.index("gateway_leaving") < log.index("gateway_stopping") < log.index("gateway_stopped")
    finally:
        command.close()
