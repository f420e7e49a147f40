"""An application's own spelling of the addresses that it named in startNotification, for its callbacks.

Some applications compare addresses as text, so callbacks repeat their spelling instead of the canonical form.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from app.domain.addresses import canonical

SPELLING_PARAMETER: Final = "written"
"""The sink's parameter: a JSON object from canonical addresses to the application's spelling."""

MAX_SPELLINGS: Final = 100
"""If more addresses differ from their canonical form, callbacks have the canonical form of all."""


def spelling_parameters(addresses: Iterable[str]) -> dict[str, str]:
    """The parameters to store with the sink: the spelling of those addresses that are not canonical."""
    differing = {address: text for text in addresses if (address := canonical(text)) != text}
    return {SPELLING_PARAMETER: json.dumps(differing)} if 0 < len(differing) <= MAX_SPELLINGS else {}


def spelling_of(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """The application's spelling by canonical address; addresses that are missing were spelled canonically."""
    return _parsed(parameters.get(SPELLING_PARAMETER, ""))


@lru_cache(maxsize=256)
def _parsed(text: str) -> Mapping[str, str]:
    spelling: dict[str, str] = json.loads(text) if text else {}
    return spelling
