"""An application's own spelling of the addresses that it named in startNotification, for its callbacks.

Some applications compare addresses as text, so callbacks repeat their spelling instead of the canonical form.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from app.domain.addresses import canonical, with_tel_context

SPELLING_PARAMETER: Final = "written"
"""The sink's parameter: a JSON object from canonical addresses to the application's spelling."""

_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*:[^/]")
_NOT_IN_URI = re.compile(r"%(?![0-9A-Fa-f]{2})|[\[\]#]")

MAX_SPELLINGS: Final = 100
"""If more addresses differ from their canonical form, callbacks have the canonical form of all."""


def spelling_parameters(addresses: Iterable[str], tel_context: str = "") -> dict[str, str]:
    """The parameters to store with the sink: the spelling of those addresses that are not canonical. `tel_context` is
    the context of telephone numbers without one (`with_tel_context`)."""
    differing = {
        address: text for text in addresses if (address := canonical(with_tel_context(text, tel_context))) != text
    }
    return {SPELLING_PARAMETER: json.dumps(differing)} if 0 < len(differing) <= MAX_SPELLINGS else {}


def any_uri(text: str) -> str:
    """An invalid address as a value of the type anyURI, which an answer's schema demands: percent signs that begin no
    escape, brackets, and other characters that may stand in few places of a URI (RFC 2396) are escaped."""
    return _NOT_IN_URI.sub(
        lambda match: f"%{ord(match[0]):02X}", text if _SCHEME.match(text) else text.replace(":", "%3A")
    )


def spelling_of(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """The application's spelling by canonical address; addresses that are missing were spelled canonically."""
    return _parsed(parameters.get(SPELLING_PARAMETER, ""))


@lru_cache(maxsize=256)
def _parsed(text: str) -> Mapping[str, str]:
    spelling: dict[str, str] = json.loads(text) if text else {}
    return spelling
