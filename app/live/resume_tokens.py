"""Resume tokens: what a stream has sent, so that the next stream sends only what differs.

A token names each status by its revision and a mark: a hash over the terminal, the revision, the status as the reader
saw it and the revision's own time. The mark is needed because equal revisions can mean different statuses: after a
backup was restored, with a new database, or at another gateway. For more than MAX_NAMED terminals a token has one sum
of marks for each of BUCKETS buckets of addresses. So it stays short; after one change the next stream sends one bucket.
Invariants: a token comes from an application and can be any text. Reading a token never fails, and takes time in
proportion to the stream's terminals. Tokens are neither secret nor signed: a forged token misleads only its forger.
"""

import base64
import binascii
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from app.domain.addresses import TerminalAddress
from app.domain.statuses import TerminalStatus

MAX_NAMED = 4096
"""Terminals that a token names one by one, in about eight characters each."""
BUCKETS = 256
_NAMED, _SUMMED = 2, 3  # first byte; 1 was a token of revisions only, no longer used
_HEAD = struct.Struct(">BII")  # form, number of terminals, sum of their addresses' checksums
_SUMS = struct.Struct(f">{BUCKETS}Q")
_MARK_BYTES, _MAX_REVISION_BYTES = 4, 10
_MAX_BODY = _HEAD.size + MAX_NAMED * (_MARK_BYTES + _MAX_REVISION_BYTES)
MAX_TOKEN = (_MAX_BODY * 4 + 2) // 3
"""In characters; a longer text is not a token."""


class Seen(NamedTuple):
    """One terminal as its reader saw it last, or as it is now."""

    revision: int
    """0 before the first observation."""
    mark: int
    """From `mark_of`; 0 before the first observation."""
    live: bool
    """Whether the stream reported this status as LIVE; only then may the next stream omit it. True before the first
    observation, where it has no effect: a terminal without a status is never omitted."""


NOTHING_SEEN = Seen(0, 0, True)


@dataclass(frozen=True, slots=True)
class Known:
    """What the reader of a token knows about a stream's terminals."""

    addresses: frozenset[TerminalAddress] = frozenset()
    """Terminals whose present status the reader knows."""
    usable: bool = False
    """False if the token is for other terminals or another history, or is not a token: then every terminal is sent,
    marked as a reset."""


def mark_of(status: TerminalStatus) -> int:
    """64 bits that identify a stored status as its reader sees it. `observed_at` must be the time of its revision."""
    text = f"{status.address}\n{status.revision}\n{status.status.value}\n{status.observed_at.isoformat()}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def token_of(seen: Mapping[TerminalAddress, Seen]) -> str:
    """The token of a stream whose reader has seen these terminals."""
    if len(seen) <= MAX_NAMED:
        ordered = sorted(seen)
        body = bytearray(_head(_NAMED, ordered))
        for address in ordered:
            one = seen[address]
            number = one.revision << 1 | one.live
            while number > 0x7F:
                body.append(0x80 | (number & 0x7F))
                number >>= 7
            body.append(number)
            body += _short(one.mark)
    else:
        body = bytearray(_head(_SUMMED, seen) + _SUMS.pack(*_sums(seen)))
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def known_by(token: str, now: Mapping[TerminalAddress, Seen]) -> Known:
    """The terminals whose present status (`now`) the reader of this token knows. The present liveness does not matter,
    only the liveness that was reported."""
    body = _decoded(token)
    if len(body) < _HEAD.size or body[: _HEAD.size] != _head(_NAMED if len(now) <= MAX_NAMED else _SUMMED, now):
        return Known()
    sent = body[_HEAD.size :]
    if len(now) <= MAX_NAMED:
        return _known_by_name(sent, now)
    if len(sent) != _SUMS.size:
        return Known()
    same = [before == after for before, after in zip(_SUMS.unpack(sent), _sums(now), strict=True)]
    return Known(frozenset([address for address in now if same[_checksum(address) % BUCKETS]]), usable=True)


def returned(token: str) -> str:
    """The same token, for a stream that ends before it compares the token; "" if the text was never a token."""
    body = _decoded(token)
    return token if len(body) > _HEAD.size and body[0] in (_NAMED, _SUMMED) else ""


def _known_by_name(body: bytes, now: Mapping[TerminalAddress, Seen]) -> Known:
    known, place = [], 0
    for address in sorted(now):
        number = shift = 0
        while True:
            if place >= len(body) or shift >= 7 * _MAX_REVISION_BYTES:
                return Known()
            byte = body[place]
            number |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                break
        mark, place = body[place : place + _MARK_BYTES], place + _MARK_BYTES
        one, revision = now[address], number >> 1
        same = revision == one.revision and mark == _short(one.mark)
        if revision > one.revision or (revision == one.revision and not same):
            return Known()  # another history: the reader may have seen greater revisions than will be sent for long
        if same and number & 1:
            known.append(address)
    return Known(frozenset(known), usable=True) if place == len(body) else Known()


def _decoded(token: str) -> bytes:
    """The token's bytes; empty if it is not base64."""
    if len(token) > MAX_TOKEN:
        return b""
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return b""


def _head(form: int, addresses: Mapping[TerminalAddress, Seen] | list[TerminalAddress]) -> bytes:
    """The start of a token: which terminals it is about."""
    return _HEAD.pack(form, len(addresses), sum(map(_checksum, addresses)) & 0xFFFF_FFFF)


def _sums(seen: Mapping[TerminalAddress, Seen]) -> list[int]:
    sums = [0] * BUCKETS
    for address, one in seen.items():
        sums[_checksum(address) % BUCKETS] += one.mark if one.live else one.mark ^ 1
    return [each & 0xFFFF_FFFF_FFFF_FFFF for each in sums]


def _checksum(address: TerminalAddress) -> int:
    return zlib.crc32(address.encode())


def _short(mark: int) -> bytes:
    return (mark >> 32).to_bytes(_MARK_BYTES)
