"""Every metric of the gateway, with its name, its meaning and the source of its value.

`Metrics` counts events when they happen; `add_readings` adds figures that other parts keep, and that are read at each
scrape.

Invariants: no label has an address (addresses are personal data, and their number is not bounded); the values of each
label are a closed set.

Deliberately absent: who may read the metrics (`rest/metrics.py`).
"""

import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.auth.failures import REASONS
from app.core.use_cases import UseCases
from app.domain.errors import DocumentUnreadable, PresenceMisconfigured, TerminalStatusError, WatcherUnauthenticated
from app.logs import FailureLog
from app.sip.watcher import SipWatcher

_OPERATOR_MUST_ACT = (DocumentUnreadable, PresenceMisconfigured, WatcherUnauthenticated)


class _Reading(Collector):
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
    """Counts events, in a registry of its own. Implements `app.ports.metrics.Meter`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._failure_log = FailureLog(clock)
        self._registry = CollectorRegistry()
        self._fetches = Counter(
            "terminal_status_fetches",
            "Fetches (SUBSCRIBE with Expires: 0), by outcome: a status or an error code.",
            ["outcome"],
            registry=self._registry,
        )
        self._unreadable = Counter(
            "terminal_status_unreadable_documents",
            "Presence documents of fetches that could not be read, by reason.",
            ["reason"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "terminal_status_fetch_seconds",
            "Time of one fetch, from the query to its result or failure.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self._registry,
        )
        self._restarts = Counter(
            "terminal_status_sip_worker_restarts", "SIP workers that died and were replaced.", registry=self._registry
        )
        self._ready = Gauge("terminal_status_ready", "1 while the gateway answers queries.", registry=self._registry)
        self._lag = Histogram(
            "terminal_status_event_lag_seconds",
            "Time from a NOTIFY's arrival in a SIP worker to its arrival in the main process.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
            registry=self._registry,
        )
        self._attempts = Counter(
            "terminal_status_delivery_attempts",
            "Delivery attempts, by outcome.",
            ["outcome"],
            registry=self._registry,
        )
        self._attempt_seconds = Histogram(
            "terminal_status_delivery_attempt_seconds",
            "Time of one delivery attempt.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self._registry,
        )
        self._fetched: dict[str, Counter] = {}

    def fetched(self, outcome: str, seconds: float, error: TerminalStatusError | None) -> None:
        """See `app.ports.metrics.Meter`. Failures that only the operator can repair are logged too."""
        counter = self._fetched.get(outcome)
        if counter is None:
            counter = self._fetched[outcome] = self._fetches.labels(outcome)
        counter.inc()
        self._seconds.observe(seconds)
        if isinstance(error, DocumentUnreadable):
            self._unreadable.labels(error.details.get("reason", "unknown")).inc()
        if isinstance(error, _OPERATOR_MUST_ACT):
            self._failure_log.add(error)

    def count_worker_restart(self) -> None:
        """Counts one SIP worker that died and was replaced."""
        self._restarts.inc()

    def observe_lag(self, seconds: float) -> None:
        """Records how long one NOTIFY took from a SIP worker to the main process."""
        self._lag.observe(seconds)

    def count_attempt(self, outcome: str, seconds: float) -> None:
        """Counts one delivery attempt. HTTP statuses are counted by their class (`http-5xx`), to keep the label's
        values few."""
        kind = f"{outcome[:6]}xx" if outcome.startswith("http-") else outcome
        self._attempts.labels(kind).inc()
        self._attempt_seconds.observe(seconds)

    def add_reading(self, name: str, meaning: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Adds a metric whose values `read` returns at each scrape, by the label's values. It is a counter if `name`
        ends in `_total`, otherwise a gauge."""
        self._registry.register(_Reading(name, meaning, label, read))

    def text(self, *, ready: bool) -> bytes:
        """All metrics in Prometheus' text format."""
        self._ready.set(ready)
        return generate_latest(self._registry)


def add_readings(metrics: Metrics, watcher: SipWatcher, use_cases: UseCases) -> None:
    """Adds the figures that the SIP side and the use cases keep."""
    _add_sip_readings(metrics, watcher)
    _add_use_case_readings(metrics, use_cases)


def _add_sip_readings(metrics: Metrics, watcher: SipWatcher) -> None:
    add = metrics.add_reading
    counts = watcher.counts
    add("terminal_status_sip_subscriptions", "Watches, by state.", "state", lambda: counts().states)
    add(
        "terminal_status_sip_failures_total",
        "SUBSCRIBEs of watches that failed, by SIP status; local- marks a status that PJSIP produced itself, such as "
        "local-408 after a timeout.",
        "code",
        lambda: counts().failures,
    )
    add(
        "terminal_status_sip_messages_total",
        "SIP messages of watches: SUBSCRIBEs sent, NOTIFYs received; and NOTIFYs of watches and fetches whose document "
        "arrived cut.",
        "kind",
        lambda: {
            "subscribe": counts().subscribes_sent,
            "notify": counts().notifies_received,
            "cut": counts().cut_messages,
        },
    )
    add(
        "terminal_status_sip_refused_total",
        "SIP messages that were refused or ignored, by reason: sent from elsewhere, for another dialog, or a NOTIFY "
        "that could not be used.",
        "reason",
        lambda: counts().refused,
    )
    add(
        "terminal_status_sip_headers_cut_total",
        "Header fields that were cut from SIP messages because they cannot be parsed, by name; the rest was used.",
        "header",
        lambda: counts().cut_headers,
    )
    add(
        "terminal_status_route_up",
        "1 while the presence server answers, by its place in TS_PRESENCE_SERVER.",
        "route",
        lambda: _by_route(counts().routes_up),
    )
    add(
        "terminal_status_route_turns_total",
        "How often a presence server stopped or resumed answering, by its place in TS_PRESENCE_SERVER.",
        "route",
        lambda: _by_route(watcher.route_changes),
    )
    add(
        "terminal_status_sip_refreshes_without_notify_total",
        "Refreshes of watches that the presence server accepted without sending a NOTIFY, by its place in "
        "TS_PRESENCE_SERVER.",
        "route",
        lambda: _by_route(counts().omitted),
    )


def _add_use_case_readings(metrics: Metrics, use_cases: UseCases) -> None:
    add = metrics.add_reading
    add(
        "terminal_status_unreadable_notifications_total",
        "Presence documents of watches that could not be read, by reason.",
        "reason",
        lambda: use_cases.registry.unreadable_counts,
    )
    add(
        "terminal_status_watches_contradicted_total",
        "LIVE watches that were refreshed at once because a newer fetch gave another status.",
        "by",
        lambda: {"fetch": use_cases.registry.contradictions},
    )
    add(
        "terminal_status_usage_records_dropped_total",
        "Usage records lost because the database was unavailable for too long.",
        "kind",
        lambda: {"any": use_cases.usage.dropped},
    )
    add(
        "terminal_status_authentication_failures_total",
        "Calls refused for their credentials: " + "; ".join([f"{name}, {why}" for name, why in REASONS.items()]) + ".",
        "reason",
        lambda: use_cases.auth.failures.counts,
    )
    add(
        "terminal_status_core",
        "Figures of the core: terminals, active subscriptions, open streams, and changes waiting to be stored.",
        "what",
        use_cases.engine.figures,
    )


def _by_route(values: Iterable[float]) -> dict[str, float]:
    """Each route's value by its place in TS_PRESENCE_SERVER, from 1."""
    return {str(number): float(value) for number, value in enumerate(values, start=1)}
