"""The processes of the bench: starts and stops presence servers, gateways and programs, and reads their CPU and memory.

Invariants: everything listens on 127.0.0.1 at a port that the system chose; every process that was started is stopped;
every wait has a deadline. CPU and memory are read from /proc, so on Linux only.
"""

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 20.0
STOP_LIMIT_S = 10.0
NOOP_PATH = "/noop"
PUBLISH = "/terminalstatus.v1.Noop/Publish"
"""What the no-op servers of `programs/noop.py` answer beside the gateway's own methods."""

_SCENARIO = Path(__file__).with_name("notifier.xml")
_WATCH_SCENARIO = Path(__file__).with_name("watch.xml")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LONGEST_BENCH_S = 900

_PROBE = (
    "SUBSCRIBE sip:probe@bench.example.com SIP/2.0\r\n"
    "Via: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bKprobe{number}\r\n"
    "Max-Forwards: 70\r\n"
    "From: <sip:probe@localhost>;tag=probe\r\n"
    "To: <sip:probe@bench.example.com>\r\n"
    "Call-ID: probe-{number}\r\n"
    "CSeq: 1 SUBSCRIBE\r\n"
    "Contact: <sip:probe@127.0.0.1:{port}>\r\n"
    "Event: presence\r\n"
    "Expires: 0\r\n"
    "Content-Length: 0\r\n\r\n"
)


class BenchError(Exception):
    """The bench cannot continue; the message says why."""


def sipp_installed() -> bool:
    """Whether SIPp is installed."""
    return shutil.which("sipp") is not None


@contextlib.contextmanager
def notifier(folder: Path, *, keeps_subscriptions: bool = False, again_ms: int = 3_600_000) -> Iterator[int]:
    """SIPp as the presence server, with its log in `folder`; yields its port on 127.0.0.1. Raises BenchError.

    With `keeps_subscriptions` it accepts lasting subscriptions, and sends a NOTIFY in each every `again_ms`; else only
    fetches.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    log = (folder / "sipp.log").open("wb")
    scenario = ["-sf", str(_WATCH_SCENARIO), "-d", str(again_ms)] if keeps_subscriptions else ["-sf", str(_SCENARIO)]
    command = ["sipp", *scenario, "-i", "127.0.0.1", "-bind_local", "-ci", "127.0.0.1", "-p", str(port)]
    # SIPp forgets a finished call at once, has room for a burst in its socket, and ends itself if the bench dies.
    command += ["-deadcall_wait", "0", "-buff_size", "4194304", "-nostdin", "-timeout", f"{_LONGEST_BENCH_S}s"]
    with log, _running(command, cwd=folder, stdout=log, stderr=log) as process:
        _until_notified(process, port, folder / "sipp.log")
        yield port


@contextlib.contextmanager
def gateway(
    folder: Path, notifier_port: int, *, limit_s: float = START_LIMIT_S, **settings: object
) -> Iterator[tuple[int, str, str]]:
    """The gateway as an operator runs it; yields its process id, gRPC address and HTTP address. Raises BenchError.

    `settings` replace or extend the bench's settings, by field name. The default database is in `folder`.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TS_")}
    environment |= {
        "TS_PRESENCE_SERVER": f"sip:127.0.0.1:{notifier_port};transport=udp",
        "TS_PROBE_EVERY_S": "0",  # SIPp's scenario does not answer OPTIONS
        "TS_GRPC_LISTEN": "127.0.0.1:0",
        "TS_HTTP_LISTEN": "127.0.0.1:0",
        "TS_DATABASE_URL": database_url(folder),
        "TS_LOG_LEVEL": "warning",
        # A datagram lost on a busy machine is sent again after 0.5 s: count it as latency, not as a lost fetch.
        "TS_FETCH_TIMEOUT_MS": "4000",
    }
    environment |= {f"TS_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "app.cli", "serve", "--json"]
    with _running(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        where = _said(process, "The gateway", limit_s)
        yield process.pid, where["grpc"], where["http"]


def database_url(folder: Path) -> str:
    """The URL of the database of a gateway in `folder`."""
    return f"sqlite:///{folder}/bench.sqlite3"


@contextlib.contextmanager
def noop(kind: str) -> Iterator[tuple[int, str]]:
    """A server of `programs/noop.py`; yields its process id and address. Raises BenchError."""
    with _running([sys.executable, "-m", "bench.programs.noop", kind], cwd=ROOT, stdout=subprocess.PIPE) as process:
        yield process.pid, _said(process, f"bench.programs.noop {kind}", START_LIMIT_S)["address"]


class World:
    """A process of `programs/world.py`: runs commands, and returns their results."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        ports = _said(process, "bench.programs.world", START_LIMIT_S)
        self.sip_port: int = ports["sip"]
        self.url = f"http://127.0.0.1:{ports['http']}"
        self.other_url = f"http://127.0.0.1:{ports['other']}"

    def do(self, what: str, *, limit_s: float = 120.0, **arguments: object) -> Any:
        """Runs a command for at most `limit_s`, and returns its result. Raises BenchError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchError("bench.programs.world ended; see its last output above.") from None
        return _said(self._process, f"bench.programs.world ({what})", limit_s)


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A presence server, applications and readers. Raises BenchError."""
    command = [sys.executable, "-m", "bench.programs.world"]
    with _running(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        yield World(process)


def _said(process: subprocess.Popen[bytes], who: str, limit_s: float) -> Any:
    """The JSON of the next line that the process prints. Raises BenchError."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], limit_s)[0]:
        raise BenchError(f"{who} printed nothing for {limit_s:.0f} s.")
    line = process.stdout.readline()
    if not line:
        raise BenchError(f"{who} ended; see its last output above.")
    return json.loads(line)


def run(module: str, *arguments: object, limit_s: float) -> Any:
    """Runs `python -m module` for at most `limit_s` and returns the JSON it prints. Raises BenchError."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with _running(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            out, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{module} {' '.join(map(str, arguments))} took over {limit_s:.0f} s.") from None
    if process.returncode != 0:
        raise BenchError(f"{module} {' '.join(map(str, arguments))} failed; see its last output above.")
    return json.loads(out)


def cpu_seconds(pid: int) -> float:
    """CPU time of the process and its descendants, in user and system mode, including ended threads."""
    return sum(sum(map(int, fields[11:13])) for fields in _family(pid).values()) / _TICKS


def resident_bytes(pid: int) -> int:
    """Resident memory of the process and its descendants; shared memory counts for each of them."""
    return sum(int(fields[21]) for fields in _family(pid).values()) * _PAGE_BYTES


def peak_bytes(pid: int, *, forget: bool = False) -> int:
    """Peak resident memory of the process itself; `forget` resets the peak to the present value."""
    if forget:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def own_bytes(pid: int) -> int:
    """Resident memory of the process itself."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    return [member for member in _family(pid) if member != pid]


def _family(pid: int) -> dict[int, list[str]]:
    """/proc/PID/stat from the third field on, of `pid` and its descendants."""
    everyone: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                everyone[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    family = {pid: everyone[pid]}
    grown = True
    while grown:
        young = {child: fields for child, fields in everyone.items() if int(fields[1]) in family}
        grown = not young.keys() <= family.keys()
        family |= young
    return family


@contextlib.contextmanager
def _running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, **{"stdin": subprocess.DEVNULL, **options}) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _until_notified(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Sends SUBSCRIBEs until a NOTIFY arrives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(("127.0.0.1", port))
        sock.settimeout(0.05)
        deadline_s = time.monotonic() + START_LIMIT_S
        number = 0
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                raise BenchError(f"SIPp ended at once:\n{log.read_text(errors='replace').strip()}")
            number += 1
            try:
                sock.send(_PROBE.format(port=sock.getsockname()[1], number=number).encode())
                while True:
                    packet = sock.recv(65536)
                    if packet.startswith(b"NOTIFY "):
                        sock.send(_ok_to(packet))
                        return
            except TimeoutError:
                continue
            except ConnectionRefusedError:  # not listening yet
                time.sleep(0.01)
    raise BenchError(f"SIPp sent no NOTIFY within {START_LIMIT_S:.0f} s.")


def _ok_to(notify: bytes) -> bytes:
    head = notify.partition(b"\r\n\r\n")[0].split(b"\r\n")
    echoed = [line for line in head if line.partition(b":")[0] in (b"Via", b"From", b"To", b"Call-ID", b"CSeq")]
    return b"\r\n".join([b"SIP/2.0 200 OK", *echoed, b"Content-Length: 0", b"", b""])
