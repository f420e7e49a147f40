"""How delivery attempts end.

Invariants: the values are stored. Reading never fails: a value that this version does not know is UNKNOWN.
"""

import enum
from typing import Self


class DeliveryOutcome(enum.Enum):
    """How a delivery attempt ended."""

    UNKNOWN = ""
    """Written by another version of the gateway."""
    DELIVERED = "delivered"
    LISTED = "listed"
    """The subscription has no endpoint: its notifications are only listed."""
    NOT_SENT = "not-sent"
    """The format of the sink has no word for this notification."""
    HTTP_ERROR = "http-error"
    """The sink answered with an HTTP status other than 2xx."""
    SOAP_FAULT = "soap-fault"
    """The sink answered with a SOAP fault and HTTP status 200."""
    TIMED_OUT = "timed-out"
    CONNECTION_REFUSED = "refused"
    UNREACHABLE = "unreachable"
    CONNECTION_RESET = "reset"
    NAME_NOT_RESOLVED = "dns"
    TLS_FAILED = "tls"
    MALFORMED_RESPONSE = "malformed"
    ADDRESS_FORBIDDEN = "forbidden-address"
    SINK_REFUSED = "sink-refused"
    """The operator's rules no longer allow the sink."""
    SUBSCRIPTION_ENDED = "gone"
    TOKEN_EXPIRED = "token-expired"  # noqa: S105  # not a secret
    SECRET_UNREADABLE = "secret-unreadable"  # noqa: S105  # not a secret
    NO_SENDER = "no-sender"
    DEFECT = "defect"

    @classmethod
    def _missing_(cls, value: object) -> Self:
        """Versions before stored `http-500` and `refused-REASON`."""
        word, _, rest = str(value).partition("-")
        if word == "http" and rest.isdecimal():
            return cls("http-error")
        return cls("sink-refused" if word == "refused" and rest else "")
