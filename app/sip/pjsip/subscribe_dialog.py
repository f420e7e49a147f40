"""One SUBSCRIBE dialog in PJSIP, of a fetch or a watch."""

from dataclasses import dataclass
from typing import Any

from app.sip.pjsip.dialogs import DialogIdentity


@dataclass(eq=False, slots=True)
class SubscribeDialog:
    """The dialog, its event subscription in PJSIP, and the fetch or watch that owns it."""

    owner: Any
    pointer: Any
    """PJSIP's event subscription; None once PJSIP has dropped it."""
    dialog: Any
    """PJSIP's dialog."""
    reports_answers: bool
    """Whether every answer to SUBSCRIBE is reported (a watch), or only the end (a fetch)."""
    transaction: Any = None
    """The SUBSCRIBE in progress, so that dropping the dialog also ends its retransmissions."""
    over: bool = False
    """Whether a NOTIFY has ended the subscription."""
    challenged: bool = False
    """Whether the request in progress answers a challenge."""
    generation: int = 0
    """The owner's number of this dialog."""
    destination: tuple[int, bool] | None = None
    """Over TCP and TLS: the key of its requests in the connection queue."""
    route: int = 0
    """The number of the presence server that was asked."""
    identity: DialogIdentity | None = None
    """The dialog as NOTIFYs name it."""
