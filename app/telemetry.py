"""Logs that can be searched and counts that can be scraped.

Logs are events with fields (structlog), on standard error, as readable lines or JSON. Metrics are Prometheus's.
Lines of libraries that log by the standard library leave in the same form. What can happen with every question is
logged at most once in a second for each kind, with the number of those left out, so that a flood cannot fill the log.
Invariants: no address in a metric's labels (they are unbounded and personal); each label's values are a closed set.

Deliberately absent: tracing, and anything that decides.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.domain.errors import DocumentUnreadable, PresenceMisconfigured, TerminalStatusError, WatcherUnauthenticated

FAILURE_LOG_S = 1.0
"""Least time between two log lines about the same kind of failed fetch."""

_OPERATORS_TO_MEND = (DocumentUnreadable, PresenceMisconfigured, WatcherUnauthenticated)

_log = structlog.get_logger()


def configure_logging(level: str, style: str) -> None:
    """Sends every log event of `level` and above to standard error; `style` is auto, console or json."""
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    head: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    tail = [structlog.processors.format_exc_info if as_json else structlog.processors.UnicodeDecoder(), renderer]
    structlog.configure(
        processors=[*head, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # gRPC logs a traceback for each request that is no protobuf, which any stranger may send.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    # Libraries that log by the standard library: their warnings reach the same stream in the same form.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*head, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler])


@dataclass(slots=True)
class _Logged:
    at_s: float
    suppressed: int = 0


class _Read(Collector):
    def __init__(self, name: str, meaning: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._name, self._meaning, self._label, self._read = name, meaning, label, read

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for value, number in sorted(self._read().items()):
            family.add_metric([value], number)
        return [family]

    def _family(self) -> CounterMetricFamily | GaugeMetricFamily:
        if self._name.endswith("_total"):
            return CounterMetricFamily(self._name.removesuffix("_total"), self._meaning, labels=[self._label])
        return GaugeMetricFamily(self._name, self._meaning, labels=[self._label])


class Metrics:
    """The gateway's metrics, in a registry of its own; the use cases' `Meter`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged: dict[tuple[str, str], _Logged] = {}
        self._registry = CollectorRegistry()
        self._fetches = Counter(
            "terminal_status_fetches",
            "SUBSCRIBEs with Expires 0, by what came of them: a status or an error code.",
            ["outcome"],
            registry=self._registry,
        )
        self._unreadable = Counter(
            "terminal_status_unreadable_documents",
            "Presence documents that could not be read, by reason.",
            ["reason"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "terminal_status_fetch_seconds",
            "Time from question to answer or failure of one SUBSCRIBE.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self._registry,
        )
        self._restarts = Counter(
            "terminal_status_sip_worker_restarts", "SIP workers that died and were replaced.", registry=self._registry
        )
        self._ready = Gauge("terminal_status_ready", "1 while questions can be asked.", registry=self._registry)
        self._lag = Histogram(
            "terminal_status_event_lag_seconds",
            "Time from a NOTIFY's arrival in a SIP worker to the core.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
            registry=self._registry,
        )
        self._attempts = Counter(
            "terminal_status_delivery_attempts",
            "Attempts to deliver a notification, by outcome.",
            ["outcome"],
            registry=self._registry,
        )
        self._attempt_seconds = Histogram(
            "terminal_status_delivery_attempt_seconds",
            "Time of one attempt to deliver a notification.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self._registry,
        )
        self._fetched: dict[str, Counter] = {}

    def fetched(self, outcome: str, seconds: float, error: TerminalStatusError | None) -> None:
        """See `app.ports.Meter`. What the operator must mend is logged; the rest is only counted."""
        counter = self._fetched.get(outcome)
        if counter is None:
            counter = self._fetched[outcome] = self._fetches.labels(outcome)
        counter.inc()
        self._seconds.observe(seconds)
        if isinstance(error, DocumentUnreadable):
            self._unreadable.labels(error.details.get("reason", "unknown")).inc()
        if isinstance(error, _OPERATORS_TO_MEND):
            self._log_failure(error)

    def _log_failure(self, error: TerminalStatusError) -> None:
        now_s = self._clock()
        kind = error.code, error.details.get("sip_code") or error.details.get("reason", "")
        last = self._logged.get(kind)
        if last is not None and now_s - last.at_s < FAILURE_LOG_S:
            last.suppressed += 1
            return
        suppressed = {"suppressed": last.suppressed} if last is not None and last.suppressed else {}
        _log.warning("fetch_failed", code=error.code, message=str(error), **suppressed, **error.details)
        self._logged[kind] = _Logged(now_s)

    def worker_restarted(self) -> None:
        """One SIP worker was replaced."""
        self._restarts.inc()

    def lag(self, seconds: float) -> None:
        """How long one observation took from the NOTIFY to the core."""
        self._lag.observe(seconds)

    def attempted(self, outcome: str, seconds: float) -> None:
        """One attempt to deliver. An outcome's HTTP status counts by its hundred, so that labels stay few."""
        kind = f"{outcome[:6]}xx" if outcome.startswith("http-") else outcome
        self._attempts.labels(kind).inc()
        self._attempt_seconds.observe(seconds)

    def reads(self, name: str, meaning: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """A metric that is read when it is scraped, by the label's values; a counter where `name` ends in `_total`."""
        self._registry.register(_Read(name, meaning, label, read))

    def text(self, *, ready: bool) -> bytes:
        """The metrics as Prometheus scrapes them."""
        self._ready.set(ready)
        return generate_latest(self._registry)
