"""What the gateway and its SIP worker say to each other over their Unix socket.

A frame is four bytes of length (big endian) and a msgpack array of messages: whatever gathered since the last
frame, so a burst costs one system call. Invariants: no pickle; a frame above `MAX_FRAME_BYTES` ends the
conversation, as does one that does not decode; messages are small and flat.

Deliberately absent: versioning. Both sides are always of the same installation.
"""

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import msgspec

MAX_FRAME_BYTES = 16 * 1024 * 1024


class _Message(msgspec.Struct, array_like=True, tag_field="t"):
    pass


class Route(_Message, tag="route"):
    """One presence server: its URI as the topmost Route, and over what it is spoken to (`udp`, `tcp` or `tls`)."""

    uri: str
    transport: str


class Credentials(_Message, tag="credentials"):
    """What a digest challenge is answered with (RFC 3261 section 22). Realm `*` is any."""

    realm: str
    username: str
    password: str


class Configure(_Message, tag="configure"):
    """The first frame to a worker: how it is to speak SIP. Port 0 lets the system choose; rates 0 are no limit."""

    listen_host: str
    listen_port: int
    public_host: str
    routes: list[Route]
    watcher_identity: str
    headers: list[tuple[str, str]]
    sip_log_level: int
    charging_orig_ioi: str = ""
    """Not empty: every SUBSCRIBE dialog has a P-Charging-Vector with an icid of its own (RFC 7315 section 4.6)."""
    credentials: Credentials | None = None
    tls_ca_file: str = ""
    tls_verify: bool = True
    nameservers: list[str] = []
    registrar: str = ""
    """Not empty: the watcher itself registers there."""
    max_body_bytes: int = 1024 * 1024
    watch_expires_s: int = 3600
    setups_per_s: float = 0
    probe_every_s: float = 0
    routes_up: list[bool] = []
    """What is known of the routes; empty: nothing."""
    answers_from: list[str] = []
    """Networks whose answers count in place of those from where the request went."""


class Fetch(_Message, tag="fetch"):
    """Ask once about `address` (a canonical URI), in the turn of `client`. Answered by Notified or Failed with the same
    `id`."""

    id: int
    address: str
    client: int = 0


class Cancel(_Message, tag="cancel"):
    """Nobody waits for the fetch `id` any more. It is not answered."""

    id: int


class Watch(_Message, tag="watch"):
    """Keep a subscription to each `(id, address, observed)`, the most urgent first; `observed`: it was, once. They are
    set up in the turn of one of `clients`. What is wished already may be wished again, by other clients."""

    wishes: list[tuple[int, str, bool]]
    clients: tuple[int, ...] = ()


class Unwatch(_Message, tag="unwatch"):
    """End the subscription. Nothing more is reported about it."""

    id: int


class Refresh(_Message, tag="refresh"):
    """Ask the presence server now rather than when the watch `id` is due."""

    id: int


class ListWatches(_Message, tag="list-watches"):
    """Answered by WatchLists of the same `id`, of which the last says so."""

    id: int


class Ping(_Message, tag="ping"):
    """Are you alive? Answered by Pong."""


class Build(_Message, tag="build"):
    """The PJSIP that the worker found, and its limits."""

    version: str
    symbols: int
    ipv6: bool = False
    tls: str = ""
    openssl: str = ""
    max_message_bytes: int = 0
    max_uri_bytes: int = 0
    max_sockets: int = 0


class Started(_Message, tag="started"):
    """The worker is ready; `ports` are those it listens on, by transport."""

    build: Build
    ports: dict[str, int]


class CannotStart(_Message, tag="cannot-start"):
    """The worker gives up; `reason` is for the operator."""

    reason: str


class Notified(_Message, tag="notified"):
    """The NOTIFY that answers a fetch. `observed_at_s` is Unix time; `declared_bytes` is its Content-Length or -1."""

    id: int
    observed_at_s: float
    state: str
    reason: str
    retry_after_s: int
    content_type: str
    content_encoding: str
    declared_bytes: int
    body: bytes


class Failed(_Message, tag="failed"):
    """What ended a fetch without a NOTIFY, as in `message.Final`. `retry_after_s` is -1 where absent."""

    id: int
    code: int
    phrase: str
    retry_after_s: int
    local: bool


class Error(_Message, tag="error"):
    """A domain error on its way to the parent; `retry_after_s` is -1 where absent."""

    code: str
    message: str
    retry_after_s: float
    details: dict[str, str]


class Observed(_Message, tag="observed"):
    """A NOTIFY of the watch `id` that tells the terminal's status. Fields as in Notified."""

    id: int
    observed_at_s: float
    content_type: str
    content_encoding: str
    declared_bytes: int
    body: bytes


class Told(_Message, tag="told"):
    """What the last observation of the watch `id` is worth (a Liveness name), and why it is not LIVE."""

    id: int
    liveness: str
    reason: str
    error: Error | None


class NotifyRefused(_Message, tag="notify-refused"):
    """A NOTIFY of the watch `id` could not be used, and why."""

    id: int
    reason: str


class WatchEnded(_Message, tag="watch-ended"):
    """Nothing follows of the watch `id`."""

    id: int
    reason: str
    error: Error | None


class WatchState(_Message, tag="watch-state"):
    """One watch for operators. Times are Unix times, 0 where there is none; `route` is the number of its Route."""

    id: int
    state: str
    liveness: str
    since_s: float
    expires_at_s: float
    code: int
    reason: str
    next_action: str
    next_at_s: float
    route: int


class WatchList(_Message, tag="watch-list"):
    """Some of the worker's watches."""

    id: int
    watches: list[WatchState]
    last: bool


class Counts(_Message, tag="counts"):
    """What the worker counted since it started; sent when it has changed, at most each second."""

    subscribes_sent: int
    notifies_received: int
    cut_messages: int
    failures: dict[str, int]
    """SUBSCRIBEs that failed, by SIP status (`408` and `503` of PJSIP's own with `local-` before)."""
    states: dict[str, int]
    """Watches by state, now."""
    routes_up: list[bool]
    registered: bool
    omitted: list[int] = []
    """Refreshes that were accepted and that no NOTIFY followed, by route."""
    refused: dict[str, int] = {}
    """Messages that did not count, by reason."""


class Pong(_Message, tag="pong"):
    """The worker is alive."""


Command = Configure | Fetch | Cancel | Ping | Watch | Unwatch | Refresh | ListWatches
Report = (
    Started | CannotStart | Notified | Failed | Pong | Observed | Told | NotifyRefused | WatchEnded | WatchList | Counts
)


T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


def encode(messages: Sequence[Command] | Sequence[Report]) -> bytes:
    """One frame that holds `messages`."""
    payload = _encoder.encode(messages)
    return len(payload).to_bytes(4, "big") + payload


class FrameError(Exception):
    """The peer sent what is no frame of ours."""


class Decoder(Generic[T]):
    """Cuts a byte stream into messages. Not reusable after FrameError."""

    def __init__(self, union: type[T]) -> None:
        self._decode = msgspec.msgpack.Decoder(list[union]).decode  # type: ignore[valid-type]  # a union at runtime
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterable[T]:
        """Yields each message that `data` completes. Raises FrameError."""
        buffer = self._buffer
        buffer += data
        messages: list[T] = []
        start = 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "big")
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are allowed")
            end = start + 4 + size
            if len(buffer) < end:
                break
            try:
                messages += self._decode(bytes(buffer[start + 4 : end]))
            except msgspec.MsgspecError as error:
                raise FrameError(str(error)) from error
            start = end
        del buffer[:start]
        return messages
