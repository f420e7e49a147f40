"""What a Parlay X notification promises its sink (3GPP TS 29.199-8).

statusEnd is sent when the duration is over or the count is reached; a statusError without an address ends the whole
subscription. A client takes the response of endNotification for the end of its callbacks, so nothing is sent after it.
"""

from app.domain.records import NotificationKind
from app.domain.sink_contracts import SinkContract
from app.domain.sinks import EndReason

SOAP_CONTRACT = SinkContract(
    ends={
        EndReason.EXPIRED: NotificationKind.ENDED,
        EndReason.COUNT_REACHED: NotificationKind.ENDED,
        EndReason.CLIENT_DELETED: NotificationKind.ERROR,
    },
    withdrawn_at=frozenset({EndReason.CANCELLED}),
    last_error_ends=True,
)
