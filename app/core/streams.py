"""Live streams of statuses: what is told, and how a reader resumes.

A resume token holds the revisions that were told. It means nothing but to the gateway, is bounded, and counts only for
the same terminals: for others, everything is told again.

Deliberately absent: a stream's mailbox (`mailbox.py`), where events come from (`watching.py`), and any transport.
"""

import base64
import binascii
import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.domain import InvalidRequest, TerminalAddress, TerminalStatus, TerminalStatusError, WatchedTerminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How one terminal stands. At the start all that the resume token does not tell already, whatever the criteria;
    after SnapshotComplete only terminals that joined a group. The first observation of one that is UNKNOWN comes as a
    Change."""

    terminal: WatchedTerminal


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotComplete:
    """Every terminal was told. Changes follow."""

    resume_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A terminal's status changed. The same object goes to every stream."""

    status: TerminalStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessChange:
    """What the last observation of a terminal is worth has changed, or the reason; `error` where the presence server
    refuses it or does not know it, or where its last document cannot be read."""

    terminal: WatchedTerminal
    error: TerminalStatusError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The terminal left the group by which it was watched; nothing follows about it."""

    address: TerminalAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """Nothing was missed up to here; sent when nothing else was for a while."""

    resume_token: str


class StreamEnd(enum.Enum):
    """Why the gateway ended a stream."""

    GATEWAY_STOPPING = "GATEWAY_STOPPING"
    """Come again, with the last resume token."""
    NOTHING_TO_WATCH = "NOTHING_TO_WATCH"
    """Each terminal is unknown to the presence server, or refuses the gateway."""
    CREDENTIALS_EXPIRED = "CREDENTIALS_EXPIRED"
    """The client was deleted or disabled, or its credentials ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Nothing follows. `message` is for people; `resume_token` is empty where coming again makes no sense."""

    reason: StreamEnd
    message: str
    resume_token: str


WatchEvent = Snapshot | SnapshotComplete | Change | LivenessChange | Removed | Bookmark | End


_TOKEN_VERSION = b"\x01"
MAX_TOKEN_TERMINALS = 4096
"""Above it a resume token says nothing, and everything is told again: it would grow by two bytes a terminal."""
MAX_TOKEN = 65_536
_MESSAGES = {
    StreamEnd.GATEWAY_STOPPING: "The gateway is stopping; come again, or to another one.",
    StreamEnd.NOTHING_TO_WATCH: "None of the terminals can be watched.",
    StreamEnd.CREDENTIALS_EXPIRED: "The client's credentials are no longer good.",
}


def resume_token(told: Mapping[TerminalAddress, int]) -> str:
    """What resumes a stream that has told these revisions (0: none yet) of these terminals."""
    if len(told) > MAX_TOKEN_TERMINALS:
        return _encoded(_TOKEN_VERSION)
    addresses = sorted(told)
    body = bytearray(_TOKEN_VERSION + _fingerprint(addresses))
    for address in addresses:
        revision = told[address]
        while revision > 0x7F:
            body.append(0x80 | (revision & 0x7F))
            revision >>= 7
        body.append(revision)
    return _encoded(bytes(body))


def told_by(token: str, addresses: Iterable[TerminalAddress]) -> dict[TerminalAddress, int]:
    """The revisions that a token says were told; empty where it is about other terminals, or the token is "".

    Raises InvalidRequest where no gateway made it.
    """
    if not token:
        return {}
    try:
        if len(token) > MAX_TOKEN:
            raise ValueError
        body = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise _no_token() from None
    if body[:1] != _TOKEN_VERSION or 1 < len(body) < 9:
        raise _no_token()
    ordered = sorted(addresses)
    if body[1:9] != _fingerprint(ordered):
        return {}
    revisions, value, shift = [], 0, 0
    for byte in body[9:]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            revisions.append(value)
            value = shift = 0
        elif shift > 63:
            raise _no_token()
    if shift or len(revisions) != len(ordered):
        raise _no_token()
    return dict(zip(ordered, revisions, strict=True))


def _encoded(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def _fingerprint(addresses: Iterable[TerminalAddress]) -> bytes:
    return hashlib.blake2b("\n".join(addresses).encode(), digest_size=8).digest()


def _no_token() -> InvalidRequest:
    return InvalidRequest("The resume token is none that this gateway gave.", field="resume_token")


def ending(reason: StreamEnd, token: str) -> End:
    """The last event of a stream."""
    return End(reason=reason, message=_MESSAGES[reason], resume_token=token)
