"""What is reported of a watch's liveness: LIVE, or STALE (once observed) or UNKNOWN with the reason."""

from app.domain.errors import TerminalStatusError
from app.domain.statuses import Liveness
from app.sip.machine.actions import ReportLiveness

_LIVE = (Liveness.LIVE, "")


class LivenessReport:
    """The reason why the watch is not LIVE, and the last report. `observed`: whether a status was ever observed."""

    __slots__ = ("_reported", "error", "observed", "reason")

    def __init__(self, *, observed: bool) -> None:
        self.observed = observed
        self.reason = ""
        """Why the watch is not LIVE; empty while it is."""
        self.error: TerminalStatusError | None = None
        self._reported: tuple[Liveness, str] | None = None

    def liveness(self, *, live: bool) -> Liveness:
        """LIVE where `live`, otherwise what the last observation is still worth."""
        if live:
            return Liveness.LIVE
        return Liveness.STALE if self.observed else Liveness.UNKNOWN

    def change(self, *, live: bool) -> ReportLiveness | None:
        """The report that is now due; None where nothing has changed since the last one."""
        if live:
            report = _LIVE
        else:
            report = (Liveness.STALE if self.observed else Liveness.UNKNOWN, self.reason or "subscribing")
        if report == self._reported:
            return None
        self._reported = report
        return ReportLiveness(liveness=report[0], reason=report[1], error=None if live else self.error)
