"""One watch in the worker: its state machine, its SIP dialogs, its timer, and its place in the queue."""

from app.sip.machine.events import Event
from app.sip.machine.watch_machine import WatchMachine
from app.sip.pjsip.subscribe_dialog import SubscribeDialog


class Watch:
    """One watched terminal."""

    __slots__ = (
        "address",
        "clients",
        "dialog",
        "id",
        "machine",
        "older",
        "over_tcp",
        "queued",
        "recent",
        "redirected_to",
        "route",
        "sent_at_s",
        "timer_at_s",
        "timer_entry_s",
    )

    def __init__(self, number: int, address: str, clients: tuple[int, ...], machine: WatchMachine) -> None:
        self.id = number
        self.address = address
        self.clients = clients
        """The clients in whose turn the watch is set up, by number."""
        self.machine = machine
        self.dialog: SubscribeDialog | None = None
        self.older: SubscribeDialog | None = None
        """The dialog that `dialog` is about to replace."""
        self.route = 0
        self.redirected_to: int | None = None
        """The route that the last response named by a redirection."""
        self.over_tcp = False
        self.timer_at_s = 0.0
        """When the machine wants its timer to fire; 0 where it wants none."""
        self.timer_entry_s = 0.0
        """The time of the watch's valid entry in `WatchTimers`; 0 where it has none."""
        self.queued: Event | None = None
        """The event that waits for the send rate."""
        self.recent = False
        self.sent_at_s = 0.0
