"""The states of a watch, the gateway's own SIP subscription to one terminal."""

import enum


class WatchState(enum.Enum):
    """A state of RFC 6665 section 4.1.2, or WAITING or ENDING, which are our own."""

    INITIAL = "initial"
    """Not started, or the first SUBSCRIBE of a dialog has no answer yet."""
    ACCEPTED = "accepted"
    """The first SUBSCRIBE has its 2xx; its NOTIFY is still missing."""
    ACTIVE = "active"
    PENDING = "pending"
    REFRESHING = "refreshing"
    WAITING = "waiting"
    """Without a subscription until the next attempt."""
    ENDING = "ending"
    """Unsubscribing: waiting for the last NOTIFY."""
    TERMINATED = "terminated"
