"""Logs that can be searched and counts that can be scraped.

Logs are events with fields (structlog), on standard error, as readable lines or JSON. Metrics are Prometheus's.
Invariants: no address in a metric's labels (they are unbounded and personal); each label's values are a closed set.

Deliberately absent: tracing, and anything that decides.
"""

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from app.domain import DocumentUnreadable, PresenceMisconfigured, TerminalAddress, TerminalStatusError

_log = structlog.get_logger()


def configure_logging(level: str, style: str) -> None:
    """Sends every log event of `level` and above to standard error; `style` is auto, console or json."""
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if as_json else structlog.processors.UnicodeDecoder(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # gRPC logs a traceback for each request that is no protobuf, which any stranger may send.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    # Libraries that log by the standard library: their warnings reach the same stream.
    logging.basicConfig(
        level=max(number, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )


class Metrics:
    """The gateway's metrics, in a registry of its own; the use cases' `Meter`."""

    def __init__(self) -> None:
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
        self._fetched: dict[str, Counter] = {}

    def fetched(
        self, outcome: str, address: TerminalAddress, seconds: float, error: TerminalStatusError | None
    ) -> None:
        """See `app.service.Meter`. What the operator must mend is logged; the rest is only counted."""
        counter = self._fetched.get(outcome)
        if counter is None:
            counter = self._fetched[outcome] = self._fetches.labels(outcome)
        counter.inc()
        self._seconds.observe(seconds)
        if isinstance(error, DocumentUnreadable):
            self._unreadable.labels(error.details.get("reason", "unknown")).inc()
        if isinstance(error, (DocumentUnreadable, PresenceMisconfigured)):
            _log.warning("fetch_failed", code=error.code, message=str(error), **error.details)

    def worker_restarted(self) -> None:
        """One SIP worker was replaced."""
        self._restarts.inc()

    def text(self, *, ready: bool) -> bytes:
        """The metrics as Prometheus scrapes them."""
        self._ready.set(ready)
        return generate_latest(self._registry)
