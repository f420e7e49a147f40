"""What is reported of a watch's liveness: LIVE, or STALE (once observed) or UNKNOWN with the reason."""

from app.domain.errors import TerminalStatusError
from app.domain.statuses import Liveness
from app.sip.machine.actions import ReportLiveness


class LivenessReport:
    """The reason why the watch is not LIVE, and the last report. `observed`: whether a status was ever observed."""

    __slots__ = ("_reported", "error", "observed", "reason")

    def __init__(self, *, observed: bool) -> None:
        self.observed = observed
        self.reason = ""
        self.error: TerminalStatusError | None = None
        self._reported: tuple[Liveness, str] | None = None

    def explain(self, reason: str, error: TerminalStatusError | None) -> None:
        """Sets why the watch is not LIVE; empty while it is."""
        self.reason, self.error = reason, error

    def liveness(self, *, live: bool) -> Liveness:
        """LIVE where `live`, otherwise what the last observation is still worth."""
        if live:
            return Liveness.LIVE
        return Liveness.STALE if self.observed else Liveness.UNKNOWN

    def change(self, *, live: bool) -> ReportLiveness | None:
        """The report that is now due; None where nothing has changed since the last one."""
        liveness = self.liveness(live=live)
        report = (liveness, "" if live else self.reason or "subscribing")
        if report == self._reported:
            return None
        self._reported = report
        return ReportLiveness(liveness=liveness, reason=report[1], error=None if live else self.error)
