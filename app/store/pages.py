"""Page tokens: where a list goes on. Opaque to callers, and worth nothing in another list.

A token holds the position of the last item and a check over it and the list's name with its filters. It is no secret
and no permission: what a caller may see is decided by the list's filters, which are given with each call.

Deliberately absent: positions in a list of something that moves. Lists are ordered by what never changes.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import TypeVar

from app.domain.errors import InvalidRequest
from app.ports import MAX_PAGE, Page

_CHECK_BYTES = 9

T = TypeVar("T")


def position(page: Page, *names: object) -> str:
    """The position after which the page begins, "" for the start. `names` are the list and its filters.

    Raises InvalidRequest, for a token of another list and for a size that is not 1 to MAX_PAGE.
    """
    if not 1 <= page.size <= MAX_PAGE:
        raise InvalidRequest(f"A page has 1 to {MAX_PAGE} items, not {page.size}.", field="page_size")
    if not page.token:
        return ""
    try:
        raw = base64.b64decode(page.token.encode("ascii"), altchars=b"-_", validate=True)
        text = raw[_CHECK_BYTES:].decode("ascii")
    except (binascii.Error, ValueError):
        raw, text = b"", ""
    if not text or raw[:_CHECK_BYTES] != _check(text, names):
        raise InvalidRequest("The page token is none of this list's.", field="page_token")
    return text


def number(page: Page, *names: object) -> int:
    """As `position`, of a list whose positions are numbers; 0 for the start."""
    text = position(page, *names)
    if text and not (text.isdecimal() and int(text) < 2**63):  # the check is no secret: somebody made it himself
        raise InvalidRequest("The page token is none of this list's.", field="page_token")
    return int(text or 0)


def token(last: object, *names: object) -> str:
    """The token of the page that begins after the item at position `last`."""
    text = str(last)
    return base64.urlsafe_b64encode(_check(text, names) + text.encode("ascii")).decode("ascii")


def cut(rows: Sequence[T], page: Page) -> tuple[Sequence[T], bool]:
    """The page's own rows out of those read, which are one more where the list goes on; and whether it does."""
    return rows[: page.size], len(rows) > page.size


def _check(text: str, names: Sequence[object]) -> bytes:
    return hashlib.blake2s(repr((names, text)).encode(), digest_size=_CHECK_BYTES).digest()
