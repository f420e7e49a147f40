"""Page tokens: opaque to callers, and accepted only by the list that issued them.

A token contains the position of the last item, and a checksum over it, the list's name and its filters. It is neither
secret nor a permission: the filters, given with each call, decide what a caller may see. Lists are ordered by values
that never change.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

from app.domain.errors import InvalidRequest
from app.ports.store import MAX_PAGE, Page

_CHECK_BYTES = 9

T = TypeVar("T")


def position(page: Page, *names: object) -> str:
    """The position after which the page begins; "": the start. `names` are the list's name and its filters.

    Raises InvalidRequest for a token of another list, and for a size that is not 1 to MAX_PAGE.
    """
    if not 1 <= page.size <= MAX_PAGE:
        raise InvalidRequest(f"The page size must be 1 to {MAX_PAGE}, not {page.size}.", field="page_size")
    if not page.token:
        return ""
    try:
        raw = base64.b64decode(page.token.encode("ascii"), altchars=b"-_", validate=True)
        text = raw[_CHECK_BYTES:].decode()
    except (binascii.Error, ValueError):
        raw, text = b"", ""
    if not text or raw[:_CHECK_BYTES] != _check(text, names):
        raise _foreign()
    return text


def number(page: Page, *names: object) -> int:
    """As `position`, for a list whose positions are numbers; 0: the start."""
    return _number(position(page, *names))


def numbers(page: Page, *names: object) -> tuple[int, int]:
    """As `number`, with the number of the last row of the list; 0: unknown."""
    after, _, last = position(page, *names).partition(".")
    return _number(after), _number(last)


def token(last: object, *names: object) -> str:
    """The token of the page that begins after the item at position `last`."""
    text = str(last)
    return base64.urlsafe_b64encode(_check(text, names) + text.encode()).decode("ascii")


def empty(page: Page) -> tuple[list[Any], str]:
    """The only page of a list without items, for which no token was issued. Raises InvalidRequest."""
    if page.token:
        raise _foreign()
    return [], ""


def cut(rows: Sequence[T], page: Page) -> tuple[Sequence[T], bool]:
    """The rows of the page, and whether the list continues. `rows` has one row more than the page if it continues."""
    return rows[: page.size], len(rows) > page.size


def _number(text: str) -> int:
    if text and not (text.isdecimal() and int(text) < 2**63):  # a caller made this token: the checksum is not secret
        raise _foreign()
    return int(text or 0)


def _foreign() -> InvalidRequest:
    return InvalidRequest("The page token was not issued for this list; start again without one.", field="page_token")


def _check(text: str, names: Sequence[object]) -> bytes:
    return hashlib.blake2s(repr((names, text)).encode(), digest_size=_CHECK_BYTES).digest()
