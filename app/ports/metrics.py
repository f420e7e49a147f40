"""What the use cases count (implemented by `app/metrics.py`)."""

from typing import Protocol

from app.domain.errors import TerminalStatusError


class Meter(Protocol):
    """Counts fetches for the metrics."""

    def fetched(self, outcome: str, seconds: float, error: TerminalStatusError | None) -> None:
        """Counts one fetch. `outcome` is a Status name or the error's code; `seconds` is how long the fetch took."""
