"""The messages between the gateway and a SIP worker, over their Unix socket.

A frame is four bytes of length (big endian) and a msgpack array of all messages since the last frame, so a burst costs
one system call. Commands go to the worker, reports to the gateway.

Invariants: no pickle; messages are small and flat. A frame above MAX_FRAME_BYTES or one that does not decode ends the
connection.

Deliberately absent: versions. Both sides are of the same installation.
"""

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import msgspec

MAX_FRAME_BYTES = 16 * 1024 * 1024


class _Message(msgspec.Struct, array_like=True, tag_field="t"):
    pass


class Route(_Message, tag="route"):
    """One presence server: its URI for the topmost Route header, and the transport (`udp`, `tcp` or `tls`)."""

    uri: str
    transport: str


class Credentials(_Message, tag="credentials"):
    """The credentials for digest (RFC 3261 section 22). Realm `*` is any."""

    realm: str
    username: str
    password: str


class Configure(_Message, tag="configure"):
    """The first command. Port 0: the system chooses; a rate of 0: unlimited."""

    listen_host: str
    listen_port: int
    public_host: str
    routes: list[Route]
    watcher_identity: str
    headers: list[tuple[str, str]]
    sip_log_level: int
    charging_orig_ioi: str = ""
    """If set, every SUBSCRIBE dialog has a P-Charging-Vector with an icid of its own (RFC 7315 section 4.6)."""
    credentials: Credentials | None = None
    tls_ca_file: str = ""
    tls_verify: bool = True
    nameservers: list[str] = []
    registrar: str = ""
    """If set, the worker registers the watcher identity there."""
    max_body_bytes: int = 1024 * 1024
    watch_expires_s: int = 3600
    setups_per_s: float = 0
    probe_every_s: float = 0
    routes_up: list[bool] = []
    """The known state of each route; empty: unknown."""
    answers_from: list[str] = []
    """Networks that may answer in place of the server that was asked."""
    counts_every_s: float = 1.0
    """The time between two reports of Counts."""


class StartFetch(_Message, tag="start-fetch"):
    """Fetch the status of `address` (a canonical URI) from the presence server. Fetches wait in `client`'s queue; the
    clients' queues are served in turn.

    The worker answers by FetchAnswered or FetchFailed with the same `id`.
    """

    id: int
    address: str
    client: int = 0


class CancelFetch(_Message, tag="cancel-fetch"):
    """Drop the fetch `id`; it gets no answer."""

    id: int


class StartWatches(_Message, tag="start-watches"):
    """Keep a watch for each `(id, address, observed)`, the most urgent first. A watch is set up when one of `clients`
    has its turn.

    `observed`: a status was observed before. For a watch that exists, only its clients change.
    """

    watches: list[tuple[int, str, bool]]
    clients: tuple[int, ...] = ()


class EndWatch(_Message, tag="end-watch"):
    """End the watch `id`; nothing more is reported of it."""

    id: int


class RefreshWatch(_Message, tag="refresh-watch"):
    """Ask the presence server about the watch `id` now, before its planned refresh."""

    id: int


class ListWatches(_Message, tag="list-watches"):
    """List all watches. The worker answers by one or more WatchList with the same `id`."""

    id: int


class Ping(_Message, tag="ping"):
    """Check that the worker is alive. It answers by Pong."""


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
    """The worker is ready. `ports`: the SIP ports it listens on, by transport."""

    build: Build
    ports: dict[str, int]


class CannotStart(_Message, tag="cannot-start"):
    """The worker cannot start and exits. `reason` is for the operator."""

    reason: str


class FetchAnswered(_Message, tag="fetch-answered"):
    """The NOTIFY that answers a fetch. `observed_at_s`: Unix time; `declared_bytes`: its Content-Length or -1."""

    id: int
    observed_at_s: float
    state: str
    reason: str
    retry_after_s: int
    content_type: str
    content_encoding: str
    declared_bytes: int
    body: bytes
    of_list: bool = False


class FetchFailed(_Message, tag="fetch-failed"):
    """The answer or failure that ended a fetch without a NOTIFY; fields as in `app.sip.headers.Final`."""

    id: int
    code: int
    phrase: str
    retry_after_s: int
    local: bool
    of_list: bool = False


class Error(_Message, tag="error"):
    """A domain error; `retry_after_s` is -1 where absent."""

    code: str
    message: str
    retry_after_s: float
    details: dict[str, str]


class Observed(_Message, tag="observed"):
    """A NOTIFY of the watch `id` with the terminal's status; fields as in FetchAnswered."""

    id: int
    observed_at_s: float
    content_type: str
    content_encoding: str
    declared_bytes: int
    body: bytes


class LivenessChanged(_Message, tag="liveness-changed"):
    """The liveness of the watch `id` (a Liveness name), and why it is not LIVE."""

    id: int
    liveness: str
    reason: str
    error: Error | None


class NotifyRefused(_Message, tag="notify-refused"):
    """A NOTIFY of the watch `id` could not be used. `reason` is a key of `app.sip.answers.UNUSABLE`."""

    id: int
    reason: str


class WatchEnded(_Message, tag="watch-ended"):
    """The presence server ended the watch `id` for good."""

    id: int
    reason: str
    error: Error | None


class WatchRow(_Message, tag="watch-row"):
    """One watch, for operators. Times are Unix times, 0 where not applicable; `route` is the number of its server."""

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
    """A part of the worker's watches."""

    id: int
    watches: list[WatchRow]
    last: bool


class Counts(_Message, tag="counts"):
    """What the worker counted since its start; sent when changed, at most once a second."""

    subscribes_sent: int
    notifies_received: int
    cut_messages: int
    failures: dict[str, int]
    """Failed SUBSCRIBEs by SIP status, with the prefix `local-` where the status is PJSIP's own (408, 503)."""
    states: dict[str, int]
    """The present number of watches in each state."""
    routes_up: list[bool]
    registered: bool
    omitted: list[int] = []
    """Accepted refreshes that no NOTIFY followed, by route."""
    refused: dict[str, int] = {}
    """Dropped messages, by reason."""
    cut_headers: dict[str, int] = {}
    """Header fields that PJSIP cannot parse and that were cut, by name."""
    unreadable_peer: str = ""
    """Host and port of the last sender of an unreadable message; empty where unknown."""


class Pong(_Message, tag="pong"):
    """The worker is alive."""


Command = Configure | StartFetch | CancelFetch | Ping | StartWatches | EndWatch | RefreshWatch | ListWatches
Report = (
    Started
    | CannotStart
    | FetchAnswered
    | FetchFailed
    | Pong
    | Observed
    | LivenessChanged
    | NotifyRefused
    | WatchEnded
    | WatchList
    | Counts
)


T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


def encode(messages: Sequence[Command] | Sequence[Report]) -> bytes:
    """Encodes `messages` as one frame."""
    payload = _encoder.encode(messages)
    return len(payload).to_bytes(4, "big") + payload


class FrameError(Exception):
    """The other side sent something else than a frame of this protocol."""


class Decoder(Generic[T]):
    """Decodes a byte stream into messages. Unusable after FrameError."""

    def __init__(self, union: type[T]) -> None:
        self._decode = msgspec.msgpack.Decoder(list[union]).decode  # type: ignore[valid-type]  # a union at runtime
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterable[T]:
        """Returns the messages that `data` completes. Raises FrameError."""
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
