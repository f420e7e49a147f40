"""Rows about answers from live watches: the gateway beside servers that do nothing.

One stream keeps WATCHED terminals watched, so no query needs SIP. The baselines are a grpc.aio handler of the same
types and a FastAPI handler on the same uvicorn settings. The same callers query the gateway and the baseline in turn,
in short blocks. The baseline of SOAP is Spyne's in-process call of a no-op, without server, connection and caller; it
is measured once. A rate is the median of the blocks, a ratio the median of the pairs of blocks.
"""

import contextlib
import statistics
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from bench.processes import BenchError, gateway, noop, own_bytes, peak_bytes, run, world
from bench.programs.load import MAX_AGE_S
from bench.row import Row, Run, compared_pairs, information, judged

ROWS = (
    "live.grpc",
    "live.grpc_cpu",
    "live.rest",
    "live.rest_cpu",
    "live.soap",
    "live.soap_cpu",
    "live.group",
    "live.group_memory",
)

LEAST = {"grpc": 0.75, "rest": 0.6, "soap": 0.45}
LEAST_GROUP_PER_S, MOST_GROUP_MB = 5.0, 60.0
WATCHED, ASKED, SPYNE_CALLS, GROUP_CALLS = 1000, 6000, 2000, 30
LIMIT_S = 60.0

Figures = list[dict[str, Any]]
Server = tuple[str, str, int]
"""Arguments of `bench.programs.load`: face, address, process."""


def measure(bench: Run) -> list[Row]:
    """Measures the wanted rows, and their baselines."""
    faces = [face for face in LEAST if bench.wants(f"live.{face}")]
    rows: list[Row] = []
    if faces:
        bench.progress("answers from live watches")
        with _servers(bench, "live") as servers:
            for face in faces:
                figures = _asked(bench, face, servers)
                rows += _face_rows(face, figures["own"], figures["other"])
    if bench.wants("live.group"):
        bench.progress(f"getStatusForGroup of {bench.sized(WATCHED)}")
        with _servers(bench, "group") as servers:
            _, http, pid = servers["soap"]
            rows += _group_rows(http, pid, bench.sized(WATCHED), bench.sized(GROUP_CALLS))
    return rows


@contextlib.contextmanager
def _servers(bench: Run, name: str) -> Iterator[dict[str, Server]]:
    """A gateway with its watches, and the baselines, newly started: two starts of a server differ by up to a tenth."""
    with (
        world() as around,
        noop("grpc") as (noop_pid, noop_grpc),
        noop("rest") as (noop_rest_pid, noop_http),
        gateway(bench.own_folder(name), around.sip_port, setups_per_s=0, soap_max_age_s=MAX_AGE_S) as (pid, grpc, http),
    ):
        around.do("hold", grpc=grpc, count=bench.sized(WATCHED))
        yield {
            "grpc": ("grpc", grpc, pid),
            "grpc noop": ("grpc", noop_grpc, noop_pid),
            "rest": ("rest", http, pid),
            "rest noop": ("noop", noop_http, noop_rest_pid),
            "soap": ("soap", http, pid),
        }


def _asked(bench: Run, face: str, servers: dict[str, Server]) -> dict[str, Figures]:
    size = ("--count", bench.sized(ASKED), "--concurrency", bench.arguments.concurrency, "--single", 1)
    beside = ("--beside", *servers[f"{face} noop"]) if f"{face} noop" in servers else ()
    figures: Any = run(
        "bench.programs.load", *servers[face], *size, "--watched", bench.sized(WATCHED), *beside, limit_s=LIMIT_S
    )
    if not beside:
        calls = run("bench.programs.noop", "spyne", bench.sized(SPYNE_CALLS), limit_s=LIMIT_S)
        figures = {"own": [figures], "other": [calls]}
    found: dict[str, Figures] = figures
    return found


def _face_rows(face: str, own: Figures, noops: Figures) -> list[Row]:
    rates, noop_rates = [[figures["count"] / figures["seconds"] for figures in each] for each in (own, noops)]
    return [
        compared_pairs(f"live.{face}", rates, noop_rates, "1/s", least=LEAST[face]),
        information(f"live.{face}_cpu", _cpu_us(own), "µs", baseline=_cpu_us(noops)),
    ]


def _cpu_us(each: Figures) -> float:
    seconds = sum(figures["cpu_seconds"] if "cpu_seconds" in figures else figures["seconds"] for figures in each)
    return float(seconds / sum(figures["count"] for figures in each) * 1e6)


def _group_rows(http: str, pid: int, watched: int, calls: int) -> list[Row]:
    """Calls one after the other, each with all addresses; memory is the gateway's peak minus its memory before."""
    addresses = "".join(
        f"<loc:addresses>sip:terminal-{number}@bench.example.com</loc:addresses>" for number in range(watched)
    )
    envelope = (
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
        ' xmlns:loc="http://www.csapi.org/schema/parlayx/terminal_status/v2_2/local"><soapenv:Body>'
        f"<loc:getStatusForGroup>{addresses}</loc:getStatusForGroup></soapenv:Body></soapenv:Envelope>"
    ).encode()
    headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'}
    request = urllib.request.Request(f"http://{http}/parlayx/TerminalStatus", envelope, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    before_bytes, seconds = own_bytes(pid), []
    peak_bytes(pid, forget=True)
    for _ in range(calls):
        started_s = time.perf_counter()
        try:
            with opener.open(request, timeout=LIMIT_S) as response:
                answer = response.read()
        except OSError as error:  # the base class of urllib's errors
            raise BenchError(f"getStatusForGroup failed: {error}") from None
        seconds.append(time.perf_counter() - started_s)
        if answer.count(b">Reachable<") != watched:
            raise BenchError(f"getStatusForGroup answered {answer[:1000]!r}")
    extra_bytes = peak_bytes(pid) - before_bytes
    return [
        judged("live.group", 1 / statistics.median(seconds), "1/s", least=LEAST_GROUP_PER_S),
        judged("live.group_memory", extra_bytes / 1e6, "MB", most=MOST_GROUP_MB),
    ]
