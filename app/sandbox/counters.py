"""What the sandbox counts: SUBSCRIBEs, NOTIFYs and everything else, bounded in size."""

from collections import Counter
from dataclasses import dataclass, field

MAX_COUNTED_ADDRESSES = 100_000


@dataclass(slots=True, kw_only=True)
class Counters:
    """Counts since the start. Retransmissions are counted in `other` only."""

    subscribes: Counter[str] = field(default_factory=Counter)
    """New SUBSCRIBEs by address, with refreshes and refused SUBSCRIBEs. The address is "other" above
    MAX_COUNTED_ADDRESSES."""
    notifies: Counter[str] = field(default_factory=Counter)
    """NOTIFYs sent, by address."""
    notify_answers: Counter[int] = field(default_factory=Counter)
    """Final responses to NOTIFYs, by SIP status; 0 is a NOTIFY without a response."""
    other: Counter[str] = field(default_factory=Counter)
    """`dropped`, `failed`, `retransmitted SUBSCRIBE`, `retransmitted NOTIFY`, and other requests by method."""

    def count_subscribe(self, address: str) -> None:
        _count(self.subscribes, address)

    def count_notify(self, address: str) -> None:
        _count(self.notifies, address)


def _count(counter: Counter[str], address: str) -> None:
    counter[address if address in counter or len(counter) < MAX_COUNTED_ADDRESSES else "other"] += 1
