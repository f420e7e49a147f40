"""Resume tokens: what a stream has told, so that the next stream tells only what differs.

A token names each status that was told by its revision and a mark, a hash over the terminal, the revision, the status
as the reader saw it and the revision's own time: after a restored backup, with a new database or at another gateway an
equal revision is not an equal status (issue 12, number 15). Of more than MAX_NAMED terminals a token has one sum of
marks for each of BUCKETS buckets by address, so it stays short, and one change sends a bucket.
Invariants: a token is an application's text, whatever it holds. Reading one never fails and costs no more than its
stream's terminals. Tokens are not secret and not signed: who forges one misleads only himself.

Deliberately absent: which terminals are sent (`mailbox.py`).
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
_NAMED, _SUMMED = 2, 3  # first byte; 1 was a token of revisions only, which is not used any more
_HEAD = struct.Struct(">BII")  # form, number of terminals, sum of their addresses' checksums
_SUMS = struct.Struct(f">{BUCKETS}Q")
_MARK_BYTES, _MAX_REVISION_BYTES = 4, 10
_MAX_BODY = _HEAD.size + MAX_NAMED * (_MARK_BYTES + _MAX_REVISION_BYTES)
MAX_TOKEN = (_MAX_BODY * 4 + 2) // 3
"""Characters; a longer text is no token."""


class Told(NamedTuple):
    """One terminal as a stream told it, or as it is now."""

    revision: int
    """0: nothing was observed."""
    mark: int
    """Of `mark_of`; 0 where nothing was observed."""
    live: bool
    """Whether the stream told that this status is LIVE: only then may the next stream leave it out. True where nothing
    was observed, since a terminal without a status is never left out."""


NOTHING = Told(0, 0, True)


@dataclass(frozen=True, slots=True)
class Known:
    """What a token is worth to a stream."""

    addresses: frozenset[TerminalAddress] = frozenset()
    """Terminals that the reader knows as they are now."""
    usable: bool = False
    """False: the token is about other terminals or another history, or is no token. All is sent, marked as a reset."""


def mark_of(status: TerminalStatus) -> int:
    """Identifies a stored status, as its reader sees it; `observed_at` must be the time of its revision. 64 bits."""
    text = f"{status.address}\n{status.revision}\n{status.status.value}\n{status.observed_at.isoformat()}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def token_of(told: Mapping[TerminalAddress, Told]) -> str:
    """What resumes a stream that has told this."""
    if len(told) <= MAX_NAMED:
        ordered = sorted(told)
        body = bytearray(_head(_NAMED, ordered))
        for address in ordered:
            one = told[address]
            number = one.revision << 1 | one.live
            while number > 0x7F:
                body.append(0x80 | (number & 0x7F))
                number >>= 7
            body.append(number)
            body += _short(one.mark)
    else:
        body = bytearray(_head(_SUMMED, told) + _SUMS.pack(*_sums(told)))
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def known_by(token: str, now: Mapping[TerminalAddress, Told]) -> Known:
    """Which terminals a reader with this token knows as they are `now`; how they were told counts, not their liveness
    of now."""
    body = _decoded(token)
    if len(body) < _HEAD.size or body[: _HEAD.size] != _head(_NAMED if len(now) <= MAX_NAMED else _SUMMED, now):
        return Known()
    told = body[_HEAD.size :]
    if len(now) <= MAX_NAMED:
        return _known_by_name(told, now)
    if len(told) != _SUMS.size:
        return Known()
    same = [before == after for before, after in zip(_SUMS.unpack(told), _sums(now), strict=True)]
    return Known(frozenset([address for address in now if same[_checksum(address) % BUCKETS]]), usable=True)


def returned(token: str) -> str:
    """The token again, for a stream that ends before it reads the token; "" for a text that was never one."""
    body = _decoded(token)
    return token if len(body) > _HEAD.size and body[0] in (_NAMED, _SUMMED) else ""


def _known_by_name(body: bytes, now: Mapping[TerminalAddress, Told]) -> Known:
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
            return Known()  # another history: the reader may have seen greater revisions than will come for long
        if same and number & 1:
            known.append(address)
    return Known(frozenset(known), usable=True) if place == len(body) else Known()


def _decoded(token: str) -> bytes:
    """The token's bytes; none of what is no base64."""
    if len(token) > MAX_TOKEN:
        return b""
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return b""


def _head(form: int, addresses: Mapping[TerminalAddress, Told] | list[TerminalAddress]) -> bytes:
    """Says which terminals a token is about."""
    return _HEAD.pack(form, len(addresses), sum(map(_checksum, addresses)) & 0xFFFF_FFFF)


def _sums(told: Mapping[TerminalAddress, Told]) -> list[int]:
    sums = [0] * BUCKETS
    for address, one in told.items():
        sums[_checksum(address) % BUCKETS] += one.mark if one.live else one.mark ^ 1
    return [each & 0xFFFF_FFFF_FFFF_FFFF for each in sums]


def _checksum(address: TerminalAddress) -> int:
    return zlib.crc32(address.encode())


def _short(mark: int) -> bytes:
    return (mark >> 32).to_bytes(_MARK_BYTES)
