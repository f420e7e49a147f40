"""The log: events with fields (structlog) on standard error, as readable lines or as JSON.

A line that is logged while a call is handled names the call by `x_correlator`.

Warnings of libraries that use the standard library's logging appear in the same form.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from app.domain import x_correlator
from app.domain.errors import TerminalStatusError

FAILURE_LOG_S = 1.0
"""Shortest time between two log lines about the same kind of failed fetch."""

_log = structlog.get_logger()


def configure_logging(level: str, style: str) -> None:
    """Logs every event of `level` and above; `style` is `auto` (JSON unless standard error is a terminal), `console`
    or `json`."""
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    head: list[structlog.typing.Processor] = [
        _add_x_correlator,
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
    # gRPC logs a traceback for each request that cannot be parsed as protobuf, and anybody can send such requests.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*head, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler])


def _add_x_correlator(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    current = x_correlator.current()
    if current is not None:
        event.setdefault("x_correlator", current.text)
        if current.invalid:
            event["x_correlator_replaced"] = True
    return event


@dataclass(slots=True)
class _Logged:
    at_s: float
    suppressed: int = 0


class FailureLog:
    """Logs failed fetches, each kind of failure at most once in FAILURE_LOG_S, so that a flood of queries cannot fill
    the log. The next line says how many were suppressed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged: dict[tuple[str, str], _Logged] = {}

    def add(self, error: TerminalStatusError) -> None:
        """Logs one failed fetch, or counts it as suppressed. Failures with the same error code and the same SIP status
        or reason are of one kind."""
        now_s = self._clock()
        kind = error.code, error.details.get("sip_code") or error.details.get("reason", "")
        last = self._logged.get(kind)
        if last is not None and now_s - last.at_s < FAILURE_LOG_S:
            last.suppressed += 1
            return
        suppressed = {"suppressed": last.suppressed} if last is not None and last.suppressed else {}
        _log.warning("fetch_failed", code=error.code, message=str(error), **suppressed, **error.details)
        self._logged[kind] = _Logged(now_s)
